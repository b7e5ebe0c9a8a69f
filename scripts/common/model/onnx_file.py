"""An ONNX file: its input, its metadata, its further files; files of no use here are refused."""

import os
import re
from typing import Any, Dict, Iterator, List, Sequence

from common.core import files, record
from common.core.cli import Refusal, shown, why

Description = Dict[str, Any]  # what describe() returns; the export's record has the same as JSON

LARGEST = 1 << 31  # bytes; the weights of a larger model are in other files
MAKE_IT = "make it with TResNet_pth2onnx.py"
# An input's name with any other character would break atc's --input_shape.
SAFE_NAME = re.compile(r"[A-Za-z0-9_./-]+")


def load(path: str, external_data: bool = True) -> Any:
    """The onnx.ModelProto of a file.

    external_data: also load the weights that are in files beside it.
    Raises: Refusal if it cannot be read or is not an ONNX file.
    """
    import onnx  # here: it takes a quarter of a second, and an up-to-date product does not need it
    from google.protobuf.message import DecodeError

    try:
        os.stat(path)  # an absent file gets the message that says how to make it
        model = onnx.load_model_from_string(files.read_regular(path, largest=LARGEST))
        for text in texts_of(model):
            if isinstance(text, bytes):  # protobuf leaves what is not UTF-8 as it is
                raise ValueError(f"{text[:50]!a} in it is not UTF-8")
        domains = [entry.domain or "ai.onnx" for entry in model.opset_import]
        if len(set(domains)) < len(domains):  # programs would take different ones; atc: E16005
            raise ValueError("it imports the operators of one domain twice")
        if external_data:
            onnx.load_external_data_for_model(model, os.path.dirname(os.path.abspath(path)))
        return model
    except OSError as error:
        raise Refusal(
            f"cannot read the ONNX file {shown(path)} ({why(error)}); {MAKE_IT}"
        ) from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = "" if isinstance(error, DecodeError) else f" ({why(error)})"
        raise Refusal(
            f"{shown(path)} is not an ONNX file, or it is damaged{reason}; {MAKE_IT}"
        ) from None


def texts_of(model: Any) -> Iterator[Any]:
    """The names, keys and values in an onnx.ModelProto that programs use as texts."""
    for value in (*model.graph.input, *model.graph.output):
        yield value.name
    for node in model.graph.node:
        yield from (node.name, node.op_type, *node.input, *node.output)
    pairs = list(model.metadata_props)
    for tensor in model.graph.initializer:
        yield tensor.name
        pairs += tensor.external_data
    for pair in pairs:
        yield from (pair.key, pair.value)


def all_files(path: str) -> List[str]:
    """The ONNX file, and the files beside it with weights of it.

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
                f"{shown(path)} has weights in {shown(name)}, outside its folder; put them beside "
                "it"
            )
    return [path, *(os.path.join(folder, name) for name in sorted(names))]


def describe(path: str, batch_sizes: Sequence[int] = ()) -> Description:
    """What an ONNX file takes, and what it says about itself.

    batch_sizes: those that are wanted.
    Returns {"input": name, "shape": [N, C, H, W], "metadata": {key: text}}.
    shape: None stands for a size that is not fixed.
    metadata: from TResNet_pth2onnx.py: variant, num_classes, lineage, …
    Raises: Refusal if the file has not exactly one NCHW input with a safe name and fixed sizes (the
    batch excepted), or if its batch size is fixed and others are wanted.
    """
    described = recorded(path) or read(path)
    fixed = described["shape"][0]
    if fixed and batch_sizes and list(batch_sizes) != [fixed]:
        raise Refusal(
            f"the batch size of {shown(path)} is fixed to {fixed}; give --batch-sizes {fixed}, or "
            "export the model without --batch-size"
        )
    return described


def recorded(path: str) -> Description:
    """The description in the export's record; {} if this is not the file that was exported."""
    about = record.read(path)
    made = about.made.get(os.path.basename(path))
    described = about.notes.get("described")
    if not made or not isinstance(described, dict) or not about.is_intact(made):
        return {}
    texts = {key: value for key, value in about.notes.items() if isinstance(value, str)}
    return dict(described, metadata=texts)


def read(path: str) -> Description:
    """The description from the file itself."""
    return description(load(path, external_data=False), path)


def description(model: Any, path: str) -> Description:
    """What describe() returns, of an onnx.ModelProto; path: what messages call it."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if [len(value.type.tensor_type.shape.dim) for value in inputs] != [4]:
        listed = ", ".join(
            f"{shown(value.name)} with {len(value.type.tensor_type.shape.dim)} dimensions"
            for value in inputs
        )
        raise Refusal(
            f"{shown(path)} must have one input of 4 dimensions (NCHW), but has "
            f"{listed or 'none, so it may not be an ONNX file'}; {MAKE_IT}"
        )
    name = inputs[0].name
    sides = [side.dim_value for side in inputs[0].type.tensor_type.shape.dim]
    shape = [side if side > 0 else None for side in sides]  # some programs write -1 for open
    if None in shape[1:]:
        raise Refusal(
            f"the input {shown(name)} of {shown(path)} has the shape {shape}, but all sizes except "
            f"the batch must be fixed; {MAKE_IT}"
        )
    if not SAFE_NAME.fullmatch(name):
        raise Refusal(
            f"the input of {shown(path)} is called {name!a}, but atc's --input_shape takes only "
            f"letters, digits, '_', '.', '-' and '/'; {MAKE_IT}"
        )
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    return {"input": name, "shape": shape, "metadata": metadata}
