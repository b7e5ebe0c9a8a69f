"""The evaluation that belongs to the weights: image size, crop, interpolation, mean and std.

Who decides: first the command line; then what the checkpoint says of itself (`args` of a training
checkpoint, `config.json` of a Hugging Face folder); then timm's figures for TResNet. The export
resolves it once and writes all fields into the model's record and metadata; others read it there.
Standard library only; onnx is imported for a model without a record.
"""

import argparse
import contextlib
import json
import math
import os
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from common.core import files, json_file, record
from common.core.cli import Refusal, shown
from common.core.options import CROP_MODES, INTERPOLATIONS
from common.data import prepared

AIPP = "aipp.cfg"  # in a prepared folder of bytes: how the card is to scale them
CONFIG = "config.json"
FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # of a Hugging Face folder
LARGEST_MODEL = 1 << 31  # bytes of an ONNX file
Channels = Tuple[float, float, float]  # red, green, blue


class Evaluation(NamedTuple):
    """How an image becomes the network's input; the defaults are timm's for TResNet."""

    img_size: int = 224  # pixels, each side of what the network sees
    crop_pct: float = 0.875  # img_size / side of the resized image: 256 pixels for 224
    crop_mode: str = "center"  # resize the shorter side, crop; "squash": resize both sides, crop
    interpolation: str = "bilinear"
    mean: Channels = (0.0, 0.0, 0.0)  # of pixels in 0..1, subtracted
    std: Channels = (1.0, 1.0, 1.0)  # then divided by

    @property
    def resized(self) -> int:
        """The resized image's shorter side (squash: both), in pixels, rounded down as in timm."""
        return math.floor(self.img_size / self.crop_pct)

    @property
    def normalised(self) -> bool:
        """Whether mean and std change anything."""
        return self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0)


DEFAULT = Evaluation()


class Exported(NamedTuple):
    """The evaluation of a model, as its checkpoint said it and the export resolved it.

    A value may be anything that a checkpoint or a record holds: resolve() checks it.
    """

    evaluation: Evaluation
    said: Tuple[str, ...]  # fields that the checkpoint gave, and the exported size; others: timm's

    def notes(self) -> Dict[str, Any]:
        """For a model's record: see of_notes()."""
        return {"evaluation": to_json(self.evaluation._asdict()), "said": list(self.said)}


# ---- the command line ----------------------------------------------------------------------------


def given(arguments: argparse.Namespace) -> Dict[str, Any]:
    """{field: value} of the options that were given."""
    return {name: value for name, value in from_json(vars(arguments)).items() if value is not None}


def option(name: str) -> str:
    """The option for a field."""
    return "--" + name.replace("_", "-")


def resolve(options: Dict[str, Any], exported: Exported, who: str) -> Tuple[Evaluation, List[str]]:
    """The evaluation to use, and a sentence for each option that contradicts the checkpoint.

    options: given(); they replace what the checkpoint says.
    who: words for the checkpoint.
    Raises: Refusal for a value that cannot be used and that no option replaces.
    """
    contradictions = []
    for name, value in sorted(exported.evaluation._asdict().items()):
        wrong = problem(name, value)
        if name not in options and wrong:
            raise Refusal(f"{who} says {name} = {value}, but {wrong}; say {option(name)}")
        if name in options and name in exported.said and options[name] != value:
            contradictions.append(
                f"{option(name)} {words(options[name])} contradicts {who}, which says "
                f"{words(value)}; the option is followed"
            )
    return exported.evaluation._replace(**options), contradictions


# ---- what a checkpoint says ----------------------------------------------------------------------


def said_by(source: Dict[str, Any]) -> Dict[str, Any]:
    """{field: value} that a checkpoint's `args` or a `pretrained_cfg` give.

    timm's `input_size` is [channels, height, width] and goes before `img_size`; one mean serves all
    channels. None says nothing, and so does an interpolation of "", which timm's train.py leaves
    where nobody chose one (timm/data/config.py). A value that cannot be used becomes its repr().
    """
    said = {name: source.get(name) for name in Evaluation._fields}
    size = source.get("input_size")
    if isinstance(size, (list, tuple)) and size:
        height, width = size[-2:] if len(size) > 1 else size * 2
        said["img_size"] = width if width == height else [height, width]
    if said["interpolation"] == "":
        said["interpolation"] = None
    for name in ("mean", "std"):
        value = said[name]
        if isinstance(value, (list, tuple)):
            said[name] = tuple(value) * 3 if len(value) == 1 else tuple(value)
    usable = {name: value for name, value in said.items() if value is not None}
    return {name: repr(value) if problem(name, value) else value for name, value in usable.items()}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def problem(name: str, value: Any) -> str:
    """What is wrong with a field's value; "" if nothing is."""
    if name == "img_size":
        fits = is_number(value) and isinstance(value, int) and 1 <= value <= 4096
        if str(value).startswith("["):
            return "these are height and width of input_size, and only square images are supported"
        return "" if fits else "a whole number is expected"
    if name == "crop_pct":
        fits = is_number(value) and 0 < value <= 1
        return "" if fits else "a number above 0 and at most 1 is expected"
    if name in ("crop_mode", "interpolation"):
        known = CROP_MODES if name == "crop_mode" else INTERPOLATIONS
        return "" if value in known else f"{' or '.join(known)} is expected"
    three = isinstance(value, tuple) and len(value) == 3 and all(map(is_number, value))
    if name == "std":
        above_zero = three and all(number > 0 for number in value)
        return "" if above_zero else "three numbers above 0 are expected"
    in_range = three and all(0 <= number <= 1 for number in value)
    return "" if in_range else "three numbers in 0..1 are expected"


# ---- in words ------------------------------------------------------------------------------------


def words(value: Any) -> str:
    """A field's value as a user types it."""
    if isinstance(value, tuple):
        return " ".join(f"{number:g}" for number in value)
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def describe(evaluation: Evaluation) -> str:
    """One line for people: 448×448, crop 0.875 center, bilinear, mean 0 0 0, std 1 1 1."""
    return (
        f"{evaluation.img_size}×{evaluation.img_size}, "
        f"crop {evaluation.crop_pct:g} {evaluation.crop_mode}, {evaluation.interpolation}, "
        f"mean {words(evaluation.mean)}, std {words(evaluation.std)}"
    )


# ---- in records ----------------------------------------------------------------------------------


def to_json(fields: Dict[str, Any]) -> Dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()
    }


def from_json(fields: Any) -> Dict[str, Any]:
    """The fields that to_json() wrote into a record, without the other things in it."""
    source = fields if isinstance(fields, dict) else {}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in source.items()
        if name in Evaluation._fields
    }


def of_fields(fields: Any) -> Exported:
    """The evaluation of a checkpoint that says these fields: said_by(), or from_json() of them."""
    said = from_json(fields)
    for name in ("mean", "std"):
        if name in said and not problem(name, said[name]):
            said[name] = tuple(map(float, said[name]))
    return Exported(DEFAULT._replace(**said), tuple(sorted(said)))


def of_notes(notes: Dict[str, Any]) -> Optional[Exported]:
    """What a record's notes say; None if they do not. Earlier versions noted no `said`."""
    if "evaluation" not in notes:
        return None
    exported = of_fields(notes["evaluation"])
    said = notes.get("said")
    if not isinstance(said, list):
        return exported
    return exported._replace(said=tuple(name for name in exported.said if name in said))


def of_record(model: str) -> Optional[Exported]:
    """What the record of a model says (.onnx or .om); None if it has none or does not say it."""
    return of_notes(record.read(model).notes)


def notes_of(model: str) -> Dict[str, Any]:
    """The notes for the record of what is made from a model: its evaluation and classes."""
    exported = of_record(model)
    notes = exported.notes() if exported else {}
    classes = known_classes(model)
    if classes:
        notes["num_classes"] = str(classes)
    background = has_background(model)
    if background is not None:
        notes["background"] = background
    return notes


def of_model(model: str) -> Optional[Exported]:
    """What the record of a model says, else an ONNX file's metadata; None if neither does.

    A record of another content than the file's does not count. Raises: Refusal for metadata that
    cannot be read.
    """
    about = record.read(model)
    made = about.made.get(os.path.basename(model))
    if not model.endswith(".onnx") or (made and about.is_intact(made)):
        return of_notes(about.notes)
    metadata = metadata_of(model)
    notes: Dict[str, Any] = {}
    try:
        for name in ("evaluation", "said"):
            if name in metadata:
                notes[name] = json.loads(metadata[name])
        if not isinstance(notes.get("evaluation", {}), dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError):
        raise Refusal(
            f"the metadata of {shown(model)} should say how its images are prepared, as "
            "TResNet_pth2onnx.py writes it, but cannot be read; export it again"
        ) from None
    return of_notes(notes)


def onnx_of(model: str) -> str:
    """The ONNX file that a model was compiled from, if it lies beside it; an ONNX file itself."""
    return re.sub(r"(_bs[0-9]+)?\.om$", ".onnx", model)


def has_background(model: str) -> Optional[bool]:
    """Whether class 0 of a model is "background"; None if no record says it.

    The record is that of the model or of its ONNX file. Raises: Refusal for a damaged record.
    """
    for path in dict.fromkeys([model, onnx_of(model)]):
        noted = record.read(path).notes.get("background")
        if isinstance(noted, bool):
            return noted
    return None


def known_classes(model: str) -> int:
    """How many classes a model has: its record, or that of its ONNX file, says; 0 if neither does.

    An ONNX file without a record has metadata. A .om that was compiled by hand has no record: the
    ONNX file beside it, of the same name, counts. Raises: Refusal for a damaged record.
    """
    onnx_path = onnx_of(model)
    for path in dict.fromkeys([model, onnx_path]):
        noted = str(record.read(path).notes.get("num_classes", ""))
        if noted.isdecimal():
            return int(noted)
    if not os.path.isfile(onnx_path) or os.path.lexists(record.path_of(onnx_path)):
        return 0
    noted = metadata_of(onnx_path).get("num_classes", "")
    return int(noted) if noted.isdecimal() else 0


def metadata_of(model: str) -> Dict[str, str]:
    """The metadata in an ONNX file; {} if it cannot be read: whoever runs it says why."""
    import onnx  # here: a model with a record does not need it
    from google.protobuf.message import DecodeError

    with contextlib.suppress(OSError, Refusal, DecodeError):
        content = files.read_regular(model, largest=LARGEST_MODEL)
        return {
            entry.key: entry.value for entry in onnx.load_model_from_string(content).metadata_props
        }
    return {}


def recorded(fields: Any, **others: Any) -> Evaluation:
    """The evaluation in a prepared folder's settings or a model's notes.

    fields: see from_json(); others: replace some of them. Fields that are not there are timm's.
    Raises: Refusal for a value that cannot be used.
    """
    exported = of_fields({**from_json(fields), **others})
    return resolve({}, exported, "a record of the evaluation")[0]


def check_prepared(model: str, folder: str) -> None:
    """Refuse a prepared folder made for another evaluation than the model's checkpoint says.

    What was given to the preprocessing as an option stays: a note said that it contradicts.
    """
    about = prepared.read(folder)  # first: what cannot be read is refused before anything is made
    exported = of_record(model)
    if not exported:
        return
    made, deliberate = from_json(about.settings), about.about.get("given") or []
    for name in exported.said:
        value = getattr(exported.evaluation, name)
        if name in made and made[name] != value and name not in deliberate:
            raise Refusal(
                f"the images in {shown(folder)} were made with {name} = {words(made[name])}, but "
                f"the checkpoint of {shown(model)} says {words(value)}; make them again: python3 "
                f"TResNet_preprocess.py SRC {shown(folder)} --model {shown(model)} --force (or "
                f"add {option(name)} to that command to keep your value)"
            )


# ---- AIPP ----------------------------------------------------------------------------------------


def aipp(evaluation: Evaluation) -> bytes:
    """The AIPP file by which the card turns bytes into what float32 files hold.

    That is (pixel / 255 - mean) / std, for RGB bytes [height, width, 3].
    AIPP subtracts mean_chn, a whole number, and min_chn, any number: the mean's whole part and its
    rest. Source: hiascend.com, ATC, AIPP's configuration file template.
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
    for channel, mean in enumerate(means):
        lines.append(f"mean_chn_{channel} : {int(mean)}")
    for channel, mean in enumerate(means):
        lines.append(f"min_chn_{channel} : {round(mean - int(mean), 9):.9g}")
    for channel, std in enumerate(evaluation.std):
        lines.append(f"var_reci_chn_{channel} : {1 / (255 * std):.15f}")
    body = "".join(f"    {line}\n" for line in lines)
    return (
        "# AIPP: the card takes uint8 RGB, [height, width, 3], and scales it itself. Handed to atc "
        "as --insert_op_conf and to\n# the CPU runner as --aipp.\naipp_op {\n" + body + "}\n"
    ).encode("ascii")


# ---- a Hugging Face folder -----------------------------------------------------------------------


def weights_file(path: str) -> str:
    """The file of a checkpoint: the path itself, or the weights in a Hugging Face folder.

    Raises: Refusal if the folder holds none.
    """
    if not os.path.isdir(path):
        return path
    for name in FOLDER_WEIGHTS:
        if os.path.isfile(os.path.join(path, name)):
            return os.path.join(path, name)
    raise Refusal(
        f"the folder {shown(path)} should hold {' or '.join(FOLDER_WEIGHTS)} beside {CONFIG}, like "
        "a Hugging Face folder, but holds neither; give the file of the checkpoint"
    )


def config_path(weights: str) -> str:
    """The config.json beside the weights of a Hugging Face folder; "" if it is not there."""
    path = os.path.join(os.path.dirname(weights), CONFIG)
    return path if os.path.basename(weights) in FOLDER_WEIGHTS and os.path.isfile(path) else ""


def read_config(weights: str) -> Dict[str, Any]:
    """The content of config_path(); {} without one. Raises: Refusal if it is broken."""
    path = config_path(weights)
    if not path:
        return {}
    advice = "copy it again, or move it away and give the evaluation by options"
    config: Dict[str, Any] = json_file.read(path, {}, advice)
    return config


def of_config(config: Dict[str, Any]) -> Dict[str, Any]:
    """said_by() a config.json: timm nests it under `pretrained_cfg`."""
    nested = config.get("pretrained_cfg")
    return said_by(nested if isinstance(nested, dict) else config)
