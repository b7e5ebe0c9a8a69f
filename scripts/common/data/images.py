"""The images of a folder, as they come or prepared: which there are, and what only looks like one.

Standard library only.
"""

import os
import stat
from typing import Any, Dict, List, Set, Tuple

from common.core.cli import Refusal, shown
from common.core.files import Stamp, stamp
from common.core.names import INPUT_SUFFIXES, SUFFIXES, natural_key, result_stem

Identity = Tuple[int, int]  # of a folder: device, inode


def find_images(folder: str) -> Tuple[Dict[str, Stamp], Dict[str, str]]:
    """All images under a folder, {source: its stamp}, and what only looks like one, {source: why}.

    A source is a path below the folder; an image has a suffix of an image, in any case. Links are
    followed, but no folder is entered twice, and none that the folder itself lies in: loops end.
    """
    images: Dict[str, Stamp] = {}
    bad: Dict[str, str] = {}
    named_like_images: List[str] = []  # folders
    entered = parents_of(folder)
    folders, linked = [""], []  # type: List[str], List[str]
    while folders or linked:  # links last: an image has its path without links, if it has one
        relative = folders.pop() if folders else linked.pop(0)
        try:
            entries = enter(os.path.join(folder, relative), entered)
        except OSError as error:
            bad[relative or "."] = f"folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            source = os.path.join(relative, entry.name)
            has_image_name = entry.name.lower().endswith(SUFFIXES)
            try:
                status = entry.stat()
            except OSError as error:
                if has_image_name and entry.is_symlink():
                    bad[source] = "broken link"
                elif has_image_name:
                    bad[source] = f"cannot be read: {error.strerror}"
                continue
            if stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else folders).append(source)
                if has_image_name:
                    named_like_images.append(source)
            elif has_image_name and stat.S_ISREG(status.st_mode):
                images[source] = stamp(status)
            elif has_image_name:
                bad[source] = "not a regular file"
    for source in named_like_images:
        if not any(image.startswith(source + "/") for image in images):
            bad[source] = "a folder without images, named like an image"
    return images, bad


def identity(folder: str) -> Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def parents_of(folder: str) -> Set[Identity]:
    """All folders that a folder lies in."""
    parents = set()
    path = os.path.realpath(folder)
    while path != os.path.dirname(path):
        path = os.path.dirname(path)
        parents.add(identity(path))
    return parents


def enter(folder: str, entered: Set[Identity]) -> List["os.DirEntry[str]"]:
    """What is in a folder, by name; nothing if it is among those `entered`, to which it is added.

    Raises: OSError.
    """
    this = identity(folder)
    if this in entered:
        return []
    entered.add(this)
    with os.scandir(folder) as listing:
        return sorted(listing, key=lambda entry: entry.name)


def class_folders(folder: str) -> List[str]:
    """The folders in a folder in natural order, as timm numbers classes; hidden ones do not count.

    A folder without a good image counts. Raises: Refusal for a broken link, which may be a folder.
    """
    with os.scandir(folder) as listing:
        entries = [entry for entry in listing if not entry.name.startswith(".")]
    for entry in entries:
        is_broken = entry.is_symlink() and not os.path.exists(entry.path)
        if is_broken and not entry.name.lower().endswith(SUFFIXES):
            raise Refusal(
                f"{shown(entry.path)} is a link to nowhere, and classes are numbered by their "
                "folders; fix or remove it, or give the number of each class: --class-map FILE"
            )
    return sorted((entry.name for entry in entries if os.path.isdir(entry.path)), key=natural_key)


def spaced(values: List[Any], most: int) -> List[Any]:
    """At most `most` of the values, evenly spaced: data sets are often sorted by class."""
    count = min(most, len(values))
    return [values[place * len(values) // count] for place in range(count)]


def list_inputs(folder: str) -> List[str]:
    """Paths of the input files of a folder in natural order, or of the one file that is given.

    Raises: Refusal if there are none, or if two would write the same result.
    """
    paths = [folder]
    if os.path.isdir(folder):
        paths = [os.path.join(folder, name) for name in sorted(os.listdir(folder), key=natural_key)]
    paths = [
        path for path in paths if path.lower().endswith(INPUT_SUFFIXES) and os.path.isfile(path)
    ]
    if not paths:
        raise Refusal(
            f"{shown(folder)} should be a folder with .bin or .npy files, but holds none; prepare "
            "them: python3 TResNet_preprocess.py ./ImageNet/val_union ./prep_dataset"
        )
    by_stem: Dict[str, str] = {}
    for path in paths:
        other = by_stem.setdefault(result_stem(path), path)
        if other != path:
            raise Refusal(
                f"{shown(other)} and {shown(path)} agree up to their first dot, so the result "
                "of one would overwrite the other's; rename one"
            )
    return paths
