"""What the classes of a network are called: by a file, by class folders, or as in ImageNet."""

import os
from typing import Dict, Iterable, List, Optional, Tuple

from common.core import files, packages
from common.core.cli import Refusal, say, shown
from common.core.names import CLASS_ORDERS, ordered
from common.core.places import Place
from common.data import wnids
from common.data.labels import label_shift
from common.data.wnids import WNID

LARGEST = 1 << 26  # bytes of a file of names
BACKGROUND = "background"  # class 0 of a network with one class more than ImageNet has


def in_order(path: str, names: Dict[str, str], folders: Dict[int, str]) -> List[str]:
    """The names of class folders in the order of the classes: the folders' natural or text order.

    names: {folder: name}, of the file `path`; folders: {class: folder}, as far as it is known.
    Raises: Refusal if `folders` contradicts both orders.
    """
    for class_order in CLASS_ORDERS:
        order = ordered(names, class_order)
        wrong = misplaced(order, folders)
        if wrong is None:
            return [names[folders.get(label, folder)] for label, folder in enumerate(order)]
    label = misplaced(ordered(names, CLASS_ORDERS[0]), folders)
    raise Refusal(
        f"{shown(path)} should name the folder {shown(folders[label or 0])} of class {label}, in "
        "lines `FOLDER NAME`: one for each folder, whose natural order is that of the classes"
    )


def misplaced(order: List[str], folders: Dict[int, str]) -> Optional[int]:
    """The first class whose folder is not where the order has it; None if all are.

    If the folders of all classes are known, their order does not matter.
    """
    for label, folder in folders.items():
        in_place = order[label : label + 1] == [folder] or len(folders) >= len(order)
        if folder not in order or not in_place:
            return label
    return None


def read(
    path: str,
    classes: int,
    folders: Optional[Dict[int, str]] = None,
    background: bool = True,
) -> List[str]:
    """The names in a file, in the order of the classes.

    The file has one name a line, or lines `FOLDER NAME` in any order. It has these if all lines
    begin with a WordNet number, or if all of `folders` are among their first words.
    folders: {class: its folder}, as far as it is known.
    background: whether class 0 of 1,001 is "background"; otherwise the last class has no name.
    Raises: Refusal if there is not one name for each class.
    """
    text = files.read_regular(path, largest=LARGEST).decode("utf-8-sig", "backslashreplace")
    lines = [line.strip() for line in text.rstrip().split("\n")]
    pairs: Dict[str, str] = {}
    for line in lines:
        words = line.split(None, 1)
        if len(words) == 2:
            pairs[words[0]] = words[1]
    all_wnids = all(map(WNID.fullmatch, pairs))
    all_folders = bool(folders) and set((folders or {}).values()) <= set(pairs)
    if len(pairs) == len(lines) and (all_wnids or all_folders):
        lines = in_order(path, pairs, folders or {})
    if label_shift(classes) and len(lines) == classes - 1:
        if background:
            lines.insert(0, BACKGROUND)
        else:
            lines.append(str(classes - 1))
    if len(lines) != classes or not all(lines):
        wrong = f"it has {len(lines)}" if all(lines) else f"line {lines.index('') + 1} is empty"
        raise Refusal(
            f"{shown(path)} should hold the names of the network's {classes} classes, one a line "
            f"or lines `FOLDER NAME`, each folder once, but {wrong}"
        )
    return lines


def kept(classes: int, place: Optional[Place] = None) -> str:
    """The file with the names for a network with so many classes, if they were fetched."""
    return wnids.kept_names(classes - label_shift(classes), place)


def fetch(
    classes: int, place: Optional[Place] = None, source: packages.Source = packages.HERE
) -> None:
    """Fetch ImageNet's names for a network with so many classes; says one line if it cannot.

    place: where the set-up writes to, None for that of a step; source: where packages come from.
    """
    own_classes = classes - label_shift(classes)
    if own_classes not in wnids.ORDERED or os.path.exists(kept(classes, place)):
        return
    try:
        wnids.fetch(own_classes, place, source)
    except (Refusal, OSError):
        say(
            f"the names of ImageNet's classes ({wnids.PACKAGE} on the package registry) could not "
            "be fetched, so classes are shown by their numbers; --class-names FILE gives others"
        )


def of_folders(labelled: Iterable[Tuple[str, int]]) -> Dict[int, str]:
    """{class: name of its folder} if each folder holds one class and each class has one folder.

    Otherwise {}. labelled: (an image's path below the images' folder, its class).
    """
    folders: Dict[str, int] = {}
    for source, label in labelled:
        folder = os.path.dirname(source)
        if not folder or folders.setdefault(folder, label) != label:
            return {}
    names = {label: folder for folder, label in folders.items()}
    return names if len(names) == len(folders) else {}


def find(
    classes: int,
    given: Optional[str] = None,
    labelled: Iterable[Tuple[str, int]] = (),
    background: bool = True,
) -> Optional[List[str]]:
    """The names of all classes: of a file, of class folders, or ImageNet's if they were fetched.

    given: the file, if there is one; labelled: see of_folders(); background: see read().
    A class whose folder has no image is called by its number. None if there are no names.
    """
    folders = of_folders(labelled)
    if given:
        return read(given, classes, folders, background)
    own_names = folders and not all(map(WNID.fullmatch, folders.values()))
    if not own_names and os.path.exists(kept(classes)):
        return read(kept(classes), classes, background=background)
    return [folders.get(label, str(label)) for label in range(classes)] if folders else None
