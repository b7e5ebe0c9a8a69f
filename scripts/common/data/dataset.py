"""A data set as people hold it: which of the known forms it has, and each image's class.

Where the images are and where the labels come from are two questions: an archive of images may lie
beside a devkit, a list of Caffe's form or Kaggle's table. Standard library only, but SciPy is
needed for a devkit and pyarrow for Parquet files.
"""

import contextlib
import glob
import io
import os
import re
import tarfile
import zlib
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from common.core import places, record
from common.core.cli import Refusal, counted, shown, some, why
from common.core.files import read_regular
from common.core.names import natural_key
from common.data.images import is_foreign, is_image
from common.data.labels import match_labels, read_labels, text_of
from common.data.wnids import (
    DEVKIT,
    IMAGENET_CLASSES,
    SYNSETS,
    WNID,
    Numbers,
    of_mapping,
    training_order,
)

KNOWN = (
    "val_union/ (or val/) with val_label.txt",
    "val/ with class folders, or class folders directly inside",
    "images with a table labels.csv",
    "ILSVRC2012_img_val.tar with ILSVRC2012_devkit_t12.tar.gz",
    "Kaggle's ILSVRC/Data/CLS-LOC/val with LOC_val_solution.csv",
    "images with Caffe's val.txt",
    "Hugging Face's Parquet files",
    "ImageNet-V2's folders 0 to 999",
    "Tiny-ImageNet's val/images with val_annotations.txt",
)
TAR = "ILSVRC2012_img_val.tar"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"  # below the devkit's folder, as META is
META = "data/meta.mat"
KAGGLE = ("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val")
BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error)  # what a damaged archive raises
SOLUTION, CAFFE = "LOC_val_solution.csv", "val.txt"
TABLES = ("val_label.csv", "labels.csv", "val.csv")
ANNOTATIONS, TINY_WNIDS = "val_annotations.txt", "wnids.txt"  # of Tiny-ImageNet
VALIDATION_FOLDERS = ("val", "val_union")  # whose labels may lie beside them
SPLITS = ("validation", "valid", "test", "train")  # folders that a user may intend
LARGEST = 1 << 26  # bytes of a file in the devkit
VALIDATION = "ILSVRC2012_val_{:08d}.JPEG"  # image N of the validation set, from 1
HUGGING_FACE_NAME = re.compile(r"(ILSVRC2012_val_[0-9]{8})_n[0-9]{8}(\.JPEG)")  # with its WNID
V2 = re.compile(r"imagenetv2.*", re.IGNORECASE)
LABELS = {  # what labels may come from, in words; the source follows
    "file": "lines NAME INT of",
    "table": "the table",
    "tiny": "WordNet IDs in",
    "caffe": "Caffe's list",
    "kaggle": "Kaggle's table",
    "devkit": "the devkit's ground truth and meta.mat in",
    "wnids": "WordNet IDs that name the folders of",
    "v2": "numbers that name the folders of",
    "parquet": "the column `label` of",
    "folders": "class folders of",
}


class Form(NamedTuple):
    """Where a data set's images and labels are. Archives are unpacked, folders used as they are."""

    images: str  # "folder", "tar" or "parquet"
    path: str  # of the folder or the archive
    labels: str = ""  # one of LABELS
    source: str = ""  # the file or folder that the labels come from
    files: List[str] = []  # the Parquet files

    @property
    def native(self) -> bool:
        """Whether the steps take it as it is."""
        return self.images == "folder" and self.labels in ("file", "table", "folders")

    @property
    def labels_file(self) -> str:
        """The file of labels that the steps read as it is; "" if there is not one."""
        return self.source if self.native and self.labels != "folders" else ""


def need(package: str, what: str) -> None:
    """Refuse if a package that only this data needs is not installed."""
    import importlib.util

    if importlib.util.find_spec(package) is None:
        python = places.current().python
        python = python if os.path.exists(python) else "python3"
        raise Refusal(
            f"{what} needs the package {package}, which is not installed; {shown(python)} -m pip "
            f"install {package}"
        )


# ---- which form ----------------------------------------------------------------------------------


def existing(folder: str, *names: str) -> str:
    """The path of the first of the names that exists in the folder; "" if none does."""
    for name in names:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            return path
    return ""


def existing_in(folders: Iterable[str], *names: str) -> str:
    """existing() in the first of the folders that has one of the names."""
    return next(filter(None, (existing(folder, *names) for folder in folders)), "")


def subfolders(folder: str) -> List[str]:
    """The names of the folders in a folder, without those that is_foreign()."""
    with os.scandir(folder) as entries:
        folders = [entry.name for entry in entries if entry.is_dir()]
    return sorted(name for name in folders if not is_foreign(name))


def parquet_files(path: str) -> List[str]:
    """The validation set's Parquet files in natural order: of a folder and its data/, or one."""
    if os.path.isfile(path):
        return [path] if path.lower().endswith(".parquet") else []
    paths: List[str] = []
    for folder in (path, os.path.join(path, "data")):
        paths += glob.glob(os.path.join(glob.escape(folder), "*.parquet"))
    validation, unnamed = [], []
    for file in sorted(paths, key=natural_key):
        name = os.path.basename(file).lower()
        if name.startswith("val"):
            validation.append(file)
        elif not name.startswith(("train", "test")):
            unnamed.append(file)
    return validation or unnamed


def locate_images(path: str) -> Optional[Form]:
    """Where the images are, the labels still unknown; None if there is nothing of a known form."""
    if os.path.isfile(path):
        if tarfile.is_tarfile(path):
            return Form("tar", path)
        parquet = parquet_files(path)
        return Form("parquet", path, "parquet", path, parquet) if parquet else None
    folder, archive = existing(path, "val_union", *KAGGLE), existing(path, TAR)
    parquet = parquet_files(path)
    is_unfinished = os.path.exists(record.path_of(folder)) and not existing(path, "val_label.txt")
    if (archive or parquet) and is_unfinished:
        folder = ""  # prepare_data.py unpacked only some of the images into it
    if not folder and os.path.isdir(os.path.join(path, "val")):
        folder = os.path.join(path, "val")
    tiny = existing(folder or path, os.path.join("images", os.pardir, ANNOTATIONS))
    if tiny:
        annotations = os.path.join(folder or path, ANNOTATIONS)
        return Form("folder", os.path.join(folder or path, "images"), "tiny", annotations)
    if folder:
        return Form("folder", folder)
    if archive:
        return Form("tar", archive)
    if parquet:
        return Form("parquet", path, "parquet", path, parquet)
    v2 = [name for name in subfolders(path) if V2.fullmatch(name)]
    folder = os.path.join(path, v2[0]) if len(v2) == 1 else path
    has_labels = existing(path, CAFFE, SOLUTION, "val_label.txt", *TABLES)
    is_data = has_labels or kind_of_folders(folder) or holds_images(folder)
    return Form("folder", folder) if is_data else None


def holds_images(folder: str) -> bool:
    """Whether images are in a folder itself, or in a folder in it, which then is a class folder."""
    if not os.path.isdir(folder):
        return False
    for inside in (folder, *(os.path.join(folder, name) for name in subfolders(folder))):
        with contextlib.suppress(OSError), os.scandir(inside) as entries:
            if any(is_image(entry.name) and entry.is_file() for entry in entries):
                return True
    return False


def kind_of_folders(folder: str) -> str:
    """How the class folders in a folder are named: "v2", "wnids" or "" for any other way."""
    names = subfolders(folder)
    if not names:
        return ""
    if all(re.fullmatch("0|[1-9][0-9]{0,2}", name) for name in names):
        is_v2 = V2.fullmatch(os.path.basename(os.path.abspath(folder)))
        if is_v2 or len(names) == IMAGENET_CLASSES:
            return "v2"
    return "wnids" if all(map(WNID.fullmatch, names)) else ""


def find_labels(form: Form, folder: str) -> Form:
    """The same with the labels' source: a file before a devkit before class folders."""
    folders = [folder, os.path.join(folder, "ILSVRC")]
    if form.path != folder or os.path.basename(folder) in VALIDATION_FOLDERS:
        folders.insert(1, os.path.dirname(form.path))
    for labels, names in (
        ("file", ["val_label.txt"]),
        ("table", TABLES),
        ("kaggle", [SOLUTION]),
        ("caffe", [CAFFE]),
        ("devkit", [DEVKIT + ".tar.gz", DEVKIT]),
    ):
        source = existing_in(folders, *names)
        if source:
            return form._replace(labels=labels, source=source)
    kind = kind_of_folders(form.path) if form.images == "folder" else ""
    if kind == "wnids" and not list_of_wnids(folders):
        if len(subfolders(form.path)) != IMAGENET_CLASSES:
            kind = ""  # a part of ImageNet with classes of its own, in the order of the folders
    return form._replace(labels=kind or "folders", source=form.path)


def list_of_wnids(folders: Iterable[str]) -> str:
    """What lists all WNIDs in one of the folders: Kaggle's list or a devkit; "" if nothing."""
    return existing_in(folders, SYNSETS, DEVKIT + ".tar.gz", DEVKIT)


def folder_of(path: str) -> str:
    """The folder in which labels may lie beside the images: the path, or an archive's folder."""
    return os.path.dirname(path) or "." if os.path.isfile(path) else path


def find(path: str) -> Form:
    """The form of a data set in a folder or an archive. Raises: Refusal with the known forms."""
    if not os.path.exists(path):
        raise Refusal(f"{shown(path)} does not exist; give the folder or the archive of a data set")
    if not os.path.isdir(path) and not os.path.isfile(path):
        raise Refusal(
            f"{shown(path)} is neither a folder nor a regular file, so it is not a data set"
        )
    form = locate_images(path)
    if not form:
        splits = [os.path.join(path, name) for name in SPLITS]
        likely = [split for split in splits if holds_images(split)]
        hint = f"; perhaps {shown(likely[0])}, which has class folders" if likely else ""
        raise Refusal(
            f"{shown(path)} is not a data set of a known form; it should have a folder val_union/, "
            f"or be or have one of: {'; '.join(KNOWN)}{hint}"
        )
    form = form if form.labels else find_labels(form, folder_of(path))
    if form.images == "tar" and form.labels == "folders":
        raise Refusal(
            f"{shown(form.path)} has no labels beside it; put {DEVKIT}.tar.gz (from image-net.org, "
            f"as the archive), {CAFFE}, {SOLUTION} or val_label.txt into the same folder"
        )
    return form


def describe(form: Form) -> str:
    """The form in words."""
    images = {
        "folder": f"images in {shown(form.path)}",
        "tar": f"the archive {shown(form.path)}",
        "parquet": f"{counted(len(form.files), 'Parquet file')} of {shown(form.path)}",
    }[form.images]
    return f"{images}; labels by {LABELS[form.labels]} {shown(form.source)}"


# ---- which class ---------------------------------------------------------------------------------


def devkit_file(devkit: str, name: str) -> bytes:
    """A file of the devkit, which is a folder or an archive. Raises: Refusal if it is not there."""
    if os.path.isdir(devkit):
        return read_regular(os.path.join(devkit, name))
    advice = "fetch it again from image-net.org"
    try:
        with tarfile.open(devkit) as archive:
            for member in archive:
                is_named = member.isfile() and member.name.endswith("/" + name)
                content = archive.extractfile(member) if is_named else None
                if content and member.size < LARGEST:
                    return content.read()
    except BROKEN as error:
        raise Refusal(
            f"the devkit {shown(devkit)} cannot be read ({why(error)}); {advice}"
        ) from None
    raise Refusal(f"the devkit {shown(devkit)} lacks {name}; {advice}")


def devkit_wnids(devkit: str) -> Dict[int, str]:
    """{ILSVRC2012_ID: WNID} of the 1,000 leaves in the devkit's meta.mat. Raises: Refusal."""
    need("scipy", f"the devkit's meta.mat ({shown(devkit)})")
    from scipy.io import loadmat

    meta = io.BytesIO(devkit_file(devkit, META))
    wnids = {}
    try:
        for row in loadmat(meta, squeeze_me=True)["synsets"]:
            number, is_leaf = int(row["ILSVRC2012_ID"]), not int(row["num_children"])
            if is_leaf and number <= IMAGENET_CLASSES:
                wnids[number] = str(row["WNID"])
    except Exception as error:  # a broken file can fail anywhere in SciPy's reader
        raise Refusal(
            f"the meta.mat of {shown(devkit)} cannot be read ({type(error).__name__}: "
            f"{str(error)[:100]}); fetch the devkit again from image-net.org"
        ) from None
    return wnids


def by_devkit(devkit: str) -> Numbers:
    """By the ground truth: line N is the ILSVRC2012_ID of image N, in an order of its own."""
    wnids = devkit_wnids(devkit)
    classes = training_order(wnids.values(), devkit)
    numbers = {}
    try:
        for image, identifier in enumerate(devkit_file(devkit, TRUTH).split(), 1):
            numbers[VALIDATION.format(image)] = classes[wnids[int(identifier)]]
    except (ValueError, KeyError) as error:
        raise Refusal(
            f"the ground truth in {shown(devkit)} should have an ILSVRC2012_ID from 1 to 1000 in "
            f"each line, but has {error}; fetch the devkit again from image-net.org"
        ) from None
    return numbers


def known_wnids(form: Form, folder: str) -> Numbers:
    """{WNID: class} of Kaggle's list or the devkit beside the data; {} if neither is there."""
    source = list_of_wnids([folder, os.path.dirname(form.source), os.path.dirname(form.path)])
    if not source:
        return {}
    if os.path.basename(source) != SYNSETS:
        return training_order(devkit_wnids(source).values(), source)
    return of_mapping(source)


def by_kaggle(form: Form, folder: str) -> Numbers:
    """By the table's first WNID of each image."""
    text = read_regular(form.source).decode("utf-8-sig", "replace")
    wnids: Dict[str, str] = {}
    rows = list(filter(None, text.replace('"', "").splitlines()))
    for line, row in enumerate(rows[1:], 2):
        match = re.fullmatch(rf"([^,]*),\s*({WNID.pattern})(\s[^,]*)?", row)
        if not match:
            raise Refusal(
                f"{shown(form.source)}, line {line}: `ImageId,n01440764 …` was expected, found "
                f"{shown(row[:80])}"
            )
        wnids[match.group(1) + ".JPEG"] = match.group(2)
    classes = known_wnids(form, folder) or training_order(wnids.values(), form.source)
    unknown = set(wnids.values()) - classes.keys()
    if unknown:
        raise Refusal(
            f"{shown(form.source)} names {some(unknown)}, but {SYNSETS} or the devkit beside it "
            "does not; fetch them again"
        )
    return {name: classes[wnid] for name, wnid in wnids.items()}


def by_folders(form: Form, folder: str, images: Iterable[str]) -> Numbers:
    """By the class folder of each image, a WNID or ImageNet-V2's number.

    images: paths below the images' folder.
    """
    names = subfolders(form.path)
    if form.labels == "v2":
        classes = {name: int(name) for name in names}
    else:
        classes = known_wnids(form, folder) or training_order(names, form.path)
    numbers = {}
    for image in images:
        class_folder = os.path.dirname(image)
        if class_folder not in classes:
            raise Refusal(
                f"{shown(image)} in {shown(form.path)} does not lie in a class folder that is "
                "known; move it away, or give --class-map"
            )
        numbers[image] = classes[class_folder]
    return numbers


def by_tiny_imagenet(form: Form) -> Numbers:
    """By the WordNet ID of each image in Tiny-ImageNet's annotations.

    A class's number is the place of its ID among all in sorted order, as of its training folders.
    """
    wnid_of: Dict[str, str] = {}
    for line, text in enumerate(text_of(form.source).splitlines(), 1):
        cells = text.split("\t")
        if len(cells) < 2 or not WNID.fullmatch(cells[1]):
            raise Refusal(
                f"{shown(form.source)}, line {line}: the name of an image, a tab and a WordNet ID "
                f"were expected, found {shown(text[:80])}; fetch Tiny-ImageNet again"
            )
        wnid_of[cells[0]] = cells[1]
    root = os.path.dirname(os.path.dirname(os.path.abspath(form.path)))
    listed = existing(root, TINY_WNIDS)
    wnids = set(text_of(listed).split() if listed else wnid_of.values())
    unknown = set(wnid_of.values()) - wnids
    if unknown:
        raise Refusal(
            f"{shown(form.source)} names {some(unknown)}, but {shown(listed)} does not; fetch "
            "Tiny-ImageNet again"
        )
    place = {wnid: number for number, wnid in enumerate(sorted(wnids))}
    return {name: place[wnid] for name, wnid in wnid_of.items()}


def by_table(form: Form, images: Iterable[str]) -> Numbers:
    """By a table or a list, whose names may lack the suffix. Raises: Refusal."""
    labels = match_labels({image: image for image in images}, read_labels(form.source), form.source)
    return {image: label.classes[0] for image, label in labels.items()}


def numbers_of(form: Form, folder: str, images: Iterable[str]) -> Numbers:
    """{image: class} by the labels' source; images: paths below the images' folder."""
    if form.labels == "devkit":
        return by_devkit(form.source)
    if form.labels == "kaggle":
        return by_kaggle(form, folder)
    if form.labels in ("wnids", "v2"):
        return by_folders(form, folder, images)
    if form.labels == "tiny":
        return by_tiny_imagenet(form)
    if form.labels == "table":
        return by_table(form, images)
    return {label.name: label.classes[0] for label in read_labels(form.source)}


def plain_names(images: Iterable[str]) -> Dict[str, str]:
    """{path: its base name}, or the path itself if two images have the same base name."""
    bases = {image: os.path.basename(image) for image in images}
    return bases if len(set(bases.values())) == len(bases) else {image: image for image in bases}


def official_name(path: Any, place: int) -> str:
    """An image's name in a Parquet file without Hugging Face's WNID; made up if it has no name."""
    name = os.path.basename(path) if isinstance(path, str) and path else f"image_{place:08d}.JPEG"
    return HUGGING_FACE_NAME.sub(r"\1\2", name)
