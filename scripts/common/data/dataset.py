"""A data set as people hold it: which of the known forms it has, and which class each image's name has.

Where the images are and where the labels come from are two questions: an archive of images may lie beside a devkit, a
list of Caffe's form or Kaggle's table. Standard library only; SciPy and pyarrow are asked for where their files are.
"""

import glob
import io
import os
import re
import tarfile
import zlib
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence

from common.core import record
from common.core.cli import ROOT, Refusal, shown, some, why
from common.core.files import read_regular
from common.core.names import natural_key
from common.data.labels import IMAGENET_CLASSES, read_labels

KNOWN = (
    "val_union/ (or val/) with val_label.txt",
    "val/ with class folders",
    "ILSVRC2012_img_val.tar with ILSVRC2012_devkit_t12.tar.gz",
    "Kaggle's ILSVRC/Data/CLS-LOC/val with LOC_val_solution.csv",
    "images with Caffe's val.txt",
    "Hugging Face's Parquet files",
    "ImageNet-V2's folders 0 to 999",
)
TAR, DEVKIT = "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12"
TRUTH, META = (
    "data/ILSVRC2012_validation_ground_truth.txt",
    "data/meta.mat",
)  # below the devkit's folder
KAGGLE = ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val")
BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error)  # what a damaged archive raises
SOLUTION, SYNSETS, CAFFE = "LOC_val_solution.csv", "LOC_synset_mapping.txt", "val.txt"
WNID = re.compile(r"n[0-9]{8}")
VALIDATION = "ILSVRC2012_val_{:08d}.JPEG"  # image N of the validation set, from 1
HUGGING_FACE_NAME = re.compile(r"(ILSVRC2012_val_[0-9]{8})_n[0-9]{8}(\.JPEG)")  # its own WNID added
V2 = re.compile(r"imagenetv2.*", re.IGNORECASE)
Numbers = Dict[str, int]  # {name of an image: class}


class Found(NamedTuple):
    """Where a data set's images and labels are. `parquet` and `tar` are unpacked, a folder is used as it is."""

    images: str  # "folder", "tar" or "parquet"
    place: str  # the folder or the archive
    labels: str = ""  # "file", "caffe", "kaggle", "devkit", "wnids", "v2", "parquet", "folders": in their order
    source: str = ""  # the file or folder that the labels come from
    files: Sequence[str] = ()  # the Parquet files

    @property
    def native(self) -> bool:
        """Whether the steps take it as it is."""
        return self.images == "folder" and self.labels in ("file", "folders")


def need(package: str, what: str) -> None:
    """Refuse if a package that only this data needs is not installed."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        python = os.path.join(ROOT, ".venv", "bin", "python")
        python = python if os.path.exists(python) else "python3"
        raise Refusal(
            f"{what} needs the package {package}, which is not installed; {shown(python)} -m pip install "
            f"{package}"
        )


# ---- which form ------------------------------------------------------------------------------------------------------


def existing(folder: str, *names: str) -> str:
    """The first of the names that is in the folder, as a path; "" if none is."""
    return next(
        (path for path in (os.path.join(folder, name) for name in names) if os.path.exists(path)),
        "",
    )


def subfolders(folder: str) -> List[str]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")
        )


def parquet_files(path: str) -> List[str]:
    """The Parquet files of the validation set, in natural order: a file, or those in a folder or its data/."""
    if os.path.isfile(path):
        return [path] if path.lower().endswith(".parquet") else []
    found = [
        one
        for place in (path, os.path.join(path, "data"))
        for one in glob.glob(os.path.join(glob.escape(place), "*.parquet"))
    ]
    names = {one: os.path.basename(one).lower() for one in found}
    chosen = [one for one in found if names[one].startswith("val")]
    chosen = chosen or [one for one in found if not names[one].startswith(("train", "test"))]
    return sorted(chosen, key=natural_key)


def locate_images(path: str) -> Optional[Found]:
    """Where the images are (labels still unknown); None if nothing known is there."""
    alone = os.path.isfile(path)
    if alone and tarfile.is_tarfile(path):
        return Found("tar", path)
    folder, archive, parquet = (
        existing(path, "val_union", *KAGGLE),
        existing(path, TAR),
        parquet_files(path),
    )
    if (
        (archive or parquet)
        and os.path.exists(record.path_of(folder))
        and not existing(path, "val_label.txt")
    ):
        folder = ""  # prepare_data.py has unpacked some of the images, and has yet to go on
    if not folder and os.path.isdir(os.path.join(path, "val")):
        folder = os.path.join(path, "val")
    if folder:
        return Found("folder", folder)
    if archive:
        return Found("tar", archive)
    if parquet or alone:
        return Found("parquet", path, "parquet", path, parquet) if parquet else None
    inner = [name for name in subfolders(path) if V2.fullmatch(name)]
    place = os.path.join(path, inner[0]) if len(inner) == 1 else path
    names = subfolders(place)
    flat = existing(path, CAFFE, SOLUTION, "val_label.txt")
    return Found("folder", place) if flat or kind_of_folders(place, names) else None


def kind_of_folders(place: str, names: List[str]) -> str:
    """The kind of class folders that these are: "v2", "wnids" or ""."""
    numbers = all(re.fullmatch("0|[1-9][0-9]{0,2}", name) for name in names)
    if (
        names
        and numbers
        and (
            V2.fullmatch(os.path.basename(os.path.abspath(place))) or len(names) == IMAGENET_CLASSES
        )
    ):
        return "v2"
    return "wnids" if names and all(map(WNID.fullmatch, names)) else ""


def find_labels(found: Found, folder: str) -> Found:
    """The same with the labels' source: a file before a devkit before class folders."""
    places = [folder, os.path.dirname(found.place), os.path.join(folder, "ILSVRC")]
    for labels, names in (
        ("file", ("val_label.txt",)),
        ("kaggle", (SOLUTION,)),
        ("caffe", (CAFFE,)),
        ("devkit", (DEVKIT + ".tar.gz", DEVKIT)),
    ):
        source = next(filter(None, (existing(place, *names) for place in places)), "")
        if source:
            return found._replace(labels=labels, source=source)
    names = subfolders(found.place) if found.images == "folder" else []
    kind = kind_of_folders(found.place, names)
    if kind == "wnids" and len(names) != IMAGENET_CLASSES and not list_of_wnids(places):
        kind = ""  # a part of ImageNet with classes of its own, numbered in the folders' order
    return found._replace(labels=kind or "folders", source=found.place)


def list_of_wnids(places: Iterable[str]) -> str:
    """What beside the data tells all WNIDs: Kaggle's list, or a devkit; "" if nothing does."""
    return next(
        filter(None, (existing(place, SYNSETS, DEVKIT + ".tar.gz", DEVKIT) for place in places)), ""
    )


def folder_of(path: str) -> str:
    """The folder in which labels may lie beside the images: the path, or an archive's folder."""
    return (
        os.path.dirname(path) or "." if os.path.isfile(path) else path
    )  # the sample's is yet to be made


def find(path: str) -> Found:
    """The form of a data set in a folder, or in an archive. Raises: Refusal with the list of what is known."""
    known = "; ".join(KNOWN)
    if not os.path.exists(path):
        raise Refusal(
            f"{shown(path)} is not there; it should hold a folder val_union/, or be or hold one of: {known}"
        )
    found = locate_images(path)
    if not found:
        raise Refusal(
            f"{shown(path)} is no data set of a known form; it should hold a folder val_union/, or be or "
            f"hold one of: {known}"
        )
    found = found if found.labels else find_labels(found, folder_of(path))
    if found.images == "tar" and found.labels == "folders":
        raise Refusal(
            f"{shown(found.place)} has no labels beside it; put {DEVKIT}.tar.gz (from image-net.org, "
            f"as the archive), {CAFFE}, {SOLUTION} or val_label.txt into the same folder"
        )
    return found


def describe(found: Found) -> str:
    """What was recognised, for people."""
    images = {
        "folder": f"images in {shown(found.place)}",
        "tar": f"the archive {shown(found.place)}",
        "parquet": f"{len(found.files)} Parquet files of {shown(found.place)}",
    }[found.images]
    labels = {
        "file": "lines NAME INT of",
        "caffe": "Caffe's list",
        "kaggle": "Kaggle's table",
        "devkit": "the devkit's ground truth and meta.mat in",
        "wnids": "WordNet IDs that name the folders of",
        "v2": "numbers that name the folders of",
        "parquet": "the column `label` of",
        "folders": "class folders of",
    }[found.labels]
    return f"{images}; labels by {labels} {shown(found.source)}"


# ---- which class -----------------------------------------------------------------------------------------------------


def training_order(wnids: Iterable[str], source: str) -> Numbers:
    """{WNID: class}: the place among ImageNet-1k's 1,000 WNIDs in sorted order. Raises: Refusal if it is not all."""
    ordered = sorted(set(wnids))
    if len(ordered) != IMAGENET_CLASSES or not all(map(WNID.fullmatch, ordered)):
        raise Refusal(
            f"{shown(source)} names {len(ordered)} WordNet IDs ({some(ordered)}), but a class's number is "
            f"its place among all {IMAGENET_CLASSES:,}; put Kaggle's {SYNSETS} or {DEVKIT}.tar.gz beside it, "
            "or give --class-map"
        )
    return {wnid: place for place, wnid in enumerate(ordered)}


def devkit_file(devkit: str, name: str) -> bytes:
    """A file of the devkit, which is a folder or an archive. Raises: Refusal if it is not there."""
    if os.path.isdir(devkit):
        return read_regular(os.path.join(devkit, name))
    try:
        with tarfile.open(devkit) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith("/" + name) and member.size < 1 << 26:
                    return archive.extractfile(member).read()  # type: ignore[union-attr]
    except BROKEN as error:
        raise Refusal(
            f"the devkit {shown(devkit)} cannot be read ({why(error)}); fetch it again from image-net.org"
        ) from None
    raise Refusal(f"the devkit {shown(devkit)} lacks {name}; fetch it again from image-net.org")


def devkit_wnids(devkit: str) -> Dict[int, str]:
    """{ILSVRC2012_ID: WNID} of the 1,000 leaves in the devkit's meta.mat. Raises: Refusal."""
    need("scipy", f"the devkit's meta.mat ({shown(devkit)})")
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(devkit_file(devkit, META)), squeeze_me=True)["synsets"]
        rows = [
            (int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_children"]))
            for row in synsets
        ]
    except Refusal:
        raise
    except Exception as error:  # a broken file can fail anywhere in SciPy's reader
        raise Refusal(
            f"the meta.mat of {shown(devkit)} cannot be read ({type(error).__name__}: {str(error)[:100]}); "
            "fetch the devkit again from image-net.org"
        ) from None
    return {
        number: wnid
        for number, wnid, children in rows
        if number <= IMAGENET_CLASSES and not children
    }


def by_devkit(devkit: str) -> Numbers:
    """By the ground truth: line N is the ILSVRC2012_ID of image N, which is not the training order."""
    wnids = devkit_wnids(devkit)
    classes = training_order(wnids.values(), devkit)
    try:
        truth = list(map(int, devkit_file(devkit, TRUTH).split()))
        return {
            VALIDATION.format(place): classes[wnids[number]]
            for place, number in enumerate(truth, 1)
        }
    except (ValueError, KeyError) as error:
        raise Refusal(
            f"the ground truth in {shown(devkit)} should have an ILSVRC2012_ID from 1 to 1000 in each line, "
            f"but has {error}; fetch the devkit again from image-net.org"
        ) from None


def known_wnids(found: Found, folder: str) -> Numbers:
    """{WNID: class} from what lies beside the data: Kaggle's list or the devkit; {} if neither does."""
    source = list_of_wnids([folder, os.path.dirname(found.source), os.path.dirname(found.place)])
    if os.path.basename(source) == SYNSETS:
        lines = read_regular(source).decode("utf-8", "replace").split("\n")
        return training_order((line.split()[0] for line in lines if line.strip()), source)
    return training_order(devkit_wnids(source).values(), source) if source else {}


def by_kaggle(found: Found, folder: str) -> Numbers:
    """By the table's first WNID of each image."""
    text = read_regular(found.source).decode("utf-8-sig", "replace")
    wnids: Dict[str, str] = {}
    rows = list(filter(None, text.replace('"', "").splitlines()))
    for line, row in enumerate(rows[1:], 2):
        match = re.fullmatch(rf"([^,]*),\s*({WNID.pattern})(\s[^,]*)?", row)
        if not match:
            raise Refusal(
                f"{shown(found.source)}, line {line}: `ImageId,n01440764 …` was expected, found "
                f"{shown(row[:80])}"
            )
        wnids[match.group(1) + ".JPEG"] = match.group(2)
    classes = known_wnids(found, folder) or training_order(wnids.values(), found.source)
    unknown = set(wnids.values()) - classes.keys()
    if unknown:
        raise Refusal(
            f"{shown(found.source)} names {some(unknown)}, which {SYNSETS} or the devkit beside it lacks"
        )
    return {name: classes[wnid] for name, wnid in wnids.items()}


def by_folders(found: Found, folder: str, images: Iterable[str]) -> Numbers:
    """By the class folder of each image, a WNID or ImageNet-V2's number; images: paths below the images' folder."""
    names = subfolders(found.place)
    classes = (
        {name: int(name) for name in names}
        if found.labels == "v2"
        else (known_wnids(found, folder) or training_order(names, found.place))
    )
    numbers = {}
    for image in images:
        above = os.path.dirname(image)
        if above not in classes:
            raise Refusal(
                f"{shown(image)} in {shown(found.place)} does not lie in a class folder that is known; move "
                "it away, or give --class-map"
            )
        numbers[image] = classes[above]
    return numbers


def numbers_of(found: Found, folder: str, images: Iterable[str]) -> Numbers:
    """{image: class} by the labels' source; images: paths below the images' folder (only class folders need them)."""
    if found.labels == "devkit":
        return by_devkit(found.source)
    if found.labels == "kaggle":
        return by_kaggle(found, folder)
    if found.labels in ("wnids", "v2"):
        return by_folders(found, folder, images)
    return {label.name: label.classes[0] for label in read_labels(found.source)}


def plain_names(images: Iterable[str]) -> Dict[str, str]:
    """{path: its base name}, or the path itself if two images have the same base name."""
    images = list(images)
    bases = {image: os.path.basename(image) for image in images}
    return bases if len(set(bases.values())) == len(images) else {image: image for image in images}


def official_name(path: Any, place: int) -> str:
    """An image's name in a Parquet file less Hugging Face's WNID; made up where there is none."""
    name = os.path.basename(path) if isinstance(path, str) and path else f"image_{place:08d}.JPEG"
    return HUGGING_FACE_NAME.sub(r"\1\2", name)
