"""Simulates the promise of --max-drop: how often does the true drop lie above what was reported?

    .venv/bin/python test/promise.py --times 2000          # five minutes on 2 cores

It trains the small network of test/trained.py and makes some layers hard to quantise. It then asks
the product's own keep_promise() again and again, each time with other images out of a large set.
The true drop is that of the whole set. It prints the table of docs/performance.md: in how many per
cent of the runs the true drop is above the reported interval (2.5 % is what a 95 % interval
promises), and in how many it would be if the interval were taken as if nothing had been chosen.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.path[:0] = [HERE, ROOT, os.path.join(ROOT, "scripts")]

from common.data.inputs import Input  # noqa: E402 (the path comes first)
from common.model import onnx_file, operators, quantisation  # noqa: E402
from common.model.calibration import Quantiser, Variant  # noqa: E402

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import trained  # noqa: E402
from onnx import numpy_helper  # noqa: E402

POPULATION = 5000  # images
CALIBRATION_IMAGES = 100  # each calibration has its own
SIZES = (300, 738, 1440, 3000)  # labelled images of a run
MAX_DROPS = (0.0, 0.5, 1.0)  # percentage points
VARIANT = Variant(8, "channel", "minmax")
# {layer: by how much a channel of its weights is larger than in the trained network}
SPOILED = {
    "body.layer1.0.conv2.0": 60,
    "body.layer3.0.conv2.0.0": 100,
    "body.layer4.0.conv2.0.0": 60,
}
SPOILED_CHANNEL = 3


def spoil(model: onnx.ModelProto) -> None:
    """Make layers hard to quantise; the function of the model stays the same.

    A channel that a layer reads is made larger in its weights, and smaller in the convolution that
    makes it; a LeakyReLU stands between them.
    """
    nodes = {node.name: node for node in model.graph.node}
    maker = {node.output[0]: node for node in model.graph.node}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def scale(name: str, channel: Any, factor: float) -> None:
        array = numpy_helper.to_array(tensors[name]).copy()
        array[channel] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))

    for name, factor in SPOILED.items():
        before = maker[maker[nodes[name].input[0]].input[0]]
        assert before.op_type == "Conv", name
        for index in (1, 2):
            scale(before.input[index], SPOILED_CHANNEL, 1 / factor)
        scale(nodes[name].input[1], (slice(None), SPOILED_CHANNEL), factor)


class World(NamedTuple):
    """What one calibration leads to, on the whole set of images."""

    cost: Dict[str, float]  # of each layer
    right: Dict[Tuple[str, ...], np.ndarray]  # {layers that are put back: bool [images]}


def right_of(model: onnx.ModelProto, drawn: trained.Drawn) -> np.ndarray:
    """bool [images]: whether the model's answer is right."""
    infer = operators.logits_of(model)
    starts = range(0, len(drawn.labels), 64)
    answers = [infer(drawn.images[start : start + 64]).argmax(1) for start in starts]
    return np.asarray(np.concatenate(answers) == drawn.labels)


def make_world(model: onnx.ModelProto, folder: Path, seed: int, population: trained.Drawn) -> World:
    """Calibrate and rank on images of their own, and infer the population for every round."""
    drawn = trained.draw(CALIBRATION_IMAGES, seed)
    folder.mkdir()
    trained.write_images(folder, drawn)
    paths = sorted(map(str, (folder / "in").iterdir()))
    sample = Input("image", (3, trained.SIDE, trained.SIDE), 1, {})
    quantiser = Quantiser(model, paths, sample)
    groups = quantisation.groups_of(model)
    images = drawn.images[: quantisation.RANKED]

    def logits_of(group: str) -> np.ndarray:
        others = quantisation.names_without(groups, group)
        return operators.logits_of(quantiser.make(VARIANT, others))(images)

    cost = quantisation.costs_of(groups, operators.logits_of(model)(images), logits_of)
    order = sorted(cost, key=lambda name: -cost[name])
    right: Dict[Tuple[str, ...], np.ndarray] = {}
    back: List[str] = []
    while tuple(back) not in right:
        left: List[str] = sum((groups[group] for group in back), [])
        right[tuple(back)] = right_of(quantiser.make(VARIANT, left), population)
        back = order[: 2 * len(back) + 1]
    return World(cost, right)


class Outcome(NamedTuple):
    """One simulated run."""

    rounds: int
    held: bool
    is_above: bool  # the true drop is above the reported interval
    is_above_plain: bool  # the same for the plain interval of all images in the same round


def simulate(world: World, float32: np.ndarray, chosen: np.ndarray, max_drop: float) -> Outcome:
    """keep_promise() on some images of the population; chosen: their indices."""
    latest: List[str] = []

    def judge(back: List[str]) -> np.ndarray:
        latest[:] = back
        return world.right[tuple(back)][chosen]

    report = quantisation.keep_promise(
        max_drop, float32[chosen], judge, lambda: world.cost, lambda words: None
    )
    after = world.right[tuple(latest)]
    true = quantisation.paired_drop(float32, after).points
    plain = quantisation.paired_drop(float32[chosen], after[chosen])
    return Outcome(
        len(report["rounds"]), report["held"], true > report["interval"][1], true > plain.high
    )


def share(values: List[bool]) -> str:
    return f"{100 * float(np.mean(values)):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="runs for each row of the table")
    parser.add_argument("--calibrations", type=int, default=3, help="runs share them in turn")
    parser.add_argument("--trained", type=Path, help="a folder of trained.make() (default: train)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.trained
        if not folder:
            folder = Path(temporary) / "trained"
            folder.mkdir()
            trained.make(folder)
        model = onnx_file.load(str(folder / "tresnet.onnx"))
        spoil(model)
        population = trained.draw(POPULATION, 1234)
        float32 = right_of(model, population)
        print(f"float32: Top-1 {100 * float32.mean():.2f} % of {POPULATION} images", flush=True)
        worlds = []
        for number in range(arguments.calibrations):
            place = Path(temporary) / str(number)
            worlds.append(make_world(model, place, 100 + number, population))
            drops = [
                f"{len(back)}: {quantisation.paired_drop(float32, right).points:.2f}"
                for back, right in worlds[-1].right.items()
            ]
            print(f"layers put back: true drop, points: {', '.join(drops)}", flush=True)
    random = np.random.RandomState(0)
    print("| images | --max-drop | rounds, mean | held | above: reported | above: plain |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        for max_drop in MAX_DROPS:
            outcomes = []
            for number in range(arguments.times):
                chosen = random.choice(POPULATION, size)
                world = worlds[number % len(worlds)]
                outcomes.append(simulate(world, float32, chosen, max_drop))
            rounds = np.mean([outcome.rounds for outcome in outcomes])
            print(
                f"| {size:,} | {max_drop:g} | {rounds:.1f} "
                f"| {share([outcome.held for outcome in outcomes])} "
                f"| {share([outcome.is_above for outcome in outcomes])} "
                f"| {share([outcome.is_above_plain for outcome in outcomes])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
