"""The command line of ais_bench's three generations: what each takes, what it refuses and how.

0.0.2     underscores, switches with a value, no checks of paths; a traceback
later     underscores, switches with a value, checks of paths; a traceback, or argparse's message:
          the vendor's last one (still called 0.0.2, 2025-12)
fork      hyphens, bare switches, checks of paths; a box drawn with lines: somebody's own (0.1.0)
"""

import argparse
import math
import os
import re
import stat
import sys
import traceback
from types import TracebackType
from typing import Any, List, NoReturn, Optional, Type

GENERATION = os.environ.get("STANDIN_AIS_BENCH", "later")
STRICT, FORK = GENERATION != "0.0.2", GENERATION == "fork"
COLUMNS = int(os.environ.get("COLUMNS", "80"))  # the fork fits its boxes to the terminal


def fail(sentence: str) -> NoReturn:
    """End as ais_bench ends: the reason in a line of the log, then a bare RuntimeError."""
    print(f"[ERROR] {sentence}", flush=True)
    raise RuntimeError()


# ---- boxes ---------------------------------------------------------------------------------------


def box(title: str, lines: List[str]) -> str:
    """Lines in a frame, folded at its width."""
    inner = COLUMNS - 4
    folded: List[str] = []
    for line in lines:
        starts = range(0, max(len(line), 1), inner)
        folded += [line[start : start + inner] for start in starts]
    return "\n".join(
        [
            f"╭─ {title} ".ljust(COLUMNS - 1, "─") + "╮",
            *(f"│ {line:<{inner}} │" for line in folded),
            "╰" + "─" * (COLUMNS - 2) + "╯",
        ]
    )


def boxed_traceback(
    kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]
) -> None:
    """sys.excepthook of the fork."""
    lines = "".join(traceback.format_tb(trace)).splitlines()
    print(box("Traceback (most recent call last)", lines), file=sys.stderr)
    print(f"{kind.__name__}: {error}" if str(error) else kind.__name__, file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """argparse, with the fork's form of help and of wrong usage."""

    def error(self, message: str) -> NoReturn:
        if not FORK:
            super().error(message)
        unknown = re.sub(r"unrecognized arguments: ([^ =]+).*", r"No such option: \1", message)
        print(
            f"Usage: python -m ais_bench [OPTIONS]\nTry 'python -m ais_bench --help' for help.\n"
            f"{box('Error', [unknown])}",
            file=sys.stderr,
        )
        sys.exit(2)

    def format_help(self) -> str:
        if not FORK:
            return super().format_help()
        name = max(12, (COLUMNS - 40) // 3)  # too narrow a terminal cuts the names of the options
        names = [action.option_strings[0] for action in self._actions]
        rows = [
            (word if len(word) <= name else word[: name - 1] + "…").ljust(name) + "  <str>"
            for word in names
        ]
        rows.append("such as --output_dirname tmp")  # its examples still have underscores
        return f"\n Usage: python -m ais_bench [OPTIONS]\n\n{box('Options', rows)}\n"


# ---- values --------------------------------------------------------------------------------------


def whole_number(lowest: int, highest: float = math.inf) -> Any:
    """argparse type: an integer in a range; the later versions take plain digits only."""

    def check(text: str) -> int:
        if STRICT and not re.fullmatch("[0-9]+", text):
            raise argparse.ArgumentTypeError(f"{text} is not made of digits")
        number = int(text)
        if not lowest <= number <= highest:
            raise argparse.ArgumentTypeError(f"{text} is out of range")
        return number

    return check


def devices(text: str) -> List[int]:
    """argparse type: one device, or several joined by commas."""
    return [whole_number(0, 255)(word) for word in text.split(",")]


def true_or_false(text: str) -> bool:
    """argparse type of the switches that need a value."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(
        "Boolean value expected true, 1, false, 0 with case insensitive."
    )


def check_path(path: str, writing: bool) -> None:
    """Refuse what the later versions refuse of a path that is read or written (and exists)."""
    path = os.path.abspath(path)
    if (
        re.search("[^_A-Za-z0-9/.-]", path)
        or len(path) > 4096
        or any(len(name) > 255 for name in path.split("/"))
    ):
        raise PermissionError(f"path {path} has a character that is not allowed, or is too long")
    if os.path.islink(path):
        raise PermissionError(f"path {path} is a symbolic link")
    if not os.path.exists(path):
        if writing:
            return
        raise FileNotFoundError(f"path {path} does not exist")
    state = os.stat(path)
    if state.st_uid != os.geteuid() and state.st_gid not in os.getgroups() + [os.getegid()]:
        raise PermissionError(f"path {path} is not owned by the user or one of their groups")
    excess = stat.S_IMODE(state.st_mode) & (0o027 if writing else 0o022)
    if excess:
        raise PermissionError(
            f"permission {oct(stat.S_IMODE(state.st_mode))} of path {path} is too open"
        )
    if not os.access(path, os.W_OK if writing else os.R_OK):
        raise PermissionError(f"no permission to {'write' if writing else 'read'} path {path}")


def legal_path(kind: str) -> Any:
    """argparse type of --model, --input, --output and --output_dirname.

    The path is checked as seen from the current folder.
    """

    def check(text: str) -> str:
        if STRICT:
            try:
                for path in text.split(",") if kind == "input" else [text]:
                    check_path(path, writing=kind == "output")
            except OSError as error:
                print(f"[ERROR] {error}", flush=True)
                wrong(f"{kind} path:{text} is illegal. Please check.")
            if kind == "om" and (not text.endswith(".om") or not os.path.isfile(text)):
                wrong(f"om path:{text} is illegal. Please check.")
        return text

    def wrong(sentence: str) -> NoReturn:
        if FORK:  # its checks are not the parser's own: they end in a traceback
            raise RuntimeError(sentence)
        raise argparse.ArgumentTypeError(sentence)

    return check


# ---- the command line ----------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = Parser(prog="ais_bench", allow_abbrev=not FORK)

    def add(name: str, *more: str, **options: Any) -> None:
        spelled = name.replace("_", "-") if FORK else name
        parser.add_argument(spelled, *more, dest=name[2:], **options)

    add("--model", "-m", required=True, type=legal_path("om"))
    add("--input", "-i", type=legal_path("input"))
    add("--output", "-o", type=legal_path("output"))
    add("--output_dirname", type=legal_path("output"))
    add("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    add("--loop", "-l", type=whole_number(1), default=1)
    add("--device", "-d", type=devices, default=[0])
    add("--batchsize", type=whole_number(1))
    add("--pure_data_type", default="zero", choices=["zero", "random"])
    add("--warmup_count", type=whole_number(0), default=1)
    for switch in ("--debug", "--display_all_summary", *(["--divide_input"] if STRICT else [])):
        if FORK:
            add(switch, action="store_true")
        else:
            add(switch, type=true_or_false, default=False)
    arguments = parser.parse_args()
    if STRICT and arguments.output_dirname and arguments.output_dirname[0] == "/":
        raise ValueError("--output_dirname do not support abs path!")
    if arguments.output_dirname and not arguments.output:
        print("[ERROR] parameter --output_dirname needs the parameter --output", flush=True)
        raise RuntimeError("error bad parameters --output_dirname")
    return arguments
