#!/usr/bin/env python3
"""Find the operator that loses more on the card than float16 explains, and try what may help.

    python3 scripts/find_layer.py tresnet_m.onnx --input prep_dataset
    python3 scripts/find_layer.py work/tresnet.onnx --input work/prep_dataset --output work --aipp work/aipp.cfg

In:  the ONNX file, and the prepared images; for when compare_results.py says that the conversion is at fault.
Out: the first bad block, in it the first bad operator with the range of its inputs, what was tried and whether it
     helped; the same in OUTPUT/find_layer.json. It takes two or three compilations by onnx2om.sh: one that hands out
     the result of every block (atc's --out_nodes), one for every operator of the first bad block, one to try.
A block, and then an operator, is judged by what it makes of its own input on the card: docs/ascend.md.
"""

import argparse
import copy
import os
import shutil
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import bench, host
from common.core import files, json_file, options, recipe, record
from common.core.cli import ROOT, Refusal, shown
from common.core.names import om_path, result_names
from common.core.record import Draft, Writer
from common.data.images import list_inputs
from common.data.inputs import Input, input_of, read_batch
from common.model import float16, onnx_file, operators
from common.model.graph import unshuffled

import numpy as np
import onnx
from onnx import helper, numpy_helper

# The relative error of a result (length of the difference over length of the result) that is nothing to worry about:
# so many times that of the card's arithmetic, because the card may sum in another order, and one rounding of float16.
FACTOR = 3.0
ONE_ROUNDING = 2.0**-11
HUGE = 1e9
KEEP = "find_layer_keep_dtype.txt"  # atc's --keep_dtype of the remedy
ACTIVATIONS = ("LeakyRelu", "Relu")


Variants = Tuple[onnx.ModelProto, onnx.ModelProto]  # a model, and the same in the card's arithmetic


class Judged(NamedTuple):
    """A block or an operator on the card."""

    name: str
    error: float  # of the card's result from the card's input, relative to float32
    expected: float  # the same of the card's arithmetic

    @property
    def bad(self) -> bool:
        return not self.error <= FACTOR * self.expected + ONE_ROUNDING


class Card:
    """Compiles variants of one model, and runs a few images through them."""

    def __init__(
        self, arguments: argparse.Namespace, sample: Input, paths: List[str], folder: str
    ) -> None:
        self.arguments, self.folder, self.paths, self.compilations = arguments, folder, paths, 0
        self.images = [read_batch([path], sample) for path in paths]
        self.input_name, self.input = sample.name, os.path.join(folder, "in")
        os.mkdir(self.input, 0o750)
        for path in paths:
            shutil.copyfile(path, os.path.join(self.input, os.path.basename(path)))

    def start(self, words: List[str], what: str) -> None:
        host.run_or_refuse(
            words, os.path.join(self.arguments.output, "find_layer.log"), what, cwd=self.folder
        )

    def values(
        self, model: onnx.ModelProto, tensors: List[str], for_atc: List[str]
    ) -> List[Dict[str, np.ndarray]]:
        """{tensor: its value} for each image, of a model that is compiled so that it hands these tensors out.

        for_atc: options for atc. Raises: Refusal with what onnx2om.sh or ais_bench said.
        """
        self.compilations += 1
        path, result = (
            os.path.join(self.folder, f"{name}{self.compilations}")
            for name in ("variant", "result")
        )
        onnx.save(model, path + ".onnx")
        aipp = self.arguments.aipp and os.path.abspath(self.arguments.aipp)
        nodes = ";".join(f"{operators.name_of(node_of(model, tensor))}:0" for tensor in tensors)
        words = options.words(batch_sizes=1, soc_version=self.arguments.soc_version, aipp=aipp)
        self.start(
            [
                sys.executable,
                os.path.join(ROOT, "scripts", "onnx2om.py"),
                path + ".onnx",
                *words,
                "--",
                "--output_type=FP32",
                f"--out_nodes={nodes}",
                *for_atc,
            ],
            f"compilation {self.compilations}",
        )
        # ais_bench looks at --output_dirname from the current folder.
        self.start(
            bench.command(
                om_path(path + ".onnx", 1),
                bench.spelling(),
                input=self.input,
                output=".",
                output_dirname=os.path.basename(result),
                outfmt="NPY",
                device=self.arguments.device,
            ),
            "ais_bench",
        )
        found = []
        for source, image in zip(self.paths, self.images):
            results = [
                os.path.join(result, name) for name in result_names(source, len(tensors), "NPY")
            ]
            missing = [name for name in results if not os.path.isfile(name)]
            if missing:
                raise Refusal(
                    f"ais_bench wrote no {os.path.basename(missing[0])}: a model with {len(tensors)} outputs "
                    "should give as many results for each image"
                )
            arrays = [np.load(name, allow_pickle=False) for name in results]
            found.append({self.input_name: image, **dict(zip(tensors, arrays))})
        return found


# ---- blocks and operators --------------------------------------------------------------------------------------------


def blocks(model: onnx.ModelProto) -> List[str]:
    """The tensors through which everything behind them goes, in order: the results of blocks, of stem and head.

    A result whose only reader is its activation is left out: there atc fuses.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    last_read = {
        name: place
        for place, node in enumerate(nodes)
        for name in node.input
        if name not in weights
    }
    made = {node.output[0]: place for place, node in enumerate(nodes)}
    found = []
    for place, node in enumerate(nodes):
        open_tensors = {
            name for name, read in last_read.items() if read > place >= made.get(name, -1)
        }
        following = nodes[place + 1].op_type if place + 1 < len(nodes) else ""
        if open_tensors <= {node.output[0]} and following not in ACTIVATIONS:
            found.append(node.output[0])
    return found


def error(found: List[np.ndarray], right: List[np.ndarray]) -> float:
    """Length of the difference over the length of what is right, over all images; HUGE where that is not finite."""
    difference = sum(float(np.square(a.astype(np.float64) - b).sum()) for a, b in zip(found, right))
    length = sum(float(np.square(b.astype(np.float64)).sum()) for b in right)
    relative = (difference / length) ** 0.5 if length else HUGE * (difference > 0)
    return min(relative, HUGE) if np.isfinite(relative) else HUGE


def node_of(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def judge(
    variants: Variants, given: List[str], tensor: str, card: List[Dict[str, np.ndarray]]
) -> Judged:
    """How far `tensor` on the card is from what follows from the tensors `given` as they were on the card."""
    name = operators.name_of(node_of(variants[0], tensor))
    full, half = (
        operators.session(operators.part(variant, given, [tensor])) for variant in variants
    )
    right = [operators.run(full, values)[tensor] for values in card]
    rounded = [operators.run(half, values)[tensor] for values in card]
    if card[0][tensor].size != right[0].size:
        raise Refusal(
            f"the card's result of {shown(name)} has {card[0][tensor].size} values, ONNX Runtime's "
            f"{right[0].size}; is the .om made of another model?"
        )
    found = [values[tensor].reshape(value.shape) for values, value in zip(card, right)]
    return Judged(name, error(found, right), error(rounded, right))


def judge_all(
    model: onnx.ModelProto,
    card: Card,
    steps: List[Tuple[List[str], str]],
    more: List[str],
    options: List[str],
) -> Tuple[List[Judged], List[Dict[str, np.ndarray]]]:
    """Compile so that the result of each step, (its inputs, its result), is handed out, and `more`; judge each step.

    Returns also the values of all these tensors on the card, for each image.
    """
    handed_out = [
        name for name in [*more, *(tensor for _, tensor in steps)] if name != card.input_name
    ]
    values = card.values(model, handed_out, options)
    variants = model, float16.rounded(model)
    return [judge(variants, given, tensor, values) for given, tensor in steps], values


def inside(model: onnx.ModelProto, begin: str, end: str) -> List[Tuple[List[str], str]]:
    """(inputs, result) of all operators of a block, in order."""
    nodes = operators.part(model, [begin], [end]).graph.node
    return [(list(node.input), node.output[0]) for node in nodes]


# ---- what to try -----------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """Something that may help."""

    what: str  # what its user would do
    options: List[str]  # for atc
    model: onnx.ModelProto


def with_convolution_for(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy in which a SpaceToDepth is a convolution with weights 0 and 1, as --stem conv4 exports it."""
    changed = copy.deepcopy(model)
    node = next(node for node in changed.graph.node if operators.name_of(node) == name)
    block = node.attribute[0].i
    channels = 3 * block * block
    one_hot = unshuffled(
        np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1), block
    )
    changed.graph.initializer.append(
        numpy_helper.from_array(np.ascontiguousarray(one_hot), name + ".weight")
    )
    node.CopyFrom(
        helper.make_node(
            "Conv",
            [node.input[0], name + ".weight"],
            list(node.output),
            name=name,
            kernel_shape=[block] * 2,
            strides=[block] * 2,
            pads=[0] * 4,
            dilations=[1, 1],
        )
    )
    return changed


def with_pad_for(model: onnx.ModelProto, name: str) -> Optional[onnx.ModelProto]:
    """A copy in which the Slice and Concat of a reflection are one Pad, as --reflect pad exports it; None if the node
    `name` is not one of those.
    """
    changed = copy.deepcopy(model)
    graph = changed.graph
    nodes = {operators.name_of(node): node for node in graph.node}
    stem = name.rpartition(".")[0]
    group = [
        nodes.get(f"{stem}.{word}") for word in ("row", "row_in_front", "column", "column_in_front")
    ]
    if None in group or not all(node.op_type in ("Slice", "Concat") for node in group):
        return None
    source, target = group[0].input[0], group[3].output[0]
    place = list(graph.node).index(group[0])
    for node in group:
        graph.node.remove(node)
    graph.initializer.append(
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 0, 0], np.int64), stem + ".pads")
    )
    graph.node.insert(
        place,
        helper.make_node(
            "Pad",
            [source, stem + ".pads"],
            [target],
            mode="reflect",
            name=operators.name_of(group[3]),
        ),
    )
    return changed


def what_to_try(model: onnx.ModelProto, node: onnx.NodeProto, writer: Writer) -> Trial:
    """The remedy that fits an operator of this kind."""
    name = operators.name_of(node)
    if node.op_type == "SpaceToDepth":
        return Trial("export with --stem conv4", [], with_convolution_for(model, name))
    padded = with_pad_for(model, name) if node.op_type in ("Slice", "Concat") else None
    if padded:
        return Trial("export with --reflect pad", [], padded)
    if node.op_type == "Sigmoid":
        option = "--op_select_implmode=high_precision"
        return Trial(f"onnx2om.sh … -- {option}", [option], model)
    if node.op_type in float16.WITH_FLOAT32:
        writer.publish([Draft(KEEP, [], [writer.part(KEEP, (name + "\n").encode())])])
        keep = os.path.join(writer.folder, KEEP)
        return Trial(f"onnx2om.sh … -- --keep_dtype={keep}", [f"--keep_dtype={keep}"], model)
    option = "--precision_mode=force_fp32"
    return Trial(f"onnx2om.sh … -- {option}", [option], model)


def try_it(card: Card, trial: Trial, begin: str, end: str, tensor: str) -> Judged:
    """The operator (or what stands in its place) judged anew with the remedy."""
    steps = inside(trial.model, begin, end)
    rows, _ = judge_all(trial.model, card, steps, [begin], trial.options)
    again = [row for row, (_, result) in zip(rows, steps) if result == tensor]
    return max(again or rows, key=lambda row: row.error)


# ---- the search ------------------------------------------------------------------------------------------------------


def ranges(
    node: onnx.NodeProto, model: onnx.ModelProto, values: List[Dict[str, np.ndarray]]
) -> Dict[str, List[float]]:
    """{input: [least, largest]} of an operator, as they are on the card; weights as they are in the model."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for name in node.input:
        arrays = (
            [numpy_helper.to_array(weights[name])]
            if name in weights
            else [entry[name] for entry in values]
        )
        found[name] = [
            float(min(array.min() for array in arrays)),
            float(max(array.max() for array in arrays)),
        ]
    return found


def search(model: onnx.ModelProto, card: Card, writer: Writer) -> Dict[str, Any]:
    """All that find_layer.json holds, except the figures of the run."""
    ends = blocks(model)
    rows, _ = judge_all(
        model, card, [([begin], end) for begin, end in zip([card.input_name, *ends], ends)], [], []
    )
    report: Dict[str, Any] = {
        "blocks": [row._asdict() for row in rows],
        "block": None,
        "operator": None,
    }
    bad = next((place for place, row in enumerate(rows) if row.bad), None)
    if bad is None:
        return report
    begin, end = [card.input_name, *ends][bad], ends[bad]
    steps = inside(model, begin, end)
    inner, values = judge_all(model, card, steps, [begin], [])
    report.update(block=rows[bad].name, operators=[row._asdict() for row in inner])
    wrong = next((row for row in inner if row.bad), None)
    if not wrong:
        return report
    node = node_of(model, steps[inner.index(wrong)][1])
    trial = what_to_try(model, node, writer)
    after = try_it(card, trial, begin, end, node.output[0])
    report.update(
        operator=wrong.name,
        type=node.op_type,
        error=wrong.error,
        expected=wrong.expected,
        range=ranges(node, model, values),
        tried=trial.what,
        error_then=after.error,
        helped=not after.bad,
    )
    return report


def describe(report: Dict[str, Any]) -> str:
    spent = f"{report['compilations']} compilations, {report['images']} images, {report['seconds']:.0f} s"
    if not report["block"]:
        worst = max(report["blocks"], key=lambda row: row["error"])
        return (
            f"no block is worse than float16 explains; the largest error is {worst['error']:.1e} in "
            f"{shown(worst['name'])}, {worst['expected']:.1e} expected ({spent})"
        )
    row = next(row for row in report["blocks"] if row["name"] == report["block"])
    lines = [
        f"the first bad block ends with {shown(report['block'])}: its error is {row['error']:.1e}, "
        f"{row['expected']:.1e} expected"
    ]
    if not report["operator"]:
        lines.append(
            "each of its operators alone is right, so a fusion of them is at fault: try atc's "
            f"--fusion_switch_file ({spent})"
        )
        return "\n".join(lines)
    lines.append(
        f"the operator that loses: {shown(report['operator'])} ({report['type']}): its error is "
        f"{report['error']:.1e}, {report['expected']:.1e} expected"
    )
    lines += [
        f"    its input {shown(name)} lies between {least:.4g} and {most:.4g}"
        for name, (least, most) in report["range"].items()
    ]
    outcome = "helps" if report["helped"] else "does not help"
    lines.append(
        f"tried: {report['tried']}: {outcome}, the error is then {report['error_then']:.1e} ({spent})"
    )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "model", type=options.path, metavar="MODEL.onnx", help="the ONNX file, as it was compiled"
    )
    options.add(
        parser,
        "input",
        "few_images",
        "aipp",
        "output",
        "soc_version",
        "device",
        required=["input"],
        help={"output": "where find_layer.json goes (default: here)"},
    )
    return options.parse(parser)


def main() -> None:
    arguments = parse_arguments()
    began = time.monotonic()
    sample = input_of(onnx_file.describe(arguments.model), arguments.aipp)
    paths = list_inputs(arguments.input)[: arguments.images]
    os.umask(0o027)  # ais_bench refuses files that others can write
    folder = arguments.output = host.safe_path(arguments.output)
    files.make_folder(folder, "--output")
    model = onnx_file.load(arguments.model)
    target = os.path.join(folder, "find_layer.json")
    made_by = recipe.make(
        __file__, {"images": arguments.images}, (), onnx_file.all_files(arguments.model)
    )
    names = [os.path.basename(target), KEEP]
    with record.begin(record.read(target), made_by, names) as writer, host.run_folder(
        os.path.join(folder, "find-layer-run")
    ) as private:
        card = Card(arguments, sample, paths, private)
        report = search(model, card, writer)
        report.update(
            tool="find_layer.py",
            version=cli.VERSION,
            model=os.path.abspath(arguments.model),
            images=len(paths),
            compilations=card.compilations,
            seconds=time.monotonic() - began,
        )
        record.check_unchanged(made_by)
        data = json_file.encode(report)
        writer.publish([Draft("", [], [writer.part(os.path.basename(target), data)])])
        writer.finish(synced=True)
    print(f"{describe(report)}\nall figures: {shown(target)}")


if __name__ == "__main__":
    cli.run(main)
