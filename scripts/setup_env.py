"""Find or make a Python environment that has what requirements.txt asks for; print its interpreter's path.

    python3 scripts/setup_env.py
    python3 scripts/setup_env.py -r requirements.txt -r test/requirements.txt

Runs on a bare Python 3.7 or newer. In this order: a `.venv` finished earlier; the Python that runs this script, if it
has everything; a `.venv` made anew and filled by pip. `.venv` counts as finished only if a stamp, written last, names
the same Python and the same requirements, so that an interrupted set-up is repaired by the next call. With the
environment variable PYTHON set (another Python than the default one), the folder is `.venv-3.7` and so on.
Only the interpreter's path goes to stdout; what happens is told on stderr, pip's own output only if it fails.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from typing import List, Set

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAMP = "finished"  # in the environment's folder: what it was filled from


def say(message: str) -> None:
    print(f"set-up: {message}", file=sys.stderr, flush=True)


def run_pip(arguments: List[str], python: str = sys.executable) -> None:
    """Run pip quietly; if it fails, its output becomes the message.

    Raises: SystemExit with pip's own words and the command.
    """
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{done.stdout.decode(errors='replace').rstrip()}\n"
                         f"set-up: pip failed with status {done.returncode} (its words stand above); mend what it "
                         f"names, for instance the network or the disk, and start again: {' '.join(command)}")


def satisfied(requirements: List[str]) -> bool:
    """Whether this Python has every package of the files, in an admitted version
    (nothing is imported: that takes seconds).
    """
    try:
        from pip._vendor.packaging.requirements import Requirement
    except ImportError:
        return False
    if sys.version_info >= (3, 8):
        from importlib.metadata import PackageNotFoundError as Missing
        from importlib.metadata import version
    else:
        from pkg_resources import DistributionNotFound as Missing
        from pkg_resources import get_distribution

        def version(name: str) -> str:
            return get_distribution(name).version
    for path in requirements:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                text = line.split("#")[0].strip()
                if not text:
                    continue
                requirement = Requirement(text)
                if requirement.marker and not requirement.marker.evaluate():
                    continue
                try:
                    installed = version(requirement.name)
                except Missing:
                    return False
                if not requirement.specifier.contains(installed, prereleases=True):
                    return False
    return True


def stamp_lines(requirements: List[str]) -> Set[str]:
    """One line per requirements file: which Python, and the file's SHA-256."""
    lines = set()
    for path in requirements:
        with open(path, "rb") as file:
            lines.add(f"Python {sys.version_info[0]}.{sys.version_info[1]} {hashlib.sha256(file.read()).hexdigest()}\n")
    return lines


def finished(folder: str, requirements: List[str]) -> bool:
    """Whether `folder` is an environment that was filled to the end from these very requirements."""
    try:
        with open(os.path.join(folder, STAMP), encoding="utf-8") as file:
            return stamp_lines(requirements) <= set(file) and os.access(os.path.join(folder, "bin", "python"), os.X_OK)
    except OSError:
        return False


def make(folder: str, requirements: List[str]) -> None:
    """Make the environment and fill it; keep a finished one that only lacks further packages (the tests' own)."""
    start = time.time()
    python = os.path.join(folder, "bin", "python")
    if not os.access(os.path.join(folder, STAMP), os.F_OK) or not os.access(python, os.X_OK):
        shutil.rmtree(folder, ignore_errors=True)
        say(f"making {folder} for Python {sys.version.split()[0]} (a few minutes, once)")
        done = subprocess.run([sys.executable, "-m", "venv", folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise SystemExit(f"{done.stdout.decode(errors='replace').rstrip()}\nset-up: {sys.executable} cannot make a "
                             "virtual environment (its words stand above); on Debian and Ubuntu: apt-get install "
                             "python3-venv")
        if sys.version_info < (3, 8):
            run_pip(["install", "--upgrade", "pip"], python)  # 3.7's own does not know today's wheel names
    else:
        say(f"adding to {folder} what {' and '.join(os.path.relpath(path, ROOT) for path in requirements)} ask for")
    run_pip(["install", *(word for path in requirements for word in ("-r", path))], python)
    with open(os.path.join(folder, STAMP), "a", encoding="utf-8") as file:
        file.writelines(stamp_lines(requirements))
    say(f"{folder} is ready after {time.time() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", "--requirements", action="append", metavar="FILE",
                        help="a requirements file; may be given several times (default: requirements.txt)")
    parser.add_argument("--dry-run", action="store_true", help="make nothing, print the interpreter that would be used")
    arguments = parser.parse_args()
    if sys.version_info < (3, 7):
        raise SystemExit(f"set-up: Python 3.7 or newer is needed, {sys.executable} is {sys.version.split()[0]}; "
                         "name another one: PYTHON=python3.11 bash scripts/pipeline.sh")
    requirements = [os.path.abspath(path)
                    for path in arguments.requirements or [os.path.join(ROOT, "requirements.txt")]]
    suffix = "-%d.%d" % sys.version_info[:2] if os.environ.get("PYTHON") else ""
    folder = os.path.join(ROOT, ".venv" + suffix)
    try:
        if not finished(folder, requirements):
            if satisfied(requirements):
                print(sys.executable)
                return
            if not arguments.dry_run:
                make(folder, requirements)
    except OSError as error:
        raise SystemExit(f"set-up: {folder} cannot be made: {error.strerror}: {error.filename}")
    print(os.path.join(folder, "bin", "python"))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("interrupted; the next call repairs it")
        sys.exit(130)
