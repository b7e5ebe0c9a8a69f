"""compare_results.py: the figures are exact, and its sentences are true and plain."""

import contextlib
import io
import json
import os
import unittest.mock
from pathlib import Path
from typing import Dict, List

from common.core import cli
from common.core.cli import Refusal

import compare_results
import numpy as np
import pytest
from conftest import refusal
from records import write_finished

SCRIPT = "scripts/compare_results.py"


def write_results(folder: Path, scores: Dict[str, List[float]], suffix: str = "txt") -> Path:
    folder.mkdir()
    for name, values in scores.items():
        path = str(folder / f"{name}_0.{suffix}")
        if suffix == "txt":
            Path(path).write_text("".join(f"{value:f} " for value in values) + "\n")
        elif suffix == "npy":
            np.save(path, np.array([values], np.float32))
        else:
            np.array(values, np.float32).tofile(path)
    return folder


def compare(*words: object) -> str:
    """What the program prints, in this process; Refusal as it raises it, with what was printed
    before as `printed`.
    """
    with unittest.mock.patch(
        "sys.argv", [SCRIPT] + list(map(str, words))
    ), contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            compare_results.main()
        except Refusal as refused:
            refused.printed = printed.getvalue()  # type: ignore[attr-defined]
            raise
    return printed.getvalue()


def comparison_refusal(status: int, *words: object) -> str:
    """The sentence of its refusal with that exit status."""
    with pytest.raises(Refusal) as refusing:
        compare(*words)
    assert refusing.value.status == status and "\n" not in refusing.value.sentence
    return refusing.value.sentence


def test_comparison_of_known_scores(tmp_path: Path) -> None:
    """Formats may differ; cosine, difference, agreement and names are exact."""
    a = write_results(
        tmp_path / "a",
        {"i1": [3, 4, 0], "i2": [1, 0, 0], "i10": [0, 2, 1], "extra": [1, 1, 1]},
        "txt",
    )
    b = write_results(tmp_path / "b", {"i1": [3, 4, 0], "i2": [1, 1, 0], "i10": [0, 1, 2.5]}, "npy")
    printed = compare(a, b, "--json", tmp_path / "c.json")
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["cosine"]["min"] == pytest.approx(0.5**0.5) and report["cosine"]["image"] == "i2"
    assert report["cosine"]["mean"] == pytest.approx((1 + 0.5**0.5 + 4.5 / (5 * 7.25) ** 0.5) / 3)
    assert report["largest_difference"] == {"value": 1.5, "image": "i10"}
    assert report["disagreements"] == [{"image": "i10", "a": 1, "b": 2}], (
        "of equal scores in i2 the lower class counts"
    )
    assert (report["images"], report["classes"], report["only_in_a"], report["only_in_b"]) == (
        3,
        3,
        ["extra"],
        [],
    )
    assert report["version"] == cli.VERSION
    assert printed.splitlines() == [
        f"compared 3 images of 3 classes: {a} and {b}",
        "cosine similarity: min 0.707107 (i2), mean 0.818172",
        "largest absolute difference: 1.5 (i10)",
        "Top-1 agreement: 66.67 % (2 of 3)",
        "    i10: class 1, but 2 in the second folder",
        "1 image is only in the first folder and was left out: extra",
    ]


def test_comparison_of_one_image_and_odd_names(tmp_path: Path) -> None:
    a = write_results(tmp_path / "a", {"one": [1]})
    b = write_results(tmp_path / "b", {"one": [1], "it's": [1], "z": [1]})
    lines = compare(a, b).splitlines()
    assert lines[0] == f"compared 1 image of 1 class: {a} and {b}"
    assert (
        lines[-1]
        == '2 images are only in the second folder and were left out, for instance "it\'s"'
    )


def test_comparison_of_the_first_images_in_the_runners_order(tmp_path: Path) -> None:
    scores = {f"i{number}": [1.0, number] for number in (1, 2, 10)}
    a, b = (
        write_results(tmp_path / "a", scores),
        write_results(tmp_path / "b", dict(scores, i10=[9, 1]), "bin"),
    )
    compare(a, b, "--first", 2, "--min-agreement", 100)
    assert comparison_refusal(3, a, b, "--min-agreement", 100) == (
        "the Top-1 agreement is 66.67 %, below --min-agreement 100.0"
    )


def test_comparison_below_a_minimum_is_status_3(tmp_path: Path) -> None:
    """The figures are printed and written all the same."""
    a = write_results(tmp_path / "a", {f"i{number}": [1, 0] for number in range(30)})
    b = write_results(
        tmp_path / "b", {f"i{number}": [0, 1] if number < 25 else [1, 0] for number in range(30)}
    )
    minima = [a, b, "--min-cosine", 0.99, "--min-agreement", 99, "--json", tmp_path / "c.json"]
    assert refusal(SCRIPT, *minima, status=3) == (
        "compare_results.py: the cosine similarity falls to 0.000000 (i0), below "
        "--min-cosine 0.99, and the Top-1 agreement is 16.67 %, below --min-agreement 99.0\n"
    )
    assert len(json.loads((tmp_path / "c.json").read_text())["disagreements"]) == 25
    with pytest.raises(Refusal) as refusing:
        compare(*minima)
    printed = refusing.value.printed  # type: ignore[attr-defined]
    assert printed.count("class 0, but 1") == 20 and "... and 5 more" in printed


def test_an_agreement_as_high_as_its_minimum_is_enough(tmp_path: Path) -> None:
    """100 * (1 - 11 / 20) is 44.99999999999999."""
    a = write_results(tmp_path / "a", {f"i{number}": [1, 0] for number in range(20)})
    b = write_results(
        tmp_path / "b", {f"i{number}": [1, 0 if number > 10 else 2] for number in range(20)}
    )
    compare(a, b, "--min-agreement", 45)
    assert "the Top-1 agreement is 45.00 %, below --min-agreement 45.5" in comparison_refusal(
        3, a, b, "--min-agreement", 45.5
    )


@pytest.mark.parametrize(
    "cosine, least, said",
    [
        (0.999975, 0.9999999, "0.999975 (x), below --min-cosine 0.9999999"),
        (0.99999994, 0.9999999999, "0.9999999 (x), below --min-cosine 0.9999999999"),
        (1 - 2**-53, 1.0, "0.9999999999999999 (x), below --min-cosine 1.0"),
        (0.12345678, 0.5, "0.123457 (x), below --min-cosine 0.5"),
        (-1.0, -0.9999999, "-1.000000 (x), below --min-cosine -0.9999999"),
        (0.7, 0.7 + 2**-53, "0.700000 (x), below --min-cosine 0.7000000000000001"),
        (-2e-20, -1e-20, "-2e-20 (x), below --min-cosine -1e-20"),
    ],
)
def test_what_is_below_a_minimum_reads_as_lower(cosine: float, least: float, said: str) -> None:
    report = {"cosine": {"min": cosine, "image": "x"}, "top1_agreement": 100.0}
    assert compare_results.shortfalls(report, least, None) == [
        "the cosine similarity falls to " + said
    ]
    report = {"cosine": {"min": 1.0, "image": "x"}, "top1_agreement": 100 * (1 - 1 / 50000)}
    assert compare_results.shortfalls(report, 1.0, 100.0) == [
        "the Top-1 agreement is 99.998 %, below --min-agreement 100.0"
    ]


@pytest.mark.parametrize(
    "b, complaint",
    [
        ({"z": [1, 0]}, "no image in common (for instance i1 and z)"),
        ({"i1": [1, 0, 0]}, "i1_0.txt has 2 classes, but "),
        ({"i1": [1, 0, 0]}, " has 3; compare results"),
        ({"i1": [float("nan"), 0]}, "nan"),
        ({}, "no results"),
    ],
)
def test_comparison_refuses(tmp_path: Path, b: Dict[str, List[float]], complaint: str) -> None:
    a = write_results(tmp_path / "a", {"i1": [1, 0]})
    assert complaint in comparison_refusal(1, a, write_results(tmp_path / "b", b))
    assert "cannot read the result folder" in comparison_refusal(1, a, tmp_path / "absent")


def test_a_refusal_is_signed_once(tmp_path: Path) -> None:
    """...with this program's name, also where another module found what is wrong."""
    a = write_results(tmp_path / "a", {"i1": [1, 0]})
    (tmp_path / "b").mkdir()
    assert refusal(SCRIPT, a, tmp_path / "b") == (
        f"compare_results.py: {tmp_path / 'b'} holds no results; name the folder that the "
        "inference wrote, such as ./result\n"
    )
    assert refusal(SCRIPT, a, a, "--json", tmp_path / "no" / "c.json") == (
        f"compare_results.py: {tmp_path / 'no' / 'c.json'} cannot be written (No such file or "
        "directory); choose another file for --json\n"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        ["--first", "0"],
        ["--min-cosine", "1.01"],
        ["--min-cosine", "nan"],
        ["--min-agreement", "-1"],
        ["--min-agreement", "101"],
        ["--json", ""],
    ],
)
def test_wrong_usage_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, wrong: List[str]
) -> None:
    with pytest.raises(SystemExit) as refusing:
        compare(tmp_path, tmp_path, *wrong)
    assert refusing.value.code == 2 and "--help" in capsys.readouterr().err


def test_a_result_that_changed_since_its_inference_is_refused(tmp_path: Path) -> None:
    """One bit of one result is another; its time is as it was."""
    scores: Dict[str, List[float]] = {"i1": [1, 2], "i2": [2, 1], "i3": [3, 1]}
    a = write_results(tmp_path / "a", scores, "npy")
    b = write_results(tmp_path / "b", scores)
    names = {name: [f"a/{name}_0.npy"] for name in scores}
    write_finished(tmp_path / "a.record.jsonl", {"tool": "infer_onnx.py"}, names)
    assert "Top-1 agreement: 100.00 % (3 of 3)" in compare(a, b)
    path = a / "i2_0.npy"
    content, status = path.read_bytes(), path.stat()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))
    for order in ((a, b), (b, a)):
        assert comparison_refusal(1, *order).startswith(
            f"1 result file in {a} did not come from the run that made the others: i2_0.npy"
        )
