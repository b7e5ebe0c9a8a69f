"""The images of a folder, as they come or prepared: which there are, and what only looks like one.

Standard library only.
"""

import os
import stat
from typing import Any, Dict, List, Set, Tuple

from common.core.cli import Refusal, shown
from common.core.files import Stamp, stamp
from common.core.names import INPUT_SUFFIXES, SUFFIXES, natural_key, result_stem


def find_images(folder: str) -> Tuple[Dict[str, Stamp], Dict[str, str]]:
    """({source: its stamp}, {source: reason}) of all images under a folder, and of what only looks like one.

    A source is a path below the folder; an image has a suffix of an image, in any case. Links are followed, but no
    folder is entered twice and none that the folder itself lies in: loops end.
    """
    images: Dict[str, Stamp] = {}
    bad: Dict[str, str] = {}
    doubtful: List[str] = []  # folders named like images
    entered: Set[Tuple[int, int]] = set()
    above = os.path.realpath(folder)
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        entered.add((os.stat(above).st_dev, os.stat(above).st_ino))
    real, linked = [""], []  # type: List[str], List[str]
    while real or linked:
        relative = real.pop() if real else linked.pop(0)
        try:
            status = os.stat(os.path.join(folder, relative))
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(folder, relative)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            bad[relative or "."] = f"folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            source, named_image = (
                os.path.join(relative, entry.name),
                entry.name.lower().endswith(SUFFIXES),
            )
            try:
                status = entry.stat()
            except OSError as error:
                if named_image:
                    bad[source] = (
                        "broken link" if entry.is_symlink() else f"cannot be read: {error.strerror}"
                    )
                continue
            if stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else real).append(source)
                doubtful += [source] if named_image else []
            elif named_image and stat.S_ISREG(status.st_mode):
                images[source] = stamp(status)
            elif named_image:
                bad[source] = "not a regular file"
    bad.update(
        (source, "a folder without images, named like an image")
        for source in doubtful
        if not any(image.startswith(source + "/") for image in images)
    )
    return images, bad


def class_folders(folder: str) -> List[str]:
    """The folders in a folder in natural order, as timm numbers classes; also those without an image that is good.

    Hidden ones do not count. Raises: Refusal for a link to nowhere: nobody knows whether it was a folder.
    """
    with os.scandir(folder) as listing:
        entries = [entry for entry in listing if not entry.name.startswith(".")]
    for entry in entries:
        if (
            entry.is_symlink()
            and not os.path.exists(entry.path)
            and not entry.name.lower().endswith(SUFFIXES)
        ):
            raise Refusal(
                f"{shown(entry.path)} is a link to nowhere, and classes are numbered by their folders; mend "
                "or remove it, or say which is which: --class-map FILE"
            )
    return sorted((entry.name for entry in entries if os.path.isdir(entry.path)), key=natural_key)


def spaced(values: List[Any], most: int) -> List[Any]:
    """At most so many of the values, evenly spaced: data sets are often sorted by class."""
    count = min(most, len(values))
    return [values[place * len(values) // count] for place in range(count)]


def list_inputs(folder: str) -> List[str]:
    """Paths of the input files of a folder, or of the one file given, in natural order.

    Raises: Refusal if there is none or if two would write the same result.
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
                f"{shown(other)} and {shown(path)} agree up to their first dot, so one's result would "
                "overwrite the other's; rename one"
            )
    return paths
