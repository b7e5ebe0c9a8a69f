#!/usr/bin/env python3
"""Say before there is a card what float16 will do to a model: real images through its graph in the card's arithmetic.

    python3 scripts/forecast_fp16.py tresnet_m.onnx --input prep_dataset
    python3 scripts/forecast_fp16.py tresnet_m.onnx --input prep_dataset --labels ImageNet/val_label.txt --output work
    bash scripts/onnx2om.sh tresnet_m.onnx -- --keep_dtype="$PWD/keep_dtype.txt"

In:  a float32 ONNX file, and images prepared by TResNet_preprocess.py (--aipp for uint8 ones).
Out: OUTPUT/forecast.json: the cosine similarity of float16's logits with float32's, Top-1 agreement, with --labels the
     Top-1 of both; for each operator its largest value, how far that is below 65,504, the largest number of float16,
     and the cosine of its results; the operators that overflow, and those that lose most.
     OUTPUT/forecast.png: the same over the operators in order.
     OUTPUT/keep_dtype.txt: those of them that the card can compute in float32, for atc's --keep_dtype; not written if
     that would not help.
scripts/compare_results.py --forecast says whether a run on the card lost what was forecast, or more: docs/ascend.md.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from common.core import cli
from common.model.statistics import cosine_similarity

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, json_file, options, progress, recipe, record
from common.core.cli import Refusal, shown, some
from common.core.names import result_stem
from common.data.images import list_inputs
from common.data.inputs import Input, input_of, read_batch
from common.data.prepared import true_classes
from common.model import float16, onnx_file, operators
from common.results.figures import share
from common.results.work_files import FORECAST

import numpy as np

if TYPE_CHECKING:
    import onnx

WORST = 5  # operators that are named as losing most
NOTICED = 1e-6  # of the cosine: an operator that loses less is not named; one rounding of a result costs about 4e-8
HELPS = 0.9  # --keep_dtype is advised if it brings the loss below this share of what it was
ROOM = (
    4.0  # a largest value less than so many times below 65,504 is close to overflow on other images
)


# ---- running ---------------------------------------------------------------------------------------------------------


class Seen:
    """What was seen of one operator, over all images."""

    def __init__(self) -> None:
        self.largest, self.cosine = 0.0, 1.0

    def add(self, full: np.ndarray, half: np.ndarray, bias: Optional[np.ndarray]) -> None:
        """One image: its float32 and its float16 result; the sum before the bias is rounded, so it counts as well."""
        self.largest = max(self.largest, float(np.abs(full).max()))
        if bias is not None:
            self.largest = max(self.largest, largest_sum(full, bias))
        a, b = full.reshape(-1), half.reshape(-1)
        squares = float(np.dot(a, a)), float(np.dot(b, b))
        if (
            min(squares) > 0
        ):  # float32 sums of up to a million products are exact to 1e-6 of this difference
            self.cosine = min(self.cosine, 1 - angle_loss(a, b, squares))
        elif max(squares) > 0:
            self.cosine = 0.0


def largest_sum(result: np.ndarray, bias: np.ndarray) -> float:
    """The largest magnitude of result - bias, result [1, channels, …]."""
    channels = result.reshape(len(bias), -1)
    return float(
        max(np.abs(channels.max(axis=1) - bias).max(), np.abs(channels.min(axis=1) - bias).max())
    )


def angle_loss(a: np.ndarray, b: np.ndarray, squares: Tuple[float, float]) -> float:
    """1 - cosine of two vectors with these sums of squares, without the cancellation of 1 - a·b / (|a|·|b|)."""
    difference = a / np.float32(squares[0] ** 0.5) - b / np.float32(squares[1] ** 0.5)
    return float(np.dot(difference, difference)) / 2


def run_images(
    model: onnx.ModelProto, paths: List[str], sample: Input
) -> Tuple[Dict[str, Seen], np.ndarray, np.ndarray]:
    """Every image through the model in float32 and in float16.

    Returns ({tensor: what was seen of it}, logits of float32, of float16: each [images, classes]).
    """
    from onnx import numpy_helper  # here: a forecast that is up to date does not need it

    tensors, output = [node.output[0] for node in model.graph.node], model.graph.output[0].name
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    biases = {
        node.output[0]: numpy_helper.to_array(weights[node.input[2]])
        for node in model.graph.node
        if node.op_type in float16.BIASED and len(node.input) == 3
    }
    full = operators.session(operators.with_outputs(model, tensors))
    half = operators.session(operators.with_outputs(float16.rounded(model), tensors))
    seen = {name: Seen() for name in tensors}
    logits: List[List[np.ndarray]] = [[], []]
    with progress.Bar("forecast", len(paths), "images", lines_every=10) as bar:
        for path in paths:
            image = {sample.name: read_batch([path], sample)}
            found, rounded = operators.run(full, image), operators.run(half, image)
            for name, entry in seen.items():
                entry.add(found[name], rounded[name], biases.get(name))
            for values, result in zip(logits, (found, rounded)):
                values.append(result[output][0])
            bar.advance()
    return seen, np.stack(logits[0]), np.stack(logits[1])


# ---- what follows from it --------------------------------------------------------------------------------------------


def operator_rows(model: onnx.ModelProto, seen: Dict[str, Seen]) -> List[Dict[str, Any]]:
    """A row per operator: name, type, largest, headroom (65,504 - largest), cosine (the lowest of all images).

    loss: by how much its cosine is below the lowest among its inputs.
    """
    rows = []
    for node in model.graph.node:
        entry = seen[node.output[0]]
        before = min((seen[name].cosine for name in node.input if name in seen), default=1.0)
        rows.append(
            {
                "name": operators.name_of(node),
                "type": node.op_type,
                "largest": entry.largest,
                "headroom": float16.LARGEST - entry.largest,
                "cosine": entry.cosine,
                "loss": max(0.0, before - entry.cosine),
            }
        )
    return rows


def keepable(
    model: onnx.ModelProto, overflowing: List[Dict[str, Any]], losing: List[Dict[str, Any]]
) -> List[str]:
    """The operators for atc's --keep_dtype, if they have such a kernel: all that overflow, those that read what these
    hand on (or it would become float16 there), and a few that lose most.
    """
    too_large = {
        node.output[0]
        for node in model.graph.node
        if operators.name_of(node) in {row["name"] for row in overflowing}
    }
    worst = {
        row["name"]
        for row in [row for row in losing if row["type"] in float16.WITH_FLOAT32][:WORST]
    }
    return [
        operators.name_of(node)
        for node in model.graph.node
        if node.op_type in float16.WITH_FLOAT32
        and (
            too_large.intersection([*node.input, *node.output]) or operators.name_of(node) in worst
        )
    ]


def forecast(
    model: onnx.ModelProto, paths: List[str], sample: Input, classes: Optional[np.ndarray]
) -> Dict[str, Any]:
    """All that forecast.json holds; classes: the true ones, if they are known."""
    seen, full, half = run_images(model, paths, sample)
    rows = operator_rows(model, seen)
    overflowing = [row for row in rows if row["headroom"] < 0]
    losing = sorted((row for row in rows if row["loss"] > NOTICED), key=lambda row: -row["loss"])
    cosines = [cosine_similarity(a, b) for a, b in zip(full, half)]
    lowest = int(np.argmin(cosines))
    report: Dict[str, Any] = {
        "tool": "forecast_fp16.py",
        "version": cli.VERSION,
        "images": len(paths),
        "cosine": {
            "min": cosines[lowest],
            "mean": float(np.mean(cosines)),
            "image": result_stem(paths[lowest]),
        },
        "cosines": cosines,
        "names": [result_stem(path) for path in paths],
        "top1_agreement": share(full.argmax(1) == half.argmax(1)),
        "top1": None if classes is None else share(half.argmax(1) == classes),
        "top1_float32": None if classes is None else share(full.argmax(1) == classes),
        "operators": rows,
        "overflow": [row["name"] for row in overflowing],
        "worst": [row["name"] for row in losing[:WORST]],
        "keep_dtype": keepable(model, overflowing, losing),
    }
    if report["keep_dtype"]:
        kept = operators.logits_of(float16.rounded(model, report["keep_dtype"]))
        report["cosine_kept"] = min(
            cosine_similarity(logits, kept(read_batch([path], sample))[0])
            for logits, path in zip(full, paths)
        )
        if 1 - report["cosine_kept"] > HELPS * (1 - report["cosine"]["min"]):
            report["keep_dtype"] = []
    return report


def describe(report: Dict[str, Any], seconds: float) -> str:
    cosine, rows = report["cosine"], {row["name"]: row for row in report["operators"]}
    largest = max(report["operators"], key=lambda row: row["largest"])
    lines = [
        f"forecast for float16 over {report['images']} images in {seconds:.1f} s "
        f"({seconds / report['images']:.2f} s each):",
        f"cosine similarity with float32: min {cosine['min']:.6f} ({shown(cosine['image'])}), mean "
        f"{cosine['mean']:.6f}",
        f"Top-1 agreement with float32: {report['top1_agreement']:.2f} %",
    ]
    if report["top1"] is not None:
        lines.append(
            f"Top-1 accuracy: {report['top1']:.2f} % expected, float32 {report['top1_float32']:.2f} %"
        )
    lines.append(
        f"largest value: {largest['largest']:.4g} ({shown(largest['name'])}), float16 ends at 65,504"
        + (
            "; other images may exceed it"
            if 0 <= largest["headroom"] and largest["largest"] * ROOM > float16.LARGEST
            else ""
        )
    )
    for name in report["overflow"]:
        lines.append(
            f"    overflows: {shown(name)} ({rows[name]['type']}), largest value {rows[name]['largest']:.4g}"
        )
    for name in report["worst"]:
        lines.append(
            f"    loses most: {shown(name)} ({rows[name]['type']}), cosine {rows[name]['cosine']:.6f}, "
            f"{rows[name]['loss']:.1e} lower than at its input"
        )
    if report["keep_dtype"]:
        lines.append(
            f"with {some(report['keep_dtype'])} in float32 (keep_dtype.txt) the lowest cosine is "
            f"{report['cosine_kept']:.6f}"
        )
    elif "cosine_kept" in report:
        lines.append(
            "no operator that the card can compute in float32 would change that: the convolutions lose it"
        )
    fixed = set(report["overflow"]) - set(report["keep_dtype"])
    if fixed:
        lines.append(
            f"{some(fixed)}: atc's --keep_dtype does not help there; smaller weights (retrained, or scaled "
            "and undone behind) are the way"
        )
    return "\n".join(lines)


# ---- command line ----------------------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("model", type=options.path, help="the float32 .onnx file")
    options.add(
        parser,
        "input",
        "images",
        "aipp",
        "labels",
        "label_offset",
        "output",
        "min_cosine",
        "force",
        required=["input"],
        help={"labels": "labels of the images: predicts the Top-1 accuracy as well"},
    )
    return options.parse(parser)


ALWAYS_MADE = ("forecast.json", "forecast.png")


def compute(
    arguments: argparse.Namespace,
    product: str,
    made_by: record.Recipe,
    paths: List[str],
    sample: Input,
) -> Dict[str, Any]:
    from common.results import plots  # here: a forecast that is up to date needs no matplotlib

    start, model, known = time.time(), onnx_file.load(arguments.model), None
    if arguments.labels:
        classes = operators.logits_of(model)(read_batch(paths[:1], sample)).shape[1]
        known = np.array(
            true_classes(
                arguments.labels,
                arguments.input,
                list(map(result_stem, paths)),
                classes,
                arguments.label_offset,
            )
        )
    report = forecast(model, paths, sample, known)
    print(describe(report, time.time() - start))
    contents = {
        "forecast.json": json_file.encode(report),
        "forecast.png": plots.forecast_png(report),
    }
    if report["keep_dtype"]:
        contents["keep_dtype.txt"] = "".join(name + "\n" for name in report["keep_dtype"]).encode()
    record.write(
        product,
        made_by,
        {os.path.join(arguments.output, name): data for name, data in contents.items()},
    )
    print(f"{', '.join(contents)} in {shown(arguments.output)}")
    return report


def main() -> None:
    arguments = parse_arguments()
    sample = input_of(onnx_file.describe(arguments.model), arguments.aipp)
    paths = list_inputs(arguments.input)[: arguments.images]
    files.make_folder(arguments.output, "--output")
    product = os.path.join(arguments.output, "forecast")
    settings = [arguments.labels] if arguments.labels else []
    options = {"aipp": sample.aipp, "label_offset": arguments.label_offset}
    inputs = [*onnx_file.all_files(arguments.model), *paths]
    made_by = recipe.make(__file__, options, ("onnxruntime", "onnx", "numpy"), inputs, settings)
    names = [os.path.join(arguments.output, name) for name in ALWAYS_MADE]
    if record.is_up_to_date(product, made_by, names, arguments.force):
        report = FORECAST.read(product + ".json")
        print(
            f"the forecast in {shown(product + '.json')} is up to date: cosine {report['cosine']['min']:.6f} at "
            "least; --force computes it again"
        )
    else:
        report = compute(arguments, product, made_by, paths, sample)
    if arguments.min_cosine is not None and report["cosine"]["min"] < arguments.min_cosine:
        raise Refusal(
            f"float16 will lower the cosine similarity to {report['cosine']['min']:.6f} "
            f"({shown(report['cosine']['image'])}), below --min-cosine {arguments.min_cosine}",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main)
