"""predictions.csv and classes.csv: each image and each class has a row, its figures are right, and
no name in them is a formula.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any, Dict, List, Sequence

from common.core.cli import Refusal
from common.results import figures, tables

import numpy as np
import pytest
from test_postprocess import main, write

CLASSES, IMAGES = 7, 60


def rows(path: Path) -> List[Dict[str, str]]:
    with open(str(path), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def softmax(values: Sequence[float]) -> List[float]:
    """By the definition."""
    powers = [math.exp(value) for value in values]
    return [power / math.fsum(powers) for power in powers]


def order(values: Sequence[float]) -> List[int]:
    """The classes by falling score, equal ones by rising number."""
    return sorted(range(len(values)), key=lambda label: (-values[label], label))


class Run:
    """60 images of 7 classes with known scores and right classes."""

    def __init__(self, folder: Path, suffix: str = "npy") -> None:
        random = np.random.RandomState(4)
        self.folder = folder
        logits = np.round(random.normal(0, 2, (IMAGES, CLASSES)), 1).astype(np.float32)
        self.true = random.randint(0, CLASSES - 1, IMAGES)  # the last class has no image
        logits[np.arange(IMAGES), self.true] += np.float32(1.5)
        self.stems = [f"i{number:02d}" for number in range(IMAGES)]
        self.scores = dict(zip(self.stems, logits.astype(float).tolist()))
        write(folder / "result", self.scores, suffix)
        lines = [f"{stem} {label}\n" for stem, label in zip(self.stems, self.true)]
        (folder / "labels.txt").write_text("".join(lines))
        (folder / "names.txt").write_text("".join(f"thing {n}\n" for n in range(CLASSES)))

    def evaluate(self, *more: object) -> None:
        words = [self.folder / "result", self.folder / "labels.txt", self.folder, "acc.json"]
        main(*words, "--class-names", self.folder / "names.txt", *more)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


# ---- the figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ("npy", "txt", "crlf.txt"))
def test_each_image_has_a_row_with_its_five_best_answers(tmp_path: Path, suffix: str) -> None:
    """By compiled C, and by Python, which alone reads the last format."""
    run = Run(tmp_path, suffix)
    run.evaluate()
    found = rows(tmp_path / "predictions.csv")
    assert [row["stem"] for row in found] == [row["image"] for row in found] == run.stems
    for row, label in zip(found, run.true.tolist()):
        scores = run.scores[row["stem"]]
        best, probability = order(scores), softmax(scores)
        assert row["right_class"] == str(label) and row["right_name"] == f"thing {label}"
        assert row["predicted_class"] == str(best[0])
        assert row["predicted_name"] == f"thing {best[0]}"
        assert float(row["probability"]) == pytest.approx(probability[best[0]], abs=1e-6)
        assert row["rank"] == str(best.index(label) + 1)
        for place in (2, 3, 4, 5):
            assert row[f"class_{place}"] == str(best[place - 1])
            expected = pytest.approx(probability[best[place - 1]], abs=1e-6)
            assert float(row[f"probability_{place}"]) == expected
    hits = json.loads((tmp_path / "acc_report.json").read_text())["hits"]
    counted = [sum(int(row["rank"]) <= k for row in found) for k in range(1, 6)]
    assert counted == hits and 0 < hits[0] < IMAGES


@pytest.mark.slow
def test_precision_recall_and_f1_of_classes_are_scikit_learns(run: Run) -> None:
    from sklearn.metrics import classification_report

    run.evaluate()
    answers = [order(run.scores[stem])[0] for stem in run.stems]
    expected: Any = classification_report(
        run.true, answers, labels=range(CLASSES), output_dict=True, zero_division=0
    )
    found = rows(run.folder / "classes.csv")
    assert [row["class"] for row in found] == list(map(str, range(CLASSES)))
    for row in found:
        of_class = expected[row["class"]]
        assert row["name"] == f"thing {row['class']}"
        assert int(row["images"]) == of_class["support"]
        assert int(row["answers"]) == answers.count(int(row["class"]))
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert float(row[ours] or 0) == pytest.approx(of_class[theirs], abs=1e-6)
    without_images = found[-1]
    assert without_images["images"] == "0" and without_images["recall"] == ""
    assert without_images["precision"] == "0.000000" and without_images["taken_for_class"] == ""
    wrong = [answer for answer, label in zip(answers, run.true) if label == 0 and answer != label]
    assert int(found[0]["taken_for_images"]) == wrong.count(int(found[0]["taken_for_class"]))
    assert int(found[0]["taken_for_images"]) == max(map(wrong.count, wrong))


def test_few_classes_have_few_answers(tmp_path: Path) -> None:
    write(tmp_path / "result", {"a": [0.0, 1.0, 0.5], "b": [2.0, 1.0, 1.0]}, "npy")
    (tmp_path / "labels.txt").write_text("a 2\nb 0\n")
    main(tmp_path / "result", tmp_path / "labels.txt", tmp_path, "acc.json")
    assert (tmp_path / "predictions.csv").read_text() == (
        "image,right_class,right_name,predicted_class,predicted_name,probability,rank,"
        "class_2,probability_2,class_3,probability_3,stem\n"
        "a,2,,1,,0.506480,2,2,0.307196,0,0.186324,a\n"
        "b,0,,0,,0.576117,1,1,0.211942,2,0.211942,b\n"
    )


# ---- two runs ------------------------------------------------------------------------------------


def test_the_answers_of_another_run_stand_beside_and_changes_are_marked(run: Run) -> None:
    """The other run has only half of the images, and two of its answers differ."""
    other = {stem: list(run.scores[stem]) for stem in run.stems[:30]}
    for stem in ("i03", "i07"):
        second = order(other[stem])[1]
        other[stem][second] += 9
    write(run.folder / "other", other, "npy")
    run.evaluate("--beside", run.folder / "other")
    found = {row["stem"]: row for row in rows(run.folder / "predictions.csv")}
    assert [stem for stem, row in found.items() if row["changed"] == "yes"] == ["i03", "i07"]
    assert sum(row["changed"] == "no" for row in found.values()) == 28
    for stem in run.stems[30:]:
        assert {found[stem][column] for column in tables.OTHER_COLUMNS} == {""}
    row, best = found["i07"], order(other["i07"])
    assert row["predicted_class"] != row["other_class"] == str(best[0])
    assert row["other_name"] == f"thing {best[0]}"
    assert row["other_rank"] == str(best.index(int(row["right_class"])) + 1)
    assert float(row["other_probability"]) == pytest.approx(
        softmax(other["i07"])[best[0]], abs=1e-6
    )


def test_results_of_other_images_or_classes_are_refused(run: Run) -> None:
    write(run.folder / "other", {"x": [1.0] * CLASSES}, "npy")
    with pytest.raises(Refusal, match="has none of the 60 images, only others such as x"):
        run.evaluate("--beside", run.folder / "other")
    write(run.folder / "other", {"i00": [1.0, 2.0]}, "npy")
    with pytest.raises(Refusal, match="has results of 2 classes, not of 7"):
        run.evaluate("--beside", run.folder / "other")
    assert not (run.folder / "predictions.csv").exists() and not list(run.folder.glob("acc*"))


# ---- names ---------------------------------------------------------------------------------------


def figures_of_two() -> figures.Predictions:
    """Two images of two classes, both answered rightly."""
    return figures.summarise(np.array([[1, 0], [0, 1]], np.float32), [[0], [1]])


@pytest.mark.parametrize(
    "name, cell",
    (
        ("cat/1.jpg", "cat/1.jpg"),
        ("=1+1.jpg", "'=1+1.jpg"),
        ("+1.jpg", "'+1.jpg"),
        ("-1.jpg", "'-1.jpg"),
        ("@SUM(A1).jpg", "'@SUM(A1).jpg"),
        ("  =1.jpg", "'  =1.jpg"),
        ("＝1.jpg", "'＝1.jpg"),
        ("a;=1.jpg", "a;'=1.jpg"),
        ("a=1;b-2.jpg", "a=1;b-2.jpg"),
        ("\t=1.jpg", "\\t=1.jpg"),
        ("a\r\n=1.jpg", "a\\r\\n=1.jpg"),
        ('say "hi", now.jpg', 'say "hi", now.jpg'),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\udcff.jpg", "\\udcff.jpg"),
        ("北京 烤鸭.jpg", "北京 烤鸭.jpg"),
    ),
)
def test_a_name_is_text_in_a_spreadsheet_and_stays_on_one_line(
    tmp_path: Path, name: str, cell: str
) -> None:
    images = tables.Images(["a", "b"], [name, "b.jpg"], figures_of_two())
    content = tables.predictions_csv(images, 2, [name.replace("\udcff", "x"), "b"])
    (tmp_path / "predictions.csv").write_bytes(content)
    assert content.count(b"\n") == 3 and b"\r" not in content
    found = rows(tmp_path / "predictions.csv")
    assert found[0]["image"] == cell
    assert found[0]["predicted_name"] == cell.replace("\\udcff", "x")


# ---- whose the files are -------------------------------------------------------------------------


def test_a_table_of_somebody_else_is_refused_before_anything_is_written(run: Run) -> None:
    (run.folder / "classes.csv").write_text("mine\n")
    with pytest.raises(Refusal, match=r"classes\.csv: no record says that this program made it"):
        run.evaluate()
    assert (run.folder / "classes.csv").read_text() == "mine\n"
    assert not (run.folder / "predictions.csv").exists() and not list(run.folder.glob("acc*"))


def test_a_table_that_was_edited_is_kept_aside(run: Run) -> None:
    run.evaluate()
    made = (run.folder / "predictions.csv").read_bytes()
    (run.folder / "predictions.csv").write_text("my remarks\n")
    run.evaluate()
    assert (run.folder / "predictions.csv").read_bytes() == made
    aside = run.folder / "predictions.csv.aside" / "predictions.csv"
    assert aside.read_text() == "my remarks\n"


def test_labels_with_several_classes_leave_no_table_of_an_earlier_run(run: Run) -> None:
    run.evaluate()
    assert (run.folder / "predictions.csv").exists()
    run.evaluate("--multi-label")
    assert not list(run.folder.glob("*.csv"))


def test_another_accuracy_file_has_tables_of_its_own(run: Run) -> None:
    main(run.folder / "result", run.folder / "labels.txt", run.folder, "acc_float32.json")
    assert sorted(path.name for path in run.folder.glob("*.csv")) == [
        "acc_float32_classes.csv",
        "acc_float32_predictions.csv",
    ]
