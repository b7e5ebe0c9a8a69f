"""TResNet_postprocess.py: the accuracy is exact, covers what it claims, and nothing doubtful is
evaluated.
"""

import contextlib
import cProfile
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from common.core import native, recipe, record
from common.core.cli import Refusal, shown
from common.core.names import hashed_stem
from common.data.labels import Label, match_labels
from common.results import ranks
from common.results.accuracy import percentages
from common.results.results import encode, read_result

import numpy as np
import pytest
from conftest import GOLDEN, ROOT, refusal, succeed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import write_finished, write_prepared

import TResNet_postprocess as post

SCRIPT = "TResNet_postprocess.py"
SUFFIX = re.compile(
    r"(?i)\.(jpe?g|jpe|jfif|mpo|a?png|bmp|dib|gif|p[bgpnf]m|tiff?|webp|jp2|j2[kc]|jpc|jp[fx]|avifs?|tga"
    r"|hei[cf]|hif|jx[lr]|exr|hdr|dng|cr[23]|n[er][fw]|arw|orf|raf|rw2|pef|srw)$"
)
Fast = Callable[..., List[int]]


def txt(values: Any) -> bytes:
    """A result as the inference writes it."""
    return ("".join("%f " % value for value in values) + "\n").encode()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


FORMATS = {
    "txt": txt,
    "crlf.txt": lambda values: txt(values).replace(b"\n", b"\r\n"),  # only Python reads the second
    "bin": lambda values: np.array(values, "<f4").tobytes(),
    "npy": lambda values: npy(np.array([values], np.float32)),
}


def write(folder: Path, predictions: Mapping[str, Any], suffix: str = "txt") -> Path:
    folder.mkdir(exist_ok=True)
    for stem, values in predictions.items():
        (folder / f"{stem}_0.{suffix.split('.')[-1]}").write_bytes(FORMATS[suffix](values))
    return folder


def stored(values: Sequence[float], suffix: str) -> List[float]:
    """What a result file holds of these values."""
    if suffix.endswith("txt"):
        return [float("%f" % value) for value in values]
    return [float(np.float32(value)) for value in values]


def scores(classes: int, *order: int) -> List[float]:
    """Scores that put these classes first, in this order."""
    values = [0.25 * (c % 3) - 1 for c in range(classes)]
    for place, c in enumerate(order):
        values[c] = 9.5 - place
    return values


@pytest.fixture(scope="module", autouse=True)
def library() -> Any:
    """Compiled before the first test: all go the fast way. Where a C compiler is installed it must
    be there.
    """
    return native.load("results/ranks.c") if shutil.which("cc") or shutil.which("gcc") else None


@pytest.fixture
def fast(library: Any) -> Fast:
    """read_fast() as (results, labels, classes) -> ranks."""
    if not library:
        pytest.skip("the fast way needs a C compiler")
    return lambda paths, labels, classes, workers=1: ranks.read_fast(
        list(map(str, paths)), np.array(labels, np.int64), classes, workers
    )[0].tolist()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four predictions of ten classes: their labels are the first, first, second and sixth
    class.
    """
    write(
        tmp_path / "result",
        {
            "a": scores(10, 3),
            "b": scores(10, 0),
            "c": scores(10, 7, 2),
            "d": scores(10, 1, 2, 3, 4, 5, 6),
        },
    )
    (tmp_path / "labels.txt").write_text("a.JPEG 3\nb.JPEG 0\nc.JPEG 2\nd.JPEG 6\n")
    return tmp_path


def arguments(folder: Path, *more: object) -> List[str]:
    return [str(folder / "result"), str(folder / "labels.txt"), str(folder), "acc.json"] + [
        str(m) for m in more
    ]


def main(*words: object) -> None:
    """The step, in this process."""
    with unittest.mock.patch("sys.argv", [SCRIPT] + list(map(str, words))):
        post.main()


def call(folder: Path, *more: object) -> Tuple[object, str]:
    """main() in this process: (0, or the sentence of a refusal, and what was printed)."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main(*arguments(folder, *more))
        except Refusal as refusal:
            assert refusal.status == 1
            return refusal.sentence, printed.getvalue()
    return 0, printed.getvalue()


def evaluate(folder: Path, workers: int = 1) -> Any:
    """The report that main() would write, or the sentence with which it would refuse."""
    try:
        return post.evaluate(str(folder / "result"), str(folder / "labels.txt"), None, workers)
    except Refusal as refusal:
        assert (
            refusal.status == 1 and "\n" not in refusal.sentence and refusal.sentence.isprintable()
        )
        return refusal.sentence


def postprocess_refusal(folder: Path, *more: object) -> str:
    """The one sentence with which main() refuses; nothing was written."""
    status, printed = call(folder, *more)
    assert isinstance(status, str), (status, printed)
    assert not status.startswith(SCRIPT) and "\n" not in status and status.isprintable()
    assert printed == "" and not list(folder.glob("acc*"))
    return status


def prepare_long_ago(folder: Path, sources: Dict[str, str], bad: Sequence[str] = ()) -> Path:
    """A prepared folder with a .bin of long ago for each {stem: source}, and images that could not
    be read.
    """
    prep = folder / "prep"
    prep.mkdir()
    for stem in sources:
        (prep / (stem + ".bin")).write_bytes(b"\0" * 8)
        os.utime(str(prep / (stem + ".bin")), ns=(10**18, 10**18))
    write_prepared(prep, sources, bad)
    return prep


def accuracy(folder: Path) -> Dict[str, str]:
    """acc.json as {key: value}."""
    return {
        row["key"]: row["value"] for row in json.loads((folder / "acc.json").read_text())["value"]
    }


def report(folder: Path) -> Dict[str, Any]:
    return json.loads((folder / "acc_report.json").read_text())


def plain_hits(predictions: List[Tuple[List[float], int]]) -> List[int]:
    """Top-1 to Top-5 counts by the definition: sort the classes by falling score, equal ones by
    rising index.
    """
    classes = len(predictions[0][0])
    hits = [0] * min(5, classes)
    for values, label in predictions:
        place = sorted(range(classes), key=lambda c: (-values[c], c)).index(label)
        for k in range(place, len(hits)):
            hits[k] += 1
    return hits


# ---- the numbers


def test_acc_json_and_output_to_the_letter(data: Path) -> None:
    done = succeed(SCRIPT, *arguments(data))
    assert (data / "acc.json").read_text() == (
        '{"title": "Overall statistical evaluation", "value": ['
        '{"key": "Number of images", "value": "4"}, '
        '{"key": "Number of classes", "value": "10"}, {"key": "Top1 accuracy", "value": "50.0%"}, '
        '{"key": "Top2 accuracy", "value": "75.0%"}, {"key": "Top3 accuracy", "value": "75.0%"}, '
        '{"key": "Top4 accuracy", "value": "75.0%"}, {"key": "Top5 accuracy", "value": "75.0%"}]}'
    )
    assert done.stdout.splitlines()[:7] == [
        "Number of images: 4",
        "Number of classes: 10",
        "Top1 accuracy: 50.0%",
        "Top2 accuracy: 75.0%",
        "Top3 accuracy: 75.0%",
        "Top4 accuracy: 75.0%",
        "Top5 accuracy: 75.0%",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize(
    "images, right, printed",
    [
        (1, 1, "100.0%"),
        (1, 0, "0.0%"),
        (359, 339, "94.43%"),
        (20, 1, "5.0%"),
        (3, 2, "66.67%"),
        (800, 1, "0.12%"),
    ],
)
def test_percentages_are_rounded_to_two_decimals(
    tmp_path: Path, images: int, right: int, printed: str
) -> None:
    write(tmp_path / "result", {str(i): scores(6, 0 if i < right else 5) for i in range(images)})
    (tmp_path / "labels.txt").write_text("".join(f"{i}.png 0\n" for i in range(images)))
    assert call(tmp_path)[0] == 0
    assert accuracy(tmp_path)["Top1 accuracy"] == printed
    assert accuracy(tmp_path)["Number of images"] == str(images)


@pytest.mark.parametrize("suffix", ["txt", "crlf.txt", "bin", "npy"])
@pytest.mark.parametrize("classes", [10, 1000])
def test_all_formats_give_the_same_counts(tmp_path: Path, suffix: str, classes: int) -> None:
    rng = np.random.RandomState(classes)
    labels = rng.randint(0, classes, 60)
    predictions = {
        f"i{i}": rng.normal(0, 4, classes).round(6).astype(np.float32).tolist() for i in range(60)
    }
    for i in range(40):
        predictions[f"i{i}"][labels[i]] += 16
    write(tmp_path / "result", predictions, suffix)
    (tmp_path / "labels.txt").write_text(
        "".join(f"i{i}.JPEG {label}\n" for i, label in enumerate(labels))
    )
    assert call(tmp_path)[0] == 0
    read = [stored(values, suffix) for values in predictions.values()]
    assert report(tmp_path)["hits"] == plain_hits(list(zip(read, labels.tolist())))
    assert 10 < report(tmp_path)["hits"][0] < 60


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(8, np.float16),
        np.zeros((1, 8), np.float64),
        np.zeros((1, 1, 8), "<i4"),
        np.zeros((1, 8), ">f4"),
        np.zeros((1, 8), np.float32, order="F"),
    ],
)
def test_npy_of_any_number_type_is_read(tmp_path: Path, array: np.ndarray) -> None:
    array.reshape(-1)[5] = 7
    (tmp_path / "x_0.npy").write_bytes(npy(array))
    values = read_result(str(tmp_path / "x_0.npy"))
    assert values.tolist() == [0, 0, 0, 0, 0, 7, 0, 0] and values.dtype in (np.float32, np.float64)


@pytest.mark.parametrize("outfmt", ["TXT", "BIN", "NPY"])
def test_what_the_inference_writes_is_read(tmp_path: Path, outfmt: str) -> None:
    path = tmp_path / f"x_0.{outfmt.lower()}"
    values = [0.5, -0.0, 1e-7, -1234.5678, 999999.9, -3.0, 2.000001]
    path.write_bytes(encode(np.array(values, np.float32), outfmt))
    expected = [
        float("%f" % v) if outfmt == "TXT" else v for v in np.array(values, np.float32).tolist()
    ]
    assert read_result(str(path)).tolist() == expected


@pytest.mark.parametrize(
    "line",
    [b"1.000000 2.000000 2.000000 -3.000000 2.000000 0.000000 \n", b"1.0 2 2.000 -3e0 +2 0\n"],
)
@pytest.mark.parametrize("label, place", [(1, 0), (2, 1), (4, 2), (0, 3), (5, 4)])
def test_ties_go_to_the_lower_class(tmp_path: Path, line: bytes, label: int, place: int) -> None:
    write(tmp_path / "result", {})
    (tmp_path / "result" / "x_0.txt").write_bytes(line)
    (tmp_path / "labels.txt").write_text(f"x.jpg {label}\n")
    assert call(tmp_path)[0] == 0
    assert report(tmp_path)["hits"] == [int(k >= place) for k in range(5)]


def test_minus_zero_equals_zero(tmp_path: Path) -> None:
    write(
        tmp_path / "result",
        {"x": [-0.0, 0.0, -0.0, -1e-6, 1e-6, 0.0], "y": [0.0, -0.0, 0.0, -5, -5, -5]},
    )
    assert b"-0.000000 0.000000" in (tmp_path / "result" / "x_0.txt").read_bytes()
    (tmp_path / "labels.txt").write_text("x 2\ny 1\n")
    assert call(tmp_path)[0] == 0
    assert report(tmp_path)["hits"] == [0, 1, 1, 2, 2]  # x: behind 4, 0 and 1; y: behind 0


def test_1001_classes_shift_the_label_by_one(tmp_path: Path) -> None:
    write(tmp_path / "result", {"x": scores(1001, 1), "y": scores(1001, 1000)})
    (tmp_path / "labels.txt").write_text("x.JPEG 0\ny.JPEG 999\n")
    assert call(tmp_path)[0] == 0
    assert (
        accuracy(tmp_path)["Top1 accuracy"] == "100.0%"
        and accuracy(tmp_path)["Number of classes"] == "1001"
    )
    assert (
        'of 1,001 classes class 0 is taken for "background", so each label is one lower than its '
        "class: Top-1 is 100.0%, and 0.0% with --label-offset 0\n"
    ) in call(tmp_path)[1]
    assert report(tmp_path)["label_offsets"] == {"0": 0, "1": 2}
    assert call(tmp_path, "--label-offset", 0)[0] == 0 and report(tmp_path)["hits"][0] == 0
    assert "label_offsets" not in report(tmp_path)


def test_1001_classes_without_background_are_seen_by_both_figures(tmp_path: Path) -> None:
    """As timm trains them with --num_classes 1001: classes 0 to 999, and one that nothing has."""
    write(tmp_path / "result", {"x": scores(1001, 0), "y": scores(1001, 999), "z": scores(1001, 8)})
    (tmp_path / "labels.txt").write_text("x.JPEG 0\ny.JPEG 999\nz.JPEG 7\n")
    status, output = call(tmp_path)
    assert status == 0
    assert (
        'of 1,001 classes class 0 is not taken for "background", so each label is its class: Top-1 '
        "is 66.67%, and 33.33% with --label-offset 1\n"
    ) in output
    about = report(tmp_path)
    assert (about["label_offset"], about["label_offsets"]) == (0, {"0": 2, "1": 1})
    assert (about["hits"][0], about["true"]) == (2, [0, 999, 7])


@pytest.mark.parametrize("background", (True, False, None))
def test_the_models_record_decides_between_offsets_of_equal_accuracy(
    background: Optional[bool], tmp_path: Path
) -> None:
    write(tmp_path / "result", {"x": scores(1001, 5)})
    (tmp_path / "labels.txt").write_text("x.JPEG 700\n")
    notes: Dict[str, Any] = {"num_classes": "1001"}
    if background is not None:
        notes["background"] = background
    made_by = recipe.make(record.__file__, {})
    record.write(str(tmp_path / "m.onnx"), made_by, {str(tmp_path / "m.onnx"): b"x"}, **notes)
    assert call(tmp_path, "--model", tmp_path / "m.onnx")[0] == 0
    assert report(tmp_path)["label_offset"] == int(background is not False)


def test_a_label_of_1000_says_that_all_1001_classes_are_meant(tmp_path: Path) -> None:
    write(tmp_path / "result", {"x": scores(1001, 0), "y": scores(1001, 1000)})
    (tmp_path / "labels.txt").write_text("x.JPEG 0\ny.JPEG 1000\n")
    assert "background" not in call(tmp_path)[1]
    assert accuracy(tmp_path)["Top1 accuracy"] == "100.0%"


def test_labels_counted_from_1_are_recognised(tmp_path: Path) -> None:
    write(tmp_path / "result", {name: scores(3, index) for index, name in enumerate("abc")})
    (tmp_path / "labels.txt").write_text("a 1\nb 2\nc 3\n")
    assert postprocess_refusal(tmp_path).endswith(
        "label 3 is outside the classes 0 to 2 of the model; the labels seem to be "
        "counted from 1: --label-offset -1"
    )
    assert call(tmp_path, "--label-offset", -1)[0] == 0
    assert accuracy(tmp_path)["Top1 accuracy"] == "100.0%"


@pytest.mark.parametrize("images, hits, said", [(200, 4, True), (200, 5, False), (199, 3, False)])
def test_an_accuracy_near_chance_is_explained(
    images: int, hits: int, said: bool, tmp_path: Path
) -> None:
    write(
        tmp_path / "result",
        {f"i{index}": scores(100, 1 if index < hits else 0) for index in range(images)},
    )
    (tmp_path / "labels.txt").write_text("".join(f"i{index} 1\n" for index in range(images)))
    assert (
        "Top-1 is at the level of chance: usually the labels are numbered" in call(tmp_path)[1]
    ) == said


def test_100_per_cent_are_shown_and_pass_only_for_all(tmp_path: Path) -> None:
    nearly = {"evaluated": 30000}
    report = {"hits": [29999, 30000], "counts": nearly}
    assert percentages(report) == [99.99, 100.0]
    assert post.shortfalls(report, {1: 100.0}) == ["Top-1 accuracy 99.99% is below 100.0%"]
    assert post.shortfalls(report, {1: 99.99, 5: 100.0}) == []
    report = {"hits": [801], "counts": {"evaluated": 1000}}
    assert post.shortfalls(report, {1: 80.1}) == []
    report = {"hits": [8009999], "counts": {"evaluated": 10000000}}
    assert post.shortfalls(report, {1: 80.1}) == [
        "Top-1 accuracy 80.1% (8009999 of 10000000) is below 80.1%"
    ]


def test_outputs_replace_only_outputs(data: Path) -> None:
    (data / "model_best.pth.tar").write_bytes(b"PK\x03\x04 weights")
    with pytest.raises(Refusal, match="model_best.pth.tar exists and is not from this program"):
        main(data / "result", data / "labels.txt", data, "model_best.pth.tar")
    assert (data / "model_best.pth.tar").read_bytes() == b"PK\x03\x04 weights"
    for name in ("acc.json", "acc_report.json"):
        (data / name).write_bytes(b"")  # a power loss may leave that
    assert call(data)[0] == call(data)[0] == 0
    (data / "acc_report.json").write_text('{"mine": 1}')
    assert "acc_report.json exists and is not from this program" in str(call(data)[0])


def test_results_among_those_of_another_run_are_named(tmp_path: Path) -> None:
    """Wherever they come from: the record of the folder knows which it is of."""
    for name, top in (("result", 0), ("other", 1)):
        write(tmp_path / name, {stem: scores(9, top) for stem in "abc"})
        write_finished(
            tmp_path / f"{name}.record.jsonl",
            {"tool": "infer_onnx.py"},
            {stem: [f"{name}/{stem}_0.txt"] for stem in "abc"},
        )
    (tmp_path / "labels.txt").write_text("a 0\nb 0\nc 0\n")
    assert call(tmp_path)[0] == 0 and accuracy(tmp_path)["Top1 accuracy"] == "100.0%"
    shutil.copytree(str(tmp_path / "result"), str(tmp_path / "copied"))
    shutil.copy2(str(tmp_path / "other" / "b_0.txt"), str(tmp_path / "result" / "b_0.txt"))
    said = str(call(tmp_path)[0])
    assert (
        "1 result file in" in said
        and "did not come from the run that made the others: b_0.txt" in said
    )
    for stem in "abc":  # all of them: that is a run of somebody else's
        shutil.copy2(str(tmp_path / "other" / f"{stem}_0.txt"), str(tmp_path / "result"))
    assert call(tmp_path)[0] == 0 and accuracy(tmp_path)["Top1 accuracy"] == "0.0%"
    for stem in "abc":  # a copied folder is what it was
        shutil.copy2(str(tmp_path / "copied" / f"{stem}_0.txt"), str(tmp_path / "result"))
    assert call(tmp_path)[0] == 0 and accuracy(tmp_path)["Top1 accuracy"] == "100.0%"


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_fewer_than_six_classes(tmp_path: Path, classes: int) -> None:
    write(tmp_path / "result", {"x": scores(classes, *range(classes))})
    (tmp_path / "labels.txt").write_text(f"x {classes - 1}\n")
    assert call(tmp_path, "--min-top5", 100)[0] == 0
    expected = {
        f"Top{k + 1} accuracy": "100.0%" if k == classes - 1 else "0.0%" for k in range(classes)
    }
    assert accuracy(tmp_path) == dict(
        {"Number of images": "1", "Number of classes": str(classes)}, **expected
    )


def test_a_subset_is_normal_and_said(data: Path) -> None:
    (data / "result" / "a_0.txt").unlink()
    (data / "result" / "d_0.txt").unlink()
    status, printed = call(data)
    assert status == 0 and accuracy(data)["Number of images"] == "2"
    assert "2 of 4 labelled names have no prediction: this is a subset\n" in printed
    assert report(data)["labelled_without_prediction"] == ["a.JPEG", "d.JPEG"]
    assert report(data)["evaluated"] == ["b", "c"]


finite = (
    st.floats(-1200, 1200)
    | st.floats(-3, 3)
    | st.sampled_from(
        [0.0, -0.0, 9.5, 99.999999, 999.999999, -99.999999, 1000.0, -100.0, 9.9999999, 1e-7, -1e-7]
    )
)
huge = (
    st.floats(-3e38, 3e38)
    | st.floats(-1e11, 1e11)
    | st.sampled_from(
        [999999999.999999, 999999999.9999999, 123456789012.000001, 123456789012.000002]
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(1, 12).flatmap(
        lambda classes: st.lists(
            st.tuples(
                st.lists(finite | huge, min_size=classes, max_size=classes),
                st.integers(0, classes - 1),
            ),
            min_size=1,
            max_size=9,
        )
    ),
    st.sampled_from(["txt", "crlf.txt", "bin", "npy"]),
    st.sampled_from([1, 3, 8192]),
    st.integers(1, 3),
)
def test_equals_the_plain_reference(
    tmp_path_factory: pytest.TempPathFactory,
    cases: List[Tuple[List[float], int]],
    suffix: str,
    chunk_values: int,
    workers: int,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "property"
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    write(folder / "result", {f"i{i}": values for i, (values, _) in enumerate(cases)}, suffix)
    (folder / "labels.txt").write_text(
        "".join(f"i{i}.JPEG {label}\n" for i, (_, label) in enumerate(cases))
    )
    with unittest.mock.patch.object(ranks, "CHUNK_VALUES", chunk_values):
        found = evaluate(folder, workers)
    read = [(stored(values, suffix), label) for values, label in cases]
    assert found["hits"] == plain_hits(read)


def rank(values: Sequence[float], label: int) -> int:
    """The label's place, by the definition."""
    return sorted(range(len(values)), key=lambda c: (-values[c], c)).index(label)


def test_the_fast_way_takes_what_the_inference_writes_and_ranks_it_exactly(
    tmp_path: Path, fast: Fast
) -> None:
    """Numbers of every width, equal and neighbouring ones, zeros of both signs: every one of them
    as the label.
    """
    rng = random.Random(5)
    numbers = [rng.uniform(-1, 1) * 10 ** rng.randint(-6, 9) for _ in range(3000)]
    numbers += [999999999.999999, -999999999.999999, 999999999.999998, 0.0, -0.0] * 3 + [
        9.5,
        9.500001,
        -9.5,
    ] * 5
    rng.shuffle(numbers)
    paths: List[Path] = []
    labels: List[int] = []
    expected: List[int] = []
    for i in range(0, len(numbers) - 24, 25):
        paths += [tmp_path / f"{i}_0.txt"] * 25
        paths[-1].write_bytes(txt(numbers[i : i + 25]))
        labels += range(25)
        values = stored(numbers[i : i + 25], "txt")
        expected += [rank(values, label) for label in range(25)]
    assert fast(paths, labels, 25) == expected and len(paths) > 2500
    assert ranks.read(list(map(str, paths)), np.array(labels), 25, 2)[0].tolist() == expected


@pytest.mark.parametrize(
    "line",
    [
        b"1.000000 2.00000 \n",
        b"1.000000 2.0000000 \n",
        b"1.000000 1000000000.000000 \n",
        b"1.000000 2.000000\n",
        b"1.000000 -1000000000.000000 \n",
        b"1.000000 2.000000 ",
        b"1.000000  2.00000 \n",
        b" 1.000000 2.00000 \n",
        b"1.000000 .000000 \n",
        b"1.000000 --.000000 \n",
        b"1.000000 --2.000000 \n",
        b"1.000000 2,000000 \n",
        b"1.000000 -.000000 \n",
        b"1.000000 1-.000000 \n",
        b"1.000000 2.00 000 \n",
        b"1.000000 2.00000: \n",
        b"1.000000 2.00000/ \n",
        b"1.000000 :.000000 \n",
        b"1.000000 /.000000 \n",
        b"\n",
        b"",
        b"1.000000 2.000000 \n\n",
        b"1.000000 2.000000 3.000000 \n",
        b"1.000000 \n",
        b"1.000000\t2.000000 \n",
        b"1.000000 2.000000\t\n",
        b"1.000000 nan \n",
        b"1.000000 2.000e+0 \n",
        b"1.000000 2.000000 \r\n",
        b"1.000000 +2.000000 \n",
        b"1.000000 \x80.000000 \n",
        b"1.000000 2.000000 x",
        b"1.000000 2.000000 \r",
        b"1.000000 1 2.000000 \n",
        b"1 2.000000 3.000000 \n",
        b"1.000000 2.000000 \x00\n",
        b"1.000000 2.000000 \n\x00",
        b"\n1.000000 2.000000 \n",
        b"1.000000 2.00000\xff \n",
        b"1.000000\n2.000000 \n",
        b"1.000000 2.000000 \n1.000000 2.000000 \n",
        b"1.000000 2.000000 \n" + b"0" * 99,
        b"1.000000 2.\xb10000\xb0 \n",
    ],
)
def test_the_fast_way_takes_nothing_else(tmp_path: Path, fast: Fast, line: bytes) -> None:
    """...than two numbers written with "%f ": alone, and before, between and behind good files."""
    good, odd = tmp_path / "good_0.txt", tmp_path / "odd_0.txt"
    good.write_bytes(b"-5.500000 12.250000 \n")
    odd.write_bytes(line)
    assert fast([odd, good, odd, odd, good, good, odd], [0, 0, 1, 0, 1, 0, 0], 2) == [
        -1,
        1,
        -1,
        -1,
        0,
        1,
        -1,
    ]


def test_the_fast_way_takes_no_links_pipes_or_folders_and_does_not_wait(
    tmp_path: Path, fast: Fast
) -> None:
    line = b"1.000000 2.000000 \n"
    (tmp_path / "good_0.txt").write_bytes(line)
    (tmp_path / "link_0.txt").symlink_to("good_0.txt")
    (tmp_path / "folder_0.txt").mkdir()
    os.mkfifo(str(tmp_path / "pipe_0.txt"))
    pipe = os.open(str(tmp_path / "pipe_0.txt"), os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(pipe, line)
        names = ["good", "link", "folder", "pipe", "none", "good"]
        assert fast([tmp_path / f"{name}_0.txt" for name in names], [0] * 6, 2) == [
            1,
            -1,
            -1,
            -1,
            -1,
            1,
        ]
        assert os.read(pipe, 99) == line, "nothing was taken out of it"
    finally:
        os.close(pipe)
    (tmp_path / "good_0.txt").rename(tmp_path / "good_0.bin")
    assert fast([tmp_path / "good_0.bin"], [0], 2) == [-1], "not the bytes of two values"


@pytest.mark.parametrize("suffix", ["bin", "npy"])
def test_float32_results_go_the_fast_way_with_pythons_ranks(
    tmp_path: Path, suffix: str, fast: Fast
) -> None:
    rng = random.Random(2)
    predictions = {f"i{n}": rng.choices([-1.0, 0.0, 0.5, 2.0], k=25) for n in range(400)}
    labels = [rng.randrange(25) for _ in predictions]
    write(tmp_path, predictions, suffix)
    expected = [rank(values, label) for values, label in zip(predictions.values(), labels)]
    paths = [tmp_path / f"{stem}_0.{suffix}" for stem in predictions]
    assert fast(paths, labels, 25) == expected and len(set(expected)) > 10
    whole = paths[1].read_bytes()
    for damaged in (
        whole[:-1],
        whole + b"\0",
        whole[:-4] + np.float32("nan").tobytes(),
        whole[:-4] + np.float32("inf").tobytes(),
        b"\0" + whole[1:] if suffix == "npy" else b"",
    ):
        paths[1].write_bytes(damaged)
        assert fast(paths[:3], labels[:3], 25) == [expected[0], -1, expected[2]], (
            "Python says what is wrong with it"
        )
    write(tmp_path, {"double": [1.0, 2.0]}, suffix)
    np.save(str(tmp_path / "double_0.npy"), np.array([[1.0, 2.0]]))
    assert fast([tmp_path / "double_0.npy"], [0], 2) == [-1]


def test_the_fast_way_finds_the_right_numbers_or_none(tmp_path: Path, fast: Fast) -> None:
    """Characters put in, taken out and moved: the strict format is taken, with float()'s ranks,
    nothing else.
    """
    rng = random.Random(11)
    paths, labels, expected = [], [], []
    for number in range(6000):
        text = list(
            "".join(
                "%f " % rng.choice([rng.uniform(-100, 100), rng.randint(-2, 2)]) for _ in range(4)
            )
            + "\n"
        )
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(0, len(text))
            if rng.random() < 0.6:
                text[at : at + rng.randint(0, 1)] = rng.choice(
                    ["", " ", " ", "  ", "0", "-", ".", "\n", "7"]
                )
            elif at + 1 < len(text):
                text[at : at + 2] = text[at + 1], text[at]
        paths.append(tmp_path / f"{number}_0.txt")
        paths[-1].write_text("".join(text))
        labels.append(number % 4)
        strict = re.fullmatch(r"(-?[0-9]{1,9}\.[0-9]{6} ){4}\n", "".join(text))
        expected.append(rank(list(map(float, "".join(text).split())), number % 4) if strict else -1)
    assert fast(paths, labels, 4, 2) == expected
    assert 300 < expected.count(-1) < 5700


@pytest.mark.parametrize("stem", ("i0", "i2"))
def test_half_a_float32_result_is_not_taken_for_float16(tmp_path: Path, stem: str) -> None:
    """Neither by compiled C and Python together, nor by Python alone."""
    predictions = {f"i{n}": [float(c == n) for c in range(10)] for n in range(3)}
    write(tmp_path / "result", predictions, "bin")
    (tmp_path / "labels.txt").write_text("i0 0\ni1 1\ni2 2\n")
    victim = tmp_path / "result" / f"{stem}_0.bin"
    victim.write_bytes(victim.read_bytes()[:20])
    for kernel in (ranks.load_kernel, lambda values: None):
        with unittest.mock.patch.object(ranks, "load_kernel", kernel):
            assert "holds" in postprocess_refusal(tmp_path)


def test_one_odd_file_does_not_change_the_others(tmp_path: Path) -> None:
    """A batch with a file that only the slow way can read, and one with values of 1000 and more."""
    predictions = {f"i{i:02d}": scores(1000, i) for i in range(20)}
    predictions["i07"][7] = 54321.5
    write(tmp_path / "result", predictions)
    (tmp_path / "result" / "i11_0.txt").write_bytes(
        b" ".join(b"%d" % (c == 11) for c in range(1000)) + b"\n"
    )
    (tmp_path / "labels.txt").write_text("".join(f"i{i:02d} {i}\n" for i in range(20)))
    assert call(tmp_path)[0] == 0 and report(tmp_path)["hits"] == [20] * 5


# ---- labels


@pytest.mark.parametrize(
    "content",
    [
        b"a 3\nb 0\nc 2\nd 6\n",
        b"a.jpg 3\nb.PNG 0\nc.JpEg 2\nd.webp 6",
        b"\xef\xbb\xbfa.JPEG 3\r\nb.JPEG 0\r\nc.JPEG 2\r\nd.JPEG 6\r\n",
        b"\n\na\t3\n  \nb   0\nc 2 \nd\t 006\n",
        b"d 6\nc 2\nb 0\na 3\na.JPEG 3\nz.JPEG 9\n",
    ],
)
def test_label_files_as_they_come(data: Path, content: bytes) -> None:
    (data / "labels.txt").write_bytes(content)
    assert call(data)[0] == 0
    assert report(data)["hits"] == [2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    "name",
    [
        "two words.JPEG",
        "dotted.name.jpg",
        'it\'s "quoted".png',
        "-dash.jpg",
        "\u732b.jpg",
        "n01440764/x.JPEG",
        os.fsdecode(b"caf\xe9.jpg"),
        "clash.png",
        "a.txt",
    ],
)
@pytest.mark.parametrize("found_by", ["--prep", "summary"])
def test_awkward_names_are_looked_up_in_the_manifest(
    data: Path, monkeypatch: pytest.MonkeyPatch, name: str, found_by: str
) -> None:
    write(data / "result", {hashed_stem(name): scores(10, 8)})
    prep = prepare_long_ago(
        data, dict({stem: stem + ".JPEG" for stem in "abcd"}, **{hashed_stem(name): name})
    )
    with (data / "labels.txt").open("ab") as file:
        file.write(os.fsencode(name) + b" 8\n")
    if found_by == "summary":
        (data / "result_summary.json").write_text(
            json.dumps({"filesinfo": {"0": {"infiles": ["prep/a.bin"]}}})
        )
    assert call(data, *(["--prep", prep] if found_by == "--prep" else []))[0] == 0
    assert report(data)["hits"] == [3, 4, 4, 4, 4]


@pytest.mark.parametrize(
    "infile, current",
    [
        ("prep/a.bin", "."),
        ("prep/a.bin", "/"),
        ("./prep/a.bin", "/"),
        ("../prep/a.bin", "result"),
        (None, "/"),
    ],
)
def test_the_manifest_is_found_where_the_inference_read_its_inputs(
    data: Path, monkeypatch: pytest.MonkeyPatch, infile: Optional[str], current: str
) -> None:
    """Relative to the current folder or to the result folder's parent, or absolute; the labels then
    know b by name.
    """
    prep = prepare_long_ago(data, {stem: f"photos/{stem}.b.JPEG" for stem in "abcd"}, ["e.b.JPEG"])
    lines = [f"photos/{stem}.b.JPEG {label}\n" for stem, label in zip("abcd", [3, 0, 2, 6])]
    (data / "labels.txt").write_text("".join(lines))
    assert "4 of 4 images have no label" in postprocess_refusal(data)
    (data / "result_summary.json").write_text(
        json.dumps(
            {"filesinfo": {"0": {"infiles": [infile or str(prep / "a.bin")], "outfiles": []}}},
            indent=4,
        )
    )
    monkeypatch.chdir(data / current)
    assert call(data)[0] == 0
    assert report(data)["hits"] == [2, 3, 3, 3, 3]
    assert report(data)["prep"] is None and report(data)["counts"]["images"] is None, (
        "the names, and nothing else"
    )
    assert report(data)["left_out"] == report(data)["notes"] == []


@pytest.mark.parametrize(
    "summary",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"filesinfo": {}}',
        b'{"infiles": []}',
        b'{"infiles": [["prep/a.bin"]]}',
        b'"infiles" [7]',
        b'"infiles" [{}]',
        b'"infiles" ["\\u0000/x.bin"]',
        b'"infiles" ["nowhere/x.bin"]',
        b'"infiles" ' + b"[" * 100000,
    ],
)
def test_a_summary_that_tells_nothing_changes_nothing(data: Path, summary: bytes) -> None:
    (data / "result_summary.json").write_bytes(summary)
    assert call(data)[0] == 0
    assert report(data)["hits"] == [2, 3, 3, 3, 3]


def matched(images: Dict[str, str], lines: str, others: Sequence[str] = ()) -> object:
    """match_labels() as {stem: class}, or its refusal."""
    labels = [
        Label(line.rsplit(" ", 1)[0], (int(line.rsplit(" ", 1)[1]),), number)
        for number, line in enumerate(lines.split("\n"), 1)
    ]
    try:
        found = match_labels(images, labels, "labels.txt", others)
        return {stem: label.classes[0] for stem, label in found.items()}
    except Refusal as refusal:
        return refusal.sentence


@pytest.mark.parametrize(
    "source, names",
    [
        (
            "x.jpg",
            [
                "x.jpg",
                "x",
                "s-1",
                "x.png",
                "x.JPG",
                "val_union/x.jpg",
                "a/b/x",
                "./x.jpg",
                "/data/s-1",
            ],
        ),
        (
            "n1/x.jpg",
            [
                "n1/x.jpg",
                "n1/x",
                "s-1",
                "x.jpg",
                "x",
                "x.JPEG",
                "val/n1/x.jpg",
                "val/n1/x.png",
                "./n1/x",
            ],
        ),
        ("a/n1/x.y.jpg", ["a/n1/x.y", "x.y.jpg", "x.y", "b/a/n1/x.y.jpg"]),
        ("s-1", ["s-1", "s-1.jpg", "s-1.JPEG", "val_union/s-1.png"]),
    ],
)
def test_names_that_mean_an_image(source: str, names: List[str]) -> None:
    for name in names:
        assert matched(
            {"s-1": source, "s-2": "n2/y.z.png"}, f"n2/y.z.png 4\n{name} 7\nzz.png 5\nx.txt 5"
        ) == {"s-1": 7, "s-2": 4}, name


@pytest.mark.parametrize(
    "name", ["n3/x.jpg", "y.jpg", "n1", "1/x.jpg", "x.txt", "n1/x.jpg/", "n1/x.jpg.txt", "n1/"]
)
def test_names_that_mean_another_image(name: str) -> None:
    assert matched({"s-1": "n1/x.jpg", "s-2": "y/z.jpg"}, f"{name} 7\ny/z.jpg 1") == (
        "1 of 2 images have no label in labels.txt: n1/x.jpg; a line 'NAME INT' was expected "
        f"for each; its first one is for {shown(name)}"
    )


@pytest.mark.parametrize(
    "sources, others, name",
    [
        (["n1/x.jpg", "n2/x.jpg"], [], "x.jpg"),
        (["n1/x.jpg", "n2/x.png"], [], "x"),
        (["x.y.jpg", "x.y.png"], [], "x.y"),
        (["x.jpg", "x.png"], [], "val/x.gif"),
        (["n1/x.jpg"], ["n2/x.jpg"], "x.jpg"),
        (["x.y.jpg"], ["x.y.png"], "x.y"),
    ],
)
def test_a_name_that_may_mean_two_images_is_refused(
    sources: List[str], others: List[str], name: str
) -> None:
    """...the second may be one that could not be read; and both are named."""
    images = {f"s-{number}": source for number, source in enumerate(sources)}
    first, second = sources + others
    said = (
        f"labels.txt, line 2: {name} may be {first} or {second}; give each its path below the "
        "images' folder"
    )
    assert matched(images, f"zz.jpg 1\n{name} 7", others) == said
    assert matched(images, f"{first} 1\n{second} 2\n{name} 7", others) == dict(
        zip(images, [1, 2])
    ), "nobody needs it"


def test_the_surest_name_counts() -> None:
    images = {"s-1": "x.jpg", "s-2": "n1/x.jpg"}
    assert matched(images, "x.jpg 1\nn1/x.jpg 2\nval/x.jpg 3\nx.png 4") == {"s-1": 1, "s-2": 2}
    assert matched({"s-1": "x.jpg"}, "x.png 4\nx.jpg 1", ["x.png"]) == {"s-1": 1}
    assert matched({"x": "x.jpg"}, "x.png 4\nx.jpg 1") == {"x": 1}
    assert "have no label" in str(matched({"s-1": "x.jpg"}, "n1/x.jpg 4", ["n1/x.jpg"])), (
        "it is the other's"
    )
    assert "have no label" in str(matched({"s-1": "x.jpg", "s-2": "x.png"}, "x.jpg 4")), (
        "it is the other's"
    )


@pytest.mark.parametrize(
    "lines", ["x.jpg 1\nx.jpg 2", "x.jpg 1\ns-1 2", "n1/x.jpg 1\nn2/x.jpg 2", "x.png 1\nx.gif 2"]
)
def test_two_labels_for_one_image(lines: str) -> None:
    assert (
        matched({"s-1": "x.jpg"}, lines)
        == "labels.txt gives x.jpg two labels: 1 in line 1 and 2 in line 2"
    )
    assert matched({"s-1": "x.jpg"}, lines.replace("2", "1").replace("n1", "n2")) == {"s-1": 1}


@pytest.mark.parametrize(
    "source, name",
    [
        ("i{}.JPEG", "i{}.JPEG"),
        ("i{}", "i{}.JPEG"),
        ("n/i{}.JPEG", "i{}.JPEG"),
        ("i{}.JPEG", "val/i{}"),
    ],
)
def test_ten_times_as_many_labels_take_ten_times_as_many_calls(source: str, name: str) -> None:
    """Looking through all images for each label would take a hundred times as many."""
    calls = []
    for count in (300, 3000):
        labels = [Label(name.format(i), (i % 1000,), i) for i in range(count)]
        images = {f"i{i}": source.format(i) for i in range(count)}
        profile = cProfile.Profile()
        assert len(profile.runcall(match_labels, images, labels, "labels.txt")) == count
        calls.append(sum(entry.callcount for entry in profile.getstats()))
    assert calls[1] < 15 * calls[0], calls


def test_a_stem_may_be_the_whole_name(data: Path) -> None:
    write(data / "result", {"e.jpg": scores(10, 8)})
    (data / "labels.txt").write_text("a 3\nb 0\nc 2\nd 6\ne.jpg 8\n")
    assert call(data)[0] == 0 and report(data)["hits"] == [3, 4, 4, 4, 4]


def test_a_stem_with_two_labels_is_refused_and_both_lines_named(data: Path) -> None:
    (data / "labels.txt").write_text("a.JPEG 3\nb.JPEG 0\nc.JPEG 2\nd.JPEG 6\nb.png 4\n")
    assert "b two labels: 0 in line 2 and 4 in line 5" in postprocess_refusal(data)
    stem = hashed_stem("b.png")
    (data / "result" / "b_0.txt").rename(data / "result" / f"{stem}_0.txt")
    prepare_long_ago(data, {"a": "a.JPEG", stem: "b.png", "c": "c.JPEG", "d": "d.JPEG"}, ["b.JPEG"])
    assert call(data, "--prep", data / "prep")[0] == 0, "each of the two has a name of its own"
    assert report(data)["hits"][0] == 1


@pytest.mark.parametrize(
    "line",
    [
        "x.jpg",
        "x.jpg one",
        "x.jpg -1",
        "x.jpg 1.0",
        "x.jpg 9999999999",
        "5",
        "x,5",
        "x 1_0",
        "x \u0663",
        "x \u00b2",
        "x 0x1",
        "x +1",
        "\x00",
        "x 5\x00",
    ],
)
def test_a_malformed_label_line_is_named(data: Path, line: str) -> None:
    (data / "labels.txt").write_bytes(f"a 3\n\nb 0\n{line}\nc 2\nd 6\n".encode())
    assert "labels.txt, line 4: " in postprocess_refusal(data)


def test_a_label_outside_the_classes_is_named(data: Path) -> None:
    (data / "labels.txt").write_text("a 3\nb 0\nc 10\nd 6\n")
    assert "line 3: label 10 is outside the classes 0 to 9" in postprocess_refusal(data)


def test_predictions_without_a_label_are_named(data: Path) -> None:
    (data / "labels.txt").write_text("a 3\nc 2\nb.txt 0\n")
    assert "2 of 4 images have no label in" in postprocess_refusal(data)
    assert ": b, d; a line 'NAME INT' was expected for each (or --prep" in postprocess_refusal(data)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "holds no labels"),
        (b"\n \n", "holds no labels"),
        ("a 3\nb 0\n".encode("utf-16"), "is UTF-16 text"),
        ("a 3\nb 0\n".encode("utf-16-le"), "line 1: "),
        (b"\xff\xfa\x00\x01" * 9, "line 1: "),
    ],
)
def test_label_files_that_are_none(data: Path, content: bytes, said: str) -> None:
    (data / "labels.txt").write_bytes(content)
    assert said in postprocess_refusal(data)


def test_labels_missing_a_folder_or_a_pipe(data: Path) -> None:
    (data / "labels.txt").unlink()
    assert "No such file or directory" in postprocess_refusal(data)
    (data / "labels.txt").mkdir()
    assert "labels.txt is not a regular file" in postprocess_refusal(data)
    (data / "labels.txt").rmdir()
    os.mkfifo(str(data / "labels.txt"))
    assert "is not a regular file" in postprocess_refusal(data)


# ---- damaged and foreign results


class Trap:
    """Unpickled, it writes a file."""

    def __reduce__(self) -> Tuple[Any, Tuple[str]]:
        return os.mkdir, ("unpickled",)


good_npy = npy(np.arange(10, dtype=np.float32))
DAMAGED = [
    ("txt", b"", "is empty"),
    ("txt", b"\n", "holds no values"),
    ("txt", txt(range(10))[:-1], "no closing newline"),
    ("txt", txt(range(10))[:40], "no closing newline"),
    ("txt", txt(range(10)) * 2, "holds 2 lines"),
    ("txt", txt(list(range(9)) + [math.nan]), "value 10 is 'nan', not finite"),
    ("txt", txt(list(range(9)) + [math.inf]), "value 10 is 'inf', not finite"),
    ("txt", txt([-math.inf] + list(range(9))), "value 1 is '-inf', not finite"),
    ("txt", b"1 " * 9 + b"1e999 \n", "value 10 is inf, not finite"),
    ("txt", b"1 " * 9 + b"1_0 \n", "value 10 is '1_0', not a number"),
    ("txt", b"1 " * 9 + b"0x1p3 \n", "value 10 is '0x1p3', not a number"),
    ("txt", b"1 " * 9 + "\u0663 \n".encode(), "not a number"),
    ("txt", txt(range(9)), "9 values, but "),
    ("txt", txt(range(11)), "11 values, but "),
    ("bin", b"", "is empty"),
    ("bin", b"\0" * 39, "its 39 bytes are not a multiple of 4"),
    ("bin", b"\0" * 36, "9 values, but "),
    ("bin", np.array([0] * 9 + [np.nan], "<f4").tobytes(), "value 10 is nan, not finite"),
    ("bin", np.array([np.inf] + [0] * 9, "<f4").tobytes(), "value 1 is inf, not finite"),
    ("npy", b"", "is empty"),
    ("npy", good_npy[:4], "is not a whole NumPy file"),
    ("npy", good_npy[:60], "is not a whole NumPy file"),
    ("npy", good_npy[:-1], "half a file: 39 bytes follow its header, 40 were expected"),
    ("npy", good_npy + b"\0", "41 bytes follow its header"),
    ("npy", npy(np.arange(20, dtype=np.float32).reshape(2, 10)), "has the shape (2, 10)"),
    ("npy", npy(np.float32(1)), "has the shape ()"),
    ("npy", npy(np.zeros((1, 0), np.float32)), "holds no values"),
    ("npy", npy(np.zeros(10, np.complex64)), "holds 'complex64' values"),
    ("npy", npy(np.array(["x"] * 10)), "numbers were expected"),
    ("npy", npy(np.array([Trap()] * 10, object)), "holds 'object' values"),
    ("npy", pickle.dumps(Trap()), "is not a whole NumPy file"),
    ("npy", good_npy.replace(b"(10,)", b"(-9,)"), "half a file"),
    ("npy", good_npy.replace(b"(10,)", b"(9**9,)"[:5]), "is not a whole NumPy file"),
    ("npy", good_npy.replace(b"\x93NUMPY\x01", b"\x93NUMPY\x07"), "is not a whole NumPy file"),
    ("npy", b"PK\x03\x04" + b"\0" * 60, "is not a whole NumPy file"),
    ("npy", npy(np.array([0.0] * 9 + [np.nan])), "value 10 is nan, not finite"),
]


@pytest.mark.parametrize("suffix, content, said", DAMAGED)
@pytest.mark.parametrize("place", ["a", "c"])
def test_damaged_results_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    content: bytes,
    said: str,
    place: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "result", {stem: scores(10, 1) for stem in "abcd"}, suffix)
    (tmp_path / "labels.txt").write_text("a 1\nb 1\nc 1\nd 1\n")
    (tmp_path / "result" / f"{place}_0.{suffix}").write_bytes(content)
    sentence = postprocess_refusal(tmp_path)
    assert said in sentence or " values, but " in said and " values, but " in sentence
    assert f"/{place}_0.{suffix}" in sentence
    assert not (tmp_path / "unpickled").exists()


def test_a_large_file_is_not_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (data / "result" / "b_0.txt").open("r+b") as file:
        file.truncate(1 << 40)  # sparse
    assert (
        "b_0.txt has 1,099,511,627,776 bytes; at most 268,435,456 are read"
        in postprocess_refusal(data)
    )


@pytest.mark.parametrize(
    "name, said",
    [
        ("notes.txt", "other files than results"),
        ("result_summary.json", "other files than results"),
        ("a_0.txt.0123abcd.part", ".part is half a file of an interrupted run"),
        (".b_0.txt", "other files than results"),
        ("_0.txt", "other files than results"),
        ("a_0.TXT", "other files than results"),
        ("a_00.txt", "other files than results"),
        ("a.txt", "other files than results"),
        ("a_1.txt", "several outputs per image"),
        ("e_12.txt", "several outputs per image"),
        ("e_0.bin", "several formats"),
        ("e_0.npy", "several formats"),
        ("x\n\x1b[31m\u202e.txt", "'x\\n\\x1b[31m\\u202e.txt'"),
        (os.fsdecode(b"caf\xe9_0"), "'caf\\udce9_0'"),
    ],
)
def test_strangers_in_the_result_folder_are_named(data: Path, name: str, said: str) -> None:
    (data / "result" / name).write_bytes(b"\0\0\0\0")
    sentence = postprocess_refusal(data)
    assert said in sentence and ascii(name)[1:-1] in sentence


def test_folders_links_and_pipes_named_like_results_are_refused(data: Path) -> None:
    stranger = data / "result" / "c_0.txt"
    stranger.unlink()
    stranger.mkdir()
    assert "c_0.txt is not a regular file" in postprocess_refusal(data)
    stranger.rmdir()
    stranger.symlink_to("a_0.txt")
    assert "c_0.txt: it is a symbolic link" in postprocess_refusal(data)
    stranger.unlink()
    os.mkfifo(str(stranger))
    assert "c_0.txt is not a regular file" in postprocess_refusal(data)


def test_result_folder_empty_missing_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a 1\n")
    assert "No such file or directory" in postprocess_refusal(tmp_path)
    (tmp_path / "result").mkdir()
    advice = "; name the folder that the inference wrote, such as ./result"
    assert f"holds no results{advice}" in postprocess_refusal(tmp_path)
    (tmp_path / "result").rmdir()
    (tmp_path / "result").write_text("")
    assert f"Not a directory{advice}" in postprocess_refusal(tmp_path)


def test_a_refusal_on_the_command_line(data: Path) -> None:
    """One sentence on stderr, exit status 1, and an older acc.json stays as it was."""
    older = b'{"title": "Overall statistical evaluation", "value": []}'
    (data / "acc.json").write_bytes(older)
    (data / "result" / "b_0.txt").write_bytes(b"1.0")
    said = refusal(SCRIPT, *arguments(data))
    assert said == (
        f"TResNet_postprocess.py: {data / 'result' / 'b_0.txt'} is half a file: it has no closing "
        "newline; run the inference again\n"
    )
    assert (data / "acc.json").read_bytes() == older and not (data / "acc_report.json").exists()


# ---- where the output goes, gates, usage


def test_output_folder_is_made_and_nothing_is_left_over(data: Path) -> None:
    main(data / "result", data / "labels.txt", data / "new" / "er", "numbers")
    assert sorted(os.listdir(str(data / "new" / "er"))) == [
        "numbers",
        "numbers_classes.csv",
        "numbers_predictions.csv",
        "numbers_predictions.csv.record.jsonl",
        "numbers_report.json",
    ]


@pytest.mark.parametrize(
    "out_dir, out_name, said",
    [
        ("result", "acc.json", "lies in the result folder"),
        ("result/in", "acc.json", "lies in the result folder"),
        (".", "labels.txt", "is the labels file"),
        (".", "result", "is a folder"),
        ("labels.txt", "acc.json", "cannot be made"),
    ],
)
def test_outputs_that_would_do_damage(data: Path, out_dir: str, out_name: str, said: str) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    with pytest.raises(Refusal) as refusing:
        main(data / "result", data / "labels.txt", data / out_dir, out_name)
    assert said in refusing.value.sentence
    assert before == {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}


def test_gates(data: Path) -> None:
    assert call(data, "--min-top1", 50, "--min-top5", 75)[0] == 0
    (data / "acc.json").unlink()
    done = refusal(SCRIPT, *arguments(data, "--min-top1", 50.01, "--min-top5", 75.5), status=3)
    assert (
        done == "TResNet_postprocess.py: Top-1 accuracy 50.0% is below 50.01%, "
        "Top-5 accuracy 75.0% is below 75.5%\n"
    )
    assert accuracy(data)["Top1 accuracy"] == "50.0%"
    for least, said in ((76, "76.0"), ("75.00000001", "75.00000001"), ("1e2", "100.0")):
        with pytest.raises(Refusal) as refusing:
            main(*arguments(data, "--min-top5", least))
        assert (refusing.value.status, refusing.value.sentence) == (
            3,
            f"Top-5 accuracy 75.0% is below {said}%",
        )


@pytest.mark.parametrize(
    "wrong",
    [
        ["--min-top1", "101"],
        ["--min-top5", "nan"],
        ["-j", "0"],
        ["-j", "x"],
        ["more"],
        ["--min-top1", "9_0"],
        ["--prep", ""],
        ["--label-offset", "2"],
    ],
)
def test_wrong_usage_is_status_2(
    data: Path, capsys: pytest.CaptureFixture, wrong: List[str]
) -> None:
    with pytest.raises(SystemExit) as refusing:
        main(*arguments(data, *wrong))
    assert refusing.value.code == 2 and "--help" in capsys.readouterr().err
    for name in ("a/b.json", "..", ""):
        with pytest.raises(SystemExit) as refusing:
            main(data / "result", data / "labels.txt", data, name)
        assert refusing.value.code == 2 and "is not a plain file name" in capsys.readouterr().err


# ---- every image accounted for


@pytest.fixture
def prepared(data: Path) -> Path:
    """The four, prepared before they were inferred; a fifth image was bad."""
    prepare_long_ago(data, {stem: stem + ".JPEG" for stem in "abcd"}, ["e\n.JPEG"])
    return data


def test_left_out_images_are_said(prepared: Path) -> None:
    status, printed = call(prepared, "--prep", prepared / "prep")
    assert status == 0
    assert "\n1 of 5 images were left out\nleft out: 'e\\n.JPEG': truncated\n" in printed
    found = report(prepared)
    assert found["counts"] == {
        "labelled": 4,
        "images": 5,
        "preprocessed": 4,
        "bad": 1,
        "inferred": 4,
        "evaluated": 4,
        "left_out": 1,
    }
    assert found["left_out"] == [{"source": "e\n.JPEG", "error": "truncated"}]
    assert (
        found["evaluated"] == ["a", "b", "c", "d"]
        and found["hits"] == [2, 3, 3, 3, 3]
        and found["classes"] == 10
    )
    assert found["notes"] == ["1 of 5 images were left out"]
    assert found["prep"] == str(prepared / "prep") and found["result"] == str(prepared / "result")


def test_a_label_that_may_be_that_of_a_left_out_image(data: Path) -> None:
    write(data / "result", {"e": scores(10, 8)})
    prep = prepare_long_ago(
        data, dict({stem: stem + ".JPEG" for stem in "abcd"}, e="p/e.JPEG"), ["q/e.JPEG"]
    )
    (data / "labels.txt").write_text("a 3\nb 0\nc 2\nd 6\ne.JPEG 8\n")
    assert "line 5: e.JPEG may be p/e.JPEG or q/e.JPEG; " in postprocess_refusal(
        data, "--prep", prep
    )


def test_without_prep_the_report_says_what_can_be_known(data: Path) -> None:
    assert call(data)[0] == 0
    assert report(data)["counts"] == {
        "labelled": 4,
        "images": None,
        "preprocessed": None,
        "bad": None,
        "inferred": 4,
        "evaluated": 4,
        "left_out": None,
    }


def test_an_incomplete_inference_is_refused(prepared: Path) -> None:
    (prepared / "result" / "b_0.txt").unlink()
    assert "incomplete: 1 of 4 .bin files" in postprocess_refusal(
        prepared, "--prep", prepared / "prep"
    )
    assert "have no result: b" in postprocess_refusal(prepared, "--prep", prepared / "prep")


def test_results_of_something_else_are_refused(prepared: Path) -> None:
    write(prepared / "result", {"z": scores(10, 1)})
    (prepared / "labels.txt").write_text("a 3\nb 0\nc 2\nd 6\nz 1\n")
    assert "1 of 5 results belong to no .bin in" in postprocess_refusal(
        prepared, "--prep", prepared / "prep"
    )


def test_results_of_an_older_run_are_refused(prepared: Path) -> None:
    result = str(prepared / "result" / "c_0.txt")
    os.utime(result, ns=(10**18, 10**18))
    assert call(prepared, "--prep", prepared / "prep")[0] == 0, "of the same time is not older"
    os.utime(result, ns=(10**18, 10**18 - 1))
    for path in prepared.glob("acc*"):
        path.unlink()
    assert "1 of 4 results are older than their .bin in" in postprocess_refusal(
        prepared, "--prep", prepared / "prep"
    )


def test_a_prepared_folder_that_its_manifest_does_not_describe(prepared: Path) -> None:
    for name in ("z.bin", "a.BIN"):  # a program that reads either would infer both
        (prepared / "prep" / name).write_bytes(b"")
        assert f"are not those of its manifest ({name})" in postprocess_refusal(
            prepared, "--prep", prepared / "prep"
        )
        (prepared / "prep" / name).unlink()
    (prepared / "prep" / "a.bin").unlink()
    assert "are not those of its manifest (a.bin)" in postprocess_refusal(
        prepared, "--prep", prepared / "prep"
    )
    (prepared / "prep" / "manifest.jsonl").unlink()
    assert "holds no manifest.jsonl" in postprocess_refusal(prepared, "--prep", prepared / "prep")
    assert "holds no manifest.jsonl" in postprocess_refusal(prepared, "--prep", prepared / "none")


def test_with_real_preprocessing(tmp_path: Path) -> None:
    """Images with awkward names, one broken: prepared, 'inferred' for each .bin, evaluated by the
    user's own labels.
    """
    images = tmp_path / "images"
    images.mkdir()
    names = [
        "plain.png",
        "two words.png",
        "dotted.name.png",
        "clash.png",
        "clash.PNG",
        "\u732b.png",
    ]
    for name in names:
        shutil.copy(str(GOLDEN / "odd" / "tiny_5x3.png"), str(images / name))
    (images / "broken.png").write_bytes(b"no image")
    succeed("TResNet_preprocess.py", images, tmp_path / "prep", "--skip-bad", "-j", "1")
    stems = [path.stem for path in (tmp_path / "prep").glob("*.bin")]
    assert len(stems) == 6
    write(tmp_path / "result", {stem: scores(10, 4) for stem in stems})
    (tmp_path / "labels.txt").write_bytes("".join(name + " 4\n" for name in names).encode())
    done = succeed(SCRIPT, *arguments(tmp_path, "--prep", tmp_path / "prep"))
    assert "1 of 7 images were left out" in done.stdout
    assert (
        accuracy(tmp_path)["Number of images"] == "6"
        and accuracy(tmp_path)["Top1 accuracy"] == "100.0%"
    )
    assert [image["source"] for image in report(tmp_path)["left_out"]] == ["broken.png"]


# ---- many results


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """2,000 results of 100 classes, in 20 contents."""
    rng = np.random.RandomState(1)
    contents = [txt(rng.normal(0, 5, 100)) for _ in range(20)]
    (tmp_path / "result").mkdir()
    for i in range(2000):
        (tmp_path / "result" / f"i{i:04d}_0.txt").write_bytes(contents[i % 20])
    (tmp_path / "labels.txt").write_text("".join(f"i{i:04d} {i * 7 % 100}\n" for i in range(2000)))
    return tmp_path


def test_threads_count_the_same(many: Path, fast: Fast, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(many, "-j", 1)[0] == 0
    alone = report(many)
    read = [
        (np.loadtxt(str(many / "result" / f"i{i:04d}_0.txt")).tolist(), i * 7 % 100)
        for i in range(100)
    ]
    assert alone["hits"] == [
        20 * count for count in plain_hits(read)
    ]  # contents and labels repeat after 100
    for workers in (2, 3, 40):
        for chunk in (100, 12300, 10**6):
            monkeypatch.setattr(ranks, "CHUNK_VALUES", chunk)
            assert call(many, "-j", workers)[0] == 0
            assert report(many) == alone


def test_of_several_damaged_files_the_first_is_named(
    many: Path, fast: Fast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "CHUNK_VALUES", 1000)
    for i in (1900, 444, 451):
        (many / "result" / f"i{i:04d}_0.txt").write_bytes(b"1.0 nan \n")
    for _ in range(5):
        assert "i0444_0.txt: value 2 is 'nan', not finite" in postprocess_refusal(many, "-j", 3)


@pytest.mark.slow
def test_without_a_compiler_the_result_is_the_same_and_it_says_so(many: Path) -> None:
    """1,999 results of 1,000 values and fewer are no news; from 2,000 on a compiler is missed."""
    (many / "program").mkdir()
    shutil.copy(str(ROOT / SCRIPT), str(many / "program" / SCRIPT))
    rooms = many / "program" / "scripts" / "common"
    shutil.copytree(
        str(ROOT / "scripts" / "common"), str(rooms), ignore=shutil.ignore_patterns("__pycache__")
    )
    rng = np.random.RandomState(2)
    for i in range(20):
        (many / "result" / f"i{i:04d}_0.txt").write_bytes(txt(rng.normal(0, 5, 1000)))
    for i in range(20, 2000):
        path = many / "result" / f"i{i:04d}_0.txt"
        path.unlink()
        os.link(str(many / "result" / f"i{i % 20:04d}_0.txt"), str(path))

    def run_copy(path: str) -> Tuple[str, bytes, bytes]:
        done = subprocess.run(
            [sys.executable, str(many / "program" / SCRIPT)] + arguments(many),
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ, PATH=path),
        )
        return (
            done.stderr.decode(),
            (many / "acc.json").read_bytes(),
            (many / "acc_report.json").read_bytes(),
        )

    said, *plain = run_copy(str(many))
    assert said == (
        "note: the fast way is not used, Python reads all results: no C compiler (cc, gcc) is "
        "installed\n"
    )
    assert not list((many / "program").rglob("*.so"))
    if shutil.which("cc") or shutil.which("gcc"):
        assert run_copy(os.environ["PATH"]) == ("", *plain)
        assert len(list((rooms / "__pycache__").glob("ranks-*.so"))) == 1
        assert run_copy(str(many)) == ("", *plain), "what was compiled once is used"
        shutil.rmtree(str(rooms / "__pycache__"))
    (many / "result" / "i0007_0.txt").unlink()
    assert run_copy(str(many))[0] == ""


@pytest.mark.slow
def bytes_read_by(process: int) -> int:
    """All that a process has read so far, from files and from Python's modules."""
    return int(Path(f"/proc/{process}/io").read_text().split()[1])


@pytest.mark.parametrize(
    "sent, status, said",
    [
        (signal.SIGINT, 130, "\nTResNet_postprocess.py: interrupted; nothing was written\n"),
        (signal.SIGTERM, 143, ""),
    ],
    ids=["SIGINT", "SIGTERM"],
)
@pytest.mark.parametrize(
    "number, files, read",
    [(b"1.250000 ", 5000, 25), (b"1.250000 ", 5000, 200), (b"1.25 ", 150, 170)],
    ids=["threads begin", "threads", "Python"],
)
def test_an_interrupted_run_ends_at_once(
    tmp_path: Path,
    fast: Fast,
    sent: signal.Signals,
    status: int,
    said: str,
    number: bytes,
    files: int,
    read: int,
) -> None:
    """...wherever it is: the rest of the results is not read any more."""
    (tmp_path / "result").mkdir()
    first = tmp_path / "result" / "i0_0.txt"
    first.write_bytes(number * 100000 + b"\n")
    for i in range(1, files):
        os.link(str(first), str(tmp_path / "result" / f"i{i}_0.txt"))
    (tmp_path / "labels.txt").write_text("".join(f"i{i} 5\n" for i in range(files)))
    # A shell's "&" lets its programs ignore SIGINT; a terminal does not.
    process = subprocess.Popen(
        [sys.executable, str(ROOT / SCRIPT)] + arguments(tmp_path, "-j", 2),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # Some 10 MB are Python's modules; Python begins when C has read and refused all results.
    size = len(number) * 100000
    while bytes_read_by(process.pid) < read * size and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(sent)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its counts are there until wait()
    passes = 2 if number == b"1.25 " else 1
    assert bytes_read_by(process.pid) < passes * files * size
    _, stderr = process.communicate()
    assert (process.returncode, stderr.decode()) == (status, said)
    assert not list(tmp_path.glob("acc*"))


def test_memory_does_not_grow_with_the_results(tmp_path: Path) -> None:
    """9 KB a result: 4,000 more of them may cost at most 1 KB each, for the names."""
    peaks = []
    (tmp_path / "result").mkdir()
    first = tmp_path / "result" / "i0_0.txt"
    first.write_bytes(txt(scores(1000, 5)))
    for start, stop in ((1, 1000), (1000, 5000)):
        for i in range(start, stop):
            os.link(str(first), str(tmp_path / "result" / f"i{i}_0.txt"))
        (tmp_path / "labels.txt").write_text("".join(f"i{i} 5\n" for i in range(stop)))
        program = (
            "import resource, sys\nimport TResNet_postprocess\nTResNet_postprocess.main()\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", program] + arguments(tmp_path, "-j", 1),
            check=True,
            cwd=str(ROOT),
            stdout=subprocess.PIPE,
        )
        peaks.append(int(done.stdout.split()[-1]))
    assert accuracy(tmp_path)["Top1 accuracy"] == "100.0%"
    assert peaks[1] - peaks[0] < 4000


# ---- fuzz


def random_scores(rng: random.Random, classes: int) -> List[float]:
    return [rng.uniform(-20, 20) for _ in range(classes)]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """One to three random damages."""
    pieces = [
        b"nan",
        b"-",
        b" ",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff\xfe",
        b"1e400",
        b"9" * 5000,
        b".",
        b"-0.000000 ",
        b"_",
        b"\xc2\xa0",
        b"inf",
        b"e5",
        b"\xef\xbb\xbf",
        b"{",
        b"'",
        b"(",
        b"9999999999",
        b"\t",
        b"\x1c",
        b"\xe3\x80\x80",
    ]
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(content))
        stop = min(len(content), at + rng.choice([0, 1, 1, 2, 8, 50]))
        content = (
            content[:at]
            + rng.choice(
                [
                    b"",
                    rng.choice(pieces),
                    rng.choice(pieces),
                    bytes([rng.randint(0, 255)]),
                    content[at:stop] * 2,
                    content[: rng.choice([0, 10, 10**6])],
                ]
            )
            + content[stop:]
        )
        if rng.random() < 0.1:
            content = content[: rng.randint(0, len(content))]
    return content


def plain_result(path: Path) -> Optional[List[float]]:
    """One line of numbers, or None."""
    data = path.read_bytes()
    if path.suffix == ".txt":
        if data.count(b"\n") != 1 or not data.endswith(b"\n") or b"_" in data:
            return None
        try:
            values = [float(word) for word in data.split()]
        except ValueError:
            return None
    elif path.suffix == ".bin":
        values = np.frombuffer(data, "<f4").tolist() if len(data) % 4 == 0 else []
    else:
        try:
            values = np.load(str(path), allow_pickle=False).reshape(-1).tolist()
        except Exception:  # np.load itself raises many types on a damaged header
            return None
    return values if values and all(map(math.isfinite, values)) else None


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:Reading `.npy`"
)  # NumPy's word on headers like those of Python 2
@pytest.mark.parametrize("suffix, cases", [("txt", 700), ("bin", 150), ("npy", 400)])
def test_fuzzed_results(tmp_path: Path, suffix: str, cases: int) -> None:
    """A sentence, or exactly the accuracy that the plain reference gives; nothing else."""
    rng = random.Random(suffix)
    accepted = 0
    for case in range(cases):
        classes = rng.choice([1, 2, 10, 10, 10, 33])
        (tmp_path / "labels.txt").write_text(f"a 0\nb {classes // 2}\nc {classes - 1}\n")
        predictions = {stem: random_scores(rng, classes) for stem in "abc"}
        write(tmp_path / "result", predictions, suffix)
        victim = tmp_path / "result" / "{}_0.{}".format(rng.choice("abc"), suffix)
        victim.write_bytes(mutated(victim.read_bytes(), rng))
        found = evaluate(tmp_path)
        read = [plain_result(tmp_path / "result" / f"{stem}_0.{suffix}") for stem in "abc"]
        if isinstance(found, dict):
            accepted += 1
            assert None not in read and len({len(values) for values in read if values}) == 1, case
            plain = [values for values in read if values]
            assert found["hits"] == plain_hits(list(zip(plain, [0, classes // 2, classes - 1]))), (
                case
            )
    assert 0 < accepted < cases


def test_fuzzed_labels(tmp_path: Path) -> None:
    """A sentence, or the labels that a plain reading of the lines gives; nothing else."""
    rng = random.Random(3)
    content = b"a.JPEG 3\nb.jpg 0\nc 2\nd.png 6\nsome name.JPEG 9\n"
    predictions = {stem: random_scores(rng, 10) for stem in "abcd"}
    write(tmp_path / "result", predictions)
    accepted = 0
    for case in range(800):
        damaged = mutated(content, rng)
        (tmp_path / "labels.txt").write_bytes(damaged)
        found = evaluate(tmp_path)
        if isinstance(found, dict):
            accepted += 1
            text = damaged[3:] if damaged.startswith(b"\xef\xbb\xbf") else damaged
            plain = {}  # type: Dict[str, set]
            for line in os.fsdecode(text).split("\n"):
                if line.strip():
                    name, label = line.rsplit(None, 1)
                    base = re.sub(r".*[\\/]", "", name.strip(" \"',;"))  # the loose reading
                    for key in {name, re.sub(SUFFIX, "", name), re.sub(SUFFIX, "", base)}:
                        plain.setdefault(key, set()).add(int(label))
            labels = [plain[stem].pop() for stem in "abcd" if len(plain[stem]) == 1]
            read = [stored(predictions[stem], "txt") for stem in "abcd"]
            assert len(labels) == 4 and found["hits"] == plain_hits(list(zip(read, labels))), case
    assert 0 < accepted < 800


def test_fuzzed_on_the_command_line(data: Path) -> None:
    rng = random.Random(8)
    content = (data / "result" / "b_0.txt").read_bytes()
    for _ in range(4):
        (data / "result" / "b_0.txt").write_bytes(mutated(content, rng) + b"?\n")
        assert refusal(SCRIPT, *arguments(data)).startswith("TResNet_postprocess.py: ")
