"""The arithmetic of the card's cores, as an ONNX graph that ONNX Runtime computes: float16 results, float32 sums.

Weights, the image and every operator's result are rounded to float16, a convolution's sum and the bias addition behind
it each on its own; what is larger than float16 can hold becomes its largest number, as on the 310P3 (saturation mode).
onnx is imported by what makes the graph: a forecast that is up to date does not need it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Collection, List

import numpy as np

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0  # of float16
EXACT = {
    "Slice",
    "Concat",
    "Flatten",
    "Relu",
    "SpaceToDepth",
    "Pad",
    "MaxPool",
}  # rounded numbers stay rounded ones
BIASED = {"Conv", "Gemm"}  # their third input, if there is one, is a bias
# Operators whose kernels on the 310P3 also take float32: tbe/op_info_cfg/ai_core/ascend310p of CANN's sources (Conv2D,
# DepthwiseConv2D, MatMulV2, AvgPoolV2 take float16 only; the reflect Pad as well).
WITH_FLOAT32 = {"LeakyRelu", "Relu", "Add", "Mul", "Sigmoid", "GlobalAveragePool"}


def add_rounding(nodes: List[onnx.NodeProto], x: str, target: str) -> None:
    """Append nodes that give `target` the float32 values of x, rounded to float16, saturated."""
    from onnx import TensorProto, helper

    nodes.append(helper.make_node("Clip", [x, "float16.lowest", "float16.largest"], [x + "/clip"]))
    nodes.append(helper.make_node("Cast", [x + "/clip"], [x + "/half"], to=TensorProto.FLOAT16))
    # Between the two casts stands a node that copies: ONNX Runtime 1.14 removes a pair of casts, and so the rounding.
    nodes.append(helper.make_node("Concat", [x + "/half"], [x + "/kept"], axis=0))
    nodes.append(helper.make_node("Cast", [x + "/kept"], [target], to=TensorProto.FLOAT))


def rounded(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The model in float16 arithmetic. Its tensors keep their names and are float32 arrays of rounded values.

    kept: names of nodes that compute and hand on float32 (atc's --keep_dtype).
    """
    from onnx import TensorProto, numpy_helper

    changed = copy.deepcopy(model)
    graph, nodes = changed.graph, []  # type: ignore[var-annotated]
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = np.clip(numpy_helper.to_array(tensor), -LARGEST, LARGEST)
            tensor.CopyFrom(
                numpy_helper.from_array(array.astype(np.float16).astype(np.float32), tensor.name)
            )
    weights = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(-LARGEST), "float16.lowest"),
            numpy_helper.from_array(np.float32(LARGEST), "float16.largest"),
            numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "float16.column"),
        ]
    )
    full = {
        value.name for value in graph.input if value.name not in weights
    }  # float32 values, not rounded yet
    halves = {}  # {one of them: its rounded values}
    for node in graph.node:
        keep = node.name in kept
        for place, name in enumerate(node.input):
            if name in full and not keep:
                if name not in halves:
                    halves[name] = name + "/rounded"
                    add_rounding(nodes, name, halves[name])
                node.input[place] = halves[name]
        nodes.append(node)
        if keep:
            full.update(node.output)
        elif node.op_type not in EXACT:
            add_result(nodes, node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def add_result(nodes: List[onnx.NodeProto], node: onnx.NodeProto) -> None:
    """Round the result of the last of `nodes`; a bias becomes an addition of its own, rounded before and after."""
    from onnx import helper

    target = node.output[0]
    node.output[0] = result = target + "/float32"
    for attribute in node.attribute:
        if node.op_type == "LeakyRelu" and attribute.name == "alpha":
            attribute.f = float(np.float16(attribute.f))
    if node.op_type in BIASED and len(node.input) == 3:
        bias = node.input.pop()
        add_rounding(nodes, result, target + "/sum")
        if node.op_type == "Conv":
            nodes.append(helper.make_node("Reshape", [bias, "float16.column"], [target + "/bias"]))
            bias = target + "/bias"
        result = target + "/biased"
        nodes.append(helper.make_node("Add", [target + "/sum", bias], [result]))
    add_rounding(nodes, result, target)
