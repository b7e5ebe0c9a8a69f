"""Files that appear whole or not at all, folders that one run holds, and space on the disk.

A file is written under a fresh name beside its own (a part) and then renamed, so that nobody ever
sees half of it. A part is made with O_EXCL and O_NOFOLLOW, so nothing that exists is written into,
not even through a link or a hard link. Only regular files are opened for reading.
Standard library only.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import zlib
from typing import Any, Collection, Iterable, Iterator, Tuple

from common.core.cli import Refusal, say, shown
from common.core.names import SAFE_PATH

LARGEST = 1 << 28  # bytes of a file that is read in one piece, unless a caller names another limit
BLOCK = 4096  # bytes; a file takes up whole blocks of the disk
ENTRY = 256  # bytes that a file's entry in a folder takes up, about
CHUNK = 1 << 20  # bytes that are read at a time where a file is not needed in one piece
MODE = 0o640  # of files that are made; the umask can only take rights away
SHARED = 0o644  # of those that the set-up makes for all users of the checkout
PART = re.compile(r"(.+)\.[0-9a-f]{8}\.part", re.DOTALL)  # FILE.XXXXXXXX.part

Stamp = Tuple[int, int, int]  # size in bytes, time of the last modification and of the last change


def stamp(status: os.stat_result) -> Stamp:
    """What changes whenever a file does; times in ns.

    Programs that copy files set the time of the modification, but cannot set that of the change.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


# ---- writing -------------------------------------------------------------------------------------


def part_path(path: str) -> str:
    """A fresh name beside `path` for a file that is not finished."""
    return f"{path}.{os.urandom(4).hex()}.part"


def create(path: str, mode: int = MODE) -> int:
    """Make a new file and open it for writing. Raises: FileExistsError if the name is taken."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


@contextlib.contextmanager
def removed_on_error(part: str, path: str) -> Iterator[None]:
    """If an error ends the block, remove a part, and let the error name the file `path`."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path  # a full disk's error names no file
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def write_part(path: str, data: Any, durable: bool = False, mode: int = MODE) -> str:
    """Write a part of the file `path`. Returns: the path of the part.

    data: bytes or any contiguous buffer. durable: wait until the disk has it.
    Raises: OSError; then the part is removed.
    """
    part = part_path(path)
    file = create(part, mode)
    with removed_on_error(part, path):
        try:
            append(file, data)
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
    return part


def write_whole(path: str, data: Any, durable: bool = False, mode: int = MODE) -> Stamp:
    """Write a file that appears whole under its name or not at all.

    data: bytes or any contiguous buffer.
    durable: it is on the disk before it appears, so that a power loss cannot leave it empty.
    Returns: its stamp(). Raises: OSError; then the part is removed.
    """
    part = write_part(path, data, durable, mode)
    with removed_on_error(part, path):
        os.replace(part, path)
    return stamp(os.lstat(path))  # not before: the renaming sets the time of the change


def create_instead(path: str) -> int:
    """Make a new file in the place of what has its name, and open it for writing.

    A link, or another name of somebody's file, loses this name; that file stays as it is.
    Raises: OSError, also for a folder.
    """
    part = part_path(path)
    file = create(part)
    try:
        with removed_on_error(part, path):
            os.replace(part, path)
    except BaseException:
        os.close(file)
        raise
    return file


def append(file: int, data: Any) -> None:
    """Write all of `data` to an open file; one os.write() may write less."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(file, rest) :]


def is_part_of(name: str, names: Collection[str]) -> bool:
    """Whether a file's name is that of a part of a file with one of these names."""
    match = PART.fullmatch(name)
    return match is not None and match.group(1) in names


def remove_parts(folder: str, names: Iterable[str]) -> None:
    """Remove the parts that killed runs left of files with these names."""
    wanted = set(names)
    with os.scandir(folder) as listing:
        parts = [entry.path for entry in listing if is_part_of(entry.name, wanted)]
    for path in parts:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def unused(path: str) -> str:
    """A path that does not exist: the given one, or the given one with a number at its end."""
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


def limit_rights() -> None:
    """From now on nobody else may write, or see at all, what this process makes.

    Later versions of ais_bench refuse files that others can write and folders that others can
    enter. What the user's own umask takes away stays away.
    """
    os.umask(os.umask(0o077) | 0o027)


def mode_of_new() -> int:
    """The mode of a new file: MODE, without what the umask takes away."""
    mask = os.umask(0o077)
    os.umask(mask)
    return MODE & ~mask


# ---- reading -------------------------------------------------------------------------------------


def is_there(path: str) -> bool:
    """os.path.lexists(), but what cannot be asked about is not taken for missing.

    Raises: OSError, such as EIO of a broken disk or ESTALE of a network file system.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_file(path: str) -> bool:
    """os.path.isfile(), but what cannot be asked about is not taken for missing.

    Raises: OSError, as is_there().
    """
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # links that lead round lead to no file
            return False
        raise


def open_regular(path: str, follow_links: bool = True) -> int:
    """Open a file for reading.

    Raises: OSError; Refusal for a FIFO, a device or a folder, without opening it.
    """
    refusal = Refusal(f"{shown(path)} is not a regular file; remove it, or name another file")
    status = os.stat(path, follow_symlinks=follow_links)
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
        raise refusal
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.open(path, flags if follow_links else flags | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(file).st_mode):  # it was replaced in the meantime
        os.close(file)
        raise refusal
    return file


def read_regular(path: str, follow_links: bool = True, largest: int = LARGEST) -> bytes:
    """The content of a file. Raises: Refusal; at once for a FIFO, a device or a folder."""
    try:
        with open(open_regular(path, follow_links), "rb", buffering=0) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > largest:
                raise Refusal(f"{shown(path)} has {size:,} bytes; at most {largest:,} are read")
            return stream.read()
    except OSError as error:
        reason = error.strerror
        if error.errno == errno.ELOOP and not follow_links:
            reason = "it is a symbolic link"
        raise Refusal(f"cannot read {shown(path)}: {reason}") from None


def chunks_of(path: str, follow_links: bool = True) -> Iterator[bytes]:
    """Yield the content of a regular file in pieces. Raises: OSError; Refusal for other files."""
    with open(open_regular(path, follow_links), "rb", buffering=0) as stream:
        for chunk in iter(lambda: stream.read(CHUNK), b""):
            yield chunk


def checksum(data: Any) -> str:
    """CRC-32 of bytes or of a contiguous array, as 8 hexadecimal digits."""
    return f"{zlib.crc32(data):08x}"


def checksum_of(path: str, follow_links: bool = False) -> str:
    """The checksum() of a regular file; "" if it cannot be read, or is a link."""
    crc = 0
    try:
        for chunk in chunks_of(path, follow_links):
            crc = zlib.crc32(chunk, crc)
    except (OSError, Refusal):
        return ""
    return f"{crc:08x}"


# ---- folders and disks ---------------------------------------------------------------------------


def existing_part(path: str) -> str:
    """The path itself, or the nearest folder above it that exists, absolute."""
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def unusable(path: str) -> str:
    """Why a folder cannot be made or written to, in words; "" if no reason is seen."""
    existing = existing_part(path)
    if os.path.islink(path) and not os.path.exists(path):
        return "is a symbolic link to nowhere"
    if not os.path.isdir(existing):
        return f"cannot be made or written: {shown(existing)} is not a folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"cannot be made or written: {shown(existing)} is read-only for this user"
    if os.fsencode(path).decode(errors="ignore") != path:
        return "has a name that is not UTF-8"
    return ""


def make_folder(path: str, option: str) -> None:
    """Make a folder that others cannot enter, unless it exists.

    option: the option that the Refusal names.
    """
    above = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(above):  # os.makedirs() would let others into the folders above
        make_folder(above, option)
    try:
        os.makedirs(path, mode=0o750, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is not writable")
    except OSError as error:
        raise Refusal(
            f"the folder {shown(path)} cannot be made or written ({error.strerror}); name another "
            f"folder with {option}"
        ) from None


def occupied(sizes: Iterable[int]) -> int:
    """Bytes that files of these sizes take up on a disk, about: blocks and entries in folders."""
    return sum(-(-size // BLOCK) * BLOCK + ENTRY for size in sizes)


def free_space(folder: str) -> float:
    """Bytes that are free for this user at a folder, which need not exist; inf if unknown."""
    disk = os.statvfs(existing_part(folder))
    return disk.f_bavail * disk.f_frsize if disk.f_blocks else float("inf")


def check_space(folder: str, needed: int, advice: str) -> None:
    """Refuse to start what cannot fit on the disk. needed: bytes."""
    free = free_space(folder)
    if needed > free:
        raise Refusal(
            f"{needed / 1e6:,.0f} MB are needed in {shown(folder)}, but only {free / 1e6:,.0f} MB "
            f"are free; free some space, or {advice}"
        )


def holder(path: str) -> str:
    """The process that holds a lock, as ", process 123"; "" if the system does not say."""
    status = os.stat(path)
    lock = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError), open("/proc/locks", encoding="ascii") as table:
        for line in table:
            words = line.split()
            if "FLOCK" in words and lock in words and words[1] != "->":
                taker = int(words[4])
                return f", process {living_holder(taker, status)}"
    return ""


def living_holder(taker: int, file: os.stat_result) -> int:
    """The process that holds a lock today: the one that took it, or a child that outlives it.

    The system goes on naming the process that took the lock. When that is killed, the step that it
    started inherits the lock.
    taker: process that took the lock. file: what is locked.
    Returns: taker too if no other holder is visible, as with another user's processes.
    """
    if os.path.exists(f"/proc/{taker}"):
        return taker
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for number in os.listdir(f"/proc/{process}/fd"):
                is_open = os.path.samestat(os.stat(f"/proc/{process}/fd/{number}"), file)
                if is_open and has_lock(process, number):
                    return int(process)
    return taker


def has_lock(process: str, number: str) -> bool:
    """Whether an open file of a process holds a lock; one that waits for it does not."""
    with open(f"/proc/{process}/fdinfo/{number}", encoding="ascii") as facts:
        return any(line.startswith("lock:") and "FLOCK" in line for line in facts)


def open_to_lock(path: str) -> int:
    """Open a folder, or a regular file that is made if it does not exist. Raises: OSError."""
    if os.path.isdir(path):
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    if os.path.lexists(path) and not os.path.islink(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, MODE)


def hold(path: str, waiting: str = "") -> int:
    """Lock a folder or file until this process and its children have ended.

    path: a file is made if it does not exist.
    waiting: what to say if another run holds the lock, and then to wait; "" refuses at once.
    Returns: the open file; a child that inherits it holds the lock as well.
    Raises: Refusal.
    """
    try:
        held = open_to_lock(path)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise Refusal(
            f"{shown(path)} cannot be locked: {reason}; remove it, or name another folder"
        ) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not waiting:
            folder = path if os.path.isdir(path) else os.path.dirname(path)
            raise Refusal(
                f"{shown(folder)} is in use by another run{holder(path)}; wait for it, stop it, or "
                "name another folder"
            ) from None
        say(waiting + holder(path))
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError:  # some network file systems have no locks
        return held
    return held


def path_problem(path: str) -> Tuple[str, str]:
    """(problem, what to do) of a folder that ais_bench reads and writes; ("", "") if it is good.

    Later versions of ais_bench accept a folder only if its path has plain characters, it is not a
    symbolic link, it belongs to the user or one of their groups, and its mode is at most 0750.
    """
    path = os.path.abspath(path)
    strange = ", ".join(map(repr, sorted(set(SAFE_PATH.sub("", path)))))
    if strange:
        return (
            f"has {strange}, but only letters, digits and _ / . - are accepted",
            "name another folder",
        )
    if os.path.islink(path):
        return "is a symbolic link", f"name {shown(os.path.realpath(path))}"
    if os.path.isdir(path):
        status = os.stat(path)
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid != os.geteuid() and status.st_gid not in [*os.getgroups(), os.getegid()]:
            return "belongs to another user", "name a folder of your own"
        if mode & 0o027:
            return f"has mode {mode:o}, but at most 750 is accepted", f"chmod 750 {shown(path)}"
    return "", ""
