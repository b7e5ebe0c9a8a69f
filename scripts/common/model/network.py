"""A TResNet: recognised by its tensors, created from the patched timm, filled with a state dict."""

import contextlib
import os
import re
import sys
from typing import Any, Iterator, NamedTuple, Optional, Tuple

from common.core.cli import ROOT, Refusal, say, shown
from common.model.checkpoint import Tensors

TIMM = os.path.join(ROOT, "pytorch-image-models")
PATCH = os.path.join(ROOT, "TResNet.patch")  # decides what the network is
VARIANTS = {
    64: "tresnet_m",
    76: "tresnet_l",
    83: "tresnet_xl",
}  # by the channels of the first convolution
V2_L = "tresnet_v2_l"  # 64 channels as well, but bottlenecks in every stage; timm 0.4.5 does not have it
BLOCKS = {
    "tresnet_m": (3, 4, 11, 3),
    "tresnet_l": (4, 5, 18, 3),
    "tresnet_xl": (4, 5, 24, 3),
    V2_L: (3, 4, 23, 3),
}
BOTTLENECK = re.compile(r"body\.layer1\.0\.conv3\.")  # what only its first stage has
FAMILY = tuple(BLOCKS)
STEM = "body.conv1.0.weight"
STEM_TODAY = "body.conv1.conv.weight"  # the same in timm 0.8 and newer
TRACKED = "num_batches_tracked"
MIIL_SLOPE = (
    1e-3  # LeakyReLU inside the blocks; 1e-2 after the stem, as everywhere in the `ascend` lineage
)
INPLACE_ABN_EPS = 1e-5  # InplaceABN multiplies by |weight| + eps
SHOWN = 5  # tensors that a message names before it counts the rest


class Recognised(NamedTuple):
    """What a state dict says about itself."""

    variant: str  # one of FAMILY
    num_classes: int
    lineage: str  # ascend: trained with the patched timm; miil: the official weights
    naming: str
    told: bool = True  # whether the file or the user tells the lineage; otherwise it is a guess


def name_today(name: str) -> str:
    """timm 0.8's name of a tensor that timm 0.4.5 calls `name`: conv1.0.weight → conv1.conv.weight."""
    return re.sub(
        r"\b(conv\d|downsample\.[01])\.(?:0\.)?([01])\.",
        lambda found: f"{found.group(1)}.{('conv', 'bn')[int(found.group(2))]}.",
        name,
    )


def base_name(arch: str) -> str:
    """A model's name less what tells only of its training: tresnet_l_448, TResNet-M.miil_in21k → tresnet_l, tresnet_m.

    MIIL's own name for tresnet_v2_l is tresnet_l_v2.
    """
    plain = re.sub(r"^tresnet(?=[a-z])", "tresnet_", arch.lower().replace("-", "_"))
    return re.sub(r"(_448|_miil.*|_in21k|\..*)+$", "", plain).replace("tresnet_l_v2", V2_L)


def recognise(
    tensors: Tensors, path: str, arch: Optional[str], model: Optional[str], lineage: Optional[str]
) -> Recognised:
    """Read variant, classes, lineage and naming off the tensors; `arch` is what the checkpoint says, `model` and
    `lineage` what the user says.

    Raises: Refusal if it is no TResNet or if two of these contradict each other.
    """
    today = STEM_TODAY in tensors
    stem, head = tensors.get(STEM_TODAY if today else STEM), tensors.get("head.fc.weight")
    if stem is None or head is None or stem.dim() != 4 or head.dim() != 2:
        raise Refusal(
            f"{shown(path)} is not a TResNet: a first convolution {STEM} or {STEM_TODAY} and a head "
            f"head.fc.weight are expected, but it holds {len(tensors)} tensors such as "
            f"{', '.join(list(tensors)[:3])}"
        )
    variant = VARIANTS.get(stem.shape[0])
    if variant is None:
        raise Refusal(
            f"{shown(path)} is no TResNet that is known: its first convolution has {stem.shape[0]} "
            "channels, where M and v2_L have 64, L 76 and XL 83"
        )
    if variant == "tresnet_m" and any(map(BOTTLENECK.match, tensors)):
        variant = V2_L
    blocks = count_blocks(tensors)
    if blocks != BLOCKS[variant]:
        raise Refusal(
            f"{shown(path)} is a TResNet of a kind that is not supported: {stem.shape[0]} channels in its "
            f"first convolution and {'-'.join(map(str, blocks))} blocks in its stages, where {variant} has "
            f"{'-'.join(map(str, BLOCKS[variant]))}"
        )
    for claim, source in ((arch, "the checkpoint's own 'arch'"), (model, "--model")):
        if claim and base_name(claim) != variant:
            if base_name(claim) in BLOCKS:
                raise Refusal(
                    f"{source} says {claim}, but the tensors of {shown(path)} are those of {variant}; find "
                    "out which file this is"
                )
            say(
                f"note: {source} says {shown(claim)}, no name of a TResNet; the tensors are those of {variant}"
            )
    tracked = any(name.endswith(TRACKED) for name in tensors)
    seen = "ascend" if tracked and not today else "miil"
    # Without the counters only training can tell: the user may know better.
    if lineage and lineage != seen and (today or tracked):
        evidence = (
            "timm 0.8's names, which only the official lineage has"
            if today
            else f"{TRACKED}, which InplaceABN does not keep"
        )
        raise Refusal(
            f"--lineage {lineage} contradicts {shown(path)}: it has {evidence}, so it is {seen}; leave out "
            "--lineage"
        )
    naming = "timm 0.8 or newer" if today else "timm 0.4.5 and MIIL"
    return Recognised(
        variant, head.shape[0], lineage or seen, naming, bool(lineage or tracked or today)
    )


def count_blocks(tensors: Tensors) -> Tuple[int, ...]:
    """How many residual blocks each of the four stages has."""
    found = {
        match.groups()
        for match in map(re.compile(r"body\.layer([1-4])\.(\d+)\.").match, tensors)
        if match
    }
    return tuple(sum(stage == str(number) for stage, _ in found) for number in range(1, 5))


def create_v2_l(num_classes: int) -> Any:
    """timm 1.0's tresnet_v2_l out of the parts of timm 0.4.5, which is importable here."""
    from timm.models.tresnet import Bottleneck, TResNet

    class BottlenecksOnly(TResNet):
        def _make_layer(self, block: Any, *arguments: Any, **options: Any) -> Any:
            return super()._make_layer(Bottleneck, *arguments, **options)

    return BottlenecksOnly(list(BLOCKS[V2_L]), num_classes=num_classes)


@contextlib.contextmanager
def without_random_weights() -> Iterator[None]:
    """Let convolutions be created with zeros: random weights, which are overwritten at once, take a second."""
    from torch.nn import init

    random = {name: getattr(init, name) for name in ("kaiming_uniform_", "kaiming_normal_")}
    for name in random:
        setattr(init, name, lambda tensor, *_, **__: init.zeros_(tensor))
    try:
        yield
    finally:
        for name, function in random.items():
            setattr(init, name, function)


def create_network(variant: str, num_classes: int) -> Any:
    """The patched timm's network, a torch.nn.Module in training mode, `ascend` lineage, to be filled with weights.

    Raises: Refusal if the patched source is not in ./pytorch-image-models.
    """
    hint = "run: python3 scripts/timm_source.py"
    if not os.path.isdir(os.path.join(TIMM, "timm")):
        raise Refusal(
            f"timm v0.4.5's patched source is expected in {shown(TIMM)}, which is not there; {hint}"
        )
    sys.path.insert(0, TIMM)
    try:
        import timm

        with without_random_weights():
            network = (
                create_v2_l(num_classes)
                if variant == V2_L
                else timm.create_model(variant, num_classes=num_classes)
            )
    except ImportError as error:  # torchvision or inplace_abn: unpatched
        raise Refusal(f"{shown(TIMM)} is not patched ({error}); move it away and {hint}")
    finally:
        sys.path.remove(TIMM)
    if (
        not timm.__file__.startswith(TIMM)
        or timm.__version__ != "0.4.5"
        or any("Inplace" in type(module).__name__ for module in network.modules())
    ):
        raise Refusal(
            f"the network must come from timm v0.4.5 patched with TResNet.patch, but {timm.__file__} is "
            f"version {timm.__version__} or not patched; move it away and {hint}"
        )
    return network


def load_network(tensors: Tensors, path: str, seen: Recognised) -> Any:
    """The network with the checkpoint's weights, in evaluation mode; every tensor is accounted for.

    Raises: Refusal that names missing, unexpected, misshapen or not finite tensors.
    """
    import numpy as np  # here: what is up to date does not need it
    import torch

    network = create_network(seen.variant, seen.num_classes)
    expected = network.state_dict()
    rename = name_today if STEM_TODAY in tensors else str
    tracked = any(name.endswith(TRACKED) for name in tensors)
    remaining = dict(tensors)
    problems = []
    with torch.no_grad():
        for name, parameter in expected.items():
            if name.endswith(TRACKED) and not tracked:
                continue
            tensor = remaining.pop(rename(name), None)
            if tensor is None:
                problems.append(f"{rename(name)} is missing")
                continue
            tensor = tensor.to(parameter.dtype)  # half precision as well
            if tensor.shape != parameter.shape:
                problems.append(
                    f"{rename(name)} has shape {list(tensor.shape)} instead of {list(parameter.shape)}"
                )
            elif (
                not np.isfinite(tensor.detach().numpy()).all()
                or name.endswith("running_var")
                and (tensor < 0).any()
            ):
                problems.append(
                    f"{rename(name)} has values that are not finite or, for a variance, negative"
                )
            else:
                if (
                    seen.lineage == "miil"
                    and rename is str
                    and name[: -len("weight")] + "running_var" in expected
                ):
                    tensor = tensor.abs() + INPLACE_ABN_EPS
                parameter.copy_(tensor)
    blur = (
        torch.tensor([1.0, 2.0, 1.0]).ger(torch.tensor([1.0, 2.0, 1.0])) / 16
    )  # the blur's constant, which some tools save
    problems += [
        f"{name} is not expected"
        for name, tensor in remaining.items()
        if not (
            name.endswith(".filt")
            and tensor.shape[-2:] == blur.shape
            and torch.equal(tensor.float(), blur.expand_as(tensor))
        )
    ]
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise Refusal(
            f"{shown(path)} does not fit {seen.variant} with {seen.num_classes} classes: "
            f"{'; '.join(problems[:SHOWN])}{more}"
        )
    if seen.lineage == "miil":
        for name, module in network.named_modules():
            if hasattr(module, "pad_mode"):
                module.pad_mode = "reflect"
            if isinstance(module, torch.nn.LeakyReLU) and name.startswith("body.layer"):
                module.negative_slope = MIIL_SLOPE
    return network.eval()
