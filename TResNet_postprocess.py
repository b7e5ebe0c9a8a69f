#!/usr/bin/env python3
"""Predictions + labels -> acc.json: Top-1 to Top-5 accuracy over every result in a folder.

    python3 TResNet_postprocess.py ./result/ ./ImageNet/val_label.txt ./ acc.json
    python3 TResNet_postprocess.py ./result/ ./val_label.txt ./ acc.json --prep ./prep_dataset
    python3 TResNet_postprocess.py ./result/ ./ImageNet/val_label.txt ./ acc.json --min-top5 94.4
    python3 TResNet_postprocess.py ./int8/ ./val_label.txt ./ acc.json --beside ./result
    python3 TResNet_postprocess.py ./result/ ./real.json ./ acc.json
    python3 TResNet_postprocess.py ./result/ ./coco_label.txt ./ acc.json --multi-label

In:  RESULT, one file per image as the inference writes it: STEM_0.txt (each value as "%f ", then a
     newline), STEM_0.bin (raw float32) or STEM_0.npy.
     LABELS, lines "NAME[.suffix] INT": NAME is the image's path or the end of it, INT may be a
     WordNet ID. Or a table (CSV) with a name and a class in each row. Or ReaL's real.json: any of
     an image's classes is right, and images without a class are left out. With --multi-label the
     lines are "NAME INT INT …", and the figure is the mean average precision.
Out: OUT_DIR/OUT_NAME, the accuracy as strings, and beside it ..._report.json, which accounts for
     every image: what the accuracy covers, what was left out and why. With --prep DIR this is
     checked against DIR/manifest.jsonl. The number of classes is checked against the record of the
     model that RESULT_summary.json names, or of --model. predictions.csv has a row for each image
     (its right class, the five best answers; with --beside RESULT those of another run too),
     classes.csv one for each class.
Exit status: 0 good, 1 something is wrong with the data, 2 wrong usage, 3 the accuracy is below
     --min-top1 or --min-top5.
"""

import argparse
import contextlib
import gc
import json
import os
import sys
from collections import Counter
from fractions import Fraction
from itertools import chain, repeat
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import options, record
from common.core.cli import Refusal, shown, some
from common.core.files import make_folder, read_regular
from common.core.names import CLASS_ORDERS, ordered, other_order
from common.data import class_names, evaluation, prepared
from common.data.labels import (
    check_folders,
    label_offset,
    match_labels,
    other_offset,
    read_label_file,
)
from common.results import accuracy, figures, ranks, result_folder, tables
from common.results.results import are_all_equal, chunks, percent, read_result, result_files
from common.results.work_files import ACCURACY

import numpy as np

# ---- accuracy ------------------------------------------------------------------------------------


class Task(NamedTuple):
    """What is evaluated, as the command line says it."""

    result: str  # the folder of results
    labels: str  # the file
    prep: Optional[str] = None  # the prepared folder
    workers: int = 1
    names: Optional[str] = None  # a file of class names
    asked_offset: Optional[int] = None  # --label-offset
    multi_label: bool = False
    model: Optional[str] = None  # the one that made the results
    encoding: Optional[str] = None  # of the labels
    beside: Optional[str] = None  # the results of another run, for predictions.csv


class Labels(NamedTuple):
    """A file of labels, matched with the results."""

    right: Dict[str, Tuple[int, ...]]  # {stem: its labels}; () where no class is right
    offset: int  # what to add to a label to have its class
    names: Set[str]  # all in the file
    without_prediction: Set[str]  # the names that belong to no result
    other_offset: Optional[int] = None  # another one that is possible, if the user did not say it


class FolderOrder(NamedTuple):
    """Class folders that are numbered by their order."""

    source: str  # the folder that they lie in
    names: List[str] = []  # in the order of the classes; [] if the labels come from elsewhere
    order: str = ""  # of names.CLASS_ORDERS

    def other_numbers(self) -> Dict[int, int]:
        """{class: its number in the other order}; {} if both orders are the same."""
        if not self.names:
            return {}
        others = ordered(self.names, other_order(self.order))
        place = {name: number for number, name in enumerate(others)}
        numbers = {label: place[name] for label, name in enumerate(self.names)}
        return {} if others == self.names else numbers


class Score(NamedTuple):
    """How right the predictions of n images are."""

    figures: Dict[str, Any]  # of acc_report.json: "classes", "hits"; or "average_precision" too
    true: List[int]  # [n]: the right class of each image; [] where an image has several labels
    checksums: Dict[str, str]  # {file name: files.checksum() of its content}
    predictions: Optional[figures.Predictions] = None  # of n images; None with --multi-label


def count_hits(ranks_of_images: np.ndarray, classes: int) -> List[int]:
    """Top-1 to Top-5 as counts: an image is a hit of Top-k if fewer than k classes come before its
    right class. Fewer counts where there are fewer than 5 classes.

    ranks_of_images: int [images], 0 to classes - 1.
    """
    return [
        int(np.count_nonzero(ranks_of_images < k)) for k in range(1, min(figures.TOP, classes) + 1)
    ]


def top_hits(paths: Dict[str, str], label: Labels, classes: int, workers: int) -> Score:
    """The hits of all images; of an image's several right classes the one that comes first counts.

    paths: {stem: path} of the results to evaluate; each has at least one label.
    """
    right = [label.right[stem] for stem in paths]
    counts = [len(labels_of_image) for labels_of_image in right]
    repeated = list(
        chain.from_iterable(map(repeat, paths.values(), counts))
    )  # once for each right class
    labels = np.fromiter(chain.from_iterable(right), np.int64, len(repeated)) + label.offset
    ranked = ranks.read(repeated, labels, classes, workers)
    owners = np.repeat(np.arange(len(right)), counts)  # the image that each rank belongs to
    by_image = np.lexsort((ranked.ranks, owners))  # of each image the lowest rank first
    best = by_image[np.cumsum([0, *counts[:-1]])]
    ranks_of_images = ranked.ranks[best]
    if ranks_of_images.min() < 0 or ranks_of_images.max() >= classes:
        raise Refusal(
            f"a rank is not in 0…{classes - 1}, it is {ranks_of_images.min()} or "
            f"{ranks_of_images.max()}; this is a defect of the program"
        )
    return Score(
        {"classes": classes, "hits": count_hits(ranks_of_images, classes)},
        labels[best].tolist(),
        named_checksums(repeated, ranked.checksums),
        ranked.predictions(labels, best),
    )


def try_orders(
    paths: Dict[str, str], label: Labels, folders: FolderOrder, score: Score, workers: int
) -> Dict[str, Any]:
    """What both orders of the class folders give, if they differ.

    paths: {stem: path} of the evaluated results; score: of the order that is used.
    Returns {"class_order": that order, "class_orders": {order: Top-1 as a count}}, or {}.
    """
    other = folders.other_numbers()
    if not other or not score.true:
        return {}
    labels = np.array([other[true - label.offset] + label.offset for true in score.true], np.int64)
    ranked = ranks.read(list(paths.values()), labels, score.figures["classes"], workers)
    hits = {
        folders.order: score.figures["hits"][0],
        other_order(folders.order): int(np.count_nonzero(ranked.ranks == 0)),
    }
    return {"class_order": folders.order, "class_orders": hits}


def try_offset(
    paths: Dict[str, str], label: Labels, score: Score, other: int, workers: int
) -> Tuple[Labels, Score]:
    """The labels and the score by the better of two offsets; by label.offset if both are equal.

    paths: {stem: path} of the evaluated results; score: by label.offset; other: the other offset.
    """
    by_other = label._replace(offset=other)
    other_score = top_hits(paths, by_other, score.figures["classes"], workers)
    hits = {label.offset: score.figures["hits"][0], other: other_score.figures["hits"][0]}
    if hits[other] > hits[label.offset]:
        label, score = by_other, other_score
    by_offset = {str(offset): hits[offset] for offset in (0, 1)}
    return label, score._replace(figures={**score.figures, "label_offsets": by_offset})


def named_checksums(paths: Sequence[str], checksums: np.ndarray) -> Dict[str, str]:
    """{file name: its checksum as a record has it}; checksums: uint32 [n], or [0] for none."""
    start = len(os.path.dirname(paths[0])) + 1
    return {path[start:]: "%08x" % value for path, value in zip(paths, checksums.tolist())}


def average_precision(scores: np.ndarray, right: np.ndarray) -> Optional[float]:
    """The area under the precision-recall curve of one class, as a sum of steps.

    scores: float [images], any rising function of the probability; right: bool [images].
    Images of equal score are one step, as in scikit-learn's average_precision_score.
    Returns None if no image shows the class.
    """
    total = int(right.sum())
    if not total:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    # the last image of each group of equal scores
    last = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    precision, recall = hits[last] / (last + 1.0), hits[last] / float(total)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def mean_average_precision(paths: Dict[str, str], label: Labels, classes: int) -> Score:
    """The average precision of each class, and its mean over the classes that some image shows.

    paths: {stem: path} of the results to evaluate.
    Each figure is 0 to 1; a class that no image shows has None. Logits are ranked: their sigmoids
    have the same order.
    """
    scores = np.empty((len(paths), classes), np.float32)
    shows = np.zeros((len(paths), classes), bool)
    row = 0
    for rows in chunks(paths, list(paths), classes=classes):
        scores[row : row + len(rows)] = rows
        row += len(rows)
    for row, stem in enumerate(paths):
        shows[row, [number + label.offset for number in label.right[stem]]] = True
    if not shows.any():
        raise Refusal(
            f"none of the {len(paths)} images has a class, so there is no average precision; check "
            "that LABELS belongs to these images"
        )
    values = [average_precision(scores[:, i], shows[:, i]) for i in range(classes)]
    mean = float(np.mean([value for value in values if value is not None]))
    checksums: Dict[str, str] = {}  # chunks() has compared them
    about = {"classes": classes, "hits": [], "mAP": mean, "average_precision": values}
    return Score(about, [], checksums)


def other_answers(
    beside: str, stems: Sequence[str], right: List[int], classes: int, workers: int
) -> tables.Other:
    """What another run answered for the images of these stems, as far as it has them.

    beside: its result folder; right: the right class of each stem.
    Raises: Refusal if it has none of them, or if it is damaged.
    """
    results = result_files(beside)
    places = [place for place, stem in enumerate(stems) if stem in results]
    if not places:
        raise Refusal(
            f"--beside {shown(beside)} has none of the {len(stems)} images, only others such as "
            f"{shown(min(results))}; give the results of the same images"
        )
    paths = [results[stems[place]] for place in places]
    values = len(read_result(paths[0], classes))
    if values != classes:
        raise Refusal(
            f"--beside {shown(beside)} has results of {values} classes, not of {classes}; give "
            "those of a model with the same classes"
        )
    labels = np.array([right[place] for place in places], np.int64)
    ranked = ranks.read(paths, labels, classes, workers)
    record.check_results(beside, named_checksums(paths, ranked.checksums))
    return tables.Other(np.array(places), ranked.predictions(labels))


# ---- every image accounted for -------------------------------------------------------------------


class Images(NamedTuple):
    """What is known of the images that the results belong to; nothing if all is empty."""

    sources: Dict[str, str] = {}  # {stem of a result: path of its image below the data set}
    bad: Dict[str, str] = {}  # {path of an image that was not prepared: why}
    shard: Any = None  # [I, N] if this is one part of N
    clipped: Dict[str, prepared.Clipped] = {}  # by the path of the image


def images_beside(result: str) -> Images:
    """The images of the folder that the inference says its inputs were in.

    RESULT_summary.json names them as they were called in the folder where the inference ran. That
    may have been this folder, or the result folder's parent.
    """
    result = os.path.abspath(result)
    with contextlib.suppress(Refusal, OSError, ValueError, LookupError, TypeError, RecursionError):
        summary = read_regular(result + "_summary.json").decode("utf-8", "surrogateescape")
        # The first image's inputs are enough: to parse all of the file takes 0.15 s.
        start = summary.index("[", summary.index('"infiles"'))
        prep = os.path.dirname(json.JSONDecoder().raw_decode(summary, start)[0][0])
        for folder in (os.path.abspath(prep), os.path.join(os.path.dirname(result), prep)):
            about = prepared.read(folder)
            if about.sources:
                return Images(about.sources, about.bad, clipped=about.clipped)
    return Images()


def account(prep: str, results: Dict[str, str]) -> Images:
    """The images of a prepared folder.

    results: {stem: path}.
    Raises: Refusal unless there is exactly one result for each .bin, and none is older than it.
    """
    about = prepared.read(prep)
    if not about.settings:
        raise Refusal(
            f"{shown(prep)} holds no manifest.jsonl of TResNet_preprocess.py; give the prepared "
            "folder as --prep"
        )
    with os.scandir(prep) as entries:
        bins = [entry for entry in entries if entry.name.lower().endswith(".bin")]
        written = {entry.name: entry.stat().st_mtime_ns for entry in bins}
    unlike = {stem + ".bin" for stem in about.sources} ^ written.keys()
    if unlike:
        raise Refusal(
            f"the .bin files in {shown(prep)} are not those of its manifest ({some(unlike)}); run "
            "TResNet_preprocess.py again"
        )
    foreign = results.keys() - about.sources.keys()
    if foreign:
        raise Refusal(
            f"{len(foreign)} of {len(results)} results belong to no .bin in {shown(prep)}: "
            f"{some(foreign)}; they may be those of another run: move them away"
        )
    missing = about.sources.keys() - results.keys()
    if missing:
        raise Refusal(
            f"the inference was incomplete: {len(missing)} of {len(about.sources)} .bin files in "
            f"{shown(prep)} have no result: {some(missing)}; run the inference again"
        )
    older = older_results(prep, results, written)
    if older:
        raise Refusal(
            f"{len(older)} of {len(results)} results are older than their .bin in {shown(prep)}: "
            f"{some(older)}; run the inference again"
        )
    shard = about.settings.get("shard")
    shard = None if shard == prepared.ALL_IMAGES else shard
    return Images(about.sources, about.bad, shard, about.clipped)


def older_results(prep: str, results: Dict[str, str], written: Dict[str, int]) -> List[str]:
    """The stems of results that are older than their .bin, and not recorded as made from it.

    written: {name of a .bin: its time in ns}. Where a clock was wrong, the record of the inference
    knows better than the times.
    """
    older = [
        stem
        for stem, path in results.items()
        if os.lstat(path).st_mtime_ns < written[stem + ".bin"]
    ]
    if not older:
        return []
    made_from: Set[Tuple[Any, ...]] = set()
    for piece in record.read(os.path.dirname(results[older[0]])).pieces.values():
        made_from.update(tuple(state) for state in piece.inputs)
    states = {stem: tuple(record.state(os.path.join(prep, stem + ".bin"))) for stem in older}
    return [stem for stem in older if states[stem] not in made_from]


def folder_order(labels: str) -> FolderOrder:
    """The class folders whose order numbers these labels, as the prepared folder knows them."""
    about = prepared.read(os.path.dirname(os.path.abspath(labels)))
    source = str(about.settings.get("source"))
    names: Any = about.about.get("class_folders")
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if os.path.basename(labels) != prepared.LABELS or not are_names:
        return FolderOrder(source)
    order = about.about.get("class_order")  # earlier versions knew one order only
    return FolderOrder(source, names, order if order in CLASS_ORDERS else CLASS_ORDERS[0])


def number_of_classes(path: str, model: str, prep: Optional[str]) -> int:
    """How many classes the results have.

    path: of the first result; model: see model_that_ran(); prep: the value of --prep, which was
    perhaps prepared for a model.
    Raises: Refusal if the record of the model, or of the prepared folder, says another number.
    """
    known, source = evaluation.known_classes(model) if model else 0, shown(model)
    if not known and prep:
        noted = prepared.read(prep).about.get("num_classes")
        known, source = noted if isinstance(noted, int) else 0, f"the model of {shown(prep)}"
    classes = len(read_result(path, known))
    if known and classes != known:
        raise Refusal(
            f"{shown(path)} holds {classes:,} values, but {source} has {known:,} classes; "
            "one image a file was expected: run the inference again, or name the --model that "
            "these results are of"
        )
    return classes


def model_that_ran(result: str, named: Optional[str]) -> str:
    """The model that made the results: the one of --model, or of their summary; "" if unknown."""
    if named and not os.path.isfile(named):
        raise Refusal(f"the model {shown(named)} is not a file; name the .onnx or .om that was run")
    return named or result_folder.model_of(result)


def find_labels(
    task: Task, classes: int, model: str, sources: Dict[str, str], images: Images
) -> Labels:
    """The labels of the images {stem: source}.

    classes: of the results; model: see model_that_ran().
    Raises: Refusal if an image has no label, a doubtful one, or one that is not a class.
    """
    path = task.labels
    lines = read_label_file(path, task.multi_label, task.encoding)
    background = evaluation.has_background(model) if model else None
    offset = label_offset(lines, classes, path, task.multi_label, task.asked_offset, background)
    other = None
    if task.asked_offset is None:
        other = other_offset(lines, classes, offset, task.multi_label)
    folders = folder_order(path)
    if folders.names:
        check_folders(folders.source, folders.names, classes)
    label_of = match_labels(sources, lines, path, [*images.sources.values(), *images.bad])
    names = {label.name for label in lines}
    predicted = {label.name for label in label_of.values()}
    right = {stem: label_of[stem].classes for stem in sources}
    return Labels(right, offset, names, names - predicted, other)


# ---- the report ----------------------------------------------------------------------------------


class Evaluation(NamedTuple):
    """What is known of all predictions in a result folder."""

    report: Dict[str, Any]  # see evaluate()
    images: Optional[tables.Images]  # None with --multi-label, where no answer is simply wrong


def evaluate(result: str, labels: str, *more: Any, **named: Any) -> Dict[str, Any]:
    """The report of evaluate_images(). Arguments: those of Task."""
    return evaluate_images(Task(result, labels, *more, **named)).report


def evaluate_images(task: Task) -> Evaluation:
    """Compare all predictions in a result folder with their labels.

    Its report is the content of acc_report.json (work_files.REPORT):
      classes, label_offset: int
      hits: [Top-1, Top-2, … Top-5] as counts, fewer for fewer classes; [] for multi_label, which
        has mAP and average_precision instead
      counts: see count_images()
      evaluated: the stems
      true: the right class of each stem; of several the one that the network prefers
      label_offsets: see try_offset()
      class_order, class_orders: see try_orders(); clipped: see clipped_images()
      all_equal: whether several results are all the same
      class_names: of all classes, None if nobody knows them; see class_names.find()
      left_out: [{"source", "error"}]; labelled_without_prediction: names; notes: sentences
    Raises: Refusal if results, labels and images do not fit together.
    """
    results, prep = result_files(task.result), task.prep
    images = account(prep, results) if prep is not None else images_beside(task.result)
    sources = {stem: images.sources.get(stem, stem) for stem in results}
    model = model_that_ran(task.result, task.model)
    classes = number_of_classes(next(iter(results.values())), model, prep)
    label = find_labels(task, classes, model, sources, images)

    paths = with_label(task, results, label)
    label, score = judge(task, paths, label, classes)
    record.check_results(task.result, score.checksums)

    evaluated = [sources[stem] for stem in paths]
    report = {
        **describe_inputs(task),
        "label_offset": label.offset,
        **score.figures,
        **try_orders(paths, label, folder_order(task.labels), score, task.workers),
        "clipped": clipped_images(sources, images),
        "all_equal": are_all_equal(list(results.values())),
        "counts": count_images(label, len(results), len(paths), images, prep is not None),
        "notes": [],
        "left_out": reasons(sources, paths, task.labels, images.bad if prep is not None else {}),
        "labelled_without_prediction": sorted(label.without_prediction),
        "evaluated": list(paths),
        "true": score.true,
        "class_names": class_names.find(
            classes, task.names, zip(evaluated, score.true), background=label.offset != 0
        ),
    }
    if images.shard is not None:
        report["shard"] = images.shard
    report["notes"] += accuracy.notes(report)
    return Evaluation(report, images_of(task, score, list(paths), evaluated, classes))


def with_label(task: Task, results: Dict[str, str], label: Labels) -> Dict[str, str]:
    """Those of the results {stem: path} that are evaluated. Raises: Refusal if none is."""
    paths = {stem: path for stem, path in results.items() if task.multi_label or label.right[stem]}
    if not paths:
        raise Refusal(
            f"{shown(task.labels)} has no right class for any of the {len(results)} images"
        )
    return paths


def judge(task: Task, paths: Dict[str, str], label: Labels, classes: int) -> Tuple[Labels, Score]:
    """How right the results {stem: path} are, and the labels with the offset that is taken."""
    if task.multi_label:
        return label, mean_average_precision(paths, label, classes)
    score = top_hits(paths, label, classes, task.workers)
    if label.other_offset is not None:
        return try_offset(paths, label, score, label.other_offset, task.workers)
    return label, score


def images_of(
    task: Task, score: Score, stems: List[str], evaluated: List[str], classes: int
) -> Optional[tables.Images]:
    """Each image for the tables; None where several classes may be right.

    stems: of the results; evaluated: the paths of their images.
    """
    if score.predictions is None:
        return None
    other = None
    if task.beside:
        other = other_answers(task.beside, stems, score.true, classes, task.workers)
    return tables.Images(stems, evaluated, score.predictions, other)


def describe_inputs(task: Task) -> Dict[str, Any]:
    """The first rows of acc_report.json: what was evaluated, by which program."""
    return {
        "tool": accuracy.TOOL,
        "version": cli.VERSION,
        "result": os.path.abspath(task.result),
        "labels": os.path.abspath(task.labels),
        "prep": None if task.prep is None else os.path.abspath(task.prep),
    }


def clipped_images(sources: Dict[str, str], images: Images) -> List[Dict[str, Any]]:
    """[{"mode", "to", "images"}]: images {stem: source} that lost their content, see prepared."""
    counts = Counter(
        images.clipped[source] for source in sources.values() if source in images.clipped
    )
    return [
        {"mode": clipped.mode, "to": clipped.to, "images": count}
        for clipped, count in sorted(counts.items())
    ]


def reasons(
    sources: Dict[str, str], evaluated: Dict[str, str], labels: str, bad: Dict[str, str]
) -> List[Dict[str, str]]:
    """[{"source", "error"}]: why each image without a class, and each bad one, was left out."""
    no_class = f"no right class in {os.path.basename(labels)}"
    without_class = [sources[stem] for stem in sorted(sources.keys() - evaluated.keys())]
    errors = [(source, no_class) for source in without_class] + list(bad.items())
    return [{"source": source, "error": error} for source, error in errors]


def count_images(
    label: Labels, inferred: int, evaluated: int, images: Images, prepared_known: bool
) -> Dict[str, Optional[int]]:
    """How many images there are at each step; None where only the prepared folder knows it."""
    counts: Dict[str, Optional[int]] = {
        "labelled": len(label.names),
        "images": None,
        "preprocessed": None,
        "bad": None,
        "inferred": inferred,
        "evaluated": evaluated,
        "left_out": None,
    }
    if prepared_known:
        bad = len(images.bad)
        counts.update(
            images=inferred + bad,
            preprocessed=inferred,
            bad=bad,
            left_out=inferred - evaluated + bad,
        )
    return counts


def shortfalls(report: Dict[str, Any], minima: Dict[int, Optional[float]]) -> List[str]:
    """Which accuracies are below the minima {k: per cent or None}, in words.

    The counts decide, not the rounded figures that are shown.
    """
    below, images = [], report["counts"]["evaluated"]
    for k, least in minima.items():
        if least is None:
            continue
        hits = report["hits"][min(k, len(report["hits"])) - 1]
        if 100 * hits < Fraction(repr(least)) * images:
            rounded = percent(hits, images)
            exactly = "" if rounded < least else f" ({hits} of {images})"
            below.append(f"Top-{k} accuracy {rounded}%{exactly} is below {least}%")
    return below


# ---- command line --------------------------------------------------------------------------------


def output_paths(out_dir: str, out_name: str, result: str, labels: str) -> Tuple[str, str]:
    """The paths of acc.json and its report; refuses those that would damage the input."""
    inside = os.path.join(os.path.realpath(result), "")
    if os.path.join(os.path.realpath(out_dir), "").startswith(inside):
        raise Refusal(
            f"OUT_DIR {shown(out_dir)} lies in the result folder {shown(result)}; choose another, "
            f"or the next run would take {shown(out_name)} for a result"
        )
    stem = out_name[: -len(".json")] if out_name.endswith(".json") else out_name
    paths = os.path.join(out_dir, out_name), os.path.join(out_dir, stem + "_report.json")
    for path in paths:
        if os.path.isdir(path):
            raise Refusal(f"{shown(path)} is a folder; choose another OUT_NAME")
        if os.path.realpath(path) == os.path.realpath(labels):
            raise Refusal(f"{shown(path)} is the labels file; choose another OUT_NAME")
    accuracy.claim(*paths)
    tables.claim(paths[0])
    return paths


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    for name, kind, about in (
        ("result", options.path, "folder of results, one file per image"),
        (
            "labels",
            options.path,
            'text file of lines "NAME[.suffix] INT", a table (CSV), or real.json',
        ),
        ("out_dir", options.path, "folder for the output; made if missing"),
        ("out_name", options.file_name, f"name of the output, such as {ACCURACY.name}"),
    ):
        parser.add_argument(name, metavar=name.upper(), type=kind, help=about)
    options.add(
        parser,
        "prep",
        "beside",
        "multi_label",
        "labels_encoding",
        "workers",
        "label_offset",
        "class_names",
        "model",
        "min_top1",
        "min_top5",
        help={
            "multi_label": 'LABELS has lines "NAME INT INT …"; the figure is the mean '
            "average precision",
            "model": "the model that was run: its record says how many classes it has (default: "
            "the one that RESULT_summary.json names)",
        },
    )
    return options.parse(parser)


def main() -> None:
    # A short life without cycles: looking for them in 50,000 names again and again takes 3 % of it.
    gc.disable()
    arguments = parse_arguments()
    accuracy_path, report_path = output_paths(
        arguments.out_dir, arguments.out_name, arguments.result, arguments.labels
    )
    task = Task(
        arguments.result,
        arguments.labels,
        arguments.prep,
        arguments.workers,
        arguments.class_names,
        arguments.label_offset,
        arguments.multi_label,
        arguments.model,
        arguments.labels_encoding,
        arguments.beside,
    )
    evaluated = evaluate_images(task)
    report = evaluated.report
    make_folder(arguments.out_dir, "OUT_DIR")
    made_from = [arguments.labels, arguments.class_names]
    for folder in filter(None, (arguments.result, arguments.beside)):
        made_from.append(record.path_of(folder))
    written = tables.write(__file__, accuracy_path, report, evaluated.images, made_from)
    accuracy.write(report, accuracy_path, report_path)
    for image in report["left_out"][:3]:
        print(f"left out: {shown(image['source'])}: {shown(image['error'])}")
    print(f"wrote {', '.join(map(shown, [accuracy_path, *written]))} and {shown(report_path)}")
    below = shortfalls(report, {1: arguments.min_top1, 5: arguments.min_top5})
    if below:
        raise Refusal(", ".join(below), cli.BELOW_MINIMUM)


if __name__ == "__main__":
    cli.run(main)
