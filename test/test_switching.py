"""Options switched at random in one folder: every result is that of a fresh folder.

test/switching.py does it with the real pipeline.
"""

import contextlib
import hashlib
import io
import os
import random
import shutil
from pathlib import Path
from typing import Any, Dict, List
from unittest import mock

from common.data.prepared import place_for

import infer_onnx
import pytest
import test_infer
from conftest import Shared
from pictures import fill, prepare
from PIL import Image

import TResNet_postprocess

STEPS = 50
SIDES = (8, 12)


def call(main: Any, name: str, *words: object) -> None:
    """A step's main() in this process."""
    with mock.patch("sys.argv", [name, *map(str, words)]), contextlib.redirect_stdout(
        io.StringIO()
    ):
        main()


@pytest.fixture(scope="session")
def inputs(shared: Shared) -> Path:
    """Two data sets of 6 coloured images with the same names, and a tiny network for each size."""

    def make(folder: Path) -> None:
        for data, labels in (("a", [0, 1, 2, 0, 1, 2]), ("b", [2, 1, 0, 0, 0, 0])):
            fill(folder / data, ["x.png"])
            for index in range(6):
                colour = [30, 30, 30]
                colour[index % 3] = 90 + 20 * index
                Image.new("RGB", (20 + index, 16), tuple(colour)).save(
                    str(folder / data / f"i{index}.png")
                )
            (folder / data / "x.png").unlink()
            (folder / f"{data}.txt").write_text(
                "".join(f"i{i}.png {label}\n" for i, label in enumerate(labels))
            )
        for side in SIDES:
            with mock.patch.object(test_infer, "SIDE", side):
                test_infer.make_model(folder / f"{side}.onnx")

    return shared("switching", make)


def switched_run(inputs: Path, work: Path, options: Dict[str, Any]) -> Dict[str, str]:
    """The chain with these options; {name: SHA-256} of the results and the accuracy."""
    side, data = options["side"], inputs / options["data"]
    settings = {
        "img_size": side,
        "dtype": options["dtype"],
        "crop_mode": options["crop"],
        "source": str(data),
    }
    prepared = place_for(str(work), settings)
    prepare(
        data,
        prepared,
        "--img-size",
        side,
        "--dtype",
        options["dtype"],
        "--crop-mode",
        options["crop"],
    )
    aipp = ["--aipp", os.path.join(prepared, "aipp.cfg")] if options["dtype"] == "uint8" else []
    call(
        infer_onnx.main,
        "infer_onnx.py",
        "--model",
        inputs / f"{side}.onnx",
        "--input",
        prepared,
        "--output",
        work,
        "--output_dirname",
        "result",
        "--outfmt",
        options["format"],
        "--batchsize",
        options["batch"],
        *aipp,
    )
    call(
        TResNet_postprocess.main,
        "TResNet_postprocess.py",
        work / "result",
        f"{data}.txt",
        work,
        "acc.json",
        "--prep",
        prepared,
    )
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*(work / "result").iterdir(), work / "acc.json"]
    }


def damage(work: Path, dice: random.Random) -> None:
    """Cut or overwrite one product in place, and leave its time as it was."""
    paths: List[Path] = []
    for pattern in ("prep*/*.bin", "result/*", "acc.json"):
        paths += work.glob(pattern)
    path = dice.choice(sorted(paths))
    status, data = path.stat(), path.read_bytes()
    is_cut = dice.random() < 0.5
    # acc.json has no record: only the beginning of such a file says whose it is
    if is_cut or path.name == "acc.json":
        damaged = data[: len(data) // 2]
    elif path.suffix == ".bin":
        damaged = b"{" * len(data)
    else:
        damaged = data[:1] + bytes(len(data) - 1)
    path.write_bytes(damaged)
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.slow
def test_options_switched_at_random_give_what_a_fresh_folder_gives(
    inputs: Path, tmp_path: Path
) -> None:
    dice = random.Random(15)
    fresh: Dict[str, Dict[str, str]] = {}
    choices: Dict[str, List[Any]] = {
        "side": list(SIDES),
        "data": ["a", "b"],
        "dtype": ["float32", "uint8"],
        "crop": ["center", "squash"],
        "format": ["TXT", "NPY"],
        "batch": [1, 4],
    }
    options = {name: values[0] for name, values in choices.items()}
    for step in range(STEPS):
        changed = dice.choice(sorted(choices))
        options = dict(options, **{changed: dice.choice(choices[changed])})
        if step and dice.random() < 0.4:
            damage(tmp_path / "work", dice)
        key = repr(sorted(options.items()))
        if key not in fresh:
            fresh[key] = switched_run(inputs, tmp_path / "fresh", options)
            shutil.rmtree(str(tmp_path / "fresh"))
        assert switched_run(inputs, tmp_path / "work", options) == fresh[key], (step, options)
