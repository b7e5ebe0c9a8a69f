"""Which layers become int8: what quantising each of them costs, and how many go back to float until a promise holds.

A layer is a Conv or a Gemm, named by its node. Its input is quantised per tensor, its weights per output channel.
"""

import argparse
import functools
from typing import Any, Callable, Container, Dict, List, NamedTuple, Optional, Sequence, Tuple

from common.core import cli, json_file, options, recipe, record
from common.core.cli import shown
from common.core.names import result_stem
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
BATCH = 8  # of the runs for --max-drop
OPTIONS = ("images", "max_drop", "label_offset")  # that decide what is made
RANKED = 8  # images by which layers are ranked
Groups = Dict[str, List[str]]  # {what is quantised or not as a whole: its operators}


# ---- layers ----------------------------------------------------------------------------------------------------------


def layers(model: onnx.ModelProto) -> List[str]:
    """The layers in the order in which they run."""
    return [operators.name_of(node) for node in model.graph.node if node.op_type in LAYERS]


def groups_of(model: onnx.ModelProto) -> Groups:
    """Each layer on its own, and all other operators as one group: ONNX Runtime quantises those as well."""
    own = layers(model)
    rest = [
        operators.name_of(node) for node in model.graph.node if operators.name_of(node) not in own
    ]
    return {**{name: [name] for name in own}, OTHERS: rest}


def float_on_card(model: onnx.ModelProto) -> Dict[str, str]:
    """{layer: why} of the layers that stay float16 on the card unless its user says otherwise.

    The stem, up to the first activation; layers with few input channels, depthwise ones among them; convolutions of a
    map of 1×1 that becomes fully connected (squeeze-and-excitation), which atc does not fuse behind AscendQuant.
    """
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    left, pooled, stem = {}, set(), True
    for node in model.graph.node:
        name = operators.name_of(node)
        if (
            node.op_type == "GlobalAveragePool"
            or node.op_type in ("Conv", "Relu")
            and node.input[0] in pooled
        ):
            pooled.add(node.output[0])
        if node.op_type in ("LeakyRelu", "Relu"):
            stem = False
        if node.op_type == "Conv":
            few = shapes[node.input[1]][1] < LEAST_CHANNELS
            reason = (
                "stem"
                if stem
                else "squeeze-and-excitation"
                if node.input[0] in pooled
                else "few input channels"
                if few
                else ""
            )
            left.update({name: reason} if reason else {})
    return left


# ---- what each costs -------------------------------------------------------------------------------------------------


def switch_of(group: str) -> str:
    return f"int8 {group}"


def with_switches(
    model: onnx.ModelProto, groups: Groups, ranges: Dict[str, Tuple[float, float]]
) -> onnx.ModelProto:
    """A copy with an input [1] for each of the groups: 1 quantises its operators, 0 leaves them as they are.

    ranges: {tensor: (least, largest) value} of what these operators read.
    """
    copy = operators.with_outputs(model, [model.graph.output[0].name])
    graph, nodes = copy.graph, []
    weights = {tensor.name: tensor for tensor in graph.initializer}
    group_of = {name: group for group, names in groups.items() for name in names}
    graph.input.extend(
        helper.make_tensor_value_info(switch_of(group), TensorProto.FLOAT, [1]) for group in groups
    )

    def constant(name: str, array: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def change_of(x: str, prefix: str) -> str:
        """The tensor that quantising adds to x."""
        if x in weights:
            array = numpy_helper.to_array(weights[x])
            return constant(prefix + "/change", quantised(array) - array)
        low, high = min(ranges[x][0], 0.0), max(ranges[x][1], 0.0)
        step = np.float32((high - low) / 255 or 1.0)
        scale = constant(prefix + "/scale", step)
        zero = constant(prefix + "/zero", np.uint8(round(-low / float(step))))
        nodes.extend(
            [
                helper.make_node("QuantizeLinear", [x, scale, zero], [prefix + "/int8"]),
                helper.make_node(
                    "DequantizeLinear", [prefix + "/int8", scale, zero], [prefix + "/again"]
                ),
                helper.make_node("Sub", [prefix + "/again", x], [prefix + "/change"]),
            ]
        )
        return prefix + "/change"

    for node in copy.graph.node:
        group = group_of.get(operators.name_of(node))
        for place in inputs_of(node, weights) if group else ():
            x, prefix = node.input[place], f"{operators.name_of(node)}/{place}"
            nodes.extend(
                [
                    helper.make_node(
                        "Mul", [change_of(x, prefix), switch_of(group)], [prefix + "/part"]
                    ),
                    helper.make_node("Add", [x, prefix + "/part"], [prefix]),
                ]
            )
            node.input[place] = prefix
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def inputs_of(node: onnx.NodeProto, weights: Container[str]) -> List[int]:
    """The places of an operator's inputs that become int8: what is computed, and a layer's weights."""
    return [
        place
        for place, name in enumerate(node.input)
        if name not in weights or node.op_type in LAYERS and place == 1
    ]


def quantised(weights: np.ndarray) -> np.ndarray:
    """Weights [out, …] as int8 with a step for each output channel would have them."""
    rows = weights.reshape(len(weights), -1)
    step = np.abs(rows).max(axis=1, keepdims=True) / 127
    step[step == 0] = 1
    return (np.round(rows / step) * step).astype(np.float32).reshape(weights.shape)


def costs(model: onnx.ModelProto, groups: Groups, images: np.ndarray) -> Dict[str, float]:
    """{group: 1 - cosine of the logits, on average, if it alone is quantised}; images: float32 [n, 3, h, w]."""
    given = model.graph.input[0].name
    weights = {tensor.name for tensor in model.graph.initializer}
    wanted = {name for names in groups.values() for name in names}
    read = {
        name
        for node in model.graph.node
        if operators.name_of(node) in wanted
        for name in node.input
    } - weights
    values = {given: images}
    if read - {given}:
        values.update(
            operators.run(
                operators.session(operators.with_outputs(model, sorted(read - {given}))), values
            )
        )
    ranges = {name: (float(array.min()), float(array.max())) for name, array in values.items()}
    ready = operators.session(with_switches(model, groups, ranges))
    off = {switch_of(group): np.zeros(1, np.float32) for group in groups}

    def logits(**on: np.ndarray) -> np.ndarray:
        return next(iter(operators.run(ready, {given: images, **off, **on}).values()))

    right = logits()
    return {
        group: float(
            np.mean(
                [
                    1 - cosine_similarity(a, b)
                    for a, b in zip(right, logits(**{switch_of(group): np.ones(1, np.float32)}))
                ]
            )
        )
        for group in groups
    }


# ---- the promise -----------------------------------------------------------------------------------------------------


def answers(model: onnx.ModelProto, paths: Sequence[str], sample: Input) -> Tuple[np.ndarray, int]:
    """(int [images]: the class that ONNX Runtime's logits are highest for, the number of classes)."""
    logits_of, found = operators.logits_of(model), []  # type: Any, List[int]
    for start in range(0, len(paths), sample.batch_size):
        batch = list(paths[start : start + sample.batch_size])
        logits = logits_of(read_batch(batch, sample))
        found += logits[: len(batch)].argmax(1).tolist()
    return np.array(found), logits.shape[1]


class Drop(NamedTuple):
    """The Top-1 accuracy that is lost, in percentage points, on the same images before and after."""

    points: float
    low: float  # the 95 % interval of the paired difference
    high: float
    images: int

    def __str__(self) -> str:
        return (
            f"{self.points:.2f} points of Top-1 (95 % interval {self.low:.2f} to {self.high:.2f}, {self.images} "
            "images)"
        )


def paired_drop(before: np.ndarray, after: np.ndarray) -> Drop:
    """From whether each image was right, bool [n] each.

    The interval is Wald's with half an image added to each of the four cells (Agresti and Min 2005), which is honest
    for few images and where no answer changed.
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
) -> Dict[str, Any]:
    """Put the costliest layers back to float, 1, 3, 7, … of them, until Top-1 drops by at most max_drop points.

    right: bool [n], whether float32 is right; judge: the same of the int8 model with these layers left in float; rank:
    what each layer costs. Returns {"max_drop", "drop", "interval", "images", "held", "put_back": [{"name", "cost"}],
    "rounds": [{"layers", "drop"}]}.
    """
    back: List[str] = []
    rounds: List[Dict[str, Any]] = []
    cost = functools.lru_cache(maxsize=None)(
        rank
    )  # takes a while, and is not needed if int8 holds at once
    while True:
        drop = paired_drop(right, judge(back))
        rounds.append({"layers": len(back), "drop": drop.points})
        held = drop.points <= max_drop
        say(
            f"int8 with {len(back)} layers put back to float loses {drop}, {'within' if held else 'more than'} "
            f"--max-drop {max_drop:g}"
        )
        if held or len(back) == len(cost()):
            break
        back = sorted(cost(), key=lambda name: -cost()[name])[: 2 * len(back) + 1]
    return {
        "max_drop": max_drop,
        "drop": drop.points,
        "interval": [drop.low, drop.high],
        "images": drop.images,
        "held": held,
        "put_back": [{"name": name, "cost": cost()[name]} for name in back],
        "rounds": rounds,
    }


# ---- what every tool that quantises does -----------------------------------------------------------------------------


def parser(doc: Optional[str], images: int) -> argparse.ArgumentParser:
    """The command line; images: for the calibration, unless the user says otherwise."""
    made = cli.parser(doc)
    made.add_argument("model", type=options.path, help="float32 .onnx file")
    made.add_argument("output", type=options.onnx_path, help="the int8 .onnx file")
    options.add(
        made,
        "calibrate",
        "images",
        "aipp",
        "max_drop",
        "labels",
        "label_offset",
        "force",
        required=["calibrate"],
        default={"images": images},
        help={
            "images": "how many of them, evenly spaced (default: %(default)s)",
            "max_drop": "put layers back until Top-1 is at most P percentage points "
            "below float32's; takes --labels",
            "labels": "labels of the images, for --max-drop",
        },
    )
    return made


class Task:
    """What is quantised, by which images, and its record.

    chosen: the images for the calibration; single, several: the input for them, and for the runs of --max-drop.
    """

    def __init__(self, tool: str, arguments: argparse.Namespace, **more: Any) -> None:
        self.arguments, self.described = arguments, onnx_file.describe(arguments.model)
        fixed = self.described["shape"][0]
        self.single, self.several = (
            input_of(self.described, arguments.aipp, fixed or size) for size in (1, BATCH)
        )
        self.paths = list_inputs(arguments.calibrate)
        self.stems = list(map(result_stem, self.paths))
        self.chosen = spaced(self.paths, arguments.images)
        self.report_path = (
            arguments.output[: -len(".onnx")] + ".json"
        )  # which layers stayed in float, and why
        given = {"aipp": self.single.aipp, **{key: vars(arguments)[key] for key in OPTIONS}}
        inputs, settings = (
            (self.chosen, []) if arguments.max_drop is None else (self.paths, [arguments.labels])
        )
        self.made_by = recipe.make(
            tool,
            given,
            ("onnxruntime", "onnx", "numpy"),
            [*onnx_file.all_files(arguments.model), *inputs],
            settings,
            **more,
        )

    def is_current(self) -> bool:
        """Whether nothing is to be done, which is said then. Raises: Refusal for files that are not ours to replace."""
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
        found: Callable[[onnx.ModelProto], np.ndarray],
    ) -> Tuple[onnx.ModelProto, Dict[str, Any]]:
        """(the int8 model, what is to be told of it); with --max-drop groups are put back to float until it holds.

        quantise: the int8 model with these groups left in float; found: int [images], its answers.
        """
        if self.arguments.max_drop is None:
            return quantise([]), {"put_back": []}
        right, count = answers(model, self.paths, self.several)
        classes = np.array(
            true_classes(
                self.arguments.labels,
                self.arguments.calibrate,
                self.stems,
                count,
                self.arguments.label_offset,
            )
        )
        latest: List[onnx.ModelProto] = []

        def judge(back: List[str]) -> np.ndarray:
            latest[:] = [quantise(back)]
            return found(latest[0]) == classes

        def rank() -> Dict[str, float]:
            images = [read_batch([path], self.single) for path in self.chosen[:RANKED]]
            return costs(model, groups, np.concatenate(images))

        promise = keep_promise(self.arguments.max_drop, right == classes, judge, rank, print)
        return latest[0], promise

    def write(self, quantised_model: onnx.ModelProto, report: Dict[str, Any]) -> int:
        """Write the int8 model and its report, the JSON file; the size of the model in bytes."""
        report = {"tool": self.made_by.row["tool"], "version": cli.VERSION, **report}
        onnx.helper.set_model_props(
            quantised_model, dict(self.described["metadata"], precision="int8")
        )
        data = quantised_model.SerializeToString()
        contents = {self.report_path: json_file.encode(report), self.arguments.output: data}
        record.write(
            self.arguments.output,
            self.made_by,
            contents,
            evaluation=record.read(self.arguments.model).notes.get("evaluation", {}),
        )
        return len(data)
