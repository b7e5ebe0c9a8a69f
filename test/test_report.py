"""The report: its figures are the known ones, hostile names stay text, it is small, and a real
browser is content.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List

from common.core import cli
from common.core.cli import Refusal
from common.model.statistics import interval
from common.results import figures
from common.results.texts import ENGLISH, Say

import forecast_speed
import made_up
import numpy as np
import pytest
import report
from ascend.helpers import save_tiny_tresnet
from browser import PROGRAM, Page, browser
from conftest import ROOT, Shared, refusal
from records import write_finished, write_prepared

HOSTILE = [
    "<script>alert(1)</script>",
    "\"quotes' and `ticks`",
    "right\u202eto left\u2066",
    "&amp;&#60;b&#62;",
    "{{ 7 * 7 }}",
    "x" * 255,
    "</title></style><img src=x onerror=alert(2)>",
    "línea\x1b[31m",
    "北京烤鸭",
    "$x^2$",
]


def make(work: Path, *words: object) -> str:
    """Run report.py in this process; the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["report.py", str(work), *map(str, words)])
        report.main()
    return (work / "report.html").read_text(encoding="utf-8")


def text(page: str) -> str:
    """What is read of a page: without its tags."""
    body = re.sub(r"<(script|style|svg).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


@pytest.fixture(scope="session")
def card(shared: Shared) -> Path:
    """A made-up run on the card: 300 images of 20 classes, 240 right, 285 within five."""

    def fill(folder: Path) -> None:
        _, logits = made_up.make_run(
            folder, 300, 20, 240, 285, names=[f"thing {place}" for place in range(20)]
        )
        made_up.on_card(folder, logits)
        make(folder)

    return shared("report card", fill)


@pytest.fixture
def copy(card: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(str(card), str(tmp_path / "work"))
    return tmp_path / "work"


# ---- the speed that is expected ------------------------------------------------------------------


def expect_speed(work: Path, ratio: float) -> List[float]:
    """Put a forecast into a work folder, and what the card did of it; the forecast's images/s."""
    model = str(save_tiny_tresnet(work / "tresnet.onnx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["forecast_speed.py", model, "--output", str(work)])
        forecast_speed.main()
    forecast = json.loads((work / "speed.json").read_text())
    perf = json.loads((work / "perf.json").read_text())
    speeds = [row["images_per_s"] for row in forecast["rows"]]
    rows = [dict(perf["rows"][0], batch_size=8, throughput=ratio * speeds[2])]
    verdict = "slower than networks of this kind run there" if ratio < 0.6 else "as fast as others"
    look_at = ["its clock and temperature"] if ratio < 0.6 else []
    expected = {"slow": ratio < 0.6, "verdict": verdict, "look_at": look_at}
    (work / "perf.json").write_text(json.dumps(dict(perf, rows=rows, expected=expected)))
    run = json.loads((work / "run.json").read_text())
    made = [name for name in run["made"] if name != "compare"]
    (work / "run.json").write_text(json.dumps(dict(run, made=[*made, "speed"])))
    return speeds


@pytest.mark.parametrize("ratio, state", [(0.5, "worth a look"), (0.9, "all minimums reached")])
def test_the_page_sets_the_measured_speed_beside_the_forecast(
    copy: Path, ratio: float, state: str
) -> None:
    speeds = expect_speed(copy, ratio)
    words = text(make(copy))
    assert state in words
    assert "This is not a measurement. It is from figures that were published in 2022" in words
    assert f" {ratio * speeds[2]:,.0f} {ratio:.2f} 16 " in words, "only batch size 8 was measured"
    assert words.count("slower than networks of this kind run there") == 2 * (ratio < 0.6)
    assert ("Look at: its clock and temperature" in words) == (ratio < 0.6)


def test_one_measured_batch_size_has_one_ratio_to_the_forecast() -> None:
    row = {"batch_size": 8, "ratio": 1.1, "low_90": 20.0}
    judged = {"slow": False, "verdict": "", "rows": [row, dict(row, batch_size=16, ratio=0.9)]}
    assert report.verdict_on_speed(judged, {8: 44.0}, ENGLISH).endswith(
        ": 0.90 to 1.10 times the forecast."
    )
    one = dict(judged, rows=[row])
    assert report.verdict_on_speed(one, {8: 44.0}, ENGLISH).endswith(": 1.10 times the forecast.")
    assert report.verdict_on_speed(one, {8: 44.0}, Say("zh")).endswith("：为预估值的 1.10 倍。")


def test_the_page_has_a_forecast_without_a_card_and_none_of_an_earlier_run(copy: Path) -> None:
    expect_speed(copy, 0.9)
    run = json.loads((copy / "run.json").read_text())
    made = [name for name in run["made"] if name != "perf"]
    (copy / "run.json").write_text(json.dumps(dict(run, made=made)))
    words = text(make(copy))
    assert "80 % range" in words and "measured / forecast" not in words
    made.remove("speed")
    (copy / "run.json").write_text(json.dumps(dict(run, made=made)))
    assert "80 % range" not in text(make(copy))


# ---- the figures ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> figures.Predictions:
    """Predictions of 500 images of 7 classes, some of equal scores."""
    random = np.random.RandomState(3)
    scores = np.round(random.normal(0, 2, (500, 7)), 1).astype(np.float32)
    true = random.randint(0, 7, 500)
    scores[np.arange(500), true] += np.float32(1.5)
    return figures.join(
        [
            figures.summarise(scores[start : start + 100], true[start : start + 100, None].tolist())
            for start in range(0, 500, 100)
        ]
    )


def test_predictions_are_the_highest_scores_and_of_equal_ones_the_lower_class() -> None:
    found = figures.summarise(
        np.array([[1, 3, 3, 0, 2, -1], [0, 0, 0, 0, 0, 0]], np.float32), [[2], [5]]
    )
    assert found.top.tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4]] and found.rank.tolist() == [
        1,
        5,
    ]
    assert found.confidence[1] == pytest.approx(1 / 6)
    several = figures.summarise(np.array([[1, 3, 2]], np.float32), [[0, 2]])
    assert several.true.tolist() == [2] and several.rank.tolist() == [1], (
        "the best of several right answers counts"
    )


@pytest.mark.slow
def test_confusion_and_accuracy_of_classes_are_scikit_learns(found: figures.Predictions) -> None:
    from sklearn import metrics

    matrix = metrics.confusion_matrix(found.true, found.top[:, 0])
    wrong = matrix - np.diag(matrix.diagonal())
    pairs = {(i, j): wrong[i, j] for i, j in np.argwhere(wrong).tolist()}
    rows = figures.confused(found)
    assert {row[:2]: row[2] for row in rows} == pairs and rows[0][2] == max(pairs.values())
    assert [row[2] for row in rows] == sorted(pairs.values(), reverse=True)
    recall = metrics.recall_score(found.true, found.top[:, 0], average=None)
    classes = figures.weakest_first(figures.every_class(found, 7))
    assert {row["class"]: row["top1"] / row["images"] for row in classes} == pytest.approx(
        dict(enumerate(recall))
    )
    assert [row["top1"] / row["images"] for row in classes] == sorted(recall)
    for row in classes:
        others = np.delete(matrix[row["class"]], row["class"])
        assert (
            row["times"] == others.max() and matrix[row["class"], row["taken_for"]] == row["times"]
        )

    accuracy = np.trace(matrix) / 500
    assert figures.coverage(found)[-1] == pytest.approx((1.0, accuracy))


def test_the_calibration_error_agrees_with_scikit_learns_calibration_curve(
    found: figures.Predictions,
) -> None:
    from sklearn.calibration import calibration_curve

    accuracy, confidence = calibration_curve(found.correct, found.confidence, n_bins=15)
    calibration = figures.calibration(found)
    full = [row for row in calibration["bins"] if row["images"]]
    assert [row["accuracy"] for row in full] == pytest.approx(accuracy)
    assert [row["confidence"] for row in full] == pytest.approx(confidence)
    weights = np.array([row["images"] for row in full]) / 500
    assert calibration["error"] == pytest.approx(
        float((weights * np.abs(accuracy - confidence)).sum())
    )


@pytest.mark.parametrize("hits, images", ((20, 20), (0, 20), (1, 1), (81, 263), (40408, 50000)))
def test_intervals_are_scipys(hits: int, images: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, images).proportion_ci(method="wilson")
    assert interval(hits, images) == pytest.approx(
        (100 * expected.low, 100 * expected.high), abs=1e-4
    )


def test_if_only_the_surest_answers_are_given_the_accuracy_is_theirs() -> None:
    found = figures.Predictions(
        np.zeros((4, 1), int),
        np.array([[0.9], [0.8], [0.7], [0.6]]),
        np.zeros(4, int),
        np.array([0, 1, 0, 1]),
    )
    assert figures.coverage(found) == [(0.25, 1), (0.5, 0.5), (0.75, 2 / 3), (1, 0.5)]
    assert figures.most_confident_mistakes(found, 5) == [1, 3]


@pytest.mark.parametrize(
    "hits, images, said",
    ((29999, 30000, "99.99 %"), (3, 3, "100 %"), (1, 3, "33.33 %"), (0, 9, "0.00 %")),
)
def test_100_per_cent_are_all(hits: int, images: int, said: str) -> None:
    assert report.share(hits, images) == said


# ---- what the page says --------------------------------------------------------------------------


def test_the_page_says_what_the_run_found(card: Path) -> None:
    said = text((card / "report.html").read_text())
    for sentence in (
        "on Ascend 310P3 gives the right answer for 80.00 % of 300 images and classifies 3,262 "
        "images a second.",
        "the card and ONNX Runtime give the same answer for 96.88 % of 64 images",
        "Top-1 80.00 % 95 % interval 75.11 to 84.13 %",
        "Top-5 95.00 % 95 % interval 91.92 to 96.95 %",
        "worth a look",
        "Top-1 accuracy: 80 %, the minimum is 70 %",
        "published: 3,249 images/s, ratio 1.00",
        "16 3,262.0 ± 0.5 % 3,249 1.00 4.90 5.20",
        "Images whose answer changed",
        "60 wrong answers in all",
        "All 20 classes that have images",
        "model_best.pth.tar",
        "Export 14 s",
        "python3 TResNet_pth2onnx.py model_best.pth.tar work/tresnet.onnx",
    ):
        assert sentence in said, sentence


def test_pictures_are_the_prepared_images(card: Path) -> None:
    import base64
    import io

    from PIL import Image

    page = (card / "report.html").read_text()
    shown = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', page)
    assert len(shown) == report.MISTAKES + 2
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]))), float)
    stem = json.loads((card / "compare.json").read_text())["disagreements"][0]["image"]
    own = Image.fromarray(made_up.picture(int(stem[1:]))).resize(
        image.shape[:2], Image.Resampling.LANCZOS
    )
    assert np.abs(image - np.asarray(own, float)).mean() < 12


def test_only_the_image_that_was_prepared_is_shown_and_an_unreadable_one_ends_the_page(
    tmp_path: Path,
) -> None:
    pixels = made_up.picture(1, 8)
    for name, content in (("same", pixels), ("other", 255 - pixels), ("gone", pixels)):
        content.tofile(str(tmp_path / f"{name}.bin"))
    write_prepared(
        tmp_path,
        {"same": "same.png", "other": "other.png", "gone": "gone.png"},
        dtype="uint8",
        img_size=8,
    )
    (pixels // 2).tofile(str(tmp_path / "other.bin"))
    (tmp_path / "gone.bin").unlink()
    shown = report.Pictures([str(tmp_path)])
    assert shown.picture("same").startswith("data:image/jpeg;base64,")
    assert [shown.picture(stem) for stem in ("other", "gone", "unknown")] == ["", "", ""]
    os.truncate(str(tmp_path / "same.bin"), 1 << 29)
    with pytest.raises(Refusal, match="same.bin has 536,870,912 bytes"):
        shown.picture("same")


@pytest.mark.slow
def test_without_card_comparison_and_speed_there_are_no_holes(copy: Path) -> None:
    for name in ("perf.json", "compare.json", "run.json"):
        (copy / name).unlink()
    shutil.rmtree(str(copy / "prep_dataset"))
    page = make(copy)
    said = text(page)
    assert (
        'id="speed"' not in page
        and 'id="comparison"' not in page
        and "None" not in said
        and "no picture" in said
    )
    assert (
        "The network gives the right answer for 80.00 % of 300 images." in said
        and "measured" in said
    )
    shutil.rmtree(str(copy / "result"))
    page = make(copy)
    assert (
        'id="classes"' not in page
        and 'id="calibration"' not in page
        and "Top-1 80.00 %" in text(page)
    )


@pytest.mark.slow
def test_what_an_earlier_run_left_is_not_shown(copy: Path) -> None:
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps(dict(about, made=["acc", "acc_report", "run"])))
    page = make(copy)
    assert 'id="speed"' not in page and 'id="comparison"' not in page


@pytest.mark.slow
def test_a_missed_minimum_and_images_left_out_are_said_first(copy: Path) -> None:
    about, accuracy = (
        json.loads((copy / name).read_text()) for name in ("run.json", "acc_report.json")
    )
    (copy / "run.json").write_text(
        json.dumps(dict(about, gates={"min_top1": 80.1, "min_cosine": 0.5}))
    )
    bad = [{"source": "<b>.jpg", "error": "truncated"}] * 30
    accuracy.update(left_out=bad, notes=["30 of 330 images were left out"])
    (copy / "acc_report.json").write_text(json.dumps(accuracy))
    page = make(copy)
    said = text(page)
    assert "below a minimum" in said and "Top-1 accuracy: 80 %, the minimum is 80.1 %" in said
    assert (
        "30 of 330 images were left out" in said and "and 10 more, all in acc_report.json" in said
    )
    assert "&lt;b&gt;.jpg" in page and "<b>.jpg" not in page


def test_a_minimum_is_missed_by_however_little_and_that_is_seen() -> None:
    """As the comparison itself judges, whose exit status is 3 then."""
    parts: Dict[str, Any] = {
        "acc_report": {"counts": {"evaluated": 3}, "hits": [2, 3]},
        "perf": {},
        "compare": {"cosine": {"min": 0.9999999999}},
        "run": {"gates": {"min_cosine": 1.0, "min_top1": 66.6, "min_throughput": 5.0}},
    }
    assert [(gate.measured, gate.least, gate.good) for gate in report.gates(parts)] == [
        ("0.9999999999", "1", False),
        ("66.6667 %", "66.6 %", True),
        ("not measured", "5 images/s", False),
    ]


@pytest.mark.slow
def test_a_network_of_two_classes_is_not_always_worth_a_look(tmp_path: Path) -> None:
    """Two hits per class are chance for a thousand classes; of two classes that would be all
    images.
    """
    made_up.make_run(tmp_path, 30, 2, 29, 30)
    said = text(make(tmp_path))
    assert (
        "measured The network gives the right answer for 96.67 %" in said
        and "1 wrong answer in all." in said
    )


@pytest.mark.slow
def test_a_damaged_bit_of_its_record_costs_no_more_than_making_the_page_again(
    copy: Path, capsys: pytest.CaptureFixture
) -> None:
    path = copy / "report.html.record.jsonl"
    before, again = text(make(copy)), []
    for place in range(5):
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        lines[place] = lines[place].replace(b'"', b"#", 1)
        path.write_bytes(b"".join(lines))
        capsys.readouterr()
        assert text(make(copy)) == before
        again.append("wrote " in capsys.readouterr().out)
        if not again[-1]:
            path.write_bytes(whole)
    assert again == [True, False, False, True, True], (
        "without a name that is known otherwise too nothing is lost"
    )
    assert not (copy / "report.html.aside").exists()


@pytest.mark.slow
def test_another_export_is_seen(copy: Path) -> None:
    make(copy)
    write_finished(
        copy / "tresnet.onnx.record.jsonl",
        {"tool": "x"},
        {},
        notes={"": {"variant": "tresnet_l", "lineage": "miil"}},
    )
    assert "TResNet-L" in text(make(copy))


def test_published_figures_stand_beside_where_the_case_is_the_same() -> None:
    counts = {"evaluated": 50000}
    about: Dict[str, Any] = {"counts": counts, "classes": 1000, "hits": [40408, 0, 0, 0, 47400]}
    parts: Dict[str, Any] = {
        "acc_report": about,
        "acc_float32": {},
        "acc_float16": {},
        "expect": {},
        "network": {"variant": "tresnet_l", "lineage": "miil", "evaluation": {"img_size": 224}},
    }
    assert report.accuracies(parts)[0]["about"] == [
        "95 % interval 80.47 to 81.16 %",
        "published for tresnet_l.miil_in1k: 81.50 %",
    ]
    parts["expect"] = {"name": "x", "published": {"top1": 80.0, "top5": None}}
    assert report.accuracies(parts)[0]["about"][1:] == ["published for x: 80.00 %"]
    parts.update(
        expect={},
        network={"variant": "tresnet_m", "lineage": "ascend", "evaluation": {"img_size": 224}},
    )
    assert report.accuracies(parts)[1]["about"][1:] == ["published for an Ascend 310P3: 94.43 %"]
    about["counts"] = {"evaluated": 49999}
    assert report.accuracies(parts)[1]["about"][1:] == []


def test_a_wide_spread_between_runs_is_a_warning(copy: Path) -> None:
    perf = json.loads((copy / "perf.json").read_text())
    perf["rows"][1]["throughput_spread"] = 1.166  # ± 58.3 %, as perf.md has it
    (copy / "perf.json").write_text(json.dumps(perf))
    about = json.loads((copy / "run.json").read_text())
    (copy / "compare.json").unlink()  # the only other reason to look
    (copy / "run.json").write_text(json.dumps(dict(about, made=["acc_report", "run", "perf"])))
    said = text(make(copy))
    assert "worth a look" in said and "4 2,548.9 ± 58.3 % 2,552" in said
    assert "the throughput varied by ± 58.3 % between the runs at batch size 4" in said
    perf["rows"][1]["throughput_spread"] = 0.2  # ± 10 %
    (copy / "perf.json").write_text(json.dumps(perf))
    said = text(make(copy))
    assert "all minimums reached" in said and "varied by" not in said
    assert "at batch size 16 ± 0.5 % between 3 runs" in said


@pytest.mark.parametrize(
    "classes, headings", ((2, ["Top-1"]), (3, ["Top-1", "Top-2"]), (6, ["Top-1", "Top-5"]))
)
def test_with_few_classes_no_heading_says_top_5(
    tmp_path: Path, classes: int, headings: List[str]
) -> None:
    made_up.make_run(tmp_path, 30, classes, 20, 30)
    page = make(tmp_path)
    assert re.findall(r"<dt>(Top-\d)</dt>", page) == headings
    columns = re.findall(r'<button type="button">(Top-\d)', page)
    assert columns == headings


def cells(page: str) -> Dict[str, int]:
    """{"right → answer": images} of the picture of the confusion matrix."""
    titles = re.findall(r'<rect [^>]*class="(hit|miss)"[^>]*><title>(.*?): ([\d,]+)</title>', page)
    return {words: int(count.replace(",", "")) for _, words, count in titles}


def test_the_confusion_matrix_has_the_counts_of_each_pair(tmp_path: Path) -> None:
    names = [f"thing {place}" for place in range(12)]
    true, logits = made_up.make_run(tmp_path, 200, 12, 150, 190, names=names)
    page = make(tmp_path)
    expected: Dict[str, int] = {}
    for right, answer in zip(true.tolist(), logits.argmax(1).tolist()):
        key = f"thing {right} ({right}) → thing {answer} ({answer})"
        expected[key] = expected.get(key, 0) + 1
    assert cells(page) == expected and len(expected) > 20
    assert "The 15 most confused pairs of classes of" in text(page)


def test_more_than_50_classes_have_no_matrix_but_the_most_confused_pairs(tmp_path: Path) -> None:
    made_up.make_run(tmp_path, 300, 51, 150, 190)
    page = make(tmp_path)
    assert 'class="matrix"' not in page and "The 30 most confused pairs of classes of" in text(page)


def listed(page: str) -> List[List[str]]:
    """The listed mistakes: image, answer, probability."""
    tables = re.findall(r"<details>.*?</details>", page, re.DOTALL)
    rows = re.findall(r"<tr><td>(.*?)<td>(.*?)<td>(.*?)\n", "\n".join(tables))
    return [[text(cell) for cell in row] for row in rows]


def test_all_mistakes_are_listed_by_class(card: Path) -> None:
    page = (card / "report.html").read_text()
    rows = listed(page)
    assert len(rows) == 60 == len({image for image, _, _ in rows})
    assert "All mistakes by right class" in page
    summaries = re.findall("<summary>(.*?): (\\d+) wrong of (\\d+)</summary>", page)
    assert sum(int(wrong) for _, wrong, _ in summaries) == 60
    assert {images for _, _, images in summaries} == {"15"}
    wrong = [int(wrong) for _, wrong, _ in summaries]
    assert wrong == sorted(wrong, reverse=True)


def test_a_page_that_would_be_too_large_lists_the_surest_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, logits = made_up.make_run(tmp_path, 900, 20, 500, 600)
    monkeypatch.setattr(report, "LARGEST", len(make(tmp_path).encode()) - 1)
    page = make(tmp_path, "--force")
    rows = listed(page)
    assert "The 200 surest mistakes by right class" in page and len(rows) == 200
    powers = np.exp(logits.astype(float) - logits.max(1, keepdims=True))
    surest = (1 / powers.sum(1))[500:]  # the first 500 are right
    places = np.argsort(-surest, kind="stable")[:200] + 500
    assert {image for image, _, _ in rows} == {f"i{place:05d}.jpg" for place in places}


def test_what_a_step_only_kept_is_said_with_the_time_that_it_took_to_make(copy: Path) -> None:
    about = json.loads((copy / "run.json").read_text())
    steps = [
        {"name": "Export", "seconds": 0.4, "kept": True, "made_in": 51.2},
        {"name": "Preprocess", "seconds": 0.2, "kept": True, "made_in": None},
        {"name": "Inference", "seconds": 38.0, "kept": False},
    ]
    (copy / "run.json").write_text(json.dumps(dict(about, steps=steps)))
    said = text(make(copy, "--force"))
    assert "Export kept (made in 51 s) Preprocess kept Inference 38 s" in said


def test_the_reader_is_not_shown_why_there_was_no_card(copy: Path) -> None:
    about = json.loads((copy / "run.json").read_text())
    reason = "for ascend, ais_bench: python3 cannot import it (ModuleNotFoundError)"
    (copy / "run.json").write_text(json.dumps(dict(about, backend="cpu", reason=reason)))
    said = text(make(copy))
    assert "ran on this machine's CPU, with ONNX Runtime" in said.replace("&#39;", "'")
    assert "ModuleNotFoundError" not in said


def test_the_page_in_chinese_has_the_same_figures(
    card: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    english = (card / "report.html").read_text()
    chinese = make(copy, "--language", "zh")
    assert '<html lang="zh-CN">' in chinese and '<html lang="en">' in english
    assert "对 300 张图片中的 80.00 % 给出正确答案，每秒分类 3,262 张图片。" in chinese.replace(
        "\u00a0", " "
    )
    assert "共有 60 个错误答案" in chinese and "导出 14 s" in text(chinese)
    figures_of = [
        sorted(re.findall(r"\d[\d,.]*\d", re.sub(r"(?s)<svg.*?</svg>|<h1>.*?</h1>", "", page)))
        for page in (english, chinese)
    ]
    assert len(figures_of[0]) > 500
    kept_words = set(re.findall("[A-Za-z]{4,}", text(re.sub("<pre>.*?</pre>", "", chinese))))
    assert kept_words & {
        "wrong",
        "images",
        "classes",
        "answer",
        "right",
        "Speed",
        "probability",
    } <= {
        "classes"  # classes.csv
    }
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.setenv("LC_MESSAGES", "zh_CN.UTF-8")
    before = (copy / "report.html").stat().st_mtime_ns
    assert make(copy) == chinese and (copy / "report.html").stat().st_mtime_ns == before
    monkeypatch.setenv("LC_MESSAGES", "C")
    assert '<html lang="en">' in make(copy)


def test_the_page_links_the_tables_that_the_evaluation_wrote(copy: Path) -> None:
    from unittest import mock

    import TResNet_postprocess as post

    page = (copy / "report.html").read_text()
    assert ".csv" not in page
    words = [copy / "result", copy / "val_label.txt", copy, "acc.json"]
    words += ["--prep", copy / "prep_dataset", "--beside", copy / "result_onnx"]
    with mock.patch("sys.argv", ["TResNet_postprocess.py", *map(str, words)]):
        post.main()
    page = make(copy)
    assert re.findall('href="([a-z.]+csv)"', page) == ["predictions.csv", "classes.csv"]
    said = text(page)
    assert "2 became right, 0 became wrong, 0 wrong before and after" in said
    assert "the rows with “yes” in the column “changed” of predictions.csv" in said
    changed = (copy / "predictions.csv").read_text().count(",yes\n")
    assert changed == 2


# ---- hostile, foreign, stale ---------------------------------------------------------------------


@pytest.fixture(scope="session")
def hostile(shared: Shared) -> Path:
    """A run whose classes and files have hostile names."""

    def fill(folder: Path) -> None:
        sources = [f"{name.replace('/', '_')}{place}.jpg" for place, name in enumerate(HOSTILE * 3)]
        made_up.make_run(
            folder, 30, 10, 10, 20, [name.replace("\x1b", "?") for name in HOSTILE], sources
        )
        make(folder)

    return shared("report hostile", fill)


def test_hostile_names_stay_text(hostile: Path) -> None:
    page = (hostile / "report.html").read_text()
    assert (
        page.count("<script>") == 1 and "<img src=x" not in page and "onerror=alert(2)>" not in page
    )
    assert "&lt;script&gt;alert(1)&lt;/script&gt; (0)" in page and "{{ 7 * 7 }} (4)" in page
    assert not set("\u202e\u2066\x1b") & set(page) and "right\\u202eto left\\u2066" in page
    assert "x" * 61 not in page and "北京烤鸭 (8)" in page


@pytest.mark.slow
def test_what_is_not_ours_is_not_replaced_and_what_is_up_to_date_is_kept(copy: Path) -> None:
    before = (copy / "report.html").stat().st_mtime_ns
    make(copy)
    assert (copy / "report.html").stat().st_mtime_ns == before
    make(copy, "--force")
    assert (copy / "report.html").stat().st_mtime_ns != before
    (copy / "report.html.record.jsonl").unlink()
    (copy / "report.html").write_text("mine")
    with pytest.raises(Refusal, match="no record says that this program made it"):
        make(copy, "--force")
    assert (copy / "report.html").read_text() == "mine"


def test_results_of_another_run_are_refused(copy: Path) -> None:
    shutil.copyfile(str(copy / "result" / "i00299_0.npy"), str(copy / "result" / "i00000_0.npy"))
    with pytest.raises(Refusal, match="are not those of acc_report.json"):
        make(copy, "--force")


def test_a_folder_without_a_run_and_damaged_parts_are_refused(tmp_path: Path) -> None:
    assert "should hold acc_report.json" in refusal("scripts/report.py", tmp_path)
    (tmp_path / "acc_report.json").write_text("{")
    with pytest.raises(Refusal, match="acc_report.json is damaged"):
        make(tmp_path)


@pytest.mark.slow
def test_joined_shards_have_one_report(tmp_path: Path) -> None:
    import merge_reports

    reports = []
    for number in (1, 2):
        work = tmp_path / str(number)
        work.mkdir()
        made_up.make_run(work, 40, 10, 30, 38)
        for name in ("result", "prep_dataset"):  # other names than the other shard's
            for path in sorted((work / name).glob("i*")):
                path.rename(path.with_name(f"s{number}{path.name}"))
        stems = {
            path.stem: f"{path.stem}.jpg" for path in sorted((work / "prep_dataset").glob("*.bin"))
        }
        write_prepared(work / "prep_dataset", stems, img_size=made_up.SIDE, dtype="uint8")
        report_of = json.loads((work / "acc_report.json").read_text())
        report_of.update(
            shard=[number, 2], evaluated=[f"s{number}{stem}" for stem in report_of["evaluated"]]
        )
        (work / "acc_report.json").write_text(json.dumps(report_of))
        reports.append(report_of)
    (tmp_path / "joined").mkdir()
    joined = merge_reports.merge([str(tmp_path / "1"), str(tmp_path / "2")], reports)
    (tmp_path / "joined" / "acc_report.json").write_text(json.dumps(joined))
    page = make(tmp_path / "joined")
    assert "75.00 % of 80 images" in text(page) and "20 wrong answers in all" in text(page)
    assert page.count("data:image/jpeg") == 20 and "s2i0" in page


# ---- large ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_50000_images_make_a_small_page_in_little_memory(tmp_path: Path) -> None:
    """1,000 classes of 50 images each; Top-1 80.8 %, Top-5 94.8 %."""
    made_up.make_run(tmp_path, 2000, 1000, 1616, 1896, copies=25)
    # A small process between: at its start a child has the memory of the one that it was forked
    # from.
    code = (
        "import resource, subprocess, sys; subprocess.check_call(sys.argv[1:], stdout=sys.stderr); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    report_program = [sys.executable, str(ROOT / "scripts" / "report.py"), str(tmp_path)]
    memory = subprocess.check_output([sys.executable, "-c", code, *report_program])
    assert int(memory) < 500_000, "kB"
    page = tmp_path / "report.html"
    assert page.stat().st_size < 1_000_000
    said = text(page.read_text())
    assert (
        "right answer for 80.80 % of 50,000 images" in said
        and "95 % interval 80.45 to 81.14 %" in said
    )
    assert "Top-5 94.80 %" in said and "9,600 wrong answers in all" in said
    assert page.read_text().count("<tr><td data-value") == 1000


# ---- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if not PROGRAM:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with browser() as opened:
        yield opened


def complaints(page: Page) -> List[Any]:
    """What the browser found wrong, and every request beside the file's own."""
    asked = [event["request"]["url"] for event in page.told("Network.requestWillBeSent")]
    assert asked and asked[0].startswith("file:")
    others = [url for url in asked[1:] if not url.startswith("data:")]
    return others + page.told(
        "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"
    )


@pytest.mark.slow
@pytest.mark.parametrize("dark", (False, True))
@pytest.mark.parametrize("width", (390, 1200))
def test_no_error_no_request_no_sideways_scrolling(
    width: int, dark: bool, page: Page, card: Path, hostile: Path
) -> None:
    for folder in (card, hostile):
        page.open(folder / "report.html", width, 900, dark)
        assert complaints(page) == []
        assert page.value("document.documentElement.scrollWidth") <= width
        assert page.value(
            "document.images.length && [...document.images].every(image => image.naturalWidth)"
        )


@pytest.mark.slow
def test_a_large_speed_stays_inside_its_card(page: Page, copy: Path) -> None:
    """Five digits and their unit are wider than a card where six are beside each other."""
    perf = json.loads((copy / "perf.json").read_text())
    rows = [dict(row, throughput=20 * row["throughput"]) for row in perf["rows"]]
    (copy / "perf.json").write_text(json.dumps(dict(perf, rows=rows, best=rows[3])))
    make(copy)
    for width in (390, 1280):
        page.open(copy / "report.html", width)
        values = "[...document.querySelectorAll('.cards .value')]"
        assert page.value(f"{values}.some(value => value.textContent.includes('65,240'))")
        assert page.value(f"{values}.every(value => value.scrollWidth <= value.clientWidth)")


@pytest.mark.slow
def test_text_has_contrast_in_light_and_dark(page: Page, card: Path) -> None:
    """WCAG's contrast of text against its background: 4.5 at least."""
    script = """(() => { const light = colour => {
        const [r, g, b] = colour.match(/[0-9.]+/g).map(value => { const part = value / 255;
            return part <= .03928 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4; });
        return .2126 * r + .7152 * g + .0722 * b; };
        const back = node => { for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!colour.endsWith(", 0)")) return light(colour); } return 1; };
        if (!document.querySelector(".matrix .count")) return 0;
        return Math.min(...[...document.querySelectorAll(
            "h1,h2,p,dd,dt,td,th,li,figcaption,.state,a,svg text")].map(node => {
            const ink = light(getComputedStyle(node)[node.closest("svg") ? "fill" : "color"]);
            let paper = back(node);
            if (node.classList.contains("count")) {  // on a cell of the confusion matrix
                const cell = getComputedStyle(node.previousElementSibling);
                const channels = colour => colour.match(/[0-9.]+/g).map(Number);
                const below = channels(getComputedStyle(node.closest("section")).backgroundColor);
                const part = Number(cell.fillOpacity);
                paper = light("rgb(" + channels(cell.fill).map((value, place) =>
                    part * value + (1 - part) * below[place]).join(",") + ")"); }
            return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05); })); })()"""
    for dark in (False, True):
        page.open(card / "report.html", dark=dark)
        assert page.value(script) > 4.5


@pytest.mark.slow
def test_a_click_sorts_the_classes_and_a_word_finds_one(page: Page, card: Path) -> None:
    page.open(card / "report.html")
    column = (
        "[...document.querySelectorAll('#classes tbody tr')].filter(row => !row.hidden)"
        ".map(row => row.cells[{}].textContent)"
    )
    names = page.value(column.format(0))
    worst = [float(value.split()[0]) for value in page.value(column.format(2))]
    assert worst == sorted(worst) and len(names) == 20
    heads = "document.querySelectorAll('#classes th button')"
    page.value(f"{heads}[0].click()")
    assert page.value(column.format(0)) == [f"thing {place} ({place})" for place in range(20)], (
        "natural order"
    )
    page.value(f"{heads}[2].click()")
    page.value(f"{heads}[2].click()")
    assert [float(value.split()[0]) for value in page.value(column.format(2))] == worst[::-1]
    assert (
        page.value("document.querySelectorAll('#classes th')[2].getAttribute('aria-sort')")
        == "descending"
    )
    page.value("filter.value = 'THING 1'; filter.dispatchEvent(new Event('input'))")
    assert len(page.value(column.format(0))) == 11


@pytest.mark.slow
def test_on_paper_all_is_black_on_white_and_short(page: Page, card: Path) -> None:
    page.open(card / "report.html", dark=True, media="print")
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.value("getComputedStyle(document.querySelector('nav')).display") == "none"


@pytest.mark.slow
def test_every_picture_has_words(page: Page, card: Path) -> None:
    page.open(card / "report.html")
    assert page.value("[...document.querySelectorAll('img')].every(image => image.alt)")
    assert (
        page.value(
            "[...document.querySelectorAll('svg.plot')]"
            ".map(plot => plot.getAttribute('aria-label')).filter(Boolean).length"
        )
        == 6
    )
    assert cli.VERSION in page.value("document.querySelector('footer').textContent")
