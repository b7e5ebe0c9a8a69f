"""What a checkpoint says of itself beside its weights: its network, its evaluation, its accuracy.

Each field that changes the network or the evaluation is honoured, refused or named in a note.
docs/checkpoints.md lists the fields. They are those of timm's train.py (0.4.5 and 1.0.31) and of
config.json beside the weights of a Hugging Face folder (timm/models/_pretrained.py, _hub.py).
"""

import argparse
import contextlib
import math
import re
import types
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from common.core.cli import Refusal, shown, some
from common.core.names import POOLS
from common.data import evaluation

ARGUMENTS = ("args", "hyper_parameters")  # keys of a training script's options
NESTED = ("model_kwargs", "model_args")  # options of the network, in args and in config.json
# What may be among NESTED: the rest of these is for training alone.
KNOWN_OF_NETWORK = (
    "global_pool",
    "num_classes",
    "in_chans",
    "drop_rate",
    "drop_path_rate",
    "pretrained",
)
CHANNELS = ("in_chans", "chans")
FEW_VALUES = 16  # no option of a training script is an array of more
# {field: what it means if it is set, in words; "" for a value that changes nothing}
Notes = Dict[str, Callable[[Any], str]]


class Accuracy(NamedTuple):
    """An accuracy that the checkpoint says it had."""

    top: int  # k of Top-k
    value: float  # per cent
    said: str  # in its own words: "metric = 87.5"
    of_averaged: bool  # whether it is that of the averaged weights
    is_best: bool  # whether it is the best of the training, maybe of another epoch


class Claims(NamedTuple):
    """All that a checkpoint says of itself."""

    evaluation: Dict[str, Any]  # {field of Evaluation: value}: evaluation.said_by()
    arch: Optional[str]  # the name of its network
    pool: Optional[str]  # the global pooling, one of POOLS; None if it does not say it
    num_classes: Any  # what it says, of any type; None if it says nothing
    background: Optional[bool]  # whether class 0 is "background"; None if it does not say it
    accuracies: List[Accuracy]
    notes: List[str]  # sentences about fields that this program does not follow


# ---- the fields ----------------------------------------------------------------------------------


def arguments_of(checkpoint: Any) -> Dict[str, Any]:
    """{name: value} of the options of the training script; {} if the checkpoint has none."""
    if not isinstance(checkpoint, dict):
        return {}
    for key in ARGUMENTS:
        own = checkpoint.get(key)
        if isinstance(own, (argparse.Namespace, types.SimpleNamespace)):
            own = vars(own)
        if isinstance(own, dict) and own:
            return {name: value for name, value in own.items() if isinstance(name, str)}
    return {}


def fields_of(source: Dict[str, Any]) -> Dict[str, Any]:
    """The fields of args or config.json in one dict; None and "" say nothing.

    config.json has those of the evaluation under `pretrained_cfg`. Arrays and tensors become lists.
    """
    fields: Dict[str, Any] = {}
    nested = source.get("pretrained_cfg")
    for part in (nested if isinstance(nested, dict) else {}, source):
        plain_values = {name: plain(value) for name, value in part.items()}
        fields.update({name: value for name, value in plain_values.items() if is_given(value)})
    return fields


def plain(value: Any) -> Any:
    """A value without NumPy's and PyTorch's types; of a large array its shape."""
    if not hasattr(value, "tolist"):
        return value
    if count_of(value.shape) > FEW_VALUES:  # a view of a tensor may claim any number of values
        return f"an array of shape {list(value.shape)}"
    try:
        return value.tolist()
    except RuntimeError:  # a tensor without values
        return f"an array of shape {list(value.shape)}"


def count_of(shape: Any) -> int:
    """How many values an array of this shape has."""
    count = 1
    for side in shape:
        count *= int(side)
    return count


def is_given(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value)


def unknown_options(value: Any) -> str:
    options = value if isinstance(value, dict) else {}
    names = [str(name) for name in options if name not in KNOWN_OF_NETWORK]
    if not names:
        return ""
    return f"{some(names)}: this program builds the network without it"


def other_order(value: Any) -> str:
    """Whether timm's --dataset takes the classes in another order than timm's class folders."""
    name = str(value)
    if re.match("torch/(image_)?folder", name.lower()):
        return (
            "torchvision numbered the class folders in text order (class10 before class9); if the "
            "images are in class folders, compare the order"
        )
    if re.match("(torch|tfds|hfds|hfids|wds)/", name.lower()):
        return "the classes are numbered as in that data set; compare the labels' numbers with it"
    return ""


IGNORED_NORM = "timm ignores it for a TResNet, and so does this program: eps is 1e-5"
NOTES: Notes = {
    "class_map": lambda value: (
        "training numbered its class folders by that file; for images in class folders give the "
        "same file: --class-map FILE"
    ),
    "dataset": other_order,
    "tta": lambda value: (
        "its accuracy is of so many views of an image; this program evaluates one"
        if evaluation.is_number(value) and value > 1
        else ""
    ),
    "bn_eps": lambda value: "" if value == 1e-5 else IGNORED_NORM,
    "bn_tf": lambda value: IGNORED_NORM,
    "model_kwargs": unknown_options,
    "model_args": unknown_options,
    "test_input_size": lambda value: (
        "published figures may be of that size; this program takes input_size unless --img-size "
        "is given"
    ),
    "test_crop_pct": lambda value: (
        "published figures may be of that crop; this program takes crop_pct unless --crop-pct is "
        "given"
    ),
}


def notes_of(fields: Dict[str, Any]) -> Iterator[str]:
    """A sentence for each field that this program does not follow."""
    for name, explain in NOTES.items():
        value = fields.get(name)
        why = explain(value) if value else ""
        if why:
            text = str(value)[:60]
            yield f"{name} = {text if text.isprintable() else shown(text)}: {why}"


def check_channels(fields: Dict[str, Any], path: str) -> None:
    """Raises: Refusal for a network or images that are not in three colours."""
    for name in CHANNELS:
        value = fields.get(name, 3)
        if not (evaluation.is_number(value) and value == 3):
            raise Refusal(
                f"{shown(path)} says {name} = {value}, but only images of 3 channels (red, "
                "green, blue) are supported; give another file"
            )
    size = fields.get("input_size")
    if isinstance(size, (list, tuple)) and len(size) == 3 and size[0] != 3:
        raise Refusal(
            f"{shown(path)} says input_size = {list(size)}, but only images of 3 channels (red, "
            "green, blue) are supported; give another file"
        )
    mode = str(fields.get("input_img_mode", "RGB"))
    if mode != "RGB":
        raise Refusal(
            f"{shown(path)} says input_img_mode = {mode!a}, but images are always read as RGB; "
            "give weights that were trained on RGB images"
        )


def pool_of(fields: Dict[str, Any], path: str) -> Optional[str]:
    """The global pooling that args or config.json name, one of POOLS; None if they do not.

    timm also has names that begin with "fast", for the same functions.
    Raises: Refusal for a pooling of another name.
    """
    nested = [fields.get(name) for name in NESTED]
    places = [fields, *(options for options in nested if isinstance(options, dict))]
    for names in places:
        for name in ("gp", "global_pool"):
            value = names.get(name)
            if value is None:
                continue
            plain = str(value).lower()
            plain = re.sub("^fast", "", plain) or POOLS[0]
            if plain not in POOLS:
                raise Refusal(
                    f"{shown(path)} says {name} = {value!a}, but a global pooling of "
                    f"{', '.join(POOLS)} is expected; give --gp if that is wrong"
                )
            return plain
    return None


def background_of(fields: Dict[str, Any]) -> Optional[bool]:
    """Whether class 0 is "background"; None if nothing says it.

    timm's `label_offset` is the number of classes before those of ImageNet.
    """
    offset = fields.get("label_offset")
    if evaluation.is_number(offset):
        return bool(offset)
    return None


# ---- the accuracy --------------------------------------------------------------------------------

# What keys are called, without BESIDE and what separates words.
TOP_1 = "metric acc acc1 accuracy accuracy1 prec1 top1 top1acc top1accuracy acctop1 accuracytop1"
TOP_5 = "acc5 accuracy5 prec5 top5 top5acc top5accuracy acctop5 accuracytop5"
TOPS = {**dict.fromkeys(TOP_1.split(), 1), **dict.fromkeys(TOP_5.split(), 5)}
OF_BEST, OF_AVERAGED = ("best", "max"), ("ema", "swa", "averaged")
# Words of a key that do not say which accuracy it is.
BESIDE = (*OF_BEST, *OF_AVERAGED, "val", "valid", "validation", "test", "eval", "model", "score")
GROUPS = ("metric", "metrics", "best_metrics", "eval_metrics", "test_stats", "results")


def number_of(value: Any) -> Optional[float]:
    """A finite number out of what a checkpoint holds: also of a tensor of one value."""
    if isinstance(value, bool):
        return None
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError):
        number = float(value) if not isinstance(value, str) else math.nan
        return number if math.isfinite(number) else None
    return None


def entries_of(checkpoint: Any) -> Iterator[Tuple[str, Any]]:
    """(key, value) of what may be an accuracy, also in a dict of such values."""
    for key, value in checkpoint.items() if isinstance(checkpoint, dict) else ():
        if not isinstance(key, str):
            continue
        if key in GROUPS and isinstance(value, dict):
            yield from ((str(name), inner) for name, inner in value.items())
        elif key == "callbacks" and isinstance(value, dict):
            yield from watched_by(list(value.values()))
        elif not isinstance(value, (dict, list, tuple)):
            yield key, value


def watched_by(callbacks: List[Any]) -> Iterator[Tuple[str, Any]]:
    """(key, value) of the best figure that each of PyTorch Lightning's callbacks kept."""
    for callback in callbacks:
        if isinstance(callback, dict) and isinstance(callback.get("monitor"), str):
            yield f"best_{callback['monitor']}", callback.get("best_model_score")


def accuracies_of(checkpoint: Any, arguments: Dict[str, Any]) -> List[Accuracy]:
    """The accuracies that a checkpoint says it had.

    timm's `metric` is per cent of what `eval_metric` names, and that of the averaged weights if
    there are any that it evaluated. Source: timm's train.py. Elsewhere a value up to 1 is a share.
    """
    is_timm = "eval_metric" in arguments
    averaged_in_timm = arguments.get("model_ema") and not arguments.get("model_ema_force_cpu")
    found = []
    for key, value in entries_of(checkpoint):
        words = [word for word in re.split(r"[^a-z0-9]+", key.lower()) if word]
        kind = "".join(word for word in words if word not in BESIDE)
        if kind == "metric" and is_timm:
            kind = str(arguments["eval_metric"]).lower()
        number = number_of(value) if kind in TOPS else None
        if number is None or not 0 < number <= 100:
            continue
        per_cent = 100 * number if number <= 1 and not is_timm else number
        of_averaged = any(word in OF_AVERAGED for word in words)
        if is_timm and key == "metric":
            of_averaged = bool(averaged_in_timm)
        is_best = any(word in OF_BEST for word in words)
        said = f"{shown(key)} = {number:g}"
        found.append(Accuracy(TOPS[kind], per_cent, said, of_averaged, is_best))
    return found


def chosen(accuracies: List[Accuracy], averaged: bool) -> List[Accuracy]:
    """Of each Top-k the accuracy that belongs to the weights that were taken, if it is known.

    averaged: whether the averaged weights were taken.
    """
    best_of: Dict[int, Accuracy] = {}
    for accuracy in accuracies:
        other = best_of.get(accuracy.top)
        if other is None or preference(accuracy, averaged) < preference(other, averaged):
            best_of[accuracy.top] = accuracy
    return [best_of[top] for top in sorted(best_of)]


def preference(accuracy: Accuracy, averaged: bool) -> Tuple[bool, bool]:
    """What to compare accuracies by: the smallest is the one that belongs to the weights."""
    return accuracy.of_averaged != averaged, accuracy.is_best


# ---- in the model's record -----------------------------------------------------------------------


def to_notes(accuracies: List[Accuracy], averaged: bool) -> List[Dict[str, Any]]:
    """What a model's record holds of the accuracies; averaged: whether those weights were taken."""
    return [
        {
            "top": accuracy.top,
            "value": accuracy.value,
            "said": accuracy.said,
            "of_other_weights": accuracy.of_averaged != averaged,
            "is_best": accuracy.is_best,
        }
        for accuracy in chosen(accuracies, averaged)
    ]


def rows_of(notes: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The accuracies in the notes of a model's record, which may be anybody's."""
    rows = notes.get("claimed")
    return [row for row in rows if is_sound(row)] if isinstance(rows, list) else []


def needed_rows(notes: Dict[str, Any]) -> List[Dict[str, Any]]:
    """rows_of() for what cannot do without. Raises: Refusal if there are none."""
    rows = rows_of(notes)
    if not rows:
        raise Refusal(
            "the checkpoint does not say how accurate it was in training; leave out --expect "
            "checkpoint, or name published weights"
        )
    return rows


def remarks_of(notes: Dict[str, Any]) -> List[str]:
    """The sentences of Claims.notes in the notes of a model's record, which may be anybody's."""
    return texts_of(notes.get("remarks"))


def texts_of(value: Any) -> List[str]:
    """The texts in a list that may be anything, as far as they can be printed."""
    return list(filter(is_printable, value)) if isinstance(value, list) else []


def is_printable(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def is_sound(row: Any) -> bool:
    """Whether a row of a record is as TResNet_pth2onnx.py writes it."""
    if not isinstance(row, dict) or not is_printable(row.get("said")):
        return False
    value = row.get("value")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return row.get("top") in (1, 5) and is_number and 0 <= row["value"] <= 100


# ---- all of it -----------------------------------------------------------------------------------


def read(checkpoint: Any, config: Dict[str, Any], path: str, gp: Optional[str] = None) -> Claims:
    """All that a checkpoint says of itself; config.json goes before `args`.

    config: the content of config.json, {} without one; path: what messages call the checkpoint.
    gp: the user's --gp, which replaces the checkpoint's.
    Raises: Refusal for a field that the program cannot follow and no option replaces.
    """
    arguments = arguments_of(checkpoint)
    fields = fields_of(config or arguments)
    check_channels(fields, path)
    notes = list(notes_of(fields))
    metric = str(arguments.get("eval_metric", "")).lower()
    if metric and metric not in TOPS and "metric" in checkpoint:
        notes.append(
            f"eval_metric = {shown(metric[:60])}: the checkpoint's metric is not an accuracy, so "
            "it is not compared"
        )
    if gp:
        with contextlib.suppress(Refusal):  # what nobody knows is replaced
            said = pool_of(fields, path)
            if said not in (None, gp):
                notes.append(f"gp = {said}, which --gp {gp} contradicts: the option is followed")
    arch = config.get("architecture") or fields.get("model")
    if not config and isinstance(checkpoint, dict):
        arch = checkpoint.get("arch") or arch
    return Claims(
        evaluation.said_by(fields),
        arch if isinstance(arch, str) else None,
        gp or pool_of(fields, path),
        fields.get("num_classes"),
        background_of(fields),
        accuracies_of(checkpoint, arguments),
        notes,
    )
