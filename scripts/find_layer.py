#!/usr/bin/env python3
"""Find the operator that loses more on the card than float16 explains, and try what may help.

    python3 scripts/find_layer.py tresnet_m.onnx --input prep_dataset
    python3 scripts/find_layer.py work/tresnet.onnx --input work/prep_dataset --output work \\
        --aipp work/aipp.cfg

Run it when compare_results.py says that the conversion is at fault.
In:  the ONNX file, and the prepared images.
Out: the first bad block, in it the first bad operator with the range of its inputs, the remedy that
     was tried, and whether it helped; the same in OUTPUT/find_layer.json.
It compiles the model up to three times with onnx2om.sh: with the result of every block as an output
(atc's --out_nodes), with every operator of the first bad block, and with the remedy.
A block or an operator is judged by what it makes of its own input on the card: docs/ascend.md.
"""

import argparse
import copy
import os
import shutil
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import bench, host
from common.core import files, json_file, options, recipe, record
from common.core.cli import ROOT, Refusal, counted, shown
from common.core.names import om_path, result_names
from common.core.record import Draft, Writer
from common.data.images import list_inputs
from common.data.inputs import Input, input_of, read_batch
from common.model import float16, onnx_file, operators
from common.model.graph import Graph, one_hot

import numpy as np
import onnx
from onnx import helper, numpy_helper

# A result is good if its relative error (length of the difference over length of the result) is at
# most FACTOR times that of the card's arithmetic, plus one rounding of float16. The card may sum in
# another order, hence the factor.
FACTOR = 3.0
ONE_ROUNDING = 2.0**-11
HUGE = 1e9  # the error of a result that is not finite
KEEP = "find_layer_keep_dtype.txt"  # atc's --keep_dtype of the remedy
ACTIVATIONS = ("LeakyRelu", "Relu")
REFLECTION = ("row", "row_in_front", "column", "column_in_front")  # its nodes, in order

Values = Dict[str, np.ndarray]  # {tensor: its value} for one image
Report = Dict[str, Any]  # what find_layer.json holds


class Step(NamedTuple):
    """A block or an operator of a model."""

    inputs: List[str]
    result: str  # the tensor that it makes


class Judged(NamedTuple):
    """A block or an operator on the card."""

    name: str
    error: float  # of the card's result from the card's input, relative to float32
    expected: float  # the same of the card's arithmetic

    @property
    def is_bad(self) -> bool:
        return not self.error <= FACTOR * self.expected + ONE_ROUNDING


class Judgement(NamedTuple):
    """The steps that were judged, and the card's values of all tensors that were handed out."""

    rows: List[Judged]
    values: List[Values]  # for each image


class Card:
    """Compiles variants of one model, and runs a few images through them."""

    def __init__(
        self, arguments: argparse.Namespace, sample: Input, paths: List[str], folder: str
    ) -> None:
        self.arguments, self.folder, self.paths = arguments, folder, paths
        self.compilations = 0
        self.images = [read_batch([path], sample) for path in paths]
        self.input_name, self.input = sample.name, os.path.join(folder, "in")
        os.mkdir(self.input, 0o750)
        for path in paths:
            shutil.copyfile(path, os.path.join(self.input, os.path.basename(path)))

    def start(self, command: List[str], name: str, stall: float = 0) -> None:
        """Run a command in the folder. Raises: Refusal with the last lines of its output."""
        log = os.path.join(self.arguments.output, "find_layer.log")
        host.run_or_refuse(command, log, name, stall=stall, cwd=self.folder)

    def compile(self, model: onnx.ModelProto, tensors: List[str], for_atc: List[str]) -> str:
        """Compile a model so that its outputs are these tensors; returns the path of the .om."""
        self.compilations += 1
        path = os.path.join(self.folder, f"variant{self.compilations}.onnx")
        onnx.save(model, path)
        nodes = ";".join(f"{operators.name_of(node_of(model, tensor))}:0" for tensor in tensors)
        aipp = self.arguments.aipp and os.path.abspath(self.arguments.aipp)
        script = os.path.join(ROOT, "scripts", "onnx2om.py")
        given = self.arguments
        words = options.words(
            batch_sizes=1, soc_version=given.soc_version, aipp=aipp, stall=given.stall
        )
        words += ["--", "--output_type=FP32", f"--out_nodes={nodes}", *for_atc]
        self.start([sys.executable, script, path, *words], f"compilation {self.compilations}")
        return om_path(path, 1)

    def values(
        self, model: onnx.ModelProto, tensors: List[str], for_atc: List[str]
    ) -> List[Values]:
        """Compile a model and run the images through it; for_atc: options for atc.

        Returns the values of the tensors and of the input, for each image.
        """
        om = self.compile(model, tensors, for_atc)
        result = f"result{self.compilations}"
        command = bench.command(
            om,
            bench.spelling(),
            input=self.input,
            output=".",
            output_dirname=result,  # ais_bench looks at it from the current folder
            outfmt="NPY",
            device=self.arguments.device,
        )
        self.start(command, "ais_bench", self.arguments.stall)
        all_values = []
        for source, image in zip(self.paths, self.images):
            values = {self.input_name: image}
            for tensor, name in zip(tensors, result_names(source, len(tensors), "NPY")):
                path = os.path.join(self.folder, result, name)
                if not os.path.isfile(path):
                    raise Refusal(
                        f"ais_bench did not write {name}, but a model with {len(tensors)} outputs "
                        "should give as many results for each image; see find_layer.log"
                    )
                values[tensor] = np.load(path, allow_pickle=False)
            all_values.append(values)
        return all_values


# ---- blocks and operators ------------------------------------------------------------------------


def blocks(model: onnx.ModelProto) -> List[str]:
    """The results of blocks, of stem and head, in order; later operators need no other tensors.

    A result that is only read by its activation is left out, because atc fuses the two.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    made_at = {node.output[0]: index for index, node in enumerate(nodes)}
    last_read_at: Dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            if name not in weights:
                last_read_at[name] = index
    ends = []
    for index, node in enumerate(nodes):
        still_needed = {
            name for name, last in last_read_at.items() if made_at.get(name, -1) <= index < last
        }
        following = nodes[index + 1].op_type if index + 1 < len(nodes) else ""
        if still_needed <= {node.output[0]} and following not in ACTIVATIONS:
            ends.append(node.output[0])
    return ends


def error(results: List[np.ndarray], right: List[np.ndarray]) -> float:
    """Length of the difference over length of the right results, over all images; at most HUGE."""
    difference = length = 0.0
    for a, b in zip(results, right):
        difference += float(np.square(a.astype(np.float64) - b).sum())
        length += float(np.square(b.astype(np.float64)).sum())
    if difference == 0:
        return 0.0
    relative = (difference / length) ** 0.5 if length else HUGE
    return min(relative, HUGE) if np.isfinite(relative) else HUGE


def node_of(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    """The node that makes a tensor."""
    return next(node for node in model.graph.node if tensor in node.output)


def judge(
    model: onnx.ModelProto, rounded: onnx.ModelProto, step: Step, card: List[Values]
) -> Judged:
    """How far a step's result on the card is from what follows from its inputs on the card.

    rounded: the model in the card's arithmetic; card: the values on the card for each image.
    """
    result = step.result
    name = operators.name_of(node_of(model, result))
    full = operators.session(operators.part(model, step.inputs, [result]))
    half = operators.session(operators.part(rounded, step.inputs, [result]))
    full_results = [operators.run(full, values)[result] for values in card]
    half_results = [operators.run(half, values)[result] for values in card]
    size, right_size = card[0][result].size, full_results[0].size
    if size != right_size:
        raise Refusal(
            f"the card's result of {shown(name)} has {size} values, ONNX Runtime's {right_size}; "
            "is the .om made from another model?"
        )
    card_results = [
        values[result].reshape(right.shape) for values, right in zip(card, full_results)
    ]
    return Judged(name, error(card_results, full_results), error(half_results, full_results))


def judge_all(
    model: onnx.ModelProto, card: Card, steps: List[Step], begin: str, for_atc: List[str]
) -> Judgement:
    """Compile a model so that it hands out the results of all steps, run it, judge each step.

    begin: the tensor that the first step reads; for_atc: options for atc.
    """
    tensors = [begin, *(step.result for step in steps)]
    if begin == card.input_name:
        del tensors[0]
    values = card.values(model, tensors, for_atc)
    rounded = float16.rounded(model)
    return Judgement([judge(model, rounded, step, values) for step in steps], values)


def inside(model: onnx.ModelProto, begin: str, end: str) -> List[Step]:
    """All operators of a block, in order; begin, end: what it reads and what it makes."""
    nodes = operators.part(model, [begin], [end]).graph.node
    return [Step(list(node.input), node.output[0]) for node in nodes]


# ---- what to try ---------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A remedy that may help."""

    advice: str  # what the user would do
    for_atc: List[str]  # options
    model: onnx.ModelProto


def with_convolution_for(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """A copy in which a SpaceToDepth is a convolution of 0 and 1, as --stem conv4 exports it."""
    changed = copy.deepcopy(model)
    node = next(node for node in changed.graph.node if operators.name_of(node) == name)
    block = node.attribute[0].i
    part = Graph("slice")
    part.conv(name, node.input[0], one_hot(3 * block**2, block), None, stride=block, padding=0)
    part.nodes[0].output[:] = node.output
    node.CopyFrom(part.nodes[0])
    changed.graph.initializer.extend(part.weights)
    return changed


def with_pad_for(model: onnx.ModelProto, name: str) -> Optional[onnx.ModelProto]:
    """A copy in which the nodes of a reflection are one Pad, as --reflect pad exports it.

    None if the node `name` is not a Slice or Concat of a reflection.
    """
    changed = copy.deepcopy(model)
    graph = changed.graph
    stem = name.rpartition(".")[0]
    names = [f"{stem}.{part}" for part in REFLECTION]
    group = [node for node in graph.node if operators.name_of(node) in names]
    if [node.op_type for node in group] != ["Slice", "Concat"] * 2:
        return None
    source, target = group[0].input[0], group[3].output[0]
    index = list(graph.node).index(group[0])
    for node in group:
        graph.node.remove(node)
    graph.initializer.append(
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 0, 0], np.int64), stem + ".pads")
    )
    pad = helper.make_node("Pad", [source, stem + ".pads"], [target], mode="reflect", name=names[3])
    graph.node.insert(index, pad)
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


def try_remedy(card: Card, trial: Trial, begin: str, end: str, tensor: str) -> Judged:
    """The operator that makes `tensor` (or what replaces it), judged again with the remedy.

    begin, end: of its block, as for inside().
    """
    steps = inside(trial.model, begin, end)
    rows = judge_all(trial.model, card, steps, begin, trial.for_atc).rows
    same = [row for row, step in zip(rows, steps) if step.result == tensor]
    return max(same or rows, key=lambda row: row.error)


# ---- the search ----------------------------------------------------------------------------------


def ranges(
    node: onnx.NodeProto, model: onnx.ModelProto, card: List[Values]
) -> Dict[str, List[float]]:
    """{input: [least, largest]} of an operator, on the card; of a weight, in the model."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    range_of = {}
    for name in node.input:
        if name in weights:
            arrays = [numpy_helper.to_array(weights[name])]
        else:
            arrays = [values[name] for values in card]
        least = min(array.min() for array in arrays)
        largest = max(array.max() for array in arrays)
        range_of[name] = [float(least), float(largest)]
    return range_of


def first_bad(rows: List[Judged]) -> Optional[int]:
    return next((index for index, row in enumerate(rows) if row.is_bad), None)


def search(model: onnx.ModelProto, card: Card, writer: Writer) -> Report:
    """All that find_layer.json holds, except the figures of the run."""
    ends = blocks(model)
    begins = [card.input_name, *ends]
    steps = [Step([begin], end) for begin, end in zip(begins, ends)]
    rows = judge_all(model, card, steps, card.input_name, []).rows
    report: Report = {
        "blocks": [row._asdict() for row in rows],
        "block": None,
        "operator": None,
    }
    bad_block = first_bad(rows)
    if bad_block is None:
        return report
    begin, end = begins[bad_block], ends[bad_block]
    steps = inside(model, begin, end)
    inner, values = judge_all(model, card, steps, begin, [])
    report.update(block=rows[bad_block].name, operators=[row._asdict() for row in inner])
    bad_operator = first_bad(inner)
    if bad_operator is None:
        return report
    row, tensor = inner[bad_operator], steps[bad_operator].result
    node = node_of(model, tensor)
    trial = what_to_try(model, node, writer)
    after = try_remedy(card, trial, begin, end, tensor)
    report.update(
        operator=row.name,
        type=node.op_type,
        error=row.error,
        expected=row.expected,
        range=ranges(node, model, values),
        tried=trial.advice,
        error_then=after.error,
        helped=not after.is_bad,
    )
    return report


def describe(report: Report) -> str:
    """The result of the search in words, one or several lines."""
    effort = (
        f"{counted(report['compilations'], 'compilation')}, {counted(report['images'], 'image')}, "
        f"{report['seconds']:.0f} s"
    )
    if not report["block"]:
        worst = max(report["blocks"], key=lambda row: row["error"])
        return (
            "no block is worse than float16 explains; the largest error is "
            f"{worst['error']:.1e} in {shown(worst['name'])}, {worst['expected']:.1e} expected "
            f"({effort})"
        )
    row = next(row for row in report["blocks"] if row["name"] == report["block"])
    lines = [
        f"the first bad block ends with {shown(report['block'])}: its error is {row['error']:.1e}, "
        f"{row['expected']:.1e} expected"
    ]
    if not report["operator"]:
        lines.append(
            "each of its operators alone is right, so a fusion of them is at fault: try atc's "
            f"--fusion_switch_file ({effort})"
        )
        return "\n".join(lines)
    lines.append(
        f"the operator that loses: {shown(report['operator'])} ({report['type']}): its error is "
        f"{report['error']:.1e}, {report['expected']:.1e} expected"
    )
    for name, (least, largest) in report["range"].items():
        lines.append(f"    its input {shown(name)} lies between {least:.4g} and {largest:.4g}")
    outcome = "helps" if report["helped"] else "does not help"
    lines.append(
        f"tried: {report['tried']}: {outcome}, the error is then {report['error_then']:.1e} "
        f"({effort})"
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
        "stall",
        required=["input"],
        help={"output": "where find_layer.json goes (default: here)"},
    )
    return options.parse(parser)


def main() -> None:
    arguments = parse_arguments()
    began = time.monotonic()
    sample = input_of(onnx_file.describe(arguments.model), arguments.aipp)
    paths = list_inputs(arguments.input)[: arguments.images]
    files.limit_rights()
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
