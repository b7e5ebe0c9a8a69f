"""timm's patched source: its stamp, and whether its files are still those that were patched.

The stamp, the file PATCHED in its folder, has lines: the SHA-256 of TResNet.patch, who made the
folder, then each Python file and its SHA-256. Early versions wrote no SHA-256 of files, the first
ones only the first line. Standard library only.
"""

import contextlib
import os
from typing import List, NamedTuple, Set

from common.core.places import PATCHED
from common.core.recipe import sha256

OURS, THEIRS = "fetched", "the user's"  # who made the folder


class Stamp(NamedTuple):
    """What the file PATCHED in the folder of the source says of it."""

    patch: str  # SHA-256 of the patch; "" without a stamp
    owner: str  # OURS or THEIRS
    modules: List[str]  # lines `PATH SHA-256`, or only PATH


def modules(folder: str) -> Set[str]:
    """The paths of timm's Python files, relative to `folder`."""
    paths: Set[str] = set()
    for path, _, names in os.walk(os.path.join(folder, "timm")):
        python_files = [os.path.join(path, name) for name in names if name.endswith(".py")]
        paths.update(os.path.relpath(file, folder) for file in python_files)
    return paths


def write_stamp(folder: str, patch_sha256: str, owner: str) -> None:
    """Write the stamp of a source that has just been patched."""
    lines = [f"{path} {sha256(os.path.join(folder, path))}" for path in sorted(modules(folder))]
    with open(os.path.join(folder, PATCHED), "w", encoding="utf-8") as file:
        file.write("\n".join([patch_sha256, owner, *lines]))


def read_stamp(folder: str) -> Stamp:
    """The stamp of a source. Without the name of its owner, a clone is the user's."""
    path = os.path.join(folder, PATCHED)
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
        if len(lines) > 1:
            return Stamp(lines[0], lines[1], lines[2:])
        is_clone = os.path.exists(os.path.join(folder, ".git"))
        return Stamp(lines[0], THEIRS if is_clone else OURS, [])
    return Stamp("", THEIRS, [])


def changed(folder: str) -> List[str]:
    """The files that are missing, or have another content than the stamp says, in its order."""
    names = []
    for line in read_stamp(folder).modules:
        name, _, recorded = line.partition(" ")
        path = os.path.join(folder, name)
        if not os.path.isfile(path) or (recorded and sha256(path) != recorded):
            names.append(name)
    return names
