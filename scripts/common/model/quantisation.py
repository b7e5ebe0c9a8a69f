"""Which layers become int8: what each of them costs, and how many stay float for --max-drop.

A layer is a Conv or a Gemm, called by the name of its node. Its input is quantised per tensor, its
weights per output channel.
"""

import argparse
import itertools
from typing import Any, Callable, Container, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from common.core import cli, json_file, options, progress, recipe, record
from common.core.cli import counted, shown
from common.core.names import result_stem
from common.data import evaluation
from common.data.images import list_inputs, spaced
from common.data.inputs import Input, input_of, read_batch
from common.data.prepared import true_classes
from common.model import onnx_file, operators
from common.model.statistics import cosine_similarity, normal_quantile

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
LEAST_FOR_HALVES = 1000  # labelled images: from here on one half chooses, the other one judges
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


def names_without(groups: Groups, group: str) -> List[str]:
    """The operators of all groups but one."""
    return [*itertools.chain(*(names for other, names in groups.items() if other != group))]


def words_of(groups: Sequence[str]) -> str:
    """Groups in words: "2 layers and all other operators"; "" for none."""
    layer_count = sum(group != OTHERS for group in groups)
    parts = [counted(layer_count, "layer")] if layer_count else []
    if OTHERS in groups:
        parts.append(OTHERS)
    return " and ".join(parts)


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

    return costs_of(
        groups, logits(), lambda group: logits(**{switch_of(group): np.ones(1, np.float32)})
    )


def costs_of(
    groups: Groups, float_logits: np.ndarray, logits_of: Callable[[str], np.ndarray]
) -> Dict[str, float]:
    """{group: 1 - cosine of the logits, on average}.

    float_logits: [n, classes]; logits_of: the same if only this group is quantised.
    """
    cost = {}
    with progress.Bar("ranking layers", len(groups), "layers", lines_every=10) as bar:
        for group in groups:
            pairs = zip(float_logits, logits_of(group))
            cost[group] = float(np.mean([1 - cosine_similarity(a, b) for a, b in pairs]))
            bar.advance()
    return cost


# ---- the promise of --max-drop -------------------------------------------------------------------


def answers(
    model: onnx.ModelProto, paths: Sequence[str], sample: Input, what: str = "inference"
) -> Tuple[np.ndarray, int]:
    """The model's answers in ONNX Runtime, with a progress bar that says `what`.

    Returns (int [images]: the class with the highest logit, the number of classes).
    """
    result = logits(model, paths, sample, what)
    return result.argmax(1), result.shape[1]


def logits(model: onnx.ModelProto, paths: Sequence[str], sample: Input, what: str) -> np.ndarray:
    """float32 [images, classes]: the model's logits in ONNX Runtime."""
    infer = operators.logits_of(model)
    parts: List[np.ndarray] = []
    with progress.Bar(what, len(paths), "images", lines_every=10) as bar:
        for start in range(0, len(paths), sample.batch_size):
            batch = list(paths[start : start + sample.batch_size])
            parts.append(infer(read_batch(batch, sample))[: len(batch)])
            bar.advance(len(batch))
    return np.concatenate(parts)


class Drop(NamedTuple):
    """How many percentage points of Top-1 are lost, on the same images before and after."""

    points: float
    low: float  # the 95 % interval of the paired difference
    high: float
    images: int

    def __str__(self) -> str:
        return (
            f"{change_words(self.points)} (95 % interval of the loss {self.low:.2f} to "
            f"{self.high:.2f} points, {counted(self.images, 'image')})"
        )


def change_words(points: float) -> str:
    """A drop in words: "loses 0.07 points of Top-1"; points: negative for a gain."""
    verb = "gains" if points < 0 else "loses"
    return f"{verb} {abs(points):.2f} points of Top-1"


def paired_drop(before: np.ndarray, after: np.ndarray, looks: int = 0) -> Drop:
    """The drop of Top-1; before, after: whether each image was right, bool [n].

    looks: how many drops on these images were looked at until this one was small enough; 0 if
    nothing depends on it. Look k may be wrong in 5 % / (k (k + 1)) of all cases: together that is
    less than 5 %, however many there are.
    The interval is Wald's with half an image added to each of the four cells. It holds for few
    images too, and where no answer changed. Source: Agresti and Min 2005.
    """
    images = len(before)
    lost, won = int(np.sum(before & ~after)), int(np.sum(~before & after))
    total, b, c = images + 2, lost + 0.5, won + 0.5
    middle = (b - c) / total
    wrong = 0.05 / (looks * (looks + 1)) if looks else 0.05
    half = normal_quantile(1 - wrong / 2) * (b + c - (b - c) ** 2 / total) ** 0.5 / total
    return Drop(100 * (lost - won) / images, 100 * (middle - half), 100 * (middle + half), images)


class Halves(NamedTuple):
    """Which labelled images choose the layers that stay float, and which judge the result."""

    choosing: np.ndarray  # bool [n]
    judging: np.ndarray  # bool [n]

    @property
    def are_different(self) -> bool:
        return not bool((self.choosing & self.judging).any())


def halves(images: int) -> Halves:
    """Every second image judges, if there are enough; else all of them do both."""
    if images < LEAST_FOR_HALVES:
        return Halves(np.ones(images, bool), np.ones(images, bool))
    choosing = np.arange(images) % 2 == 0
    return Halves(choosing, ~choosing)


def keep_promise(
    max_drop: float,
    right: np.ndarray,
    judge: Callable[[List[str]], np.ndarray],
    rank: Callable[[], Dict[str, float]],
    say: Callable[[str], None],
) -> Report:
    """Put the costliest layers back to float until Top-1 drops by at most max_drop points.

    It tries 0, 1, 3, 7, … layers. From LEAST_FOR_HALVES images on, the drop has to hold on one half
    of them first; the other half is only looked at then, and its drop is the one that is reported.
    right: bool [n], whether float32 is right for each image.
    judge: the same for the int8 model in which these layers stay float.
    rank: {layer: its cost}; it takes a while, so it is only called if int8 alone does not hold.
    Returns {"max_drop", "drop", "interval", "images", "chosen_on" (images), "looks", "held",
    "put_back": [{"name", "cost"}], "rounds": [{"layers", "drop"}]}.
    """
    parts = halves(len(right))
    back: List[str] = []
    rounds: List[Dict[str, Any]] = []
    cost: Dict[str, float] = {}
    looks = 0
    while True:
        after = judge(back)
        drop = paired_drop(right[parts.choosing], after[parts.choosing])
        rounds.append({"layers": len(back), "drop": drop.points})
        is_last = bool(cost) and len(back) == len(cost)
        held = drop.points <= max_drop
        if held or is_last or not parts.are_different:
            looks += 1
            drop = paired_drop(right[parts.judging], after[parts.judging], looks)
            held = held and drop.points <= max_drop
        outcome = "within" if held else "more than"
        put_back = f" with {words_of(back)} put back to float" if back else ""
        say(f"int8{put_back} {drop}, {outcome} --max-drop {max_drop:g}")
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
        "chosen_on": int(parts.choosing.sum()),
        "looks": looks,
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
    paths, stems: all images, and the names of their results; chosen: those for the calibration;
    tried: those for a trial of several ways to quantise.
    report_path: the JSON file that says which layers stayed float, and why.
    """

    def __init__(
        self, tool: str, arguments: argparse.Namespace, trial: int = 0, **more: Any
    ) -> None:
        """tool: the program's file; trial: the number of images of the trial.

        more: what the product depends on beside the options.
        """
        self.arguments = arguments
        self.described = onnx_file.describe(arguments.model)
        fixed = self.described["shape"][0]
        self.single = input_of(self.described, arguments.aipp, fixed or 1)
        self.several = input_of(self.described, arguments.aipp, fixed or BATCH)
        self.paths = list_inputs(arguments.calibrate)
        self.stems = list(map(result_stem, self.paths))
        choosing = self.paths
        if arguments.max_drop is not None:  # what judges the promise does not choose anything
            choosing = [*itertools.compress(self.paths, halves(len(self.paths)).choosing)]
        self.chosen = spaced(choosing, arguments.images)
        calibrating = set(self.chosen)
        others = [path for path in choosing if path not in calibrating]
        self.tried = spaced(others if len(others) >= trial else choosing, trial)
        self.report_path = arguments.output[: -len(".onnx")] + ".json"
        settings: Dict[str, Any] = {"aipp": self.single.aipp}
        settings.update((name, getattr(arguments, name)) for name in OPTIONS)
        settings["background"] = evaluation.has_background(arguments.model)
        inputs, labels = [*dict.fromkeys([*self.chosen, *self.tried])], []
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
        costs_on: Callable[[np.ndarray], Dict[str, float]],
    ) -> Tuple[onnx.ModelProto, Report]:
        """Quantise the model; with --max-drop put groups back to float until it holds.

        quantise: the int8 model in which these groups stay float.
        answers_of: int [images], the class that an int8 model gives each image.
        costs_on: what each group costs, on these images, as where the model will run.
        Returns (the int8 model, its report).
        """
        arguments = self.arguments
        if arguments.max_drop is None:
            return quantise([]), {"put_back": []}
        float32_answers, count = answers(model, self.paths, self.several, "inference in float32")
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
            return costs_on(np.concatenate(images))

        is_right = float32_answers == classes
        report = keep_promise(arguments.max_drop, is_right, judge, rank, print)
        return latest, report

    def write(self, quantised_model: onnx.ModelProto, report: Report, **about: str) -> int:
        """Write the int8 model and its report; returns the size of the model in bytes.

        about: more for the model's metadata.
        """
        report = {"tool": self.made_by.row["tool"], "version": cli.VERSION, **report}
        metadata = onnx_file.read(self.arguments.model)["metadata"]
        onnx.helper.set_model_props(quantised_model, dict(metadata, precision="int8", **about))
        data = quantised_model.SerializeToString()
        contents = {self.report_path: json_file.encode(report), self.arguments.output: data}
        notes = evaluation.notes_of(self.arguments.model)
        record.write(self.arguments.output, self.made_by, contents, **{**notes, **about})
        return len(data)
