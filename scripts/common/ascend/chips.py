"""Which Ascend chips this host has, and what they are called.

npu-smi prints one table of chips, two lines for each, and after it (not always) one of processes, which looks much the
same; only the first is read. Standard library only: it must run in a bare host Python.
"""

import functools
import re
import subprocess
from typing import Any, Dict, List, Optional, Sequence, Tuple

from common.core.cli import Refusal, why

TIMEOUT = 30.0  # s; npu-smi answers within a few, but waits for ever if the driver hangs
NAME_LINE = re.compile(
    r"\|\s*(\d+)\s+([A-Za-z0-9_-]+)\s*\|\s*(\S+)\s*\|.*\|$"
)  # NPU, name | health | power, ...
BUS_LINE = re.compile(
    r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*([0-9A-Fa-f]+:[0-9A-Fa-f:.]+)\s*\|.*\|$"
)  # chip | bus id


class ChipProblem(Refusal):
    """Why there is no chip to take: what was found, and what to do about it."""

    def __init__(self, code: str, fact: str, action: str = "") -> None:
        super().__init__(f"{fact}; {action}" if action else fact)
        self.code, self.fact = code, fact


UNANSWERED = "npu-smi"  # codes of problems: npu-smi does not say which chips there are
KINDS = "kinds"  # there are chips of different kinds, and none was chosen
BEYOND = "beyond"  # a chip was chosen that is not there


def parse_npu_smi(answer: str) -> List[Dict[str, Any]]:
    """The chips in the output of `npu-smi info`, in the order of device ids: npu, chip, name, health, bus_id.

    Raises: ValueError if the table of chips is not as expected.
    """
    chips: List[Dict[str, Any]] = []
    in_table = False
    for number, line in enumerate(map(str.strip, answer.splitlines()), start=1):
        if not line.startswith("|"):
            continue
        if re.search(r"\bName\b.*\bHealth\b", line):
            in_table = True
        elif (
            "Process" in line or "npu-smi" in line
        ):  # the second table, or the line of versions above the first
            in_table = False
        if not in_table or re.search(r"\b(Name|Bus-Id)\b", line):
            continue
        name, bus = NAME_LINE.match(line), BUS_LINE.match(line)
        begun = bool(chips) and "bus_id" not in chips[-1]
        if bus and begun:
            chips[-1].update(chip=int(bus.group(1)), bus_id=bus.group(2))
        elif name and not begun:
            chips.append(
                {"npu": int(name.group(1)), "name": name.group(2), "health": name.group(3)}
            )
        else:
            raise ValueError(f"line {number} of its table is {line!a}")
    if chips and "bus_id" not in chips[-1]:
        raise ValueError("its table ends in the middle of a chip")
    return chips


@functools.lru_cache(maxsize=None)
def find_chips(timeout: float = TIMEOUT) -> List[Dict[str, Any]]:
    """The chips of this machine, at least one (see parse_npu_smi).

    Raises: ChipProblem, also after `timeout` s.
    """
    try:
        answer = subprocess.check_output(
            ["npu-smi", "info"], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=timeout
        )
        chips = parse_npu_smi(answer.decode(errors="replace"))
        if chips:
            return chips
        problem = "the answer of npu-smi info names no NPU"
        action = "check that the card is seated and visible here (lspci, container options)"
    except subprocess.CalledProcessError as error:
        said = " ".join(error.output.decode(errors="replace").split())[:200] or "nothing"
        problem = f"npu-smi info failed with status {error.returncode} and said {said!a}"
        action = "check that the driver is loaded and that you may use the card"
    except FileNotFoundError:
        problem = "there is no npu-smi on the PATH"
        action = "install the Ascend driver, or set it up"
    except OSError as error:
        problem = f"npu-smi cannot be started ({why(error)})"
        action = "mend the driver's installation"
    except subprocess.TimeoutExpired:
        problem = f"npu-smi info gave no answer within {timeout:g} s"
        action = "check the driver (dmesg)"
    except ValueError as error:
        problem, action = f"the answer of npu-smi info cannot be read: {error}", "report it"
    raise ChipProblem(UNANSWERED, problem, f"{action}, or name the chip yourself (--soc-version)")


def the_chip(chips: List[Dict[str, Any]], devices: Sequence[int] = ()) -> str:
    """The name, as npu-smi writes it, of the chips with these numbers (none: of all).

    Raises: ChipProblem if they are of different kinds.
    """
    first = {chips[device]["name"]: device for device in reversed(devices or range(len(chips)))}
    names = sorted(first)
    if len(names) > 1:
        which = " or ".join(f"--device {first[name]} ({name})" for name in names)
        raise ChipProblem(
            KINDS,
            f"this machine has chips of different kinds ({', '.join(names)}), "
            f"and a model is compiled for one: choose it by {which}, or by "
            f"--soc-version {soc_version(names[0])}",
        )
    return names[0]


def choose_devices(wanted: Optional[List[int]], soc: str = "") -> Tuple[List[int], str]:
    """(devices, their chip's name) for a run that asks for `wanted` (None: one, []: all) and a soc version ("": any).

    Raises: ChipProblem if there are none such, or if they are of different kinds.
    Without npu-smi a named chip is believed.
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
    fitting = [
        device for device, chip in enumerate(chips) if soc in ("", soc_version(chip["name"]))
    ]
    if soc and not fitting:  # names of one chip differ between npu-smi and atc: the user knows
        fitting = list(range(len(chips)))
    among = wanted or fitting
    name = the_chip(chips, among) if wanted is None or not soc else str(chips[among[0]]["name"])
    return (among[:1] if wanted is None else among), name


def soc_version(name: str) -> str:
    """atc's --soc_version of a chip: "310P3" gives "Ascend310P3"; "Ascend910" stays."""
    return name if name.startswith("Ascend") else "Ascend" + name
