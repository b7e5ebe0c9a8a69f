#!/usr/bin/env python3
"""The whole chain: images and a checkpoint in, accuracy and throughput out.

    bash scripts/pipeline.sh
    bash scripts/pipeline.sh --data ./ImageNet --checkpoint model_best.pth.tar

Without options: 20 sample photos and a sample checkpoint go through every step, on the NPU if there is one, else on the
CPU. Environment: PYTHON names another Python than python3 for the virtual environment.
Exit status: 0 good, 1 a step failed, 2 wrong usage, 3 a gate (a --min-… option), 130 Ctrl-C.
"""
import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List, NoReturn, Set, Tuple

from common import ascend, class_names, cli, dataset, environment, evaluation, files, prepared, published, record
from common.cli import ROOT, Refusal, option_words
from common.names import FORMATS, STEMS, om_path
from common.work_files import TUNE

import check
import summary
import timm_source

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
sys.argv[0] = "pipeline.sh"  # what its user typed, and what messages are signed with


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    check.add_options(parser)
    add, percent = parser.add_argument, cli.real(0, 100)
    add("--lineage", choices=("ascend", "miil"), help="of the weights, where the checkpoint does not tell")
    add("--ema", action="store_true", help="take the checkpoint's averaged weights")
    add("--key", metavar="NAME", help="which of several state dicts in the checkpoint to take, such as teacher")
    add("--skip-bad", action="store_true", help="leave out images that cannot be read")
    add("--class-names", metavar="FILE", type=cli.path,
        help="names of the classes, one a line or lines `FOLDER NAME` (default: class folders' or ImageNet's)")
    add("--batch-size", metavar="N", type=cli.whole(1, 4096), default=8, help="batch of the accuracy run (default: 8)")
    add("--outfmt", choices=FORMATS, default="NPY", help="format of the results (default: NPY, the fastest)")
    add("--precision", choices=("float32", "int8"), default="float32",
        help="int8: quantised, on ascend by AMCT; measured beside float32, on ascend beside float16 (default: float32)")
    add("--max-drop", metavar="P", type=percent,
        help="with int8: put layers back to float until Top-1 is at most P percentage points below float32's")
    add("--perf", action="store_true", help="measure throughput per batch size (on ascend always)")
    add("--loop", metavar="N", type=cli.whole(1), default=20, help="batches per measurement (default: 20)")
    add("--repeat", metavar="N", type=cli.whole(1), default=3,
        help="measurements per batch size, of which the median counts (default: 3)")
    add("--compare", metavar="N", type=cli.whole(0), default=64,
        help="images to compare with ONNX Runtime after an ascend run, 0 for none (default: 64)")
    add("--tune", action="store_true",
        help="instead of a run: measure stems, input types and precisions (on the CPU batch sizes and precisions) and "
             "print the command of the best")
    add("--stem", choices=STEMS, default=STEMS[0], help="how the first operators are exported (default: %(default)s)")
    add("--small-channel", action="store_true",
        help="compile with atc's --enable_small_channel=1; with --uint8, and a stem that begins with a convolution")
    add("--forecast", action="store_true",
        help="forecast on the CPU what float16 will cost on the card (on ascend always, with --compare's images)")
    add("--min-top1", metavar="PERCENT", type=percent, help="a gate: exit status 3 and one sentence if it is lower")
    add("--min-top5", metavar="PERCENT", type=percent, help="likewise")
    add("--min-throughput", metavar="X", type=cli.real(0), help="likewise, images/s at the best batch size")
    add("--min-cosine", metavar="X", type=cli.real(-1, 1),
        help="likewise, of an image's logits compared with ONNX Runtime's, or of int8 with float32")
    add("--expect", metavar="NAME", choices=sorted(published.EXPECTED),
        help="hold the accuracy against the published one and look for the cause if it is another: "
             f"{', '.join(sorted(published.EXPECTED))}")
    add("--check", action="store_true", help="say what is there and what is missing for each backend, run nothing")
    add("--force", action="store_true", help="do everything again, even what is up to date")
    add("--dry-run", action="store_true", help="print the commands and run nothing")
    return parser.parse_args()


# ---- running a step --------------------------------------------------------------------------------------------------

class Steps:
    """Runs the steps one after the other, each in a process group of its own, so that a signal ends all of it."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run, self.name, self.lock = dry_run, "set-up", -1
        self.commands: List[str] = []
        for number in SIGNALS:
            signal.signal(number, self.stop)

    def stop(self, number: int, _: Any) -> NoReturn:
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        raise Refusal(f"stopped during {self.name}; the same command goes on from there",
                      130 if number == signal.SIGINT else 143)

    def header(self, name: str, place: int = 0, total: int = 0) -> None:
        self.name = name
        print(f"\n== {name}{f' (step {place} of {total})' if total else ''} ==", flush=True)

    def run(self, *command: str) -> None:
        """Show the current step's command, run it to its end. Raises: Refusal if it fails."""
        self.commands.append(" ".join(map(shlex.quote, command)))
        print(f"$ {self.commands[-1]}", flush=True)
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

    def __init__(self, arguments: argparse.Namespace, data: check.Data, backend: str, reason: str, python: str,
                 steps: Steps) -> None:
        self.arguments, self.data, self.backend, self.steps = arguments, data, backend, steps
        self.reason, self.began, self.note = reason, time.time(), ""
        if data.is_sample and not arguments.checkpoint:
            usual = evaluation.DEFAULT._replace(**evaluation.given(arguments)) == evaluation.DEFAULT
            self.note = summary.SAMPLE_NOTE if usual else summary.PREPARED_OTHERWISE
        self.times: List[Dict[str, Any]] = []  # of each step
        self.made: Set[str] = set()  # what the report may show; other files are an earlier run's
        self.here = "" if os.getcwd() == ROOT else ROOT + "/"  # commands are as short as they can be pasted
        self.python = os.path.relpath(python, ROOT) if not self.here and python.startswith(ROOT + "/") else python
        self.model, self.result = self.place("tresnet.onnx"), self.place("result")
        self.devices, self.chip = [0], ""
        if backend == "ascend":
            self.devices, self.chip = ascend.choose_devices(arguments.device, arguments.soc_version)
            os.environ[ascend.HOST_FACTS] = json.dumps(ascend.host_facts())
        self.device = option_words(device=None if self.devices == [0] else self.devices)
        self.names_chip = bool(arguments.soc_version) or arguments.device is not None
        self.judged, self.judged_model = self.result, self.model
        if arguments.precision == "int8":
            self.judged, self.judged_model = self.place("result_int8"), self.place("tresnet_int8.onnx")

    @property
    def aipp(self) -> List[str]:
        return option_words(aipp=self.arguments.uint8 and os.path.join(self.data.prepared, evaluation.AIPP))

    def place(self, name: str) -> str:
        return os.path.join(self.arguments.workdir, name)

    def run(self, script: str, *words: str) -> None:
        self.steps.run(self.python, self.here + script, *words)

    def given(self, *options: str) -> List[str]:
        """Those of the options that were given, for a step that has them too."""
        return option_words(**{option: getattr(self.arguments, option) for option in options})

    def export_as(self, model: str, stem: str) -> None:
        self.run("TResNet_pth2onnx.py", self.data.checkpoint, model, *self.given("img_size", "lineage", "key"),
                 *option_words(stem=stem if stem != STEMS[0] else None), *self.given("ema", "force"))

    def export(self) -> None:
        self.export_as(self.model, self.arguments.stem)
        if not self.steps.dry_run:
            classes = int(record.read(self.model).notes["num_classes"])
            self.data.check_classes(classes)
            self.data.find_prepared()
            if self.arguments.class_names:
                class_names.read(self.arguments.class_names, classes)
            else:
                class_names.fetch(classes)

    def preprocess(self) -> None:
        given = self.arguments
        shard = "/".join(map(str, given.shard)) if given.shard != prepared.ALL_IMAGES else None
        self.run("TResNet_preprocess.py", self.data.images, self.data.prepared, "--model", self.model, *option_words(
            **evaluation.given(given), dtype="uint8" if given.uint8 else None, shard=shard),
            *self.given("class_map", "skip_bad", "force"))

    def soc_version(self) -> List[str]:
        named = self.arguments.soc_version or ascend.soc_version(self.chip)
        return option_words(soc_version=self.names_chip and named)

    def compile(self, model: str = "") -> None:
        sizes = sorted({self.arguments.batch_size, *self.arguments.batch_sizes})
        os.environ["TRESNET_PYTHON"] = os.path.abspath(os.path.join(ROOT, self.python))
        self.steps.run("bash", self.here + "scripts/onnx2om.sh", model or self.model, *option_words(batch_sizes=sizes),
                       *self.soc_version(), *self.aipp, *self.given("force"),
                       *["--", "--enable_small_channel=1"] * self.arguments.small_channel)

    def infer_on_cpu(self, model: str, name: str, *more: str, batch_size: int = 0) -> None:
        self.run("scripts/infer_onnx.py", "--model", model, *self.inferring(name), "--batchsize",
                 str(batch_size or self.arguments.batch_size), *self.aipp, *self.given("force"), *more)

    def infer(self, model: str = "", name: str = "result") -> None:
        model = model or self.model
        if self.backend == "cpu":
            self.infer_on_cpu(model, name)
        else:
            self.run("scripts/infer_om.py", "--model", om_path(model, self.arguments.batch_size),
                     *self.inferring(name), *self.device, *self.given("force"))

    def inferring(self, name: str) -> List[str]:
        return ["--input", self.data.prepared, "--output", self.arguments.workdir, "--output_dirname", name,
                *self.given("outfmt")]

    def forecast(self) -> None:
        self.made.add("forecast")
        labels = [] if self.data.several_classes() else ["--labels", self.data.labels, *self.given("label_offset")]
        self.run("scripts/forecast_fp16.py", self.model, "--input", self.data.prepared, *labels, "--images",
                 str(self.arguments.compare or 64), "--output", self.arguments.workdir, *self.aipp,
                 *self.given("force"))

    def compare(self, other: str, result: str, *more: str) -> None:
        self.made.add("compare")
        self.run("scripts/compare_results.py", other, result, "--json", self.place("compare.json"), *more,
                 *self.given("min_cosine"))

    def quantise(self) -> None:
        given, on_card = self.arguments, self.backend == "ascend"
        promise = [] if given.max_drop is None else [*self.given("max_drop"), "--labels", self.data.labels,
                                                     *self.given("label_offset")]
        self.made.add("tresnet_int8")
        self.run(f"scripts/quantize_{'amct' if on_card else 'onnx'}.py", self.model, self.judged_model, "--calibrate",
                 self.data.prepared, *promise, *(self.soc_version() + self.device) * on_card, *self.aipp,
                 *self.given("force"))
        if on_card:
            self.compile(self.judged_model)
        self.infer(self.judged_model, "result_int8")

    def judge(self) -> None:
        if self.judged != self.result:
            self.evaluate(self.result, f"acc_{summary.precision_before(self.backend)}")
        self.made.add("acc_report")
        self.evaluate(self.judged, "acc", "min_top1", "min_top5")

    def evaluate(self, result: str, name: str, *gates: str) -> None:
        self.made.add(name)
        self.run("TResNet_postprocess.py", result + "/", self.data.labels, self.arguments.workdir, name + ".json",
                 "--prep", self.data.prepared, *self.given("class_names", "multi_label", "label_offset", *gates))

    def expect(self) -> None:
        self.made.add("expect")
        beside = dataset.list_of_wnids([dataset.folder_of(self.data.folder)])
        devkit = beside if os.path.basename(beside).startswith(dataset.DEVKIT) else None
        self.run("scripts/expect.py", self.arguments.workdir, self.arguments.expect,
                 *option_words(checkpoint=self.data.checkpoint, devkit=devkit))

    def compare_with_cpu(self) -> None:
        self.infer_on_cpu(self.model, "result_onnx", "--first", str(self.arguments.compare), batch_size=8)
        forecast = ["--forecast", self.place("forecast.json")]
        if self.judged != self.result:  # int8's comparison is the run's; float16's is printed beside it
            self.run("scripts/compare_results.py", self.place("result_onnx"), self.result, *forecast)
            forecast = []
        self.compare(self.place("result_onnx"), self.judged, *forecast)

    def measure(self) -> None:
        given = self.arguments
        self.made.add("perf")
        data_set = "20 sample photos" if self.data.is_sample else os.path.basename(os.path.abspath(self.data.folder))
        sizes = sorted({given.batch_size, *given.batch_sizes}) if self.backend == "ascend" else given.batch_sizes
        self.run("scripts/perf_sweep.py", "--backend", self.backend, "--model", self.judged_model, *option_words(
            batch_sizes=sizes, loop=given.loop, repeat=given.repeat, data_set=data_set, accuracy=self.place("acc.json"),
            output=given.workdir), *self.device, *option_words(chip=self.names_chip and self.chip), *self.aipp,
            *self.given("force", "min_throughput"))

    def tune(self) -> None:
        """Measure the combinations; the best one's command is in tune.json."""
        given, on_card = self.arguments, self.backend == "ascend"
        models = [self.place(f"tune/{stem}.onnx") for stem in STEMS] if on_card else [self.model]
        if on_card:
            files.make_folder(self.place("tune"), "--workdir")
            for model, stem in zip(models, STEMS):
                self.export_as(model, stem)
        precision = "int8" if given.precision == "int8" else None
        self.run("scripts/tune.py", *models, "--backend", self.backend, "--input", self.data.prepared, *self.aipp,
                 *option_words(images=given.compare or 64, precision=precision, batch_sizes=given.batch_sizes,
                               loop=given.loop, repeat=given.repeat, device=self.devices[0] if self.device else None),
                 *self.soc_version() * on_card, "--output", given.workdir, *self.given("min_cosine"))

    def say_best(self) -> None:
        """The command line of this run, as the tuning would have it."""
        chosen = TUNE.read(self.place("tune.json"))["options"]
        words = [word for word in sys.argv[1:] if word not in ("--tune", "--uint8", "--small-channel")]
        command = ["bash", self.here + "scripts/pipeline.sh", *words, *chosen]
        print(f"\nthe best of them:\n\n    {' '.join(map(shlex.quote, command))}")

    def report(self) -> None:
        """The page, made from the work folder and from what only this program knows: run.json."""
        given, path = self.arguments, self.place("run.json")
        gates = ("min_top1", "min_top5", "min_throughput", "min_cosine")
        about = {"tool": cli.program(), "version": cli.VERSION, "backend": self.backend, "reason": self.reason,
                 "precision": given.precision, "note": self.note,
                 "data": os.path.abspath(self.data.folder), "checkpoint": os.path.abspath(self.data.checkpoint),
                 "gates": {gate: getattr(given, gate) for gate in gates if getattr(given, gate) is not None},
                 "made": ["run", *sorted(self.made)], "commands": list(self.steps.commands),
                 "steps": self.times, "began": time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began)),
                 "seconds": time.time() - self.began}
        if not self.steps.dry_run:
            content = json.dumps(about, indent=1).encode("ascii")
            record.write(path, record.Recipe({"tool": cli.program()}), {path: content})
        self.run("scripts/report.py", given.workdir, *self.given("force"))

    def plan(self) -> List[Tuple[str, Callable[[], None]]]:
        """The steps of this run: (name, what does it)."""
        given, on_card = self.arguments, self.backend == "ascend"
        measured = given.perf or given.min_throughput is not None or on_card and given.shard[0] == 1
        before = [("Sample data", lambda: self.run("scripts/make_sample.py", self.data.folder), self.data.is_sample),
                  ("Data", lambda: self.run("scripts/prepare_data.py", self.data.folder, self.data.unpacked),
                   self.data.to_prepare()), ("Export", self.export, True), ("Preprocess", self.preprocess, True),
                  ("Tuning", self.tune, given.tune)]
        steps = [("Forecast for float16", self.forecast, given.forecast or on_card and given.compare),
                 ("Compile", self.compile, on_card), ("Inference", self.infer, True),
                 ("Quantise", self.quantise, given.precision == "int8"), ("Accuracy", self.judge, True),
                 ("Published accuracy", self.expect, given.expect),
                 ("Comparison with ONNX Runtime", self.compare_with_cpu, on_card and given.compare),
                 (f"Comparison with {summary.precision_before(self.backend)}",
                  lambda: self.compare(self.result, self.judged),
                  given.precision == "int8" and not (on_card and given.compare)),
                 ("Performance", self.measure, measured), ("Report", self.report, True)]
        return [(name, step) for name, step, wanted in [*before, *([] if given.tune else steps)] if wanted]

    def all(self) -> None:
        """Every step, and the summary. If a figure is below a minimum, what is known of the accuracy is reported."""
        plan = self.plan()
        for place, (name, step) in enumerate(plan, 1):
            start = time.time()
            self.steps.header(name, place, len(plan))
            try:
                step()
            except SystemExit as end:
                if end.code == cli.BELOW_MINIMUM and "acc" in self.made:
                    self.steps.header("Report", len(plan), len(plan))
                    self.report()
                raise
            self.times.append({"name": name, "seconds": time.time() - start})
        if self.arguments.tune and not self.steps.dry_run:
            self.say_best()
        elif not self.steps.dry_run:
            self.steps.name = "summary"
            print(f"\n== Summary ({time.time() - self.began:.0f} s) ==")
            float32 = self.result if self.judged != self.result else None
            summary.show(self.arguments.workdir, self.backend, self.model, self.judged_model, self.judged, float32,
                         "compare" in self.made, "perf" in self.made, self.note)


def contradictions(given: argparse.Namespace, data: check.Data, backend: str) -> List[Tuple[bool, str]]:
    """(whether options contradict each other in this way, how, and what to do) for each way."""
    compared = given.tune or (given.compare if backend == "ascend" else given.precision == "int8")
    return [
        (given.small_channel and not (given.uint8 and given.stem != "space-to-depth" and backend == "ascend"),
         "--small-channel is for a first convolution behind AIPP on the card: give --uint8, and --stem conv4 or "
         "conv12"),
        (given.max_drop is not None and given.precision != "int8",
         "--max-drop is a promise about int8: give --precision int8 as well"),
        (given.max_drop is not None and data.several_classes(),
         "--max-drop is about Top-1, and these labels give an image several classes; leave it out"),
        (given.max_drop is not None and given.tune,
         "--tune does not try --max-drop: leave it out here, and add it to the command of the best if that is int8"),
        (given.multi_label and given.shard[1] > 1,
         "--multi-label takes all images in one run: the mean average precision of parts cannot be put together; leave "
         "out --shard"),
        (given.multi_label and not given.min_top1 is given.min_top5 is given.expect is None,
         "--min-top1, --min-top5 and --expect are not for --multi-label, whose figure is the mean average precision; "
         "leave them out"),
        (given.min_cosine is not None and not compared,
         "--min-cosine needs a comparison, which this run does not make: on the CPU it takes --precision int8, on "
         "ascend --compare with 1 image or more")]


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
    if arguments.class_names:
        files.read_regular(arguments.class_names)  # refused now if it cannot be read; its lines, later
    os.umask(0o027)  # later versions of ais_bench refuse folders that others can enter
    steps, data = Steps(arguments.dry_run), check.Data(arguments)
    backend, why, rows = check.examine(arguments, data)
    for row in check.lacks(backend, rows):
        raise Refusal(f"{row.item}: {row.found}; {row.mend}; `--check` shows all that is missing")
    for wrong, sentence in contradictions(arguments, data, backend):
        if wrong:
            raise Refusal(sentence, cli.USAGE)
    if not arguments.dry_run:
        files.make_folder(arguments.workdir, "--workdir")
        steps.lock = files.hold(os.path.join(arguments.workdir, ".lock"))
    python = prepare(arguments, steps)
    print(f"backend: {backend}: {why}", flush=True)
    Chain(arguments, data, backend, why, python, steps).all()
    return 0


if __name__ == "__main__":
    cli.run(main)
