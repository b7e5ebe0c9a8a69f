#!/usr/bin/env python3
"""Measure pure inference at each batch size with ais_bench (NPU) or infer_onnx.py (CPU): table, plot, JSON.

    python3 scripts/perf_sweep.py --backend ascend --model tresnet_m.onnx --data-set ImageNet --accuracy acc.json
    python3 scripts/perf_sweep.py --backend cpu --model tresnet_m.onnx --batch-sizes 1,8 --output work

In:  MODEL.onnx (its metadata name variant and image size); on Ascend beside it MODEL_bs1.om, ... (onnx2om.sh).
Out: OUTPUT/perf.json, perf.md (a Markdown table) and perf.png. Every figure is the runner's own, from its
     _summary.json: the median over --repeat runs of --loop batches each, after the runner's warm-up. The batch sizes
     take turns, so that a slow phase of the machine does not fall on one of them alone.
Exit status: 0 good, 1 failure, 2 wrong usage, 3 the best throughput is below --min-throughput.
"""
import argparse
import contextlib
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from io import BytesIO
from typing import Any, Dict, List, NoReturn, Optional, Tuple

from PIL import Image, ImageDraw, ImageFont

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.dirname(HERE)]
from npu_info import find_chips, the_chip  # noqa: E402
from onnx2om import describe_onnx  # noqa: E402

from TResNet_preprocess import VERSION, write_whole  # noqa: E402

BATCH_SIZES = "1,4,8,16,32"
# Published for TResNet-M at 224 pixels on one Ascend 310P3 (README, performance): {batch size: images/s}.
REFERENCE = {1: 1154.0, 4: 2552.0, 8: 3158.0, 16: 3249.0, 32: 2756.0}
REFERENCE_CASE = ("310P3", "tresnet_m", 224)  # chip, variant, image size
BELOW_MINIMUM = 3  # exit status
NOT_MEASURED = "-"


def refuse(sentence: str) -> NoReturn:
    raise SystemExit("perf_sweep.py: " + sentence)


# Running ------------------------------------------------------------------------------------------------------------
def build_command(arguments: argparse.Namespace, batch_size: int, runs: str, name: str) -> List[str]:
    """The runner's command line for one run; its summary goes to RUNS/NAME_summary.json."""
    if arguments.backend == "ascend":
        command = ["python3", "-m", "ais_bench", f"--model={om_path(arguments, batch_size)}"]
    else:
        command = [sys.executable, os.path.join(HERE, "infer_onnx.py"), f"--model={arguments.model}"]
    command += [f"--loop={arguments.loop}", f"--batchsize={batch_size}"]  # as users type it; --output for the summary
    command += [f"--output={runs}", f"--output_dirname={name}"]
    if arguments.backend == "cpu" and arguments.aipp:
        command.append(f"--aipp={arguments.aipp}")
    return command + ([f"--device={arguments.device}"] if arguments.device else [])


def om_path(arguments: argparse.Namespace, batch_size: int) -> str:
    folder, name = os.path.split(arguments.model)
    return os.path.join(arguments.om_dir or folder, f"{os.path.splitext(name)[0]}_bs{batch_size}.om")


def run_to_end(command: List[str], log: str) -> int:
    """The command's exit status; its output goes to `log`. It is killed if this process is told to end."""
    with open(log, "wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        return child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise


def make_run_folder(output: str) -> str:
    """A new folder for the runners' files, named after this process; what killed processes left is removed."""
    for name in os.listdir(output):
        match = re.fullmatch("perf_runs-([1-9][0-9]*)", name)
        if match and not os.path.exists(f"/proc/{match.group(1)}"):
            shutil.rmtree(os.path.join(output, name))
    runs = os.path.join(output, f"perf_runs-{os.getpid()}")
    os.mkdir(runs)
    os.chmod(runs, 0o750)  # ais_bench refuses to write where others may look
    return runs


def measure(arguments: argparse.Namespace, batch_size: int, runs: str, name: str) -> Dict[str, float]:
    """One run: {throughput in images/s, mean and p99 latency of a batch in ms}, as the runner's summary has them.

    Raises: SystemExit if the runner fails or its summary is not that of this run.
    """
    command = build_command(arguments, batch_size, runs, name)
    log = os.path.join(arguments.output, "perf_runner.log")  # kept only of a run that failed
    try:
        status = run_to_end(command, log)
    except FileNotFoundError:
        refuse(f"there is no {command[0]} on the PATH, which should run ais_bench; install Python 3 there")
    if status:
        with open(log, encoding="utf-8", errors="replace") as file:
            said = [line.strip() for line in file if line.strip()] or ["nothing"]
        refuse(f"the runner failed with status {status} at batch size {batch_size} and said {said[-1][:300]!a}; "
               f"its whole output: {log}")
    try:
        with open(os.path.join(runs, name + "_summary.json"), encoding="utf-8") as file:
            summary = json.load(file)
        times = summary["NPU_compute_time"]
        figures = {"throughput": float(summary["throughput"]), "latency_mean": float(times["mean"]),
                   "latency_p99": float(times["percentile(99%)"])}
        count = int(times["count"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse(f"the runner ended well at batch size {batch_size}, but its summary is missing or damaged "
               f"({type(error).__name__}: {str(error)!a}); see its output: {log}")
    if not all(math.isfinite(figure) and figure > 0 for figure in figures.values()):
        refuse(f"the runner's summary of batch size {batch_size} has figures that cannot be true: {figures}; "
               f"see its output: {log}")
    expected = 1000 * batch_size / figures["latency_mean"]
    if count != arguments.loop or abs(figures["throughput"] - expected) > 0.01 * expected:
        refuse(f"the runner's summary of batch size {batch_size} tells of {count} runs and "
               f"{figures['throughput']:.1f} images/s; expected are {arguments.loop} runs and {expected:.1f} images/s, "
               "so it is that of another run")
    os.remove(log)
    return figures


def sweep(arguments: argparse.Namespace) -> List[Dict[str, Any]]:
    """All runs; one row per batch size with the median of each figure and the throughput of every run."""
    found: Dict[int, List[Dict[str, float]]] = {batch_size: [] for batch_size in arguments.batch_sizes}
    runs = make_run_folder(arguments.output)
    try:
        for repeat in range(1, arguments.repeat + 1):
            for batch_size in arguments.batch_sizes:
                found[batch_size].append(measure(arguments, batch_size, runs, f"bs{batch_size}_run{repeat}"))
                print(f"run {repeat} of {arguments.repeat}, batch size {batch_size}: "
                      f"{found[batch_size][-1]['throughput']:.1f} images/s", flush=True)
    finally:
        shutil.rmtree(runs)
    rows = []
    for batch_size, figures in found.items():
        row: Dict[str, Any] = {"batch_size": batch_size}
        for key in ("throughput", "latency_mean", "latency_p99"):
            row[key] = statistics.median(figure[key] for figure in figures)
        row["throughput_runs"] = [figure["throughput"] for figure in figures]
        row["throughput_spread"] = (max(row["throughput_runs"]) - min(row["throughput_runs"])) / row["throughput"]
        rows.append(row)
    return rows


def settings(arguments: argparse.Namespace, chip: str) -> Dict[str, Any]:
    """All that the figures depend on, as JSON gives it back: of files, their sizes and modification times."""
    files = ([arguments.model] if arguments.backend == "cpu"
             else [om_path(arguments, size) for size in arguments.batch_sizes])
    states = [os.stat(path) for path in files + ([arguments.aipp] if arguments.aipp else [])]
    return {"version": VERSION, "backend": arguments.backend, "chip": chip, "device": arguments.device,
            "loop": arguments.loop, "repeat": arguments.repeat, "batch_sizes": list(arguments.batch_sizes),
            "files": files, "file_states": [[state.st_size, state.st_mtime_ns] for state in states]}


def kept_rows(path: str, measured: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The rows of an earlier perf.json that was measured with the same settings; [] if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # none, or not one of ours: it is measured anew
        with open(path, encoding="utf-8") as file:
            earlier = json.load(file)
        if earlier["measured"] == measured:
            return list(earlier["rows"])
    return []


# Report -------------------------------------------------------------------------------------------------------------
def processor_name() -> str:
    """The CPU's name and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", file.read(), re.MULTILINE)  # ARM has none
        name = match.group(1) if match else name
    return f"CPU ({' '.join(name.split())}, {len(os.sched_getaffinity(0))} cores)"


def read_accuracy(path: str) -> Dict[str, str]:
    """{"Top1 accuracy": "100.0%", ...} from TResNet_postprocess.py's acc.json."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["value"]
        accuracy = {str(row["key"]): str(row["value"]) for row in rows if str(row["key"]).endswith("accuracy")}
        if not accuracy:
            raise KeyError("accuracy")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        refuse(f"{path!a} is not an accuracy file of TResNet_postprocess.py ({type(error).__name__}: {str(error)!a}); "
               "name its acc.json by --accuracy")
    return accuracy


def short_accuracy(accuracy: Dict[str, str]) -> str:
    """ "Top-1 80.5%, Top-5 94.43%": the first and the last of the figures."""
    if not accuracy:
        return NOT_MEASURED
    shown = sorted({min(accuracy), max(accuracy)})
    return ", ".join(re.sub(r"^Top(\d+) .*", r"Top-\1 ", key) + accuracy[key] for key in shown)


def add_reference(report: Dict[str, Any]) -> None:
    """Put the published figure and the ratio to it beside each row, where one exists for this chip and model."""
    if (report["chip"], report["variant"], report["img_size"]) != REFERENCE_CASE:
        return
    for row in report["rows"]:
        if row["batch_size"] in REFERENCE:
            row["reference"] = REFERENCE[row["batch_size"]]
            row["ratio"] = row["throughput"] / row["reference"]


def markdown(report: Dict[str, Any]) -> str:
    """The table and what is to be known about its figures."""
    with_reference = any("reference" in row for row in report["rows"])
    head = ["Chip", "Batch size", "Data set", "Accuracy", "images/s", "latency mean ms", "latency p99 ms"]
    if with_reference:
        head += ["reference images/s", "ratio"]
    lines = [head, ["---"] * len(head)]
    for row in report["rows"]:
        cells = [report["chip"], str(row["batch_size"]), report["data_set"] or NOT_MEASURED,
                 short_accuracy(report["accuracy"]), f"{row['throughput']:.1f} ± {50 * row['throughput_spread']:.1f} %",
                 f"{row['latency_mean']:.3f}", f"{row['latency_p99']:.3f}"]
        if with_reference:
            known = "reference" in row
            cells += [f"{row['reference']:.0f}" if known else NOT_MEASURED,
                      f"{row['ratio']:.2f}" if known else NOT_MEASURED]
        lines.append([" ".join(cell.replace("|", "/").split()) for cell in cells])
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    text += (f"\nPure inference (zeros in, no files): median of {report['repeat']} runs of {report['loop']} batches "
             "each, ± half the span of the runs. Latency is that of a whole batch.\n")
    if with_reference:
        text += "The reference is the published figure for TResNet-M at 224 pixels on one Ascend 310P3.\n"
    return text + (f"Best batch size: {report['best']['batch_size']}, {report['best']['throughput']:.1f} images/s.\n")


# Plot ---------------------------------------------------------------------------------------------------------------
WIDTH, HEIGHT = 960, 600  # pixels
SCALE = 2  # drawn larger, then reduced: smooth lines
PLOT = (112, 92, WIDTH - 96, HEIGHT - 92)  # left, top, right, bottom of the axes
INK, FAINT, BAR, MEAN, P99, MARK = "#222222", "#d9dce1", "#4c78a8", "#e45756", "#f2a6a0", "#111111"


def load_font(size: int) -> Tuple[Any, int]:
    """(font, factor by which to enlarge its glyphs): Pillow's own, older ones have only a small bitmap."""
    try:
        return ImageFont.load_default(size), 1
    except (TypeError, ImportError):
        pass
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size), 1
    except (OSError, ImportError):
        return ImageFont.load_default(), max(1, round(size / 11))


def put_text(image: Image.Image, position: Tuple[float, float], text: str, size: int, anchor: Tuple[float, float],
             color: str = INK, turned: bool = False) -> float:
    """Draw text; `anchor` is the point of its box, (0, 0) top left to (1, 1) bottom right, that lies at `position`.

    Returns its width; positions and sizes are in pixels of the finished image.
    """
    font, factor = load_font(size * SCALE)
    left, top, right, bottom = font.getbbox(text)
    height = font.getbbox("Ag0")[3]
    mask = Image.new("L", (max(1, right), max(1, height, bottom)), 0)
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    mask = mask.resize((mask.width * factor, mask.height * factor))
    width = mask.width / SCALE
    if turned:
        mask = mask.transpose(Image.ROTATE_90)
    corner = (round(position[0] * SCALE - anchor[0] * mask.width), round(position[1] * SCALE - anchor[1] * mask.height))
    image.paste(Image.new("RGB", mask.size, color), corner, mask)
    return width


def nice_top(value: float) -> Tuple[float, float]:
    """(end of an axis, distance of its ticks) for values up to `value`: ticks at 1, 2, 2.5 or 5 times 10^n."""
    power = 10.0 ** math.floor(math.log10(value / 5))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if value <= 5 * factor * power)
    return step * math.ceil(value * 1.02 / step), step


def three_digits(value: float) -> str:
    """ "1154", "11.6", "0.87": at least three digits, none of them behind the point from 100 on."""
    return f"{value:.{max(0, 2 - int(math.floor(math.log10(value))))}f}"


def dashed_line(draw: ImageDraw.ImageDraw, start: Tuple[float, float], end: Tuple[float, float], color: str) -> None:
    length = math.hypot(end[0] - start[0], end[1] - start[1])
    pieces = max(1, int(length / (8 * SCALE)))
    for piece in range(0, pieces, 2):
        points = [(start[0] + (end[0] - start[0]) * part / pieces, start[1] + (end[1] - start[1]) * part / pieces)
                  for part in (piece, min(pieces, piece + 1))]
        draw.line(points, fill=color, width=2 * SCALE)


def draw_plot(report: Dict[str, Any]) -> bytes:
    """PNG: bars of throughput (left axis), lines of mean and p99 latency (right axis), over the batch sizes."""
    rows = report["rows"]
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = PLOT
    most, step = nice_top(max(max(row["throughput"], row.get("reference", 0)) for row in rows))
    slowest, latency_step = nice_top(max(row["latency_p99"] for row in rows))

    def scaled(*points: Tuple[float, float]) -> List[Tuple[float, float]]:
        return [(x * SCALE, y * SCALE) for x, y in points]

    def height_of(value: float, full: float) -> float:
        return bottom - (bottom - top) * value / full

    for tick in range(round(most / step) + 1):
        y = height_of(tick * step, most)
        draw.line(scaled((left, y), (right, y)), fill=FAINT, width=SCALE)
        put_text(image, (left - 8, y), f"{tick * step:g}", 14, (1, 0.5))
    for tick in range(round(slowest / latency_step) + 1):
        y = height_of(tick * latency_step, slowest)
        draw.line(scaled((right, y), (right + 5, y)), fill=INK, width=SCALE)
        put_text(image, (right + 10, y), f"{tick * latency_step:g}", 14, (0, 0.5), MEAN)

    slot = (right - left) / len(rows)
    middles = [left + slot * (index + 0.5) for index in range(len(rows))]
    half = min(slot * 0.3, 60)
    for x, row in zip(middles, rows):
        draw.rectangle(scaled((x - half, height_of(row["throughput"], most)), (x + half, bottom)), fill=BAR)
        if "reference" in row:
            y = height_of(row["reference"], most)
            draw.line(scaled((x - half - 8, y), (x + half + 8, y)), fill=MARK, width=3 * SCALE)
        for line, (text, color) in enumerate(((str(row["batch_size"]), INK), (three_digits(row["throughput"]), BAR),
                                              (three_digits(row["latency_mean"]), MEAN))):
            put_text(image, (x, bottom + 10 + 24 * line), text, 15, (0.5, 0), color)
    for key, color in (("latency_p99", P99), ("latency_mean", MEAN)):
        points = scaled(*[(x, height_of(row[key], slowest)) for x, row in zip(middles, rows)])
        for start, end in zip(points, points[1:]):
            if key == "latency_p99":
                dashed_line(draw, start, end, color)
            else:
                draw.line([start, end], fill=color, width=3 * SCALE)
        for x, y in points:
            draw.ellipse((x - 5 * SCALE, y - 5 * SCALE, x + 5 * SCALE, y + 5 * SCALE), fill=color, outline="white",
                         width=SCALE)
    draw.line(scaled((left, top), (left, bottom), (right, bottom), (right, top)), fill=INK, width=SCALE)

    title = f"{report['variant']}, {report['img_size']} px" if report["variant"] else "Pure inference"
    put_text(image, (left, 14), f"{title} on {report['chip']}"[:90], 18, (0, 0))
    for line, (text, color) in enumerate((("batch size", INK), ("images/s", BAR), ("mean, ms", MEAN))):
        put_text(image, (left - 8, bottom + 10 + 24 * line), text, 15, (1, 0), color)
    put_text(image, (14, (top + bottom) / 2), "throughput (images/s)", 16, (0, 0.5), BAR, turned=True)
    put_text(image, (WIDTH - 14, (top + bottom) / 2), "latency of a batch (ms)", 16, (1, 0.5), MEAN, turned=True)
    draw_legend(image, draw, any("reference" in row for row in rows))
    image = image.resize((WIDTH, HEIGHT), Image.LANCZOS)
    data = BytesIO()
    image.save(data, "PNG", optimize=True)
    return data.getvalue()


def draw_legend(image: Image.Image, draw: ImageDraw.ImageDraw, with_reference: bool) -> None:
    """One line above the axes."""
    entries = [("throughput", BAR), ("latency, mean", MEAN), ("latency, 99th percentile", P99)]
    if with_reference:
        entries.append(("published throughput", MARK))
    x, y = float(PLOT[0]), 64.0
    for text, color in entries:
        box = [x * SCALE, (y - 7) * SCALE, (x + 22) * SCALE, (y + 7) * SCALE]
        if color == BAR:
            draw.rectangle(box, fill=color)
        elif color == P99:
            dashed_line(draw, (box[0], y * SCALE), (box[2] + 4 * SCALE, y * SCALE), color)
        else:
            draw.line((box[0], y * SCALE, box[2], y * SCALE), fill=color, width=3 * SCALE)
        x += 32 + put_text(image, (x + 30, y), text, 14, (0, 0.5)) + 24


# Command line -------------------------------------------------------------------------------------------------------
def batch_size_list(text: str) -> List[int]:
    if not re.fullmatch(r"[1-9][0-9]{0,4}(,[1-9][0-9]{0,4})*", text):
        raise argparse.ArgumentTypeError(f"expected whole numbers joined by commas, as {BATCH_SIZES}, found {text!a}")
    return sorted({int(word) for word in text.split(",")})


def positive_number(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!a}")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure pure inference at each batch size: table, plot, JSON.")
    parser.add_argument("--backend", required=True, choices=["ascend", "cpu"])
    parser.add_argument("--model", required=True, metavar="MODEL.onnx", help="on ascend MODEL_bs1.om, ... must exist")
    parser.add_argument("--batch-sizes", type=batch_size_list, default=BATCH_SIZES, metavar="LIST",
                        help="default %(default)s")
    parser.add_argument("--om-dir", metavar="DIR", help="where MODEL_bs1.om, ... are (default: beside the ONNX file)")
    parser.add_argument("--aipp", metavar="FILE", help="AIPP settings for the CPU runner (an .om has them inside)")
    parser.add_argument("--output", default=".", metavar="DIR", help="where perf.json, perf.md, perf.png go")
    parser.add_argument("--loop", type=positive_number, default=20, help="batches in a run (default %(default)s)")
    parser.add_argument("--repeat", type=positive_number, default=3, help="runs per batch size (default %(default)s)")
    parser.add_argument("--device", type=int, default=0, metavar="N", help="the NPU to use (default %(default)s)")
    parser.add_argument("--chip", metavar="NAME", help="for the table (default: what npu-smi or the system says)")
    parser.add_argument("--data-set", metavar="NAME", help="for the table: what the accuracy was measured on")
    parser.add_argument("--accuracy", metavar="acc.json", help="for the table: TResNet_postprocess.py's file")
    parser.add_argument("--keep", action="store_true", help="take the figures of --output's perf.json if they were "
                        "measured with these very models and settings")
    parser.add_argument("--min-throughput", type=float, metavar="X", help="exit with 3 if the best has fewer images/s")
    arguments = parser.parse_args()
    if not 0 <= arguments.device <= 255:
        parser.error("--device must lie between 0 and 255")
    return arguments


def check_before_start(arguments: argparse.Namespace) -> Dict[str, Any]:
    """Refuse at once what would fail later; describes the model (see onnx2om.describe_onnx)."""
    arguments.model = os.path.abspath(arguments.model)
    try:
        os.makedirs(arguments.output, exist_ok=True)
    except OSError as error:
        refuse(f"the folder {arguments.output!a} cannot be made ({error.strerror}); name another by --output")
    arguments.output = os.path.abspath(arguments.output)
    if not os.access(arguments.output, os.W_OK):
        refuse(f"the folder {arguments.output!a} is not writable; name another by --output")
    try:
        model = describe_onnx(arguments.model)
    except SystemExit as error:
        raise SystemExit(re.sub(r"^onnx2om\.py", "perf_sweep.py", str(error))) from None
    if arguments.backend == "ascend":
        missing = [om_path(arguments, size) for size in arguments.batch_sizes
                   if not os.path.isfile(om_path(arguments, size))]
        if missing:
            sizes = ",".join(str(size) for size in arguments.batch_sizes)
            refuse(f"there is no {missing[0]!a}; make it: bash scripts/onnx2om.sh MODEL.onnx --batch-sizes {sizes}")
        if re.search("[^_A-Za-z0-9/.-]", arguments.output):
            refuse("ais_bench accepts only letters, digits, '_', '.', '-' and '/' in a path, not "
                   f"{arguments.output!a}; name another folder by --output")
    elif model["shape"][0] and arguments.batch_sizes != [model["shape"][0]]:
        refuse(f"the batch size of {arguments.model!a} is fixed to {model['shape'][0]}; give --batch-sizes "
               f"{model['shape'][0]}, or export the model with a free one")
    return model


def main() -> int:
    arguments = parse_arguments()
    started = time.time()
    model = check_before_start(arguments)
    chip = arguments.chip or (the_chip(find_chips()) if arguments.backend == "ascend" else processor_name())
    accuracy = read_accuracy(arguments.accuracy) if arguments.accuracy else {}
    measured = settings(arguments, chip)
    kept = kept_rows(os.path.join(arguments.output, "perf.json"), measured) if arguments.keep else []
    if kept:
        print("the figures in perf.json are up to date; without --keep they are measured again")
    report: Dict[str, Any] = {
        "tool": "perf_sweep.py", "version": VERSION, "backend": arguments.backend,
        "chip": chip, "model": arguments.model, "variant": model["metadata"].get("variant"),
        "img_size": model["shape"][-1], "loop": arguments.loop, "repeat": arguments.repeat,
        "data_set": arguments.data_set, "accuracy": accuracy, "measured": measured, "rows": kept or sweep(arguments)}
    add_reference(report)
    report["best"] = max(report["rows"], key=lambda row: row["throughput"])
    table = markdown(report)
    for name, data in (("perf.json", (json.dumps(report, indent=1) + "\n").encode()), ("perf.md", table.encode()),
                       ("perf.png", draw_plot(report))):
        write_whole(os.path.join(arguments.output, name), data)
    print(f"\n{table}\nperf.json, perf.md, perf.png in {arguments.output} ({time.time() - started:.1f} s)")
    best = report["best"]["throughput"]
    if arguments.min_throughput is not None and best < arguments.min_throughput:
        print(f"perf_sweep.py: the best throughput is {best:.1f} images/s (batch size {report['best']['batch_size']}), "
              f"below --min-throughput {arguments.min_throughput:g}", file=sys.stderr)
        return BELOW_MINIMUM
    return 0


def end_by_signal(number: int, frame: Optional[Any]) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end_by_signal)
    try:
        sys.exit(main())
    except OSError as error:
        refuse(f"{error.filename!a}: {error.strerror}; mend that and start again")
    except KeyboardInterrupt:
        print("perf_sweep.py: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python's own end cannot be interrupted cleanly
