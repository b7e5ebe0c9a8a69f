#!/usr/bin/env python3
"""Put timm v0.4.5's source, patched with TResNet.patch, into ./pytorch-image-models.

    python3 scripts/timm_source.py               # from the package registry; SHA-256 is compared
    python3 scripts/timm_source.py --from git    # git clone --branch v0.4.5
    python3 scripts/timm_source.py --from git --url ../mirrors/pytorch-image-models
    python3 scripts/timm_source.py --offline packages    # the folder of setup_env.py --download

If the patched source exists, nothing is done. Your own clone of v0.4.5 is patched in place.
Runs on a bare Python 3.7 or newer with git; its pip is the environment's, if that has been made.
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from typing import IO, Iterator, List, Optional, Tuple, cast

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before imports that may fail

from common.core import environment, files, options, packages
from common.core.cli import ROOT, Refusal, shown
from common.core.packages import Source, say
from common.core.patched import OURS, THEIRS, changed, modules, read_stamp, write_stamp
from common.core.places import PATCHED, UNFINISHED, Place
from common.core.recipe import sha256

PATCH = os.path.join(ROOT, "TResNet.patch")
TAG = "v0.4.5"
GIT_URL = "https://github.com/huggingface/pytorch-image-models.git"
INSTALL_GIT = "on Debian and Ubuntu: apt-get install git"


def unpack(archive: str, folder: str) -> None:
    """Unpack the regular files below the archive's single top folder; ignore anything else."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.split("/")[1:]
            if not member.isfile() or not parts or ".." in parts:
                continue
            path = os.path.join(folder, *parts)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            content = cast(IO[bytes], tar.extractfile(member))  # None only for irregular files
            with open(path, "wb") as file:
                shutil.copyfileobj(content, file)


def git(arguments: List[str], folder: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in `folder` as if no repository were above it: ours would redirect `git apply`."""
    environment = dict(os.environ, GIT_CEILING_DIRECTORIES=os.path.dirname(os.path.abspath(folder)))
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def patch(folder: str, patch_sha256: str, owner: str) -> None:
    """Apply TResNet.patch to the source in `folder`, unless it is applied, and write the stamp.

    Raises: Refusal if the patch is not applied and does not fit.
    """
    apply = git(["apply", "-p1", PATCH], folder)
    if apply.returncode and git(["apply", "-p1", "--reverse", "--check", PATCH], folder).returncode:
        raise Refusal(
            f"TResNet.patch does not fit {shown(folder)}, which is not timm v0.4.5 "
            f"({last_line(apply)}); move that folder away and run the same command again"
        )
    write_stamp(folder, patch_sha256, owner)


def last_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    output = done.stdout.decode(errors="replace").strip() or "git printed nothing"
    return output.splitlines()[-1]


def fetch(source: Source, url: str, folder: str) -> None:
    """Put the unpatched source into the empty `folder`; url: of a git repository, or ""."""
    if url:
        done = git(
            ["clone", "--quiet", "--depth", "1", "--branch", TAG, url, folder],
            os.path.dirname(folder),
        )
        if done.returncode:
            raise Refusal(
                f"git cannot clone {TAG} of {url} ({last_line(done)}); fix that problem, or fetch "
                "from the package registry: python3 scripts/timm_source.py"
            )
        return
    with tempfile.TemporaryDirectory() as downloads:
        unpack(packages.fetch(packages.TIMM_SOURCE, downloads, source), folder)


def is_complete(target: str) -> bool:
    """Whether a source is patched with this patch and has all of its files as they were then."""
    is_patched = read_stamp(target).patch == sha256(PATCH)
    return is_patched and bool(modules(target)) and not changed(target)


def obstacles(place: Place) -> Iterator[Tuple[str, str]]:
    """Yield what would keep prepare() from its work, if there is any: (problem, what to do)."""
    if is_complete(place.timm):
        return
    if not shutil.which("git"):
        yield "git is not installed, and it applies TResNet.patch to timm's source", INSTALL_GIT
    problem = files.unusable(place.base)
    if problem:
        yield f"{shown(place.base)} {problem}", environment.NAME_ANOTHER


def prepare(place: Place, source: Source, url: str = "") -> None:
    """Put the patched source into its place, unless it exists.

    source: where packages come from; url: of a git repository that it comes from instead.
    Raises: Refusal, also if the user's own clone lacks files or has another patch.
    """
    target = place.timm
    partial = target + UNFINISHED
    for problem, advice in obstacles(place):
        raise Refusal(f"{problem}; {advice}")
    if is_complete(target):
        return
    with environment.one_at_a_time(place):
        shutil.rmtree(partial, ignore_errors=True)
        stamp = read_stamp(target)
        if stamp.patch and not is_complete(target):
            if stamp.owner == THEIRS:
                raise Refusal(
                    f"{shown(target)} is your own clone, and it lacks files, has changed ones, or "
                    "was patched with another TResNet.patch; move it away, or bring it back to "
                    "timm v0.4.5 and "
                    f"remove {shown(os.path.join(target, PATCHED))}"
                )
            os.rename(target, partial)  # ours, with another patch, or other files
            shutil.rmtree(partial)
        if not os.path.exists(target):
            origin = "git" if url else source.offline or "registry"
            say(f"fetching timm v0.4.5 ({origin}, 0.3 MB) and patching it into {target}")
            os.mkdir(partial)
            fetch(source, url, partial)
            patch(partial, sha256(PATCH), OURS)
            os.rename(partial, target)
        elif not stamp.patch:
            patch(target, sha256(PATCH), THEIRS)
    say(f"{target} is timm v0.4.5 with TResNet.patch")


def source_of(place: Place, offline: Optional[str]) -> Source:
    """Where packages come from: with the environment's own pip, if there is an environment."""
    if os.access(place.python, os.X_OK):
        return Source(place.python, offline)
    return Source(offline=offline)


def main() -> None:
    parser = cli.parser(__doc__)
    options.add(parser, "from", "url", "venv", "offline", default={"url": GIT_URL})
    arguments = options.parse(parser)
    place = environment.choose(arguments.venv)
    url = arguments.url if arguments.source == "git" else ""
    prepare(place, source_of(place, arguments.offline), url)


if __name__ == "__main__":
    cli.run(main, "the next call repairs it")
