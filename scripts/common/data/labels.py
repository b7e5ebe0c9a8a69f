"""Labels: read from a file of any form or from class folders, and found for each image by its name.

A file has lines `NAME INT`, or is a table with a name and a class in each row, or gives an image
several right classes: ImageNet-ReaL's real.json, and the lines `NAME INT INT …` of a multi-label
data set. Standard library only.
"""

import csv
import io
import itertools
import os
import re
import unicodedata
from typing import (
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from common.core import files, json_file
from common.core.cli import Refusal, counted, shown, some
from common.core.files import read_regular
from common.core.names import (
    CLASS_ORDERS,
    natural_key,
    ordered,
    other_order,
    without_suffix,
)
from common.data.images import class_folders
from common.data.wnids import IMAGENET_CLASSES, SYNSETS, WNID, of_imagenet

LARGEST = 1 << 26  # bytes of a labels file
PLAIN_CLASS = re.compile(rf"[0-9]{{1,9}}|{WNID.pattern}")
# A class in a table: also 281.0, or a WordNet ID with what Kaggle's tables have behind it.
CLASS = re.compile(rf"([0-9]{{1,9}})(?:\.0+)?|({WNID.pattern})(?:\s.*)?")
PROBED_NAMES = 20_000  # names that are looked at for the encoding of a file
PROBED = 50  # lines that are looked at for the form of a file
QUOTES = " \"'"
# Headings of tables, in small letters without anything else; the first ones count first.
IMAGE_HEADINGS = (
    *("filename", "filepath", "imagepath", "path", "imagename", "imgname", "image", "img"),
    *("imageid", "images", "file", "name", "id"),
)
CLASS_HEADINGS = (
    *("classid", "labelid", "classindex", "classidx", "categoryid", "target", "label", "class"),
    *("labels", "category", "groundtruth", "y", "wnid", "synset", "predictionstring"),
)
VALIDATION_NAME = "ILSVRC2012_val_{:08d}"  # of image N, from 1, in ImageNet's validation set


class Label(NamedTuple):
    """What a labels file says of one image."""

    name: str  # the image's path, or a part of it
    classes: Tuple[int, ...]  # the right ones in rising order; ordinary labels have one
    line: int  # of the file, or the position in its list, from 1


# ---- a file of labels ----------------------------------------------------------------------------


def is_real(path: str) -> bool:
    """Whether a labels file is one of ReaL's form, by its name."""
    return path.lower().endswith(".json")


def read_label_file(path: str, multi_label: bool, encoding: Optional[str] = None) -> List[Label]:
    """The labels in a file of any form; multi_label: its lines are `NAME INT INT …`.

    encoding: of the text; None for UTF-8, where a NAME that is not UTF-8 still names its file.
    Raises: Refusal for anything else.
    """
    if multi_label:
        return read_multi_label(path, encoding)
    return read_real(path) if is_real(path) else read_labels(path, encoding)


def read_labels(path: str, encoding: Optional[str] = None) -> List[Label]:
    """The labels of lines `NAME INT` (NAME may hold spaces), or of a table: see read_table().

    INT may also be a WordNet ID. A byte order mark, CRLF and empty lines are allowed.
    Raises: Refusal if a line is something else, or if there are no labels.
    """
    separator = separator_of(path, itertools.islice(lines_of(path, encoding), PROBED))
    if separator:
        labels = read_table(path, separator, encoding)
    else:
        labels = read_lines(path, encoding)
    if not labels:
        raise Refusal(f"{shown(path)} holds no labels")
    return labels


def read_lines(path: str, encoding: Optional[str]) -> List[Label]:
    """The lines `NAME INT` or `NAME WNID` of a file."""
    labels: List[Label] = []
    known: Dict[str, Tuple[int, ...]] = {}  # classes by their digits: few, in many lines
    wnids: Dict[int, str] = {}  # {place among the labels: WordNet ID}
    for line, text in enumerate(lines_of(path, encoding), 1):
        words = text.rsplit(None, 1)
        if not words:
            continue
        classes = known.get(words[-1]) if len(words) == 2 else None
        if classes is None:
            if len(words) != 2 or not PLAIN_CLASS.fullmatch(words[1]):
                raise Refusal(
                    f"{shown(path)}, line {line}: {text[:80]!a} is not a label; 'NAME INT' "
                    f"was expected, as in 'cat.JPEG 281'{likely_mistake(text, line)}"
                )
            if WNID.fullmatch(words[1]):
                wnids[len(labels)] = words[1]
                classes = ()
            else:
                classes = known[words[1]] = (int(words[1]),)
        labels.append(Label(words[0], classes, line))
    return number_wnids(labels, wnids, path)


def number_wnids(labels: List[Label], wnids: Dict[int, str], path: str) -> List[Label]:
    """The labels with the classes of WordNet IDs; wnids: {place among the labels: ID}."""
    if wnids:
        numbers = of_imagenet(wnids.values(), path)
        for place, wnid in wnids.items():
            labels[place] = labels[place]._replace(classes=(numbers[wnid],))
    return labels


def class_in(word: str) -> str:
    """The class that a word says, in digits or as a WordNet ID; "" if it does not say one."""
    match = CLASS.fullmatch(word)
    return (match.group(1) or match.group(2)) if match else ""


def likely_mistake(text: str, line: int) -> str:
    """What to do about a line that is not a label; "" if that is not clear."""
    if line == 1 and not re.search("[0-9]", text):
        return "; if this is a heading, remove it"
    if re.fullmatch(r"\s*\S.*,\s*[0-9]+\s*", text):
        return "; put a space where the comma is"
    return ""


def read_real(path: str) -> List[Label]:
    """ReaL labels: a JSON list with a list of right classes for each validation image in order.

    A list of classes may be empty. Source: https://github.com/google-research/reassessed-imagenet.
    Raises: Refusal for anything else.
    """
    advice = "ReaL's real.json was expected, a list of lists of classes such as [65, 395]"
    lists = json_file.read(path, [[json_file.COUNT], ...], advice, LARGEST)
    return [
        Label(VALIDATION_NAME.format(place), tuple(sorted(set(classes))), place)
        for place, classes in enumerate(lists, 1)
    ]


def read_multi_label(path: str, encoding: Optional[str] = None) -> List[Label]:
    """Lines `NAME 3 17 40`: an image and its classes, in any order; a NAME alone has none.

    NAME may hold spaces. Raises: Refusal for a file that gives no image a class.
    """
    labels: List[Label] = []
    for line, text in enumerate(lines_of(path, encoding), 1):
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


# ---- its text ------------------------------------------------------------------------------------


def text_of(path: str, largest: int = files.LARGEST) -> str:
    """A text file without its byte order mark. Raises: Refusal."""
    return os.fsdecode(bytes_of(path, largest))


def bytes_of(path: str, largest: int, encoding: Optional[str] = None) -> bytes:
    """The text of a file as UTF-8 without its byte order mark; see read_label_file().

    Raises: Refusal for text of another encoding.
    """
    data = read_regular(path, largest=largest)
    if encoding:
        try:
            text = data.decode(encoding)
        except UnicodeError as error:
            line = data.count(b"\n", 0, getattr(error, "start", 0)) + 1
            raise Refusal(
                f"{shown(path)}, line {line} is not {encoding} text; give its --labels-encoding, "
                "or save it as UTF-8"
            ) from None
        data = text.encode("utf-8", "surrogatepass")
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Refusal(
            f"{shown(path)} is UTF-16 text; save it as UTF-8, or give labels with "
            "--labels-encoding utf-16"
        )
    return data[3:] if data.startswith(b"\xef\xbb\xbf") else data


def lines_of(path: str, encoding: Optional[str]) -> Iterator[str]:
    """The lines of a labels file, one after the other, without their ends. Raises: Refusal."""
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    if size > LARGEST:
        raise Refusal(
            f"{shown(path)} has {size / 1e6:,.0f} MB, but at most {LARGEST / 1e6:,.0f} MB are read "
            "as labels, enough for a million images; give the lines of these images alone"
        )
    for line in io.BytesIO(bytes_of(path, LARGEST, encoding)):
        yield os.fsdecode(line).rstrip("\r\n")


# ---- a table -------------------------------------------------------------------------------------


def separator_of(path: str, first_lines: Iterable[str]) -> str:
    """What separates the columns of a table: "," ";" or a tab; "" for lines `NAME INT`.

    first_lines: of the file; the first one may be a heading.
    """
    lines = [line.strip() for line in first_lines if line.strip()][:2]
    if not lines:
        return ""
    is_named_so = path.lower().endswith((".csv", ".tsv"))
    probe = lines[-1]
    words = probe.rsplit(None, 1)
    is_line = len(words) == 2 and class_in(words[1]) and not words[0].endswith((",", ";"))
    for separator in "\t;,":
        if is_named_so and any(separator in line for line in lines):
            return separator
        cells = [cell.strip(QUOTES) for cell in probe.split(separator)]
        if len(cells) == 1:
            continue
        may_be_line = is_line and not (separator == "\t" and len(cells) > 2)
        if not may_be_line and (class_in(cells[1]) or class_in(cells[-1])):
            return separator
    return ""


class Columns(NamedTuple):
    """Where a table has what."""

    image: int
    label: int
    has_heading: bool


def read_table(path: str, separator: str, encoding: Optional[str]) -> List[Label]:
    """The labels of a table with one row for each image: its name, and its class as INT or WNID.

    A heading says which columns these are; without one they are the first two. Cells may be quoted.
    Raises: Refusal.
    """
    rows = csv.reader(lines_of(path, encoding), delimiter=separator, skipinitialspace=True)
    labels: List[Label] = []
    wnids: Dict[int, str] = {}  # {place among the labels: WordNet ID}
    columns: Optional[Columns] = None
    try:
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if columns is None:
                columns = columns_of(cells, path)
                if columns.has_heading:
                    continue
            image, label = cells_of(cells, columns, path, rows.line_num)
            classes: Tuple[int, ...] = ()
            if WNID.fullmatch(label):
                wnids[len(labels)] = label
            else:
                classes = (int(label),)
            labels.append(Label(image, classes, rows.line_num))
    except csv.Error as error:
        raise Refusal(
            f"{shown(path)}, line {rows.line_num}: the table cannot be read ({error}); lines "
            "'NAME INT' were expected, or a table with a name and a class in each row"
        ) from None
    return number_wnids(labels, wnids, path)


def columns_of(first: List[str], path: str) -> Columns:
    """The columns of a table; first: its first row that is not empty. Raises: Refusal."""
    words = [re.sub("[^a-z]", "", cell.lower()) for cell in first]
    images = [words.index(word) for word in IMAGE_HEADINGS if word in words]
    labels = [words.index(word) for word in CLASS_HEADINGS if word in words]
    if len(first) == 2 and not any(map(class_in, first)):
        label = labels[0] if labels else 1
        return Columns(1 - label, label, True)
    if images and labels and images[0] != labels[0]:
        return Columns(images[0], labels[0], True)
    if len(first) >= 2 and class_in(first[1]):
        return Columns(0, 1, False)
    if len(first) == 2:
        return Columns(1, 0, False)
    raise Refusal(
        f"{shown(path)} has {counted(len(first), 'column')} ({', '.join(map(shown, first[:9]))}), "
        "but none is known to have the images and another one the classes; make it a table with "
        "the heading ImageId,Class"
    )


def cells_of(cells: List[str], columns: Columns, path: str, line: int) -> Tuple[str, str]:
    """(name of the image, class as INT or WNID) in a row of a table. Raises: Refusal."""
    label = ""
    if len(cells) > max(columns.image, columns.label):
        label = class_in(cells[columns.label])
    if not label or not cells[columns.image]:
        raise Refusal(
            f"{shown(path)}, line {line}: the name of an image and its class, a whole number or a "
            f"WordNet ID such as n01440764, were expected, found {shown(','.join(cells)[:80])}"
        )
    return cells[columns.image], label


# ---- class folders -------------------------------------------------------------------------------


def read_class_map(path: str) -> Dict[str, int]:
    """{class folder: index} from lines `FOLDER INT`, or from lines `FOLDER`, where the first is 0.

    Raises: Refusal for another line, or for a folder with two numbers.
    """
    lines = text_of(path).rstrip().split("\n")
    numbered = any(re.fullmatch(r".*\S\s+[0-9]+\s*", line) for line in lines)
    pattern = r"\s*(.*\S)\s+([0-9]{1,9})\s*" if numbered else r"\s*(.*\S)()\s*"
    classes: Dict[str, int] = {}
    for number, line in enumerate(lines):
        match = re.fullmatch(pattern, line)
        index = int(match[2] or number) if match else -1
        if not match or classes.setdefault(match[1], index) != index:
            raise Refusal(
                f"{shown(path)}, line {number + 1}: expected `CLASS_FOLDER INT`, each folder once "
                f"(or one folder name in every line), found {shown(line[:80])}"
            )
    return classes


def class_labels(
    folder: str,
    images: Iterable[str],
    stems: Dict[str, str],
    class_map: Optional[str],
    class_order: Optional[str] = None,
) -> Optional[bytes]:
    """The text of val_label.txt if every image lies in a class folder, otherwise None.

    folder: where the images are; images: their paths below it; stems: {source: stem of its .bin}.
    class_map: a file for read_class_map(). Without one, all folders are numbered, even those
    without a good image, in the class_order of names.CLASS_ORDERS (None: natural).
    Raises: Refusal for a class map or an order without class folders, or a map that lacks a folder.
    """
    folders = {source: os.path.dirname(source) for source in images}
    outside = [source for source, name in folders.items() if not name or "/" in name]
    if outside and (class_map or class_order):
        option = "--class-map" if class_map else "--class-order"
        raise Refusal(
            f"{option} is for images in class folders (SRC/CLASS/IMAGE), but "
            f"{shown(outside[0])} is not in one"
        )
    if outside:
        return None
    if class_map:
        classes, lacking = read_class_map(class_map), f"{shown(class_map)} has no line"
    else:
        names = class_folders(folder, class_order or CLASS_ORDERS[0])
        classes = {name: index for index, name in enumerate(names)}
        lacking = f"{shown(folder)} has no number"
    for name in sorted(set(folders.values()), key=natural_key):
        if name not in classes:
            as_gbk = (os.fsencode(key).decode("gb18030", "replace") for key in classes)
            hint = "; the file seems to be GBK: save it as UTF-8" if name in as_gbk else ""
            raise Refusal(f"{lacking} for the class folder {shown(name)}{hint}")
    lines = [f"{stems[source]} {classes[name]}\n" for source, name in folders.items()]
    return "".join(lines).encode("ascii")


def note_on_order(names: List[str], class_order: str) -> str:
    """A sentence about the order of class folders; "" if both orders are the same.

    names: of the folders in the class_order that is used.
    """
    other = other_order(class_order)
    others = ordered(names, other)
    if others == names:
        return ""
    first = next(at for at, pair in enumerate(zip(names, others)) if pair[0] != pair[1])
    who = {"natural": "timm", "text": "torchvision"}
    return (
        f"class {first} is {shown(names[first])} in {class_order} order ({who[class_order]}'s), "
        f"which is used, and {shown(others[first])} in {other} order ({who[other]}'s); if the "
        f"network was trained so: --class-order {other}"
    )


def check_folders(folder: str, names: List[str], classes: int) -> None:
    """Refuse class folders that were numbered by their order if there is not one for each class."""
    if len(names) not in (classes, classes - label_shift(classes)):
        are_imagenets = all(map(WNID.fullmatch, names))
        hint = ""
        if are_imagenets and classes - label_shift(classes) == IMAGENET_CLASSES:
            hint = f", or put Kaggle's {SYNSETS} beside it, which numbers ImageNet's classes"
        raise Refusal(
            f"{shown(folder)} has {counted(len(names), 'class folder')} ({some(names)}), numbered "
            f"0 to {len(names) - 1} by their order, but the network has {classes} classes; give "
            f"the number of each folder: --class-map FILE{hint}"
        )


# ---- the network's classes -----------------------------------------------------------------------


def label_shift(classes: int) -> int:
    """What to add to ImageNet's classes: 1 if the network has 1,001, as class 0 is "background"."""
    return int(classes == IMAGENET_CLASSES + 1)


def label_offset(
    labels: Sequence[Label],
    classes: int,
    path: str,
    multi_label: bool = False,
    asked: Optional[int] = None,
    background: Optional[bool] = None,
) -> int:
    """What to add to each label to get the network's class.

    labels: of the file `path`; classes: of the network; asked: the user's choice, if there is one.
    background: whether class 0 of 1,001 is "background" (evaluation.has_background()). If nobody
    knows it, it is (as in TensorFlow's models), unless there is a label of 1000. Multi-label data
    sets have no such class.
    Raises: Refusal for a label that is not a class of the network then.
    """
    numbers: List[int] = []
    for label in labels:
        numbers += label.classes
    least, most = min(numbers, default=0), max(numbers, default=0)
    offset = asked
    if offset is None:
        has_none = multi_label or most >= classes - 1 or background is False
        offset = 0 if has_none else label_shift(classes)
    allowed = range(-offset, classes - offset)
    if least in allowed and most in allowed:
        return offset
    hint = ""
    if (least, most, offset) == (1, classes, 0):
        hint = "; the labels seem to be counted from 1: --label-offset -1"
    for label in labels:
        outside = [number for number in label.classes if number not in allowed]
        if outside:
            raise Refusal(
                f"{shown(path)}, line {label.line}: label {outside[-1]} is outside the classes "
                f"{allowed[0]} to {allowed[-1]} of the model{hint}"
            )
    return offset


def other_offset(
    labels: Sequence[Label], classes: int, offset: int, multi_label: bool
) -> Optional[int]:
    """The other label_offset() of a network of 1,001 classes; None where the labels exclude it."""
    if multi_label or not label_shift(classes) or offset not in (0, 1):
        return None
    other = 1 - offset
    most = max((max(label.classes, default=0) for label in labels), default=0)
    return other if most + other < classes else None


# ---- whose label it is ---------------------------------------------------------------------------

# Encodings that labels files of some countries have, the likeliest first.
ENCODINGS = ("gb18030", "big5", "shift_jis", "euc_kr", "cp1252")
Reading = Callable[[str], List[str]]  # from a label's NAME to the sources that it may mean


def read_exactly(images: Dict[str, str], sources: List[str]) -> Reading:
    """A NAME is a source or a stem. images, sources: see match_labels()."""
    source_of = {**images, **dict(zip(sources, sources))}
    unlisted = {stem for stem, source in images.items() if stem == source}  # of unknown suffixes

    def read(name: str) -> List[str]:
        source = source_of.get(name)
        if source is None and unlisted:
            bare = without_suffix(name)
            return [bare] if bare in unlisted else []
        return [] if source is None else [source]

    return read


def read_similarly(images: Dict[str, str], sources: List[str]) -> Reading:
    """A NAME is a source whose suffix or leading folders differ. Arguments: see match_labels()."""
    paths: Dict[str, List[str]] = {}  # {path without its suffix: sources}
    bases: Dict[str, List[str]] = {}  # {base name with and without its suffix: sources}
    for source in sources:
        bare = without_suffix(source)
        paths.setdefault(bare, []).append(source)
        for base in {source.rpartition("/")[2], bare.rpartition("/")[2]}:
            bases.setdefault(base, []).append(source)
    for name, source in [*images.items(), *zip(sources, sources)]:
        paths[name] = [source]
    bases.update(paths)

    def read(name: str) -> List[str]:
        matches = bases.get(name) or bases.get(without_suffix(name))
        while not matches and "/" in name:  # then the NAME may have folders that the source lacks
            name = name.partition("/")[2]
            matches = paths.get(name) or paths.get(without_suffix(name))
        return matches or []

    return read


def loose(name: str) -> str:
    """A name without what systems and tables change: quotes, back slashes, composed letters.

    macOS takes accents apart (NFD), other systems keep them as one letter (NFC). Archives from
    China give files names in GBK.
    """
    data = os.fsencode(name)
    if not is_utf8(data) and is_gb18030(data):
        name = data.decode("gb18030")
    plain = name.strip(QUOTES + ",;").replace("\\", "/")
    plain = re.sub("^(?:[A-Za-z]:)?(?:\\./)*/*", "", plain)
    return unicodedata.normalize("NFC", plain)


def read_loosely(images: Dict[str, str], sources: List[str]) -> Reading:
    """read_similarly() where names are the same but for what loose() takes away."""
    meant_by: Dict[str, List[str]] = {}  # {loose name: sources}
    for source in sources:
        meant_by.setdefault(loose(source), []).append(source)
    loose_images = {loose(stem): loose(source) for stem, source in images.items()}
    read = read_similarly(loose_images, list(meant_by))

    def read_all(name: str) -> List[str]:
        matches: List[str] = []
        if not is_utf8(os.fsencode(name)):
            return matches  # a file of another encoding is read as --labels-encoding says
        for match in read(loose(name)):
            matches += meant_by[match]
        return matches

    return read_all


def likely_encoding(labels: Sequence[Label], sources: Iterable[str]) -> str:
    """The encoding in which most NAMEs name an image; "" if the NAMEs are plain or none fits.

    Text in GBK can be good UTF-8 as well: then the NAMEs are other words.
    """
    names = [os.fsencode(label.name) for label in labels[:PROBED_NAMES]]
    foreign = [name for name in names if not name.isascii()]
    bases: Set[str] = set()
    for source in sources:
        bases.update((os.path.basename(source), os.path.basename(without_suffix(source))))
    hits = {}
    for encoding in ENCODINGS:
        decoded = [loose(name.decode(encoding, "replace")) for name in foreign]
        fitting = [name for name in decoded if os.path.basename(name) in bases]
        hits[encoding] = len(fitting)
    best = max(ENCODINGS, key=lambda encoding: hits[encoding])
    if hits[best]:
        return best
    not_utf8 = [name for name in foreign if not is_utf8(name)]
    return ENCODINGS[0] if not_utf8 and all(map(is_gb18030, not_utf8)) else ""


def is_utf8(data: bytes) -> bool:
    return data.decode("utf-8", "ignore").encode("utf-8") == data


def is_gb18030(data: bytes) -> bool:
    return data.decode("gb18030", "ignore").encode("gb18030") == data


def words(label: Label) -> str:
    """The classes of a label, as a labels file has them."""
    return " ".join(map(str, label.classes)) or "none"


def match_labels(
    images: Dict[str, str], labels: Sequence[Label], path: str, others: Iterable[str] = ()
) -> Dict[str, Label]:
    """{stem: its label} for every image.

    images: {stem: source}; the source is the image's path below the images' folder as the manifest
    has it, or the stem itself if no manifest is known.
    others: all sources that the manifest has, which a NAME may mean as well.
    A NAME is read_exactly(); for an image without such a label read_similarly(), then
    read_loosely().
    Raises: Refusal if an image has no label, two different ones, or one that may be another's.
    """
    label_of: Dict[str, Label] = {}  # by source
    ambiguous: Dict[str, Tuple[Label, List[str]]] = {}  # {source: a label, all that it may mean}
    lacking = set(images.values())
    sources = list(dict.fromkeys([*images.values(), *others]))
    for make_reading in (read_exactly, read_similarly, read_loosely):
        read = make_reading(images, sources)
        for label in labels:
            matches = read(label.name)
            if len(matches) > 1:
                ambiguous.update((source, (label, matches)) for source in matches)
            elif matches and matches[0] in lacking:
                other = label_of.setdefault(matches[0], label)
                if other is not label and other.classes != label.classes:
                    raise Refusal(
                        f"{shown(path)} gives {shown(matches[0])} two labels: {words(other)} in "
                        f"line {other.line} and {words(label)} in line {label.line}"
                    )
        if len(label_of) == len(images):
            return {stem: label_of[source] for stem, source in images.items()}
        lacking.difference_update(label_of)
    for source in sorted(lacking.intersection(ambiguous)):
        label, matches = ambiguous[source]
        raise Refusal(
            f"{shown(path)}, line {label.line}: {shown(label.name)} may be {shown(matches[0])} or "
            f"{shown(matches[1])}; give each its path below the images' folder"
        )
    unnamed = ""
    if lacking.intersection(images):
        unnamed = " (or --prep, for names that TResNet_preprocess.py made)"
    encoding = likely_encoding(labels, lacking)
    called = {"gb18030": "GBK", "cp1252": "Windows-1252"}.get(encoding, encoding)
    hint = f"; the file seems to be {called}, not UTF-8: --labels-encoding {encoding}"
    raise Refusal(
        f"{len(lacking)} of {len(images)} images have no label in {shown(path)}: "
        f"{some(lacking)}; a line 'NAME INT' was expected for each{unnamed}; its first one "
        f"is for {shown(labels[0].name)}{hint if encoding else ''}"
    )
