#!/usr/bin/env python3
"""Put timm v0.4.5's source, patched with TResNet.patch, into ./pytorch-image-models.

    python3 scripts/timm_source.py                  # from the package registry, checked against its SHA-256
    python3 scripts/timm_source.py --from git       # git clone --branch v0.4.5
    python3 scripts/timm_source.py --from git --url ../mirrors/pytorch-image-models

Nothing is done if the patched source is there. A clone of v0.4.5 that you put there yourself is patched in place.
Runs on a bare Python 3.7 or newer with pip and git.
"""

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from typing import List, Set

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import options
from common.core.cli import ROOT, Refusal, shown
from common.core.environment import download, one_at_a_time, say
from common.core.recipe import sha256

TARGET = os.path.join(ROOT, "pytorch-image-models")
PATCH = os.path.join(ROOT, "TResNet.patch")
STAMP = ".patched-with"  # in TARGET: SHA-256 of the patch, whose the folder is, and the files that belong to it
OURS, THEIRS = "fetched", "the user's"  # the second line
PACKAGE = "timm==0.4.5"
SDIST_SHA256 = (
    "613f0ef4ded491b1bf6dff6053d3c8361fa20517c7ac9c7c388064a2b5890139"  # timm-0.4.5.tar.gz
)
TAG = "v0.4.5"
GIT_URL = "https://github.com/huggingface/pytorch-image-models.git"


def unpack(archive: str, folder: str) -> None:
    """Unpack the regular files below the archive's single top folder; anything else in it is ignored."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = member.name.split("/")[1:]
            if not member.isfile() or not parts or ".." in parts:
                continue
            path = os.path.join(folder, *parts)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            content = tar.extractfile(member)
            with open(path, "wb") as file:
                shutil.copyfileobj(content, file)  # type: ignore[arg-type]


def git(arguments: List[str], folder: str) -> "subprocess.CompletedProcess[bytes]":
    """Run git in `folder` as if no repository lay above it (ours would redirect `git apply`)."""
    environment = dict(os.environ, GIT_CEILING_DIRECTORIES=os.path.dirname(os.path.abspath(folder)))
    if not shutil.which("git"):
        raise Refusal(
            "git is needed to put TResNet.patch onto timm's source, but it is not installed; on Debian and "
            "Ubuntu: apt-get install git"
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
    """The Python files of timm in a folder, by their paths in it."""
    return {
        os.path.relpath(os.path.join(path, name), folder)
        for path, _, names in os.walk(os.path.join(folder, "timm"))
        for name in names
        if name.endswith(".py")
    }


def patch(folder: str, stamp: str, whose: str) -> None:
    """Apply TResNet.patch to the source in `folder`, unless it is applied, and stamp it.

    Raises: Refusal if it fits neither way.
    """
    apply = git(["apply", "-p1", PATCH], folder)
    if apply.returncode and git(["apply", "-p1", "--reverse", "--check", PATCH], folder).returncode:
        raise Refusal(
            f"TResNet.patch does not fit {shown(folder)}, which should be timm v0.4.5, untouched or patched "
            f"with it ({last_line(apply)}); move that folder away and start again"
        )
    with open(os.path.join(folder, STAMP), "w", encoding="utf-8") as file:
        file.write("\n".join([stamp, whose, *sorted(modules(folder))]))


def last_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    return (done.stdout.decode(errors="replace").strip() or "no word of git's").splitlines()[-1]


def fetch(source: str, url: str, folder: str) -> None:
    """Put the unpatched source into the empty `folder`."""
    if source == "git":
        done = git(
            ["clone", "--quiet", "--depth", "1", "--branch", TAG, url, folder],
            os.path.dirname(folder),
        )
        if done.returncode:
            raise Refusal(
                f"git cannot clone {TAG} of {url} ({last_line(done)}); mend what git says, or fetch from the "
                "package registry: python3 scripts/timm_source.py"
            )
        return
    with tempfile.TemporaryDirectory() as downloads:
        unpack(download(PACKAGE, SDIST_SHA256, downloads, "--no-binary", ":all:"), folder)


def read_stamp() -> List[str]:
    """[SHA-256 of the patch that the source in TARGET was made with here, whose it is, its files], [""] if it has none.

    Older versions wrote only the first; a clone is then taken for the user's.
    """
    with contextlib.suppress(OSError), open(os.path.join(TARGET, STAMP), encoding="utf-8") as file:
        lines = file.read().split("\n")
        return lines + (
            [THEIRS if os.path.exists(os.path.join(TARGET, ".git")) else OURS]
            if len(lines) == 1
            else []
        )
    return ["", THEIRS]


def whole(stamp: str) -> bool:
    """Whether TARGET is patched with this patch and has all of its files."""
    made_with, _, *names = read_stamp()
    there = modules(TARGET)
    return made_with == stamp and bool(there) and there.issuperset(names)


def prepare(source: str = "registry", url: str = GIT_URL) -> None:
    """Put the patched source into TARGET, unless it is there.

    Raises: Refusal, also for a folder of the user's that is patched otherwise or lacks files.
    """
    stamp, partial = sha256(PATCH), TARGET + "-unfinished"
    if whole(stamp):
        return
    with one_at_a_time():
        shutil.rmtree(partial, ignore_errors=True)
        made_with, whose, *_ = read_stamp()
        if made_with and not whole(stamp):
            if whose == THEIRS:
                raise Refusal(
                    f"{shown(TARGET)} is a clone of yours that lacks files or was patched with another "
                    "TResNet.patch; move it away, or bring it back to timm v0.4.5 and remove "
                    f"{shown(os.path.join(TARGET, STAMP))}"
                )
            os.rename(TARGET, partial)  # made here, with another patch or damaged since
            shutil.rmtree(partial)
        if not os.path.exists(TARGET):
            say(f"fetching timm v0.4.5 ({source}, 0.3 MB) and patching it into {TARGET}")
            os.mkdir(partial)
            fetch(source, url, partial)
            patch(partial, stamp, OURS)
            os.rename(partial, TARGET)
        elif not made_with:
            patch(TARGET, stamp, THEIRS)
    say(f"{TARGET} is timm v0.4.5 with TResNet.patch")


def main() -> None:
    parser = cli.parser(__doc__)
    options.add(parser, "from", "url", default={"url": GIT_URL})
    arguments = options.parse(parser)
    prepare(arguments.source, arguments.url)


if __name__ == "__main__":
    cli.run(main, "the next call repairs it")
