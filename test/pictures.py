"""What the tests of the preprocessing step share: images, ways to run the step, what it made."""

import contextlib
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List

from common.core import cli

import numpy as np
import pytest
from conftest import ROOT, sha256
from PIL import Image

import TResNet_preprocess as step

SCRIPT = "TResNet_preprocess.py"


# ---- images --------------------------------------------------------------------------------------


def pattern(width: int, height: int) -> Image.Image:
    """An image that is the same everywhere, with every kind of edge."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (x * x + 5 * y) % 256], -1).astype(np.uint8)
    )


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG file of 8-bit RGB whose header says width x height, for any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def fill(folder: Path, names: List[str], size: int = 40) -> Path:
    """Small PNG images of these names, each a little different."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(os.path.join(str(folder), name), "wb") as file:
            pattern(size + number % 7, size).save(file, "PNG")
    return folder


def write_slow_images(folder: Path) -> None:
    """24 images that take about 60 ms each: time enough to interrupt."""
    big = np.asarray(pattern(1600, 1600))
    for number in range(24):
        Image.fromarray(np.roll(big, number, 1)).save(
            folder / f"s{number:02}.png", compress_level=1
        )


# ---- the step ------------------------------------------------------------------------------------


def prepare(*args: object, status: int = 0, **where: Any) -> "subprocess.CompletedProcess[str]":
    """Run the step in a copy of this process, where everything is imported already.

    status: the exit status that it must have; where: cwd, umask.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            code: Any = 70
            try:
                signal.alarm(300)  # only so that a hang does not last for ever
                os.dup2(out.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
                sys.argv = [str(ROOT / SCRIPT), *map(str, args)]
                os.chdir(where.get("cwd", "."))
                os.umask(where.get("umask", 0o022))
                cli.run(step.main, step.GOES_ON)
            except SystemExit as end:
                code = end.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, ended = os.waitpid(child, 0)
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    returncode = os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else -os.WTERMSIG(ended)
    assert returncode == status and "Traceback" not in texts[1], "".join(texts)
    return subprocess.CompletedProcess(list(map(str, args)), returncode, *texts)


def prepare_refused(*args: object, status: int = 1, **where: Any) -> str:
    """What the step says on stderr when it fails, as it must."""
    said = prepare(*args, status=status, **where).stderr
    assert said.strip(), "a refusal says why"
    return said


def start_preparing(*args: object, **options: Any) -> "subprocess.Popen[str]":
    """The step as a process of its own, the leader of a group."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / SCRIPT), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        start_new_session=True,
        **options,
    )


def children(pid: int) -> List[int]:
    """The processes that a process started."""
    with contextlib.suppress(FileNotFoundError):
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    return []


def until(condition: Callable[[], Any]) -> None:
    """Wait until the condition is true. The limit only keeps a hang from lasting for ever."""
    end = time.monotonic() + 300
    while not condition():
        if time.monotonic() > end:
            pytest.fail("waited in vain")
        time.sleep(0.005)


# ---- what it made --------------------------------------------------------------------------------


def bins(folder: Path) -> Dict[str, str]:
    """{name: SHA-256} of all .bin files of a folder."""
    return {path.name: sha256(path) for path in folder.glob("*.bin")}


def labels_of(folder: Path) -> Dict[str, str]:
    """{stem: class} of a folder's val_label.txt."""
    with open(str(folder / "val_label.txt")) as file:
        return dict(line.rstrip("\n").split(" ") for line in file)
