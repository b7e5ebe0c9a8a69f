"""ais_bench in each of its generations: how it is spelled and started, and what it says.

Three generations are known. 0.0.2 and later ones write option words with an underscore, the fork
0.1.0 with a hyphen. The fork also calls the percentile P99. So the program looks: for the spelling
at --help, for the key at the summary itself.
"""

import functools
import math
import os
import re
import subprocess
from typing import Any, Dict, List, NamedTuple, Sequence

from common.ascend.host import NO_FOLDER
from common.core import json_file
from common.core.cli import Refusal, why

BENCH = ("python3", "-m", "ais_bench")  # in the host's own Python
HELP_TIMEOUT = 120.0  # s; it imports the runtime of the card first
PERCENTILES = ("percentile(99%)", "P99")
FRAME = "│┃╭╮╰╯─━┏┓┗┛╒╕╘╛═╞╡╤╧╪ "
THROUGHPUT = re.compile(
    r"device_(\d+) throughput:([0-9.e+-]+)\s+start_time:([0-9.e+-]+)\s+end_time:([0-9.e+-]+)"
)


class Summary(NamedTuple):
    """What a _summary.json says, the same for each generation."""

    throughput: float  # images/s
    mean: float  # ms of a batch
    p99: float  # ms of a batch
    runs: int  # of a batch
    times: List[float]  # ms of each batch


class Together(NamedTuple):
    """A run on several devices at once."""

    throughputs: Dict[int, float]  # images/s of each device
    overlap: float  # the time in which all devices work, as a share of that in which any does


@functools.lru_cache(maxsize=None)
def spelling() -> str:
    """What joins the parts of an option word of the installed ais_bench: "_" or "-".

    Raises: Refusal if there is no ais_bench.
    """
    # The fork fits its help to the terminal: it cuts long words in a narrow one, and on some it
    # puts colours into them.
    wide = dict(os.environ, COLUMNS="200", NO_COLOR="1", TERM="dumb")
    try:
        done = subprocess.run(
            [*BENCH, "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_TIMEOUT,
            env=wide,
            cwd=NO_FOLDER,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refusal(
            f"ais_bench cannot be started: {why(error)}; see: python3 -m ais_bench --help"
        ) from None
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode(errors="replace"))
    for joint in ("-", "_"):  # the fork still writes underscores in its examples
        if f"--output{joint}dirname" in output:
            return joint
    raise Refusal(
        "`python3 -m ais_bench --help` should name --output_dirname or --output-dirname, but says "
        f"{last_words(output.splitlines())!a}; install the ais_bench of Ascend's tools"
    )


def command(model: str, joint: str = "_", **options: Any) -> List[str]:
    """The words that start ais_bench. joint: spelling(); options that are None are left out.

    With `input` each value is a word of its own; pure inference has "=", as users know it.
    """
    words = list(BENCH)
    for name, value in {"model": model, **options}.items():
        if value is None:
            continue
        option = "--" + name.replace("_", joint)
        if "input" in options:
            words += [option, str(value)]
        else:
            words.append(f"{option}={value}")
    return words


# ---- what it says --------------------------------------------------------------------------------


def last_words(lines: List[str]) -> str:
    """Why a program ended, from the lines that it printed.

    The first [ERROR]; otherwise what a box titled Error holds; otherwise the last line.
    """
    lines = [line.split("\r")[-1].strip() for line in lines]
    for line in lines:
        if "[ERROR]" in line:
            return line[line.index("[ERROR]") :][:300]
    titles = [index for index, line in enumerate(lines) if re.match(r"[╭┏]\W*Error\b", line)]
    if titles:
        boxed = [line.strip(FRAME) for line in lines[titles[-1] :] if line.startswith(("│", "┃"))]
        return " ".join(filter(None, boxed))[:300]
    plain = [line for line in lines if line.strip(FRAME)]
    return plain[-1][:300] if plain else "nothing"


def complaint(log: str) -> str:
    """last_words() of a log file."""
    with open(log, encoding="utf-8", errors="replace") as file:
        return last_words(file.read().splitlines())


def read_summary(path: str) -> Summary:
    """Read a _summary.json.

    Raises: Refusal, OSError, ValueError, KeyError, TypeError if it is missing or not a summary.
    """
    summary = json_file.load(path)
    times = summary["NPU_compute_time"]
    percentile = next((key for key in PERCENTILES if key in times), PERCENTILES[0])
    read = Summary(
        float(summary["throughput"]),
        float(times["mean"]),
        float(times[percentile]),
        int(times["count"]),
        list(map(float, summary.get("npu_compute_time_list", []))),
    )
    figures_read = [read.throughput, read.mean, read.p99, *read.times]
    if not all(map(math.isfinite, figures_read)):
        raise ValueError("one of its figures is not finite")
    return read


def figures(times: Sequence[float]) -> Dict[str, float]:
    """What a summary says of a list of milliseconds."""
    import numpy as np  # here: results that are up to date do not need it

    return {
        "min": float(np.min(times)),
        "max": float(np.max(times)),
        "mean": float(np.mean(times)),
        "median": float(np.median(times)),
        PERCENTILES[0]: float(np.percentile(times, 99)),
        "count": len(times),
    }


def summary(
    folder: str, results: Dict[str, List[str]], times: List[float], images: float, **more: Any
) -> Dict[str, Any]:
    """The content of a _summary.json.

    results: {path of an input: names of its results in `folder`}; times: ms of each batch.
    images: how many a batch had on average; what only fills up the last batch does not count.
    """
    compute = figures(times or [0.0])
    rows: Dict[int, Dict[str, List[str]]] = {}
    for path, names in results.items():
        outfiles = [os.path.join(folder, name) for name in names]
        rows[len(rows)] = {"infiles": [path], "outfiles": outfiles}
    return {
        "filesinfo": rows,
        "NPU_compute_time": compute,
        "throughput": 1000 * images / compute["mean"] if compute["mean"] else 0.0,
        "npu_compute_time_list": times,
        "pid": os.getpid(),
        **more,
    }


# ---- several devices at once ---------------------------------------------------------------------


def read_together(log: str) -> Together:
    """Read what ais_bench printed about a run on several devices at once.

    Raises: ValueError if the log does not say it.
    """
    with open(log, encoding="utf-8", errors="replace") as file:
        rows = THROUGHPUT.findall(file.read())
    if not rows:
        raise ValueError("it names no throughput of a device")
    throughputs = {int(device): float(throughput) for device, throughput, _, _ in rows}
    begun = [float(row[2]) for row in rows]
    ended = [float(row[3]) for row in rows]
    all_at_work = max(0.0, min(ended) - max(begun))
    any_at_work = max(max(ended) - min(begun), 1e-9)
    return Together(throughputs, all_at_work / any_at_work)
