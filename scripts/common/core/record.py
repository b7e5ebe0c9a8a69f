"""The record of a product: what it was made from, by which code, if it is complete, if it is ours.

This module answers these questions for a file and for a folder. The record of a product X (a file,
several files under one name, or a folder) lies beside it as X.record.jsonl. The record of a
prepared folder lies in the folder as manifest.jsonl. Each row of a record is a JSON object:

    {"recipe": {…}, "about": {…}, "boot_id": …}
        The first row: what every piece depends on, and what else is known of the product.
    {"expected": [name, …]}
        Files that the run will make, with any content.
    {"announced": [[name, size, checksum], …]}
        Files that will get their names next, or that may be removed.
    {"key": …, "inputs": […], "files": […], "notes": {…}}
        A finished piece; its files are [name, size, mtime_ns, ctime_ns, checksum].
        A product that is made at once has one piece, with the key "".
    {"finished": true, "pieces": n, …}
        The last row: the run came to its end, and all of its n pieces are on the disk.

The rules:

- Each row ends with the CRC-32 of the rest of it. A damaged row is ignored.
- A name and the checksum of its content are in the record before a file appears under that name.
  So all that a killed run leaves is known by its content. A power loss may take the checksums;
  then the files are known by their names.
- A record may come from somebody else. So its names are plain, and nothing is done through a
  symbolic link. A file is removed or replaced only if its content is what a row says.
  Any other file is set aside: it is moved to X.aside.
- After a restart of the machine an unfinished record is believed only where the content of the
  files agrees.

Standard library only.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import stat
import subprocess
import zlib
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

from common.core import cli, files
from common.core.cli import Refusal, counted, shown, some

Row = Dict[str, Any]  # a JSON object
State = List[Any]  # [name, size in bytes, mtime_ns] of an input: another one has another state
Identity = Tuple[int, ...]  # of a file on this machine: device, inode, files.Stamp

ENDING = ".record.jsonl"
MANIFEST = "manifest.jsonl"  # the record of a prepared folder, which lies in it
LARGEST = 1 << 33  # bytes of a record
ROW_END = re.compile(rb', "crc": "([0-9a-f]{8})"}\n?$')
ROW_END_LENGTH = len(', "crc": "01234567"}')
SHA256_DIGITS = 64
WORD = r"[^/\0\ud800-\udc7f\udd00-\udfff]+"  # what a file can be called
PLAIN = re.compile(rf"(?!\.\.?(?:/|$)){WORD}(?:/(?!\.\.?$){WORD})?")  # NAME or FOLDER/NAME


class Content(NamedTuple):
    """What a file held when it was read."""

    sha256: str
    checksum: str  # files.checksum()
    identity: Identity


class Recipe(NamedTuple):
    """What a product depends on (recipe.make), and {path: content} of the files read for it."""

    row: Row
    files: Dict[str, Content] = {}


class Made(NamedTuple):
    """A file that this program made."""

    name: str  # below the folder of the record
    size: int  # bytes
    mtime_ns: int
    ctime_ns: int
    checksum: str  # files.checksum() of its content


class Piece(NamedTuple):
    """What was finished at once: a file, the .bin of an image, the results of a batch."""

    key: str
    inputs: List[State]  # with other inputs the piece must be made again
    files: List[Made]
    notes: Row


class Part(NamedTuple):
    """A file that is complete but does not have its name yet."""

    name: str  # below the folder of the record
    path: str  # where it lies now, on the same file system
    size: int  # bytes
    checksum: str  # files.checksum() of its content


class Draft(NamedTuple):
    """A piece whose files do not have their names yet."""

    key: str
    inputs: List[State]
    parts: List[Part]
    notes: Row = {}
    stay: List[Made] = []  # files of the piece that have their names already


# ---- names and states ----------------------------------------------------------------------------


def path_of(product: str) -> str:
    """The path of the record beside a product."""
    return product.rstrip("/") + ENDING


def state(path: str, name: str = "") -> State:
    """The state of an input. Raises: OSError if the file does not exist."""
    return [name or os.path.basename(path), *files.stamp(os.stat(path))[:2]]


def identity(status: os.stat_result) -> Identity:
    return (status.st_dev, status.st_ino, *files.stamp(status))


def status_of_regular(path: str) -> Optional[os.stat_result]:
    """The status of a regular file; None for everything else, and for a symbolic link."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def boot_id() -> str:
    """A text that changes whenever the machine starts again; "" where the system has none."""
    path = "/proc/sys/kernel/random/boot_id"
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().strip()
    return ""


# ---- rows ----------------------------------------------------------------------------------------


def encode(rows: Iterable[Row]) -> bytes:
    """The lines of rows; a name that is not UTF-8 survives as \\udcXX."""
    lines = []
    for row in rows:
        text = json.dumps(row).encode("ascii")
        lines.append(b'%s, "crc": "%08x"}\n' % (text[:-1], zlib.crc32(text)))
    return b"".join(lines)


def checked_text(line: bytes) -> bytes:
    """The JSON text of a line without its CRC; b"" if the line is damaged or not from encode()."""
    length = len(line) - ROW_END_LENGTH - line.endswith(b"\n")
    end = ROW_END.match(line, max(0, length))
    if not end:
        return b""
    text = line[:length] + b"}"
    return text if zlib.crc32(text) == int(end.group(1), 16) else b""


def decode(lines: Iterable[bytes]) -> List[Row]:
    """The rows of a record's lines; damaged lines are left out."""
    texts = filter(None, map(checked_text, lines))
    try:
        rows = json.loads(b"[%s]" % b",".join(texts))  # in one piece: twice as fast as one by one
    except (ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)]


MADE_TYPES = [str, int, int, int, str]
PIECE_TYPES = [str, list, list, dict]


def made_of(entry: Any) -> Made:
    """Raises: TypeError or ValueError for an entry that this program would not write."""
    made = Made(*entry)
    if list(map(type, made)) != MADE_TYPES or not PLAIN.fullmatch(made.name):
        raise ValueError("not a file of a record")
    return made


def piece_of(row: Row) -> Piece:
    """Raises: KeyError, TypeError or ValueError for a row that this program would not write."""
    made = [made_of(entry) for entry in row["files"]]
    piece = Piece(row["key"], row["inputs"], made, row.get("notes", {}))
    if list(map(type, piece)) != PIECE_TYPES:
        raise TypeError("not a piece of a record")
    return piece


def row_of(piece: Piece) -> Row:
    row: Row = {"key": piece.key, "inputs": piece.inputs, "files": piece.files}
    if piece.notes:
        row["notes"] = piece.notes
    return row


# ---- what a record says --------------------------------------------------------------------------


class Record:
    """What the record at `path` says; all is empty if there is no record."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path, self.folder = path, os.path.dirname(path)
        self.recipe: Row = {}
        self.about: Row = {}
        self.begun_at = ""  # the boot_id() of the run
        self.pieces: Dict[str, Piece] = {}  # {key: the last piece with that key}
        self.made: Dict[str, Made] = {}  # {name: the last file that was made under that name}
        # {name: each (size, checksum) that a run announced for it}; an expected name has none
        self.announced: Dict[str, Set[Tuple[int, str]]] = {}
        self.ending: Optional[Row] = None  # the last row without "finished"; None without that row
        lines = content.splitlines(keepends=True)
        rows = decode(lines)
        for row in rows:
            with contextlib.suppress(
                KeyError, TypeError, ValueError
            ):  # anybody may have written it
                self.take(row)
        # Whether times prove that a file is unchanged; otherwise only its content does.
        self.believed = self.finished or (bool(rows) and self.begun_at == boot_id())
        self.older = {} if rows else files_of_older_version(lines)
        # Whether the file exists and is not a record of this program.
        self.foreign = bool(lines) and not rows and not self.older

    def take(self, row: Row) -> None:
        """Raises: KeyError, TypeError or ValueError for a row that this program would not write."""
        if "recipe" in row:
            self.recipe, self.about = dict(row["recipe"]), dict(row.get("about", {}))
            self.begun_at = str(row.get("boot_id"))
        elif "expected" in row:
            for name in filter(PLAIN.fullmatch, row["expected"]):
                self.announced.setdefault(name, set())
        elif "announced" in row:
            self.take_announced(row["announced"])
        elif "finished" in row:
            self.ending = {key: value for key, value in row.items() if key != "finished"}
        else:
            piece = piece_of(row)
            self.pieces[piece.key] = piece
            for made in piece.files:
                self.made[made.name] = made

    def take_announced(self, entries: List[Any]) -> None:
        """Raises: TypeError or ValueError for entries that this program would not write."""
        for name, size, checksum in entries:
            if type(size) is not int or type(checksum) is not str or not PLAIN.fullmatch(name):
                raise ValueError("not a file of a record")
            self.announced.setdefault(name, set()).add((size, checksum))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, and no row of a piece was lost since."""
        return self.ending is not None and self.ending.get("pieces") == len(self.pieces)

    @property
    def notes(self) -> Row:
        """The notes of a product that is made at once; {} if there are none."""
        return self.pieces[""].notes if "" in self.pieces else {}

    @property
    def aside(self) -> str:
        """The folder for files that are in the way and are not what this record says."""
        if self.path.endswith(ENDING):
            return self.path[: -len(ENDING)] + ".aside"
        return os.path.join(self.folder, "aside")

    def file_path(self, name: str) -> str:
        """The path of a file that the record names."""
        return os.path.join(self.folder, name)

    # ---- what is still as it was made

    def is_intact(self, made: Made, read: bool = False) -> bool:
        """Whether a file still is what was made.

        If its times changed (a copied folder, a changed mode), the file is read and its content
        decides. read: read it in any case, for file systems that do not keep the time of a change.
        """
        status = status_of_regular(self.file_path(made.name))
        if status is None or status.st_size != made.size:
            return False
        untouched = (status.st_mtime_ns, status.st_ctime_ns) == (made.mtime_ns, made.ctime_ns)
        if untouched and self.believed and not read:
            return True
        return files.checksum_of(self.file_path(made.name)) == made.checksum

    def is_piece_intact(self, piece: Piece, read: bool = False) -> bool:
        """Whether all files of a piece still are what was made (see is_intact)."""
        return all(self.is_intact(made, read) for made in piece.files)

    def is_current(self, recipe: Recipe) -> bool:
        """Whether a product that is made at once would be made again as it is now.

        The content of its files is read.
        """
        if not self.finished or not self.pieces or self.recipe != recipe.row:
            return False
        return all(self.is_piece_intact(piece, read=True) for piece in self.pieces.values())

    def kept(self, recipe: Recipe, force: bool = False) -> Dict[str, Piece]:
        """The pieces that may stay if this recipe makes the product; none with `force`."""
        if force or self.recipe != recipe.row:
            return {}
        return {key: piece for key, piece in self.pieces.items() if self.is_piece_intact(piece)}

    def differences(self, recipe: Recipe) -> str:
        """What has changed since the product was made, in words; "" without a change or record."""
        if self.older:
            return "an earlier version of this program made it"
        if not self.recipe:
            return "its record is damaged" if self.pieces else ""
        if self.recipe.get("tool") != recipe.row.get("tool"):
            return "another program made it"
        changed = [key for key, value in recipe.row.items() if self.recipe.get(key) != value]
        words = {"sources": "this program was updated"}
        return ", ".join(words.get(key, f"other {key}") for key in changed)

    # ---- whose the files are

    def names(self) -> Set[str]:
        """The names of all files that a run made, or was about to make."""
        return {*self.made, *self.announced, *self.older}

    def is_ours(self, name: str) -> bool:
        """Whether the file with this name has a content that the record names."""
        path = self.file_path(name)
        status = status_of_regular(path)
        if status is None:
            return False
        if name in self.older:
            return self.older[name].matches(path, status)
        if name in self.made and self.is_intact(self.made[name]):
            return True
        contents = self.announced.get(name, set())
        if status.st_size not in {size for size, _ in contents}:
            return False
        return (status.st_size, files.checksum_of(path)) in contents

    def refuse_others(self, names: Iterable[str]) -> None:
        """Refuse to make files with names that are taken, unless the record knows these names."""
        names = list(names)
        known = self.names()
        if self.foreign:
            raise Refusal(
                f"{shown(self.path)} is not a record of this program; move it away, or name "
                "another place"
            )
        folders = {
            self.file_path(os.path.dirname(name)) for name in {*names, *known} if "/" in name
        }
        for link in filter(os.path.islink, folders):
            raise Refusal(
                f"{shown(link)} is a symbolic link, and nothing is made or removed through a link; "
                f"name {shown(os.path.realpath(link))} itself, or remove the link"
            )
        paths = [self.file_path(name) for name in names if name not in known]
        taken = list(filter(os.path.lexists, paths))
        if taken:
            problem = "no record says that this program made it; move it away"
            if len(taken) > 1:
                problem = "no record says that this program made them; move them away"
            raise Refusal(f"{some(taken, 5)}: {problem}, or name another file or folder")

    def clear(self, keep: Set[str]) -> None:
        """Remove our files whose names are not in `keep`; set aside those with another content."""
        others = []
        for name in sorted(self.names() - keep):
            if self.is_ours(name):
                os.unlink(self.file_path(name))
            elif os.path.lexists(self.file_path(name)):
                others.append(name)
        self.set_aside(others)

    def present(self) -> Dict[str, int]:
        """{name: bytes} of the files that are there with a content that the record names.

        What lies behind a symbolic link does not count.
        """
        found = {}
        for name in sorted(self.names()):
            behind_link = "/" in name and os.path.islink(self.file_path(os.path.dirname(name)))
            if not behind_link and self.is_ours(name):
                found[name] = os.lstat(self.file_path(name)).st_size
        return found

    def remove(self) -> None:
        """Remove the files that are present(), then their folders if these are empty.

        The record goes last, and only if no file is left that it knows.
        """
        for name in self.present():
            os.unlink(self.file_path(name))
        if not any(os.path.lexists(self.file_path(name)) for name in self.names()):
            os.unlink(self.path)
        folders = {os.path.dirname(self.file_path(name)) for name in self.names()}
        for folder in sorted({self.folder, *folders}, reverse=True):  # those inside come first
            with contextlib.suppress(OSError):  # it is not empty, or it is a link
                os.rmdir(folder or ".")

    def set_aside(self, names: List[str]) -> None:
        """Move files that are not what the record says out of the way, and say so.

        An empty file is removed: a power loss leaves such files.
        """
        moved = []
        for name in names:
            path = self.file_path(name)
            status = status_of_regular(path)
            if status and not status.st_size:
                os.unlink(path)
                continue
            if os.path.islink(self.aside):
                raise Refusal(f"{shown(self.aside)} is a symbolic link; remove it")
            os.makedirs(self.aside, mode=0o750, exist_ok=True)
            os.rename(path, files.unused(os.path.join(self.aside, os.path.basename(name))))
            moved.append(path)
        if moved:
            cli.say(f"{some(moved)}: not as this program made it; moved to {shown(self.aside)}")


class Older(NamedTuple):
    """What a record of version 1.2 or before says of a file."""

    mtime_ns: int
    ctime_ns: int
    sha256: str  # "" of a .bin

    def matches(self, path: str, status: os.stat_result) -> bool:
        """Whether the file is the one that was made: by its content, or a .bin by its times."""
        if not self.sha256:
            return (status.st_mtime_ns, status.st_ctime_ns) == (self.mtime_ns, self.ctime_ns)
        digest = hashlib.sha256()
        for chunk in files.chunks_of(path, follow_links=False):
            digest.update(chunk)
        return digest.hexdigest() == self.sha256


def older_files_of(row: Any) -> Iterator[Tuple[str, Older]]:
    """Yield (name, what the row says) of the files in a row of version 1.2 or before.

    Raises: many kinds of errors for a row that no version would write.
    """
    for entry in row.get("files", []):
        if len(entry[4]) == SHA256_DIGITS and PLAIN.fullmatch(entry[0]):
            yield entry[0], Older(entry[2], entry[3], entry[4])
    name = row.get("bin", "")
    if name.endswith(".bin") and PLAIN.fullmatch(name):
        yield name, Older(row["bin_mtime_ns"], row["bin_ctime_ns"], "")


def files_of_older_version(lines: List[bytes]) -> Dict[str, Older]:
    """{name: what is said of it} of our files in a record of version 1.2 or before.

    Nothing else is read from such a record: its product is made again. {} if the lines are not
    such a record.
    """
    older_files: Dict[str, Older] = {}
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            if number == 0 and "boot_id" not in row:
                return {}
            older_files.update(older_files_of(row))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            continue
    return older_files


@functools.lru_cache(maxsize=64)
def parsed(path: str, _: Identity) -> Record:
    return Record(path, files.read_regular(path, follow_links=False, largest=LARGEST))


def read_path(path: str) -> Record:
    """What the record at a path says; parsed once in a process as long as the file stays the same.

    Raises: Refusal if something is there that is not a regular file.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Record(path, b"")
    return parsed(path, (*identity(status), os.getpid()))


def read(product: str) -> Record:
    """What the record beside a product says."""
    return read_path(path_of(product))


# ---- writing one ---------------------------------------------------------------------------------


class Writer:
    """A record that is being written. The end of a `with` block closes it, finished or not."""

    def __init__(self, path: str, recipe: Recipe, about: Row, first: Iterable[Row]) -> None:
        """first: the rows after the recipe; those of pieces count as published."""
        self.path, self.folder = path, os.path.dirname(path)
        rows = [{"recipe": recipe.row, "about": about, "boot_id": boot_id()}, *first]
        self.keys = {row["key"] for row in rows if "key" in row}
        part = files.write_part(path, encode(rows), durable=True)
        self.file = os.open(part, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with files.removed_on_error(part, path):
            os.replace(part, path)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.file)

    def append(self, rows: Iterable[Row]) -> None:
        files.append(self.file, encode(rows))

    def part(self, name: str, data: Any, durable: bool = True) -> Part:
        """Write a file that does not appear yet. data: bytes or a contiguous buffer."""
        path = files.write_part(os.path.join(self.folder, name), data, durable)
        return Part(name, path, memoryview(data).nbytes, files.checksum(data))

    def publish(self, drafts: List[Draft]) -> List[Piece]:
        """Let the files of pieces appear under their names, and record them. Raises: OSError."""
        announced: List[Tuple[str, int, str]] = []
        for draft in drafts:
            announced += [(part.name, part.size, part.checksum) for part in draft.parts]
        if announced:
            self.append([{"announced": announced}])
        pieces = []
        for draft in drafts:
            made = [*draft.stay, *map(self.give_name, draft.parts)]
            pieces.append(Piece(draft.key, draft.inputs, made, draft.notes))
        self.append(map(row_of, pieces))
        self.keys.update(piece.key for piece in pieces)
        return pieces

    def give_name(self, part: Part) -> Made:
        path = os.path.join(self.folder, part.name)
        os.replace(part.path, path)
        _, modified, changed = files.stamp(os.lstat(path))
        return Made(part.name, part.size, modified, changed, part.checksum)

    def finish(self, synced: bool = False, **notes: Any) -> None:
        """The run came to its end: wait until the disk has everything, then record that.

        synced: the disk has all files already, but perhaps not their names.
        notes: more values for the last row (Record.ending).
        """
        if synced:
            files.sync(self.folder or ".")
        else:
            sync_file_system(self.folder or ".")
        self.append([{"finished": True, "pieces": len(self.keys), **notes}])
        os.fsync(self.file)


def sync_file_system(folder: str) -> None:
    """Wait until the disk has all that was written to the file system of a folder."""
    try:
        subprocess.run(
            ["sync", "-f", folder],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except (OSError, subprocess.CalledProcessError):  # a system without that program or its -f
        os.sync()


def begin(
    before: Record,
    recipe: Recipe,
    expected: Iterable[str],
    kept: Iterable[Piece] = (),
    spared: Iterable[str] = (),
    listed: Iterable[str] = (),
    about: Optional[Row] = None,
) -> Writer:
    """Begin a new record of a product. Our files that do not stay are removed.

    before: the present record.
    expected: names of the files that the run will make.
    kept: pieces of the present record that stay.
    spared: names of files that stay for now, because they may become part of a piece.
    listed: names of all that lies where the product will be; they must be ours.
    Raises: Refusal, before anything is changed, for files that no record calls ours.
    """
    kept, expected, spared = list(kept), set(expected), set(spared)
    before.refuse_others({*expected, *listed})
    remove_old_parts(before, expected)
    kept_names: Set[str] = set()
    for piece in kept:
        kept_names.update(made.name for made in piece.files)
    before.clear(kept_names | spared)
    first: List[Row] = [{"expected": sorted(expected - kept_names)}]
    spared_files = [before.made[name] for name in sorted(spared) if name in before.made]
    if spared_files:
        announced = [(made.name, made.size, made.checksum) for made in spared_files]
        first.append({"announced": announced})
    return Writer(before.path, recipe, about or {}, [*first, *map(row_of, kept)])


def remove_old_parts(before: Record, expected: Set[str]) -> None:
    """Remove the parts that killed runs left of the record and of files that it or we name."""
    paths = {before.file_path(name) for name in expected | before.names()} | {before.path}
    names = set(map(os.path.basename, paths))
    for folder in set(map(os.path.dirname, paths)):
        if os.path.isdir(folder or "."):
            files.remove_parts(folder or ".", names)


def begin_folder(
    before: Record, recipe: Recipe, expected: Iterable[str], kept: Iterable[Piece] = ()
) -> Writer:
    """begin() for a folder whose record lies beside it.

    The folder is made if it does not exist; all that is in it must be ours.
    """
    folder = before.path[: -len(ENDING)]
    expected = list(expected)
    before.refuse_others(expected)
    os.makedirs(folder, mode=0o750, exist_ok=True)
    expected_names = {os.path.basename(name) for name in {*expected, *before.names()}}
    listed = [
        f"{os.path.basename(folder)}/{name}"
        for name in os.listdir(folder)
        if not files.is_part_of(name, expected_names)
    ]
    return begin(before, recipe, expected, kept, listed=listed)


def is_unchanged(path: str, before: Content) -> bool:
    """Whether a path still is the file that was read, with the same content.

    Only the time of a change may differ, as after a hard link or a chmod: then the content decides.
    """
    try:
        now = identity(os.stat(path))
    except OSError:
        return False
    if now[:-1] != before.identity[:-1]:
        return False
    return now == before.identity or files.checksum_of(path, follow_links=True) == before.checksum


def check_unchanged(recipe: Recipe) -> None:
    """Refuse to go on if a file that was read for the recipe has changed since."""
    for path, before in recipe.files.items():
        if not is_unchanged(path, before):
            raise Refusal(
                f"{shown(path)} was changed while it was in use, so its products do not count; "
                "run the same command again"
            )


def write(product: str, recipe: Recipe, contents: Dict[str, Any], **notes: Any) -> None:
    """Write all files of a product and its record, and remove the files of an earlier run.

    contents: {path: bytes}. notes: what others need to know of the product without opening it.
    Raises: Refusal for files that are not ours, or if an input has changed; OSError.
    """
    check_unchanged(recipe)
    before = read(product)
    data_of = {os.path.relpath(path, before.folder or "."): data for path, data in contents.items()}
    with begin(before, recipe, data_of) as writer:
        parts = [writer.part(name, data) for name, data in data_of.items()]
        writer.publish([Draft("", [], parts, notes)])
        writer.finish(synced=True)


def is_up_to_date(
    product: str, recipe: Recipe, paths: Iterable[str] = (), force: bool = False
) -> bool:
    """Whether a product that is made at once would be made again as it is now; no with `force`.

    paths: its files, if they are not only `product`.
    Raises: Refusal if it must be made again, and one of these files is not ours.
    """
    before = read(product)
    if not force and before.is_current(recipe):
        return True
    before.refuse_others([os.path.basename(path) for path in paths or [product]])
    return False


def adopt(product: str, recipe: Recipe, path: str, **notes: Any) -> None:
    """Let a file that another program made become a product with a record.

    path: the file, on the same file system. It gets the mode of a new file (0640 at most), because
    ais_bench refuses a model that others can write.
    Raises: as write(); Refusal for a link: another file's mode is not changed through it.
    """
    check_unchanged(recipe)
    checksum = files.checksum_of(path)
    if not checksum or os.lstat(path).st_nlink != 1:
        raise Refusal(f"{shown(path)} is a link or not a regular file")
    opened = files.open_regular(path, follow_links=False)
    try:
        os.fchmod(opened, files.mode_of_new())
    finally:
        os.close(opened)
    files.sync(path)
    name, size = os.path.basename(product), os.lstat(path).st_size
    with begin(read(product), recipe, [name]) as writer:
        writer.publish([Draft("", [], [Part(name, path, size, checksum)], notes)])
        writer.finish(synced=True)


# ---- files without a record ----------------------------------------------------------------------


def claim_like(path: str, mark: str) -> None:
    """Refuse to replace a file without a record unless it is empty or begins as ours do.

    mark: a text in the first 4,096 bytes of each of our files.
    """
    if not os.path.lexists(path):
        return
    beginning = b""
    if os.path.isfile(path):
        with open(files.open_regular(path), "rb") as file:
            beginning = file.read(4096)
    empty = os.path.isfile(path) and not beginning
    if mark.encode() not in beginning and not empty:
        raise Refusal(
            f"{shown(path)} exists and is not from this program (it does not begin with {mark}); "
            "move it away, or name another file"
        )


def check_results(folder: str, checksums: Dict[str, str]) -> None:
    """Refuse results that do not come from the run that the record of the folder describes.

    checksums: {file name: files.checksum() of its content} of the results that were read.
    If no content and no time is as recorded, somebody else has made all results since; that is
    allowed.
    """
    before = read(folder)
    if not before.made:
        return
    base = os.path.basename(folder.rstrip("/"))
    others, has_recorded_time = [], False
    for name, checksum in checksums.items():
        made = before.made.get(f"{base}/{name}")
        if made and made.checksum == checksum:
            continue
        others.append(name)
        if made and os.lstat(os.path.join(folder, name)).st_mtime_ns == made.mtime_ns:
            has_recorded_time = True
    all_are_others = len(others) == len(checksums)
    if others and (has_recorded_time or not all_are_others):
        raise Refusal(
            f"{counted(len(others), 'result file')} in {shown(folder)} did not come from the run "
            f"that made the others: {some(others)}; run the inference again, with --force if it "
            "says that they are up to date"
        )
