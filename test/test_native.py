"""The compiled C files: a library in the cache that has changed is compiled again."""

import contextlib
import hashlib
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Callable, Tuple

import numpy as np
import pytest
from conftest import ROOT

IMAGES, CLASSES = 40, 50
FLIPS = 6  # seeded positions of a flipped bit
LARGE = 1 << 26  # bytes, more than any library has

pytestmark = pytest.mark.skipif(
    not (shutil.which("cc") or shutil.which("gcc")), reason="needs a C compiler"
)


class Copy:
    """A copy of the program with its own compiled library, and results to rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(str(ROOT / "TResNet_postprocess.py"), str(folder))
        common = folder / "scripts" / "common"
        shutil.copytree(
            str(ROOT / "scripts" / "common"),
            str(common),
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (folder / "result").mkdir()
        generator = np.random.RandomState(3)
        labels = []
        for image in range(IMAGES):
            scores = generator.normal(0, 5, CLASSES)
            text = "".join("%f " % score for score in scores) + "\n"
            (folder / "result" / f"i{image}_0.txt").write_text(text)
            labels.append(f"i{image}.JPEG {np.argsort(-scores)[image % 7]}\n")
        (folder / "labels.txt").write_text("".join(labels))
        self.accuracies = self.postprocess()
        (self.library,) = (common / "__pycache__").glob("ranks-*.so")
        self.checksum = Path(f"{self.library}.sha256")
        self.content = self.library.read_bytes()
        self.line = f"{hashlib.sha256(self.content).hexdigest()}  {self.library.name}\n".encode()

    def postprocess(self) -> bytes:
        """The accuracies that a run of the program writes."""
        done = subprocess.run(
            [sys.executable, "TResNet_postprocess.py", "result", "labels.txt", ".", "acc.json"],
            cwd=str(self.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        accuracies = (self.folder / "acc.json").read_bytes()
        (self.folder / "acc.json").unlink()
        return accuracies

    def rank_and_rebuild(self) -> None:
        """A run gives the right ranks, and leaves the library and its checksum as they were."""
        assert self.postprocess() == self.accuracies
        assert self.is_intact()

    def restore(self) -> None:
        """Put the library and its checksum back as they were."""
        for path, content in ((self.library, self.content), (self.checksum, self.line)):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            path.write_bytes(content)
            path.chmod(0o644)

    def is_intact(self) -> bool:
        if not all(stat.S_ISREG(path.lstat().st_mode) for path in (self.library, self.checksum)):
            return False
        return (self.library.read_bytes(), self.checksum.read_bytes()) == (self.content, self.line)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def copy(made_once: Copy) -> Copy:
    """The copy with an intact library; regular files replace what an earlier test left."""
    made_once.restore()
    return made_once


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def truncate(copy: Copy) -> None:
    os.truncate(str(copy.library), len(copy.content) // 2)


def fill_with_noise(copy: Copy) -> None:
    copy.library.write_bytes(random.Random(5).getrandbits(8 * 20000).to_bytes(20000, "little"))


def empty(copy: Copy) -> None:
    copy.library.write_bytes(b"")


def grow(copy: Copy) -> None:
    os.truncate(str(copy.library), LARGE)


def lose_checksum(copy: Copy) -> None:
    copy.checksum.unlink()


def damage_checksum(copy: Copy) -> None:
    copy.checksum.write_bytes(flip(copy.checksum.read_bytes(), 100))


def link_library(copy: Copy) -> None:
    elsewhere = copy.folder / "elsewhere.so"
    copy.library.rename(elsewhere)
    copy.library.symlink_to(elsewhere)


def link_checksum(copy: Copy) -> None:
    elsewhere = copy.folder / "elsewhere.sha256"
    copy.checksum.rename(elsewhere)
    copy.checksum.symlink_to(elsewhere)


def replace_library_by_fifo(copy: Copy) -> None:
    copy.library.unlink()
    os.mkfifo(str(copy.library))


def replace_checksum_by_fifo(copy: Copy) -> None:
    copy.checksum.unlink()
    os.mkfifo(str(copy.checksum))


def let_others_write(copy: Copy) -> None:
    copy.library.chmod(0o777)


DAMAGES: Tuple[Callable[[Copy], None], ...] = (
    truncate,
    fill_with_noise,
    empty,
    grow,
    lose_checksum,
    damage_checksum,
    link_library,
    link_checksum,
    replace_library_by_fifo,
    replace_checksum_by_fifo,
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_library_is_never_used_and_compiled_again(
    damage: Callable[[Copy], None], copy: Copy
) -> None:
    damage(copy)
    copy.rank_and_rebuild()


def test_one_flipped_bit_of_a_library_is_seen(copy: Copy) -> None:
    generator = random.Random(9)
    for _ in range(FLIPS):
        copy.library.write_bytes(flip(copy.content, generator.randrange(8 * len(copy.content))))
        copy.rank_and_rebuild()


def test_what_a_link_in_the_cache_points_to_stays_as_it_is(copy: Copy) -> None:
    link_library(copy)
    link_checksum(copy)
    copy.rank_and_rebuild()
    assert (copy.folder / "elsewhere.so").read_bytes() == copy.content
    assert not copy.library.samefile(copy.folder / "elsewhere.so")


def test_a_library_that_others_may_write_is_compiled_again(copy: Copy) -> None:
    let_others_write(copy)
    copy.rank_and_rebuild()
    assert copy.library.stat().st_mode & 0o022 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_library_of_another_user_is_compiled_again(copy: Copy) -> None:
    os.chown(str(copy.library), 12345, 12345)
    copy.rank_and_rebuild()
    assert copy.library.stat().st_uid == 0


def test_an_intact_library_is_loaded_as_it_is(copy: Copy) -> None:
    before = copy.library.stat()
    copy.rank_and_rebuild()
    after = copy.library.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_both_libraries_in_one_process_are_different(copy: Copy) -> None:
    """The dynamic loader takes two libraries that were opened under one name for the same."""
    code = (
        "from common.core import native;"
        "[native.load(name) for name in ('results/ranks.c', 'data/resize.c')];"
        "native.load('results/ranks.c').label_ranks; native.load('data/resize.c').crop_resize"
    )
    for _ in range(2):  # compiled, then from the cache
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=str(copy.folder / "scripts"),
            check=True,
            stdout=subprocess.DEVNULL,
        )
