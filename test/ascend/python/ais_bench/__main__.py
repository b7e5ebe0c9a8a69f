"""Stand-in of ais_bench.

    python3 -m ais_bench --model x_bs1.om --input folder --output ./ --output_dirname result

It is as strict as the real one, in the generation that STANDIN_AIS_BENCH names (see
../ascend_words.py), and writes the same files. It computes with ONNX Runtime, in the Python that
TRESNET_TEST_PYTHON names. Switches: ../ascend_standin.py.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import os
import re
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from ascend_standin import chips, fault, log_call, read_om
from ascend_words import FORK, STRICT, boxed_traceback, check_path, fail, parse_arguments

PADDING = "padding_infer_fake_file"
MOST_FILES = 100000  # of an input folder


# ---- the model -----------------------------------------------------------------------------------


def scripted_time(path: str, batch: int) -> float:
    """Milliseconds of a batch by STANDIN_SPEEDS, 0 if nothing is said of this model."""
    speeds = json.loads(os.environ.get("STANDIN_SPEEDS", "{}"))
    fitting = [word for word in speeds if word in path]
    return 1000 * batch / speeds[max(fitting, key=len)] if fitting else 0


class Model:
    """An .om on a device. The real one is a session of aclruntime."""

    def __init__(self, path: str, device: int) -> None:
        import numpy
        import onnxruntime

        names = chips()
        if device >= len(names):
            fail(f"aclrtSetDevice failed, device {device} of {len(names)}, errorCode is 107001")
        try:
            self.header, payload = read_om(path)
        except ValueError as error:
            fail(f"load model from file failed, model file is {path}, errorCode is 500002, {error}")
        chip = names[device]
        if self.header["soc_version"] != chip:
            fail(
                f"load model from file failed, model file is {path}, errorCode is 500002, compiled "
                f"for "
                f"{self.header['soc_version']}, the device is {chip}"
            )
        onnxruntime.set_default_logger_severity(3)
        self.session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
        node = self.session.get_inputs()[0]
        self.aipp: Optional[Dict[str, Any]] = self.header.get("aipp")
        self.shape: List[int] = list(node.shape)
        self.dtype: Any = numpy.dtype("float16" if "float16" in node.type else "float32")
        if self.aipp:  # an .om with AIPP takes uint8 NHWC
            self.shape = [
                self.shape[0],
                self.aipp["src_image_size_h"],
                self.aipp["src_image_size_w"],
                3,
            ]
            self.dtype = numpy.dtype(numpy.uint8)
        self.batch, self.path = self.shape[0], os.path.abspath(path)
        self.size = int(numpy.prod(self.shape)) * self.dtype.itemsize
        self.name = node.name

    def preprocess(self, pixels: Any) -> Any:
        """Do what AIPP does on the chip, from NHWC to NCHW.

        It crops, swaps channels, and computes (pixel - mean - min) * var_reci.
        """
        import numpy

        aipp = self.aipp or {}
        if aipp.get("crop"):
            top, left = aipp.get("load_start_pos_h", 0), aipp.get("load_start_pos_w", 0)
            height, width = self.session.get_inputs()[0].shape[2:]
            pixels = pixels[
                :,
                top : top + aipp.get("crop_size_h", height),
                left : left + aipp.get("crop_size_w", width),
            ]
        if aipp.get("rbuv_swap_switch"):
            pixels = pixels[..., ::-1]
        offset = [aipp.get(f"mean_chn_{i}", 0) + aipp.get(f"min_chn_{i}", 0.0) for i in range(3)]
        factor = [aipp.get(f"var_reci_chn_{i}", 1.0) for i in range(3)]
        floats = pixels.astype(numpy.float32) - numpy.array(offset, numpy.float32)
        floats *= numpy.array(factor, numpy.float32)
        dtype = numpy.float16 if "float16" in self.session.get_inputs()[0].type else numpy.float32
        return numpy.ascontiguousarray(floats.transpose(0, 3, 1, 2)).astype(dtype)

    def run(self, data: Any) -> Tuple[List[Any], float]:
        """(outputs, milliseconds) for the bytes of one batch; only their number is checked."""
        import numpy

        if data.nbytes != self.size:
            fail(f"input size {data.nbytes} is not the model's {self.size}")
        if fault("ais-skip"):
            time.sleep(1e-3 * float(fault("ais-skip").replace("on", "0")))
            shapes = [[self.batch, *node.shape[1:]] for node in self.session.get_outputs()]
            return [numpy.zeros(shape, numpy.float32) for shape in shapes], 1.0
        feed = data.view(self.dtype).reshape(self.shape)
        start = time.perf_counter()
        outputs = self.session.run(None, {self.name: self.preprocess(feed) if self.aipp else feed})
        return outputs, scripted_time(self.path, self.batch) or 1000 * (time.perf_counter() - start)


# ---- files ---------------------------------------------------------------------------------------


def natural_key(path: str) -> List[Any]:
    return [int(part) if part.isdigit() else part.lower() for part in re.split("([0-9]+)", path)]


def list_inputs(argument: str) -> List[str]:
    """The files of --input: one folder (its .bin and .npy), or files separated by commas."""
    paths = argument.split(",")
    if os.path.isdir(paths[0]):
        if len(paths) != 1:
            fail(f"Invalid args. args input dir num:{len(paths)} not equal to model inputs num:1")
        names = os.listdir(paths[0])
        for name in names if STRICT else []:  # any stray file ends the run
            check_input(os.path.join(paths[0], name))
        if STRICT and len(names) > MOST_FILES:
            raise OverflowError(f"file count under directory: {paths[0]} is over {MOST_FILES}!")
        files = [
            os.path.join(paths[0], name)
            for name in names
            if name.lower().endswith((".bin", ".npy"))
        ]
        if not files:
            fail(f"{paths[0]} of input args not find valid file,valid file format:[*.npy *.bin]")
        return sorted(files, key=natural_key)
    for path in paths:
        if not os.path.isfile(path):
            fail(f"Invalid args. {path} of --input is invalid")
    return paths


def check_input(path: str) -> None:
    """Refuse a file of the input folder that the later versions refuse."""
    try:
        check_path(path, writing=False)
    except OSError as error:
        print(f"[ERROR] {error}", flush=True)
        raise RuntimeError(f"input data:{path} is illegal") from None


def read_input(path: str) -> Any:
    """The bytes of a file, as the tool feeds them: no type, no shape."""
    import numpy

    if path.lower().endswith(".npy"):
        return numpy.ascontiguousarray(numpy.load(path)).reshape(-1).view(numpy.uint8)
    return numpy.fromfile(path, dtype=numpy.uint8)


def make_batches(files: List[str], size: int) -> List[List[str]]:
    """Files in groups that fill a batch, by the first file's size; PADDING fills the last one."""
    first = (
        read_input(files[0]).nbytes
        if files[0].lower().endswith(".npy")
        else os.path.getsize(files[0])
    )
    if first == 0 or size % first:
        fail(f"arg0 tensorsize: {size} filesize: {first} not match")
    count = size // first
    print(
        f"[INFO] get filesperbatch files0 size:{first} tensor0size:{size} filesperbatch:{count} "
        f"runcount:{math.ceil(len(files) / count)}"
    )
    groups = [files[i : i + count] for i in range(0, len(files), count)]
    groups[-1] += [PADDING] * (count - len(groups[-1]))
    return groups


def save(path: str, values: Any) -> None:
    """Write one sample's output in the format that the name asks for; it replaces any file."""
    import numpy

    with open(path, "wb") as file:
        if path.endswith(".txt"):
            for row in values.reshape(-1, values.shape[-1]):
                numpy.savetxt(
                    file, row[:, None], fmt="%f" if row.dtype.kind == "f" else "%d", newline=" "
                )
                file.write(b"\n")
        elif path.endswith(".npy"):
            numpy.save(file, values)
        else:
            file.write(values.tobytes())


def make_result_folder(arguments: argparse.Namespace, own: str) -> str:
    """The folder of the results; one that exists is used as it is.

    own: the folder in it of one device of several.
    """
    name = arguments.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S")
    prefix = os.path.join(arguments.output, name, *([own] if own and STRICT else []))
    if STRICT:
        for path in (prefix, prefix + "_summary.json"):
            check_path(path, writing=True)
        os.makedirs(prefix, 0o750, exist_ok=True)
    else:
        os.makedirs(prefix, 0o755, exist_ok=True)
    print(f"[INFO] output path:{prefix}")
    return prefix


# ---- summary -------------------------------------------------------------------------------------


def statistics(times: List[float]) -> Dict[str, Any]:
    import numpy

    percentile = "P99" if FORK else "percentile(99%)"
    if not times:
        return {"min": 0.0, "max": 0.0, "mean": 0.0, "median": 0.0, percentile: 0.0, "count": 0}
    return {
        "min": min(times),
        "max": max(times),
        "mean": float(numpy.mean(times)),
        "median": float(numpy.median(times)),
        percentile: float(numpy.percentile(times, 99)),
        "count": len(times),
    }


def print_table(rows: Dict[str, Dict[str, Any]]) -> None:
    """The fork's table of times."""
    keys = ["min", "max", "mean", "median", "P99"]
    print("╒" + "═" * 75 + "╕\n│ " + "Metric".ljust(22) + "".join(f"│{key:>9} " for key in keys))
    for name, row in rows.items():
        print("│ " + f"{name} (ms)".ljust(22) + "".join(f"│{row[key]:>9.4f} " for key in keys))
    print("╘" + "═" * 75 + "╛")


def report(
    arguments: argparse.Namespace,
    batchsize: int,
    filesinfo: Dict[int, Any],
    compute: List[float],
    h2d: List[float],
    d2h: List[float],
    prefix: Optional[str],
) -> float:
    """Print the performance lines; write PREFIX_summary.json. Returns the throughput, images/s."""
    summary: Dict[str, Any] = {
        "filesinfo": filesinfo,
        "args": sys.argv,
        "NPU_compute_time": statistics(compute),
        "H2D_latency": statistics(h2d),
        "D2H_latency": statistics(d2h),
        "npu_compute_time_list": compute,
    }
    mean = summary["NPU_compute_time"]["mean"]
    summary["throughput"] = 1000 * batchsize / mean if mean else 0
    summary["pid"] = os.getpid()
    print("[INFO] -----------------Performance Summary------------------")
    shown = {
        key: summary[key]
        for key in ("H2D_latency", "NPU_compute_time", "D2H_latency")
        if key == "NPU_compute_time" or arguments.display_all_summary
    }
    if FORK:
        print_table(shown)
    for key, row in shown.items() if not FORK else ():
        print(
            f"[INFO] {key} (ms): min = {row['min']}, max = {row['max']}, mean = {row['mean']}, "
            f"median = {row['median']}, percentile(99%) = {row['percentile(99%)']}"
        )
    word = "Throughput" if FORK else "throughput"
    print(
        f"[INFO] {word} 1000*batchsize.mean({batchsize})/NPU_compute_time.mean({mean}): "
        f"{summary['throughput']}"
    )
    print("[INFO] ------------------------------------------------------")
    if prefix:
        with open(prefix + "_summary.json", "w", encoding="utf-8") as file:
            json.dump(summary, file)
    return float(summary["throughput"])


# ---- inference -----------------------------------------------------------------------------------


def break_down(device: int, batches: int) -> None:
    """The faults that end a run after so many batches."""
    broken, _, after = fault("ais-device").partition(":")
    if str(batches) == fault("ais-crash") or (broken == str(device) and batches == int(after or 0)):
        fail(f"execute model failed, modelId is 1, errorCode is 507011, device {device}")
    if str(batches) == fault("ais-kill"):
        os.kill(os.getpid(), 9)


class Job:
    """What one device infers, and where its results go."""

    def __init__(
        self, arguments: argparse.Namespace, device: int, own: str, files: Optional[List[str]]
    ) -> None:
        print("[INFO] acl init success")
        time.sleep(float(fault("ais-start") or 0))
        if fault("ais-hang") == str(device):
            time.sleep(3600)
        self.arguments, self.device = arguments, device
        self.model = Model(arguments.model, device)
        print(f"[INFO] open device {device} success")
        print(f"[INFO] load model {arguments.model} success")
        print("[INFO] create model description success")
        self.batchsize = arguments.batchsize
        if self.batchsize is None:
            self.batchsize = self.model.batch
            print(f"[INFO] try get model batchsize:{self.batchsize}")
        self.prefix = make_result_folder(arguments, own) if arguments.output else None
        self.groups = [["pure_infer_data"]]
        if arguments.input:
            self.groups = make_batches(files or list_inputs(arguments.input), self.model.size)
        elif arguments.pure_data_type == "random":
            self.pure_data = os.urandom(self.model.size)
        else:
            self.pure_data = bytes(self.model.size)
        samples = sum(path != PADDING for path in itertools.chain(*self.groups))
        self.kept = samples - int(fault("ais-missing") or 0)
        self.filesinfo: Dict[int, Any] = {}

    def load(self, group: List[str]) -> Any:
        """The bytes of a batch."""
        import numpy

        if not self.arguments.input:
            return numpy.frombuffer(self.pure_data, numpy.uint8)
        parts = [read_input(group[0] if path == PADDING else path) for path in group]
        return numpy.concatenate(parts)

    def save_outputs(self, index: int, group: List[str], outputs: List[Any]) -> None:
        """Write the results of a batch."""
        import numpy

        for number, output in enumerate(outputs):
            parts = numpy.array_split(output, len(group))
            for place, path in enumerate(group):
                sample = index * len(group) + place
                if path == PADDING or not self.prefix or sample >= self.kept:
                    continue
                stem = os.path.basename(path).split(".")[0]
                name = f"{stem}_{number}.{self.arguments.outfmt.lower()}"
                row = self.filesinfo.setdefault(sample, {"infiles": [path], "outfiles": []})
                row["outfiles"].append(os.path.join(self.prefix, name))
                save(row["outfiles"][-1], parts[place])

    def run(self) -> float:
        """Infer everything, write results and summary; the throughput in images/s."""
        compute: List[float] = []
        h2d: List[float] = []
        d2h: List[float] = []
        count = len(self.groups)
        for index, group in enumerate(self.groups):
            break_down(self.device, index)
            start = time.perf_counter()
            data = self.load(group)
            h2d.append(1000 * (time.perf_counter() - start))
            time.sleep(float(fault("ais-sleep") or 0))
            for _ in range(self.arguments.loop):
                outputs, milliseconds = self.model.run(data)
                compute.append(milliseconds)
            start = time.perf_counter()
            self.save_outputs(index, group, outputs)
            d2h.append(1000 * (time.perf_counter() - start))
            percent = 100 * (index + 1) // count
            print(f"\rInference array Processing: {percent}%| {index + 1}/{count}", end="")
        print()
        if fault("ais-half") and self.filesinfo:
            os.truncate(self.filesinfo[max(self.filesinfo)]["outfiles"][-1], 20)
        return report(
            self.arguments, self.batchsize, self.filesinfo, compute, h2d, d2h, self.prefix
        )


def infer(
    arguments: argparse.Namespace,
    device: int,
    own: str = "",
    files: Optional[List[str]] = None,
    ready: Any = None,
) -> Tuple[float, float, float]:
    """One device's run.

    own: its folder, ready: a barrier, where several devices run; files: its part of the input.
    Returns: throughput in images/s, start and end in s.
    """
    if STRICT:
        os.umask(0o027)
    job = Job(arguments, device, own, files)
    for _ in range(arguments.warmup_count):
        job.model.run(job.load(job.groups[0]))
    print(f"[INFO] warm up {arguments.warmup_count} done")
    if ready:
        ready.wait()
    begun = time.time()
    throughput = job.run()
    print("[INFO] unload model success, model Id is 1")
    print(f"[INFO] end to reset device {device}")
    print("[INFO] end to finalize acl")
    return throughput, begun, time.time()


def infer_on_several(arguments: argparse.Namespace) -> int:
    """Every device infers everything at the same time, or with --divide_input its part.

    Returns: the exit status.
    """
    count = len(arguments.device)
    parts: List[Optional[List[str]]] = [None] * count
    if arguments.input and getattr(arguments, "divide_input", False):
        files = list_inputs(arguments.input)
        parts = [
            files[len(files) * i // count : len(files) * (i + 1) // count] for i in range(count)
        ]
    ready = multiprocessing.Barrier(count)
    ended: "multiprocessing.Queue[Tuple[int, int, float, float, float]]" = multiprocessing.Queue()

    def one(index: int, device: int) -> None:
        try:
            own = f"device{device}_{index}"
            ended.put((index, device, *infer(arguments, device, own, parts[index], ready)))
        except BaseException:
            ready.abort()
            raise

    started = [
        multiprocessing.Process(target=one, args=pair) for pair in enumerate(arguments.device)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    status = 1 if any(process.exitcode for process in started) else 0
    rows = [ended.get() for process in started if not process.exitcode]
    print(f"[INFO] multidevice run end qsize:{count + len(rows)} result:{status}")
    for index, device, throughput, start, end in rows:
        print(
            f"{'[INFO] ' if STRICT else ''}i:{index} device_{device} throughput:{throughput} "
            f"start_time:{start} "
            f"end_time:{end}"
        )
    print(f"[INFO] summary throughput:{sum(row[2] for row in rows)}")
    return status


def main() -> int:
    if (
        "STANDIN_STARTED_BY" not in os.environ
    ):  # the host's Python has no ONNX Runtime: go on in the one that has
        environment = dict(os.environ, STANDIN_STARTED_BY=sys.executable)
        python = os.environ["TRESNET_TEST_PYTHON"]
        os.execve(python, [python, "-m", "ais_bench"] + sys.argv[1:], environment)
    if "--help" not in sys.argv:  # it does nothing
        log_call("ais_bench", ["python3", "-m", "ais_bench"] + sys.argv[1:])
    arguments = parse_arguments()
    if len(arguments.device) > 1:
        return infer_on_several(arguments)
    infer(arguments, arguments.device[0])
    return 0


if __name__ == "__main__":
    if FORK:
        sys.excepthook = boxed_traceback
    sys.exit(main())
