"""Inputs of a network: which files, what one holds, and AIPP, by which the card prepares images."""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from common.core import files
from common.core.cli import Refusal, shown
from common.data import prepared

import numpy as np

AIPP_SIZES = (
    "src_image_size_w",
    "src_image_size_h",
    "load_start_pos_w",
    "load_start_pos_h",
    "crop_size_w",
    "crop_size_h",
)
AIPP_DEFAULTS = {"mean_chn": 0.0, "min_chn": 0.0, "var_reci_chn": 1.0}  # see apply_aipp()
AIPP_FACTOR = re.compile("(mean|min|var_reci)_chn_[012]")
AIPP_KEYS = {
    *AIPP_SIZES,
    "aipp_mode",
    "related_input_rank",
    "input_format",
    "crop",
    "csc_switch",
    "rbuv_swap_switch",
}
AIPP_EXPECTED = {"aipp_mode": "static", "input_format": "RGB888_U8", "csc_switch": "false"}
SEE = "see scripts/aipp.cfg"


class Input(NamedTuple):
    """What a model takes: `size` bytes of a file become one float32 sample [3, height, width]."""

    name: str
    shape: Tuple[int, ...]  # of one sample
    batch_size: int
    aipp: Dict[str, str]  # {} for float32 input

    @property
    def size(self) -> int:
        if self.aipp:
            return int(self.aipp["src_image_size_w"]) * int(self.aipp["src_image_size_h"]) * 3
        return int(np.prod(self.shape)) * 4


# ---- AIPP ----------------------------------------------------------------------------------------


def read_aipp(path: str) -> Dict[str, str]:
    """The settings of a static AIPP configuration file as atc's --insert_op_conf reads it.

    Raises: Refusal for what is not done here: other formats than RGB888_U8, colour conversion,
    several operators.
    """
    try:
        text = re.sub(r"#.*", "", files.read_regular(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(
            f"the AIPP configuration {shown(path)} cannot be read ({error}); give a text file such "
            "as scripts/aipp.cfg"
        )
    aipp = {
        "crop": "false",
        "csc_switch": "false",
        "load_start_pos_w": "0",
        "load_start_pos_h": "0",
        **parse_aipp(text, path),
    }
    wrong = [key for key in aipp if key not in AIPP_KEYS and not AIPP_FACTOR.fullmatch(key)]
    for key, value in AIPP_EXPECTED.items():
        if aipp.get(key) != value:
            wrong.append(f"{key} : {aipp.get(key)}")
    if wrong:
        raise Refusal(
            f"{shown(path)} has {', '.join(wrong)}; a static AIPP of RGB888_U8 without colour "
            f"conversion is expected, {SEE}"
        )
    try:
        if aipp["crop"] == "false":
            aipp.update(load_start_pos_w="0", load_start_pos_h="0")
            aipp.update(crop_size_w=aipp["src_image_size_w"], crop_size_h=aipp["src_image_size_h"])
        for key in AIPP_SIZES:
            int(aipp[key])
        for factor in AIPP_DEFAULTS:
            channel_factors(aipp, factor)
    except (ValueError, KeyError) as error:
        raise Refusal(
            f"{shown(path)} lacks a number ({error}); src_image_size_w and src_image_size_h are "
            f"needed, {SEE}"
        )
    return aipp


def parse_aipp(text: str, path: str) -> Dict[str, str]:
    """{key: value} of `aipp_op { key : value … }`. Raises: Refusal for another text."""
    body = re.fullmatch(r"\s*aipp_op\s*\{([^{}]*)\}\s*", text)
    inner = body.group(1) if body else ""
    pairs = re.findall(r"([a-z_0-9]+)\s*:\s*([^\s:]+)", inner)
    rest = re.sub(r"[a-z_0-9]+\s*:\s*[^\s:]+", "", inner).strip()
    settings = dict(pairs)
    if not body or rest or len(settings) != len(pairs):
        raise Refusal(
            f"{shown(path)} is not one AIPP operator, aipp_op {{ key : value … }} with each key "
            f"once; {SEE}"
        )
    return settings


def channel_factors(aipp: Dict[str, str], factor: str) -> np.ndarray:
    """float32 [3, 1, 1] of a factor's setting for each channel. Raises: ValueError."""
    default = AIPP_DEFAULTS[factor]
    values = [float(aipp.get(f"{factor}_{channel}", default)) for channel in range(3)]
    return np.array(values, np.float32).reshape(3, 1, 1)


def apply_aipp(pixels: np.ndarray, aipp: Dict[str, str]) -> np.ndarray:
    """What AIPP does on the card: crop, swap red and blue, (value - mean - min) · var_reci.

    pixels: uint8 [n, height, width, 3]. Returns: float32 [n, 3, crop height, crop width].
    """
    left, top = int(aipp["load_start_pos_w"]), int(aipp["load_start_pos_h"])
    width, height = int(aipp["crop_size_w"]), int(aipp["crop_size_h"])
    pixels = pixels[:, top : top + height, left : left + width]
    if aipp.get("rbuv_swap_switch", "false") == "true":
        pixels = pixels[..., ::-1]
    mean, low, scale = (channel_factors(aipp, factor) for factor in AIPP_DEFAULTS)
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray((planes - mean - low) * scale)


# ---- files ---------------------------------------------------------------------------------------


def input_of(described: Dict[str, Any], aipp_path: Optional[str], batch_size: int = 1) -> Input:
    """What a model takes.

    described: by onnx_file.describe().
    aipp_path: a file of AIPP settings, if the images are bytes.
    Raises: Refusal for settings that give images of another size than the model's.
    """
    shape = tuple(described["shape"][1:])
    if not aipp_path:
        return Input(described["input"], shape, batch_size, {})
    aipp = read_aipp(aipp_path)
    height, width = int(aipp["crop_size_h"]), int(aipp["crop_size_w"])
    if (height, width) != shape[1:]:
        raise Refusal(
            f"{shown(aipp_path)} gives images of {width}×{height}, but the model takes "
            f"{shape[2]}×{shape[1]}; set src_image_size_w and src_image_size_h"
        )
    return Input(described["input"], shape, batch_size, aipp)


def read_sample(path: str, model: Input, into: np.ndarray) -> None:
    """Read one input file, .bin or .npy, into a buffer.

    into: uint8 [model.size]. Raises: Refusal if the file is not exactly one sample; OSError.
    """
    kind = "uint8" if model.aipp else "float32"
    if path.lower().endswith(".npy"):
        into[:] = load_array(path, kind, model.size).reshape(-1).view(np.uint8)
        return
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size == model.size and file.readinto(into.data) == size:
            return
    count, rest = divmod(size, model.size)
    several = ""
    if count and not rest:
        several = f", that is {count} samples: one file per image is expected"
    advice = " --dtype uint8" if model.aipp else ", or give --aipp for uint8 images"
    raise Refusal(
        f"{shown(path)} has {size} bytes, but one sample of this model is {model.size} bytes "
        f"({kind}){several}; prepare the images with TResNet_preprocess.py "
        f"--img-size {model.shape[-1]}{advice}"
    )


def load_array(path: str, kind: str, size: int) -> np.ndarray:
    """The array in a NumPy file, contiguous. Raises: Refusal if it is of another type or size."""
    try:
        array = np.load(path, allow_pickle=False)
        if array.dtype != kind or array.nbytes != size:
            raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
    except OSError:
        raise
    except Exception as error:  # NumPy's reader raises a dozen types, even for a zip file
        raise Refusal(
            f"{shown(path)} is not a NumPy file with one sample, {size} bytes of {kind} ({error})"
        )
    return np.ascontiguousarray(array)


def check_content(path: str, row: np.ndarray) -> None:
    """Refuse a .bin whose content is not what its manifest says, and move it out of its folder."""
    folder, name = os.path.split(path)
    recorded = prepared.read(folder).checksums.get(name)
    if recorded and recorded != files.checksum(row):
        prepared.set_damaged_aside(path)
        raise Refusal(
            f"{shown(path)} was damaged after TResNet_preprocess.py had made it; run that step, or "
            "the same pipeline command, to make it again"
        )


def read_batch(paths: List[str], model: Input) -> np.ndarray:
    """The samples in files, filled up with the first one, as ais_bench does it.

    paths: at most model.batch_size. Returns: float32 [batch_size, 3, height, width].
    Raises: Refusal if one is damaged or not a sample.
    """
    raw = np.empty((model.batch_size, model.size), np.uint8)
    for row, path in zip(raw, paths):
        try:
            read_sample(path, model, row)
            check_content(path, row)
        except OSError as error:
            raise Refusal(
                f"{shown(path)} cannot be read ({error.strerror}); it was there when this run began"
            )
    raw[len(paths) :] = raw[0]
    if model.aipp:
        height, width = int(model.aipp["src_image_size_h"]), int(model.aipp["src_image_size_w"])
        return apply_aipp(raw.reshape(model.batch_size, height, width, 3), model.aipp)
    return raw.view("<f4").reshape((model.batch_size, *model.shape))
