"""Every option of every program, each declared once: words, type, default and help.

A program takes options by name and says what differs there; the pipeline forwards them by name.
A word that has other meanings in other programs (SHARED) has a name for each meaning.
RULES says which options contradict each other. Standard library only.
"""

import argparse
import codecs
import os
import re
from argparse import ArgumentTypeError as Wrong
from types import SimpleNamespace
from typing import Any, Callable, Container, Dict, List, Mapping, NamedTuple, Optional, Tuple

from common.core.names import CLASS_ORDERS, FORMATS, POOLS, REFLECTIONS, STEMS

MULTIPLE = 32  # pixels: the network halves the image five times
CROP_MODES = ("center", "squash")
INTERPOLATIONS = ("bilinear", "bicubic")
LANGUAGES = ("en", "zh")
LINEAGES = ("ascend", "miil", "miil-bn")
BATCH_SIZES = "1,4,8,16,32"  # those of the published figures
ALL_IMAGES = [1, 1]  # --shard 1/1, as shard() gives it
STALL = 1800.0  # s
PIPELINE_BATCH = 8  # of the pipeline's accuracy run
QUANT = ("quant_bits", "quant_scales", "quant_ranges")  # how int8 is made for the CPU
CORES = len(os.sched_getaffinity(0))


# ---- types ---------------------------------------------------------------------------------------


def integer(least: int, most: int = 10**9) -> Callable[[str], int]:
    """The type of a whole number in plain digits, from `least` to `most`."""

    def convert(text: str) -> int:
        if not re.fullmatch("[0-9]{1,18}", text) or not least <= int(text) <= most:
            raise Wrong(f"{text!r} is not a whole number from {least} to {most:,}")
        return int(text)

    return convert


def real(least: float, most: float = float("inf"), above: bool = False) -> Callable[[str], float]:
    """The type of a finite number, with or without a point or an exponent.

    above: whether the number must be more than `least`, not only equal to it.
    """
    bounds = f"more than {least:g}" if above else f"at least {least:g}"
    if most != float("inf"):
        bounds += f" and at most {most:g}"

    def convert(text: str) -> float:
        plain = re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text)
        value = float(text) if plain else float("nan")
        within = least < value <= most if above else least <= value <= most
        if not within or value == float("inf"):
            raise Wrong(f"{text!r} is not a number of {bounds}")
        return value

    return convert


def batch_sizes(text: str) -> List[int]:
    """Batch sizes joined by commas: in rising order, each once."""
    if not re.fullmatch(r"[1-9][0-9]{0,4}(,[1-9][0-9]{0,4})*", text):
        raise Wrong(f"{text!r} is not a list of batch sizes joined by commas, such as 1,4,8")
    return sorted({int(word) for word in text.split(",")})


def shard(text: str) -> List[int]:
    """I/N, which means every N-th image from the I-th on: [I, N]."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})", text)
    if not match or int(match.group(1)) > int(match.group(2)):
        raise Wrong(f"{text!r} is not I/N, the I-th of N parts, such as 1/4")
    return [int(match.group(1)), int(match.group(2))]


def devices(text: str) -> List[int]:
    """Device ids joined by commas: each once; `all` gives []."""
    if text == "all":
        return []
    words = text.split(",")
    if not all(re.fullmatch("[0-9]{1,3}", word) and int(word) <= 255 for word in words):
        raise Wrong(f"{text!r} is not a device (0 to 255), several joined by commas, or all")
    return sorted(set(map(int, words)))


def network_size(text: str) -> int:
    """The size of the network's input, in pixels."""
    size = integer(MULTIPLE, 4096)(text)
    if size % MULTIPLE:
        raise Wrong(
            f"{text} is not a multiple of {MULTIPLE} (the network halves the image five times)"
        )
    return size


def step_names(text: str) -> List[str]:
    """Names of steps joined by commas; the pipeline knows which there are."""
    names = [word.strip().lower() for word in text.split(",")]
    if not all(names):
        raise Wrong(f"{text!r} is not a step, or several joined by commas, such as export,compile")
    return names


def path(text: str) -> str:
    """A path that is not empty: an unset shell variable leaves an empty one."""
    if not text:
        raise Wrong("the path is empty; is a shell variable unset?")
    return text


def onnx_path(text: str) -> str:
    """The path of an ONNX file that the program will write."""
    if not text.endswith(".onnx"):
        raise Wrong(f"{text!r} does not end in .onnx")
    return text


def folder(text: str) -> str:
    """A folder's path, without a slash at its end, that no program can take for an option."""
    name = path(text).rstrip("/") or "/"
    if os.path.realpath(name) == "/":
        raise Wrong("the root folder / is not allowed here")
    return os.path.join(".", name) if name.startswith("-") else name


def file_name(text: str) -> str:
    """The name of a file or folder without a path before it."""
    if text in ("", ".", "..") or os.path.basename(text) != text:
        raise Wrong(f"{text!r} is not a plain file name")
    return text


def chip_name(text: str) -> str:
    """A chip as atc calls it."""
    if not re.fullmatch("[A-Za-z0-9_-]*", text):
        raise Wrong(f"{text!r} is not a name such as Ascend310P3")
    return text


def text_encoding(text: str) -> str:
    """The name of an encoding of texts that Python knows."""
    try:
        name = codecs.lookup(text).name
        "".encode(name)
    except (LookupError, ValueError):  # ValueError: a null character
        raise Wrong(f"{text!r} is not an encoding of texts, such as gb18030, big5 or utf-16")
    return name


def switch(text: str) -> bool:
    """1 or 0, as ais_bench takes it."""
    if text.lower() not in ("0", "1", "true", "false"):
        raise Wrong(f"{text!r} is not 1 or 0")
    return text.lower() in ("1", "true")


# ---- declarations --------------------------------------------------------------------------------


class Option(NamedTuple):
    """One option."""

    name: str  # in the program and in TABLE
    words: Tuple[str, ...]  # on the command line
    settings: Dict[str, Any]  # for argparse's add_argument()


FLAG = True  # the kind of an option that takes no value


def option(usage: str, kind: Any, help: str, name: str = "", **settings: Any) -> Option:
    """An option.

    usage: its words, then what stands for its value in the help: "-i --input FOLDER".
    kind: the values that it takes (a tuple), or the function that converts one, or FLAG.
    name: its name in the program, if that is not the long word's (SHARED).
    settings: more for argparse's add_argument().
    """
    words = tuple(word for word in usage.split() if word.startswith("-"))
    metavars = tuple(usage.split()[len(words) :])
    settings["help"] = help
    if kind is FLAG:
        settings["action"] = "store_true"
    elif isinstance(kind, tuple):
        settings["choices"] = kind
    else:
        settings.update(type=kind, metavar=metavars[0])
    if len(metavars) > 1:
        settings.update(metavar=metavars, nargs=len(metavars))
    return Option(name or long_word(words)[2:].replace("-", "_"), words, settings)


def long_word(words: Tuple[str, ...]) -> str:
    """The one of an option's words that begins with two dashes."""
    (word,) = [word for word in words if word.startswith("--")]
    return word


PERCENT = real(0, 100)
TABLE = (
    # where things are
    option(
        "--data DIR",
        folder,
        "folder with val_union/ (images) and val_label.txt, or with class folders in val/ or "
        "directly inside; or "
        "ImageNet as it comes (archives, Kaggle's tree, Parquet: docs/data.md) (default: "
        "sample data)",
    ),
    option(
        "--labels FILE", path, "labels of the images: lines NAME INT, a table (CSV), or real.json"
    ),
    option(
        "--labels-encoding NAME",
        text_encoding,
        "of the labels file, such as gb18030 for GBK, big5 or utf-16 (default: UTF-8)",
    ),
    option(
        "--checkpoint FILE",
        path,
        "trained TResNet, or a Hugging Face folder with config.json (default: "
        "DIR/model_best.pth.tar)",
    ),
    option(
        "--class-map FILE",
        path,
        "numbers of the class folders: `CLASS_FOLDER INT` lines, or one class folder a line "
        "(default: their natural order)",
    ),
    option(
        "--class-order",
        CLASS_ORDERS,
        "how class folders are numbered: natural, class9 before class10, as timm does; text, by "
        "their letters, as torchvision's ImageFolder does (default: natural)",
    ),
    option(
        "--class-names FILE",
        path,
        "names of the classes, one a line or lines `FOLDER NAME` (default: class folders' or "
        "ImageNet's)",
    ),
    option(
        "--language",
        LANGUAGES,
        "language of report.html: English or Chinese (default: Chinese if LANG is, else English)",
    ),
    option("--workdir DIR", folder, "where all products go (default: ./work)", default="work"),
    option("--model -m MODEL.onnx", path, "the ONNX file"),
    option("--input -i FOLDER", path, "prepared images (.bin or .npy)"),
    option("--output -o FOLDER", path, "where the files go (default: here)", default="."),
    option("--output_dirname NAME", file_name, "name of the result folder in it"),
    option(
        "--output-dir FOLDER",
        path,
        "where MODEL_bs1.om, MODEL_bs4.om, ... go (default: beside the ONNX file)",
    ),
    option("--om-dir FOLDER", path, "where MODEL_bs1.om, ... are (default: beside the ONNX file)"),
    option("--prep DIR", path, "prepared folder: account for every image in its manifest"),
    option(
        "--beside RESULT",
        path,
        "results of the same images by another run, such as the float one: predictions.csv has "
        "both answers",
    ),
    option("--calibrate FOLDER", path, "prepared images (.bin)"),
    option(
        "--aipp FILE", path, "AIPP configuration (atc's --insert_op_conf), if the images are uint8"
    ),
    option("--devkit FILE", path, "ILSVRC2012_devkit_t12.tar.gz, to try labels in its order"),
    option("--accuracy acc.json", path, "for the table: TResNet_postprocess.py's file"),
    option(
        "--json FILE",
        path,
        "write all figures and all disagreeing images to FILE",
        name="json_file",
    ),
    option(
        "--forecast FILE",
        path,
        "forecast.json of the same images: says whether float16 explains the loss",
        name="forecast_file",
    ),
    option(
        "--host-facts FILE",
        path,
        "what the pipeline has found out about ais_bench (default: it is asked)",
    ),
    option(
        "-r --requirements FILE",
        path,
        "a requirements file; may be given several times (default: requirements.txt)",
        action="append",
    ),
    option(
        "--venv DIR",
        folder,
        "where the set-up puts the environment and all else that it makes (default: TRESNET_VENV, "
        "or the checkout, or tresnet-venv beside the work folder if the checkout cannot be "
        "written)",
    ),
    option(
        "--offline DIR",
        folder,
        "take packages from this folder and from nowhere else: one that setup_env.py --download "
        "made",
    ),
    option(
        "--download DIR",
        folder,
        "only fill this folder with all that a set-up without a network needs",
    ),
    # images and labels
    option(
        "--img-size N",
        network_size,
        "height and width in pixels, a multiple of 32 (default: what the checkpoint says, or 224)",
    ),
    option(
        "--img-size N",
        integer(1, 4096),
        "height and width in pixels (default: what the checkpoint says, or 224)",
        name="pixels",
    ),
    option(
        "--crop-pct X",
        real(0, 1, above=True),
        "--img-size is so much of the resized image (default: what the checkpoint says, or 0.875)",
    ),
    option(
        "--crop-mode",
        CROP_MODES,
        "center: the shorter side is resized, the image keeps its shape; squash: both sides "
        "are (default: what the checkpoint says, or center)",
    ),
    option("--interpolation", INTERPOLATIONS, "(default: what the checkpoint says, or bilinear)"),
    option(
        "--mean R G B",
        real(0, 1),
        "subtracted from pixels in 0..1 (default: what the checkpoint says, or 0 0 0)",
    ),
    option(
        "--std R G B",
        real(0, 1e6, above=True),
        "divisor after the mean was subtracted (default: what the checkpoint says, or 1 1 1)",
    ),
    option(
        "--multi-label",
        FLAG,
        "labels are lines NAME INT INT …; the figure is the mean average precision",
    ),
    option(
        "--label-offset N",
        int,
        "what to add to each label to have the network's class: -1, 0 or 1 "
        '(default: 1 for 1,001 classes, where class 0 is "background", '
        "unless a label is 1000; else 0)",
        choices=(-1, 0, 1),
    ),
    option("--uint8", FLAG, "images as bytes, converted on the device (AIPP)"),
    option("--dtype", ("float32", "uint8"), "float32 CHW, or uint8 HWC for a model with AIPP"),
    option(
        "--shard I/N",
        shard,
        "only every N-th image, from the I-th on; merge_reports.py joins the parts (default: all)",
        default=ALL_IMAGES,
    ),
    option(
        "--skip-bad",
        FLAG,
        "leave out images that cannot be read: they are a warning, not a failure",
    ),
    option("--first N", integer(1), "only the first N images, in natural order"),
    option("--spaced N", integer(1), "only N of the images, evenly spaced"),
    option(
        "--images N",
        integer(1),
        "the first N of them, in natural order (default: %(default)s)",
        default=64,
    ),
    option(
        "--images N",
        integer(1, 64),
        "the first N of them, in natural order, at most 64 (default: %(default)s)",
        name="few_images",
        default=4,
    ),
    # the network
    option(
        "--lineage",
        LINEAGES,
        "of the weights, where the checkpoint does not say it; miil-bn: the official network, "
        "trained with BatchNorm and LeakyReLU in place of InplaceABN",
    ),
    option(
        "--gp",
        POOLS,
        "the global pooling, where the checkpoint does not say it (default: avg)",
    ),
    option("--ema", FLAG, "take the checkpoint's averaged weights, such as state_dict_ema"),
    option(
        "--key NAME",
        path,
        "which of several state dicts in the checkpoint to take, such as teacher",
    ),
    option("--model NAME", str, "insist on this variant", name="variant"),
    option("--opset N", int, "ONNX operator set (default: %(default)s)", default=11),
    option(
        "--stem",
        STEMS,
        "the first operators, the same function in each way: conv4, a 4×4 "
        "convolution of stride 4 and a 3×3 one; conv12 (once called conv), "
        "one 12×12 of stride 4; space-to-depth, SpaceToDepth and a 3×3 "
        "convolution (default: %(default)s)",
        default=STEMS[0],
    ),
    option(
        "--reflect",
        REFLECTIONS,
        "reflect padding (miil weights): slice, row 1 and column 1 put "
        "in front, which an NPU does in its own format; pad, one Pad "
        "(default: %(default)s)",
        default=REFLECTIONS[0],
    ),
    option(
        "--precision",
        ("float32", "int8"),
        "int8: quantised, on ascend by AMCT; measured beside float32, on "
        "ascend beside float16 (default: %(default)s)",
        default="float32",
    ),
    option(
        "--max-drop P",
        PERCENT,
        "with int8: put layers back to float until Top-1 is at most P percentage points below "
        "float32's",
    ),
    option(
        "--quant-bits",
        ("7", "8"),
        "with int8 on the CPU: bits of the weights (default: 8 if the CPU adds 8-bit products "
        "exactly, else 7)",
    ),
    option(
        "--quant-scales",
        ("channel", "tensor"),
        "with int8 on the CPU: a scale per output channel of the weights, or one per tensor "
        "(default: what a trial says)",
    ),
    option(
        "--quant-ranges",
        ("minmax", "entropy", "percentile"),
        "with int8 on the CPU: how the ranges are found (default: what a trial says)",
    ),
    option("--all-layers", FLAG, "quantise all layers that AMCT can"),
    option(
        "--small-channel",
        FLAG,
        "compile with atc's --enable_small_channel=1; with --uint8, and a stem that begins "
        "with a convolution",
    ),
    # the machine
    option(
        "--backend",
        ("auto", "ascend", "cpu"),
        "auto (the default) takes ascend if npu-smi, atc and ais_bench are all "
        "there, or if a device, a chip or a soc version is named",
        default="auto",
    ),
    option(
        "--device N[,N…]|all", devices, "chips to use at the same time (default: 0)", name="devices"
    ),
    option("--device N", integer(0, 255), "the NPU to use (default: 0)"),
    option(
        "--soc-version NAME",
        chip_name,
        "chip that is compiled for, e.g. Ascend310P3 (default: what `npu-smi info` names)",
        default="",
    ),
    option(
        "--soc-version",
        FLAG,
        "print the name in atc's form, e.g. Ascend310P3",
        name="as_soc_version",
    ),
    option("--chip NAME", str, "for the table (default: what npu-smi or the system says)"),
    option(
        "-j --workers N",
        integer(1, 4096),
        "how many work at the same time (default: one for each core, here %(default)s)",
        default=CORES,
    ),
    option(
        "--timeout SECONDS", real(0, 1e6, above=True), "how long to wait (default: %(default)g)"
    ),
    option(
        "--stall SECONDS",
        real(0, 1e6),
        "end atc, amct_onnx or ais_bench if it gives no output and no result for so long; 0: never "
        "(default: %(default)g)",
        default=STALL,
    ),
    option(
        "--slice N",
        integer(1),
        "images for ais_bench at once (default: so many that its start costs less than a tenth)",
        default=0,
    ),
    # batches and measurements
    option("-b --batch-size N", integer(1, 4096), "fix the batch size (default: open)"),
    option(
        "--batchsize N", integer(1), "batch that runs, for a model whose batch is open (default: 1)"
    ),
    option(
        "--batch-sizes LIST",
        batch_sizes,
        "models to compile and to measure (default: %(default)s)",
        default=BATCH_SIZES,
    ),
    option("--perf", FLAG, "measure throughput per batch size (on ascend always)"),
    option(
        "--loop N",
        integer(1),
        "batches per measurement (default: 20; fewer on the CPU where a batch takes long)",
    ),
    option(
        "--repeat N",
        integer(1),
        "measurements per batch size; the median counts (default: %(default)s)",
        default=3,
    ),
    option(
        "--warmup_count N",
        integer(0),
        "runs that do not count, first (default: %(default)s)",
        default=1,
    ),
    option(
        "--pure_data_type",
        ("zero", "random"),
        "in pure inference (default: %(default)s)",
        default="zero",
    ),
    option(
        "--display_all_summary 1",
        switch,
        "print copying times as well",
        nargs="?",
        const=True,
        default=False,
    ),
    option("--data-set NAME", str, "for the table: what the accuracy was measured on"),
    # what a program does and prints
    option("--outfmt", FORMATS, "format of the results (default: %(default)s)"),
    option(
        "--compare N",
        integer(0),
        "images to compare with ONNX Runtime after an ascend run, 0 for none "
        "(default: %(default)s)",
        default=64,
    ),
    option(
        "--tune",
        FLAG,
        "instead of a run: measure stems, input types and precisions (on the CPU batch sizes "
        "and precisions) and print the command of the best",
    ),
    option(
        "--forecast",
        FLAG,
        "forecast on the CPU what float16 will cost on the card (on ascend always, with "
        "--compare's images)",
    ),
    option(
        "--min-top1 P",
        PERCENT,
        "a gate: exit status 3 and one sentence if Top-1 is below P per cent",
    ),
    option(
        "--min-top5 P",
        PERCENT,
        "a gate: exit status 3 and one sentence if Top-5 is below P per cent",
    ),
    option(
        "--min-throughput X",
        real(0),
        "a gate: exit status 3 if the best batch size has fewer images/s",
    ),
    option(
        "--min-cosine X",
        real(-1, 1),
        "a gate: exit status 3 if the cosine similarity of an image's logits is lower",
    ),
    option(
        "--min-agreement P",
        PERCENT,
        "a gate: exit status 3 if the Top-1 of fewer per cent of the images agrees",
    ),
    option(
        "--expect NAME",
        str,
        "hold the accuracy against the published one and look for the cause if it is another",
    ),
    option("--json", FLAG, "print JSON", name="as_json"),
    option("--check", FLAG, "say what is there and what is missing for each backend, run nothing"),
    option(
        "--only STEP[,STEP]",
        step_names,
        "take only these steps, by the names that a wrong one lists, such as export,compile",
        default=[],
    ),
    option(
        "--from STEP",
        str.lower,
        "take this step and those after it; what comes before must be there",
        name="from_step",
        dest="from_step",
        default="",
    ),
    option(
        "--config FILE",
        path,
        "take options from a JSON file, such as the run.json of an earlier run; those of the "
        "command line win",
    ),
    option(
        "--clean",
        FLAG,
        "list what a run with these options does not need of what earlier runs left in the work "
        "folder; --yes removes it",
    ),
    option("--yes", FLAG, "with --clean: remove what it lists"),
    option("--force", FLAG, "do everything again, even what is up to date"),
    option("--dry-run", FLAG, "print the commands and run nothing"),
    option(
        "--from",
        ("registry", "git"),
        "where the source comes from (default: %(default)s)",
        dest="source",
        default="registry",
    ),
    option("--url URL", str, "repository for --from git (default: %(default)s)"),
)
OPTIONS = {option.name: option for option in TABLE}
# How an image becomes the network's input, beside its size: evaluation.Evaluation.
EVALUATION = ("crop_pct", "crop_mode", "interpolation", "mean", "std")
SHARED = {  # {word: what it means in one program or another}
    "--model": ("model", "variant"),
    "--json": ("json_file", "as_json"),
    "--forecast": ("forecast_file", "forecast"),
    "--img-size": ("img_size", "pixels"),
    "--from": ("from", "from_step"),
    "--images": ("images", "few_images"),
    "--device": ("devices", "device"),
    "--soc-version": ("soc_version", "as_soc_version"),
}


def add(
    parser: Any,
    *names: str,
    required: Container[str] = (),
    default: Mapping[str, Any] = {},
    help: Mapping[str, str] = {},
    choices: Mapping[str, Any] = {},
) -> None:
    """Add options to a parser or to an argument group, in this order.

    required: names of those that the user must give.
    default, help, choices: {name: what differs in this program}.
    """
    for name in names:
        settings = dict(OPTIONS[name].settings)
        for setting, differing in (("default", default), ("help", help), ("choices", choices)):
            if name in differing:
                settings[setting] = differing[name]
        if name in required:
            settings["required"] = True
        parser.add_argument(*OPTIONS[name].words, **settings)


def words(**values: Any) -> List[str]:
    """The words that give options to another program: img_size=448 is --img-size 448.

    True is an option alone. One that is None, False or "" is left out. A list is joined by commas,
    a tuple is several words.
    """
    command_line: List[str] = []
    for name, value in values.items():
        if value is None or value is False or value == "":
            continue
        word = long_word(OPTIONS[name].words)
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if value is True:
            command_line.append(word)
        elif isinstance(value, tuple):
            command_line += [word, *map(str, value)]
        elif text.startswith("-"):  # as a word of its own it would be taken for an option
            command_line.append(f"{word}={text}")
        else:
            command_line += [word, text]
    return command_line


def without(command_line: List[str], names: Container[str]) -> List[str]:
    """A command line without some options and their values; options may be cut short, as argparse
    takes them.
    """
    kept: List[str] = []
    words_left = list(command_line)
    while words_left:
        word = words_left.pop(0)
        found = [entry for entry in TABLE if entry.name in names and is_word_of(word, entry)]
        if not found:
            kept.append(word)
        elif takes_next_word(word, found[0]):
            del words_left[:1]
    return kept


def is_word_of(word: str, entry: Option) -> bool:
    """Whether a word of a command line is an option, in full or cut short."""
    name = word.split("=")[0] if word.startswith("--") else word[:2]
    return name in entry.words or (len(name) > 3 and long_word(entry.words).startswith(name))


def takes_next_word(word: str, entry: Option) -> bool:
    """Whether the value of an option is the word after it: not in --stem=conv4, nor in -b8."""
    has_value = "=" in word if word.startswith("--") else len(word) > 2
    return entry.settings.get("action") != "store_true" and not has_value


# ---- contradictions ------------------------------------------------------------------------------


class Rule(NamedTuple):
    """Options that contradict each other."""

    code: str
    about: Tuple[str, ...]  # the rule is for programs that have (or know) all of these options
    is_broken: Callable[[Any], Any]  # of the options' values
    sentence: str


def small_channel_has_no_use(given: Any) -> bool:
    has_aipp = given.uint8 and given.backend == "ascend"
    begins_with_convolution = given.stem != "space-to-depth"
    return bool(given.small_channel) and not (has_aipp and begins_with_convolution)


def min_cosine_has_no_comparison(given: Any) -> bool:
    if given.min_cosine is None or given.tune:
        return False
    if given.backend == "ascend":
        return not given.compare
    return bool(given.precision != "int8")


def quant_option_has_no_use(given: Any) -> bool:
    is_given = any(getattr(given, name) for name in QUANT)
    is_int8 = given.precision == "int8" or given.tune
    return bool(is_given) and not (is_int8 and given.backend != "ascend")


def top_gate_for_several_classes(given: Any) -> bool:
    has_gate = given.min_top1 is not None or given.min_top5 is not None
    return given.multi_label and has_gate


RULES = (
    Rule(
        "yes-clean",
        ("yes", "clean"),
        lambda given: given.yes and not given.clean,
        "--yes goes with --clean, whose list it removes",
    ),
    Rule(
        "only-from",
        ("only", "from_step"),
        lambda given: given.only and given.from_step,
        "--only and --from contradict each other; give one of them",
    ),
    Rule(
        "small-channel",
        ("small_channel", "uint8", "stem", "backend"),
        small_channel_has_no_use,
        "--small-channel is for a first convolution behind AIPP on the card: give --uint8, and "
        "--stem conv4 or conv12",
    ),
    Rule(
        "max-drop-float",
        ("max_drop", "precision"),
        lambda given: given.max_drop is not None and given.precision != "int8",
        "--max-drop is a promise about int8: give --precision int8 as well",
    ),
    Rule(
        "quant-float",
        ("quant_bits", "precision", "tune", "backend"),
        quant_option_has_no_use,
        "--quant-bits, --quant-scales and --quant-ranges are for int8 on the CPU: give "
        "--precision int8 and --backend cpu as well",
    ),
    Rule(
        "max-drop-classes",
        ("max_drop", "several_classes"),
        lambda given: given.max_drop is not None and given.several_classes,
        "--max-drop is about Top-1, and these labels give an image several classes; leave it out",
    ),
    Rule(
        "max-drop-tune",
        ("max_drop", "tune"),
        lambda given: given.max_drop is not None and given.tune,
        "--tune does not try --max-drop: leave it out here, and add it to the command of the "
        "best if that is int8",
    ),
    Rule(
        "max-drop-labels",
        ("max_drop", "labels", "calibrate"),
        lambda given: (given.max_drop is None) != (given.labels is None),
        "--max-drop and --labels go together: the promise is about labelled images",
    ),
    Rule(
        "multi-label-shard",
        ("multi_label", "shard"),
        lambda given: given.multi_label and given.shard[1] > 1,
        "--multi-label takes all images in one run: the mean average precision of parts cannot "
        "be put together; leave out --shard",
    ),
    Rule(
        "multi-label-gates",
        ("multi_label", "min_top1", "min_top5"),
        top_gate_for_several_classes,
        "--min-top1 and --min-top5 are not for --multi-label, whose figure is the mean average "
        "precision; leave them out",
    ),
    Rule(
        "multi-label-beside",
        ("multi_label", "beside"),
        lambda given: given.multi_label and given.beside is not None,
        "--beside is not for --multi-label, where an image has no one right answer; leave it out",
    ),
    Rule(
        "multi-label-expect",
        ("multi_label", "expect"),
        lambda given: given.multi_label and given.expect is not None,
        "--expect is not for --multi-label, whose figure is the mean average precision; leave it "
        "out",
    ),
    Rule(
        "min-cosine",
        ("min_cosine", "compare", "precision", "tune", "backend"),
        min_cosine_has_no_comparison,
        "--min-cosine needs a comparison, which this run does not make: on the CPU it takes "
        "--precision int8, on ascend --compare with 1 image or more",
    ),
    Rule(
        "class-order-map",
        ("class_order", "class_map"),
        lambda given: given.class_order is not None and given.class_map is not None,
        "--class-order and --class-map both number the class folders; give one of them",
    ),
    Rule(
        "first-spaced",
        ("first", "spaced"),
        lambda given: given.first and given.spaced,
        "--first and --spaced both choose images: give one of them",
    ),
    Rule(
        "output-dirname",
        ("output_dirname", "output"),
        lambda given: given.output_dirname and not given.output,
        "--output_dirname goes with --output, which says where that folder is",
    ),
)


def contradiction(given: argparse.Namespace, **known: Any) -> Optional[Rule]:
    """The first rule that the options break; None if they do not break any.

    known: what the program knows beside its options, or better than they say: backend="ascend"
    where the option is auto.
    """
    values = {**vars(given), **known}
    for rule in RULES:
        if values.keys() >= set(rule.about) and rule.is_broken(SimpleNamespace(**values)):
            return rule
    return None


def parse(
    parser: argparse.ArgumentParser, command_line: Optional[List[str]] = None
) -> argparse.Namespace:
    """The options of a command line (default: this program's).

    Ends the program with status 2 if they are wrong or contradict each other.
    """
    given = parser.parse_args(command_line)
    broken = contradiction(given)
    if broken:
        parser.error(broken.sentence)
    return given
