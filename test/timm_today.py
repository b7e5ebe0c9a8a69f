"""timm itself, in a process of its own: what the tests hold the pixels and tresnet_v2_l against.

    python test/timm_today.py TIMM TORCHVISION transform CASES.json OUT.json
    python test/timm_today.py TIMM TORCHVISION v2_l FOLDER

TIMM is a folder that holds timm/: the pinned source package 0.4.5, or today's wheel. Of torchvision only the Python
files of `transforms` run: the package itself refuses to be imported beside a PyTorch that was built for the CPU alone.
"""

import hashlib
import json
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

TIMM = ("timm==1.0.31", "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7")
TORCHVISION = (
    "torchvision==0.29.1",
    "2cb678029a5dd45afbbfa662fce49736827d52be33242b5a8a731e0db02ccdf5",
)
ONE_WHEEL = (
    "--platform",
    "manylinux_2_28_x86_64",
    "--python-version",
    "3.11",
    "--only-binary",
    ":all:",
)
CLASSES = 11221


def fetch(folder: Path) -> None:
    """Unzip both wheels, checked against their SHA-256, into folder/timm-today and folder/torchvision."""
    from common.core.environment import download

    for (package, sha256), name, options in (
        (TIMM, "timm-today", ()),
        (TORCHVISION, "torchvision", ONE_WHEEL),
    ):
        place = folder / f"{name}-wheel"
        place.mkdir()
        with zipfile.ZipFile(download(package, sha256, str(place), *options)) as wheel:
            wheel.extractall(str(folder / name))


def run(timm: Path, wheels: Path, *words: object) -> None:
    """This file as a program; `wheels` is the folder that fetch() filled."""
    subprocess.run(
        [sys.executable, __file__, str(timm), str(wheels / "torchvision"), *map(str, words)],
        check=True,
    )


def in_two_passes() -> None:
    """Pillow 13 resizes tall images the vertical way first, which rounds otherwise than any Pillow before."""
    from PIL import Image

    resize = Image.Image.resize

    def horizontal_first(
        image: Any, size: Any, resample: Any = None, *more: Any, **options: Any
    ) -> Any:
        return resize(
            resize(image, (size[0], image.height), resample),
            tuple(size),
            resample,
            *more,
            **options,
        )

    Image.Image.resize = horizontal_first  # type: ignore[method-assign]


def transform(cases: str, out: str) -> None:
    """{case: SHA-256 of the float32 tensor} of [{"case", "path", "img_size", "crop_pct", ...}], by timm's transform."""
    import timm.data.transforms_factory as factory
    from PIL import Image

    in_two_passes()
    found = {}
    for case in json.loads(Path(cases).read_text()):
        name, path = case.pop("case"), case.pop("path")
        made = factory.transforms_imagenet_eval(**case)
        with Image.open(path) as image:
            found[name] = hashlib.sha256(
                made(image.convert("RGB")).numpy().astype("<f4").tobytes()
            ).hexdigest()
    Path(out).write_text(json.dumps(found))


def v2_l(folder: str) -> None:
    """Seeded weights for tresnet_v2_l as weights.pth, two images and their logits as images.npy and logits.npy."""
    import numpy as np
    import timm
    import torch
    from fill import fill

    network = timm.create_model("tresnet_v2_l", num_classes=CLASSES).eval()
    state = fill(network.state_dict())
    for name, tensor in state.items():
        if name.endswith("bn.weight"):
            tensor.abs_().add_(1e-5)  # as timm's own conversion of the official weights leaves them
    network.load_state_dict(state)
    images = np.random.RandomState(0).uniform(0, 1, (2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    torch.save(
        {
            name: tensor
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
        },
        os.path.join(folder, "weights.pth"),
    )
    np.save(os.path.join(folder, "images.npy"), images)
    np.save(os.path.join(folder, "logits.npy"), logits)


if __name__ == "__main__":
    sys.path[:0] = [
        sys.argv[1],
        os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "golden"),
    ]
    package = types.ModuleType("torchvision")
    package.__path__ = [os.path.join(sys.argv[2], "torchvision")]
    package.__version__ = TORCHVISION[0].split("==")[1]  # type: ignore[attr-defined]
    sys.modules["torchvision"] = package
    {"transform": transform, "v2_l": v2_l}[sys.argv[3]](*sys.argv[4:])
