#!/usr/bin/env python3
"""Find the fastest combination of options: compile and measure all, and refuse lossy ones.

    python3 scripts/tune.py conv4.onnx conv12.onnx --input prep_dataset --output work
    python3 scripts/tune.py --backend cpu tresnet_m.onnx --input prep_dataset --output work
    bash scripts/pipeline.sh --tune              # exports the three stems first

In:  ONNX files, each named after its stem, and prepared images (with --aipp if they are bytes).
Out: OUTPUT/tune.json, tune.md (a table), tune.png; what was compiled stays in OUTPUT/tune/. The
     combinations are measured in turns and ranked. pipeline.sh --tune prints the command of the
     best one.
docs/ascend.md says what is tried and what cannot win.
"""

import argparse
import contextlib
import os
import sys
from statistics import median
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import chips, host
from common.ascend.bench import complaint
from common.core import files, json_file, options, recipe, record
from common.core.cli import ROOT, Refusal, shown
from common.core.names import STEMS, om_path, result_stem
from common.core.record import Draft, Recipe, Writer
from common.data import prepared
from common.data.evaluation import AIPP, Evaluation, aipp, recorded
from common.data.images import list_inputs, spaced
from common.data.inputs import Input, apply_aipp, input_of, read_aipp, read_batch
from common.model import onnx_file, speed
from common.results.work_files import COMPARE, INT8, PERF

import numpy as np

TEMPORARY = Recipe({"tool": "tune.py"})  # of images that are for one run
SCRIPTS = os.path.join(ROOT, "scripts")
FIRST_SIZES = [8, 16]  # batch sizes at which the combinations are compared
SMALL = "--enable_small_channel=1"
FIRST_IS_CONVOLUTION = ("conv4", "conv12")  # stems that begin with a convolution of the image
BYTE = 0.51 / 255  # how far a float32 pixel may be from a byte's value


class Variant(NamedTuple):
    """One combination."""

    stem: str
    uint8: bool
    small: bool
    precision: str  # float16, int8; on the CPU float32, int8

    @property
    def name(self) -> str:
        pixels = "uint8" if self.uint8 else "float32"
        small = ["small"] if self.small else []
        return "-".join([self.stem, pixels, *small, self.precision])

    def options(self, batch_size: int, on_card: bool) -> List[str]:
        """The words that give this combination to pipeline.sh, without its defaults."""
        return options.words(
            stem=self.stem if on_card and self.stem != STEMS[0] else None,
            uint8=self.uint8,
            small_channel=self.small,
            precision="int8" if self.precision == "int8" else None,
            batch_size=batch_size if batch_size != options.PIPELINE_BATCH else None,
        )


def variants(stems: List[str], on_card: bool, int8: bool) -> List[Variant]:
    """All combinations that may be fast."""
    if not on_card:
        return [Variant(stems[0], False, False, precision) for precision in ("float32", "int8")]
    found = []
    for precision in ("float16", "int8") if int8 else ("float16",):
        for stem in stems:
            found += [Variant(stem, uint8, False, precision) for uint8 in (False, True)]
            if stem in FIRST_IS_CONVOLUTION:
                found.append(Variant(stem, True, True, precision))
    return found


# ---- images --------------------------------------------------------------------------------------


def write_inputs(paths: List[str], sample: Input, evaluation: Evaluation, folder: str) -> None:
    """The same images twice: FOLDER/float32 and FOLDER/uint8 (with the settings FOLDER/aipp.cfg).

    Raises: Refusal if float32 images are not those of bytes.
    """
    files.write_whole(os.path.join(folder, AIPP), aipp(evaluation))
    settings = read_aipp(os.path.join(folder, AIPP))
    names = [result_stem(path) + ".bin" for path in paths]
    with contextlib.ExitStack() as stack:
        writers = {}
        for kind in ("uint8", "float32"):
            before = record.read(os.path.join(folder, kind))
            expected = [f"{kind}/{name}" for name in names]
            writers[kind] = stack.enter_context(record.begin_folder(before, TEMPORARY, expected))
        write_each(paths, names, sample, evaluation, settings, writers)
        for writer in writers.values():
            writer.finish(synced=True)


def write_each(
    paths: List[str],
    names: List[str],
    sample: Input,
    evaluation: Evaluation,
    settings: Dict[str, str],
    writers: Dict[str, Writer],
) -> None:
    """The images one by one, for write_inputs()."""
    mean = np.array(evaluation.mean, np.float32).reshape(3, 1, 1)
    std = np.array(evaluation.std, np.float32).reshape(3, 1, 1)
    for path, name in zip(paths, names):
        values = read_batch([path], sample) * std + mean  # 0 to 1
        pixels = np.rint(values * 255)
        are_bytes = np.abs(pixels / 255 - values).max() <= BYTE
        if not are_bytes or pixels.min() < 0 or pixels.max() > 255:
            raise Refusal(
                f"{shown(path)} does not hold what bytes become with mean {evaluation.mean} and "
                f"std {evaluation.std}; prepare the images with TResNet_preprocess.py"
            )
        raw = np.ascontiguousarray(pixels.astype(np.uint8).transpose(0, 2, 3, 1))
        for kind, data in (("uint8", raw), ("float32", apply_aipp(raw, settings))):
            part = writers[kind].part(f"{kind}/{name}", np.ascontiguousarray(data), durable=False)
            writers[kind].publish([Draft(name, [], [part])])


# ---- running -------------------------------------------------------------------------------------


class Bench:
    """Makes the variants, each in a folder of its own below `folder`, and measures them."""

    def __init__(self, arguments: argparse.Namespace, folder: str) -> None:
        self.arguments, self.folder, self.on_card = arguments, folder, arguments.backend == "ascend"
        self.models = {
            os.path.splitext(os.path.basename(path))[0]: os.path.abspath(path)
            for path in arguments.models
        }

    @property
    def host_facts(self) -> Optional[str]:
        return self.arguments.host_facts if self.on_card else None

    @property
    def stall(self) -> Optional[float]:
        return self.arguments.stall if self.on_card else None

    def place(self, variant: Variant, *names: str) -> str:
        return os.path.join(self.folder, variant.name, *names)

    def start(self, script: str, *words: str, **values: Any) -> None:
        """Run one of our scripts. Raises: Refusal with the end of what it said."""
        log = os.path.join(self.folder, "tune.log")
        command = [sys.executable, os.path.join(SCRIPTS, script), *words, *options.words(**values)]
        if host.run_tool(command, log):
            raise Refusal(f"{script} failed and said {complaint(log)!a}")

    def model(self, variant: Variant) -> str:
        if variant.precision == "int8":
            return self.place(variant, variant.stem + ".onnx")
        return self.models[variant.stem]

    def make(self, variant: Variant) -> None:
        """Quantise and compile. Raises: Refusal if that is not possible."""
        files.make_folder(self.place(variant), "--output")
        if variant.precision == "int8":
            self.quantise(variant)
        if self.on_card:
            self.compile(variant, FIRST_SIZES[:1])

    def quantise(self, variant: Variant) -> None:
        """For the CPU all images take part: 64 are too few to choose a way by."""
        models = self.models[variant.stem], self.model(variant)
        if self.on_card:
            folder = os.path.join(self.folder, "float32")
            facts = {"host_facts": self.host_facts, "stall": self.stall}
            self.start("quantize_amct.py", *models, calibrate=folder, **facts)
            return
        asked = {name: getattr(self.arguments, name) for name in options.QUANT}
        self.start(
            "quantize_onnx.py",
            *models,
            calibrate=self.arguments.input,
            aipp=self.arguments.aipp,
            **asked,
        )
        for line in self.about_int8(variant).get("trial", ()):
            print(line, flush=True)

    def about_int8(self, variant: Variant) -> Dict[str, Any]:
        """What the quantisation says of an int8 model for the CPU; {} for another one."""
        if self.on_card or variant.precision != "int8":
            return {}
        return INT8.read(os.path.splitext(self.model(variant))[0] + ".json")

    def options(self, variant: Variant, batch_size: int) -> List[str]:
        """The words that give a variant to pipeline.sh: also how it was quantised."""
        words = variant.options(batch_size, self.on_card)
        about = self.about_int8(variant)
        if about:
            words += options.words(
                quant_bits=about["weight_bits"],
                quant_scales=about["scales"],
                quant_ranges=about["ranges"],
            )
        return words

    def compile(self, variant: Variant, sizes: List[int]) -> None:
        words = options.words(
            output_dir=self.place(variant),
            batch_sizes=sizes,
            soc_version=self.arguments.soc_version,
            aipp=os.path.join(self.folder, AIPP) if variant.uint8 else None,
            stall=self.stall,
        )
        if variant.small:
            words += ["--", SMALL]
        self.start("onnx2om.py", self.model(variant), *words)

    def infer_on_cpu(self, model: str, folder: str, name: str) -> str:
        """Results of ONNX Runtime for the float32 images; their folder FOLDER/NAME."""
        self.start(
            "infer_onnx.py",
            model=model,
            input=os.path.join(self.folder, "float32"),
            output=folder,
            output_dirname=name,
            outfmt="NPY",
            batchsize=8,
        )
        return os.path.join(folder, name)

    def compare(self, variant: Variant, reference: str) -> Dict[str, Any]:
        """{"cosine", "agreement"} with float32."""
        if self.on_card:
            om = om_path(self.model(variant), FIRST_SIZES[0], self.place(variant))
            inputs = os.path.join(self.folder, "uint8" if variant.uint8 else "float32")
            self.start(
                "infer_om.py",
                model=om,
                input=inputs,
                output=self.place(variant),
                output_dirname="result",
                outfmt="NPY",
                device=self.arguments.device,
                host_facts=self.host_facts,
                stall=self.stall,
            )
        else:
            self.infer_on_cpu(self.model(variant), self.place(variant), "result")
        report = self.place(variant, COMPARE.name)
        self.start("compare_results.py", reference, self.place(variant, "result"), json_file=report)
        compared = COMPARE.read(report)
        return {"cosine": compared["cosine"]["min"], "agreement": compared["top1_agreement"]}

    def speed(self, variant: Variant, sizes: List[int], repeat: int) -> List[Dict[str, Any]]:
        """perf_sweep.py's rows for these batch sizes."""
        arguments = self.arguments
        card: Dict[str, Any] = {}
        if self.on_card:
            card = {"om_dir": self.place(variant), "device": arguments.device}
        self.start(
            "perf_sweep.py",
            backend=arguments.backend,
            model=self.model(variant),
            batch_sizes=sizes,
            loop=arguments.loop,
            repeat=repeat,
            output=self.place(variant),
            force=True,
            host_facts=self.host_facts,
            stall=self.stall,
            **card,
        )
        return list(PERF.read_in(self.place(variant))["rows"])


class Speed(NamedTuple):
    """What was measured at one batch size."""

    batch_size: int
    throughput: float  # images/s
    latency: float  # ms of a batch


def measure(
    bench: Bench, tried: List[Variant], sizes: List[int], rounds: int
) -> Dict[str, List[Speed]]:
    """{name: a Speed for each batch size}: medians of rounds in which the variants take turns."""
    rows_of: Dict[Tuple[str, int], List[Dict[str, Any]]] = {}
    for number in range(1, rounds + 1):
        for variant in tried:
            rows = bench.speed(variant, sizes, 1)
            for row in rows:
                rows_of.setdefault((variant.name, row["batch_size"]), []).append(row)
            best = max(row["throughput"] for row in rows)
            print(f"round {number} of {rounds}, {variant.name}: {best:.1f} images/s", flush=True)
    speeds: Dict[str, List[Speed]] = {}
    for (name, size), rows in rows_of.items():
        throughput = median([row["throughput"] for row in rows])
        latency = median([row["latency_mean"] for row in rows])
        speeds.setdefault(name, []).append(Speed(size, throughput, latency))
    return speeds


def attempt(bench: Bench, variant: Variant, reference: str) -> Dict[str, Any]:
    """Make a variant and compare it with float32: a row of the table, without its speed.

    A variant that cannot be made has the reason in "refused".
    """
    row: Dict[str, Any] = {
        "name": variant.name,
        **variant._asdict(),
        "cosine": None,
        "agreement": None,
        "throughput": None,
        "latency": None,
        "batch_size": None,
        "refused": None,
        "skipped": None,
    }
    try:
        bench.make(variant)
        row.update(bench.compare(variant, reference))
    except Refusal as refusal:
        row["refused"] = refusal.sentence
    outcome = row["refused"]
    if not outcome:
        outcome = f"cosine {row['cosine']:.6f}, Top-1 agreement {row['agreement']:.2f} %"
    print(f"{variant.name}: {outcome}", flush=True)
    return row


def refusal_of(row: Dict[str, Any], min_cosine: float, min_agreement: float) -> Optional[str]:
    """Why a variant that runs may not win."""
    if row["cosine"] < min_cosine:
        return f"cosine {row['cosine']:.6f} is below {min_cosine:g}"
    if row["agreement"] < min_agreement:
        return f"Top-1 agreement {row['agreement']:.2f} % is below {min_agreement:g} %"
    return None


# ---- combinations that cannot win ----------------------------------------------------------------


def forecasts_of(
    arguments: argparse.Namespace, bench: Bench, variant: Variant
) -> List[speed.Forecast]:
    """The forecast at every batch size that may be measured.

    Returns [] for int8, for other chips than the 310P3, and for larger batch sizes than those of
    the published figures.
    """
    data = speed.read_data()
    sizes = sorted({*FIRST_SIZES, *arguments.batch_sizes})
    if variant.precision != "float16" or sizes[-1] > speed.largest_batch(data):
        return []
    devices = None if arguments.device is None else [arguments.device]
    try:
        chip = arguments.soc_version or chips.choose_devices(devices)[1]
        speed.refuse_chip(chip)
        network = speed.read_network(bench.models[variant.stem])
    except Refusal:
        return []
    return speed.forecast(network, sizes, data, variant.uint8)


def hopeless(
    arguments: argparse.Namespace, bench: Bench, variant: Variant, measured: float, best: float
) -> Optional[str]:
    """Why a variant cannot be the fastest at any batch size; None if it can.

    measured: its images/s at the first of FIRST_SIZES; best: those of the fastest there.
    """
    forecasts = forecasts_of(arguments, bench, variant)
    if not forecasts or measured >= best:
        return None
    others = speed.from_measured(FIRST_SIZES[0], measured, forecasts, speed.read_data())
    if not speed.cannot_win(others, best):
        return None
    most = max(row.high_90 for row in others)
    return (
        f"cannot win: at most {most:.0f} images/s at other batch sizes (forecast from the one that "
        "was measured)"
    )


def leave_out(
    arguments: argparse.Namespace, bench: Bench, running: List[Variant], rows: Dict[str, Any]
) -> List[Variant]:
    """Measure the variants once at the first batch size; returns those that can still win.

    The rows of the others get what was measured, and the reason in "skipped".
    """
    first = measure(bench, running, FIRST_SIZES[:1], 1)
    fit = [name for name in first if not rows[name]["refused"]]
    best = max((first[name][0].throughput for name in fit), default=0.0)
    hopeful = []
    for variant in running:
        row, found = rows[variant.name], first[variant.name][0]
        row["skipped"] = hopeless(arguments, bench, variant, found.throughput, best)
        if row["skipped"]:
            row.update(found._asdict())
            print(f"{variant.name}: {row['skipped']}", flush=True)
        else:
            bench.compile(variant, FIRST_SIZES)
            hopeful.append(variant)
    return hopeful


def rank(arguments: argparse.Namespace, bench: Bench, tried: List[Variant]) -> List[Dict[str, Any]]:
    """Make, compare and measure all variants: the rows of the table, the fastest first."""
    reference = bench.infer_on_cpu(next(iter(bench.models.values())), bench.folder, "result_onnx")
    rows = {variant.name: attempt(bench, variant, reference) for variant in tried}
    running = [variant for variant in tried if not rows[variant.name]["refused"]]
    for variant in running:
        row = rows[variant.name]
        row["refused"] = refusal_of(row, arguments.min_cosine, arguments.min_agreement)
    sizes = arguments.batch_sizes
    if bench.on_card:
        sizes = FIRST_SIZES
        running = leave_out(arguments, bench, running, rows)
    for name, speeds in measure(bench, running, sizes, arguments.repeat).items():
        rows[name].update(max(speeds, key=lambda found: found.throughput)._asdict())
    return sorted(rows.values(), key=lambda row: -(row["throughput"] or 0))


def measure_winner(arguments: argparse.Namespace, bench: Bench, winner: Variant) -> Dict[str, Any]:
    """What tune.json says of the best variant, which is measured at all batch sizes."""
    if bench.on_card:
        bench.compile(winner, arguments.batch_sizes)
    rows = bench.speed(winner, arguments.batch_sizes, arguments.repeat)
    best = max(rows, key=lambda row: float(row["throughput"]))
    return {
        "batch_sizes": rows,
        "options": bench.options(winner, best["batch_size"]),
        "best": {key: best[key] for key in ("batch_size", "throughput", "latency_mean")},
    }


def tune(arguments: argparse.Namespace, bench: Bench) -> Dict[str, Any]:
    """All that tune.json holds; "winner" is None if no variant may win."""
    tried = variants(list(bench.models), bench.on_card, arguments.precision == "int8")
    ranked = rank(arguments, bench, tried)
    fit = [row["name"] for row in ranked if row["throughput"] and not row["refused"]]
    report = {
        "tool": "tune.py",
        "version": cli.VERSION,
        "backend": arguments.backend,
        "rows": ranked,
        "winner": fit[0] if fit else None,
        "min_cosine": arguments.min_cosine,
        "min_agreement": arguments.min_agreement,
    }
    for variant in tried:
        if variant.name == report["winner"]:
            report.update(measure_winner(arguments, bench, variant))
    return report


# ---- the report ----------------------------------------------------------------------------------


def markdown(report: Dict[str, Any]) -> str:
    """The ranking as a table, and the winner."""
    lines = [
        "| rank | combination | images/s | batch size | latency ms | cosine | agreement | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for number, row in enumerate(report["rows"], 1):
        cells = ["-"] * 5
        if row["throughput"] is not None:
            cells = [
                f"{row['throughput']:.1f}",
                str(row["batch_size"]),
                f"{row['latency']:.3f}",
                f"{row['cosine']:.6f}",
                f"{row['agreement']:.2f} %",
            ]
        remark = "best" if row["name"] == report["winner"] else ""
        if row["refused"]:
            remark = f"refused: {row['refused']}".replace("|", "/")
        elif row["skipped"]:
            remark = row["skipped"]
        lines.append(f"| {number} | {row['name']} | {' | '.join(cells)} | {remark} |")
    text = "\n".join(lines) + "\n"
    if report["winner"]:
        sizes = ", ".join(
            f"{row['throughput']:.1f} at {row['batch_size']}" for row in report["batch_sizes"]
        )
        text += (
            f"\nThe best, {report['winner']}, at all batch sizes: {sizes} images/s.\n"
            f"For pipeline.sh: {' '.join(report['options']) or 'its defaults'}\n"
        )
    return text


# ---- command line --------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "models",
        nargs="+",
        type=options.path,
        metavar="STEM.onnx",
        help="ONNX files, named after their stems",
    )
    options.add(
        parser,
        "backend",
        "input",
        "aipp",
        "images",
        "precision",
        *options.QUANT,
        "batch_sizes",
        "loop",
        "repeat",
        "min_cosine",
        "min_agreement",
        "soc_version",
        "device",
        "output",
        "host_facts",
        "stall",
        required=["input"],
        choices={"backend": ("ascend", "cpu"), "precision": ("float", "int8")},
        default={
            "backend": "ascend",
            "precision": "float",
            "min_cosine": 0.95,
            "min_agreement": 95.0,
        },
        help={
            "backend": "(default: %(default)s)",
            "images": "to compare (default: %(default)s, evenly spaced)",
            "precision": "int8: try that as well, on ascend by AMCT",
            "min_cosine": "a combination with a lower cosine cannot win (default: %(default)s)",
            "min_agreement": "nor can one that gives fewer per cent of the images "
            "float32's class (default: %(default)s)",
        },
    )
    return options.parse(parser)


def main() -> None:
    from common.results import plots  # here: if matplotlib is missing, that is said before the runs

    arguments = parse_arguments()
    sample = input_of(onnx_file.describe(arguments.models[0]), arguments.aipp)
    paths = spaced(list_inputs(arguments.input), arguments.images)
    files.limit_rights()
    output = host.safe_path(arguments.output)
    product = folder = os.path.join(output, "tune")
    targets = [f"{product}.{suffix}" for suffix in ("json", "md", "png")]
    record.read(product).refuse_others(map(os.path.basename, targets))
    files.make_folder(folder, "--output")
    evaluation = recorded(prepared.read(arguments.input).settings, img_size=sample.shape[-1])
    write_inputs(paths, sample, evaluation, folder)
    report = tune(arguments, Bench(arguments, folder))
    table = markdown(report)
    contents = [json_file.encode(report), table.encode(), plots.ranking_png(report)]
    made_by = recipe.make(__file__, {"backend": arguments.backend}, (), arguments.models)
    record.write(product, made_by, dict(zip(targets, contents)))
    names = ", ".join(map(os.path.basename, targets))
    print(f"\n{table}\n{names} in {shown(output)}")
    if not report["winner"]:
        raise Refusal(
            "no combination runs and keeps the cosine and the agreement that are asked for; the "
            "table says why each was refused",
            cli.BELOW_MINIMUM,
        )


if __name__ == "__main__":
    cli.run(main, "what was compiled is kept; the same command goes on")
