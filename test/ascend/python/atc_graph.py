"""What the stand-in of atc does with a graph: refusals, float16 arithmetic, planted faults.

Source: CANN's operators of mid-2022 (ops/built-in: the ONNX plugins, and the kernels listed for
ascend310p).
"""

import re
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

from atc_errors import refuses

LARGEST = 65504.0  # of float16
# {ONNX operator: (CANN's, where it runs, whether its kernel also takes float32)}
PLACES = {
    "Conv": ("Conv2D", "AI Core", False),
    "LeakyRelu": ("LeakyRelu", "AI Core", True),
    "Relu": ("Relu", "AI Core", True),
    "Add": ("Add", "AI Core", True),
    "Mul": ("Mul", "AI Core", True),
    "Sigmoid": ("Sigmoid", "AI Core", True),
    "GlobalAveragePool": ("AvgPool", "AI Core", True),
    "GlobalMaxPool": ("MaxPool", "AI Core", False),
    "AveragePool": ("AvgPoolV2", "AI Core", False),
    "SpaceToDepth": ("SpaceToDepth", "AI Core, NHWC", False),
    "Pad": ("PadV3", "AI Core, ND", False),
    "Slice": ("StridedSliceV2", "AI Core", False),
    "Concat": ("ConcatD", "AI Core", False),
    "Flatten": ("Flatten", "AI Core", False),
    "Gemm": ("MatMulV2", "AI Core", False),
    "MatMul": ("MatMulV2", "AI Core", False),
    "Cast": ("Cast", "AI Core", True),
    "AscendQuant": ("AscendQuant", "AI Core", False),
    "AscendDequant": ("AscendDequant", "AI Core", False),
    "Reshape": ("Reshape", "AI Core", True),
}
EXACT = {
    "AscendQuant",
    "Relu",
    "Slice",
    "Concat",
    "Flatten",
    "GlobalMaxPool",
    "SpaceToDepth",
    "Pad",
    "Cast",
    "Reshape",
}


def values(node: Any) -> Dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def objections(model: Any, highest: int) -> Iterator[Tuple[str, ...]]:
    """(kind of atc_errors.TABLE, its values) of what CANN's parsers refuse in a model.

    highest: the last opset that they are written for.
    """
    opsets = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(model.opset_import) != 1 and refuses("opsets"):
        yield "opsets", str(len(model.opset_import))
    opset = opsets[0].version if opsets else 0
    seen: Set[str] = set()
    for node in model.graph.node:
        kind, found = f"ai.onnx::{opset}::{node.op_type}", values(node)
        if node.name and node.name in seen:
            yield "names", node.name
        seen.add(node.name)
        if not 8 <= opset <= highest or node.op_type not in PLACES:
            yield "operator", node.name, kind
        if node.op_type == "Concat" and "axis" not in found and refuses("axis"):
            yield "axis", node.name
        if found.get("auto_pad", b"NOTSET") != b"NOTSET":
            yield "value", "auto_pad", node.name, "only NOTSET is supported."


def reason_beyond(model: Any) -> str:
    """Why this stand-in refuses a model that the real atc takes, "" if it does not refuse it."""
    import onnx

    for node in model.graph.node:
        found = values(node)
        if node.op_type == "AveragePool":
            kernel, strides = found["kernel_shape"], found.get("strides", [1])
            if kernel[0] * kernel[-1] > 255 or max(strides) > 63:
                return (
                    f"Kernel {kernel} or stride {strides} of {node.name} is too large for an AI "
                    "Core, so the host's CPU would do it"
                )
        kinds = {attribute.name: attribute.type for attribute in node.attribute}
        if node.op_type == "AscendQuant" and {kinds.get("scale"), kinds.get("offset")} != {
            onnx.AttributeProto.FLOAT
        }:
            return f"Scale and offset of {node.name} must be of type FLOAT, others are ignored"
    if not any(node.op_type.startswith("Ascend") for node in model.graph.node):
        try:  # onnx does not know the operators called Ascend…
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError as error:
            return f"the model is not valid ONNX: {' '.join(str(error).split())[:200]}"
    return ""


def places(model: Any) -> Iterator[str]:
    """A line for each operator: where it runs, and what is put before or behind it."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        kind, where, _ = PLACES[node.op_type]
        found, notes = values(node), []
        if node.op_type == "Conv" and found.get("group", 1) > 1 and shapes[node.input[1]][1] == 1:
            kind = "DepthwiseConv2D"
        if node.op_type == "AveragePool" and not found.get("count_include_pad", 0):
            notes.append("Mul by a constant behind it")
        if node.op_type in ("SpaceToDepth", "Pad"):
            notes.append("TransData before and behind it")
        yield f"[PLACE] {node.name or node.output[0]}: {kind}, {where}" + "".join(
            f", {note}" for note in notes
        )


def read_keep_dtype(path: str, model: Any) -> Set[str]:
    """Names of the nodes that --keep_dtype names, one or OpType::Type in a line. Raises:
    ValueError.
    """
    kept: Set[str] = set()
    with open(path, encoding="utf-8") as file:
        for line in filter(None, map(str.strip, file)):
            kind = re.fullmatch(r"OpType::(\w+)", line)
            nodes = [
                node
                for node in model.graph.node
                if (PLACES[node.op_type][0] == kind.group(1) if kind else node.name == line)
            ]
            if not nodes:
                raise ValueError(f"{line} is not an operator of the model")
            if not all(PLACES[node.op_type][2] for node in nodes):
                raise ValueError(f"{line} has no float32 kernel")
            kept.update(node.name for node in nodes)
    return kept


def set_outputs(model: Any, argument: str) -> None:
    """The outputs of --out_nodes: "node:0;node2:0", or names of graph outputs "a;b".

    Raises: LookupError for a name that is not in the model; ValueError.
    """
    from onnx import TensorProto, helper

    words = list(filter(None, argument.split(";")))
    by_node = [re.fullmatch(r"(.+):(\d+)", word) for word in words]
    if any(by_node) and not all(by_node):
        raise ValueError("nodes and outputs are mixed")
    nodes = {node.name: node for node in model.graph.node}
    known = {value.name for value in model.graph.output}
    names = []
    for word, match in zip(words, by_node):
        if match and (
            match.group(1) not in nodes or int(match.group(2)) >= len(nodes[match.group(1)].output)
        ):
            raise LookupError(word)
        if not match and word not in known:
            raise LookupError(word)
        names.append(nodes[match.group(1)].output[int(match.group(2))] if match else word)
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )


# ---- what it computes ----------------------------------------------------------------------------


def half(array: Any) -> Any:
    import numpy

    return numpy.clip(array, -LARGEST, LARGEST).astype(numpy.float16).astype(numpy.float32)


def in_steps(weights: Any, steps: int) -> Any:
    """Round to so many steps from 0 to the largest magnitude."""
    import numpy

    step = float(numpy.abs(weights).max()) / steps or 1.0
    return (numpy.round(weights / step) * step).astype(numpy.float32)


def change_weights(model: Any, change: Callable[[Any], Any], name: str = "") -> None:
    """Change the float32 weights, or only those of this name."""
    import numpy
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        if weights.dtype == numpy.float32 and weights.size and name in ("", tensor.name):
            tensor.CopyFrom(numpy_helper.from_array(change(weights), tensor.name))


def rounded_to_half(source: str, target: str) -> List[Any]:
    """Nodes that round a tensor to float16, within its range, and hand it on as float32."""
    from onnx import TensorProto, helper

    clipped, narrow, copy = (f"{target}.{word}" for word in ("clipped", "half", "copy"))
    return [
        helper.make_node("Clip", [source, "least", "most"], [clipped]),
        helper.make_node("Cast", [clipped], [narrow], to=TensorProto.FLOAT16),
        helper.make_node("Concat", [narrow], [copy], axis=0),  # see common/model/float16
        helper.make_node("Cast", [copy], [target], to=TensorProto.FLOAT),
    ]


def add_constant(graph: Any, name: str, value: Any) -> str:
    """Add a float32 constant; its name."""
    import numpy
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(numpy.asarray(value, numpy.float32), name))
    return name


def with_half_result(graph: Any, node: Any) -> List[Any]:
    """The node and those after it that round its sum to float16, and again after the bias."""
    import numpy
    from onnx import helper, numpy_helper

    target = node.output[0]
    node.output[0] = target + ".sum"
    if node.op_type == "LeakyRelu":
        slope = next(attribute for attribute in node.attribute if attribute.name == "alpha")
        slope.f = float(half(numpy.float32(slope.f)))
    if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
        return [node, *rounded_to_half(target + ".sum", target)]
    bias = node.input.pop()
    if node.op_type == "Conv":
        array = numpy_helper.to_array(next(t for t in graph.initializer if t.name == bias))
        bias = add_constant(graph, bias + ".column", array.reshape(-1, 1, 1))
    biased = helper.make_node("Add", [target + ".rounded", bias], [target + ".biased"])
    rounded = rounded_to_half(target + ".sum", target + ".rounded")
    return [node, *rounded, biased, *rounded_to_half(target + ".biased", target)]


def compute_in_float16(model: Any, kept: Set[str]) -> None:
    """Round the result of every operator, as the cores do, but not those of `kept` nodes."""
    graph = model.graph
    change_weights(model, half)
    add_constant(graph, "least", -LARGEST)
    add_constant(graph, "most", LARGEST)
    weights = {tensor.name for tensor in graph.initializer}
    wide = {value.name for value in graph.input if value.name not in weights}
    # int8, and int32 sums of it
    integers = {node.output[0] for node in graph.node if node.op_type == "AscendQuant"}
    nodes: List[Any] = []
    for node in list(graph.node):
        for place, name in enumerate(node.input):
            if name in wide and node.name not in kept:
                narrow = f"{node.name}.input{place}"
                nodes += rounded_to_half(name, narrow)
                node.input[place] = narrow
        if node.name in kept:
            wide.add(node.output[0])
            nodes.append(node)
        elif node.op_type in EXACT or node.input[0] in integers:
            nodes.append(node)
        else:
            nodes += with_half_result(graph, node)
    del graph.node[:]
    graph.node.extend(nodes)


def runnable_quant(graph: Any, node: Any) -> List[Any]:
    """Nodes for ONNX Runtime that do what an AscendQuant does."""
    from onnx import helper

    name, settings = node.output[0], values(node)
    scale = add_constant(graph, name + ".scale", settings["scale"])
    offset = add_constant(graph, name + ".offset", settings["offset"])
    low, high = add_constant(graph, name + ".low", -128), add_constant(graph, name + ".high", 127)
    return [
        helper.make_node("Mul", [node.input[0], scale], [name + ".scaled"]),
        helper.make_node("Add", [name + ".scaled", offset], [name + ".moved"]),
        helper.make_node("Round", [name + ".moved"], [name + ".rounded"]),
        helper.make_node("Clip", [name + ".rounded", low, high], [name], name=node.name),
    ]


def runnable_dequant(graph: Any, node: Any) -> Any:
    """A node for ONNX Runtime that does what an AscendDequant does."""
    import numpy
    from onnx import helper, numpy_helper

    name = node.output[0]
    raw = numpy_helper.to_array(next(t for t in graph.initializer if t.name == node.input[1]))
    if raw.dtype != numpy.uint64:
        raise ValueError(f"the scale of {node.name} must be UINT64")
    steps = (raw & 0xFFFFFFFF).astype(numpy.uint32).view(numpy.float32)
    shape = (-1, 1, 1) if len(steps) > 1 else (1,)
    scale = add_constant(graph, name + ".scale", steps.reshape(shape))
    return helper.make_node("Mul", [node.input[0], scale], [name], name=node.name)


def lower_quantised(model: Any) -> None:
    """Replace AscendQuant and AscendDequant by nodes that ONNX Runtime can run.

    The int8 weights between them become float32.
    """
    import numpy
    from onnx import numpy_helper

    graph = model.graph
    nodes: List[Any] = []
    for node in graph.node:
        if node.op_type == "AscendQuant":
            nodes += runnable_quant(graph, node)
        elif node.op_type == "AscendDequant":
            nodes.append(runnable_dequant(graph, node))
        else:
            nodes.append(node)
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype in (numpy.int8, numpy.int32):
            tensor.CopyFrom(numpy_helper.from_array(array.astype(numpy.float32), tensor.name))
    read: Set[str] = set()
    for node in nodes:
        read.update(node.input)
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


# ---- faults that a test plants -------------------------------------------------------------------


def put_behind(graph: Any, node: Any, *chain: Tuple[str, str], **options: Any) -> None:
    """Put a chain of (operator, second input) between the node and those that read it."""
    from onnx import helper

    index, target = list(graph.node).index(node), node.output[0]
    source = node.output[0] = f"{target}.0"
    for place, (operator, second) in enumerate(chain, start=1):
        result = target if place == len(chain) else f"{target}.{place}"
        behind = helper.make_node(operator, [source, second], [result])
        for word, value in options.items():
            behind.attribute.append(helper.make_attribute(word, value))
        graph.node.insert(index + place, behind)
        source = result


def plant_sigmoid(graph: Any, node: Any) -> None:
    """Compute 1/2 + x/4 - x^3/48 + x^5/480, cut at 0 and 1, in place of a Sigmoid."""
    from onnx import helper

    x, word = node.input[0], node.name + ".poly"
    chain = [
        ("Mul", x, x),
        ("Mul", f"{word}0", add_constant(graph, f"{node.name}.c5", 1 / 480)),
        ("Add", f"{word}1", add_constant(graph, f"{node.name}.c3", -1 / 48)),
        ("Mul", f"{word}2", f"{word}0"),
        ("Add", f"{word}3", add_constant(graph, f"{node.name}.c1", 1 / 4)),
        ("Mul", f"{word}4", x),
        ("Add", f"{word}5", add_constant(graph, f"{node.name}.c0", 1 / 2)),
    ]
    index = list(graph.node).index(node)
    for place, (operator, *inputs) in enumerate(chain):
        graph.node.insert(index + place, helper.make_node(operator, inputs, [f"{word}{place}"]))
    node.op_type, node.input[0] = "Identity", f"{word}6"
    low = add_constant(graph, f"{node.name}.low", 0)
    high = add_constant(graph, f"{node.name}.high", 1)
    put_behind(graph, node, ("Max", low), ("Min", high))


def plant_overflow(graph: Any, node: Any) -> None:
    """A kernel that multiplies by 2^17 on its way."""
    up = add_constant(graph, f"{node.name}.up", 2**17)
    low = add_constant(graph, f"{node.name}.low", -LARGEST)
    high = add_constant(graph, f"{node.name}.high", LARGEST)
    down = add_constant(graph, f"{node.name}.down", 2**-17)
    put_behind(graph, node, ("Mul", up), ("Max", low), ("Min", high), ("Mul", down))


def plant(model: Any, kind: str, name: str, kept: Set[str], high_precision: bool) -> None:
    """Break the node of that name, as a bad kernel or a bad conversion would.

    The float32 kernels of `kept` nodes are sound.
    """
    import numpy
    from onnx import numpy_helper

    graph = model.graph
    node = next((node for node in graph.node if node.name == name), None)
    if node is None or name in kept:  # a model that was exported in another way has no such node
        return
    if kind == "slope":
        next(attribute for attribute in node.attribute if attribute.name == "alpha").f *= 10
    elif kind == "zero-padding":  # of what is put in front
        put_behind(graph, node, ("Mul", add_constant(graph, f"{name}.zero", 0)))
    elif kind == "sigmoid" and not high_precision:
        plant_sigmoid(graph, node)
    elif kind == "overflow":
        plant_overflow(graph, node)
    elif kind == "channels" and node.op_type == "SpaceToDepth":  # colour, place → place, colour
        order = numpy.arange(48).reshape(16, 3).T.reshape(-1).astype(numpy.int64)
        graph.initializer.append(numpy_helper.from_array(order, f"{name}.order"))
        put_behind(graph, node, ("Gather", f"{name}.order"), axis=1)
    elif kind == "weight":
        change_weights(model, lambda weights: in_steps(weights, 127), node.input[1])
