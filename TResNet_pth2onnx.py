#!/usr/bin/env python3
"""Turn a TResNet checkpoint into an ONNX file that is proved equal to the PyTorch network.

    python3 TResNet_pth2onnx.py model_best.pth.tar tresnet_m.onnx
    python3 TResNet_pth2onnx.py tresnet_l_448.pth tresnet_l_448.onnx --img-size 448 --opset 13
    python3 TResNet_pth2onnx.py tresnet_m.safetensors tresnet_m.onnx --batch-size 8 --stem conv12
    python3 TResNet_pth2onnx.py ./tresnet_m.miil_in1k_448 tresnet_m_448.onnx

In:  a training checkpoint (a dict with `state_dict`, or `model`, or `state_dict_ema` for --ema), a
     bare state dict, a `.safetensors` file, or a Hugging Face folder (config.json and the weights).
     Variant, number of classes, lineage of the weights and naming follow from its tensors.
Out: an ONNX file. Its input is `image`, float32 [batch, 3, img_size, img_size], RGB in 0…1; its
     output is `class`, float32 [batch, classes], logits.

The graph is written node by node from the network's modules, with operators that an NPU runs as
they are; batch norm is folded in double precision. The graph is then compared with the PyTorch
network in ONNX Runtime. A graph that differs is not written.
"""

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import options, progress, recipe, record
from common.core.cli import Refusal, shown
from common.core.names import POOLS, STEMS
from common.data import evaluation
from common.model import claims, onnx_file
from common.model.checkpoint import AVERAGED, StateDict, find_state_dict, load_checkpoint
from common.model.network import (
    FAMILY,
    PATCH,
    TRACKED,
    Recognised,
    lineage_is_assumed,
    load_network,
    recognise,
    signs_of_replacement,
)

OPSETS = range(11, 19)  # the graph is the same in all of them
# The highest opset that CANN 6.0 parses. Source: its ops/built-in/framework/onnx_plugin.
CANN_6_OPSET = 15
# Of the largest logit: float32 rounding is near 1e-6, a wrong slope or padding near 1e-2.
TOLERANCE = 1e-4
NOTED = {"variant", "num_classes", "lineage"}  # what the record says of each model, at least
VERIFIED_BATCHES = (1, 2, 5)
# Lineages of weights that a user trained with timm: class 0 is the first class folder, never a
# class "background", however many classes the head has.
LABELLED_BY_TIMM = ("ascend", "miil-bn")


class Source(NamedTuple):
    """What was read of a checkpoint."""

    network: Any  # torch.nn.Module with the weights, in evaluation mode
    seen: Recognised
    claims: claims.Claims  # what it says of itself
    state: StateDict
    img_size: int  # pixels


def verify(model: bytes, network: Any, img_size: int, batch_sizes: Tuple[int, ...]) -> float:
    """Run the ONNX model and the network on the same random images.

    Returns the largest difference, relative to the largest logit of the batch.
    Raises: Refusal if it exceeds TOLERANCE.
    """
    from common.model import operators  # here, as onnx in export(): it needs numpy

    import numpy as np
    import onnxruntime
    import torch

    session = operators.session(model)
    generator = np.random.RandomState(0)
    worst = 0.0
    with progress.watched("verifying", len(batch_sizes), "batches", None) as bar:
        for batch_size in batch_sizes:
            images = generator.uniform(0, 1, (batch_size, 3, img_size, img_size)).astype(np.float32)
            (logits,) = session.run(["class"], {"image": images})
            with torch.no_grad():
                expected = network(torch.from_numpy(images)).numpy()
            largest = float(np.abs(expected).max())
            if largest == 0:
                raise Refusal(
                    "every logit of the network is 0, because the checkpoint's weights are zeros; "
                    "give the file that training wrote"
                )
            difference = float(np.abs(logits - expected).max())
            if not math.isfinite(largest) or not difference <= TOLERANCE * largest:
                raise Refusal(
                    f"the ONNX model and the PyTorch network differ by {difference:.3g} on a batch "
                    f"of {batch_size}; {TOLERANCE:g} of the largest logit, {largest:.3g}, is "
                    "allowed, so no file was written. The weights overflow, or onnxruntime "
                    f"{onnxruntime.__version__} or torch {torch.__version__} computes wrongly: try "
                    "another version"
                )
            worst = max(worst, difference / largest)
            bar.advance()
    return worst


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "checkpoint",
        type=options.path,
        help=".pth, .pth.tar, .pt or .safetensors file, or a Hugging Face folder",
    )
    parser.add_argument("output", type=options.onnx_path, help="the .onnx file")
    options.add(
        parser,
        "variant",
        "lineage",
        "ema",
        "key",
        "gp",
        "img_size",
        "opset",
        "batch_size",
        "stem",
        "reflect",
        "force",
        choices={"variant": sorted(FAMILY), "opset": OPSETS, "stem": (*STEMS, "conv")},
        help={
            "lineage": "the lineage of the weights (needed only for `ascend` weights that lost "
            f"their {TRACKED})",
            "opset": "ONNX operator set (default: %(default)s, which every CANN reads; "
            f"CANN 6 reads up to {CANN_6_OPSET})",
        },
    )
    arguments = options.parse(parser)
    arguments.stem = "conv12" if arguments.stem == "conv" else arguments.stem
    return arguments


def make_recipe(arguments: argparse.Namespace) -> record.Recipe:
    """What the ONNX file depends on; the checkpoint by its content."""
    names = "model lineage ema key img_size opset batch_size stem reflect".split()
    values = {name: getattr(arguments, name) for name in names}
    if arguments.gp:
        values["gp"] = arguments.gp
    config = evaluation.config_path(arguments.checkpoint)
    settings = [arguments.checkpoint, PATCH, *([config] if config else [])]
    packages = ("torch", "onnx", "onnxruntime", "numpy", "safetensors")
    return recipe.make(__file__, values, packages, settings=settings)


def choose_size(given: Optional[int], said: Dict[str, Any], path: str) -> int:
    """The image size in pixels: the option's, else the checkpoint's, else timm's."""
    asked = {} if given is None else {"img_size": given}
    size_alone = {name: value for name, value in said.items() if name == "img_size"}
    exported = evaluation.of_fields(size_alone)
    chosen, contradictions = evaluation.resolve(asked, exported, shown(path))
    for sentence in contradictions:
        print(f"note: {sentence}")
    if chosen.img_size % options.MULTIPLE:
        raise Refusal(
            f"{shown(path)} says img_size = {chosen.img_size}, which is not a multiple of "
            f"{options.MULTIPLE} (the network halves the image five times); give --img-size"
        )
    return chosen.img_size


def warn_of_lineage(about: Dict[str, Any], path: str) -> None:
    """Say that the lineage is a guess, if it is one; about: the notes of the model's record."""
    if not lineage_is_assumed(about):
        return
    signs = claims.texts_of(about.get("lineage_doubts"))
    if signs:
        cli.say(
            f"{shown(path)} may be of another lineage than {about['lineage']}, which is assumed: "
            f"{'; '.join(signs)}. If BatchNorm and LeakyReLU replaced InplaceABN in the "
            "official network, give --lineage miil-bn, else --lineage ascend"
        )
        return
    cli.say(
        f"nothing in {shown(path)} shows the lineage of its weights; {about['lineage']} is "
        "assumed, and if that is wrong, every figure is wrong. If they were trained with the "
        "patched timm, give --lineage ascend, else --lineage miil"
    )


def check_classes(said: claims.Claims, num_classes: int, checkpoint: str) -> List[str]:
    """A sentence if the training's options say another number of classes than the weights have.

    Raises: Refusal if config.json does.
    """
    claimed, config = said.num_classes, evaluation.config_path(checkpoint)
    if claimed is None or (evaluation.is_number(claimed) and claimed == num_classes):
        return []
    if config:
        raise Refusal(
            f"{shown(config)} says num_classes = {claimed!r}, but the head of {shown(checkpoint)} "
            f"has {num_classes}; find out which file this is"
        )
    return [f"num_classes = {claimed!a}: its head has {num_classes}, which is what counts"]


def say_remarks(notes: Dict[str, Any], path: str) -> None:
    """Print what the record of a model says of its checkpoint; notes: of that record."""
    for remark in claims.remarks_of(notes):
        print(f"note: {shown(path)} says {remark}")
    for row in claims.rows_of(notes):
        others = ""
        if row.get("of_other_weights"):
            others = "; that is the accuracy of other weights in it (see --ema)"
        print(f"it says that it had Top-{row['top']} {row['value']:.2f} % ({row['said']}){others}")


def print_checkpoint(seen: Recognised, state: StateDict, asked_lineage: Optional[str]) -> None:
    """Print what was recognised in the checkpoint, and where its state dict was."""
    kind = ", averaged weights" if state.averaged else ""
    pool = f", global pooling {seen.pool}" if seen.pool != POOLS[0] else ""
    print(
        f"checkpoint: {seen.variant}, {seen.num_classes} classes, {seen.lineage} lineage, named as "
        f"by {seen.naming}{kind}{pool}"
    )
    if state.key or state.prefix:
        key = f" under {shown(state.key)}" if state.key else ""
        prefix = f", their names without {shown(state.prefix)}" if state.prefix else ""
        print(f"its state dict: {len(state.tensors)} tensors{key}{prefix}")
    if seen.lineage == "ascend" and seen.lineage_is_known and not asked_lineage:
        print(
            f"its lineage: ascend, because it has {TRACKED} (if BatchNorm replaced InplaceABN in "
            "the official network: --lineage miil-bn)"
        )
    others = [key for key in state.others if AVERAGED.search(key)]
    if others and not state.averaged:
        print(
            f"it also holds averaged weights ({shown(others[0])}), which are often better: "
            "--ema takes them"
        )


def read_source(arguments: argparse.Namespace) -> Source:
    """Read the checkpoint and make its network.

    Raises: Refusal for what is not a TResNet's checkpoint, and for contradictions.
    """
    path = arguments.checkpoint
    checkpoint = load_checkpoint(path)
    state = find_state_dict(checkpoint, path, arguments.ema, arguments.key)
    said = claims.read(checkpoint, evaluation.read_config(path), path, arguments.gp)
    seen = recognise(state.tensors, path, said.arch, arguments.model, arguments.lineage, said.pool)
    remarks = check_classes(said, seen.num_classes, path)
    said = said._replace(notes=said.notes + remarks)
    img_size = choose_size(arguments.img_size, said.evaluation, path)
    print_checkpoint(seen, state, arguments.lineage)
    return Source(load_network(state.tensors, path, seen), seen, said, state, img_size)


def describe_source(source: Source) -> Dict[str, Any]:
    """What the model's record says of the checkpoint, beside its metadata."""
    said = source.claims
    accuracies = claims.to_notes(said.accuracies, source.state.averaged)
    doubts = []
    if not source.seen.lineage_is_known:
        doubts = signs_of_replacement(source.state.tensors)
    background = said.background
    if background is None and source.seen.lineage in LABELLED_BY_TIMM:
        background = False
    values = {
        "claimed": accuracies,
        "remarks": said.notes,
        "lineage_doubts": doubts,
        "background": background,
    }
    return {name: value for name, value in values.items() if value not in ([], None)}


def metadata(about: Dict[str, Any], how: Dict[str, Any], made_by: record.Recipe) -> Dict[str, str]:
    """The metadata of the ONNX file, which are all texts.

    about: of the network; how: of the evaluation; both are notes of the record too.
    """
    properties = dict(
        about,
        lineage_told=str(about["lineage_told"]),
        tool=made_by.row["tool"],
        version=cli.VERSION,
    )
    for name, value in (*how.items(), ("options", made_by.row["options"])):
        properties[name] = json.dumps(value, sort_keys=True)
    return properties


def export(arguments: argparse.Namespace, made_by: record.Recipe) -> int:
    """Write the ONNX file and its record; returns the file's size in bytes.

    Raises: Refusal for a checkpoint or an output that cannot be used, and for a graph that differs.
    """
    from common.model.graph import build_model

    import onnx

    source = read_source(arguments)
    network, seen, img_size = source.network, source.seen, source.img_size
    model = build_model(
        network, img_size, arguments.opset, arguments.batch_size, arguments.stem, arguments.reflect
    )
    about: Dict[str, Any] = {
        "variant": seen.variant,
        "num_classes": str(seen.num_classes),
        "lineage": seen.lineage,
        "lineage_told": seen.lineage_is_known,
        "checkpoint_sha256": recipe.sha256(arguments.checkpoint),
    }
    if seen.pool != POOLS[0]:
        about["global_pool"] = seen.pool
    beside = describe_source(source)
    warn_of_lineage({**about, **beside}, arguments.checkpoint)
    say_remarks(beside, arguments.checkpoint)
    # for the size of this file
    how = evaluation.of_fields(dict(source.claims.evaluation, img_size=img_size)).notes()
    onnx.helper.set_model_props(model, metadata(about, how, made_by))
    kinds = Counter(node.op_type for node in model.graph.node)
    counts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
    print(f"graph: opset {arguments.opset}, {sum(kinds.values())} nodes: {counts}")
    serialized = model.SerializeToString()
    onnx.checker.check_model(serialized)
    described = onnx_file.description(model, arguments.output)
    del model, described["metadata"]  # the other notes say it
    batch_sizes = (arguments.batch_size,) if arguments.batch_size else VERIFIED_BATCHES
    difference = verify(serialized, network, img_size, batch_sizes)
    print(
        f"verified: ONNX Runtime differs from PyTorch by at most {difference:.1e} of the largest "
        f"logit (batches of {', '.join(map(str, batch_sizes))})"
    )
    try:
        record.write(
            arguments.output,
            made_by,
            {arguments.output: serialized},
            **about,
            **beside,
            **how,
            described=described,
        )
    except OSError as error:
        raise Refusal(
            f"{shown(arguments.output)} cannot be written ({error.strerror}); choose an existing "
            f"folder that can be written and has {len(serialized) / 1e6:.0f} MB of space"
        )
    return len(serialized)


def main() -> None:
    arguments = parse_arguments()
    start = time.time()
    arguments.checkpoint = evaluation.weights_file(arguments.checkpoint)
    if not os.path.isfile(arguments.checkpoint):
        raise Refusal(
            f"the checkpoint {shown(arguments.checkpoint)} does not exist or is not a file; give "
            "the path of a .pth, .pth.tar, .pt or .safetensors file"
        )
    if arguments.opset > CANN_6_OPSET:
        cli.say(
            f"CANN 6 refuses opset {arguments.opset} (it reads up to {CANN_6_OPSET}, later ones "
            "read more); the graph is the same in every opset, so --opset 11 loses nothing"
        )
    made_by = make_recipe(arguments)
    is_current = record.is_up_to_date(arguments.output, made_by, force=arguments.force)
    notes = record.read(arguments.output).notes
    if is_current and NOTED <= notes.keys():
        print(
            f"{shown(arguments.output)} is up to date: {notes['variant']}, {notes['num_classes']} "
            f"classes, {notes['lineage']} lineage; --force exports again"
        )
        warn_of_lineage(notes, arguments.checkpoint)
        say_remarks(notes, arguments.checkpoint)
        return
    size = export(arguments, made_by)
    print(f"{shown(arguments.output)}: {size / 1e6:.1f} MB in {time.time() - start:.1f} s")


if __name__ == "__main__":
    cli.run(main)
