"""The preloaded library faults.c: what it is to do at the N-th call, and what it counted."""

import ctypes
import errno
import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Iterable, NamedTuple, Optional

SOURCE = Path(__file__).with_name("faults.c")
KINDS = (
    "read write open rename fsync close stat unlink mmap mkdir list link chmod flock clock".split()
)  # in the order of the enumeration in faults.c
FAIL, REPLACE, EDIT, REMOVE = range(4)
ERRORS = {
    name: getattr(errno, name)
    for name in "EIO ENOSPC EDQUOT EROFS ESTALE EACCES EINTR ENOMEM EMFILE".split()
}
PATH_MAX = 4096
LAYOUT = struct.Struct(f"=4i4q{PATH_MAX}s{PATH_MAX}s{PATH_MAX}s")
COUNTS = struct.Struct("=2q")  # count, fired
COUNTS_OFFSET = 4 * 4 + 2 * 8
VARIABLE = "ATTACK_ORDER"


class Order(NamedTuple):
    """What happens at which call."""

    below: str  # only calls on paths that begin so count
    kinds: Iterable[str]
    nth: int = 0  # from 1; 0 only counts
    action: int = FAIL
    error: int = errno.EIO
    lasting: bool = False  # all later calls fail, too
    source: str = ""  # REPLACE: is renamed to target; EDIT: the new content
    target: str = ""


def build(folder: Path) -> Optional[Path]:
    """The compiled library; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return None
    library = folder / "faults.so"
    words = [compiler, "-O1", "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(library), "-ldl"]
    subprocess.run(words, check=True)
    return library


def is_preloaded() -> bool:
    """Whether this process was started with the library."""
    return hasattr(ctypes.CDLL(None), "attack_use")


class Page:
    """The file of an order, which the processes of a try share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(LAYOUT.size))
        with open(str(path), "r+b") as file:
            self.map = mmap.mmap(file.fileno(), LAYOUT.size)

    def give(self, order: Order, armed: bool = True) -> None:
        """Begin to count calls for an order."""
        bits = sum(1 << KINDS.index(kind) for kind in set(order.kinds))
        self.map[:] = LAYOUT.pack(
            int(armed),
            order.action,
            order.error,
            int(order.lasting),
            bits,
            order.nth,
            0,
            0,
            os.fsencode(order.below),
            os.fsencode(order.source),
            os.fsencode(order.target),
        )

    def end(self) -> None:
        """Count no more."""
        self.map[:4] = bytes(4)

    @property
    def count(self) -> int:
        """How many calls there were."""
        return int(COUNTS.unpack_from(self.map, COUNTS_OFFSET)[0])

    @property
    def fired(self) -> int:
        """How often something was done."""
        return int(COUNTS.unpack_from(self.map, COUNTS_OFFSET)[1])


def use(page: Page) -> None:
    """Let this process, and all that it starts, obey the page. In a child, after a fork."""
    os.environ[VARIABLE] = str(page.path)
    ctypes.CDLL(None).attack_use(os.fsencode(str(page.path)))


def restart_with(library: Path) -> None:
    """Start this program again with the library."""
    os.environ["LD_PRELOAD"] = str(library)
    os.execv(sys.executable, [sys.executable, *sys.argv])
