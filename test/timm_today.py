"""timm itself, in a process of its own: the tests compare the pixels and its networks with it.

    python test/timm_today.py TIMM TORCHVISION transform CASES.json OUT.json
    python test/timm_today.py TIMM TORCHVISION logits NETWORK FOLDER

TIMM is a folder that holds timm/: the pinned source package 0.4.5, or today's wheel. Of torchvision
only the Python files of `transforms` run: the package itself refuses to be imported beside a
PyTorch that was built for the CPU alone.
"""

import hashlib
import json
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict

TIMM = "timm==1.0.31"
TIMM_SHA256 = "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7"
TORCHVISION = "torchvision==0.29.1"
TORCHVISION_SHA256 = "2cb678029a5dd45afbbfa662fce49736827d52be33242b5a8a731e0db02ccdf5"
ONE_WHEEL = [
    *["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"],
    *["--only-binary", ":all:"],
]
CLASSES = 11221


def fetch(folder: Path) -> None:
    """Unzip both wheels into folder/timm-today and folder/torchvision; checks their SHA-256."""
    from common.core.packages import HERE, Pinned
    from common.core.packages import fetch as fetch_pinned

    for package, sha256, name, options in (
        (TIMM, TIMM_SHA256, "timm-today", []),
        (TORCHVISION, TORCHVISION_SHA256, "torchvision", ONE_WHEEL),
    ):
        downloads = folder / f"{name}-wheel"
        downloads.mkdir()
        pinned = Pinned(package, sha256, options)
        with zipfile.ZipFile(fetch_pinned(pinned, str(downloads), HERE)) as wheel:
            wheel.extractall(str(folder / name))


def run_timm(timm: Path, wheels: Path, *words: object) -> None:
    """This file as a program; `wheels` is the folder that fetch() filled."""
    subprocess.run(
        [sys.executable, __file__, str(timm), str(wheels / "torchvision"), *map(str, words)],
        check=True,
    )


def in_two_passes() -> None:
    """Let Pillow resize horizontally first: Pillow 13 does not always, and rounds otherwise."""
    from PIL import Image

    resize = Image.Image.resize

    def horizontal_first(
        image: Any, size: Any, resample: Any = None, *more: Any, **options: Any
    ) -> Any:
        wide = resize(image, (size[0], image.height), resample)
        return resize(wide, tuple(size), resample, *more, **options)

    setattr(Image.Image, "resize", horizontal_first)  # noqa: B010 - of a class that is typed


def transform(cases: str, out: str) -> None:
    """Write the SHA-256 of the float32 tensor of each case, by timm's transform: {case: SHA-256}.

    cases: a file with [{"case", "path", "img_size", "crop_pct", ...}].
    """
    import timm.data.transforms_factory as factory
    from PIL import Image

    in_two_passes()
    digests = {}
    for case in json.loads(Path(cases).read_text()):
        name, path = case.pop("case"), case.pop("path")
        evaluate = factory.transforms_imagenet_eval(**case)
        with Image.open(path) as image:
            tensor = evaluate(image.convert("RGB"))
        digests[name] = hashlib.sha256(tensor.numpy().astype("<f4").tobytes()).hexdigest()
    Path(out).write_text(json.dumps(digests))


def logits_of(name: str, folder: str) -> None:
    """Write seeded weights for a network, two images and their logits.

    They are FOLDER/weights.pth, images.npy and logits.npy. tresnet_v2_l's are as timm's own
    conversion of the official weights leaves them; others have weights of both signs and counters.
    """
    import numpy as np
    import timm
    import torch
    from fill import fill

    network = timm.create_model(name, num_classes=CLASSES).eval()
    state = fill(network.state_dict())
    converted = name == "tresnet_v2_l"
    for tensor_name, tensor in state.items():
        if converted and tensor_name.endswith("bn.weight"):
            tensor.abs_().add_(1e-5)
    network.load_state_dict(state)
    images = np.random.RandomState(0).uniform(0, 1, (2, 3, 224, 224)).astype(np.float32)
    with torch.no_grad():
        logits = network(torch.from_numpy(images)).numpy()
    torch.save(
        {
            tensor_name: tensor
            for tensor_name, tensor in state.items()
            if not (converted and tensor_name.endswith("num_batches_tracked"))
        },
        os.path.join(folder, "weights.pth"),
    )
    np.save(os.path.join(folder, "images.npy"), images)
    np.save(os.path.join(folder, "logits.npy"), logits)


def main() -> None:
    timm, torchvision, task, *words = sys.argv[1:]
    golden = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "golden")
    sys.path[:0] = [timm, golden]
    package = types.ModuleType("torchvision")
    package.__path__ = [os.path.join(torchvision, "torchvision")]
    package.__dict__["__version__"] = TORCHVISION.split("==")[1]
    sys.modules["torchvision"] = package
    tasks: Dict[str, Callable[..., None]] = {"transform": transform, "logits": logits_of}
    tasks[task](*words)


if __name__ == "__main__":
    main()
