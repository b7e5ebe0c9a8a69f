#!/usr/bin/env python3
"""Quantise an ONNX model to int8 with ONNX Runtime's own tools, calibrated on prepared images.

    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset
    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset \\
        --labels ImageNet/val_label.txt --max-drop 0.5

For CPUs with 8-bit dot products (VNNI), where it is near three times as fast as float32. Weights are quantised per
output channel, activations per tensor, by the ranges they take on the calibration images. Accuracy changes: infer both
models and compare them with scripts/compare_results.py before you trust the fast one. With --max-drop the layers whose
quantising costs most are put back to float32 until Top-1, on all images, is at most so many percentage points below
float32's; tresnet_m_int8.json says which.
"""

import logging
import os
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import options, progress
from common.core.cli import Refusal, shown
from common.data.inputs import read_batch
from common.model import onnx_file, quantisation

import numpy as np
import onnx

OPSET = 13  # the first whose (de)quantisation has a scale per channel
IMAGES = 100  # enough for the ranges to settle; more cost time, one forward pass each


def quantize(
    model: onnx.ModelProto, images: Iterator[np.ndarray], folder: str, left: List[str]
) -> onnx.ModelProto:
    """The model in QDQ form, int8 weights, uint8 activations.

    images: float32 [1, 3, h, w]; folder: for scratch; left: operators that stay float32.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Optional[Dict[str, np.ndarray]]:
            image = next(images, None)
            return None if image is None else {model.graph.input[0].name: image}

    source, target = os.path.join(folder, "float32.onnx"), os.path.join(folder, "int8.onnx")
    onnx.save(
        onnx.version_converter.convert_version(model, max(OPSET, model.opset_import[0].version)),
        source,
    )
    logging.disable(
        logging.WARNING
    )  # its advice to fold constants and batch norm first: both are done
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


def make(task: quantisation.Task) -> Tuple[onnx.ModelProto, Dict[str, Any]]:
    """(the int8 model, what its report holds); with --max-drop layers are put back until it holds."""
    model = onnx_file.load(task.arguments.model)

    def quantized(back: List[str]) -> onnx.ModelProto:
        def images() -> Iterator[np.ndarray]:
            for path in task.chosen:
                yield read_batch([path], task.single)
                bar.advance()

        with tempfile.TemporaryDirectory() as folder, progress.Bar(
            "calibrating", len(task.chosen), "images", lines_every=10
        ) as bar:
            return quantize(model, images(), folder, back)

    groups = quantisation.groups_of(model)
    return task.make(
        model,
        groups,
        lambda back: quantized([name for group in back for name in groups[group]]),
        lambda made: quantisation.answers(made, task.paths, task.several)[0],
    )


def main() -> None:
    arguments = options.parse(quantisation.parser(__doc__, IMAGES))
    start = time.time()
    task = quantisation.Task(__file__, arguments)
    if task.is_current():
        return
    quantized, report = make(task)
    size = task.write(quantized, {"float": {}, **report})
    put_back = (
        f", {len(report['put_back'])} layers put back to float32" if report["put_back"] else ""
    )
    print(
        f"{shown(arguments.output)}: int8, calibrated on {len(task.chosen)} images{put_back}, {size / 1e6:.1f} MB in "
        f"{time.time() - start:.1f} s"
    )
    if not report.get("held", True):
        raise Refusal(
            f"even with every layer in float32 Top-1 drops by {report['drop']:.2f} points, more than "
            f"--max-drop {arguments.max_drop:g}",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main)
