"""The arithmetic of the card's cores as an ONNX graph: float16 results, float32 sums.

Weights, the image and every operator's result are rounded to float16. A convolution's sum and the
bias addition behind it are rounded separately. A value that is too large for float16 becomes its
largest number, as on the 310P3 (saturation mode).
The functions import onnx themselves: an up-to-date forecast does not need it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Collection, Dict, List

from common.core.cli import Refusal

import numpy as np

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0  # of float16
# Operators that make rounded numbers of rounded numbers.
EXACT = {"Slice", "Concat", "Flatten", "Relu", "SpaceToDepth", "Pad", "MaxPool", "GlobalMaxPool"}
INT8 = {"QuantizeLinear", "DequantizeLinear", "AscendQuant", "AscendDequant"}
BIASED = {"Conv", "Gemm"}  # their third input, if there is one, is a bias
# Operators whose kernels on the 310P3 also take float32. Source: CANN's sources,
# tbe/op_info_cfg/ai_core/ascend310p (Conv2D, DepthwiseConv2D, MatMulV2, AvgPoolV2 and the reflect
# Pad take float16 only).
WITH_FLOAT32 = {"LeakyRelu", "Relu", "Add", "Mul", "Sigmoid", "GlobalAveragePool"}


def add_rounding(nodes: List[onnx.NodeProto], x: str, target: str) -> None:
    """Append nodes that round the tensor x to float16, saturated; `target` gets it as float32."""
    from onnx import TensorProto, helper

    nodes.append(helper.make_node("Clip", [x, "float16.lowest", "float16.largest"], [x + "/clip"]))
    nodes.append(helper.make_node("Cast", [x + "/clip"], [x + "/half"], to=TensorProto.FLOAT16))
    # A copy between the two casts: ONNX Runtime 1.14 removes a pair of casts, with the rounding.
    nodes.append(helper.make_node("Concat", [x + "/half"], [x + "/kept"], axis=0))
    nodes.append(helper.make_node("Cast", [x + "/kept"], [target], to=TensorProto.FLOAT))


def rounded(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """The model in float16 arithmetic.

    kept: names of nodes that compute and hand on float32 (atc's --keep_dtype).
    Its tensors keep their names and are float32 arrays of rounded values.
    Raises: Refusal for an int8 model.
    """
    from onnx import TensorProto, numpy_helper

    integers = sorted(INT8.intersection(node.op_type for node in model.graph.node))
    if integers:
        raise Refusal(
            f"the model is an int8 one (it has {integers[0]}), and float16 replaces float32; give "
            "the float32 model that it was made from"
        )
    changed = copy.deepcopy(model)
    graph = changed.graph
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = np.clip(numpy_helper.to_array(tensor), -LARGEST, LARGEST)
            array = array.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    weights = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(-LARGEST), "float16.lowest"),
            numpy_helper.from_array(np.float32(LARGEST), "float16.largest"),
            numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "float16.column"),
        ]
    )
    nodes: List[onnx.NodeProto] = []
    unrounded = {value.name for value in graph.input if value.name not in weights}
    rounded_of: Dict[str, str] = {}  # {an unrounded tensor: the same rounded}
    for node in graph.node:
        if node.name in kept:
            nodes.append(node)
            unrounded.update(node.output)
            continue
        for index, name in enumerate(node.input):
            if name in unrounded:
                if name not in rounded_of:
                    rounded_of[name] = name + "/rounded"
                    add_rounding(nodes, name, rounded_of[name])
                node.input[index] = rounded_of[name]
        nodes.append(node)
        if node.op_type not in EXACT:
            add_result(nodes, node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def add_result(nodes: List[onnx.NodeProto], node: onnx.NodeProto) -> None:
    """Round the result of `node`, the last of `nodes`.

    Its bias becomes an addition of its own, with rounding before and after.
    """
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
