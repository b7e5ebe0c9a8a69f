"""Accuracy and speed that others measured and published: what a run's own figures are held against.

Standard library only.
"""

from typing import Dict, NamedTuple, Optional

from common.core.cli import Refusal


class Weights(NamedTuple):
    """Published weights and their figures on ImageNet-1k's 50,000 validation images."""

    variant: str
    lineage: str
    img_size: int  # pixels
    top1: Optional[float]  # per cent
    top5: Optional[float]  # per cent
    source: str = "timm's results-imagenet.csv"


# timm's results file (results-imagenet.csv): crop 0.875, bilinear, mean 0, std 1, at every size.
WEIGHTS: Dict[str, Weights] = {
    "tresnet_m.miil_in1k": Weights("tresnet_m", "miil", 224, 80.816, 94.862),
    "tresnet_l.miil_in1k": Weights("tresnet_l", "miil", 224, 81.498, 95.652),
    "tresnet_xl.miil_in1k": Weights("tresnet_xl", "miil", 224, 82.060, 95.932),
    "tresnet_m.miil_in21k_ft_in1k": Weights("tresnet_m", "miil", 224, 83.090, 96.112),
    "tresnet_v2_l.miil_in21k_ft_in1k": Weights("tresnet_v2_l", "miil", 224, 83.910, 96.492),
    "tresnet_m.miil_in1k_448": Weights("tresnet_m", "miil", 448, 81.710, None),
    "tresnet_l.miil_in1k_448": Weights("tresnet_l", "miil", 448, 82.278, None),
    "tresnet_xl.miil_in1k_448": Weights("tresnet_xl", "miil", 448, 83.066, None),
}
VALIDATION_IMAGES = 50_000
CLASSES = 1000  # of ImageNet-1k, which all figures here are about

# Published for TResNet-M at 224 pixels, `ascend` lineage, on one Ascend 310P3: README, "On Ascend".
CARD_CASE = ("310P3", "tresnet_m", 224)  # chip, variant, image size
# {batch size: images/s}
CARD_SPEED: Dict[int, float] = {1: 1154.0, 4: 2552.0, 8: 3158.0, 16: 3249.0, 32: 2756.0}
CARD_TOP5 = 94.43  # per cent

# What --expect takes: published weights, the card's figure, and the sample, whose head is fitted to
# its photos.
EXPECTED: Dict[str, Weights] = {
    **WEIGHTS,
    "tresnet_m.ascend_310P3": Weights(
        "tresnet_m", "ascend", 224, None, CARD_TOP5, "measured on one Ascend 310P3"
    ),
    "sample": Weights(
        "tresnet_m", "ascend", 224, 100.0, 100.0, "docs/checkpoints.md, the sample checkpoint"
    ),
}


# Instead of one of these: the accuracy that the checkpoint says it had (model/claims).
CHECKPOINT = "checkpoint"
NAMES = sorted([*EXPECTED, CHECKPOINT])


def check_classes(name: str, classes: int) -> None:
    """Raises: Refusal if the figure of this name cannot be about a network of so many classes.

    One class more is allowed: "background".
    """
    if name != CHECKPOINT and classes not in (CLASSES, CLASSES + 1):
        raise Refusal(
            f"the figure {name} is about ImageNet's {CLASSES:,} classes, but the network has "
            f"{classes:,}; leave out --expect"
        )
