"""What this host tells of its Ascend tools: chips, versions, how ais_bench and atc are started and ended.

Standard library only: it must run in a bare host Python. npu-smi prints one table of chips, two lines for each, and
after it (not always) one of processes, which looks much the same; only the first is read.
"""
import contextlib
import glob
import os
import re
import shutil
import subprocess
from typing import Any, Dict, Iterator, List

from common.cli import ROOT, Refusal, end_group, shown, why
from common.names import SAFE_PATH

BATCH_SIZES = "1,4,8,16,32"  # those of the published figures
TIMEOUT = 30.0  # s; npu-smi answers within a few, but waits for ever if the driver hangs
NAME_LINE = re.compile(r"\|\s*(\d+)\s+([A-Za-z0-9_-]+)\s*\|\s*(\S+)\s*\|.*\|$")  # NPU, name | health | power, ...
BUS_LINE = re.compile(r"\|\s*(\d+)(?:\s+\d+)?\s*\|\s*([0-9A-Fa-f]+:[0-9A-Fa-f:.]+)\s*\|.*\|$")  # chip | bus id
BENCH = ("python3", "-m", "ais_bench")  # in the host's own Python
DRIVER_INFO = "/usr/local/Ascend/driver/version.info"
SET_ENV = "/usr/local/Ascend/ascend-toolkit/set_env.sh"  # where CANN's installer puts it unless told otherwise


def parse_npu_smi(answer: str) -> List[Dict[str, Any]]:
    """The chips in the output of `npu-smi info`, in the order of device ids: npu, chip, name, health, bus_id.

    Raises: ValueError if the table of chips is not as expected.
    """
    chips: List[Dict[str, Any]] = []
    in_table = False
    for number, line in enumerate(map(str.strip, answer.splitlines()), start=1):
        if not line.startswith("|"):
            continue
        if re.search(r"\bName\b.*\bHealth\b", line):
            in_table = True
        elif "Process" in line or "npu-smi" in line:  # the second table, or the line of versions above the first
            in_table = False
        if not in_table or re.search(r"\b(Name|Bus-Id)\b", line):
            continue
        name, bus = NAME_LINE.match(line), BUS_LINE.match(line)
        begun = bool(chips) and "bus_id" not in chips[-1]
        if bus and begun:
            chips[-1].update(chip=int(bus.group(1)), bus_id=bus.group(2))
        elif name and not begun:
            chips.append({"npu": int(name.group(1)), "name": name.group(2), "health": name.group(3)})
        else:
            raise ValueError(f"line {number} of its table is {line!a}")
    if chips and "bus_id" not in chips[-1]:
        raise ValueError("its table ends in the middle of a chip")
    return chips


def find_chips(timeout: float = TIMEOUT) -> List[Dict[str, Any]]:
    """The chips of this machine, at least one (see parse_npu_smi). Raises: Refusal, also after `timeout` s."""
    try:
        answer = subprocess.check_output(["npu-smi", "info"], stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
                                         timeout=timeout)
        chips = parse_npu_smi(answer.decode(errors="replace"))
        if chips:
            return chips
        problem = ("the answer of npu-smi info names no NPU; check that the card is seated and visible here (lspci, "
                   "container options)")
    except subprocess.CalledProcessError as error:
        said = " ".join(error.output.decode(errors="replace").split())[:200] or "nothing"
        problem = (f"npu-smi info failed with status {error.returncode} and said {said!a}; check that the driver is "
                   "loaded and that you may use the card")
    except FileNotFoundError:
        problem = "there is no npu-smi on the PATH; install the Ascend driver, or set it up"
    except OSError as error:
        problem = f"npu-smi cannot be started ({why(error)}); mend the driver's installation"
    except subprocess.TimeoutExpired:
        problem = f"npu-smi info gave no answer within {timeout:g} s; check the driver (dmesg)"
    except ValueError as error:
        problem = f"the answer of npu-smi info cannot be read: {error}; report it"
    raise Refusal(f"{problem}, or name the chip yourself (--soc-version)")


def the_chip(chips: List[Dict[str, Any]]) -> str:
    """The name that all chips share, as npu-smi writes it. Raises: Refusal if they are of different kinds."""
    names = sorted({chip["name"] for chip in chips})
    if len(names) > 1:
        raise Refusal(f"this machine has chips of different kinds ({', '.join(names)}), and a model is compiled for "
                      f"one: choose it, for instance by --soc-version {soc_version(names[0])}")
    return str(names[0])


def soc_version(name: str) -> str:
    """atc's --soc_version of a chip: "310P3" gives "Ascend310P3"; "Ascend910" stays."""
    return name if name.startswith("Ascend") else "Ascend" + name


def version_in(paths: List[str]) -> str:
    """The first `version=…` in the files, "" if there is none."""
    for path in paths:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(r"^\s*[Vv]ersion\s*=\s*\[?([\w.+-]+)", file.read(), re.MULTILINE)
            if found:
                return found.group(1)
    return ""


def cann_folders() -> List[str]:
    """Where a CANN may be: the one that its set_env.sh has set up first, then the places its installer knows."""
    roots = ["/usr/local/Ascend", os.path.expanduser("~/Ascend")]
    usual = [f"{root}/{name}/latest" for root in roots for name in ("ascend-toolkit", "cann")]
    return [*filter(None, [os.environ.get("ASCEND_TOOLKIT_HOME")]), *usual, f"{roots[0]}/latest"]


def cann_version() -> str:
    """The version of the first CANN that says one, "" if there is none."""
    return version_in([path for folder in cann_folders() for path in [
        f"{folder}/version.cfg", *sorted(glob.glob(f"{folder}/*/ascend_toolkit_install.info"))]])


def set_env() -> str:
    """The script of an installed CANN that puts atc on the PATH, "" if there is none."""
    scripts = (os.path.join(os.path.dirname(folder), "set_env.sh") for folder in cann_folders())
    return next(filter(os.path.isfile, scripts), "")


def host_version(module: str) -> str:
    """The version of a package in the host's own python3, "" if it cannot be imported there."""
    code = (f"import {module}, sys; sys.path.insert(0, {os.path.join(ROOT, 'scripts')!r}); "
            f"from common.record import versions; print(versions([{module!r}])[{module!r}] or 'version unknown')")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        said = subprocess.check_output(["python3", "-c", code], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       timeout=60)
        return said.decode(errors="replace").strip()
    return ""


def host_versions() -> Dict[str, str]:
    """The versions of all that computes on the card: for records."""
    return {"ais_bench": host_version("ais_bench"), "aclruntime": host_version("aclruntime"), "CANN": cann_version(),
            "driver": version_in([DRIVER_INFO])}


def virtual_python() -> str:
    """The python3 on the PATH if it is a virtual environment's, in which atc fails; otherwise ""."""
    python, code = shutil.which("python3") or "", "import sys; sys.exit(sys.prefix != sys.base_prefix)"
    return python if python and subprocess.call([python, "-c", code], stdin=subprocess.DEVNULL,
                                                stderr=subprocess.DEVNULL) else ""


def safe_path(path: str) -> str:
    """The path made absolute. Raises: Refusal if it has what atc and ais_bench refuse."""
    path = os.path.abspath(path)
    if not SAFE_PATH.fullmatch(path):
        raise Refusal("atc and ais_bench accept only letters, digits, '_', '.', '-' and '/' in a path, so move or "
                      f"rename {shown(path)}, or name another")
    return path


def bench_command(model: str, **options: Any) -> List[str]:
    """The words that start ais_bench; options that are None are left out.

    With `input` each value is a word of its own, pure inference has "=": as its users have them in their notes.
    """
    words = [(f"--{name}", str(value)) for name, value in [("model", model), *options.items()] if value is not None]
    spelled = [word for pair in words for word in pair] if "input" in options else list(map("=".join, words))
    return [*BENCH, *spelled]


@contextlib.contextmanager
def run_folder(prefix: str) -> Iterator[str]:
    """A folder PREFIX-PID that this process has for itself, gone at the end; those of killed processes go first."""
    for left in glob.glob(glob.escape(prefix) + "-*"):
        process = left.rpartition("-")[2]
        if re.fullmatch("[0-9]+", process) and not os.path.exists(f"/proc/{process}"):
            shutil.rmtree(left, ignore_errors=True)
    folder = f"{prefix}-{os.getpid()}"
    os.mkdir(folder, 0o750)  # ais_bench refuses to write where others may look
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_tool(command: List[str], log: str, **options: Any) -> int:
    """Run a command, its output in the file `log`; its exit status, 128 + number if a signal ended it, as in a shell.

    It leads a process group, and when this returns or raises, all that it started has ended. A lock on the work folder
    that this process was started with holds until the command has ended as well. options: Popen's.
    """
    with open(log, "wb") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                 start_new_session=True, close_fds=False, **options)
    try:
        status = child.wait()
        return status if status >= 0 else 128 - status
    finally:
        end_group(child)
