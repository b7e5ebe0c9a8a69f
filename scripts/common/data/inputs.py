"""Inputs of a network: which files, what one holds, and AIPP, the preparation of uint8 images on the card."""

import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from common.core import files
from common.core.cli import Refusal, shown
from common.data import prepared

import numpy as np

AIPP_SIZES = [
    f"{kind}_{side}" for kind in ("src_image_size", "load_start_pos", "crop_size") for side in "wh"
]
AIPP_FACTORS = [
    f"{kind}_chn_{channel}" for kind in ("mean", "min", "var_reci") for channel in range(3)
]
AIPP_KEYS = {
    "aipp_mode",
    "related_input_rank",
    "input_format",
    "crop",
    "csc_switch",
    "rbuv_swap_switch",
    *AIPP_SIZES,
    *AIPP_FACTORS,
}


class Input(NamedTuple):
    """What the model takes: one sample of `size` bytes becomes float32 [3, height, width]."""

    name: str
    shape: Tuple[int, ...]  # of one sample
    batch_size: int
    aipp: Dict[str, str]  # {} for float32 input

    @property
    def size(self) -> int:
        if self.aipp:
            return int(self.aipp["src_image_size_w"]) * int(self.aipp["src_image_size_h"]) * 3
        return int(np.prod(self.shape)) * 4


def read_aipp(path: str) -> Dict[str, str]:
    """The settings of a static AIPP configuration file as atc's --insert_op_conf reads it.

    Raises: Refusal for what this runner cannot do: other formats than RGB888_U8, colour conversion, several operators.
    """
    try:
        text = re.sub(r"#.*", "", files.read_regular(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(
            f"the AIPP configuration {shown(path)} cannot be read ({error}); give a text file such as "
            "scripts/aipp.cfg"
        )
    body = re.fullmatch(r"\s*aipp_op\s*\{([^{}]*)\}\s*", text)
    pairs = re.findall(r"([a-z_0-9]+)\s*:\s*([^\s:]+)", body.group(1)) if body else []
    if (
        not body
        or len(dict(pairs)) != len(pairs)
        or re.sub(r"[a-z_0-9]+\s*:\s*[^\s:]+", "", body.group(1)).strip()
    ):
        raise Refusal(
            f"{shown(path)} is not one AIPP operator, aipp_op {{ key : value … }} with each key once; see "
            "scripts/aipp.cfg"
        )
    aipp = {
        "crop": "false",
        "csc_switch": "false",
        "load_start_pos_w": "0",
        "load_start_pos_h": "0",
        **dict(pairs),
    }
    expected = {"aipp_mode": "static", "input_format": "RGB888_U8", "csc_switch": "false"}
    wrong = [key for key in aipp if key not in AIPP_KEYS]
    wrong += [
        f"{key} : {aipp.get(key)}" for key, value in expected.items() if aipp.get(key) != value
    ]
    if wrong:
        raise Refusal(
            f"{shown(path)} has {', '.join(wrong)}; a static AIPP of RGB888_U8 without colour conversion is "
            "expected, see scripts/aipp.cfg"
        )
    try:
        if aipp["crop"] == "false":
            aipp.update(
                load_start_pos_w="0",
                load_start_pos_h="0",
                crop_size_w=aipp["src_image_size_w"],
                crop_size_h=aipp["src_image_size_h"],
            )
        for key in AIPP_SIZES:
            int(aipp[key])
        for key in AIPP_FACTORS:
            float(aipp.get(key, 0))
    except (ValueError, KeyError) as error:
        raise Refusal(
            f"{shown(path)} lacks a number ({error}); src_image_size_w and src_image_size_h are needed, see "
            "scripts/aipp.cfg"
        )
    return aipp


def input_of(described: Dict[str, Any], aipp_path: Optional[str], batch_size: int = 1) -> Input:
    """What a model takes, as onnx_file.describe() has it, where images are bytes with the AIPP settings of a file.

    Raises: Refusal for settings that give images of another size.
    """
    aipp, (channels, height, width) = (
        read_aipp(aipp_path) if aipp_path else {},
        described["shape"][1:],
    )
    size = [int(aipp[f"crop_size_{side}"]) for side in "hw"] if aipp else [height, width]
    if size != [height, width]:
        raise Refusal(
            f"{shown(aipp_path or '')} gives images of {size[1]}×{size[0]}, but the model takes "
            f"{width}×{height}; set src_image_size_w and src_image_size_h"
        )
    return Input(described["input"], (channels, height, width), batch_size, aipp)


def apply_aipp(pixels: np.ndarray, aipp: Dict[str, str]) -> np.ndarray:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] as AIPP: crop, swap red and blue, (value - mean - min) · var_reci."""
    left, top, width, height = (
        int(aipp[key])
        for key in ("load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h")
    )
    pixels = pixels[:, top : top + height, left : left + width]
    if aipp.get("rbuv_swap_switch", "false") == "true":
        pixels = pixels[..., ::-1]
    mean, low, scale = (
        np.array(
            [float(aipp.get(f"{kind}_chn_{channel}", default)) for channel in range(3)], np.float32
        ).reshape(3, 1, 1)
        for kind, default in (("mean", 0), ("min", 0), ("var_reci", 1))
    )
    return np.ascontiguousarray(
        (pixels.transpose(0, 3, 1, 2).astype(np.float32) - mean - low) * scale
    )


def read_sample(path: str, model: Input, into: np.ndarray) -> None:
    """Read one input file into `into` (uint8, [size]). Raises: Refusal if it is not exactly one sample."""
    kind = "uint8" if model.aipp else "float32"
    if path.lower().endswith(".npy"):
        try:
            array = np.load(path, allow_pickle=False)
            if array.dtype != kind or array.nbytes != model.size:
                raise ValueError(f"it holds {array.dtype} {list(array.shape)}")
        except OSError:
            raise
        except Exception as error:  # NumPy's reader raises a dozen types, for a zip file among them
            raise Refusal(
                f"{shown(path)} is not a NumPy file with one sample, {model.size} bytes of {kind} ({error})"
            )
        into[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size == model.size and file.readinto(into) == size:  # type: ignore[arg-type]
            return
    count, rest = divmod(size, model.size)
    several = (
        f", that is {count} samples: one file per image is expected" if count and not rest else ""
    )
    advice = " --dtype uint8" if model.aipp else ", or give --aipp for uint8 images"
    raise Refusal(
        f"{shown(path)} has {size} bytes, but one sample of this model is {model.size} bytes ({kind})"
        f"{several}; prepare the images with TResNet_preprocess.py --img-size {model.shape[-1]}{advice}"
    )


def check_content(path: str, row: np.ndarray) -> None:
    """Refuse a .bin that is not as its manifest says; it is set aside, so that the step that made it does so again."""
    folder, name = os.path.split(path)
    recorded = prepared.read(folder).checksums.get(name)
    if recorded and recorded != files.checksum(row):
        prepared.set_damaged_aside(path)
        raise Refusal(
            f"{shown(path)} was damaged after TResNet_preprocess.py had made it; that step makes it again, "
            "as the same pipeline command does"
        )


def read_batch(paths: List[str], model: Input) -> np.ndarray:
    """The samples of `paths` as float32 [batch_size, 3, h, w]; the first one fills the batch up, as in ais_bench.

    Raises: Refusal, also for one that is damaged: see check_content().
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
