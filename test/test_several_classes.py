"""Several right classes for an image: ReaL's labels, and the mean average precision."""

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

from common.core import cli, files
from common.core.cli import Refusal
from common.results import accuracy

import check
import expect
import made_up
import numpy as np
import pytest
from conftest import refusal

import TResNet_postprocess as post

STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 7)]


def write_results(folder: Path, scores: np.ndarray, stems: Sequence[str] = STEMS) -> Path:
    (folder / "result").mkdir()
    for stem, row in zip(stems, scores):
        np.save(str(folder / "result" / f"{stem}_0.npy"), row[None].astype(np.float32))
    return folder


def accuracy_of(
    folder: Path, labels: str, monkeypatch: pytest.MonkeyPatch, *more: str
) -> Dict[str, str]:
    """acc.json as {key: value}."""
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "TResNet_postprocess.py",
            str(folder / "result"),
            str(folder / labels),
            str(folder),
            "acc.json",
            *more,
        ],
    )
    post.main()
    return {
        row["key"]: row["value"] for row in json.loads((folder / "acc.json").read_text())["value"]
    }


def report_of(folder: Path) -> Any:
    return json.loads((folder / "acc_report.json").read_text())


# ---- ReaL ----------------------------------------------------------------------------------------


def ordered(*orders: List[int]) -> np.ndarray:
    """Scores of ten classes that put these first, in this order."""
    scores = np.zeros((len(orders), 10))
    for row, order in zip(scores, orders):
        row[order] = range(9, 9 - len(order), -1)
    return scores


def test_any_of_several_right_classes_counts_and_images_without_one_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_results(tmp_path, ordered([3], [4, 5], [1, 2, 6], [9], [0, 1, 2, 3, 4, 5], [7]))
    (tmp_path / "real.json").write_text(
        json.dumps([[1, 3], [5], [6, 2], [], [5, 8], [7]] + [[1]] * 4)
    )
    found = accuracy_of(tmp_path, "real.json", monkeypatch)
    assert found == {
        "Number of images": "5",
        "Number of classes": "10",
        "Top1 accuracy": "40.0%",
        "Top2 accuracy": "80.0%",
        "Top3 accuracy": "80.0%",
        "Top4 accuracy": "80.0%",
        "Top5 accuracy": "80.0%",
    }
    assert report_of(tmp_path)["left_out"] == [
        {"source": STEMS[3], "error": "no right class in real.json"}
    ]
    counts = report_of(tmp_path)["counts"]
    assert (counts["labelled"], counts["inferred"], counts["evaluated"]) == (10, 6, 5)
    said = capsys.readouterr().out
    assert (
        f"left out: {STEMS[3]}: 'no right class in real.json'" in said
        and "1 of 6 images were left out" in said
    )


@pytest.mark.parametrize(
    "content, sentence",
    (
        (
            "{",
            "real.json is damaged (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1)); ReaL's real.json was expected, a list of lists of classes such as "
            "[65, 395]",
        ),
        ("{}", "real.json is damaged (it is an object, a list was expected)"),
        (
            "[[1], [2], [-1]]",
            "(entry 1 of entry 3 is -1, a whole number from 0 to 1,000,000,000 was expected)",
        ),
        ("[[1], 2]", "(entry 2 is 2, a list was expected)"),
        ("[[true]]", "(entry 1 of entry 1 is true, "),
        ("[]", "(it is empty)"),
        ("\udc80", "(it is not UTF-8 text"),
        ("[[10], [1], [1], [1], [1], [1]]", "line 1: label 10 is outside the classes 0 to 9"),
        ("[[1], [1]]", "4 of 6 images have no label"),
        ("[[], [], [], [], [], []]", "has no right class for any of the 6"),
        ("[" * 100000, "is damaged (it is nested too deeply)"),
    ),
)
def test_a_real_json_of_another_form_is_refused(
    content: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, np.zeros((6, 10)))
    (tmp_path / "real.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(Refusal) as error:
        accuracy_of(tmp_path, "real.json", monkeypatch)
    assert sentence in error.value.sentence and not (tmp_path / "acc.json").exists()


# ---- a run held against a published figure -------------------------------------------------------


@pytest.mark.parametrize(
    "content, sentence",
    (
        ("{", r"acc_report.json is damaged \(Expecting .*; run TResNet_postprocess.py again"),
        ("[]", r"acc_report.json is damaged \(it is a list, an object was expected"),
        (
            json.dumps(made_up.report(["a", "b"], [0, 1])),
            "result lacks results that .* names: b; run the pipeline again",
        ),
    ),
)
def test_a_report_of_other_results_is_refused(
    content: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, np.eye(2), ["a"])
    (tmp_path / "acc_report.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["expect.py", str(tmp_path), "sample"])
    with pytest.raises(Refusal, match=sentence):
        expect.main()


@pytest.mark.parametrize(
    "words", (["--min-top1", "80"], ["--min-top5", "80"], ["--expect", "sample"])
)
def test_the_pipeline_refuses_what_multi_label_has_no_figure_for_before_it_begins(
    words: List[str], tmp_path: Path
) -> None:
    said = refusal(
        "scripts/pipeline.py",
        "--backend",
        "cpu",
        "--workdir",
        tmp_path / "work",
        "--multi-label",
        *words,
        status=2,
    )
    assert "not for --multi-label, whose figure" in said and not (tmp_path / "work").exists()


def test_a_file_of_a_run_at_work_may_go_while_the_needed_space_is_added_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check.os, "walk", lambda _: [(str(tmp_path), [], ["a.bin.part"])])
    monkeypatch.setattr(
        sys, "argv", ["check.py", "--backend", "cpu", "--workdir", str(tmp_path / "work")]
    )
    assert check.main() == 0


def test_int8_takes_more_space_for_its_own_models_and_results(tmp_path: Path) -> None:
    parser = cli.parser("")
    check.add_options(parser)
    arguments = parser.parse_args(["--workdir", str(tmp_path / "work")])
    data = check.locate(arguments)
    before = check.needed_space(data, 1000, True)
    arguments.precision = "int8"
    more = (
        1000 * files.occupied([check.RESULT_BYTES])
        + (1 + len(arguments.batch_sizes)) * check.MODEL_BYTES
    )
    assert check.needed_space(data, 1000, True) == before + more


# ---- mean average precision ----------------------------------------------------------------------


def test_the_mean_average_precision_is_scikit_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.RandomState(0)
    scores = np.round(
        generator.normal(0, 2, (200, 12)), 1
    )  # rounded: many images have the same score
    right = generator.uniform(0, 1, (200, 12)) < 0.2
    right[:, 7], right[5] = False, False  # a class without an image, an image without a class
    names = [f"street {number}" for number in range(200)]
    write_results(tmp_path, scores, names)
    (tmp_path / "labels.txt").write_text(
        "".join(
            " ".join([name + ".jpg", *map(str, np.flatnonzero(row)[::-1])]) + "\n"
            for name, row in zip(names, right)
        )
    )
    found = accuracy_of(tmp_path, "labels.txt", monkeypatch, "--multi-label")
    shown = [place for place in range(12) if place != 7]
    probabilities = 1 / (1 + np.exp(-scores.astype(np.float32)))
    expected = metrics.average_precision_score(
        right[:, shown], probabilities[:, shown], average="macro"
    )
    assert abs(report_of(tmp_path)["mAP"] - expected) < 1e-12
    each = report_of(tmp_path)["average_precision"]
    assert each[7] is None and all(
        abs(each[place] - metrics.average_precision_score(right[:, place], probabilities[:, place]))
        < 1e-12
        for place in shown
    )
    assert found == {
        "Number of images": "200",
        "Number of classes": "12",
        "Number of classes without an image": "1",
        "Mean average precision": f"{round(100 * expected, 2)}%",
    }


def test_no_mean_average_precision_is_rounded_up_to_100_percent() -> None:
    report: Any = {
        "counts": {"evaluated": 9},
        "classes": 1,
        "hits": [],
        "average_precision": [0.99999],
        "mAP": 0.99999,
    }
    assert accuracy.statistics(report)["value"][-1] == {
        "key": "Mean average precision",
        "value": "99.99%",
    }


def test_a_perfect_order_has_a_mean_average_precision_of_100_percent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, np.eye(6, 3) + np.eye(6, 3, -3))
    (tmp_path / "labels.txt").write_text(
        "".join(f"{stem} {row % 3}\n" for row, stem in enumerate(STEMS))
    )
    assert (
        accuracy_of(tmp_path, "labels.txt", monkeypatch, "--multi-label")["Mean average precision"]
        == "100.0%"
    )


@pytest.mark.parametrize(
    "text, sentence",
    (
        ("", "holds no labels"),
        ("a\nb\n", "holds no labels"),
        (
            "".join(f"{stem} 1 10\n" for stem in STEMS),
            "line 1: label 10 is outside the classes 0 to 9",
        ),
        ("".join(f"{stem}\n" for stem in STEMS) + "other 3\n", "none of the 6 images has a class"),
        (
            f"{STEMS[0]} 1\n{STEMS[0]} 1 2\n",
            "gives ILSVRC2012_val_00000001 two labels: 1 in line 1 and 1 2 in line 2",
        ),
        (f"{STEMS[0]} 1 2\n", "5 of 6 images have no label"),
    ),
)
def test_multi_labels_that_cannot_be_used_are_refused(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, np.zeros((6, 10)))
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(Refusal) as error:
        accuracy_of(tmp_path, "labels.txt", monkeypatch, "--multi-label")
    assert sentence in error.value.sentence and not (tmp_path / "acc.json").exists()


def test_a_gate_of_single_labels_is_wrong_usage_for_several(tmp_path: Path) -> None:
    said = refusal(
        "TResNet_postprocess.py",
        "r",
        "l",
        tmp_path,
        "acc.json",
        "--multi-label",
        "--min-top1",
        5,
        status=2,
    )
    assert "--min-top1 and --min-top5 are not for --multi-label" in said
