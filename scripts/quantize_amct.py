#!/usr/bin/env python3
"""Quantise an ONNX model to int8 for the card with CANN's own tool, amct_onnx, calibrated on prepared images.

    python3 scripts/quantize_amct.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset
    python3 scripts/quantize_amct.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset \\
        --labels ImageNet/val_label.txt --max-drop 0.5
    bash scripts/onnx2om.sh tresnet_m_int8.onnx

In:  a float32 ONNX file of opset 11 to 14, and prepared images: float32, or uint8 with --aipp (then give the same AIPP
     file to onnx2om.sh); AMCT in the host's own Python (CANN's package amct_onnx).
Out: AMCT's deploy model: int8 layers between AscendQuant and AscendDequant, for atc; ONNX Runtime cannot run it.
     tresnet_m_int8.json says which layers stayed float16 and why.
The stem, squeeze-and-excitation and layers with few input channels stay float16. With --max-drop the model is compiled
and run on the card over all labelled images, and those layers whose quantising costs most are put back to float16 until
Top-1 is at most so many percentage points below float32's (ONNX Runtime's on the same images).
"""
import argparse
import json
import os
import shutil
import sys
import time
from typing import Any, Dict, List

from common import ascend, cli, files, onnx_file, quantisation, record
from common.cli import ROOT, Refusal, shown
from common.images import list_inputs
from common.inputs import Input, read_aipp, read_batch
from common.manifest import true_classes
from common.names import om_path, result_stem
from common.results import read_result, result_files

import numpy as np
import onnx

IMAGES = 24  # for calibration: more change the ranges little
RANKED = 8  # images by which layers are ranked
BATCH = 8  # of the runs for --max-drop
SCRIPTS = os.path.join(ROOT, "scripts")
OPSETS = range(8, 15)  # that AMCT reads


# ---- AMCT ------------------------------------------------------------------------------------------------------------

def quant_config(batches: int, skipped: List[str]) -> str:
    """The content of quant.cfg."""
    lines = [f"batch_num : {batches}", "joint_quant : true", *(f'skip_layers : "{name}"' for name in skipped)]
    return "".join(line + "\n" for line in lines)


def write_calibration(paths: List[str], sample: Input, folder: str) -> None:
    """The images as AMCT reads them: float32 .bin files of exactly the input's shape, and nothing else."""
    os.mkdir(folder, 0o750)
    for number, path in enumerate(paths):
        files.write_whole(os.path.join(folder, f"{number:06d}.bin"), read_batch([path], sample))


def calibrate(arguments: argparse.Namespace, sample: Input, count: int, skipped: List[str], folder: str) -> str:
    """Run amct_onnx in `folder`, which has the calibration data in `data`; the path of the deploy model.

    Raises: Refusal with what it said.
    """
    config = os.path.join(folder, "quant.cfg")
    files.write_whole(config, quant_config(count, skipped).encode())
    shape = ",".join(map(str, (1, *sample.shape)))
    command = ["amct_onnx", "calibration", "--model", os.path.abspath(arguments.model), "--save_path",
               os.path.join(folder, "model"), "--input_shape", f"{sample.name}:{shape}", "--data_dir",
               os.path.join(folder, "data"), "--data_types", "float32", "--calibration_config", config]
    log = arguments.output + ".amct.log"
    status = ascend.run_tool(command, log, cwd=folder)
    deploy = os.path.join(folder, "model_deploy_model.onnx")
    if status or not os.path.isfile(deploy):
        with open(log, encoding="utf-8", errors="replace") as file:
            said = [line.strip() for line in file if line.strip()] or ["nothing"]
        how = f"failed with status {status}" if status else "ended well, but wrote no deploy model"
        raise Refusal(f"amct_onnx {how} and said {said[-1][:300]!a}; its whole output: {shown(log)}")
    return deploy


# ---- the promise -----------------------------------------------------------------------------------------------------

def run_script(words: List[str], log: str) -> None:
    """Run one of the scripts. Raises: Refusal with the end of what it said."""
    if ascend.run_tool(words, log):
        with open(log, encoding="utf-8", errors="replace") as file:
            said = file.read().strip()[-2000:]
        raise Refusal(f"{os.path.basename(words[1])} failed and said:\n{said}\n    the whole output: {shown(log)}")
    os.remove(log)


def right_on_card(arguments: argparse.Namespace, model: str, stems: List[str], classes: np.ndarray, folder: str
                  ) -> np.ndarray:
    """bool [images]: compile the deploy model, run it over all images, see which are right."""
    log = arguments.output + ".run.log"
    aipp = ["--aipp", os.path.abspath(arguments.aipp)] if arguments.aipp else []
    soc_version = ["--soc-version", arguments.soc_version] if arguments.soc_version else []
    device = ["--device", arguments.device] if arguments.device else []
    run_script(["bash", os.path.join(SCRIPTS, "onnx2om.sh"), model, "--batch-sizes", str(BATCH), *aipp, *soc_version],
               log)
    run_script([sys.executable, os.path.join(SCRIPTS, "infer_om.py"), "--model", om_path(model, BATCH), "--input",
                arguments.calibrate, "--output", folder, "--output_dirname", "result", "--outfmt", "NPY", *device], log)
    results = result_files(os.path.join(folder, "result"))
    return np.array([int(read_result(results[stem]).argmax()) for stem in stems]) == classes


def quantise(arguments: argparse.Namespace, sample: Input, paths: List[str], chosen: List[str], folder: str
             ) -> Dict[str, Any]:
    """Calibrate, with --max-drop until it holds; what the report holds. The model is FOLDER/int8.onnx then."""
    model, target = onnx_file.load(arguments.model), os.path.join(folder, "int8.onnx")
    left = {} if arguments.all_layers else quantisation.float_on_card(model)
    single = sample._replace(batch_size=1)
    write_calibration(chosen, single, os.path.join(folder, "data"))
    metadata = {entry.key: entry.value for entry in model.metadata_props}

    def make(back: List[str]) -> None:
        deploy = onnx.load(calibrate(arguments, sample, len(chosen), sorted({*left, *back}), folder))
        onnx.helper.set_model_props(deploy, dict(metadata, precision="int8"))
        onnx.save(deploy, target)

    report: Dict[str, Any] = {"tool": "quantize_amct.py", "version": cli.VERSION, "float": left, "put_back": []}
    if arguments.max_drop is None:
        make([])
        return report
    answers, count = quantisation.answers(model, paths, sample)
    classes = np.array(true_classes(arguments.labels, arguments.calibrate, list(map(result_stem, paths)), count,
                                    arguments.label_offset))
    candidates = {name: [name] for name in quantisation.layers(model) if name not in left}

    def judge(back: List[str]) -> np.ndarray:
        make(back)
        return right_on_card(arguments, target, list(map(result_stem, paths)), classes, folder)

    def rank() -> Dict[str, float]:
        images = np.concatenate([read_batch([path], single) for path in chosen[:RANKED]])
        return quantisation.costs(model, candidates, images)

    report.update(quantisation.keep_promise(arguments.max_drop, answers == classes, judge, rank, print))
    return report


# ---- command line ----------------------------------------------------------------------------------------------------

def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("model", type=cli.path, help="float32 .onnx file")
    add("output", type=cli.path, help="the int8 .onnx file, for atc")
    add("--calibrate", required=True, type=cli.path, metavar="FOLDER", help="prepared images (.bin)")
    add("--images", type=cli.whole(1), default=IMAGES, help="how many of them, evenly spaced (default: %(default)s)")
    add("--aipp", type=cli.path, metavar="FILE", help="AIPP configuration, if the images are uint8")
    add("--all-layers", action="store_true", help="quantise all layers that AMCT can")
    add("--max-drop", type=cli.real(0, 100), metavar="P",
        help="put layers back until Top-1 is at most P percentage points below float32's; takes --labels and the card")
    add("--labels", type=cli.path, metavar="FILE", help="labels of the images, for --max-drop")
    add("--label-offset", type=int, choices=(-1, 0, 1), metavar="N", help="as for TResNet_postprocess.py")
    add("--soc-version", default="", metavar="NAME", help="e.g. Ascend310P3 (default: what `npu-smi info` names)")
    add("--device", metavar="N[,N…]|all", help="the chips to use, as for infer_om.py (default: 0)")
    add("--force", action="store_true", help="quantise again even if the output is up to date")
    arguments = parser.parse_args()
    if (arguments.max_drop is None) != (arguments.labels is None):
        parser.error("--max-drop and --labels go together: the promise is about labelled images")
    if not arguments.output.endswith(".onnx"):
        parser.error(f"the output must end in .onnx, not {arguments.output}")
    return arguments


def check_tools(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Describe the model. Raises: Refusal for one that AMCT does not read, or if there is no AMCT."""
    described = onnx_file.describe(arguments.model)
    opset = max(entry.version for entry in onnx_file.load(arguments.model).opset_import)
    if opset not in OPSETS:
        raise Refusal(f"{shown(arguments.model)} has opset {opset}, and AMCT reads {OPSETS[0]} to {OPSETS[-1]}; export "
                      "it with --opset 11")
    if not shutil.which("amct_onnx"):
        raise Refusal("there is no amct_onnx on the PATH; AMCT is a package of CANN for the host's own Python: pip3 "
                      "install ./amct_onnx-*.whl, and source set_env.sh")
    return described


def main() -> None:
    arguments = parse_arguments()
    start = time.time()
    described = check_tools(arguments)
    os.umask(0o027)  # ais_bench refuses files that others can write
    arguments.output = ascend.safe_path(arguments.output)
    aipp = read_aipp(arguments.aipp) if arguments.aipp else {}
    paths = list_inputs(arguments.calibrate)
    count = min(arguments.images, len(paths))
    chosen = [paths[index * len(paths) // count] for index in range(count)]  # data sets are often sorted by class
    options = {name: getattr(arguments, name) for name in ("images", "all_layers", "max_drop", "label_offset")}
    settings = [arguments.labels] if arguments.labels else []
    amct = os.path.realpath(shutil.which("amct_onnx") or "amct_onnx")
    card = dict(ascend.host_versions(), amct=record.state(amct, amct))
    made_by = record.recipe(__file__, dict(options, aipp=aipp), ("onnxruntime", "onnx", "numpy"),
                            [arguments.model, *(paths if arguments.max_drop is not None else chosen)], settings,
                            host=card)
    notes = quantisation.report_path(arguments.output)
    if not arguments.force and record.is_current(arguments.output, made_by):
        print(f"{shown(arguments.output)} is up to date; --force quantises again")
        return
    record.claim(arguments.output, [arguments.output, notes])
    sample = Input(described["input"], tuple(described["shape"][1:]), BATCH, aipp)
    with ascend.run_folder(arguments.output + "-run") as folder:
        report = quantise(arguments, sample, paths, chosen, folder)
        record.begin(arguments.output, made_by, [arguments.output, notes])
        files.write_whole(notes, (json.dumps(report, indent=1) + "\n").encode())
        os.replace(os.path.join(folder, "int8.onnx"), arguments.output)
    record.write(arguments.output, made_by, [arguments.output, notes],
                 evaluation=record.notes(arguments.model).get("evaluation", {}))
    put_back = f", {len(report['put_back'])} put back by --max-drop" if report["put_back"] else ""
    print(f"{shown(arguments.output)}: int8 for the card, calibrated on {count} images, {len(report['float'])} layers "
          f"left in float16{put_back}, in {time.time() - start:.1f} s")
    if not report.get("held", True):
        raise Refusal(f"even with every layer in float16 the card loses {report['drop']:.2f} points of Top-1, more "
                      f"than --max-drop {arguments.max_drop:g}; see scripts/forecast_fp16.py", cli.BELOW_MINIMUM)


if __name__ == "__main__":
    cli.run(main)
