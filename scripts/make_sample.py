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
import sys
import tempfile
import zipfile
from collections import OrderedDict
from typing import Dict, List

import numpy as np
from PIL import Image
from timm_source import ROOT, download

sys.path.insert(0, ROOT)
from TResNet_preprocess import network_input, reference_crop, write_whole  # noqa: E402

PACKAGE = "foolbox==3.3.4"
WHEEL_SHA256 = "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb"  # foolbox-3.3.4-py3-none-any.whl
PHOTO = re.compile(r"foolbox/data/(imagenet_\d\d_(\d+)\.jpg)")  # the label is in the name
PHOTOS = 20
CLASSES = 1000
IMG_SIZE = 224  # pixels
SEED = 0
RIDGE = 1e-3  # relative to the mean squared norm of a feature vector


def make_photos(folder: str) -> Dict[str, int]:
    """Put the photos and val_label.txt into `folder`; returns {file name: label}."""
    labels_path = os.path.join(folder, "val_label.txt")
    photos = os.path.join(folder, "val_union")
    if not os.path.exists(labels_path):  # written last, so the photos are whole where it stands
        os.makedirs(photos, exist_ok=True)
        with tempfile.TemporaryDirectory() as downloads:
            with zipfile.ZipFile(download(PACKAGE, WHEEL_SHA256, downloads)) as wheel:
                found = sorted(filter(None, map(PHOTO.fullmatch, wheel.namelist())), key=lambda match: match.group(1))
                for match in found:
                    write_whole(os.path.join(photos, match.group(1)), wheel.read(match.group(0)))
        write_whole(labels_path, "".join(f"{match.group(1)} {match.group(2)}\n" for match in found).encode())
    with open(labels_path, encoding="ascii") as file:
        labels = {name: int(label) for name, label in map(str.split, file)}
    missing = [name for name in labels if not os.path.exists(os.path.join(photos, name))]
    if len(labels) != PHOTOS or missing:
        raise SystemExit(f"make_sample.py: {folder} should hold {PHOTOS} photos in val_union/ and their labels in "
                         f"val_label.txt, but {len(labels)} are labelled and {len(missing)} of those missing; "
                         "remove the folder and start again")
    return labels


def load_images(paths: List[str]) -> np.ndarray:
    """The network's input for images: float32 [n, 3, 224, 224], RGB in 0…1."""
    inputs = []
    for path in paths:
        with Image.open(path) as image:
            content = network_input(reference_crop(image, IMG_SIZE), "float32")
            inputs.append(np.frombuffer(content, np.float32).reshape(3, IMG_SIZE, IMG_SIZE))
    return np.stack(inputs)


def make_checkpoint(folder: str, labels: Dict[str, int], path: str) -> None:
    """Write a checkpoint, as timm's training script does, that gives each photo its label."""
    import torch  # here: it takes a second, and a second run does not need it

    from TResNet_pth2onnx import create_network

    images = torch.from_numpy(load_images([os.path.join(folder, "val_union", name) for name in labels]))
    network = create_network("tresnet_m", CLASSES)
    generator = np.random.RandomState(SEED)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 4:  # convolutions: He's initialisation, https://arxiv.org/abs/1502.01852
                deviation = (2 / np.prod(parameter.shape[1:])) ** 0.5
                parameter.copy_(torch.from_numpy(generator.normal(0, deviation, tuple(parameter.shape))))
            else:
                parameter.zero_()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(1)  # TResNet starts its residual branches at 0, which would leave them untested
                module.momentum = 1.0  # the next batch's statistics alone
        network.train()(images)
        network.eval()
        features = network.forward_features(images).mean((2, 3)).double()  # [20, 2048]
        targets = torch.zeros(len(labels), CLASSES, dtype=torch.float64)
        targets[torch.arange(len(labels)), torch.tensor(list(labels.values()))] = 1
        mean = features.mean(0)
        centred = features - mean
        gram = centred @ centred.t()
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(labels), dtype=torch.float64)
        weight = targets.t() @ torch.from_numpy(np.linalg.inv((gram + ridge).numpy())) @ centred  # [1000, 2048]
        network.head.fc.weight.copy_(weight)
        network.head.fc.bias.copy_(-(weight @ mean))
        found = (centred @ weight.t()).argmax(1).tolist()
    if found != list(labels.values()):
        raise SystemExit("make_sample.py: the fitted head does not give the photos their labels, "
                         f"but {found}; this PyTorch ({torch.__version__}) computes something else than expected")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    settings = argparse.Namespace(
        model="tresnet_m", num_classes=CLASSES, img_size=IMG_SIZE, crop_pct=0.875, interpolation="bilinear",
        mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0], opt="sgd", lr=0.1, seed=SEED, distributed=True)
    state = OrderedDict(("module." + name, tensor) for name, tensor in network.state_dict().items())
    partial = path + ".part"
    torch.save({"epoch": 0, "arch": "tresnet_m", "state_dict": state, "optimizer": optimizer.state_dict(), "version": 2,
                "args": settings, "metric": np.float64(100.0)}, partial)
    os.replace(partial, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="made if it is not there")
    folder = parser.parse_args().folder
    try:
        labels = make_photos(folder)
        path = os.path.join(folder, "model_best.pth.tar")
        if not os.path.exists(path):
            make_checkpoint(folder, labels, path)
    except OSError as error:
        raise SystemExit(f"make_sample.py: {error.strerror}: {error.filename}; the sample data needs a folder that can "
                         "be written and 130 MB of space")
    print(f"sample data: {len(labels)} photos, their labels and a checkpoint in {folder}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nmake_sample.py: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
