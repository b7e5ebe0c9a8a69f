#!/usr/bin/env python3
"""Compile an ONNX file for an Ascend chip with CANN's atc: one .om per batch size.

    source /usr/local/Ascend/ascend-toolkit/set_env.sh
    bash scripts/onnx2om.sh tresnet_m.onnx
    bash scripts/onnx2om.sh tresnet_m.onnx --batch-sizes 1,8 --soc-version Ascend310P3 --output-dir work
    bash scripts/onnx2om.sh tresnet_m.onnx -- --precision_mode=force_fp32

In:  MODEL.onnx: one input, NCHW, with a free batch size (TResNet_pth2onnx.py makes it).
Out: MODEL_bs1.om, MODEL_bs4.om, ...; MODEL_bs1.atc.log holds what atc said.
     MODEL_bs1.om.record.jsonl says what the model was made of and how: one that would be made again as it is is kept.
What stands after -- goes to atc unchanged, after its other arguments; give files in it by their absolute paths.
TRESNET_PYTHON names the Python that has onnx (default: the one of setup_env.py); atc runs with the PATH as it is.
"""

import argparse
import glob
import os
import re
import shlex
import shutil
import signal
import sys
import time
from typing import Any, Dict, List

from common.core import cli

if __name__ == "__main__":
    cli.start("onnx2om.sh")  # before what may be missing

from common.ascend import chips, host
from common.core import files, options, progress, recipe, record
from common.core.cli import Refusal, shown
from common.core.names import om_path
from common.core.record import Recipe
from common.model import onnx_file


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, usage=f"bash {cli.program()} MODEL.onnx [options] [-- ARGUMENTS]")
    parser.add_argument("model", type=options.path, metavar="MODEL.onnx", help="the ONNX file")
    options.add(
        parser,
        "batch_sizes",
        "soc_version",
        "output_dir",
        "aipp",
        "force",
        "dry_run",
        help={"batch_sizes": "of the models (default: %(default)s)"},
    )
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    arguments = options.parse(parser, words[:end])
    arguments.for_atc = words[end + 1 :]
    return arguments


def prepare(arguments: argparse.Namespace) -> None:
    """Make the paths in the arguments absolute, and the output folder. Raises: Refusal, also if there is no atc."""
    if not arguments.model.endswith(".onnx"):
        raise Refusal(f"expected a file that ends in .onnx, found {shown(arguments.model)}")
    arguments.model = host.safe_path(arguments.model)
    if not arguments.dry_run:
        if not shutil.which("atc"):
            raise Refusal(
                "there is no atc on the PATH; with CANN's toolkit installed: source "
                f"{shown(host.set_env() or host.SET_ENV)}"
            )
        arguments.output_dir = host.safe_path(
            arguments.output_dir or os.path.dirname(arguments.model)
        )
        files.make_folder(arguments.output_dir, "--output-dir")
    if arguments.aipp:
        if not (os.path.isfile(arguments.aipp) and os.access(arguments.aipp, os.R_OK)):
            raise Refusal(f"there is no readable AIPP file {shown(arguments.aipp)}")
        arguments.aipp = host.safe_path(arguments.aipp)
    for word in arguments.for_atc:
        flag, _, value = word.partition("=")
        if flag.startswith("--") and value and not os.path.isabs(value) and os.path.exists(value):
            raise Refusal(
                f"atc runs in a folder of its own, so give the file in {shown(word)} by its absolute path"
            )


def build_command(
    arguments: argparse.Namespace, model: Dict[str, Any], batch_size: int, output: str
) -> List[str]:
    """The contract's words, then AIPP, then what the user gave for atc; `model` as onnx_file.describe() has it."""
    shape = ",".join(map(str, [batch_size, *model["shape"][1:]]))
    command = [
        "atc",
        "--framework=5",
        f"--model={arguments.model}",
        f"--output={output}",
        "--input_format=NCHW",
        f"--input_shape={model['input']}:{shape}",
        "--log=error",
        f"--soc_version={arguments.soc_version}",
    ]
    return (
        command
        + ([f"--insert_op_conf={arguments.aipp}"] if arguments.aipp else [])
        + arguments.for_atc
    )


def pasteable(command: List[str]) -> str:
    """The command as it can be pasted; the shape is quoted as everybody writes it."""
    return re.sub(
        r" (--input_shape)=(\S+)", r' \1="\2"', " ".join(map(shlex.quote, command)), count=1
    )


def recipes(arguments: argparse.Namespace, commands: Dict[int, List[str]]) -> Dict[int, Recipe]:
    """All that each .om depends on: the command with the files it names, the ONNX file, CANN. A folder that was moved
    as a whole is none of it: files count by name and content. Only the command differs, so files are read once."""
    folder = os.path.dirname(arguments.model) + os.sep
    first = next(iter(commands.values()))
    values = [word.partition("=")[2] if word.startswith("--") else word for word in first[1:]]
    settings = [
        value
        for value in values
        if os.path.isabs(value)
        and os.path.isfile(value)
        and not os.path.samefile(value, arguments.model)
    ]
    atc = os.path.realpath(shutil.which("atc") or "atc")
    shared = recipe.make(
        __file__,
        {},
        inputs=onnx_file.all_files(arguments.model),
        settings=settings,
        atc=record.state(atc, atc),
        cann=host.cann_version(),
    )
    found = {}
    for size, command in commands.items():
        words = [word.replace(folder, "", 1) for word in command]
        found[size] = Recipe(dict(shared.row, options={"command": words}), shared.files)
    return found


def explain(log: str) -> List[str]:
    """The lines of atc's output with an E code (E10001, EZ9999, EC0010, ...), each once, with what belongs to it."""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip() for line in file]
    found: List[str] = []
    for line, following in zip(lines, [*lines[1:], ""]):
        if re.search(r"\bE[A-Z]?\d{4,5}\b", line) and not any(earlier in line for earlier in found):
            found += (
                [line, following]
                if re.match(r"\s+(Solution|Possible Cause|TraceBack)", following)
                else [line]
            )
    return [
        "    " + "".join(c if c.isprintable() else " " for c in line.strip())[:400]
        for line in found[:12]
    ]


def run_atc(command: List[str], batch_size: int, folder: str, name: str, log: str) -> str:
    """Run atc in `folder`; the model that it made there. Raises: Refusal that says why there is none."""
    own_logs = os.path.join(folder, "log")
    status = host.run_tool(
        command, log, cwd=folder, env=dict(os.environ, ASCEND_PROCESS_LOG_PATH=own_logs)
    )
    with open(log, "ab") as output:  # CANN's own log is more detailed than what it prints
        for path in sorted(glob.glob(os.path.join(own_logs, "**", "*.log"), recursive=True)):
            with open(path, "rb") as file:
                shutil.copyfileobj(file, output)
    names = (f"{name}.om", f"{name}_linux_*.om")
    made = [
        path
        for pattern in names
        for path in glob.glob(os.path.join(folder, pattern))
        if os.path.isfile(path) and not os.path.islink(path) and os.path.getsize(path)
    ]
    if made and not status:
        return made[0]
    if status > 128 and status - 128 in list(signal.Signals):
        what = (
            f"atc was ended by signal {signal.Signals(status - 128).name[len('SIG') :]} at batch size {batch_size}; "
            "if nobody did that, the memory may have been full"
        )
    elif status:
        what = f"atc failed with status {status} at batch size {batch_size}"
    else:
        what = f"atc ended well at batch size {batch_size}, but wrote no {name}.om (nor {name}_linux_*.om)"
    virtual = host.virtual_python()
    advice = (
        [
            f"    atc compiles with the python3 on the PATH, and that is a virtual environment's ({shown(virtual)}): "
            "deactivate it"
        ]
        if virtual
        else []
    )
    raise Refusal("\n".join([what, *explain(log), *advice, f"    the full log: {log}"]))


def compile_model(
    arguments: argparse.Namespace,
    command: List[str],
    made_by: Recipe,
    batch_size: int,
    om: str,
    bar: progress.Bar,
) -> None:
    """Compile for one batch size, or keep what is there."""
    place = os.path.splitext(om)[0]
    name = os.path.basename(place)
    if record.is_up_to_date(om, made_by, force=arguments.force):
        bar.say(f"{om} is up to date ({os.path.getsize(om) / 1e6:.1f} MB)")
        return
    bar.say(f"{om}: compiling for {arguments.soc_version} ...")
    started = time.monotonic()
    with host.run_folder(os.path.join(arguments.output_dir, "atc-run")) as private:
        found = run_atc(command, batch_size, private, name, place + ".atc.log")
        said = record.read(arguments.model).notes.get(
            "evaluation", {}
        )  # infer_om.py holds the images against it
        record.adopt(om, made_by, found, evaluation=said)
    seconds = time.monotonic() - started
    bar.say(f"{om}: compiled in {seconds:.0f} s, {os.path.getsize(om) / 1e6:.1f} MB")


def main() -> None:
    arguments = parse_arguments()
    prepare(arguments)
    model = onnx_file.describe(arguments.model, arguments.batch_sizes)
    arguments.soc_version = arguments.soc_version or chips.soc_version(
        chips.the_chip(chips.find_chips())
    )
    oms = {
        size: om_path(arguments.model, size, arguments.output_dir or "")
        for size in arguments.batch_sizes
    }
    if arguments.dry_run:
        for batch_size, om in oms.items():
            print(pasteable(build_command(arguments, model, batch_size, os.path.splitext(om)[0])))
        return
    commands = {
        size: build_command(arguments, model, size, os.path.splitext(os.path.basename(om))[0])
        for size, om in oms.items()
    }
    with progress.watched("compiling", len(oms), "models", None) as bar:
        for batch_size, made_by in recipes(arguments, commands).items():
            compile_model(
                arguments, commands[batch_size], made_by, batch_size, oms[batch_size], bar
            )
            bar.advance()


if __name__ == "__main__":
    cli.run(main, "the model being compiled is dropped, finished ones are kept")
