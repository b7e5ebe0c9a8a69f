"""A tool that misbehaves: runs the stand-in, then spoils what it wrote.

    misbehave.py TOOL ARGUMENTS…     TOOL: atc, npu-smi, amct_onnx, ais_bench

ATTACK_TOOL names the tool that misbehaves, ATTACK_WAY how, ATTACK_OUTSIDE a folder of somebody.
All other tools, and the calls that only ask for help or a version, behave. Standard library only.
"""

import os
import random
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, List

STANDINS = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir, "ascend")
AIS_BENCH = (
    "import runpy, sys; sys.argv[0] = 'ais_bench'; "
    "runpy.run_module('ais_bench', run_name='__main__', alter_sys=True)"
)


def command(tool: str, arguments: List[str]) -> List[str]:
    """The command of the stand-in."""
    if tool == "ais_bench":
        return [sys.executable, "-c", AIS_BENCH, *arguments]
    return [os.path.join(STANDINS, "bin", tool), *arguments]


def outputs(began: float) -> List[str]:
    """The files below the current folder that were written since `began`."""
    paths = []
    for folder, _, names in os.walk("."):
        for name in names:
            path = os.path.join(folder, name)
            is_log = name.endswith((".log", ".json")) or "kernel_meta" in path
            if not is_log and not os.path.islink(path) and os.stat(path).st_mtime >= began:
                paths.append(path)
    return sorted(paths)


def spoil(way: str, began: float) -> None:
    """Change what the tool wrote."""
    paths = outputs(began)
    if not paths:
        return
    path = paths[0]
    with open(path, "rb") as file:
        content = file.read()
    if way == "half":
        os.truncate(path, len(content) // 2)
    elif way == "empty":
        os.truncate(path, 0)
    elif way == "few":
        os.unlink(path)
    elif way == "many":
        for number in range(3):
            stem, suffix = os.path.splitext(path)
            with open("%s%d%s" % (stem, number, suffix), "wb") as file:
                file.write(content)
    elif way == "wrong length":
        with open(path, "ab") as file:
            file.write(content[-8:])
    elif way == "other format":
        with open(path, "wb") as file:
            file.write(b"<html>503 Service Unavailable</html>\n")
    elif way in INSTEAD:
        os.unlink(path)
        INSTEAD[way](path)
    elif way == "other user":
        for path in paths:
            os.chown(path, 54321, 54321)
            os.chmod(path, 0o600)
    elif way == "summary":
        spoil_summaries()


def letter() -> str:
    return os.path.join(os.environ["ATTACK_OUTSIDE"], "letter.txt")


INSTEAD: Dict[str, Callable[[str], Any]] = {
    "link": lambda path: os.symlink(letter(), path),
    "hard link": lambda path: os.link(letter(), path),
    "fifo": os.mkfifo,
    "folder": os.mkdir,
}


def dice() -> random.Random:
    """The same for the same try."""
    return random.Random(os.environ["ATTACK_DICE"])


def spoil_summaries() -> None:
    text = dice().choice(['{"throughput": NaN}', "[]", '{"a": ', "null"])
    for folder, _, names in os.walk("."):
        for name in names:
            if name.endswith("_summary.json"):
                with open(os.path.join(folder, name), "w") as file:
                    file.write(text)


def leave_copy() -> None:
    """Leave a process that goes on after its parent has ended."""
    if not os.fork():
        os.setpgid(0, 0)
        time.sleep(600)
        os._exit(0)


def main() -> int:
    tool, arguments = sys.argv[1], sys.argv[2:]
    words, way = command(tool, arguments), os.environ.get("ATTACK_WAY", "")
    only_asks = not set(arguments) - {"--help", "-v", "--version", "-h"}
    if tool != os.environ.get("ATTACK_TOOL") or (only_asks and tool != "npu-smi"):
        os.execv(words[0], words)
    if way == "hang":
        time.sleep(600)
    if way == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if way in ("KILL", "SEGV", "TERM"):
        os.kill(os.getpid(), getattr(signal, "SIG" + way))
        time.sleep(60)
    if way == "nothing":
        return 0
    if way == "copy":
        leave_copy()
    if way in ("garbage", "only garbage"):
        noise = dice().getrandbits(8 * 300_000).to_bytes(300_000, "little")
        sys.stdout.buffer.write(noise + b"\x1b[2J\x1b]0;title\x07\n" * 100)
        sys.stdout.flush()
        if way == "only garbage":
            return 0
    began = time.time() - 0.1
    # what the stand-in itself starts behaves
    status = subprocess.call(words, env=dict(os.environ, ATTACK_TOOL=""))
    if way == "fails late":
        print("E99999: something failed at the end")
        return 1
    spoil(way, began)
    return status


if __name__ == "__main__":
    sys.exit(main())
