"""A small TResNet that is really trained: drawn shapes in six classes, 64 pixels.

The tests of int8 need a network whose answers mean something: a random one has no Top-1 to lose.
conftest.py's fixture `trained` makes it once for a whole run, in about 20 s of processor time.
"""

import contextlib
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np

SIDE = 64  # pixels
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
TRAINING_IMAGES, STEPS, BATCH, RATE = 2400, 340, 32, 4e-3
IMAGES = 300  # prepared ones beside the model
UNSEEN = 77  # the seed of images that the network was not trained with


class Drawn(NamedTuple):
    """Images and what is on them."""

    images: np.ndarray  # float32 [n, 3, 64, 64], 0 to 1, each value a byte's
    labels: np.ndarray  # int64 [n]: the index in SHAPES


def draw(count: int, seed: int) -> Drawn:
    """Shapes of any size, place, turn and colour in noise, which hides some of them."""
    rng = np.random.RandomState(seed)
    labels = rng.randint(len(SHAPES), size=count)
    images = np.empty((count, 3, SIDE, SIDE), np.float32)
    for image, label in zip(images, labels):
        inside = shape(SHAPES[label], rng)
        back, colour = rng.uniform(0, 0.45, (3, 1, 1)), rng.uniform(0.45, 1, (3, 1, 1))
        picture = np.where(inside, colour, back)
        picture += rng.normal(0, rng.uniform(0.05, 0.6), picture.shape)
        image[:] = np.rint(np.clip(picture, 0, 1) * 255) / 255
    return Drawn(images, labels.astype(np.int64))


def shape(name: str, rng: np.random.RandomState) -> np.ndarray:
    """bool [64, 64]: the inside of a shape."""
    row, column = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    size, turn = rng.uniform(0.12, 0.4), rng.uniform(0, 2 * np.pi)
    row, column = row - rng.uniform(-0.15, 0.15), column - rng.uniform(-0.15, 0.15)
    x = (column * np.cos(turn) + row * np.sin(turn)) / size
    y = (row * np.cos(turn) - column * np.sin(turn)) / size
    radius = np.hypot(x, y)
    insides = {
        "circle": radius < 1,
        "square": np.maximum(np.abs(x), np.abs(y)) < 0.85,
        "triangle": (y > -0.6) & (np.abs(x) < (1.1 - y) * 0.6),
        "cross": (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (radius < 1),
        "ring": (radius < 1) & (radius > 0.5),
        "star": radius < 0.7 + 0.35 * np.cos(5 * np.arctan2(y, x)),
    }
    return np.asarray(insides[name])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: on so small a network the others only wait, and burn time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train() -> Any:
    """The trained network. Call it while conftest.small_network() is in force."""
    from common.model import network

    import torch

    torch.manual_seed(0)
    drawn = draw(TRAINING_IMAGES, seed=1)
    images, labels = torch.from_numpy(drawn.images), torch.from_numpy(drawn.labels)
    model = network.create_network("tresnet_m", len(SHAPES)).train()
    for module in model.modules():  # a block's last normalisation begins at 0, which learns slowly
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    with one_thread():
        for _ in range(STEPS):
            chosen = torch.randint(TRAINING_IMAGES, (BATCH,))
            loss = torch.nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model.eval()


def make(folder: Path) -> None:
    """Train, and write what a user has then.

    model_best.pth.tar; tresnet.onnx with its record; in/i1.bin … (300 unseen images, prepared) and
    labels.txt, lines NAME INT.
    """
    import torch
    from conftest import run_here, small_network

    import TResNet_pth2onnx

    with small_network():
        tensors = train().state_dict()
        checkpoint = {"arch": "tresnet_m", "epoch": 1, "state_dict": tensors}
        torch.save(checkpoint, str(folder / "model_best.pth.tar"))
        words = ("--img-size", SIDE, "--lineage", "ascend")
        weights = folder / "model_best.pth.tar"
        run_here(TResNet_pth2onnx.main, weights, folder / "tresnet.onnx", *words)
    write_images(folder, draw(IMAGES, UNSEEN))


def write_images(folder: Path, drawn: Drawn) -> None:
    """Prepared images in/i1.bin, i2.bin, … and their labels.txt in a folder."""
    (folder / "in").mkdir(mode=0o750)
    lines = []
    for number, (image, label) in enumerate(zip(*drawn), start=1):
        image.tofile(str(folder / "in" / f"i{number}.bin"))
        lines.append(f"i{number} {label}\n")
    (folder / "labels.txt").write_text("".join(lines))
