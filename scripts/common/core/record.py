"""What was made from what, by which code; is it whole, is it ours? The one answer for a file and for a folder.

Beside a product X (a file, several files under one name, or a folder) lies X.record.jsonl; in a prepared folder it is
called manifest.jsonl. Its rows are JSON objects:

    {"recipe": {…}, "about": {…}, "boot_id": …}   what every piece depends on; what else is to be known of the whole
    {"expected": [name, …]}                       files that the run is to make, whatever their content will be
    {"announced": [[name, size, checksum], …]}    files that are about to get their names, or to be removed
    {"key": …, "inputs": […], "files": [[name, size, mtime_ns, ctime_ns, checksum], …], "notes": {…}}   a finished piece
    {"finished": true, "pieces": n, …}            the run came to its end, and the disk has all of its n pieces

A product that is made at once has one piece, with the key "". Each row ends with the CRC-32 of the rest of it: a
damaged row is no row. A name stands in the record, with its content's checksum, before a file appears under it, so
whatever a killed run leaves is known by its content; after a power loss, which may take the checksums, by its name.

A record may be somebody else's. So its names are plain, nothing is done through a symbolic link, and no file is
removed or replaced whose content is not what a row says of it: such a file is set aside, into X.aside.

What an unfinished record says after a restart of the machine is believed only where the content of the files agrees.
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
from types import TracebackType
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set, Tuple, Type

from common.core import cli, files
from common.core.cli import Refusal, shown, some

Row = Dict[str, Any]
State = List[
    Any
]  # [name, size in bytes, mtime_ns] of an input: enough to see that it is another one
Identity = Tuple[int, ...]  # of a file on this machine: which one it is, and its times

ENDING = ".record.jsonl"
MANIFEST = "manifest.jsonl"  # a prepared folder's record, which lies in it
LARGEST = 1 << 33  # bytes of a record
SUM = re.compile(rb', "crc": "([0-9a-f]{8})"}\n?$')  # how a row ends
SUM_LENGTH = len(', "crc": "01234567"}')
SHA256_DIGITS = 64
WORD = r"[^/\0\ud800-\udc7f\udd00-\udfff]+"  # what a file can be called
PLAIN = re.compile(rf"(?!\.\.?(?:/|$)){WORD}(?:/(?!\.\.?$){WORD})?")  # NAME or FOLDER/NAME


class Content(NamedTuple):
    """What a file held when it was read."""

    sha256: str
    checksum: str  # files.checksum()
    identity: Identity


class Recipe(NamedTuple):
    """What a product depends on, and which files that was read from (see recipe.make)."""

    row: Row
    files: Dict[str, Content] = {}


class Made(NamedTuple):
    """A file that was made. name: below the folder of the record; checksum: files.checksum() of its content."""

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    checksum: str


class Piece(NamedTuple):
    """What was finished at once: a file, the .bin of an image, the results of a batch."""

    key: str
    inputs: List[State]  # another list means that the piece is to be made again
    files: List[Made]
    notes: Row


class Part(NamedTuple):
    """A file that is finished but has not got its name yet. path: where it lies now, on the same file system."""

    name: str
    path: str
    size: int
    checksum: str


class Draft(NamedTuple):
    """A piece whose files have not got their names yet; `stay` are files of it that lie where they belong already."""

    key: str
    inputs: List[State]
    parts: List[Part]
    notes: Row = {}
    stay: List[Made] = []


# ---- names and states ------------------------------------------------------------------------------------------------


def path_of(product: str) -> str:
    """The path of the record beside a product."""
    return product.rstrip("/") + ENDING


def state(path: str, name: str = "") -> State:
    """Raises: OSError if the file is not there."""
    return [name or os.path.basename(path), *files.stamp(os.stat(path))[:2]]


def identity(status: os.stat_result) -> Identity:
    return (status.st_dev, status.st_ino, *files.stamp(status))


def boot_id() -> str:
    """A text that changes whenever the machine starts again; "" where there is none."""
    with contextlib.suppress(OSError), open(
        "/proc/sys/kernel/random/boot_id", encoding="ascii"
    ) as file:
        return file.read().strip()
    return ""


# ---- rows ------------------------------------------------------------------------------------------------------------


def encode(rows: Iterable[Row]) -> bytes:
    """The lines of rows; a name that is not UTF-8 survives as \\udcXX."""
    lines = []
    for row in rows:
        text = json.dumps(row).encode("ascii")
        lines.append(b'%s, "crc": "%08x"}\n' % (text[:-1], zlib.crc32(text)))
    return b"".join(lines)


def intact(line: bytes) -> bytes:
    """The JSON text of a line without its checksum; b"" if the line is torn, damaged, or not one of encode()."""
    length = len(line) - SUM_LENGTH - line.endswith(b"\n")
    end = SUM.match(line, max(0, length))
    if not end:
        return b""
    text = line[:length] + b"}"
    return text if zlib.crc32(text) == int(end.group(1), 16) else b""


def decode(lines: Iterable[bytes]) -> List[Row]:
    """The rows of a record's lines; those that are damaged are left out."""
    texts = list(filter(None, map(intact, lines)))
    try:
        rows = json.loads(b"[%s]" % b",".join(texts))  # in one piece: twice as fast as one by one
    except (ValueError, RecursionError):
        return []
    return [row for row in rows if isinstance(row, dict)]


MADE_TYPES = [str, int, int, int, str]
PIECE_TYPES = [str, list, list, dict]


def made_of(entry: Any) -> Made:
    """Raises: TypeError or ValueError for what this program would not write."""
    made = Made(*entry)
    if list(map(type, made)) != MADE_TYPES or not PLAIN.fullmatch(made.name):
        raise ValueError("it is not a file of a record")
    return made


def piece_of(row: Row) -> Piece:
    """Raises: KeyError, TypeError or ValueError for a row that this program would not write."""
    piece = Piece(
        row["key"], row["inputs"], [made_of(entry) for entry in row["files"]], row.get("notes", {})
    )
    if list(map(type, piece)) != PIECE_TYPES:
        raise TypeError("it is not a piece of a record")
    return piece


def announced_of(row: Row) -> List[Tuple[str, int, str]]:
    """Raises: TypeError or ValueError for a row that this program would not write."""
    entries = [(name, size, checksum) for name, size, checksum in row["announced"]]
    for name, size, checksum in entries:
        if type(size) is not int or type(checksum) is not str or not PLAIN.fullmatch(name):
            raise ValueError("it is not a file of a record")
    return entries


def row_of(piece: Piece) -> Row:
    row: Row = {"key": piece.key, "inputs": piece.inputs, "files": piece.files}
    if piece.notes:
        row["notes"] = piece.notes
    return row


# ---- what a record says ----------------------------------------------------------------------------------------------


class Record:
    """What the record at `path` says.

    recipe, about: {} if there is no record; pieces: {key: the last one with that key}; ending: what the last row says
    beside "finished", None if the run did not come to its end; believed: whether times tell that a file is unchanged,
    or only its content does; foreign: whether the file is there and is no record of this program.
    """

    def __init__(self, path: str, content: bytes) -> None:
        self.path, self.folder = path, os.path.dirname(path)
        self.recipe: Row = {}
        self.about: Row = {}
        self.pieces: Dict[str, Piece] = {}
        self.made: Dict[str, Made] = {}  # {name: what was made last under that name}
        self.announced: Dict[
            str, Set[Tuple[int, str]]
        ] = {}  # {name: (size, checksum) of what was about to be made}
        self.ending: Optional[Row] = None
        self.begun_at = ""  # the boot_id() of the run
        lines = content.splitlines(keepends=True)
        rows = decode(lines)
        for row in rows:
            try:
                self.take(row)
            except (KeyError, TypeError, ValueError):  # nobody knows who wrote it
                continue
        self.believed = self.finished or (bool(rows) and self.begun_at == boot_id())
        self.older = {} if rows else files_of_older_version(lines)
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
            for name, size, checksum in announced_of(row):
                self.announced.setdefault(name, set()).add((size, checksum))
        elif "finished" in row:
            self.ending = {key: value for key, value in row.items() if key != "finished"}
        else:
            piece = piece_of(row)
            self.pieces[piece.key] = piece
            for made in piece.files:
                self.made[made.name] = made

    @property
    def finished(self) -> bool:
        """Whether the run came to its end, and no row of a piece was lost since."""
        return self.ending is not None and self.ending.get("pieces") == len(self.pieces)

    @property
    def notes(self) -> Row:
        """The notes of a product that is made at once, {} if there is none."""
        return self.pieces[""].notes if "" in self.pieces else {}

    @property
    def aside(self) -> str:
        """The folder for files that are in the way and are not what this record says."""
        if self.path.endswith(ENDING):
            return self.path[: -len(ENDING)] + ".aside"
        return os.path.join(self.folder, "aside")

    def place(self, name: str) -> str:
        """The path of a file that the record names."""
        return os.path.join(self.folder, name)

    # ---- what still holds

    def same(self, made: Made, read: bool = False) -> bool:
        """Whether a file still is what was made.

        A file whose times are others (a copied folder, a changed mode) is read: its content decides. read: it does in
        any case, for file systems that do not keep the time of a change.
        """
        try:
            status = os.lstat(self.place(made.name))
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode) or status.st_size != made.size:
            return False
        untouched = (status.st_mtime_ns, status.st_ctime_ns) == (made.mtime_ns, made.ctime_ns)
        if untouched and self.believed and not read:
            return True
        return files.checksum_of(self.place(made.name)) == made.checksum

    def holds(self, piece: Piece, read: bool = False) -> bool:
        """Whether all files of a piece are still what was made (see same)."""
        return all(self.same(made, read) for made in piece.files)

    def is_current(self, recipe: Recipe) -> bool:
        """Whether a product that is made at once would be made again as it is: the content of its files is read."""
        if not self.finished or not self.pieces or self.recipe != recipe.row:
            return False
        return all(self.holds(piece, read=True) for piece in self.pieces.values())

    def kept(self, recipe: Recipe, force: bool = False) -> Dict[str, Piece]:
        """The pieces that may stay if the product is made by this recipe; none with `force`."""
        if force or self.recipe != recipe.row:
            return {}
        return {key: piece for key, piece in self.pieces.items() if self.holds(piece)}

    def differences(self, recipe: Recipe) -> str:
        """What has changed since the product was made, in words; "" if nothing has, or there is no record."""
        if self.older:
            return "an earlier version of this program made it"
        if not self.recipe:
            return "its record is damaged" if self.pieces else ""
        if self.recipe.get("tool") != recipe.row.get("tool"):
            return "another program made it"
        words = {"sources": "this program was updated"}
        return ", ".join(
            words.get(key, f"other {key}")
            for key in recipe.row
            if self.recipe.get(key) != recipe.row[key]
        )

    # ---- whose the files are

    def names(self) -> Set[str]:
        """The names of all files that were made, or were about to be."""
        return {*self.made, *self.announced, *self.older}

    def is_ours(self, name: str) -> bool:
        """Whether the file under this name has a content of which the record says that it is ours."""
        try:
            status = os.lstat(self.place(name))
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        if name in self.older:
            return self.older[name].matches(self.place(name), status)
        if name in self.made and self.same(self.made[name]):
            return True
        contents = self.announced.get(name, set())
        if all(size != status.st_size for size, _ in contents):
            return False
        return (status.st_size, files.checksum_of(self.place(name))) in contents

    def refuse_others(self, names: Iterable[str]) -> None:
        """Refuse to make files under names where something is that no record calls this program's own."""
        names = list(names)
        if self.foreign:
            raise Refusal(
                f"{shown(self.path)} is not a record of this program; move it away, or name another place"
            )
        mine = self.names()
        for folder in {os.path.dirname(name) for name in {*names, *mine}} - {""}:
            if os.path.islink(self.place(folder)):
                raise Refusal(
                    f"{shown(self.place(folder))} is a symbolic link, and nothing is made or removed through "
                    f"one; name {shown(os.path.realpath(self.place(folder)))} itself, or remove the link"
                )
        others = [name for name in names if name not in mine and os.path.lexists(self.place(name))]
        if others:
            listed = some((self.place(name) for name in others), 5)
            raise Refusal(
                f"{listed}: no record says that this program made it; move it away, or name another file "
                "or folder"
            )

    def clear(self, keep: Set[str]) -> None:
        """Take away what is ours and not in `keep`; a file of another content than the record says is set aside."""
        others = []
        for name in sorted(self.names() - keep):
            if self.is_ours(name):
                os.unlink(self.place(name))
            elif os.path.lexists(self.place(name)):
                others.append(name)
        self.set_aside(others)

    def set_aside(self, names: List[str]) -> None:
        """Move files that are not what the record says out of the way, and tell so.

        A file without content is removed: that is what a power loss leaves.
        """
        moved = []
        for name in names:
            path = self.place(name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and not status.st_size:
                os.unlink(path)
                continue
            if os.path.islink(self.aside):
                raise Refusal(f"{shown(self.aside)} is a symbolic link; remove it")
            os.makedirs(self.aside, mode=0o750, exist_ok=True)
            os.rename(path, files.unused(os.path.join(self.aside, os.path.basename(name))))
            moved.append(path)
        if moved:
            cli.say(
                f"{some(moved)} {'is' if len(moved) == 1 else 'are'} not what this program made there, and "
                f"{'lies' if len(moved) == 1 else 'lie'} in {shown(self.aside)} now"
            )


class Older(NamedTuple):
    """What a record of version 1.2 or before says of a file."""

    mtime_ns: int
    ctime_ns: int
    sha256: str  # "" of a .bin

    def matches(self, path: str, status: os.stat_result) -> bool:
        """Whether the file is the one that was made, by its content or, of a .bin, by its times."""
        if not self.sha256:
            return (status.st_mtime_ns, status.st_ctime_ns) == (self.mtime_ns, self.ctime_ns)
        digest = hashlib.sha256()
        for chunk in files.chunks_of(path, follow_links=False):
            digest.update(chunk)
        return digest.hexdigest() == self.sha256


def files_of_older_version(lines: List[bytes]) -> Dict[str, Older]:
    """{name: what is said of it} of the files that a record of version 1.2 or before calls this program's own.

    Nothing else is read of such a record: what it speaks of is made again. {} if the lines are not one.
    """
    found: Dict[str, Older] = {}
    for place, line in enumerate(lines):
        try:
            row = json.loads(line)
            if place == 0 and "boot_id" not in row:
                return {}
            for entry in row.get("files", []):
                if len(entry[4]) == SHA256_DIGITS:
                    found[entry[0]] = Older(entry[2], entry[3], entry[4])
            if "bin" in row and row["bin"].endswith(".bin"):
                found[row["bin"]] = Older(row["bin_mtime_ns"], row["bin_ctime_ns"], "")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            continue
    return {name: older for name, older in found.items() if PLAIN.fullmatch(name)}


@functools.lru_cache(maxsize=64)
def parsed(path: str, _: Identity) -> Record:
    return Record(path, files.read_regular(path, follow_links=False, largest=LARGEST))


def read_path(path: str) -> Record:
    """What the record at a path says; parsed once in a process as long as the file stays the same.

    Raises: Refusal for what is there and is not a regular file.
    """
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return Record(path, b"")
    return parsed(path, (*identity(status), os.getpid()))


def read(product: str) -> Record:
    """What the record beside a product says."""
    return read_path(path_of(product))


# ---- writing one -----------------------------------------------------------------------------------------------------


class Writer:
    """A record that is being written. It is closed at the end of a `with` block, finished or not."""

    def __init__(self, path: str, recipe: Recipe, about: Row, first: Iterable[Row]) -> None:
        self.path, self.folder, self.recipe = path, os.path.dirname(path), recipe
        head = {"recipe": recipe.row, "about": about, "boot_id": boot_id()}
        first = list(first)
        self.keys = {row["key"] for row in first if "key" in row}
        part = files.write_part(path, encode([head, *first]), durable=True)
        self.file = os.open(part, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        with files.removed_on_error(part, path):
            os.replace(part, path)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        os.close(self.file)

    def part(self, name: str, data: Any, durable: bool = True) -> Part:
        """Write a file that does not appear yet. data: bytes or a contiguous buffer."""
        path = files.write_part(os.path.join(self.folder, name), data, durable)
        return Part(name, path, memoryview(data).nbytes, files.checksum(data))

    def publish(self, drafts: List[Draft]) -> List[Piece]:
        """Let the files of pieces appear under their names, and record them. Raises: OSError."""
        parts = [part for draft in drafts for part in draft.parts]
        if parts:
            files.append(
                self.file,
                encode([{"announced": [(part.name, part.size, part.checksum) for part in parts]}]),
            )
        pieces = []
        for draft in drafts:
            made = list(draft.stay)
            for part in draft.parts:
                path = os.path.join(self.folder, part.name)
                os.replace(part.path, path)
                _, modified, changed = files.stamp(os.lstat(path))
                made.append(Made(part.name, part.size, modified, changed, part.checksum))
            pieces.append(Piece(draft.key, draft.inputs, made, draft.notes))
        files.append(self.file, encode(map(row_of, pieces)))
        self.keys.update(piece.key for piece in pieces)
        return pieces

    def finish(self, synced: bool = False, **notes: Any) -> None:
        """The run came to its end: wait until the disk has everything, then say so.

        synced: all files are on the disk already, only their names may not be. notes: see Record.ending.
        """
        if synced:
            files.sync(self.folder or ".")
        else:
            sync_file_system(self.folder or ".")
        files.append(self.file, encode([{"finished": True, "pieces": len(self.keys), **notes}]))
        os.fsync(self.file)


def sync_file_system(folder: str) -> None:
    """Wait until the disk has all that was written to the file system of a folder."""
    try:
        done = subprocess.run(
            ["sync", "-f", folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        failed = done.returncode != 0
    except OSError:  # a system without that program
        failed = True
    if failed:
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
    """Start a record again, with the pieces of the one before that stay.

    expected: names of the files that will be made; spared: those that lie there and may become part of a piece yet;
    listed: names of what lies where the product is, and must be ours. What is ours and does not stay is taken away.
    Raises: Refusal, before anything is changed, for files that no record calls ours.
    """
    kept, expected, spared = list(kept), list(expected), set(spared)
    before.refuse_others({*expected, *listed})
    kept_names = {made.name for piece in kept for made in piece.files}
    own = {before.place(name) for name in {*expected, *before.names()}} | {before.path}
    for folder in set(map(os.path.dirname, own)):
        if os.path.isdir(folder or "."):
            files.remove_parts(folder or ".", set(map(os.path.basename, own)))
    before.clear(kept_names | spared)
    announced = [
        (made.name, made.size, made.checksum)
        for made in map(before.made.get, sorted(spared))
        if made
    ]
    first: List[Row] = [{"expected": sorted(set(expected) - kept_names)}]
    if announced:
        first.append({"announced": announced})
    return Writer(before.path, recipe, about or {}, [*first, *map(row_of, kept)])


def begin_folder(
    before: Record, recipe: Recipe, expected: Iterable[str], kept: Iterable[Piece] = ()
) -> Writer:
    """begin() for a folder whose record lies beside it: the folder is made, and all that is in it must be ours."""
    folder = before.path[: -len(ENDING)]
    base = os.path.basename(folder)
    expected = list(expected)
    before.refuse_others(expected)
    os.makedirs(folder, mode=0o750, exist_ok=True)
    expected_names = {os.path.basename(name) for name in {*expected, *before.names()}}
    listed = [
        f"{base}/{name}"
        for name in os.listdir(folder)
        if not files.is_part_of(name, expected_names)
    ]
    return begin(before, recipe, expected, kept, listed=listed)


def is_unchanged(path: str, before: Content) -> bool:
    """Whether a path still is the file that was read, with the same content.

    Only the time of a change may be another one, as after a hard link or a chmod: then the content decides.
    """
    try:
        now = identity(os.stat(path))
    except OSError:
        return False
    if now == before.identity:
        return True
    return (
        now[:-1] == before.identity[:-1]
        and files.checksum_of(path, follow_links=True) == before.checksum
    )


def check_unchanged(recipe: Recipe) -> None:
    """Refuse to go on if a file that the recipe was read from is another one by now."""
    for path, before in recipe.files.items():
        if not is_unchanged(path, before):
            raise Refusal(
                f"{shown(path)} was changed while it was in use, so what was made from it does not count; "
                "run the same command again"
            )


def write(product: str, recipe: Recipe, contents: Dict[str, Any], **notes: Any) -> None:
    """Write all files of a product, {path: bytes}, and its record; what an earlier run made beside them goes.

    notes: what others want to know of the product without opening it.
    Raises: Refusal for files that are not ours, and if an input was changed since the recipe was made; OSError.
    """
    check_unchanged(recipe)
    before = read(product)
    names = {os.path.relpath(path, before.folder or "."): data for path, data in contents.items()}
    with begin(before, recipe, names) as writer:
        parts = [writer.part(name, data) for name, data in names.items()]
        writer.publish([Draft("", [], parts, notes)])
        writer.finish(synced=True)


def is_up_to_date(
    product: str, recipe: Recipe, paths: Iterable[str] = (), force: bool = False
) -> bool:
    """Whether a product that is made at once would be made again as it is; never with `force`.

    paths: its files, if they are not only `product`. Raises: Refusal if it is to be made and one of them is not ours.
    """
    before = read(product)
    if not force and before.is_current(recipe):
        return True
    before.refuse_others([os.path.basename(path) for path in paths or [product]])
    return False


def adopt(product: str, recipe: Recipe, path: str, **notes: Any) -> None:
    """Let a file that another program made at `path`, on the same file system, become a product, with its record.

    It gets the mode 0640: ais_bench refuses a model that others can write. Raises: as write(); Refusal for a link.
    """
    check_unchanged(recipe)
    checksum = files.checksum_of(path)
    if not checksum:
        raise Refusal(f"{shown(path)} is a link or not a regular file")
    os.chmod(path, files.MODE)
    files.sync(path)
    name, size = os.path.basename(product), os.lstat(path).st_size
    with begin(read(product), recipe, [name]) as writer:
        writer.publish([Draft("", [], [Part(name, path, size, checksum)], notes)])
        writer.finish(synced=True)


# ---- files that have no record ---------------------------------------------------------------------------------------


def claim_like(path: str, mark: str) -> None:
    """Refuse to replace a file that has no record unless it is empty or begins as this program's do.

    mark: what stands in the first bytes of each of them.
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
            f"{shown(path)} is there already and is not this program's: it does not begin with {mark}; "
            "move it away, or name another file"
        )


def check_results(folder: str, found: Dict[str, str]) -> None:
    """Refuse results that are not those of the run that the folder's record speaks of.

    found: {file name: checksum() of its content} of what was read. If nothing is as recorded, and none of the recorded
    times is left either, somebody else has made all of it since, which is good as well.
    """
    about = read(folder)
    base = os.path.basename(folder.rstrip("/"))
    if not about.made:
        return
    strange, pretended = [], []
    for name, checksum in found.items():
        made = about.made.get(f"{base}/{name}")
        if made and made.checksum == checksum:
            continue
        strange.append(name)
        if made and os.lstat(os.path.join(folder, name)).st_mtime_ns == made.mtime_ns:
            pretended.append(name)
    if strange and (pretended or len(strange) < len(found)):
        raise Refusal(
            f"{len(strange)} results in {shown(folder)} are not those of the run that made the others: "
            f"{some(strange)}; run the inference again, with --force if it says that they are up to date"
        )
