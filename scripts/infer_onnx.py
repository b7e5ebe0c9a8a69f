#!/usr/bin/env python3
"""Run an ONNX model on the CPU with ais_bench's command line, result files, summary and printed figures.

    python3 scripts/infer_onnx.py --model tresnet_m.onnx --input prep_dataset --output ./ --output_dirname result \\
        --outfmt TXT --batchsize 8
    python3 scripts/infer_onnx.py --model tresnet_m.onnx --loop 20 --batchsize 8
    python3 scripts/infer_onnx.py --model tresnet_m.onnx --input prep_uint8 --aipp scripts/aipp.cfg --output ./ \\
        --output_dirname result

In: every .bin and .npy of --input, one image each, in natural order; without --input, zeros (pure inference, --loop
times).
Out: OUTPUT/DIRNAME/{name up to its first dot}_{output index}.txt (or .bin, .npy) and OUTPUT/DIRNAME_summary.json.
Unlike ais_bench it refuses inputs of a wrong size, names that would overwrite each other's results, and outputs that
are not finite; and it goes on where an interrupted run stopped (OUTPUT/DIRNAME.record.jsonl), batch by batch; --force
starts again.
"""

import argparse
import hashlib
import json
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Callable, Dict, List, NamedTuple, Optional

from common.core import cli

if __name__ == "__main__":
    cli.start()  # before what may be missing

from common.ascend import bench
from common.core import files, options, progress, recipe, record
from common.core.cli import Refusal, shown
from common.core.names import result_names
from common.core.record import Part, Recipe, Writer
from common.data import evaluation, prepared
from common.data.images import list_inputs
from common.data.inputs import Input, read_aipp, read_batch
from common.model import onnx_file, operators
from common.results.results import encode

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

SUMMARY = ""  # the key of the piece that is the summary

# ---- results ---------------------------------------------------------------------------------------------------------


def write_results(
    paths: List[str], outputs: List[np.ndarray], outfmt: str, writer: Writer, folder: str
) -> List[Part]:
    """Write the outputs ([batch, …] each) of one batch; what filled the batch up is dropped.

    folder: of the results, as the record names it. Raises: Refusal if a value is not finite.
    """
    parts = []
    for row, path in enumerate(paths):
        for output, name in zip(outputs, result_names(path, len(outputs), outfmt)):
            if not np.isfinite(output[row]).all():
                raise Refusal(
                    f"the model's output for {shown(path)} has values that are not finite (NaN or "
                    "infinity), so there is no result for it; check that file and the model's weights"
                )
            parts.append(
                writer.part(f"{folder}/{name}", encode(output[row], outfmt), durable=False)
            )
    return parts


# ---- inference -------------------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """A model that was loaded."""

    session: "onnxruntime.InferenceSession"
    input: Input
    sha256: str  # of what was loaded; "" if it is more than one file


def open_model(path: str, batch_size: Optional[int], aipp: Dict[str, str]) -> Opened:
    """Load the model on all cores of this process. Raises: Refusal if it is not one with a single image input."""
    import onnxruntime  # here: with the model it takes half a second, and what is up to date does not need it

    sha256 = ""
    try:
        if onnx_file.all_files(path) == [path]:
            content = files.read_regular(path, largest=onnx_file.LARGEST)
            sha256 = hashlib.sha256(content).hexdigest()
            session = operators.session(content)
        else:
            session = operators.session(path)
    except Refusal:
        raise
    except (
        Exception
    ) as error:  # onnxruntime has an own type of error for each way in which a file can be broken
        raise Refusal(
            f"{shown(path)} is not an ONNX model that onnxruntime {onnxruntime.__version__} can run: "
            f"{cli.why(error)}"
        )
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
    if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
        listed = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs) or "none"
        raise Refusal(
            f"{shown(path)} should have one input, float32 [batch, 3, height, width] with only the batch "
            f"open, but has {listed}; export it with TResNet_pth2onnx.py"
        )
    fixed = shape[0] if isinstance(shape[0], int) else None
    if fixed and batch_size and batch_size != fixed:
        raise Refusal(
            f"--batchsize {batch_size} was given, but the batch of {shown(path)} is fixed at {fixed}; leave "
            "it out or export an open batch"
        )
    if aipp and [int(aipp["crop_size_h"]), int(aipp["crop_size_w"])] != shape[2:]:
        raise Refusal(
            f"the AIPP configuration yields images of {aipp['crop_size_w']}×{aipp['crop_size_h']}, but "
            f"{shown(path)} takes {shape[3]}×{shape[2]}; set src_image_size_w and src_image_size_h (or the "
            "crop) to the model's size"
        )
    return Opened(
        session, Input(inputs[0].name, tuple(shape[1:]), fixed or batch_size or 1, aipp), sha256
    )


def warm_up(session: "onnxruntime.InferenceSession", model: Input, runs: int) -> None:
    for _ in range(runs):
        session.run(None, {model.name: np.zeros((model.batch_size, *model.shape), np.float32)})


def infer(
    arguments: argparse.Namespace,
    session: "onnxruntime.InferenceSession",
    model: Input,
    batches: List[List[str]],
    read: Callable[[List[str]], np.ndarray],
    write: Optional[Callable[[List[str], List[np.ndarray]], None]],
) -> List[float]:
    """Run every batch --loop times; reading the next and writing the last one overlap with it.

    Returns milliseconds per run.
    """
    times: List[float] = []
    writing: "Optional[Future[None]]" = None
    total = arguments.loop * sum(len(paths) or model.batch_size for paths in batches)
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer, progress.Bar(
        "inference", total, "images", lines_every=10 if write else 0
    ) as bar:
        reading = reader.submit(read, batches[0]) if batches else None
        for index, paths in enumerate(batches):
            images = reading.result()  # type: ignore[union-attr]
            if index + 1 < len(batches):
                reading = reader.submit(read, batches[index + 1])
            for _ in range(arguments.loop):
                start = time.perf_counter()
                outputs = session.run(None, {model.name: images})
                times.append((time.perf_counter() - start) * 1000)
                bar.advance(len(paths) or model.batch_size)
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
        "aipp",
        "force",
        required=["model"],
        default={"output": None, "outfmt": "BIN", "loop": 1, "device": 0},
        help={
            "input": "folder of .bin or .npy files, or one of them; without it, pure inference",
            "output": "folder for the results' folder and the summary; without it, none",
            "output_dirname": "name of the result folder (default: the time of the start)",
            "loop": "how often each batch runs (default: %(default)s)",
            "device": "accepted as ais_bench does; there is only the CPU here",
            "first": "take only so many inputs, in natural order",
        },
    )
    return options.parse(parser)


def report(
    arguments: argparse.Namespace,
    model: Input,
    times: List[float],
    folder: str,
    results: Dict[str, List[str]],
) -> bytes:
    """Print ais_bench's lines; returns the content of its summary file."""
    copies = bench.figures([0.0] * (len(times) or 1))  # on the CPU nothing is copied to a device
    summary = bench.summary(
        folder,
        results,
        times,
        model.batch_size,
        args=vars(arguments),
        H2D_latency=copies,
        D2H_latency=copies,
    )
    if times:
        for title in ("NPU_compute_time", "H2D_latency", "D2H_latency")[
            : 3 if arguments.display_all_summary else 1
        ]:
            shown_times = ", ".join(
                f"{key} = {value}" for key, value in summary[title].items() if key != "count"
            )
            print(f"[INFO] {title} (ms): {shown_times}")
        print(
            f"[INFO] throughput 1000*batchsize.mean({model.batch_size})/NPU_compute_time.mean("
            f"{summary['NPU_compute_time']['mean']}): {summary['throughput']}"
        )
    return json.dumps(summary, indent=4).encode()


def in_batches(paths: List[str], batch_size: int) -> List[List[str]]:
    return [paths[index : index + batch_size] for index in range(0, len(paths), batch_size)]


def check_loaded(opened: Opened, made_by: Recipe) -> None:
    """Refuse to go on if the model was replaced between the recipe and its loading, or the other way round."""
    if opened.sha256:
        recorded = made_by.row["inputs"][0][1]
        if opened.sha256 != recorded:
            raise Refusal(
                "the model was replaced while the inference began; run the same command again"
            )
    record.check_unchanged(made_by)


def infer_files(
    arguments: argparse.Namespace, aipp: Dict[str, str], paths: List[str], prefix: str
) -> None:
    """Infer what an earlier run has not finished into the folder `prefix`, and write its summary beside it."""
    # A given batch size is the model's, or this model is refused: then what is up to date can be told without it.
    opened = None if arguments.batchsize else open_model(arguments.model, None, aipp)
    batch_size = opened.input.batch_size if opened else arguments.batchsize
    options = {"batch_size": batch_size, "outfmt": arguments.outfmt, "aipp": aipp}
    made_by = recipe.make(
        __file__,
        options,
        ("onnxruntime", "numpy"),
        onnx_file.all_files(arguments.model),
        device="CPU",
    )
    before = record.read(prefix)
    earlier = before.kept(made_by, arguments.force)
    batches = {os.path.basename(batch[0]): batch for batch in in_batches(paths, batch_size)}
    states = {key: list(map(record.state, batch)) for key, batch in batches.items()}
    kept = {key: piece for key, piece in earlier.items() if states.get(key) == piece.inputs}
    todo = {key: batch for key, batch in batches.items() if key not in kept}
    summary_holds = SUMMARY in earlier
    if before.finished and summary_holds and not todo and len(earlier) == len(kept) + 1:
        print(f"{len(paths)} results in {shown(prefix)} are up to date; --force infers again")
        return
    opened = opened or open_model(arguments.model, batch_size, aipp)
    check_loaded(opened, made_by)
    changed = before.differences(made_by)
    if changed:
        print(f"everything is inferred again: {changed}")
    names = {
        path: result_names(path, len(opened.session.get_outputs()), arguments.outfmt)
        for path in paths
    }
    folder, summary_name = os.path.basename(prefix), os.path.basename(prefix) + "_summary.json"
    expected = [f"{folder}/{name}" for path in paths for name in names[path]]
    with record.begin_folder(before, made_by, [*expected, summary_name], kept.values()) as writer:

        def write(batch: List[str], values: List[np.ndarray]) -> None:
            key = os.path.basename(batch[0])
            parts = write_results(batch, values, arguments.outfmt, writer, folder)
            writer.publish([record.Draft(key, states[key], parts)])

        if todo:
            warm_up(opened.session, opened.input, arguments.warmup_count)
        start = time.time()
        times = infer(
            arguments,
            opened.session,
            opened.input,
            list(todo.values()),
            lambda batch: read_batch(batch, opened.input),
            write,
        )
        count, seconds = sum(map(len, todo.values())), max(time.time() - start, 1e-9)
        print(
            f"{count} images inferred into {shown(prefix)} in {seconds:.1f} s, {count / seconds:.1f} images/s"
            + (f" ({len(paths) - count} were there already)" if count < len(paths) else "")
        )
        summary = writer.part(summary_name, report(arguments, opened.input, times, prefix, names))
        writer.publish([record.Draft(SUMMARY, [], [summary])])
        writer.finish()


def main() -> None:
    arguments = parse_arguments()
    aipp = read_aipp(arguments.aipp) if arguments.aipp else {}
    paths = list_inputs(arguments.input)[: arguments.first] if arguments.input else []
    if not os.path.isfile(arguments.model):
        raise Refusal(
            f"the model {shown(arguments.model)} is not there; make it: python3 TResNet_pth2onnx.py "
            "model_best.pth.tar tresnet_m.onnx"
        )
    if arguments.input:
        evaluation.check_prepared(
            prepared.read(arguments.input),
            record.read(arguments.model).notes.get("evaluation"),
            arguments.input,
            arguments.model,
        )
    prefix = ""
    if arguments.output:
        prefix = os.path.join(
            arguments.output, arguments.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S")
        )
        files.make_folder(arguments.output, "--output")
    if paths and prefix:
        infer_files(arguments, aipp, paths, prefix)
        return
    session, model, _ = open_model(arguments.model, arguments.batchsize, aipp)
    made_up = np.zeros((model.batch_size, *model.shape), np.float32)
    if arguments.pure_data_type == "random":
        made_up = np.random.RandomState(0).uniform(0, 1, made_up.shape).astype(np.float32)
    warm_up(session, model, arguments.warmup_count)
    times = infer(
        arguments,
        session,
        model,
        in_batches(paths, model.batch_size) or [[]],
        lambda batch: read_batch(batch, model) if batch else made_up,
        None,
    )
    summary = report(arguments, model, times, prefix, {path: [] for path in paths})
    if prefix:
        record.claim_like(prefix + "_summary.json", '"filesinfo"')
        files.write_whole(prefix + "_summary.json", summary)


if __name__ == "__main__":
    cli.run(main, "the same command goes on from here")
