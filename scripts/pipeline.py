#!/usr/bin/env python3
"""The whole chain: images and a checkpoint in, accuracy and throughput out.

    bash scripts/pipeline.sh
    bash scripts/pipeline.sh --data ./ImageNet --checkpoint model_best.pth.tar

Without options: 20 sample photos and a sample checkpoint go through every step, on the NPU if there
is one, else on the CPU. Environment: PYTHON names another Python than python3 for the virtual
environment.
Exit status: 0 good, 1 a step failed, 2 wrong usage, 3 a gate (a --min-… option), 130 Ctrl-C.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    NoReturn,
    Optional,
    Set,
    Tuple,
)

from common.core import cli

if __name__ == "__main__":
    cli.start("pipeline.sh")  # the name that its user typed

from common.ascend import chips, host
from common.core import config, environment, files, json_file, options, progress, record, run_log
from common.core.cli import ROOT, Refusal, shown
from common.core.names import STEMS, om_path
from common.core.packages import Source
from common.core.places import VARIABLE, Place
from common.data import class_names, dataset, evaluation, wnids
from common.model import claims
from common.results import leftovers, published, summary
from common.results.step_times import StepTimes
from common.results.work_files import RUN, TUNE

import check
import timm_source

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LABELS = ["labels", "labels_encoding", "label_offset"]  # options of steps that read them
GATES = ("min_top1", "min_top5", "min_throughput", "min_cosine")
LOG = "pipeline.log"  # in the work folder: all that is printed
HOST_FACTS = ".host.json"  # host.host_facts() in the work folder, while a run on the card lasts
Command = List[str]


def make_parser() -> cli.Parser:
    parser = cli.parser(__doc__)
    check.add_options(parser)
    options.add(
        parser,
        "lineage",
        "ema",
        "key",
        "gp",
        "skip_bad",
        "class_names",
        "batch_size",
        "outfmt",
        "precision",
        "max_drop",
        *options.QUANT,
        "perf",
        "loop",
        "repeat",
        "compare",
        "tune",
        "stem",
        "small_channel",
        "forecast",
        *GATES,
        "expect",
        "stall",
        "only",
        "from_step",
        "config",
        "clean",
        "yes",
        "language",
        "check",
        "force",
        "dry_run",
        default={"batch_size": options.PIPELINE_BATCH, "outfmt": "NPY"},
        choices={"expect": published.NAMES},
        help={
            "batch_size": "batch of the accuracy run (default: 8)",
            "outfmt": "format of the results (default: NPY, the fastest)",
            "stem": "how the first operators are exported (default: %(default)s)",
            "min_cosine": "a gate: the cosine similarity of an image's logits compared with ONNX "
            "Runtime, or of int8 with float32",
            "expect": "hold the accuracy against the published one and look for the cause if it "
            f"is another, or with the checkpoint's own: {', '.join(published.NAMES)}",
        },
    )
    return parser


def parse_arguments() -> argparse.Namespace:
    return config.parse(make_parser())  # main() looks for contradictions: it knows the backend


# ---- running commands ----------------------------------------------------------------------------


class Runner:
    """Runs commands one after the other, each in its own process group, which a signal ends."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.dry_run = given.dry_run
        self.name = "set-up"  # of the current step
        self.lock = -1  # the open file that holds the work folder
        self.times = StepTimes(given.workdir, given.force)
        self.earlier: Dict[str, Any] = {}  # what run.json says, at first of an earlier run
        with contextlib.suppress(Refusal):
            self.earlier = RUN.read_in(given.workdir)
        # For the report: what was done.
        self.commands: List[str] = []
        self.made: Set[str] = set()  # what the report may show; other files are an earlier run's
        for number in SIGNALS:
            signal.signal(number, self.stop)

    def stop(self, number: int, _: Any) -> NoReturn:
        for ignored in SIGNALS:
            signal.signal(ignored, signal.SIG_IGN)
        raise Refusal(
            f"stopped during {self.name}; the same command goes on from there",
            128 + number,
        )

    def header(self, name: str, number: int = 0, total: int = 0) -> None:
        self.name = name
        position = f" (step {number} of {total})" if total else ""
        print(f"\n== {name}{position} ==", flush=True)

    def run(self, command: Command) -> None:
        """Print a command of the current step and run it. Raises: Refusal if it fails."""
        self.commands.append(" ".join(map(shlex.quote, command)))
        print(f"$ {self.commands[-1]}", flush=True)
        if self.dry_run:
            return
        start = time.time()
        # A signal must not end this process before it knows the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
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
            raise Refusal(f"the step '{self.name}' failed with exit status {status} (see above)")
        print(f"({time.time() - start:.0f} s)", flush=True)


def lead_group() -> None:
    """In a new child: make it the leader of a process group."""
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


# ---- a run ---------------------------------------------------------------------------------------


class Run(NamedTuple):
    """All that decides about the steps' commands; nothing in it changes."""

    given: argparse.Namespace  # the options
    data: check.Data
    backend: str  # "ascend" or "cpu"
    reason: str  # why this one
    place: Place  # of all that the set-up made
    python: str  # the interpreter of the steps
    began: float  # s
    taken: Tuple[str, ...] = ()  # the words of the steps that this run takes
    devices: List[int] = [0]
    chip: str = ""  # as npu-smi names it; "" on the CPU
    soc: str = ""  # as atc names it

    @property
    def on_card(self) -> bool:
        return self.backend == "ascend"

    @property
    def is_partial(self) -> bool:
        """Whether only some of the steps are taken."""
        return bool(self.given.only or self.given.from_step)

    @property
    def judges(self) -> bool:
        """Whether one of the steps looks at labels."""
        return bool({"quantise", "accuracy"}.intersection(self.taken))

    @property
    def quantised(self) -> bool:
        return bool(self.given.precision == "int8")

    @property
    def compared(self) -> bool:
        """Whether the card's answers are compared with those of ONNX Runtime."""
        return self.on_card and self.given.compare > 0 and not self.given.tune

    @property
    def model(self) -> str:
        return self.work_path("tresnet.onnx")

    @property
    def result(self) -> str:
        return self.work_path("result")

    @property
    def judged_model(self) -> str:
        """The model whose accuracy and speed are the run's."""
        return self.work_path("tresnet_int8.onnx") if self.quantised else self.model

    @property
    def judged_result(self) -> str:
        """The results of the judged model."""
        return self.work_path("result_int8") if self.quantised else self.result

    @property
    def note(self) -> str:
        """What the summary says of the sample's accuracy; "" for other data."""
        if self.given.data or self.given.checkpoint:
            return ""
        options_given = evaluation.given(self.given)
        is_default = evaluation.DEFAULT._replace(**options_given) == evaluation.DEFAULT
        return summary.SAMPLE_NOTE if is_default else summary.PREPARED_OTHERWISE

    def work_path(self, name: str) -> str:
        return os.path.join(self.given.workdir, name)

    def command(self, script: str, *words: str) -> Command:
        command = [self.python, script_path(script), *words]
        is_found = os.path.abspath(self.python).startswith(self.place.folder + "/")
        if self.place.folder and not is_found:
            return ["env", f"{VARIABLE}={self.place.folder}", *command]
        return command

    def words(self, *names: str, **instead: Any) -> List[str]:
        """The words that give these options to a step: with this run's values.

        instead: options that have another value in this step; their words come last.
        """
        values = {**vars(self.given), **step_values(self), **instead}
        return options.words(**{name: values[name] for name in (*names, *instead)})


def script_path(script: str) -> str:
    """A path below ROOT, as short as it can be pasted."""
    return script if os.getcwd() == ROOT else os.path.join(ROOT, script)


def step_values(run: Run) -> Dict[str, Any]:
    """{option: value} where the steps get another value than the pipeline; None leaves it out."""
    given, data = run.given, run.data
    values = {
        **evaluation.given(given),
        "aipp": None,
        "dtype": None,
        "shard": None,
        "stem": given.stem if given.stem != STEMS[0] else None,
        "stall": given.stall if run.on_card and given.stall != options.STALL else None,
        "batch_sizes": sorted(given.batch_sizes),
        "labels": data.labels,
        "checkpoint": data.checkpoint,
        "input": data.prepared,
        "output": given.workdir,
        "prep": data.prepared,
        "backend": run.backend,
        "device": None,
        "chip": None,
        "soc_version": None,
        "host_facts": None,
    }
    if given.uint8:
        values.update(dtype="uint8", aipp=os.path.join(data.prepared, evaluation.AIPP))
    if given.shard != options.ALL_IMAGES:
        values["shard"] = "/".join(map(str, given.shard))
    if run.on_card:
        values["batch_sizes"] = sorted({*given.batch_sizes, given.batch_size})
        values["host_facts"] = run.work_path(HOST_FACTS)
        if run.devices != [0]:
            values["device"] = run.devices
        if given.soc_version or given.device is not None:
            values["chip"] = run.chip
            values["soc_version"] = run.soc
    return values


# ---- the commands of each step -------------------------------------------------------------------


def sample(run: Run) -> List[Command]:
    return [run.command("scripts/make_sample.py", run.data.folder, *run.words("offline"))]


def unpack(run: Run) -> List[Command]:
    return [run.command("scripts/prepare_data.py", run.data.folder, run.data.unpacked)]


def export(run: Run) -> List[Command]:
    return [export_command(run, run.model)]


def export_command(run: Run, model: str, **stem: Any) -> Command:
    names = ("img_size", "lineage", "key", "gp", "stem", "ema", "force")
    return run.command(
        "TResNet_pth2onnx.py", run.data.checkpoint, model, *run.words(*names, **stem)
    )


def preprocess(run: Run) -> List[Command]:
    names = (
        "img_size",
        *options.EVALUATION,
        "dtype",
        "shard",
        "class_map",
        "class_order",
        "skip_bad",
        "force",
    )
    return [
        run.command(
            "TResNet_preprocess.py",
            run.data.images,
            run.data.prepared,
            *run.words(model=run.model),
            *run.words(*names),
        )
    ]


def tune(run: Run) -> List[Command]:
    """Measure the combinations; the best one's options are in tune.json."""
    given, models, exports = run.given, [run.model], []
    device = None  # of several only the first
    if run.on_card:
        models = [run.work_path(f"tune/{stem}.onnx") for stem in STEMS]
        for model, stem in zip(models, [None, *STEMS[1:]]):  # the first is the default
            exports.append(export_command(run, model, stem=stem))
        if run.devices != [0]:
            device = run.devices[0]
    return [
        *exports,
        run.command(
            "scripts/tune.py",
            *models,
            *run.words("backend", "input", "aipp"),
            *run.words(
                images=given.compare or 64,
                precision="int8" if run.quantised else None,
                batch_sizes=given.batch_sizes,
            ),
            *run.words(*options.QUANT, "loop", "repeat"),
            *run.words(device=device),
            *run.words("soc_version", "output", "host_facts", "stall", "min_cosine"),
        ),
    ]


def forecast(run: Run) -> List[Command]:
    labels = [] if check.has_several_classes(run.data) else LABELS
    return [
        run.command(
            "scripts/forecast_fp16.py",
            run.model,
            *run.words("input", *labels),
            *run.words(images=run.given.compare or 64),
            *run.words("output", "aipp", "force"),
        )
    ]


def forecast_speed(run: Run) -> List[Command]:
    return [
        run.command("scripts/forecast_speed.py", run.model, *run.words("uint8", "output", "force"))
    ]


def compile_models(run: Run) -> List[Command]:
    return [compile_command(run, run.model)]


def compile_command(run: Run, model: str) -> Command:
    for_atc = ["--", "--enable_small_channel=1"] if run.given.small_channel else []
    return run.command(
        "scripts/onnx2om.py",
        model,
        *run.words("batch_sizes", "soc_version", "aipp", "stall", "force"),
        *for_atc,
    )


def infer(run: Run) -> List[Command]:
    """Infer; and where a comparison will follow, some images with ONNX Runtime too."""
    commands = [infer_command(run, run.model, "result")]
    if run.compared:
        count = run.given.compare
        commands.append(infer_on_cpu(run, run.model, "result_onnx", 8, spaced=count))
    return commands


def infer_command(run: Run, model: str, name: str) -> Command:
    if not run.on_card:
        return infer_on_cpu(run, model, name, run.given.batch_size)
    return run.command(
        "scripts/infer_om.py",
        *run.words(model=om_path(model, run.given.batch_size)),
        *run.words("input", "output", output_dirname=name),
        *run.words("outfmt", "device", "host_facts", "stall", "force"),
    )


def infer_on_cpu(run: Run, model: str, name: str, batch_size: int, **spaced: int) -> Command:
    return run.command(
        "scripts/infer_onnx.py",
        *run.words(model=model),
        *run.words("input", "output", output_dirname=name),
        *run.words("outfmt", batchsize=batch_size),
        *run.words("aipp", "force", **spaced),
    )


def quantise(run: Run) -> List[Command]:
    promise = [] if run.given.max_drop is None else ["max_drop", *LABELS]
    words = [
        run.model,
        run.judged_model,
        *run.words(calibrate=run.data.prepared),
        *run.words(*promise, "soc_version", "device", "host_facts", "aipp", "stall", "force"),
    ]
    inference = infer_command(run, run.judged_model, "result_int8")
    if run.on_card:
        return [
            run.command("scripts/quantize_amct.py", *words),
            compile_command(run, run.judged_model),
            inference,
        ]
    return [run.command("scripts/quantize_onnx.py", *words, *run.words(*options.QUANT)), inference]


def judge(run: Run) -> List[Command]:
    commands = []
    other = None  # the results that predictions.csv sets beside the judged ones
    if run.quantised:
        name = f"acc_{summary.precision_before(run.backend)}.json"
        commands.append(evaluate(run, run.result, run.model, name))
        other = run.result
    elif run.compared:
        other = run.work_path("result_onnx")
    if run.given.multi_label:
        other = None
    judged = run.judged_result, run.judged_model
    gates = ("min_top1", "min_top5")
    return [*commands, evaluate(run, *judged, "acc.json", *gates, beside=other)]


def evaluate(
    run: Run, result: str, model: str, name: str, *gates: str, **other: Optional[str]
) -> Command:
    names = ("prep", "class_names", "multi_label", "labels_encoding", "label_offset")
    return run.command(
        "TResNet_postprocess.py",
        result + "/",
        run.data.labels,
        run.given.workdir,
        name,
        *run.words(model=model),
        *run.words(*names, *gates, **other),
    )


def expect(run: Run) -> List[Command]:
    beside = dataset.list_of_wnids([dataset.folder_of(run.data.folder)])
    devkit = beside if os.path.basename(beside).startswith(wnids.DEVKIT) else None
    return [
        run.command(
            "scripts/expect.py",
            run.given.workdir,
            run.given.expect,
            *run.words("checkpoint", devkit=devkit),
        )
    ]


def compare_with_cpu(run: Run) -> List[Command]:
    """Compare float16 with float32. For int8, only its own comparison goes into compare.json."""
    cpu = run.work_path("result_onnx")
    forecast_file = ["--forecast", run.work_path("forecast.json")]
    if not run.quantised:
        return [compare_command(run, cpu, run.result, *forecast_file)]
    return [
        run.command("scripts/compare_results.py", cpu, run.result, *forecast_file),
        compare_command(run, cpu, run.judged_result),
    ]


def compare_with_float(run: Run) -> List[Command]:
    return [compare_command(run, run.result, run.judged_result)]


def compare_command(run: Run, reference: str, result: str, *more: str) -> Command:
    return run.command(
        "scripts/compare_results.py",
        reference,
        result,
        "--json",
        run.work_path("compare.json"),
        *more,
        *run.words("min_cosine"),
    )


def measure(run: Run) -> List[Command]:
    data_set = os.path.basename(os.path.abspath(run.data.folder))
    if run.data.is_sample:
        data_set = "20 sample photos"
    accuracy: Optional[str] = run.work_path("acc.json")
    if "accuracy" not in run.taken and not os.path.exists(run.work_path("acc.json")):
        accuracy = None
    return [
        run.command(
            "scripts/perf_sweep.py",
            *run.words("backend", model=run.judged_model),
            *run.words(
                "batch_sizes",
                "loop",
                "repeat",
                data_set=data_set,
                accuracy=accuracy,
            ),
            *run.words("output", "device", "chip", "host_facts", "aipp", "stall", "force"),
            *run.words("min_throughput"),
        )
    ]


def report(run: Run) -> List[Command]:
    return [run.command("scripts/report.py", run.given.workdir, *run.words("language", "force"))]


# ---- what the steps make -------------------------------------------------------------------------


def sample_products(run: Run) -> List[str]:
    return [os.path.join(run.data.folder, "sample")]


def unpacked_products(run: Run) -> List[str]:
    return [run.data.images if run.data.packed else run.data.labels]


def om_paths(run: Run, model: str) -> List[str]:
    return [om_path(model, size) for size in step_values(run)["batch_sizes"]]


def inferred_products(run: Run) -> List[str]:
    return [run.result, run.work_path("result_onnx")] if run.compared else [run.result]


def quantised_products(run: Run) -> List[str]:
    compiled = om_paths(run, run.judged_model) if run.on_card else []
    return [run.judged_model, *compiled, run.judged_result]


# ---- what this program does itself before and after a step ---------------------------------------


def make_tune_folder(run: Run, runner: Runner) -> None:
    if run.on_card and not runner.dry_run:
        files.make_folder(run.work_path("tune"), "--workdir")


def write_run(run: Run, runner: Runner) -> None:
    """Write run.json: what only this program knows, for the report."""
    if runner.dry_run:
        return
    values = vars(run.given)
    about = {
        "tool": cli.program(),
        "version": cli.VERSION,
        "backend": run.backend,
        "reason": run.reason,
        "precision": run.given.precision,
        "note": run.note,
        "data": os.path.abspath(run.data.folder),
        "checkpoint": os.path.abspath(run.data.checkpoint),
        "gates": {gate: values[gate] for gate in GATES if values[gate] is not None},
        "made": ["run", *sorted(runner.made)],
        "commands": runner.commands,
        "steps": runner.times.steps,
        "began": time.strftime("%Y-%m-%d %H:%M", time.localtime(run.began)),
        "seconds": time.time() - run.began,
        "options": config.values(make_parser(), run.given),
        "making": runner.times.noted(),
    }
    if run.is_partial:
        about = joined(runner.earlier, about)
    runner.earlier = about
    write_about(run, about)


# The options that decide what the figures of a run are of, with any of its steps.
DECIDE_FIGURES = (
    "precision",
    "lineage",
    "ema",
    "key",
    "gp",
    "img_size",
    *options.EVALUATION,
    "uint8",
    "shard",
    "class_map",
    "class_order",
    *options.QUANT,
)


def decided_alike(earlier: Dict[str, Any], about: Dict[str, Any]) -> bool:
    """Whether the figures of two runs, as run.json describes them, may stand side by side."""
    before, now = earlier.get("options") or {}, about["options"]
    if any(before.get(name) != now.get(name) for name in DECIDE_FIGURES):
        return False
    checkpoints = {os.path.basename(said.get("checkpoint", "")) for said in (earlier, about)}
    return len(checkpoints) == 1 and earlier.get("backend") == about["backend"]


def joined(earlier: Dict[str, Any], about: Dict[str, Any]) -> Dict[str, Any]:
    """What run.json says after some of the steps: what an earlier run did still counts.

    Only a run of the same backend, checkpoint and evaluation counts: otherwise the report would
    show its figures beside others.
    earlier: what it said before; {} if there was no earlier run.
    """
    if not decided_alike(earlier, about):
        return about
    steps = {step["name"]: step for step in (*earlier.get("steps", ()), *about["steps"])}
    return {
        **about,
        "made": list(dict.fromkeys((*earlier.get("made", ()), *about["made"]))),
        "commands": list(dict.fromkeys((*earlier.get("commands", ()), *about["commands"]))),
        "steps": list(steps.values()),
    }


def write_options(run: Run, runner: Runner) -> None:
    """Bring the options and times in run.json up to date; the rest is of a run that ended well."""
    if not runner.earlier:
        write_run(run, runner)
        return
    now = {
        "options": config.values(make_parser(), run.given),
        "making": runner.times.noted(),
    }
    write_about(run, {**runner.earlier, **now})


def write_about(run: Run, about: Dict[str, Any]) -> None:
    path = run.work_path("run.json")
    content = json_file.encode(about)
    record.write(path, record.Recipe({"tool": cli.program()}), {path: content})


def learn_network(run: Run, runner: Runner) -> Run:
    """After the export: check the labels and names of the classes, and learn the evaluation."""
    if runner.dry_run:
        return run
    if not run.judges:
        return run._replace(data=check.choose_prepared(run.data))
    notes = record.read(run.model).notes
    classes = int(notes["num_classes"])
    check.check_classes(run.data, classes)
    if run.given.expect == published.CHECKPOINT:
        claims.needed_rows(notes)
    if run.given.expect:
        published.check_classes(run.given.expect, classes)
    if run.given.class_names:
        class_names.read(run.given.class_names, classes)
    else:
        class_names.fetch(classes, run.place, Source(run.python, run.given.offline))
    return run._replace(data=check.choose_prepared(run.data))


# ---- the chain -----------------------------------------------------------------------------------


class Step(NamedTuple):
    """One step."""

    word: str  # for --only and --from
    name: str
    wanted: bool
    commands: Callable[[Run], List[Command]]
    # Which products it makes: if all stay as they are, the step kept what was there.
    products: Callable[[Run], List[str]] = lambda run: []
    makes: Tuple[str, ...] = ()  # the JSON files that the report may show
    before: Callable[[Run, Runner], None] = lambda run, runner: None  # what this program does first
    after: Callable[[Run, Runner], Run] = lambda run, runner: run  # and last: what is known then

    def records(self, run: Run) -> List[str]:
        """The records of its products."""
        return [
            os.path.join(path, record.MANIFEST)
            if path == run.data.prepared
            else record.path_of(path)
            for path in self.products(run)
        ]


REPORT = Step(
    "report",
    "Report",
    True,
    report,
    products=lambda run: [run.work_path("report.html")],
    before=write_run,
)


def plan(run: Run) -> List[Step]:
    """The table of all steps, in their order."""
    return [*steps_to_models(run), *steps_with_results(run)]


def steps_to_models(run: Run) -> List[Step]:
    """The steps up to the models, and those that look only at them."""
    given, data = run.given, run.data
    complete = not given.tune  # --tune ends after the measurements
    can_forecast_speed = not run.on_card or run.chip == published.CARD_CASE[0]
    return [
        Step("sample", "Sample data", data.is_sample, sample, sample_products),
        Step("data", "Data", data.to_prepare, unpack, unpacked_products),
        Step("export", "Export", True, export, lambda run: [run.model], after=learn_network),
        Step(
            "speed",
            "Forecast of the speed",
            complete and can_forecast_speed,
            forecast_speed,
            products=lambda run: [run.work_path("speed")],
            makes=("speed",),
        ),
        Step("preprocess", "Preprocess", True, preprocess, lambda run: [run.data.prepared]),
        Step("tune", "Tuning", given.tune, tune, before=make_tune_folder),
        Step(
            "forecast",
            "Forecast for float16",
            run.compared or (complete and given.forecast),
            forecast,
            products=lambda run: [run.work_path("forecast")],
            makes=("forecast",),
        ),
        Step(
            "compile",
            "Compile",
            complete and run.on_card,
            compile_models,
            products=lambda run: om_paths(run, run.model),
        ),
    ]


def steps_with_results(run: Run) -> List[Step]:
    """The steps that run the models, and what follows from their results."""
    given = run.given
    complete = not given.tune
    first_shard_on_card = run.on_card and given.shard[0] == 1
    speed_wanted = given.perf or given.min_throughput is not None or first_shard_on_card
    before = summary.precision_before(run.backend)
    accuracies: Tuple[str, ...] = ("acc", "acc_report")
    if run.quantised:
        accuracies += (f"acc_{before}",)
    return [
        Step("inference", "Inference", complete, infer, inferred_products),
        Step(
            "quantise",
            "Quantise",
            complete and run.quantised,
            quantise,
            products=quantised_products,
            makes=("tresnet_int8",),
        ),
        Step("accuracy", "Accuracy", complete, judge, makes=accuracies),
        Step(
            "expect",
            "Published accuracy",
            complete and bool(given.expect),
            expect,
            makes=("expect",),
        ),
        Step(
            "compare",
            "Comparison with ONNX Runtime",
            run.compared,
            compare_with_cpu,
            makes=("compare",),
        ),
        Step(
            "compare",
            f"Comparison with {before}",
            complete and run.quantised and not run.compared,
            compare_with_float,
            makes=("compare",),
        ),
        Step(
            "performance",
            "Performance",
            complete and speed_wanted,
            measure,
            products=lambda run: [run.work_path("perf")],
            makes=("perf",),
        ),
        REPORT._replace(wanted=complete),
    ]


# What a step needs beside the products of earlier steps: the rows of check.examine(). All steps
# need the rows that are not here.
BENCH = (check.CHIP_ITEM, "ais_bench", "aclruntime")
ATC = ("atc", "host's python3", check.CHIP_ITEM)
NEEDS = {
    "data": ("images", "labels", "disk space"),
    "sample": ("disk space",),
    "export": ("checkpoint",),
    "preprocess": ("images", "disk space"),
    "tune": (*ATC, *BENCH),
    "compile": ATC,
    "inference": BENCH,
    "quantise": (*ATC, *BENCH, "AMCT", "labels"),
    "accuracy": ("labels",),
    "performance": BENCH,
}
# What decides which products are a run's: --clean needs it.
DECIDING = ("work folder", "images", "labels", "checkpoint")
# The steps without which a gate would let everything pass.
JUDGES = {
    "min_top1": ("accuracy",),
    "min_top5": ("accuracy",),
    "min_throughput": ("performance",),
    "min_cosine": ("compare", "tune"),
}
# --from one of these does not need atc.
AFTER_COMPILING = ("inference", "accuracy", "expect", "compare", "performance", "report")
# Steps that do not look at the model.
BEFORE_MODEL = ("sample", "data", "export")


def steps_of(run: Run) -> List[Step]:
    """The steps that these options give, or those of them that --only and --from name.

    Raises: Refusal for a name that is not a step, or not one of this run.
    """
    given, table = run.given, plan(run)
    steps = [step for step in table if step.wanted]
    there = [step.word for step in steps]
    for name in (*given.only, *filter(None, [given.from_step])):
        if name not in {step.word for step in table}:
            names = dict.fromkeys(step.word for step in table)
            raise Refusal(f"{shown(name)} is not a step; there are {', '.join(names)}", cli.USAGE)
        if name not in there:
            advice = ""
            if name == "compile" and not run.on_card:
                advice = "; for a card that is not here, name its chip: --soc-version Ascend310P3"
            raise Refusal(
                f"with these options a run on {run.backend} does not have the step {name}, only "
                f"{', '.join(there)}{advice}",
                cli.USAGE,
            )
    if given.only:
        steps = [step for step in steps if step.word in given.only]
    elif given.from_step:
        steps = steps[there.index(given.from_step) :]
    words = {step.word for step in steps}
    for gate, judges in JUDGES.items():
        if vars(given)[gate] is not None and run.is_partial and not words.intersection(judges):
            raise Refusal(
                f"--{gate.replace('_', '-')} is decided by the step {judges[0]}, which --only or "
                "--from leaves out",
                cli.USAGE,
            )
    return steps


def may_compile(given: argparse.Namespace) -> bool:
    """Whether a run on the card could need atc, as far as --only and --from say it."""
    if given.only:
        return bool({"compile", "tune", "quantise"}.intersection(given.only))
    return given.from_step not in AFTER_COMPILING or given.precision == "int8"


def unneeded_items(steps: List[Step]) -> Set[str]:
    """The rows of check.examine() without which these steps can run."""
    taken = {step.word for step in steps}
    needed: Set[str] = set()
    others: Set[str] = set()
    for word, items in NEEDS.items():
        (needed if word in taken else others).update(items)
    return others - needed


def know_model(run: Run, runner: Runner) -> Run:
    """Where --only or --from leaves out the export: what is known of the model that is there.

    Raises: Refusal if a step needs a model, and there is not one.
    """
    first = next((word for word in run.taken if word not in BEFORE_MODEL), REPORT.word)
    if "export" in run.taken or first == REPORT.word:
        return run
    if not runner.dry_run and not os.path.exists(run.model):
        raise Refusal(
            f"there is no {shown(run.model)}, which the step {first} needs; add the step export"
        )
    return learn_network(run, runner)


def take(step: Step, run: Run, runner: Runner) -> Run:
    """Carry out one step. Returns: the run with what is known after the step."""
    runner.made.update(step.makes)
    step.before(run, runner)
    for command in step.commands(run):
        runner.run(command)
    return step.after(run, runner)


def take_timed(step: Step, run: Run, runner: Runner) -> Run:
    """take() a step, and note how long it took and whether it only kept what was there."""
    start = time.time()
    runner.times.begin([] if runner.dry_run else step.records(run))
    run = take(step, run, runner)
    took = runner.times.end(step.name, time.time() - start)
    if took["kept"]:
        made_in = took["made_in"]
        how_long = "" if made_in is None else f" (made in {progress.duration(made_in)})"
        print(f"kept{how_long}", flush=True)
    return run


def carry_out(run: Run, runner: Runner) -> None:
    """Carry out every step and print the summary.

    If a figure is below a minimum, the run ends with a report of the accuracy, if that is known.
    """
    steps = steps_of(run)
    run = know_model(run, runner)
    for number, step in enumerate(steps, 1):
        runner.header(step.name, number, len(steps))
        try:
            run = take_timed(step, run, runner)
        except SystemExit as end:
            if end.code == cli.BELOW_MINIMUM and "acc" in runner.made:
                runner.header(REPORT.name, len(steps), len(steps))
                take(REPORT, run, runner)
            raise
    if runner.dry_run:
        return
    if run.given.tune:
        say_best(run)
        return
    runner.name = "summary"
    if REPORT.word not in run.taken:
        write_run(run, runner)
    if "accuracy" not in run.taken and REPORT.word not in run.taken:
        say_rest(run)
        return
    print(f"\n== Summary ({time.time() - run.began:.0f} s) ==")
    summary.show(
        run.given.workdir,
        run.backend,
        run.model,
        run.judged_model,
        run.judged_result,
        run.result if run.quantised else None,
        runner.made,
        run.note,
    )


def say_rest(run: Run) -> None:
    """The last lines of a run of some steps: what was done, and what comes next."""
    print(f"\n== {', '.join(run.taken)}: done ({time.time() - run.began:.0f} s) ==")
    wanted = [step for step in plan(run) if step.wanted]
    last = [step.word for step in wanted].index(run.taken[-1])
    following = [step.word for step in wanted[last + 1 :]]
    left_out = [step.word for step in wanted[:last] if is_left_out(run, step)]
    if left_out:
        print(f"the rest of this run: --only {','.join(left_out + following)}")
    elif following:
        print(f"the next step of this run is {following[0]}: --from {following[0]}")


def is_left_out(run: Run, step: Step) -> bool:
    """Whether a step that was not taken has none of its products in the work folder."""
    records = step.records(run)
    return step.word not in run.taken and bool(records) and not any(map(os.path.exists, records))


def say_best(run: Run) -> None:
    """Print the command line of this run with the best options."""
    chosen = TUNE.read(run.work_path("tune.json"))["options"]
    replaced = ("tune", "uint8", "small_channel", "stem", "precision", "batch_size")
    words = options.without(run.given.words, (*replaced, *options.QUANT))
    command = ["bash", script_path("scripts/pipeline.sh"), *words, *chosen]
    print(f"\nthe best of them:\n\n    {' '.join(map(shlex.quote, command))}")


# ---- the program ---------------------------------------------------------------------------------


def prepare(runner: Runner, given: argparse.Namespace, place: Place) -> str:
    """Set up the environment. Returns: the interpreter of the steps; a dry run only names it."""
    if runner.dry_run:
        runner.header("Set-up")
        words = options.words(venv=place.folder, offline=given.offline)
        for script in ("scripts/setup_env.py", "scripts/timm_source.py"):
            runner.run([os.environ.get("PYTHON") or "python3", script_path(script), *words])
        return environment.python(place, dry_run=True)
    python = environment.python(place, offline=given.offline)
    timm_source.prepare(place, Source(python, given.offline))
    return python


def describe(run: Run, python: str) -> Run:
    """The run with what is known after the set-up. Raises: Refusal if there are no such devices.

    python: the interpreter of the steps.
    """
    if os.getcwd() == ROOT and python.startswith(ROOT + "/"):
        python = os.path.relpath(python, ROOT)
    return choose_chips(run._replace(python=python))


def choose_chips(run: Run) -> Run:
    """The run with its devices and chip. Raises: Refusal if there are no such devices."""
    if not run.on_card:
        return run
    choice = chips.choose_devices(run.given.device, run.given.soc_version)
    soc = chips.named(choice.name, choice.soc)
    return run._replace(devices=choice.devices, chip=choice.name, soc=soc)


@contextlib.contextmanager
def known_host(run: Run, runner: Runner) -> Iterator[None]:
    """During the block, keep host.host_facts() in the work folder, so that no step asks again."""
    if runner.dry_run or not run.on_card:
        yield
        return
    path = run.work_path(HOST_FACTS)
    files.write_whole(path, json.dumps(host.host_facts()).encode("ascii"))
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def needed_records(run: Run) -> Set[str]:
    """The records of all that a run with these options makes or reads."""
    records = {record.path_of(run.work_path("run.json"))}
    for step in plan(run):
        if step.wanted:
            records.update(step.records(run))
    return records


def clean(run: Run, findings: check.Findings) -> int:
    """List what earlier runs left and this one does not need; --yes removes it."""
    given = run.given
    for row in findings.missing:
        if row.item in DECIDING:
            raise Refusal(f"{row.item}: {row.state}; {row.advice}")
    if not os.path.isdir(given.workdir):
        raise Refusal(f"there is no work folder {shown(given.workdir)}; name it with --workdir")
    if not leftovers.known_records(given.workdir):
        raise Refusal(
            f"{shown(given.workdir)} holds nothing that a record calls this program's own; name "
            "the work folder of a run with --workdir"
        )
    held = files.hold(os.path.join(given.workdir, ".lock"))
    print(f"backend: {run.backend}: {run.reason}")
    unneeded = leftovers.find(given.workdir, needed_records(run), given.tune)
    leftovers.show(given.workdir, unneeded)
    if given.yes:
        leftovers.remove(unneeded)
    elif unneeded:
        print("nothing was removed; add --yes to remove it")
    os.close(held)
    return 0


def choose_run(given: argparse.Namespace, findings: check.Findings, data: check.Data) -> Run:
    """The run that these options give on this machine, as far as it is known before the set-up.

    Raises: Refusal for steps that it does not have.
    """
    place = environment.choose(given.venv, given.workdir)
    run = Run(given, data, findings.backend, findings.reason, place, "", time.time())
    with contextlib.suppress(Refusal):  # check_run() says what is wrong with the chips
        run = choose_chips(run)
    run = run._replace(taken=tuple(step.word for step in steps_of(run)))
    if "preprocess" in run.taken:
        return run
    return run._replace(data=check.choose_prepared(data._replace(prepares=False)))


def check_run(run: Run, findings: check.Findings) -> None:
    """Raises: Refusal if machine or data lack something, or if options contradict each other."""
    unneeded = unneeded_items(steps_of(run)) if run.is_partial else set()
    for row in findings.missing:
        if row.item not in unneeded:
            raise Refusal(
                f"{row.item}: {row.state}; {row.advice}; `--check` shows all that is missing"
            )
    several_classes = check.has_several_classes(run.data)
    broken = options.contradiction(run.given, backend=run.backend, several_classes=several_classes)
    if broken:
        raise Refusal(broken.sentence, cli.USAGE)


def take_workdir(run: Run, runner: Runner) -> None:
    """Make the work folder, hold it for this run, and begin its log. Raises: Refusal."""
    files.make_folder(run.given.workdir, "--workdir")
    runner.lock = files.hold(run.work_path(".lock"))
    words = ["bash", script_path("scripts/pipeline.sh"), *sys.argv[1:]]
    log = run_log.start(run.work_path(LOG), " ".join(map(shlex.quote, words)), [runner.lock])
    cli.AT_END.append(log.end)


def main() -> int:
    given = parse_arguments()
    if given.check:
        return check.print_table(given)
    if given.class_names:
        files.read_regular(given.class_names)  # can it be read? its lines are checked later
    runner, data = Runner(given), check.locate(given)
    findings = check.examine(given, data, [] if may_compile(given) else [check.ATC])
    run = choose_run(given, findings, data)
    if given.clean:
        return clean(run, findings)
    check_run(run, findings)
    if not given.dry_run:
        take_workdir(run, runner)
    python = prepare(runner, given, run.place)
    files.limit_rights()  # only now: the environment is for all users of the checkout
    print(f"backend: {run.backend}: {run.reason}", flush=True)
    warning = check.overlooked(given, findings)
    if warning:
        cli.say(warning)
    run = describe(run, python)
    if given.dry_run:
        carry_out(run, runner)
        return 0
    write_options(run, runner)
    try:
        with known_host(run, runner):
            carry_out(run, runner)
    finally:
        with contextlib.suppress(OSError):  # a full disk: what failed has said so
            write_options(run, runner)
    return 0


if __name__ == "__main__":
    cli.run(main)
