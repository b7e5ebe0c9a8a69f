"""Which Python runs: the environment that a set-up makes, or one that has all packages already.

Standard library only.
"""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Iterator, List, Optional, Sequence, Set, Tuple

from common.core import cli, files, native, packages, places, recipe
from common.core.cli import ROOT, Refusal, shown, why
from common.core.packages import Source, pip_environment, run_pip, say
from common.core.places import BEGUN, STAMP, Place

REQUIREMENTS = os.path.join(ROOT, "requirements.txt")
BORROWED = "torch of the host: "  # begins a line of the stamp
OLDEST_TORCH = (1, 6)  # from this version on, a torch that the host has is good enough
SPACE = 1_300_000_000  # bytes of an environment with all packages (measured)


@contextlib.contextmanager
def one_at_a_time(place: Place) -> Iterator[None]:
    """Wait until no other set-up of this place runs; no other one starts during the block."""
    problem = files.unusable(place.base)
    if problem:
        raise Refusal(f"the set-up's folder {shown(place.base)} {problem}; {NAME_ANOTHER}")
    os.makedirs(place.base, mode=0o755, exist_ok=True)
    held = files.hold(place.lock, "waiting for another set-up of this checkout")
    try:
        yield
    finally:
        os.close(held)


NAME_ANOTHER = f"name another with --venv DIR or {places.VARIABLE}=DIR"


# ---- which packages ------------------------------------------------------------------------------


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


def is_usable_torch(version: str) -> bool:
    """Whether the torch that the host has can be used as it is."""
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= OLDEST_TORCH


def host_torch() -> str:
    """The version of the torch in the host's own Python; "" if it has none that can be used."""
    if sys.prefix != sys.base_prefix:
        return ""
    version = recipe.version_of("torch")
    return version if version and is_usable_torch(version) else ""


def coming(offline: Optional[str]) -> str:
    """What a set-up would download, in words."""
    if offline:
        return f"nothing: all comes from {shown(offline)}"
    megabytes = packages.DOWNLOAD
    if host_torch():
        return f"what the host lacks beside its torch {host_torch()}: at most {megabytes // 2} MB"
    warning = packages.torch_index(packages.HERE).warning
    return f"about {megabytes} MB; {warning}" if warning else f"about {megabytes} MB, without CUDA"


def install(requirements: Sequence[str], place: Place, source: Source, from_host: str) -> None:
    """Fill an environment. from_host: the version of the host's torch that it sees, or ""."""
    lines = requirement_lines(requirements)
    torch = [line for line in lines if line.startswith("torch==")]  # pip chooses one by its marker
    has_torch = any(os.path.isdir(os.path.join(path, "torch")) for path in site_packages(place))
    if torch and from_host:
        say(f"the host's own torch {from_host} is used")
        lines = [line for line in lines if line not in torch]
    elif torch and not has_torch:
        index = packages.torch_index(source)
        if index.warning:
            say(index.warning)
        if index.words:
            run_pip(["install", *index.words, *torch], source)
    # satisfied() needs `packaging`; most packages bring it, but not all requirements files.
    run_pip(["install", "packaging", *lines], source)


def collect(folder: str, requirements: Sequence[str]) -> None:
    """Fill a folder with all that a set-up without a network needs; its list comes last.

    That is for this Python on this kind of machine; the folder may hold others as well.
    """
    files.make_folder(folder, "--download")
    list_path = os.path.join(folder, packages.list_name())
    with contextlib.suppress(FileNotFoundError):
        os.unlink(list_path)
    lines = [*requirement_lines(requirements), "packaging"]
    if sys.version_info < (3, 8):
        lines.append("pip")
    words = ["download", "--dest", folder]
    with tempfile.TemporaryDirectory() as scratch:
        new_venv(scratch)
        source = Source(os.path.join(scratch, "bin", "python"))
        torch = [line for line in lines if line.startswith("torch==")]
        index = packages.torch_index(source) if torch else packages.TorchIndex()
        if index.warning:
            say(index.warning)
        if index.words:
            run_pip([*words, *index.words, *torch], source)
            lines = [line for line in lines if line not in torch]
        run_pip([*words, *lines], source)
        for pinned in (packages.TIMM_SOURCE, packages.PHOTOS, packages.CLASS_NAMES):
            if not packages.local_file(pinned, [folder]):
                with tempfile.TemporaryDirectory() as alone:
                    shutil.copy(packages.fetch(pinned, alone, source), folder)
    sums = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith((".whl", ".tar.gz", ".zip")):
            sums[name] = recipe.sha256(os.path.join(folder, name))
    files.write_whole(list_path, json.dumps({"files": sums}, indent=1).encode(), True, files.SHARED)


# ---- the environment's folder --------------------------------------------------------------------


def stamp_lines(requirements: Sequence[str]) -> Set[str]:
    """A line for each requirements file: this Python's version, and the file's SHA-256."""
    return {f"{this_python()} {recipe.sha256(path)}\n" for path in requirements}


def this_python() -> str:
    return "Python %d.%d" % sys.version_info[:2]


def stamp(place: Place) -> List[str]:
    """The lines that the last set-up wrote at its end; [] if no set-up came to its end."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(
        os.path.join(place.venv, STAMP), encoding="utf-8"
    ) as file:
        return file.read().splitlines(keepends=True)
    return []


def site_packages(place: Place) -> List[str]:
    """The folders of the environment's packages, as far as they exist."""
    version = "python%d.%d" % sys.version_info[:2]
    folders = [os.path.join(place.venv, lib, version, "site-packages") for lib in ("lib", "lib64")]
    return list(filter(os.path.isdir, folders))


def finished(place: Place, requirements: Sequence[str]) -> bool:
    """Whether the folder is an environment with all packages of these requirements files."""
    lines = set(stamp(place))
    borrowed = {line for line in lines if line.startswith(BORROWED)}
    if borrowed and borrowed != {f"{BORROWED}{host_torch()}\n"}:  # the host has another torch now
        return False
    is_there = bool(site_packages(place)) and os.access(place.python, os.X_OK)
    return is_there and stamp_lines(requirements) <= lines


def usable(place: Place) -> bool:
    """Whether a finished environment is for this Python, starts, and has pip."""
    if not any(line.startswith(this_python() + " ") for line in stamp(place)):
        return False
    try:
        status = subprocess.call(
            cli.isolated(place.python, "import pip"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=pip_environment(),
        )
    except OSError:
        return False
    return status == 0


def clear(place: Place) -> None:
    """Remove an environment that this program made or was making.

    Raises: Refusal for any other folder.
    """
    path = place.venv
    if not os.path.lexists(path):
        return
    is_folder = os.path.isdir(path) and not os.path.islink(path)
    is_ours = any(os.path.exists(os.path.join(path, name)) for name in (STAMP, BEGUN))
    entries = set(os.listdir(path)) - set(place.own_files) if is_folder else set()
    if not is_folder or (entries and not is_ours):
        raise Refusal(
            f"{shown(path)} exists, and this program did not make it; move it away, or activate it "
            "if it has all packages"
        )
    try:
        for name in sorted(entries, key=lambda entry: entry in (STAMP, BEGUN)):  # these last
            entry = os.path.join(path, name)
            if os.path.isdir(entry) and not os.path.islink(entry):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)
    except OSError as error:
        raise Refusal(
            f"{shown(path)} cannot be removed ({why(error)}), and it must be made again; does it "
            f"belong to another user? Remove it, or {NAME_ANOTHER}"
        ) from None


def venv_advice(output: str) -> str:
    """What to do if Python's venv failed with this output."""
    if "ensurepip is not" in output:
        return INSTALL_VENV
    if "No space left" in output:
        return "free some space"
    return "fix the problem and run the same command again"


INSTALL_VENV = "on Debian and Ubuntu: apt-get install python3-venv"


def new_venv(path: str, *options: str) -> None:
    """Make an environment without packages in an empty folder."""
    code = "import runpy; runpy.run_module('venv', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        cli.isolated(sys.executable, code, *options, path),
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


def make_bare(place: Place, source: Source) -> None:
    """Make an environment without packages."""
    clear(place)
    say(f"making {place.venv} for Python {sys.version.split()[0]} (a few minutes, once)")
    os.makedirs(place.venv, exist_ok=True)
    begun = os.path.join(place.venv, BEGUN)
    files.write_whole(begun, b"a set-up has begun to fill this folder\n", mode=files.SHARED)
    system = ["--system-site-packages"] if host_torch() else []
    new_venv(place.venv, *system)
    if sys.version_info < (3, 8):  # its pip does not know today's names of wheels
        run_pip(["install", "--upgrade", "pip"], source)


def has_all_packages(python: str, requirements: Sequence[str]) -> bool:
    """Whether another Python has every package of the files in an accepted version."""
    code = (
        "sys.path.insert(0, sys.argv[1]);"
        "from common.core.environment import satisfied; sys.exit(not satisfied(sys.argv[2:]))"
    )
    status = subprocess.call(
        cli.isolated(python, code, os.path.join(ROOT, "scripts"), *requirements),
        stdin=subprocess.DEVNULL,
        env=pip_environment(),
    )
    return status == 0


def make(place: Place, requirements: Sequence[str], offline: Optional[str]) -> None:
    """Make the environment and fill it; add to a finished one that only lacks packages."""
    start, path, source = time.time(), place.venv, Source(place.python, offline)
    before: List[str] = []
    if usable(place):
        before = stamp(place)
        names = " and ".join(os.path.relpath(path, ROOT) for path in requirements)
        say(f"adding the packages of {names} to {path}")
    else:
        make_bare(place, source)
    with open(os.path.join(path, "pyvenv.cfg"), encoding="utf-8") as file:
        sees_host = re.search("system-site-packages *= *true", file.read())
    from_host = host_torch() if sees_host else ""
    install(requirements, place, source, from_host)
    if not has_all_packages(place.python, requirements):
        raise Refusal(
            f"pip ended well, but {shown(path)} still lacks packages; does a setting of pip send "
            f"them elsewhere? See: {shown(place.python)} -m pip config list"
        )
    lines = {line for line in before if line.startswith(this_python())}
    lines |= stamp_lines(requirements)
    if from_host:
        lines.add(f"{BORROWED}{from_host}\n")
    stamp_path = os.path.join(path, STAMP)
    files.write_whole(stamp_path, "".join(sorted(lines)).encode(), True, files.SHARED)
    say(f"{path} is ready after {time.time() - start:.0f} s")


# ---- which place, which Python -------------------------------------------------------------------


def choose(
    named: Optional[str] = None,
    workdir: str = "work",
    requirements: Sequence[str] = (REQUIREMENTS,),
) -> Place:
    """Where everything of the set-up is, or will be.

    That is the folder that --venv names, the one of places.named(), the checkout if it is set up or
    can be written, or else a folder beside the work folder.
    Raises: Refusal if somebody else could have put something into that one.
    """
    folder = named or places.named()
    if folder:
        return places.in_folder(folder)
    here = places.checkout()
    if not files.unusable(ROOT) or finished(here, requirements):
        return here
    beside = os.path.join(os.path.dirname(os.path.abspath(workdir)), places.BESIDE)
    check_own(beside)
    return places.in_folder(beside, is_default=True)


def check_own(folder: str) -> None:
    """Refuse a folder, which nobody named, unless it is this user's alone: programs start there."""
    if not os.path.lexists(folder):
        return
    status = os.lstat(folder)
    others_may_write = status.st_mode & 0o022
    if os.path.islink(folder) or status.st_uid != os.geteuid() or others_may_write:
        raise Refusal(
            f"{shown(folder)} is not yours alone, so no program in it is started; {NAME_ANOTHER}"
        )


def obstacles(
    place: Place, offline: Optional[str], requirements: Sequence[str] = (REQUIREMENTS,)
) -> Iterator[Tuple[str, str]]:
    """Yield what would keep a set-up from its work, if there is any: (problem, what to do)."""
    if finished(place, requirements) or satisfied(requirements):
        return
    problem = files.unusable(place.base)
    if problem:
        yield f"{shown(place.base)} {problem}", NAME_ANOTHER
    if not stamp(place):  # otherwise only packages are added
        free, needed = files.free_space(place.base), SPACE // 2 if host_torch() else SPACE
        if free < needed:
            sizes = f"{free / 1e6:,.0f} MB are free for {shown(place.venv)}"
            sizes += f", {needed / 1e6:,.0f} MB are needed"
            yield sizes, f"free some space, or {NAME_ANOTHER}"
        if importlib.util.find_spec("ensurepip") is None:
            yield f"{sys.executable} has no ensurepip to make a virtual environment", INSTALL_VENV
    if offline:
        try:
            packages.check_folder(offline)
        except Refusal as refusal:
            problem, _, advice = refusal.sentence.rpartition("; ")
            yield problem, advice


def python(
    place: Place,
    requirements: Sequence[str] = (REQUIREMENTS,),
    offline: Optional[str] = None,
    dry_run: bool = False,
) -> str:
    """The interpreter that runs everything.

    That is the finished environment's, or this one if it has all packages, or that of a new
    environment. offline: the folder that has all packages, None for the registry.
    dry_run: make nothing, only name the interpreter.
    """
    chosen = place.python
    if not finished(place, requirements):
        if satisfied(requirements):
            chosen = sys.executable
        elif not dry_run:
            for problem, advice in obstacles(place, offline, requirements):
                raise Refusal(f"{problem}; {advice}")
            with one_at_a_time(place):
                if not finished(place, requirements):  # another set-up may have made it meanwhile
                    make(place, requirements, offline)
    if not dry_run:
        for name in ("data/resize.c", "results/ranks.c"):
            with contextlib.suppress(RuntimeError):  # no compiler: its users say that it is slower
                native.load(name, place)
    return chosen
