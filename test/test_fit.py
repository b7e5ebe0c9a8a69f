"""Results that do not fit the model, and figures that are in doubt, are named."""

import json
from pathlib import Path
from typing import Any, Dict, List

from common.core import record
from common.data import evaluation

import numpy as np
import pytest
from pictures import fill, prepare
from records import change_rows
from test_postprocess import (
    accuracy,
    call,
    main,
    postprocess_refusal,
    report,
    scores,
    txt,
    write,
)


def write_model(folder: Path, classes: int, **notes: Any) -> Path:
    """A file in place of a model, with a record that says how many classes it has."""
    model = folder / "tresnet.onnx"
    recipe = record.Recipe({"tool": "TResNet_pth2onnx.py"})
    record.write(str(model), recipe, {str(model): b"model"}, num_classes=str(classes), **notes)
    return model


def write_summary(folder: Path, model: Path, option: str = "--model") -> None:
    """The summary of the results, as ais_bench writes it."""
    words = [option, str(model)] if not option.endswith("=") else [option + str(model)]
    about = {"args": ["ais_bench", *words, "--outfmt", "BIN"], "filesinfo": {}}
    (folder / "result_summary.json").write_text(json.dumps(about))


def write_bins(folder: Path, rows: List[List[float]], dtype: str) -> None:
    (folder / "result").mkdir()
    for number, row in enumerate(rows):
        (folder / "result" / f"i{number}_0.bin").write_bytes(np.array(row, dtype).tobytes())
    lines = [f"i{number} {number % 12}\n" for number in range(len(rows))]
    (folder / "labels.txt").write_text("".join(lines))


# ---- the number of classes -----------------------------------------------------------------------


@pytest.mark.parametrize("named", ["--model", "-m", "--model="])
def test_results_longer_than_the_models_classes_are_refused(named: str, tmp_path: Path) -> None:
    write_bins(tmp_path, [scores(48, number) for number in range(4)], "<f4")
    write_summary(tmp_path, write_model(tmp_path, 12), named)
    assert postprocess_refusal(tmp_path) == (
        f"{tmp_path}/result/i0_0.bin holds 48 values, but {tmp_path}/tresnet.onnx has 12 classes; "
        "one image a file was expected: run the inference again, or name the --model that these "
        "results are of"
    )


def test_without_a_summary_the_model_can_be_named(tmp_path: Path) -> None:
    write_bins(tmp_path, [scores(48, number) for number in range(4)], "<f4")
    model = write_model(tmp_path, 12)
    assert "holds 48 values" in postprocess_refusal(tmp_path, "--model", model)
    assert call(tmp_path)[0] == 0, "nothing says how many classes there are"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_compiled_model_without_a_record_has_the_classes_of_its_onnx_file(
    is_there: bool, tmp_path: Path
) -> None:
    write_bins(tmp_path, [scores(48, number) for number in range(4)], "<f4")
    write_model(tmp_path, 12)
    if is_there:
        (tmp_path / "tresnet_bs4.om").write_bytes(b"om")
    write_summary(tmp_path, Path("elsewhere/tresnet_bs4.om"))
    assert "tresnet_bs4.om has 12 classes" in postprocess_refusal(tmp_path)


def test_results_of_float16_are_read_as_the_models_classes_say(tmp_path: Path) -> None:
    rows = [scores(12, number % 12) for number in range(24)]
    rows[5] = scores(12, 0, 5)  # wrong, but in the first two
    write_bins(tmp_path, rows, "<f2")
    write_summary(tmp_path, write_model(tmp_path, 12))
    assert call(tmp_path)[0] == 0
    assert accuracy(tmp_path)["Number of classes"] == "12"
    assert report(tmp_path)["hits"] == [23, 24, 24, 24, 24]


# ---- all the same --------------------------------------------------------------------------------


def test_results_that_are_all_the_same_are_named(tmp_path: Path) -> None:
    write(tmp_path / "result", {f"i{number}": scores(5, 2) for number in range(250)})
    lines = [f"i{number} {number % 5}\n" for number in range(250)]
    (tmp_path / "labels.txt").write_text("".join(lines))
    assert "all 250 results are the same: the network's answer does not" in call(tmp_path)[1]
    assert report(tmp_path)["all_equal"] is True
    write(tmp_path / "result", {"i249": scores(5, 3)})
    assert "are the same" not in call(tmp_path)[1] and report(tmp_path)["all_equal"] is False


# ---- two orders of class folders -----------------------------------------------------------------


def folders_and_results(tmp_path: Path, trained: List[str]) -> Path:
    """Twelve class folders c1 … c12 with two images each; the network knows them as `trained`."""
    names = [f"c{number}/x{number}_{copy}.png" for number in range(1, 13) for copy in "ab"]
    source, prep = fill(tmp_path / "val", names), tmp_path / "prep"
    prepare(source, prep, "--img-size", 32)
    results: Dict[str, Any] = {}
    for line in (prep / "val_label.txt").read_text().splitlines():
        folder = "c" + line[1:].partition("_")[0]
        results[line.split()[0]] = scores(12, trained.index(folder))
    write(tmp_path / "result", results)
    return prep


def test_both_orders_of_the_class_folders_are_tried_on_the_results(tmp_path: Path) -> None:
    trained = sorted(f"c{number}" for number in range(1, 13))  # by letters, as torchvision does
    natural = [f"c{number}" for number in range(1, 13)]
    right = sum(trained.index(name) == natural.index(name) for name in natural)
    assert right == 1, "only c1 has the same number in both orders"
    prep = folders_and_results(tmp_path, trained)
    words = (tmp_path / "result", prep / "val_label.txt", tmp_path, "acc.json", "--prep", prep)
    main(*words)
    assert report(tmp_path)["class_orders"] == {"natural": 2, "text": 24}
    assert report(tmp_path)["notes"][0] == (
        "Top-1 is 8.33% with the class folders in natural order, as timm numbers them, and 100.0% "
        "in text order, as torchvision does (--class-order text)"
    )
    prepare(tmp_path / "val", prep, "--img-size", 32, "--class-order", "text")
    main(*words)
    assert accuracy(tmp_path)["Top1 accuracy"] == "100.0%"
    assert report(tmp_path)["class_orders"] == {"natural": 2, "text": 24}
    assert "in natural order, as timm does (--class-order natural)" in report(tmp_path)["notes"][0]


# ---- the older tool ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["txt", "bin"])
def test_results_of_the_older_benchmark_tool_are_read(suffix: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "result", {"a": scores(5, 3), "b": scores(5, 2, 4)}, suffix)
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.replace("_0.", "_1."))
    (tmp_path / "labels.txt").write_text("a.JPEG 3\nb.JPEG 4\n")
    assert call(tmp_path)[0] == 0
    assert report(tmp_path)["hits"] == [1, 2, 2, 2, 2]
    write(folder, {"c": scores(5, 0)}, suffix)
    assert "holds several outputs per image" in str(call(tmp_path)[0])


def test_of_the_older_tool_a_line_is_whole_without_its_end_if_it_has_all_values(
    tmp_path: Path,
) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "a_1.txt").write_bytes(txt(scores(5, 3)).rstrip(b"\n"))
    (tmp_path / "labels.txt").write_text("a.JPEG 3\n")
    assert "a_1.txt is half a file" in postprocess_refusal(tmp_path)
    assert call(tmp_path, "--model", write_model(tmp_path, 5))[0] == 0
    assert report(tmp_path)["hits"][0] == 1
    (tmp_path / "result" / "a_1.txt").write_bytes(txt(scores(4, 3)).rstrip(b"\n"))
    assert "is half a file" in str(call(tmp_path, "--model", tmp_path / "tresnet.onnx")[0])


def test_a_model_that_is_not_there_is_refused_and_not_ignored(tmp_path: Path) -> None:
    write_bins(tmp_path, [scores(12, 0)], "<f4")
    said = postprocess_refusal(tmp_path, "--model", tmp_path / "gone.onnx")
    assert (
        said == f"the model {tmp_path}/gone.onnx is not a file; name the .onnx or .om that was run"
    )


def test_a_folder_that_was_prepared_for_a_model_knows_its_classes(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.png", "b.png"])
    notes = evaluation.of_fields({"img_size": 32}).notes()
    model, prep = write_model(tmp_path, 12, **notes), tmp_path / "prep"
    prepare(tmp_path / "src", prep, "--model", model)
    model.unlink()
    write(tmp_path / "result", {"a": scores(24, 0), "b": scores(24, 1)}, "bin")
    (tmp_path / "labels.txt").write_text("a 0\nb 1\n")
    assert "holds 24 values, but the model of" in postprocess_refusal(tmp_path, "--prep", prep)
    for name, label in (("a", 0), ("b", 1)):
        half = np.array(scores(12, label), "<f2").tobytes()
        (tmp_path / "result" / f"{name}_0.bin").write_bytes(half)
    assert call(tmp_path, "--prep", prep)[0] == 0
    assert report(tmp_path)["hits"][0] == 2


def test_what_is_made_from_a_model_knows_its_classes_and_evaluation(tmp_path: Path) -> None:
    notes = evaluation.of_fields({"img_size": 64}).notes()
    model = write_model(tmp_path, 12, **notes)
    assert evaluation.notes_of(str(model)) == {**notes, "num_classes": "12"}
    assert evaluation.notes_of(str(tmp_path / "another.onnx")) == {}


@pytest.mark.parametrize("about", [{}, {"class_order": "backwards"}, {"class_order": ["text"]}])
def test_a_folder_of_an_earlier_version_was_numbered_in_natural_order(
    about: Dict[str, Any], tmp_path: Path
) -> None:
    prep = folders_and_results(tmp_path, [f"c{number}" for number in range(1, 13)])

    def change(rows: List[Any]) -> None:
        del rows[0]["about"]["class_order"]
        rows[0]["about"].update(about)

    change_rows(prep / "manifest.jsonl", change)
    main(tmp_path / "result", prep / "val_label.txt", tmp_path, "acc.json", "--prep", prep)
    assert report(tmp_path)["class_order"] == "natural"
    assert report(tmp_path)["class_orders"] == {"natural": 24, "text": 2}
