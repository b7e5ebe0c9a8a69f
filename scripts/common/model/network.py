"""A TResNet: recognised by its tensors, created from the patched timm, filled with a state dict."""

import contextlib
import os
import re
import sys
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

from common.core import patched, places
from common.core.cli import ROOT, Refusal, say, shown, some, why
from common.core.names import POOLS
from common.model.checkpoint import Tensors

TIMM = places.current().timm
PATCH = os.path.join(ROOT, "TResNet.patch")  # decides what the network is
# By the channels of the first convolution.
VARIANTS = {64: "tresnet_m", 76: "tresnet_l", 83: "tresnet_xl"}
# It has 64 channels as well, but bottlenecks in every stage; timm 0.4.5 does not have it.
V2_L = "tresnet_v2_l"
BLOCKS = {
    "tresnet_m": (3, 4, 11, 3),
    "tresnet_l": (4, 5, 18, 3),
    "tresnet_xl": (4, 5, 24, 3),
    V2_L: (3, 4, 23, 3),
}
BLOCK = re.compile(r"body\.layer([1-4])\.(\d+)\.")
BOTTLENECK = re.compile(r"body\.layer1\.0\.conv3\.")  # what only V2_L's first stage has
FAMILY = tuple(BLOCKS)
STEM = "body.conv1.0.weight"
STEM_TODAY = "body.conv1.conv.weight"  # the same in timm 0.8 and newer
HEAD = "head.fc.weight"
BODY = re.compile(r"body\.layer4\.")  # what every TResNet has
TRACKED = "num_batches_tracked"
INPLACE_ABN_EPS = 1e-5  # InplaceABN multiplies by |weight| + eps
SHOWN = 5  # tensors that a message names before it counts the rest
# What timm's --split-bn saves beside each BatchNorm. Evaluation does not use it.
# Source: timm/models/layers/split_batchnorm.py.
AUXILIARY = re.compile(r"\.aux_bn\.\d+\.")
# {what a head that cannot be exported is called: a name of its tensors}
OTHER_HEADS = {
    "ML-Decoder": re.compile(r"head\.(decoder\.layers\.|embed_standart|duplicate_pooling)"),
    "ASL's bottleneck head": re.compile(r"head\.fc\.(embedding_generator|FC)\."),
}
LAST = re.compile(r"body\.layer4\.0\.conv3\.(0|conv)\.weight")  # [channels of the last map, …]
# So many weights of BatchNorm are never all positive by chance.
MANY_CHANNELS = 1000


class Lineage(NamedTuple):
    """How networks with the same shapes and names differ."""

    slope: float  # of LeakyReLU inside the blocks; behind the stem it is 1e-2
    pad_mode: str  # of the blur: "constant" (zeros) or "reflect"
    absolute: bool  # whether the network multiplies by |weight| + eps, as InplaceABN does


# ascend: trained with the patched timm. miil: the official weights. miil-bn: trained with the
# official network, in which BatchNorm and LeakyReLU replaced InplaceABN.
LINEAGES = {
    "ascend": Lineage(1e-2, "constant", False),
    "miil": Lineage(1e-3, "reflect", True),
    "miil-bn": Lineage(1e-3, "reflect", False),
}


class Recognised(NamedTuple):
    """What a state dict says about itself."""

    variant: str  # one of FAMILY
    num_classes: int
    lineage: str  # one of LINEAGES
    naming: str
    lineage_is_known: bool = True  # from the file or the user; otherwise it is a guess
    pool: str = POOLS[0]  # the global pooling, one of POOLS


def lineage_is_assumed(notes: Dict[str, Any]) -> bool:
    """Whether the notes of an exported model say that its lineage is a guess.

    Up to version 1.2.0 the note was a text, "True" or "False".
    """
    return notes.get("lineage_told") in (False, "False")


def name_today(name: str) -> str:
    """timm 0.8's name of a tensor of timm 0.4.5: conv1.0.weight → conv1.conv.weight."""
    return re.sub(
        r"\b(conv\d|downsample\.[01])\.(?:0\.)?([01])\.",
        lambda match: f"{match.group(1)}.{('conv', 'bn')[int(match.group(2))]}.",
        name,
    )


def base_name(arch: str) -> str:
    """A model's name without what describes only its training.

    tresnet_l_448 → tresnet_l, TResNet-M.miil_in21k → tresnet_m; MIIL's tresnet_l_v2 → tresnet_v2_l.
    """
    plain = re.sub(r"^tresnet(?=[a-z])", "tresnet_", arch.lower().replace("-", "_"))
    return re.sub(r"(_448|_miil.*|_in21k|\..*)+$", "", plain).replace("tresnet_l_v2", V2_L)


def has_counters(tensors: Tensors) -> bool:
    return any(name.endswith(TRACKED) for name in tensors)


def recognise(
    tensors: Tensors,
    path: str,
    arch: Optional[str],
    model: Optional[str],
    lineage: Optional[str],
    pool: Optional[str] = None,
) -> Recognised:
    """Read variant, classes, lineage, naming and pooling from the tensors.

    arch, pool: what the checkpoint or the user says; model, lineage: what the user says.
    Raises: Refusal if it is not a TResNet, or if two of these contradict each other.
    """
    today = STEM_TODAY in tensors
    stem, head = tensors.get(STEM_TODAY if today else STEM), tensors.get(HEAD)
    if stem is None or stem.dim() != 4 or not any(map(BODY.match, tensors)):
        raise Refusal(
            f"{shown(path)} is not a TResNet: a first convolution {STEM} or {STEM_TODAY} and a "
            f"head {HEAD} are expected, but it holds {len(tensors)} tensors such as "
            f"{', '.join(list(tensors)[:3])}; give another file"
        )
    if head is None or head.dim() != 2:
        raise Refusal(other_head(tensors, path))
    variant = variant_of(tensors, stem.shape[0], path)
    check_claim(arch, "the checkpoint's own 'arch'", variant, path)
    check_claim(model, "--model", variant, path)
    seen, is_known = lineage_of(tensors, path, lineage)
    naming = "timm 0.8 or newer" if today else "timm 0.4.5 and MIIL"
    pooling = pooling_of(tensors, pool, path)
    return Recognised(variant, head.shape[0], seen, naming, is_known, pooling)


def other_head(tensors: Tensors, path: str) -> str:
    """The sentence for a TResNet whose head is not a linear layer behind a global pooling."""
    names = [name for name in tensors if not name.startswith("body.")]
    kinds = [kind for kind, name in OTHER_HEADS.items() if any(map(name.match, names))]
    kind = kinds[0] if kinds else "a head of another kind"
    if not names:
        return (
            f"{shown(path)} holds the body of a TResNet without its head ({HEAD}), so there are "
            "no classes; give the file of the whole network"
        )
    return (
        f"the body in {shown(path)} is a TResNet, but the head is not supported: {kind} "
        f"({', '.join(names[:3])}); only one linear layer {HEAD} of shape [classes, channels] is"
    )


def lineage_of(tensors: Tensors, path: str, asked: Optional[str]) -> Tuple[str, bool]:
    """(lineage, whether it is known) of the tensors; asked: the user's --lineage.

    Raises: Refusal if the user contradicts the tensors.
    """
    tracked, today = has_counters(tensors), STEM_TODAY in tensors
    if today and asked == "ascend":
        raise Refusal(
            f"--lineage {asked} contradicts {shown(path)}: it has timm 0.8's names, which only the "
            "official lineage has, so it is miil; leave out --lineage"
        )
    if tracked and not today and asked == "miil":
        raise Refusal(
            f"--lineage {asked} contradicts {shown(path)}: it has {TRACKED}, which InplaceABN does "
            "not keep, so it is ascend; leave out --lineage. If BatchNorm and LeakyReLU replaced "
            "InplaceABN in the official network, give --lineage miil-bn"
        )
    if asked:
        return asked, True
    if today:  # timm 0.8's network is that of miil-bn, with the weights of miil
        return "miil", True
    if tracked:
        return "ascend", not signs_of_replacement(tensors)
    return "miil", False  # without the counters only training, so the user, can say


def signs_of_replacement(tensors: Tensors) -> List[str]:
    """Why weights with counters may be of the miil-bn lineage rather than ascend, in words.

    [] if nothing shows it. Only for timm 0.4.5's names.
    """
    signs = []
    if any(name.endswith(".filt") for name in tensors):
        signs.append("it holds the blur's filters, which the patched timm does not save")
    norms = [name[: -len("running_var")] for name in tensors if name.endswith("running_var")]
    weights = [tensors[name + "weight"] for name in norms if name + "weight" in tensors]
    channels = sum(weight.numel() for weight in weights)
    trained = [weight for weight in weights if weight.min() < weight.max()]
    are_positive = len(trained) == len(weights) and all((weight > 0).all() for weight in weights)
    if channels >= MANY_CHANNELS and are_positive:
        signs.append(
            f"all {channels:,} weights of its BatchNorm layers are above 0, as |weight| of "
            "InplaceABN leaves them"
        )
    return signs


def pooling_of(tensors: Tensors, pool: Optional[str], path: str) -> str:
    """The global pooling, one of POOLS; pool: what the checkpoint or the user says, if anything.

    Raises: Refusal if the head takes another number of features than the pooling gives.
    """
    features = tensors[HEAD].shape[1]
    channels = [tensor.shape[0] for name, tensor in tensors.items() if LAST.fullmatch(name)]
    doubled = bool(channels) and features == 2 * channels[0]
    if pool is None:
        return "catavgmax" if doubled else POOLS[0]
    if doubled != (pool == "catavgmax"):
        fitting = "catavgmax" if doubled else "avg, max or avgmax"
        raise Refusal(
            f"the global pooling of {shown(path)} should be {pool}, but its head takes "
            f"{features:,} features, as behind {fitting}; find out which file this is, or give "
            "another --gp"
        )
    return pool


def variant_of(tensors: Tensors, channels: int, path: str) -> str:
    """Which of FAMILY the tensors belong to; channels: of the first convolution.

    Raises: Refusal for another network.
    """
    variant = VARIANTS.get(channels)
    if variant is None:
        raise Refusal(
            f"{shown(path)} is not a known TResNet: its first convolution has {channels} channels, "
            "but M and v2_L have 64, L 76 and XL 83; give another file"
        )
    if variant == "tresnet_m" and any(map(BOTTLENECK.match, tensors)):
        variant = V2_L
    blocks = count_blocks(tensors)
    if blocks != BLOCKS[variant]:
        raise Refusal(
            f"{shown(path)} is a TResNet of a kind that is not supported: {channels} channels in "
            f"its first convolution and {'-'.join(map(str, blocks))} blocks in its stages, but "
            f"{variant} has {'-'.join(map(str, BLOCKS[variant]))}; give another file"
        )
    return variant


def check_claim(claim: Optional[str], source: str, variant: str, path: str) -> None:
    """Compare a model's name with the variant that was recognised.

    Raises: Refusal if it is the name of another TResNet; any other name is only reported.
    """
    if not claim or base_name(claim) == variant:
        return
    if base_name(claim) in BLOCKS:
        raise Refusal(
            f"{source} says {claim}, but the tensors of {shown(path)} are those of {variant}; find "
            "out which file this is"
        )
    say(
        f"note: {source} says {shown(claim)}, which is not the name of a TResNet; the tensors are "
        f"those of {variant}"
    )


def count_blocks(tensors: Tensors) -> Tuple[int, ...]:
    """How many residual blocks each of the four stages has."""
    blocks = {match.groups() for match in map(BLOCK.match, tensors) if match}
    stages = [stage for stage, _ in blocks]
    return tuple(map(stages.count, "1234"))


def create_v2_l(num_classes: int) -> Any:
    """timm 1.0's tresnet_v2_l out of the parts of timm 0.4.5, which must be importable."""
    from timm.models.tresnet import Bottleneck, TResNet

    class BottlenecksOnly(TResNet):
        def _make_layer(self, block: Any, *arguments: Any, **options: Any) -> Any:
            return super()._make_layer(Bottleneck, *arguments, **options)

    return BottlenecksOnly(list(BLOCKS[V2_L]), num_classes=num_classes)


@contextlib.contextmanager
def without_random_weights() -> Iterator[None]:
    """Create convolutions with zeros: random weights, soon overwritten, take a second."""
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
    """The patched timm's network, `ascend` lineage, without weights.

    Returns a torch.nn.Module in training mode.
    Raises: Refusal if the patched source is not in ./pytorch-image-models.
    """
    hint = "run: python3 scripts/timm_source.py"
    if not os.path.isdir(os.path.join(TIMM, "timm")):
        raise Refusal(f"the patched source of timm v0.4.5 is not in {shown(TIMM)}; {hint}")
    changed = patched.changed(TIMM)
    if changed:
        raise Refusal(
            f"{shown(TIMM)} is not as it was when it was patched: {some(changed)} changed; {hint}"
        )
    sys.path.insert(0, TIMM)
    try:
        import timm

        with without_random_weights():
            if variant == V2_L:
                network = create_v2_l(num_classes)
            else:
                network = timm.create_model(variant, num_classes=num_classes)
    # ImportError: torchvision or inplace_abn, it is unpatched; the others: it is damaged
    except (ImportError, SyntaxError, AttributeError, NameError) as error:
        raise Refusal(f"{shown(TIMM)} is not patched ({why(error)}); move it away and {hint}")
    finally:
        sys.path.remove(TIMM)
    is_ours = timm.__file__.startswith(TIMM) and timm.__version__ == "0.4.5"
    if not is_ours or any("Inplace" in type(module).__name__ for module in network.modules()):
        raise Refusal(
            "the network must come from timm v0.4.5 patched with TResNet.patch, but "
            f"{timm.__file__} is version {timm.__version__} or not patched; move it away and {hint}"
        )
    return network


def load_network(tensors: Tensors, path: str, seen: Recognised) -> Any:
    """The network with the checkpoint's weights, a torch.nn.Module in evaluation mode.

    Raises: Refusal that names missing, unexpected, misshapen or not finite tensors.
    """
    network = create_network(seen.variant, seen.num_classes)
    if seen.pool != POOLS[0]:
        network.reset_classifier(seen.num_classes, global_pool=seen.pool)
    problems = copy_weights(tensors, network.state_dict(), seen.lineage)
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise Refusal(
            f"{shown(path)} does not fit {seen.variant} with {seen.num_classes} classes: "
            f"{'; '.join(problems[:SHOWN])}{more}"
        )
    set_lineage(network, LINEAGES[seen.lineage])
    return network.eval()


def copy_weights(tensors: Tensors, parameters: Tensors, lineage: str) -> List[str]:
    """Copy a checkpoint's tensors, of any precision, into the parameters of a network.

    parameters: named as in timm 0.4.5. Returns what is wrong, in words, with the tensors' names.
    """
    import torch

    today = STEM_TODAY in tensors
    tracked = has_counters(tensors)
    # timm 0.8's files hold |weight| + eps
    takes_absolute = LINEAGES[lineage].absolute and not today
    remaining = {name: tensor for name, tensor in tensors.items() if not AUXILIARY.search(name)}
    problems = []
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith(TRACKED) and not tracked:
                continue
            saved_name = name_today(name) if today else name
            tensor = remaining.pop(saved_name, None)
            if tensor is None:
                problems.append(f"{saved_name} is missing")
                continue
            tensor = tensor.to(parameter.dtype)
            problem = problem_of(name, tensor, parameter)
            if problem:
                problems.append(f"{saved_name} {problem}")
                continue
            is_norm = name[: -len("weight")] + "running_var" in parameters
            if takes_absolute and is_norm:
                tensor = tensor.abs() + INPLACE_ABN_EPS
            parameter.copy_(tensor)
    for name, tensor in remaining.items():
        if not is_blur(name, tensor):
            problems.append(f"{name} is not expected")
    return problems


def problem_of(name: str, tensor: Any, parameter: Any) -> str:
    """Why a tensor cannot be the weights of a parameter of the same type; "" if it can."""
    import numpy as np  # here: a product that is up to date does not need it

    if tensor.shape != parameter.shape:
        return f"has shape {list(tensor.shape)} instead of {list(parameter.shape)}"
    if not np.isfinite(tensor.detach().numpy()).all():
        return "has values that are not finite"
    if name.endswith("running_var") and (tensor < 0).any():
        return "has negative values, but it is a variance"
    return ""


def is_blur(name: str, tensor: Any) -> bool:
    """Whether a tensor is the constant filter of the blur, which some tools save."""
    import torch

    row = torch.tensor([1.0, 2.0, 1.0])
    blur = row.ger(row) / 16
    if not name.endswith(".filt") or tensor.shape[-2:] != blur.shape:
        return False
    return torch.equal(tensor.float(), blur.expand_as(tensor))


def set_lineage(network: Any, lineage: Lineage) -> None:
    """Make a network of the patched timm one of another lineage: its slopes and its blur."""
    from torch import nn

    for name, module in network.named_modules():
        if hasattr(module, "pad_mode"):
            module.pad_mode = lineage.pad_mode
        if isinstance(module, nn.LeakyReLU) and name.startswith("body.layer"):
            module.negative_slope = lineage.slope
