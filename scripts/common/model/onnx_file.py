"""An ONNX file: its input, its metadata, and what no program here can use it for."""

import os
import re
from typing import Any, Dict, List, Sequence

from common.core import files, record
from common.core.cli import Refusal, shown, why

LARGEST = 1 << 31  # bytes; the weights of a larger model are in other files
MAKE_IT = "make it with TResNet_pth2onnx.py"
SAFE_NAME = re.compile(
    r"[A-Za-z0-9_./-]+"
)  # an input's name with anything else would break atc's --input_shape


def load(path: str, external_data: bool = True) -> Any:
    """The onnx.ModelProto. Raises: Refusal if it cannot be read or is not an ONNX file.

    external_data: load the weights too that lie in files beside it.
    """
    import onnx  # here: with the model it takes a quarter of a second, and what is up to date does not need it
    from google.protobuf.message import DecodeError

    try:
        os.stat(path)  # so that of a file that is not there is told how to make it
        model = onnx.load_model_from_string(files.read_regular(path, largest=LARGEST))
        if external_data:
            onnx.load_external_data_for_model(model, os.path.dirname(os.path.abspath(path)))
        return model
    except OSError as error:
        raise Refusal(
            f"there is no readable ONNX file {shown(path)} ({why(error)}); {MAKE_IT}"
        ) from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = "" if isinstance(error, DecodeError) else f" ({why(error)})"
        raise Refusal(f"{shown(path)} is no ONNX file, or not whole{reason}; {MAKE_IT}") from None


def all_files(path: str) -> List[str]:
    """The ONNX file, and the files beside it in which its weights lie, if there are any.

    Raises: Refusal for one outside the file's folder.
    """
    if recorded(path):  # the export writes one file
        return [path]
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    folder = os.path.dirname(path)
    names = {
        ExternalDataInfo(tensor).location
        for tensor in _get_all_tensors(load(path, external_data=False))
        if uses_external_data(tensor)
    }
    for name in names:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise Refusal(
                f"{shown(path)} has weights in {shown(name)}, outside its folder; put them beside it"
            )
    return [path, *(os.path.join(folder, name) for name in sorted(names))]


def describe(path: str, batch_sizes: Sequence[int] = ()) -> Dict[str, Any]:
    """{"input": name, "shape": [N, C, H, W], None where a size is free, "metadata": {...}}.

    metadata: what TResNet_pth2onnx.py wrote into the file: variant, num_classes, lineage, img_size, …
    Raises: Refusal if the file has not exactly one NCHW input whose name and sizes, the batch excepted, can be said, or
    if its batch size is fixed and others are wanted (`batch_sizes`).
    """
    found = recorded(path) or read(path)
    shape = found["shape"]
    if shape[0] and batch_sizes and list(batch_sizes) != shape[:1]:
        raise Refusal(
            f"the batch size of {shown(path)} is fixed to {shape[0]}; give --batch-sizes {shape[0]}, or "
            "export the model with a free one"
        )
    return found


def recorded(path: str) -> Dict[str, Any]:
    """What the export's record tells of the file as describe() has it, {} if it is not the file that was exported."""
    about = record.read(path)
    made = about.made.get(os.path.basename(path))
    described = about.notes.get("described")
    return dict(described) if made and isinstance(described, dict) and about.same(made) else {}


def read(path: str) -> Dict[str, Any]:
    """What the file itself tells, as describe() has it."""
    return description(load(path, external_data=False), path)


def description(model: Any, path: str) -> Dict[str, Any]:
    """What an onnx.ModelProto tells, as describe() has it; path: what messages call it."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    found = [
        f"{shown(value.name)} with {len(value.type.tensor_type.shape.dim)} dimensions"
        for value in inputs
    ]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise Refusal(
            f"{shown(path)} must have one input of 4 dimensions (NCHW), but has "
            f"{', '.join(found) or 'none, so it may be no ONNX file'}; {MAKE_IT}"
        )
    name, shape = (
        inputs[0].name,
        [dim.dim_value or None for dim in inputs[0].type.tensor_type.shape.dim],
    )
    if None in shape[1:] or not SAFE_NAME.fullmatch(name):
        raise Refusal(
            f"the input of {shown(path)} is {name!a} of shape {shape}, but all sizes except the batch must "
            "be fixed, and atc's --input_shape takes only letters, digits, '_', '.', '-' and '/' in its "
            f"name; {MAKE_IT}"
        )
    return {
        "input": name,
        "shape": shape,
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }
