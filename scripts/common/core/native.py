"""The C files of the packages, compiled and loaded.

The set-up compiles them; a program that finds no library compiles it again. A library is
`__pycache__/NAME-KEY.so`; KEY is a hash of all that it is made from. NAME-KEY.so.sha256 beside it
holds its checksum. A library with another checksum is compiled again. Where `__pycache__` cannot be
written, the library is in the folder that the set-up writes to (see places).
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from typing import Optional, Sequence, Tuple

from common.core import places
from common.core.cli import why

COMMON = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the folder of the packages
CACHE = os.path.join(COMMON, "__pycache__")
CHECKSUM = ".sha256"  # the ending of a checksum's name; the file is for `sha256sum --check`
LARGEST = 1 << 24  # bytes that are read of a file of the cache
COMPILE_SECONDS = 60  # a compiler that takes longer is stopped


def has_avx2() -> bool:
    """Whether this CPU is an x86-64 with 256-bit integer instructions."""
    if os.uname().machine != "x86_64":  # under emulation /proc/cpuinfo may describe the host
        return False
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return bool(re.search(r"^flags\s*:.* avx2( |$)", file.read(), re.MULTILINE))


# ---- the cache -----------------------------------------------------------------------------------


def open_own(path: str) -> int:
    """Open a file of the cache for reading, without following a link or waiting for a FIFO.

    Raises: OSError, also if it is not a regular file, or if another user wrote it or may write it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    folder = os.stat(os.path.dirname(path))
    trusted = (0, os.geteuid(), folder.st_uid)  # the folder's owner can replace any file
    others_may_write = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in trusted or others_may_write:
        os.close(descriptor)
        raise PermissionError(f"{path} does not belong to this program alone")
    return descriptor


def read_open(descriptor: int) -> bytes:
    """What an open file holds, at most LARGEST bytes of it; the file stays open."""
    with open(descriptor, "rb", closefd=False) as file:
        return file.read(LARGEST)


def checksum_line(content: bytes, library: str) -> bytes:
    """What the checksum file of a library with this content holds."""
    return f"{hashlib.sha256(content).hexdigest()}  {os.path.basename(library)}\n".encode()


def load_checked(library: str) -> Optional[ctypes.CDLL]:
    """The library from the cache; None if it is missing or has another checksum.

    The open file that is checked is also loaded. It stays open as long as this process lives: the
    dynamic loader knows the library as /proc/self/fd/N, and would take the next file with that
    name for the same library.
    """
    with contextlib.suppress(OSError):
        checksum = open_own(library + CHECKSUM)
        expected = read_open(checksum)
        os.close(checksum)
        descriptor = open_own(library)
        if checksum_line(read_open(descriptor), library) == expected:
            return ctypes.CDLL(f"/proc/self/fd/{descriptor}")
        os.close(descriptor)
    return None


def keep(new: str, library: str) -> None:
    """Move a new library into the cache, then its checksum; several runs may do this at once.

    Raises: OSError.
    """
    with open(new, "rb") as file:
        content = file.read()
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        os.fchmod(file.fileno(), mode & ~(stat.S_IWGRP | stat.S_IWOTH))  # as open_own() wants it
        os.fsync(file.fileno())
    descriptor = os.open(new + CHECKSUM, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with open(descriptor, "wb", buffering=0) as file:
        file.write(checksum_line(content, library))
        os.fsync(descriptor)
    os.replace(new, library)
    os.replace(new + CHECKSUM, library + CHECKSUM)


# ---- compiling and loading -----------------------------------------------------------------------


def writable(folder: str) -> bool:
    """Whether libraries can be put into a folder, which is made if it does not exist."""
    with contextlib.suppress(OSError):
        os.makedirs(folder, mode=0o755, exist_ok=True)
    return os.access(folder, os.W_OK)


def compile_library(
    source: str, flags: Sequence[str], name: str, folders: Sequence[str]
) -> ctypes.CDLL:
    """Compile and load a library; keep it in the first folder that can be written.

    If none can be written, each process compiles.
    Raises: RuntimeError without a compiler, OSError, subprocess.SubprocessError.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise RuntimeError("no C compiler (cc, gcc) is installed")
    cache = next(filter(writable, folders), None)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        new = os.path.join(scratch, "new.so")
        subprocess.run(
            [compiler, *flags, source, "-o", new],
            check=True,
            timeout=COMPILE_SECONDS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        loaded = ctypes.CDLL(new)
        if cache:
            with contextlib.suppress(OSError):
                keep(new, os.path.join(cache, name))
        return loaded


@functools.lru_cache(maxsize=None)
def load_or_compile(
    source: str, flags: Tuple[str, ...], name: str, folders: Tuple[str, ...]
) -> ctypes.CDLL:
    """The library from one of the folders, or a new one. Raises: as compile_library()."""
    for folder in folders:
        library = load_checked(os.path.join(folder, name))
        if library:
            return library
    return compile_library(source, flags, name, folders)


def load(name: str, place: Optional[places.Place] = None) -> ctypes.CDLL:
    """The C file PACKAGE/NAME.c as a loaded library.

    place: where the set-up writes to; None for that of a step.
    Raises: RuntimeError with the reason.
    """
    source = os.path.join(COMMON, name)
    folders = [CACHE, *(place or places.current()).libraries]
    try:
        with open(source, "rb") as file:
            text = file.read()
        flags = ["-std=gnu99", "-O3", "-shared", "-fPIC"]
        if has_avx2():
            flags.append("-mavx2")
        made_from = repr((text, flags, os.uname().machine))
        key = hashlib.sha256(made_from.encode()).hexdigest()[:16]
        library = f"{os.path.basename(name)[: -len('.c')]}-{key}.so"
        return load_or_compile(source, tuple(flags), library, tuple(folders))
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"{name} cannot be compiled or loaded ({why(error)})") from None
