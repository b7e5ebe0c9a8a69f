"""The prepared folder's manifest: which .bin was made from which image, by which code; which images were bad, and why.

FOLDER/manifest.jsonl is a journal. Its header says what every .bin depends on. Then come the names of all .bin files
that the run was to make ("expected"), and a row for each image: {"bin", "source", "size", "mtime_ns", "bin_mtime_ns"},
with the size and the modification time of the image and the modification time of the .bin, or {"source", "error"}.
Standard library only.
"""
import os
from typing import Any, Dict, Iterable, List, Set, Tuple

from common import journal, record
from common.cli import shown
from common.journal import Journal, Row
from common.labels import check_range, label_shift, match_labels, read_labels
from common.names import result_stem

TOOL = "TResNet_preprocess.py"
MANIFEST = "manifest.jsonl"
LABELS = "val_label.txt"
PACKAGES = ("numpy", "Pillow", "simplejpeg")  # those that decide over the bytes


def read_manifest(folder: str) -> Tuple[Row, Dict[str, Row]]:
    """(header, {source: its last entry}) of a prepared folder, ({}, {}) if it has no manifest of ours."""
    header, rows, _ = read(folder)
    return header, {row["source"]: row for row in rows if isinstance(row.get("source"), str)}


def read(folder: str) -> Tuple[Row, List[Row], int]:
    """(header, rows that still count, how many of them the disk had for certain), ({}, [], 0) if it is not ours."""
    header, rows, synced = journal.read(os.path.join(folder, MANIFEST))
    return (header, rows, synced) if header.get("tool") == TOOL else ({}, [], 0)


def recipe(program: str, **settings: Any) -> Row:
    """The header: what every .bin depends on beside its image; program: the path of the step."""
    return {"tool": TOOL, "sources": record.sources(program), "versions": record.versions(PACKAGES), **settings}


def changes(old: Row, new: Row) -> List[str]:
    """What differs between two recipes, in words."""
    words = [f"{name} was {shown(str(old.get(name)))}" for name in new
             if name not in ("tool", "sources", "versions") and old.get(name) != new[name]]
    before = old.get("versions")
    if isinstance(before, dict):
        words += [f"{package} was {shown(str(before.get(package) or 'missing'))}"
                  for package, version in new["versions"].items() if before.get(package) != version]
    return ["this program was updated"] * (old.get("sources") != new["sources"]) + words


def owned(rows: Iterable[Row]) -> Set[str]:
    """The names of the .bin files that the rows say were made or were to be made."""
    names: Set[str] = set()
    for row in rows:
        names.update(map(str, row.get("expected", ())), [str(row.get("bin"))])
    return names


def begin(folder: str, header: Row, expected: Iterable[str], bad: Dict[str, str], kept: List[Row], synced: int
          ) -> Journal:
    """A manifest that begins with what is known already.

    expected: names of all .bin files that are ours; bad: {source: reason}; kept: rows of earlier runs that still hold,
    the first `synced` of which the disk has for certain.
    """
    first: List[Row] = [{"expected": sorted(expected)}]
    first += [{"source": source, "error": reason} for source, reason in sorted(bad.items())]
    return Journal(os.path.join(folder, MANIFEST), header, first + kept, len(first) + synced)


def true_classes(labels: str, folder: str, stems: List[str], classes: int) -> List[int]:
    """The class of each image of a prepared folder, 0 to classes - 1, from the file `labels`.

    stems: of their .bin files. Raises: Refusal if one has no label, a doubtful one, or one that is no class.
    """
    lines = read_labels(labels)
    check_range(lines, classes, labels)
    _, entries = read_manifest(folder)
    sources = {result_stem(str(row.get("bin"))): source for source, row in entries.items() if "error" not in row}
    images = {stem: sources.get(stem, stem) for stem in stems}
    matched = match_labels(images, lines, labels, set(entries).difference(images.values()))
    return [matched[stem][1] + label_shift(classes) for stem in stems]
