"""Stand-in of CANN's atc: makes an .om of an ONNX file, as strict about its input as the real one.

Its .om holds the ONNX model with the batch fixed and the weights rounded to float16 (with
STANDIN_DEVICE=float16 every result as well), as the 310P3 computes by default, and the AIPP
settings; the stand-in of ais_bench runs it in ONNX Runtime. Started by bin/atc; the switches stand
in python/ascend_standin.py, what it knows of graphs in python/atc_graph.py. E codes and their words
follow what users report of the real tool; what has no known code gets E10001, "invalid value".
"""

import functools
import json
import os
import platform
import re
import sys
import time
from typing import Any, Dict, List, NoReturn, Set, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "python"))
import atc_graph  # noqa: E402
from ascend_standin import fault, log_call, write_om  # noqa: E402

# Values that a flag admits; None: checked below. atc has more flags, which this stand-in does not
# know and so refuses.
FLAGS = {
    "mode": ("0",),
    "framework": ("5",),
    "model": None,
    "output": None,
    "input_format": ("NCHW", "ND"),
    "input_shape": None,
    "log": ("debug", "info", "warning", "error", "null"),
    "soc_version": None,
    "insert_op_conf": None,
    "output_type": ("FP32", "FP16"),
    "enable_small_channel": ("0", "1"),
    "precision_mode": (
        "force_fp16",
        "force_fp32",
        "cube_fp16in_fp32out",
        "allow_fp32_to_fp16",
        "allow_mix_precision",
        "must_keep_origin_dtype",
    ),
    "op_select_implmode": ("high_performance", "high_precision"),
    "optypelist_for_implmode": None,
    "keep_dtype": None,
    "out_nodes": None,
    "input_fp16_nodes": None,
}
CANN_6, LATER = 15, 18  # the last opset that they read
SOC_VERSIONS = re.compile(
    r"Ascend(310|310B[1-4]|310P[1357]|910|910[AB]|910Pro[AB]|910B[1-4](-1)?|910B2C|910_93\d\d)"
)
PATH_CHARACTERS = re.compile(r"[A-Za-z0-9_./-]+")


def fail(code: str, text: str) -> NoReturn:
    """End as atc ends: the reason on stdout and in its log, exit status 255."""
    message = f"{code}: {text}\n        Solution: Try again with a valid argument."
    print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
    print(message, flush=True)
    write_log(f"[ERROR] GE({os.getpid()},atc.bin): {message}")
    sys.exit(255)


def write_log(text: str) -> None:
    """Add to the process log, where CANN keeps it."""
    logs = os.environ.get("ASCEND_PROCESS_LOG_PATH", os.path.expanduser("~/ascend/log"))
    folder = os.path.join(logs, "debug", "plog")
    os.makedirs(folder, mode=0o750, exist_ok=True)
    with open(os.path.join(folder, f"plog-{os.getpid()}.log"), "a", encoding="utf-8") as file:
        file.write(text + "\n")


def invalid(flag: str, value: str, reason: str) -> NoReturn:
    fail("E10001", f"Value [{value}] for parameter [--{flag}] is invalid. Reason: {reason}")


def parse_flags(argv: List[str]) -> Dict[str, str]:
    """{flag: value} of `--flag=value` and `--flag value`, each checked on its own."""
    flags: Dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or name not in FLAGS:
            print(f"ERROR: unknown command line flag '{name}'")
            sys.exit(1)
        if not equals:
            if not rest:
                print(f"ERROR: flag '--{name}' is missing its argument")
                sys.exit(1)
            value = rest.pop(0)
        flags[name] = value
        admitted = FLAGS[name]
        if admitted is not None and value not in admitted:
            invalid(name, value, f"The value must be {' or '.join(admitted)}.")
    for name in ("framework", "model", "output"):
        if name not in flags:
            fail("E10007", f"[--{name}] is required.")
    if not flags.get("soc_version"):
        fail("E10054", "The requested parameter [--soc_version] is empty.")
    if not SOC_VERSIONS.fullmatch(flags["soc_version"]):
        invalid("soc_version", flags["soc_version"], "It is not supported.")
    for name in ("model", "output", "insert_op_conf"):
        if name in flags and not PATH_CHARACTERS.fullmatch(flags[name]):
            invalid(
                name,
                flags[name],
                "The path can contain only letters, digits, '_', '.', '-' and '/'.",
            )
    for name in ("model", "insert_op_conf", "keep_dtype"):
        if name in flags and not (os.path.isfile(flags[name]) and os.access(flags[name], os.R_OK)):
            invalid(name, flags[name], "No such file or no permission to read it.")
    folder = os.path.dirname(os.path.abspath(flags["output"]))
    if os.path.isdir(flags["output"]) or not (os.path.isdir(folder) and os.access(folder, os.W_OK)):
        invalid(
            "output", flags["output"], "It is a folder, or its folder is missing or not writable."
        )
    return flags


def load_onnx(path: str) -> Any:
    """The ONNX model, checked. What onnx itself says of a damaged file goes to the log."""
    import onnx

    try:
        model = onnx.load(path)
        if not any(
            node.op_type.startswith("Ascend") for node in model.graph.node
        ):  # onnx does not know those
            onnx.checker.check_model(model)
    except Exception as error:  # protobuf, checker and file errors have no common class
        write_log(f"[ERROR] {error}")
        invalid("model", path, "Failed to parse the ONNX model.")
    highest = CANN_6 if os.environ.get("STANDIN_CANN", "6.0.RC1").startswith("6.") else LATER
    for code, text in atc_graph.objections(model, highest):
        fail(code, text)
    return model


def fix_shapes(model: Any, argument: str) -> int:
    """Set the inputs' shapes from --input_shape; the batch size."""
    from onnx import TensorProto

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {
        value.name: value.type.tensor_type
        for value in model.graph.input
        if value.name not in weights
    }
    given: Dict[str, List[int]] = {}
    for item in filter(None, argument.split(";")):
        match = re.fullmatch(r"([^:]+):(-?\d+(?:,-?\d+)*)", item)
        if not match:
            fail(
                "E10002",
                f"Value [{argument}] for parameter [--input_shape] is invalid. Reason: it must be "
                f"formatted "
                'as "input_name1:n1,c1,h1,w1;input_name2:n2,c2,h2,w2".',
            )
        if match.group(1) not in inputs:
            fail(
                "E10016",
                f"Opname [{match.group(1)}] specified in [--input_shape] is not found in the "
                f"model. Confirm "
                "whether this node name exists.",
            )
        given[match.group(1)] = [int(size) for size in match.group(2).split(",")]
    batch = 0
    for name, tensor in inputs.items():
        if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
            invalid(
                "model",
                name,
                "The input must be float32 or float16; uint8 comes only through AIPP.",
            )
        shape = [dim.dim_value or -1 for dim in tensor.shape.dim]
        wanted = given.get(name, shape)
        if len(wanted) != len(shape) or any(
            shape[i] not in (-1, wanted[i]) for i in range(len(shape))
        ):
            invalid("input_shape", str(wanted), f"It does not match the model's {shape}.")
        if any(size < 1 for size in wanted):
            invalid(name, "-1", "maybe you should set input_shape to specify its shape")
        for i, size in enumerate(wanted):
            tensor.shape.dim[i].dim_value = size
        batch = wanted[0]
    for value in model.graph.output:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return batch


def check_inputs(model: Any, flags: Dict[str, str]) -> None:
    """Refuse --input_fp16_nodes for other things than an input, and for one with AIPP."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in weights]
    for name in filter(None, flags.get("input_fp16_nodes", "").split(";")):
        if name not in inputs:
            invalid("input_fp16_nodes", name, "It is not an input of the model.")
        if "insert_op_conf" in flags:
            fail(
                "E10034",
                f"Nodes (for example, [{name}]) connected to AIPP must not be of type fp16.",
            )


AIPP_KINDS: Dict[str, Any] = {
    "aipp_mode": ("static",),
    "input_format": ("RGB888_U8",),
    "related_input_rank": int,
    "src_image_size_w": int,
    "src_image_size_h": int,
    "crop": bool,
    "load_start_pos_w": int,
    "load_start_pos_h": int,
    "crop_size_w": int,
    "crop_size_h": int,
    "csc_switch": bool,
    "rbuv_swap_switch": bool,
}
for channel in range(3):
    AIPP_KINDS[f"min_chn_{channel}"] = float
    AIPP_KINDS[f"mean_chn_{channel}"] = int  # an int32
    AIPP_KINDS[f"var_reci_chn_{channel}"] = float
AIPP_LIMITS = {"min": (0, 255), "mean": (0, 255), "var": (-65504, 65504)}  # of others: 0 to 4096


refuse_aipp = functools.partial(invalid, "insert_op_conf")


def read_aipp_words(path: str) -> List[Tuple[str, str]]:
    """The pairs (key, value) of an AIPP file as text."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"#.*", "", file.read())
    match = re.fullmatch(r"\s*aipp_op\s*\{([^{}]*)\}\s*", text)
    if not match:
        refuse_aipp(path, "Expected one block: aipp_op { ... }.")
    pair = r"\s*(\w+)\s*:\s*([^\s:]+)"
    if re.sub(pair, "", match.group(1)).strip():
        refuse_aipp(path, "Expected lines of the form `key : value`.")
    return re.findall(pair, match.group(1))


def aipp_value(key: str, word: str) -> Any:
    """The value of a key of an AIPP file, checked."""
    kind, pair = AIPP_KINDS[key], f"{key}: {word}"
    if isinstance(kind, tuple):
        if word not in kind:
            refuse_aipp(pair, f"This stand-in knows {' or '.join(kind)}.")
        return word
    try:
        value = {"true": True, "false": False}[word] if kind is bool else kind(word)
    except (KeyError, ValueError):
        refuse_aipp(pair, f"It must be of type {kind.__name__}.")
    low, high = AIPP_LIMITS.get(key.split("_")[0], (0, 4096))
    if not low <= value <= high:
        refuse_aipp(pair, f"It must lie between {low} and {high}.")
    return value


def parse_aipp(path: str, height: int, width: int) -> Dict[str, Any]:
    """The settings of a static AIPP file for one input of height x width; others are refused."""
    settings: Dict[str, Any] = {}
    for key, word in read_aipp_words(path):
        if key not in AIPP_KINDS:
            refuse_aipp(key, "AIPP has no such key.")
        if key in settings:
            refuse_aipp(key, "The key is there twice.")
        settings[key] = aipp_value(key, word)
    for key in ("aipp_mode", "input_format"):
        if key not in settings:
            refuse_aipp(path, f"{key} is missing.")
    if settings.get("related_input_rank", 0) != 0:
        refuse_aipp(path, "related_input_rank is not an input of the model.")
    if settings.get("csc_switch", False):
        reason = "csc_switch converts YUV to RGB, but input_format is RGB888_U8."
        refuse_aipp(path, reason)
    size = (settings.get("src_image_size_h", height), settings.get("src_image_size_w", width))
    box = size
    if settings.get("crop", False):
        top, left = settings.get("load_start_pos_h", 0), settings.get("load_start_pos_w", 0)
        box = (settings.get("crop_size_h", height), settings.get("crop_size_w", width))
        if top + box[0] > size[0] or left + box[1] > size[1]:
            refuse_aipp(path, "The crop reaches beyond the image.")
    if box != (height, width):
        reason = f"It gives {box[0]} x {box[1]} pixels, the model takes {height} x {width}."
        refuse_aipp(path, reason)
    return dict(settings, src_image_size_h=size[0], src_image_size_w=size[1])


def set_precision(model: Any, flags: Dict[str, str]) -> None:
    """Make the model compute as the flags say, with the faults that are switched on."""
    mode = flags.get("precision_mode", "force_fp16")
    kept: Set[str] = set()
    quantised = any(node.op_type == "AscendQuant" for node in model.graph.node)
    if quantised and mode not in ("force_fp16", "allow_fp32_to_fp16", "allow_mix_precision"):
        invalid("precision_mode", mode, "A quantized model does not support a high precision mode.")
    if mode == "must_keep_origin_dtype":
        fail("E40021", "Failed to compile Op [Conv2D]. Reason: it has no kernel for float32.")
    if "keep_dtype" in flags:
        try:
            kept = atc_graph.read_keep_dtype(flags["keep_dtype"], model)
        except ValueError as error:
            invalid("keep_dtype", flags["keep_dtype"], str(error))
    precise = flags.get("op_select_implmode") == "high_precision"
    for kind in ("slope", "zero-padding", "sigmoid", "overflow", "channels", "weight"):
        if fault(f"atc-{kind}"):
            atc_graph.plant(model, kind, fault(f"atc-{kind}"), kept, precise)
    if fault("atc-lossy"):
        atc_graph.change_weights(model, lambda weights: atc_graph.in_steps(weights, 2))
    elif mode == "force_fp16" and os.environ.get("STANDIN_DEVICE") == "float16":
        atc_graph.compute_in_float16(model, kept)
    elif mode == "force_fp16":
        atc_graph.change_weights(model, atc_graph.half)
    atc_graph.lower_quantised(model)


def main() -> None:
    log_call("atc", ["atc"] + sys.argv[1:])
    flags = parse_flags(sys.argv[1:])
    print("ATC start working now, please wait for a moment.", flush=True)
    write_log(f"[EVENT] GE({os.getpid()},atc.bin): atc starts")
    model = load_onnx(flags["model"])
    batch = fix_shapes(model, flags.get("input_shape", ""))
    time.sleep(float(fault("atc-sleep") or 0))
    if fault("atc-fail") in ("on", str(batch)):
        fail(
            "E40021",
            "Failed to compile Op [Conv_0]. (oppath: [Pre-compile /usr/local/Ascend/opp/built-in], "
            "optype: [Conv2D])",
        )
    if "out_nodes" in flags:
        try:
            atc_graph.set_outputs(model, flags["out_nodes"])
        except ValueError as error:
            invalid("out_nodes", flags["out_nodes"], str(error))
    header: Dict[str, Any] = {"soc_version": flags["soc_version"], "batch": batch}
    if "insert_op_conf" in flags:
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        header["aipp"] = parse_aipp(flags["insert_op_conf"], shape[2], shape[3])
    check_inputs(model, flags)
    print(*atc_graph.places(model), sep="\n", flush=True)
    set_precision(model, flags)
    os.makedirs("kernel_meta", exist_ok=True)  # in the working folder, not in that of --output
    with open(
        os.path.join("kernel_meta", f"te_conv2d_{batch}.json"), "w", encoding="utf-8"
    ) as file:
        json.dump({"batch": batch}, file)
    with open("fusion_result.json", "w", encoding="utf-8") as file:
        json.dump([{"graph_fusion": {}, "session_and_graph_id": "0_0"}], file)
    suffix = f"_linux_{platform.machine()}" if os.environ.get("STANDIN_OM_NAME") == "host" else ""
    with open(flags["output"] + suffix + ".om", "wb") as om:
        write_om(om, header, model.SerializeToString())
    print("ATC run success, welcome to the next use.")


if __name__ == "__main__":
    main()
