"""Which Ascend chips this host has, and what they are called.

npu-smi prints one table of chips, two lines for each. After it often comes one of processes, which
looks much the same; only the first is read.
Standard library only: it must run in a bare host Python.
"""

import functools
import re
import subprocess
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

from common.core.cli import Refusal, why

TIMEOUT = 30.0  # s; npu-smi answers within a few, but waits for ever if the driver hangs
# | NPU, name | health | power, …
NAME_LINE = re.compile(r"\|\s*(\d+)\s+([A-Za-z0-9_-]+)\s*\|\s*(\S+)\s*\|.*\|$")
# | chip | bus id | …
BUS_LINE = re.compile(r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*([0-9A-Fa-f]+:[0-9A-Fa-f:.]+)\s*\|.*\|$")


class Chip(NamedTuple):
    """A chip as npu-smi describes it; its device id is its place in the list of all."""

    npu: int  # the number of its card
    chip: int  # its number on the card
    name: str  # such as 310P3
    health: str
    bus_id: str


class ChipProblem(Refusal):
    """Why there is no chip to take: what was found, and what to do about it."""

    def __init__(self, code: str, fact: str, action: str = "") -> None:
        super().__init__(f"{fact}; {action}" if action else fact)
        self.code, self.fact = code, fact


UNANSWERED = "npu-smi"  # codes of problems: npu-smi does not say which chips there are
KINDS = "kinds"  # there are chips of different kinds, and none was chosen
BEYOND = "beyond"  # a chip was chosen that is not there


def chip_lines(output: str) -> Iterator[Tuple[int, str]]:
    """The lines about chips in the output of `npu-smi info`, with their numbers."""
    in_table = False
    for number, line in enumerate(map(str.strip, output.splitlines()), start=1):
        if not line.startswith("|"):
            continue
        if re.search(r"\bName\b.*\bHealth\b", line):
            in_table = True
        elif "Process" in line or "npu-smi" in line:  # the other table, or the line of versions
            in_table = False
        if in_table and not re.search(r"\b(Name|Bus-Id)\b", line):
            yield number, line


def parse_npu_smi(output: str) -> List[Chip]:
    """The chips in the output of `npu-smi info`, in the order of their device ids.

    Raises: ValueError if the table of chips is not as expected.
    """
    chips: List[Chip] = []
    first = None  # of the two lines of a chip, if the second one comes next
    for number, line in chip_lines(output):
        match = (BUS_LINE if first else NAME_LINE).match(line)
        if not match:
            raise ValueError(f"line {number} is {line!a}")
        if first:
            npu, name, health = first.groups()
            chips.append(Chip(int(npu), int(match.group(1)), name, health, match.group(2)))
        first = None if first else match
    if first:
        raise ValueError("the table ends in the middle of a chip")
    return chips


@functools.lru_cache(maxsize=None)
def find_chips(timeout: float = TIMEOUT) -> List[Chip]:
    """The chips of this machine, at least one.

    Raises: ChipProblem, also after `timeout` s.
    """
    try:
        output = subprocess.check_output(
            ["npu-smi", "info"], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=timeout
        )
        chips = parse_npu_smi(output.decode(errors="replace"))
        if chips:
            return chips
        problem = "the output of npu-smi info names no NPU"
        action = "check that the card is seated and visible here (lspci, container options)"
    except subprocess.CalledProcessError as error:
        words = " ".join(error.output.decode(errors="replace").split())[:200] or "nothing"
        problem = f"npu-smi info failed with status {error.returncode} and said {words!a}"
        action = "check that the driver is loaded and that you may use the card"
    except FileNotFoundError:
        problem = "there is no npu-smi on the PATH"
        action = "install the Ascend driver, or set it up"
    except OSError as error:
        problem = f"npu-smi cannot be started ({why(error)})"
        action = "fix the driver's installation"
    except subprocess.TimeoutExpired:
        problem = f"npu-smi info gave no answer within {timeout:g} s"
        action = "check the driver (dmesg)"
    except ValueError as error:
        problem = f"cannot parse the output of npu-smi info: {error}"
        action = "report it with that output"
    raise ChipProblem(UNANSWERED, problem, f"{action}, or name the chip yourself (--soc-version)")


def the_chip(chips: List[Chip], devices: Sequence[int] = ()) -> str:
    """The name, as npu-smi writes it, of the chips with these device ids (none: of all).

    Raises: ChipProblem if they are of different kinds.
    """
    first = {chips[device].name: device for device in reversed(devices or range(len(chips)))}
    names = sorted(first)
    if len(names) > 1:
        choices = " or ".join(f"--device {first[name]} ({name})" for name in names)
        raise ChipProblem(
            KINDS,
            f"this machine has chips of different kinds ({', '.join(names)}), "
            f"and a model is compiled for one: choose it by {choices}, or by "
            f"--soc-version {soc_version(names[0])}",
        )
    return names[0]


def choose_devices(wanted: Optional[List[int]], soc: str = "") -> Tuple[List[int], str]:
    """(devices, the name of their chip) for a run.

    wanted: devices that the user asks for (None: one, []: all); soc: a soc version ("": any).
    Without npu-smi a named chip is believed.
    Raises: ChipProblem if there are no such devices, or if they are of different kinds.
    """
    try:
        chips = find_chips()
    except ChipProblem:
        if not soc or wanted == []:
            raise
        return wanted or [0], re.sub("^Ascend", "", soc)
    beyond = [device for device in wanted or [] if device >= len(chips)]
    if beyond:
        raise ChipProblem(
            BEYOND,
            f"--device {beyond[0]} was asked for, but there are {len(chips)}, numbered from 0",
        )
    every = range(len(chips))
    fitting = [device for device in every if soc in ("", soc_version(chips[device].name))]
    # names of one chip differ between npu-smi and atc: if none fits, the user knows
    among = wanted or fitting or list(every)
    if wanted is None or not soc:
        name = the_chip(chips, among)
    else:
        name = chips[among[0]].name
    return (among[:1] if wanted is None else among), name


def soc_version(name: str) -> str:
    """atc's --soc_version of a chip: "310P3" gives "Ascend310P3"; "Ascend910" stays."""
    return name if name.startswith("Ascend") else "Ascend" + name
