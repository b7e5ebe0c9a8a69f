#!/usr/bin/env python3
"""The whole chain: images and a checkpoint in, accuracy and throughput out.

    bash scripts/pipeline.sh
    bash scripts/pipeline.sh --data ./ImageNet --checkpoint model_best.pth.tar

Without options: 20 sample photos and a sample checkpoint go through every step, on the NPU if there is one, else on the
CPU. Environment: PYTHON names another Python than python3 for the virtual environment.
Exit status: 0 good, 1 a step failed, 2 wrong usage, 3 a gate (a --min-… option), 130 Ctrl-C.
"""
import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, List, NoReturn

from common import ascend, cli, environment, files, record
from common.cli import ROOT, Refusal
from common.names import FORMATS, om_path

import check
import summary
import timm_source

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
sys.argv[0] = "pipeline.sh"  # what its user typed, and what messages are signed with


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    check.add_options(parser)
    add, percent = parser.add_argument, cli.real(0, 100)
    add("--skip-bad", action="store_true", help="leave out images that cannot be read")
    add("--batch-size", metavar="N", type=cli.whole(1, 4096),
        help="batch of the accuracy run (default: 8)")
    add("--outfmt", choices=FORMATS, default="NPY", help="format of the results (default: NPY, the fastest)")
    add("--precision", choices=("float32", "int8"), default="float32",
        help="int8 is for the CPU: quantised, measured against float32 (default: float32)")
    add("--perf", action="store_true", help="measure throughput per batch size (on ascend always)")
    add("--loop", metavar="N", type=cli.whole(1), default=20, help="batches per measurement (default: 20)")
    add("--repeat", metavar="N", type=cli.whole(1), default=3,
        help="measurements per batch size, of which the median counts (default: 3)")
    add("--compare", metavar="N", type=cli.whole(0), default=64,
        help="images to compare with ONNX Runtime after an ascend run, 0 for none (default: 64)")
    add("--min-top1", metavar="PERCENT", type=percent, help="a gate: exit status 3 and one sentence if it is lower")
    add("--min-top5", metavar="PERCENT", type=percent, help="likewise")
    add("--min-throughput", metavar="X", type=cli.real(0), help="likewise, images/s at the best batch size")
    add("--min-cosine", metavar="X", type=cli.real(-1, 1),
        help="likewise, of an image's logits compared with ONNX Runtime's, or of int8 with float32")
    add("--check", action="store_true", help="say what is there and what is missing for each backend, run nothing")
    add("--force", action="store_true", help="do everything again, even what is up to date")
    add("--dry-run", action="store_true", help="print the commands and run nothing")
    return parser.parse_args()


# ---- running a step --------------------------------------------------------------------------------------------------

class Steps:
    """Runs the steps one after the other, each in a process group of its own, so that a signal ends all of it."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run, self.name, self.lock = dry_run, "set-up", -1
        for number in SIGNALS:
            signal.signal(number, self.stop)

    def stop(self, number: int, _: Any) -> NoReturn:
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        raise Refusal(f"stopped during {self.name}; the same command goes on from there",
                      130 if number == signal.SIGINT else 143)

    def header(self, name: str) -> None:
        self.name = name
        print(f"\n== {name} ==", flush=True)

    def run(self, *command: str) -> None:
        """Show the current step's command, run it to its end. Raises: Refusal if it fails."""
        print(f"$ {' '.join(map(shlex.quote, command))}", flush=True)
        if self.dry_run:
            return
        start = time.time()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the child is known, nothing may end this alone
        child = subprocess.Popen(command, preexec_fn=lead_group, pass_fds=(self.lock,))
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            status = child.wait()
        except BaseException:
            cli.end_group(child)
            raise
        if status == cli.BELOW_MINIMUM:
            sys.exit(status)  # a gate: the step has said its sentence
        if status:
            raise Refusal(f"the step '{self.name}' failed with exit status {status}; what it said stands above")
        print(f"({time.time() - start:.0f} s)", flush=True)


def lead_group() -> None:
    """In a new child: a process group of its own."""
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# ---- the chain -------------------------------------------------------------------------------------------------------

class Chain:
    """The commands of one run: what goes where, and what each step is told."""

    def __init__(self, arguments: argparse.Namespace, data: check.Data, backend: str, python: str, steps: Steps
                 ) -> None:
        self.arguments, self.data, self.backend, self.steps = arguments, data, backend, steps
        self.here = "" if os.getcwd() == ROOT else ROOT + "/"  # commands are as short as they can be pasted
        self.python = os.path.relpath(python, ROOT) if not self.here and python.startswith(ROOT + "/") else python
        self.model, self.prepared = self.place("tresnet.onnx"), self.place("prep_dataset")
        self.result = self.place("result")
        self.force = ["--force"] if arguments.force else []
        self.aipp = ["--aipp", self.place("aipp.cfg")] if arguments.uint8 else []
        self.devices, self.chip = [0], ""
        if backend == "ascend":
            self.devices, self.chip = ascend.choose_devices(arguments.device, arguments.soc_version)
        self.device = [] if self.devices == [0] else ["--device", ",".join(map(str, self.devices))]
        self.names_chip = bool(arguments.soc_version) or arguments.device is not None
        self.batch_size = arguments.batch_size or 8

    def place(self, name: str) -> str:
        return os.path.join(self.arguments.workdir, name)

    def run(self, script: str, *words: str) -> None:
        self.steps.run(self.python, self.here + script, *words)

    def gate(self, *options: str) -> List[str]:
        values = ((option, getattr(self.arguments, option[2:].replace("-", "_"))) for option in options)
        return [word for option, value in values if value is not None for word in (option, repr(value))]

    def make_sample(self) -> None:
        self.steps.header("Sample data")
        self.run("scripts/make_sample.py", self.data.folder)

    def export(self) -> None:
        self.steps.header("Export")
        self.run("TResNet_pth2onnx.py", self.data.checkpoint, self.model, "--img-size", str(self.arguments.img_size),
                 *self.force)
        if not self.steps.dry_run:
            self.data.check_classes(int(record.notes(self.model)["num_classes"]))

    def preprocess(self) -> None:
        given, size = self.arguments, str(self.arguments.img_size)
        words = ["--dtype", "uint8"] if given.uint8 else []
        words += ["--class-map", given.class_map] if given.class_map else []
        words += ["--skip-bad"] if given.skip_bad else []
        self.steps.header("Preprocess")
        self.run("TResNet_preprocess.py", self.data.images, self.prepared, "--img-size", size, *words, *self.force)
        if given.uint8:
            source, target = self.here + "scripts/aipp.cfg", self.place("aipp.cfg")
            print(f"$ sed s/224/{size}/ {shlex.quote(source)} > {shlex.quote(target)}", flush=True)
            if not self.steps.dry_run:
                with open(os.path.join(ROOT, "scripts", "aipp.cfg"), encoding="utf-8") as file:
                    files.write_whole(target, "".join(line.replace("224", size, 1) for line in file).encode())

    def compile(self) -> None:
        sizes = sorted({self.batch_size, *self.arguments.batch_sizes})
        soc_version = ["--soc-version", self.arguments.soc_version or ascend.soc_version(self.chip)]
        self.steps.header("Compile")
        os.environ["TRESNET_PYTHON"] = os.path.abspath(os.path.join(ROOT, self.python))
        self.steps.run("bash", self.here + "scripts/onnx2om.sh", self.model, "--batch-sizes",
                       ",".join(map(str, sizes)), *(soc_version if self.names_chip else []), *self.aipp, *self.force)

    def infer_on_cpu(self, model: str, name: str, *more: str, batch_size: int = 0) -> None:
        self.run("scripts/infer_onnx.py", "--model", model, "--input", self.prepared, "--output",
                 self.arguments.workdir, "--output_dirname", name, "--outfmt", self.arguments.outfmt, "--batchsize",
                 str(batch_size or self.batch_size), *self.aipp, *self.force, *more)

    def infer(self) -> None:
        self.steps.header("Inference")
        if self.backend == "cpu":
            self.infer_on_cpu(self.model, "result")
            return
        self.run("scripts/infer_om.py", "--model", om_path(self.model, self.batch_size), "--input", self.prepared,
                 "--output", self.arguments.workdir, "--output_dirname", "result", "--outfmt", self.arguments.outfmt,
                 *self.device, *self.force)

    def compare(self, other: str, result: str) -> None:
        self.run("scripts/compare_results.py", other, result, "--json", self.place("compare.json"),
                 *self.gate("--min-cosine"))

    def quantise(self) -> str:
        """The int8 model, inferred and compared with the float32 one; returns its path."""
        model = self.place("tresnet_int8.onnx")
        self.steps.header("Quantise")
        self.run("scripts/quantize_onnx.py", self.model, model, "--calibrate", self.prepared, *self.aipp, *self.force)
        self.infer_on_cpu(model, "result_int8")
        self.compare(self.result, self.place("result_int8"))
        return model

    def judge(self, result: str, name: str, *gates: str) -> None:
        self.run("TResNet_postprocess.py", result + "/", self.data.labels, self.arguments.workdir, name,
                 "--prep", self.prepared, *gates)

    def measure(self, model: str) -> None:
        given = self.arguments
        self.steps.header("Performance")
        data_set = "20 sample photos" if self.data.is_sample else os.path.basename(os.path.abspath(self.data.folder))
        sizes = sorted({self.batch_size, *given.batch_sizes} if self.backend == "ascend" else given.batch_sizes)
        self.run("scripts/perf_sweep.py", "--backend", self.backend, "--model", model, "--batch-sizes",
                 ",".join(map(str, sizes)), "--loop", str(given.loop), "--repeat", str(given.repeat), "--data-set",
                 data_set, "--accuracy", self.place("acc.json"), "--output", given.workdir, *self.device,
                 *(["--chip", self.chip] if self.names_chip and self.chip else []), *self.aipp, *self.force,
                 *self.gate("--min-throughput"))

    def all(self) -> None:
        """Every step, and the summary."""
        start, given = time.time(), self.arguments
        if self.data.is_sample:
            self.make_sample()
        self.export()
        self.preprocess()
        if self.backend == "ascend":
            self.compile()
        self.infer()
        model, result, compared = self.model, self.result, False
        if given.precision == "int8":
            model, result, compared = self.quantise(), self.place("result_int8"), True
        self.steps.header("Accuracy")
        if result != self.result:
            self.judge(self.result, "acc_float32.json")
        self.judge(result, "acc.json", *self.gate("--min-top1", "--min-top5"))
        if self.backend == "ascend" and given.compare:
            self.steps.header("Comparison with ONNX Runtime")
            self.infer_on_cpu(self.model, "result_onnx", "--first", str(given.compare), batch_size=8)
            self.compare(self.place("result_onnx"), self.result)
            compared = True
        measured = given.perf or given.min_throughput is not None or self.backend == "ascend"
        if measured:
            self.measure(model)
        if self.steps.dry_run:
            return
        self.steps.name = "summary"
        print(f"\n== Summary ({time.time() - start:.0f} s) ==")
        float32 = self.result if result != self.result else None
        summary.show(given.workdir, self.backend, self.model, model, result, float32, compared, measured,
                     self.data.is_sample and not given.checkpoint)


def prepare(arguments: argparse.Namespace, steps: Steps) -> str:
    """The interpreter of the steps, with all they need; a dry run only names it."""
    if arguments.dry_run:
        steps.header("Set-up")
        here = "" if os.getcwd() == ROOT else ROOT + "/"
        for script in ("scripts/setup_env.py", "scripts/timm_source.py"):
            steps.run(os.environ.get("PYTHON") or "python3", here + script)
        return environment.python(dry_run=True)
    python = environment.python()
    timm_source.prepare()
    return python


def main() -> int:
    arguments = parse_arguments()
    if arguments.check:
        return check.print_table(arguments)
    os.umask(0o027)  # later versions of ais_bench refuse folders that others can enter
    steps, data = Steps(arguments.dry_run), check.Data(arguments)
    backend, why, rows = check.examine(arguments, data)
    for row in check.lacks(backend, rows):
        raise Refusal(f"{row.item}: {row.found}; {row.mend}; `--check` shows all that is missing")
    if arguments.precision == "int8" and backend == "ascend":
        raise Refusal("--precision int8 is for the CPU; on ascend, give atc its own quantisation options", cli.USAGE)
    if arguments.min_cosine is not None and (arguments.precision != "int8" if backend == "cpu"
                                             else not arguments.compare):
        raise Refusal("--min-cosine needs a comparison, which this run does not make: on the CPU it takes --precision "
                      "int8, on ascend --compare with 1 image or more", cli.USAGE)
    if not arguments.dry_run:
        files.make_folder(arguments.workdir, "--workdir")
        steps.lock = files.hold(os.path.join(arguments.workdir, ".lock"))
    python = prepare(arguments, steps)
    print(f"backend: {backend}: {why}", flush=True)
    Chain(arguments, data, backend, python, steps).all()
    return 0


if __name__ == "__main__":
    cli.run(main)
