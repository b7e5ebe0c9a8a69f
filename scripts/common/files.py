"""Files that appear whole or not at all, folders that one run holds, and room on the disk.

Standard library only.
"""
import contextlib
import errno
import fcntl
import os
import re
import stat
from typing import Any, Iterable, Iterator, List, Tuple

from common.cli import Refusal, say, shown
from common.names import SAFE_PATH

LARGEST = 1 << 28  # bytes of a file that is read at once, unless said otherwise
BLOCK = 4096  # bytes that a file takes up at least, and in steps of

Stamp = Tuple[int, int, int]


def stamp(status: os.stat_result) -> Stamp:
    """What changes whenever a file does: size in bytes, time of the last modification, of the last change, in ns.

    Programs that copy files set the second of them as they like, but not the third.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@contextlib.contextmanager
def whole(path: str) -> Iterator[str]:
    """A path to write a file to, which gets the name `path` at the end, or is gone if an error ends the block."""
    part = path + ".part"
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path  # a full disk's error names no file
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def write_whole(path: str, data: Any, durable: bool = False) -> Stamp:
    """Write a file that appears whole under its name or not at all, with mode 0640 less what the umask takes away.

    `data` is bytes or any contiguous buffer. With `durable` it is on the disk before it appears: a power loss cannot
    leave it empty. Returns its stamp(). Raises OSError; `path`.part is gone then.
    """
    with whole(path) as part:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
        try:
            append(file, data)
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
    return stamp(os.stat(path))  # only now: taking its name has changed the last of the three


def append(file: int, data: Any) -> None:
    """Write all of `data` to an open file: one write may stop short."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(file, rest):]


def read_regular(path: str, follow_links: bool = True, largest: int = LARGEST) -> bytes:
    """The whole file. Raises: Refusal; a FIFO, a device or a folder is refused at once instead of waited for."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW))
        with open(file, "rb", buffering=0) as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise Refusal(f"{shown(path)} is not a regular file")
            if status.st_size > largest:
                raise Refusal(f"{shown(path)} has {status.st_size:,} bytes; at most {largest:,} were expected")
            return stream.read()
    except OSError as error:
        what = "it is a symbolic link" if error.errno == errno.ELOOP and not follow_links else error.strerror
        raise Refusal(f"cannot read {shown(path)}: {what}") from None


def remove_parts(folder: str, names: str = r".*") -> None:
    """Remove what killed runs left half written of the files whose names match."""
    with os.scandir(folder) as listing:
        parts = [entry.path for entry in listing if re.fullmatch(f"(?:{names})\\.part", entry.name, re.DOTALL)]
    for part in parts:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


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
    return "" if os.fsencode(path).decode(errors="ignore") == path else "has a name that is not UTF-8"


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
        raise Refusal(f"the folder {shown(path)} cannot be made or written ({error.strerror}); name another by "
                      f"{option}") from None


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
        raise Refusal(f"{needed / 1e6:,.0f} MB are needed in {shown(folder)}, but only {free / 1e6:,.0f} MB are free; "
                      f"make room, or {advice}")


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
    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT, 0o640)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not waiting:
            place = path if folder else os.path.dirname(path)
            raise Refusal(f"{shown(place)} is in use by another run{holder(path)}; wait for it, stop it, or name "
                          "another folder") from None
        say(waiting + holder(path))
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:  # some network file systems have no locks
        return held
    return held


def sync(path: str) -> None:
    """Wait until a file is on the disk; where it was moved to another name, the folder's entry as well."""
    for name in (path, os.path.dirname(os.path.abspath(path))):
        file = os.open(name, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # some file systems cannot sync a folder
                os.fsync(file)
        finally:
            os.close(file)


def path_problem(path: str) -> Tuple[str, str]:
    """(what is wrong, what to do), or ("", ""), with a folder that ais_bench is to read from and write to.

    Its later versions want plain names, no link at the end, an owner among the user and their groups, mode 0750.
    """
    path = os.path.abspath(path)
    strange: List[str] = sorted(set(SAFE_PATH.sub("", path)))
    if strange:
        return (f"has {', '.join(map(repr, strange))}, but only letters, digits and _ / . - are accepted",
                "name another folder")
    if os.path.islink(path):
        return "is a symbolic link", f"name {shown(os.path.realpath(path))}"
    if os.path.isdir(path):
        status = os.stat(path)
        if status.st_uid != os.geteuid() and status.st_gid not in [*os.getgroups(), os.getegid()]:
            return "belongs to another user", "name a folder of your own"
        if stat.S_IMODE(status.st_mode) & 0o027:
            return f"has mode {stat.S_IMODE(status.st_mode):o}, but 750 at most is accepted", f"chmod 750 {shown(path)}"
    return "", ""
