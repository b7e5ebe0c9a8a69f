"""Stand-in of CANN's atc: makes an .om of an ONNX file, as strict about its input as the real one.

Its .om holds the ONNX model with the batch fixed and the weights rounded to float16 (with
STANDIN_DEVICE=float16 every result as well), as the 310P3 computes by default, and the AIPP
settings; the stand-in of ais_bench runs it in ONNX Runtime. Started by bin/atc; the switches stand
in python/ascend_standin.py, what it knows of graphs in python/atc_graph.py, and the codes of each
generation in python/atc_errors.py. What has no known code gets E10001, "invalid value".
"""

import json
import os
import platform
import re
import sys
import time
from typing import Any, Dict, List, NoReturn, Set, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "python"))
import atc_errors  # noqa: E402
import atc_graph  # noqa: E402
from ascend_standin import fault, log_call, write_om  # noqa: E402
from atc_errors import EIGHT, NINE, SIX, generation, write_log  # noqa: E402

# Values that a flag admits; None: checked below. atc has more flags, which this stand-in does not
# know and so refuses.
FLAGS = {
    "mode": ("0",),
    "framework": None,
    "model": None,
    "output": None,
    "input_format": ("NCHW", "ND"),
    "input_shape": None,
    "log": None,
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
LAST_OPSET = {SIX: 15, EIGHT: 18, NINE: 18}  # that they read
LOGS = ("debug", "info", "warning", "error", "null")
# Those of an installed toolkit 8.1.RC1 (its platform_config), and of 9.x the 950. That 6.0 does not
# know 910_93xx is inferred: these came later.
OLD_CHIPS = (
    r"310|310B[1-4]|310P[1357]|910|910[AB]|910Pro[AB]|910PremiumA|910B[1-3]|910B4(-1)?|910B2C"
)
SOC_VERSIONS = {
    SIX: OLD_CHIPS,
    EIGHT: OLD_CHIPS + r"|910_93(62|72|81|82|91|92)",
    NINE: OLD_CHIPS + r"|910_93(62|72|81|82|91|92)|950(PR|DT)_9\w{3}",
}
PATH_CHARACTERS = re.compile(r"[A-Za-z0-9_./-]+")


def fail(kind: str, *values: object) -> NoReturn:
    """End with the error of this kind in the generation that is played."""
    sys.exit(atc_errors.fail(kind, *values))


def beyond(reason: str) -> NoReturn:
    """Refuse what the real atc takes without a word, and say so."""
    sys.exit(atc_errors.beyond(reason))


def invalid(flag: str, value: str, reason: str) -> NoReturn:
    fail("value", value, flag, reason)


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
    check_words(flags)
    check_paths(flags)
    return flags


def check_words(flags: Dict[str, str]) -> None:
    """Refuse what is missing, and words that a flag does not admit."""
    if flags.get("framework") not in ("0", "1", "3", "5"):
        fail("required", "framework", "0(Caffe) or 1(MindSpore) or 3(TensorFlow) or 5(Onnx)")
    if flags["framework"] != "5":
        beyond(f"--framework={flags['framework']} is not ONNX")
    if flags.get("log", "null") not in LOGS:
        fail("log", flags["log"])
    for name in ("model", "output", "soc_version"):
        if not flags.get(name):
            fail("empty", f"--{name}")
    if not re.fullmatch(f"Ascend({SOC_VERSIONS[generation()]})", flags["soc_version"]):
        invalid("soc_version", flags["soc_version"], "It is not supported.")


def check_paths(flags: Dict[str, str]) -> None:
    """Refuse paths that cannot be read or written, or have characters that CANN does not take."""
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


def load_onnx(path: str) -> Any:
    """The ONNX model, checked. What onnx itself says of a damaged file goes to the log."""
    import onnx

    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf and file errors have no common class
        write_log(f"[ERROR] {error}")
        fail("parse", path)
    for kind, *values in atc_graph.objections(model, LAST_OPSET[generation()]):
        fail(kind, *values)
    reason = atc_graph.reason_beyond(model)
    if reason:
        beyond(reason)
    return model


def parse_shapes(argument: str) -> Dict[str, List[int]]:
    """{input: shape} of --input_shape. What is behind the last semicolon counts, even if empty."""
    given: Dict[str, List[int]] = {}
    for item in argument.split(";") if argument else []:
        match = re.fullmatch(r"([^:]+):(-?\d+(?:,-?\d+)*)", item)
        if not match:
            fail("shape", item)
        given[match.group(1)] = [int(size) for size in match.group(2).split(",")]
        if min(given[match.group(1)]) < 1:
            fail("negative", item)
    return given


def fix_shapes(model: Any, argument: str) -> int:
    """Set the inputs' shapes from --input_shape; the batch size."""
    from onnx import TensorProto

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {
        value.name: value.type.tensor_type
        for value in model.graph.input
        if value.name not in weights
    }
    given = parse_shapes(argument)
    unknown = [name for name in given if name not in inputs]
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    is_open = min(sizes, default=1) < 1
    if unknown and is_open and generation() != SIX:
        fail("open", *inputs)
    if unknown:
        fail("name", unknown[0], "input_shape")
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
        if len(wanted) < len(shape):
            fail("dimensions", name)
        if any(size < 1 for size in wanted):
            fail("open", name)
        if len(wanted) > len(shape) or any(
            shape[i] not in (-1, wanted[i]) for i in range(len(shape))
        ):
            beyond(f"--input_shape {wanted} contradicts the model's {shape}")
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
            fail("aipp float16", name)


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


def read_aipp_words(path: str) -> List[Tuple[str, str]]:
    """The pairs (key, value) of an AIPP file as text."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"#.*", "", file.read())
    match = re.fullmatch(r"\s*aipp_op\s*\{([^{}]*)\}\s*", text)
    if not match and re.fullmatch(r"(\s*aipp_op\s*\{[^{}]*\}\s*)+", text):
        fail("aipp", "aipp_op", "Expected one block: aipp_op { ... }.")
    if not match:
        fail("aipp syntax", path, "Expected one block: aipp_op { ... }.")
    pair = r"\s*(\w+)\s*:\s*([^\s:]+)"
    if re.sub(pair, "", match.group(1)).strip():
        fail("aipp syntax", path, "Expected lines of the form `key : value`.")
    return re.findall(pair, match.group(1))


def aipp_value(key: str, word: str) -> Any:
    """The value of a key of an AIPP file, checked."""
    kind, pair = AIPP_KINDS[key], f"{key}: {word}"
    if isinstance(kind, tuple):
        if word not in kind:
            beyond(f"{pair}: this stand-in knows {' or '.join(kind)}")
        return word
    try:
        value = {"true": True, "false": False}[word] if kind is bool else kind(word)
    except (KeyError, ValueError):
        fail("aipp syntax", pair, f"It must be of type {kind.__name__}.")
    low, high = AIPP_LIMITS.get(key.split("_")[0], (0, 4096))
    if not low <= value <= high:
        beyond(f"{pair}: it must lie between {low} and {high}")
    return value


def parse_aipp(path: str, height: int, width: int) -> Dict[str, Any]:
    """The settings of a static AIPP file for one input of height x width; others are refused."""
    settings: Dict[str, Any] = {}
    for key, word in read_aipp_words(path):
        if key not in AIPP_KINDS:
            fail("aipp syntax", key, "AIPP has no such key.")
        if key in settings:
            fail("aipp syntax", key, "The key is there twice.")
        settings[key] = aipp_value(key, word)
    for key in ("aipp_mode", "input_format"):
        if key not in settings:
            fail("aipp", path, f"{key} is missing.")
    if settings.get("related_input_rank", 0) != 0:
        fail("aipp", path, "related_input_rank is not an input of the model.")
    if settings.get("csc_switch", False):
        reason = "csc_switch converts YUV to RGB, but input_format is RGB888_U8."
        fail("aipp", path, reason)
    size = (settings.get("src_image_size_h", height), settings.get("src_image_size_w", width))
    box = size
    if settings.get("crop", False):
        top, left = settings.get("load_start_pos_h", 0), settings.get("load_start_pos_w", 0)
        box = (settings.get("crop_size_h", height), settings.get("crop_size_w", width))
        if top + box[0] > size[0] or left + box[1] > size[1]:
            fail("aipp", path, "The crop reaches beyond the image.")
    if box != (height, width):
        reason = f"It gives {box[0]} x {box[1]} pixels, the model takes {height} x {width}."
        fail("aipp", path, reason)
    return dict(settings, src_image_size_h=size[0], src_image_size_w=size[1])


def set_precision(model: Any, flags: Dict[str, str]) -> None:
    """Make the model compute as the flags say, with the faults that are switched on."""
    mode = flags.get("precision_mode", "force_fp16")
    kept: Set[str] = set()
    quantised = any(node.op_type == "AscendQuant" for node in model.graph.node)
    if quantised and mode not in ("force_fp16", "allow_fp32_to_fp16", "allow_mix_precision"):
        invalid("precision_mode", mode, "A quantized model does not support a high precision mode.")
    if mode == "must_keep_origin_dtype":
        fail("compile", "Conv2D", "no kernel for float32", "Conv2D")
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


def break_down() -> None:
    """The faults of a machine that atc meets before it looks at anything; they have no E code."""
    if fault("atc-driver"):
        sys.exit(
            "atc.bin: error while loading shared libraries: libascend_hal.so: cannot open shared "
            "object file: No such file or directory"
        )
    module = fault("atc-module")
    if module:
        print("ATC start working now, please wait for a moment.\n...")
        print("Traceback (most recent call last):")
        print('  File "te_fusion/fusion_manager.py", line 1912, in set_op_import_module')
        print(f"ModuleNotFoundError: No module named '{module}'")
        print("ATC run failed, Please check the detail log, Try 'atc --help' for more information")
        sys.exit(255)


def main() -> None:
    log_call("atc", ["atc"] + sys.argv[1:])
    break_down()
    flags = parse_flags(sys.argv[1:])
    print("ATC start working now, please wait for a moment.", flush=True)
    write_log(f"[EVENT] GE({os.getpid()},atc.bin): atc starts")
    model = load_onnx(flags["model"])
    batch = fix_shapes(model, flags.get("input_shape", ""))
    time.sleep(float(fault("atc-sleep") or 0))
    if fault("atc-fail") in ("on", str(batch)):
        fail("compile", "Conv_0", "Pre-compile /usr/local/Ascend/opp/built-in", "Conv2D")
    if "out_nodes" in flags:
        try:
            atc_graph.set_outputs(model, flags["out_nodes"])
        except LookupError as error:
            fail("name", error.args[0], "out_nodes")
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
    write_om(flags["output"] + suffix + ".om", header, model.SerializeToString())
    print("ATC run success, welcome to the next use.")


if __name__ == "__main__":
    main()
