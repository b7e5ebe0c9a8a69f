"""An ONNX file: its input, its metadata, and what no program here can use it for."""
import os
import re
from typing import Any, Dict, Sequence

from common import record
from common.cli import Refusal, shown, why

MAKE_IT = "make it with TResNet_pth2onnx.py"
SAFE_NAME = re.compile(r"[A-Za-z0-9_./-]+")  # an input's name with anything else would break atc's --input_shape


def load(path: str) -> Any:
    """The onnx.ModelProto. Raises: Refusal if it cannot be read or is no ONNX file."""
    import onnx  # here: with the model it takes a quarter of a second, and what is up to date does not need it
    from google.protobuf.message import DecodeError
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise Refusal(f"there is no readable ONNX file {shown(path)} ({why(error)}); {MAKE_IT}") from None
    except DecodeError:
        raise Refusal(f"{shown(path)} is no ONNX file, or not whole; {MAKE_IT}") from None


def describe(path: str, batch_sizes: Sequence[int] = ()) -> Dict[str, Any]:
    """{"input": name, "shape": [N, C, H, W], None where a size is free, "metadata": {...}}.

    metadata: what TResNet_pth2onnx.py wrote into the file: variant, num_classes, lineage, img_size, …
    Raises: Refusal if the file has not exactly one NCHW input whose name and sizes, the batch excepted, can be said, or
    if its batch size is fixed and others are wanted (`batch_sizes`).
    """
    found = recorded(path) or read(path)
    shape = found["shape"]
    if shape[0] and batch_sizes and list(batch_sizes) != shape[:1]:
        raise Refusal(f"the batch size of {shown(path)} is fixed to {shape[0]}; give --batch-sizes {shape[0]}, or "
                      "export the model with a free one")
    return found


def recorded(path: str) -> Dict[str, Any]:
    """What the export's record tells of the file as describe() has it, {} if it is not the file that was exported."""
    about = record.read(record.path_of(path)).rows
    files = record.files_of(about)
    own = bool(files) and files[0][0] == os.path.basename(path) and record.holds(path, files)
    return dict(record.notes(path).get("described", {})) if own else {}


def read(path: str) -> Dict[str, Any]:
    """What the file itself tells, as describe() has it."""
    model = load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    found = [f"{shown(value.name)} with {len(value.type.tensor_type.shape.dim)} dimensions" for value in inputs]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise Refusal(f"{shown(path)} must have one input of 4 dimensions (NCHW), but has "
                      f"{', '.join(found) or 'none, so it may be no ONNX file'}; {MAKE_IT}")
    name, shape = inputs[0].name, [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim]
    if None in shape[1:] or not SAFE_NAME.fullmatch(name):
        raise Refusal(f"the input of {shown(path)} is {name!a} of shape {shape}, but all sizes except the batch must "
                      "be fixed, and atc's --input_shape takes only letters, digits, '_', '.', '-' and '/' in its "
                      f"name; {MAKE_IT}")
    return {"input": name, "shape": shape, "metadata": {entry.key: entry.value for entry in model.metadata_props}}
