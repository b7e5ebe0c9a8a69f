"""One try: a step runs in a copy of this process, somebody attacks it, and its end is judged.

A try has one of the OUTCOMES; those in BAD are faults of the program.
"""

import contextlib
import hashlib
import importlib
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

SURVIVED, SENTENCE = "survived", "one sentence"
TRACEBACK, HANG, WRONG, DAMAGE = "traceback", "hang", "wrong figure", "damage"
OUTCOMES = (SURVIVED, SENTENCE, TRACEBACK, HANG, WRONG, DAMAGE)
BAD = (TRACEBACK, HANG, WRONG, DAMAGE)
PATIENCE = 90.0  # seconds after which a step hangs; the slowest needs 5 s
AFTERWARDS = 5.0  # seconds that what a step has started may live longer than it
LONGEST = 30  # lines of a message that still is one sentence with its lists
DEFECT = ("Traceback (most recent call last)", "a defect of this program", "Exception ignored")
REFUSED = (1, 2, 3)  # exit statuses that come with a sentence
Nothing = Callable[[], Any]


class Skip(Exception):
    """This machine lacks what a try needs."""


class Ended(NamedTuple):
    """How a program ended."""

    status: int  # its exit status; -N: by signal N
    out: str
    err: str
    hung: bool = False

    @property
    def last(self) -> str:
        """The end of what it said on stderr."""
        lines = self.err.strip().splitlines()
        return lines[-1][-400:] if lines else "(nothing on stderr)"


class Outcome(NamedTuple):
    """The judgement of a try."""

    kind: str
    details: str


class Step(NamedTuple):
    """A program that is attacked, with its words; paths are below the folder that it runs in."""

    name: str
    program: str  # its path below the repository
    words: List[str]
    reads: List[str]  # patterns of the files that it reads
    makes: List[str]  # patterns of its products, whose bytes are known
    weight: int = 4  # how often it is chosen

    @property
    def module(self) -> str:
        return Path(self.program).stem


Products = Dict[str, str]  # {path: SHA-256}


# ---- running -------------------------------------------------------------------------------------


def processes_of(session: int) -> List[int]:
    """The living processes of a session."""
    living = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            text = Path("/proc", number, "stat").read_text(errors="replace")
            words = text.rpartition(")")[2].split()
            if int(words[3]) == session and words[0] != "Z":
                living.append(int(number))
    return living


def end_session(session: int) -> None:
    """Kill every process of a session that this program started."""
    for process in processes_of(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def ends_soon(session: int) -> bool:
    """Whether all processes of a session end within some seconds."""
    end = time.monotonic() + AFTERWARDS
    while processes_of(session):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def at_work_in(folder: Path) -> List[int]:
    """The living processes whose current folder is this one or below it."""
    processes = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            current = Path(os.readlink(f"/proc/{number}/cwd"))
            if folder in (current, *current.parents):
                processes.append(int(number))
    return processes


def wait_for(child: int, patience: float) -> Optional[int]:
    """The status of a child in waitpid()'s form; None if it lives longer than `patience` s."""
    end, pause = time.monotonic() + patience, 0.001
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    return None


def fork(work: Callable[[], int], folder: Path, patience: float = PATIENCE) -> Ended:
    """Run work() in a copy of this process, in `folder`; its result is the exit status.

    The copy leads a session. What is left of that when the copy ends is killed, and counts as hung.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            run_child(work, folder, out.fileno(), err.fileno())
        ended = wait_for(child, patience)
        hung = ended is None or not ends_soon(child)
        end_session(child)
        if ended is None:
            _, ended = os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    status = os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else -os.WTERMSIG(ended)
    return Ended(status, texts[0], texts[1], hung)


def run_child(work: Callable[[], int], folder: Path, out: int, err: int) -> None:
    """The life of the copy; it never returns."""
    status = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        os.chdir(str(folder))
        status = work()
    except SystemExit as end:
        status = 0 if end.code is None else 1
        status = end.code if isinstance(end.code, int) else status
    except BaseException:
        from common.core import cli

        cli.end_uncaught(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def start_of(step: Step, root: Path, before: Nothing = lambda: None) -> Callable[[], int]:
    """What a copy of this process does to be the step. before: is called first in it."""

    def work() -> int:
        from common.core import cli

        module = importlib.import_module(step.module)
        sys.argv = [str(root / step.program), *step.words]
        os.umask(0o022)
        before()
        cli.run(module.main)
        return 0

    return work


# ---- files ---------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def products(folder: Path, patterns: Sequence[str]) -> Products:
    """The files that match the patterns; a link or a device among them has no SHA-256."""
    found = {}
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            is_file = stat.S_ISREG(path.lstat().st_mode)
            found[str(path.relative_to(folder))] = sha256(path) if is_file else "not a file"
    return found


def replace(source: Path, target: Path) -> None:
    """Make `target` a copy of the folder `source`, with times and links."""
    shutil.rmtree(str(target), ignore_errors=True)
    shutil.copytree(str(source), str(target), symlinks=True)


def listing(folder: Path) -> List[str]:
    """The paths of all files below a folder."""
    paths = (path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return sorted(str(path.relative_to(folder)) for path in paths)


State = Tuple[int, int, int, int, str]


def snapshot(folder: Path) -> Dict[str, State]:
    """{path: inode, mode, links, time, content} of all below a folder, which nothing may change."""
    states = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        content = ""
        if stat.S_ISREG(status.st_mode):
            content = sha256(path)
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(str(path))
        time_ns = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
        mode = stat.S_IMODE(status.st_mode)
        states[str(path)] = (status.st_ino, mode, status.st_size, time_ns, content)
    return states


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """During the block, what this process prints goes nowhere."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(
        nowhere
    ), contextlib.redirect_stderr(nowhere):
        yield


def flip_bit(path: Path, dice: random.Random) -> str:
    """Flip one bit of a file in place, with its time as it was. Returns: where."""
    status = path.stat()
    place, bit = dice.randrange(status.st_size), dice.randrange(8)
    with open(str(path), "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"bit {bit} of byte {place} of {status.st_size} flipped"


def truncate(path: Path, dice: random.Random) -> str:
    """Cut a file in place, with its time as it was. Returns: where."""
    status = path.stat()
    length = dice.randrange(status.st_size)
    with open(str(path), "r+b") as file:
        file.truncate(length)
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"cut to {length} of {status.st_size} bytes"


# ---- judging -------------------------------------------------------------------------------------


def judge_end(ended: Ended) -> Outcome:
    """What the end of a program says alone: without a look at its products."""
    if ended.hung:
        return Outcome(HANG, f"it did not end, or left a process; {ended.last}")
    if ended.status < 0 or any(mark in ended.err for mark in DEFECT):
        return Outcome(TRACEBACK, f"exit status {ended.status}: {ended.err.strip()[-1500:]}")
    if ended.status == 0:
        return Outcome(SURVIVED, "")
    if ended.status not in REFUSED or not ended.err.strip():
        return Outcome(TRACEBACK, f"exit status {ended.status}, stderr {ended.err!r}")
    if len(ended.err.strip().splitlines()) > LONGEST:
        return Outcome(TRACEBACK, f"{len(ended.err.splitlines())} lines: {ended.err[-800:]}")
    return Outcome(SENTENCE, ended.last)


def different(made: Products, expected: Products) -> str:
    """In which files products differ; "" if they are equal."""
    names = {name for name, _ in made.items() ^ expected.items()}
    missing, more = names - made.keys(), names - expected.keys()
    changed = names - missing - more
    parts = []
    for what, some in (("missing", missing), ("unexpected", more), ("other bytes", changed)):
        if some:
            parts.append(f"{what}: {', '.join(sorted(some)[:4])} ({len(some)})")
    return "; ".join(parts)


def judge(ended: Ended, made: Products, expected: Products) -> Outcome:
    """What the end of a program and its products say together."""
    outcome = judge_end(ended)
    difference = different(made, expected)
    if outcome.kind == SURVIVED and difference:
        return Outcome(WRONG, f"exit status 0, but {difference}")
    return outcome
