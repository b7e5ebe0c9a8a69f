"""What earlier runs left in a work folder, and a run with other options does not need.

Only what a record calls its own is listed or removed, never anything behind a symbolic link, and
only in the places where the pipeline works. What a run found (figures, tables, plots, the page)
stays. Standard library only.
"""

import os
import re
from typing import Collection, List, NamedTuple

from common.core import record
from common.core.cli import counted, shown
from common.core.record import ENDING, MANIFEST, Record

TUNE = "tune"  # the folder of --tune
FOLDERS = ("data", "sample", TUNE)  # in which the pipeline lets steps make products with records
PREPARED = re.compile(r"prep_dataset(-[0-9a-f]{8})?")
# Products beside each other in the work folder; others there are a user's, made by hand.
PRODUCTS = re.compile(r"tresnet(_int8)?(\.onnx|_bs[0-9]+\.om)|result(_int8|_onnx)?")


class Leftover(NamedTuple):
    """A product that is not needed."""

    path: str
    record: Record
    files: int
    bytes: int


def records_in(folder: str, name: str = "") -> List[str]:
    """The paths of the records in a folder, without links. name: only the one of this name."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return []
    with os.scandir(folder) as listing:
        found = [entry for entry in listing if entry.is_file(follow_symlinks=False)]
    return sorted(
        entry.path
        for entry in found
        if (entry.name == name if name else entry.name.endswith(ENDING))
    )


def subfolders(folder: str) -> List[str]:
    """The paths of the folders in a folder, without links."""
    if os.path.islink(folder) or not os.path.isdir(folder):
        return []
    with os.scandir(folder) as listing:
        return sorted(entry.path for entry in listing if entry.is_dir(follow_symlinks=False))


def known_records(workdir: str) -> List[str]:
    """The paths of the records of all that the pipeline makes and that may be large."""
    paths = []
    for path in records_in(workdir):
        if PRODUCTS.fullmatch(os.path.basename(path)[: -len(ENDING)]):
            paths.append(path)
    for folder in subfolders(workdir):
        if PREPARED.fullmatch(os.path.basename(folder)):
            paths += records_in(folder, MANIFEST)
    for name in FOLDERS:
        paths += records_in(os.path.join(workdir, name))
    for folder in subfolders(os.path.join(workdir, TUNE)):  # one for each combination
        paths += records_in(folder)
    return paths


def find(workdir: str, needed: Collection[str], tunes: bool) -> List[Leftover]:
    """What is not needed, the largest first.

    needed: paths of the records of what is needed.
    tunes: whether the run needs what --tune made.
    """
    found = []
    for path in known_records(workdir):
        of_tuning = os.path.relpath(path, workdir).split(os.sep)[0] == TUNE
        if path in needed or (of_tuning and tunes):
            continue
        about = record.read_path(path)
        if not about.names():  # a file of somebody else, or too damaged to say anything
            continue
        present = about.present()
        product = path[: -len(ENDING)] if path.endswith(ENDING) else about.folder
        size = sum(present.values()) + os.lstat(path).st_size
        found.append(Leftover(product, about, len(present), size))
    return sorted(found, key=lambda leftover: -leftover.bytes)


def size_words(size: int) -> str:
    """A number of bytes, rounded: "1.2 GB", "125 MB", "4 kB"."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            number = size / factor
            return f"{number:.1f} {unit}" if number < 10 else f"{number:,.0f} {unit}"
    return f"{-(-size // 1000)} kB"


def show(workdir: str, leftovers: List[Leftover]) -> None:
    """Print what is not needed, and its size."""
    if not leftovers:
        print(f"a run with these options needs all that earlier runs left in {shown(workdir)}")
        return
    print(f"not needed in {shown(workdir)} by a run with these options:")
    for leftover in leftovers:
        files = counted(leftover.files, "file")
        print(f"{size_words(leftover.bytes):>8}  {shown(leftover.path)} ({files})")
    print(f"{size_words(sum(leftover.bytes for leftover in leftovers)):>8}  in all")


def remove(leftovers: List[Leftover]) -> None:
    """Remove what is not needed, and print how much that was."""
    for leftover in leftovers:
        leftover.record.remove()
        if os.path.lexists(leftover.record.path):
            print(f"{shown(leftover.path)}: what was changed since it was made stays")
    print(f"removed {size_words(sum(leftover.bytes for leftover in leftovers))}")
