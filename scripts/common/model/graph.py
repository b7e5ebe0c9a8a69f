"""A TResNet as an ONNX graph, written node by node from the modules of the PyTorch network."""

from typing import Any, List, Optional, Tuple

from common.core import cli
from common.core.names import POOLS, REFLECTIONS, STEMS

import numpy as np
import onnx


class Graph:
    """An ONNX graph under construction: nodes in the order they run, and the weights they read."""

    def __init__(self, reflect: str) -> None:
        self.reflect = reflect  # how reflect padding is written, one of REFLECTIONS
        self.nodes: List[onnx.NodeProto] = []
        self.weights: List[onnx.TensorProto] = []

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output, which is the node's name."""
        self.nodes.append(
            onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        )
        return name

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def index(self, value: int) -> str:
        """An int64 [1] that nodes read as an input; all nodes share the one of a value."""
        name = f"index.{value}"
        if all(tensor.name != name for tensor in self.weights):
            self.weight(name, np.array([value], np.int64))
        return name

    def conv(
        self,
        name: str,
        x: str,
        weight: np.ndarray,
        bias: Optional[np.ndarray],
        stride: int,
        padding: int,
        groups: int = 1,
    ) -> str:
        """Add a convolution; returns the name of its output.

        weight: [out, in / groups, k, k]; bias: [out]; both are stored as float32.
        """
        inputs = [x, self.weight(name + ".weight", weight.astype(np.float32))]
        if bias is not None:
            inputs.append(self.weight(name + ".bias", bias.astype(np.float32)))
        return self.node(
            "Conv",
            name,
            *inputs,
            kernel_shape=weight.shape[2:],
            strides=[stride] * 2,
            pads=[padding] * 4,
            dilations=[1, 1],
            group=groups,
        )


def folded(convolution: Any, norm: Any) -> Tuple[np.ndarray, np.ndarray]:
    """A convolution without bias and the batch norm behind it, as one convolution.

    Returns (weight [out, in, k, k], bias [out]), both float64.
    """
    gamma, beta, mean, variance = (
        tensor.detach().double().numpy()
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = gamma / np.sqrt(variance + norm.eps)
    return convolution.weight.detach().numpy() * scale[:, None, None, None], beta - mean * scale


def unshuffled(weight: np.ndarray, block: int) -> np.ndarray:
    """The kernel on the image that equals `weight` after SpaceToDepth of `block` × `block` pixels.

    [out, block · block · c, k, k] → [out, c, block · k, block · k].
    """
    out, depth, height, width = weight.shape
    channels = depth // block**2
    split = weight.reshape(out, block, block, channels, height, width)
    return split.transpose(0, 3, 4, 1, 5, 2).reshape(out, channels, block * height, block * width)


def one_hot(channels: int, block: int) -> np.ndarray:
    """The kernel of a convolution that equals SpaceToDepth of `block` × `block` pixels.

    [channels, channels / block², block, block], of 0 and 1.
    """
    return unshuffled(np.eye(channels).reshape(channels, channels, 1, 1), block)


def add_chain(graph: Graph, chain: Any, name: str, x: str) -> str:
    """Add a torch.nn.Sequential; a convolution and the batch norm behind it become one node."""
    from torch import nn

    children = list(chain.named_children())
    following = [module for _, module in children[1:]] + [None]
    for (child, module), norm in zip(children, following):
        path = f"{name}.{child}"
        if isinstance(module, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            stride, padding = module.stride[0], int(module.padding[0])
            x = graph.conv(path, x, *folded(module, norm), stride=stride, padding=padding)
        elif not isinstance(module, nn.BatchNorm2d):
            x = add_module(graph, module, path, x)
    return x


def add_block(graph: Graph, block: Any, name: str, x: str) -> str:
    """Add a residual block: convolutions, squeeze-and-excitation, sum, ReLU."""
    residual = x
    if block.downsample is not None:
        residual = add_module(graph, block.downsample, name + ".downsample", x)
    for part in ("conv1", "conv2", "se", "conv3"):  # only a bottleneck has conv3
        module = getattr(block, part, None)
        if module is not None:
            x = add_module(graph, module, f"{name}.{part}", x)
    return graph.node("Relu", name + ".relu", graph.node("Add", name + ".add", x, residual))


def add_attention(graph: Graph, attention: Any, name: str, x: str) -> str:
    """Add a squeeze-and-excitation module: x times a gate in 0…1 per channel."""
    gate = graph.node("GlobalAveragePool", name + ".pool", x)
    for part, operator in (("fc1", "Relu"), ("fc2", "Sigmoid")):
        layer = getattr(attention, part)
        gate = graph.conv(
            f"{name}.{part}",
            gate,
            layer.weight.detach().numpy(),
            layer.bias.detach().numpy(),
            stride=1,
            padding=0,
        )
        gate = graph.node(operator, f"{name}.{part}.{operator.lower()}", gate)
    return graph.node("Mul", name + ".mul", x, gate)


def add_reflection(graph: Graph, name: str, x: str) -> str:
    """Add reflect padding at the top and the left: row 1 above row 0, column 1 before column 0.

    A 3×3 filter of stride 2 on a map with even sides never reads the other borders.
    """
    for axis, side in ((2, "row"), (3, "column")):
        first = graph.node(
            "Slice", f"{name}.{side}", x, graph.index(1), graph.index(2), graph.index(axis)
        )
        x = graph.node("Concat", f"{name}.{side}_in_front", first, x, axis=axis)
    return x


def add_blur(graph: Graph, blur: Any, name: str, x: str) -> str:
    """Add the anti-aliasing of a strided convolution, a depthwise 3×3 filter with stride 2."""
    padding = 1
    if blur.pad_mode == "reflect":  # Conv has no attribute for it, so it takes further nodes
        padding = 0
        if graph.reflect == "pad":
            pads = graph.weight(name + ".pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
            x = graph.node("Pad", name + ".pad", x, pads, mode="reflect")
        else:
            x = add_reflection(graph, name, x)
    return graph.conv(
        name, x, blur.filt.numpy(), None, stride=blur.stride, padding=padding, groups=blur.channels
    )


def add_module(graph: Graph, module: Any, name: str, x: str) -> str:
    """Add one module of the network; returns the name of its output.

    Raises: TypeError for a module of an unknown kind.
    """
    kind = type(module).__name__
    if kind == "Sequential":
        return add_chain(graph, module, name, x)
    if kind in ("BasicBlock", "Bottleneck"):
        return add_block(graph, module, name, x)
    if kind == "SEModule":
        return add_attention(graph, module, name, x)
    if kind == "AntiAliasDownsampleLayer":
        return add_blur(graph, module.op, name, x)
    if kind == "SpaceToDepthModule":
        return graph.node("SpaceToDepth", name, x, blocksize=module.op.bs)
    if kind == "LeakyReLU":
        return graph.node("LeakyRelu", name, x, alpha=module.negative_slope)
    if kind == "AvgPool2d":
        # Every side is even, so ceil_mode makes no difference, and there is no padding to count.
        # With count_include_pad 0 CANN would add a multiplication by a constant.
        return graph.node(
            "AveragePool",
            name,
            x,
            kernel_shape=[module.kernel_size] * 2,
            strides=[module.stride] * 2,
            count_include_pad=1,
        )
    if kind == "Identity":
        return x
    raise TypeError(f"{name} is a {kind}, for which no ONNX nodes are known")


def add_stem(graph: Graph, body: Any, stem: str, x: str) -> str:
    """Add SpaceToDepth and the first convolution in one of the ways of STEMS, with equal results.

    conv4: SpaceToDepth is a 4×4 convolution of stride 4 whose weights are 0 and 1.
    conv12: both are one convolution.
    """
    block, convolution = body.SpaceToDepth.op.bs, body.conv1[0]
    if stem == "conv12":
        weight, bias = folded(convolution, body.conv1[1])
        x = graph.conv(
            "body.conv1.0",
            x,
            unshuffled(weight, block),
            bias,
            stride=block,
            padding=block * convolution.padding[0],
        )
        return add_module(graph, body.conv1[2], "body.conv1.2", x)
    if stem == "conv4":
        kernel = one_hot(convolution.in_channels, block)
        x = graph.conv("body.SpaceToDepth", x, kernel, None, stride=block, padding=0)
    else:
        x = add_module(graph, body.SpaceToDepth, "body.SpaceToDepth", x)
    return add_module(graph, body.conv1, "body.conv1", x)


def add_global_pool(graph: Graph, pool: str, x: str) -> str:
    """Add the global pooling, one of POOLS, as timm's SelectAdaptivePool2d computes it."""
    name = "head.global_pool"
    if pool == "avg":
        return graph.node("GlobalAveragePool", name, x)
    if pool == "max":
        return graph.node("GlobalMaxPool", name, x)
    average = graph.node("GlobalAveragePool", name + ".avg", x)
    largest = graph.node("GlobalMaxPool", name + ".max", x)
    if pool == "catavgmax":
        return graph.node("Concat", name, average, largest, axis=1)
    half = graph.weight(name + ".half", np.array([0.5], np.float32))
    total = graph.node("Add", name + ".add", average, largest)
    return graph.node("Mul", name, total, half)


def build_model(
    network: Any,
    img_size: int,
    opset: int,
    batch_size: Optional[int] = None,
    stem: str = STEMS[0],
    reflect: str = REFLECTIONS[0],
) -> onnx.ModelProto:
    """The network as an ONNX model.

    Its input is `image`, float32 [batch, 3, img_size, img_size], its output `class`, float32
    [batch, classes].
    batch_size: None leaves the batch open; stem: one of STEMS; reflect: one of REFLECTIONS.
    """
    helper = onnx.helper
    graph = Graph(reflect)
    x = add_stem(graph, network.body, stem, "image")
    for name, layer in list(network.body.named_children())[2:]:
        x = add_module(graph, layer, "body." + name, x)
    kind = network.head.global_pool.pool_type
    x = add_global_pool(graph, POOLS[0] if kind == "fast" else kind, x)
    x = graph.node("Flatten", "head.flatten", x, axis=1)
    fc = network.head.fc
    weight = graph.weight("head.fc.weight", fc.weight.detach().numpy())
    bias = graph.weight("head.fc.bias", fc.bias.detach().numpy())
    graph.nodes.append(
        helper.make_node("Gemm", [x, weight, bias], ["class"], name="head.fc", transB=1)
    )
    batch = batch_size or "batch"
    image = helper.make_tensor_value_info(
        "image", onnx.TensorProto.FLOAT, [batch, 3, img_size, img_size]
    )
    logits = helper.make_tensor_value_info(
        "class", onnx.TensorProto.FLOAT, [batch, fc.out_features]
    )
    versions = [helper.make_opsetid("", opset)]
    return helper.make_model(
        helper.make_graph(graph.nodes, "TResNet", [image], [logits], graph.weights),
        opset_imports=versions,
        ir_version=helper.find_min_ir_version_for(versions),
        producer_name="TResNet_pth2onnx.py",
        producer_version=cli.VERSION,
    )
