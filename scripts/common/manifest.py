"""The prepared folder's manifest: which .bin was made from which image, by which code; which images were bad, and why.

FOLDER/manifest.jsonl is a journal. Its header says what every .bin depends on. Then come the names of all .bin files
that the run was to make ("expected"), and a row for each image: {"source", "error"}, or {"bin", "source", "size",
"mtime_ns", "ctime_ns", "bin_mtime_ns", "bin_ctime_ns", "checksum"}, with the size and times of the image, the times of
the .bin and the checksum of its content (inputs.checksum). A finished run adds {"seconds"}, what all of it took.
Standard library only.
"""
import hashlib
import json
import os
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from common import journal, record
from common.cli import shown
from common.journal import Journal, Row, Told
from common.labels import label_offset, match_labels, read_labels
from common.names import result_stem

TOOL = "TResNet_preprocess.py"
MANIFEST = "manifest.jsonl"
WHOLE = [1, 1]  # the shard that is all images
LABELS = "val_label.txt"
PACKAGES = ("numpy", "Pillow", "simplejpeg")  # those that decide over the bytes


def read_manifest(folder: str) -> Tuple[Row, Dict[str, Row]]:
    """(header, {source: its last entry that can be trusted}) of a prepared folder, ({}, {}) if it is not ours."""
    told = read(folder)
    return told.header, {row["source"]: row for row in told.rows[:told.trusted] if "source" in row}


def sources(folder: str) -> Tuple[Dict[str, str], Dict[str, str]]:
    """({stem of a .bin: source of its image}, {source of a bad image: why}) of a prepared folder, if it is ours."""
    _, rows = read_manifest(folder)
    return ({result_stem(row["bin"]): source for source, row in rows.items() if "bin" in row},
            {source: row["error"] for source, row in rows.items() if "error" in row})


def checksums(folder: str) -> Dict[str, str]:
    """{name of a .bin: the checksum of its content} as a folder's manifest says, {} if it has none of ours."""
    return {row["bin"]: row["checksum"] for row in read(folder).rows if isinstance(row.get("checksum"), str)}


def read(folder: str) -> Told:
    """What the manifest tells; nothing if it is not ours. Rows that this program would not write are made empty."""
    told = journal.read(os.path.join(folder, MANIFEST))
    if told.header.get("tool") != TOOL:
        return Told({}, [], 0, 0)
    return told._replace(rows=[row if well_formed(row) else {} for row in told.rows])


def well_formed(row: Row) -> bool:
    """Whether a row says what it says in the types that this program writes."""
    if "bin" in row:
        return all(isinstance(row.get(key), str) for key in ("bin", "source"))
    if "source" in row or "error" in row:
        return all(isinstance(row.get(key), str) for key in ("source", "error"))
    names = row.get("expected", [])
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and isinstance(
        row.get("seconds", 0.0), (int, float))


def place_for(workdir: str, settings: Dict[str, Any]) -> str:
    """The prepared folder in a work folder for some settings of recipe().

    prep_dataset; where that was made with others, a folder named after these: so nothing is made anew when somebody
    tries other settings and comes back.
    """
    plain = os.path.join(workdir, "prep_dataset")
    named = f"{plain}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]}"
    header = read(plain).header
    others = bool(header) and any(header.get(key, value) != value for key, value in settings.items())
    return named if others or os.path.isdir(named) else plain


def recipe(program: str, **settings: Any) -> Row:
    """The header: what every .bin depends on beside its image; program: the path of the step."""
    return {"tool": TOOL, "sources": record.sources(program), "versions": record.versions(PACKAGES), **settings}


def differences(old: Row, new: Row) -> Tuple[List[str], List[str]]:
    """(which settings of two recipes differ, what else does: this program, the packages), in words."""
    settings = [f"{name} was {shown(str(old[name]))}" for name in new  # older versions knew fewer of them
                if name not in ("tool", "sources", "versions") and old.get(name, new[name]) != new[name]]
    before, program = old.get("versions"), ["this program was updated"] * (old.get("sources") != new["sources"])
    return settings, program + [f"{package} was {shown(str(before.get(package) or 'missing'))}"
                                for package, version in new["versions"].items()
                                if isinstance(before, dict) and before.get(package) != version]


def seconds_taken(rows: Iterable[Row]) -> float:
    """What it took to make the folder; 0 if it was never finished."""
    return max((row["seconds"] for row in rows if "seconds" in row), default=0.0)


def owned(rows: Iterable[Row]) -> Set[str]:
    """The names of the .bin files that the rows say were made or were to be made."""
    return {name for row in rows for name in [*row.get("expected", ()), row.get("bin")] if name is not None}


def begin(folder: str, header: Row, expected: Iterable[str], bad: Dict[str, str], kept: List[Row], synced: int,
          seconds: float) -> Journal:
    """A manifest that begins with what is known already.

    expected: names of all .bin files that are ours; bad: {source: reason}; kept: rows of earlier runs that still hold,
    the first `synced` of which the disk has for certain; seconds: what those runs took.
    """
    first: List[Row] = [{"expected": sorted(expected)}, {"seconds": seconds}]
    first += [{"source": source, "error": reason} for source, reason in sorted(bad.items())]
    return Journal(os.path.join(folder, MANIFEST), header, first + kept, len(first) + synced)


def true_classes(labels: str, folder: str, stems: List[str], classes: int, offset: Optional[int] = None) -> List[int]:
    """The class of each image of a prepared folder, 0 to classes - 1, from the file `labels`.

    stems: of their .bin files; offset: see label_offset(). Raises: Refusal if one has no label, a
    doubtful one, or one that is no class.
    """
    lines = read_labels(labels)
    shift = label_offset(lines, classes, labels, offset)
    named, bad = sources(folder)
    matched = match_labels({stem: named.get(stem, stem) for stem in stems}, lines, labels, [*named.values(), *bad])
    return [matched[stem][1] + shift for stem in stems]
