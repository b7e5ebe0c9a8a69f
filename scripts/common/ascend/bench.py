"""ais_bench, whichever of its generations is installed: how it is spelled, started, and what it says.

Three are known. 0.0.2 and later ones write option words with an underscore, the newest with a hyphen; the newest also
calls the percentile P99. So both are found out: the spelling from its --help, the key from the summary itself.
"""

import functools
import os
import re
import subprocess
from typing import Any, Dict, List, Sequence, Tuple

from common.core import json_file
from common.core.cli import Refusal, why

BENCH = ("python3", "-m", "ais_bench")  # in the host's own Python
HELP_TIMEOUT = 120.0  # s; it imports the runtime of the card first
PERCENTILES = ("percentile(99%)", "P99")
FRAME = "│┃╭╮╰╯─━┏┓┗┛╒╕╘╛═╞╡╤╧╪ "
THROUGHPUT = re.compile(
    r"device_(\d+) throughput:([0-9.e+-]+)\s+start_time:([0-9.e+-]+)\s+end_time:([0-9.e+-]+)"
)


@functools.lru_cache(maxsize=None)
def spelling() -> str:
    """What joins the parts of an option word of the ais_bench that is installed: "_" or "-". Raises: Refusal."""
    # The newest fits its help to the terminal and cuts long words in a narrow one; on some it puts colours into them.
    wide = dict(os.environ, COLUMNS="200", NO_COLOR="1", TERM="dumb")
    try:
        done = subprocess.run(
            [*BENCH, "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=HELP_TIMEOUT,
            env=wide,
        )
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout.decode(errors="replace"))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refusal(
            f"ais_bench cannot be started: {why(error)}; see: python3 -m ais_bench --help"
        ) from None
    for joint in ("-", "_"):  # the newest still writes underscores in its examples
        if f"--output{joint}dirname" in said:
            return joint
    raise Refusal(
        f"`python3 -m ais_bench --help` should name --output_dirname or --output-dirname, but says "
        f"{last_words(said.splitlines())!a}; install the ais_bench of Ascend's tools"
    )


def command(model: str, joint: str = "_", **options: Any) -> List[str]:
    """The words that start ais_bench; options that are None are left out. joint: spelling().

    With `input` each value is a word of its own, pure inference has "=": as its users have them in their notes.
    """
    words = [
        (f"--{name.replace('_', joint)}", str(value))
        for name, value in [("model", model), *options.items()]
        if value is not None
    ]
    spelled = (
        [word for pair in words for word in pair]
        if "input" in options
        else list(map("=".join, words))
    )
    return [*BENCH, *spelled]


# ---- what it says ----------------------------------------------------------------------------------------------------


def last_words(lines: List[str]) -> str:
    """Why a program ended, from the lines it said: the first [ERROR], what a box titled Error holds, the last line."""
    lines = [line.split("\r")[-1].strip() for line in lines]
    errors = [line for line in lines if "[ERROR]" in line]
    if errors:
        return errors[0][errors[0].index("[ERROR]") :][:300]
    titles = [place for place, line in enumerate(lines) if re.match(r"[╭┏]\W*Error\b", line)]
    if titles:
        boxed = [
            line.strip(FRAME) for line in lines[titles[-1] + 1 :] if line.startswith(("│", "┃"))
        ]
        return " ".join(filter(None, boxed))[:300]
    plain = [line for line in lines if line.strip(FRAME)]
    return plain[-1][:300] if plain else "nothing"


def complaint(log: str) -> str:
    """last_words() of a log file."""
    with open(log, encoding="utf-8", errors="replace") as file:
        return last_words(file.read().splitlines())


def read_summary(path: str) -> Dict[str, Any]:
    """A _summary.json, the same for each generation: throughput (images/s), mean, p99, times (ms), count.

    Raises: Refusal, ValueError, KeyError, TypeError if it is not there or is none.
    """
    summary = json_file.load(path)
    times = summary["NPU_compute_time"]
    key = next((key for key in PERCENTILES if key in times), PERCENTILES[0])
    return {
        "throughput": float(summary["throughput"]),
        "mean": float(times["mean"]),
        "p99": float(times[key]),
        "count": int(times["count"]),
        "times": [float(time) for time in summary.get("npu_compute_time_list", [])],
    }


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
    folder: str, results: Dict[str, List[str]], times: List[float], batch_size: float, **more: Any
) -> Dict[str, Any]:
    """A _summary.json: results in `folder`, {input's path: names}, and the milliseconds that each batch took."""
    compute = figures(times or [0.0])
    return {
        "filesinfo": {
            place: {"infiles": [path], "outfiles": [os.path.join(folder, name) for name in names]}
            for place, (path, names) in enumerate(results.items())
        },
        "NPU_compute_time": compute,
        "throughput": 1000 * batch_size / compute["mean"] if compute["mean"] else 0.0,
        "npu_compute_time_list": times,
        "pid": os.getpid(),
        **more,
    }


# ---- several devices at once -----------------------------------------------------------------------------------------


def read_together(log: str) -> Tuple[Dict[int, float], float]:
    """({device: images/s}, overlap) of a run on several devices at once, from what it said.

    overlap: the time in which all of them were at work, as a share of the time in which any was.
    Raises: ValueError if the log does not say it.
    """
    with open(log, encoding="utf-8", errors="replace") as file:
        rows = [tuple(map(float, row)) for row in THROUGHPUT.findall(file.read())]
    if not rows:
        raise ValueError("no throughput of a device is in it")
    begun, ended = [row[2] for row in rows], [row[3] for row in rows]
    return (
        {int(device): throughput for device, throughput, _, _ in rows},
        max(0.0, min(ended) - max(begun)) / max(max(ended) - min(begun), 1e-9),
    )
