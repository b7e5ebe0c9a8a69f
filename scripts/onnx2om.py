#!/usr/bin/env python3
"""What onnx2om.sh computes or parses; bash starts atc.

    python3 scripts/onnx2om.py describe tresnet_m.onnx       # one line: input name, then its shape with N for the batch
    python3 scripts/onnx2om.py is-fresh tresnet_m_bs1.om tresnet_m.onnx -- atc --framework=5 ...
    python3 scripts/onnx2om.py record   tresnet_m_bs1.om tresnet_m.onnx -- atc --framework=5 ...
    python3 scripts/onnx2om.py explain  tresnet_m_bs1.atc.log

`record` writes tresnet_m_bs1.om.json: the command, the size and time of the ONNX file, of the .om and of atc, and the
SHA-256 of every file that the command names besides (AIPP settings). `is-fresh` answers by its exit status: 0 if the
.om is newer than the ONNX file and all of that is still so. Both print the size of the .om.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from typing import Any, Dict, List

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from TResNet_preprocess import VERSION, write_whole  # noqa: E402

NOT_FRESH = 1  # exit status of is-fresh
SAFE_NAME = re.compile(r"[A-Za-z0-9_./-]+")  # an input's name with anything else would break atc's --input_shape


def describe_onnx(path: str) -> Dict[str, Any]:
    """What the other steps want to know of an ONNX file: its only input, its outputs, its metadata.

    Returns {"input": name, "shape": [N, C, H, W], None where a size is free, "dtype": "float32", "metadata": {...}}.
    Raises: SystemExit with one sentence if it cannot be read or has not exactly one NCHW input.
    """
    try:
        import onnx
    except ImportError:
        raise SystemExit(f"onnx2om.py: {sys.executable} has no package onnx; run `bash scripts/pipeline.sh` once (it "
                         "sets up .venv), or name a Python that has it: TRESNET_PYTHON=/path/to/python3") from None
    from google.protobuf.message import DecodeError
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise SystemExit(f"onnx2om.py: {path!a} cannot be read ({error.strerror}); make it with "
                         "TResNet_pth2onnx.py") from None
    except DecodeError:
        raise SystemExit(f"onnx2om.py: {path!a} is no ONNX file, or not whole; make it with "
                         "TResNet_pth2onnx.py") from None
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    found = [f"{value.name!a} with {len(value.type.tensor_type.shape.dim)} dimensions" for value in inputs]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise SystemExit(f"onnx2om.py: {path!a} must have one input of 4 dimensions (NCHW), but has "
                         f"{', '.join(found) or 'none, so it may be no ONNX file'}; make it with TResNet_pth2onnx.py")
    tensor = inputs[0].type.tensor_type
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return {"input": inputs[0].name,
            "shape": [dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim],
            "dtype": "float32" if dtype == "float" else dtype,
            "metadata": {entry.key: entry.value for entry in model.metadata_props}}


def shape_words(path: str) -> str:
    """ "image N,3,224,224" for a model whose batch is free, "image 8,3,224,224" for one that is fixed to 8.

    Raises: SystemExit if the sizes other than the batch are free, or the name cannot be said to atc.
    """
    model = describe_onnx(path)
    batch, rest = model["shape"][0], model["shape"][1:]
    if None in rest:
        raise SystemExit(f"onnx2om.py: the input of {path!a} has the shape {model['shape']}, but all sizes except the "
                         "batch must be fixed; export it anew with TResNet_pth2onnx.py")
    if not SAFE_NAME.fullmatch(model["input"]):
        raise SystemExit(f"onnx2om.py: the input of {path!a} is named {model['input']!a}, but atc's --input_shape "
                         "takes only letters, digits, '_', '.', '-' and '/'; export it anew with TResNet_pth2onnx.py")
    return f"{model['input']} {batch or 'N'},{','.join(str(size) for size in rest)}"


def size_words(path: str) -> str:
    """The size of a file, to read: "57.9 MB"."""
    size = os.path.getsize(path)
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} KB"


def file_state(path: str) -> Dict[str, Any]:
    """Size in bytes and time of change in ns: enough to see that a large file is another one."""
    state = os.stat(path)
    return {"path": os.path.realpath(path), "size": state.st_size, "mtime_ns": state.st_mtime_ns}


def describe_compilation(om: str, onnx_file: str, command: List[str]) -> Dict[str, Any]:
    """All that an .om depends on, and its own state, as they are now."""
    settings = {}
    for word in command[1:]:
        value = word.partition("=")[2]
        if value and os.path.isfile(value) and not os.path.samefile(value, onnx_file):
            with open(value, "rb") as file:
                settings[value] = hashlib.sha256(file.read()).hexdigest()
    atc = shutil.which(command[0])
    return {"tool": "onnx2om.sh", "version": VERSION, "command": command, "onnx": file_state(onnx_file),
            "atc": file_state(atc) if atc else None, "settings": settings, "om": file_state(om)}


def is_fresh(om: str, onnx_file: str, command: List[str]) -> bool:
    """Whether `om` is what `command` would make of `onnx_file` again."""
    try:
        with open(om + ".json", encoding="utf-8") as file:
            recorded = json.load(file)
        now = describe_compilation(om, onnx_file, command)
    except (OSError, ValueError):
        return False
    return recorded == now and now["om"]["mtime_ns"] >= now["onnx"]["mtime_ns"]


def explain(log: str) -> str:
    """The lines of atc's output with an E code (E10001, EZ9999, EC0010, ...), each once, with what belongs to it."""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = [line.rstrip() for line in file]
    shown: List[str] = []
    for number, line in enumerate(lines):
        if re.search(r"\bE[A-Z]?\d{4,5}\b", line) and not any(earlier in line for earlier in shown):
            shown.append(line)
            if number + 1 < len(lines) and re.match(r"\s+(Solution|Possible Cause|TraceBack)", lines[number + 1]):
                shown.append(lines[number + 1])
    return "\n".join("    " + "".join(c if c.isprintable() else " " for c in line.strip())[:400] for line in shown[:12])


def main() -> None:
    parser = argparse.ArgumentParser(description="Parsing for onnx2om.sh.")
    actions = parser.add_subparsers(dest="action")
    actions.required = True
    actions.add_parser("describe").add_argument("onnx")
    actions.add_parser("explain").add_argument("log")
    for name in ("is-fresh", "record"):
        action = actions.add_parser(name)
        action.add_argument("om")
        action.add_argument("onnx")
        action.add_argument("command", nargs="+", metavar="-- atc ...")
    arguments = parser.parse_args()
    if arguments.action == "describe":
        print(shape_words(arguments.onnx))
    elif arguments.action == "explain":
        print(explain(arguments.log))
    elif arguments.action == "is-fresh":
        if not is_fresh(arguments.om, arguments.onnx, arguments.command):
            sys.exit(NOT_FRESH)
        print(size_words(arguments.om))
    else:
        now = describe_compilation(arguments.om, arguments.onnx, arguments.command)
        write_whole(arguments.om + ".json", (json.dumps(now, indent=1) + "\n").encode())
        print(size_words(arguments.om))


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        raise SystemExit(f"onnx2om.py: {error.filename!a}: {error.strerror}; mend that and start again") from None
    except KeyboardInterrupt:
        sys.exit(130)  # onnx2om.sh says it
