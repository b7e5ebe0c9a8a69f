"""Stand-in of ais_bench: `python3 -m ais_bench --model x_bs1.om --input folder --output ./ --output_dirname result`.

As strict as the real one (its later versions, or 0.0.2 with STANDIN_AIS_BENCH=0.0.2) and writing what it writes, but
computing with ONNX Runtime in the Python that TRESNET_TEST_PYTHON names. Switches: ../ascend_standin.py.
"""
import argparse
import json
import math
import os
import re
import stat
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from ascend_standin import chips, fault, log_call, read_om

STRICT = os.environ.get("STANDIN_AIS_BENCH", "later") != "0.0.2"
PADDING = "padding_infer_fake_file"


# Command line -------------------------------------------------------------------------------------------------------
def whole_number(lowest: int, highest: float = math.inf) -> Any:
    """argparse type: an integer in a range; the later versions take plain digits only."""
    def check(text: str) -> int:
        if STRICT and not re.fullmatch("[0-9]+", text):
            raise argparse.ArgumentTypeError(f"{text} is not made of digits")
        number = int(text)
        if not lowest <= number <= highest:
            raise argparse.ArgumentTypeError(f"{text} is out of range")
        return number
    return check


def true_or_false(text: str) -> bool:
    """argparse type of version 0.0.2's switches."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError("Boolean value expected true, 1, false, 0 with case insensitive.")


def check_path(path: str, writing: bool) -> None:
    """Refuse what the later versions refuse of a path that is read or written (and exists)."""
    path = os.path.abspath(path)
    if re.search("[^_A-Za-z0-9/.-]", path) or len(path) > 4096 or any(len(name) > 255 for name in path.split("/")):
        raise PermissionError(f"path {path} has a character that is not allowed, or is too long")
    if os.path.islink(path):
        raise PermissionError(f"path {path} is a symbolic link")
    if not os.path.exists(path):
        if writing:
            return
        raise FileNotFoundError(f"path {path} does not exist")
    state = os.stat(path)
    if state.st_uid != os.geteuid() and state.st_gid not in os.getgroups() + [os.getegid()]:
        raise PermissionError(f"path {path} is not owned by the user or one of their groups")
    excess = stat.S_IMODE(state.st_mode) & (0o027 if writing else 0o022)
    if excess:
        raise PermissionError(f"permission {oct(stat.S_IMODE(state.st_mode))} of path {path} is too open")
    if not os.access(path, os.W_OK if writing else os.R_OK):
        raise PermissionError(f"no permission to {'write' if writing else 'read'} path {path}")


def legal_path(kind: str) -> Any:
    """argparse type of --model, --input and --output."""
    def check(text: str) -> str:
        if STRICT:
            try:
                for path in text.split(",") if kind == "input" else [text]:
                    check_path(path, writing=kind == "output")
            except OSError as error:
                raise argparse.ArgumentTypeError(f"{kind} path:{text} is illegal. Please check. ({error})") from None
            if kind == "om" and (not text.endswith(".om") or not os.path.isfile(text)):
                raise argparse.ArgumentTypeError(f"om path:{text} is illegal. Please check.")
        return text
    return check


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ais_bench")
    parser.add_argument("--model", "-m", required=True, type=legal_path("om"))
    parser.add_argument("--input", "-i", type=legal_path("input"))
    parser.add_argument("--output", "-o", type=legal_path("output"))
    parser.add_argument("--output_dirname")
    parser.add_argument("--outfmt", default="BIN", choices=["NPY", "BIN", "TXT"])
    parser.add_argument("--loop", "-l", type=whole_number(1), default=1)
    parser.add_argument("--device", "-d", type=whole_number(0, 255), default=0)
    parser.add_argument("--batchsize", type=whole_number(1))
    parser.add_argument("--pure_data_type", default="zero", choices=["zero", "random"])
    parser.add_argument("--warmup_count", type=whole_number(0), default=1)
    for switch in ("--debug", "--display_all_summary"):
        if STRICT:
            parser.add_argument(switch, action="store_true")
        else:
            parser.add_argument(switch, type=true_or_false, default=False)
    arguments = parser.parse_args()
    if arguments.output_dirname and arguments.output_dirname[0] == "/":
        raise ValueError("--output_dirname do not support abs path!")
    if arguments.output_dirname and not arguments.output:
        raise RuntimeError("error bad parameters --output_dirname: it needs --output")
    return arguments


# The model ----------------------------------------------------------------------------------------------------------
class Model:
    """An .om on a device: batch, bytes of one batch, run(). The real one is a session of aclruntime."""

    def __init__(self, path: str, device: int) -> None:
        import numpy
        import onnxruntime
        names = chips()
        if device >= len(names):
            raise RuntimeError(f"[ERROR] aclrtSetDevice failed, device {device} of {len(names)}, errorCode is 107001")
        try:
            self.header, payload = read_om(path)
        except ValueError as error:
            raise RuntimeError(f"[ERROR] load model from file failed, model file is {path}, errorCode is 500002, "
                               f"{error}") from None
        chip = names[device] if names[device].startswith("Ascend") else "Ascend" + names[device]
        if self.header["soc_version"] != chip:
            raise RuntimeError(f"[ERROR] load model from file failed, model file is {path}, errorCode is 500002, "
                               f"compiled for {self.header['soc_version']}, the device is {chip}")
        onnxruntime.set_default_logger_severity(3)
        self.session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
        node = self.session.get_inputs()[0]
        self.aipp: Optional[Dict[str, Any]] = self.header.get("aipp")
        self.shape: List[int] = list(node.shape)
        self.dtype = numpy.dtype(numpy.float16 if "float16" in node.type else numpy.float32)
        if self.aipp:  # an .om with AIPP takes uint8 NHWC
            self.shape = [self.shape[0], self.aipp["src_image_size_h"], self.aipp["src_image_size_w"], 3]
            self.dtype = numpy.dtype(numpy.uint8)
        self.batch = self.shape[0]
        self.size = int(numpy.prod(self.shape)) * self.dtype.itemsize
        self.name = node.name

    def preprocess(self, pixels: Any) -> Any:
        """What AIPP does on the chip: crop, swap channels, (pixel - mean - min) * var_reci; from NHWC to NCHW."""
        import numpy
        aipp = self.aipp or {}
        if aipp.get("crop"):
            top, left = aipp.get("load_start_pos_h", 0), aipp.get("load_start_pos_w", 0)
            height, width = self.session.get_inputs()[0].shape[2:]
            pixels = pixels[:, top:top + aipp.get("crop_size_h", height), left:left + aipp.get("crop_size_w", width)]
        if aipp.get("rbuv_swap_switch"):
            pixels = pixels[..., ::-1]
        offset = [aipp.get(f"mean_chn_{i}", 0) + aipp.get(f"min_chn_{i}", 0.0) for i in range(3)]
        factor = [aipp.get(f"var_reci_chn_{i}", 1.0) for i in range(3)]
        floats = (pixels.astype(numpy.float32) - numpy.float32(offset)) * numpy.float32(factor)
        dtype = numpy.float16 if "float16" in self.session.get_inputs()[0].type else numpy.float32
        return numpy.ascontiguousarray(floats.transpose(0, 3, 1, 2)).astype(dtype)

    def run(self, data: Any) -> Tuple[List[Any], float]:
        """(outputs, milliseconds) for the bytes of one batch, whatever they mean: only their number is checked."""
        if data.nbytes != self.size:
            raise RuntimeError(f"[ERROR] input size {data.nbytes} is not the model's {self.size}")
        feed = data.view(self.dtype).reshape(self.shape)
        start = time.perf_counter()
        outputs = self.session.run(None, {self.name: self.preprocess(feed) if self.aipp else feed})
        return outputs, 1000 * (time.perf_counter() - start)


# Files --------------------------------------------------------------------------------------------------------------
def natural_key(path: str) -> List[Any]:
    return [int(part) if part.isdigit() else part.lower() for part in re.split("([0-9]+)", path)]


def list_inputs(argument: str) -> List[str]:
    """The files of --input: one folder (its .bin and .npy), or files separated by commas."""
    paths = argument.split(",")
    if os.path.isdir(paths[0]):
        if len(paths) != 1:
            raise RuntimeError(f"Invalid args. args input dir num:{len(paths)} not equal to model inputs num:1")
        files = [os.path.join(paths[0], name) for name in os.listdir(paths[0])
                 if name.lower().endswith((".bin", ".npy"))]
        if not files:
            raise RuntimeError(f"{paths[0]} of input args not find valid file,valid file format:[*.npy *.bin]")
        return sorted(files, key=natural_key)
    for path in paths:
        if not os.path.isfile(path):
            raise RuntimeError(f"Invalid args. {path} of --input is invalid")
    return paths


def read_input(path: str) -> Any:
    """The bytes of a file, as the tool feeds them: no type, no shape."""
    import numpy
    if STRICT and (re.search("[^_A-Za-z0-9/.-]", os.path.abspath(path)) or os.path.islink(path)):
        raise PermissionError(f"Path name contains invalid characters, or is a softlink: {path!a}")
    if path.lower().endswith(".npy"):
        return numpy.ascontiguousarray(numpy.load(path)).reshape(-1).view(numpy.uint8)
    return numpy.fromfile(path, dtype=numpy.uint8)


def make_batches(files: List[str], size: int) -> List[List[str]]:
    """Files in groups that fill one batch by the first file's size; the last is filled up with PADDING."""
    first = read_input(files[0]).nbytes if files[0].lower().endswith(".npy") else os.path.getsize(files[0])
    if first == 0 or size % first:
        raise RuntimeError(f"arg0 tensorsize: {size} filesize: {first} not match")
    count = size // first
    print(f"[INFO] get filesperbatch files0 size:{first} tensor0size:{size} filesperbatch:{count} "
          f"runcount:{math.ceil(len(files) / count)}")
    groups = [files[i:i + count] for i in range(0, len(files), count)]
    groups[-1] += [PADDING] * (count - len(groups[-1]))
    return groups


def save(path: str, values: Any) -> None:
    """Write one sample's output in the format that the name asks for, over whatever has that name."""
    import numpy
    if path.endswith(".txt"):
        rows = values.reshape(-1, values.shape[-1])
        data = "".join("".join(f"{value:f} " for value in row) + "\n" for row in rows.tolist()).encode()
    elif path.endswith(".npy"):
        with open(path, "wb") as file:
            numpy.save(file, values)
        return
    else:
        data = values.tobytes()
    with open(path, "wb") as file:
        file.write(data)


def make_result_folder(arguments: argparse.Namespace) -> str:
    """The folder of the results; one that exists is used as it is."""
    prefix = os.path.join(arguments.output, arguments.output_dirname or time.strftime("%Y_%m_%d-%H_%M_%S"))
    if STRICT:
        for path in (prefix, prefix + "_summary.json"):
            check_path(path, writing=True)
        os.makedirs(prefix, 0o750, exist_ok=True)
        os.chmod(arguments.output, 0o750)
    elif not os.path.exists(prefix):
        os.mkdir(prefix, 0o755)
    print(f"[INFO] output path:{prefix}")
    return prefix


# Summary ------------------------------------------------------------------------------------------------------------
def statistics(times: List[float]) -> Dict[str, Any]:
    import numpy
    if not times:
        return {"min": 0.0, "max": 0.0, "mean": 0.0, "median": 0.0, "percentile(99%)": 0.0, "count": 0}
    return {"min": min(times), "max": max(times), "mean": float(numpy.mean(times)),
            "median": float(numpy.median(times)), "percentile(99%)": float(numpy.percentile(times, 99)),
            "count": len(times)}


def report(arguments: argparse.Namespace, batchsize: int, filesinfo: Dict[int, Any], compute: List[float],
           h2d: List[float], d2h: List[float], prefix: Optional[str]) -> None:
    """Print the performance lines; write PREFIX_summary.json."""
    summary: Dict[str, Any] = {"filesinfo": filesinfo, "args": sys.argv, "NPU_compute_time": statistics(compute),
                               "H2D_latency": statistics(h2d), "D2H_latency": statistics(d2h),
                               "npu_compute_time_list": compute}
    mean = summary["NPU_compute_time"]["mean"]
    summary["throughput"] = 1000 * batchsize / mean if mean else 0
    summary["pid"] = os.getpid()
    print("[INFO] -----------------Performance Summary------------------")
    for key in ("H2D_latency", "NPU_compute_time", "D2H_latency"):
        if key == "NPU_compute_time" or arguments.display_all_summary:
            row = summary[key]
            print(f"[INFO] {key} (ms): min = {row['min']}, max = {row['max']}, mean = {row['mean']}, "
                  f"median = {row['median']}, percentile(99%) = {row['percentile(99%)']}")
    print(f"[INFO] throughput 1000*batchsize.mean({batchsize})/NPU_compute_time.mean({mean}): {summary['throughput']}")
    print("[INFO] ------------------------------------------------------")
    if prefix:
        with open(prefix + "_summary.json", "w", encoding="utf-8") as file:
            json.dump(summary, file)


def infer(arguments: argparse.Namespace) -> None:
    import numpy
    if STRICT:
        os.umask(0o027)
    print("[INFO] acl init success")
    model = Model(arguments.model, arguments.device)
    print(f"[INFO] open device {arguments.device} success")
    print(f"[INFO] load model {arguments.model} success")
    print("[INFO] create model description success")
    batchsize = arguments.batchsize
    if batchsize is None:
        batchsize = model.batch
        print(f"[INFO] try get model batchsize:{batchsize}")
    prefix = make_result_folder(arguments) if arguments.output else None
    if arguments.input:
        groups = make_batches(list_inputs(arguments.input), model.size)
    else:
        groups = [["pure_infer_data"]]
        random = arguments.pure_data_type == "random"
        pure_data = numpy.frombuffer(os.urandom(model.size) if random else bytes(model.size), numpy.uint8)

    def load(group: List[str]) -> Any:
        if not arguments.input:
            return pure_data
        parts = [read_input(group[0] if path == PADDING else path) for path in group]
        return numpy.concatenate(parts)

    for _ in range(arguments.warmup_count):
        model.run(load(groups[0]))
    print(f"[INFO] warm up {arguments.warmup_count} done")
    filesinfo: Dict[int, Any] = {}
    compute: List[float] = []
    h2d: List[float] = []
    d2h: List[float] = []
    samples = sum(path != PADDING for group in groups for path in group)
    kept = samples - int(fault("ais-missing") or 0)
    for index, group in enumerate(groups):
        if str(index) == fault("ais-crash"):
            raise RuntimeError("[ERROR] execute model failed, modelId is 1, errorCode is 507011")
        start = time.perf_counter()
        data = load(group)
        h2d.append(1000 * (time.perf_counter() - start))
        time.sleep(float(fault("ais-sleep") or 0))
        for _ in range(arguments.loop):
            outputs, milliseconds = model.run(data)
            compute.append(milliseconds)
        start = time.perf_counter()
        for number, output in enumerate(outputs):
            parts = numpy.array_split(output, len(group))
            for place, path in enumerate(group):
                sample = index * len(group) + place
                if path == PADDING or not prefix or sample >= kept:
                    continue
                name = f"{os.path.basename(path).split('.')[0]}_{number}.{arguments.outfmt.lower()}"
                row = filesinfo.setdefault(sample, {"infiles": [path], "outfiles": []})
                row["outfiles"].append(os.path.join(prefix, name))
                save(row["outfiles"][-1], parts[place])
        d2h.append(1000 * (time.perf_counter() - start))
        print(f"\rInference array Processing: {100 * (index + 1) // len(groups)}%| {index + 1}/{len(groups)}", end="")
    print()
    report(arguments, batchsize, filesinfo, compute, h2d, d2h, prefix)
    print("[INFO] unload model success, model Id is 1")
    print(f"[INFO] end to reset device {arguments.device}")
    print("[INFO] end to finalize acl")


def main() -> None:
    if "STANDIN_STARTED_BY" not in os.environ:  # the host's Python has no ONNX Runtime: go on in the one that has
        environment = dict(os.environ, STANDIN_STARTED_BY=sys.executable)
        python = os.environ["TRESNET_TEST_PYTHON"]
        os.execve(python, [python, "-m", "ais_bench"] + sys.argv[1:], environment)
    log_call("ais_bench", ["python3", "-m", "ais_bench"] + sys.argv[1:])
    infer(parse_arguments())


if __name__ == "__main__":
    main()
