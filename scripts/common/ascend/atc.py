"""atc: why it failed, and whether the file that it wrote is a model.

atc prints a code for most errors, with a solution on the lines behind it:
    E10007: [--framework] is required. …                            up to 8.3, since 8.0 with a PID
    [PID: 1] 2026-01-14 Unsupported_Operator(EZ3002): Optype …      since 8.5
Errors of the machine have none: a library is missing, or a Python module.
Standard library only.
"""

import glob
import os
import re
import signal
import stat
import struct
from typing import Iterator, List, NamedTuple, Sequence

from common.ascend import cann
from common.core.files import open_regular

CODE = re.compile(r"\bE[A-Z]?\d{4,5}\b")
DETAIL = re.compile(r"\s*(?:Possible Cause|Solution)\s*:\s*(?!N/A)\S")
NEXT_OF_DETAIL = re.compile(r"\s*\d+\s*\.\s*\S")  # a solution's second line: "2. Install the …"
BANNER = re.compile(r"ATC (?:start working|run failed)|^\s*\.*\s*$")
MOST = 12  # lines about codes
LAST = 8  # lines of an output without codes
WIDEST = 400  # characters of a line
# Python modules that CANN's own packages bring, and what pip calls others than they are imported.
OF_CANN = ("tbe", "te", "te_fusion", "impl", "opc_tool")
DISTRIBUTIONS = {"attr": "attrs", "absl": "absl-py", "google": "protobuf", "yaml": "pyyaml"}
UNSUPPORTED = re.compile(r"EZ300[23]|not found in this op store|No supported Ops kernel")
# The header of an .om: ModelFileHeader of CANN's graph engine (hicann/ge, framework_types_internal
# .h), little-endian: "IMOD", its own size, …, the model's size, …, and in later ones that again
# with 64 bits.
MAGIC, HEADER_SIZE = b"IMOD", 256
LENGTH, LONG_LENGTH = struct.Struct("<76xI"), struct.Struct("<184xQ")


# ---- the log -------------------------------------------------------------------------------------


def printable(line: str) -> str:
    """The line with a space for each character that would not print."""
    return "".join(letter if letter.isprintable() else " " for letter in line.strip())


def coded_errors(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines with an E code (E10001, EZ9999, EC0010, …), each once.

    The lines about its cause and its solution that follow come along, each of them whole.
    """
    picked: List[str] = []
    in_detail = follows_code = False
    for line in lines:
        if CODE.search(line) and not DETAIL.match(line):
            in_detail = False
            follows_code = not any(earlier in line for earlier in picked)
            if follows_code:
                picked.append(line.strip())
                yield line
        elif follows_code and (DETAIL.match(line) or in_detail and NEXT_OF_DETAIL.match(line)):
            in_detail = True
            yield line
        else:
            follows_code = in_detail = False


def explain(printed: str, log: str, failed: bool) -> List[str]:
    """Why atc failed, in lines for a message.

    printed: what atc printed; log: what CANN's own log says. failed: whether atc says itself that
    it failed; then, without a code in either, these are the last lines of both.
    """
    lines = [*printed.splitlines(), *log.splitlines()]
    chosen = list(coded_errors(lines))[:MOST]
    if failed and not chosen:
        chosen = [line for line in printed.splitlines() if not BANNER.search(line)][-LAST:]
        chosen += [line for line in log.splitlines() if line.startswith("[ERROR]")][-LAST:]
    return [f"    {printable(line)[:WIDEST]}" for line in chosen]


def cures(text: str, soc: str) -> Iterator[str]:
    """Yield what helps against errors that have no code, or whose code does not name the cure.

    text: all that atc printed and logged; soc: the chip that it compiled for.
    """
    library = re.search(r"(\S+\.so\S*): cannot open shared object file", text)
    if library and "libascend_hal" in library.group(1):
        yield (
            "there is no driver on this host, and atc needs its library: export "
            f"LD_LIBRARY_PATH={cann.devlib()}:$LD_LIBRARY_PATH"
        )
    elif library:
        yield f"a library of CANN is not found: {cann.source()}"
    needs_operators = bool(UNSUPPORTED.search(text))
    modules = re.findall(r"No module named '?([\w.]+)", text)
    for module in dict.fromkeys(name.split(".")[0] for name in modules):
        if module in OF_CANN:
            needs_operators = True
            yield f"the module {module} is CANN's own: {cann.source()}"
        else:
            yield f"python3 lacks {module}: pip3 install {DISTRIBUTIONS.get(module, module)}"
    operators = cann.operators(soc)
    if needs_operators and not operators.there:
        state = "; ".join(filter(None, [operators.state, operators.advice]))
        yield f"atc needs the operators of {soc}: {state}"


def how_it_ended(status: int, batch_size: int) -> str:
    """How atc, which ended with this status, ended at a batch size."""
    if status > 128 and status - 128 in list(signal.Signals):
        number = signal.Signals(status - 128).name[len("SIG") :]
        return (
            f"atc was ended by signal {number} at batch size {batch_size}; if nobody did that, the "
            "memory may have been full"
        )
    if status:
        return f"atc failed with status {status} at batch size {batch_size}"
    return f"atc ended well at batch size {batch_size}"


# ---- the model -----------------------------------------------------------------------------------


class Model(NamedTuple):
    """The file that atc wrote."""

    path: str  # "" if there is no model
    problem: str = ""  # why there is not one


def find_model(folder: str, name: str) -> Model:
    """The model NAME.om that atc wrote into a folder, which was empty before."""
    found = glob.glob(os.path.join(glob.escape(folder), f"{name}.om"))
    found += glob.glob(os.path.join(glob.escape(folder), f"{name}_linux_*.om"))
    if not found:
        return Model("", f"it wrote no {name}.om (nor {name}_linux_*.om)")
    problem = problem_of(found[0])
    if problem:
        return Model("", f"its {os.path.basename(found[0])} {problem}")
    return Model(found[0])


def problem_of(path: str) -> str:
    """Why a file is not a model that atc has just made, in words; "" if it is one."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return "is a link, or not a regular file"
    if status.st_nlink != 1 or status.st_uid != os.geteuid():
        return "is not a file of its own: it has another name or another owner"
    with open(open_regular(path, follow_links=False), "rb") as file:
        return problem_of_header(file.read(HEADER_SIZE), status.st_size)


def problem_of_header(header: bytes, size: int) -> str:
    """Why a file that begins like this is not a model, in words; "" if it is one.

    size: of the file, in bytes. CANN's runtime asks the same when it loads a model.
    """
    if len(header) < HEADER_SIZE or not header.startswith(MAGIC):
        return f"is not a compiled model: it begins with {header[:8]!r} and not with {MAGIC!r}"
    (length,), (long_length,) = LENGTH.unpack_from(header), LONG_LENGTH.unpack_from(header)
    expected = HEADER_SIZE + (long_length or length)
    if size != expected:
        return f"has {size:,} bytes, but its header says {expected:,}: it is not complete"
    return ""


def check_model(path: str) -> str:
    """Why the file that a user names is not a model, in words; "" if it is one. Raises: OSError."""
    with open(open_regular(path), "rb") as file:
        return problem_of_header(file.read(HEADER_SIZE), os.fstat(file.fileno()).st_size)
