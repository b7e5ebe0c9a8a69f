#!/usr/bin/env python3
"""Put timm v0.4.5's source, patched with TResNet.patch, into ./pytorch-image-models.

    python3 scripts/timm_source.py               # from the package registry; SHA-256 is compared
    python3 scripts/timm_source.py --from git    # git clone --branch v0.4.5
    python3 scripts/timm_source.py --from git --url ../mirrors/pytorch-image-models

If the patched source exists, nothing is done. Your own clone of v0.4.5 is patched in place.
Runs on a bare Python 3.7 or newer with pip and git.
"""

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from typing import IO, List, NamedTuple, Set, cast

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before imports that may fail

from common.core import options
from common.core.cli import ROOT, Refusal, shown
from common.core.environment import download, one_at_a_time, say
from common.core.recipe import sha256

TARGET = os.path.join(ROOT, "pytorch-image-models")
PATCH = os.path.join(ROOT, "TResNet.patch")
STAMP = ".patched-with"  # a file in TARGET; its lines are those of Stamp
OURS, THEIRS = "fetched", "the user's"  # who made TARGET
PACKAGE = "timm==0.4.5"
# Of timm-0.4.5.tar.gz.
SDIST_SHA256 = "613f0ef4ded491b1bf6dff6053d3c8361fa20517c7ac9c7c388064a2b5890139"
TAG = "v0.4.5"
GIT_URL = "https://github.com/huggingface/pytorch-image-models.git"


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
    if not shutil.which("git"):
        raise Refusal(
            "git is not installed, and it is needed to apply TResNet.patch to timm's source; on "
            "Debian and Ubuntu: apt-get install git"
        )
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def modules(folder: str) -> Set[str]:
    """The paths of timm's Python files, relative to `folder`."""
    paths: Set[str] = set()
    for path, _, names in os.walk(os.path.join(folder, "timm")):
        python_files = [os.path.join(path, name) for name in names if name.endswith(".py")]
        paths.update(os.path.relpath(file, folder) for file in python_files)
    return paths


class Stamp(NamedTuple):
    """What the file STAMP says of the patched source."""

    patch: str  # SHA-256 of the patch; "" without a stamp
    owner: str  # OURS or THEIRS
    modules: List[str]


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
    with open(os.path.join(folder, STAMP), "w", encoding="utf-8") as file:
        file.write("\n".join([patch_sha256, owner, *sorted(modules(folder))]))


def last_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    output = done.stdout.decode(errors="replace").strip() or "git printed nothing"
    return output.splitlines()[-1]


def fetch(source: str, url: str, folder: str) -> None:
    """Put the unpatched source into the empty `folder`."""
    if source == "git":
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
        unpack(download(PACKAGE, SDIST_SHA256, downloads, "--no-binary", ":all:"), folder)


def read_stamp() -> Stamp:
    """The stamp of TARGET. Early versions wrote only its first line; then a clone is the user's."""
    with contextlib.suppress(OSError), open(os.path.join(TARGET, STAMP), encoding="utf-8") as file:
        lines = file.read().split("\n")
        if len(lines) > 1:
            return Stamp(lines[0], lines[1], lines[2:])
        is_clone = os.path.exists(os.path.join(TARGET, ".git"))
        return Stamp(lines[0], THEIRS if is_clone else OURS, [])
    return Stamp("", THEIRS, [])


def is_complete(patch_sha256: str) -> bool:
    """Whether TARGET is patched with this patch and has all of its files."""
    stamp, present = read_stamp(), modules(TARGET)
    return stamp.patch == patch_sha256 and bool(present) and present.issuperset(stamp.modules)


def prepare(source: str = "registry", url: str = GIT_URL) -> None:
    """Put the patched source into TARGET, unless it exists.

    Raises: Refusal, also if the user's own clone lacks files or has another patch.
    """
    patch_sha256, partial = sha256(PATCH), TARGET + "-unfinished"
    if is_complete(patch_sha256):
        return
    with one_at_a_time():
        shutil.rmtree(partial, ignore_errors=True)
        stamp = read_stamp()
        if stamp.patch and not is_complete(patch_sha256):
            if stamp.owner == THEIRS:
                raise Refusal(
                    f"{shown(TARGET)} is your own clone, and it lacks files or was patched with "
                    "another TResNet.patch; move it away, or bring it back to timm v0.4.5 and "
                    f"remove {shown(os.path.join(TARGET, STAMP))}"
                )
            os.rename(TARGET, partial)  # a source of ours that has another patch or lost files
            shutil.rmtree(partial)
        if not os.path.exists(TARGET):
            say(f"fetching timm v0.4.5 ({source}, 0.3 MB) and patching it into {TARGET}")
            os.mkdir(partial)
            fetch(source, url, partial)
            patch(partial, patch_sha256, OURS)
            os.rename(partial, TARGET)
        elif not stamp.patch:
            patch(TARGET, patch_sha256, THEIRS)
    say(f"{TARGET} is timm v0.4.5 with TResNet.patch")


def main() -> None:
    parser = cli.parser(__doc__)
    options.add(parser, "from", "url", default={"url": GIT_URL})
    arguments = options.parse(parser)
    prepare(arguments.source, arguments.url)


if __name__ == "__main__":
    cli.run(main, "the next call repairs it")
