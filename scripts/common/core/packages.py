"""What comes from the package registry, or from a folder that holds all of it; pip's settings.

Standard library only.
"""

import ast
import contextlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from typing import Dict, List, NamedTuple, Optional, Sequence

from common.core import json_file, progress, recipe
from common.core.cli import Refusal, counted, isolated, shown

# Environment variables that send packages elsewhere than into the Python that runs pip.
ELSEWHERE = (
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "PIP_REQUIRE_VIRTUALENV",
    "PIP_DRY_RUN",
    "PIP_PYTHON",
    "PYTHONHOME",
    "PYTHONPATH",
)
RUN_PIP = "import runpy; runpy.run_module('pip', run_name='__main__', alter_sys=True)"
DOWNLOADING = re.compile(r"Downloading (\S+?)(?:\.metadata)? \(([0-9.]+) (kB|MB|GB)\)")  # by pip
INSTALLING = re.compile(r"Installing collected packages: (.+)")  # by pip: names joined by commas
MEGABYTES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}
LINES_EVERY = 20.0  # seconds between lines about the downloads where there is no terminal
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own builds without CUDA, for x86-64
ANSWER = 5.0  # seconds to wait for an answer
OWN_INDEX = ("no-index", "index-url", "pypi-url")  # settings of pip that replace its own index
NO = ("", "0", "false", "no", "off", "n", "f")  # what pip takes for "no"
DOWNLOAD = 180  # MB that pip fetches (measured)
CUDA = 2900  # MB of CUDA packages that it fetches as well if torch asks for them (measured)


class Pinned(NamedTuple):
    """A single file of the registry."""

    package: str  # NAME==VERSION
    sha256: str
    options: Sequence[str] = ()  # of pip


TIMM_SOURCE = Pinned(  # timm-0.4.5.tar.gz
    "timm==0.4.5",
    "613f0ef4ded491b1bf6dff6053d3c8361fa20517c7ac9c7c388064a2b5890139",
    ("--no-binary", "timm"),
)
PHOTOS = Pinned(  # its wheel has the sample's photos
    "foolbox==3.3.4", "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"
)
CLASS_NAMES = Pinned(  # its wheel has the names of ImageNet's classes
    "timm==1.0.31",
    "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
    ("--timeout", "5", "--retries", "0", "--ignore-requires-python"),  # nobody waits for names
)


class Source(NamedTuple):
    """Where packages come from."""

    python: str = sys.executable  # the interpreter whose pip fetches them
    offline: Optional[str] = None  # the folder that has all of them; None for the registry


HERE = Source()


def say(message: str) -> None:
    print(f"set-up: {message}", file=sys.stderr, flush=True)


# ---- pip -----------------------------------------------------------------------------------------


def pip_environment(offline: bool = False) -> Dict[str, str]:
    """The environment variables for pip: those of this process without ELSEWHERE.

    offline: no setting of its user counts, because each could name a network.
    """
    variables = {key: value for key, value in os.environ.items() if key not in ELSEWHERE}
    if offline:
        for name in list(variables):
            if name.startswith("PIP_"):
                del variables[name]
        variables["PIP_CONFIG_FILE"] = os.devnull
    return variables


def has_pip(python: str) -> bool:
    """Whether an interpreter has pip. Of another one than this, that it has is assumed."""
    return python != sys.executable or importlib.util.find_spec("pip") is not None


def run_pip(arguments: Sequence[str], source: Source) -> None:
    """Run pip. Only its downloads and the number of packages are shown; if it fails, all it said.

    Raises: Refusal with the command.
    """
    if not has_pip(source.python):
        raise Refusal(
            f"{shown(source.python)} has no pip; make an environment that has one, then run the "
            "same command again: python3 scripts/setup_env.py"
        )
    words = ["--disable-pip-version-check", *arguments]
    if source.offline:
        words += ["--no-index", "--find-links", os.path.abspath(source.offline)]
    output: List[str] = []
    megabytes = 0.0
    with subprocess.Popen(
        isolated(source.python, RUN_PIP, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=pip_environment(bool(source.offline)),
    ) as pip, progress.watched(
        "set-up", 0, "MB downloaded", lambda: megabytes, lines_every=LINES_EVERY
    ) as bar:
        assert pip.stdout is not None
        for line in pip.stdout:
            output.append(line.decode(errors="replace").rstrip())
            download_line = DOWNLOADING.search(output[-1])
            install_line = INSTALLING.match(output[-1])
            if download_line:
                name, size, unit = download_line.groups()
                megabytes += float(size) * MEGABYTES[unit]
                bar.what = f"set-up: {name} ({size} {unit})"
            elif install_line:
                number = len(install_line.group(1).split(","))
                work = f"installing {counted(number, 'package')}"
                bar.turn_to(f"set-up: {work}")
                if not bar.terminal:
                    say(work)
    if megabytes >= 1:
        say(f"{megabytes:,.0f} MB were downloaded")
    if pip.returncode:
        print("\n".join(output), file=sys.stderr)
        cause = "for example the network or the disk"
        if source.offline:
            cause = f"for example with another folder than {shown(source.offline)}"
        raise Refusal(
            f"pip failed with status {pip.returncode} (see above); fix the problem, {cause}, and "
            "run the same command again; pip's command was: "
            + " ".join(map(shown, [source.python, "-m", "pip", *words]))
        )


def settings(source: Source) -> Dict[str, str]:
    """What the user has set for pip, in variables or files: {option: value}."""
    values = {}
    for name, value in os.environ.items():
        if name.startswith("PIP_"):
            values[name[len("PIP_") :].lower().replace("_", "-")] = value
    if not has_pip(source.python):
        return values
    done = subprocess.run(
        isolated(source.python, RUN_PIP, "config", "list"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    )
    for line in done.stdout.decode(errors="replace").splitlines():
        key, _, value = line.partition("=")
        with contextlib.suppress(ValueError, SyntaxError):
            values.setdefault(key.rpartition(".")[2], str(ast.literal_eval(value)))
    return values


def own_index(source: Source) -> str:
    """The setting with which the user chose another index than pip's own, or ""."""
    values = settings(source)
    for name in OWN_INDEX:
        if values.get(name, "").lower() not in NO:
            return name
    return ""


# ---- single files --------------------------------------------------------------------------------


def local_file(pinned: Pinned, folders: Sequence[str]) -> str:
    """The path of a pinned file in one of the folders; "" if none has it with its SHA-256."""
    beginning = pinned.package.replace("==", "-")
    for folder in folders:
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(folder)):
                path = os.path.join(folder, name)
                is_named_so = name.startswith(beginning) and os.path.isfile(path)
                if is_named_so and recipe.sha256(path) == pinned.sha256:
                    return path
    return ""


def fetch(pinned: Pinned, folder: str, source: Source) -> str:
    """Fetch a single file, from the registry into the empty `folder`.

    Its SHA-256 is compared before anything opens it.
    Returns: its path, which is elsewhere if a folder of the user has it.
    Raises: Refusal, also if the SHA-256 differs.
    """
    if source.offline:
        own_folders = [source.offline]
    else:
        values = settings(source)
        if values.get("no-index", "").lower() in NO:
            return download(pinned, folder, source)
        own_folders = [
            word.replace("file://", "", 1) for word in values.get("find-links", "").split()
        ]
    path = local_file(pinned, own_folders)
    if not path:
        raise Refusal(
            f"{' and '.join(map(shown, own_folders)) or 'PIP_FIND_LINKS'} has no {pinned.package} "
            f"with the SHA-256 {pinned.sha256}; on a host with a network, make a folder that has "
            "all: python3 scripts/setup_env.py --download DIR"
        )
    return path


def download(pinned: Pinned, folder: str, source: Source) -> str:
    """Fetch a single file from the registry. Returns: its path in the empty `folder`."""
    requirement = os.path.join(folder, "pinned.txt")
    with open(requirement, "w", encoding="utf-8") as file:
        file.write(f"{pinned.package} --hash=sha256:{pinned.sha256}\n")
    words = ["download", "--no-deps", "--require-hashes", *pinned.options]
    run_pip([*words, "--dest", folder, "-r", requirement], source)
    os.remove(requirement)
    (name,) = os.listdir(folder)
    return os.path.join(folder, name)


# ---- a folder with everything --------------------------------------------------------------------


def list_name() -> str:
    """The name of the list of what was downloaded for this Python on this kind of machine."""
    return "packages-%d.%d-%s.json" % (*sys.version_info[:2], platform.machine())


def check_folder(folder: str) -> None:
    """Compare an offline folder with its lists. A folder of a user without a list is accepted.

    Raises: Refusal if a file is missing or has changed, or if it is for another Python.
    """
    if not os.path.isdir(folder):
        raise Refusal(f"--offline {shown(folder)} is not a folder; name the one of --download")
    path = os.path.join(folder, list_name())
    others = [name for name in os.listdir(folder) if re.match(r"packages-.*\.json$", name)]
    if not os.path.exists(path):
        if others:
            raise Refusal(
                f"{shown(folder)} has {', '.join(map(shown, sorted(others)))} but not "
                f"{list_name()}: it was made for another Python or machine; make it with the same "
                "Python on the same kind of machine: python3 scripts/setup_env.py --download DIR"
            )
        return
    again = "copy the folder again"
    for name, sha256 in json_file.read(path, {"files": {str: str}}, again)["files"].items():
        copied = os.path.join(folder, os.path.basename(name))
        if not os.path.isfile(copied) or recipe.sha256(copied) != sha256:
            raise Refusal(f"{shown(copied)} is missing or is not what was downloaded; {again}")


# ---- PyTorch without CUDA ------------------------------------------------------------------------


def brings_cuda() -> bool:
    """Whether the registry's torch asks for CUDA here; requirements.txt names another for ARM."""
    return platform.machine() == "x86_64"


def cpu_index_answers() -> bool:
    """Whether PyTorch's index of CPU builds can be reached. Says that it asks."""
    say(f"asking whether PyTorch's own index of CPU builds answers (at most {ANSWER:g} s)")
    address = f"{CPU_INDEX}/torch/"
    code = f"import urllib.request; urllib.request.urlopen({address!r}, timeout={ANSWER})"
    try:
        subprocess.run(  # a process of its own, because looking up a name may hang
            isolated(sys.executable, code),
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER,
            env=pip_environment(),
        )
    except subprocess.SubprocessError:
        return False
    return True


class TorchIndex(NamedTuple):
    """Where torch comes from."""

    words: Sequence[str] = ()  # pip's options for that
    warning: str = ""  # what to know about it, in a sentence


def torch_index(source: Source) -> TorchIndex:
    """Where torch comes from: the user's settings count before PyTorch's index of CPU builds."""
    if source.offline or not brings_cuda():
        return TorchIndex()
    unwanted = f"it may bring {CUDA:,} MB of CUDA packages that nobody needs here"
    setting = own_index(source)
    if setting == "no-index":
        return TorchIndex()
    if setting:
        return TorchIndex(
            warning=f"torch comes from the index that your setting {setting} of pip names, and "
            f"{unwanted}, unless that index has torch without them; where PyTorch's own index can "
            f"be reached, PIP_EXTRA_INDEX_URL={CPU_INDEX} adds its CPU builds",
        )
    if cpu_index_answers():
        return TorchIndex(["--index-url", CPU_INDEX])
    return TorchIndex(
        warning=f"PyTorch's own index of CPU builds gave no answer within {ANSWER:g} s, so torch "
        f"comes from the registry, and {unwanted}; if a mirror has CPU builds, name it with "
        "PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS",
    )
