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
import argparse
import json
import logging
import os
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

from common import cli, files, onnx_file, progress, quantisation, record
from common.cli import Refusal, shown
from common.images import list_inputs
from common.inputs import Input, read_aipp, read_batch
from common.manifest import true_classes
from common.names import result_stem

import numpy as np
import onnx

OPSET = 13  # the first whose (de)quantisation has a scale per channel
RANKED = 8  # images by which layers are ranked
BATCH = 8  # of the runs for --max-drop
IMAGES = 100  # enough for the ranges to settle; more cost time, one forward pass each


def quantize(model: onnx.ModelProto, images: Iterator[np.ndarray], folder: str, left: List[str]) -> onnx.ModelProto:
    """The model in QDQ form, int8 weights, uint8 activations.

    images: float32 [1, 3, h, w]; folder: for scratch; left: operators that stay float32.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Optional[Dict[str, np.ndarray]]:
            image = next(images, None)
            return None if image is None else {model.graph.input[0].name: image}

    source, target = os.path.join(folder, "float32.onnx"), os.path.join(folder, "int8.onnx")
    onnx.save(onnx.version_converter.convert_version(model, max(OPSET, model.opset_import[0].version)), source)
    logging.disable(logging.WARNING)  # its advice to fold constants and batch norm first: both are done
    quantize_static(source, target, Images(), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=left)
    logging.disable(logging.NOTSET)
    return onnx.load(target)


def make(arguments: argparse.Namespace, sample: Input, paths: List[str], chosen: List[str]
         ) -> Tuple[onnx.ModelProto, Dict[str, Any]]:
    """(the int8 model, what its report holds); with --max-drop layers are put back until it holds."""
    model, single = onnx_file.load(arguments.model), sample._replace(batch_size=1)

    def quantized(back: List[str]) -> onnx.ModelProto:
        def images() -> Iterator[np.ndarray]:
            for path in chosen:
                yield read_batch([path], single)
                bar.advance()

        with tempfile.TemporaryDirectory() as folder, progress.Bar("calibrating", len(chosen), "images",
                                                                   lines_every=10) as bar:
            return quantize(model, images(), folder, back)

    report: Dict[str, Any] = {"tool": "quantize_onnx.py", "version": cli.VERSION, "float": {}, "put_back": []}
    if arguments.max_drop is None:
        return quantized([]), report
    right, count = quantisation.answers(model, paths, sample)
    classes = np.array(true_classes(arguments.labels, arguments.calibrate, list(map(result_stem, paths)), count,
                                    arguments.label_offset))
    groups, latest = quantisation.groups_of(model), []

    def judge(back: List[str]) -> np.ndarray:
        latest[:] = [quantized([name for group in back for name in groups[group]])]
        return quantisation.answers(latest[0], paths, sample)[0] == classes

    def rank() -> Dict[str, float]:
        images = np.concatenate([read_batch([path], single) for path in chosen[:RANKED]])
        return quantisation.costs(model, groups, images)

    report.update(quantisation.keep_promise(arguments.max_drop, right == classes, judge, rank, print))
    return latest[0], report


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("model", type=cli.path, help="float32 .onnx file")
    add("output", type=cli.path, help="the int8 .onnx file")
    add("--calibrate", required=True, type=cli.path, metavar="FOLDER", help="prepared images (.bin)")
    add("--images", type=cli.whole(1), default=IMAGES, help="how many of them, evenly spaced (default: %(default)s)")
    add("--aipp", type=cli.path, help="AIPP configuration, if the images are uint8")
    add("--max-drop", type=cli.real(0, 100), metavar="P",
        help="put layers back until Top-1 is at most P percentage points below float32's; takes --labels")
    add("--labels", type=cli.path, metavar="FILE", help="labels of the images, for --max-drop")
    add("--label-offset", type=int, choices=(-1, 0, 1), metavar="N", help="as for TResNet_postprocess.py")
    add("--force", action="store_true", help="quantise again even if the output is up to date")
    arguments = parser.parse_args()
    if (arguments.max_drop is None) != (arguments.labels is None):
        parser.error("--max-drop and --labels go together: the promise is about labelled images")
    if not arguments.output.endswith(".onnx"):
        parser.error(f"the output must end in .onnx, not {arguments.output}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    start = time.time()
    described = onnx_file.describe(arguments.model)
    paths = list_inputs(arguments.calibrate)
    count = min(arguments.images, len(paths))
    chosen = [paths[index * len(paths) // count] for index in range(count)]  # data sets are often sorted by class
    aipp = read_aipp(arguments.aipp) if arguments.aipp else {}
    promised = arguments.max_drop is not None
    made_by = record.recipe(__file__, {"images": arguments.images, "aipp": aipp, "max_drop": arguments.max_drop,
                                       "label_offset": arguments.label_offset},
                            ("onnxruntime", "onnx", "numpy"), [arguments.model, *(paths if promised else chosen)],
                            [arguments.labels] if promised else [])
    if not arguments.force and record.is_current(arguments.output, made_by):
        print(f"{shown(arguments.output)} is up to date; --force quantises again")
        return
    targets = [arguments.output, quantisation.report_path(arguments.output)]
    record.claim(arguments.output, targets)
    sample = Input(described["input"], tuple(described["shape"][1:]), described["shape"][0] or BATCH, aipp)
    quantized, report = make(arguments, sample, paths, chosen)
    onnx.helper.set_model_props(quantized, dict(described["metadata"], precision="int8"))
    data = quantized.SerializeToString()
    record.begin(arguments.output, made_by, targets)
    files.write_whole(targets[1], (json.dumps(report, indent=1) + "\n").encode())
    files.write_whole(arguments.output, data)
    record.write(arguments.output, made_by, targets)
    put_back = f", {len(report['put_back'])} layers put back to float32" if report["put_back"] else ""
    print(f"{shown(arguments.output)}: int8, calibrated on {count} images{put_back}, {len(data) / 1e6:.1f} MB in "
          f"{time.time() - start:.1f} s")
    if not report.get("held", True):
        raise Refusal(f"even with every layer in float32 Top-1 drops by {report['drop']:.2f} points, more than "
                      f"--max-drop {arguments.max_drop:g}", cli.BELOW_MINIMUM)


if __name__ == "__main__":
    cli.run(main)
