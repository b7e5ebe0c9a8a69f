"""What was made from what, by which code, with what: the one answer to "is it up to date?".

Beside a product X (a file, a folder, or several files under one name) lies X.record.jsonl, a journal. Its header is the
recipe: the tool and the SHA-256 of its sources, the options, the versions of what computes, the inputs. Its rows name
the files that were made, and of a folder that is made piece by piece the inputs of each piece. A product is up to date
only if the recipe is the same and the files still are what the rows say. Standard library only.
"""
import hashlib
import json
import os
import stat
from typing import Any, Dict, Iterable, List, Set, Tuple

from common import files
from common.cli import ROOT, Refusal, shown, some
from common.journal import Journal, Row, read

State = List[Any]  # [name, size in bytes, modification time in ns]: enough to see that an input is another one
Made = List[Any]  # [name, size, modification time, time of change, digest of its content], of a file that was made
UNKNOWN = [["", -1, 0, 0, ""]]  # of no file


def path_of(product: str) -> str:
    return product.rstrip("/") + ".record.jsonl"


def sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(data: Any) -> str:
    """What sha256() will say of a file with this content."""
    return hashlib.sha256(data).hexdigest()


def sources(tool: str) -> str:
    """SHA-256 over a program's own file and all rooms in scripts/common, C included: it changes when the code does."""
    rooms = os.path.join(ROOT, "scripts", "common")
    paths = [os.path.abspath(tool)] + [os.path.join(rooms, name) for name in sorted(os.listdir(rooms))
                                       if name.endswith((".py", ".c"))]
    return hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()


def versions(packages: Iterable[str]) -> Dict[str, str]:
    """{package: its version here, "" if it is not installed}; nothing is imported."""
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:  # Python 3.7
        from pkg_resources import DistributionNotFound as PackageNotFoundError  # type: ignore[assignment,no-redef]
        from pkg_resources import get_distribution

        def version(distribution_name: str) -> str:
            return str(get_distribution(distribution_name).version)
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


def state(path: str, name: str = "") -> State:
    """Raises: OSError if the file is not there."""
    return [name or os.path.basename(path), *files.stamp(os.stat(path))[:2]]


def made(path: str, name: str = "") -> Made:
    """What a record says of a file that was made. Raises: OSError if the file is not there."""
    return [name or os.path.basename(path), *files.stamp(os.stat(path)), sha256(path)]


def recipe(tool: str, options: Dict[str, Any], packages: Iterable[str] = (), inputs: Iterable[str] = (),
           settings: Iterable[str] = (), **more: Any) -> Row:
    """What a product depends on, as JSON gives it back.

    tool: the program's file; packages: those that compute; inputs: files that other tools make, settings: other files,
    both by content; more: versions of other programs, the device, and so on.
    Raises: Refusal if an input is no longer what its own record says.
    """
    row = {"tool": os.path.basename(tool), "sources": sources(tool), "options": options, "versions": versions(packages),
           "inputs": [[os.path.basename(path), checked_sha256(path)] for path in inputs],
           "settings": [[os.path.basename(path), sha256(path)] for path in settings], **more}
    return dict(json.loads(json.dumps(row)))


def checked_sha256(path: str) -> str:
    """SHA-256 of a file. Raises: Refusal if it has a record of its own that says another one."""
    found = sha256(path)
    recorded = files_of(read(path_of(path)).rows)
    if any(name == os.path.basename(path) and digest != found for name, *_, digest in recorded):
        raise Refusal(f"{shown(path)} is not what it was when it was made: it is damaged, or another file was put in "
                      "its place; make it again (what made it sees that), or give a file of your own another name")
    return found


def differences(old: Row, new: Row) -> str:
    """What has changed since a product was made, in words; "" if nothing did."""
    if old.get("tool") != new["tool"]:
        return "another program made it"
    words = {"sources": "this program was updated"}
    return ", ".join(words.get(key, f"other {key}") for key in new if old.get(key) != new[key])


# ---- what rows say of files ------------------------------------------------------------------------------------------

def files_of(rows: Iterable[Row]) -> List[Made]:
    """The files that rows say were made; what is not as this program writes it is passed over."""
    return [entry for row in rows for entry in well_formed(row.get("files"))]


def well_formed(entries: Any) -> List[Made]:
    """`entries` if it is a list of Made, else []."""
    good = isinstance(entries, list) and all(
        isinstance(entry, list) and list(map(type, entry)) == [str, int, int, int, str] for entry in entries)
    return entries if good else []


def holds(product: str, recorded: List[Made], read_all: bool = False) -> bool:
    """Whether files, named relative to the product's folder, still are what was recorded of them.

    A file whose stamp is another one (a copied folder, a changed mode) is read: its content decides. read_all: so it
    does for each, as after a power loss.
    """
    folder = os.path.dirname(os.path.abspath(product))
    try:
        for name, size, *times, digest in recorded:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            if status.st_size != size or not stat.S_ISREG(status.st_mode):
                return False
            if (read_all or list(files.stamp(status)[1:]) != times) and sha256(path) != digest:
                return False
        return True
    except OSError:
        return False


def owned(product: str) -> Set[str]:
    """Names, relative to the product's folder, of the files that the record says this program made or was making."""
    lists = [row.get(key) for row in read(path_of(product)).rows for key in ("expected", "files")]
    entries = [entry for found in lists if isinstance(found, list) for entry in found]
    names = [entry[0] if isinstance(entry, list) and entry else entry for entry in entries]  # older versions wrote less
    return {name for name in names if isinstance(name, str)}


# ---- a product that is made at once ----------------------------------------------------------------------------------

def is_current(product: str, made_by: Row) -> bool:
    """Whether the product would be made again as it is: the same recipe, and the content of every file as recorded."""
    told = read(path_of(product))
    recorded = files_of(told.rows)
    return told.header == made_by and bool(recorded) and holds(product, recorded, read_all=True)


def claim(product: str, paths: Iterable[str]) -> None:
    """Refuse to replace a file that is there and that no record calls this program's own."""
    folder, mine = os.path.dirname(os.path.abspath(product)), owned(product)
    for path in paths:
        if os.path.lexists(path) and os.path.relpath(path, folder) not in mine:
            raise Refusal(f"{shown(path)} is there already, and no record says that this program made it; move it "
                          "away, or name another file or folder")


def claim_like(path: str, mark: str) -> None:
    """Refuse to replace a file that has no record unless it is empty or begins as this program's do.

    mark: what stands in the first bytes of each of them.
    """
    if os.path.lexists(path):
        beginning = b""
        if os.path.isfile(path):
            with open(path, "rb") as file:
                beginning = file.read(4096)
        if mark.encode() not in beginning and (beginning or not os.path.isfile(path)):
            raise Refusal(f"{shown(path)} is there already and is not this program's: it does not begin with {mark}; "
                          "move it away, or name another file")


def begin(product: str, made_by: Row, paths: Iterable[str]) -> None:
    """Before files are written: claim() them, and record that they are ours should this run be killed half-way."""
    paths = list(paths)
    claim(product, paths)
    folder = os.path.dirname(os.path.abspath(product))
    Journal(path_of(product), made_by, [{"expected": [os.path.relpath(path, folder) for path in paths]}], 1).close()


def write(product: str, made_by: Row, paths: Iterable[str], **notes: Any) -> None:
    """Record that the files `paths`, in or below the product's folder, were made; the disk has them before.

    notes: what others want to know of the product without opening it.
    """
    folder = os.path.dirname(os.path.abspath(product))
    recorded = []
    for path in paths:
        files.sync(path)
        recorded.append(made(path, os.path.relpath(path, folder)))
    Journal(path_of(product), made_by, [{"files": recorded, "notes": notes}], 1).close()


def write_files(product: str, made_by: Row, contents: Dict[str, Any], **notes: Any) -> None:
    """Write all files of a product, {path: bytes}, and its record. What only an earlier run made beside them goes."""
    claim(product, contents)
    folder, new = os.path.dirname(os.path.abspath(product)), set(map(os.path.abspath, contents))
    for name, *rest in files_of(read(path_of(product)).rows):
        path = os.path.join(folder, name)
        if path not in new and os.path.basename(name) == name and holds(product, [[name, *rest]]):
            os.unlink(path)
    begin(product, made_by, contents)
    for path, data in contents.items():
        files.write_whole(path, data)
    write(product, made_by, contents, **notes)


def notes(product: str) -> Dict[str, Any]:
    """The notes of a product that was made at once."""
    found = [row["notes"] for row in read(path_of(product)).rows if isinstance(row.get("notes"), dict)]
    return dict(found[0]) if found else {}


# ---- a folder that is made piece by piece ----------------------------------------------------------------------------

class Folder:
    """A folder of files that is made from inputs in pieces; what an earlier run finished is kept where it still holds.

    beside: paths of the files that are written beside the folder at the end.
    kept: rows {"inputs": states, "files": made} of an earlier run with the same recipe whose files are unchanged.
    complete: whether that run came to its end, and what it wrote beside the folder then is unchanged as well.
    """

    def __init__(self, folder: str, made_by: Row, beside: Iterable[str], again: bool = False) -> None:
        self.folder, self.recipe, self.beside = folder.rstrip("/"), made_by, list(beside)
        told = read(path_of(folder))
        self.changed = differences(told.header, made_by) if told.header else ""
        self.mine = owned(folder)
        self.kept: List[Row] = []
        self.complete, self.synced = False, set()  # type: bool, Set[int]
        for place, row in enumerate(told.rows if told.header == made_by and not again else []):
            recorded = well_formed(row.get("files"))
            if recorded and holds(folder, recorded, read_all=place >= told.trusted):
                if "inputs" in row:
                    self.kept.append(row)
                    self.synced |= {id(row)} if place < told.synced or place >= told.trusted else set()
                else:
                    self.complete = True

    def name(self, path: str) -> str:
        """How the record names a file of the folder."""
        return os.path.join(os.path.basename(self.folder), path)

    def begin(self, kept: List[Row], expected: Iterable[str]) -> None:
        """Take the folder: what is not `kept` of our own goes, and what is not ours is refused before anything goes.

        expected: base names of the files that will be made; should this run be killed, they are known to be ours.
        """
        claim(self.folder, self.beside)
        os.makedirs(self.folder, mode=0o750, exist_ok=True)
        keep = {name for row in kept for name, *_ in row["files"]}
        there = {self.name(name) for name in os.listdir(self.folder)}
        foreign = {name for name in there if name not in self.mine and not (
            name.endswith(".part") and name[:-len(".part")] in self.mine)}
        if foreign:
            raise Refusal(f"{shown(self.folder)} holds {some(map(os.path.basename, foreign))}, and no record says that "
                          "this program made it; move it away or name another folder")
        ours = {self.name(name) for name in expected} | (there - keep) | set(map(os.path.basename, self.beside))
        first: List[Row] = [{"expected": sorted(ours)}]
        first += sorted(kept, key=lambda row: id(row) not in self.synced)
        synced = 1 + sum(id(row) in self.synced for row in kept)
        self.journal = Journal(path_of(self.folder), self.recipe, first, synced)
        for name in there - keep:
            os.unlink(os.path.join(os.path.dirname(self.folder), name))

    def add(self, inputs: List[State], recorded: Iterable[Made], **notes: Any) -> None:
        """One piece is finished: the states of its inputs, and what is to be recorded of its files, by base name.

        notes: what else is to be known of this piece.
        """
        self.journal.add([{"inputs": inputs, "files": [[self.name(name), *rest] for name, *rest in recorded], **notes}])

    def finish(self) -> None:
        """All pieces are finished, and so are the files beside the folder; the disk has them when this returns."""
        self.journal.add([{"files": list(map(made, self.beside))}])
        self.journal.finish()

    def close(self) -> None:
        """End, finished or not."""
        self.journal.close()


def inputs_of(folder: str) -> Set[Tuple[Any, ...]]:
    """The states of all inputs that a folder was made from."""
    rows = [row["inputs"] for row in read(path_of(folder)).rows if isinstance(row.get("inputs"), list)]
    return {tuple(entry) for inputs in rows for entry in inputs if isinstance(entry, list)}


def refuse_intruders(folder: str, newest: int) -> None:
    """Refuse results of which the folder's record does not know so, where it knows others so.

    newest: when one of them was changed last, in ns; nothing is read if the record was written after that. If nothing
    is as recorded, somebody else has made all of it since.
    """
    if not os.path.exists(path_of(folder)) or newest <= os.stat(path_of(folder)).st_ctime_ns:
        return
    recorded = {entry[0]: [entry] for entry in files_of(read(path_of(folder)).rows)}
    base, names = os.path.basename(folder.rstrip("/")), os.listdir(folder)
    strange = [name for name in names if not holds(folder, recorded.get(os.path.join(base, name), UNKNOWN))]
    if 0 < len(strange) < len(names):
        raise Refusal(f"{len(strange)} results in {shown(folder)} are not those of the run that made the others: "
                      f"{some(strange)}; run the inference again")
