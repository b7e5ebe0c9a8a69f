"""Which Ascend chips this host has, and what they are called.

npu-smi prints one table of chips, two lines for each. After it often comes one of processes, which
looks much the same; only the first is read. Where that table gives a name that several chips share,
`npu-smi info -t board` is asked for the rest of it.
Standard library only: it must run in a bare host Python.
"""

import functools
import os
import re
import subprocess
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from common.core.cli import Refusal, why

TIMEOUT = 30.0  # s; npu-smi answers within a few, but waits for ever if the driver hangs
# | NPU, name | health | power, …    On a 950 there is a line between NPU and name.
NAME_LINE = re.compile(r"\|\s*(\d+)(?:\s*\|\s*|\s+)([A-Za-z0-9_-]+)\s*\|\s*(\S+)\s*\|.*\|$")
# | chip, device | bus id | …        A 950 has no chip number, a 310B no bus id (NA).
BUS_LINE = re.compile(
    r"\|\s*(\d*)(?:\s+\d+)?\s*\|(?:\s*\|)?\s*([0-9A-Fa-f]+:[0-9A-Fa-f:.]+|NA)\s*\|.*\|$"
)
BOARD_LINE = re.compile(r"^\s*(Chip Name|NPU Name)\s*:\s*([A-Za-z0-9_-]+)\s*$", re.MULTILINE)
NOTHING = ("NA", "-", "N")  # what npu-smi writes where it has no value
# Names that several chips share, and what atc calls these. atc takes Ascend910 for Ascend910A, the
# first generation, and the card refuses the model only when it is loaded.
SHARED_NAMES: Dict[str, Tuple[str, ...]] = {
    "910": (
        "Ascend910_9391",
        "Ascend910_9392",
        "Ascend910_9381",
        "Ascend910_9382",
        "Ascend910_9372",
        "Ascend910_9362",
        "Ascend910A for the first generation",
    ),
    "950": ("Ascend950PR_9579", "Ascend950PR_9589", "Ascend950PR_9599"),
    "950PR": ("Ascend950PR_9579", "Ascend950PR_9589", "Ascend950PR_9599"),
    "950DT": ("Ascend950DT_950x",),
}
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"  # an environment variable: devices that CANN's runtime shows


class Chip(NamedTuple):
    """A chip as npu-smi describes it; its device id is its place in the list of all."""

    npu: int  # the number of its card
    chip: int  # its number on the card
    name: str  # such as 310P3
    health: str
    bus_id: str  # NA if it has none
    soc: str = ""  # what atc calls it, such as Ascend310P3; "" if npu-smi does not say it


class Choice(NamedTuple):
    """The devices of a run, and what their chip is called."""

    devices: List[int]
    name: str  # as npu-smi writes it
    soc: str  # as atc calls it; "" if npu-smi does not say it


class ChipProblem(Refusal):
    """Why there is no chip to take: what was found, and what to do about it."""

    def __init__(self, code: str, fact: str, action: str = "", instead: str = "") -> None:
        """instead: what helps without the action."""
        actions = ", or ".join(filter(None, [action, instead]))
        super().__init__(f"{fact}; {actions}" if actions else fact)
        self.code, self.fact, self.action = code, fact, action


ABSENT = "absent"  # codes of problems: there is no npu-smi
UNANSWERED = "npu-smi"  # it fails
UNREADABLE = "unreadable"  # it answers, but not which chips there are
UNNAMED = "unnamed"  # it does not say what atc calls the chip
HIDDEN = "hidden"  # an environment variable shows none of the chips
KINDS = "kinds"  # there are chips of different kinds, and none was chosen
BEYOND = "beyond"  # a chip was chosen that is not there
TO_CHOOSE = (KINDS, UNNAMED, HIDDEN)  # problems that the user solves: chips are there


# ---- what npu-smi prints -------------------------------------------------------------------------


def chip_lines(output: str) -> Iterator[Tuple[int, str]]:
    """The lines about chips in the output of `npu-smi info`, with their numbers."""
    in_table = False
    for number, line in enumerate(map(str.strip, output.splitlines()), start=1):
        if not line.startswith("|"):
            continue
        if re.search(r"\bName\b.*\bHealth\b", line):
            in_table = True
        elif re.search("process|npu-smi", line, re.IGNORECASE):  # the other table, or the versions
            in_table = False
        if in_table and not re.search(r"\b(Name|Bus-Id)\b", line):
            yield number, line


def parse_npu_smi(output: str) -> List[Chip]:
    """The chips in the output of `npu-smi info`, in the order of their device ids, without soc.

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
            chips.append(Chip(int(npu), int(match.group(1) or 0), name, health, match.group(2)))
        first = None if first else match
    if first:
        raise ValueError("the table ends in the middle of a chip")
    return chips


def board_soc(output: str) -> str:
    """What atc calls the chip that `npu-smi info -t board` describes, "" if it does not say it.

    Source: CANN's guides. Chip Name 910B4 alone is Ascend910B4; Chip Name Ascend910 with NPU Name
    9391 is Ascend910_9391.
    """
    names = {key: name for key, name in BOARD_LINE.findall(output) if name not in NOTHING}
    chip, npu = names.get("Chip Name", ""), names.get("NPU Name", "")
    if not chip:
        return ""
    if is_shared(chip):
        return f"{soc_version(chip)}_{npu}" if npu else ""
    return soc_version(chip)


def is_shared(name: str) -> bool:
    """Whether several chips have this name."""
    return re.sub("^Ascend", "", name) in SHARED_NAMES


def soc_version(name: str) -> str:
    """atc's form of a chip's name: "310P3" gives "Ascend310P3"; "Ascend910_9391" stays."""
    return name if name.startswith("Ascend") else "Ascend" + name


def ask(words: Sequence[str], timeout: float) -> str:
    """What npu-smi prints. Raises: OSError, subprocess.SubprocessError."""
    output = subprocess.check_output(
        ["npu-smi", *words], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT, timeout=timeout
    )
    return output.decode(errors="replace")


def ask_board(chip: Chip, timeout: float) -> str:
    """What atc calls a chip whose name is shared, "" if npu-smi does not say it."""
    question = ["info", "-t", "board", "-i", str(chip.npu)]
    for words in ([*question, "-c", str(chip.chip)], question):  # a 950 has no chip number
        try:
            soc = board_soc(ask(words, timeout))
        except (OSError, subprocess.SubprocessError):
            continue
        if soc:
            return soc
    return ""


def with_soc(chips: List[Chip], timeout: float) -> List[Chip]:
    """The chips with what atc calls them.

    A board is asked once for each shared name: one server has one kind of card under it, as the
    vendor's guides say too.
    """
    known: Dict[str, str] = {}
    for chip in chips:
        if chip.name not in known:
            shared = is_shared(chip.name)
            known[chip.name] = ask_board(chip, timeout) if shared else soc_version(chip.name)
    return [chip._replace(soc=known[chip.name]) for chip in chips]


# ---- which chips there are -----------------------------------------------------------------------


def visible_ids(count: int) -> List[int]:
    """The ids, among `count` devices, of those that CANN's runtime shows: it numbers them from 0.

    As the vendor describes the variable VISIBLE, ids are joined by commas, and what comes after a
    word that is not the id of a device does not count.
    """
    if not os.environ.get(VISIBLE):
        return list(range(count))
    ids: List[int] = []
    for word in os.environ[VISIBLE].split(","):
        if not re.fullmatch("[0-9]{1,5}", word) or int(word) >= count:
            break
        if int(word) not in ids:
            ids.append(int(word))
    return ids


@functools.lru_cache(maxsize=None)
def find_all_chips(timeout: float = TIMEOUT) -> List[Chip]:
    """The chips that npu-smi lists, at least one. Raises: ChipProblem, also after `timeout` s."""
    code = UNREADABLE
    try:
        chips = parse_npu_smi(ask(["info"], timeout))
        if chips:
            return with_soc(chips, timeout)
        problem = "the output of npu-smi info names no NPU"
        action = "check that the card is seated and visible here (lspci, container options)"
    except subprocess.CalledProcessError as error:
        words = " ".join(error.output.decode(errors="replace").split())[:200] or "nothing"
        code = UNANSWERED
        problem = f"npu-smi info failed with status {error.returncode} and said {words!a}"
        action = "check that the driver is loaded and that you may use the card"
    except FileNotFoundError:
        code = ABSENT
        problem = "there is no npu-smi on the PATH"
        action = "install the Ascend driver, or set it up"
    except OSError as error:
        code = UNANSWERED
        problem = f"npu-smi cannot be started ({why(error)})"
        action = "fix the driver's installation"
    except subprocess.TimeoutExpired:
        code = UNANSWERED
        problem = f"npu-smi info gave no answer within {timeout:g} s"
        action = "check the driver (dmesg)"
    except ValueError as error:
        problem = f"cannot parse the output of npu-smi info: {error}"
        action = "report it with that output"
    raise ChipProblem(code, problem, action, "name the chip yourself (--soc-version)")


def find_chips(timeout: float = TIMEOUT) -> List[Chip]:
    """The chips that CANN's runtime shows here, at least one, in the order of their device ids.

    Raises: ChipProblem, also after `timeout` s.
    """
    chips = find_all_chips(timeout)
    shown = [chips[number] for number in visible_ids(len(chips))]
    if not shown:
        raise ChipProblem(
            HIDDEN,
            f"{VISIBLE}={os.environ.get(VISIBLE, '')!a} shows none of the chips that npu-smi "
            f"lists, which are numbered 0 to {len(chips) - 1}",
            f"correct it, or unset {VISIBLE}",
        )
    return shown


def renumbered(devices: Sequence[int]) -> str:
    """What npu-smi calls these devices, in words; "" if it gives them the same numbers."""
    try:
        ids = visible_ids(len(find_all_chips()))
    except ChipProblem:  # the chip was named
        return ""
    theirs = [ids[device] for device in devices]
    if theirs == list(devices):
        return ""
    return f"npu-smi's {','.join(map(str, theirs))}: {VISIBLE}={os.environ.get(VISIBLE, '')}"


# ---- which of them a run takes -------------------------------------------------------------------


def the_chip(chips: List[Chip], devices: Sequence[int] = ()) -> Chip:
    """The first of the chips with these device ids (none: of all), which are of one kind.

    Raises: ChipProblem if they are of different kinds.
    """
    chosen = list(devices or range(len(chips)))
    first = {chips[device].name: device for device in reversed(chosen)}
    names = sorted(first)
    if len(names) > 1:
        choices = " or ".join(f"--device {first[name]} ({name})" for name in names)
        raise ChipProblem(
            KINDS,
            f"this machine has chips of different kinds ({', '.join(names)}), "
            f"and a model is compiled for one: choose it by {choices}, or by "
            f"--soc-version {soc_version(names[0])}",
        )
    return chips[chosen[0]]


def check_shared(chips: List[Chip], soc: str) -> None:
    """Refuse a soc version that is only the name that the chips share."""
    for chip in chips:
        if not is_shared(chip.name) or soc_version(chip.name) != soc:
            continue
        if not chip.soc:
            raise ChipProblem(
                UNNAMED,
                f"{soc} is what npu-smi calls several chips, and atc takes it for one of them",
                f"say which one it is: --soc-version ({likely_names(chip.name)})",
            )
        raise ChipProblem(
            UNNAMED,
            f"for atc {soc} is not the chip of this machine, which is {chip.soc}",
            f"give --soc-version {chip.soc}, or leave it out",
        )


def choose_devices(wanted: Optional[List[int]], soc: str = "") -> Choice:
    """The devices of a run, and the name of their chip.

    wanted: devices that the user asks for (None: one, []: all); soc: a soc version ("": any).
    Without npu-smi a named chip is believed.
    Raises: ChipProblem if there are no such devices, or if they are of different kinds.
    """
    try:
        chips = find_chips()
    except ChipProblem as problem:
        if wanted == []:  # only npu-smi knows how many these are
            instead = "name devices and chip yourself (--device 0,1 --soc-version NAME)"
            raise ChipProblem(str(problem.code), problem.fact, problem.action, instead) from None
        if not soc or problem.code == HIDDEN:
            raise
        return Choice(wanted or [0], re.sub("^Ascend", "", soc), soc)
    beyond = [device for device in wanted or [] if device >= len(chips)]
    if beyond:
        note = renumbered(range(len(chips)))
        raise ChipProblem(
            BEYOND,
            f"--device {beyond[0]} was asked for, but there are {len(chips)}, numbered from 0"
            + (f" ({note})" if note else ""),
        )
    if soc and is_shared(soc):
        check_shared(chips, soc)
    every = range(len(chips))
    fitting = [device for device in every if soc in ("", chips[device].soc)]
    # names of one chip differ between npu-smi and atc: if none fits, the user knows
    among = wanted or fitting or list(every)
    if wanted is None or not soc:
        chip = the_chip(chips, among)
    else:
        chip = chips[among[0]]
    return Choice(among[:1] if wanted is None else among, chip.name, soc or chip.soc)


def likely_names(name: str) -> str:
    """What atc may call a chip whose name is shared."""
    return ", ".join(SHARED_NAMES[re.sub("^Ascend", "", name)])


def named(name: str, soc: str) -> str:
    """The soc version of a chip that npu-smi calls `name`.

    Raises: ChipProblem if npu-smi does not say it (soc is "").
    """
    if soc:
        return soc
    raise ChipProblem(
        UNNAMED,
        f"npu-smi calls the chip {name}, which several chips share, and `npu-smi info -t board` "
        "does not say which one it is",
        f"name it by --soc-version ({likely_names(name)})",
    )
