"""Which layers become int8: what each of them costs, and how many stay float for --max-drop.

A layer is a Conv or a Gemm, called by the name of its node. Its input is quantised per tensor, its
weights per output channel.
"""

import argparse
from typing import Any, Callable, Container, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from common.core import cli, json_file, options, recipe, record
from common.core.cli import counted, shown
from common.core.names import result_stem
from common.data import evaluation
from common.data.images import list_inputs, spaced
from common.data.inputs import Input, input_of, read_batch
from common.data.prepared import true_classes
from common.model import onnx_file, operators
from common.model.statistics import NORMAL_95, cosine_similarity

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS = ("Conv", "Gemm")
OTHERS = "all other operators"
LEAST_CHANNELS = 17  # of a layer's input: AMCT's guide sees gains in int8 only above 16
BATCH = 8  # images at once in the runs for --max-drop
OPTIONS = (
    "images",
    "max_drop",
    "label_offset",
    "labels_encoding",
)  # what decides the product, beside the inputs
RANKED = 8  # images by which layers are ranked
Groups = Dict[str, List[str]]  # {operators that are quantised together or not at all: their names}
Ranges = Dict[str, Tuple[float, float]]  # {tensor: its least and its largest value}
Report = Dict[str, Any]  # what the JSON file beside the int8 model holds


# ---- layers --------------------------------------------------------------------------------------


def layers(model: onnx.ModelProto) -> List[str]:
    """The layers in the order in which they run."""
    return [operators.name_of(node) for node in model.graph.node if node.op_type in LAYERS]


def groups_of(model: onnx.ModelProto) -> Groups:
    """A group for each layer, and one for all other operators, which ONNX Runtime quantises too."""
    names = map(operators.name_of, model.graph.node)
    groups = {name: [name] for name in layers(model)}
    rest = [name for name in names if name not in groups]
    return {**groups, OTHERS: rest}


def float_on_card(model: onnx.ModelProto) -> Dict[str, str]:
    """{layer: why} of the layers that stay float16 on the card, without --all-layers.

    These are the layers up to the first activation (the stem), layers with few input channels (also
    the depthwise ones), and squeeze-and-excitation: atc makes a convolution of a 1×1 map fully
    connected, and does not fuse that behind AscendQuant.
    """
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    left: Dict[str, str] = {}
    pooled = set()  # tensors of 1×1 maps
    in_stem = True
    for node in model.graph.node:
        follows_pooling = node.op_type in ("Conv", "Relu") and node.input[0] in pooled
        if follows_pooling or node.op_type == "GlobalAveragePool":
            pooled.add(node.output[0])
        if node.op_type in ("LeakyRelu", "Relu"):
            in_stem = False
        if node.op_type != "Conv":
            continue
        name = operators.name_of(node)
        if in_stem:
            left[name] = "stem"
        elif follows_pooling:
            left[name] = "squeeze-and-excitation"
        elif shapes[node.input[1]][1] < LEAST_CHANNELS:
            left[name] = "few input channels"
    return left


# ---- what each costs -----------------------------------------------------------------------------


def switch_of(group: str) -> str:
    """The input that decides whether a group is quantised."""
    return f"int8 {group}"


def with_switches(model: onnx.ModelProto, groups: Groups, ranges: Ranges) -> onnx.ModelProto:
    """A copy with an input [1] for each of the groups: 1 quantises its operators, 0 does not.

    ranges: of the tensors that these operators read.
    """
    changed = operators.with_outputs(model, [model.graph.output[0].name])
    graph = changed.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    group_of: Dict[str, str] = {}
    for group, names in groups.items():
        group_of.update(dict.fromkeys(names, group))
        graph.input.append(helper.make_tensor_value_info(switch_of(group), TensorProto.FLOAT, [1]))
    nodes: List[onnx.NodeProto] = []
    for node in changed.graph.node:
        name = operators.name_of(node)
        indices = inputs_of(node, weights) if name in group_of else []
        for index in indices:
            x, quantised_x = node.input[index], f"{name}/{index}"
            change, part = quantised_x + "/change", quantised_x + "/part"
            if x in weights:
                array = numpy_helper.to_array(weights[x])
                error = quantised(array) - array
                graph.initializer.append(numpy_helper.from_array(error, change))
            else:
                add_change(graph, nodes, x, quantised_x, ranges[x])
            nodes += [
                helper.make_node("Mul", [change, switch_of(group_of[name])], [part]),
                helper.make_node("Add", [x, part], [quantised_x]),
            ]
            node.input[index] = quantised_x
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def add_change(
    graph: onnx.GraphProto,
    nodes: List[onnx.NodeProto],
    x: str,
    prefix: str,
    limits: Tuple[float, float],
) -> None:
    """Append nodes that give `prefix`/change what quantising adds to the tensor x.

    limits: the least and the largest value of x. The constants go into the graph.
    """
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    step = np.float32((high - low) / 255 or 1.0)
    zero = np.uint8(round(-low / float(step)))
    graph.initializer.append(numpy_helper.from_array(np.asarray(step), prefix + "/scale"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(zero), prefix + "/zero"))
    scaling = [prefix + "/scale", prefix + "/zero"]
    int8, restored = prefix + "/int8", prefix + "/restored"
    nodes += [
        helper.make_node("QuantizeLinear", [x, *scaling], [int8]),
        helper.make_node("DequantizeLinear", [int8, *scaling], [restored]),
        helper.make_node("Sub", [restored, x], [prefix + "/change"]),
    ]


def inputs_of(node: onnx.NodeProto, weights: Container[str]) -> List[int]:
    """The indices of an operator's inputs that become int8: activations, and a layer's weights."""
    is_layer = node.op_type in LAYERS
    return [
        index
        for index, name in enumerate(node.input)
        if name not in weights or (is_layer and index == 1)
    ]


def quantised(weights: np.ndarray) -> np.ndarray:
    """Weights float32 [out, …], rounded to int8 with a step for each output channel."""
    rows = weights.reshape(len(weights), -1)
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    step[step == 0] = 1
    return (np.round(rows / step) * step).astype(np.float32).reshape(weights.shape)


def ranges_of(model: onnx.ModelProto, groups: Groups, images: np.ndarray) -> Ranges:
    """The ranges of all tensors that the operators of the groups read; images: as for costs()."""
    image = model.graph.input[0].name
    wanted: Set[str] = set().union(*groups.values())
    read: Set[str] = set()
    for node in model.graph.node:
        if operators.name_of(node) in wanted:
            read.update(node.input)
    tensors = sorted(read - {image, *(tensor.name for tensor in model.graph.initializer)})
    values = {image: images}
    if tensors:
        ready = operators.session(operators.with_outputs(model, tensors))
        values.update(operators.run(ready, {image: images}))
    return {name: (float(array.min()), float(array.max())) for name, array in values.items()}


def costs(model: onnx.ModelProto, groups: Groups, images: np.ndarray) -> Dict[str, float]:
    """{group: 1 - cosine of the logits, on average, if only this group is quantised}.

    images: float32 [n, 3, h, w].
    """
    ranges = ranges_of(model, groups, images)
    ready = operators.session(with_switches(model, groups, ranges))
    inputs = {switch_of(group): np.zeros(1, np.float32) for group in groups}
    inputs[model.graph.input[0].name] = images

    def logits(**changed: np.ndarray) -> np.ndarray:
        (result,) = operators.run(ready, {**inputs, **changed}).values()
        return result

    float_logits = logits()
    cost = {}
    for group in groups:
        int8_logits = logits(**{switch_of(group): np.ones(1, np.float32)})
        losses = [1 - cosine_similarity(a, b) for a, b in zip(float_logits, int8_logits)]
        cost[group] = float(np.mean(losses))
    return cost


# ---- the promise of --max-drop -------------------------------------------------------------------


def answers(model: onnx.ModelProto, paths: Sequence[str], sample: Input) -> Tuple[np.ndarray, int]:
    """The model's answers in ONNX Runtime.

    Returns (int [images]: the class with the highest logit, the number of classes).
    """
    logits_of = operators.logits_of(model)
    top1: List[int] = []
    for start in range(0, len(paths), sample.batch_size):
        batch = list(paths[start : start + sample.batch_size])
        logits = logits_of(read_batch(batch, sample))
        top1 += logits[: len(batch)].argmax(1).tolist()
    return np.array(top1), logits.shape[1]


class Drop(NamedTuple):
    """How many percentage points of Top-1 are lost, on the same images before and after."""

    points: float
    low: float  # the 95 % interval of the paired difference
    high: float
    images: int

    def __str__(self) -> str:
        return (
            f"{self.points:.2f} points of Top-1 (95 % interval {self.low:.2f} to {self.high:.2f}, "
            f"{counted(self.images, 'image')})"
        )


def paired_drop(before: np.ndarray, after: np.ndarray) -> Drop:
    """The drop of Top-1; before, after: whether each image was right, bool [n].

    The interval is Wald's with half an image added to each of the four cells. It holds for few
    images too, and where no answer changed. Source: Agresti and Min 2005.
    """
    images = len(before)
    lost, won = int(np.sum(before & ~after)), int(np.sum(~before & after))
    total, b, c = images + 2, lost + 0.5, won + 0.5
    middle = (b - c) / total
    half = NORMAL_95 * (b + c - (b - c) ** 2 / total) ** 0.5 / total
    return Drop(100 * (lost - won) / images, 100 * (middle - half), 100 * (middle + half), images)


def keep_promise(
    max_drop: float,
    right: np.ndarray,
    judge: Callable[[List[str]], np.ndarray],
    rank: Callable[[], Dict[str, float]],
    say: Callable[[str], None],
) -> Report:
    """Put the costliest layers back to float until Top-1 drops by at most max_drop points.

    It tries 0, 1, 3, 7, … layers.
    right: bool [n], whether float32 is right for each image.
    judge: the same for the int8 model in which these layers stay float.
    rank: {layer: its cost}; it takes a while, so it is only called if int8 alone does not hold.
    Returns {"max_drop", "drop", "interval", "images", "held", "put_back": [{"name", "cost"}],
    "rounds": [{"layers", "drop"}]}.
    """
    back: List[str] = []
    rounds: List[Dict[str, Any]] = []
    cost: Dict[str, float] = {}
    while True:
        drop = paired_drop(right, judge(back))
        rounds.append({"layers": len(back), "drop": drop.points})
        held = drop.points <= max_drop
        outcome = "within" if held else "more than"
        say(
            f"int8 with {counted(len(back), 'layer')} put back to float loses {drop}, {outcome} "
            f"--max-drop {max_drop:g}"
        )
        if held:
            break
        cost = cost or rank()
        if len(back) == len(cost):
            break
        back = sorted(cost, key=lambda name: -cost[name])[: 2 * len(back) + 1]
    return {
        "max_drop": max_drop,
        "drop": drop.points,
        "interval": [drop.low, drop.high],
        "images": drop.images,
        "held": held,
        "put_back": [{"name": name, "cost": cost[name]} for name in back],
        "rounds": rounds,
    }


# ---- what every tool that quantises does ---------------------------------------------------------


def parser(doc: Optional[str], images: int) -> argparse.ArgumentParser:
    """The command line; images: the default of --images."""
    result = cli.parser(doc)
    result.add_argument("model", type=options.path, help="float32 .onnx file")
    result.add_argument("output", type=options.onnx_path, help="the int8 .onnx file")
    options.add(
        result,
        "calibrate",
        "images",
        "aipp",
        "max_drop",
        "labels",
        "labels_encoding",
        "label_offset",
        "force",
        required=["calibrate"],
        default={"images": images},
        help={
            "images": "how many of them, evenly spaced (default: %(default)s)",
            "max_drop": "put layers back until Top-1 is at most P percentage points "
            "below float32's; needs --labels",
            "labels": "labels of the images, for --max-drop",
        },
    )
    return result


class Task:
    """What is quantised, by which images, and its record.

    single, several: the model's input for the calibration, and for the runs of --max-drop.
    paths, stems: all images, and the names of their results; chosen: those for the calibration.
    report_path: the JSON file that says which layers stayed float, and why.
    """

    def __init__(self, tool: str, arguments: argparse.Namespace, **more: Any) -> None:
        """tool: the program's file; more: what the product depends on beside the options."""
        self.arguments = arguments
        self.described = onnx_file.describe(arguments.model)
        fixed = self.described["shape"][0]
        self.single = input_of(self.described, arguments.aipp, fixed or 1)
        self.several = input_of(self.described, arguments.aipp, fixed or BATCH)
        self.paths = list_inputs(arguments.calibrate)
        self.stems = list(map(result_stem, self.paths))
        self.chosen = spaced(self.paths, arguments.images)
        self.report_path = arguments.output[: -len(".onnx")] + ".json"
        settings: Dict[str, Any] = {"aipp": self.single.aipp}
        settings.update((name, getattr(arguments, name)) for name in OPTIONS)
        settings["background"] = evaluation.has_background(arguments.model)
        inputs, labels = self.chosen, []
        if arguments.max_drop is not None:
            inputs, labels = self.paths, [arguments.labels]
        inputs = [*onnx_file.all_files(arguments.model), *inputs]
        packages = ("onnxruntime", "onnx", "numpy")
        self.made_by = recipe.make(tool, settings, packages, inputs, labels, **more)

    def is_current(self) -> bool:
        """Whether the product is up to date; this is printed.

        Raises: Refusal for files that this program did not make.
        """
        output = self.arguments.output
        if record.is_up_to_date(
            output, self.made_by, [output, self.report_path], self.arguments.force
        ):
            print(f"{shown(output)} is up to date; --force quantises again")
            return True
        return False

    def make(
        self,
        model: onnx.ModelProto,
        groups: Groups,
        quantise: Callable[[List[str]], onnx.ModelProto],
        answers_of: Callable[[onnx.ModelProto], np.ndarray],
    ) -> Tuple[onnx.ModelProto, Report]:
        """Quantise the model; with --max-drop put groups back to float until it holds.

        quantise: the int8 model in which these groups stay float.
        answers_of: int [images], the class that an int8 model gives each image.
        Returns (the int8 model, its report).
        """
        arguments = self.arguments
        if arguments.max_drop is None:
            return quantise([]), {"put_back": []}
        float32_answers, count = answers(model, self.paths, self.several)
        labels = true_classes(
            arguments.labels,
            arguments.calibrate,
            self.stems,
            count,
            arguments.label_offset,
            evaluation.has_background(arguments.model),
            arguments.labels_encoding,
        )
        classes = np.array(labels)
        latest = model

        def judge(back: List[str]) -> np.ndarray:
            nonlocal latest
            latest = quantise(back)
            return answers_of(latest) == classes

        def rank() -> Dict[str, float]:
            images = [read_batch([path], self.single) for path in self.chosen[:RANKED]]
            return costs(model, groups, np.concatenate(images))

        is_right = float32_answers == classes
        report = keep_promise(arguments.max_drop, is_right, judge, rank, print)
        return latest, report

    def write(self, quantised_model: onnx.ModelProto, report: Report) -> int:
        """Write the int8 model and its report; returns the size of the model in bytes."""
        report = {"tool": self.made_by.row["tool"], "version": cli.VERSION, **report}
        metadata = onnx_file.read(self.arguments.model)["metadata"]
        onnx.helper.set_model_props(quantised_model, dict(metadata, precision="int8"))
        data = quantised_model.SerializeToString()
        contents = {self.report_path: json_file.encode(report), self.arguments.output: data}
        notes = evaluation.notes_of(self.arguments.model)
        record.write(self.arguments.output, self.made_by, contents, **notes)
        return len(data)
