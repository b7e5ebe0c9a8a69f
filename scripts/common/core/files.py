"""Files that appear whole or not at all, folders that one run holds, and room on the disk.

A file is written under a fresh name beside its own (a part) and then renamed, so that nobody ever sees half of it.
A fresh name is made with O_EXCL and O_NOFOLLOW: whatever lies there already, a link or a hard link of somebody else's
file among it, is never written into. Nothing that is not a regular file is opened to be read. Standard library only.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import zlib
from typing import Any, Collection, Iterable, Iterator, List, Tuple

from common.core.cli import Refusal, say, shown
from common.core.names import SAFE_PATH

LARGEST = 1 << 28  # bytes of a file that is read at once, unless said otherwise
BLOCK = 4096  # bytes that a file takes up at least, and in steps of
CHUNK = 1 << 20  # bytes that are read at a time where a file is not needed in one piece
MODE = 0o640  # of files that are made, less what the umask takes away
PART = re.compile(
    r"(.+)\.[0-9a-f]{8}\.part", re.DOTALL
)  # the name of a part: that of its file, eight digits

Stamp = Tuple[int, int, int]


def stamp(status: os.stat_result) -> Stamp:
    """What changes whenever a file does: size in bytes, time of the last modification, of the last change, in ns.

    Programs that copy files set the second of them as they like, but not the third.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


# ---- writing ---------------------------------------------------------------------------------------------------------


def part_path(path: str) -> str:
    """A fresh name beside `path` for a file that is not finished."""
    return f"{path}.{os.urandom(4).hex()}.part"


def create(path: str) -> int:
    """Make a file that is not there yet and open it for writing. Raises: FileExistsError for anything that is there."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)


@contextlib.contextmanager
def removed_on_error(part: str, path: str) -> Iterator[None]:
    """Remove a part if an error ends the block, and let the error name the file `path` that it was for."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path  # a full disk's error names no file
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


@contextlib.contextmanager
def whole(path: str) -> Iterator[str]:
    """A fresh name to write a file to, which gets the name `path` at the end, or is gone if an error ends the block."""
    part = part_path(path)
    with removed_on_error(part, path):
        yield part
        os.replace(part, path)


def write_part(path: str, data: Any, durable: bool = False) -> str:
    """Write a file under a fresh name beside `path`; returns that name.

    data: bytes or any contiguous buffer; durable: wait until the disk has it. Raises: OSError; the part is gone then.
    """
    part = part_path(path)
    file = create(part)
    with removed_on_error(part, path):
        try:
            append(file, data)
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
    return part


def write_whole(path: str, data: Any, durable: bool = False) -> Stamp:
    """Write a file that appears whole under its name or not at all.

    data: bytes or any contiguous buffer; durable: it is on the disk before it appears, so that a power loss cannot
    leave it empty. Returns its stamp(). Raises: OSError; the part is gone then.
    """
    part = write_part(path, data, durable)
    with removed_on_error(part, path):
        os.replace(part, path)
    return stamp(os.lstat(path))  # only now: taking its name has changed the last of the three


def append(file: int, data: Any) -> None:
    """Write all of `data` to an open file: one write may stop short."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(file, rest) :]


def is_part_of(name: str, names: Collection[str]) -> bool:
    """Whether a file's name is that of a part of a file with one of these names."""
    match = PART.fullmatch(name)
    return bool(match) and match.group(1) in names  # type: ignore[union-attr]


def remove_parts(folder: str, names: Iterable[str]) -> None:
    """Remove the parts that killed runs left of files with these names."""
    wanted = set(names)
    with os.scandir(folder) as listing:
        parts = [entry.path for entry in listing if is_part_of(entry.name, wanted)]
    for path in parts:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def unused(path: str) -> str:
    """The path itself, or with a number behind it, under which nothing lies yet."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = f"{path}.{number}"
    return free


def sync(path: str) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(file)
    finally:
        os.close(file)


# ---- reading ---------------------------------------------------------------------------------------------------------


def open_regular(path: str, follow_links: bool = True) -> int:
    """Open a file for reading. Raises: OSError; Refusal for a FIFO, a device or a folder, which is not even opened."""
    refusal = Refusal(f"{shown(path)} is not a regular file; remove it, or name another file")
    status = os.stat(path, follow_symlinks=follow_links)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        raise refusal
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(file).st_mode):  # it was replaced meanwhile
        os.close(file)
        raise refusal
    return file


def read_regular(path: str, follow_links: bool = True, largest: int = LARGEST) -> bytes:
    """The whole file. Raises: Refusal; a FIFO, a device or a folder is refused at once instead of waited for."""
    try:
        with open(open_regular(path, follow_links), "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > largest:
                raise Refusal(
                    f"{shown(path)} has {size:,} bytes; at most {largest:,} were expected"
                )
            return stream.read()
    except OSError as error:
        what = (
            "it is a symbolic link"
            if error.errno == errno.ELOOP and not follow_links
            else error.strerror
        )
        raise Refusal(f"cannot read {shown(path)}: {what}") from None


def chunks_of(path: str, follow_links: bool = True) -> Iterator[bytes]:
    """The content of a file in pieces. Raises: OSError, and Refusal for what is not a regular file."""
    with open(open_regular(path, follow_links), "rb", buffering=0) as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            yield chunk


def checksum(data: Any) -> str:
    """CRC-32 of bytes or of a contiguous array, 8 hexadecimal digits: it tells damage and another content."""
    return f"{zlib.crc32(data):08x}"


def checksum_of(path: str, follow_links: bool = False) -> str:
    """The checksum() of a regular file's content; "" if it cannot be read, or is a link that is not to be followed."""
    crc = 0
    try:
        for chunk in chunks_of(path, follow_links):
            crc = zlib.crc32(chunk, crc)
    except (OSError, Refusal):
        return ""
    return f"{crc:08x}"


# ---- folders and disks -----------------------------------------------------------------------------------------------


def existing_part(path: str) -> str:
    """The path itself, or the nearest folder above it that exists, absolute."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def unusable(path: str) -> str:
    """What keeps a folder from being made, if it is not there, and written to, in words; "" if nothing is seen."""
    there = existing_part(path)
    if os.path.islink(path) and not os.path.exists(path):
        return "is a symbolic link to nowhere"
    if not os.path.isdir(there):
        return f"cannot be made or written: {shown(there)} is not a folder"
    if not os.access(there, os.W_OK | os.X_OK):
        return f"cannot be made or written: {shown(there)} is read-only for this user"
    return (
        "" if os.fsencode(path).decode(errors="ignore") == path else "has a name that is not UTF-8"
    )


def make_folder(path: str, option: str) -> None:
    """Make a folder that others cannot enter, unless it is there. Raises: Refusal that names `option`."""
    above = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(above):  # os.makedirs() would let others into the folders above
        make_folder(above, option)
    try:
        os.makedirs(path, mode=0o750, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is not writable")
    except OSError as error:
        raise Refusal(
            f"the folder {shown(path)} cannot be made or written ({error.strerror}); name another by "
            f"{option}"
        ) from None


def occupied(sizes: Iterable[int]) -> int:
    """Bytes that files of these sizes take up on a disk, about: whole blocks, and an entry in a folder."""
    return sum(-(-size // BLOCK) * BLOCK + 256 for size in sizes)


def free_space(folder: str) -> float:
    """Bytes that this user may still write to the file system of a folder (which need not exist); inf if unknown."""
    disk = os.statvfs(existing_part(folder))
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else float("inf")


def check_space(folder: str, needed: int, advice: str) -> None:
    """Refuse to start what cannot fit on the disk; `needed` in bytes."""
    free = free_space(folder)
    if needed > free:
        raise Refusal(
            f"{needed / 1e6:,.0f} MB are needed in {shown(folder)}, but only {free / 1e6:,.0f} MB are free; "
            f"make room, or {advice}"
        )


def holder(path: str) -> str:
    """Words for the process that holds a lock on a file, as far as the system tells: ", process 123" or ""."""
    status = os.stat(path)
    lock = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        for line in table:
            words = line.split()
            if "FLOCK" in words and lock in words and words[1] != "->":
                return f", process {words[4]}"
    return ""


def hold(path: str, waiting: str = "") -> int:
    """Hold a folder or file (made if need be) until this process and its children have ended, however they end.

    Returns the open file, which children that are to hold it as well must inherit. If another run holds it: waits, if
    there is a word to say about that. Raises: Refusal otherwise.
    """
    folder = os.path.isdir(path)
    try:
        if folder:
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        elif os.path.lexists(path) and not os.path.islink(path) and not os.path.isfile(path):
            raise OSError(errno.EINVAL, "it is not a regular file")
        else:
            held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, MODE)
    except OSError as error:
        what = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise Refusal(
            f"{shown(path)} cannot be locked: {what}; remove it, or name another folder"
        ) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not waiting:
            place = path if folder else os.path.dirname(path)
            raise Refusal(
                f"{shown(place)} is in use by another run{holder(path)}; wait for it, stop it, or name "
                "another folder"
            ) from None
        say(waiting + holder(path))
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:  # some network file systems have no locks
        return held
    return held


def path_problem(path: str) -> Tuple[str, str]:
    """(what is wrong, what to do), or ("", ""), with a folder that ais_bench is to read from and write to.

    Its later versions want plain names, no link at the end, an owner among the user and their groups, mode 0750.
    """
    path = os.path.abspath(path)
    strange: List[str] = sorted(set(SAFE_PATH.sub("", path)))
    if strange:
        return (
            f"has {', '.join(map(repr, strange))}, but only letters, digits and _ / . - are accepted",
            "name another folder",
        )
    if os.path.islink(path):
        return "is a symbolic link", f"name {shown(os.path.realpath(path))}"
    if os.path.isdir(path):
        status = os.stat(path)
        if status.st_uid != os.geteuid() and status.st_gid not in [*os.getgroups(), os.getegid()]:
            return "belongs to another user", "name a folder of your own"
        if stat.S_IMODE(status.st_mode) & 0o027:
            return (
                f"has mode {stat.S_IMODE(status.st_mode):o}, but 750 at most is accepted",
                f"chmod 750 {shown(path)}",
            )
    return "", ""
