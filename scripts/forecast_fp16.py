#!/usr/bin/env python3
"""Forecast without a card what float16 does to a model: images through it in the card's arithmetic.

    python3 scripts/forecast_fp16.py tresnet_m.onnx --input prep_dataset
    python3 scripts/forecast_fp16.py tresnet_m.onnx --input prep_dataset --output work \\
        --labels ImageNet/val_label.txt
    bash scripts/onnx2om.sh tresnet_m.onnx -- --keep_dtype="$PWD/keep_dtype.txt"

In:  a float32 ONNX file, and images prepared by TResNet_preprocess.py (--aipp for uint8 ones).
Out: OUTPUT/forecast.json: the cosine similarity of float16's logits with float32's, the Top-1
     agreement, with --labels the Top-1 of both. For each operator: its largest value, how far
     that is below 65,504, the largest number of float16, and the cosine of its results. The
     operators that overflow, and those that lose most.
     OUTPUT/forecast.png: the same over the operators in order.
     OUTPUT/keep_dtype.txt: those of them that the card can compute in float32, for atc's
     --keep_dtype; it is not written if that does not help.
scripts/compare_results.py --forecast says whether a run on the card lost what was forecast, or
more: docs/ascend.md.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any, Dict, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, json_file, options, progress, recipe, record
from common.core.cli import Refusal, counted, shown, some
from common.core.names import result_stem
from common.data import evaluation
from common.data.images import list_inputs, spaced
from common.data.inputs import Input, input_of, read_batch
from common.data.prepared import true_classes
from common.model import float16, onnx_file, operators
from common.model.statistics import cosine_similarity, interval
from common.results.figures import share
from common.results.work_files import FORECAST

import numpy as np

if TYPE_CHECKING:
    import onnx

ALWAYS_MADE = ("forecast.json", "forecast.png")
WORST = 5  # operators that are named as losing most
# An operator that loses less of the cosine is not named; one rounding of a result costs about 4e-8.
NOTICED = 1e-6
HELPS = 0.9  # --keep_dtype is advised if it brings the loss below this share of what it was
# Other images may overflow if the largest value times this factor is above 65,504.
SAFETY_FACTOR = 4.0
Row = Dict[str, Any]  # one operator in forecast.json, see operator_rows()
Report = Dict[str, Any]  # forecast.json


# ---- running -------------------------------------------------------------------------------------


class Operator:
    """One operator over all images: its largest value, and the lowest cosine of its results."""

    def __init__(self) -> None:
        self.largest, self.cosine = 0.0, 1.0

    def add(self, full: np.ndarray, half: np.ndarray, bias: Optional[np.ndarray]) -> None:
        """Add the results of one image in float32 and in float16.

        The card also rounds the sum before the bias, so that counts for the largest value too.
        """
        self.largest = max(self.largest, float(np.abs(full).max()))
        if bias is not None:
            self.largest = max(self.largest, largest_sum(full, bias))
        a, b = full.reshape(-1), half.reshape(-1)
        squares = float(np.dot(a, a)), float(np.dot(b, b))
        if min(squares) > 0:
            # Its float32 sums of up to a million products are exact to 1e-6 of the loss.
            self.cosine = min(self.cosine, 1 - angle_loss(a, b, squares))
        elif max(squares) > 0:
            self.cosine = 0.0


class Run(NamedTuple):
    """All images through a model in float32 and in float16."""

    operators: Dict[str, Operator]  # by the tensor that they make
    full: np.ndarray  # logits of float32, [images, classes]
    half: np.ndarray  # logits of float16, [images, classes]


def largest_sum(result: np.ndarray, bias: np.ndarray) -> float:
    """The largest magnitude of result - bias; result: [1, channels, …], bias: [channels]."""
    channels = result.reshape(len(bias), -1)
    extremes = np.stack([channels.max(axis=1), channels.min(axis=1)])
    return float(np.abs(extremes - bias).max())


def angle_loss(a: np.ndarray, b: np.ndarray, squares: Tuple[float, float]) -> float:
    """1 - cosine of two vectors with these sums of squares.

    Unlike 1 - a·b / (|a|·|b|) it does not subtract two almost equal numbers.
    """
    difference = a / np.float32(squares[0] ** 0.5) - b / np.float32(squares[1] ** 0.5)
    return float(np.dot(difference, difference)) / 2


def run_images(model: onnx.ModelProto, paths: List[str], sample: Input) -> Run:
    """Run each image through the model in float32 and in float16."""
    from onnx import numpy_helper  # here: an up-to-date forecast does not need it

    in_float16 = float16.rounded(model)
    tensors, output = [node.output[0] for node in model.graph.node], model.graph.output[0].name
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    biases = {
        node.output[0]: numpy_helper.to_array(weights[node.input[2]])
        for node in model.graph.node
        if node.op_type in float16.BIASED and len(node.input) == 3
    }
    full = operators.session(operators.with_outputs(model, tensors))
    half = operators.session(operators.with_outputs(in_float16, tensors))
    operator_of = {name: Operator() for name in tensors}
    full_logits, half_logits = [], []
    with progress.Bar("forecast", len(paths), "images", lines_every=10) as bar:
        for path in paths:
            image = {sample.name: read_batch([path], sample)}
            full_values, half_values = operators.run(full, image), operators.run(half, image)
            for name, operator in operator_of.items():
                operator.add(full_values[name], half_values[name], biases.get(name))
            full_logits.append(full_values[output][0])
            half_logits.append(half_values[output][0])
            bar.advance()
    return Run(operator_of, np.stack(full_logits), np.stack(half_logits))


# ---- what follows from it ------------------------------------------------------------------------


def operator_rows(model: onnx.ModelProto, operator_of: Dict[str, Operator]) -> List[Row]:
    """A row per operator: name, type, largest, headroom, cosine, loss.

    headroom: 65,504 - largest; cosine: the lowest of all images.
    loss: by how much its cosine is below the lowest among its inputs.
    """
    rows = []
    for node in model.graph.node:
        operator = operator_of[node.output[0]]
        cosines = [operator_of[name].cosine for name in node.input if name in operator_of]
        rows.append(
            {
                "name": operators.name_of(node),
                "type": node.op_type,
                "largest": operator.largest,
                "headroom": float16.LARGEST - operator.largest,
                "cosine": operator.cosine,
                "loss": max(0.0, min(cosines, default=1.0) - operator.cosine),
            }
        )
    return rows


def keepable(model: onnx.ModelProto, overflowing: List[Row], losing: List[Row]) -> List[str]:
    """The names of the operators for atc's --keep_dtype, if they have a float32 kernel.

    These are all that overflow, those that read their results (which would become float16 there),
    and a few that lose most.
    """
    candidates = [node for node in model.graph.node if node.op_type in float16.WITH_FLOAT32]
    worst = [row["name"] for row in losing if row["type"] in float16.WITH_FLOAT32][:WORST]
    overflow = {row["name"] for row in overflowing}
    too_large = set()
    for node in model.graph.node:
        if operators.name_of(node) in overflow:
            too_large.add(node.output[0])
    kept = []
    for node in candidates:
        name = operators.name_of(node)
        if name in worst or too_large.intersection([*node.input, *node.output]):
            kept.append(name)
    return kept


def accuracies(run: Run, classes: Optional[np.ndarray]) -> Dict[str, Any]:
    """How often both have the same Top-1, and the Top-1 of both, in %; None without classes.

    With the 95 % interval of each, for images like these.
    """
    half, full = run.half.argmax(1), run.full.argmax(1)
    figures: Dict[str, Any] = {"top1_agreement": share(full == half)}
    figures["agreement_interval"] = list(interval(int((full == half).sum()), len(full)))
    for name, answers in (("top1", half), ("top1_float32", full)):
        figures[name] = figures[f"{name}_interval"] = None
        if classes is not None:
            hits = answers == classes
            figures[name] = share(hits)
            figures[f"{name}_interval"] = list(interval(int(hits.sum()), len(hits)))
    return figures


def forecast(
    model: onnx.ModelProto, paths: List[str], sample: Input, classes: Optional[np.ndarray]
) -> Report:
    """All that forecast.json holds; classes: int [images], the true ones, if they are known."""
    run = run_images(model, paths, sample)
    rows = operator_rows(model, run.operators)
    overflowing = [row for row in rows if row["headroom"] < 0]
    losing = sorted((row for row in rows if row["loss"] > NOTICED), key=lambda row: -row["loss"])
    cosines = list(map(cosine_similarity, run.full, run.half))
    lowest = int(np.argmin(cosines))
    names = [result_stem(path) for path in paths]
    report: Report = {
        "tool": "forecast_fp16.py",
        "version": cli.VERSION,
        "images": len(paths),
        "cosine": {
            "min": cosines[lowest],
            "mean": float(np.mean(cosines)),
            "image": names[lowest],
        },
        "cosines": cosines,
        "names": names,
        **accuracies(run, classes),
        "operators": rows,
        "overflow": [row["name"] for row in overflowing],
        "worst": [row["name"] for row in losing[:WORST]],
        "keep_dtype": keepable(model, overflowing, losing),
    }
    if report["keep_dtype"]:
        rounded = float16.rounded(model, report["keep_dtype"])
        logits_of = operators.logits_of(rounded)
        kept = [logits_of(read_batch([path], sample))[0] for path in paths]
        report["cosine_kept"] = min(map(cosine_similarity, run.full, kept))
        if 1 - report["cosine_kept"] > HELPS * (1 - report["cosine"]["min"]):
            report["keep_dtype"] = []
    return report


def describe(report: Report, seconds: float) -> str:
    """The forecast in words, several lines."""
    images, cosine = report["images"], report["cosine"]
    lines = [
        f"forecast for float16 over {counted(images, 'image')} in {seconds:.1f} s "
        f"({seconds / images:.2f} s each):",
        f"Top-1 agreement with float32: {report['top1_agreement']:.2f} % "
        + interval_words(report["agreement_interval"]),
        f"cosine similarity with float32: min {cosine['min']:.6f} ({shown(cosine['image'])}), mean "
        f"{cosine['mean']:.6f}",
    ]
    if report["top1"] is not None:
        lines.append(
            f"Top-1 of {counted(images, 'image')}, not of the whole set: "
            f"{report['top1']:.2f} % {interval_words(report['top1_interval'])}, float32 "
            f"{report['top1_float32']:.2f} %"
        )
    return "\n".join(lines + describe_operators(report) + describe_remedy(report))


def interval_words(limits: List[float]) -> str:
    """A 95 % interval, in per cent."""
    return f"(95 % interval {limits[0]:.2f} to {limits[1]:.2f} %)"


def describe_operators(report: Report) -> List[str]:
    """Lines about the largest value, and the operators that overflow or lose most."""
    row_of = {row["name"]: row for row in report["operators"]}
    top = max(report["operators"], key=lambda row: row["largest"])
    is_close = top["headroom"] >= 0 and top["largest"] * SAFETY_FACTOR > float16.LARGEST
    warning = "; other images may exceed it" if is_close else ""
    lines = [
        f"largest value: {top['largest']:.4g} ({shown(top['name'])}), float16 ends at 65,504"
        + warning
    ]
    for name in report["overflow"]:
        row = row_of[name]
        lines.append(
            f"    overflows: {shown(name)} ({row['type']}), largest value {row['largest']:.4g}"
        )
    for name in report["worst"]:
        row = row_of[name]
        lines.append(
            f"    loses most: {shown(name)} ({row['type']}), cosine {row['cosine']:.6f}, "
            f"{row['loss']:.1e} lower than at its input"
        )
    return lines


def describe_remedy(report: Report) -> List[str]:
    """Lines about what atc's --keep_dtype changes."""
    kept = report["keep_dtype"]
    lines = []
    if kept:
        lines.append(
            f"with {some(kept)} in float32 (keep_dtype.txt) the lowest cosine is "
            f"{report['cosine_kept']:.6f}"
        )
    elif "cosine_kept" in report:
        lines.append(
            "atc's --keep_dtype would not help: the loss comes from the convolutions, which the "
            "card cannot compute in float32"
        )
    remaining = set(report["overflow"]) - set(kept)
    if remaining:
        lines.append(
            f"{some(remaining)}: atc's --keep_dtype does not help there; make the weights smaller: "
            "retrain, or scale them and undo it behind"
        )
    return lines


# ---- command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument("model", type=options.path, help="the float32 .onnx file")
    options.add(
        parser,
        "input",
        "images",
        "aipp",
        "labels",
        "labels_encoding",
        "label_offset",
        "output",
        "min_cosine",
        "force",
        required=["input"],
        help={
            "images": "so many of them, evenly spaced (default: %(default)s)",
            "labels": "labels of the images: says the Top-1 of these images as well",
        },
    )
    return options.parse(parser)


def compute(
    arguments: argparse.Namespace,
    product: str,
    made_by: record.Recipe,
    paths: List[str],
    sample: Input,
) -> Report:
    """Make the forecast, print it and write its files; returns what forecast.json holds."""
    from common.results import plots  # here: an up-to-date forecast does not need matplotlib

    start = time.time()
    model = onnx_file.load(arguments.model)
    classes = None
    if arguments.labels:
        count = operators.logits_of(model)(read_batch(paths[:1], sample)).shape[1]
        stems = list(map(result_stem, paths))
        labels = true_classes(
            arguments.labels,
            arguments.input,
            stems,
            count,
            arguments.label_offset,
            evaluation.has_background(arguments.model),
            arguments.labels_encoding,
        )
        classes = np.array(labels)
    report = forecast(model, paths, sample, classes)
    print(describe(report, time.time() - start))
    contents = {
        "forecast.json": json_file.encode(report),
        "forecast.png": plots.forecast_png(report),
    }
    if report["keep_dtype"]:
        contents["keep_dtype.txt"] = "".join(name + "\n" for name in report["keep_dtype"]).encode()
    written = {os.path.join(arguments.output, name): data for name, data in contents.items()}
    record.write(product, made_by, written)
    print(f"{', '.join(contents)} in {shown(arguments.output)}")
    return report


def main() -> None:
    arguments = parse_arguments()
    sample = input_of(onnx_file.describe(arguments.model), arguments.aipp)
    paths = spaced(list_inputs(arguments.input), arguments.images)
    files.make_folder(arguments.output, "--output")
    product = os.path.join(arguments.output, "forecast")
    labels = [arguments.labels] if arguments.labels else []
    settings = {
        "aipp": sample.aipp,
        "label_offset": arguments.label_offset,
        "background": evaluation.has_background(arguments.model),
        "labels_encoding": arguments.labels_encoding,
    }
    inputs = [*onnx_file.all_files(arguments.model), *paths]
    made_by = recipe.make(__file__, settings, ("onnxruntime", "onnx", "numpy"), inputs, labels)
    names = [os.path.join(arguments.output, name) for name in ALWAYS_MADE]
    if record.is_up_to_date(product, made_by, names, arguments.force):
        report = FORECAST.read(product + ".json")
        print(
            f"the forecast in {shown(product + '.json')} is up to date: cosine "
            f"{report['cosine']['min']:.6f} at least; --force computes it again"
        )
    else:
        report = compute(arguments, product, made_by, paths, sample)
    if arguments.min_cosine is not None and report["cosine"]["min"] < arguments.min_cosine:
        raise Refusal(
            f"float16 will lower the cosine similarity to {report['cosine']['min']:.6f} "
            f"({shown(report['cosine']['image'])}), below --min-cosine {arguments.min_cosine}; see "
            "the operators in forecast.json",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main)
