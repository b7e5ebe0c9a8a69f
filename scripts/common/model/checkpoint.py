"""A checkpoint file: what it holds, read without running anything in it, and the state dict in its wrapping."""

import argparse
import builtins
import datetime
import os
import pathlib
import pickle
import re
import types
import zipfile
from collections import OrderedDict
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from common.core.cli import Refusal, missing_package, shown, why

Tensors = Dict[str, Any]  # {name: torch.Tensor}

DEPTH = 3  # of dicts in dicts that are searched for a state dict
FEW = (
    10  # times fewer tensors than the largest dict of them: something else, such as an optimizer's
)
AVERAGED = re.compile(r"ema|averaged|swa", re.IGNORECASE)  # in the key of averaged weights
FIRST = ("state_dict", "model")  # keys that go before all others
PREFIX = re.compile(
    r"^((module|_orig_mod|model|net|backbone)\.)+"
)  # put before names by wrappers, in any order
PLAIN_TYPES = (
    "bool",
    "int",
    "float",
    "complex",
    "str",
    "list",
    "tuple",
    "dict",
    "set",
    "frozenset",
)
NAMES_GLOBALS = (
    2,
    8,
)  # PyTorch whose safe_globals() takes (object, name) for certain; 2.5 does not
PLAIN = "save the network's plain state_dict() in float32"
NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
LARGEST_HEADER = (
    1 << 24
)  # bytes, of a .safetensors file; a tensor takes 100, read ones 15 times more
ROOM = 1 << 24  # bytes of memory for a .safetensors file beyond its copy in the tensors
EXPANDED = (
    1 << 24
)  # values that a tensor may have beyond those that are stored, as a view that repeats them


class Found(NamedTuple):
    """The state dict in a checkpoint."""

    tensors: Tensors
    key: str  # where it was: "" for a bare one, "state_dict", "checkpoint.model", …
    prefix: str  # what was taken off the names, of the first one
    others: List[str]  # keys of further state dicts that were not taken


# ---- reading without running -----------------------------------------------------------------------------------------


def harmless_globals() -> List[Tuple[Any, str]]:
    """(object, pickled name) of what stands beside weights in real checkpoints and can only hold data.

    Of NumPy: arrays, and scalars such as `metric`, under NumPy 1 and 2.
    """
    import numpy as np  # here: what is up to date does not need it

    multiarray = (getattr(np, "_core", None) or np.core).multiarray
    allowed = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    ]
    allowed += [(np.dtype, "numpy.dtype"), (np.ndarray, "numpy.ndarray")]
    kinds = (
        np.bool_,
        np.float16,
        np.float32,
        np.float64,
        np.int8,
        np.uint8,
        np.int16,
        np.uint16,
        np.int32,
        np.uint32,
        np.int64,
        np.uint64,
    )
    for dtype_class in {type(np.dtype(kind)) for kind in kinds} - {
        np.dtype
    }:  # NumPy 1.20 and newer
        allowed.append((dtype_class, f"{dtype_class.__module__}.{dtype_class.__name__}"))
    allowed += [
        (argparse.Namespace, "argparse.Namespace"),
        (types.SimpleNamespace, "types.SimpleNamespace"),
        (empty_dict, "collections.defaultdict"),
    ]
    allowed += [
        (getattr(datetime, name), f"datetime.{name}")
        for name in ("datetime", "date", "time", "timedelta", "timezone")
    ]
    for module in ("pathlib", "pathlib._local"):  # the latter in Python 3.13
        allowed += [
            (pathlib.PurePosixPath, f"{module}.{name}") for name in ("PosixPath", "PurePosixPath")
        ]
        allowed += [
            (pathlib.PureWindowsPath, f"{module}.{name}")
            for name in ("WindowsPath", "PureWindowsPath")
        ]
    for module in (
        "builtins",
        "__builtin__",
    ):  # types in arguments of others, such as defaultdict(list)
        allowed += [(getattr(builtins, name), f"{module}.{name}") for name in PLAIN_TYPES]
    return allowed


def empty_dict(*_: Any) -> Any:
    """For a defaultdict, into which PyTorch's reader would put nothing."""
    return OrderedDict()


def load_weights_only(path: str) -> Any:
    """torch.load that builds tensors, containers, numbers and the harmless_globals(), nothing else."""
    import torch

    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version >= NAMES_GLOBALS:
        with torch.serialization.safe_globals(harmless_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    # Older ones have no weights_only, or cannot be told the name that a thing was pickled under. They unpickle with the
    # module that they are given: this one looks up no other names.
    import _codecs

    allowed = {name: thing for thing, name in harmless_globals()}
    allowed.update(
        {
            "collections.OrderedDict": OrderedDict,
            "torch.Size": torch.Size,
            "torch.device": torch.device,
            "_codecs.encode": _codecs.encode,
        }
    )  # how pickle protocol 2 spells bytes
    allowed.update(
        {
            f"torch._utils.{name}": getattr(torch._utils, name)
            for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
        }
    )
    allowed.update(
        {
            f"torch.{kind}Storage": getattr(torch, f"{kind}Storage")
            for kind in (
                "Half",
                "BFloat16",
                "Float",
                "Double",
                "Byte",
                "Char",
                "Short",
                "Int",
                "Long",
                "Bool",
            )
        }
    )

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in allowed:
                raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
            return allowed[f"{module}.{name}"]

    restricted = types.ModuleType("restricted_pickle")
    restricted.Unpickler = Unpickler  # type: ignore[attr-defined]
    restricted.load = lambda file, **options: Unpickler(file, **options).load()  # type: ignore[attr-defined]
    options = {"weights_only": False} if version >= (1, 13) else {}
    return torch.load(path, map_location="cpu", pickle_module=restricted, **options)


def load_safetensors(path: str) -> Tensors:
    """Tensors of a .safetensors file, {name: torch.Tensor} by rising name; bfloat16 as float32.

    The safetensors package checks that the tensors cover the data without holes or overlaps.
    Source: https://huggingface.co/docs/safetensors/index (format).
    Raises: Refusal for a type that is not in NUMPY_TYPES; ValueError or what the package raises for
    a damaged file.
    """
    import numpy as np
    import torch
    from safetensors import deserialize

    with open(path, "rb") as file:
        content = file.read()
    size = int.from_bytes(content[:8], "little")
    if size > len(content):
        raise ValueError(f"its header should have {size} bytes, which is more than the file has")
    if size > LARGEST_HEADER:
        raise ValueError(f"its header has {size} bytes, more than that of any state dict")
    bytearray(len(content) + ROOM)  # a MemoryError now: in the package it would end the process
    tensors = OrderedDict()
    for name, entry in sorted(deserialize(content), key=lambda item: item[0]):
        kind = entry["dtype"]
        if kind not in NUMPY_TYPES:
            raise Refusal(f"{shown(path)}: the tensor {shown(name)} has the type {kind}; {PLAIN}")
        array = np.frombuffer(entry["data"], NUMPY_TYPES[kind])
        if kind == "BF16":  # the upper half of a float32
            array = (array.astype("<u4") << 16).view("<f4")
        tensors[name] = torch.from_numpy(array.reshape(entry["shape"]))
    return tensors


def check_archive(path: str) -> None:
    """Read the zip archive that torch.save has written since PyTorch 1.6; PyTorch itself compares no checksums.

    Raises: Refusal for TorchScript and for damage.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise Refusal(
                f"{shown(path)} is a TorchScript archive, which holds code; save the network's state_dict() "
                "instead"
            )
        if sum(entry.file_size for entry in archive.infolist()) > 2 * os.path.getsize(path):
            raise Refusal(
                f"{shown(path)} holds compressed files, which torch.save never writes; give the file that it "
                "wrote"
            )
        damaged = archive.testzip()
    if damaged:
        raise Refusal(
            f"{shown(path)} is damaged: {shown(damaged)} in it has another checksum than when it was saved; "
            "copy it again from where it came from"
        )


def load_checkpoint(path: str) -> Any:
    """What a checkpoint file holds, on the CPU; nothing in it is executed.

    Raises: Refusal with one sentence for anything that is no checkpoint.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(16)
    except OSError as error:
        raise Refusal(
            f"the checkpoint {shown(path)} cannot be read ({error.strerror}); give the path of a .pth, "
            ".pth.tar, .pt or .safetensors file"
        )
    try:
        if path.endswith(".safetensors"):
            return load_safetensors(path)
        if beginning[:2] == b"PK":
            check_archive(path)
        elif beginning[:1] != b"\x80":  # where every pickle begins
            raise Refusal(
                f"{shown(path)} is not a PyTorch checkpoint: it begins with {beginning!r}; give the file "
                "that torch.save wrote"
            )
        return load_weights_only(path)
    except ModuleNotFoundError as error:
        raise Refusal(missing_package(str(error.name))) from None
    except (
        Exception
    ) as error:  # a broken file can fail anywhere in PyTorch's reader, with any type of error
        raise Refusal(unreadable(path, error, beginning[:2] == b"PK")) from None


def unreadable(path: str, error: Exception, archive: bool) -> str:
    """The sentence for a file at which PyTorch's reader failed."""
    text = str(error) or type(error).__name__
    forbidden = re.search(r"GLOBAL ([\w.]+)", text)
    if forbidden:
        return (
            f"{shown(path)} refers to the Python object {forbidden.group(1)}, which weights do not need and which "
            "could run code, so nothing of it was loaded; save only the state dict: torch.save(model.state_dict(), "
            "...)"
        )
    if isinstance(error, MemoryError) or re.search(
        "allocate memory|not enough memory|bad alloc", text
    ):
        return (
            f"there is not enough memory to load {shown(path)} ({os.path.getsize(path) / 1e6:,.0f} MB); free some, "
            "or raise the limit (ulimit -v)"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{shown(path)} cannot be read ({why(error)}); check the disk, or copy it again"
    if not archive and re.search(
        "[Mm]agic number|_use_new_zipfile|Unsupported operand|persistent", text
    ):
        return (
            f"{shown(path)} is a Python pickle, but not one that torch.save wrote; give the file that it wrote, or "
            "save the state dict by it"
        )
    reason = re.sub(
        r"^Weights only load failed.*?(WeightsUnpickler error: |$)", "", text, flags=re.DOTALL
    ).strip()
    reason = (reason.splitlines() or [type(error).__name__])[0][:200]
    return f"{shown(path)} cannot be read as a checkpoint ({reason}); it is damaged or incomplete: copy it again"


# ---- the state dict in its wrapping ----------------------------------------------------------------------------------


def state_dicts(held: Any, key: str = "", depth: int = 0) -> Iterator[Tuple[str, Tensors]]:
    """(key, {name: tensor}) of each dict in `held`, up to DEPTH deep, that holds tensors by name.

    What stands beside the tensors of such a dict, an epoch for instance, is left out.
    """
    import torch

    if isinstance(held, dict):
        tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
        if tensors:
            yield key, tensors
    items = (
        held.items()
        if isinstance(held, dict)
        else enumerate(held)
        if isinstance(held, (list, tuple))
        else ()
    )
    for name, value in items if depth < DEPTH else ():
        if isinstance(value, (dict, list, tuple)):
            yield from state_dicts(value, f"{key}.{name}" if key else str(name), depth + 1)


def choose(candidates: Dict[str, Tensors], path: str, ema: bool, asked: Optional[str]) -> str:
    """The key of the state dict that is meant. Raises: Refusal where that cannot be told."""
    listed = ", ".join(
        f"{shown(key or 'the file itself')} ({len(tensors)} tensors)"
        for key, tensors in candidates.items()
    )
    if asked:
        fitting = [key for key in candidates if asked in (key, key.rpartition(".")[2])]
        if len(fitting) != 1:
            raise Refusal(
                f"--key {shown(asked)} names {len(fitting) or 'none'} of the state dicts in {shown(path)}, "
                f"which are {listed}; give the key as it stands there"
            )
        return fitting[0]
    averaged = [key for key in candidates if AVERAGED.search(key)]
    if ema and not averaged:
        raise Refusal(
            f"{shown(path)} has no averaged weights (state_dict_ema), only {listed}; leave out --ema"
        )
    rest = averaged if ema else [key for key in candidates if key not in averaged] or averaged
    for first in FIRST:
        if not ema and first in rest:
            return first
    if len(rest) > 1:
        raise Refusal(
            f"{shown(path)} holds several state dicts: {listed}; say which one to take, such as --key "
            f"{shown(rest[0] or rest[1])}"
        )
    return rest[0]


def find_state_dict(
    checkpoint: Any, path: str, ema: bool = False, key: Optional[str] = None
) -> Found:
    """The one state dict in a checkpoint's wrapping, without the prefixes that wrappers put before its names.

    ema: take the averaged weights; key: take the dict under this key.
    Raises: Refusal if there is none, if several may be meant, or if a tensor in it is of no use as a weight.
    """
    candidates = dict(state_dicts(checkpoint))
    most = max(map(len, candidates.values()), default=0)
    candidates = {
        place: tensors for place, tensors in candidates.items() if len(tensors) * FEW > most
    }
    if not candidates:
        held = (
            f"a dict of {', '.join(map(repr, list(checkpoint)[:9])) or 'nothing'}"
            if isinstance(checkpoint, dict)
            else f"a {type(checkpoint).__name__}"
        )
        raise Refusal(
            f"{shown(path)} should hold a state dict (name: tensor), bare or under a key such as "
            f"'state_dict' or 'model', but holds {held}"
        )
    chosen = choose(candidates, path, ema, key)
    check_tensors(candidates[chosen], path)
    tensors = OrderedDict(
        (PREFIX.sub("", name), tensor) for name, tensor in candidates[chosen].items()
    )
    if len(tensors) != len(candidates[chosen]):
        raise Refusal(
            f"{shown(path)} holds some tensors twice, with and without a prefix such as 'module.'; save it "
            "again with one of the two"
        )
    prefixes = [match.group() for match in map(PREFIX.match, candidates[chosen]) if match]
    return Found(
        tensors,
        chosen,
        prefixes[0] if prefixes else "",
        [place for place in candidates if place != chosen],
    )


def stored(tensor: Any) -> int:
    """How many values are in memory for a tensor."""
    if hasattr(tensor, "untyped_storage"):  # PyTorch 2
        return int(tensor.untyped_storage().nbytes() // tensor.element_size())
    return int(tensor.storage().size())


def check_tensors(tensors: Dict[Any, Any], path: str) -> None:
    """Refuse what cannot be a weight: another kind of tensor, a name that is none, views larger than the file."""
    import torch

    for name, tensor in tensors.items():
        problem = (
            "is named by a number, not by a text"
            if not isinstance(name, str)
            else "is sparse"
            if tensor.layout != torch.strided
            else "is quantised"
            if tensor.is_quantized
            else "is on the meta device, so it has no values"
            if tensor.device.type != "cpu"
            else "has complex values"
            if tensor.is_complex()
            else "has far more values than are stored for it"
            if tensor.numel() > EXPANDED + stored(tensor)
            else ""
        )
        if problem:
            raise Refusal(
                f"{shown(path)}: the tensor {shown(str(name))} of shape {list(tensor.shape)} {problem}; "
                + PLAIN
            )
