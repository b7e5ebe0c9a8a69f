#!/usr/bin/env python3
"""Which Ascend chips this machine has, read from `npu-smi info`.

    python3 scripts/npu_info.py                  # 310P3
    python3 scripts/npu_info.py --soc-version    # Ascend310P3, what atc wants
    python3 scripts/npu_info.py --json           # [{"npu": 0, "chip": 0, "name": "310P3", "health": "OK", ...}]

Standard library only: it must run in the host's own Python. npu-smi prints one table of chips, two lines for each, and
after it (not always) one of processes, which looks much the same; only the first is read.
"""
import argparse
import json
import re
import subprocess
import sys
from typing import Any, Dict, List

OR_NAME_IT = "or name the chip yourself (--soc-version)"
TIMEOUT = 30.0  # s; npu-smi answers within a few, but waits for ever if the driver hangs
NAME_LINE = re.compile(r"\|\s*(\d+)\s+([A-Za-z0-9_-]+)\s*\|\s*(\S+)\s*\|.*\|$")  # NPU, name | health | power, ...
BUS_LINE = re.compile(r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*([0-9A-Fa-f]+:[0-9A-Fa-f:.]+)\s*\|.*\|$")  # chip | bus id


def ask_npu_smi(timeout: float = TIMEOUT) -> str:
    """The output of `npu-smi info`.

    Raises: SystemExit with one sentence if it is missing, fails, or gives no answer within `timeout` seconds.
    """
    try:
        done = subprocess.run(["npu-smi", "info"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, timeout=timeout)
    except FileNotFoundError:
        raise SystemExit("npu_info.py: there is no npu-smi on the PATH, so this machine has no Ascend driver or it is "
                         f"not set up; install the driver, {OR_NAME_IT}") from None
    except OSError as error:
        raise SystemExit(f"npu_info.py: npu-smi cannot be started ({error.strerror}); mend the driver's installation, "
                         f"{OR_NAME_IT}") from None
    except subprocess.TimeoutExpired:
        raise SystemExit(f"npu_info.py: npu-smi info gave no answer within {timeout:g} s; check the driver (dmesg), "
                         f"{OR_NAME_IT}") from None
    answer = done.stdout.decode(errors="replace")
    if done.returncode:
        said = " ".join(answer.split())[:200] or "nothing"
        raise SystemExit(f"npu_info.py: npu-smi info failed with status {done.returncode} and said {said!a}; check "
                         f"that the driver is loaded and that you may use the card, {OR_NAME_IT}")
    return answer


def parse_npu_smi(answer: str) -> List[Dict[str, Any]]:
    """The chips in the output of `npu-smi info`, in the order of device ids: npu, chip, name, health, bus_id.

    Raises: ValueError if the table of chips is not as expected.
    """
    chips: List[Dict[str, Any]] = []
    in_table = False
    for number, line in enumerate(answer.splitlines(), start=1):
        line = line.strip()
        if not line.startswith("|"):
            continue
        if re.search(r"\bName\b.*\bHealth\b", line):
            in_table = True
        elif "Process" in line or "npu-smi" in line:  # the second table, or the line of versions above the first
            in_table = False
        if not in_table or re.search(r"\b(Name|Bus-Id)\b", line):
            continue
        name, bus = NAME_LINE.match(line), BUS_LINE.match(line)
        begun = bool(chips) and "bus_id" not in chips[-1]
        if bus and begun:
            chips[-1].update(chip=int(bus.group(1)), bus_id=bus.group(2))
        elif name and not begun:
            chips.append({"npu": int(name.group(1)), "name": name.group(2), "health": name.group(3)})
        else:
            raise ValueError(f"line {number} of its table is {line!a}")
    if chips and "bus_id" not in chips[-1]:
        raise ValueError("its table ends in the middle of a chip")
    return chips


def find_chips(timeout: float = TIMEOUT) -> List[Dict[str, Any]]:
    """The chips of this machine, at least one (see parse_npu_smi).

    Raises: SystemExit with one sentence.
    """
    answer = ask_npu_smi(timeout)
    try:
        chips = parse_npu_smi(answer)
    except ValueError as error:
        raise SystemExit(f"npu_info.py: the answer of npu-smi info cannot be read: {error}; report it, "
                         f"{OR_NAME_IT}") from None
    if not chips:
        raise SystemExit("npu_info.py: the answer of npu-smi info names no NPU; check that the card is seated and "
                         "visible here (lspci, container options), " + OR_NAME_IT)
    return chips


def the_chip(chips: List[Dict[str, Any]]) -> str:
    """The name that all chips share, as npu-smi writes it.

    Raises: SystemExit if they are of different kinds.
    """
    names = sorted({chip["name"] for chip in chips})
    if len(names) > 1:
        raise SystemExit(f"npu_info.py: this machine has chips of different kinds ({', '.join(names)}), and a model is "
                         f"compiled for one: choose it, for instance by --soc-version {soc_version(names[0])}")
    return names[0]


def soc_version(name: str) -> str:
    """atc's --soc_version of a chip: "310P3" gives "Ascend310P3"; "Ascend910" stays."""
    return name if name.startswith("Ascend") else "Ascend" + name


def main() -> None:
    parser = argparse.ArgumentParser(description="Name the Ascend chip of this machine, as npu-smi info does.")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--soc-version", action="store_true", help="print the name in atc's form, e.g. Ascend310P3")
    form.add_argument("--json", action="store_true", help="print all chips as JSON")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="S",
                        help="seconds to wait (default %(default)g)")
    arguments = parser.parse_args()
    chips = find_chips(arguments.timeout)
    if arguments.json:
        print(json.dumps(chips))
    else:
        name = the_chip(chips)
        print(soc_version(name) if arguments.soc_version else name)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("npu_info.py: interrupted", file=sys.stderr)
        sys.exit(130)
