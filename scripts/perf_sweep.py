#!/usr/bin/env python3
"""Measure pure inference at each batch size: table, plot, JSON.

    python3 scripts/perf_sweep.py --backend ascend --model tresnet_m.onnx --data-set ImageNet
    python3 scripts/perf_sweep.py --backend cpu --model tresnet_m.onnx --batch-sizes 1,8

In:  MODEL.onnx (its metadata name variant and image size); on Ascend beside it MODEL_bs1.om, ...
     of onnx2om.sh. ais_bench runs it on the NPU, infer_onnx.py on the CPU. The table shows the
     data set and the accuracy too if --data-set and --accuracy name them.
Out: OUTPUT/perf.json, perf.md (a Markdown table) and perf.png. perf.record.jsonl says what was
     measured with what: figures that are up to date are kept. Every figure is the runner's own,
     from its _summary.json: the median over --repeat runs of --loop batches each, after the
     runner's warm-up. The batch sizes take turns, so that a slow phase of the machine does not
     fall on one of them alone. Without --loop, a run has 20 batches; on the CPU, where a batch may
     take seconds, it has fewer, so that it takes about 10 s. Figures whose runs differ by more
     than ± 10 % come with a warning.
Exit status: 0 good, 1 failure, 2 wrong usage, 3 the best throughput is below --min-throughput.
"""

import argparse
import itertools
import math
import os
import re
import statistics
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import bench, chips, host
from common.core import files, json_file, options, processor, progress, recipe, record
from common.core.cli import Refusal, counted, shown, why
from common.core.names import om_path
from common.model import onnx_file, speed
from common.results.published import CARD_CASE, CARD_SPEED
from common.results.work_files import ACCURACY, PERF

COLUMNS = (
    "Chip",
    "Batch size",
    "Data set",
    "Accuracy",
    "images/s",
    "latency mean ms",
    "latency p99 ms",
)
CPU_RUNNER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "infer_onnx.py")
NOT_MEASURED = "-"
TOP_K, TITLE = r"^Top(\d+) .*", r"Top-\1"  # "Top5 accuracy" is Top-5 in the table
TOGETHER = 0.5  # s for each of the --loop batches: devices that start a second apart overlap then
Rows = Dict[int, List[Dict[str, Any]]]  # {device: a row for each batch size}
# What sweep() finds and what follows from that alone, as keys of perf.json.
MEASURED = ("rows", "devices", "together", "expected")
LOOP, LEAST_LOOP = 20, 2  # batches of a run where --loop does not say it
RUN_SECONDS = 10.0  # s; on the CPU a run has only so many batches, but LEAST_LOOP at least
FEW = 100  # images in all runs, which are measured on the CPU without a trial
TRIAL = 8  # images at most of the batch that is tried on the CPU before the first run
WIDE = 0.1  # half the span of the runs, as a share of the median: more is a warning


class Trial(NamedTuple):
    """How fast the machine was in a first run."""

    batch_size: int
    batch: float  # s that a batch took
    begin: float  # s of the run in which it did not compute: its start, reading the model

    def seconds(self, batch_size: int, loop: int) -> float:
        """How long a run will take, about, with one batch to warm up."""
        return self.begin + self.batch / self.batch_size * batch_size * (loop + 1)


# ---- measuring -----------------------------------------------------------------------------------


def run(arguments: argparse.Namespace, batch_size: int, loop: int, runs: str, **more: Any) -> str:
    """`loop` batches of zeros in the folder `runs`, which is emptied first; returns the log.

    more: further options of the runner. Raises: Refusal with the runner's words.
    """
    host.empty(runs)
    values = {"loop": loop, "batchsize": batch_size, **more}
    model = arguments.models[batch_size]
    if arguments.backend == "cpu":
        words = options.words(model=model, aipp=arguments.aipp, **values)
        command = [sys.executable, CPU_RUNNER, *words]
    else:
        below_runs = os.path.relpath(os.path.realpath(model), os.path.realpath(runs))
        command = bench.command(below_runs, bench.spelling(), **values)
    log = os.path.join(arguments.output, "perf_runner.log")  # kept only of a run that failed
    stall = 0.0 if arguments.backend == "cpu" else arguments.stall
    try:
        status = host.run_tool(command, log, stall=stall, cwd=runs)
    except host.Stalled as refusal:
        raise Refusal(
            f"at batch size {batch_size} {refusal.sentence}; its whole output: {shown(log)}"
        ) from None
    if status:
        raise Refusal(
            f"the runner failed with status {status} at batch size {batch_size} and said "
            f"{bench.complaint(log)!a}; its whole output: {shown(log)}"
        )
    return log


def measure(
    arguments: argparse.Namespace, batch_size: int, device: int, runs: str, loop: int
) -> Dict[str, float]:
    """One run of `loop` batches on one device, from its summary.

    Returns {"throughput": images/s, "latency_mean", "latency_p99": ms of a batch}.
    Raises: Refusal if the runner fails or its summary is not that of this run.
    """
    place = {"output": ".", "output_dirname": "run", "device": device or None}
    log = run(arguments, batch_size, loop, runs, **place)
    summary = os.path.join(runs, "run_summary.json")
    try:
        found = bench.read_summary(summary)
        figures = {
            "throughput": found.throughput,
            "latency_mean": found.mean,
            "latency_p99": found.p99,
        }
        if not all(math.isfinite(figure) and figure > 0 for figure in figures.values()):
            raise ValueError(f"it has figures that cannot be true: {figures}")
        expected, count = 1000 * batch_size / figures["latency_mean"], found.runs
        if count != loop or abs(figures["throughput"] - expected) > 0.01 * expected:
            raise ValueError(
                f"it says {count} runs and {figures['throughput']:.1f} images/s, expected are "
                f"{loop} runs and {expected:.1f} images/s"
            )
        os.remove(summary)  # the next run must write its own
    except (Refusal, OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(
            f"the runner ended well at batch size {batch_size}, but its summary is missing or of "
            f"another run ({type(error).__name__}: {why(error)}); see its output: {shown(log)}"
        ) from None
    os.remove(log)
    return figures


def measure_together(
    arguments: argparse.Namespace, row: Dict[str, Any], alone: float, runs: str
) -> Dict[str, Any]:
    """All devices at once: the sum of their figures, and what each device loses.

    row: of the first device alone, with the batch size; alone: the sum of what all devices do one
    after the other, images/s. ais_bench starts its processes within a second of each other, so they
    run long enough to overlap.
    """
    batch_size, devices = row["batch_size"], arguments.device
    loop = max(row["loop"], math.ceil(1000 * TOGETHER * row["loop"] / row["latency_mean"]))
    log = run(arguments, batch_size, loop, runs, device=",".join(map(str, devices)))
    try:
        found, overlap = bench.read_together(log)
        if sorted(found) != devices:
            raise ValueError(f"it names the devices {sorted(found)}, expected are {devices}")
    except ValueError as error:
        raise Refusal(
            f"the runner ended well on {len(devices)} devices at once, but its figures cannot be "
            f"read ({why(error)}); see its output: {shown(log)}"
        ) from None
    os.remove(log)
    total = sum(found.values())
    return {
        "batch_size": batch_size,
        "throughput": total,
        "alone": alone,
        "loss": 1 - total / alone,
        "devices": {str(device): found[device] for device in devices},
        "overlap": overlap,
        "loop": loop,
    }


def try_out(arguments: argparse.Namespace, runs: str) -> Trial:
    """One batch on the CPU, to see how long it takes."""
    small = [size for size in arguments.batch_sizes if size <= TRIAL]
    size = max(small) if small else min(arguments.batch_sizes)
    began = time.monotonic()
    latency = measure(arguments, size, arguments.device[0], runs, 1)["latency_mean"] / 1000
    return Trial(size, latency, max(0.0, time.monotonic() - began - 2 * latency))


def choose_loops(arguments: argparse.Namespace, trial: Optional[Trial]) -> Dict[int, int]:
    """{batch size: batches of a run}: what --loop says, or LOOP, or what fits into RUN_SECONDS.

    trial: None where a batch takes milliseconds.
    """
    loops = dict.fromkeys(arguments.batch_sizes, arguments.loop or LOOP)
    if trial and not arguments.loop:
        for size in loops:
            fitting = int(RUN_SECONDS / (trial.batch / trial.batch_size * size))
            loops[size] = min(LOOP, max(LEAST_LOOP, fitting))
    return loops


def say_plan(arguments: argparse.Namespace, loops: Dict[int, int], trial: Trial) -> None:
    """Say how long it will take."""
    seconds = sum(trial.seconds(size, loop) for size, loop in loops.items())
    devices = len(arguments.device)
    count = len(loops) * arguments.repeat * devices
    rounds = arguments.repeat * devices
    if devices > 1:  # and once all of them together
        rounds += 1
    took = f"{trial.batch:.1f} s" if trial.batch >= 1 else f"{1000 * trial.batch:.1f} ms"
    batches, all_of_it = batches_words(list(loops.values())), progress.duration(seconds * rounds)
    print(
        f"a batch of {trial.batch_size} takes {took}: {counted(count, 'run')} of {batches}, about "
        f"{all_of_it} in all",
        flush=True,
    )


def batches_words(loops: List[int]) -> str:
    """How many batches runs have: "2 to 20 batches"."""
    least, most = min(loops), max(loops)
    if least != most:
        return f"{least} to {most} batches"
    return f"{most} batches" if most > 1 else "one batch"


def measure_alone(
    arguments: argparse.Namespace, runs: str, bar: progress.Bar, loops: Dict[int, int]
) -> Rows:
    """{device: a row for each batch size}; in each round every device measures every batch size."""
    figures: Dict[Tuple[int, int], List[Dict[str, float]]] = {}
    for repeat in range(1, arguments.repeat + 1):
        for device, batch_size in itertools.product(arguments.device, arguments.batch_sizes):
            loop = loops[batch_size]
            began = time.monotonic()
            measured = measure(arguments, batch_size, device, runs, loop)
            if arguments.backend == "ascend" and not figures:  # the first run is the trial
                batch = measured["latency_mean"] / 1000
                begin = max(0.0, time.monotonic() - began - (loop + 1) * batch)
                bar.erase()
                say_plan(arguments, loops, Trial(batch_size, batch, begin))
            figures.setdefault((device, batch_size), []).append(measured)
            which = f", device {device}" if len(arguments.device) > 1 else ""
            bar.say(
                f"run {repeat} of {arguments.repeat}{which}, batch size {batch_size}: "
                f"{measured['throughput']:.1f} images/s"
            )
            bar.advance(batch_size * loop)
    rows: Rows = {device: [] for device in arguments.device}
    for (device, batch_size), of_rounds in figures.items():
        rows[device].append(summarise(batch_size, loops[batch_size], of_rounds))
    return rows


def sweep(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Measure everything.

    Returns "rows", one per batch size, of the first device; where there are several devices,
    "devices" and "together" as well.
    """
    import matplotlib  # noqa: F401 (if it is missing, that is said now and not after the runs)

    with host.run_folder(os.path.join(arguments.output, "perf_runs")) as runs:
        loops = choose_loops(arguments, None)
        images = arguments.repeat * sum(size * loop for size, loop in loops.items())
        if arguments.backend == "cpu" and images > FEW:
            trial = try_out(arguments, runs)
            loops = choose_loops(arguments, trial)
            say_plan(arguments, loops, trial)
        return sweep_with(arguments, runs, loops)


def sweep_with(arguments: argparse.Namespace, runs: str, loops: Dict[int, int]) -> Dict[str, Any]:
    """sweep() with so many batches for each batch size, and one bar over all of it."""
    devices = arguments.device
    images_of_round = sum(size * loop for size, loop in loops.items()) * len(devices)
    rounds = arguments.repeat if len(devices) == 1 else arguments.repeat + 1  # one of all at once
    with progress.watched("measuring", images_of_round * rounds, "images", None) as bar:
        rows = measure_alone(arguments, runs, bar, loops)
        first = rows[devices[0]]
        if len(devices) == 1:
            return {"rows": first}
        together = []
        for index, row in enumerate(first):
            alone = sum(of_device[index]["throughput"] for of_device in rows.values())
            together.append(measure_together(arguments, row, alone, runs))
            bar.say(
                f"all {len(devices)} devices at once, batch size {row['batch_size']}: "
                f"{together[-1]['throughput']:.1f} images/s"
            )
            bar.advance(row["batch_size"] * row["loop"] * len(devices))
    by_name = {str(device): of_device for device, of_device in rows.items()}
    return {"rows": first, "devices": by_name, "together": together}


def summarise(batch_size: int, loop: int, runs: List[Dict[str, float]]) -> Dict[str, Any]:
    """The median of each figure of several runs of `loop` batches; the throughput of every run."""
    medians = {}
    for key in runs[0]:
        medians[key] = statistics.median([figures[key] for figures in runs])
    throughputs = [figures["throughput"] for figures in runs]
    return {
        "batch_size": batch_size,
        "loop": loop,
        **medians,
        "throughput_runs": throughputs,
        "throughput_spread": (max(throughputs) - min(throughputs)) / medians["throughput"],
    }


def processor_name() -> str:
    """The CPU's name and the number of cores that this process may use."""
    return f"CPU ({processor.this().name}, {len(os.sched_getaffinity(0))} cores)"


def make_recipe(arguments: argparse.Namespace, chip: str) -> record.Recipe:
    """All that the figures depend on."""
    names = ("backend", "device", "loop", "repeat", "batch_sizes")
    values = {name: getattr(arguments, name) for name in names}
    settings = [arguments.aipp] if arguments.aipp else []
    if arguments.backend == "ascend":
        return recipe.make(
            __file__,
            values,
            (),
            arguments.models.values(),
            settings,
            chip=chip,
            host=host.host_versions(arguments.host_facts),
        )
    return recipe.make(
        __file__,
        values,
        ("onnxruntime", "numpy"),
        onnx_file.all_files(arguments.model),
        settings,
        chip=chip,
        processor=processor_name(),
        runner=recipe.sources(CPU_RUNNER),
    )


# ---- the report ----------------------------------------------------------------------------------


def read_accuracy(path: str) -> Dict[str, str]:
    """The figures of an acc.json.

    Returns {"Top1 accuracy": "100.0%", ...}, or of several labels {"Mean average precision": …}.
    """
    advice = f"name the {ACCURACY.name} of TResNet_postprocess.py by --accuracy"
    rows = ACCURACY.read(path, advice)["value"]
    accuracy = {row["key"]: row["value"] for row in rows if row["value"].endswith("%")}
    if not accuracy:
        raise Refusal(f"{shown(path)} holds no accuracy; {advice}")
    return accuracy


def short_accuracy(accuracy: Dict[str, str]) -> str:
    """ "Top-1 80.5%, Top-5 94.43%": the first and the last of the figures."""
    keys = sorted(accuracy)
    if not keys:
        return NOT_MEASURED
    ends = dict.fromkeys((keys[0], keys[-1]))
    return ", ".join(f"{re.sub(TOP_K, TITLE, key)} {accuracy[key]}" for key in ends)


def add_reference(report: Dict[str, Any]) -> None:
    """Put the published figure for this chip and model, and the ratio to it, beside each row."""
    same_case = (report["chip"], report["variant"], report["img_size"]) == CARD_CASE
    for row in report["rows"]:
        for key in ("reference", "ratio"):  # of kept figures
            row.pop(key, None)
        published = CARD_SPEED.get(row["batch_size"])
        if same_case and published:
            row.update(reference=published, ratio=row["throughput"] / published)


def expectation(
    rows: List[Dict[str, Any]], chip: str, model: str, uint8: bool
) -> Optional[Dict[str, Any]]:
    """What the forecast for the same network says of the figures of a 310P3.

    rows: a row for each batch size; uint8: whether the images come as bytes.
    Returns None where there is no forecast: for other chips, int8, and large batch sizes.
    """
    data = speed.read_data()
    measured = {row["batch_size"]: row["throughput"] for row in rows}
    sizes = [size for size in measured if size <= speed.largest_batch(data)]
    if not sizes:
        return None
    try:
        speed.refuse_chip(chip)
        network = speed.read_network(model)
    except Refusal:
        return None
    verdicts = speed.judge(measured, speed.forecast(network, sizes, data, uint8))
    opinion = speed.describe(verdicts, network)
    return {
        "slow": opinion.is_slow,
        "verdict": opinion.sentence,
        "look_at": list(opinion.look_at),
        "rows": [
            {
                "batch_size": verdict.batch_size,
                "forecast": verdict.forecast.images_per_s,
                "low_90": verdict.forecast.low_90,
                "ratio": verdict.ratio,
            }
            for verdict in verdicts
        ],
    }


def expectation_markdown(expected: Dict[str, Any]) -> str:
    """What the comparison with the forecast says, below the table of what was measured."""
    text = f"\nCompared with the forecast (docs/speed.md): {expected['verdict']}"
    if not expected["slow"]:
        return f"{text}.\n"
    causes = "".join(f"- {cause}\n" for cause in expected["look_at"])
    return f"{text}. Look at:\n\n{causes}\n"


def warnings(report: Dict[str, Any]) -> List[str]:
    """A sentence about figures whose runs differ too much to be trusted; [] if all are steady."""
    rows = [row for row in report["rows"] if row["throughput_spread"] / 2 > WIDE]
    for of_device in report.get("devices", {}).values():
        rows += [row for row in of_device if row["throughput_spread"] / 2 > WIDE]
    if report["repeat"] == 1 or not rows:
        return []
    worst = max(rows, key=lambda row: float(row["throughput_spread"]))
    sizes = ", ".join(map(str, sorted({row["batch_size"] for row in rows})))
    return [
        f"the runs differ by more than ± {100 * WIDE:.0f} % at batch size {sizes} "
        f"(± {50 * worst['throughput_spread']:.1f} % at {worst['batch_size']}): something else "
        "used this machine; measure again with --force when it is idle"
    ]


def table_lines(head: List[str], rows: List[List[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def cells_of(row: Dict[str, Any], report: Dict[str, Any], with_reference: bool) -> List[str]:
    """A row of the table."""
    spread = f" ± {50 * row['throughput_spread']:.1f} %" if report["repeat"] > 1 else ""
    cells = [
        report["chip"],
        str(row["batch_size"]),
        report["data_set"] or NOT_MEASURED,
        short_accuracy(report["accuracy"]),
        f"{row['throughput']:.1f}{spread}",
        f"{row['latency_mean']:.3f}",
        f"{row['latency_p99']:.3f}",
    ]
    if "reference" in row:
        cells += [f"{row['reference']:.0f}", f"{row['ratio']:.2f}"]
    elif with_reference:
        cells += [NOT_MEASURED, NOT_MEASURED]
    return [" ".join(cell.replace("|", "/").split()) for cell in cells]


def markdown(report: Dict[str, Any]) -> str:
    """The table and what is to be known about its figures."""
    with_reference = any("reference" in row for row in report["rows"])
    head = list(COLUMNS)
    if with_reference:
        head += ["reference images/s", "ratio"]
    text = table_lines(head, [cells_of(row, report, with_reference) for row in report["rows"]])
    runs = f"one run of {report['batches']}"
    if report["repeat"] > 1:
        runs = (
            f"median of {report['repeat']} runs of {report['batches']} each, ± half the span of "
            "the runs"
        )
    text += f"\nPure inference (zeros in, no files): {runs}. Latency is that of a whole batch.\n"
    loops = {row["batch_size"]: row["loop"] for row in report["rows"]}
    if len(set(loops.values())) > 1:
        each = ", ".join(f"{loop} at batch size {size}" for size, loop in loops.items())
        text += f"Batches in a run: {each}; --loop sets their number.\n"
    text += "".join(f"\n**WARNING**: {warning}.\n" for warning in report["warnings"])
    if with_reference:
        text += (
            "The reference is the published figure for TResNet-M at 224 pixels on one "
            "Ascend 310P3.\n"
        )
    if "together" in report:
        text += chips_markdown(report)
    if "expected" in report:
        text += expectation_markdown(report["expected"])
    best = report["best"]
    return text + f"Best batch size: {best['batch_size']}, {best['throughput']:.1f} images/s.\n"


def chips_markdown(report: Dict[str, Any]) -> str:
    """The table of several chips: each alone, all at once, and what that costs each."""
    devices = list(report["devices"])
    alone = [f"device {device} alone" for device in devices]
    rows = []
    for index, row in enumerate(report["together"]):
        throughputs = [report["devices"][device][index]["throughput"] for device in devices]
        speeds = [f"{throughput:.1f}" for throughput in [*throughputs, row["throughput"]]]
        rows.append([str(row["batch_size"]), *speeds, f"{100 * row['loss']:.1f} %"])
    least = min(row["overlap"] for row in report["together"])
    table = table_lines(["Batch size", *alone, "all at once, sum", "loss of each"], rows)
    return (
        f"\n{table}\nimages/s of {len(devices)} chips. The table above is device {devices[0]}'s. "
        "The loss is against the chips alone, one after the other; at once, all were at work in "
        f"{100 * least:.0f} % of the time at least.\n"
    )


# ---- command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    options.add(
        parser,
        "backend",
        "model",
        "batch_sizes",
        "om_dir",
        "aipp",
        "output",
        "loop",
        "repeat",
        "devices",
        "chip",
        "data_set",
        "accuracy",
        "host_facts",
        "stall",
        "force",
        "min_throughput",
        required=["backend", "model"],
        choices={"backend": ("ascend", "cpu")},
        help={
            "backend": "what computes",
            "batch_sizes": "to measure (default: %(default)s)",
            "model": "on ascend MODEL_bs1.om, ... must exist",
            "aipp": "AIPP settings for the CPU runner (an .om has them inside)",
            "output": "where perf.json, perf.md, perf.png go (default: here)",
            "devices": "the chips to measure, each alone and then all at once (default: 0)",
        },
    )
    return options.parse(parser)


def check_before_start(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Describe the model, or refuse what would fail later.

    Sets arguments.models: {batch size: what is measured}.
    """
    on_ascend = arguments.backend == "ascend"
    arguments.model = os.path.abspath(arguments.model)
    arguments.output = (
        host.safe_path(arguments.output) if on_ascend else os.path.abspath(arguments.output)
    )
    arguments.aipp = os.path.abspath(arguments.aipp) if arguments.aipp else None
    files.make_folder(arguments.output, "--output")
    model = onnx_file.describe(arguments.model, arguments.batch_sizes)
    arguments.models = dict.fromkeys(arguments.batch_sizes, arguments.model)
    if on_ascend:
        for size in arguments.batch_sizes:
            arguments.models[size] = om_path(arguments.model, size, arguments.om_dir or "")
    missing = [path for path in arguments.models.values() if not os.path.isfile(path)]
    if missing:
        raise Refusal(
            f"there is no {shown(missing[0])}; make it: bash scripts/onnx2om.sh MODEL.onnx "
            f"--batch-sizes {','.join(map(str, arguments.batch_sizes))}"
        )
    return model


def choose_devices(arguments: argparse.Namespace) -> str:
    """Set arguments.device, the devices to measure; returns the name of the chip or processor."""
    chip = arguments.chip or processor_name()
    chip_is_known = arguments.chip and arguments.device != []
    if arguments.backend == "ascend" and not chip_is_known:
        choice = chips.choose_devices(arguments.device)
        arguments.device, chip = choice.devices, choice.name
    arguments.device = arguments.device or [0]
    if arguments.backend == "cpu" and len(arguments.device) > 1:
        raise Refusal(
            "several devices are for --backend ascend; leave --device out on the CPU", cli.USAGE
        )
    return str(chip)


def make_report(
    arguments: argparse.Namespace,
    chip: str,
    model: Dict[str, Any],
    accuracy: Dict[str, str],
    measured: Dict[str, Any],
) -> Dict[str, Any]:
    """The content of perf.json; measured: what sweep() found."""
    report: Dict[str, Any] = {
        "tool": "perf_sweep.py",
        "version": cli.VERSION,
        "backend": arguments.backend,
        "chip": chip,
        "device": arguments.device,
        "model": arguments.model,
        "variant": model["metadata"].get("variant"),
        "img_size": model["shape"][-1],
        "loop": max(row["loop"] for row in measured["rows"]),
        "batches": batches_words([row["loop"] for row in measured["rows"]]),
        "repeat": arguments.repeat,
        "data_set": arguments.data_set,
        "accuracy": accuracy,
        **measured,
    }
    report["warnings"] = warnings(report)
    add_reference(report)
    rows = report.get("together", report["rows"])
    report["best"] = max(rows, key=lambda row: float(row["throughput"]))
    return report


def main() -> None:
    arguments = parse_arguments()
    started = time.time()
    model = check_before_start(arguments)
    accuracy = read_accuracy(arguments.accuracy) if arguments.accuracy else {}
    chip = choose_devices(arguments)
    product = os.path.join(arguments.output, "perf")
    paths = [f"{product}.{suffix}" for suffix in ("json", "md", "png")]
    made_by = make_recipe(arguments, chip)
    kept: Dict[str, Any] = {}
    if record.is_up_to_date(product, made_by, paths, arguments.force):
        kept = PERF.read(paths[0])
        print(f"the figures in {shown(paths[0])} are up to date; --force measures again")
        measured = {key: kept[key] for key in MEASURED if key in kept}
    else:
        measured = sweep(arguments)
        if arguments.backend == "ascend":
            expected = expectation(measured["rows"], chip, arguments.model, bool(arguments.aipp))
            if expected:
                measured["expected"] = expected
    report = make_report(arguments, chip, model, accuracy, measured)
    table = markdown(report)
    if report != kept:
        from common.results import plots  # here: figures that are up to date need no matplotlib

        contents = [json_file.encode(report), table.encode(), plots.speed_png(report)]
        record.write(product, made_by, dict(zip(paths, contents)))
    names = ", ".join(map(os.path.basename, paths))
    print(f"\n{table}\n{names} in {shown(arguments.output)} ({time.time() - started:.1f} s)")
    best, least = report["best"], arguments.min_throughput
    if least is not None and best["throughput"] < least:
        raise Refusal(
            f"the best throughput is {best['throughput']:.1f} images/s (batch size "
            f"{best['batch_size']}), below --min-throughput {least}",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main, "no figures were written")
