"""What this host has of the driver and of Python for it; how its tools are started and ended.

Standard library only: it must run in a bare host Python.
"""

import contextlib
import functools
import glob
import json
import os
import re
import shutil
import subprocess
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from common.ascend import cann
from common.ascend.cann import numbers
from common.core.cli import ROOT, Refusal, end_group, shown
from common.core.files import create_instead, read_regular
from common.core.names import SAFE_PATH

Facts = Dict[str, Any]  # see host_facts()

DRIVER_INFO = "/usr/local/Ascend/driver/version.info"
# A program runs there that looks for Python modules in the current folder: only root can put files
# into it. (Python looks there for -c and -m, and for an empty word in PYTHONPATH, which CANN's
# set_env.sh leaves.)
NO_FOLDER = "/"
# What the Python files of CANN's compiler import in the host's python3, by the names of the
# distributions (seen in an installed toolkit 8.1.RC1).
ATC_NEEDS = "attrs numpy decorator sympy cffi psutil protobuf scipy requests absl-py".split()
# What CANN's installation guide names as well; no file of that toolkit imports it.
ATC_GUIDE = "cython pyyaml pathlib2".split()


class Guide(NamedTuple):
    """What CANN's installation guide says; () where it has no limit."""

    newest: Tuple[int, ...]  # it is the guide of this CANN, and of older ones
    last_python: Tuple[int, ...]
    first_numpy: Tuple[int, ...]  # that is too new


# That is paper: the vendor's own images of 8.0 to 8.3 have Python 3.11.12 or 3.11.13.
GUIDES = (
    Guide((8, 3), (3, 11, 4), (1, 25)),
    Guide((8, 5), (), (2, 0)),
    Guide((9, 0), (3, 13), ()),
    Guide((9, 1), (3, 14), ()),
)
# {Python: the versions that AMCT's guide names; a range is "least to most"}
AMCT_GUIDE: Dict[Tuple[int, ...], Dict[str, str]] = {
    (3, 7): {"onnx": "1.8.0"},
    (3, 9): {"onnx": "1.10", "onnxruntime": "1.9"},
    (3, 10): {
        "onnx": "1.14.0",
        "onnxruntime": "1.16.0",
        "numpy": "1.21.6 to 1.26.4",
        "protobuf": "3.20.2",
    },
    (3, 12): {"onnx": "1.18.0", "onnxruntime": "1.20.0"},
}
AMCT_GUIDE[(3, 11)], AMCT_GUIDE[(3, 13)] = AMCT_GUIDE[(3, 10)], AMCT_GUIDE[(3, 12)]
PACKAGES = sorted({*ATC_NEEDS, *ATC_GUIDE, "onnx", "onnxruntime"})
LOOKS = 20  # how often a program that is watched is looked at before it counts as stalled
LONGEST_LOOK = 5.0  # s between two looks


# ---- the host's Python ---------------------------------------------------------------------------


ASK_HOST = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
from common.core.recipe import versions
found, errors = {}, {}
for package, module in (("ais_bench", "ais_bench.infer"), ("aclruntime", "aclruntime")):
    found[package] = errors[package] = ""
    try:
        importlib.import_module(module)
        found[package] = versions([package])[package] or "version unknown"
    except BaseException as error:
        errors[package] = f"{type(error).__name__}: {error}"
print(json.dumps({"python": sys.version.split()[0], "versions": found, "errors": errors,
                  "packages": versions(sys.argv[2:])}))
"""


@functools.lru_cache(maxsize=None)
def host_facts(known: str = "") -> Facts:
    """What the host's own python3 is and has; {} if it is missing.

    "python": its version; "versions" and "errors" of ais_bench and aclruntime: for each, one of
    them is ""; "packages": the versions of PACKAGES, "" for what is not installed.
    known: the file in which the pipeline has written this for its steps, since importing ais_bench
    takes time. Without it, or if it does not exist, the host is asked.
    """
    if known and os.path.exists(known):
        return dict(json.loads(read_regular(known)))
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        output = subprocess.check_output(
            ["python3", "-c", ASK_HOST, os.path.join(ROOT, "scripts"), *PACKAGES],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=NO_FOLDER,
            timeout=120,
        )
        return dict(json.loads(output.decode(errors="replace").splitlines()[-1]))
    return {}


def host_versions(known: str = "") -> Dict[str, str]:
    """The versions of all that computes on the card: for records. known: see host_facts()."""
    versions = host_facts(known).get("versions", {})
    return {
        "ais_bench": versions.get("ais_bench", ""),
        "aclruntime": versions.get("aclruntime", ""),
        "CANN": cann.version(),
        "driver": cann.version_in([DRIVER_INFO]),
    }


def atc_problem() -> Tuple[str, str]:
    """(what atc would miss in the host's python3, how to fix it), ("", "") if it has all."""
    facts = host_facts()
    if not facts:
        return "no python3 on the PATH starts", "install Python 3"
    lacking = [package for package in ATC_NEEDS if not facts["packages"].get(package)]
    if lacking:
        return f"atc needs {', '.join(lacking)} in it", f"pip3 install {' '.join(lacking)}"
    return "", ""


def atc_advice() -> str:
    """What CANN's guide says against the host's python3, "" if nothing: atc may work all the same.

    A sentence for each, joined by semicolons.
    """
    facts, version = host_facts(), cann.version()
    if not facts:
        return ""
    python, numpy = facts["python"], facts["packages"].get("numpy", "")
    lacking = [package for package in ATC_GUIDE if not facts["packages"].get(package)]
    advice = []
    if lacking:
        advice.append(f"{', '.join(lacking)} too (pip3 install {' '.join(lacking)})")
    release = numbers(version)[:2]
    guides = [guide for guide in GUIDES if release and release <= guide.newest]
    if guides and numbers(python)[: len(guides[0].last_python)] > guides[0].last_python:
        last = ".".join(map(str, guides[0].last_python))
        advice.append(f"Python {last} at most, here is {python}")
    limit = guides[0].first_numpy if guides else ()
    if limit and numbers(numpy) >= limit and numbers(python) < (3, 13):
        wanted = ".".join(map(str, limit))
        advice.append(f"NumPy below {wanted}, here is {numpy} (pip3 install 'numpy<{wanted}')")
    if not advice:
        return ""
    name = f"CANN {version}" if version else "CANN"
    return f"the guide of {name} names {'; '.join(advice)}; if atc fails, try that"


def is_guides(found: str, wanted: str) -> bool:
    """Whether a version is the one that a guide names; wanted: "1.10", or "least to most"."""
    least, _, most = wanted.partition(" to ")
    if most:
        return numbers(least) <= numbers(found) <= numbers(most)
    return numbers(found)[: len(numbers(wanted))] == numbers(wanted)


def amct_advice() -> str:
    """What AMCT's guide says against the host's python3, "" if nothing."""
    facts = host_facts()
    python = numbers(facts.get("python", ""))[:2]
    if python not in AMCT_GUIDE:
        known = ", ".join(".".join(map(str, release)) for release in sorted(AMCT_GUIDE))
        return f"AMCT's guide names Python {known}, here is {facts.get('python') or 'none'}"
    wrong, cure = [], []
    for package, wanted in AMCT_GUIDE[python].items():
        found = facts["packages"].get(package, "")
        if not is_guides(found, wanted):
            wrong.append(f"{package} {wanted} (here is {found or 'none'})")
            cure.append(f"{package}=={wanted.rpartition(' to ')[2]}")
    if not wrong:
        return ""
    return (
        f"AMCT's guide names for Python {'.'.join(map(str, python))}: {', '.join(wrong)}; if AMCT "
        f"fails: pip3 install {' '.join(cure)}"
    )


def virtual_python() -> str:
    """The python3 on the PATH if it is a virtual environment's, where atc fails; otherwise ""."""
    python = shutil.which("python3")
    if not python:
        return ""
    code = "import sys; sys.exit(sys.prefix != sys.base_prefix)"
    is_virtual = subprocess.call(
        [os.path.abspath(python), "-I", "-c", code],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=NO_FOLDER,
    )
    return python if is_virtual else ""


# ---- paths ---------------------------------------------------------------------------------------


def safe_path(path: str) -> str:
    """The path made absolute. Raises: Refusal if it has what atc and ais_bench refuse."""
    path = os.path.abspath(path)
    if not SAFE_PATH.fullmatch(path):
        raise Refusal(
            "atc and ais_bench accept only letters, digits, '_', '.', '-' and '/' in a path, so "
            f"move or rename {shown(path)}, or name another"
        )
    return path


@contextlib.contextmanager
def run_folder(prefix: str) -> Iterator[str]:
    """A folder PREFIX-PID of this process alone, which removes it at the end.

    Those of killed processes are removed first. One of them may have had the number of this
    process: in a container that is started again the numbers are the same.
    """
    folder = f"{prefix}-{os.getpid()}"
    for left in glob.glob(glob.escape(prefix) + "-*"):
        process = left.rpartition("-")[2]
        is_dead = re.fullmatch("[0-9]+", process) and not os.path.exists(f"/proc/{process}")
        if left == folder or is_dead:
            shutil.rmtree(left, ignore_errors=True)
    os.mkdir(folder, 0o750)  # ais_bench refuses to write where others may look
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def empty(folder: str) -> None:
    """Remove what a tool left in a run_folder(), so that the next tool finds nothing to follow."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


# ---- tools ---------------------------------------------------------------------------------------


class Trace(NamedTuple):
    """What a program has written so far."""

    files: int
    size: int  # bytes
    newest: int  # when the last file was changed, ns


def trace(paths: Sequence[str]) -> Trace:
    """What is in files, and in folders at any depth."""
    stamps = []
    for path in paths:
        with contextlib.suppress(OSError):
            stamps.append(os.lstat(path))
        for folder, _, names in os.walk(path):
            for name in names:
                with contextlib.suppress(OSError):  # removed in between
                    stamps.append(os.lstat(os.path.join(folder, name)))
    newest = max((status.st_mtime_ns for status in stamps), default=0)
    return Trace(len(stamps), sum(status.st_size for status in stamps), newest)


class Watch:
    """Whether a program still writes anything."""

    def __init__(self, paths: Sequence[str], stall: float) -> None:
        """paths: its log, and the folders into which it writes; stall: s, 0 for ever."""
        self.paths, self.stall = list(paths), stall
        self.every = min(LONGEST_LOOK, stall / LOOKS)  # s between two looks
        self.seen: Optional[Trace] = None
        self.looked = self.written = time.monotonic()

    def is_stalled(self) -> bool:
        """Whether nothing was written for `stall` s; it looks at most once in `every` s."""
        now = time.monotonic()
        if not self.stall or now - self.looked < self.every:
            return False
        self.looked, current = now, trace(self.paths)
        if current != self.seen:
            self.seen, self.written = current, now
        return now - self.written >= self.stall

    def sentence(self, tool: str) -> str:
        """What to say of a program that stalled."""
        return (
            f"{tool} was ended: for {self.stall:g} s it gave no output and no result; if it only "
            "needs longer, give --stall SECONDS"
        )


class Stalled(Refusal):
    """A program gave no output for too long."""


def start_tool(command: List[str], log: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a command that leads a process group, with its output in the file `log`.

    Whoever starts it ends the group. A lock on the work folder that this process was started with
    holds until the command has ended as well.
    options: Popen's.
    """
    with open(create_instead(log), "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            close_fds=False,
            **options,
        )


def status_of(returncode: int) -> int:
    """An exit status as in a shell: 128 + number if a signal ended the command."""
    return returncode if returncode >= 0 else 128 - returncode


def name_of(command: List[str]) -> str:
    """The tool that a command starts: of `python3 -m ais_bench` it is ais_bench."""
    return command[2] if command[1:2] == ["-m"] else os.path.basename(command[0])


def run_tool(command: List[str], log: str, stall: float = 0, **options: Any) -> int:
    """Run a command to its end (see start_tool); its exit status.

    stall: s after which a command that writes nothing, to the log or its folder, is ended; 0: none.
    When this returns or raises, the command's group has ended.
    Raises: Stalled.
    """
    child = start_tool(command, log, **options)
    watch = Watch([log, *filter(None, [options.get("cwd")])], stall)
    try:
        while True:
            try:
                return status_of(child.wait(timeout=watch.every if stall else None))
            except subprocess.TimeoutExpired:
                if watch.is_stalled():
                    raise Stalled(watch.sentence(name_of(command))) from None
    finally:
        end_group(child)


def run_or_refuse(command: List[str], log: str, what: str, **options: Any) -> None:
    """Run a command to its end; its log is kept only if it failed.

    Raises: Refusal with the end of what it said.
    """
    if run_tool(command, log, **options):
        with open(log, encoding="utf-8", errors="replace") as file:
            end = file.read().strip()[-2000:]
        raise Refusal(f"{what} failed and said:\n{end}\n    the whole output: {shown(log)}")
    os.remove(log)
