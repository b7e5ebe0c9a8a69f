"""Records in tests: the program's own module reads, changes and writes them."""

import os
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional

from common.core import files, record
from common.core.record import Draft, Made, Recipe, Row
from common.data import prepared

PREPROCESS = "TResNet_preprocess.py"


def manifest_of(folder: Path) -> Path:
    """The record of a prepared folder."""
    return folder / record.MANIFEST


def rows_of(path: Path) -> List[Row]:
    """All rows of a record; each of its lines must be a good one."""
    lines = path.read_bytes().splitlines(keepends=True)
    rows = record.decode(lines)
    assert rows and len(rows) == len(lines), path
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a record of these rows, as a new file."""
    files.write_whole(str(path), record.encode(rows))


def change_rows(path: Path, change: Callable[[List[Row]], Any]) -> None:
    """Let change() change the list of a record's rows; the first row has the recipe."""
    rows = rows_of(path)
    change(rows)
    write_rows(path, rows)


def change_recipe(path: Path, **fields: Any) -> None:
    """Give fields of a record's recipe other values."""
    change_rows(path, lambda rows: rows[0]["recipe"].update(fields))


def change_file(path: Path, name: str, **fields: Any) -> None:
    """Change what a record says of one of its files. fields: of record.Made."""

    def change(rows: List[Row]) -> None:
        for row in rows:
            for index, entry in enumerate(row.get("files", [])):
                if entry[0] == name:
                    row["files"][index] = list(Made(*entry)._replace(**fields))

    change_rows(path, change)


def unfinish(path: Path) -> None:
    """As if the run had been killed after its last piece."""
    change_rows(path, lambda rows: rows.remove(next(row for row in rows if "finished" in row)))


def restart(path: Path) -> None:
    """As if the machine had started again after a record was written."""
    change_rows(path, lambda rows: rows[0].update(boot_id="another boot"))


def made(folder: Path, name: str) -> Made:
    """What a record must say of an existing file. name: below the folder of the record."""
    size, modified, changed = files.stamp(os.lstat(str(folder / name)))
    return Made(name, size, modified, changed, files.checksum_of(str(folder / name)))


def write_finished(
    path: Path,
    recipe: Row,
    pieces: Dict[str, List[str]],
    about: Optional[Row] = None,
    notes: Optional[Dict[str, Row]] = None,
) -> None:
    """Write the finished record of files that exist already.

    pieces: {key: names of its files}.
    notes: {key: notes of its piece}, also of pieces without files.
    """
    notes = notes or {}
    drafts = []
    for key in {**pieces, **notes}:
        files_made = [made(path.parent, name) for name in pieces.get(key, ())]
        drafts.append(Draft(key, [], [], notes.get(key, {}), files_made))
    with record.Writer(str(path), Recipe(recipe), about or {}, []) as writer:
        writer.publish(drafts)
        writer.finish(synced=True)


def write_prepared(
    folder: Path, sources: Dict[str, str], bad: Iterable[str] = (), **settings: Any
) -> None:
    """Write the manifest of a prepared folder whose .bin files exist.

    sources: {stem: source}; bad: sources that could not be read.
    settings: of prepared.make_recipe().
    """
    write_finished(
        manifest_of(folder),
        {"tool": PREPROCESS, "options": {"dtype": "float32", **settings}},
        {source: [f"{stem}.bin"] for stem, source in sources.items()},
        notes={source: {"error": "truncated"} for source in bad},
    )


def prepared_sources(folder: Path) -> Dict[str, str]:
    """{source: name of its .bin} of a prepared folder."""
    return {source: f"{stem}.bin" for stem, source in prepared.read(str(folder)).sources.items()}
