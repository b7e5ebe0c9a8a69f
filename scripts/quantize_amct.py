#!/usr/bin/env python3
"""Quantise an ONNX model to int8 for the card with CANN's own tool, amct_onnx.

    python3 scripts/quantize_amct.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset
    python3 scripts/quantize_amct.py tresnet_m.onnx tresnet_m_int8.onnx --calibrate prep_dataset \\
        --labels ImageNet/val_label.txt --max-drop 0.5
    bash scripts/onnx2om.sh tresnet_m_int8.onnx

In:  a float32 ONNX file of opset 8 to 14; prepared images for the calibration: float32, or uint8
     with --aipp (then give the same AIPP file to onnx2om.sh).
     AMCT in the host's own Python (CANN's package amct_onnx).
Out: AMCT's deploy model for atc: int8 layers between AscendQuant and AscendDequant. ONNX Runtime
     cannot run it. tresnet_m_int8.json says which layers stay float16, and why.
--max-drop P compiles the model and runs it on the card over all labelled images. It puts layers
back to float16 until Top-1 is at most P percentage points below float32's: docs/ascend.md.
"""

import argparse
import os
import shutil
import sys
import time
from typing import Dict, List, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import bench, host
from common.core import files, options, record
from common.core.cli import ROOT, Refusal, counted, shown
from common.core.names import om_path
from common.data.inputs import read_batch
from common.model import onnx_file, quantisation
from common.results.results import answers, result_files

import numpy as np
import onnx

IMAGES = 24  # for calibration: more change the ranges little
SCRIPTS = os.path.join(ROOT, "scripts")
OPSETS = range(8, 15)  # that AMCT reads


# ---- AMCT ----------------------------------------------------------------------------------------


def calibrate(task: quantisation.Task, skipped: List[str], folder: str) -> onnx.ModelProto:
    """Run amct_onnx; returns the deploy model.

    skipped: the layers that stay float16; folder: has the calibration data in `data`.
    Raises: Refusal with the last lines of its output.
    """
    config, sample = os.path.join(folder, "quant.cfg"), task.single
    lines = [f"batch_num : {len(task.chosen)}", "joint_quant : true"]
    lines += [f'skip_layers : "{name}"' for name in skipped]
    files.write_whole(config, "".join(line + "\n" for line in lines).encode())
    shape = ",".join(map(str, (sample.batch_size, *sample.shape)))
    command = [
        "amct_onnx",
        "calibration",
        "--model",
        os.path.abspath(task.arguments.model),
        "--save_path",
        os.path.join(folder, "model"),
        "--input_shape",
        f"{sample.name}:{shape}",
        "--data_dir",
        os.path.join(folder, "data"),
        "--data_types",
        "float32",
        "--calibration_config",
        config,
    ]
    log = task.arguments.output + ".amct.log"
    status = host.run_tool(command, log, stall=task.arguments.stall, cwd=folder)
    deploy = os.path.join(folder, "model_deploy_model.onnx")
    if status or not os.path.isfile(deploy):
        outcome = f"failed with status {status}" if status else "wrote no deploy model"
        raise Refusal(
            f"amct_onnx {outcome} and said {bench.complaint(log)!a}; its whole output: {shown(log)}"
        )
    return read_deploy(deploy, task.arguments.model, log)


def read_deploy(deploy: str, model: str, log: str) -> onnx.ModelProto:
    """The deploy model that AMCT made of a model.

    log: AMCT's output. Raises: Refusal if it is half a file, or not made of this model.
    """
    advice = f"run the same command again; AMCT's whole output: {shown(log)}"
    if os.path.islink(deploy):
        raise Refusal(f"amct_onnx wrote a link in the place of its deploy model; {advice}")
    try:
        made = onnx_file.load(deploy)
    except Refusal:
        raise Refusal(f"amct_onnx wrote a deploy model that is half a file; {advice}") from None
    if ends_of(made) != ends_of(onnx_file.load(model, external_data=False)):
        raise Refusal(f"amct_onnx wrote a deploy model of another network; {advice}")
    return made


def ends_of(model: onnx.ModelProto) -> Tuple[List[str], List[str], int]:
    """The names of a model's inputs and outputs, and how many opset imports it has.

    Older files list their weights among the inputs.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    return inputs, [value.name for value in model.graph.output], len(model.opset_import)


# ---- the promise of --max-drop -------------------------------------------------------------------


def answers_on_card(task: quantisation.Task, model: onnx.ModelProto, folder: str) -> np.ndarray:
    """Compile the deploy model and run it over all images.

    Returns int [images], the class that the card gives each image.
    """
    arguments = task.arguments
    path = os.path.join(folder, "int8.onnx")
    batch_size = task.several.batch_size
    onnx.save(model, path)
    compiling = options.words(
        batch_sizes=batch_size,
        aipp=arguments.aipp and os.path.abspath(arguments.aipp),
        soc_version=arguments.soc_version,
    )
    inferring = options.words(
        model=om_path(path, batch_size),
        input=arguments.calibrate,
        output=folder,
        output_dirname="result",
        outfmt="NPY",
        device="all" if arguments.device == [] else arguments.device,
        host_facts=arguments.host_facts,
    )
    stall = options.words(stall=arguments.stall)
    for script, *words in (["onnx2om.py", path, *compiling], ["infer_om.py", *inferring]):
        command = [sys.executable, os.path.join(SCRIPTS, script), *words, *stall]
        host.run_or_refuse(command, arguments.output + ".run.log", script)
    results = result_files(os.path.join(folder, "result"))
    return answers(results, task.stems)


def make(task: quantisation.Task, folder: str) -> Tuple[onnx.ModelProto, quantisation.Report]:
    """(the int8 model, its report); folder: for temporary files."""
    model = onnx_file.load(task.arguments.model)
    left: Dict[str, str] = {}
    if not task.arguments.all_layers:
        left = quantisation.float_on_card(model)
    data = os.path.join(folder, "data")
    os.mkdir(data, 0o750)
    for number, path in enumerate(task.chosen):
        # AMCT reads only float32 files of exactly the input's shape.
        files.write_whole(os.path.join(data, f"{number:06d}.bin"), read_batch([path], task.single))
    groups = {name: [name] for name in quantisation.layers(model) if name not in left}
    deploy, report = task.make(
        model,
        groups,
        lambda back: calibrate(task, sorted({*left, *back}), folder),
        lambda deploy: answers_on_card(task, deploy, folder),
        lambda images: quantisation.costs(model, groups, images),
    )
    return deploy, {"float": left, **report}


# ---- command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = quantisation.parser(__doc__, IMAGES)
    options.add(
        parser,
        "all_layers",
        "soc_version",
        "devices",
        "host_facts",
        "stall",
        help={"devices": "the chips to use for --max-drop, as for infer_om.py (default: 0)"},
    )
    return options.parse(parser)


def check_tools(model: str) -> None:
    """Raises: Refusal for a model that AMCT does not read, or if AMCT is not installed."""
    opset = max((entry.version for entry in onnx_file.load(model).opset_import), default=0)
    if opset not in OPSETS:
        raise Refusal(
            f"{shown(model)} has opset {opset}, but AMCT reads {OPSETS[0]} to {OPSETS[-1]}; export "
            "it with --opset 11"
        )
    if not shutil.which("amct_onnx"):
        raise Refusal(
            "there is no amct_onnx on the PATH; AMCT is a package of CANN for the host's own "
            "Python: pip3 install ./amct_onnx-*.whl, and source set_env.sh"
        )


def main() -> None:
    arguments = parse_arguments()
    start = time.time()
    check_tools(arguments.model)
    files.limit_rights()
    arguments.output = host.safe_path(arguments.output)
    amct = os.path.realpath(shutil.which("amct_onnx") or "amct_onnx")
    task = quantisation.Task(
        __file__,
        arguments,
        all_layers=arguments.all_layers,
        host=dict(host.host_versions(arguments.host_facts), amct=record.state(amct, amct)),
    )
    if task.is_current():
        return
    with host.run_folder(arguments.output + "-run") as folder:
        quantized, report = make(task, folder)
    task.write(quantized, report)
    put_back = ""
    if report["put_back"]:
        names = [row["name"] for row in report["put_back"]]
        put_back = f", {quantisation.words_of(names)} put back by --max-drop"
    print(
        f"{shown(arguments.output)}: int8 for the card, calibrated on "
        f"{counted(len(task.chosen), 'image')}, {counted(len(report['float']), 'layer')} left in "
        f"float16{put_back}, in {time.time() - start:.1f} s"
    )
    if not report.get("held", True):
        raise Refusal(
            f"even with every layer in float16 the card {quantisation.change_words(report['drop'])}"
            f", more than --max-drop {arguments.max_drop:g}; see scripts/forecast_fp16.py",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main)
