"""Images per second on one Ascend 310P3, forecast from the layers of a network: no card is needed.

The forecast has three steps, and each is a function here that neither prints nor writes:
- read_network(): the kernels that atc would launch for an ONNX file, with the fusions that it
  makes;
- kernel_time(): how long one of them takes, from 20 constants that were fitted to published
  figures;
- forecast(): images per second at each batch size, with the range that holds 80 % of such
  forecasts' outcomes.
Two more serve after a measurement: judge() says whether a card is slower than it should be,
from_measured() forecasts the other batch sizes from a measured one. docs/speed.md has the method,
its sources and its errors; speed_310p3.json beside this file has the constants. Standard library,
and onnx where a file is read.
"""

from __future__ import annotations

import json
import math
import os
from typing import (
    TYPE_CHECKING,
    Any,
    Dict,
    Iterable,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from common.core import files
from common.core.cli import Refusal, shown, why
from common.model import onnx_file, operators

if TYPE_CHECKING:
    import onnx

DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "speed_310p3.json")
CHIP = "310P3"
LIMITS = (
    "from figures that were published in 2022 and 2023 for one 310P3, in float16, compute only",
    'it answers "one card or four?", not "1,500 or 1,700?"',
)

CUBE = 16  # the 310P3 multiplies matrices of 16 × 16: channels are padded to a multiple of it
CORES = 8  # AI cores of a 310P3: Ascend310P3.ini of CANN 8.1
FEW_CHANNELS = 4  # a first convolution of at most so many input channels is packed by atc
FLOAT16, FLOAT32, UINT8 = 2, 4, 1  # bytes of a value
SMALL_TENSOR = 16  # values of a tensor that may decide a shape
LARGEST_DIMENSION = 1 << 24  # of any tensor: far above those of networks for images
LARGEST_SIZE = 384  # pixels a side: above it no figure of such a network was published

# ---- which operators are known -------------------------------------------------------------------

CONVOLUTION, DENSE, DEPTHWISE = "convolution", "dense", "depthwise"
VECTOR, POOL, MOVE = "vector", "pool", "move"
KINDS = (CONVOLUTION, DENSE, DEPTHWISE, VECTOR, POOL, MOVE)

MULTIPLIERS = ("Conv", "Gemm", "MatMul")
ACTIVATIONS = ("Relu", "LeakyRelu", "Clip")  # that atc computes in the convolution before them
SWITCHES = ("Sigmoid", "HardSigmoid")  # of a Swish
WITHOUT_WORK = (
    "Flatten",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Identity",
    "Dropout",
)  # the data stay where they are
KIND_OF = {
    **dict.fromkeys(
        (
            *ACTIVATIONS,
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Sum",
            "Sigmoid",
            "HardSigmoid",
            "HardSwish",
            "Gelu",
            "Softmax",
            "BatchNormalization",
        ),
        VECTOR,
    ),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum"),
        POOL,
    ),
    **dict.fromkeys(
        ("Slice", "Split", "Concat", "Pad", "SpaceToDepth", "DepthToSpace", "Transpose", "Resize"),
        MOVE,
    ),
}
COSTLY_MOVES = ("SpaceToDepth", "Pad")  # of a graph that the card runs slowly: docs/graph.md

QUANTISED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "AscendQuant",
    "AscendDequant",
)
NORMS = (
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "LpNormalization",
    "RMSNormalization",
)
ATTENTION = ("Attention", "MultiHeadAttention", "Einsum")
REASONS = {
    **dict.fromkeys(
        QUANTISED, "the model is quantised, and int8 runs at other speeds; give its float32 file"
    ),
    **dict.fromkeys(NORMS, "a network with layer norms was off by a factor of 2 to 2.6"),
    **dict.fromkeys(ATTENTION, "attention was in none of the measured networks"),
}
UNKNOWN = "no measured network shows how long it takes"


class Kernel(NamedTuple):
    """One program that the card runs: an operator with those that are fused into it.

    Sizes are for one image.
    """

    name: str  # of its first operator
    operators: Tuple[str, ...]  # types of all operators in it, in the order in which they run
    kind: str  # one of KINDS
    work: int  # padded multiply-adds of one pixel; depthwise: multiply-adds; else elements
    reduction: int = 0  # products that are summed for one result, padded; convolution, dense
    channels: int = 0  # of the result, padded; convolution, dense
    pixels: int = 0  # height × width of the result; convolution, dense, depthwise
    weights: int = 0  # bytes; convolution, dense, depthwise
    activations: int = 0  # bytes that are read and written, without the weights


class Network(NamedTuple):
    """What the forecast needs of an ONNX file."""

    kernels: Tuple[Kernel, ...]
    input_elements: int  # values of one image
    height: int  # pixels
    width: int  # pixels


class Constants(NamedTuple):
    """The 20 constants: speed_310p3.json has their values, docs/speed.md their meaning."""

    multiply_adds: float  # per s, matrix unit
    ddr: float  # bytes per s
    l2: float  # bytes per s
    l2_size: float  # bytes
    l2_steepness: float  # how sharply activations stop fitting into L2
    overlap: float  # share of the shorter one of compute and memory that is not hidden
    convolution_overhead: float  # s, each kernel
    dense_overhead: float  # s, on maps of 1×1
    depthwise_overhead: float  # s
    vector_overhead: float  # s
    pool_overhead: float  # s
    move_overhead: float  # s
    call: float  # s, once for each batch
    depthwise_rate: float  # multiply-adds per s
    vector_rate: float  # elements per s
    pool_rate: float  # elements per s
    move_rate: float  # elements per s
    input_rate: float  # bytes per s, of images on their way to the card
    ramp: float  # cost of few tiles, in tiles for each core
    short_sum: float  # cost of short sums, in products


class Data(NamedTuple):
    """speed_310p3.json: the constants, and how far forecasts were off.

    The factors are those within which 80 % and 90 % of the forecasts were.
    """

    constants: Constants
    factor_80: Dict[int, float]  # {batch size: factor}
    factor_90: Dict[int, float]
    from_one_80: Dict[int, Dict[int, float]]  # {measured batch size: {other batch size: factor}}
    from_one_90: Dict[int, Dict[int, float]]


class Time(NamedTuple):
    """Seconds, by what they are spent on."""

    overhead: float  # launching kernels, and the call
    compute: float
    memory: float
    input: float  # bringing the images to the card

    @property
    def total(self) -> float:
        return self.overhead + self.compute + self.memory + self.input


class Forecast(NamedTuple):
    """Images per second at one batch size."""

    batch_size: int
    images_per_s: float
    low_80: float  # images/s
    high_80: float
    low_90: float
    high_90: float
    time: Time  # of one batch


class Verdict(NamedTuple):
    """A measured speed beside the forecast at the same batch size."""

    batch_size: int
    measured: float  # images/s
    forecast: Forecast
    is_slow: bool  # below the 90 % range

    @property
    def ratio(self) -> float:
        """Measured over forecast."""
        return self.measured / self.forecast.images_per_s


# ---- the data file -------------------------------------------------------------------------------


def read_data(path: str = DATA) -> Data:
    """The constants and error factors.

    Raises: Refusal if the file is damaged.
    """
    try:
        content = json.loads(files.read_regular(path))
        values = {name: float(entry["value"]) for name, entry in content["constants"].items()}
        return Data(
            Constants(**values),
            by_batch_size(content["factor_80"]),
            by_batch_size(content["factor_90"]),
            by_measured(content["from_one_80"]),
            by_measured(content["from_one_90"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f"{shown(path)} is damaged ({type(error).__name__}: {why(error)}); "
            "restore it from the repository"
        ) from None


def by_batch_size(row: Dict[str, float]) -> Dict[int, float]:
    """JSON's keys are text; in rising order of the batch sizes."""
    pairs = sorted((int(size), float(value)) for size, value in row.items())
    return dict(pairs)


def by_measured(table: Dict[str, Dict[str, float]]) -> Dict[int, Dict[int, float]]:
    """A row for each batch size that was measured."""
    return {int(size): by_batch_size(row) for size, row in table.items()}


def largest_batch(data: Data) -> int:
    """The largest batch size that figures were published for."""
    return max(data.factor_80)


def factor_at(factors: Dict[int, float], batch_size: int) -> float:
    """The factor at a batch size, also between those of the table.

    There it is on a straight line over the logarithm of the batch size. Beyond the table's ends it
    is that of the end.
    """
    sizes = sorted(factors)
    if batch_size in factors:
        return factors[batch_size]
    smaller = max((size for size in sizes if size < batch_size), default=sizes[0])
    larger = min((size for size in sizes if size > batch_size), default=sizes[-1])
    if smaller == larger:
        return factors[smaller]
    share = math.log(batch_size / smaller) / math.log(larger / smaller)
    return factors[smaller] + share * (factors[larger] - factors[smaller])


# ---- from an ONNX file to kernels ----------------------------------------------------------------


def padded(channels: int) -> int:
    """The next multiple of 16."""
    return -(-channels // CUBE) * CUBE


def read_network(path: str) -> Network:
    """The kernels of an ONNX file.

    Raises: Refusal if it cannot be read, or has what the forecast is not for.
    """
    model = onnx_file.load(path, external_data=False)
    image = onnx_file.describe(path)["input"]
    refuse_unknown(model, path)
    refuse_wild_sizes(model, path)
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    without_values(model)
    return Reader(model, weights, infer_shapes(model, path, image), image, path).network()


def refuse_unknown(model: onnx.ModelProto, path: str) -> None:
    """Raises: Refusal that names the first operator that the forecast is not for."""
    known = {*MULTIPLIERS, *WITHOUT_WORK, *KIND_OF, *SHAPE_WORK}
    for node in model.graph.node:
        foreign = node.domain not in ("", "ai.onnx")
        if foreign or node.op_type not in known:
            raise operator_refusal(node, path, REASONS.get(node.op_type, UNKNOWN))


def operator_refusal(node: onnx.NodeProto, path: str, reason: str) -> Refusal:
    """The sentence for a graph that has an operator which the forecast is not for."""
    name = node.name or next(iter(node.output), "")
    return Refusal(
        f"no speed can be forecast for {shown(path)}: it has the operator {shown(node.op_type)} "
        f"({shown(name)}): {reason}"
    )


# These compute sizes from sizes when atc compiles: the card does not run them.
SHAPE_WORK = ("Constant", "ConstantOfShape", "Shape", "Gather", "Cast", "Ceil", "Floor", "Range")


def refuse_wild_sizes(model: onnx.ModelProto, path: str) -> None:
    """Raises: Refusal for sizes that no graph of images has.

    Some of them end onnx itself, and this program with it.
    """
    sizes: List[int] = []
    for tensor in model.graph.initializer:
        sizes += tensor.dims
    for value in model.graph.input:
        sizes += [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for entry in node.attribute:
            sizes += entry.ints
        if node.op_type == "Pad" and len(node.input) > 1 and node.input[1] in constants:
            sizes += integers(constants[node.input[1]], path)
    if sizes and not -1 <= min(sizes) <= max(sizes) <= LARGEST_DIMENSION:
        raise Refusal(
            f"{shown(path)} is not a valid ONNX graph (it has a size of {max(sizes, key=abs):,}); "
            f"{onnx_file.MAKE_IT}"
        )


def integers(tensor: onnx.TensorProto, path: str) -> List[int]:
    """The values of a constant that says sizes.

    Raises: Refusal if it is damaged.
    """
    from onnx import numpy_helper

    try:
        return [int(value) for value in numpy_helper.to_array(tensor).reshape(-1)]
    except (ValueError, TypeError, OverflowError) as error:
        raise Refusal(
            f"{shown(path)} is not a valid ONNX graph ({why(error)}); {onnx_file.MAKE_IT}"
        ) from None


def without_values(model: onnx.ModelProto) -> None:
    """Make inputs of the weights.

    Only their shapes are needed, and they may be large or in another file.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    known = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        outside = tensor.data_location == TensorProto.EXTERNAL
        is_small = product(tensor.dims) <= SMALL_TENSOR and not outside
        if is_small:  # it may be the scales of a Resize, which decide a shape
            kept.append(tensor)
        elif tensor.name not in known:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    del graph.initializer[:]
    graph.initializer.extend(kept)


def infer_shapes(model: onnx.ModelProto, path: str, image: str) -> Dict[str, List[int]]:
    """{tensor: its shape}, with 1 for an open batch size; an open size is 0.

    Raises: Refusal if the graph contradicts ONNX's rules or itself.
    """
    import onnx

    for value in model.graph.input:
        if value.name == image and not value.type.tensor_type.shape.dim[0].dim_value:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    del model.graph.value_info[:]
    try:
        onnx.checker.check_model(model)
        for value in model.graph.output:  # a shape that is named there is not believed
            value.type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # onnx has several classes for it, and they changed
        raise Refusal(
            f"{shown(path)} is not a valid ONNX graph ({why(error)}); {onnx_file.MAKE_IT}"
        ) from None
    shapes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        tensor_type = value.type.tensor_type
        if tensor_type.HasField("shape"):
            shapes[value.name] = [dimension.dim_value for dimension in tensor_type.shape.dim]
    return shapes


class Reader:
    """Turns the nodes of a graph into kernels, in the order in which they run."""

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: Dict[str, List[int]],
        shapes: Dict[str, List[int]],
        image: str,
        path: str,
    ) -> None:
        self.nodes, self.shapes, self.image, self.path = list(model.graph.node), shapes, image, path
        self.weights = dict(weights)  # {name: shape}
        self.readers: Dict[str, List[int]] = {}  # {tensor: indices of the nodes that read it}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(index)
            # Two layers share weights through an Identity.
            if node.op_type == "Identity" and node.input[0] in self.weights:
                self.weights[node.output[0]] = self.weights[node.input[0]]
        self.outputs = {value.name for value in model.graph.output}
        self.data = self.data_tensors()
        self.fused: Set[int] = set()  # indices of nodes that are in a kernel of an earlier one

    def data_tensors(self) -> Set[str]:
        """The tensors that are computed from the image, sizes excepted."""
        data = {self.image}
        for node in self.nodes:
            if node.op_type != "Shape" and data.intersection(node.input):
                data.update(node.output)
        return data

    def network(self) -> Network:
        """Raises: Refusal if a size is not fixed, or weights are computed."""
        kernels = []
        for index, node in enumerate(self.nodes):
            if index in self.fused or node.op_type in (*WITHOUT_WORK, "Shape"):
                continue
            if self.data.intersection(node.input):
                kernels += self.with_conversions(node, self.kernel(node))
        if not kernels:
            raise Refusal(
                f"no speed can be forecast for {shown(self.path)}: "
                "nothing in it is computed from its input"
            )
        shape = self.shapes[self.image]
        return Network(tuple(kernels), product(shape[1:]), shape[2], shape[3])

    def with_conversions(self, node: onnx.NodeProto, kernel: Kernel) -> List[Kernel]:
        """The kernel, and where it leaves the card's own format those that convert its data.

        SpaceToDepth runs only in NHWC, a reflecting Pad only in ND: docs/graph.md. The converted
        data are not padded.
        """
        reflects = node.op_type == "Pad" and attribute(node, "mode", b"constant") == b"reflect"
        if node.op_type != "SpaceToDepth" and not reflects:
            return [kernel]
        before = self.conversion(f"{kernel.name} (before it)", node.input[0])
        behind = self.conversion(f"{kernel.name} (behind it)", node.output[0])
        return [before, kernel, behind]

    def conversion(self, name: str, tensor: str) -> Kernel:
        """The kernel that converts a tensor to another format."""
        size = product(self.shape(tensor)[1:])
        return Kernel(name, ("TransData",), MOVE, size, activations=2 * FLOAT16 * size)

    def kernel(self, node: onnx.NodeProto) -> Kernel:
        """The kernel that begins with a node."""
        if node.op_type in MULTIPLIERS:
            return self.multiplier(node)
        if node.op_type not in KIND_OF:  # work on sizes, but of the image's values
            raise self.refusal(node, UNKNOWN)
        kind = KIND_OF[node.op_type]
        types, result = self.fuse_vector(node)
        read = [name for name in node.input if name in self.data]
        counted = read[:1] if kind == POOL else list(node.output)
        if node.op_type == "Slice":  # it reads no more than it hands on
            read = list(node.output)
        written = [result, *node.output[1:]]
        return Kernel(
            operators.name_of(node),
            types,
            kind,
            sum(map(self.elements, counted)),
            activations=FLOAT16 * sum(map(self.elements, [*read, *written])),
        )

    def fuse_vector(self, node: onnx.NodeProto) -> Tuple[Tuple[str, ...], str]:
        """Take along the Mul of a Swish, x · Sigmoid(x), or the activation of a BatchNormalization.

        Returns (types of all operators, the result's name).
        """
        types, result = [node.op_type], node.output[0]
        reader = self.only_reader(result)
        if reader is None:
            return tuple(types), result
        behind = self.nodes[reader]
        multiplies_input = behind.op_type == "Mul" and node.input[0] in behind.input
        is_swish = node.op_type in SWITCHES and multiplies_input
        is_norm = node.op_type == "BatchNormalization" and behind.op_type in ACTIVATIONS
        if is_swish or is_norm:
            types, result = self.take(types, reader)
        return tuple(types), result

    # ---- convolutions and what is fused into them ----

    def multiplier(self, node: onnx.NodeProto) -> Kernel:
        """A Conv, Gemm or MatMul with the operators that atc fuses into it."""
        weight = self.weight_of(node)
        types, result, added = self.fuse(node)
        groups = attribute(node, "group", 1)
        shape, before = self.shape(node.output[0]), self.shape(node.input[0])
        pixels = product(shape[2:])
        channels_in, channels_out, taps = before[1], shape[1], product(weight[2:])
        if node.op_type != "Conv":  # a matrix for each image, or for each of its rows
            pixels, channels_in, channels_out, taps = product(shape[1:-1]), before[-1], shape[-1], 1
        fits = node.op_type != "Conv" or channels_in == weight[1] * groups
        if groups < 1 or channels_out % groups or not fits:
            raise self.refusal(
                node,
                f"its weights of shape {weight} do not fit {channels_in} channels in {groups} "
                "groups",
            )
        activations = FLOAT16 * sum(map(self.elements, [node.input[0], result, *added]))
        if groups > 1 and groups == channels_in:
            return Kernel(
                operators.name_of(node),
                types,
                DEPTHWISE,
                channels_out * taps * pixels,
                pixels=pixels,
                weights=FLOAT16 * padded(channels_out) * taps,
                activations=activations,
            )
        in_group, out_group, merged = merge_groups(channels_in, channels_out, groups)
        reduction, channels = padded(in_group) * taps, padded(out_group) * merged
        if node.input[0] == self.image and channels_in <= FEW_CHANNELS:
            reduction = padded(FEW_CHANNELS * taps)
        kind = DENSE if pixels == 1 else CONVOLUTION
        return Kernel(
            operators.name_of(node),
            types,
            kind,
            reduction * channels,
            reduction,
            channels,
            pixels,
            FLOAT16 * reduction * channels,
            activations,
        )

    def weight_of(self, node: onnx.NodeProto) -> List[int]:
        """The shape of its weights.

        Raises: Refusal if they are computed, or if it is not a 2-D convolution.
        """
        weight = self.weights.get(node.input[1])
        if weight is None or node.input[0] not in self.data:
            both = self.data.issuperset(node.input[:2])
            reason = REASONS["Attention"] if both else "its weights are not constants of the file"
            raise self.refusal(node, reason)
        dimensions = 4 if node.op_type == "Conv" else 2
        if len(weight) != dimensions or min(weight) < 1:
            raise self.refusal(
                node, f"its weights have the shape {weight} instead of {dimensions} dimensions"
            )
        return weight

    def refusal(self, node: onnx.NodeProto, reason: str) -> Refusal:
        return operator_refusal(node, self.path, reason)

    def fuse(self, node: onnx.NodeProto) -> Tuple[Tuple[str, ...], str, List[str]]:
        """Take along a BatchNormalization, then an Add (of a Conv), then an activation.

        Returns (types of all operators, the result's name, tensors that are added).
        """
        types, result = [node.op_type], node.output[0]
        added: List[str] = []
        reader = self.only_reader(result)
        if reader is not None and self.nodes[reader].op_type == "BatchNormalization":
            types, result = self.take(types, reader)
            reader = self.only_reader(result)
        if reader is not None and self.nodes[reader].op_type == "Add" and node.op_type == "Conv":
            added = [
                name for name in self.nodes[reader].input if name != result and name in self.data
            ]
            types, result = self.take(types, reader)
            reader = self.only_reader(result)
        if reader is not None and self.nodes[reader].op_type in ACTIVATIONS:
            types, result = self.take(types, reader)
        return tuple(types), result, added

    def take(self, types: List[str], index: int) -> Tuple[List[str], str]:
        """Add a node to a kernel; returns (types of all operators, the result's name)."""
        self.fused.add(index)
        return [*types, self.nodes[index].op_type], self.nodes[index].output[0]

    def only_reader(self, tensor: str) -> Optional[int]:
        """The index of the node that alone reads a tensor; None if it is in another kernel."""
        indices = self.readers.get(tensor, [])
        if len(indices) != 1 or tensor in self.outputs or indices[0] in self.fused:
            return None
        return indices[0]

    # ---- sizes ----

    def shape(self, tensor: str) -> List[int]:
        """The shape of a tensor.

        Raises: Refusal if a size of it is open.
        """
        shape = self.shapes.get(tensor)
        if not shape or min(shape) < 1:
            raise Refusal(
                f"no speed can be forecast for {shown(self.path)}: the size of {shown(tensor)} is "
                f"not fixed; {onnx_file.MAKE_IT}"
            )
        return shape

    def elements(self, tensor: str) -> int:
        """Values of one image in a tensor, as the card holds them.

        The channels of a map are padded to 16.
        """
        shape = self.shape(tensor)
        is_map = len(shape) in (2, 4)
        return padded(shape[1]) * product(shape[2:]) if is_map else product(shape[1:])


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute: an integer or bytes, as `default` is."""
    for entry in node.attribute:
        if entry.name == name:
            return entry.s if isinstance(default, bytes) else entry.i
    return default


def product(numbers: Iterable[int]) -> int:
    result = 1
    for number in numbers:
        result *= number
    return result


def merge_groups(channels_in: int, channels_out: int, groups: int) -> Tuple[int, int, int]:
    """(input channels, output channels, groups) after merging groups.

    Groups are merged until both sides of each fill 16, if they can.
    """
    in_group, out_group = channels_in // groups, channels_out // groups
    together = min(groups, max(-(-CUBE // in_group), -(-CUBE // out_group)))
    return in_group * together, out_group * together, -(-groups // together)


# ---- the time of a kernel ------------------------------------------------------------------------


def kernel_time(kernel: Kernel, batch_size: int, constants: Constants) -> Time:
    """How long a kernel takes for one batch, by what the time is spent on.

    The longer one of compute and memory counts in full. Of the shorter one counts the share that
    is not hidden behind it.
    """
    memory = memory_time(kernel, batch_size, constants)
    compute = compute_time(kernel, batch_size, constants)
    if compute >= memory:
        memory *= constants.overlap
    else:
        compute *= constants.overlap
    return Time(overhead_of(kernel.kind, constants), compute, memory, 0.0)


def memory_time(kernel: Kernel, batch_size: int, constants: Constants) -> float:
    """Seconds for weights, always from DDR, and for activations, from L2 as far as they fit."""
    activations = kernel.activations * batch_size
    in_l2 = 1 / (1 + (activations / constants.l2_size) ** constants.l2_steepness)
    per_byte = in_l2 / constants.l2 + (1 - in_l2) / constants.ddr
    return kernel.weights / constants.ddr + activations * per_byte


def compute_time(kernel: Kernel, batch_size: int, constants: Constants) -> float:
    """Seconds on the matrix unit, for convolutions and dense layers, or on the vector unit."""
    if kernel.kind in (CONVOLUTION, DENSE):
        rows = padded(batch_size * kernel.pixels)
        tiles_per_core = rows / CUBE * (kernel.channels / CUBE) / CORES
        full = kernel.work * rows / constants.multiply_adds
        return (
            full
            * (1 + constants.ramp / tiles_per_core)
            * (1 + constants.short_sum / kernel.reduction)
        )
    rates = {
        DEPTHWISE: constants.depthwise_rate,
        VECTOR: constants.vector_rate,
        POOL: constants.pool_rate,
        MOVE: constants.move_rate,
    }
    return kernel.work * batch_size / rates[kernel.kind]


def overhead_of(kind: str, constants: Constants) -> float:
    """Seconds that launching a kernel of this kind costs."""
    overheads = {
        CONVOLUTION: constants.convolution_overhead,
        DENSE: constants.dense_overhead,
        DEPTHWISE: constants.depthwise_overhead,
        VECTOR: constants.vector_overhead,
        POOL: constants.pool_overhead,
        MOVE: constants.move_overhead,
    }
    return overheads[kind]


def network_time(
    network: Network, batch_size: int, constants: Constants, uint8: bool = False
) -> Time:
    """How long one batch takes.

    uint8: whether the images come as bytes (AIPP) instead of float32.
    """
    times = [kernel_time(kernel, batch_size, constants) for kernel in network.kernels]
    image = network.input_elements * (UINT8 if uint8 else FLOAT32)
    return Time(
        constants.call + sum(time.overhead for time in times),
        sum(time.compute for time in times),
        sum(time.memory for time in times),
        image * batch_size / constants.input_rate,
    )


# ---- images per second ---------------------------------------------------------------------------


def forecast(
    network: Network, batch_sizes: Sequence[int], data: Data, uint8: bool = False
) -> List[Forecast]:
    """Images/s at each batch size.

    Raises: Refusal for a batch size above those of the published figures.
    """
    if max(batch_sizes) > largest_batch(data):
        raise Refusal(
            f"no speed can be forecast at batch size {max(batch_sizes)}: the forecast was checked "
            f"up to {largest_batch(data)}; give --batch-sizes up to that"
        )
    rows = []
    for batch_size in batch_sizes:
        time = network_time(network, batch_size, data.constants, uint8)
        rows.append(
            with_ranges(
                batch_size,
                batch_size / time.total,
                factor_at(data.factor_80, batch_size),
                factor_at(data.factor_90, batch_size),
                time,
            )
        )
    return rows


def with_ranges(
    batch_size: int, images_per_s: float, factor_80: float, factor_90: float, time: Time
) -> Forecast:
    return Forecast(
        batch_size,
        images_per_s,
        images_per_s / factor_80,
        images_per_s * factor_80,
        images_per_s / factor_90,
        images_per_s * factor_90,
        time,
    )


def refuse_chip(name: str) -> None:
    """Raises: Refusal for a chip other than the 310P3. name: as npu-smi or atc has it."""
    plain = name[len("Ascend") :] if name.startswith("Ascend") else name
    if plain != CHIP:
        raise Refusal(
            f"no speed can be forecast for the chip {shown(name)}: the published figures are only "
            f"of the {CHIP}"
        )


def limits(height: int, width: int) -> List[str]:
    """What must be said wherever a number is shown.

    height, width: of an image, pixels.
    Returns parts of a sentence that begins with "This is a forecast".
    """
    if max(height, width) <= LARGEST_SIZE:
        return list(LIMITS)
    return [
        *LIMITS,
        f"nothing was published for such networks above {LARGEST_SIZE} pixels, "
        "so the real range is wider",
    ]


def best(forecasts: Sequence[Forecast]) -> Forecast:
    """The one with the most images/s."""
    return max(forecasts, key=lambda row: row.images_per_s)


# ---- after a measurement -------------------------------------------------------------------------

LOOK_AT = {
    "graph": (
        "the graph: it has {}, which the card runs slowly "
        "(export with --stem conv4 --reflect slice)"
    ),
    "batch": (
        "the model: an open batch size is slower, so compile one for each batch size (onnx2om.sh)"
    ),
    "process": "other processes on the chip (npu-smi info)",
    "clock": "its clock and temperature (npu-smi info -t common -i 0)",
    "virtual": (
        "whether it is a virtual NPU, a part of a chip (npu-smi info -t info-vnpu -i 0 -c 0)"
    ),
    "driver": (
        "the versions of driver and CANN: the published figures are of 2022 and 2023, "
        "older ones may be slower"
    ),
}


def judge(measured: Dict[int, float], forecasts: Sequence[Forecast]) -> List[Verdict]:
    """A verdict for each batch size that was both measured and forecast.

    measured: {batch size: images/s}.
    """
    verdicts = []
    for row in sorted(forecasts, key=lambda row: row.batch_size):
        if row.batch_size in measured:
            images_per_s = measured[row.batch_size]
            is_slow = images_per_s < row.low_90
            verdicts.append(Verdict(row.batch_size, images_per_s, row, is_slow))
    return verdicts


def look_at(network: Network) -> List[str]:
    """What to look at where a card is slower than the forecast, the most likely first.

    Returns keys of LOOK_AT.
    """
    return [key for key in LOOK_AT if key != "graph" or costly_moves(network)]


def costly_moves(network: Network) -> List[str]:
    """The operators of the graph that the card runs slowly, each once."""
    types: Set[str] = set()
    for kernel in network.kernels:
        types.update(kernel.operators)
    return [name for name in COSTLY_MOVES if name in types]


class Opinion(NamedTuple):
    """The verdicts in words."""

    is_slow: bool
    sentence: str
    look_at: Tuple[str, ...] = ()  # what to look at if it is slow, the most likely cause first


def describe(verdicts: Sequence[Verdict], network: Network) -> Opinion:
    """What verdicts, at least one, mean."""
    slow = [verdict for verdict in verdicts if verdict.is_slow]
    if not slow:
        ratios = [verdict.ratio for verdict in verdicts]
        found = f"{min(ratios):.2f} to {max(ratios):.2f}" if len(ratios) > 1 else f"{ratios[0]:.2f}"
        return Opinion(
            False, f"as fast as networks of this kind run there: {found} times the forecast"
        )
    worst = min(slow, key=lambda verdict: verdict.ratio)
    names = " and ".join(costly_moves(network))
    return Opinion(
        True,
        f"slower than networks of this kind run there: {worst.measured:,.0f} images/s at batch "
        f"size {worst.batch_size}, and 95 % of them reach {worst.forecast.low_90:,.0f}",
        tuple(LOOK_AT[key].format(names) for key in look_at(network)),
    )


def from_measured(
    batch_size: int, images_per_s: float, forecasts: Sequence[Forecast], data: Data
) -> List[Forecast]:
    """The other batch sizes from one that was measured.

    Each forecast is moved by the factor that was seen there.
    batch_size: the measured one, which must be among the forecasts.
    Raises: KeyError if it is not.
    """
    own = {row.batch_size: row for row in forecasts}[batch_size]
    moved_by = images_per_s / own.images_per_s
    measured_at = min(data.from_one_80, key=lambda size: abs(math.log(size / batch_size)))
    return [
        with_ranges(
            row.batch_size,
            row.images_per_s * moved_by,
            factor_at(data.from_one_80[measured_at], row.batch_size),
            factor_at(data.from_one_90[measured_at], row.batch_size),
            row.time,
        )
        for row in forecasts
        if row.batch_size != batch_size
    ]


def cannot_win(others: Sequence[Forecast], best_measured: float) -> bool:
    """Whether all 90 % ranges of the other batch sizes end below `best_measured`, images/s."""
    return all(row.high_90 < best_measured for row in others)
