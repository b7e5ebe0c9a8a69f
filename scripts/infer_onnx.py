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
are not finite; and it goes on where an interrupted run stopped (OUTPUT/DIRNAME_journal.jsonl), batch by batch; --force
starts anew.
"""
import argparse
import contextlib
import json
import os
import re
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import onnxruntime
from tqdm import tqdm

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
from TResNet_preprocess import VERSION, write_whole  # noqa: E402

FORMATS = ("BIN", "NPY", "TXT")
SUFFIXES = (".bin", ".npy")  # of inputs; other files are ignored, as ais_bench does
AIPP_KEYS = ("aipp_mode", "related_input_rank", "input_format", "src_image_size_w", "src_image_size_h", "crop",
             "load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h", "csc_switch", "rbuv_swap_switch",
             *(f"{kind}_chn_{channel}" for kind in ("mean", "min", "var_reci") for channel in range(3)))


class Input(NamedTuple):
    """What the model takes: one sample of `size` bytes becomes float32 [3, height, width]."""
    name: str
    shape: Tuple[int, ...]  # of one sample
    batch_size: int
    aipp: Dict[str, str]  # {} for float32 input

    @property
    def size(self) -> int:
        if self.aipp:
            return int(self.aipp["src_image_size_w"]) * int(self.aipp["src_image_size_h"]) * 3
        return int(np.prod(self.shape)) * 4


def refuse(message: str) -> SystemExit:
    return SystemExit(f"infer_onnx.py: {message}")


def shown(name: str) -> str:
    """A file name as it can be printed, whatever is in it."""
    return repr(name) if not name.isprintable() or not name.isascii() else name


# ---- inputs ----------------------------------------------------------------------------------------------------------

def natural(name: str) -> List[Any]:
    """Sort key that puts image_2 before image_10, as ais_bench does."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def stem(name: str) -> str:
    """What ais_bench makes a result's name of: the base name up to its first dot."""
    return os.path.basename(name).split(".")[0]


def list_inputs(folder: str) -> List[str]:
    """Paths of the input files of a folder, or of the one file given, in natural order.

    Raises: SystemExit if there is none or if two would write the same result.
    """
    if os.path.isdir(folder):
        names = sorted((entry.name for entry in os.scandir(folder)
                        if entry.name.endswith(SUFFIXES) and entry.is_file()), key=natural)
        paths = [os.path.join(folder, name) for name in names]
    else:
        paths = [folder] if os.path.isfile(folder) and folder.endswith(SUFFIXES) else []
    if not paths:
        raise refuse(f"--input {shown(folder)} should be a folder with .bin or .npy files, but holds none; "
                     "prepare them: python3 TResNet_preprocess.py ./ImageNet/val_union ./prep_dataset")
    by_stem: Dict[str, str] = {}
    for path in paths:
        other = by_stem.setdefault(stem(path), path)
        if other != path:
            raise refuse(f"{shown(other)} and {shown(path)} agree up to their first dot, so one's result would "
                         "overwrite the other's; rename one")
    return paths


def read_aipp(path: str) -> Dict[str, str]:
    """The settings of a static AIPP configuration file as atc's --insert_op_conf reads it.

    Raises: SystemExit for what this runner cannot do: other formats than RGB888_U8, colour conversion, several
    operators.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = re.sub(r"#.*", "", file.read())
    except (OSError, UnicodeDecodeError) as error:
        raise refuse(f"the AIPP configuration {shown(path)} cannot be read ({error}); "
                     "give a text file such as scripts/aipp.cfg")
    body = re.fullmatch(r"\s*aipp_op\s*\{([^{}]*)\}\s*", text)
    pairs = re.findall(r"([a-z_0-9]+)\s*:\s*([^\s:]+)", body.group(1)) if body else []
    aipp = dict(pairs)
    if not body or len(aipp) != len(pairs) or re.sub(r"[a-z_0-9]+\s*:\s*[^\s:]+", "", body.group(1)).strip():
        raise refuse(f"{shown(path)} is not one AIPP operator, aipp_op {{ key : value … }} with each key once; "
                     "see scripts/aipp.cfg")
    unknown = [key for key in aipp if key not in AIPP_KEYS]
    wrong = [f"{key} : {aipp.get(key)}" for key, value in (("aipp_mode", "static"), ("input_format", "RGB888_U8"))
             if aipp.get(key) != value]
    wrong += [f"{key} : {aipp[key]}" for key in ("csc_switch",) if aipp.get(key, "false") != "false"]
    if unknown or wrong:
        raise refuse(f"{shown(path)} has {', '.join(unknown + wrong)}; a static AIPP of RGB888_U8 without colour "
                     "conversion is expected, see scripts/aipp.cfg")
    if aipp.get("crop", "false") == "false":
        aipp.update(load_start_pos_w="0", load_start_pos_h="0", crop_size_w=aipp.get("src_image_size_w", ""),
                    crop_size_h=aipp.get("src_image_size_h", ""))
    try:
        for key, value in aipp.items():
            if key.startswith(("src_", "crop_size", "load_start")):
                int(value)
            elif "_chn_" in key:
                float(value)
        int(aipp["src_image_size_w"]), int(aipp["src_image_size_h"])
    except (ValueError, KeyError) as error:
        raise refuse(f"{shown(path)} lacks a number ({error}); src_image_size_w and src_image_size_h are needed, "
                     "see scripts/aipp.cfg")
    return aipp


def apply_aipp(pixels: np.ndarray, aipp: Dict[str, str]) -> np.ndarray:
    """What the card's AIPP does: crop, swap red and blue, (value - mean - min) · var_reci.

    uint8 [n, h, w, 3] → float32 [n, 3, h, w].
    """
    left, top, width, height = (
        int(aipp.get(key, 0)) for key in ("load_start_pos_w", "load_start_pos_h", "crop_size_w", "crop_size_h"))
    pixels = pixels[:, top:top + height, left:left + width]
    if aipp.get("rbuv_swap_switch", "false") == "true":
        pixels = pixels[..., ::-1]
    mean, low, scale = (
        np.array([float(aipp.get(f"{kind}_chn_{channel}", default)) for channel in range(3)], np.float32)
        .reshape(3, 1, 1) for kind, default in (("mean", 0), ("min", 0), ("var_reci", 1)))
    return np.ascontiguousarray((pixels.transpose(0, 3, 1, 2).astype(np.float32) - mean - low) * scale)


def read_sample(path: str, model: Input, into: np.ndarray) -> None:
    """Read one input file into `into` (uint8, [size]). Raises: SystemExit if it is not exactly one sample."""
    kind = "uint8" if model.aipp else "float32"
    if path.endswith(".npy"):
        try:
            array = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise refuse(f"{shown(path)} is not a NumPy file that can be read ({error})")
        if array.dtype != kind or array.nbytes != model.size:
            raise refuse(f"{shown(path)} holds {array.dtype} {list(array.shape)}, but the model takes {kind} of "
                         f"{model.size} bytes")
        into[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size == model.size and file.readinto(into) == size:  # type: ignore[arg-type]
            return
    multiple = (f", that is {size // model.size} samples: one file per image is expected"
                if size and size % model.size == 0 else "")
    side = f"--img-size {model.shape[-1]}" + (" --dtype uint8" if model.aipp else "")
    raise refuse(f"{shown(path)} has {size} bytes, but one sample of this model is {model.size} bytes ({kind})"
                 f"{multiple}; prepare the images with TResNet_preprocess.py {side}"
                 + ("" if model.aipp else ", or give --aipp for uint8 images"))


def read_batch(paths: List[str], model: Input) -> np.ndarray:
    """The samples of `paths` as the model's input, float32 [batch_size, 3, h, w];
    the first one fills the batch up, as in ais_bench.
    """
    raw = np.empty((model.batch_size, model.size), np.uint8)
    for row, path in zip(raw, paths):
        try:
            read_sample(path, model, row)
        except OSError as error:
            raise refuse(f"{shown(path)} cannot be read ({error.strerror}); it was there when this run began")
    raw[len(paths):] = raw[0]
    if model.aipp:
        height, width = int(model.aipp["src_image_size_h"]), int(model.aipp["src_image_size_w"])
        return apply_aipp(raw.reshape(model.batch_size, height, width, 3), model.aipp)
    return raw.view("<f4").reshape((model.batch_size, *model.shape))


# ---- results ---------------------------------------------------------------------------------------------------------

def encode(sample: np.ndarray, outfmt: str) -> bytes:
    """One sample's output in ais_bench's format: TXT is one line, each value as %f followed by a space."""
    if outfmt == "TXT":
        values = sample.reshape(-1).tolist()
        return ("%f " * len(values) % tuple(values)).encode() + b"\n"
    if outfmt == "NPY":
        import io
        buffer = io.BytesIO()
        np.save(buffer, sample[None], allow_pickle=False)
        return buffer.getvalue()
    return np.ascontiguousarray(sample).tobytes()


def result_paths(path: str, folder: str, outputs: int, outfmt: str) -> List[str]:
    return [os.path.join(folder, f"{stem(path)}_{index}.{outfmt.lower()}") for index in range(outputs)]


def write_results(paths: List[str], outputs: List[np.ndarray], folder: str, outfmt: str) -> None:
    """Write the outputs ([batch, …] each) of one batch; what filled the batch up is dropped.

    Raises: SystemExit if a value is not finite.
    """
    for row, path in enumerate(paths):
        for output, target in zip(outputs, result_paths(path, folder, len(outputs), outfmt)):
            if not np.isfinite(output[row]).all():
                raise refuse(f"the model's output for {shown(path)} has values that are not finite (NaN or infinity), "
                             "so there is no result for it; check that file and the model's weights")
            write_whole(target, encode(output[row], outfmt))


def identity(paths: List[str]) -> List[List[Any]]:
    """[[base name, bytes, modification time in ns]] of files:
    what the journal compares to tell whether they changed.
    """
    states = ((path, os.stat(path)) for path in paths)
    return [[os.path.basename(path), status.st_size, status.st_mtime_ns] for path, status in states]


def read_journal(path: str) -> Tuple[Optional[Dict[str, Any]], List[List[List[Any]]]]:
    """Header and finished batches (identity() of each) of an earlier run; a line torn by its end is not counted."""
    lines: List[Any] = []
    with contextlib.suppress(OSError, ValueError):  # no journal, or its last line is torn: what was read so far stands
        with open(path, encoding="utf-8") as file:
            for line in file:
                lines.append(json.loads(line))
    header = lines[0] if lines and isinstance(lines[0], dict) else None
    return header, [line["batch"] for line in lines[1:] if isinstance(line, dict) and "batch" in line] if header else []


def forget(batches: List[List[List[Any]]], keep: List[str], folder: str) -> None:
    """Remove the results of an earlier run's batches, except those for the names in `keep`."""
    kept = set(keep)
    stale = {stem(name) for batch in batches for name, _, _ in batch if name not in kept}
    if not stale:
        return
    for entry in list(os.scandir(folder)):
        found = re.fullmatch(r"(.*)_\d+\.(?:txt|bin|npy)", entry.name, re.DOTALL)
        if found and found.group(1) in stale:
            os.unlink(entry.path)


# ---- inference -------------------------------------------------------------------------------------------------------

def open_model(path: str, batch_size: Optional[int],
               aipp: Dict[str, str]) -> Tuple[onnxruntime.InferenceSession, Input]:
    """Load the model on all cores of this process. Raises: SystemExit if it is not one with a single image input."""
    if not os.path.isfile(path):
        raise refuse(f"the model {shown(path)} is not there; make it: "
                     "python3 TResNet_pth2onnx.py model_best.pth.tar tresnet_m.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an own type of error for each way in which a file can be broken
        raise refuse(f"{shown(path)} is not an ONNX model that onnxruntime {onnxruntime.__version__} can run: "
                     f"{str(error).splitlines()[0][:300]}")
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if (len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(shape) != 4
            or not all(isinstance(side, int) for side in shape[1:])):
        raise refuse(f"{shown(path)} should have one input, float32 [batch, 3, height, width] with only the batch "
                     f"open, but has {', '.join(f'{entry.name} {entry.type} {entry.shape}' for entry in inputs)}; "
                     "export it with TResNet_pth2onnx.py")
    fixed = shape[0] if isinstance(shape[0], int) else None
    if fixed and batch_size and batch_size != fixed:
        raise refuse(f"--batchsize {batch_size} was given, but the batch of {shown(path)} is fixed at {fixed}; "
                     "leave it out or export an open batch")
    if aipp and [int(aipp["crop_size_h"]), int(aipp["crop_size_w"])] != shape[2:]:
        raise refuse(f"the AIPP configuration yields images of {aipp['crop_size_w']}×{aipp['crop_size_h']}, but "
                     f"{shown(path)} takes {shape[3]}×{shape[2]}; set src_image_size_w and src_image_size_h "
                     "(or the crop) to the model's size")
    return session, Input(inputs[0].name, tuple(shape[1:]), fixed or batch_size or 1, aipp)


def infer(session: onnxruntime.InferenceSession, model: Input, batches: List[List[str]], folder: Optional[str],
          outfmt: str, loop: int, journal: Optional[Any]) -> List[float]:
    """Run every batch `loop` times; reading the next and writing the last one overlap with it.

    Returns milliseconds per run.
    """
    times: List[float] = []
    writing: "Optional[Future[None]]" = None

    def write(paths: List[str], outputs: List[np.ndarray]) -> None:
        write_results(paths, outputs, folder or "", outfmt)
        if journal:
            journal.write(json.dumps({"batch": identity(paths)}) + "\n")
            journal.flush()

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading = reader.submit(read_batch, batches[0], model)
        for index, paths in enumerate(tqdm(batches, unit="batch", disable=not sys.stderr.isatty())):
            images = reading.result()
            if index + 1 < len(batches):
                reading = reader.submit(read_batch, batches[index + 1], model)
            for _ in range(loop):
                start = time.perf_counter()
                outputs = session.run(None, {model.name: images})
                times.append((time.perf_counter() - start) * 1000)
            if folder:
                if writing:
                    writing.result()  # one batch behind: an error ends the run here
                writing = writer.submit(write, paths, outputs)
        if writing:
            writing.result()
    return times


def statistics(times: List[float]) -> Dict[str, float]:
    """ais_bench's figures of a list of milliseconds."""
    return {"min": float(np.min(times)), "max": float(np.max(times)), "mean": float(np.mean(times)),
            "median": float(np.median(times)), "percentile(99%)": float(np.percentile(times, 99)), "count": len(times)}


def report(title: str, figures: Dict[str, float]) -> None:
    print(f"[INFO] {title} (ms): " + ", ".join(f"{key} = {value}" for key, value in figures.items() if key != "count"))


def digits(least: int) -> Any:
    def number(text: str) -> int:
        if not re.fullmatch(r"[0-9]+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number of {least} or more is expected, not {text!r}")
        return int(text)
    return number


def switch(text: str) -> bool:
    if text.lower() not in ("0", "1", "true", "false"):
        raise argparse.ArgumentTypeError(f"1 or 0 is expected, not {text!r}")
    return text.lower() in ("1", "true")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", "-m", required=True, help="the .onnx file")
    parser.add_argument("--input", "-i",
                        help="folder of .bin or .npy files, or one such file; without it, pure inference")
    parser.add_argument("--output", "-o",
                        help="folder for the result folder and the summary; without it, nothing is written")
    parser.add_argument("--output_dirname",
                        help="name of the result folder in --output (default: the time of the start)")
    parser.add_argument("--outfmt", choices=FORMATS, default="BIN", help="format of the results (default: %(default)s)")
    parser.add_argument("--loop", type=digits(1), default=1, help="how often each batch runs (default: %(default)s)")
    parser.add_argument("--batchsize", type=digits(1),
                        help="batch that runs, for a model whose batch is open (default: 1)")
    parser.add_argument("--device", type=digits(0), default=0,
                        help="accepted as ais_bench does; the CPU is the only device here")
    parser.add_argument("--warmup_count", type=digits(0), default=1,
                        help="runs before the first that counts (default: %(default)s)")
    parser.add_argument("--pure_data_type", choices=("zero", "random"), default="zero",
                        help="data of pure inference (default: %(default)s)")
    parser.add_argument("--display_all_summary", type=switch, nargs="?", const=True, default=False,
                        help="print the copying times as well")
    parser.add_argument("--first", type=digits(1), help="take only so many inputs, in natural order")
    parser.add_argument("--aipp",
                        help="AIPP configuration for uint8 inputs, the file that atc gets as --insert_op_conf")
    parser.add_argument("--force", action="store_true",
                        help="run all inputs again, even those that an earlier run finished")
    arguments = parser.parse_args()
    if arguments.output_dirname and not arguments.output:
        parser.error("--output_dirname goes with --output, which says where that folder is")
    if (arguments.output_dirname and os.path.basename(arguments.output_dirname) in ("", ".", "..")
            or os.sep in (arguments.output_dirname or "")):
        parser.error(f"--output_dirname should be a plain folder name, not {arguments.output_dirname!r}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    aipp = read_aipp(arguments.aipp) if arguments.aipp else {}
    paths = list_inputs(arguments.input)[:arguments.first] if arguments.input else []
    session, model = open_model(arguments.model, arguments.batchsize, aipp)
    outputs = len(session.get_outputs())
    batches = [paths[index:index + model.batch_size] for index in range(0, len(paths), model.batch_size)]
    folder = summary_path = journal = None
    todo = batches
    if arguments.output:
        prefix = os.path.join(arguments.output, arguments.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
        summary_path = prefix + "_summary.json"
        os.makedirs(arguments.output if not paths else prefix, mode=0o750, exist_ok=True)
    if summary_path and paths:
        folder, journal_path = prefix, prefix + "_journal.jsonl"
        header = {"tool": "infer_onnx.py", "version": VERSION, "model": identity([arguments.model])[0],
                  "batch_size": model.batch_size, "outfmt": arguments.outfmt, "aipp": aipp,
                  "onnxruntime": onnxruntime.__version__}
        known, finished = read_journal(journal_path)
        same = known == header and not arguments.force
        forget(finished, [os.path.basename(path) for path in paths] if same else [], folder)
        done = {json.dumps(batch) for batch in finished} if same else set()
        todo = [batch for batch in batches if json.dumps(identity(batch)) not in done
                or not all(os.path.exists(target) for path in batch
                           for target in result_paths(path, folder, outputs, arguments.outfmt))]
        if not todo and os.path.exists(summary_path):
            print(f"{len(paths)} results in {folder} are up to date; --force infers again")
            return
        redone = {json.dumps(identity(batch)) for batch in todo}
        write_whole(journal_path, "".join(json.dumps(line) + "\n" for line in [header] + [
            {"batch": batch} for batch in finished if same and json.dumps(batch) not in redone]).encode())
        journal = open(journal_path, "a", encoding="utf-8")
    zeros = np.zeros((model.batch_size, *model.shape), np.float32)
    for _ in range(arguments.warmup_count):
        session.run(None, {model.name: zeros})
    start = time.time()
    if paths:
        times = infer(session, model, todo, folder, arguments.outfmt, arguments.loop, journal) if todo else []
    else:
        data = (zeros if arguments.pure_data_type == "zero"
                else np.random.RandomState(0).uniform(0, 1, zeros.shape).astype(np.float32))
        times = []
        for _ in tqdm(range(arguments.loop), unit="batch", disable=not sys.stderr.isatty()):
            begin = time.perf_counter()
            session.run(None, {model.name: data})
            times.append((time.perf_counter() - begin) * 1000)
    if folder:
        count = sum(map(len, todo))
        skipped = f" ({len(paths) - count} were there already)" if count < len(paths) else ""
        print(f"{count} images inferred into {folder} in {time.time() - start:.1f} s, "
              f"{count / max(time.time() - start, 1e-9):.1f} images/s{skipped}")
    # On the CPU nothing is copied to a device.
    compute, copies = statistics(times or [0.0]), statistics([0.0] * (len(times) or 1))
    throughput = 1000 * model.batch_size / compute["mean"] if compute["mean"] else 0.0
    if times:
        report("NPU_compute_time", compute)
        if arguments.display_all_summary:
            report("H2D_latency", copies)
            report("D2H_latency", copies)
        print(f"[INFO] throughput 1000*batchsize.mean({model.batch_size})/NPU_compute_time.mean({compute['mean']}): "
              f"{throughput}")
    if summary_path:
        samples = {str(index): {"infiles": [path],
                                "outfiles": result_paths(path, folder, outputs, arguments.outfmt) if folder else []}
                   for index, path in enumerate(paths)}
        summary = {"filesinfo": samples, "args": vars(arguments), "NPU_compute_time": compute, "H2D_latency": copies,
                   "D2H_latency": copies, "throughput": throughput, "npu_compute_time_list": times, "pid": os.getpid()}
        write_whole(summary_path, json.dumps(summary, indent=4).encode())


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"infer_onnx.py: {shown(str(error.filename))}: {error.strerror}; "
                 "check that the folder can be written and has space")
    except KeyboardInterrupt:
        print("\ninfer_onnx.py: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
