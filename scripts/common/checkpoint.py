"""A checkpoint file: what it holds, read without running anything in it, and the state dict in its wrapping."""
import argparse
import json
import os
import pickle
import re
import struct
import types
import zipfile
from collections import OrderedDict
from typing import Any, Dict, List, Tuple

from common.cli import Refusal, shown

import numpy as np

Tensors = Dict[str, Any]  # {name: torch.Tensor}


def numpy_globals() -> List[Tuple[Any, str]]:
    """(object, pickled name) of what a pickled NumPy scalar such as `metric` refers to, under NumPy 1 and 2."""
    multiarray = getattr(np, "_core", None) or np.core
    allowed = [(multiarray.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed.append((np.dtype, "numpy.dtype"))
    for number in (np.float16, np.float32, np.float64, np.int32, np.int64):
        dtype_class = type(np.dtype(number))
        if dtype_class is not np.dtype:  # NumPy 1.20 and newer
            allowed.append((dtype_class, f"{dtype_class.__module__}.{dtype_class.__name__}"))
    return allowed


def load_weights_only(path: str) -> Any:
    """torch.load that builds tensors, containers, numbers, argparse.Namespace and NumPy scalars, nothing else."""
    import torch
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals([argparse.Namespace, *numpy_globals()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # PyTorch 1.6 has no weights_only. It unpickles with the module it is given: this one looks up no other names.
    import _codecs
    allowed = {name: thing for thing, name in numpy_globals()}
    allowed.update({"collections.OrderedDict": OrderedDict, "argparse.Namespace": argparse.Namespace,
                    "_codecs.encode": _codecs.encode})  # how pickle protocol 2 spells bytes
    allowed.update({f"torch._utils.{name}": getattr(torch._utils, name)
                    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")})
    allowed.update({f"torch.{kind}Storage": getattr(torch, f"{kind}Storage") for kind in (
        "Half", "BFloat16", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool")})

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in allowed:
                raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
            return allowed[f"{module}.{name}"]

    restricted = types.ModuleType("restricted_pickle")
    restricted.Unpickler = Unpickler  # type: ignore[attr-defined]
    restricted.load = lambda file, **options: Unpickler(file, **options).load()  # type: ignore[attr-defined]
    return torch.load(path, map_location="cpu", pickle_module=restricted)


def load_safetensors(path: str) -> Tensors:
    """Tensors of a .safetensors file: 8 bytes length, a JSON header {name: {dtype, shape, data_offsets}}, raw data.

    Source: https://huggingface.co/docs/safetensors/index (format).
    Raises: ValueError, KeyError, … where the file is broken.
    """
    import torch
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        if size > os.path.getsize(path):
            raise ValueError(f"its header should have {size} bytes, which is more than the file has")
        header = json.loads(file.read(size).decode())
        data = file.read()
    tensors = OrderedDict()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        kind = np.dtype(kinds[entry["dtype"]])
        if not 0 <= begin <= end <= len(data) or end - begin != count * kind.itemsize:
            raise ValueError(f"{name} lies outside the file's data")
        array = np.frombuffer(data, kind, count, begin)
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype("<u4") << 16).view("<f4")
        tensors[name] = torch.from_numpy(array.reshape(entry["shape"]).copy())
    return tensors


def load_checkpoint(path: str) -> Any:
    """What a checkpoint file holds, on the CPU; nothing in it is executed.

    Raises: Refusal with one sentence for anything that is no checkpoint.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(16)
    except OSError as error:
        raise Refusal(f"the checkpoint {shown(path)} cannot be read ({error.strerror}); give the path of a .pth, "
                      ".pth.tar, .pt or .safetensors file")
    try:
        if path.endswith(".safetensors"):
            return load_safetensors(path)
        if beginning[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise Refusal(f"{shown(path)} is a TorchScript archive, which holds code; save the network's "
                                  "state_dict() instead")
        elif beginning[:1] != b"\x80":  # where every pickle begins
            raise Refusal(f"{shown(path)} is not a PyTorch checkpoint: it begins with {beginning!r}; give the file "
                          "that torch.save wrote")
        return load_weights_only(path)
    except Exception as error:  # a broken file can fail anywhere in PyTorch's reader, with any type of error
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            raise Refusal(f"{shown(path)} refers to the Python object {forbidden.group(1)}, which weights do not need "
                          "and which could run code, so nothing of it was loaded; save only the state dict: "
                          "torch.save(model.state_dict(), ...)")
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Refusal(f"{shown(path)} cannot be read as a checkpoint ({reason}); it is damaged or incomplete: copy it "
                      "again")


def find_state_dict(checkpoint: Any, path: str, ema: bool) -> Tensors:
    """The {name: tensor} in a checkpoint's wrapping, without the `module.` of distributed training."""
    import torch
    found = checkpoint
    if isinstance(checkpoint, dict):
        keys = ("state_dict_ema", "model_ema") if ema else ("state_dict", "model")
        wrapped = [key for key in keys if isinstance(checkpoint.get(key), dict)]
        if wrapped:
            found = checkpoint[wrapped[0]]
        elif ema:
            raise Refusal(f"{shown(path)} has no averaged weights (state_dict_ema), only "
                          f"{', '.join(map(str, list(checkpoint)[:9]))}; leave out --ema")
    if not isinstance(found, dict) or not found or not all(
            isinstance(tensor, torch.Tensor) for tensor in found.values()):
        held = (f"a dict of {', '.join(map(repr, list(found)[:9]))}" if isinstance(found, dict)
                else f"a {type(found).__name__}")
        raise Refusal(f"{shown(path)} should hold a state dict (name: tensor), bare or under 'state_dict' or 'model', "
                      f"but holds {held}")
    tensors = OrderedDict((re.sub(r"^(module\.)+", "", name), tensor) for name, tensor in found.items())
    if len(tensors) != len(found):
        raise Refusal(f"{shown(path)} holds some tensors twice, with and without the prefix 'module.'; save it again "
                      "with one of the two")
    return tensors
