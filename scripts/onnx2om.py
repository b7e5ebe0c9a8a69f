#!/usr/bin/env python3
"""Compile an ONNX file for an Ascend chip with CANN's atc: one .om per batch size.

    source /usr/local/Ascend/cann/set_env.sh            # CANN up to 8.3: ascend-toolkit/set_env.sh
    bash scripts/onnx2om.sh tresnet_m.onnx
    bash scripts/onnx2om.sh tresnet_m.onnx --batch-sizes 1,8 --soc-version Ascend310P3
    bash scripts/onnx2om.sh tresnet_m.onnx --output-dir work -- --precision_mode=force_fp32

In:  MODEL.onnx: one input, NCHW, with an open batch size (TResNet_pth2onnx.py makes it).
Out: MODEL_bs1.om, MODEL_bs4.om, ...; MODEL_bs1.atc.log holds what atc printed.
     MODEL_bs1.om.record.jsonl says what the model was made of and how. A model that would be made
     again exactly as it is stays.
Arguments after -- go to atc unchanged, after its other arguments; name files in them by absolute
paths.
TRESNET_PYTHON names the Python that has onnx (default: the one of setup_env.py); atc runs with the
PATH as it is.
"""

import argparse
import glob
import os
import re
import shlex
import shutil
import sys
import time
from typing import Any, Dict, List, NamedTuple

from common.core import cli

if __name__ == "__main__":
    cli.start("onnx2om.sh")  # before what may be missing

from common.ascend import atc, cann, chips, host
from common.core import files, options, progress, recipe, record
from common.core.cli import Refusal, shown
from common.core.names import om_path
from common.core.record import Recipe
from common.data import evaluation
from common.model import onnx_file


class Target(NamedTuple):
    """A model to compile."""

    batch_size: int
    om: str  # its path
    command: List[str]  # that compiles it
    recipe: Recipe

    @property
    def stem(self) -> str:
        """The path without .om."""
        return os.path.splitext(self.om)[0]


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__, usage=f"bash {cli.program()} MODEL.onnx [options] [-- ARGUMENTS]")
    parser.add_argument("model", type=options.path, metavar="MODEL.onnx", help="the ONNX file")
    options.add(
        parser,
        "batch_sizes",
        "soc_version",
        "output_dir",
        "aipp",
        "stall",
        "force",
        "dry_run",
        help={"batch_sizes": "of the models (default: %(default)s)"},
    )
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    arguments = options.parse(parser, words[:end])
    arguments.for_atc = words[end + 1 :]
    return arguments


def check_paths(arguments: argparse.Namespace) -> None:
    """Make the paths in the arguments absolute, and create the output folder.

    Raises: Refusal for a path that atc cannot use, and if there is no atc.
    """
    if not arguments.model.endswith(".onnx"):
        raise Refusal(f"expected a file that ends in .onnx, found {shown(arguments.model)}")
    arguments.model = host.safe_path(arguments.model)
    if not arguments.dry_run:
        if not shutil.which("atc"):
            raise Refusal(
                f"there is no atc on the PATH; with CANN's toolkit installed: {cann.source()}"
            )
        folder = arguments.output_dir or os.path.dirname(arguments.model)
        arguments.output_dir = host.safe_path(folder)
        files.make_folder(arguments.output_dir, "--output-dir")
    if arguments.aipp:
        if not (os.path.isfile(arguments.aipp) and os.access(arguments.aipp, os.R_OK)):
            raise Refusal(f"there is no readable AIPP file {shown(arguments.aipp)}")
        arguments.aipp = host.safe_path(arguments.aipp)
    for word in arguments.for_atc:
        flag, _, value = word.partition("=")
        is_relative = value and not os.path.isabs(value)
        if flag.startswith("--") and is_relative and os.path.exists(value):
            raise Refusal(
                f"{shown(word)} names a file by a relative path, but atc runs in a folder of its "
                "own; give the absolute path"
            )


def build_command(
    arguments: argparse.Namespace, model: Dict[str, Any], batch_size: int, output: str
) -> List[str]:
    """The contract's words, then AIPP, then what the user gave for atc.

    model: as onnx_file.describe() has it; output: path of the .om without its suffix.
    """
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
    if arguments.aipp:
        command.append(f"--insert_op_conf={arguments.aipp}")
    return command + arguments.for_atc


def pasteable(command: List[str]) -> str:
    """The command as it can be pasted; the shape is quoted as everybody writes it."""
    quoted = " ".join(map(shlex.quote, command))
    return re.sub(r" (--input_shape)=(\S+)", r' \1="\2"', quoted, count=1)


def settings_in(command: List[str], model: str) -> List[str]:
    """The files that a command names by absolute paths, without the model."""
    paths = []
    for word in command[1:]:
        value = word.partition("=")[2] if word.startswith("--") else word
        is_file = os.path.isabs(value) and os.path.isfile(value)
        if is_file and not os.path.samefile(value, model):
            paths.append(value)
    return paths


def list_targets(
    arguments: argparse.Namespace, oms: Dict[int, str], commands: Dict[int, List[str]]
) -> List[Target]:
    """What is to be compiled, with all that it depends on: command, files, ONNX file, atc, CANN.

    Files count by name and content, so a folder that was moved as a whole changes nothing. Only the
    command differs between batch sizes, so files are read once.
    """
    folder = os.path.dirname(arguments.model) + os.sep
    first = next(iter(commands.values()))
    program = os.path.realpath(shutil.which("atc") or "atc")
    shared = recipe.make(
        __file__,
        {},
        inputs=onnx_file.all_files(arguments.model),
        settings=settings_in(first, arguments.model),
        atc=record.state(program, program),
        cann=cann.version(),
    )
    targets = []
    for size, command in commands.items():
        words = [word.replace(folder, "", 1) for word in command]
        made_by = Recipe(dict(shared.row, options={"command": words}), shared.files)
        targets.append(Target(size, oms[size], command, made_by))
    return targets


def run_atc(target: Target, folder: str, arguments: argparse.Namespace) -> str:
    """Run atc in `folder`, which is empty; the path of the model that it wrote there.

    Raises: Refusal if it wrote none.
    """
    own_logs, log = os.path.join(folder, "log"), target.stem + ".atc.log"
    environment = dict(os.environ, ASCEND_PROCESS_LOG_PATH=own_logs)
    stalled, status = "", 0
    try:
        status = host.run_tool(
            target.command, log, stall=arguments.stall, cwd=folder, env=environment
        )
    except host.Stalled as refusal:
        stalled = refusal.sentence
    printed = read_text(log)
    with open(log, "ab") as output:  # CANN's own log is more detailed than what it prints
        for path in logs_in(own_logs):
            with open(path, "rb") as file:
                shutil.copyfileobj(file, output)
    everything = read_text(log)
    model = atc.find_model(folder, os.path.basename(target.stem))
    if model.path and not status and not stalled:
        return model.path
    failed = bool(status or stalled)
    reason = stalled or atc.how_it_ended(status, target.batch_size)
    if not failed:
        reason += f", but {model.problem}"
    lines = [reason, *atc.explain(printed, everything[len(printed) :], failed)]
    lines += [f"    {cure}" for cure in atc.cures(everything, arguments.soc_version)]
    virtual = host.virtual_python()
    if virtual:
        lines.append(
            "    atc compiles with the python3 on the PATH, and that is a virtual environment's "
            f"({shown(virtual)}): deactivate it"
        )
    raise Refusal("\n".join([*lines, f"    the full log: {log}"]))


def logs_in(folder: str) -> List[str]:
    """CANN's own logs."""
    found = glob.glob(os.path.join(glob.escape(folder), "**", "*.log"), recursive=True)
    return [path for path in sorted(found) if os.path.isfile(path) and not os.path.islink(path)]


def read_text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def compile_model(arguments: argparse.Namespace, target: Target, bar: progress.Bar) -> None:
    """Compile for one batch size, or keep what is there."""
    om = target.om
    if record.is_up_to_date(om, target.recipe, force=arguments.force):
        bar.say(f"{om} is up to date ({os.path.getsize(om) / 1e6:.1f} MB)")
        return
    bar.say(f"{om}: compiling for {arguments.soc_version} ...")
    started = time.monotonic()
    with host.run_folder(os.path.join(arguments.output_dir, "atc-run")) as private:
        made = run_atc(target, private, arguments)
        notes = evaluation.notes_of(arguments.model)  # infer_om.py compares the images with them
        record.adopt(om, target.recipe, made, **notes)
    seconds = time.monotonic() - started
    bar.say(f"{om}: compiled in {seconds:.0f} s, {os.path.getsize(om) / 1e6:.1f} MB")


def main() -> None:
    arguments = parse_arguments()
    check_paths(arguments)
    model = onnx_file.describe(arguments.model, arguments.batch_sizes)
    if not arguments.soc_version:
        chip = chips.the_chip(chips.find_chips())
        arguments.soc_version = chips.named(chip.name, chip.soc)
    folder = arguments.output_dir or ""
    oms = {size: om_path(arguments.model, size, folder) for size in arguments.batch_sizes}
    commands = {}
    for size, om in oms.items():
        output = os.path.splitext(om)[0]
        if not arguments.dry_run:  # atc runs in a folder of its own
            output = os.path.basename(output)
        commands[size] = build_command(arguments, model, size, output)
    if arguments.dry_run:
        for command in commands.values():
            print(pasteable(command))
        return
    with progress.watched("compiling", len(oms), "models", None) as bar:
        for target in list_targets(arguments, oms, commands):
            compile_model(arguments, target, bar)
            bar.advance()


if __name__ == "__main__":
    cli.run(main, "the model being compiled is dropped, finished ones are kept")
