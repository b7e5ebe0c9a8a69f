#!/usr/bin/env python3
"""Quantise an ONNX model to int8 with ONNX Runtime's own tools, calibrated on prepared images.

    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset

For CPUs with 8-bit dot products (VNNI), where it is near three times as fast as float32. Weights are quantised per
output channel, activations per tensor, by the ranges they take on the calibration images. Accuracy changes: infer both
models and compare them with scripts/compare_results.py before you trust the fast one.
"""
import logging
import os
import tempfile
import time
from typing import Dict, Iterator, Optional

from common import cli, files, onnx_file, record
from common.cli import shown
from common.inputs import Input, list_inputs, read_aipp, read_batch

import numpy as np
import onnx

OPSET = 13  # the first whose (de)quantisation has a scale per channel
IMAGES = 100  # enough for the ranges to settle; more cost time, one forward pass each


def quantize(model: onnx.ModelProto, images: Iterator[np.ndarray], folder: str) -> onnx.ModelProto:
    """The model in QDQ form, int8 weights, uint8 activations. images: float32 [1, 3, h, w]; folder: for scratch."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Optional[Dict[str, np.ndarray]]:
            image = next(images, None)
            return None if image is None else {model.graph.input[0].name: image}

    source, target = os.path.join(folder, "float32.onnx"), os.path.join(folder, "int8.onnx")
    onnx.save(onnx.version_converter.convert_version(model, max(OPSET, model.opset_import[0].version)), source)
    logging.disable(logging.WARNING)  # its advice to fold constants and batch norm first: both are done
    quantize_static(source, target, Images(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    logging.disable(logging.NOTSET)
    return onnx.load(target)


def main() -> None:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("model", type=cli.path, help="float32 .onnx file")
    add("output", type=cli.path, help="the int8 .onnx file")
    add("--calibrate", required=True, type=cli.path, metavar="FOLDER", help="prepared images (.bin)")
    add("--images", type=cli.whole(1), default=IMAGES, help="how many of them, evenly spaced (default: %(default)s)")
    add("--aipp", type=cli.path, help="AIPP configuration, if the images are uint8")
    add("--force", action="store_true", help="quantise again even if the output is up to date")
    arguments = parser.parse_args()
    start = time.time()
    described = onnx_file.describe(arguments.model)
    paths = list_inputs(arguments.calibrate)
    count = min(arguments.images, len(paths))
    paths = [paths[index * len(paths) // count] for index in range(count)]  # data sets are often sorted by class
    aipp = read_aipp(arguments.aipp) if arguments.aipp else {}
    made_by = record.recipe(__file__, {"images": arguments.images, "aipp": aipp}, ("onnxruntime", "onnx", "numpy"),
                            [arguments.model, *paths])
    if not arguments.force and record.is_current(arguments.output, made_by):
        print(f"{shown(arguments.output)} is up to date; --force quantises again")
        return
    record.claim(arguments.output, [arguments.output])
    sample = Input(described["input"], tuple(described["shape"][1:]), 1, aipp)
    with tempfile.TemporaryDirectory() as folder:
        quantized = quantize(onnx_file.load(arguments.model), (read_batch([path], sample) for path in paths), folder)
    onnx.helper.set_model_props(quantized, dict(described["metadata"], precision="int8"))
    data = quantized.SerializeToString()
    record.begin(arguments.output, made_by, [arguments.output])
    files.write_whole(arguments.output, data)
    record.write(arguments.output, made_by, [arguments.output])
    print(f"{shown(arguments.output)}: int8, calibrated on {count} images, {len(data) / 1e6:.1f} MB in "
          f"{time.time() - start:.1f} s")


if __name__ == "__main__":
    cli.run(main)
