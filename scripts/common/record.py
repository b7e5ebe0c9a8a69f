"""What was made from what, by which code, with what: the one answer to "is it up to date?".

Beside a product X (a file, a folder, or several files under one name) lies X.record.jsonl, a journal. Its header is the
recipe: the tool and the SHA-256 of its sources, the options, the versions of what computes, the inputs. Its rows name
the files that were made, and of a folder that is made piece by piece the inputs of each piece. A product is up to date
only if the recipe is the same and the files still are what the rows say. Standard library only.
"""
import hashlib
import json
import os
from typing import Any, Dict, Iterable, List, Set, Tuple

from common import files
from common.cli import ROOT, Refusal, shown, some
from common.journal import Journal, Row, read

State = List[Any]  # [name, size in bytes, modification time in ns]: enough to see that a large file is another one


def path_of(product: str) -> str:
    return product.rstrip("/") + ".record.jsonl"


def sha256(path: str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


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
    status = os.stat(path)
    return [name or os.path.basename(path), status.st_size, status.st_mtime_ns]


def states(paths: Iterable[str]) -> List[State]:
    return [state(path) for path in paths]


def recipe(tool: str, options: Dict[str, Any], packages: Iterable[str] = (), inputs: Iterable[str] = (),
           settings: Iterable[str] = (), **more: Any) -> Row:
    """What a product depends on, as JSON gives it back.

    tool: the program's file; packages: those that compute; inputs: large files, told apart by size and time; settings:
    small files, by content; more: versions of other programs, the device, and so on.
    """
    made = {"tool": os.path.basename(tool), "sources": sources(tool), "options": options,
            "versions": versions(packages), "inputs": states(inputs),
            "settings": [[os.path.basename(path), sha256(path)] for path in settings], **more}
    return dict(json.loads(json.dumps(made)))


def differences(old: Row, new: Row) -> str:
    """What has changed since a product was made, in words; "" if nothing did."""
    if old.get("tool") != new["tool"]:
        return "another program made it"
    words = {"sources": "this program was updated"}
    return ", ".join(words.get(key, f"other {key}") for key in new if old.get(key) != new[key])


# ---- a product that is made at once ----------------------------------------------------------------------------------

def is_current(product: str, made_by: Row) -> bool:
    """Whether the product would be made again as it is: the same recipe, and every file as the record says."""
    header, rows, _ = read(path_of(product))
    made = [row["files"] for row in rows if "files" in row]
    return header == made_by and bool(made) and all(holds(product, recorded) for recorded in made)


def holds(product: str, recorded: List[State]) -> bool:
    """Whether files, named relative to the product's folder, still are what was recorded of them."""
    folder = os.path.dirname(os.path.abspath(product))
    try:
        return all(state(os.path.join(folder, name), name) == [name, *rest] for name, *rest in recorded)
    except OSError:
        return False


def owned(product: str) -> Set[str]:
    """Names, relative to the product's folder, of the files that the record says this program made or was making."""
    header, rows, _ = read(path_of(product))
    names = {str(name) for row in rows for name, *_ in row.get("files", ())}
    return names | {str(name) for row in rows for name in row.get("expected", ())} if header else set()


def claim(product: str, paths: Iterable[str]) -> None:
    """Refuse to replace a file that is there and that no record calls this program's own."""
    folder, mine = os.path.dirname(os.path.abspath(product)), owned(product)
    for path in paths:
        if os.path.lexists(path) and os.path.relpath(path, folder) not in mine:
            raise Refusal(f"{shown(path)} is there already, and no record says that this program made it; move it "
                          "away, or name another file or folder")


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
    made = []
    for path in paths:
        files.sync(path)
        made.append(state(path, os.path.relpath(path, folder)))
    Journal(path_of(product), made_by, [{"files": made, "notes": notes}], 1).close()


def notes(product: str) -> Dict[str, Any]:
    """The notes of a product that was made at once."""
    _, rows, _ = read(path_of(product))
    return dict(rows[0].get("notes", {})) if rows else {}


# ---- a folder that is made piece by piece ----------------------------------------------------------------------------

class Folder:
    """A folder of files that is made from inputs in pieces; what an earlier run finished is kept where it still holds.

    kept: rows {"inputs": states, "files": states} of an earlier run with the same recipe whose files are unchanged.
    complete: whether that run came to its end, and what it wrote beside the folder then is unchanged as well.
    """

    def __init__(self, folder: str, made_by: Row, again: bool = False) -> None:
        self.folder, self.recipe = folder.rstrip("/"), made_by
        header, rows, synced = read(path_of(folder))
        self.changed = differences(header, made_by) if header else ""
        self.mine = owned(folder)
        pieces = [(row, place < synced) for place, row in enumerate(rows) if "inputs" in row]
        same = header == made_by and not again
        self.kept = [row for row, _ in pieces if same and holds(folder, row["files"])]
        self.synced = {id(row) for row, on_disk in pieces if on_disk}
        ends = [row for row in rows if "files" in row and "inputs" not in row]
        self.complete = same and bool(ends) and all(holds(folder, row["files"]) for row in ends)

    def name(self, path: str) -> str:
        """How the record names a file of the folder."""
        return os.path.join(os.path.basename(self.folder), path)

    def begin(self, kept: List[Row], expected: Iterable[str]) -> None:
        """Take the folder: what is not `kept` of our own goes, and what is not ours is refused before anything goes.

        expected: base names of the files that will be made; should this run be killed, they are known to be ours.
        """
        os.makedirs(self.folder, mode=0o750, exist_ok=True)
        keep = {name for row in kept for name, *_ in row["files"]}
        there = {self.name(name) for name in os.listdir(self.folder)}
        foreign = {name for name in there if name not in self.mine and not (
            name.endswith(".part") and name[:-len(".part")] in self.mine)}
        if foreign:
            raise Refusal(f"{shown(self.folder)} holds {some(map(os.path.basename, foreign))}, and no record says that "
                          "this program made it; move it away or name another folder")
        first: List[Row] = [{"expected": sorted({self.name(name) for name in expected} | (there - keep))}]
        first += sorted(kept, key=lambda row: id(row) not in self.synced)
        synced = 1 + sum(id(row) in self.synced for row in kept)
        self.journal = Journal(path_of(self.folder), self.recipe, first, synced)
        for name in there - keep:
            os.unlink(os.path.join(os.path.dirname(self.folder), name))

    def add(self, inputs: List[State], made: Iterable[Tuple[str, Tuple[int, int]]], **notes: Any) -> None:
        """One piece is finished: the states of its inputs, and (base name, (size, modification time)) of its files.

        notes: what else is to be known of this piece.
        """
        self.journal.add([{"inputs": inputs, "files": [[self.name(name), *rest] for name, rest in made], **notes}])

    def finish(self, beside: Iterable[str]) -> None:
        """All pieces are finished, and so are the files `beside` the folder; the disk has them when this returns."""
        self.journal.add([{"files": [state(path) for path in beside]}])
        self.journal.finish()

    def close(self) -> None:
        """End, finished or not."""
        self.journal.close()
