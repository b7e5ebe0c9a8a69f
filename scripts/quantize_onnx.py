"""Quantise an ONNX model to int8 with ONNX Runtime's own tools, calibrated on prepared images.

    python3 scripts/quantize_onnx.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset

For CPUs with 8-bit dot products (VNNI), where it is near three times as fast as float32. Weights are quantised per
output channel, activations per tensor, by the ranges they take on the calibration images. Accuracy changes: infer both
models and compare them with scripts/compare_results.py before you trust the fast one.
"""
import argparse
import json
import logging
import os
import sys
import tempfile
import time
from typing import Dict, Iterator, List, Optional

import numpy as np
import onnx

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.dirname(os.path.abspath(__file__))]
from infer_onnx import Input, identity, list_inputs, read_aipp, read_batch, shown  # noqa: E402

from TResNet_preprocess import VERSION, write_whole  # noqa: E402

OPSET = 13  # the first whose (de)quantisation has a scale per channel
IMAGES = 100  # enough for the ranges to settle; more cost time, one forward pass each


def refuse(message: str) -> SystemExit:
    return SystemExit(f"quantize_onnx.py: {message}")


def spread(paths: List[str], count: int) -> List[str]:
    """`count` of the paths, evenly spaced: data sets are often sorted by class."""
    return ([paths[index * len(paths) // count] for index in range(min(count, len(paths)))] if len(paths) > count
            else paths)


def quantize(model: onnx.ModelProto, images: Iterator[np.ndarray], folder: str) -> onnx.ModelProto:
    """The model with int8 weights and uint8 activations in QDQ form.

    images: float32 [1, 3, h, w] each; folder: for scratch files.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    name = model.graph.input[0].name

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Optional[Dict[str, np.ndarray]]:
            image = next(images, None)
            return None if image is None else {name: image}

    source, target = os.path.join(folder, "float32.onnx"), os.path.join(folder, "int8.onnx")
    onnx.save(onnx.version_converter.convert_version(model, max(OPSET, model.opset_import[0].version)), source)
    logging.disable(logging.WARNING)  # its advice to fold constants and batch norm first: both are done
    quantize_static(source, target, Images(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    logging.disable(logging.NOTSET)
    return onnx.load(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="float32 .onnx file")
    parser.add_argument("output", help="the int8 .onnx file")
    parser.add_argument("--calibrate", required=True, metavar="FOLDER", help="prepared images (.bin)")
    parser.add_argument("--images", type=int, default=IMAGES,
                        help="how many of them, evenly spaced (default: %(default)s)")
    parser.add_argument("--aipp", help="AIPP configuration, if the images are uint8")
    parser.add_argument("--force", action="store_true", help="quantise again even if the output is up to date")
    arguments = parser.parse_args()
    start = time.time()
    if arguments.images < 1:
        parser.error(f"--images must be 1 or more, not {arguments.images}")
    if not os.path.isfile(arguments.model):
        raise refuse(f"the model {shown(arguments.model)} is not there; make it with TResNet_pth2onnx.py")
    paths = spread(list_inputs(arguments.calibrate), arguments.images)
    aipp = read_aipp(arguments.aipp) if arguments.aipp else {}
    made_from = json.dumps([VERSION, identity([arguments.model]), identity(paths), aipp])
    try:
        if not arguments.force and os.path.exists(arguments.output) and any(
                entry.key == "quantized_from" and entry.value == made_from
                for entry in onnx.load(arguments.output).metadata_props):
            print(f"{arguments.output} is up to date; --force quantises again")
            return
        model = onnx.load(arguments.model)
        sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim]
    except Exception as error:  # protobuf's errors have no common type
        raise refuse(f"{shown(arguments.model)} or {shown(arguments.output)} is not an ONNX file that can be read "
                     f"({str(error)[:200]})")
    sample = Input(model.graph.input[0].name, tuple(sides[1:]), 1, aipp)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    with tempfile.TemporaryDirectory() as folder:
        quantized = quantize(model, (read_batch([path], sample) for path in paths), folder)
    onnx.helper.set_model_props(quantized, dict(metadata, precision="int8", quantized_from=made_from))
    data = quantized.SerializeToString()
    write_whole(arguments.output, data)
    print(f"{arguments.output}: int8, calibrated on {len(paths)} images, {len(data) / 1e6:.1f} MB in "
          f"{time.time() - start:.1f} s")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"quantize_onnx.py: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        print("\nquantize_onnx.py: interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)
