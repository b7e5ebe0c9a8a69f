"""What the stand-ins of npu-smi, atc, amct_onnx and ais_bench share: switches, log, chip, .om.

Switches are environment variables:
    STANDIN_NPU_SMI   what npu-smi prints: sample names of test/data/npu-smi joined by "+" (default
                      310P3), a path to a text file, "fail" (driver not loaded) or "hang"
    STANDIN_BOARD     what `npu-smi info -t board` does: "answer" (default) prints the sample in
                      test/data/npu-smi/board, "fail" fails, "old" does not know the NPU's name
    ASCEND_RT_VISIBLE_DEVICES  the devices that ais_bench sees, numbered from 0, as on the card
    STANDIN_CANN      CANN's version: 6.0.RC1 (default), 8.1.RC1, 9.2 and others. It decides which
                      opsets and chips atc knows, and its error codes (see atc_errors.py)
    STANDIN_DEVICE    "weights" (default) rounds the weights to float16, "float16" also the result
                      of every operator
    STANDIN_SPEEDS    JSON {part of an .om's path: images/s that ais_bench is to report of it}; the
                      longest part counts
    STANDIN_AMCT      how amct_onnx writes a deploy model: "onnx" (default) or "torch" (see amct.py)
    STANDIN_OM_NAME   "plain" (default) writes OUTPUT.om, "host" OUTPUT_linux_<machine>.om
    STANDIN_AIS_BENCH which generation: "0.0.2", "later" (default) or "fork" (see
                      ascend_words.py); "none" is another package of that name
    STANDIN_FAULT     faults joined by ",", each NAME or NAME=VALUE:
                      atc-fail[=BATCH]   ends with E codes
                      atc-kill[=BATCH]   is killed while it writes the .om
                      atc-lossy          rounds the weights hard
                      atc-sleep=SECONDS  takes that long
                      atc-driver         finds no driver: libascend_hal.so is missing
                      atc-module=NAME    fails in Python for want of a module, without an E code
                      atc-link=FILE      the .om is a symbolic link to FILE
                      atc-hard-link=FILE the .om is another name of FILE
                      atc-random         the .om is random bytes
                      atc-cut            the .om lacks its end, and atc ends well
                      amct-fail          calibration fails
                      atc-slope=NODE     a LeakyRelu's slope is ten times as steep
                      atc-zero-padding=NODE  a Slice for reflection gives zeros
                      atc-sigmoid=NODE   a 5th-order Sigmoid, unless
                                         --op_select_implmode=high_precision
                      atc-overflow=NODE  float16 overflows in the node, unless --keep_dtype names it
                      atc-channels=NODE  a SpaceToDepth orders its channels wrongly
                      atc-weight=NODE    the node's weights are rounded to 8 bits
                      ais-crash=K        dies after K batches
                      ais-kill=K         is killed after K batches
                      ais-missing=K      leaves out the last K results
                      ais-half           cuts the last result
                      ais-device=D[:K]   device D dies (after K batches)
                      ais-skip[=MS]      computes nothing, gives zeros
                      ais-sleep=SECONDS  takes that long for a batch
                      ais-start=SECONDS  takes that long to start
                      ais-hang=D         hangs on device D after its first words
    STANDIN_LOG       a file to which each call is added, a JSON object a line: {tool, argv, cwd,
                      python}
    TRESNET_TEST_PYTHON  the Python with onnx and onnxruntime that does the work
"""

import hashlib
import json
import os
import re
import struct
import sys
from typing import Any, Dict, List, Tuple

SAMPLES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir, "data", "npu-smi"
)
# The .om begins as the real one: a header of 256 bytes (struct ModelFileHeader of CANN's graph
# engine), little-endian: "IMOD", 256, a version, 64 bytes of checksum, the rest's size (32 bits),
# …, in later ones the rest's size again (64 bits). The rest here: a line of JSON, then ONNX.
HEADER = struct.Struct("<4sII64sI104xQ64x")
MAGIC = b"IMOD"
assert HEADER.size == 256


def fault(name: str) -> str:
    """The value of a fault switch: "" if it is off, its VALUE or "on" if it is on."""
    for item in os.environ.get("STANDIN_FAULT", "").split(","):
        key, _, value = item.partition("=")
        if key == name:
            return value or "on"
    return ""


def log_call(tool: str, argv: List[str]) -> None:
    """Add this call to STANDIN_LOG."""
    path = os.environ.get("STANDIN_LOG")
    if path:
        python = os.environ.get("STANDIN_STARTED_BY", sys.executable)
        row = {"tool": tool, "argv": argv, "cwd": os.getcwd(), "python": python}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


ROW = re.compile(r"^\|\s*\d+(?:\s*\||\s)\s*([A-Za-z]*\d\w*)\s*\|\s*[A-Z]\w+\s*\|", re.MULTILINE)


def chips() -> List[str]:
    """What atc calls the chip of each device that the runtime shows."""
    names = []
    for sample in os.environ.get("STANDIN_NPU_SMI", "310P3").split("+"):
        path = sample if "/" in sample else os.path.join(SAMPLES, sample + ".txt")
        with open(path, encoding="utf-8") as file:
            for name in ROW.findall(file.read()):
                name = name if name.startswith("Ascend") else "Ascend" + name
                names.append(name + board_suffix(sample, name))
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    return [names[int(number)] for number in visible.split(",")] if visible else names


def board_suffix(sample: str, name: str) -> str:
    """What a board's NPU name adds to the name of a chip that others share: "_9391"."""
    path = os.path.join(SAMPLES, "board", os.path.basename(sample).replace(".txt", "") + ".txt")
    if name not in ("Ascend910", "Ascend950PR") or not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return "_" + re.findall(r"NPU Name\s*: (\w+)", file.read())[0]


def write_om(path: str, header: Dict[str, Any], payload: bytes) -> None:
    """Write a stand-in .om in two halves, as the real one grows.

    The line of JSON gets the payload's size and SHA-256 as well.
    """
    target = fault("atc-link") or fault("atc-hard-link")
    if target:
        (os.symlink if fault("atc-link") else os.link)(target, path)
        return
    line = dict(header, size=len(payload), sha256=hashlib.sha256(payload).hexdigest())
    rest = json.dumps(line).encode() + b"\n" + payload
    is_old = os.environ.get("STANDIN_CANN", "6.0.RC1").startswith("6.")
    long_size = 0 if is_old else len(rest)
    data = HEADER.pack(MAGIC, 256, 0x10000000, b"", len(rest), long_size) + rest
    if fault("atc-random"):
        data = os.urandom(len(data))
    if fault("atc-cut"):
        data = data[:-9]
    with open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        if fault("atc-kill") in ("on", str(header["batch"])):
            os.kill(os.getpid(), 9)
        file.write(data[len(data) // 2 :])


def read_om(path: str) -> Tuple[Dict[str, Any], bytes]:
    """(line of JSON, ONNX bytes) of a stand-in .om.

    Raises: ValueError for anything else, also for half an .om.
    """
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ValueError("no offline model")
    *_, size, long_size = HEADER.unpack_from(data)
    line, _, payload = data[HEADER.size :].partition(b"\n")
    if len(data) - HEADER.size != (long_size or size):
        raise ValueError("damaged or incomplete")
    try:
        header = json.loads(line)
    except ValueError:
        raise ValueError("damaged header") from None
    if len(payload) != header["size"] or hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise ValueError("damaged or incomplete")
    return header, payload
