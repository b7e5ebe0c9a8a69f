"""Read this test first: the commands of README's section "By hand", word for word, on four photos.

A user types them: images to .bin files, a checkpoint to an ONNX file, inference on the CPU,
accuracy. Each command reads the files that the commands before it wrote. This test checks what
each of them writes, in the order of the chain.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

import numpy as np
import pytest
from conftest import ROOT

PHOTOS = 4  # of the sample's 20
BYTES = 3 * 224 * 224 * 4  # 602,112: a float32 image of 224 x 224 pixels


def by_hand() -> List[str]:
    """The commands of README's section "By hand", each on one line, without their comments."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## By hand\n")[1]
    block = section.split("\n## ")[0].replace("\\\n", " ")
    lines = [line for line in block.splitlines() if line.startswith("    ")]
    return [" ".join(line.split(" # ")[0].split()) for line in lines]


def in_shell(command: str, folder: Path) -> str:
    """Run a command with bash in a folder, with this Python first on the PATH; its output."""
    binaries = os.path.dirname(sys.executable)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=str(folder),
        env=dict(os.environ, PATH=f"{binaries}:{os.environ['PATH']}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.slow
def test_readme_by_hand_on_four_photos(sample: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    for name in (*(path.name for path in ROOT.glob("TResNet_*.py")), "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)

    check, set_up, activate, make_sample, preprocess, export, inference, accuracy = by_hand()
    assert check == "bash scripts/pipeline.sh --check"
    assert set_up == "python3 scripts/setup_env.py && python3 scripts/timm_source.py"
    assert activate == "source .venv/bin/activate"  # test/run.sh did these three

    assert make_sample == "python3 scripts/make_sample.py ImageNet"  # the fixture ran it
    shutil.copytree(str(sample), str(tmp_path / "ImageNet"))
    photos = sorted((tmp_path / "ImageNet" / "val_union").iterdir())
    assert len(photos) == 20
    for photo in photos[PHOTOS:]:
        photo.unlink()
    stems = [photo.stem for photo in photos[:PHOTOS]]

    in_shell(preprocess, tmp_path)
    prepared = sorted((tmp_path / "prep_dataset").glob("*.bin"))
    assert [(path.stem, path.stat().st_size) for path in prepared] == [
        (stem, BYTES) for stem in stems
    ]
    pixels = np.fromfile(str(prepared[0]), "<f4")
    assert 0 <= pixels.min() < pixels.max() <= 1

    assert "tresnet_m, 1000 classes, ascend lineage" in in_shell(export, tmp_path)
    assert (tmp_path / "tresnet_m.onnx").stat().st_size > 100_000_000

    in_shell(inference, tmp_path)
    results = sorted((tmp_path / "result").iterdir())
    assert [path.name for path in results] == [f"{stem}_0.txt" for stem in stems]
    assert [len(path.read_text().split()) for path in results] == [1000] * PHOTOS

    assert "Top1 accuracy: 100.0%" in in_shell(accuracy, tmp_path)
    rows = json.loads((tmp_path / "acc.json").read_text())["value"]
    assert {row["key"]: row["value"] for row in rows} == {
        "Number of images": "4",
        "Number of classes": "1000",
        **{f"Top{k} accuracy": "100.0%" for k in range(1, 6)},
    }
