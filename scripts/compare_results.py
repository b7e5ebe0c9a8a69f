#!/usr/bin/env python3
"""Compare two result folders image by image: does the compiled model say what the ONNX file says?

    python3 scripts/compare_results.py work/result work/result_onnx
    python3 scripts/compare_results.py result result_onnx --first 64 --json compare.json
    python3 scripts/compare_results.py result result_onnx --min-agreement 99
    python3 scripts/compare_results.py result result_onnx --forecast forecast.json

In:  two folders of results (STEM_0.txt, .bin or .npy, each in its own format) of any two runs over
     the same images.
Out: cosine similarity of the scores (min, mean), the largest absolute difference, Top-1 agreement,
     and the images on which the two disagree. All is printed, and with --json written to a file
     with all names. With the file of scripts/forecast_fp16.py it also says whether float16
     explains the loss or the conversion is at fault.
Exit status: 0 good, 1 the folders cannot be compared, 2 wrong usage, 3 below --min-cosine or
     --min-agreement.
"""

import argparse
import os
from typing import Any, Dict, List, NamedTuple, Optional

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import json_file, options, progress, record
from common.core.cli import Refusal, shown
from common.core.files import write_whole
from common.core.names import natural_key
from common.data import evaluation
from common.model.statistics import cosine_similarity
from common.results import result_folder
from common.results.results import chunks, percent, read_result, result_files
from common.results.work_files import FORECAST

import numpy as np

SHOWN = 20  # disagreeing images that are printed; all are in the JSON file
# The loss (1 - cosine) that float16 may cost, as a multiple of the forecast one: sums in another
# order and fused operators round elsewhere, which may double the error, and the loss goes with its
# square.
EXPLAINED = 4.0
LEAST_LOSS = 1e-8  # below it rounding in the result files is seen, not the card


class Pairs(NamedTuple):
    """Two results of each image, compared; each list is in the order of the images."""

    classes: int
    cosines: List[float]
    differences: List[float]  # the largest absolute one of an image's scores
    disagreements: List[Dict[str, Any]]  # {"image", "a", "b"}: the images of another Top-1 class


def known_classes(path: str) -> int:
    """How many classes the model has that wrote a result file; 0 if nobody knows."""
    model = result_folder.model_of(os.path.dirname(path))
    return evaluation.known_classes(model) if model else 0


def compare_pairs(files_a: Dict[str, str], files_b: Dict[str, str], images: List[str]) -> Pairs:
    """Compare the results {image: path} of the images.

    Raises: Refusal if a file is unreadable or the numbers of classes differ.
    """
    first = images[0]
    known = known_classes(files_a[first]) or known_classes(files_b[first])
    pairs = Pairs(len(read_result(files_a[first], known)), [], [], [])
    names = iter(images)
    with progress.Bar("comparing", len(images), "images") as bar:
        rows_a, rows_b = (chunks(files, images, classes=known) for files in (files_a, files_b))
        for chunk_a, chunk_b in zip(rows_a, rows_b):
            if chunk_a.shape != chunk_b.shape:
                raise Refusal(
                    f"{shown(files_a[images[0]])} has {count(pairs.classes, 'class', 'classes')}, "
                    f"but {shown(files_b[images[0]])} has {chunk_b.shape[1]}; compare "
                    "results of models with the same classes"
                )
            rows = zip(chunk_a.astype(np.float64), chunk_b.astype(np.float64), names)
            for a, b, name in rows:
                pairs.cosines.append(cosine_similarity(a, b))
                pairs.differences.append(float(np.abs(a - b).max()))
                top_a, top_b = int(a.argmax()), int(b.argmax())  # of equal scores the lower class
                if top_a != top_b:
                    pairs.disagreements.append({"image": name, "a": top_a, "b": top_b})
            bar.advance(len(chunk_a))
    return pairs


def compare(folder_a: str, folder_b: str, first: Optional[int] = None) -> Dict[str, Any]:
    """All figures of the comparison, over the images that both folders have.

    first: only the first N of these images, in natural order.
    Returns what goes into the JSON file: images, classes, cosine {min, mean, image}, cosines and
    names of the images, in order, largest_difference {value, image}, top1_agreement in per cent,
    disagreements [{image, a, b}], only_in_a, only_in_b.
    Raises: Refusal if a folder or file is unreadable, nothing is common, or the numbers of classes
    differ.
    """
    files_a, files_b = result_files(folder_a), result_files(folder_b)
    common = sorted(set(files_a) & set(files_b), key=natural_key)[:first]  # the runners' order
    if not common:
        raise Refusal(
            f"{shown(folder_a)} and {shown(folder_b)} have no image in common (for instance "
            f"{shown(min(files_a))} and {shown(min(files_b))}); give two folders with the results "
            "of the same images"
        )
    pairs = compare_pairs(files_a, files_b, common)
    worst, furthest = int(np.argmin(pairs.cosines)), int(np.argmax(pairs.differences))
    return {
        "tool": "compare_results.py",
        "version": cli.VERSION,
        "a": os.path.abspath(folder_a),
        "b": os.path.abspath(folder_b),
        "images": len(common),
        "classes": pairs.classes,
        "cosine": {
            "min": pairs.cosines[worst],
            "mean": float(np.mean(pairs.cosines)),
            "image": common[worst],
        },
        "cosines": pairs.cosines,
        "names": common,
        "largest_difference": {"value": pairs.differences[furthest], "image": common[furthest]},
        "top1_agreement": 100 * (len(common) - len(pairs.disagreements)) / len(common),
        "disagreements": pairs.disagreements,
        "only_in_a": sorted(set(files_a) - set(files_b), key=natural_key),
        "only_in_b": sorted(set(files_b) - set(files_a), key=natural_key),
    }


def mean_loss(cosines: List[float]) -> float:
    """How far the cosines are below 1 on average, LEAST_LOSS at least."""
    return max(float(np.mean([1 - cosine for cosine in cosines])), LEAST_LOSS)


def verdict(report: Dict[str, Any], path: str) -> str:
    """Whether the loss is the one that a forecast expects for the same images, in words.

    path: of the forecast. Raises: Refusal if it is not a forecast, or one of other images.
    """
    forecast = FORECAST.read(path)
    expected = dict(zip(forecast["names"], forecast["cosines"]))
    measured = dict(zip(report["names"], report["cosines"]))
    common = [name for name in measured if name in expected]
    if not common:
        raise Refusal(
            f"{shown(path)} is about other images than these, such as {shown(report['names'][0])}; "
            "make it again with the same images"
        )
    loss = mean_loss([measured[name] for name in common])
    foreseen = mean_loss([expected[name] for name in common])
    figures = (
        f"the cosine is {loss:.1e} below 1 on average, {foreseen:.1e} was forecast for float16"
    )
    if loss <= EXPLAINED * foreseen:
        return f"float16 explains it: {figures}"
    return f"the conversion is at fault: {figures}; scripts/find_layer.py finds the operator"


def count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def describe(report: Dict[str, Any]) -> str:
    """The report in lines to read."""
    cosine, difference = report["cosine"], report["largest_difference"]
    rows, images = report["disagreements"], report["images"]
    agreeing = images - len(rows)
    lines = [
        f"compared {count(images, 'image', 'images')} of "
        f"{count(report['classes'], 'class', 'classes')}: "
        f"{shown(report['a'])} and {shown(report['b'])}",
        f"cosine similarity: min {cosine['min']:.6f} ({shown(cosine['image'])}), "
        f"mean {cosine['mean']:.6f}",
        f"largest absolute difference: {difference['value']:.6g} ({shown(difference['image'])})",
        f"Top-1 agreement: {percent(agreeing, images):.2f} % ({agreeing} of {images})",
    ]
    lines += [
        f"    {shown(row['image'])}: class {row['a']}, but {row['b']} in the second folder"
        for row in rows[:SHOWN]
    ]
    if len(rows) > SHOWN:
        lines.append(f"    ... and {len(rows) - SHOWN} more (--json FILE lists all)")
    if "verdict" in report:
        lines.append(report["verdict"])
    for folder, names in (("first", report["only_in_a"]), ("second", report["only_in_b"])):
        if len(names) == 1:
            lines.append(
                f"1 image is only in the {folder} folder and was left out: {shown(names[0])}"
            )
        elif names:
            lines.append(
                f"{len(names)} images are only in the {folder} folder and were left out, for "
                f"instance {shown(names[0])}"
            )
    return "\n".join(lines)


def below(value: float, least: float, decimals: int) -> str:
    """A value below a minimum, with as many decimals as it takes to see that, or `decimals`."""
    texts = (f"{value:.{places}f}" for places in range(decimals, 18))
    return next((text for text in texts if float(text) < least), repr(value))


def shortfalls(
    report: Dict[str, Any], min_cosine: Optional[float], min_agreement: Optional[float]
) -> List[str]:
    """What is below the given minimum, in words."""
    reasons = []
    cosine, agreement = report["cosine"]["min"], report["top1_agreement"]
    if min_cosine is not None and cosine < min_cosine:
        reasons.append(
            f"the cosine similarity falls to {below(cosine, min_cosine, 6)} "
            f"({shown(report['cosine']['image'])}), below --min-cosine {min_cosine}"
        )
    if min_agreement is not None and agreement < min_agreement:
        reasons.append(
            f"the Top-1 agreement is {below(agreement, min_agreement, 2)} %, below "
            f"--min-agreement {min_agreement}"
        )
    return reasons


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "a", metavar="A", type=options.path, help="folder of results, e.g. of the NPU"
    )
    parser.add_argument(
        "b", metavar="B", type=options.path, help="folder of results, e.g. of the CPU runner"
    )
    options.add(
        parser,
        "first",
        "json_file",
        "forecast_file",
        "min_cosine",
        "min_agreement",
        help={"first": "only the first N common images, in natural order"},
    )
    return options.parse(parser)


def main() -> None:
    arguments = parse_arguments()
    report = compare(arguments.a, arguments.b, arguments.first)
    if arguments.forecast:
        report["verdict"] = verdict(report, arguments.forecast)
    print(describe(report))
    if arguments.json:
        record.claim_like(arguments.json, f'"tool": "{report["tool"]}"')
        try:
            write_whole(arguments.json, json_file.encode(report))
        except OSError as error:
            raise Refusal(
                f"{shown(arguments.json)} cannot be written ({error.strerror}); choose another "
                "file for --json"
            ) from None
    reasons = shortfalls(report, arguments.min_cosine, arguments.min_agreement)
    if reasons:
        raise Refusal(", and ".join(reasons), cli.BELOW_MINIMUM)


if __name__ == "__main__":
    cli.run(main)
