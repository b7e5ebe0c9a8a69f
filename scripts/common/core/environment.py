"""Which Python runs, and what comes from the package registry.

That is the environment, and single files of a known SHA-256. Standard library only.
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
STAMP = "finished"  # a file in the environment's folder: its requirements, and what was installed
BEGUN = "begun"  # a file in a folder that a set-up is filling
HAS = "has "  # begins the lines of the stamp that name what was installed
BORROWED = "torch of the host: "  # begins another line of the stamp
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
DOWNLOADING = re.compile(r"Downloading (\S+?)(?:\.metadata)? \(([0-9.]+) (kB|MB|GB)\)")  # by pip
MEGABYTES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}
LINES_EVERY = 20.0  # seconds between lines about the downloads where there is no terminal
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own builds without CUDA, for x86-64
ANSWER = 5.0  # seconds to wait for an answer
OLDEST_TORCH = (1, 6)  # from this version on, a torch that the host has is good enough
DOWNLOAD = 180  # MB that pip fetches (measured)
CUDA = 2900  # MB of CUDA packages that it fetches as well if torch asks for them (measured)


def say(message: str) -> None:
    print(f"set-up: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Wait until no other set-up of this checkout runs; no other one starts during the block."""
    lock = os.path.join(ROOT, ".venv.lock")
    if not os.access(lock if os.path.lexists(lock) else ROOT, os.W_OK):
        raise Refusal(
            f"the environment cannot be set up in {shown(ROOT)}: this user cannot write there; use "
            "a checkout of your own, or let its owner run python3 scripts/setup_env.py"
        )
    held = files.hold(lock, "waiting for another set-up of this checkout")
    try:
        yield
    finally:
        os.close(held)


def pip_environment() -> Dict[str, str]:
    """The environment variables for pip: those of this process without ELSEWHERE."""
    return {key: value for key, value in os.environ.items() if key not in ELSEWHERE}


def run_pip(arguments: Sequence[str], python: str = sys.executable) -> None:
    """Run pip. Only its downloads are shown, as progress; if pip fails, all its output is.

    Raises: Refusal with the command.
    """
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    output: List[str] = []
    megabytes = 0.0
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    ) as pip, progress.watched(
        "set-up", 0, "MB downloaded", lambda: megabytes, lines_every=LINES_EVERY
    ) as bar:
        assert pip.stdout is not None
        for line in pip.stdout:
            output.append(line.decode(errors="replace").rstrip())
            download_line = DOWNLOADING.search(output[-1])
            if download_line:
                name, size, unit = download_line.groups()
                megabytes += float(size) * MEGABYTES[unit]
                bar.what = f"set-up: {name} ({size} {unit})"
    if megabytes >= 1:
        say(f"{megabytes:,.0f} MB were downloaded")
    if pip.returncode:
        print("\n".join(output), file=sys.stderr)
        raise Refusal(
            f"pip failed with status {pip.returncode} (see above); fix the problem, for example "
            "the network or the disk, and run the same command again; pip's command was: "
            + " ".join(map(shown, command))
        )


def download(package: str, sha256: str, folder: str, *options: str) -> str:
    """Fetch one file of `package` (NAME==VERSION) from the registry into the empty `folder`.

    pip compares its SHA-256 before anything opens it. options: of pip.
    Returns: its path. Raises: Refusal, also if the SHA-256 differs.
    """
    pinned = os.path.join(folder, "pinned.txt")
    with open(pinned, "w", encoding="utf-8") as file:
        file.write(f"{package} --hash=sha256:{sha256}\n")
    run_pip(["download", "--no-deps", "--require-hashes", *options, "--dest", folder, "-r", pinned])
    os.remove(pinned)
    (name,) = os.listdir(folder)
    return os.path.join(folder, name)


# ---- the environment -----------------------------------------------------------------------------


def requirement_lines(requirements: Sequence[str]) -> List[str]:
    """The lines of requirements files without comments."""
    lines = []
    for path in requirements:
        with open(path, encoding="utf-8") as file:
            lines += [line.split("#")[0].strip() for line in file]
    return list(filter(None, lines))


def satisfied(requirements: Sequence[str]) -> bool:
    """Whether this Python has every package of the files in an accepted version.

    No package is imported, because that takes long. A Python that has them all has `packaging` as
    well: ONNX Runtime and matplotlib need it.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return False
    for requirement in map(Requirement, requirement_lines(requirements)):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        version = recipe.version_of(requirement.name)
        if not version:
            return False
        is_accepted = requirement.specifier.contains(version, prereleases=True)
        if not is_accepted and not (requirement.name == "torch" and is_usable_torch(version)):
            return False
    return True


# ---- PyTorch without CUDA ------------------------------------------------------------------------


def is_usable_torch(version: str) -> bool:
    """Whether the torch that the host has can be used as it is."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= OLDEST_TORCH


def host_torch() -> str:
    """The version of the torch in the host's own Python; "" if it has none that can be used."""
    if sys.prefix != sys.base_prefix:
        return ""
    version = recipe.version_of("torch")
    return version if version and is_usable_torch(version) else ""


def cpu_index_answers() -> bool:
    """Whether PyTorch's index of CPU builds can be reached."""
    address = f"{CPU_INDEX}/torch/"
    code = f"import urllib.request; urllib.request.urlopen({address!r}, timeout={ANSWER})"
    try:
        subprocess.run(  # a process of its own, because looking up a name may hang
            [sys.executable, "-c", code],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=ANSWER,
        )
    except subprocess.SubprocessError:
        return False
    return True


def brings_cuda() -> bool:
    """Whether the registry's torch asks for CUDA here; requirements.txt names another for ARM."""
    return platform.machine() == "x86_64"


def coming() -> str:
    """What a set-up would download, in words."""
    if host_torch():
        return f"what the host lacks beside its torch {host_torch()}: at most {DOWNLOAD // 2} MB"
    if not brings_cuda() or cpu_index_answers():
        return f"about {DOWNLOAD} MB, without CUDA"
    return (
        f"about {DOWNLOAD} MB, and {CUDA:,} MB of CUDA packages that nobody needs here, unless "
        "your registry has torch without them: PyTorch's own index of CPU builds gave no answer "
        f"within {ANSWER:g} s"
    )


def install(requirements: Sequence[str], python: str, from_host: str) -> None:
    """Fill an environment.

    python: its interpreter. from_host: the version of the host's torch that it sees, or "".
    """
    lines = requirement_lines(requirements)
    torch = [line for line in lines if line.startswith("torch==")]  # pip chooses one by its marker
    if torch and from_host:
        say(f"the host's own torch {from_host} is used")
        lines = [line for line in lines if line not in torch]
    elif torch and brings_cuda() and "torch" not in installed():
        if cpu_index_answers():
            run_pip(["install", "--index-url", CPU_INDEX, *torch], python)
        else:
            say(f"torch comes from the registry, {coming()}")
    # satisfied() needs `packaging`; most packages bring it, but not all requirements files.
    run_pip(["install", "packaging", *lines], python)


# ---- the environment's folder --------------------------------------------------------------------


def stamp_lines(requirements: Sequence[str]) -> Set[str]:
    """A line for each requirements file: this Python's version, and the file's SHA-256."""
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
    return {f"{python} {recipe.sha256(path)}\n" for path in requirements}


def folder() -> str:
    """The environment's folder; a Python that the variable PYTHON names has one of its own."""
    suffix = "-%d.%d" % sys.version_info[:2] if os.environ.get("PYTHON") else ""
    return os.path.join(ROOT, ".venv" + suffix)


def interpreter() -> str:
    return os.path.join(folder(), "bin", "python")


def stamp() -> List[str]:
    """The lines that the last set-up wrote at its end; [] if no set-up came to its end."""
    path = os.path.join(folder(), STAMP)
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        return file.read().splitlines(keepends=True)
    return []


def installed() -> Set[str]:
    """The names of all files and folders in the environment's site-packages."""
    names: Set[str] = set()
    for path in glob.glob(os.path.join(glob.escape(folder()), "lib", "python*", "site-packages")):
        names.update(os.listdir(path))
    return names


def lost() -> Set[str]:
    """What was installed according to the stamp, and is missing now."""
    return {line[len(HAS) : -1] for line in stamp() if line.startswith(HAS)} - installed()


def finished(requirements: Sequence[str]) -> bool:
    """Whether the folder is an environment with all packages of these requirements files."""
    lines = set(stamp())
    borrowed = {line for line in lines if line.startswith(BORROWED)}
    if borrowed and borrowed != {f"{BORROWED}{host_torch()}\n"}:  # the host has another torch now
        return False
    has_all = stamp_lines(requirements) <= lines and not lost()
    return has_all and os.access(interpreter(), os.X_OK)


def usable() -> bool:
    """Whether the environment's Python starts, has this Python's version, pip and all packages."""
    code = "import pip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [interpreter(), "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env=pip_environment(),
        )
    except OSError:
        return False
    same_version = done.stdout.decode() == "%d.%d\n" % sys.version_info[:2]
    # A lost .dist-info alone means that a package has another version, which is not damage.
    return same_version and all(name.endswith(".dist-info") for name in lost())


def clear(path: str) -> None:
    """Remove an environment that this program made or was making.

    Raises: Refusal for any other folder.
    """
    if not os.path.lexists(path):
        return
    is_folder = os.path.isdir(path) and not os.path.islink(path)
    is_ours = any(os.path.exists(os.path.join(path, name)) for name in (STAMP, BEGUN))
    if not is_folder or (os.listdir(path) and not is_ours):
        raise Refusal(
            f"{shown(path)} exists, and this program did not make it; move it away, or activate it "
            "if it has all packages"
        )
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise Refusal(
            f"{shown(path)} cannot be removed ({why(error)}), and it must be made again; does it "
            "belong to another user? Remove it, or use a checkout of your own"
        ) from None


def venv_advice(output: str) -> str:
    """What to do if Python's venv failed with this output."""
    if "ensurepip is not" in output:
        return "on Debian and Ubuntu: apt-get install python3-venv"
    if "No space left" in output:
        return "free some space"
    return "fix the problem and run the same command again"


def make_bare(path: str) -> None:
    """Make an environment without packages."""
    clear(path)
    say(f"making {path} for Python {sys.version.split()[0]} (a few minutes, once)")
    os.mkdir(path)
    files.write_whole(os.path.join(path, BEGUN), b"a set-up has begun to fill this folder\n")
    system = ["--system-site-packages"] if host_torch() else []
    done = subprocess.run(
        [sys.executable, "-m", "venv", *system, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    )
    if done.returncode:
        output = done.stdout.decode(errors="replace").rstrip()
        print(output, file=sys.stderr)
        raise Refusal(
            f"{sys.executable} cannot make a virtual environment (see above); {venv_advice(output)}"
        )
    if sys.version_info < (3, 8):  # its pip does not know today's names of wheels
        run_pip(["install", "--upgrade", "pip"], interpreter())


def has_all_packages(python: str, requirements: Sequence[str]) -> bool:
    """Whether another Python has every package of the files in an accepted version."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from common.core.environment import satisfied; sys.exit(not satisfied(sys.argv[2:]))"
    )
    status = subprocess.call(
        [python, "-c", code, os.path.join(ROOT, "scripts"), *requirements],
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    )
    return status == 0


def make(requirements: Sequence[str]) -> None:
    """Make the environment and fill it; add to a finished one that only lacks packages."""
    start, path, python = time.time(), folder(), interpreter()
    before = stamp()
    if before and usable():
        names = " and ".join(os.path.relpath(path, ROOT) for path in requirements)
        say(f"adding the packages of {names} to {path}")
    else:
        before = []
        make_bare(path)
    with open(os.path.join(path, "pyvenv.cfg"), encoding="utf-8") as file:
        sees_host = re.search("system-site-packages *= *true", file.read())
    from_host = host_torch() if sees_host else ""
    install(requirements, python, from_host)
    if not has_all_packages(python, requirements):
        raise Refusal(
            f"pip ended well, but {shown(path)} still lacks packages; does a setting of pip send "
            f"them elsewhere? See: {shown(python)} -m pip config list"
        )
    lines = {line for line in before if not line.startswith((HAS, BORROWED))}
    lines |= stamp_lines(requirements)
    if from_host:
        lines.add(f"{BORROWED}{from_host}\n")
    text = "".join([*sorted(lines), *sorted(f"{HAS}{name}\n" for name in installed())])
    files.write_whole(os.path.join(path, STAMP), text.encode(), durable=True)
    say(f"{path} is ready after {time.time() - start:.0f} s")


def python(requirements: Sequence[str] = (REQUIREMENTS,), dry_run: bool = False) -> str:
    """The interpreter that runs everything.

    That is the finished environment's, or this one if it has all packages, or that of a new
    environment. dry_run: make nothing, only name the interpreter.
    """
    chosen = interpreter()
    if not finished(requirements):
        if satisfied(requirements):
            chosen = sys.executable
        elif not dry_run:
            with one_at_a_time():
                if not finished(requirements):  # another set-up may have made it in the meantime
                    make(requirements)
    if not dry_run:
        for name in ("data/resize.c", "results/ranks.c"):
            with contextlib.suppress(RuntimeError):  # no compiler: its users say that it is slower
                native.load(name)
    return chosen
