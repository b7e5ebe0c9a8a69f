"""Labels: read from a file or from class folders, and found for each image by its name.

Standard library only.
"""
import os
import re
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from common import files
from common.cli import Refusal, shown, some
from common.files import read_regular
from common.images import class_folders
from common.names import natural_key, without_suffix

Label = Tuple[str, int, int]  # NAME, class, line number; a plain tuple: they are many
LARGEST = 1 << 32  # bytes of a labels file
IMAGENET_CLASSES = 1000


def read_labels(path: str) -> List[Label]:
    """The lines "NAME INT" of a labels file (NAME may hold spaces).

    A byte order mark, CRLF and empty lines are allowed; a NAME that is not UTF-8 still names its file.
    Raises: Refusal if a line is anything else, or there is none.
    """
    labels = []
    for line, text in enumerate(text_of(path, LARGEST).split("\n"), 1):
        words = text.rsplit(None, 1)
        if len(words) == 2 and words[1].isdigit() and words[1].isascii() and len(words[1]) <= 9:
            labels.append((words[0], int(words[1]), line))
        elif words:
            header = "; if this is a heading, remove it" if line == 1 and not re.search("[0-9]", text) else ""
            comma = "; put a space where the comma is" if re.fullmatch(r"\s*\S.*,\s*[0-9]+\s*", text) else ""
            raise Refusal(f"{shown(path)}, line {line}: {text[:80]!a} is not a label; 'NAME INT' was expected, as in "
                          f"'cat.JPEG 281'{header or comma}")
    if not labels:
        raise Refusal(f"{shown(path)} holds no labels")
    return labels


def text_of(path: str, largest: int = files.LARGEST) -> str:
    """A text file without its byte order mark. Raises: Refusal."""
    data = read_regular(path, largest=largest)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refusal(f"{shown(path)} is UTF-16 text; save it as UTF-8")
    return os.fsdecode(data[3:] if data.startswith(b"\xef\xbb\xbf") else data)


def read_class_map(path: str) -> Dict[str, int]:
    """{class folder: index} from `FOLDER INT` lines, or from one folder name a line, where the first line is 0."""
    lines = text_of(path).rstrip().split("\n")
    numbered = any(re.fullmatch(r".*\S\s+[0-9]+\s*", line) for line in lines)
    classes: Dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"\s*(.*\S)\s+([0-9]{1,9})\s*" if numbered else r"\s*(.*\S)()\s*", line)
        if not match or classes.setdefault(match[1], int(match[2] or number - 1)) != int(match[2] or number - 1):
            raise Refusal(f"{shown(path)}, line {number}: expected `CLASS_FOLDER INT`, each folder once (or one folder "
                          f"name in every line), found {shown(line[:80])}")
    return classes


def class_labels(folder: str, images: Iterable[str], stems: Dict[str, str], class_map: Optional[str]
                 ) -> Optional[bytes]:
    """The text of val_label.txt if every image lies in a class folder, otherwise None.

    folder: where the images are; images: sources; stems: {source: stem of its .bin}; class_map: a file for
    read_class_map(). Without one all folders are numbered, those without a good image as well.
    """
    folders = {source: os.path.dirname(source) for source in images}
    if not all(name and "/" not in name for name in folders.values()):
        if class_map:
            raise Refusal("--class-map is for images in class folders (SRC/CLASS/IMAGE), but "
                          f"{shown(next(s for s, f in folders.items() if not f or '/' in f))} is not in one")
        return None
    classes = read_class_map(class_map) if class_map else {
        name: index for index, name in enumerate(class_folders(folder))}
    for name in sorted(set(folders.values()), key=natural_key):
        if name not in classes:
            raise Refusal(f"{shown(class_map or folder)} has no {'line' if class_map else 'number'} for the class "
                          f"folder {shown(name)}")
    return "".join(f"{stems[source]} {classes[name]}\n" for source, name in folders.items()).encode("ascii")


def check_folders(folder: str, names: List[str], classes: int) -> None:
    """Refuse class folders that were numbered by their order, but are not as many as the network has classes."""
    if len(names) != classes and len(names) != classes - label_shift(classes):
        raise Refusal(f"{shown(folder)} has {len(names)} class folders ({some(names)}), which would be numbered 0 to "
                      f"{len(names) - 1} by their order, but the network has {classes} classes; say which is which: "
                      "--class-map FILE")


def label_shift(classes: int) -> int:
    """What to add to ImageNet's classes for a network of 1,001, whose class 0 is "background"."""
    return int(classes == IMAGENET_CLASSES + 1)


def label_offset(labels: Iterable[Label], classes: int, path: str, asked: Optional[int] = None) -> int:
    """What to add to each label to have the network's class; asked: what the user says of that.

    Of 1,001 classes class 0 is "background" (as in TensorFlow's models), unless there is a label of 1000.
    Raises: Refusal for a label that is no class then.
    """
    numbers = [index for _, index, _ in labels]
    offset = (label_shift(classes) if max(numbers) < classes - 1 else 0) if asked is None else asked
    for _, index, line in labels:
        if not 0 <= index + offset < classes:
            hint = ("; the labels seem to be counted from 1: --label-offset -1"
                    if min(numbers) == 1 and max(numbers) == classes and not offset else "")
            raise Refusal(f"{shown(path)}, line {line}: label {index} is outside the classes {-offset} to "
                          f"{classes - 1 - offset} of the model{hint}")
    return offset


def readings(images: Dict[str, str], sources: List[str]) -> Iterator[Callable[[str], List[str]]]:
    """Ways to read a label's NAME, the surest first: functions from NAME to the sources that it may mean."""
    exact = {**images, **dict(zip(sources, sources))}
    unlisted = {stem: stem for stem, source in images.items() if stem == source}  # nobody knows which suffix they have

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

    def similar(name: str) -> List[str]:  # base names, or NAME less its own leading folders, but never both
        found = names.get(name) or names.get(without_suffix(name))
        while not found and "/" in name:
            name = name.partition("/")[2]
            found = paths.get(name) or paths.get(without_suffix(name))
        return found or []
    yield similar


def match_labels(images: Dict[str, str], labels: List[Label], path: str, others: Iterable[str] = ()
                 ) -> Dict[str, Label]:
    """{stem: its label} for every image.

    images: {stem: source}, source being the image's path below the images' folder as the manifest has it, or the stem
    itself if no manifest is known; others: all sources that the manifest has, which a NAME may mean as well.
    A NAME is the source or the stem; if an image has no such label, a form in which the suffix or leading folders
    differ, if it can mean no other image.
    Raises: Refusal if an image has no label, a doubtful one, or two different ones.
    """
    found: Dict[str, Label] = {}  # by source
    doubtful: Dict[str, Tuple[Label, List[str]]] = {}
    lacking = set(images.values())
    for reading in readings(images, list(dict.fromkeys([*images.values(), *others]))):
        for label in labels:
            meant = reading(label[0])
            if len(meant) > 1:
                doubtful.update((source, (label, meant)) for source in meant)
            elif meant and meant[0] in lacking:
                other = found.setdefault(meant[0], label)
                if other[1] != label[1]:
                    raise Refusal(f"{shown(path)} gives {shown(meant[0])} two labels: {other[1]} in line {other[2]} "
                                  f"and {label[1]} in line {label[2]}")
        if len(found) == len(images):
            return {stem: found[source] for stem, source in images.items()}
        lacking.difference_update(found)
    for source in sorted(lacking.intersection(doubtful)):
        (name, _, line), meant = doubtful[source]
        raise Refusal(f"{shown(path)}, line {line}: {shown(name)} may be {shown(meant[0])} or {shown(meant[1])}; "
                      "give each its path below the images' folder")
    unnamed = " (or --prep, for names that TResNet_preprocess.py made)" if lacking.intersection(images) else ""
    raise Refusal(f"{len(lacking)} of {len(images)} images have no label in {shown(path)}: {some(lacking)}; "
                  f"a line 'NAME INT' was expected for each{unnamed}; its first one is for {shown(labels[0][0])}")
