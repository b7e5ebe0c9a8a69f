"""A machine that lacks something: file descriptors, memory, disk, processes, /proc, a home, …

The step runs as a process of its own, as a user starts it. It may end well or with a sentence; the
same command on a good machine must then give the bytes of an undisturbed run. Modules of somebody
else in the current folder are never imported.
"""

import ctypes
import os
import random
import resource
import shutil
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Tuple

from common.core import cli

from conftest import ROOT

from attacks import bed as ground
from attacks import trial
from attacks.bed import Bed
from attacks.trial import Outcome, Skip, Step

NEWNS = 0x20000  # CLONE_NEWNS of Linux
MS_REC, MS_PRIVATE, MS_BIND, MS_RDONLY, MS_NOEXEC = 1 << 14, 1 << 18, 1 << 12, 1, 8
NAMES = "preprocess infer postprocess compare merge unpack".split()  # those that start quickly
EVIL = "json numpy onnxruntime PIL common tempfile sitecustomize usercustomize random".split()


class Machine(NamedTuple):
    """How a process is started: all of it may be changed."""

    environment: Dict[str, str]
    flags: List[str]  # of Python
    setup: List[Callable[[], object]]  # called in the process before it becomes Python
    kill_is_fair: bool = False  # whether the system may kill it


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    step = ground.BY_NAME[dice.choice(NAMES)]
    bed.restore()
    if dice.random() < 0.7:
        bed.remove_products(step)
    before = trial.snapshot(bed.outside)
    name = dice.choice(sorted(WAYS))
    machine = Machine(dict(os.environ, TMPDIR=str(bed.folder / "tmp")), [], [])
    machine.environment.pop("LD_PRELOAD", None)
    what = WAYS[name](bed, dice, machine)
    kill_is_fair = name == "cgroup"
    ended = start(bed, step, machine)
    outcome = trial.judge_end(ended)
    if kill_is_fair and ended.status == -9:
        outcome = Outcome(trial.SENTENCE, "killed by the system for want of memory")
    if ended.status == cli.CLOSED_PIPE and not ended.err:  # as `… | head` ends every program
        outcome = Outcome(trial.SENTENCE, "nobody reads what it prints")
    if outcome.kind == trial.SURVIVED:
        outcome = trial.judge(ended, bed.products(step), bed.expected[step.name])
    for path in bed.here.glob("evil-*"):
        path.unlink()
    clean(bed)
    outcome = ground.judge_after(bed, step, outcome)
    return f"{step.name}: {name}: {what}", ground.judge_outside(bed, before, outcome)


def start(bed: Bed, step: Step, machine: Machine) -> trial.Ended:
    """Run the step as a process of its own."""
    words = absolute(bed, step) if "away" in machine.environment else step.words
    folder = Path(machine.environment.pop("away", "") or bed.here)
    command = [sys.executable, *machine.flags, str(ROOT / step.program), *words]

    def become() -> int:
        for setup in machine.setup:
            setup()
        os.execve(command[0], command, machine.environment)
        return 1

    return trial.fork(become, folder)


def absolute(bed: Bed, step: Step) -> List[str]:
    """The words of a step with absolute paths."""
    words = []
    for word in step.words:
        is_path = (bed.here / word).exists() or word in ("prep", "unpacked", "merged")
        is_name = word in ("acc.json", "result") and step.name in ("postprocess", "infer")
        if is_name and word == "result" and step.name == "postprocess":
            is_name = False
        words.append(str(bed.here / word) if is_path and not is_name else word)
    return words


def clean(bed: Bed) -> None:
    """Remove what the attack itself put into the folder."""
    for name in EVIL:
        for path in (bed.here / f"{name}.py", bed.here / name):
            if path.is_dir():
                shutil.rmtree(str(path))
            elif path.exists():
                path.unlink()
    shutil.rmtree(str(bed.here / "__pycache__"), ignore_errors=True)


# ---- limits --------------------------------------------------------------------------------------


def limit(machine: Machine, kind: int, value: int) -> None:
    machine.setup.append(lambda: resource.setrlimit(kind, (value, value)))


def open_files(bed: Bed, dice: random.Random, machine: Machine) -> str:
    value = dice.randint(8, 60)
    limit(machine, resource.RLIMIT_NOFILE, value)
    return f"{value} open files"


def addresses(bed: Bed, dice: random.Random, machine: Machine) -> str:
    value = dice.randint(150, 1500)
    limit(machine, resource.RLIMIT_AS, value << 20)
    return f"{value} MB of addresses"


def file_size(bed: Bed, dice: random.Random, machine: Machine) -> str:
    value = dice.choice((4096, 5000, 12_000, 13_000, 50_000))  # the message is shorter
    limit(machine, resource.RLIMIT_FSIZE, value)
    return f"files of {value} bytes"


def processor(bed: Bed, dice: random.Random, machine: Machine) -> str:
    core = min(os.sched_getaffinity(0))
    machine.setup.append(lambda: os.sched_setaffinity(0, {core}))
    return "one processor"


def stack(bed: Bed, dice: random.Random, machine: Machine) -> str:
    value = dice.choice((256, 512, 1024))
    limit(machine, resource.RLIMIT_STACK, value << 10)
    return f"{value} kB of stack"


def cgroup(bed: Bed, dice: random.Random, machine: Machine) -> str:
    """A group of processes with little memory."""
    base = Path("/sys/fs/cgroup/memory")
    folder = base / f"attack-{os.getpid()}"
    if not (base / "memory.limit_in_bytes").exists() or os.geteuid():
        raise Skip("no memory cgroup of version 1, or not root")
    megabytes = dice.randint(20, 250)
    folder.mkdir(exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(str(megabytes << 20))
    machine.setup.append(lambda: (folder / "cgroup.procs").write_text(str(os.getpid())))
    return f"{megabytes} MB"


# ---- what is mounted -----------------------------------------------------------------------------


def mount(source: str, path: str, kind: str, flags: int, options: str = "") -> None:
    """Linux's mount(2). Raises: OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    words = [os.fsencode(word) for word in (source, path, kind, options)]
    if libc.mount(words[0], words[1], words[2], flags, words[3]):
        raise OSError(ctypes.get_errno(), path)


def leave_mounts() -> None:
    """Give this process a namespace of mounts of its own. Raises: OSError."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", "none", MS_REC | MS_PRIVATE)


def mount_over(path: str, flags: int, options: str) -> None:
    """In a namespace of its own: an empty file system over a folder."""
    leave_mounts()
    mount("none", path, "tmpfs", flags, options)


def open_to_all(path: str) -> None:
    """In a namespace of its own: let every user reach a folder that lies in a private one.

    An empty folder takes the place of the private one and shows only the way to `path`.
    """
    private = ""
    for folder in Path(path).parents:
        if not folder.stat().st_mode & 0o001:
            private = str(folder)
    if not private:
        return
    leave_mounts()
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY)  # soon it has no other name
    mount("none", private, "tmpfs", 0, "mode=755")
    os.makedirs(path)
    mount(f"/proc/self/fd/{opened}", path, "none", MS_BIND | MS_REC)
    os.close(opened)


def need_root() -> None:
    if os.geteuid():
        raise Skip("only root can mount")


def no_proc(bed: Bed, dice: random.Random, machine: Machine) -> str:
    need_root()
    machine.setup.append(lambda: mount_over("/proc", 0, "size=4k"))
    return "no /proc"


def no_shm(bed: Bed, dice: random.Random, machine: Machine) -> str:
    need_root()
    if str(bed.folder).startswith("/dev/shm"):
        raise Skip("the tries themselves run in /dev/shm")
    machine.setup.append(lambda: mount_over("/dev/shm", MS_RDONLY, "mode=000"))
    return "no /dev/shm"


def temporary(bed: Bed, dice: random.Random, machine: Machine) -> str:
    """A TMPDIR that is of no use."""
    ways = ["missing", "file", "empty", "relative"]
    if not os.geteuid():
        ways += ["noexec", "read-only", "full"]
    way, folder = dice.choice(ways), bed.folder / "tmp"
    if way == "missing":
        machine.environment["TMPDIR"] = "/nonexistent"
    elif way == "file":
        machine.environment["TMPDIR"] = str(bed.outside / "letter.txt")
    elif way == "empty":
        machine.environment["TMPDIR"] = ""
    elif way == "relative":
        machine.environment["TMPDIR"] = ".."
    else:
        flags = {"noexec": MS_NOEXEC, "read-only": MS_RDONLY, "full": 0}[way]
        size = "size=4k,nr_inodes=2" if way == "full" else "size=1m"
        machine.setup.append(lambda: mount_over(str(folder), flags, size))
    return f"TMPDIR {way}"


# ---- environment and streams ---------------------------------------------------------------------


def home(bed: Bed, dice: random.Random, machine: Machine) -> str:
    way = dice.choice(("unset", "missing", "file", "empty"))
    machine.environment.pop("HOME", None)
    values = {"missing": "/nonexistent", "file": str(bed.outside / "letter.txt"), "empty": ""}
    if way in values:
        machine.environment["HOME"] = values[way]
    return f"HOME {way}"


def deleted_folder(bed: Bed, dice: random.Random, machine: Machine) -> str:
    folder = bed.folder / "deleted"
    folder.mkdir(exist_ok=True)
    machine.environment["away"] = str(folder)
    machine.setup.append(lambda: os.rmdir(str(folder)))
    return "the current folder is deleted"


def streams(bed: Bed, dice: random.Random, machine: Machine) -> str:
    """Streams that are closed, full, or read by nobody."""
    closed = list(dice.choice([[0], [1], [0, 1], [0, 2], [1, 2]]))
    way = dice.choice(("closed", "closed", "full", "broken"))
    if way == "closed":
        closed = [number for number in closed if number != 2]

        def close() -> None:
            for number in closed:
                os.close(number)

        machine.setup.append(close)
        return f"streams {closed} closed"
    if way == "full":
        machine.setup.append(lambda: os.dup2(os.open("/dev/full", os.O_WRONLY), 1))
        return "stdout is a full disk"

    def pipe() -> None:
        read, write = os.pipe()
        os.dup2(write, 1)
        os.close(read)

    machine.setup.append(pipe)
    return "nobody reads stdout"


def locale(bed: Bed, dice: random.Random, machine: Machine) -> str:
    way = dice.choice(("C", "POSIX", "gbk", "ascii", "broken"))
    values = {
        "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "POSIX": {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "gbk": {"PYTHONIOENCODING": "gbk"},
        "ascii": {"PYTHONIOENCODING": "ascii:strict"},
        "broken": {"LC_ALL": "xx_YY.nonsense", "LANG": "\x80"},
    }
    machine.environment.update(values[way])
    return f"locale {way}"


def python(bed: Bed, dice: random.Random, machine: Machine) -> str:
    """Options and variables of Python."""
    way = dice.choice(("-OO", "-W error", "-X dev", "-b -b", "-s", "-B", "inspect", "startup"))
    if way == "inspect":
        machine.environment["PYTHONINSPECT"] = "1"
    elif way == "startup":
        script = bed.here / "evil-startup.py"
        script.write_text(evil(bed))
        machine.environment["PYTHONSTARTUP"] = str(script)
    else:
        machine.flags.extend(way.split())
    return f"python {way}"


def evil(bed: Bed) -> str:
    """A module that shows that it was imported."""
    return f"open({str(bed.outside / 'executed')!r}, 'w').close()\nraise SystemExit('evil')\n"


def modules(bed: Bed, dice: random.Random, machine: Machine) -> str:
    """Somebody's modules and programs in the current folder."""
    for name in EVIL:
        if dice.random() < 0.3:
            (bed.here / name).mkdir()
            (bed.here / name / "__init__.py").write_text(evil(bed))
        else:
            (bed.here / f"{name}.py").write_text(evil(bed))
    for name in ("sync", "cc", "gcc", "git", "python3", "npu-smi"):
        program = bed.here / f"evil-{name}"
        program.write_text(f"#!/bin/sh\ntouch {bed.outside}/executed\n")
        program.chmod(0o755)
    return "modules of somebody in the current folder"


Way = Callable[[Bed, random.Random, Machine], str]
WAYS: Dict[str, Way] = {
    "addresses": addresses,
    "cgroup": cgroup,
    "deleted folder": deleted_folder,
    "file size": file_size,
    "home": home,
    "locale": locale,
    "modules": modules,
    "no /dev/shm": no_shm,
    "no /proc": no_proc,
    "one processor": processor,
    "open files": open_files,
    "python": python,
    "stack": stack,
    "streams": streams,
    "temporary": temporary,
}
