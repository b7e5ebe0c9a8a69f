#!/usr/bin/env python3
"""Turn a TResNet checkpoint into an ONNX file that is proved equal to the PyTorch network.

    python3 TResNet_pth2onnx.py model_best.pth.tar tresnet_m.onnx
    python3 TResNet_pth2onnx.py tresnet_l_448.pth tresnet_l_448.onnx --img-size 448 --opset 13
    python3 TResNet_pth2onnx.py tresnet_m.safetensors tresnet_m.onnx --batch-size 8 --stem conv

In: a training checkpoint (a dict with `state_dict`, or `model`, or `state_dict_ema` for --ema), a bare state dict, or a
`.safetensors` file. Variant, number of classes, lineage of the weights and naming are read off its tensors.
Out: input `image`, float32 [batch, 3, img_size, img_size], RGB in 0…1; output `class`, float32 [batch, classes]:
logits.

The graph is written node by node from the network's modules, batch norm folded in double precision, with operators that
an NPU runs as they are. It is then run in ONNX Runtime against the PyTorch network; a file that differs is not kept.
"""
import argparse
import json
import math
import os
import pickle
import re
import struct
import sys
import time
import types
import zipfile
from collections import Counter, OrderedDict
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common import cli, files, record
from common.cli import ROOT, Refusal, shown

import numpy as np
import onnx

TIMM = os.path.join(ROOT, "pytorch-image-models")
PATCH = os.path.join(ROOT, "TResNet.patch")  # decides what the network is
MULTIPLE = 32  # pixels: the network halves the image five times
OPSETS = range(11, 19)  # CANN 6.0.RC1 reads opset 11, later versions more; the graph is the same in all of them
TOLERANCE = 1e-4  # of the largest logit: float32 rounding is near 1e-6, a wrong slope or padding 1e-2
VERIFIED_BATCHES = (1, 2, 5)
VARIANTS = {64: "tresnet_m", 76: "tresnet_l", 83: "tresnet_xl"}  # by the channels of the first convolution
STEM = "body.conv1.0.weight"
STEM_TODAY = "body.conv1.conv.weight"  # the same in timm 0.8 and newer
TRACKED = "num_batches_tracked"
MIIL_SLOPE = 1e-3  # LeakyReLU inside the blocks; 1e-2 after the stem, as everywhere in the `ascend` lineage
INPLACE_ABN_EPS = 1e-5  # InplaceABN multiplies by |weight| + eps
SHOWN = 5  # tensors that a message names before it counts the rest

Tensors = Dict[str, Any]  # {name: torch.Tensor}


class Recognised(NamedTuple):
    """What a state dict says about itself."""
    variant: str  # tresnet_m, tresnet_l, tresnet_xl
    num_classes: int
    lineage: str  # ascend: trained with the patched timm; miil: the official weights
    naming: str


# ---- reading a checkpoint without running anything in it -------------------------------------------------------------

def numpy_globals() -> List[Tuple[Any, str]]:
    """(object, pickled name) of what a pickled NumPy scalar such as `metric` refers to, under NumPy 1 and 2."""
    multiarray = getattr(np, "_core", None) or np.core
    allowed = [(multiarray.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    allowed.append((np.dtype, "numpy.dtype"))
    for number in (np.float16, np.float32, np.float64, np.int32, np.int64):
        dtype_class = type(np.dtype(number))
        if dtype_class is not np.dtype:  # NumPy 1.20 and newer
            allowed.append((dtype_class, f"{dtype_class.__module__}.{dtype_class.__name__}"))
    return allowed


def load_weights_only(path: str) -> Any:
    """torch.load that builds tensors, containers, numbers, argparse.Namespace and NumPy scalars, nothing else."""
    import torch
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals([argparse.Namespace, *numpy_globals()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # PyTorch 1.6 has no weights_only. It unpickles with the module it is given: this one looks up no other names.
    import _codecs
    allowed = {name: thing for thing, name in numpy_globals()}
    allowed.update({"collections.OrderedDict": OrderedDict, "argparse.Namespace": argparse.Namespace,
                    "_codecs.encode": _codecs.encode})  # how pickle protocol 2 spells bytes
    allowed.update({f"torch._utils.{name}": getattr(torch._utils, name)
                    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")})
    allowed.update({f"torch.{kind}Storage": getattr(torch, f"{kind}Storage") for kind in (
        "Half", "BFloat16", "Float", "Double", "Byte", "Char", "Short", "Int", "Long", "Bool")})

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in allowed:
                raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")
            return allowed[f"{module}.{name}"]

    restricted = types.ModuleType("restricted_pickle")
    restricted.Unpickler = Unpickler  # type: ignore[attr-defined]
    restricted.load = lambda file, **options: Unpickler(file, **options).load()  # type: ignore[attr-defined]
    return torch.load(path, map_location="cpu", pickle_module=restricted)


def load_safetensors(path: str) -> Tensors:
    """Tensors of a .safetensors file: 8 bytes length, a JSON header {name: {dtype, shape, data_offsets}}, raw data.

    Source: https://huggingface.co/docs/safetensors/index (format).
    Raises: ValueError, KeyError, … where the file is broken.
    """
    import torch
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4"}
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        if size > os.path.getsize(path):
            raise ValueError(f"its header should have {size} bytes, which is more than the file has")
        header = json.loads(file.read(size).decode())
        data = file.read()
    tensors = OrderedDict()
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        count = int(np.prod(entry["shape"], dtype=np.int64))
        kind = np.dtype(kinds[entry["dtype"]])
        if not 0 <= begin <= end <= len(data) or end - begin != count * kind.itemsize:
            raise ValueError(f"{name} lies outside the file's data")
        array = np.frombuffer(data, kind, count, begin)
        if entry["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype("<u4") << 16).view("<f4")
        tensors[name] = torch.from_numpy(array.reshape(entry["shape"]).copy())
    return tensors


def load_checkpoint(path: str) -> Any:
    """What a checkpoint file holds, on the CPU; nothing in it is executed.

    Raises: Refusal with one sentence for anything that is no checkpoint.
    """
    try:
        with open(path, "rb") as file:
            beginning = file.read(16)
    except OSError as error:
        raise Refusal(f"the checkpoint {shown(path)} cannot be read ({error.strerror}); give the path of a .pth, "
                      ".pth.tar, .pt or .safetensors file")
    try:
        if path.endswith(".safetensors"):
            return load_safetensors(path)
        if beginning[:2] == b"PK":
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise Refusal(f"{shown(path)} is a TorchScript archive, which holds code; save the network's "
                                  "state_dict() instead")
        elif beginning[:1] != b"\x80":  # where every pickle begins
            raise Refusal(f"{shown(path)} is not a PyTorch checkpoint: it begins with {beginning!r}; give the file "
                          "that torch.save wrote")
        return load_weights_only(path)
    except Exception as error:  # a broken file can fail anywhere in PyTorch's reader, with any type of error
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            raise Refusal(f"{shown(path)} refers to the Python object {forbidden.group(1)}, which weights do not need "
                          "and which could run code, so nothing of it was loaded; save only the state dict: "
                          "torch.save(model.state_dict(), ...)")
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Refusal(f"{shown(path)} cannot be read as a checkpoint ({reason}); it is damaged or incomplete: copy it "
                      "again")


def find_state_dict(checkpoint: Any, path: str, ema: bool) -> Tensors:
    """The {name: tensor} in a checkpoint's wrapping, without the `module.` of distributed training."""
    import torch
    found = checkpoint
    if isinstance(checkpoint, dict):
        keys = ("state_dict_ema", "model_ema") if ema else ("state_dict", "model")
        wrapped = [key for key in keys if isinstance(checkpoint.get(key), dict)]
        if wrapped:
            found = checkpoint[wrapped[0]]
        elif ema:
            raise Refusal(f"{shown(path)} has no averaged weights (state_dict_ema), only "
                          f"{', '.join(map(str, list(checkpoint)[:9]))}; leave out --ema")
    if not isinstance(found, dict) or not found or not all(
            isinstance(tensor, torch.Tensor) for tensor in found.values()):
        held = (f"a dict of {', '.join(map(repr, list(found)[:9]))}" if isinstance(found, dict)
                else f"a {type(found).__name__}")
        raise Refusal(f"{shown(path)} should hold a state dict (name: tensor), bare or under 'state_dict' or 'model', "
                      f"but holds {held}")
    tensors = OrderedDict((re.sub(r"^(module\.)+", "", name), tensor) for name, tensor in found.items())
    if len(tensors) != len(found):
        raise Refusal(f"{shown(path)} holds some tensors twice, with and without the prefix 'module.'; save it again "
                      "with one of the two")
    return tensors


# ---- recognising what it is ------------------------------------------------------------------------------------------

def name_today(name: str) -> str:
    """timm 0.8's name of a tensor that timm 0.4.5 calls `name`: conv1.0.weight → conv1.conv.weight."""
    return re.sub(r"\b(conv\d|downsample\.1)\.(?:0\.)?([01])\.",
                  lambda found: f"{found.group(1)}.{('conv', 'bn')[int(found.group(2))]}.", name)


def recognise(tensors: Tensors, path: str, arch: Optional[str], model: Optional[str],
              lineage: Optional[str]) -> Recognised:
    """Read variant, classes, lineage and naming off the tensors; `arch` is what the checkpoint says, `model` and
    `lineage` what the user says.

    Raises: Refusal if it is no TResNet or if two of these contradict each other.
    """
    today = STEM_TODAY in tensors
    stem, head = tensors.get(STEM_TODAY if today else STEM), tensors.get("head.fc.weight")
    if stem is None or head is None or stem.dim() != 4 or head.dim() != 2:
        raise Refusal(f"{shown(path)} is not a TResNet: a first convolution {STEM} or {STEM_TODAY} and a head "
                      f"head.fc.weight are expected, but it holds {len(tensors)} tensors such as "
                      f"{', '.join(list(tensors)[:3])}")
    variant = VARIANTS.get(stem.shape[0])
    if variant is None:
        raise Refusal(f"{shown(path)} is no TResNet that is known: its first convolution has {stem.shape[0]} "
                      "channels, where M has 64, L 76 and XL 83")
    for claim, source in ((arch, "the checkpoint's own 'arch'"), (model, "--model")):
        if claim and re.sub(r"(_448|_miil.*|_in21k)+$", "", claim) != variant:
            raise Refusal(f"{source} says {claim}, but the tensors of {shown(path)} are those of {variant}; find out "
                          "which file this is")
    tracked = any(name.endswith(TRACKED) for name in tensors)
    seen = "ascend" if tracked and not today else "miil"
    # Without the counters only training can tell: the user may know better.
    if lineage and lineage != seen and (today or tracked):
        evidence = ("timm 0.8's names, which only the official lineage has" if today
                    else f"{TRACKED}, which InplaceABN does not keep")
        raise Refusal(f"--lineage {lineage} contradicts {shown(path)}: it has {evidence}, so it is {seen}; leave out "
                      "--lineage")
    naming = "timm 0.8 or newer" if today else "timm 0.4.5 and MIIL"
    return Recognised(variant, head.shape[0], lineage or seen, naming)


def create_network(variant: str, num_classes: int) -> Any:
    """The patched timm's network, a torch.nn.Module in training mode, `ascend` lineage.

    Raises: Refusal if the patched source is not in ./pytorch-image-models.
    """
    hint = "run: python3 scripts/timm_source.py"
    if not os.path.isdir(os.path.join(TIMM, "timm")):
        raise Refusal(f"timm v0.4.5's patched source is expected in {shown(TIMM)}, which is not there; {hint}")
    sys.path.insert(0, TIMM)
    try:
        import timm
        network = timm.create_model(variant, num_classes=num_classes)
    except ImportError as error:  # torchvision or inplace_abn: unpatched
        raise Refusal(f"{shown(TIMM)} is not patched ({error}); move it away and {hint}")
    finally:
        sys.path.remove(TIMM)
    if not timm.__file__.startswith(TIMM) or timm.__version__ != "0.4.5" or any(
            "Inplace" in type(module).__name__ for module in network.modules()):
        raise Refusal(f"the network must come from timm v0.4.5 patched with TResNet.patch, but {timm.__file__} is "
                      f"version {timm.__version__} or not patched; move it away and {hint}")
    return network


def load_network(tensors: Tensors, path: str, seen: Recognised) -> Any:
    """The network with the checkpoint's weights, in evaluation mode; every tensor is accounted for.

    Raises: Refusal that names missing, unexpected, misshapen or not finite tensors.
    """
    import torch
    network = create_network(seen.variant, seen.num_classes)
    expected = network.state_dict()
    rename = name_today if STEM_TODAY in tensors else str
    tracked = any(name.endswith(TRACKED) for name in tensors)
    remaining = dict(tensors)
    problems = []
    with torch.no_grad():
        for name, parameter in expected.items():
            if name.endswith(TRACKED) and not tracked:
                continue
            tensor = remaining.pop(rename(name), None)
            if tensor is None:
                problems.append(f"{rename(name)} is missing")
                continue
            tensor = tensor.to(parameter.dtype)  # half precision as well
            if tensor.shape != parameter.shape:
                problems.append(f"{rename(name)} has shape {list(tensor.shape)} instead of {list(parameter.shape)}")
            elif not torch.isfinite(tensor).all() or name.endswith("running_var") and (tensor < 0).any():
                problems.append(f"{rename(name)} has values that are not finite or, for a variance, negative")
            else:
                if seen.lineage == "miil" and rename is str and name[:-len("weight")] + "running_var" in expected:
                    tensor = tensor.abs() + INPLACE_ABN_EPS
                parameter.copy_(tensor)
    blur = torch.tensor([1., 2., 1.]).ger(torch.tensor([1., 2., 1.])) / 16  # the blur's constant, which some tools save
    problems += [f"{name} is not expected" for name, tensor in remaining.items()
                 if not (name.endswith(".filt") and tensor.shape[-2:] == blur.shape
                         and torch.equal(tensor.float(), blur.expand_as(tensor)))]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise Refusal(f"{shown(path)} does not fit {seen.variant} with {seen.num_classes} classes: "
                      f"{'; '.join(problems[:SHOWN])}{more}")
    if seen.lineage == "miil":
        for name, module in network.named_modules():
            if hasattr(module, "pad_mode"):
                module.pad_mode = "reflect"
            if isinstance(module, torch.nn.LeakyReLU) and name.startswith("body.layer"):
                module.negative_slope = MIIL_SLOPE
    return network.eval()


# ---- writing the graph -----------------------------------------------------------------------------------------------

class Graph:
    """An ONNX graph under construction: nodes in the order they run, and the weights they read."""

    def __init__(self) -> None:
        self.nodes: List[onnx.NodeProto] = []
        self.weights: List[onnx.TensorProto] = []

    def node(self, operator: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output, which is its own."""
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def conv(self, name: str, x: str, weight: np.ndarray, bias: Optional[np.ndarray], stride: int, padding: int,
             groups: int = 1) -> str:
        """Add a convolution. weight: [out, in / groups, k, k], bias: [out]; both are stored as float32."""
        inputs = [x, self.weight(name + ".weight", weight.astype(np.float32))]
        if bias is not None:
            inputs.append(self.weight(name + ".bias", bias.astype(np.float32)))
        return self.node("Conv", name, *inputs, kernel_shape=weight.shape[2:], strides=[stride] * 2, pads=[padding] * 4,
                         dilations=[1, 1], group=groups)


def folded(convolution: Any, norm: Any) -> Tuple[np.ndarray, np.ndarray]:
    """Weight [out, in, k, k] and bias [out], float64, of a bias-free convolution with the batch norm behind it."""
    weight, gamma, beta, mean, variance = (tensor.detach().double().numpy() for tensor in (
        convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var))
    scale = gamma / np.sqrt(variance + norm.eps)
    return weight * scale[:, None, None, None], beta - mean * scale


def unshuffled(weight: np.ndarray, block: int) -> np.ndarray:
    """The kernel on the image that equals `weight` after SpaceToDepth: [out, b·b·c, k, k] → [out, c, b·k, b·k]."""
    out, depth, height, width = weight.shape
    split = weight.reshape(out, block, block, depth // block ** 2, height, width)
    return split.transpose(0, 3, 4, 1, 5, 2).reshape(out, depth // block ** 2, block * height, block * width)


def add_chain(graph: Graph, chain: Any, name: str, x: str) -> str:
    """Add a torch.nn.Sequential; a convolution takes the batch norm behind it along."""
    from torch import nn
    children = [(f"{name}.{child}", module) for child, module in chain.named_children()]
    for (path, module), (_, following) in zip(children, children[1:] + [("", None)]):
        if isinstance(module, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
            x = graph.conv(path, x, *folded(module, following), stride=module.stride[0], padding=module.padding[0])
        elif not isinstance(module, nn.BatchNorm2d):
            x = add_module(graph, module, path, x)
    return x


def add_block(graph: Graph, block: Any, name: str, x: str) -> str:
    """Add a residual block: convolutions, squeeze-and-excitation before the last one of a bottleneck, sum, ReLU."""
    parts = ("conv1", "conv2", "se", "conv3") if hasattr(block, "conv3") else ("conv1", "conv2", "se")
    residual = x if block.downsample is None else add_module(graph, block.downsample, name + ".downsample", x)
    for part in parts:
        if getattr(block, part) is not None:
            x = add_module(graph, getattr(block, part), f"{name}.{part}", x)
    return graph.node("Relu", name + ".relu", graph.node("Add", name + ".add", x, residual))


def add_attention(graph: Graph, attention: Any, name: str, x: str) -> str:
    """Add a squeeze-and-excitation module: x times a gate in 0…1 per channel."""
    gate = graph.node("GlobalAveragePool", name + ".pool", x)
    for part, operator in (("fc1", "Relu"), ("fc2", "Sigmoid")):
        layer = getattr(attention, part)
        gate = graph.conv(f"{name}.{part}", gate, layer.weight.detach().numpy(), layer.bias.detach().numpy(),
                          stride=1, padding=0)
        gate = graph.node(operator, f"{name}.{part}.{operator.lower()}", gate)
    return graph.node("Mul", name + ".mul", x, gate)


def add_blur(graph: Graph, blur: Any, name: str, x: str) -> str:
    """Add the anti-aliasing of a strided convolution: a depthwise 3×3 binomial filter with stride 2."""
    padding = 1
    if blur.pad_mode == "reflect":  # not an attribute of Conv, so it takes a node of its own
        pads = graph.weight(name + ".pads", np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        x, padding = graph.node("Pad", name + ".pad", x, pads, mode="reflect"), 0
    return graph.conv(name, x, blur.filt.numpy(), None, stride=blur.stride, padding=padding, groups=blur.channels)


def add_module(graph: Graph, module: Any, name: str, x: str) -> str:
    """Add one module of the network; returns the name of its output. Raises: TypeError for an unknown one."""
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
    if kind == "AvgPool2d":  # ceil_mode and count_include_pad make no difference: every side is even here
        return graph.node("AveragePool", name, x, kernel_shape=[module.kernel_size] * 2, strides=[module.stride] * 2)
    if kind == "Identity":
        return x
    raise TypeError(f"{name} is a {kind}, for which no ONNX nodes are known")


def add_stem(graph: Graph, body: Any, stem: str, x: str) -> str:
    """Add SpaceToDepth and the first convolution, as they are or as one 12×12 convolution: the same function."""
    if stem == "space-to-depth":
        return add_module(graph, body.conv1, "body.conv1", add_module(graph, body.SpaceToDepth, "body.SpaceToDepth", x))
    block = body.SpaceToDepth.op.bs
    weight, bias = folded(body.conv1[0], body.conv1[1])
    x = graph.conv("body.conv1.0", x, unshuffled(weight, block), bias, stride=block,
                   padding=block * body.conv1[0].padding[0])
    return add_module(graph, body.conv1[2], "body.conv1.2", x)


def build_model(network: Any, img_size: int, opset: int, batch_size: Optional[int], stem: str) -> onnx.ModelProto:
    """The network as an ONNX model: `image` float32 [batch, 3, img_size, img_size] → `class` float32 [batch, classes].

    batch_size: None leaves the batch open.
    """
    helper = onnx.helper
    graph = Graph()
    x = add_stem(graph, network.body, stem, "image")
    for name, layer in list(network.body.named_children())[2:]:
        x = add_module(graph, layer, "body." + name, x)
    x = graph.node("Flatten", "head.flatten", graph.node("GlobalAveragePool", "head.global_pool", x), axis=1)
    fc = network.head.fc
    weight, bias = (graph.weight(f"head.fc.{part}", getattr(fc, part).detach().numpy()) for part in ("weight", "bias"))
    graph.nodes.append(helper.make_node("Gemm", [x, weight, bias], ["class"], name="head.fc", transB=1))
    batch = batch_size or "batch"
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [batch, 3, img_size, img_size])
    logits = helper.make_tensor_value_info("class", onnx.TensorProto.FLOAT, [batch, fc.out_features])
    versions = [helper.make_opsetid("", opset)]
    return helper.make_model(helper.make_graph(graph.nodes, "TResNet", [image], [logits], graph.weights),
                             opset_imports=versions, ir_version=helper.find_min_ir_version_for(versions),
                             producer_name="TResNet_pth2onnx.py", producer_version=cli.VERSION)


# ---- proving it ------------------------------------------------------------------------------------------------------

def verify(model: bytes, network: Any, img_size: int, batch_sizes: Tuple[int, ...]) -> float:
    """Run the ONNX model and the network on the same random images; the largest difference over the largest logit.

    Raises: Refusal if it exceeds TOLERANCE.
    """
    import onnxruntime
    import torch
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = np.random.RandomState(0)
    worst = 0.0
    for batch_size in batch_sizes:
        images = generator.uniform(0, 1, (batch_size, 3, img_size, img_size)).astype(np.float32)
        found, = session.run(["class"], {"image": images})
        with torch.no_grad():
            expected = network(torch.from_numpy(images)).numpy()
        largest = float(np.abs(expected).max())
        difference = float(np.abs(found - expected).max())
        if not math.isfinite(largest) or not difference <= TOLERANCE * largest:
            raise Refusal(f"the ONNX model and the PyTorch network differ by {difference:.3g} on a batch of "
                          f"{batch_size}, where the largest logit is {largest:.3g} and {TOLERANCE:g} of it is "
                          "allowed, so no file is written; the weights overflow, or onnxruntime "
                          f"{onnxruntime.__version__} or torch {torch.__version__} computes wrongly: try another "
                          "version")
        worst = max(worst, difference / largest if largest else 0.0)
    return worst


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    add = parser.add_argument
    add("checkpoint", type=cli.path, help=".pth, .pth.tar, .pt or .safetensors")
    add("output", type=cli.path, help="the .onnx file")
    add("--model", choices=sorted(VARIANTS.values()), help="insist on this variant")
    add("--lineage", choices=("ascend", "miil"),
        help=f"insist on this lineage of weights (needed only for `ascend` weights whose {TRACKED} were stripped)")
    add("--ema", action="store_true", help="take the averaged weights, state_dict_ema")
    add("--img-size", type=cli.whole(MULTIPLE, 4096), default=224,
        help=f"height and width in pixels, a multiple of {MULTIPLE} (default: %(default)s)")
    add("--opset", type=int, choices=OPSETS, default=11,
        help="ONNX operator set (default: %(default)s, which every CANN reads)")
    add("-b", "--batch-size", type=cli.whole(1, 4096), help="fix the batch size (default: open)")
    add("--stem", choices=("space-to-depth", "conv"), default="space-to-depth",
        help="conv: one 12×12 convolution of stride 4 instead of SpaceToDepth and 3×3, the same function "
             "(default: %(default)s)")
    add("--force", action="store_true", help="export again even if the output is up to date")
    arguments = parser.parse_args()
    if arguments.img_size % MULTIPLE:
        parser.error(f"--img-size must be a multiple of {MULTIPLE}, because the network halves the image five times, "
                     f"not {arguments.img_size}")
    if not arguments.output.endswith(".onnx"):
        parser.error(f"the output must end in .onnx, not {arguments.output}")
    return arguments


def recipe(arguments: argparse.Namespace) -> record.Row:
    """What the ONNX file depends on; the checkpoint by its content."""
    options = {name: getattr(arguments, name) for name in (
        "model", "lineage", "ema", "img_size", "opset", "batch_size", "stem")}
    return record.recipe(__file__, options, packages=("torch", "onnx", "onnxruntime", "numpy"),
                         checkpoint=record.sha256(arguments.checkpoint), patch=record.sha256(PATCH))


def main() -> None:
    arguments = parse_arguments()
    start = time.time()
    if not os.path.isfile(arguments.checkpoint):
        raise Refusal(f"the checkpoint {shown(arguments.checkpoint)} is not there or not a file; give the path of a "
                      ".pth, .pth.tar, .pt or .safetensors file")
    made_by = recipe(arguments)
    if not arguments.force and record.is_current(arguments.output, made_by):
        was = record.notes(arguments.output)
        print(f"{shown(arguments.output)} is up to date: {was['variant']}, {was['num_classes']} classes, "
              f"{was['lineage']} lineage; --force exports again")
        return
    record.claim(arguments.output, [arguments.output])
    checkpoint = load_checkpoint(arguments.checkpoint)
    tensors = find_state_dict(checkpoint, arguments.checkpoint, arguments.ema)
    arch = checkpoint.get("arch") if isinstance(checkpoint, dict) else None
    seen = recognise(tensors, arguments.checkpoint, arch if isinstance(arch, str) else None, arguments.model,
                     arguments.lineage)
    print(f"checkpoint: {seen.variant}, {seen.num_classes} classes, {seen.lineage} lineage, named as by {seen.naming}"
          + (", averaged weights" if arguments.ema else ""))
    if not arguments.ema and isinstance(checkpoint, dict) and isinstance(checkpoint.get("state_dict_ema"), dict):
        print("it also holds averaged weights (state_dict_ema), which are often the better ones: --ema takes them")
    network = load_network(tensors, arguments.checkpoint, seen)
    del checkpoint, tensors  # half a gigabyte for an XL
    model = build_model(network, arguments.img_size, arguments.opset, arguments.batch_size, arguments.stem)
    about = {"variant": seen.variant, "num_classes": str(seen.num_classes), "lineage": seen.lineage,
             "img_size": str(arguments.img_size), "checkpoint_sha256": made_by["checkpoint"]}
    onnx.helper.set_model_props(model, dict(about, tool=made_by["tool"], version=cli.VERSION,
                                            options=json.dumps(made_by["options"], sort_keys=True)))
    operators = Counter(node.op_type for node in model.graph.node)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(operators.items()))
    print(f"graph: opset {arguments.opset}, {sum(operators.values())} nodes: {counts}")
    onnx.checker.check_model(model)
    serialized = model.SerializeToString()
    del model
    batch_sizes = (arguments.batch_size,) if arguments.batch_size else VERIFIED_BATCHES
    difference = verify(serialized, network, arguments.img_size, batch_sizes)
    print(f"verified: ONNX Runtime differs from PyTorch by at most {difference:.1e} of the largest logit "
          f"(batches of {', '.join(map(str, batch_sizes))})")
    try:
        record.begin(arguments.output, made_by, [arguments.output])
        files.write_whole(arguments.output, serialized)
    except OSError as error:
        raise Refusal(f"{shown(arguments.output)} cannot be written ({error.strerror}); choose a folder that exists, "
                      f"can be written and has {len(serialized) / 1e6:.0f} MB of space")
    record.write(arguments.output, made_by, [arguments.output], **about)
    print(f"{shown(arguments.output)}: {len(serialized) / 1e6:.1f} MB in {time.time() - start:.1f} s")


if __name__ == "__main__":
    cli.run(main)
