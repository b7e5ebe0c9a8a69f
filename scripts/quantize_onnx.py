#!/usr/bin/env python3
"""Quantise an ONNX model to int8 with ONNX Runtime's own tools, calibrated on prepared images.

    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset
    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset \\
        --labels ImageNet/val_label.txt --max-drop 0.5

In:  a float32 ONNX file, and prepared images: float32, or uint8 with --aipp.
Out: the int8 ONNX file, and tresnet_m_int8.json, which says how it was quantised, how fast it is
     beside float32, and which layers stay float32.
From 100 images on it tries several ways on up to 200 of them: weights of 7 and 8 bits, a scale per
output channel or per tensor, ranges by MinMax, Entropy and Percentile. It takes the fastest whose
agreement with float32 is within the best one's 95 % interval. --quant-bits, --quant-scales and
--quant-ranges decide it instead. A CPU without VNNI (avx512_vnni, avx_vnni; on ARM dot products)
may not add 8-bit products exactly: there the weights have 7 bits.
--max-drop P puts the costliest layers back to float32 until Top-1 is at most P percentage points
below float32's: docs/ascend.md.
"""

import argparse
import itertools
import time
from typing import Any, Dict, List, NamedTuple, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import options, processor
from common.core.cli import Refusal, counted, shown
from common.data.inputs import read_batch
from common.model import calibration, onnx_file, operators, quantisation
from common.model.calibration import SCALES, Quantiser, Speed, Tried, Variant
from common.results.summary import speed_words

import numpy as np
import onnx

IMAGES = 100  # for the calibration: enough for the ranges to settle; each costs a forward pass
TRIAL = 200  # images of the trial
LEAST_TRIAL = 100  # with fewer images the ways look alike


class Choice(NamedTuple):
    """How a model is quantised."""

    variant: Variant
    tried: List[Tried]  # [] if there was nothing to choose from
    images: int  # of the trial
    reasons: List[str]  # what was taken and why, three lines


def variants(arguments: argparse.Namespace, are_enough: bool) -> List[Variant]:
    """The ways that may be taken; the first one is taken without a trial.

    are_enough: whether there are enough images for a trial.
    """
    here = processor.this()
    bits = [here.weight_bits]
    if here.weight_bits == processor.EXACT_BITS and are_enough:
        bits.append(processor.SAFE_BITS)
    if arguments.quant_bits:
        bits = [int(arguments.quant_bits)]
    scales = [arguments.quant_scales] if arguments.quant_scales else list(SCALES)
    ranges = calibration.methods_here()
    if arguments.quant_ranges:
        if arguments.quant_ranges not in ranges:
            raise Refusal(
                f"this ONNX Runtime needs the package scipy for --quant-ranges "
                f"{arguments.quant_ranges}; install it, or leave the option out"
            )
        ranges = [arguments.quant_ranges]
    ways = [Variant(*values) for values in itertools.product(bits, scales, ranges)]
    return ways if are_enough else ways[:1]


def choose(
    task: quantisation.Task,
    model: onnx.ModelProto,
    quantiser: Quantiser,
    ways: List[Variant],
    images: np.ndarray,
) -> Choice:
    """Try the ways, and say in three lines which one is taken and why.

    images: float32 [batch, 3, h, w], to measure.
    """
    if len(ways) == 1:
        return Choice(ways[0], [], 0, [])
    count = len(task.tried)
    rows = calibration.try_variants(quantiser, ways, model, task.tried, task.several)
    models = {}
    for scales in {row.variant.scales: None for row in rows}:
        (first, *_) = [way for way in ways if way.scales == scales]
        models[scales] = quantiser.make(first)
    speed = calibration.measure(models, images) if len(models) > 1 else None
    chosen = calibration.choose(rows, count, speed)
    reasons = calibration.explain(rows, chosen, count, speed)
    print("\n".join(reasons), flush=True)
    return Choice(chosen.variant, rows, count, reasons)


def make(
    task: quantisation.Task, ways: List[Variant]
) -> Tuple[onnx.ModelProto, quantisation.Report, Variant]:
    """(the int8 model, its report, how it was quantised)."""
    model = onnx_file.load(task.arguments.model)
    operators.session(model)  # it says what is wrong with a model; the quantisation does not
    groups = quantisation.groups_of(model)
    quantiser = Quantiser(model, task.chosen, task.single)
    ways = [way for way in ways if quantiser.can_make(way)]
    if not ways:
        raise Refusal(
            "this ONNX Runtime cannot make weights of 7 bits with a scale per tensor; leave out "
            "--quant-scales or --quant-bits, or install a later one"
        )
    batch = read_batch(task.paths[: task.several.batch_size], task.several)
    choice = choose(task, model, quantiser, ways, batch)

    def quantise(back: List[str]) -> onnx.ModelProto:
        left: List[str] = sum((groups[group] for group in back), [])
        return quantiser.make(choice.variant, left)

    def answers_of(int8_model: onnx.ModelProto) -> np.ndarray:
        return quantisation.answers(int8_model, task.paths, task.several, "inference in int8")[0]

    def costs_on(images: np.ndarray) -> Dict[str, float]:
        """Each group alone, in the arithmetic that will run here."""

        def logits_of(group: str) -> np.ndarray:
            others = quantisation.names_without(groups, group)
            return operators.logits_of(quantiser.make(choice.variant, others))(images)

        return quantisation.costs_of(groups, operators.logits_of(model)(images), logits_of)

    quantized, report = task.make(model, groups, quantise, answers_of, costs_on)
    speed = calibration.measure({"int8": quantized, "float32": model}, batch)
    return quantized, {**describe(choice), "speed": speed_row(speed), **report}, choice.variant


def describe(choice: Choice) -> Dict[str, Any]:
    """What the report says of the way that was taken, and of the others."""
    here = processor.this()
    return {
        "weight_bits": choice.variant.bits,
        "scales": choice.variant.scales,
        "ranges": choice.variant.ranges,
        "weights": bits_words(choice.variant.bits),
        "processor": here._asdict(),
        "trial": choice.reasons,
        "trial_images": choice.images,
        "tried": [
            {**row.variant._asdict(), "agreement": row.agreement, "cosine": row.cosine}
            for row in choice.tried
        ],
    }


def speed_row(speed: Speed) -> Dict[str, Any]:
    """What the report says of int8's speed beside float32's, measured in turns."""
    middle, low, high = calibration.ratio(speed, "int8", "float32")
    return {
        "batch_size": speed.batch_size,
        "rounds": calibration.ROUNDS,
        "int8": speed.median("int8"),
        "float32": speed.median("float32"),
        "ratio": middle,
        "spread": [low, high],
    }


def bits_words(bits: int) -> str:
    """How many bits the weights have, and what that means on this CPU."""
    here = processor.this()
    if here.dot_product:
        return f"weights of {bits} bits; this CPU adds products exactly ({here.dot_product})"
    lacking = "this CPU has no VNNI or dot product instructions, and sums of 8 bits may saturate"
    return f"weights of {bits} bits; {lacking}"


def main() -> None:
    parser = quantisation.parser(__doc__, IMAGES)
    options.add(parser, "quant_bits", "quant_scales", "quant_ranges")
    arguments = options.parse(parser)
    start = time.time()
    asked = [arguments.quant_bits, arguments.quant_scales, arguments.quant_ranges]
    here = processor.this()
    task = quantisation.Task(
        __file__, arguments, 0 if all(asked) else TRIAL, quant=asked, processor=list(here)
    )
    if task.is_current():
        return
    ways = variants(arguments, len(task.tried) >= LEAST_TRIAL)
    quantized, report, taken = make(task, ways)
    size = task.write(quantized, {"float": {}, **report}, weight_bits=str(taken.bits))
    put_back = ""
    if report["put_back"]:
        names = [row["name"] for row in report["put_back"]]
        put_back = f", {quantisation.words_of(names)} put back to float32"
    print(
        f"{shown(arguments.output)}: int8, {taken}, calibrated on "
        f"{counted(len(task.chosen), 'image')}{put_back}, {size / 1e6:.1f} MB in "
        f"{time.time() - start:.1f} s"
    )
    print(f"{report['weights']}\nspeed: {speed_words(report['speed'])}")
    processor.warn_of({"precision": "int8", "weight_bits": str(taken.bits)})
    if report["speed"]["ratio"] < 1:
        cli.say("warning: int8 is slower than float32 here; use float32")
    if not report.get("held", True):
        raise Refusal(
            f"even with every layer in float32 Top-1 drops by {report['drop']:.2f} points, more "
            f"than --max-drop {arguments.max_drop:g}",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main)
