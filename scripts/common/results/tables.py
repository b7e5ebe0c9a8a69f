"""The CSV files of an evaluation: a row for each image, and a row for each class.

They are UTF-8 with a comma between cells, a line for each row, and a heading first. Names come
from image files and class folders of any origin, so text_cell() makes them safe.
"""

import csv
import io
import os
import re
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from common.core import files, recipe, record
from common.results import figures
from common.results.work_files import CLASSES, PREDICTIONS

import numpy as np

# What begins a cell that a spreadsheet computes, in either width. In some countries a ; begins a
# cell as well.
FORMULA = re.compile(r"(^|;)(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
# Control characters, separators of lines, marks that turn the direction of text, and what is not
# a character at all: they are written as Python writes them.
UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff"
    "\ud800-\udfff]"
)
IMAGE_COLUMNS = ("image", "right_class", "right_name", "predicted_class", "predicted_name")
OTHER_COLUMNS = ("other_class", "other_name", "other_probability", "other_rank", "changed")
CLASS_COLUMNS = (
    "class",
    "name",
    "images",
    "answers",
    "right",
    "top5",
    "precision",
    "recall",
    "f1",
    "taken_for_class",
    "taken_for_name",
    "taken_for_images",
)


class Other(NamedTuple):
    """The answers of another run for some of the images."""

    places: np.ndarray  # int [m]: the places of these images among all
    predictions: figures.Predictions  # of m images


class Images(NamedTuple):
    """The n images that were evaluated, and what the network answered."""

    stems: Sequence[str]  # [n]: the names of their results without _0.txt
    sources: Sequence[str]  # [n]: their paths below the folder of the data set
    predictions: figures.Predictions  # of n images
    other: Optional[Other] = None


def paths(accuracy_path: str) -> Tuple[str, str]:
    """The CSV files that belong to an accuracy file: (of the images, of the classes).

    acc.json has predictions.csv and classes.csv; another X.json has X_predictions.csv and
    X_classes.csv.
    """
    folder, name = os.path.split(accuracy_path)
    stem = name[: -len(".json")] if name.endswith(".json") else name
    prefix = "" if stem == "acc" else stem + "_"
    return os.path.join(folder, prefix + PREDICTIONS), os.path.join(folder, prefix + CLASSES)


def claim(accuracy_path: str) -> None:
    """Raises: Refusal if a file has the name of one of these CSV files and is not ours."""
    product, of_classes = paths(accuracy_path)
    record.read(product).refuse_others(map(os.path.basename, (product, of_classes)))


def write(
    program: str,
    accuracy_path: str,
    report: Dict[str, Any],
    images: Optional[Images],
    made_from: Iterable[Optional[str]],
) -> List[str]:
    """Write the CSV files beside an accuracy file; without `images` remove those of an earlier run.

    Files that would be the same stay as they are.

    program: the file of the program; report: acc_report.json's content; made_from: paths of files
    that the answers depend on; those that do not exist are left out.
    Returns: the paths of what was written. Raises: Refusal for files that are not ours; OSError.
    """
    product, of_classes = paths(accuracy_path)
    classes, names = report["classes"], report["class_names"]
    contents = {}
    if images:
        contents[product] = predictions_csv(images, classes, names)
        contents[of_classes] = classes_csv(images, classes, names)
    elif not files.is_there(record.path_of(product)):
        return []
    settings = [path for path in made_from if path and files.is_file(path)]
    about = {"classes": classes, "label_offset": report["label_offset"]}
    made_by = recipe.make(program, about, ("numpy",), settings=settings)
    before = record.read(product)
    checksums = {os.path.basename(path): files.checksum(data) for path, data in contents.items()}
    as_before = {name: made.checksum for name, made in before.made.items()} == checksums
    if not as_before or not before.is_current(made_by):
        record.write(product, made_by, contents)
    return list(contents)


# ---- cells ---------------------------------------------------------------------------------------


def escape(match: "re.Match[str]") -> str:
    return match.group().encode("unicode_escape").decode("ascii")


def text_cell(text: str) -> str:
    """A text that a spreadsheet does not compute, on one line.

    What begins with =, +, - or @ gets a ' before it; what UNSAFE finds is escaped.
    """
    return FORMULA.sub(r"\1'", UNSAFE.sub(escape, text))


def share_cell(value: Optional[float]) -> str:
    """A share with six decimals; empty without one."""
    return "" if value is None else f"{value:.6f}"


def encode(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file of these rows."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8")


def name_cells(names: Optional[Sequence[str]], classes: int) -> List[str]:
    """The cells with the names of all classes; empty ones if there are no names."""
    return list(map(text_cell, names)) if names else [""] * classes


# ---- a row for each image ------------------------------------------------------------------------


def image_rows(images: Images, names: List[str]) -> Iterator[List[Any]]:
    """Yield the cells about each image, without those of another run."""
    found = images.predictions
    columns = zip(
        images.sources,
        images.stems,
        found.true.tolist(),
        (found.rank + 1).tolist(),
        found.top.tolist(),
        found.probability.tolist(),
    )
    for source, stem, true, rank, top, probabilities in columns:
        cells = [text_cell(source), true, names[true], top[0], names[top[0]]]
        cells += ["%.6f" % probabilities[0], rank]
        for label, probability in zip(top[1:], probabilities[1:]):
            cells += [label, "%.6f" % probability]
        cells.append(text_cell(stem))
        yield cells


def other_cells(images: Images, names: List[str]) -> List[List[Any]]:
    """The cells about the other run's answer for each image; empty where it has none."""
    if images.other is None:
        return [[] for _ in images.stems]
    cells: List[List[Any]] = [[""] * len(OTHER_COLUMNS) for _ in images.stems]
    found = images.other.predictions
    columns = zip(
        images.other.places.tolist(),
        found.top[:, 0].tolist(),
        found.confidence.tolist(),
        (found.rank + 1).tolist(),
    )
    answers = images.predictions.top[:, 0].tolist()
    for place, label, probability, rank in columns:
        changed = "no" if label == answers[place] else "yes"
        cells[place] = [label, names[label], "%.6f" % probability, rank, changed]
    return cells


def predictions_csv(images: Images, classes: int, names: Optional[Sequence[str]]) -> bytes:
    """predictions.csv. names: of all classes, None if nobody knows them."""
    columns = [*IMAGE_COLUMNS, "probability", "rank"]
    for place in range(2, images.predictions.top.shape[1] + 1):
        columns += [f"class_{place}", f"probability_{place}"]
    columns.append("stem")
    if images.other is not None:
        columns += OTHER_COLUMNS
    cells = name_cells(names, classes)
    both = zip(image_rows(images, cells), other_cells(images, cells))
    return encode(columns, (own + other for own, other in both))


# ---- a row for each class ------------------------------------------------------------------------


def class_row(row: Dict[str, Any], names: List[str]) -> List[Any]:
    taken_for = row["taken_for"]
    return [
        row["class"],
        names[row["class"]],
        row["images"],
        row["answers"],
        row["top1"],
        row["top_k"],
        share_cell(row["precision"]),
        share_cell(row["recall"]),
        share_cell(row["f1"]),
        "" if taken_for is None else taken_for,
        "" if taken_for is None else names[taken_for],
        row["times"],
    ]


def classes_csv(images: Images, classes: int, names: Optional[Sequence[str]]) -> bytes:
    """classes.csv, with a row for each class of the network, whether or not it has images."""
    cells = name_cells(names, classes)
    rows = figures.every_class(images.predictions, classes)
    return encode(CLASS_COLUMNS, (class_row(row, cells) for row in rows))
