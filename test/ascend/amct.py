"""Stand-in of AMCT's command `amct_onnx calibration`.

It makes int8 weights, with AscendQuant and AscendDequant around each layer, and is as strict as the
real one about flags, shapes, types and quant.cfg. Activations are quantised symmetrically by the
largest value on the calibration data, weights by output channel. Started by bin/amct_onnx.
"""

import os
import re
import sys
from typing import Any, Dict, List, NamedTuple, NoReturn, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "python"))
from ascend_standin import fault, log_call  # noqa: E402

FLAGS = ("model", "save_path", "input_shape", "data_dir", "data_types", "calibration_config")
OPSETS = range(8, 15)


class Form(NamedTuple):
    """How a deploy model is written."""

    joint: str  # between a layer's name and "quant"
    bits: Tuple[str, Any]  # the attribute of AscendQuant that says how wide a value is
    dequant: Dict[str, Any]  # the attributes of AscendDequant


# onnx: inferred from CANN's operators; amct_onnx itself was not seen. torch: AMCT's open PyTorch
# flavour of 2026 (hicann/amct, optimizer/insert_quant_pass.py and insert_dequant_pass.py).
FORMS = {
    "onnx": Form("_", ("quant_bit", 8), {}),
    "torch": Form(".", ("dst_type", "INT8"), {"dtype": 0}),
}


def fail(text: str) -> NoReturn:
    """End as a Python tool ends: the reason on stderr, exit status 1."""
    print(f"[AMCT]:[ERROR] {text}", file=sys.stderr, flush=True)
    sys.exit(1)


def parse_flags(argv: List[str]) -> Dict[str, str]:
    if not argv or argv[0] != "calibration":
        fail(f"argument command: invalid choice: {argv[:1]} (choose from 'calibration')")
    words, flags = argv[1:], {}
    while words:
        word = words.pop(0)
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or name not in FLAGS:
            fail(f"unrecognized arguments: {word}")
        if not equals:
            if not words:
                fail(f"argument --{name}: expected one argument")
            value = words.pop(0)
        flags[name] = value
    missing = [name for name in FLAGS if name not in flags and name != "calibration_config"]
    if missing:
        fail("the following arguments are required: " + ", ".join("--" + name for name in missing))
    return flags


def parse_config(path: str) -> Tuple[int, List[str]]:
    """(batch_num, skip_layers) of quant.cfg."""
    batch_num, skipped = 1, []
    try:
        with open(path, encoding="utf-8") as file:
            lines = list(filter(None, (line.split("#")[0].strip() for line in file)))
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    for line in lines:
        match = re.fullmatch(
            r'(batch_num\s*:\s*(\d+)|joint_quant\s*:\s*(?:true|false)|skip_layers\s*:\s*"([^"]+)")',
            line,
        )
        if not match:
            fail(f"quant.cfg: cannot parse the line {line!r}")
        if match.group(2):
            batch_num = int(match.group(2))
        if match.group(3):
            skipped.append(match.group(3))
    if batch_num < 1:
        fail("quant.cfg: batch_num must be at least 1")
    return batch_num, skipped


def load_model(path: str) -> Any:
    import onnx

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, checker and file errors have no common class
        fail(f"cannot load {path}: {error}")
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset not in OPSETS:
        fail(f"the opset {opset} is not supported; {OPSETS[0]} to {OPSETS[-1]} are")
    return model


def read_data(flags: Dict[str, str], model: Any, batch_num: int) -> Tuple[str, Any]:
    """(name of the input, float32 [batch_num · batch, …])."""
    import numpy

    match = re.fullmatch(r"([^:;]+):(\d+(?:,\d+)*)", flags["input_shape"])
    if not match:
        fail(f"--input_shape {flags['input_shape']!r}: expected input_name:n,c,h,w")
    weights = {tensor.name for tensor in model.graph.initializer}
    (value,) = [entry for entry in model.graph.input if entry.name not in weights]
    shape = [int(size) for size in match.group(2).split(",")]
    sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if (
        match.group(1) != value.name
        or len(shape) != len(sizes)
        or any(size and size != given for size, given in zip(sizes, shape))
    ):
        fail(
            f"--input_shape {flags['input_shape']!r} does not match the model's "
            f"{value.name}:{sizes}"
        )
    if flags["data_types"] != "float32":
        fail(f"--data_types {flags['data_types']!r} is not the type of the model's inputs")
    if not os.path.isdir(flags["data_dir"]):
        fail(f"--data_dir {flags['data_dir']!r} is not a folder")
    names = sorted(os.listdir(flags["data_dir"]))
    wrong = [
        name
        for name in names
        if not name.endswith(".bin")
        or os.path.getsize(os.path.join(flags["data_dir"], name)) != 4 * int(numpy.prod(shape))
    ]
    if wrong:
        fail(f"{wrong[0]} is not a .bin file of {shape} float32 values")
    if len(names) < batch_num:
        fail(f"batch_num is {batch_num}, but --data_dir holds {len(names)} files")
    arrays = [
        numpy.fromfile(os.path.join(flags["data_dir"], name), numpy.float32).reshape(shape)
        for name in names[:batch_num]
    ]
    return value.name, numpy.concatenate(arrays)


def largest_values(model: Any, tensors: List[str], name: str, data: Any) -> Dict[str, float]:
    """{tensor: largest magnitude} on the calibration data."""
    import numpy
    import onnx
    import onnxruntime

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del copy.graph.output[:]
    computed = [tensor for tensor in tensors if tensor != name]
    copy.graph.output.extend(
        onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)
        for tensor in computed
    )
    found = {name: data}
    if computed:
        session = onnxruntime.InferenceSession(
            copy.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        found.update(zip(computed, session.run(computed, {name: data})))
    return {tensor: float(numpy.abs(array).max()) for tensor, array in found.items()}


def quantise_weights(node: Any, tensors: Dict[str, Any], step: float) -> Any:
    """Make the weights and the bias of a layer integers; the scale of its sums, float32.

    step: of its inputs.
    """
    import numpy
    from onnx import numpy_helper

    weights = numpy_helper.to_array(tensors[node.input[1]])
    axes = tuple(range(1, weights.ndim)) if node.op_type == "Conv" else None
    steps = numpy.abs(weights).max(axis=axes, keepdims=True) / 127
    steps[steps == 0] = 1
    integers = numpy.clip(numpy.round(weights / steps), -128, 127).astype(numpy.int8)
    tensors[node.input[1]].CopyFrom(numpy_helper.from_array(integers, node.input[1]))
    scales = (steps.reshape(-1) * step).astype(numpy.float32)
    if len(node.input) > 2:
        bias = numpy_helper.to_array(tensors[node.input[2]])
        integers = numpy.round(bias / scales.astype(numpy.float64)).astype(numpy.int32)
        tensors[node.input[2]].CopyFrom(numpy_helper.from_array(integers, node.input[2]))
    return scales


def quantise(model: Any, names: List[str], largest: Dict[str, float]) -> None:
    """Put AscendQuant before and AscendDequant behind each layer, and int8 weights into it."""
    import numpy
    from onnx import helper, numpy_helper

    graph, nodes = model.graph, []
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        source, target = node.input[0], node.output[0]
        step = (largest[source] or 1.0) / 127
        scales = quantise_weights(node, tensors, step).view(numpy.uint32).astype(numpy.uint64)
        form = FORMS[os.environ.get("STANDIN_AMCT", "onnx")]
        quantised = f"{node.name}{form.joint}quant.output0"
        scale = f"{node.name}{form.joint}dequant.param"
        graph.initializer.append(numpy_helper.from_array(scales, scale))
        node.input[0], node.output[0] = quantised, target + "_int32"
        before = helper.make_node(
            "AscendQuant", [source], [quantised], name=f"{node.name}{form.joint}quant"
        )
        for word, value in (("scale", 1 / step), ("offset", 0.0), form.bits):
            before.attribute.append(helper.make_attribute(word, value))
        after = helper.make_node(
            "AscendDequant",
            [target + "_int32", scale],
            [target],
            name=f"{node.name}{form.joint}dequant",
            **form.dequant,
        )
        nodes += [before, node, after]
    del graph.node[:]
    graph.node.extend(nodes)


def main() -> None:
    log_call("amct_onnx", ["amct_onnx"] + sys.argv[1:])
    flags = parse_flags(sys.argv[1:])
    import onnx

    model = load_model(flags["model"])
    batch_num, skipped = (
        parse_config(flags["calibration_config"]) if "calibration_config" in flags else (1, [])
    )
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    able = [
        node.name
        for node in model.graph.node
        if node.op_type == "Gemm" or node.op_type == "Conv" and shapes[node.input[1]][1] > 1
    ]
    for name in skipped:
        if name not in [node.name for node in model.graph.node]:
            fail(f"quant.cfg: the layer {name} of skip_layers is not in the model")
    name, data = read_data(flags, model, batch_num)
    if fault("amct-fail"):
        fail("calibration failed, the data overflow")
    layers = [layer for layer in able if layer not in skipped]
    nodes = {node.name: node for node in model.graph.node}
    largest = largest_values(model, sorted({nodes[layer].input[0] for layer in layers}), name, data)
    folder = os.path.dirname(os.path.abspath(flags["save_path"]))
    os.makedirs(folder, exist_ok=True)
    onnx.save(
        model, flags["save_path"] + "_fake_quant_model.onnx"
    )  # the stand-in's is float: nobody reads it
    quantise(model, layers, largest)
    onnx.save(model, flags["save_path"] + "_deploy_model.onnx")
    print("[AMCT]:[INFO] calibration finished")


if __name__ == "__main__":
    main()
