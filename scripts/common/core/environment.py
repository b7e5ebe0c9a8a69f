"""Which Python runs, and what comes from the package registry: the environment, and single files of known SHA-256.

Standard library only.
"""

import contextlib
import glob
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from typing import Dict, Iterator, List, Sequence, Set

from common.core import files, native, progress, recipe
from common.core.cli import ROOT, Refusal, shown, why

REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
STAMP = "finished"  # in the environment's folder: what it was filled from, and with what
BEGUN = "begun"  # in a folder that a set-up is filling
HAS = "has "  # begins the lines of the stamp that name what was installed
BORROWED = "torch of the host: "  # begins another line of it
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
DOWNLOADING = re.compile(
    r"Downloading (\S+?)(?:\.metadata)? \(([0-9.]+) (kB|MB|GB)\)"
)  # a line of pip's
LINES_EVERY = 20.0  # seconds between lines about the downloads where there is no terminal
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own builds without CUDA, for x86-64
ANSWER = 5.0  # s; no answer by then is none
OLDEST_TORCH = (1, 6)  # a torch that the host has already serves from this version on
DOWNLOAD, CUDA = (
    180,
    2900,
)  # MB that pip fetches, of all packages, and of those of CUDA if torch brings them (measured)


def say(message: str) -> None:
    print(f"set-up: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other set-up of this checkout is at work; none begins before the block has ended."""
    held = -1
    with contextlib.suppress(
        OSError
    ):  # a checkout that cannot be written to: nothing will be made in it
        held = files.hold(
            os.path.join(ROOT, ".venv.lock"), "waiting for another set-up of this checkout"
        )
    try:
        yield
    finally:
        if held >= 0:
            os.close(held)


def pip_environment() -> Dict[str, str]:
    """The environment for pip without what would send packages elsewhere than into the Python that runs it."""
    return {key: value for key, value in os.environ.items() if key not in ELSEWHERE}


def run_pip(arguments: Sequence[str], python: str = sys.executable) -> None:
    """Run pip; of what it says only the downloads are shown, as progress, and all of it if it fails.

    Raises: Refusal with the command.
    """
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    said: List[str] = []
    megabytes = [0.0]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    ) as pip, progress.watched(
        "set-up", 0, "MB downloaded", lambda: megabytes[0], lines_every=LINES_EVERY
    ) as bar:
        assert pip.stdout is not None
        for line in pip.stdout:
            said.append(line.decode(errors="replace").rstrip())
            found = DOWNLOADING.search(said[-1])
            if found:
                name, size, unit = found.groups()
                megabytes[0] += float(size) * {"kB": 1e-3, "MB": 1.0, "GB": 1e3}[unit]
                bar.what = f"set-up: {name} ({size} {unit})"
    if megabytes[0] >= 1:
        say(f"{megabytes[0]:,.0f} MB were downloaded")
    if pip.returncode:
        print("\n".join(said), file=sys.stderr)
        raise Refusal(
            f"pip failed with status {pip.returncode} (its words stand above); mend what it names, for "
            "instance the network or the disk, and start this program again; the command was: "
            + " ".join(map(shown, command))
        )


def download(package: str, sha256: str, folder: str, *options: str) -> str:
    """Fetch one file of `package` (NAME==VERSION) from the registry into `folder`, checked before anything opens it.

    Returns: its path. Raises: Refusal, after pip's words, also if the SHA-256 is another.
    """
    pinned = os.path.join(folder, "pinned.txt")
    with open(pinned, "w", encoding="utf-8") as file:
        file.write(f"{package} --hash=sha256:{sha256}\n")
    run_pip(["download", "--no-deps", "--require-hashes", *options, "--dest", folder, "-r", pinned])
    os.remove(pinned)
    (found,) = os.listdir(folder)
    return os.path.join(folder, found)


# ---- the environment -------------------------------------------------------------------------------------------------


def asked_for(requirements: Sequence[str]) -> List[str]:
    """The lines of requirements files, each a package with the versions that are admitted and where."""
    lines = []
    for path in requirements:
        with open(path, encoding="utf-8") as file:
            lines += [line.split("#")[0].strip() for line in file]
    return list(filter(None, lines))


def satisfied(requirements: Sequence[str]) -> bool:
    """Whether this Python has every package of the files, in an admitted version (none is imported: that takes long).

    A Python that has them all has `packaging` as well, which ONNX Runtime and matplotlib need.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return False
    wanted = list(map(Requirement, asked_for(requirements)))
    wanted = [
        requirement
        for requirement in wanted
        if not requirement.marker or requirement.marker.evaluate()
    ]
    there = recipe.versions(requirement.name for requirement in wanted)
    return all(
        there[requirement.name]
        and (
            requirement.name == "torch"
            and serves(there["torch"])
            or requirement.specifier.contains(there[requirement.name], prereleases=True)
        )
        for requirement in wanted
    )


# ---- PyTorch without CUDA --------------------------------------------------------------------------------------------


def serves(version: str) -> bool:
    """Whether a torch that the host has already can be used as it is."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= OLDEST_TORCH


def host_torch() -> str:
    """The version of a torch of the host's own Python that serves, "" if there is none."""
    version = recipe.versions(["torch"])["torch"] if sys.prefix == sys.base_prefix else ""
    return version if version and serves(version) else ""


def cpu_index_answers() -> bool:
    """Whether PyTorch's index of CPU builds can be reached. A process of its own: looking up a name may hang."""
    code = f"import urllib.request; urllib.request.urlopen({CPU_INDEX + '/torch/'!r}, timeout={ANSWER})"
    with contextlib.suppress(subprocess.SubprocessError):
        return not subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER,
        ).returncode
    return False


def brings_cuda() -> bool:
    """Whether the registry's torch asks for CUDA here: on x86-64; for ARM requirements.txt names some that do not."""
    return platform.machine() == "x86_64"


def coming() -> str:
    """What a set-up would download, in words."""
    if host_torch():
        return f"what the host lacks beside its torch {host_torch()}: {DOWNLOAD // 2} MB at most"
    if not brings_cuda() or cpu_index_answers():
        return f"about {DOWNLOAD} MB, without CUDA"
    return (
        f"about {DOWNLOAD} MB, and {CUDA:,} MB of CUDA packages that nobody needs here, unless your registry has "
        f"torch without them: PyTorch's own index of CPU builds gave no answer within {ANSWER:g} s"
    )


def install(requirements: Sequence[str], python: str, from_host: str) -> None:
    """Fill an environment. from_host: the version of the host's torch, which it sees."""
    lines = asked_for(requirements)
    torch = [
        line for line in lines if line.startswith("torch==")
    ]  # pip sees by its markers which of them holds here
    if torch and from_host:
        say(f"the host's own torch {from_host} serves")
        lines = [line for line in lines if line not in torch]
    elif torch and brings_cuda() and "torch" not in installed():
        if cpu_index_answers():
            run_pip(["install", "--index-url", CPU_INDEX, *torch], python)
        else:
            say(f"torch comes from the registry, {coming()}")
    # `packaging` comes with the packages that most files ask for; satisfied() needs it in any case.
    run_pip(["install", "packaging", *lines], python)


# ---- the environment's folder ----------------------------------------------------------------------------------------


def stamp_lines(requirements: Sequence[str]) -> Set[str]:
    """One line per requirements file: which Python, and the file's SHA-256."""
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    return {f"{python} {recipe.sha256(path)}\n" for path in requirements}


def folder() -> str:
    """The environment's folder; another Python than the default one, named by PYTHON, has one of its own."""
    suffix = "-%d.%d" % sys.version_info[:2] if os.environ.get("PYTHON") else ""
    return os.path.join(ROOT, ".venv" + suffix)


def interpreter() -> str:
    return os.path.join(folder(), "bin", "python")


def stamp() -> List[str]:
    """The lines that the last set-up wrote when it had finished; [] if none has."""
    with contextlib.suppress(OSError), open(
        os.path.join(folder(), STAMP), encoding="utf-8"
    ) as file:
        return file.read().splitlines(keepends=True)
    return []


def installed() -> Set[str]:
    """What stands in the environment's site-packages."""
    return {
        name
        for path in glob.glob(
            os.path.join(glob.escape(folder()), "lib", "python*", "site-packages")
        )
        for name in os.listdir(path)
    }


def lost() -> Set[str]:
    """What the stamp says was installed, and is not there any more."""
    return {line[len(HAS) : -1] for line in stamp() if line.startswith(HAS)} - installed()


def finished(requirements: Sequence[str]) -> bool:
    """Whether the folder is an environment that was filled to the end from these very requirements, and still is."""
    lines = set(stamp())
    borrowed = {
        line for line in lines if line.startswith(BORROWED)
    }  # of the host, which may have changed since
    return (
        stamp_lines(requirements) <= lines
        and os.access(interpreter(), os.X_OK)
        and not lost()
        and borrowed <= {f"{BORROWED}{host_torch()}\n"}
    )


def usable() -> bool:
    """Whether the environment's Python starts, is of this Python's version, and has pip and all of its packages."""
    code = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    with contextlib.suppress(OSError):
        done = subprocess.run(
            [interpreter(), "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env=pip_environment(),
        )
        return done.stdout.decode() == "%d.%d\n" % sys.version_info[:2] and not any(
            not name.endswith(".dist-info") for name in lost()
        )  # other versions of packages are no damage
    return False


def clear(place: str) -> None:
    """Remove an environment that this program made or was making. Raises: Refusal for any other folder."""
    if not os.path.lexists(place):
        return
    ours = any(os.path.exists(os.path.join(place, name)) for name in (STAMP, BEGUN))
    if os.path.islink(place) or not os.path.isdir(place) or (os.listdir(place) and not ours):
        raise Refusal(
            f"{shown(place)} is there, and this program did not make it; move it away, or activate it if it "
            "has all packages"
        )
    try:
        shutil.rmtree(place)
    except OSError as error:
        raise Refusal(
            f"{shown(place)} cannot be removed to be made anew ({why(error)}); does it belong to another "
            "user? Remove it, or take a checkout of your own"
        ) from None


def make_bare(place: str) -> None:
    """Make an environment without packages."""
    clear(place)
    say(f"making {place} for Python {sys.version.split()[0]} (a few minutes, once)")
    os.mkdir(place)
    files.write_whole(os.path.join(place, BEGUN), b"a set-up has begun to fill this folder\n")
    system = ["--system-site-packages"] if host_torch() else []
    done = subprocess.run(
        [sys.executable, "-m", "venv", *system, place],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    )
    if done.returncode:
        said = done.stdout.decode(errors="replace").rstrip()
        print(said, file=sys.stderr)
        advice = (
            "on Debian and Ubuntu: apt-get install python3-venv"
            if "ensurepip is not" in said
            else "make room"
            if "No space left" in said
            else "mend what it names"
        )
        raise Refusal(
            f"{sys.executable} cannot make a virtual environment (its words stand above); {advice}"
        )
    if sys.version_info < (3, 8):
        run_pip(
            ["install", "--upgrade", "pip"], interpreter()
        )  # 3.7's own does not know today's wheel names


def make(requirements: Sequence[str]) -> None:
    """Make the environment and fill it; keep a finished one that only lacks further packages (the tests' own)."""
    start, place, python = time.time(), folder(), interpreter()
    before = stamp()
    if not before or not usable():
        before = []
        make_bare(place)
    else:
        say(
            f"adding to {place} what {' and '.join(os.path.relpath(path, ROOT) for path in requirements)} ask for"
        )
    with open(os.path.join(place, "pyvenv.cfg"), encoding="utf-8") as file:
        from_host = host_torch() if re.search("system-site-packages *= *true", file.read()) else ""
    install(requirements, python, from_host)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from common.core.environment import satisfied; "
        "sys.exit(not satisfied(sys.argv[2:]))"
    )
    if subprocess.call(
        [python, "-c", code, os.path.join(ROOT, "scripts"), *requirements],
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    ):
        raise Refusal(
            f"pip ended well, but {shown(place)} still lacks packages; does a setting of pip send them "
            f"elsewhere? See: {shown(python)} -m pip config list"
        )
    kept = {line for line in before if not line.startswith((HAS, BORROWED))} | stamp_lines(
        requirements
    )
    kept |= {f"{BORROWED}{from_host}\n"} if from_host else set()
    lines = sorted(kept) + sorted(f"{HAS}{name}\n" for name in installed())
    files.write_whole(os.path.join(place, STAMP), "".join(lines).encode(), durable=True)
    say(f"{place} is ready after {time.time() - start:.0f} s")


def python(requirements: Sequence[str] = (REQUIREMENTS,), dry_run: bool = False) -> str:
    """The interpreter that runs everything: the finished environment's; this one, if it has all; one made anew.

    dry_run: make nothing, name the interpreter that would be used.
    """
    chosen = interpreter()
    if not finished(requirements):
        if satisfied(requirements):
            chosen = sys.executable
        elif not dry_run:
            with one_at_a_time():
                if not finished(requirements):  # by now
                    make(requirements)
    if not dry_run:
        for name in ("data/resize.c", "results/ranks.c"):
            with contextlib.suppress(
                RuntimeError
            ):  # no compiler: whoever needs it says that it is slower
                native.load(name)
    return chosen
