"""Fits the forecast of the speed again: what speed_310p3.json rests on, and how far it is off.

    python3 -m venv fit && fit/bin/pip install torch timm torchvision scipy onnx
    fit/bin/python test/fit_speed.py --networks networks        # about ten minutes on 2 cores

It needs an environment of its own. timm and torchvision build the 51 networks of
test/data/speed_310p3.csv; docs/speed.md names the source of the table. Their graphs go to the
folder --networks without their weights, and are kept there. The product's own code
(common/model/speed.py) counts the kernels. Then the constants are fitted, each family is left out
once, and all that docs/speed.md and speed_310p3.json say is printed. The time of a kernel is
computed here a second time, over arrays; both ways must agree.
"""

import argparse
import csv
import itertools
import json
import math
import os
import sys
import tempfile
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "scripts"))
from common.model import speed  # noqa: E402 (the path comes first)

FIGURES = os.path.join(HERE, "data", "speed_310p3.csv")
OPSET = 20  # the first with Gelu as one operator
BATCH_SIZES = (1, 4, 8, 16, 32, 64)
SCALE = 0.2  # of soft_l1, in |log ratio|: what is further off counts less
LIKE_RESNET = (
    "resnet",
    "resnext",
    "senet",
    "wrn",
    "resnest",
    "sknet",
    "res2net",
    "regnet",
    "vovnet",
    "repvgg",
    "dpn",
)

# What the fit starts from and is weakly held to: {constant: (value, standard deviation of its
# logarithm)}. The first four are the hardware's own (Ascend310P3.ini of CANN 8.1), the others
# orders of magnitude.
PRIORS = {
    "multiply_adds": (34.7e12, 0.3),
    "ddr": (144e9, 0.3),
    "l2": (600e9, 0.5),
    "l2_size": (16.8e6, 0.3),
    "l2_steepness": (2.0, 0.5),
    "overlap": (0.3, 0.7),
    "convolution_overhead": (3e-6, 0.7),
    "dense_overhead": (3e-6, 0.7),
    "depthwise_overhead": (3e-6, 0.7),
    "vector_overhead": (3e-6, 0.7),
    "pool_overhead": (3e-6, 0.7),
    "move_overhead": (3e-6, 0.7),
    "call": (1e-4, 0.7),
    "depthwise_rate": (1e12, 1.0),
    "vector_rate": (3e11, 1.0),
    "pool_rate": (1e11, 1.0),
    "move_rate": (1e11, 1.0),
    "input_rate": (3e10, 0.7),
    "ramp": (2.0, 1.0),
    "short_sum": (50.0, 1.0),
}
PRIOR_WEIGHT = 0.2  # of a prior beside a figure


Errors = Dict[Tuple[str, int], float]  # {(network, batch size): log of forecast over published}


class Entry(NamedTuple):
    """A network of the table with its published figures."""

    name: str
    family: str
    # {field of speed.Kernel: float64 [kernels]}; "kind": its index in speed.KINDS
    kernels: Dict[str, np.ndarray]
    input_bytes: int  # of one image
    published: Dict[int, float]  # {batch size: images/s}


# ---- networks ------------------------------------------------------------------------------------


def build(builder: str) -> Any:
    """The network, a torch.nn.Module with random weights. builder: as the table has it."""
    import timm
    import torchvision

    kind, _, name = builder.partition(":")
    if kind == "t":
        return timm.create_model(name, exportable=True)
    if kind == "v":
        options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        return getattr(torchvision.models, name)(weights=None, **options)
    # for re-identification of persons: a last stage of stride 1
    network = timm.create_model("resnet50", num_classes=0)
    network.layer4[0].conv2.stride = network.layer4[0].downsample[0].stride = (1, 1)
    return network


def same_padding(*numbers: Any) -> int:
    """timm's get_same_padding(), but never traced.

    So the graph gets a number instead of operators that compute it.
    """
    size, kernel, stride, dilation = map(int, numbers)
    return max((math.ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)


def trace(row: Dict[str, str], path: str) -> None:
    """Write a network's graph as ONNX, without the values of its weights."""
    import onnx
    import torch

    image = torch.zeros(1, 3, int(row["height"]), int(row["width"]))
    with tempfile.TemporaryDirectory() as folder:
        traced = os.path.join(folder, "traced.onnx")
        with torch.no_grad(), mock.patch("timm.layers.padding.get_same_padding", same_padding):
            torch.onnx.export(
                build(row["builder"]).eval(),
                (image,),
                traced,
                dynamo=False,
                opset_version=OPSET,
                input_names=["image"],
            )
        model = fold_constants(onnx.load(traced))
    for tensor in model.graph.initializer:
        if speed.product(tensor.dims) > speed.SMALL_TENSOR:
            tensor.ClearField("raw_data")
    onnx.save(model, path)


def fold_constants(model: Any) -> Any:
    """The model without operators on constants and sizes.

    PyTorch writes the borders of a Pad with such operators.
    """
    import onnx
    from onnx import numpy_helper, reference

    while True:
        shapes: Dict[str, List[int]] = {}
        for value in onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info:
            sizes = value.type.tensor_type.shape.dim
            shapes[value.name] = [size.dim_value for size in sizes]
        known = {
            tensor.name: numpy_helper.to_array(tensor)
            for tensor in model.graph.initializer
            if len(tensor.dims) < 2 or speed.product(tensor.dims) <= speed.SMALL_TENSOR
        }
        left = []
        for node in model.graph.node:
            names = [name for name in node.input if name]
            is_plain_shape = node.op_type == "Shape" and not node.attribute
            if is_plain_shape and min(shapes.get(names[0], [0])) > 0:
                known[node.output[0]] = np.array(shapes[names[0]], np.int64)
            elif node.op_type != "Identity" and all(name in known for name in names):
                values = reference.ReferenceEvaluator(node).run(
                    None, {name: known[name] for name in names}
                )
                known.update(zip(node.output, map(np.asarray, values)))
            else:
                left.append(node)
                continue
            model.graph.initializer.extend(
                numpy_helper.from_array(known[name], name) for name in node.output
            )
        if len(left) == len(model.graph.node):
            return model
        del model.graph.node[:]
        model.graph.node.extend(left)


def read_entries(networks: str) -> List[Entry]:
    """The table's networks, traced where the folder does not have them yet."""
    entries = []
    with open(FIGURES, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = os.path.join(networks, row["network"] + ".onnx")
        if not os.path.exists(path):
            print(f"tracing {row['network']}", file=sys.stderr)
            trace(row, path)
        network = speed.read_network(path)
        texts = {size: row[f"images/s at {size}"] for size in BATCH_SIZES}
        published = {size: float(text) for size, text in texts.items() if text}
        bytes_each = speed.UINT8 if row["aipp"] == "1" else speed.FLOAT32
        entries.append(
            Entry(
                row["network"],
                row["family"],
                arrays(network.kernels),
                network.input_elements * bytes_each,
                published,
            )
        )
    return entries


def arrays(kernels: Sequence[speed.Kernel]) -> Dict[str, np.ndarray]:
    """The kernels' numbers as arrays, float64 [kernels]."""
    fields: Dict[str, np.ndarray] = {}
    for name in ("work", "reduction", "channels", "pixels", "weights", "activations"):
        fields[name] = np.array([getattr(kernel, name) for kernel in kernels], np.float64)
    return dict(fields, kind=np.array([speed.KINDS.index(kernel.kind) for kernel in kernels]))


# ---- the model, over arrays ----------------------------------------------------------------------


class Figures(NamedTuple):
    """Each published figure with each kernel of its network: n pairs of m figures."""

    names: List[Tuple[str, int]]  # (network, batch size) of each figure
    published: np.ndarray  # images/s, float64 [m]
    batch: np.ndarray  # float64 [m]
    input_bytes: np.ndarray  # of one image, float64 [m]
    figure: np.ndarray  # which figure a pair belongs to, int [n]
    kernels: Dict[str, np.ndarray]  # as in Entry, [n]


def figures_of(entries: Sequence[Entry]) -> Figures:
    pairs: List[Tuple[Entry, int]] = []
    for entry in entries:
        pairs += [(entry, size) for size in entry.published]
    counts = [len(entry.kernels["kind"]) for entry, _ in pairs]
    kernels: Dict[str, np.ndarray] = {}
    for field in entries[0].kernels:
        kernels[field] = np.concatenate([entry.kernels[field] for entry, _ in pairs])
    return Figures(
        [(entry.name, size) for entry, size in pairs],
        np.array([entry.published[size] for entry, size in pairs]),
        np.array([float(size) for _, size in pairs]),
        np.array([float(entry.input_bytes) for entry, _ in pairs]),
        np.repeat(np.arange(len(pairs)), counts),
        kernels,
    )


def seconds(figures: Figures, constants: Dict[str, float]) -> np.ndarray:
    """The time of a batch for each figure, float64 [m], as common/model/speed.py defines it."""
    kernels, kind = figures.kernels, figures.kernels["kind"]
    batch = figures.batch[figures.figure]
    moved = kernels["activations"] * batch
    in_l2 = 1 / (1 + (moved / constants["l2_size"]) ** constants["l2_steepness"])
    per_byte = in_l2 / constants["l2"] + (1 - in_l2) / constants["ddr"]
    memory = kernels["weights"] / constants["ddr"] + moved * per_byte
    rows = np.ceil(batch * kernels["pixels"] / 16) * 16
    with np.errstate(divide="ignore", invalid="ignore"):  # where it is not a convolution
        ramp = 1 + constants["ramp"] / (rows / 16 * kernels["channels"] / 16 / 8)
        short_sum = 1 + constants["short_sum"] / kernels["reduction"]
        cube = kernels["work"] * rows / constants["multiply_adds"] * ramp * short_sum
    names = ("depthwise", "vector", "pool", "move")
    rates = np.array([1, 1] + [constants[f"{name}_rate"] for name in names])
    compute = np.where(kind < 2, cube, kernels["work"] * batch / rates[kind])
    overheads = np.array([constants[f"{name}_overhead"] for name in speed.KINDS])
    hidden = constants["overlap"] * np.minimum(compute, memory)
    total = overheads[kind] + np.maximum(compute, memory) + hidden
    inputs = figures.input_bytes * figures.batch / constants["input_rate"]
    return constants["call"] + inputs + np.bincount(figures.figure, weights=total)


def errors_of(figures: Figures, constants: Dict[str, float]) -> np.ndarray:
    """Log of forecast over published, float64 [m]."""
    return np.log(figures.batch / seconds(figures, constants) / figures.published)


def log_ratios(entries: Sequence[Entry], constants: Dict[str, float]) -> Errors:
    """{(network, batch size): log of forecast over published}."""
    figures = figures_of(entries)
    return dict(zip(figures.names, errors_of(figures, constants).tolist()))


def fit(entries: Sequence[Entry], start: Optional[Dict[str, float]] = None) -> Dict[str, float]:
    """The constants that fit the published figures best: least squares of log time with soft_l1."""
    from scipy.optimize import least_squares

    names, figures = list(PRIORS), figures_of(entries)
    centres = np.log([PRIORS[name][0] for name in names])
    widths = np.array([PRIORS[name][1] for name in names])
    begin = np.log([start[name] for name in names]) if start else centres

    def residuals(logarithms: np.ndarray) -> np.ndarray:
        errors = errors_of(figures, dict(zip(names, np.exp(logarithms))))
        return np.concatenate([errors, PRIOR_WEIGHT * (logarithms - centres) / widths])

    found = least_squares(residuals, begin, loss="soft_l1", f_scale=SCALE, x_scale=widths)
    return dict(zip(names, np.exp(found.x).tolist()))


def left_out(entries: Sequence[Entry], start: Dict[str, float]) -> Errors:
    """log_ratios() of each family from constants that were fitted to all other families."""
    errors: Errors = {}
    for family in sorted({entry.family for entry in entries}):
        others = [entry for entry in entries if entry.family != family]
        own = [entry for entry in entries if entry.family == family]
        errors.update(log_ratios(own, fit(others, start)))
    return errors


def baseline(entries: Sequence[Entry]) -> Errors:
    """Errors of a straight line through the logarithms of four sums: what a forecast must beat.

    The sums: multiply-adds, bytes of activations, bytes of weights, kernels.
    """

    def features(entry: Entry) -> List[float]:
        kernels = entry.kernels
        work = kernels["work"] * np.where(kernels["kind"] < 2, kernels["pixels"], 1)
        sums = [work.sum(), kernels["activations"].sum(), kernels["weights"].sum(), len(work)]
        return [1.0, *np.log(sums)]

    errors: Errors = {}
    for family, size in itertools.product(sorted({entry.family for entry in entries}), BATCH_SIZES):
        known = [entry for entry in entries if entry.family != family and size in entry.published]
        own = [entry for entry in entries if entry.family == family and size in entry.published]
        goal = np.log([entry.published[size] for entry in known])
        line, *_ = np.linalg.lstsq(np.array([features(entry) for entry in known]), goal, rcond=None)
        for entry in own:
            error = np.dot(features(entry), line) - np.log(entry.published[size])
            errors[entry.name, size] = float(error)
    return errors


def from_relatives(entries: Sequence[Entry], errors: Errors) -> Dict[int, Dict[str, float]]:
    """{batch size: quantiles()} after moving each forecast by half of a relative's median error.

    Relatives are of one family; each ordered pair of them counts.
    """
    moved: Dict[int, List[float]] = {size: [] for size in BATCH_SIZES[:-1]}
    for relative, entry in itertools.permutations(entries, 2):
        known = [errors[relative.name, size] for size in moved if (relative.name, size) in errors]
        if relative.family != entry.family or not known:
            continue
        for size, moved_errors in moved.items():
            if (entry.name, size) in errors:
                moved_errors.append(errors[entry.name, size] - float(np.median(known)) / 2)
    return {size: quantiles(moved_errors) for size, moved_errors in moved.items()}


# ---- what is printed -----------------------------------------------------------------------------


def quantiles(errors: Sequence[float]) -> Dict[str, float]:
    """Median, 80th and 90th percentile of |error|."""
    sizes = np.abs(errors)
    return {
        "median": float(np.median(sizes)),
        "p80": float(np.percentile(sizes, 80)),
        "p90": float(np.percentile(sizes, 90)),
        "figures": len(errors),
    }


def table(errors: Errors, names: Optional[Sequence[str]] = None) -> Dict[int, Dict[str, float]]:
    """{batch size: quantiles() of the errors there}."""
    of_size: Dict[int, List[float]] = {size: [] for size in BATCH_SIZES}
    for (name, size), error in errors.items():
        if names is None or name in names:
            of_size[size].append(error)
    return {size: quantiles(its_errors) for size, its_errors in of_size.items()}


def from_one(errors: Errors) -> Dict[int, Dict[int, Dict[str, float]]]:
    """{measured batch size: {other one: quantiles()}}.

    The errors are those after moving the forecast by what was measured.
    """
    rows: Dict[int, Dict[int, Dict[str, float]]] = {}
    for measured, other in itertools.permutations(BATCH_SIZES, 2):
        moved = [
            error - errors[name, measured]
            for (name, batch), error in errors.items()
            if batch == other and (name, measured) in errors
        ]
        rows.setdefault(measured, {})[other] = quantiles(moved)
    return rows


def show(title: str, rows: Dict[int, Dict[str, float]]) -> None:
    print(title)
    for size, row in rows.items():
        factors = {name: np.exp(row[name]) for name in ("p80", "p90")}
        print(
            f"    batch {size:2d}: median {row['median']:.2f}; 80 % within {row['p80']:.2f}, "
            f"a factor of {factors['p80']:.2f}; 90 % within {row['p90']:.2f}, {factors['p90']:.2f} "
            f"({row['figures']:.0f} figures)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--networks", required=True, metavar="FOLDER", help="where the traced graphs are kept"
    )
    parser.add_argument("--json", metavar="FILE", help="where all figures go")
    arguments = parser.parse_args()
    os.makedirs(arguments.networks, exist_ok=True)
    entries = read_entries(arguments.networks)
    kept = speed.read_data().constants._asdict()
    print(f"{len(entries)} entries, {sum(len(entry.published) for entry in entries)} figures")
    fitted = fit(entries)
    for name, value in fitted.items():
        print(
            f"    {name}: {value:.4g}, in speed_310p3.json {kept[name]:.4g} "
            f"({value / kept[name]:.2f} times)"
        )
    errors = log_ratios(entries, kept)
    show("in-sample error of the constants in speed_310p3.json", table(errors))
    show(
        "in-sample error of the constants that were fitted now", table(log_ratios(entries, fitted))
    )
    changes = [error - errors[key] for key, error in log_ratios(entries, fitted).items()]
    print(
        "forecasts of both sets of constants differ by "
        f"{np.median(np.abs(changes)):.3f} (median of |log ratio|), "
        f"90 % by less than {np.percentile(np.abs(changes), 90):.3f}"
    )
    outside = left_out(entries, fitted)
    alike = [entry.name for entry in entries if entry.family in LIKE_RESNET]
    show("whole families left out", table(outside))
    show(f"of these the {len(alike)} like ResNet", table(outside, alike))
    show("the baseline, whole families left out", table(baseline(entries)))
    relatives = from_relatives(entries, outside)
    show("moved by half of the median error of a relative", relatives)
    one = from_one(outside)
    for size, rows in one.items():
        show(f"from one measurement at batch {size}", rows)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(
                {
                    "constants": fitted,
                    "left_out": table(outside),
                    "like_resnet": table(outside, alike),
                    "relatives": relatives,
                    "from_one": one,
                    "errors": {f"{name} {size}": error for (name, size), error in outside.items()},
                },
                file,
                indent=1,
            )


if __name__ == "__main__":
    main()
