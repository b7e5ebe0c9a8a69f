"""What things are called: image suffixes, the stem of an image's .bin, a result's file name, natural order.

Standard library only.
"""

import collections
import hashlib
import os
import re
from typing import Any, Dict, Iterable, List, Tuple

from common.core.cli import Refusal, shown

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".bmp",
    ".gif",
    ".pgm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)  # of images, any case
INPUT_SUFFIXES = (".bin", ".npy")  # of a network's inputs, any case, as ais_bench reads them
STEMS = (
    "conv4",
    "conv12",
    "space-to-depth",
)  # ways to write the first operators; the first is the default
REFLECTIONS = ("slice", "pad")  # ways to write reflect padding; the first is the default
FORMATS = ("TXT", "BIN", "NPY")  # of results
RESULT = re.compile(r"([^.].*)_(0|[1-9][0-9]*)\.(txt|bin|npy)", re.DOTALL)
SAFE_PATH = re.compile(
    r"[_A-Za-z0-9/.-]+"
)  # what later versions of ais_bench, and atc, accept in an absolute path


def natural_key(name: str) -> Tuple[List[Any], str]:
    """Sort key: 'class10' after 'class9', whatever the case, as ais_bench sorts its inputs and timm class folders.

    Only 0-9 are digits ('5²' and '１' are letters here); names that are equal so far are sorted as they are.
    """
    parts = re.split("([0-9]+)", name)  # every other part is a number
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)], name


def without_suffix(name: str) -> str:
    """The name less its image suffix, in any case; other dots stay: 'a.b.JPEG' -> 'a.b', 'a.txt' -> 'a.txt'."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in SUFFIXES else name


def hashed_stem(relative_path: str) -> str:
    """A stem for any path: the safe characters of its base name, '-', 12 hex digits of the path's SHA-256."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", without_suffix(os.path.basename(relative_path)))[:80]
    safe = re.sub(r"^(-|$)", "_", safe)  # a leading dash would be taken for an option
    return safe + "-" + hashlib.sha256(os.fsencode(relative_path)).hexdigest()[:12]


def bin_stem(relative_path: str, clashes: bool) -> str:
    """The stem of an image's .bin: its own name where that is plain and unique, otherwise hashed_stem().

    ais_bench cuts a name at its first dot, and its later versions accept only [_A-Za-z0-9/.-] in a path.
    """
    stem = without_suffix(relative_path)
    if not clashes and re.fullmatch(
        r"[A-Za-z0-9_][A-Za-z0-9_-]{0,199}", stem
    ):  # file systems allow 255 with suffixes
        return stem
    return hashed_stem(relative_path)


def name_bins(sources: Iterable[str]) -> Dict[str, str]:
    """{source: stem of its .bin}, all different whatever the names are, independent of their order."""
    plain = {source: bin_stem(source, False) for source in sources}
    hashed = {source: hashed_stem(source) for source in plain}
    taken, count = set(hashed.values()), collections.Counter(plain.values())
    stems = {
        source: bin_stem(source, count[stem] > 1 or (stem in taken and stem != hashed[source]))
        for source, stem in plain.items()
    }
    owner = {stem: source for source, stem in stems.items()}
    for source, stem in stems.items():
        if owner[stem] != source:
            raise Refusal(
                f"{shown(source)} and {shown(owner[stem])} would both become {stem}.bin; rename one of them"
            )
    return stems


def result_stem(input_path: str) -> str:
    """What a result is named after: the input's base name up to its first dot, as ais_bench cuts it."""
    return input_path.rpartition("/")[2].partition(".")[0]


def result_names(input_path: str, outputs: int, outfmt: str) -> List[str]:
    """The names of the result files of one input, one for each output of the model."""
    return [f"{result_stem(input_path)}_{index}.{outfmt.lower()}" for index in range(outputs)]


def om_path(onnx_path: str, batch_size: int, folder: str = "") -> str:
    """Where the model compiled from an ONNX file for a batch size lies: beside it, or in `folder`."""
    beside, name = os.path.split(onnx_path)
    return os.path.join(folder or beside, f"{os.path.splitext(name)[0]}_bs{batch_size}.om")


def om_batch(path: str) -> int:
    """The batch size in the name of a compiled model, as om_path() writes it; 1 if there is none."""
    found = re.search(r"_bs([1-9][0-9]{0,4})\.om$", path)
    return int(found.group(1)) if found else 1
