"""What the classes of a network are called: from a file, from class folders, or the names of ImageNet's classes."""

import io
import os
import tempfile
import zipfile
from contextlib import redirect_stderr
from typing import Dict, Iterable, List, Optional, Tuple

from common.core import files
from common.core.cli import ROOT, Refusal, say, shown
from common.core.environment import download
from common.core.names import natural_key
from common.data.dataset import WNID
from common.data.labels import IMAGENET_CLASSES, label_shift

LARGEST = 1 << 26  # bytes of a file of names
BACKGROUND = "background"  # class 0 of a network with one class more than ImageNet has

# Nobody's names are in this repository: they come out of a package's wheel, which is not installed.
PACKAGE = "timm==1.0.31"
WHEEL_SHA256 = "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7"  # timm-1.0.31-py3-none-any.whl
INFO = "timm/data/_info/"
SYNSETS = {
    IMAGENET_CLASSES: "imagenet_synsets.txt",  # one WNID a line, in the order of the classes,
    11221: "imagenet21k_miil_synsets.txt",
}  # of the official ImageNet-21k weights
LEMMAS = "imagenet_synset_to_lemma.txt"  # WNID, tab, name
FOLDER = os.path.join(ROOT, ".class-names")  # where they are kept
QUICKLY = (
    "--timeout",
    "5",
    "--retries",
    "0",
    "--ignore-requires-python",
)  # for pip: it is no loss if they do not come


def in_order(path: str, names: Dict[str, str], folders: Dict[int, str]) -> List[str]:
    """The names of class folders, {folder: name}, in the order of the classes: the folders' natural order.

    Raises: Refusal if `folders` ({class: folder}, as far as it is known) says otherwise.
    """
    order = sorted(names, key=natural_key)
    for label, folder in folders.items():
        if (
            folder not in names
            or order[label : label + 1] != [folder]
            and len(folders) < len(order)
        ):
            raise Refusal(
                f"{shown(path)} should name the folder {shown(folder)} of class {label}, in lines `FOLDER "
                f"NAME` with the folders' natural order the order of the classes, but "
                + ("its place is another" if folder in names else "has no line for it")
            )
    return [names[folders.get(label, folder)] for label, folder in enumerate(order)]


def read(path: str, classes: int, folders: Optional[Dict[int, str]] = None) -> List[str]:
    """The names in a file, in the order of the classes: one a line, or lines `FOLDER NAME` in any order.

    folders: {class: its folder}, as far as that is known. Lines are `FOLDER NAME` if all begin with a WordNet number,
    or all of `folders` are among their first words. Raises: Refusal if there is not one name for each class.
    """
    text = files.read_regular(path, largest=LARGEST).decode("utf-8-sig", "backslashreplace")
    lines = [line.strip() for line in text.rstrip().split("\n")]
    pairs = {
        words[0]: words[1] for words in (line.split(None, 1) for line in lines) if len(words) == 2
    }
    if len(pairs) == len(lines) and (
        all(map(WNID.fullmatch, pairs)) or (folders and set(folders.values()) <= set(pairs))
    ):
        lines = in_order(path, pairs, folders or {})
    if label_shift(classes) and len(lines) == classes - 1:
        lines.insert(0, BACKGROUND)
    if len(lines) != classes or not all(lines):
        found = f"it holds {len(lines)}" if all(lines) else f"line {lines.index('') + 1} is empty"
        raise Refusal(
            f"{shown(path)} should hold the names of the network's {classes} classes, one a line or lines "
            f"`FOLDER NAME`, each folder once, but {found}"
        )
    return lines


def kept(classes: int) -> str:
    """Where the names for so many classes are kept once they were fetched."""
    return os.path.join(FOLDER, f"{classes - label_shift(classes)}.txt")


def fetch(classes: int) -> None:
    """Fetch ImageNet's names for a network with so many classes, unless they are there; says one line if it cannot."""
    if classes - label_shift(classes) not in SYNSETS or os.path.exists(kept(classes)):
        return
    try:
        with tempfile.TemporaryDirectory() as downloads, redirect_stderr(
            io.StringIO()
        ):  # pip's words
            with zipfile.ZipFile(download(PACKAGE, WHEEL_SHA256, downloads, *QUICKLY)) as wheel:

                def lines(name: str) -> List[str]:
                    return wheel.read(INFO + name).decode("utf-8").splitlines()

                lemmas = dict(line.split("\t", 1) for line in lines(LEMMAS))
                names = [
                    lemmas[synset] for synset in lines(SYNSETS[classes - label_shift(classes)])
                ]
        os.makedirs(FOLDER, exist_ok=True)
        files.write_whole(kept(classes), "".join(name + "\n" for name in names).encode("utf-8"))
    except (Refusal, OSError):
        say(
            f"the names of ImageNet's classes ({PACKAGE} on the package registry) could not be fetched, so classes are "
            "shown by their numbers; --class-names FILE gives others"
        )


def of_folders(places: Iterable[Tuple[str, int]]) -> Dict[int, str]:
    """{class: name of its folder}, if each folder holds one class and each class lies in one folder; otherwise {}.

    places: (an image's path below the images' folder, its class).
    """
    folders: Dict[str, int] = {}
    for source, label in places:
        folder = os.path.dirname(source)
        if not folder or folders.setdefault(folder, label) != label:
            return {}
    return (
        {label: folder for folder, label in folders.items()}
        if len(set(folders.values())) == len(folders)
        else {}
    )


def find(
    classes: int, given: Optional[str] = None, places: Iterable[Tuple[str, int]] = ()
) -> Optional[List[str]]:
    """The names of all classes: of the file `given`, of class folders, or ImageNet's if they were fetched; or None.

    places: as of_folders() takes them. A class folder without an image leaves its class with its number.
    """
    folders = of_folders(places)
    if given:
        return read(given, classes, folders)
    own_names = folders and not all(map(WNID.fullmatch, folders.values()))
    if not own_names and os.path.exists(kept(classes)):
        return read(kept(classes), classes)
    return [folders.get(label, str(label)) for label in range(classes)] if folders else None
