"""What files are called: image suffixes, the stem of a .bin, a result, an .om; natural order.

Standard library only.
"""

import collections
import hashlib
import os
import re
from typing import Any, Dict, Iterable, List, Tuple

from common.core.cli import Refusal, shown

# Suffixes of photos, in any case. Pillow reads the first ones, AVIF since 11.3; it does not read
# the last ones, but such a file is an image, and one that cannot be read must not vanish.
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".pbm"),
    *(".pgm", ".ppm", ".pnm", ".pfm", ".tif", ".tiff", ".webp", ".jp2", ".j2k", ".j2c", ".jpc"),
    *(".jpf", ".jpx", ".avif", ".avifs", ".tga"),
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef"),
    *(".nrw", ".arw", ".orf", ".raf", ".rw2", ".pef", ".srw"),
)
COMMON_SUFFIXES = ".jpg, .png, .tif, .webp or another suffix of images"  # for messages
# Suffixes of a network's inputs; ais_bench reads the same ones.
INPUT_SUFFIXES = (".bin", ".npy")
# Ways to write the first operators, and reflect padding; the first of each is the default.
STEMS = ("conv4", "conv12", "space-to-depth")
REFLECTIONS = ("slice", "pad")
# How the last map becomes one number a channel: timm's names (--gp).
POOLS = ("avg", "max", "avgmax", "catavgmax")
FORMATS = ("TXT", "BIN", "NPY")  # of results
# How class folders are numbered: class9 before class10, as timm does, or by their letters, as
# torchvision's ImageFolder does; the first is the default.
CLASS_ORDERS = ("natural", "text")
RESULT = re.compile(r"([^.].*)_(0|[1-9][0-9]*)\.(txt|bin|npy)", re.DOTALL)
SAFE_PATH = re.compile(r"[_A-Za-z0-9/.-]+")  # what atc and later versions of ais_bench accept
PLAIN_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,199}")  # file systems allow 255 with suffixes


def natural_key(name: str) -> Tuple[List[Any], str]:
    """Sort key of natural order: 'class10' after 'class9', upper and lower case are equal.

    ais_bench sorts its inputs so, and timm its class folders. Only 0-9 are digits: '5²' and '１'
    are letters here. Names that are equal so far are sorted as they are.
    """
    parts: List[Any] = re.split("([0-9]+)", name.lower())
    parts[1::2] = map(int, parts[1::2])  # every other part is a number
    return parts, name


def ordered(names: Iterable[str], class_order: str) -> List[str]:
    """The names of class folders in the order of their classes; class_order: of CLASS_ORDERS."""
    return sorted(names, key=natural_key) if class_order == "natural" else sorted(names)


def other_order(class_order: str) -> str:
    """The other one of CLASS_ORDERS."""
    return CLASS_ORDERS[1 - CLASS_ORDERS.index(class_order)]


def without_suffix(name: str) -> str:
    """The name without its image suffix: 'a.b.JPEG' -> 'a.b', but 'a.txt' -> 'a.txt'."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in SUFFIXES else name


def hashed_stem(relative_path: str) -> str:
    """A stem for any path: safe characters of its base name, '-', 12 hex digits of its SHA-256."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", without_suffix(os.path.basename(relative_path)))[:80]
    safe = re.sub(r"^(-|$)", "_", safe)  # a dash at the beginning would look like an option
    return safe + "-" + hashlib.sha256(os.fsencode(relative_path)).hexdigest()[:12]


def bin_stem(relative_path: str, clashes: bool) -> str:
    """The stem of an image's .bin: its own name if that is plain and unique, else hashed_stem().

    ais_bench cuts a name at its first dot, and its later versions accept only SAFE_PATH.
    """
    stem = without_suffix(relative_path)
    if not clashes and PLAIN_STEM.fullmatch(stem):
        return stem
    return hashed_stem(relative_path)


def name_bins(sources: Iterable[str]) -> Dict[str, str]:
    """{source: stem of its .bin}: unique stems that do not depend on the order of the sources."""
    plain = {source: bin_stem(source, False) for source in sources}
    hashed = {source: hashed_stem(source) for source in plain}
    hashed_stems, count = set(hashed.values()), collections.Counter(plain.values())
    stems = {}
    for source, stem in plain.items():
        is_hash_of_another = stem in hashed_stems and stem != hashed[source]
        stems[source] = bin_stem(source, clashes=count[stem] > 1 or is_hash_of_another)
    owner = {stem: source for source, stem in stems.items()}
    for source, stem in stems.items():
        if owner[stem] != source:
            raise Refusal(
                f"{shown(source)} and {shown(owner[stem])} would both become {stem}.bin; "
                "rename one of them"
            )
    return stems


def result_stem(input_path: str) -> str:
    """What a result is named after: the input's base name up to its first dot, as in ais_bench."""
    return input_path.rpartition("/")[2].partition(".")[0]


def result_names(input_path: str, outputs: int, outfmt: str) -> List[str]:
    """The names of the result files of one input, one for each output of the model."""
    return [f"{result_stem(input_path)}_{index}.{outfmt.lower()}" for index in range(outputs)]


def om_path(onnx_path: str, batch_size: int, folder: str = "") -> str:
    """The path of an ONNX file's compiled model for a batch size: beside it, or in `folder`."""
    beside, name = os.path.split(onnx_path)
    return os.path.join(folder or beside, f"{os.path.splitext(name)[0]}_bs{batch_size}.om")


def om_batch(path: str) -> int:
    """The batch size in the name of a compiled model, as om_path() writes it; 1 without one."""
    match = re.search(r"_bs([1-9][0-9]{0,4})\.om$", path)
    return int(match.group(1)) if match else 1
