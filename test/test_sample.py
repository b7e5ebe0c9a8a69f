"""The chain on the sample at the network's own size: right on photos, wrong when it should be."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Shared, copy_products, listed_sha256, make_small_sample, sha256, succeed
from test_pipeline import accuracy, chain_output

pytestmark = pytest.mark.slow
STEPS = (
    "Sample data",
    "Export",
    "Forecast of the speed",
    "Preprocess",
    "Inference",
    "Accuracy",
    "Report",
)


@pytest.fixture(scope="session")
def sample_work(shared: Shared, sample: Path) -> Path:
    """The work folder of an undisturbed run without options, the sample data being there."""

    def make(folder: Path) -> None:
        copy_products(sample, folder / "work" / "sample")
        out = chain_output("--workdir", folder / "work")
        assert [line[3:-3] for line in out.splitlines() if line.startswith("== ")][:-1] == [
            f"{step} (step {place} of {len(STEPS)})" for place, step in enumerate(STEPS, 1)
        ]

    return shared("finished", make) / "work"


@pytest.mark.skipif(sys.version_info < (3, 8), reason="PyTorch 1.6 writes addresses into a file")
def test_the_sample_has_the_same_bytes_wherever_it_is_made(
    small_sample: Path, tmp_path: Path
) -> None:
    make_small_sample(tmp_path)
    for name in ("model_best.pth.tar", "val_label.txt"):
        assert sha256(tmp_path / name) == sha256(small_sample / name)


def test_the_sample_reaches_100_percent_and_every_image_is_accounted_for(sample_work: Path) -> None:
    expected = {"Number of images": "20", "Number of classes": "1000"}
    expected.update({f"Top{k} accuracy": "100.0%" for k in range(1, 6)})
    assert (
        json.loads((sample_work / "acc.json").read_text())["title"]
        == "Overall statistical evaluation"
    )
    assert accuracy(sample_work) == expected
    counts = json.loads((sample_work / "acc_report.json").read_text())["counts"]
    assert counts == {
        "labelled": 20,
        "images": 20,
        "preprocessed": 20,
        "bad": 0,
        "inferred": 20,
        "evaluated": 20,
        "left_out": 0,
    }
    prepared = {path.name: sha256(path) for path in (sample_work / "prep_dataset").glob("*.bin")}
    assert prepared == listed_sha256("sample.sha256")


@pytest.mark.parametrize("damage, highest", (("swapped channels", 60), ("scale of 255", 30)))
def test_a_wrong_preparation_loses_photos(
    damage: str, highest: float, sample_work: Path, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    for path in (sample_work / "prep_dataset").glob("*.bin"):
        image = np.fromfile(str(path), "<f4").reshape(3, 224, 224)
        (image[::-1] if damage == "swapped channels" else image * 255).tofile(
            str(prepared / path.name)
        )
    succeed(
        "scripts/infer_onnx.py",
        "--model",
        sample_work / "tresnet.onnx",
        "--input",
        prepared,
        "--output",
        tmp_path,
        "--output_dirname",
        "result",
        "--outfmt",
        "TXT",
        "--batchsize",
        8,
    )
    succeed(
        "TResNet_postprocess.py",
        tmp_path / "result",
        sample_work / "sample" / "val_label.txt",
        tmp_path,
        "acc.json",
    )
    assert float(accuracy(tmp_path)["Top1 accuracy"].rstrip("%")) <= highest
