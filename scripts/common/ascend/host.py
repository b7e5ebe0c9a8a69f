"""What this host has of CANN, the driver and Python; how their tools are started and ended.

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
from typing import Any, Dict, Iterator, List, Tuple

from common.core.cli import ROOT, Refusal, end_group, shown
from common.core.files import read_regular
from common.core.names import SAFE_PATH

Facts = Dict[str, Any]  # see host_facts()

DRIVER_INFO = "/usr/local/Ascend/driver/version.info"
# where CANN's installer puts it by default
SET_ENV = "/usr/local/Ascend/ascend-toolkit/set_env.sh"
# What atc's compiler of operators imports in the host's python3, by the names of the distributions
# (CANN's installation guide).
ATC_NEEDS = (
    "attrs cython numpy decorator sympy cffi pyyaml pathlib2 psutil protobuf scipy requests absl-py"
).split()
NUMPY_BELOW = (
    ((8, 0), (1, 25)),
    ((8, 5), (2, 0)),
)  # (CANN, NumPy): this CANN and older ones need an older NumPy than this
LAST_PYTHON = ((8, 0), (3, 11, 4))  # the newest Python that this CANN and older ones take


def version_in(paths: List[str]) -> str:
    """The first `version=…` in the files, "" if it is missing."""
    for path in paths:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            match = re.search(r"^\s*[Vv]ersion\s*=\s*\[?([\w.+-]+)", file.read(), re.MULTILINE)
            if match:
                return match.group(1)
    return ""


def cann_folders() -> List[str]:
    """Where a CANN may be: first the one that set_env.sh has set up, then the usual places."""
    folders = [os.environ.get("ASCEND_TOOLKIT_HOME", "")]
    for root in ("/usr/local/Ascend", os.path.expanduser("~/Ascend")):
        folders += [f"{root}/ascend-toolkit/latest", f"{root}/cann/latest"]
    return [*filter(None, folders), "/usr/local/Ascend/latest"]


def cann_version() -> str:
    """The version of the first CANN that says one, "" if it is missing."""
    paths = []
    for folder in cann_folders():
        paths.append(f"{folder}/version.cfg")
        paths += sorted(glob.glob(f"{folder}/*/ascend_toolkit_install.info"))
    return version_in(paths)


def set_env() -> str:
    """The script of an installed CANN that puts atc on the PATH, "" if it is missing."""
    scripts = (os.path.join(os.path.dirname(folder), "set_env.sh") for folder in cann_folders())
    return next(filter(os.path.isfile, scripts), "")


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
    them is ""; "packages": the versions of ATC_NEEDS, "" for what is not installed.
    known: the file in which the pipeline has written this for its steps, since importing ais_bench
    takes time. Without it, or if it does not exist, the host is asked.
    """
    if known and os.path.exists(known):
        return dict(json.loads(read_regular(known)))
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        output = subprocess.check_output(
            ["python3", "-c", ASK_HOST, os.path.join(ROOT, "scripts"), *ATC_NEEDS],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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
        "CANN": cann_version(),
        "driver": version_in([DRIVER_INFO]),
    }


def numbers(version: str) -> Tuple[int, ...]:
    """The leading numbers of a version: 8.0.RC1 gives (8, 0)."""
    leading = re.split(r"[^0-9.]", version)[0]
    return tuple(map(int, re.findall(r"\d+", leading)))


def atc_problem() -> Tuple[str, str]:
    """(what atc would miss in the host's python3, how to fix it), ("", "") if it has all."""
    facts = host_facts()
    if not facts:
        return "no python3 on the PATH starts", "install Python 3"
    lacking = [package for package in ATC_NEEDS if not facts["packages"][package]]
    if lacking:
        return f"atc needs {', '.join(lacking)} in it", f"pip3 install {' '.join(lacking)}"
    cann = cann_version()
    release = numbers(cann)[:2]
    if not release:
        return "", ""
    python, numpy = numbers(facts["python"]), facts["packages"]["numpy"]
    newest_cann, newest_python = LAST_PYTHON
    if release <= newest_cann and python > newest_python:
        return (
            f"Python {facts['python']}, but the atc of CANN {cann} takes "
            f"{'.'.join(map(str, newest_python))} at most",
            "put an older python3 first on the PATH",
        )
    limits = [limit for newest, limit in NUMPY_BELOW if release <= newest]
    if limits and numbers(numpy) >= limits[0] and python < (3, 13):
        wanted = "numpy<" + ".".join(map(str, limits[0]))
        return (
            f"NumPy {numpy}, but the atc of CANN {cann} needs {wanted}",
            f"pip3 install '{wanted}'",
        )
    return "", ""


def virtual_python() -> str:
    """The python3 on the PATH if it is a virtual environment's, where atc fails; otherwise ""."""
    python = shutil.which("python3")
    if not python:
        return ""
    code = "import sys; sys.exit(sys.prefix != sys.base_prefix)"
    is_virtual = subprocess.call(
        [python, "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return python if is_virtual else ""


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


def start_tool(command: List[str], log: str, **options: Any) -> "subprocess.Popen[bytes]":
    """Start a command that leads a process group, with its output in the file `log`.

    Whoever starts it ends the group. A lock on the work folder that this process was started with
    holds until the command has ended as well.
    options: Popen's.
    """
    with open(log, "wb") as output:
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


def run_tool(command: List[str], log: str, **options: Any) -> int:
    """Run a command to its end (see start_tool); its exit status.

    When this returns or raises, the command's group has ended.
    """
    child = start_tool(command, log, **options)
    try:
        return status_of(child.wait())
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
