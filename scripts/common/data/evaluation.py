"""The evaluation that belongs to the weights: image size, crop, interpolation, mean and std, and who says which.

The command line has the first word; then what the checkpoint says of itself (`args` of a training checkpoint,
`config.json` of a Hugging Face folder); then timm's figures for TResNet. Standard library only.
"""

import argparse
import math
import os
from typing import Any, Dict, List, NamedTuple, Tuple

from common.core import json_file
from common.core.cli import Refusal, shown
from common.core.options import CROP_MODES, INTERPOLATIONS
from common.data.prepared import Prepared

AIPP = "aipp.cfg"  # in a prepared folder of bytes: how the card is to scale them
CONFIG = "config.json"
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder
Channels = Tuple[float, float, float]  # red, green, blue


class Evaluation(NamedTuple):
    """How an image becomes the network's input; the defaults are timm's for TResNet."""

    img_size: int = 224  # pixels, each side of what the network sees
    crop_pct: float = 0.875  # img_size / resized image's side: 256 pixels for 224
    crop_mode: str = (
        "center"  # shorter side resized, centre crop; squash: both sides resized, centre crop
    )
    interpolation: str = "bilinear"
    mean: Channels = (0.0, 0.0, 0.0)  # of pixels in 0..1, subtracted
    std: Channels = (1.0, 1.0, 1.0)  # then divided by

    @property
    def resized(self) -> int:
        """The resized image's shorter side, or both sides for squash, in pixels; rounded down, as in timm."""
        return math.floor(self.img_size / self.crop_pct)

    @property
    def normalised(self) -> bool:
        """Whether mean and std change anything."""
        return self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0)


DEFAULT = Evaluation()


# ---- the command line ------------------------------------------------------------------------------------------------


def given(arguments: argparse.Namespace) -> Dict[str, Any]:
    """{field: value} of the options that were given."""
    return {name: value for name, value in from_json(vars(arguments)).items() if value is not None}


# ---- what a checkpoint says ------------------------------------------------------------------------------------------


def said_by(source: Dict[str, Any]) -> Dict[str, Any]:
    """{field: value} that a training checkpoint's `args` or a `pretrained_cfg` say; repr() of what cannot be used.

    timm's `input_size` is [channels, height, width]; one mean serves all channels. None means that nothing is said,
    and so does an interpolation of "", which is what timm's train.py leaves unless it is told (timm/data/config.py).
    """
    size = source.get("input_size")
    said = {"img_size": size[-1] if isinstance(size, (list, tuple)) and size else None}
    said.update((name, source[name]) for name in Evaluation._fields if source.get(name) is not None)
    said["interpolation"] = said.get("interpolation") or None
    for name in ("mean", "std"):
        if isinstance(said.get(name), (list, tuple)):
            said[name] = tuple(said[name]) * (3 if len(said[name]) == 1 else 1)
    return {
        name: value if not problem(name, value) else repr(value)
        for name, value in said.items()
        if value is not None
    }


def problem(name: str, value: Any) -> str:
    """What is wrong with a field's value, "" if nothing is."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name == "img_size":
        return (
            ""
            if isinstance(value, int) and number and 1 <= value <= 4096
            else "a whole number is expected"
        )
    if name == "crop_pct":
        return "" if number and 0 < value <= 1 else "a number above 0 and at most 1 is expected"
    if name in ("crop_mode", "interpolation"):
        known = CROP_MODES if name == "crop_mode" else INTERPOLATIONS
        return "" if value in known else f"{' or '.join(known)} is expected"
    three = (
        isinstance(value, tuple)
        and len(value) == 3
        and all(
            isinstance(x, (int, float)) and (x > 0 if name == "std" else 0 <= x <= 1) for x in value
        )
    )
    return (
        "" if three else f"three numbers {'above 0' if name == 'std' else 'in 0..1'} are expected"
    )


def resolve(
    options: Dict[str, Any], said: Dict[str, Any], who: str
) -> Tuple[Evaluation, List[str]]:
    """(the evaluation, a sentence for each contradiction between the command line and the checkpoint).

    options: given(); said: said_by(); who: words for the checkpoint. Raises: Refusal if the checkpoint says what cannot
    be done here and no option replaces it.
    """
    for name, value in said.items():
        wrong = problem(name, value)
        if wrong and name not in options:
            raise Refusal(
                f"{who} says {name} = {value}, but {wrong}; say --{name.replace('_', '-')}"
            )
    fields = {**said, **options}
    for name in ("mean", "std"):
        if name in fields:
            fields[name] = tuple(map(float, fields[name]))
    evaluation = Evaluation(**fields)
    return evaluation, [
        f"--{name.replace('_', '-')} {words(options[name])} contradicts {who}, which says "
        f"{words(value)}; the option is followed"
        for name, value in said.items()
        if name in options and options[name] != value
    ]


def words(value: Any) -> str:
    return (
        " ".join(f"{x:g}" for x in value)
        if isinstance(value, tuple)
        else f"{value:g}"
        if isinstance(value, (int, float))
        else str(value)
    )


def describe(evaluation: Evaluation) -> str:
    """One line for people: 448×448, crop 0.875 center, bilinear, mean 0 0 0, std 1 1 1."""
    return (
        f"{evaluation.img_size}×{evaluation.img_size}, crop {evaluation.crop_pct:g} {evaluation.crop_mode}, "
        f"{evaluation.interpolation}, mean {words(evaluation.mean)}, std {words(evaluation.std)}"
    )


# ---- in records and manifests ----------------------------------------------------------------------------------------


def to_json(fields: Dict[str, Any]) -> Dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }


def from_json(fields: Any) -> Dict[str, Any]:
    """The fields that to_json() wrote, of a manifest's header or a record's notes; others are passed over."""
    source = fields if isinstance(fields, dict) else {}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in source.items()
        if name in Evaluation._fields
    }


def recorded(fields: Any, **others: Any) -> Evaluation:
    """The evaluation that a model's record, its metadata or a prepared folder's settings tell.

    fields: as from_json() takes them; others: what takes the place of some. What they do not say is
    timm's. Raises: Refusal if they say what cannot be done.
    """
    return resolve({}, {**from_json(fields), **others}, "a record of the evaluation")[0]


def check_prepared(about: Prepared, said: Any, prepared: str, model: str) -> None:
    """Refuse .bin files that were made for another evaluation than the one that the model's checkpoint says.

    about: what is known of the prepared folder; said: the model's notes. What was given to the preprocessing as an
    option stands: whoever gave it was told.
    """
    made, deliberate = from_json(about.settings), about.about.get("given") or []
    for name, value in from_json(said).items():
        if name in made and made[name] != value and name not in deliberate:
            raise Refusal(
                f"the images in {shown(prepared)} were made with {name} = {words(made[name])}, but the "
                f"checkpoint of {shown(model)} says {words(value)}; make them again: python3 "
                f"TResNet_preprocess.py SRC {shown(prepared)} --model {shown(model)} --force (or say "
                f"--{name.replace('_', '-')} there if that is meant)"
            )


# ---- AIPP ------------------------------------------------------------------------------------------------------------


def aipp(evaluation: Evaluation) -> bytes:
    """The text of the AIPP settings that make of bytes what the float32 files hold: (pixel - mean) / std / 255.

    AIPP subtracts mean_chn, a whole number, and min_chn, any number: the mean's whole part and its rest.
    Source: hiascend.com, ATC, AIPP's configuration file template.
    """
    lines = [
        "aipp_mode : static",
        "related_input_rank : 0",
        "input_format : RGB888_U8",
        f"src_image_size_w : {evaluation.img_size}",
        f"src_image_size_h : {evaluation.img_size}",
        "csc_switch : false",
        "rbuv_swap_switch : false",
    ]
    means = [round(255 * mean, 9) for mean in evaluation.mean]
    lines += [f"mean_chn_{channel} : {int(mean)}" for channel, mean in enumerate(means)]
    lines += [
        f"min_chn_{channel} : {round(mean - int(mean), 9):.9g}"
        for channel, mean in enumerate(means)
    ]
    lines += [
        f"var_reci_chn_{channel} : {1 / (255 * std):.15f}"
        for channel, std in enumerate(evaluation.std)
    ]
    return (
        "# AIPP: the card takes uint8 RGB, [height, width, 3], and scales it itself. Handed to atc as "
        "--insert_op_conf and to\n# the CPU runner as --aipp.\naipp_op {\n"
        + "".join(f"    {line}\n" for line in lines)
        + "}\n"
    ).encode("ascii")


# ---- a Hugging Face folder -------------------------------------------------------------------------------------------


def weights_file(path: str) -> str:
    """The checkpoint's file: the path itself, or the weights in a Hugging Face folder.

    Raises: Refusal if the folder holds none.
    """
    if not os.path.isdir(path):
        return path
    for name in FOLDER_WEIGHTS:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise Refusal(
        f"the folder {shown(path)} should hold {' or '.join(FOLDER_WEIGHTS)} beside {CONFIG}, as Hugging "
        "Face's do, but holds neither; give the checkpoint's file"
    )


def config_path(weights: str) -> str:
    """The config.json that belongs to a weights file of a Hugging Face folder, "" if there is none."""
    path = os.path.join(os.path.dirname(weights), CONFIG)
    return path if os.path.basename(weights) in FOLDER_WEIGHTS and os.path.isfile(path) else ""


def read_config(weights: str) -> Dict[str, Any]:
    """The config.json beside a Hugging Face folder's weights; {} if there is none. Raises: Refusal if it is broken."""
    path = config_path(weights)
    if not path:
        return {}
    config: Dict[str, Any] = json_file.read(
        path, {}, "copy it again, or move it away and give the evaluation by options"
    )
    return config


def of_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """said_by() a config.json: timm nests it under `pretrained_cfg`."""
    nested = config.get("pretrained_cfg")
    return said_by(nested if isinstance(nested, dict) else config)
