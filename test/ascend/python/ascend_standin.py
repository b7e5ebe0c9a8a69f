"""What the stand-ins of npu-smi, atc, amct_onnx and ais_bench share: switches, log, chip, .om.

Switches are environment variables:
    STANDIN_NPU_SMI   what npu-smi prints: sample names of test/data/npu-smi joined by "+" (default
                      310P3), a path to a text file, "fail" (driver not loaded) or "hang"
    STANDIN_CANN      CANN's version, which decides the opset: 6.0.RC1 (default) reads 8 to 15,
                      later ones 8 to 18
    STANDIN_DEVICE    "weights" (default) rounds the weights to float16, "float16" also the result
                      of every operator
    STANDIN_SPEEDS    JSON {part of an .om's path: images/s that ais_bench is to report of it}; the
                      longest part counts
    STANDIN_OM_NAME   "plain" (default) writes OUTPUT.om, "host" OUTPUT_linux_<machine>.om
    STANDIN_AIS_BENCH which generation: "0.0.2", "later" (default) or "newest" (see
                      ascend_words.py); "none" is another package of that name
    STANDIN_FAULT     faults joined by ",", each NAME or NAME=VALUE:
                      atc-fail[=BATCH]   ends with E codes
                      atc-kill[=BATCH]   is killed while it writes the .om
                      atc-lossy          rounds the weights hard
                      atc-sleep=SECONDS  takes that long
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
    STANDIN_LOG       a file to which each call is added, a JSON object a line: {tool, argv, cwd,
                      python}
    TRESNET_TEST_PYTHON  the Python with onnx and onnxruntime that does the work
"""

import hashlib
import json
import os
import re
import sys
from typing import Any, Dict, List, Tuple

SAMPLES = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), os.pardir, os.pardir, "data", "npu-smi"
)
# then a line of JSON, then the payload (ONNX); the real .om begins with IMOD
MAGIC = b"IMOD stand-in\n"


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


def chips() -> List[str]:
    """The names of the chips that npu-smi shows, one per device."""
    names = []
    for sample in os.environ.get("STANDIN_NPU_SMI", "310P3").split("+"):
        path = sample if "/" in sample else os.path.join(SAMPLES, sample + ".txt")
        with open(path, encoding="utf-8") as file:
            names += re.findall(r"^\|\s*\d+\s+(\w+)\s*\|\s*OK\b", file.read(), re.MULTILINE)
    return names


def write_om(file: Any, header: Dict[str, Any], payload: bytes) -> None:
    """Write a stand-in .om in two halves, as the real one grows.

    The header gets the payload's size and SHA-256 as well.
    """
    header = dict(header, size=len(payload), sha256=hashlib.sha256(payload).hexdigest())
    data = MAGIC + json.dumps(header).encode() + b"\n" + payload
    file.write(data[: len(data) // 2])
    file.flush()
    if fault("atc-kill") in ("on", str(header["batch"])):
        os.kill(os.getpid(), 9)
    file.write(data[len(data) // 2 :])


def read_om(path: str) -> Tuple[Dict[str, Any], bytes]:
    """(header, ONNX bytes) of a stand-in .om.

    Raises: ValueError for anything else, also for half an .om.
    """
    with open(path, "rb") as file:
        data = file.read()
    if not data.startswith(MAGIC):
        raise ValueError("no offline model")
    line, _, payload = data[len(MAGIC) :].partition(b"\n")
    try:
        header = json.loads(line)
    except ValueError:
        raise ValueError("damaged header") from None
    if len(payload) != header["size"] or hashlib.sha256(payload).hexdigest() != header["sha256"]:
        raise ValueError("damaged or incomplete")
    return header, payload
