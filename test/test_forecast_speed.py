"""forecast_speed.py: kernels of a graph, their time, images/s with their range, what is refused.

Also what a measurement beside the forecast says.
"""

import csv
import json
import math
import re
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

from common.core import cli
from common.model import speed

import fit_speed
import forecast_speed
import numpy as np
import onnx
import pytest
from ascend.helpers import save_network, start_here
from conftest import ROOT, Shared
from onnx import TensorProto, helper, numpy_helper

BATCH_SIZES = (1, 4, 8, 16, 32)
PUBLISHED_M = {1: 1154, 4: 2552, 8: 3158, 16: 3249, 32: 2756}  # README, "On Ascend"

# What the first work on this method forecast for TResNet-M, with the same constants, before it saw
# the figures above.
PREDICTED_ONCE = {1: 948, 4: 2257, 8: 2775, 16: 2890, 32: 2739}
# The same for other networks, moved by half of M's median error.
MOVED = {
    "tresnet_l_224": (645, 1464, 1732, 1753, 1663),
    "tresnet_xl_224": (501, 1107, 1284, 1286, 1227),
    "tresnet_v2_l_224": (677, 1541, 1766, 1745, 1638),
    "tresnet_m_448": (601, 771, 731, 681, 655),
    "tresnet_l_448": (367, 439, 417, 394, 383),
    "tresnet_xl_448": (277, 322, 307, 293, 286),
}

# Round numbers, so that every expected value below can be worked out by hand.
SIMPLE = speed.Constants(
    multiply_adds=1e12,
    ddr=1e9,
    l2=4e9,
    l2_size=1e6,
    l2_steepness=2.0,
    overlap=0.5,
    convolution_overhead=1e-6,
    dense_overhead=2e-6,
    depthwise_overhead=3e-6,
    vector_overhead=4e-6,
    pool_overhead=5e-6,
    move_overhead=6e-6,
    call=1e-4,
    depthwise_rate=1e9,
    vector_rate=2e9,
    pool_rate=4e9,
    move_rate=8e9,
    input_rate=1e9,
    ramp=2.0,
    short_sum=16.0,
)


# ---- graphs --------------------------------------------------------------------------------------


def save(
    path: Path,
    nodes: Sequence[Any],
    weights: Dict[str, Tuple[int, ...]],
    output: Sequence[Any],
    image: Sequence[Any] = ("batch", 3, 8, 8),
    opset: int = 13,
    **values: np.ndarray,
) -> Path:
    """A graph from `image` to `class` whose weights have these shapes."""
    tensors = [
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()
    ]
    tensors += [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("class", TensorProto.FLOAT, output)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(model, str(path))
    return path


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(operator, inputs.split(), [output], name=output, **attributes)


def small_graph(folder: Path) -> Path:
    """Every kind of kernel but a move.

    3 → 20 channels, 8×8 pixels, then half of that, a residual sum, a head.
    """
    nodes = [
        node("Conv", "image w1 b1", "conv1", pads=[1] * 4),
        node("Relu", "conv1", "relu1"),
        node("MaxPool", "relu1", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "pool w2", "depth", pads=[1] * 4, group=20),
        node("Conv", "depth w3", "conv3"),
        node("Add", "conv3 pool", "add"),
        node("LeakyRelu", "add", "relu3"),
        node("GlobalAveragePool", "relu3", "squeezed"),
        node("Sigmoid", "squeezed", "gate"),
        node("Mul", "relu3 gate", "mul"),
        node("GlobalAveragePool", "mul", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat w4 b4", "class", transB=1),
    ]
    shapes = {
        "w1": (20, 3, 3, 3),
        "b1": (20,),
        "w2": (20, 1, 3, 3),
        "w3": (20, 20, 1, 1),
        "w4": (10, 20),
        "b4": (10,),
    }
    return save(folder / "small.onnx", nodes, shapes, ["batch", 10])


def test_the_kernels_of_a_graph_with_their_sizes(tmp_path: Path) -> None:
    """Channels are padded to 16: 3 and 10 → 16, 20 → 32. float16 has 2 bytes.

    The image's 4·3·3 = 36 products → 48.
    """
    network = speed.read_network(str(small_graph(tmp_path)))
    assert (network.input_elements, network.height, network.width) == (3 * 8 * 8, 8, 8)
    image, large, half, one = 16 * 64, 32 * 64, 32 * 16, 32
    kernel = speed.Kernel
    assert network.kernels == (
        kernel(
            "conv1",
            ("Conv", "Relu"),
            "convolution",
            48 * 32,
            48,
            32,
            64,
            2 * 48 * 32,
            2 * (image + large),
        ),
        kernel("pool", ("MaxPool",), "pool", large, activations=2 * (large + half)),
        kernel(
            "depth", ("Conv",), "depthwise", 20 * 9 * 16, 0, 0, 16, 2 * 32 * 9, 2 * (half + half)
        ),
        kernel(
            "conv3",
            ("Conv", "Add", "LeakyRelu"),
            "convolution",
            32 * 32,
            32,
            32,
            16,
            2 * 32 * 32,
            2 * 3 * half,
        ),
        kernel("squeezed", ("GlobalAveragePool",), "pool", half, activations=2 * (half + one)),
        kernel("gate", ("Sigmoid",), "vector", one, activations=2 * (one + one)),
        kernel("mul", ("Mul",), "vector", half, activations=2 * (half + one + half)),
        kernel("mean", ("GlobalAveragePool",), "pool", half, activations=2 * (half + one)),
        kernel("class", ("Gemm",), "dense", 32 * 16, 32, 16, 1, 2 * 32 * 16, 2 * (one + 16)),
    )


def test_an_open_and_a_fixed_batch_have_the_same_kernels(tmp_path: Path) -> None:
    free = speed.read_network(str(small_graph(tmp_path)))
    model = onnx.load(str(tmp_path / "small.onnx"))
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(model, str(tmp_path / "eight.onnx"))
    assert speed.read_network(str(tmp_path / "eight.onnx")) == free


CONV = {"w": (16, 16, 1, 1), "v": (16, 16, 1, 1), "bn": (16,)}
FUSIONS = {
    "batch norm and clamp": (
        [
            node("Conv", "image w", "a"),
            node("BatchNormalization", "a bn bn bn bn", "b"),
            node("Clip", "b", "class"),
        ],
        ["Conv BatchNormalization Clip"],
    ),
    "a sum before its other term is there": (
        [node("Conv", "image w", "a"), node("Sigmoid", "image", "b"), node("Add", "a b", "class")],
        ["Conv Add", "Sigmoid"],
    ),
    "two convolutions for one sum": (
        [
            node("Conv", "image w", "a"),
            node("Conv", "image v", "b"),
            node("Add", "a b", "c"),
            node("Relu", "c", "class"),
        ],
        ["Conv Add Relu", "Conv"],
    ),
    "a result with two readers": (
        [node("Conv", "image w", "a"), node("Relu", "a", "b"), node("Add", "a b", "class")],
        ["Conv", "Relu", "Add"],
    ),
    "swish": (
        [node("Conv", "image w", "a"), node("Sigmoid", "a", "b"), node("Mul", "b a", "class")],
        ["Conv", "Sigmoid Mul"],
    ),
    "a gate is not a swish": (
        [node("Sigmoid", "image", "a"), node("Conv", "image w", "b"), node("Mul", "b a", "class")],
        ["Sigmoid", "Conv", "Mul"],
    ),
    "batch norm alone": (
        [
            node("BatchNormalization", "image bn bn bn bn", "a"),
            node("Relu", "a", "b"),
            node("Conv", "b w", "class"),
        ],
        ["BatchNormalization Relu", "Conv"],
    ),
    "no sigmoid": (
        [node("Conv", "image w", "a"), node("Sigmoid", "a", "class")],
        ["Conv", "Sigmoid"],
    ),
    "no activation twice": (
        [node("Conv", "image w", "a"), node("Relu", "a", "b"), node("Clip", "b", "class")],
        ["Conv Relu", "Clip"],
    ),
}


@pytest.mark.parametrize("nodes, expected", FUSIONS.values(), ids=FUSIONS)
def test_what_atc_fuses_is_one_kernel(
    nodes: List[Any], expected: List[str], tmp_path: Path
) -> None:
    path = save(tmp_path / "net.onnx", nodes, CONV, ["batch", 16, 8, 8], ["batch", 16, 8, 8])
    assert [
        " ".join(kernel.operators) for kernel in speed.read_network(str(path)).kernels
    ] == expected


def test_a_result_that_the_graph_hands_out_is_not_fused(tmp_path: Path) -> None:
    path = save(
        tmp_path / "net.onnx",
        [node("Conv", "image w", "a"), node("Relu", "a", "class")],
        CONV,
        ["batch", 16, 8, 8],
        ["batch", 16, 8, 8],
    )
    model = onnx.load(str(path))
    model.graph.output.append(
        helper.make_tensor_value_info("a", TensorProto.FLOAT, ["batch", 16, 8, 8])
    )
    onnx.save(model, str(path))
    assert [kernel.operators for kernel in speed.read_network(str(path)).kernels] == [
        ("Conv",),
        ("Relu",),
    ]


@pytest.mark.parametrize(
    "channels, groups, reduction, padded_out",
    (
        ((128, 128), 32, 16 * 9, 128),  # 4 + 4 channels: four groups together fill 16
        ((256, 256), 32, 16 * 9, 256),  # 8 + 8: two of them
        ((64, 128), 2, 32 * 9, 128),  # 32 + 64: they fill 16 alone
        ((96, 48), 4, 48 * 9, 64),  # 24 + 12: two together, 48 + 24 → 48 + 32
        ((24, 24), 3, 16 * 9, 32),  # 8 + 8: two together, and the third alone
    ),
)
def test_groups_are_merged_until_they_fill_the_matrix_unit(
    channels: Tuple[int, int], groups: int, reduction: int, padded_out: int, tmp_path: Path
) -> None:
    path = save(
        tmp_path / "net.onnx",
        [node("Conv", "image w", "class", pads=[1] * 4, group=groups)],
        {"w": (channels[1], channels[0] // groups, 3, 3)},
        ["batch", channels[1], 8, 8],
        ["batch", channels[0], 8, 8],
    )
    kernel = speed.read_network(str(path)).kernels[0]
    assert (kernel.kind, kernel.reduction, kernel.channels) == (
        "convolution",
        reduction,
        padded_out,
    )
    assert kernel.work == reduction * padded_out


def test_moves_and_what_only_computes_sizes(tmp_path: Path) -> None:
    """A Slice reads what it hands on; what computes a shape is not a kernel.

    The data of SpaceToDepth and a reflecting Pad are converted before and behind. Their own
    formats hold no padding.
    """
    nodes = [
        node("SpaceToDepth", "image", "deep", blocksize=2),
        node("Pad", "deep pads", "wide", mode="reflect"),
        node("Slice", "wide start end axis", "row"),
        node("Concat", "row wide", "tall", axis=2),
        node("Shape", "tall", "shape"),
        node("Reshape", "tall shape", "same"),
        node("Relu", "same", "class"),
    ]
    path = save(
        tmp_path / "net.onnx",
        nodes,
        {},
        ["batch", 12, 6, 5],
        opset=14,
        pads=np.array([0, 0, 1, 1, 0, 0, 0, 0], np.int64),
        start=np.array([1], np.int64),
        end=np.array([2], np.int64),
        axis=np.array([2], np.int64),
    )
    kernels = speed.read_network(str(path)).kernels
    assert [
        (" ".join(kernel.operators), kernel.kind, kernel.work, kernel.activations)
        for kernel in kernels
    ] == [
        ("TransData", "move", 192, 4 * 192),
        ("SpaceToDepth", "move", 256, 2 * (1024 + 256)),
        ("TransData", "move", 192, 4 * 192),
        ("TransData", "move", 192, 4 * 192),
        ("Pad", "move", 400, 2 * (256 + 400)),
        ("TransData", "move", 300, 4 * 300),
        ("Slice", "move", 80, 2 * (80 + 80)),
        ("Concat", "move", 480, 2 * (80 + 400 + 480)),
        ("Relu", "vector", 480, 2 * (480 + 480)),
    ]


# ---- the time of a kernel ------------------------------------------------------------------------


def test_a_convolution_takes_its_multiply_adds_and_what_of_memory_is_not_hidden() -> None:
    """10 pixels × batch 3 = 30 → 32 rows, two tiles; 32 channels, two tiles.

    These are 4 tiles for 8 cores, 0.5 each. compute = 48·32·32 / 1e12 · (1 + 2/0.5) · (1 + 16/48).
    memory: 3e5 · 3 = 9e5 bytes; L2 has 1/(1 + 0.81) of them.
    """
    kernel = speed.Kernel("c", ("Conv",), "convolution", 48 * 32, 48, 32, 10, 3072, 300_000)
    time = speed.kernel_time(kernel, 3, SIMPLE)
    compute = 49152e-12 * 5 * (64 / 48)
    memory = 3072e-9 + 9e5 * (1 / 1.81 / 4e9 + 0.81 / 1.81 / 1e9)
    assert compute < memory
    assert time == pytest.approx((1e-6, compute / 2, memory, 0.0))


@pytest.mark.parametrize(
    "kind, overhead, rate",
    (("depthwise", 3e-6, 1e9), ("vector", 4e-6, 2e9), ("pool", 5e-6, 4e9), ("move", 6e-6, 8e9)),
)
def test_other_kernels_take_their_elements_and_overhead(
    kind: str, overhead: float, rate: float
) -> None:
    """1e6 bytes: half of them from L2; 0.5/4e9 + 0.5/1e9 s each."""
    kernel = speed.Kernel("k", ("?",), kind, 10_000_000, 0, 0, 1, 0, 500_000)
    time = speed.kernel_time(kernel, 2, SIMPLE)
    assert time == pytest.approx((overhead, 2e7 / rate, 1e6 * 0.625e-9 / 2, 0.0))


def test_images_per_second_of_a_network_and_of_bytes(tmp_path: Path) -> None:
    """One vector kernel: 1024 elements, 4096 bytes an image; 4·192 bytes of float32, or 192."""
    path = save(tmp_path / "net.onnx", [node("Sigmoid", "image", "class")], {}, ["batch", 3, 8, 8])
    network = speed.read_network(str(path))
    data = speed.read_data()._replace(constants=SIMPLE)
    for uint8, image_bytes in ((False, 768), (True, 192)):
        (found,) = speed.forecast(network, [4], data, uint8)
        in_l2 = 1 / (1 + (16384 / 1e6) ** 2)
        memory = 16384 * (in_l2 / 4e9 + (1 - in_l2) / 1e9)
        assert found.time == pytest.approx(
            (1e-4 + 4e-6, 4096 / 2e9 / 2, memory, 4 * image_bytes / 1e9)
        )
        assert found.images_per_s == pytest.approx(4 / sum(found.time))
        assert found.low_80 == pytest.approx(found.images_per_s / data.factor_80[4])
        assert found.high_90 == pytest.approx(found.images_per_s * data.factor_90[4])


def test_the_range_between_two_batch_sizes_lies_between_theirs() -> None:
    factors = {1: 1.2, 4: 1.4, 16: 1.5}
    found = [speed.factor_at(factors, size) for size in (1, 2, 4, 8, 16, 32)]
    assert found == pytest.approx([1.2, 1.3, 1.4, 1.45, 1.5, 1.5])


def test_the_fit_computes_the_same_times(tmp_path: Path) -> None:
    """test/fit_speed.py has an implementation of its own, over arrays."""
    network = speed.read_network(str(small_graph(tmp_path)))
    constants = speed.read_data().constants
    published = {1: 1.0, 3: 1.0, 32: 1.0}
    entry = fit_speed.Entry(
        "small", "small", fit_speed.arrays(network.kernels), network.input_elements * 4, published
    )
    found = fit_speed.seconds(fit_speed.figures_of([entry, entry]), constants._asdict())
    own = [speed.network_time(network, size, constants).total for size in published]
    assert found == pytest.approx([*own, *own], rel=1e-12)


# ---- TResNet -------------------------------------------------------------------------------------

GRAPHS = [
    ("tresnet_m_224", "conv4", "ascend", "slice"),
    ("tresnet_m_224", "conv12", "ascend", "slice"),
    ("tresnet_m_224", "space-to-depth", "ascend", "slice"),
    ("tresnet_m_224", "conv4", "miil", "slice"),
    ("tresnet_m_224", "space-to-depth", "miil", "pad"),
    *((name, "conv4", "ascend", "slice") for name in MOVED),
]


@pytest.fixture(scope="module")
def graphs(shared: Shared) -> Dict[Tuple[str, str, str, str], speed.Network]:
    """The product's own graphs of the family, as their kernels; weights do not matter."""

    def make(folder: Path) -> None:
        from common.model.graph import build_model
        from common.model.network import create_network

        networks: Dict[str, Any] = {}
        for variant_and_size, stem, lineage, reflect in GRAPHS:
            variant, size = variant_and_size.rsplit("_", 1)
            network = networks.setdefault(variant, create_network(variant, 1000).eval())
            for module in network.modules():
                if hasattr(module, "pad_mode"):
                    module.pad_mode = {"miil": "reflect", "ascend": "constant"}[lineage]
            model = build_model(network, int(size), 11, None, stem, reflect)
            name = "-".join((variant_and_size, stem, lineage, reflect))
            for tensor in model.graph.initializer:  # hundreds of megabytes that nobody reads
                if len(tensor.dims) > 1:
                    tensor.ClearField("raw_data")
            onnx.save(model, str(folder / f"{name}.onnx"))

    folder = shared("speed_graphs", make)
    return {key: speed.read_network(str(folder / f"{'-'.join(key)}.onnx")) for key in GRAPHS}


Graphs = Dict[Tuple[str, str, str, str], speed.Network]


def speeds(network: speed.Network) -> Dict[int, speed.Forecast]:
    return {row.batch_size: row for row in speed.forecast(network, BATCH_SIZES, speed.read_data())}


@pytest.mark.slow
def test_the_kernels_of_tresnet_m(graphs: Graphs) -> None:
    """100 Conv: 36 of 18 squeeze-and-excitation modules (on 1×1), 3 blurs, 61 others.

    One Gemm on 1×1. 19 + 3 poolings. 18 Sigmoid, 18 Mul. 7 blocks end in the Mul. One of them has
    a downsample that takes its sum and ReLU along. The six others launch them alone: 12.
    """
    kinds = [kernel.kind for kernel in graphs["tresnet_m_224", "conv4", "ascend", "slice"].kernels]
    counted = {kind: kinds.count(kind) for kind in speed.KINDS}
    assert counted == {
        "convolution": 61,
        "dense": 37,
        "depthwise": 3,
        "vector": 18 + 18 + 12,
        "pool": 22,
        "move": 0,
    }
    miil = [kernel.kind for kernel in graphs["tresnet_m_224", "conv4", "miil", "slice"].kernels]
    assert miil.count("move") == 12 and len(miil) == len(kinds) + 12


@pytest.mark.slow
@pytest.mark.parametrize("stem", ("conv4", "conv12", "space-to-depth"))
def test_the_held_out_figures_of_tresnet_m(stem: str, graphs: Graphs) -> None:
    found = speeds(graphs["tresnet_m_224", stem, "ascend", "slice"])
    for size in BATCH_SIZES:
        assert found[size].images_per_s == pytest.approx(PREDICTED_ONCE[size], rel=0.02)
        assert found[size].low_80 < PUBLISHED_M[size] < found[size].high_80
    if stem == "conv4":
        documented = tables()
        assert documented["forecast, images/s"] == [
            [f"{found[size].images_per_s:,.0f}" for size in BATCH_SIZES]
        ]
        assert documented["80 % range"] == [
            [f"{found[size].low_80:,.0f} to {found[size].high_80:,.0f}" for size in BATCH_SIZES]
        ]
    assert (
        speed.best(list(found.values())).batch_size
        == 16
        == max(PUBLISHED_M, key=lambda size: PUBLISHED_M[size])
    )


@pytest.mark.slow
def test_the_family_and_448_pixels(graphs: Graphs) -> None:
    ours = speeds(graphs["tresnet_m_224", "conv4", "ascend", "slice"])
    errors = [math.log(ours[size].images_per_s / PUBLISHED_M[size]) for size in BATCH_SIZES]
    moved_by = math.exp(-np.median(errors) / 2)
    documented = tables()
    for name, expected in MOVED.items():
        rows = speeds(graphs[name, "conv4", "ascend", "slice"])
        found = [rows[size].images_per_s * moved_by for size in BATCH_SIZES]
        assert found == pytest.approx(expected, rel=0.03), name
        variant, size = name[len("tresnet_") :].rsplit("_", 1)
        title = f"{variant if '_' in variant else variant.upper()} {size}"
        assert documented[title] == [[f"{images_per_s:,.0f}" for images_per_s in found]]


@pytest.mark.slow
def test_a_graph_with_space_to_depth_and_pad_is_forecast_slower(graphs: Graphs) -> None:
    usual = speeds(graphs["tresnet_m_224", "conv4", "miil", "slice"])
    slow = speeds(graphs["tresnet_m_224", "space-to-depth", "miil", "pad"])
    assert all(slow[size].images_per_s < 0.99 * usual[size].images_per_s for size in BATCH_SIZES)


# ---- what is refused -----------------------------------------------------------------------------


def forecast(folder: Path, *words: object) -> Any:
    return start_here(forecast_speed.main, {}, folder, "forecast_speed.py", *words)


IMAGE = ["batch", 3, 8, 8]
W: Dict[str, Tuple[int, ...]] = {"w": (3, 3, 1, 1)}
REFUSED: Dict[str, Tuple[List[Any], Dict[str, Tuple[int, ...]], str]] = {
    "quantised": (
        [node("QuantizeLinear", "image scale", "q"), node("DequantizeLinear", "q scale", "class")],
        {"scale": ()},
        "the operator QuantizeLinear (q): the model is quantised",
    ),
    "norm": (
        [node("InstanceNormalization", "image s s", "class")],
        {"s": (3,)},
        "InstanceNormalization (class): a network with layer norms was off by a factor",
    ),
    "attention": (
        [node("MatMul", "image image", "class")],
        {},
        "MatMul (class): attention was in none of the measured networks",
    ),
    "unknown": (
        [node("Erf", "image", "class")],
        {},
        "Erf (class): no measured network shows how long it takes",
    ),
    "control flow": (
        [node("NonMaxSuppression", "image image", "class")],
        {},
        "NonMaxSuppression (class): no measured",
    ),
    "other domain": (
        [node("FusedConv", "image w", "class", domain="com.microsoft")],
        W,
        "FusedConv (class): no mea",
    ),
    "known name, other domain": (
        [node("Conv", "image w", "class", domain="com.x")],
        W,
        "Conv (class): no measured",
    ),
    "computed weights": (
        [node("Softmax", "image", "s"), node("Conv", "image s", "class")],
        {},
        "Conv (class): attention was in none",
    ),
    "sizes of images": ([node("Ceil", "image", "class")], {}, "Ceil (class): no measured network"),
    "no work": (
        [node("Identity", "image", "class")],
        {},
        "nothing in it is computed from its input",
    ),
    "groups": ([node("Conv", "image w", "class", group=2)], W, "do not fit 3 channels in 2 groups"),
    "no groups": (
        [node("Conv", "image w", "class", group=0)],
        W,
        "do not fit 3 channels in 0 groups",
    ),
    "contradiction": (
        [node("Conv", "image w", "class")],
        {"w": (3, 4, 1, 1)},
        "do not fit 3 channels in 1 groups",
    ),
    "wrong order": (
        [node("Relu", "a", "class"), node("Conv", "image w", "a")],
        W,
        "is not a valid ONNX graph",
    ),
    "no inputs": (
        [helper.make_node("Conv", [], ["class"], name="c")],
        {},
        "is not a valid ONNX graph",
    ),
    "dynamic": ([node("NonZero", "image", "class")], {}, "NonZero (class): no measured"),
    "size from values": (
        [node("Cast", "image", "c", to=7), node("Expand", "image c", "class")],
        {},
        "Expand (class)",
    ),
}


@pytest.mark.parametrize("nodes, weights, complaint", REFUSED.values(), ids=REFUSED)
def test_a_graph_that_the_forecast_is_not_for_is_refused(
    nodes: List[Any], weights: Dict[str, Tuple[int, ...]], complaint: str, tmp_path: Path
) -> None:
    save(tmp_path / "small.onnx", nodes, weights, IMAGE)
    done = forecast(tmp_path, "small.onnx", "--output", "out")
    assert done.returncode == 1 and complaint in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr and done.stdout == ""
    assert not list(tmp_path.glob("out/*"))


def test_a_size_inside_the_graph_that_stays_open_is_refused(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", "where", "there"),
        node("Reshape", "image there", "r"),
        node("Relu", "r", "class"),
    ]
    save(tmp_path / "small.onnx", nodes, {}, ["n", "m"], where=np.array([1, 192], np.int64))
    done = forecast(tmp_path, "small.onnx")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "no speed can be forecast for small.onnx: the size of class is not fixed" in done.stderr


@pytest.mark.parametrize(
    "image, complaint",
    (
        (["batch", 3, "height", "width"], "but all sizes except the batch must be fixed"),
        (["batch", 192], "must have one input of 4 dimensions (NCHW)"),
    ),
)
def test_an_open_image_size_is_refused(image: List[Any], complaint: str, tmp_path: Path) -> None:
    save(tmp_path / "small.onnx", [node("Relu", "image", "class")], {}, image, image)
    done = forecast(tmp_path, "small.onnx")
    assert done.returncode == 1 and complaint in done.stderr, done.stderr


@pytest.mark.parametrize(
    "words, complaint",
    (
        (
            ["--soc-version", "Ascend910B4"],
            "for the chip Ascend910B4: the published figures are only of the 310P3",
        ),
        (["--soc-version", "310P1"], "for the chip 310P1"),
        (
            ["--batch-sizes", "8,64"],
            "at batch size 64: the forecast was checked up to 32; give --batch-sizes up to that",
        ),
    ),
)
def test_other_chips_and_larger_batches_are_refused(
    words: List[str], complaint: str, tmp_path: Path
) -> None:
    small_graph(tmp_path)
    done = forecast(tmp_path, "small.onnx", *words)
    assert done.returncode == 1 and complaint in done.stderr, done.stderr
    assert not (tmp_path / "speed.json").exists()


def test_what_is_not_an_onnx_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    content = small_graph(tmp_path).read_bytes()
    generator = np.random.RandomState(0)
    hostile = {
        "empty": b"",
        "text": b"this is not a model\n",
        "half": content[: len(content) // 2],
        "short": content[:-1],
        "noise": generator.bytes(4096),
    }
    for name, data in hostile.items():
        (tmp_path / f"{name}.onnx").write_bytes(data)
        done = forecast(tmp_path, f"{name}.onnx", "--output", name)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (name, done.stderr)
        assert "Traceback" not in done.stderr, (name, done.stderr)


def test_a_changed_byte_is_refused_or_changes_a_finite_forecast(tmp_path: Path) -> None:
    """Any other exception than a Refusal is a defect of the program."""
    content = small_graph(tmp_path).read_bytes()
    generator, data, refused = np.random.RandomState(0), speed.read_data(), 0
    for _ in range(400):
        changed = bytearray(content)
        changed[generator.randint(len(content))] = generator.randint(256)
        (tmp_path / "changed.onnx").write_bytes(bytes(changed))
        try:
            network = speed.read_network(str(tmp_path / "changed.onnx"))
        except cli.Refusal:
            refused += 1
            continue
        (row,) = speed.forecast(network, [8], data)
        assert 0 < row.images_per_s < math.inf
    assert refused > 10


def test_weights_in_another_file_are_not_needed(tmp_path: Path) -> None:
    whole = speed.read_network(str(small_graph(tmp_path)))
    model = onnx.load(str(tmp_path / "small.onnx"))
    onnx.save(
        model,
        str(tmp_path / "outside.onnx"),
        save_as_external_data=True,
        location="weights",
        size_threshold=0,
    )
    (tmp_path / "weights").unlink()
    assert speed.read_network(str(tmp_path / "outside.onnx")) == whole


# ---- the program ---------------------------------------------------------------------------------


def test_the_table_the_json_and_the_plot(tmp_path: Path) -> None:
    network = speed.read_network(str(small_graph(tmp_path)))
    done = forecast(tmp_path, "small.onnx", "--output", "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert (report["tool"], report["version"], report["chip"]) == (
        "forecast_speed.py",
        cli.VERSION,
        "310P3",
    )
    expected = speed.forecast(network, BATCH_SIZES, speed.read_data())
    assert [row["batch_size"] for row in report["rows"]] == list(BATCH_SIZES)
    for row, known in zip(report["rows"], expected):
        assert row["images_per_s"] == known.images_per_s and row["low_80"] == known.low_80
        assert sum(row["shares"].values()) == pytest.approx(1)
        assert (
            f"{row['batch_size']:5d}  {known.images_per_s:8,.0f}  {known.low_80:,.0f} to"
            in done.stdout
        )
    best = speed.best(expected).batch_size
    assert report["best_batch_size"] == best and [row["name"] for row in report["kernels"]] == [
        kernel.name for kernel in network.kernels
    ]
    longest = max(report["kernels"], key=lambda row: row["us"])
    listed = done.stdout.split("mostly    kernel\n")[1].splitlines()
    assert f"{longest['name']} ({' + '.join(longest['operators'])})" in listed[0]
    assert "a forecast from figures that were published in 2022 and 2023" in done.stdout
    assert (tmp_path / "out" / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_up_to_date_is_shown_again_and_an_option_makes_it_again(tmp_path: Path) -> None:
    small_graph(tmp_path)
    first = forecast(tmp_path, "small.onnx").stdout
    again = forecast(tmp_path, "small.onnx").stdout
    assert "is up to date" in again and again.splitlines()[:-1] == first.splitlines()[:-1]
    bytes_now = forecast(tmp_path, "small.onnx", "--uint8").stdout
    assert "is up to date" not in bytes_now and bytes_now != first
    (tmp_path / "small.onnx").write_bytes(save_network(tmp_path / "other.onnx").read_bytes())
    assert "is up to date" not in forecast(tmp_path, "small.onnx", "--uint8").stdout


def test_a_file_of_the_user_stays(tmp_path: Path) -> None:
    small_graph(tmp_path)
    (tmp_path / "speed.json").write_text("mine")
    done = forecast(tmp_path, "small.onnx")
    assert done.returncode == 1 and "no record says that this program made it" in done.stderr
    assert (tmp_path / "speed.json").read_text() == "mine"


def test_a_fixed_batch_size_is_the_only_one(tmp_path: Path) -> None:
    save_network(tmp_path / "net.onnx", batch=8)
    assert forecast(tmp_path, "net.onnx").returncode == 0
    assert [
        row["batch_size"] for row in json.loads((tmp_path / "speed.json").read_text())["rows"]
    ] == [8]
    done = forecast(tmp_path, "net.onnx", "--batch-sizes", "4")
    assert done.returncode == 1 and "the batch size of net.onnx is fixed to 8" in done.stderr


def test_above_384_pixels_the_limit_is_said(tmp_path: Path) -> None:
    save(
        tmp_path / "net.onnx",
        [node("Relu", "image", "class")],
        {},
        ["batch", 3, 448, 448],
        ["batch", 3, 448, 448],
    )
    done = forecast(tmp_path, "net.onnx")
    assert (
        done.returncode == 0
        and "nothing was published for such networks above 384 pixels" in done.stdout
    )


# ---- after a measurement -------------------------------------------------------------------------


def rows_of(*figures: Tuple[int, float, float]) -> List[speed.Forecast]:
    """Forecasts of (batch size, images/s, factor of the 90 % range)."""
    return [
        speed.Forecast(
            size,
            found,
            found / 1.2,
            found * 1.2,
            found / factor,
            found * factor,
            speed.Time(0.0, size / found, 0.0, 0.0),
        )
        for size, found, factor in figures
    ]


def test_half_of_the_speed_is_named_as_slow_with_what_to_look_at(tmp_path: Path) -> None:
    nodes = [node("SpaceToDepth", "image", "deep", blocksize=2), node("Relu", "deep", "class")]
    network = speed.read_network(str(save(tmp_path / "net.onnx", nodes, {}, ["batch", 12, 4, 4])))
    forecasts = rows_of((8, 2800, 1.6), (16, 2900, 1.6))
    verdicts = speed.judge({8: 1400, 16: 2700, 64: 5}, forecasts)
    assert [(verdict.batch_size, verdict.is_slow, verdict.ratio) for verdict in verdicts] == [
        (8, True, 0.5),
        (16, False, 2700 / 2900),
    ]
    opinion = speed.describe(verdicts, network)
    assert opinion.is_slow and opinion.sentence == (
        "slower than networks of this kind run there: 1,400 images/s at batch size 8, and 95 % of "
        "them reach 1,750"
    )
    assert opinion.look_at[0].startswith("the graph: it has SpaceToDepth, which")
    words = ("open batch", "other processes", "temperature", "virtual NPU", "driver")
    assert [word in cause for word, cause in zip(words, opinion.look_at[1:])] == [True] * 5


def test_a_speed_inside_the_range_is_not_named_as_slow(tmp_path: Path) -> None:
    network = speed.read_network(str(small_graph(tmp_path)))
    verdicts = speed.judge({8: 1760, 16: 4000}, rows_of((8, 2800, 1.6), (16, 2900, 1.6)))
    assert not any(verdict.is_slow for verdict in verdicts)
    assert speed.describe(verdicts, network) == speed.Opinion(
        False, "as fast as networks of this kind run there: 0.63 to 1.38 times the forecast"
    )
    assert speed.describe(verdicts[:1], network).sentence == (
        "as fast as networks of this kind run there: 0.63 times the forecast"
    )
    assert "graph" not in speed.look_at(network)


def test_one_measured_batch_size_gives_the_others() -> None:
    data = speed.read_data()
    moved = speed.from_measured(
        8, 1400, rows_of((1, 900, 1.5), (8, 2800, 1.6), (16, 3000, 1.6)), data
    )
    assert [(row.batch_size, row.images_per_s) for row in moved] == [(1, 450), (16, 1500)]
    for row in moved:
        assert row.low_80 == row.images_per_s / data.from_one_80[8][row.batch_size]
        assert row.high_90 == row.images_per_s * data.from_one_90[8][row.batch_size]


def test_what_cannot_win_need_not_be_measured() -> None:
    others = rows_of((1, 900, 1.5), (16, 3000, 1.1))
    assert speed.cannot_win(others, 3301) and not speed.cannot_win(others, 3299)


# ---- the data ------------------------------------------------------------------------------------


def test_the_figures_that_the_constants_rest_on() -> None:
    with open(str(ROOT / "test" / "data" / "speed_310p3.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [f"images/s at {size}" for size in (*BATCH_SIZES, 64)]
    figures: List[str] = []
    for row in rows:
        figures += [row[column] for column in columns if row[column]]
    assert (len(rows), len(figures)) == (51, 296)
    assert not any("tresnet" in row["network"] for row in rows), "it was held out"


def test_a_near_measurement_is_worth_more_and_a_range_is_wider_with_90_percent() -> None:
    data = speed.read_data()
    assert all(data.factor_80[size] < data.factor_90[size] for size in BATCH_SIZES)
    for measured, row in data.from_one_80.items():
        assert measured not in row and all(
            row[size] <= data.from_one_90[measured][size] for size in row
        )
    assert data.from_one_80[8][16] < data.factor_80[16]


def tables() -> Dict[str, List[List[str]]]:
    """{first cell of a row: its other cells}, of docs/speed.md; several rows may begin equally."""
    rows: Dict[str, List[List[str]]] = {}
    for line in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            first, *others = [cell.strip() for cell in line.strip("|").split("|")]
            rows.setdefault(first, []).append(others)
    return rows


def test_the_page_says_what_the_data_file_says() -> None:
    content = json.loads(Path(speed.DATA).read_text())
    written: Dict[str, str] = {}
    for first, rows in tables().items():
        if first.startswith("`") and len(rows[0]) == 2:
            numbers = re.findall(r"[0-9][0-9.e]*", rows[0][0])
            written.update(zip(re.findall("`([A-Za-z0-9]+)`", first), numbers))
    values = {entry["symbol"]: entry["value"] for entry in content["constants"].values()}
    seconds = {symbol for symbol in values if symbol in ("oc", "ot", "od", "ov", "op", "om", "T0")}
    assert {
        symbol: float(text) * (1e-6 if symbol in seconds else 1) for symbol, text in written.items()
    } == (pytest.approx(values))
    data = speed.read_data()
    for name, factors in (("80", data.factor_80), ("90", data.factor_90)):
        assert tables()[f"factor of the {name} % range"][0][:5] == [
            f"{factor:.2f}" for factor in factors.values()
        ]
    for measured in BATCH_SIZES:
        cells = [
            f"{data.from_one_80[measured][other]:.2f} / {data.from_one_90[measured][other]:.2f}"
            if other != measured
            else ""
            for other in BATCH_SIZES
        ]
        assert tables()[str(measured)] == [cells]


@pytest.mark.parametrize("content", ("{}", "[]", "{", '{"constants": {"P": {"value": 1}}}'))
def test_a_damaged_data_file_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(cli.Refusal, match="data.json is damaged"):
        speed.read_data(str(tmp_path / "data.json"))
