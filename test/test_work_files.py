"""The JSON files of a work folder, damaged: each reader works or says one sentence.

A work folder may be somebody else's, cut short by a full disk, or edited by hand.
"""

import argparse
import copy
import json
import math
import os
import random
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple
from unittest import mock

from common.core import json_file
from common.core.cli import Refusal
from common.results import published, summary, work_files

import compare_results
import expect
import forecast_speed
import made_up
import merge_reports
import perf_sweep
import predict
import pytest
import report
from conftest import Shared, run_here

import TResNet_postprocess as post

EACH = int(
    os.environ.get("TEST_DAMAGES", 3)
)  # other values in each place; all 24 take some minutes
REMOVED = object()
VALUES: List[Any] = [
    REMOVED,
    None,
    True,
    -1,
    0,
    3,
    0.5,
    -1e308,
    10**400,
    math.nan,
    math.inf,
    "",
    "text",
    "\0",
    "\ud800",
    "../" * 9,
    "x" * 70_000,
    [],
    {},
    [None],
    [[]],
    ["text"],
    [3, 1],
    {"text": {}},
]
CONTENTS: List[bytes] = [
    b"",
    b"\xff\xfe\x00",
    b'{"hits": [1,',
    b"null",
    b"[]",
    b"{}",
    b"[" * 100_000,
    b"9" * 9_999,
]
OPERATOR = {
    "name": "Conv_0",
    "type": "Conv",
    "largest": 9.5,
    "headroom": 65494.5,
    "cosine": 1.0,
    "loss": 0.0,
}
SPEED_ROW = {
    "batch_size": 8,
    "images_per_s": 2803.0,
    "low_80": 1947.0,
    "high_80": 4037.0,
    "ms_per_batch": 2.85,
    "shares": {"compute": 0.5, "memory": 0.25, "overhead": 0.125, "input": 0.125},
}
SPEED = {
    "chip": "310P3",
    "model": "tresnet.onnx",
    "size": [224, 224],
    "limits": ["from published figures", "a forecast"],
    "best_batch_size": 8,
    "rows": [SPEED_ROW],
    "kernels": [{"name": "Conv_0", "operators": ["Conv", "Relu"], "us": 28.5, "mostly": "compute"}],
}
EXPECTED = {"slow": True, "verdict": "slower than others", "look_at": ["the clock"]}


# ---- a finished work folder, and who reads what in it --------------------------------------------


def fill(work: Path) -> None:
    """What runs on the card, in int8, with a forecast and a tuning leave behind, for 12 images."""
    _, logits = made_up.make_run(work, 12, 6, 9, 11, names=[f"thing {place}" for place in range(6)])
    made_up.on_card(work, logits, 8)
    compared = json.loads((work / "compare.json").read_text())
    row = made_up.CARD_ROWS[0]
    about = json.loads((work / "acc_report.json").read_text())
    run = json.loads((work / "run.json").read_text())
    perf = json.loads((work / "perf.json").read_text())
    together = {"batch_size": 1, "throughput": 2000.0, "alone": 2262.4, "loss": 0.1, "overlap": 0.9}
    files: Dict[str, Dict[str, Any]] = {
        "acc_report": dict(about, shard=[1, 1]),
        "acc_float32": json.loads((work / "acc.json").read_text()),
        "perf": dict(
            perf, devices={"0": [row], "1": [row]}, together=[together], expected=EXPECTED
        ),
        "run": dict(run, made=[*run["made"], "acc_float32", "expect", "forecast", "speed"]),
        "forecast": dict(
            compared, operators=[OPERATOR], overflow=["Conv_0"], worst=["Conv_0"], top1=50.0
        ),
        "tune": {"rows": [], "options": ["--stem", "conv4"]},
        "speed": SPEED,
        "tresnet_int8": {
            "put_back": [{"name": "Conv_0", "cost": 0.1}],
            "held": True,
            "drop": 0.5,
            "max_drop": 1.0,
            "interval": [0.1, 0.9],
        },
        "result_summary": {"throughput": 100.0},
    }
    for name, content in files.items():
        (work / f"{name}.json").write_text(json.dumps(content))
    hold_against_published(work)


@pytest.fixture(scope="module")
def finished(shared: Shared) -> Path:
    return shared("all work files", fill)


def join(work: Path) -> None:
    """What merge_reports.py does with the report of a shard, and that what it makes can be read."""
    reports = [merge_reports.read_report(str(work))]
    merge_reports.check_complete([str(work)], reports)
    merged = merge_reports.merge([str(work)], reports)
    (work / "merged.json").write_text(json.dumps(merged))
    work_files.REPORT.read(str(work / "merged.json"))


def class_names_of(work: Path) -> None:
    arguments = argparse.Namespace(class_names=None, model=str(work / "tresnet.onnx"))
    predict.names_of(arguments, 6)


def judge(work: Path) -> None:
    """What compare_results.py says of a forecast."""
    compared = compare_results.compare(str(work / "result_onnx"), str(work / "result"))
    compare_results.verdict(compared, str(work / "forecast.json"))


def tell_speed(work: Path) -> None:
    """What the summary says of int8, where both models are in one folder."""
    model = str(work / "tresnet_int8.onnx")
    summary.against_float32(str(work / "result"), str(work / "result"), "cpu", model)
    summary.agreement(str(work), "cpu")
    summary.put_back(model)


def tell_accuracy(work: Path) -> None:
    summary.accuracy(str(work), "acc.json")
    perf_sweep.short_accuracy(perf_sweep.read_accuracy(str(work / "acc.json")))


def tuned(work: Path) -> None:
    print(" ".join(work_files.TUNE.read_in(str(work))["options"]))


def forecast_of_speed(work: Path) -> None:
    """What forecast_speed.py says of a forecast that is up to date."""
    words = forecast_speed.describe(work_files.SPEED.read_in(str(work)))
    assert words.replace("\n", "").isprintable()


def tell_forecast(work: Path) -> None:
    """What the summary says of the speed that is expected on a card."""
    summary.speed_lines(str(work), {"speed", "perf"})


def make_page(work: Path) -> None:
    run_here(report.main, work, "--force")


def hold_against_published(work: Path) -> None:
    with mock.patch.object(published, "CLASSES", 6):  # those of the made-up run
        run_here(expect.main, work, "tresnet_m.miil_in1k")


READERS: Dict[str, Tuple[Callable[[Path], None], ...]] = {
    "acc.json": (make_page, tell_accuracy),
    "acc_float32.json": (make_page,),
    "acc_report.json": (make_page, hold_against_published, join, class_names_of),
    "perf.json": (make_page, tell_forecast),
    "run.json": (make_page,),
    "compare.json": (make_page, tell_speed),
    "expect.json": (make_page,),
    "forecast.json": (make_page, judge),
    "tune.json": (tuned,),
    "speed.json": (forecast_of_speed, make_page, tell_forecast),
    "tresnet_int8.json": (tell_speed,),
    "result_summary.json": (tell_speed,),
}


@pytest.fixture
def work(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder. Plots take half a second: they are drawn where a test asks for it."""
    monkeypatch.setattr(report, "draw", lambda parts, found, say: {})
    shutil.copytree(str(finished), str(tmp_path / "work"))
    return tmp_path / "work"


def outcome(reader: Callable[[Path], None], work: Path) -> str:
    """ "" if the reader works, otherwise its sentence. Any other exception is a defect of the
    program.
    """
    try:
        reader(work)
    except Refusal as refusal:
        assert refusal.status == 1 and refusal.sentence and "\n" not in refusal.sentence
        return refusal.sentence
    return ""


# ---- damages -------------------------------------------------------------------------------------


def places(content: Any) -> Iterator[Tuple[Any, ...]]:
    """The paths of all values in a JSON content; of a list its first entry stands for all."""
    pairs: List[Tuple[Any, Any]] = []
    if isinstance(content, dict):
        pairs = list(content.items())
    elif isinstance(content, list):
        pairs = list(enumerate(content[:1]))
    for key, value in pairs:
        yield (key,)
        for rest in places(value):
            yield (key, *rest)


def changed(content: Any, place: Tuple[Any, ...], value: Any) -> Any:
    """A copy with another value in that place."""
    content = copy.deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


@pytest.mark.parametrize("name", READERS)
def test_a_sound_file_is_read(name: str, work: Path) -> None:
    assert [outcome(reader, work) for reader in READERS[name]] == [""] * len(READERS[name])


@pytest.mark.parametrize("multi_label", (False, True))
@pytest.mark.parametrize("prepared", (None, "prep_dataset"))
def test_each_kind_of_accuracy_report_is_read(prepared: Any, multi_label: bool, work: Path) -> None:
    """Without --prep nobody knows how many images there were; with --multi-label there are no
    hits.
    """
    made = post.evaluate(
        str(work / "result"),
        str(work / "val_label.txt"),
        prepared and str(work / prepared),
        multi_label=multi_label,
    )
    (work / "acc_report.json").write_text(json.dumps(made))
    (work / "compare.json").unlink()
    assert outcome(make_page, work) == ""


@pytest.mark.parametrize("name", READERS)
def test_any_other_value_in_any_place_is_no_defect(name: str, work: Path) -> None:
    path, generator = work / name, random.Random(name)
    content = json.loads(path.read_text())
    refused = 0
    damages: List[Tuple[Any, Any]] = []
    for place in places(content):
        damages += [(place, value) for value in generator.sample(VALUES, EACH)]
    for place, value in damages:
        for reader in READERS[name]:
            path.write_text(json.dumps(changed(content, place, value)))
            try:
                refused += "is damaged (" in outcome(reader, work)
            except Exception as error:
                damage = f"{place} is {str(value)[:50]!r} in {name}"
                raise AssertionError(f"{reader.__name__}: {damage}") from error
    assert refused


@pytest.mark.parametrize(
    "name, change, reason",
    (
        ("acc_report", {"evaluated": ["a"]}, "it counts 12 evaluated images, but lists 1"),
        ("acc_report", {"class_names": ["a"]}, "it names 1 of 6 classes"),
        ("acc_report", {"hits": [3, 2]}, "its hits cannot be those of 12 images"),
        ("acc_report", {"hits": [3, 13]}, "its hits cannot be those of 12 images"),
        ("acc_report", {"true": [6] * 12}, "its right classes cannot be those of 12 images"),
        ("acc_report", {"true": [0]}, "its right classes cannot be those of 12 images"),
        ("acc_report", {"prep": None}, "it is of a shard, but does not say what was prepared"),
        ("compare", {"names": ["a"]}, "its cosines are 8, its names are 1"),
        ("speed", {"best_batch_size": 4}, "it lacks the row of its best batch size, 4"),
    ),
)
def test_values_that_contradict_each_other_are_a_damage(
    name: str, change: Dict[str, Any], reason: str, work: Path
) -> None:
    path = work / f"{name}.json"
    path.write_text(json.dumps(dict(json.loads(path.read_text()), **change)))
    (reader, *_) = READERS[path.name]
    assert f"{name}.json is damaged ({reason}); run " in outcome(reader, work)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_not_json_or_not_a_file_is_refused(name: str, work: Path) -> None:
    path = work / name
    for content in CONTENTS:
        path.write_bytes(content)
        for reader in READERS[name]:
            found = outcome(reader, work)
            is_told = f"{name} is damaged (" in found and " again" in found
            assert is_told or reader in (class_names_of, tell_accuracy)
    path.unlink()
    os.mkfifo(str(path))
    for reader in READERS[name]:
        assert f"{name} is not a regular file" in outcome(reader, work) or reader is class_names_of


def test_a_damage_that_is_not_seen_can_be_drawn(finished: Path, tmp_path: Path) -> None:
    """The plots themselves, for the figures that may be anything."""
    shutil.copytree(str(finished), str(tmp_path / "work"))
    work = tmp_path / "work"
    extremes = (
        ("perf.json", ("rows", 0, "throughput"), -1e40),
        ("perf.json", ("rows", 0, "latency_p99"), 1e40),
        ("compare.json", ("cosines", 0), -1e40),
        ("forecast.json", ("cosines", 0), 1e40),
    )
    for name, place, value in extremes:
        path = work / name
        path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    assert outcome(make_page, work) == ""


# ---- how shapes are said -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, shape, reason",
    (
        (
            {"a": [1, 2.5]},
            {"a": [json_file.COUNT]},
            "entry 2 of a is 2.5, a whole number from 0 to 1,000,000,000 was expected",
        ),
        ({"a": math.nan}, {"a": json_file.FIGURE}, "a is NaN, a number was expected"),
        ({"a": True}, {"a": json_file.COUNT}, "a is true, a whole number"),
        ({"a": {"b": 1}}, {"a": {"b": str}}, "a.b is 1, a text was expected"),
        ({"a": {}}, {"a": {"b": str}}, "a lacks 'b'"),
        ({"a": "x"}, {"a": (json_file.FIGURE, None)}, 'a is "x", a number was expected (or null)'),
        ([], [str, ...], "it is empty"),
        ([1], [bool, bool], "it has 1 entries, 2 were expected"),
        ({"a": {"b": "x"}}, {"a": {str: json_file.COUNT}}, 'a.b is "x"'),
        (
            [["x"], ["\0"]],
            [[str]],
            'entry 1 of entry 2 is "\\u0000", a text that messages and paths can hold was expected',
        ),
    ),
)
def test_what_is_wrong_is_named_with_its_place(content: Any, shape: Any, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        json_file.require(content, shape)
    assert str(error.value).startswith(reason)


@pytest.mark.parametrize(
    "content, shape",
    (
        ({"a": 1, "more": {}}, {"a": json_file.COUNT, "b?": str}),
        ([], [str]),
        ([[1, 2], []], [[json_file.COUNT]]),
        ({"a": None}, {"a": ([str], None)}),
        ([1, 2.5], [json_file.FIGURE]),
        ({"x": 1.5}, {str: json_file.FIGURE}),
    ),
)
def test_what_is_as_expected_passes(content: Any, shape: Any) -> None:
    json_file.require(content, shape)
