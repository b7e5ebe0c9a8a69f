"""A checkpoint file: what it holds, read without running anything in it; its state dict."""

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
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from common.core.cli import Refusal, missing_package, shown, why

Tensors = Dict[str, Any]  # {name: torch.Tensor}
Globals = Dict[str, Any]  # {full name in a pickle: the object that is taken for it}

DEPTH = 3  # of dicts in dicts that are searched for a state dict
# A dict with this many times fewer tensors than the largest one is not a state dict of the network;
# it belongs to an optimizer, for instance.
FEW = 10
AVERAGED = re.compile(r"ema|averaged|swa", re.IGNORECASE)  # in the key of averaged weights
# How many times an AveragedModel (torch.optim.swa_utils) took the average; beside its tensors.
TIMES_AVERAGED = "n_averaged"
FIRST = ("state_dict", "model")  # keys that go before all others
# What wrappers put before names, in any order.
PREFIX = re.compile(r"^((module|_orig_mod|model|net|backbone)\.)+")
PLAIN_TYPES = "bool int float complex str list tuple dict set frozenset".split()
NUMPY_KINDS = (
    "bool float16 float32 float64 int8 uint8 int16 uint16 int32 uint32 int64 uint64".split()
)
STORAGE_KINDS = "Half BFloat16 Float Double Byte Char Short Int Long Bool".split()
# The first PyTorch in which every safe_globals() takes (object, name); that of 2.5 does not.
NAMES_GLOBALS = (2, 8)
PLAIN = "save the network's plain state_dict() in float32"
NUMPY_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
# Bytes of a .safetensors file's header. A tensor takes 100 of them, and 15 times that once read.
LARGEST_HEADER = 1 << 24
SPARE_MEMORY = 1 << 24  # bytes that reading a .safetensors file takes beside its content
# How many values a tensor may have beyond those that are stored: a view can repeat them.
EXPANDED = 1 << 24


class StateDict(NamedTuple):
    """The state dict in a checkpoint."""

    tensors: Tensors
    key: str  # where it was: "" for a bare one, "state_dict", "checkpoint.model", …
    prefix: str  # what was taken off the names, of the first one
    others: List[str]  # keys of further state dicts that were not taken
    averaged: bool = False  # whether these are averaged weights


# ---- reading without running ---------------------------------------------------------------------


def numpy_globals() -> Globals:
    """NumPy's arrays, and scalars such as `metric`, as NumPy 1 and NumPy 2 pickle them."""
    import numpy as np  # here: a product that is up to date does not need it

    multiarray = (getattr(np, "_core", None) or np.core).multiarray
    allowed: Globals = {"numpy.dtype": np.dtype, "numpy.ndarray": np.ndarray}
    for name in ("scalar", "_reconstruct"):
        for package in ("numpy.core", "numpy._core"):
            allowed[f"{package}.multiarray.{name}"] = getattr(multiarray, name)
    for kind in NUMPY_KINDS:
        dtype_class = type(np.dtype(kind))
        if dtype_class is not np.dtype:  # each kind has a class of its own since NumPy 1.20
            allowed[f"{dtype_class.__module__}.{dtype_class.__name__}"] = dtype_class
    return allowed


def harmless_globals() -> Globals:
    """What real checkpoints hold beside weights, and what can only hold data."""
    allowed = numpy_globals()
    allowed["argparse.Namespace"] = argparse.Namespace
    allowed["types.SimpleNamespace"] = types.SimpleNamespace
    allowed["collections.defaultdict"] = empty_dict
    allowed["torch_npu.utils.storage._rebuild_npu_tensor"] = rebuild_npu_tensor
    allowed["torch_npu.npu._format.Format"] = npu_format
    for name in ("datetime", "date", "time", "timedelta", "timezone"):
        allowed[f"datetime.{name}"] = getattr(datetime, name)
    for module in ("pathlib", "pathlib._local"):  # the latter in Python 3.13
        for name in ("PosixPath", "PurePosixPath"):
            allowed[f"{module}.{name}"] = pathlib.PurePosixPath
        for name in ("WindowsPath", "PureWindowsPath"):
            allowed[f"{module}.{name}"] = pathlib.PureWindowsPath
    for module in ("builtins", "__builtin__"):  # types as arguments, such as defaultdict(list)
        for name in PLAIN_TYPES:
            allowed[f"{module}.{name}"] = getattr(builtins, name)
    return allowed


def rebuild_npu_tensor(
    storage: Any,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool,
    hooks: Any,
    storage_format: Any,
) -> Any:
    """A tensor that was saved on an NPU, on the CPU.

    torch_npu saves the values in their plain order, so the NPU's own format does not matter.
    Source: torch_npu/utils/storage.py.
    """
    import torch

    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)


def npu_format(number: int) -> int:
    """What torch_npu pickles for an NPU's format of a tensor; nothing here needs it."""
    return number


def empty_dict(*_: Any) -> Any:
    """For a defaultdict, into which PyTorch's reader would put nothing."""
    return OrderedDict()


def tensor_globals() -> Globals:
    """What the pickle of a state dict is built from."""
    import _codecs

    import torch

    allowed: Globals = {
        "collections.OrderedDict": OrderedDict,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
        "_codecs.encode": _codecs.encode,  # how pickle protocol 2 spells bytes
    }
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        allowed[f"torch._utils.{name}"] = getattr(torch._utils, name)
    for kind in STORAGE_KINDS:
        allowed[f"torch.{kind}Storage"] = getattr(torch, f"{kind}Storage")
    return allowed


def restricted_pickle() -> types.ModuleType:
    """A module to unpickle with, in place of `pickle`; it finds only the names that are allowed."""
    allowed = {**harmless_globals(), **tensor_globals()}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in allowed:
                raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
            return allowed[f"{module}.{name}"]

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    module = types.ModuleType("restricted_pickle")
    vars(module).update(Unpickler=Unpickler, load=load)
    return module


def load_weights_only(path: str) -> Any:
    """torch.load that builds tensors, containers, numbers and the harmless_globals() only."""
    import torch

    version = tuple(map(int, torch.__version__.split(".")[:2]))
    if version >= NAMES_GLOBALS:
        pairs: List[Any] = [(thing, name) for name, thing in harmless_globals().items()]
        with torch.serialization.safe_globals(pairs):
            return torch.load(path, map_location="cpu", weights_only=True)
    # An older PyTorch has no weights_only, or does not take the name that an object was pickled
    # under. It unpickles with the module that it gets.
    options = {"weights_only": False} if version >= (1, 13) else {}
    return torch.load(path, map_location="cpu", pickle_module=restricted_pickle(), **options)


def load_safetensors(path: str) -> Tensors:
    """Read the tensors of a .safetensors file.

    Returns {name: torch.Tensor} in the order of the names; bfloat16 becomes float32.
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
    # Without this a lack of memory ends the process inside the package; here it is a MemoryError.
    bytearray(len(content) + SPARE_MEMORY)
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
    """Check the zip archive that torch.save writes since PyTorch 1.6.

    PyTorch itself does not compare the checksums. Raises: Refusal for TorchScript and for damage.
    """
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise Refusal(
                f"{shown(path)} is a TorchScript archive, which holds code; save the network's "
                "state_dict() instead"
            )
        if sum(entry.file_size for entry in archive.infolist()) > 2 * os.path.getsize(path):
            raise Refusal(
                f"{shown(path)} holds compressed files, which torch.save never writes; give the "
                "file that it wrote"
            )
        damaged = archive.testzip()
    if damaged:
        raise Refusal(
            f"{shown(path)} is damaged: the checksum of {shown(damaged)} in it is wrong; copy the "
            "file again from its source"
        )


def load_checkpoint(path: str) -> Any:
    """Read what a checkpoint file holds, on the CPU; nothing in it is executed.

    Raises: Refusal with one sentence for anything that is not a checkpoint.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(16)
    except OSError as error:
        raise Refusal(
            f"the checkpoint {shown(path)} cannot be read ({error.strerror}); give the path of a "
            ".pth, .pth.tar, .pt or .safetensors file"
        )
    is_archive = beginning.startswith(b"PK")
    try:
        if path.endswith(".safetensors"):
            return load_safetensors(path)
        if is_archive:
            check_archive(path)
        elif not beginning.startswith(b"\x80"):  # where every pickle begins
            raise Refusal(
                f"{shown(path)} is not a PyTorch checkpoint: it begins with {beginning!r}; give "
                "the file that torch.save wrote"
            )
        return load_weights_only(path)
    except ModuleNotFoundError as error:
        raise Refusal(missing_package(str(error.name))) from None
    except Exception as error:  # PyTorch's reader raises errors of any type for a damaged file
        raise Refusal(unreadable(path, error, is_archive)) from None


def unreadable(path: str, error: Exception, is_archive: bool) -> str:
    """The sentence for a file that PyTorch's reader did not read."""
    text = str(error) or type(error).__name__
    forbidden = re.search(r"GLOBAL ([\w.]+)", text)
    if forbidden:
        name, plain_form = forbidden.group(1), "torch.save(model.state_dict(), ...)"
        if name.startswith("torch_npu."):
            plain_form = (
                "torch.save({name: tensor.cpu() for name, tensor in model.state_dict().items()}, "
                "...)"
            )
        return (
            f"{shown(path)} refers to the Python object {name}, which weights do not need and "
            "which could run code, so nothing was loaded from it; save only the state dict: "
            f"{plain_form}"
        )
    no_memory = re.search("allocate memory|not enough memory|bad alloc", text)
    if isinstance(error, MemoryError) or no_memory:
        return (
            f"there is not enough memory to load {shown(path)} "
            f"({os.path.getsize(path) / 1e6:,.0f} MB); free some, or raise the limit (ulimit -v)"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{shown(path)} cannot be read ({why(error)}); check the disk, or copy it again"
    foreign = re.search("[Mm]agic number|_use_new_zipfile|Unsupported operand|persistent", text)
    if foreign and not is_archive:
        return (
            f"{shown(path)} is a Python pickle that torch.save did not write; save the state dict "
            "with torch.save"
        )
    advice = r"^Weights only load failed.*?(WeightsUnpickler error: |$)"
    lines = re.sub(advice, "", text, flags=re.DOTALL).strip().splitlines()
    reason = lines[0][:200] if lines else type(error).__name__
    return (
        f"{shown(path)} cannot be read as a checkpoint ({reason}); it is damaged or incomplete: "
        "copy it again"
    )


# ---- the state dict in its wrapping --------------------------------------------------------------


def state_dicts(held: Any, key: str = "", depth: int = 0) -> Iterator[Tuple[str, Tensors]]:
    """(key, {name: tensor}) of each dict in `held`, up to DEPTH deep, that holds tensors by name.

    What such a dict holds beside tensors, an epoch for instance, is left out.
    """
    import torch

    children: Iterable[Tuple[Any, Any]] = ()
    if isinstance(held, dict):
        children = held.items()
        tensors = {name: value for name, value in children if isinstance(value, torch.Tensor)}
        if tensors:
            yield key, tensors
    elif isinstance(held, (list, tuple)):
        children = enumerate(held)
    if depth == DEPTH:
        return
    for name, value in children:
        if isinstance(value, (dict, list, tuple)):
            yield from state_dicts(value, f"{key}.{name}" if key else str(name), depth + 1)


def choose(candidates: Dict[str, Tensors], path: str, ema: bool, asked: Optional[str]) -> str:
    """The key of the state dict to take.

    ema: take averaged weights; asked: the user's --key, the whole key or its last part.
    Raises: Refusal if no candidate fits, or several do.
    """
    listed = ", ".join(
        f"{shown(key or 'the file itself')} ({len(tensors)} tensors)"
        for key, tensors in candidates.items()
    )
    if asked:
        fitting = [key for key in candidates if asked in (key, key.rpartition(".")[2])]
        if len(fitting) != 1:
            raise Refusal(
                f"--key {shown(asked)} fits {len(fitting) or 'none'} of the state dicts in "
                f"{shown(path)}: {listed}; give the whole key of one of them"
            )
        return fitting[0]
    averaged = [key for key in candidates if AVERAGED.search(key)]
    if ema and not averaged:
        raise Refusal(
            f"{shown(path)} has no averaged weights (state_dict_ema), only {listed}; leave out "
            "--ema"
        )
    plain = [key for key in candidates if key not in averaged]
    rest = averaged if ema or not plain else plain
    for first in FIRST:
        if not ema and first in rest:
            return first
    if len(rest) > 1:
        raise Refusal(
            f"{shown(path)} holds several state dicts: {listed}; choose one of them, for example "
            f"--key {shown(rest[0] or rest[1])}"
        )
    return rest[0]


def find_state_dict(
    checkpoint: Any, path: str, ema: bool = False, key: Optional[str] = None
) -> StateDict:
    """The one state dict in a checkpoint, without the prefixes that wrappers put before its names.

    checkpoint: as load_checkpoint() returns it; path: what messages call it.
    ema: take the averaged weights; key: take the dict under this key.
    Raises: Refusal if nothing fits, if several do, or if a tensor in it cannot be a weight.
    """
    candidates = dict(state_dicts(checkpoint))
    most = max(map(len, candidates.values()), default=0)
    candidates = {
        where: tensors for where, tensors in candidates.items() if len(tensors) * FEW > most
    }
    if not candidates:
        content = f"a {type(checkpoint).__name__}"
        if isinstance(checkpoint, dict):
            content = f"a dict of {', '.join(map(repr, list(checkpoint)[:9])) or 'nothing'}"
        raise Refusal(
            f"{shown(path)} should hold a state dict (name: tensor), bare or under a key such as "
            f"'state_dict' or 'model', but holds {content}; give another file"
        )
    chosen = choose(candidates, path, ema, key)
    tensors = candidates.pop(chosen)
    check_tensors(tensors, path)
    times = tensors.pop(TIMES_AVERAGED, None)
    if times is not None and times.numel() == 1 and not times.item():
        raise Refusal(
            f"the averaged weights in {shown(path)} were never updated ({TIMES_AVERAGED} is 0), so "
            "they are those of the start; give the trained ones"
        )
    prefixes = [match.group() for match in map(PREFIX.match, tensors) if match]
    renamed = OrderedDict((PREFIX.sub("", name), tensor) for name, tensor in tensors.items())
    if len(renamed) != len(tensors):
        raise Refusal(
            f"{shown(path)} holds some tensors twice, with and without a prefix such as 'module.'; "
            "save it again with one of the two"
        )
    averaged = times is not None or bool(AVERAGED.search(chosen))
    return StateDict(renamed, chosen, prefixes[0] if prefixes else "", list(candidates), averaged)


def stored_values(tensor: Any) -> int:
    """How many values are in memory for a tensor."""
    if hasattr(tensor, "untyped_storage"):  # PyTorch 2
        return int(tensor.untyped_storage().nbytes() // tensor.element_size())
    return int(tensor.storage().size())


def check_tensors(tensors: Dict[Any, Any], path: str) -> None:
    """Raises: Refusal for a tensor that cannot be a weight, and for a name that is not a text."""
    for name, tensor in tensors.items():
        problem = problem_of(name, tensor)
        if problem:
            raise Refusal(
                f"{shown(path)}: the tensor {shown(str(name))} of shape {list(tensor.shape)} "
                f"{problem}; {PLAIN}"
            )


def problem_of(name: Any, tensor: Any) -> str:
    """Why a tensor cannot be a weight; "" if it can."""
    import torch

    if not isinstance(name, str):
        return "is named by a number, not by a text"
    if tensor.layout != torch.strided:
        return "is sparse"
    if tensor.is_quantized:
        return "is quantised"
    if tensor.device.type != "cpu":
        return "is on the meta device, so it has no values"
    if tensor.is_complex():
        return "has complex values"
    if tensor.numel() > EXPANDED + stored_values(tensor):
        return "has far more values than are stored for it"
    return ""
