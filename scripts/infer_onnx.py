#!/usr/bin/env python3
"""Run an ONNX model on the CPU, with the command line, files and figures of ais_bench.

    python3 scripts/infer_onnx.py --model tresnet_m.onnx --input prep_dataset \\
        --output ./ --output_dirname result --outfmt TXT --batchsize 8
    python3 scripts/infer_onnx.py --model tresnet_m.onnx --loop 20 --batchsize 8
    python3 scripts/infer_onnx.py --model tresnet_m.onnx --input prep_uint8 \\
        --aipp scripts/aipp.cfg --output ./ --output_dirname result

In:  every .bin and .npy of --input, one image each, in natural order; without --input, zeros (pure
     inference, --loop times).
Out: OUTPUT/DIRNAME/{name up to its first dot}_{output index}.txt (or .bin, .npy) and
     OUTPUT/DIRNAME_summary.json.
Unlike ais_bench it refuses inputs of a wrong size, names that would overwrite each other's results,
and outputs that are not finite. It goes on where an interrupted run stopped, batch by batch
(OUTPUT/DIRNAME.record.jsonl); --force starts again.
"""

import argparse
import hashlib
import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import bench
from common.core import files, options, processor, progress, recipe, record
from common.core.cli import Refusal, counted, shown
from common.core.names import result_names
from common.core.record import Draft, Part, Recipe, State, Writer
from common.data import evaluation
from common.data.images import list_inputs, spaced
from common.data.inputs import Input, read_aipp, read_batch
from common.model import onnx_file, operators
from common.results import result_folder
from common.results.result_folder import ResultFolder
from common.results.results import encode

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

# ---- results -------------------------------------------------------------------------------------


def write_results(
    paths: List[str], outputs: List[np.ndarray], outfmt: str, writer: Writer, prefix: str
) -> List[Part]:
    """Write the results of one batch; rows of the outputs beyond the last path are dropped.

    paths: the batch's inputs; outputs: float32 [batch, …] each; prefix: path of the result folder.
    Raises: Refusal if a value is not finite.
    """
    parts = []
    for row, path in enumerate(paths):
        for output, name in zip(outputs, result_names(path, len(outputs), outfmt)):
            if not np.isfinite(output[row]).all():
                raise Refusal(
                    f"the model's output for {shown(path)} has values that are not finite (NaN or "
                    "infinity), so there is no result for it; check that file and the model's "
                    "weights"
                )
            content = encode(output[row], outfmt)
            parts.append(writer.part(result_folder.inside(prefix, name), content, durable=False))
    return parts


# ---- inference -----------------------------------------------------------------------------------


class Opened(NamedTuple):
    """A model that was loaded."""

    session: "onnxruntime.InferenceSession"
    input: Input
    sha256: str  # of what was loaded; "" if it is more than one file


def load_session(path: str) -> "Tuple[onnxruntime.InferenceSession, str]":
    """(session on all cores of this process, SHA-256 of the file; "" if it is more than one).

    Raises: Refusal if it is not a model.
    """
    import onnxruntime  # here: it takes half a second, and what is up to date does not need it

    try:
        if onnx_file.all_files(path) != [path]:
            return operators.session(path), ""
        content = files.read_regular(path, largest=onnx_file.LARGEST)
        return operators.session(content), hashlib.sha256(content).hexdigest()
    except Refusal:
        raise
    except Exception as error:  # onnxruntime has a type of its own for each kind of broken file
        if cli.is_out_of_memory(error):
            raise MemoryError from None
        raise Refusal(
            f"{shown(path)} is not an ONNX model that onnxruntime {onnxruntime.__version__} can "
            f"run: {cli.why(error)}"
        )


def open_model(path: str, batch_size: Optional[int], aipp: Dict[str, str]) -> Opened:
    """Load the model: it must have one image input that fits --batchsize and the AIPP settings.

    Raises: Refusal if it does not.
    """
    session, sha256 = load_session(path)
    processor.warn_of(session.get_modelmeta().custom_metadata_map)
    inputs = session.get_inputs()
    is_single = len(inputs) == 1 and inputs[0].type == "tensor(float)"
    shape = inputs[0].shape if is_single else []
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
        listed = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
        raise Refusal(
            f"{shown(path)} should have one input, float32 [batch, 3, height, width] with only the "
            f"batch open, but has {listed or 'none'}; export it with TResNet_pth2onnx.py"
        )
    fixed = shape[0] if isinstance(shape[0], int) else None
    if fixed and batch_size and batch_size != fixed:
        raise Refusal(
            f"--batchsize {batch_size} was given, but the batch of {shown(path)} is fixed at "
            f"{fixed}; leave it out or export an open batch"
        )
    if aipp and [int(aipp["crop_size_h"]), int(aipp["crop_size_w"])] != shape[2:]:
        raise Refusal(
            f"the AIPP configuration yields images of {aipp['crop_size_w']}×{aipp['crop_size_h']}, "
            f"but {shown(path)} takes {shape[3]}×{shape[2]}; set src_image_size_w and "
            "src_image_size_h (or the crop) to the model's size"
        )
    image = Input(inputs[0].name, tuple(shape[1:]), fixed or batch_size or 1, aipp)
    return Opened(session, image, sha256)


def warm_up(model: Opened, runs: int) -> None:
    zeros = np.zeros((model.input.batch_size, *model.input.shape), np.float32)
    for _ in range(runs):
        model.session.run(None, {model.input.name: zeros})


def read_ahead(
    batches: List[List[str]], read: Callable[[List[str]], np.ndarray]
) -> Iterator[Tuple[List[str], np.ndarray]]:
    """(paths, images) of each batch; the next batch is read while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        reading: "List[Future[np.ndarray]]" = [reader.submit(read, paths) for paths in batches[:1]]
        for paths, following in zip(batches, [*batches[1:], None]):
            images = reading.pop().result()
            if following is not None:
                reading.append(reader.submit(read, following))
            yield paths, images


def infer(
    model: Opened,
    loops: int,
    batches: List[List[str]],
    read: Callable[[List[str]], np.ndarray],
    write: Optional[Callable[[List[str], List[np.ndarray]], None]],
) -> List[float]:
    """Run every batch `loops` times; the next one is read and the last one written meanwhile.

    batches: the paths of each, [] for images that have none; read: their images, float32 [batch, 3,
    height, width];
    write: what is done with paths and outputs.
    Returns: milliseconds per run.
    """
    times: List[float] = []
    writing: "Optional[Future[None]]" = None
    total = loops * sum(len(paths) or model.input.batch_size for paths in batches)
    lines_every = 10 if write else 0  # s
    with ThreadPoolExecutor(1) as writer, progress.Bar(
        "inference", total, "images", lines_every=lines_every
    ) as bar:
        for paths, images in read_ahead(batches, read):
            for _ in range(loops):
                start = time.perf_counter()
                outputs = model.session.run(None, {model.input.name: images})
                times.append((time.perf_counter() - start) * 1000)
                bar.advance(len(paths) or model.input.batch_size)
            if write:
                if writing:
                    writing.result()  # one batch behind: an error ends the run here
                writing = writer.submit(write, paths, outputs)
        if writing:
            writing.result()
    return times


def parse_arguments() -> argparse.Namespace:
    parser = cli.parser(__doc__)
    options.add(
        parser,
        "model",
        "input",
        "output",
        "output_dirname",
        "outfmt",
        "loop",
        "batchsize",
        "device",
        "warmup_count",
        "pure_data_type",
        "display_all_summary",
        "first",
        "spaced",
        "aipp",
        "force",
        required=["model"],
        default={"output": None, "outfmt": "BIN", "loop": 1, "device": 0},
        help={
            "input": "folder of .bin or .npy files, or one of them; without it, pure inference",
            "output": "where the result folder and the summary appear; without it, nothing is "
            "written",
            "output_dirname": "name of the result folder (default: the time of the start)",
            "loop": "how many times each batch runs (default: %(default)s)",
            "device": "accepted because ais_bench has it; everything runs on the CPU",
            "first": "use only this many inputs, in natural order",
        },
    )
    return options.parse(parser)


def report(
    arguments: argparse.Namespace,
    images: float,
    times: List[float],
    folder: str,
    results: Dict[str, List[str]],
) -> bytes:
    """Print ais_bench's lines; the content of its summary file.

    images: how many a batch had on average, without what only filled it up.
    times: milliseconds of each batch; results: {path of an input: names of its results in
    `folder`}.
    """
    copies = bench.figures([0.0] * (len(times) or 1))  # on the CPU nothing is copied to a device
    summary = bench.summary(
        folder,
        results,
        times,
        images,
        args=vars(arguments),
        H2D_latency=copies,
        D2H_latency=copies,
    )
    if times:
        titles = ["NPU_compute_time"]
        if arguments.display_all_summary:
            titles += ["H2D_latency", "D2H_latency"]
        for title in titles:
            figures = [
                f"{key} = {value}" for key, value in summary[title].items() if key != "count"
            ]
            print(f"[INFO] {title} (ms): {', '.join(figures)}")
        print(
            f"[INFO] throughput 1000*batchsize.mean({images:g})/NPU_compute_time.mean("
            f"{summary['NPU_compute_time']['mean']}): {summary['throughput']}"
        )
    return json.dumps(summary, indent=4).encode()


# ---- files to results ----------------------------------------------------------------------------


def split(paths: List[str], batch_size: int) -> List[List[str]]:
    return [paths[index : index + batch_size] for index in range(0, len(paths), batch_size)]


def images_each(batches: List[List[str]], batch_size: int) -> float:
    """How many images a batch has on average; made-up batches, which have no paths, are full."""
    return sum(map(len, batches)) / len(batches) if batches else batch_size


def key_of(paths: List[str]) -> str:
    """What the record calls a batch: the name of its first image."""
    return os.path.basename(paths[0])


def check_loaded(opened: Opened, made_by: Recipe) -> None:
    """Refuse to go on if the model that was loaded is not the one in the recipe."""
    if opened.sha256 and opened.sha256 != made_by.row["inputs"][0][1]:
        raise Refusal(
            "the model was replaced while the inference began; run the same command again"
        )
    record.check_unchanged(made_by)


def infer_batches(
    arguments: argparse.Namespace,
    opened: Opened,
    todo: List[List[str]],
    states: Dict[str, List[State]],
    writer: Writer,
    prefix: str,
) -> List[float]:
    """Infer batches and publish the results of each; milliseconds per run.

    todo: the paths of each batch; states: those of the inputs of each key.
    """

    def write(paths: List[str], outputs: List[np.ndarray]) -> None:
        key = key_of(paths)
        parts = write_results(paths, outputs, arguments.outfmt, writer, prefix)
        writer.publish([Draft(key, states[key], parts)])

    if todo:
        warm_up(opened, arguments.warmup_count)
    return infer(opened, arguments.loop, todo, lambda paths: read_batch(paths, opened.input), write)


def infer_files(
    arguments: argparse.Namespace, aipp: Dict[str, str], paths: List[str], prefix: str
) -> None:
    """Infer what an earlier run has not finished into the folder `prefix`, with its summary."""
    # A given batch size is the model's, or open_model() refuses: then what is up to date needs no
    # model.
    opened = None if arguments.batchsize else open_model(arguments.model, None, aipp)
    batch_size = opened.input.batch_size if opened else arguments.batchsize
    made_by = recipe.make(
        __file__,
        {"batch_size": batch_size, "outfmt": arguments.outfmt, "aipp": aipp},
        ("onnxruntime", "numpy"),
        onnx_file.all_files(arguments.model),
        device="CPU",
    )
    batches = split(paths, batch_size)
    states = {key_of(batch): list(map(record.state, batch)) for batch in batches}
    before = record.read(prefix)
    earlier = before.kept(made_by, arguments.force)
    kept = {key: piece for key, piece in earlier.items() if states.get(key) == piece.inputs}
    todo = [batch for batch in batches if key_of(batch) not in kept]
    folder = ResultFolder(prefix, before, made_by, earlier, kept)
    if not todo and folder.is_complete():
        folder.say_up_to_date(len(paths))
        return
    opened = opened or open_model(arguments.model, batch_size, aipp)
    check_loaded(opened, made_by)
    changed = before.differences(made_by)
    if changed:
        print(f"everything is inferred again: {changed}")
    outputs = len(opened.session.get_outputs())
    names = {path: result_names(path, outputs, arguments.outfmt) for path in paths}
    with folder.begin(names) as writer:
        start = time.time()
        times = infer_batches(arguments, opened, todo, states, writer, prefix)
        seconds = max(time.time() - start, 1e-9)
        say_speed(sum(map(len, todo)), len(paths), seconds, prefix)
        folder.end(writer, report(arguments, images_each(todo, batch_size), times, prefix, names))


def say_speed(inferred: int, images: int, seconds: float, prefix: str) -> None:
    line = f"{counted(inferred, 'image')} inferred into {shown(prefix)} in {seconds:.1f} s"
    there = f" ({result_folder.already_there(images - inferred)})" if inferred < images else ""
    print(f"{line}, {inferred / seconds:.1f} images/s{there}")


def infer_without_files(
    arguments: argparse.Namespace, aipp: Dict[str, str], paths: List[str], prefix: str
) -> None:
    """Infer the images of `paths`, or made-up ones, without writing results.

    prefix: of the summary, "" for none.
    """
    opened = open_model(arguments.model, arguments.batchsize, aipp)
    batch_size = opened.input.batch_size
    made_up = np.zeros((batch_size, *opened.input.shape), np.float32)
    if arguments.pure_data_type == "random":
        made_up = np.random.RandomState(0).uniform(0, 1, made_up.shape).astype(np.float32)
    warm_up(opened, arguments.warmup_count)
    batches = split(paths, batch_size)
    times = infer(
        opened,
        arguments.loop,
        batches or [[]],
        lambda batch: read_batch(batch, opened.input) if batch else made_up,
        None,
    )
    images = images_each(batches, batch_size)
    summary = report(arguments, images, times, prefix, {path: [] for path in paths})
    if prefix:
        record.claim_like(prefix + "_summary.json", '"filesinfo"')
        files.write_whole(prefix + "_summary.json", summary)


def main() -> None:
    arguments = parse_arguments()
    aipp = read_aipp(arguments.aipp) if arguments.aipp else {}
    paths = list_inputs(arguments.input)[: arguments.first] if arguments.input else []
    if arguments.spaced:
        paths = spaced(paths, arguments.spaced)
    if not os.path.isfile(arguments.model):
        raise Refusal(
            f"the model {shown(arguments.model)} does not exist; make it: python3 "
            "TResNet_pth2onnx.py model_best.pth.tar tresnet_m.onnx"
        )
    if arguments.input:
        evaluation.check_prepared(arguments.model, arguments.input)
    prefix = ""
    if arguments.output:
        name = arguments.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S")
        prefix = os.path.join(arguments.output, name)
        files.make_folder(arguments.output, "--output")
    if paths and prefix:
        infer_files(arguments, aipp, paths, prefix)
    else:
        infer_without_files(arguments, aipp, paths, prefix)


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
