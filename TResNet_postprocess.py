#!/usr/bin/env python3
"""Predictions + labels -> acc.json: Top-1 to Top-5 accuracy over every result in a folder.

    python3 TResNet_postprocess.py ./result/ ./ImageNet/val_label.txt ./ acc.json
    python3 TResNet_postprocess.py ./result/ ./prep_dataset/val_label.txt ./ acc.json --prep ./prep_dataset
    python3 TResNet_postprocess.py ./result/ ./ImageNet/val_label.txt ./ acc.json --min-top5 94.4
    python3 TResNet_postprocess.py ./result/ ./real.json ./ acc.json
    python3 TResNet_postprocess.py ./result/ ./coco_label.txt ./ acc.json --multi-label

In:  RESULT, one file per image as the inference writes it: STEM_0.txt (each value as "%f ", then a newline), STEM_0.bin
     (raw float32) or STEM_0.npy; LABELS, lines "NAME[.suffix] INT", NAME being the image's path or its end, or
     ReaL's real.json: any of an image's classes is right, images without one are left out. With --multi-label its lines
     are "NAME INT INT …", and the figure is the mean average precision (mAP).
Out: OUT_DIR/OUT_NAME, the accuracy as strings, and beside it ..._report.json, which accounts for every image: what the
     accuracy covers, what was left out and why. With --prep DIR that is checked against DIR/manifest.jsonl.
Exit status: 0 good, 1 something is wrong with the data, 2 wrong usage, 3 the accuracy is below --min-top1/--min-top5.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any, Dict, List, Optional, Sequence, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import native, options, record
from common.core.cli import Refusal, shown, some
from common.core.files import checksum_of, make_folder, read_regular
from common.data import class_names, prepared
from common.data.labels import check_folders, label_offset, match_labels, read_label_file
from common.results import accuracy
from common.results.results import chunks, percent, read_result, result_files

import numpy as np

TOP = 5
CHUNK_VALUES = 256_000  # values; 3 ms of work, which an interrupted thread still finishes
SLOW_FROM = (
    2_000_000  # values; Python needs 0.15 s per million, so a missing compiler is felt from here on
)
PREPARED = (
    "images",
    "preprocessed",
    "bad",
    "left_out",
)  # counts that only the prepared folder tells


# ---- ranks -----------------------------------------------------------------------------------------------------------


def fast_ranks(
    paths: Sequence[str], labels: np.ndarray, classes: int, workers: int
) -> Tuple[np.ndarray, np.ndarray]:
    """ranks() by compiled C, for results exactly as ais_bench writes them; rank -1 where a file is anything else.

    A NumPy file is such one if it holds float32 and has the header that the first one has.
    """
    found, checksums = np.full(len(paths), -1, np.int32), np.zeros(len(paths), np.uint32)
    header = None if paths[0].endswith(".txt") else b""
    if paths[0].endswith(".npy"):
        header = read_regular(paths[0], follow_links=False)[: -4 * classes]
        if b"'<f4'" not in header:
            return found, checksums
    try:
        kernel = native.load("results/ranks.c").label_ranks
    except RuntimeError as error:
        if len(paths) * classes >= SLOW_FROM:
            print(
                f"note: the fast way is not used, Python reads all results: {error}",
                file=sys.stderr,
            )
        return found, checksums
    text, pointer, integer = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_ssize_t
    kernel.argtypes = [text, integer, integer, text, integer, pointer, pointer, pointer]
    kernel.restype = None
    chunk = max(1, CHUNK_VALUES // classes)
    starts = iter(range(0, len(paths), chunk))

    def work() -> None:
        for start in starts:  # of all threads: each takes the next one
            some_paths = paths[start : start + chunk]
            kernel(
                os.fsencode("\0".join(some_paths)),
                len(some_paths),
                classes,
                header,
                len(header or b""),
                labels[start:].ctypes.data,
                found[start:].ctypes.data,
                checksums[start:].ctypes.data,
            )

    with ThreadPoolExecutor(workers) as threads:  # ctypes lets them run at the same time
        try:
            for thread in [
                threads.submit(work) for _ in range(min(workers, -(-len(paths) // chunk)))
            ]:
                thread.result()
        finally:
            for _ in starts:  # after Ctrl-C no thread finds another chunk
                pass
    return found, checksums


def ranks(
    paths: Sequence[str], labels: np.ndarray, classes: int, workers: int
) -> Tuple[np.ndarray, np.ndarray]:
    """(int32 [n], uint32 [n]): how many classes come before the label in each prediction, equal scores by rising class;
    and the CRC-32 of each file.

    labels: int64 [len(paths)], 0 to classes - 1. Raises: Refusal about the first file that is damaged or has another
    number of classes.
    """
    found, checksums = fast_ranks(paths, labels, classes, workers)
    for i in np.flatnonzero(found < 0).tolist():
        scores, label = read_result(paths[i]), labels[i]
        if len(scores) != classes:
            raise Refusal(
                f"{shown(paths[i])} holds {len(scores)} values, but {shown(paths[0])} holds {classes}"
            )
        found[i] = np.count_nonzero(scores > scores[label]) + np.count_nonzero(
            scores[:label] == scores[label]
        )
        checksums[i] = int(checksum_of(paths[i]) or "0", 16)
    return found, checksums


def count_hits(
    paths: Sequence[str], right: Sequence[Tuple[int, ...]], classes: int, workers: int, offset: int
) -> Tuple[List[int], List[int], Dict[str, str]]:
    """(how many predictions have a right class first, among the first two, … five (or all); the
    right class of each; {file name: files.checksum() of its content}).

    right: the right classes of each, one or more, of which the one that comes first counts.
    """
    repeated = [path for path, labels in zip(paths, right) for _ in labels]
    labels = np.array([label for image in right for label in image], np.int64) + offset
    found, checksums = ranks(repeated, labels, classes, workers)
    counts = list(map(len, right))
    owners = np.repeat(np.arange(len(right)), counts)
    best = np.lexsort((found, owners))[np.cumsum([0, *counts[:-1]])]
    places = np.bincount(
        found[best][(0 <= found[best]) & (found[best] < classes)], minlength=classes
    )
    if places.sum() != len(paths):
        raise Refusal(
            f"{places.sum()} of {len(paths)} predictions were counted; this is a defect of "
            "the program"
        )
    hits = np.cumsum(places)[: min(TOP, classes)].tolist()
    return hits, labels[best].tolist(), checksums_of_names(repeated, checksums)


def checksums_of_names(paths: Sequence[str], checksums: np.ndarray) -> Dict[str, str]:
    """{file name: its checksum as a record has it}; checksums: uint32 [n]."""
    start = len(os.path.dirname(paths[0])) + 1
    return {path[start:]: "%08x" % value for path, value in zip(paths, checksums.tolist())}


def average_precision(scores: np.ndarray, right: np.ndarray) -> Optional[float]:
    """The area under the precision-recall curve of one class, as a sum of steps; None if no image shows the class.

    scores: float [images], any rising function of the probability; right: bool [images]. Images of equal score are one
    step, as in scikit-learn's average_precision_score.
    """
    total = int(right.sum())
    if not total:
        return None
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(right[order])
    last = np.flatnonzero(
        np.diff(scores[order], append=np.nan) != 0
    )  # of each group of equal scores
    precision, recall = hits[last] / (last + 1.0), hits[last] / float(total)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def precision(
    paths: Dict[str, str], right: Sequence[Sequence[int]], classes: int
) -> Dict[str, Any]:
    """The mean average precision, 0..1, over the classes that some image shows, and each class's.

    It is None for a class that no image shows. paths: {stem: path} of the results; right: the classes
    of each image, in the same order. The order of the logits is that of their sigmoids.
    """
    scores = np.empty((len(paths), classes), np.float32)
    own = np.zeros((len(paths), classes), bool)
    place = 0
    for rows in chunks(paths, list(paths)):
        scores[place : place + len(rows)] = rows
        place += len(rows)
    for place, shown_classes in enumerate(right):
        own[place, list(shown_classes)] = True
    if not own.any():
        raise Refusal(
            "no image has a label of any class, so there is no average precision; are "
            "these labels meant?"
        )
    each = [average_precision(scores[:, label], own[:, label]) for label in range(classes)]
    known = [value for value in each if value is not None]
    return {"hits": [], "mAP": float(np.mean(known)), "average_precision": each}


# ---- every image accounted for ---------------------------------------------------------------------------------------

Names = Tuple[Dict[str, str], Dict[str, str]]  # Prepared.sources and Prepared.bad


def names_beside(result: str) -> Names:
    """The images of the folder that the inference says its inputs were in; ({}, {}) if nothing is known.

    RESULT_summary.json names them as they were called in the folder where the inference ran: that may have been this
    one, or the result folder's parent.
    """
    result = os.path.abspath(result)
    with contextlib.suppress(Refusal, OSError, ValueError, LookupError, TypeError, RecursionError):
        summary = read_regular(result + "_summary.json").decode("utf-8", "surrogateescape")
        start = summary.index(
            "[", summary.index('"infiles"')
        )  # the first image's are enough: all of it takes 0.15 s
        prep = os.path.dirname(json.JSONDecoder().raw_decode(summary, start)[0][0])
        for folder in (os.path.abspath(prep), os.path.join(os.path.dirname(result), prep)):
            about = prepared.read(folder)
            if about.sources:
                return about.sources, about.bad
    return {}, {}


def account(prep: str, results: Dict[str, str]) -> Names:
    """The images of a prepared folder.

    Raises: Refusal unless there is exactly one result for every .bin and none is older than its .bin.
    """
    about = prepared.read(prep)
    names, bad = about.sources, about.bad
    if not about.settings:
        raise Refusal(
            f"{shown(prep)} holds no manifest.jsonl of TResNet_preprocess.py; give the prepared folder as "
            "--prep"
        )
    with os.scandir(prep) as entries:
        written = {
            entry.name: entry.stat().st_mtime_ns
            for entry in entries
            if entry.name.lower().endswith(".bin")
        }
    expected = {stem + ".bin" for stem in names}
    if expected != written.keys():
        raise Refusal(
            f"the .bin files in {shown(prep)} are not those of its manifest "
            f"({some(expected ^ written.keys())}); run TResNet_preprocess.py again"
        )
    foreign = [stem for stem in results if stem not in names]
    if foreign:
        raise Refusal(
            f"{len(foreign)} of {len(results)} results belong to no .bin in {shown(prep)}: {some(foreign)}; "
            "they may be another run's: move them away"
        )
    lacking = names.keys() - results.keys()
    if lacking:
        raise Refusal(
            f"the inference was incomplete: {len(lacking)} of {len(names)} .bin files in {shown(prep)} have "
            f"no result: {some(lacking)}"
        )
    older = [
        stem
        for stem, path in results.items()
        if os.lstat(path).st_mtime_ns < written[stem + ".bin"]
    ]
    if older:  # a clock may have been wrong
        pieces = record.read(os.path.dirname(results[older[0]])).pieces.values()
        made_from = {tuple(state) for piece in pieces for state in piece.inputs}
        older = [
            stem
            for stem in older
            if tuple(record.state(os.path.join(prep, stem + ".bin"))) not in made_from
        ]
    if older:
        raise Refusal(
            f"{len(older)} of {len(results)} results are older than their .bin in {shown(prep)}: "
            f"{some(older)}; run the inference again"
        )
    return names, bad


def check_class_folders(labels: str, classes: int) -> None:
    """Refuse labels that preprocessing took from the order of class folders, if these are not all of the classes."""
    about = prepared.read(os.path.dirname(os.path.abspath(labels)))
    names = about.about.get("class_folders")
    if os.path.basename(labels) == prepared.LABELS and names:
        check_folders(str(about.settings.get("source")), names, classes)


def evaluate(
    result: str,
    labels: str,
    prep: Optional[str] = None,
    workers: int = 1,
    names: Optional[str] = None,
    asked_offset: Optional[int] = None,
    multi_label: bool = False,
) -> Dict[str, Any]:
    """Compare all predictions in a result folder with their labels.

    Returns a report that json can write: "classes" (int), "hits" ([Top-1, Top-2, ... Top-5] as counts, fewer for fewer
    classes, none for multi_label, which has "mAP" and "average_precision" instead), "counts" (labelled, images,
    preprocessed, bad, inferred, evaluated, left_out; None where that cannot be known without prep), "evaluated"
    (stems), "true" (the right class of each of them; of several the one that the network prefers; not for multi_label),
    "class_names" (of all classes, None if nobody knows them; see class_names.find(), which gets the file `names`),
    "left_out" ([{"source", "error"}]), "labelled_without_prediction" (names), "notes" (sentences).
    Raises: Refusal if anything is amiss.
    """
    results = result_files(result)
    sources, bad = account(prep, results) if prep is not None else names_beside(result)
    stems, paths = list(results), list(results.values())
    classes = len(read_result(paths[0]))
    lines = read_label_file(labels, multi_label)
    offset = label_offset(lines, classes, labels, multi_label, asked_offset)
    check_class_folders(labels, classes)
    images = {stem: sources.get(stem, stem) for stem in stems}
    matched = match_labels(images, lines, labels, [*sources.values(), *bad])
    labelled = {label.name for label in lines}
    unpredicted = sorted(labelled.difference(label.name for label in matched.values()))
    right = {stem: matched[stem].classes for stem in stems}
    if multi_label:
        shifted = [np.array(labels_of_image, int) + offset for labels_of_image in right.values()]
        score, true = precision(results, shifted, classes), []
        contents = {os.path.basename(path): checksum_of(path) for path in paths}
    else:
        stems = [stem for stem in stems if right[stem]]
        if not stems:
            raise Refusal(f"{shown(labels)} has no right class for any of the {len(paths)} images")
        hits, true, contents = count_hits(
            [results[stem] for stem in stems],
            [right[stem] for stem in stems],
            classes,
            workers,
            offset,
        )
        score = {"hits": hits}
    record.check_results(result, contents)

    left_out = [
        {"source": images[stem], "error": f"no right class in {os.path.basename(labels)}"}
        for stem in sorted(results.keys() - set(stems))
    ]
    left_out += [
        {"source": source, "error": error} for source, error in bad.items() if prep is not None
    ]
    counts = {
        "labelled": len(labelled),
        "images": len(paths) + len(bad),
        "preprocessed": len(paths),
        "bad": len(bad),
        "inferred": len(paths),
        "evaluated": len(stems),
        "left_out": len(left_out),
    }
    part = prepared.read(prep).settings.get("shard") if prep is not None else None
    report = {
        "tool": accuracy.TOOL,
        "version": cli.VERSION,
        "result": os.path.abspath(result),
        "labels": os.path.abspath(labels),
        "prep": None if prep is None else os.path.abspath(prep),
        "classes": classes,
        "label_offset": offset,
        **score,
        "counts": counts if prep is not None else dict(counts, **dict.fromkeys(PREPARED)),
        "notes": [],
        "left_out": left_out,
        "labelled_without_prediction": unpredicted,
        "evaluated": stems,
        "true": true,
        "class_names": class_names.find(
            classes, names, zip([images[stem] for stem in stems], true)
        ),
        **({} if part in (None, prepared.ALL_IMAGES) else {"shard": part}),
    }
    if offset and asked_offset is None:
        report["notes"].append(
            f'of {classes:,} classes class 0 is taken for "background": each label is one lower '
            "than its class (--label-offset 0 if that is wrong)"
        )
    report["notes"] += accuracy.notes(report)
    return report


def shortfalls(report: Dict[str, Any], minima: Dict[int, Optional[float]]) -> List[str]:
    """Which accuracies are below the minima {k: per cent or None}, in words; the counts decide, not what is shown."""
    found, images = [], report["counts"]["evaluated"]
    for k, least in minima.items():
        if least is None:
            continue
        hits = report["hits"][min(k, len(report["hits"])) - 1]
        if 100 * hits < Fraction(repr(least)) * images:
            shown_value = percent(hits, images)
            exactly = "" if shown_value < least else f" ({hits} of {images})"
            found.append(f"Top-{k} accuracy {shown_value}%{exactly} is below {least}%")
    return found


# ---- command line ----------------------------------------------------------------------------------------------------


def output_paths(out_dir: str, out_name: str, result: str, labels: str) -> Tuple[str, str]:
    """The paths of acc.json and its report; refuses those that would damage the input."""
    inside = os.path.join(os.path.realpath(result), "")
    if os.path.join(os.path.realpath(out_dir), "").startswith(inside):
        raise Refusal(
            f"OUT_DIR {shown(out_dir)} lies in the result folder {shown(result)}; choose another, or the "
            f"next run would take {shown(out_name)} for a result"
        )
    stem = out_name[: -len(".json")] if out_name.endswith(".json") else out_name
    paths = os.path.join(out_dir, out_name), os.path.join(out_dir, stem + "_report.json")
    for path in paths:
        if os.path.isdir(path):
            raise Refusal(f"{shown(path)} is a folder; choose another OUT_NAME")
        if os.path.realpath(path) == os.path.realpath(labels):
            raise Refusal(f"{shown(path)} is the labels file; choose another OUT_NAME")
    accuracy.claim(*paths)
    return paths


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("result", metavar="RESULT", type=options.path, help="folder of results, one file per image")
    add(
        "labels",
        metavar="LABELS",
        type=options.path,
        help='text file of lines "NAME[.suffix] INT", or real.json',
    )
    add(
        "out_dir",
        metavar="OUT_DIR",
        type=options.path,
        help="folder for the output; made if missing",
    )
    add(
        "out_name",
        metavar="OUT_NAME",
        type=options.file_name,
        help="name of the output, such as acc.json",
    )
    options.add(
        parser,
        "prep",
        "multi_label",
        "workers",
        "label_offset",
        "class_names",
        "min_top1",
        "min_top5",
        help={
            "multi_label": 'LABELS has lines "NAME INT INT …"; the figure is the mean '
            "average precision"
        },
    )
    return options.parse(parser)


def main() -> None:
    gc.disable()  # a short life without cycles; looking for them in 50,000 names over and over takes 3 % of the time
    arguments = parse_arguments()
    accuracy_path, report_path = output_paths(
        arguments.out_dir, arguments.out_name, arguments.result, arguments.labels
    )
    report = evaluate(
        arguments.result,
        arguments.labels,
        arguments.prep,
        arguments.workers,
        arguments.class_names,
        arguments.label_offset,
        arguments.multi_label,
    )
    make_folder(arguments.out_dir, "OUT_DIR")
    accuracy.write(report, accuracy_path, report_path)
    for image in report["left_out"][:3]:
        print(f"left out: {shown(image['source'])}: {shown(image['error'])}")
    print(f"wrote {shown(accuracy_path)} and {shown(report_path)}")
    below = shortfalls(report, {1: arguments.min_top1, 5: arguments.min_top5})
    if below:
        raise Refusal(", ".join(below), cli.BELOW_MINIMUM)


if __name__ == "__main__":
    cli.run(main)
