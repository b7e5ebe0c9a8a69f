"""Put timm v0.4.5's source, patched with TResNet.patch, into ./pytorch-image-models.

    python3 scripts/timm_source.py                  # from the package registry, checked against its SHA-256
    python3 scripts/timm_source.py --from git       # git clone --branch v0.4.5
    python3 scripts/timm_source.py --from git --url ../mirrors/pytorch-image-models

Nothing is done if the patched source is there. A clone of v0.4.5 that you put there yourself is patched in place.
Runs on a bare Python 3.7 or newer with pip and git.
"""
import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from typing import List

from setup_env import ROOT, run_pip, say

TARGET = os.path.join(ROOT, "pytorch-image-models")
PATCH = os.path.join(ROOT, "TResNet.patch")
STAMP = ".patched-with"  # in TARGET: SHA-256 of the patch it was made with
PACKAGE = "timm==0.4.5"
SDIST_SHA256 = "613f0ef4ded491b1bf6dff6053d3c8361fa20517c7ac9c7c388064a2b5890139"  # timm-0.4.5.tar.gz
TAG = "v0.4.5"
GIT_URL = "https://github.com/huggingface/pytorch-image-models.git"


def download(package: str, sha256: str, folder: str, *options: str) -> str:
    """Fetch one file of `package` (NAME==VERSION) from the registry into `folder`, checked before anything opens it.

    Returns: its path. Raises: SystemExit with pip's words, also if the SHA-256 is another.
    """
    pinned = os.path.join(folder, "pinned.txt")
    with open(pinned, "w", encoding="utf-8") as file:
        file.write(f"{package} --hash=sha256:{sha256}\n")
    run_pip(["download", "--no-deps", "--require-hashes", *options, "--dest", folder, "-r", pinned])
    os.remove(pinned)
    found, = os.listdir(folder)
    return os.path.join(folder, found)


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
    return subprocess.run(["git", *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def patch(folder: str, stamp: str) -> None:
    """Apply TResNet.patch to the source in `folder`, unless it is applied, and stamp it.

    Raises: SystemExit if it fits neither way.
    """
    apply = git(["apply", "-p1", PATCH], folder)
    if apply.returncode and git(["apply", "-p1", "--reverse", "--check", PATCH], folder).returncode:
        raise SystemExit(f"{apply.stdout.decode(errors='replace').rstrip()}\ntimm source: TResNet.patch does not fit "
                         f"{folder}, which should be timm v0.4.5, untouched or patched with it; move that folder away "
                         "and start again")
    with open(os.path.join(folder, STAMP), "w", encoding="utf-8") as file:
        file.write(stamp)


def fetch(source: str, url: str, folder: str) -> None:
    """Put the unpatched source into the empty `folder`."""
    if source == "git":
        done = git(["clone", "--quiet", "--depth", "1", "--branch", TAG, url, folder], os.path.dirname(folder))
        if done.returncode:
            raise SystemExit(f"{done.stdout.decode(errors='replace').rstrip()}\ntimm source: git cannot clone {TAG} of "
                             f"{url}; mend what git says, or fetch from the package registry: "
                             "python3 scripts/timm_source.py")
        return
    with tempfile.TemporaryDirectory() as downloads:
        unpack(download(PACKAGE, SDIST_SHA256, downloads, "--no-binary", ":all:"), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", choices=("registry", "git"), default="registry",
                        help="where the source comes from (default: %(default)s)")
    parser.add_argument("--url", default=GIT_URL, help="repository for --from git (default: %(default)s)")
    arguments = parser.parse_args()
    with open(PATCH, "rb") as file:
        stamp = hashlib.sha256(file.read()).hexdigest()
    partial = TARGET + "-unfinished"
    shutil.rmtree(partial, ignore_errors=True)
    stamp_path = os.path.join(TARGET, STAMP)
    if os.path.exists(stamp_path):
        with open(stamp_path, encoding="utf-8") as file:
            if file.read() == stamp:
                return
        os.rename(TARGET, partial)  # made here, with another patch
        shutil.rmtree(partial)
    if os.path.exists(TARGET):
        patch(TARGET, stamp)
    else:
        say(f"fetching timm v0.4.5 ({arguments.source}) and patching it into {TARGET}")
        os.mkdir(partial)
        fetch(arguments.source, arguments.url, partial)
        patch(partial, stamp)
        os.rename(partial, TARGET)
    say(f"{TARGET} is timm v0.4.5 with TResNet.patch")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"timm source: {error.strerror}: {error.filename}")
    except KeyboardInterrupt:
        say("interrupted; the next call repairs it")
        sys.exit(130)
