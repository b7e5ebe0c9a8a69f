"""What the stand-in of atc does with a graph: refusals, where each operator runs, float16 arithmetic, planted faults.

After CANN's operator sources of mid-2022 (ops/built-in: the ONNX plugins, and the kernels listed for ascend310p).
"""

import re
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

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
    "SpaceToDepth",
    "Pad",
    "Cast",
    "Reshape",
}


def values(node: Any) -> Dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def objections(model: Any, highest: int) -> Iterator[Tuple[str, str]]:
    """(code, words) of what CANN's parsers refuse in a model; highest: the last opset that they are written for."""
    import onnx

    opsets = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(model.opset_import) != 1 or not opsets:
        yield (
            "E16005",
            f"The model has [{len(model.opset_import)}] [opset_import] entries; only one is supported.",
        )
        return
    opset = opsets[0].version
    for node in model.graph.node:
        name, found = f"Op [{node.name}, optype [ai.onnx::{opset}::{node.op_type}]]", values(node)
        if not 8 <= opset <= highest or node.op_type not in PLACES:
            yield "E19010", f"No parser is registered for {name}."
            return
        if found.get("auto_pad", b"NOTSET") != b"NOTSET":
            yield (
                "E10001",
                f"Attribute auto_pad of {name} is invalid. Reason: only NOTSET is supported.",
            )
        if node.op_type == "AveragePool":
            kernel, strides = found["kernel_shape"], found.get("strides", [1])
            if kernel[0] * kernel[-1] > 255 or max(strides) > 63:
                yield (
                    "E10001",
                    f"Kernel {kernel} or stride {strides} of {name} is too large for an AI Core.",
                )
        kinds = {attribute.name: attribute.type for attribute in node.attribute}
        if node.op_type == "AscendQuant" and {kinds.get("scale"), kinds.get("offset")} != {
            onnx.AttributeProto.FLOAT
        }:
            yield "E10001", f"Scale and offset of {name} must be of type FLOAT."


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
    """Names of the nodes that --keep_dtype names, one or OpType::Type in a line. Raises: ValueError."""
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
                raise ValueError(f"{line} is no operator of the model")
            if not all(PLACES[node.op_type][2] for node in nodes):
                raise ValueError(f"{line} has no float32 kernel")
            kept.update(node.name for node in nodes)
    return kept


def set_outputs(model: Any, argument: str) -> None:
    """The outputs of --out_nodes: "node:0;node2:0", or names of graph outputs "a;b". Raises: ValueError."""
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
            raise ValueError(f"there is no output {word}")
        if not match and word not in known:
            raise ValueError(f"{word} is no output of the model")
        names.append(nodes[match.group(1)].output[int(match.group(2))] if match else word)
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )


# ---- what it computes ------------------------------------------------------------------------------------------------


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


def compute_in_float16(model: Any, kept: Set[str]) -> None:
    """Round what every operator hands on, as the cores do; `kept` nodes hand on float32."""
    import numpy
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    change_weights(model, half)
    graph.initializer.extend(
        [
            numpy_helper.from_array(numpy.array(value, numpy.float32), name)
            for name, value in (("least", -LARGEST), ("most", LARGEST))
        ]
    )
    nodes: List[Any] = []

    def to_half(source: str, target: str) -> None:
        nodes.extend(
            [
                helper.make_node("Clip", [source, "least", "most"], [target + ".clipped"]),
                helper.make_node(
                    "Cast", [target + ".clipped"], [target + ".half"], to=TensorProto.FLOAT16
                ),
                helper.make_node(
                    "Concat", [target + ".half"], [target + ".copy"], axis=0
                ),  # see common/float16
                helper.make_node("Cast", [target + ".copy"], [target], to=TensorProto.FLOAT),
            ]
        )

    weights = {tensor.name for tensor in graph.initializer}
    wide = {value.name for value in graph.input if value.name not in weights}
    whole = {
        node.output[0] for node in graph.node if node.op_type == "AscendQuant"
    }  # int8, and int32 sums of it
    for node in list(graph.node):
        for place, name in enumerate(node.input):
            if name in wide and node.name not in kept:
                to_half(name, f"{node.name}.input{place}")
                node.input[place] = f"{node.name}.input{place}"
        target = node.output[0]
        nodes.append(node)
        if node.name in kept:
            wide.add(target)
            continue
        if node.op_type in EXACT or node.input[0] in whole:
            continue
        node.output[0] = target + ".sum"
        if node.op_type == "LeakyRelu":
            slope = next(attribute for attribute in node.attribute if attribute.name == "alpha")
            slope.f = float(half(numpy.float32(slope.f)))
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3:
            bias = node.input.pop()
            to_half(target + ".sum", target + ".rounded")
            if node.op_type == "Conv":
                array = numpy_helper.to_array(next(t for t in graph.initializer if t.name == bias))
                graph.initializer.append(
                    numpy_helper.from_array(array.reshape(-1, 1, 1), bias + ".column")
                )
                bias += ".column"
            nodes.append(helper.make_node("Add", [target + ".rounded", bias], [target + ".biased"]))
            to_half(target + ".biased", target)
        else:
            to_half(target + ".sum", target)
    del graph.node[:]
    graph.node.extend(nodes)


def lower_quantised(model: Any) -> None:
    """Make AscendQuant and AscendDequant nodes that ONNX Runtime can run, with the int8 weights between them."""
    import numpy
    from onnx import helper, numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: List[Any] = []

    def constant(name: str, array: Any) -> str:
        model.graph.initializer.append(
            numpy_helper.from_array(numpy.asarray(array, numpy.float32), name)
        )
        return name

    for node in model.graph.node:
        name = node.output[0]
        if node.op_type == "AscendQuant":
            found = values(node)
            scale, offset = (
                constant(f"{name}.{word}", found[word]) for word in ("scale", "offset")
            )
            low, high = constant(name + ".low", -128), constant(name + ".high", 127)
            nodes += [
                helper.make_node("Mul", [node.input[0], scale], [name + ".scaled"]),
                helper.make_node("Add", [name + ".scaled", offset], [name + ".moved"]),
                helper.make_node("Round", [name + ".moved"], [name + ".whole"]),
                helper.make_node("Clip", [name + ".whole", low, high], [name], name=node.name),
            ]
        elif node.op_type == "AscendDequant":
            raw = numpy_helper.to_array(weights[node.input[1]])
            if raw.dtype != numpy.uint64:
                raise ValueError(f"the scale of {node.name} must be UINT64")
            steps = (raw & 0xFFFFFFFF).astype(numpy.uint32).view(numpy.float32)
            scale = constant(name + ".scale", steps.reshape((-1, 1, 1) if len(steps) > 1 else (1,)))
            nodes.append(helper.make_node("Mul", [node.input[0], scale], [name], name=node.name))
        else:
            nodes.append(node)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype in (numpy.int8, numpy.int32):
            tensor.CopyFrom(numpy_helper.from_array(array.astype(numpy.float32), tensor.name))
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)


# ---- faults that a test plants ---------------------------------------------------------------------------------------


def plant(model: Any, kind: str, name: str, kept: Set[str], high_precision: bool) -> None:
    """Break the node of that name, as a bad kernel or a bad conversion would; `kept` float32 kernels are sound."""
    import numpy
    from onnx import helper, numpy_helper

    graph = model.graph
    node = next((node for node in graph.node if node.name == name), None)
    if node is None or name in kept:  # exported in another way, the model has no such node
        return
    index, target = list(graph.node).index(node), node.output[0]

    def constant(word: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(numpy.asarray(value), f"{name}.{word}"))
        return f"{name}.{word}"

    def behind(*rows: Tuple[str, List[str], Dict[str, Any]]) -> None:
        """Put a chain of operators between the node and those that read it."""
        source = node.output[0] = f"{target}.0"
        for place, (operator, inputs, options) in enumerate(rows, start=1):
            result = target if place == len(rows) else f"{target}.{place}"
            graph.node.insert(
                index + place, helper.make_node(operator, [source, *inputs], [result], **options)
            )
            source = result

    if kind == "slope":
        next(attribute for attribute in node.attribute if attribute.name == "alpha").f *= 10
    elif kind == "zero-padding":  # of what is put in front
        behind(("Mul", [constant("zero", numpy.float32(0))], {}))
    elif kind == "sigmoid" and not high_precision:  # 1/2 + x/4 - x^3/48 + x^5/480, cut at 0 and 1
        x, word = node.input[0], name + ".poly"
        chain = [
            ("Mul", x, x),
            ("Mul", f"{word}0", constant("c5", numpy.float32(1 / 480))),
            ("Add", f"{word}1", constant("c3", numpy.float32(-1 / 48))),
            ("Mul", f"{word}2", f"{word}0"),
            ("Add", f"{word}3", constant("c1", numpy.float32(1 / 4))),
            ("Mul", f"{word}4", x),
            ("Add", f"{word}5", constant("c0", numpy.float32(1 / 2))),
        ]
        for place, (operator, *inputs) in enumerate(chain):
            graph.node.insert(index + place, helper.make_node(operator, inputs, [f"{word}{place}"]))
        index += len(chain)
        node.op_type, node.input[0] = "Identity", f"{word}6"
        behind(
            ("Clip", [constant("low", numpy.float32(0)), constant("high", numpy.float32(1))], {})
        )
    elif kind == "overflow":  # a kernel that multiplies by 2^17 on its way
        behind(
            ("Mul", [constant("up", numpy.float32(2**17))], {}),
            (
                "Clip",
                [
                    constant("low", numpy.float32(-LARGEST)),
                    constant("high", numpy.float32(LARGEST)),
                ],
                {},
            ),
            ("Mul", [constant("down", numpy.float32(2**-17))], {}),
        )
    elif kind == "channels" and node.op_type == "SpaceToDepth":  # colour, place → place, colour
        order = numpy.arange(48).reshape(16, 3).T.reshape(-1).astype(numpy.int64)
        behind(("Gather", [constant("order", order)], {"axis": 1}))
    elif kind == "weight":
        change_weights(model, lambda weights: in_steps(weights, 127), node.input[1])
