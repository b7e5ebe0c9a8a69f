"""Labels: read from a file of any form or from class folders, and found for each image by its name.

A file has lines `NAME INT`, or gives an image several right classes: ImageNet-ReaL's real.json, and
the lines `NAME INT INT …` of a multi-label data set. Standard library only.
"""

import os
import re
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from common.core import files, json_file
from common.core.cli import Refusal, shown, some
from common.core.files import read_regular
from common.core.names import natural_key, without_suffix
from common.data.images import class_folders

LARGEST = 1 << 32  # bytes of a labels file
IMAGENET_CLASSES = 1000
VALIDATION_NAME = "ILSVRC2012_val_{:08d}"  # of image N, from 1, in ImageNet's validation set


class Label(NamedTuple):
    """What a labels file says of one image."""

    name: str  # the image's path, or a part of it
    classes: Tuple[int, ...]  # that are right, in rising order; ordinary labels have one
    line: int  # of the file, or the place in its list, from 1


# ---- a file of labels ----------------------------------------------------------------------------


def is_real(path: str) -> bool:
    """Whether a labels file is one of ReaL's form, by its name."""
    return path.lower().endswith(".json")


def read_label_file(path: str, multi_label: bool) -> List[Label]:
    """The labels in a file of any form; multi_label: its lines are `NAME INT INT …`.

    Raises: Refusal for anything else.
    """
    if multi_label:
        return read_multi_label(path)
    return read_real(path) if is_real(path) else read_labels(path)


def read_labels(path: str) -> List[Label]:
    """The lines `NAME INT` of a labels file (NAME may hold spaces).

    A byte order mark, CRLF and empty lines are allowed. A NAME that is not UTF-8 still names its
    file.
    Raises: Refusal if a line is anything else, or there is none.
    """
    labels = []
    known: Dict[str, Tuple[int, ...]] = {}  # classes by their digits: few, in many lines
    for line, text in enumerate(text_of(path, LARGEST).split("\n"), 1):
        words = text.rsplit(None, 1)
        classes = known.get(words[-1]) if len(words) == 2 else None
        if len(words) == 2 and not classes and re.fullmatch("[0-9]{1,9}", words[1]):
            classes = known[words[1]] = (int(words[1]),)
        if classes:
            labels.append(Label(words[0], classes, line))
        elif words:
            raise Refusal(
                f"{shown(path)}, line {line}: {text[:80]!a} is not a label; 'NAME INT' "
                f"was expected, as in 'cat.JPEG 281'{likely_mistake(text, line)}"
            )
    if not labels:
        raise Refusal(f"{shown(path)} holds no labels")
    return labels


def likely_mistake(text: str, line: int) -> str:
    """What to do about a line that is not a label, "" if that is not clear."""
    if line == 1 and not re.search("[0-9]", text):
        return "; if this is a heading, remove it"
    if re.fullmatch(r"\s*\S.*,\s*[0-9]+\s*", text):
        return "; put a space where the comma is"
    return ""


def read_real(path: str) -> List[Label]:
    """ReaL labels: a JSON list with a list of right classes for each validation image in order.

    Such a list may be empty. Source: https://github.com/google-research/reassessed-imagenet.
    Raises: Refusal for anything else.
    """
    advice = "ReaL's real.json was expected, a list of lists of classes such as [65, 395]"
    lists = json_file.read(path, [[json_file.COUNT], ...], advice, LARGEST)
    return [
        Label(VALIDATION_NAME.format(place), tuple(sorted(set(classes))), place)
        for place, classes in enumerate(lists, 1)
    ]


def read_multi_label(path: str) -> List[Label]:
    """Lines `NAME 3 17 40`: an image and its classes, in any order; a NAME alone has none.

    NAME may hold spaces. Raises: Refusal for a file that gives no image a class.
    """
    labels: List[Label] = []
    for line, text in enumerate(text_of(path, LARGEST).split("\n"), 1):
        match = re.fullmatch(r"\s*(.*?)((?:\s+[0-9]{1,9})*)\s*", text)
        if match and match.group(1):
            classes = set(map(int, match.group(2).split()))
            labels.append(Label(match.group(1), tuple(sorted(classes)), line))
    if not any(label.classes for label in labels):
        raise Refusal(
            f"{shown(path)} holds no labels; lines 'NAME INT INT …' were expected, as "
            "in 'street.jpg 3 17'"
        )
    return labels


def text_of(path: str, largest: int = files.LARGEST) -> str:
    """A text file without its byte order mark. Raises: Refusal."""
    data = read_regular(path, largest=largest)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refusal(f"{shown(path)} is UTF-16 text; save it as UTF-8")
    return os.fsdecode(data[3:] if data.startswith(b"\xef\xbb\xbf") else data)


# ---- class folders -------------------------------------------------------------------------------


def read_class_map(path: str) -> Dict[str, int]:
    """{class folder: index} from `FOLDER INT` lines, or from one folder name a line, where the first line is 0."""
    lines = text_of(path).rstrip().split("\n")
    numbered = any(re.fullmatch(r".*\S\s+[0-9]+\s*", line) for line in lines)
    classes: Dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(
            r"\s*(.*\S)\s+([0-9]{1,9})\s*" if numbered else r"\s*(.*\S)()\s*", line
        )
        if not match or classes.setdefault(match[1], int(match[2] or number - 1)) != int(
            match[2] or number - 1
        ):
            raise Refusal(
                f"{shown(path)}, line {number}: expected `CLASS_FOLDER INT`, each folder once (or one folder "
                f"name in every line), found {shown(line[:80])}"
            )
    return classes


def class_labels(
    folder: str, images: Iterable[str], stems: Dict[str, str], class_map: Optional[str]
) -> Optional[bytes]:
    """The text of val_label.txt if every image lies in a class folder, otherwise None.

    folder: where the images are; images: sources; stems: {source: stem of its .bin}; class_map: a file for
    read_class_map(). Without one all folders are numbered, those without a good image as well.
    """
    folders = {source: os.path.dirname(source) for source in images}
    if not all(name and "/" not in name for name in folders.values()):
        if class_map:
            raise Refusal(
                "--class-map is for images in class folders (SRC/CLASS/IMAGE), but "
                f"{shown(next(s for s, f in folders.items() if not f or '/' in f))} is not in one"
            )
        return None
    classes = (
        read_class_map(class_map)
        if class_map
        else {name: index for index, name in enumerate(class_folders(folder))}
    )
    for name in sorted(set(folders.values()), key=natural_key):
        if name not in classes:
            raise Refusal(
                f"{shown(class_map or folder)} has no {'line' if class_map else 'number'} for the class "
                f"folder {shown(name)}"
            )
    return "".join(f"{stems[source]} {classes[name]}\n" for source, name in folders.items()).encode(
        "ascii"
    )


def check_folders(folder: str, names: List[str], classes: int) -> None:
    """Refuse class folders that were numbered by their order, but are not as many as the network has classes."""
    if len(names) != classes and len(names) != classes - label_shift(classes):
        raise Refusal(
            f"{shown(folder)} has {len(names)} class folders ({some(names)}), which would be numbered 0 to "
            f"{len(names) - 1} by their order, but the network has {classes} classes; say which is which: "
            "--class-map FILE"
        )


# ---- the network's classes -----------------------------------------------------------------------


def label_shift(classes: int) -> int:
    """What to add to ImageNet's classes for a network of 1,001, whose class 0 is "background"."""
    return int(classes == IMAGENET_CLASSES + 1)


def label_offset(
    labels: Sequence[Label],
    classes: int,
    path: str,
    multi_label: bool = False,
    asked: Optional[int] = None,
) -> int:
    """What to add to each label to have the network's class.

    labels: of the file `path`, as read_label_file() gives them; classes: of the network; asked:
    what the user says, None if nothing. Of 1,001 classes class 0 is "background" (as in
    TensorFlow's models), unless there is a label of 1000. Multi-label data sets have no such class.
    Raises: Refusal for a label that is not a class of the network then.
    """
    numbers = {number for label in labels for number in label.classes}
    least, most = min(numbers, default=0), max(numbers, default=0)
    offset = asked
    if offset is None:
        offset = 0 if multi_label or most >= classes - 1 else label_shift(classes)
    if 0 <= least + offset and most + offset < classes:
        return offset
    hint = ""
    if (least, most, offset) == (1, classes, 0):
        hint = "; the labels seem to be counted from 1: --label-offset -1"
    wrong, line = next(
        (number, label.line)
        for label in labels
        for number in label.classes[::-1]
        if not 0 <= number + offset < classes
    )
    raise Refusal(
        f"{shown(path)}, line {line}: label {wrong} is outside the classes {-offset} to "
        f"{classes - 1 - offset} of the model{hint}"
    )


# ---- whose label it is ---------------------------------------------------------------------------


def readings(images: Dict[str, str], sources: List[str]) -> Iterator[Callable[[str], List[str]]]:
    """Ways to read a label's NAME, the surest first: functions from NAME to the sources that it may mean."""
    exact = {**images, **dict(zip(sources, sources))}
    unlisted = {
        stem: stem for stem, source in images.items() if stem == source
    }  # nobody knows which suffix they have

    def same(name: str) -> List[str]:
        found = exact.get(name) or (unlisted and unlisted.get(without_suffix(name)))
        return [found] if found else []

    yield same

    paths: Dict[str, List[str]] = {}
    names: Dict[str, List[str]] = {}
    for source in sources:
        bare = without_suffix(source)
        paths.setdefault(bare, []).append(source)
        for base in {source.rpartition("/")[2], bare.rpartition("/")[2]}:
            names.setdefault(base, []).append(source)
    paths.update((name, [source]) for name, source in exact.items())
    names.update(paths)

    def similar(
        name: str,
    ) -> List[str]:  # base names, or NAME less its own leading folders, but never both
        found = names.get(name) or names.get(without_suffix(name))
        while not found and "/" in name:
            name = name.partition("/")[2]
            found = paths.get(name) or paths.get(without_suffix(name))
        return found or []

    yield similar


def words(label: Label) -> str:
    """The classes of a label, as they stand in its file."""
    return " ".join(map(str, label.classes)) or "none"


def match_labels(
    images: Dict[str, str], labels: Sequence[Label], path: str, others: Iterable[str] = ()
) -> Dict[str, Label]:
    """{stem: its label} for every image.

    images: {stem: source}, source being the image's path below the images' folder as the manifest
    has it, or the stem itself if no manifest is known; others: all sources that the manifest has,
    which a NAME may mean as well.
    A NAME is the source or the stem; if an image has no such label, a form in which the suffix or
    leading folders differ, if it can mean no other image.
    Raises: Refusal if an image has no label, a doubtful one, or two different ones.
    """
    label_of: Dict[str, Label] = {}  # by source
    doubtful: Dict[str, Tuple[Label, List[str]]] = {}
    lacking = set(images.values())
    for reading in readings(images, list(dict.fromkeys([*images.values(), *others]))):
        for label in labels:
            meant = reading(label.name)
            if len(meant) > 1:
                doubtful.update((source, (label, meant)) for source in meant)
            elif meant and meant[0] in lacking:
                other = label_of.setdefault(meant[0], label)
                if other is not label and other.classes != label.classes:
                    raise Refusal(
                        f"{shown(path)} gives {shown(meant[0])} two labels: "
                        f"{words(other)} in line {other.line} and {words(label)} in line "
                        f"{label.line}"
                    )
        if len(label_of) == len(images):
            return {stem: label_of[source] for stem, source in images.items()}
        lacking.difference_update(label_of)
    for source in sorted(lacking.intersection(doubtful)):
        label, meant = doubtful[source]
        raise Refusal(
            f"{shown(path)}, line {label.line}: {shown(label.name)} may be "
            f"{shown(meant[0])} or {shown(meant[1])}; give each its path below the images' "
            "folder"
        )
    unnamed = ""
    if lacking.intersection(images):
        unnamed = " (or --prep, for names that TResNet_preprocess.py made)"
    raise Refusal(
        f"{len(lacking)} of {len(images)} images have no label in {shown(path)}: "
        f"{some(lacking)}; a line 'NAME INT' was expected for each{unnamed}; its first one "
        f"is for {shown(labels[0].name)}"
    )
