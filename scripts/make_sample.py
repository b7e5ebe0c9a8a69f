#!/usr/bin/env python3
"""Make the sample data set: 20 labelled ImageNet photos and a training checkpoint that classifies them.

    python3 scripts/make_sample.py ImageNet
    →  ImageNet/val_union/*.jpg  ImageNet/val_label.txt  ImageNet/model_best.pth.tar

The photos come with the `foolbox` package (its wheel is only unzipped, nothing of it runs). The checkpoint is made: a
TResNet-M with seeded random weights, batch-norm statistics taken from the photos, and a head fitted to their labels by
ridge regression. It proves that the chain is right (swapped channels or a wrong scale lose most photos) and says
nothing about TResNet's accuracy. What is there already is not made again.
"""

import argparse
import os
import re
import tempfile
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Dict, List

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import files, options, progress, recipe, record
from common.core.cli import ROOT, Refusal, shown, why
from common.core.environment import download
from common.core.record import Draft, Part
from common.data.evaluation import DEFAULT

if TYPE_CHECKING:
    import numpy as np

PACKAGE = "foolbox==3.3.4"
WHEEL_SHA256 = "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"  # foolbox-3.3.4-py3-none-any.whl
PHOTO = re.compile(r"foolbox/data/(imagenet_\d\d_\d+\.jpg)")
PHOTO_LABEL = re.compile(r"_(\d+)\.jpg$")
PHOTOS = 20
CHECKPOINT = "model_best.pth.tar"
CLASSES = 1000
EVALUATION = DEFAULT  # how the photos become the network's input
SEED = 0
SPACE = 140_000_000  # bytes: photos, checkpoint
RIDGE = 1e-3  # relative to the mean squared norm of a feature vector
RIGHT = 12.0  # logit of a photo's own class, the others' are about 0: a probability of 99 %, as of a trained network


def fetch_photos() -> Dict[str, bytes]:
    """{file name: content} of the photos, out of the package's wheel."""
    with tempfile.TemporaryDirectory() as downloads:
        with zipfile.ZipFile(download(PACKAGE, WHEEL_SHA256, downloads)) as wheel:
            found = sorted(
                filter(None, map(PHOTO.fullmatch, wheel.namelist())),
                key=lambda match: match.group(1),
            )
            return {match.group(1): wheel.read(match.group(0)) for match in found}


def load_images(paths: List[str]) -> "np.ndarray":
    """The network's input for images: float32 [n, 3, 224, 224], RGB in 0…1."""
    from common.data.pixels import network_input, reference_crop

    import numpy as np  # here, as in make_checkpoint(): a second run does not need it
    from PIL import Image

    inputs = []
    for path in paths:
        with Image.open(path) as image:
            content = network_input(reference_crop(image, EVALUATION), "float32", EVALUATION)
            inputs.append(
                np.frombuffer(content, np.float32).reshape(
                    3, EVALUATION.img_size, EVALUATION.img_size
                )
            )
    return np.stack(inputs)


def make_checkpoint(labels: Dict[str, int], path: str) -> None:
    """Write a checkpoint, as timm's training script does, that gives each photo ({path: label}) its label."""
    from common.model.network import create_network

    import numpy as np
    import torch  # here: it takes a second, and a second run does not need it

    images = torch.from_numpy(load_images(list(labels)))
    network = create_network("tresnet_m", CLASSES)
    generator = np.random.RandomState(SEED)
    with torch.no_grad():
        for parameter in network.parameters():
            if (
                parameter.dim() == 4
            ):  # convolutions: He's initialisation, https://arxiv.org/abs/1502.01852
                deviation = (2 / np.prod(parameter.shape[1:])) ** 0.5
                parameter.copy_(
                    torch.from_numpy(generator.normal(0, deviation, tuple(parameter.shape)))
                )
            else:
                parameter.zero_()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(
                    1
                )  # TResNet starts its residual branches at 0, which would leave them untested
                module.momentum = 1.0  # the next batch's statistics alone
        network.train()(images)
        network.eval()
        features = network.forward_features(images).mean((2, 3)).double()  # [20, 2048]
        targets = torch.zeros(len(labels), CLASSES, dtype=torch.float64)
        targets[torch.arange(len(labels)), torch.tensor(list(labels.values()))] = RIGHT
        mean = features.mean(0)
        centred = features - mean
        gram = centred @ centred.t()
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(labels), dtype=torch.float64)
        weight = (
            targets.t() @ torch.from_numpy(np.linalg.inv((gram + ridge).numpy())) @ centred
        )  # [1000, 2048]
        network.head.fc.weight.copy_(weight)
        network.head.fc.bias.copy_(-(weight @ mean))
        found = (centred @ weight.t()).argmax(1).tolist()
    if found != list(labels.values()):
        raise Refusal(
            "the fitted head does not give the photos their labels, "
            f"but {found}; this PyTorch ({torch.__version__}) computes something else than expected"
        )
    optimizer = {
        "state": {},
        "param_groups": [  # as torch.optim.SGD's, whose making takes a second (torch._dynamo)
            {"lr": 0.1, "momentum": 0.9, "params": list(range(len(list(network.parameters()))))}
        ],
    }
    settings = argparse.Namespace(
        model="tresnet_m",
        num_classes=CLASSES,
        img_size=EVALUATION.img_size,
        crop_pct=EVALUATION.crop_pct,
        interpolation=EVALUATION.interpolation,
        mean=list(EVALUATION.mean),
        std=list(EVALUATION.std),
        opt="sgd",
        lr=0.1,
        seed=SEED,
        distributed=True,
    )
    state = OrderedDict(("module." + name, tensor) for name, tensor in network.state_dict().items())
    try:
        torch.save(
            {
                "epoch": 0,
                "arch": "tresnet_m",
                "state_dict": state,
                "optimizer": optimizer,
                "version": 2,
                "args": settings,
                "metric": np.float64(100.0),
            },
            path,
        )
    except RuntimeError as error:  # so PyTorch's writer says that the disk is full
        raise Refusal(
            f"{shown(CHECKPOINT)} cannot be written ({why(error)}); is the disk full? Make room and run the "
            "same command again"
        ) from None


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "folder", metavar="FOLDER", type=options.path, help="made if it is not there"
    )
    folder = options.parse(parser).folder
    product = os.path.join(folder, "sample")
    made_by = recipe.make(
        __file__,
        {"seed": SEED},
        packages=("torch", "numpy", "Pillow"),
        package=PACKAGE,
        wheel=WHEEL_SHA256,
        settings=[os.path.join(ROOT, "TResNet.patch")],
    )
    before = record.read(product)
    if not before.is_current(made_by):
        files.check_space(folder, SPACE, "name another folder")
        files.make_folder(folder, "FOLDER")
        photos = {
            os.path.join(folder, "val_union", name): content
            for name, content in fetch_photos().items()
        }
        labels = {path: int(PHOTO_LABEL.findall(path)[0]) for path in photos}
        labels_path = os.path.join(folder, "val_label.txt")
        text = "".join(f"{os.path.basename(path)} {label}\n" for path, label in labels.items())
        contents = {**photos, labels_path: text.encode()}
        names = {os.path.relpath(path, folder): data for path, data in contents.items()}
        os.makedirs(os.path.join(folder, "val_union"), mode=0o750, exist_ok=True)
        with record.begin(before, made_by, [*names, CHECKPOINT]) as writer:
            writer.publish(
                [Draft("photos", [], [writer.part(name, data) for name, data in names.items()])]
            )
            part = files.part_path(os.path.join(folder, CHECKPOINT))
            with files.removed_on_error(part, CHECKPOINT), progress.watched(
                "fitting the sample's checkpoint", 0, "", None
            ):
                make_checkpoint(labels, part)
                files.sync(part)
                size, checksum = os.path.getsize(part), files.checksum_of(part)
                writer.publish([Draft(CHECKPOINT, [], [Part(CHECKPOINT, part, size, checksum)])])
            writer.finish(synced=True)
    print(f"sample data: {PHOTOS} photos, their labels and a checkpoint in {shown(folder)}")


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
