"""The images of a folder, as they come or prepared: which there are, and what only looks like one.

Standard library only.
"""

import errno
import os
import stat
from typing import Any, Dict, List, NamedTuple, Set, Tuple

from common.core.cli import Refusal, counted, shown, some
from common.core.files import Stamp, is_file, stamp
from common.core.names import (
    CLASS_ORDERS,
    INPUT_SUFFIXES,
    SUFFIXES,
    natural_key,
    ordered,
    result_stem,
)

Identity = Tuple[int, int]  # of a folder: device, inode
# Folders of other programs, in small letters: Synology, macOS, QNAP, Windows, ext4, Python.
FOREIGN = {
    *("@eadir", "@tmp", "__macosx", "@recycle", "#recycle", "#snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
}


class Listing(NamedTuple):
    """What is in a folder of images and in all folders in it, by paths below it."""

    images: Dict[str, Stamp]  # files with the suffix of an image, and their stamps
    bad: Dict[str, str]  # what cannot be read or only looks like an image, and why
    others: List[str]  # what is passed over: other files, and folders of other programs with "/"


def is_foreign(folder: str) -> bool:
    """Whether another program made a folder beside the images, by its name; so are hidden ones."""
    return folder.startswith(".") or folder.lower() in FOREIGN


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name; macOS writes `._NAME` beside what it copies."""
    return name.lower().endswith(SUFFIXES) and not name.startswith("._")


def find_images(folder: str) -> Listing:
    """All images under a folder; an image has a suffix of an image, in any case.

    Links are followed, but no folder is entered twice, and none that the folder itself lies in:
    loops end.
    """
    listing = Listing({}, {}, [])
    named_like_images: List[str] = []  # folders
    entered = parents_of(folder)
    folders, linked = [""], []  # type: List[str], List[str]
    while folders or linked:  # links last: an image has its path without links, if it has one
        relative = folders.pop() if folders else linked.pop(0)
        try:
            entries = enter(os.path.join(folder, relative), entered)
        except OSError as error:
            listing.bad[relative or "."] = f"folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            source = os.path.join(relative, entry.name)
            try:
                status = entry.stat()
            except OSError as error:
                take_unreadable(listing, source, entry, error)
                continue
            if not stat.S_ISDIR(status.st_mode):
                take_file(listing, source, status)
            elif is_foreign(entry.name):
                listing.others.append(source + "/")
            else:
                (linked if entry.is_symlink() else folders).append(source)
                if is_image(entry.name):
                    named_like_images.append(source)
    for source in named_like_images:
        if not any(image.startswith(source + "/") for image in listing.images):
            listing.bad[source] = "a folder without images, named like an image"
    return listing


def take_file(listing: Listing, source: str, status: os.stat_result) -> None:
    """Put a file where it belongs in the listing."""
    if not is_image(os.path.basename(source)):
        listing.others.append(source)
    elif stat.S_ISREG(status.st_mode):
        listing.images[source] = stamp(status)
    else:
        listing.bad[source] = "not a regular file"


def take_unreadable(
    listing: Listing, source: str, entry: "os.DirEntry[str]", error: OSError
) -> None:
    """Put what has no status into the listing: it is bad if it may be an image or hold images."""
    try:
        is_folder = entry.is_dir(follow_symlinks=False)
    except OSError:  # the disk cannot even say what it is
        is_folder = True
    if not is_image(entry.name) and is_foreign(entry.name):
        listing.others.append(source)
    elif entry.is_symlink():
        is_broken = error.errno in (errno.ENOENT, errno.ELOOP)
        problem = "broken link" if is_broken else f"link to what cannot be read: {error.strerror}"
        may_be_folder = "" if is_image(entry.name) else "; it may have led to a folder of images"
        listing.bad[source] = problem + may_be_folder
    elif is_folder:
        listing.bad[source] = f"folder cannot be read: {error.strerror}"
    elif is_image(entry.name):
        listing.bad[source] = f"cannot be read: {error.strerror}"
    else:
        listing.others.append(source)


def describe_others(others: List[str]) -> str:
    """What a listing passed over, in words; "" if that is nothing."""
    folders = [name for name in others if name.endswith("/")]
    names = [name for name in others if not name.endswith("/")]
    parts = []
    if folders:
        parts.append(f"{counted(len(folders), 'folder')} of other programs ({some(folders)})")
    if names:
        verb = "is not an image" if len(names) == 1 else "are not images"
        parts.append(f"{counted(len(names), 'file')} that {verb} ({some(names)})")
    return "passed over: " + ", ".join(parts) if parts else ""


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


def class_folders(folder: str, class_order: str = CLASS_ORDERS[0]) -> List[str]:
    """The folders in a folder in the order of their classes; see names.ordered() and is_foreign().

    A folder without a good image counts.
    Raises: Refusal for a broken link or what cannot be read, which may be a folder.
    """
    with os.scandir(folder) as listing:
        entries = [entry for entry in listing if not is_foreign(entry.name)]
    names = []
    for entry in entries:
        try:
            if stat.S_ISDIR(entry.stat().st_mode):
                names.append(entry.name)
        except OSError as error:
            if is_image(entry.name):
                continue
            state = f"cannot be read ({error.strerror})"
            if entry.is_symlink() and error.errno == errno.ENOENT:
                state = "is a link to nowhere"
            raise Refusal(
                f"{shown(entry.path)} {state}, and classes are numbered by their "
                "folders; fix or remove it, or give the number of each class: --class-map FILE"
            ) from None
    return ordered(names, class_order)


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
    paths = [path for path in paths if path.lower().endswith(INPUT_SUFFIXES) and is_file(path)]
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
