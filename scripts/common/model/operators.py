"""The operators of an ONNX model one by one: their results, and any part of the graph run alone.

An operator is called by the name of its node, or of its output if the node has no name. The
functions import onnx and ONNX Runtime themselves: together they take a third of a second, and an
up-to-date product needs neither.
"""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Callable, Collection, Dict, Iterable, List, Union

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def name_of(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def with_outputs(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy whose outputs are these tensors (float32), with an open batch."""
    import onnx
    from onnx import helper

    changed = copy.deepcopy(model)
    graph = changed.graph
    del graph.output[:]
    del graph.value_info[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors
    )
    for value in graph.input:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return changed


def part(
    model: onnx.ModelProto, sources: Collection[str], tensors: Iterable[str]
) -> onnx.ModelProto:
    """The operators that lead from the tensors `sources` to `tensors`, as a model of their own.

    Its inputs are those tensors of `sources` that they read, of any shape.
    """
    import onnx
    from onnx import helper

    wanted = list(tensors)
    needed = set(wanted)
    nodes: List[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output) and not set(node.output) <= set(sources):
            nodes.insert(0, node)
            needed.update(node.input)
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    known = {tensor.name for tensor in weights}.union(*(node.output for node in nodes))
    read = [name for name in sources if name in needed - known]
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in read]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted]
    return helper.make_model(
        helper.make_graph(nodes, "part", inputs, outputs, weights),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def session(model: Union[str, bytes, onnx.ModelProto]) -> onnxruntime.InferenceSession:
    """ONNX Runtime on all cores of this process, for a file's path, its content, or a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 4  # what goes wrong is in the exception
    source = model if isinstance(model, (str, bytes)) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def logits_of(model: onnx.ModelProto) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images, float32 [n, 3, h, w], to the model's first output, [n, classes]."""
    image, output = model.graph.input[0].name, model.graph.output[0].name
    ready = session(with_outputs(model, [output]))
    return lambda images: run(ready, {image: images})[output]


def run(
    ready: onnxruntime.InferenceSession, tensors: Dict[str, np.ndarray]
) -> Dict[str, np.ndarray]:
    """{output: its value}; tensors: {input: its value}, and further tensors."""
    names = [output.name for output in ready.get_outputs()]
    inputs = {entry.name: tensors[entry.name] for entry in ready.get_inputs()}
    return dict(zip(names, ready.run(names, inputs)))
