"""WordNet IDs: which ones ImageNet's classes have, and in which order they are numbered.

No list of them is in this repository: Kaggle's data has one, and so has a package's wheel, which is
fetched but not installed.
"""

import io
import os
import re
import tempfile
import zipfile
from contextlib import redirect_stderr
from typing import Dict, Iterable, Optional

from common.core import files, packages, places
from common.core.cli import Refusal, shown, some
from common.core.files import read_regular
from common.core.places import Place

WNID = re.compile(r"n[0-9]{8}")
IMAGENET_CLASSES = 1000
SYNSETS = "LOC_synset_mapping.txt"  # Kaggle's list of ImageNet's WordNet IDs
DEVKIT = "ILSVRC2012_devkit_t12"

PACKAGE = packages.CLASS_NAMES.package
INFO = "timm/data/_info/"
ORDERED = {  # {classes: a file with one WNID a line, in the order of the classes}
    IMAGENET_CLASSES: "imagenet_synsets.txt",
    11221: "imagenet21k_miil_synsets.txt",  # of the official ImageNet-21k weights
}
LEMMAS = "imagenet_synset_to_lemma.txt"  # WNID, tab, name
Numbers = Dict[str, int]  # {WNID: class}


def kept(name: str, place: Optional[Place]) -> str:
    """Where a file of that name is kept, or will be.

    place: where the set-up writes to; None for that of a step.
    """
    folders = (place or places.current()).class_names
    paths = [os.path.join(folder, name) for folder in folders]
    return next(filter(os.path.exists, paths), paths[-1])


def kept_names(classes: int, place: Optional[Place] = None) -> str:
    """The file with the names of so many classes, one a line, if they were fetched."""
    return kept(f"{classes}.txt", place)


def kept_wnids(classes: int, place: Optional[Place] = None) -> str:
    """The file with the WordNet IDs of so many classes, one a line, if they were fetched."""
    return kept(f"{classes}.wnids.txt", place)


def fetch(
    classes: int, place: Optional[Place] = None, source: packages.Source = packages.HERE
) -> None:
    """Fetch names and WordNet IDs of so many classes, a key of ORDERED.

    place: where the set-up writes to, None for that of a step; source: where packages come from.
    Raises: Refusal or OSError if that is impossible.
    """
    with tempfile.TemporaryDirectory() as downloads, redirect_stderr(io.StringIO()):
        wheel = packages.fetch(packages.CLASS_NAMES, downloads, source)
        with zipfile.ZipFile(wheel) as archive:
            wnids = archive.read(INFO + ORDERED[classes]).decode("utf-8").splitlines()
            lemmas = archive.read(INFO + LEMMAS).decode("utf-8").splitlines()
    name_of = dict(line.split("\t", 1) for line in lemmas)
    for path, words in (
        (kept_wnids(classes, place), wnids),
        (kept_names(classes, place), [name_of[wnid] for wnid in wnids]),
    ):
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        text = "".join(word + "\n" for word in words)
        files.write_whole(path, text.encode("utf-8"), mode=files.SHARED)


def training_order(wnids: Iterable[str], source: str) -> Numbers:
    """{WNID: class}: its place among ImageNet-1k's 1,000 WNIDs in sorted order.

    Raises: Refusal if the WNIDs are not all of them.
    """
    ordered = sorted(set(wnids))
    if len(ordered) != IMAGENET_CLASSES or not all(map(WNID.fullmatch, ordered)):
        raise Refusal(
            f"{shown(source)} names {len(ordered)} WordNet IDs ({some(ordered)}), but a class's "
            f"number is its place among all {IMAGENET_CLASSES:,}; put Kaggle's {SYNSETS} or "
            f"{DEVKIT}.tar.gz beside it, or give --class-map"
        )
    return {wnid: place for place, wnid in enumerate(ordered)}


def of_mapping(path: str) -> Numbers:
    """{WNID: class} of Kaggle's list. Raises: Refusal if it does not have all 1,000."""
    lines = read_regular(path).decode("utf-8", "replace").split("\n")
    return training_order((line.split()[0] for line in lines if line.strip()), path)


def of_imagenet(wnids: Iterable[str], source: str) -> Numbers:
    """{WNID: class} for the WNIDs of a file `source`, which are some or all of ImageNet's 1,000.

    The numbers come from Kaggle's list beside the file, from the WNIDs if they are all 1,000, or
    from the package's wheel. Raises: Refusal if a WNID is not among the 1,000.
    """
    named = set(wnids)
    beside = os.path.join(os.path.dirname(source), SYNSETS)
    if os.path.exists(beside):
        numbers = of_mapping(beside)
    elif len(named) == IMAGENET_CLASSES:
        numbers = training_order(named, source)
    else:
        numbers = of_wheel(source)
    unknown = named - numbers.keys()
    if unknown:
        raise Refusal(
            f"{shown(source)} names {some(unknown)}, which is not among ImageNet's "
            f"{IMAGENET_CLASSES:,} WordNet IDs; give the number of each class instead"
        )
    return numbers


def of_wheel(source: str) -> Numbers:
    """{WNID: class} of the package's wheel, which is fetched once. Raises: Refusal."""
    path = kept_wnids(IMAGENET_CLASSES)
    if not os.path.exists(path):
        try:
            fetch(IMAGENET_CLASSES)
        except (Refusal, OSError):
            raise Refusal(
                f"{shown(source)} names classes by WordNet IDs, and their list ({PACKAGE} on the "
                f"package registry) could not be fetched; put Kaggle's {SYNSETS} beside it"
            ) from None
    return training_order(read_regular(path).decode("ascii", "replace").split(), path)
