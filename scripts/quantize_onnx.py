#!/usr/bin/env python3
"""Quantise an ONNX model to int8 with ONNX Runtime's own tools, calibrated on prepared images.

    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset
    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset \\
        --labels ImageNet/val_label.txt --max-drop 0.5

In:  a float32 ONNX file, and prepared images: float32, or uint8 with --aipp.
Out: the int8 ONNX file, and tresnet_m_int8.json, which says which layers stay float32.
Use it on CPUs with 8-bit dot products (VNNI); there int8 is about three times as fast as float32.
Weights are quantised per output channel, activations per tensor. Their ranges come from the
calibration images. Accuracy changes: infer both models and compare them with
scripts/compare_results.py before you trust the fast one.
--max-drop P puts the costliest layers back to float32 until Top-1, over all images, is at most P
percentage points below float32's.
"""

import logging
import os
import tempfile
import time
from typing import Dict, Iterator, List, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import options, progress
from common.core.cli import Refusal, counted, shown
from common.data.inputs import read_batch
from common.model import onnx_file, quantisation

import numpy as np
import onnx

OPSET = 13  # the first whose (de)quantisation has a scale per channel
IMAGES = 100  # enough for the ranges to settle; more cost time, one forward pass each


def quantize(
    model: onnx.ModelProto, images: Iterator[np.ndarray], folder: str, left: List[str]
) -> onnx.ModelProto:
    """The model in QDQ form, with int8 weights and uint8 activations.

    images: for the calibration, float32 [1, 3, h, w].
    folder: for temporary files; left: operators that stay float32.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Images(CalibrationDataReader):
        def get_next(self) -> Optional[Dict[str, np.ndarray]]:
            image = next(images, None)
            return None if image is None else {model.graph.input[0].name: image}

    source, target = os.path.join(folder, "float32.onnx"), os.path.join(folder, "int8.onnx")
    opset = max(OPSET, model.opset_import[0].version)
    onnx.save(onnx.version_converter.convert_version(model, opset), source)
    # It advises to fold constants and batch norm first; both are done.
    logging.disable(logging.WARNING)
    quantize_static(
        source,
        target,
        Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=left,
    )
    logging.disable(logging.NOTSET)
    return onnx.load(target)


def make(task: quantisation.Task) -> Tuple[onnx.ModelProto, quantisation.Report]:
    """(the int8 model, its report); with --max-drop layers are put back until it holds."""
    model = onnx_file.load(task.arguments.model)
    groups = quantisation.groups_of(model)

    def images(bar: progress.Bar) -> Iterator[np.ndarray]:
        for path in task.chosen:
            yield read_batch([path], task.single)
            bar.advance()

    def quantise(back: List[str]) -> onnx.ModelProto:
        left: List[str] = sum((groups[group] for group in back), [])
        with tempfile.TemporaryDirectory() as folder, progress.Bar(
            "calibrating", len(task.chosen), "images", lines_every=10
        ) as bar:
            return quantize(model, images(bar), folder, left)

    def answers_of(int8_model: onnx.ModelProto) -> np.ndarray:
        return quantisation.answers(int8_model, task.paths, task.several)[0]

    return task.make(model, groups, quantise, answers_of)


def main() -> None:
    arguments = options.parse(quantisation.parser(__doc__, IMAGES))
    start = time.time()
    task = quantisation.Task(__file__, arguments)
    if task.is_current():
        return
    quantized, report = make(task)
    size = task.write(quantized, {"float": {}, **report})
    put_back = ""
    if report["put_back"]:
        put_back = f", {counted(len(report['put_back']), 'layer')} put back to float32"
    print(
        f"{shown(arguments.output)}: int8, calibrated on {counted(len(task.chosen), 'image')}"
        f"{put_back}, {size / 1e6:.1f} MB in {time.time() - start:.1f} s"
    )
    if not report.get("held", True):
        raise Refusal(
            f"even with every layer in float32 Top-1 drops by {report['drop']:.2f} points, more "
            f"than --max-drop {arguments.max_drop:g}",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main)
