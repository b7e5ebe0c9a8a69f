#!/usr/bin/env python3
"""Turn a TResNet checkpoint into an ONNX file that is proved equal to the PyTorch network.

    python3 TResNet_pth2onnx.py model_best.pth.tar tresnet_m.onnx
    python3 TResNet_pth2onnx.py tresnet_l_448.pth tresnet_l_448.onnx --img-size 448 --opset 13
    python3 TResNet_pth2onnx.py tresnet_m.safetensors tresnet_m.onnx --batch-size 8 --stem conv12
    python3 TResNet_pth2onnx.py ./tresnet_m.miil_in1k_448 tresnet_m_448.onnx

In: a training checkpoint (a dict with `state_dict`, or `model`, or `state_dict_ema` for --ema), a bare state dict, a
`.safetensors` file, or a Hugging Face folder (config.json and the weights). Variant, number of classes, lineage of the
weights and naming are read off its tensors.
Out: input `image`, float32 [batch, 3, img_size, img_size], RGB in 0…1; output `class`, float32 [batch, classes]:
logits.

The graph is written node by node from the network's modules, batch norm folded in double precision, with operators that
an NPU runs as they are. It is then run in ONNX Runtime against the PyTorch network; a file that differs is not kept.
"""

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from typing import Any, Dict, Optional, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "scripts"))
from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.core import options, progress, recipe, record
from common.core.cli import Refusal, shown
from common.core.names import STEMS
from common.data import evaluation
from common.model import onnx_file, operators
from common.model.checkpoint import AVERAGED, find_state_dict, load_checkpoint
from common.model.network import FAMILY, PATCH, TRACKED, load_network, recognise

OPSETS = range(11, 19)  # the graph is the same in all of them
CANN_6_OPSET = 15  # the highest that CANN 6.0 has parsers for: ops/built-in/framework/onnx_plugin of its sources
TOLERANCE = (
    1e-4  # of the largest logit: float32 rounding is near 1e-6, a wrong slope or padding 1e-2
)
VERIFIED_BATCHES = (1, 2, 5)


def verify(model: bytes, network: Any, img_size: int, batch_sizes: Tuple[int, ...]) -> float:
    """Run the ONNX model and the network on the same random images; the largest difference over the largest logit.

    Raises: Refusal if it exceeds TOLERANCE.
    """
    import numpy as np  # here, as onnx in main(): what is up to date needs none of them
    import onnxruntime
    import torch

    session = operators.session(model)
    generator = np.random.RandomState(0)
    worst = 0.0
    with progress.watched("verifying", len(batch_sizes), "batches", None) as bar:
        for batch_size in batch_sizes:
            images = generator.uniform(0, 1, (batch_size, 3, img_size, img_size)).astype(np.float32)
            (found,) = session.run(["class"], {"image": images})
            with torch.no_grad():
                expected = network(torch.from_numpy(images)).numpy()
            largest = float(np.abs(expected).max())
            if largest == 0:
                raise Refusal(
                    "every logit of the network is 0, so there is nothing to verify and nothing to evaluate: "
                    "the checkpoint's weights are zeros; give the file that training wrote"
                )
            difference = float(np.abs(found - expected).max())
            if not math.isfinite(largest) or not difference <= TOLERANCE * largest:
                raise Refusal(
                    f"the ONNX model and the PyTorch network differ by {difference:.3g} on a batch of "
                    f"{batch_size}, where the largest logit is {largest:.3g} and {TOLERANCE:g} of it is "
                    "allowed, so no file is written; the weights overflow, or onnxruntime "
                    f"{onnxruntime.__version__} or torch {torch.__version__} computes wrongly: try another "
                    "version"
                )
            worst = max(worst, difference / largest)
            bar.advance()
    return worst


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "checkpoint",
        type=options.path,
        help=".pth, .pth.tar, .pt or .safetensors, or a folder as Hugging Face's are",
    )
    parser.add_argument("output", type=options.onnx_path, help="the .onnx file")
    options.add(
        parser,
        "variant",
        "lineage",
        "ema",
        "key",
        "img_size",
        "opset",
        "batch_size",
        "stem",
        "reflect",
        "force",
        choices={"variant": sorted(FAMILY), "opset": OPSETS, "stem": (*STEMS, "conv")},
        help={
            "lineage": "insist on this lineage of weights (needed only for `ascend` "
            f"weights whose {TRACKED} were stripped)",
            "opset": "ONNX operator set (default: %(default)s, which every CANN reads; "
            f"CANN 6 reads up to {CANN_6_OPSET})",
        },
    )
    arguments = options.parse(parser)
    arguments.stem = "conv12" if arguments.stem == "conv" else arguments.stem
    return arguments


def make_recipe(arguments: argparse.Namespace) -> record.Recipe:
    """What the ONNX file depends on; the checkpoint by its content."""
    given = {
        name: getattr(arguments, name)
        for name in (
            "model",
            "lineage",
            "ema",
            "key",
            "img_size",
            "opset",
            "batch_size",
            "stem",
            "reflect",
        )
    }
    config = evaluation.config_path(arguments.checkpoint)
    settings = [arguments.checkpoint, PATCH, *([config] if config else [])]
    packages = ("torch", "onnx", "onnxruntime", "numpy", "safetensors")
    return recipe.make(__file__, given, packages, settings=settings)


def said_by(checkpoint: Any, config: Dict[str, Any]) -> Dict[str, Any]:
    """What config.json, or else the `args` of a training checkpoint, say of the evaluation: {field: value}."""
    if config:
        return evaluation.of_config(config)
    own = checkpoint.get("args") if isinstance(checkpoint, dict) else None
    own = vars(own) if isinstance(own, argparse.Namespace) else own
    return evaluation.said_by(own) if isinstance(own, dict) else {}


def choose_size(given: Optional[int], said: Dict[str, Any], path: str) -> int:
    """The image size in pixels: the option's, else the checkpoint's, else timm's."""
    asked = {} if given is None else {"img_size": given}
    chosen, contradictions = evaluation.resolve(
        asked, {k: v for k, v in said.items() if k == "img_size"}, shown(path)
    )
    for sentence in contradictions:
        print(f"note: {sentence}")
    if chosen.img_size % options.MULTIPLE:
        raise Refusal(
            f"{shown(path)} says img_size = {chosen.img_size}, but the network halves the image five times, "
            f"so a multiple of {options.MULTIPLE} is needed; say --img-size"
        )
    return chosen.img_size


def warn_of_lineage(about: Dict[str, Any], path: str) -> None:
    """Say that the lineage is a guess, if it is one."""
    if about.get("lineage_told") == str(False):
        cli.say(
            f"nothing in {shown(path)} tells the lineage of its weights; {about['lineage']} is assumed, and if "
            "that is wrong, so is every figure: if they were trained with the patched timm, give --lineage ascend, "
            "else --lineage miil"
        )


def main() -> None:
    arguments = parse_arguments()
    start = time.time()
    arguments.checkpoint = evaluation.weights_file(arguments.checkpoint)
    if not os.path.isfile(arguments.checkpoint):
        raise Refusal(
            f"the checkpoint {shown(arguments.checkpoint)} is not there or not a file; give the path of a "
            ".pth, .pth.tar, .pt or .safetensors file"
        )
    if arguments.opset > CANN_6_OPSET:
        cli.say(
            f"CANN 6 refuses opset {arguments.opset} (it reads up to {CANN_6_OPSET}; later ones more); the graph "
            "is the same in every opset, so --opset 11 loses nothing"
        )
    made_by = make_recipe(arguments)
    if record.is_up_to_date(arguments.output, made_by, force=arguments.force):
        was = record.read(arguments.output).notes
        print(
            f"{shown(arguments.output)} is up to date: {was['variant']}, {was['num_classes']} classes, "
            f"{was['lineage']} lineage; --force exports again"
        )
        warn_of_lineage(was, arguments.checkpoint)
        return
    from common.model.graph import build_model

    import onnx

    checkpoint = load_checkpoint(arguments.checkpoint)
    found = find_state_dict(checkpoint, arguments.checkpoint, arguments.ema, arguments.key)
    tensors = found.tensors
    config = evaluation.read_config(arguments.checkpoint)
    arch = config.get("architecture") or (
        checkpoint.get("arch") if isinstance(checkpoint, dict) else None
    )
    seen = recognise(
        tensors,
        arguments.checkpoint,
        arch if isinstance(arch, str) else None,
        arguments.model,
        arguments.lineage,
    )
    if config.get("num_classes", seen.num_classes) != seen.num_classes:
        raise Refusal(
            f"{shown(evaluation.config_path(arguments.checkpoint))} says num_classes = "
            f"{config['num_classes']!r}, but the head of {shown(arguments.checkpoint)} has "
            f"{seen.num_classes}; find out which file this is"
        )
    said = said_by(checkpoint, config)
    img_size = choose_size(arguments.img_size, said, arguments.checkpoint)
    print(
        f"checkpoint: {seen.variant}, {seen.num_classes} classes, {seen.lineage} lineage, named as by {seen.naming}"
        + (", averaged weights" if arguments.ema else "")
    )
    if found.key or found.prefix:
        print(
            f"its state dict: {len(tensors)} tensors"
            + (f" under {shown(found.key)}" if found.key else "")
            + (f", their names without {shown(found.prefix)}" if found.prefix else "")
        )
    averaged = next(filter(AVERAGED.search, found.others), "")
    if averaged and not AVERAGED.search(found.key):
        print(
            f"it also holds averaged weights ({shown(averaged)}), which are often the better ones: --ema takes them"
        )
    network = load_network(tensors, arguments.checkpoint, seen)
    del checkpoint, tensors, found  # half a gigabyte for an XL
    model = build_model(
        network, img_size, arguments.opset, arguments.batch_size, arguments.stem, arguments.reflect
    )
    about = {
        "variant": seen.variant,
        "num_classes": str(seen.num_classes),
        "lineage": seen.lineage,
        "lineage_told": str(seen.told),
        "img_size": str(img_size),
        "checkpoint_sha256": recipe.sha256(arguments.checkpoint),
    }
    warn_of_lineage(about, arguments.checkpoint)
    said_now = json.dumps(
        evaluation.to_json(dict(said, img_size=img_size)), sort_keys=True
    )  # this size was exported
    onnx.helper.set_model_props(
        model,
        dict(
            about,
            evaluation=said_now,
            tool=made_by.row["tool"],
            version=cli.VERSION,
            options=json.dumps(made_by.row["options"], sort_keys=True),
        ),
    )
    operators = Counter(node.op_type for node in model.graph.node)
    counts = ", ".join(f"{name} {count}" for name, count in sorted(operators.items()))
    print(f"graph: opset {arguments.opset}, {sum(operators.values())} nodes: {counts}")
    serialized = model.SerializeToString()
    onnx.checker.check_model(serialized)
    described = onnx_file.description(model, arguments.output)
    del model
    batch_sizes = (arguments.batch_size,) if arguments.batch_size else VERIFIED_BATCHES
    difference = verify(serialized, network, img_size, batch_sizes)
    print(
        f"verified: ONNX Runtime differs from PyTorch by at most {difference:.1e} of the largest logit "
        f"(batches of {', '.join(map(str, batch_sizes))})"
    )
    try:
        record.write(
            arguments.output,
            made_by,
            {arguments.output: serialized},
            **about,
            evaluation=json.loads(said_now),
            described=described,
        )
    except OSError as error:
        raise Refusal(
            f"{shown(arguments.output)} cannot be written ({error.strerror}); choose a folder that exists, "
            f"can be written and has {len(serialized) / 1e6:.0f} MB of space"
        )
    print(
        f"{shown(arguments.output)}: {len(serialized) / 1e6:.1f} MB in {time.time() - start:.1f} s"
    )


if __name__ == "__main__":
    cli.run(main)
