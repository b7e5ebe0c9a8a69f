"""How every program here begins, speaks and ends: refusals, signals, packages, names in messages.

Standard library only: it must run in a bare host Python. A program calls start() before it imports
what may be missing, and run() at its end.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from types import TracebackType
from typing import Any, Callable, Iterable, List, Optional, Type

VERSION = "1.2.0"
ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
GRACE = 1.2  # seconds that a process has after SIGTERM, before it is killed
USAGE, BELOW_MINIMUM = 2, 3  # exit statuses, beside 0 good, 1 failure, 128 + number of a signal


# The signals that ended this process. PyTorch 1.6, and modules whose import is interrupted, make another error of them,
# and then no file is damaged and no package missing.
SIGNALLED: List[int] = []
NAMED: List[str] = []  # the program, where its user typed another name than that of its file


class Refusal(SystemExit):
    """Ends the program with one sentence: what was expected, what was found, what to do.

    Status 1, or BELOW_MINIMUM for a figure below a given minimum. run() signs it with the program's name.
    """

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.sentence, self.status = sentence, status


def program() -> str:
    """The name of the program that runs, as its user typed it."""
    return NAMED[0] if NAMED else os.path.basename(sys.argv[0] or "python")


def say(sentence: str) -> None:
    """One line on stderr, signed."""
    try:
        print(f"{program()}: {sentence}", file=sys.stderr, flush=True)
    except BrokenPipeError:  # nobody reads it any more; the exit status still tells
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def shown(name: str) -> str:
    """A name for a message: as it is if that is plain, otherwise quoted, with escapes for what does not print."""
    plain = name.isprintable() and name and not re.search(r"[\s'\"`]", name)
    return name if plain else repr(name)


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 image", "2 images"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of the names in sorted order, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(map(shown, listed[:most])) + more


def counted(number: int, noun: str) -> str:
    """The number and its noun: 1 image, 20 images."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def why(error: BaseException) -> str:
    """What an error says, in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]


# ---- how a program begins and ends ---------------------------------------------------------------


def interrupt(number: int, _: Any) -> None:
    """SIGINT's handler, as Python's own, and it is noted."""
    SIGNALLED.append(number)
    raise KeyboardInterrupt


def start(name: str = "") -> None:
    """Make of an uncaught error or missing package one sentence; see to signals and streams.

    For programs alone, before they import what may be missing.
    name: what the program's user typed, if that is not the file's name.
    """
    if name:
        NAMED[:] = [name]
    sys.excepthook = end_uncaught
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)  # in the background it is ignored, and that stays
    for number, stream in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, stream) is None:
            # Closed (`>&-`): the next file that is opened would get its number, and its output.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, stream, open(number, "w" if number else "r", encoding="utf-8"))


def parser(doc: Optional[str], **options: Any) -> argparse.ArgumentParser:
    """An argument parser whose --help begins with the program's docstring."""
    return argparse.ArgumentParser(
        prog=program(),
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )


def run(main: Callable[[], Optional[int]], interrupted: str = "nothing was written") -> None:
    """Run main() as a program: exits with its status, or with one sentence and the status that fits.

    interrupted: what to say after Ctrl-C of what there is now. SIGTERM and SIGHUP end it likewise, silently.
    """

    def terminate(number: int, _: Any) -> None:
        SIGNALLED.append(number)
        raise SystemExit(128 + number)

    start()
    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup has it ignored, and that stays
        signal.signal(signal.SIGHUP, terminate)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        try:
            status: Any = main()
            sys.stdout.flush()
        except (Exception, Refusal):
            if SIGNALLED:  # that is the reason
                raise (
                    KeyboardInterrupt
                    if SIGNALLED[0] == signal.SIGINT
                    else SystemExit(128 + SIGNALLED[0])
                ) from None
            raise
    except Refusal as refusal:
        say(refusal.sentence)
        status = refusal.status
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        say(f"interrupted; {interrupted}")
        status = 130
    except BrokenPipeError:  # the reader of our output has gone: `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 141
    except OSError as error:
        name = (
            f"{shown(os.fsdecode(error.filename))}: "
            if isinstance(error.filename, (str, bytes))
            else ""
        )
        say(f"{name}{why(error)}; put that right and run the same command again")
        status = 1
    finally:
        signal.signal(
            signal.SIGTERM, signal.SIG_DFL
        )  # Python's own end cannot be interrupted cleanly
    sys.exit(status)


def missing_package(package: str) -> str:
    """The sentence for a package that this Python lacks: which, and the command that gives it."""
    ready = os.path.join(ROOT, ".venv", "bin", "activate")
    mend = (
        f"source {shown(os.path.relpath(ready))}"
        if os.path.exists(ready)
        else f"python3 {shown(os.path.relpath(os.path.join(ROOT, 'scripts', 'setup_env.py')))} && "
        f"source {shown(os.path.relpath(ready))}"
    )
    package = {"PIL": "Pillow"}.get(
        package, package
    )  # what to install, where the import has another name
    return f"the package {package} is not installed for {sys.executable}; take the environment that has it: {mend}"


def end_uncaught(
    kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]
) -> None:
    """sys.excepthook: what no program foresaw, and what happens before run() begins."""
    status = 1
    if issubclass(kind, KeyboardInterrupt) or SIGNALLED:
        say("interrupted")
        status = 130
    elif issubclass(kind, ModuleNotFoundError) and getattr(error, "name", None):
        say(missing_package(str(error.name).split(".")[0]))  # type: ignore[attr-defined]
    elif issubclass(kind, ImportError):
        path = os.environ.get("PYTHONPATH")
        say(
            f"a package cannot be imported: {why(error)}; "
            + (
                f"PYTHONPATH={shown(path)} may put another one in its place: unset PYTHONPATH"
                if path
                else "install the packages anew: remove .venv, then python3 scripts/setup_env.py"
            )
        )
    elif issubclass(kind, MemoryError):
        say("there is not enough memory; free some, or take a smaller batch or fewer workers")
    else:
        where = "nowhere: no folder for them can be written"
        try:
            file, where = tempfile.mkstemp(prefix=f"{program()}-", suffix=".log", text=True)
            with open(file, "w", encoding="utf-8", errors="backslashreplace") as log:
                log.write(f"{sys.argv!r}\nversion {VERSION}, Python {sys.version}\n")
                traceback.print_exception(kind, error, trace, file=log)
        except OSError:
            traceback.print_exception(kind, error, trace)
        say(
            f"a defect of this program, version {VERSION}, or of its environment ended it: {kind.__name__}: "
            f"{why(error)}; the details for a report are in {where}"
        )
    sys.stdout.flush()
    os._exit(status)  # Python itself would make 1 of every status


def end_group(leader: "subprocess.Popen[bytes]") -> None:
    """End a process that leads a process group with all that it started: politely, after GRACE seconds not."""
    with contextlib.suppress(ProcessLookupError):  # raised as soon as none of them is left
        try:
            os.killpg(leader.pid, signal.SIGTERM)
            end = time.monotonic() + GRACE
            while time.monotonic() < end:
                leader.poll()
                os.killpg(leader.pid, 0)
                time.sleep(0.02)
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
            leader.wait()
