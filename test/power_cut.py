#!/usr/bin/env python3
"""Cut the power for real, as far as software can: does the same command recover?

    python3 test/power_cut.py --data own --runs 10       # as root; 900 small images, a tiny network
    python3 test/power_cut.py --data sample --runs 10  # the whole pipeline on the sample photos

Each run works on a fresh ext4 in a file (a loop device). At a given moment the file system is shut
down without its journal being flushed (the ioctl EXT4_IOC_SHUTDOWN): what no fsync had brought to
the disk is lost, or has zero length. Then all processes are killed and the file system is mounted
again. /proc/sys/kernel/random/boot_id says that the machine started again, and the same command
runs once more. It must end with 0, and with the bytes of an undisturbed run.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Callable, Dict, List, Tuple

ROOT = Path(__file__).resolve().parent.parent
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# of Linux: include/uapi/linux/ext4.h (fs/ext4/ext4.h in older ones)
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
IMAGES, SIDE = 900, 32
Moment = Tuple[str, Callable[[Path], bool]]


def count(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern)) if folder.is_dir() else 0


def commands(data: str, work: Path, scratch: Path) -> str:
    """What is run before the cut and after it, as a line for the shell."""
    python = shlex.quote(sys.executable)
    quoted = {"work": shlex.quote(str(work)), "from": shlex.quote(str(scratch))}
    if data == "sample":
        return f"bash scripts/pipeline.sh --backend cpu --workdir {quoted['work']}"
    steps = [
        "TResNet_preprocess.py {from}/images {work}/prep --img-size %d" % SIDE,
        "scripts/infer_onnx.py --model {from}/net.onnx --input {work}/prep --output {work} "
        "--output_dirname result --outfmt TXT --batchsize 8",
        "TResNet_postprocess.py {work}/result {from}/labels.txt {work} acc.json --prep {work}/prep",
    ]
    return " && ".join(f"{python} {step.format(**quoted)}" for step in steps)


def moments(data: str) -> List[Moment]:
    """When the power fails."""
    if data == "sample":
        return [
            (
                "after the sample was made",
                lambda work: (work / "tresnet.onnx.record.jsonl").exists(),
            ),
            ("in the inference", lambda work: count(work / "result", "*_0.*") >= 8),
            ("at the end", lambda work: (work / "acc.json").exists()),
        ]
    return [
        ("in the preprocessing", lambda work: count(work / "prep", "*.bin") >= IMAGES // 2),
        ("in the inference", lambda work: count(work / "result", "*_0.txt") >= IMAGES // 2),
        ("at the end", lambda work: (work / "acc.json").exists()),
    ]


def make_data(scratch: Path) -> None:
    """900 images of a few colours, their labels, and a network that classifies them by colour."""
    sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "test")]
    import test_infer
    from PIL import Image
    from test_infer import make_model

    test_infer.SIDE = SIDE
    make_model(scratch / "net.onnx")
    (scratch / "images").mkdir()
    labels = []
    for index in range(IMAGES):
        colour = [40, 40, 40]
        colour[index % 3] = 100 + index % 150
        Image.new("RGB", (SIDE + index % 5, SIDE), tuple(colour)).save(
            str(scratch / "images" / f"i{index}.png")
        )
        labels.append(f"i{index}.png {index % 3}\n")
    (scratch / "labels.txt").write_text("".join(labels))


def products(work: Path) -> Dict[str, str]:
    """{path: SHA-256} of what two runs must have in common."""
    wanted = [
        *work.glob("prep*/*.bin"),
        *work.glob("result/*"),
        work / "acc.json",
        *work.glob("*.onnx"),
        *work.glob("sample/*"),
        *work.glob("sample/val_union/*"),
    ]
    return {
        str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in wanted
        if path.is_file() and not path.name.endswith(".record.jsonl")
    }  # which holds times


def end_boot() -> None:
    """Take away what new_boot() has mounted, if it has."""
    subprocess.run(["umount", "--lazy", BOOT_ID], stderr=subprocess.DEVNULL)


def new_boot(scratch: Path) -> None:
    """Another start of the machine, for the processes of this mount namespace."""
    end_boot()
    name = scratch / f"boot-{uuid.uuid4()}"
    name.write_text(f"{uuid.uuid4()}\n")
    subprocess.run(["mount", "--bind", str(name), BOOT_ID], check=True)


def cut(mounted: Path, names_first: bool) -> None:
    """Shut the file system down; nothing that is in memory gets to the disk any more.

    names_first: just before, another program's fsync commits the journal, with the names of all
    files, but without the content that ext4 has not placed yet: they have zero length afterwards.
    """
    if names_first:
        other = os.open(str(mounted / "other"), os.O_WRONLY | os.O_CREAT)
        os.write(other, b"x")
        os.fsync(other)
        os.close(other)
    folder = os.open(str(mounted), os.O_RDONLY)
    fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    os.close(folder)


def unmount(mounted: Path) -> None:
    for _ in range(100):  # a process that was killed may hold it for a moment
        if not subprocess.run(["umount", str(mounted)], stderr=subprocess.DEVNULL).returncode:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(mounted)], check=True)


def mount(image: Path, mounted: Path) -> None:
    subprocess.run(["mount", "-o", "loop,commit=1", str(image), str(mounted)], check=True)


def make_disk(data: str, image: Path) -> None:
    """An image of a file system with space for a run."""
    size = "2G" if data == "sample" else "300M"
    if image.exists():
        image.unlink()
    subprocess.run(["truncate", "--size", size, str(image)], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)


def run_until(
    command: str, log: Path, is_time: Callable[[], bool], cut_now: Callable[[], None]
) -> None:
    """Start a command, cut the power when it is time, and kill the command."""
    with open(str(log), "wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=str(ROOT),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not is_time() and process.poll() is None:
            time.sleep(0.002)
        cut_now()
        kill_session(process.pid)
        process.wait()


def one_run(
    data: str, moment: Moment, names_first: bool, scratch: Path, expected: Dict[str, str]
) -> str:
    """One power cut; "" if the same command recovered, otherwise what happened."""
    image, mounted = scratch / "disk.img", scratch / "disk"
    mounted.mkdir(exist_ok=True)
    make_disk(data, image)
    mount(image, mounted)
    new_boot(scratch)
    work = mounted / "work"
    if data == "own":
        work.mkdir(mode=0o750)
    command = commands(data, work, scratch)
    try:
        run_until(
            command,
            scratch / "first.log",
            lambda: moment[1](work),
            lambda: cut(mounted, names_first),
        )
        unmount(mounted)
        mount(image, mounted)
        new_boot(scratch)
        lost = [path for path in work.rglob("*") if path.is_file() and not path.stat().st_size]
        if data == "own":
            work.mkdir(mode=0o750, exist_ok=True)
        second = subprocess.run(
            ["bash", "-c", command],
            cwd=str(ROOT),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        if second.returncode:
            output = second.stdout.decode(errors="replace")
            return f"exit status {second.returncode}: {output[-600:]}"
        made = products(work)
        wrong = [name for name in expected if made.get(name) != expected[name]]
        print(f"    {len(lost)} files of zero length after the cut; recovered", flush=True)
        return f"{len(wrong)} products differ, such as {wrong[:3]}" if wrong else ""
    finally:
        unmount(mounted)


def kill_session(leader: int) -> None:
    """Kill all processes of a session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            if int(path.read_text().rpartition(")")[2].split()[3]) == leader:
                os.kill(int(path.parent.name), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("own", "sample"), default="own")
    parser.add_argument(
        "--runs", type=int, default=10, help="for each of three moments (default: %(default)s)"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:  # its mounts, such as that over boot_id, get a namespace of their own
        words = ["unshare", "--mount", "--propagation", "private"]
        return subprocess.call([*words, sys.executable, *sys.argv, "--inside"])
    scratch = Path(tempfile.mkdtemp(prefix="power-cut-"))
    try:
        if arguments.data == "own":
            make_data(scratch)
        (scratch / "whole").mkdir(mode=0o750)
        subprocess.run(
            ["bash", "-c", commands(arguments.data, scratch / "whole", scratch)],
            cwd=str(ROOT),
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        expected = products(scratch / "whole")
        failed = 0
        for moment in moments(arguments.data):
            for run in range(1, arguments.runs + 1):
                print(f"{moment[0]}, run {run} of {arguments.runs}:", flush=True)
                problem = one_run(arguments.data, moment, run % 2 == 1, scratch, expected)
                failed += bool(problem)
                print(f"    FAILED: {problem}\n" if problem else "", end="", flush=True)
        print(f"{failed} of {3 * arguments.runs} runs did not recover")
        return 1 if failed else 0
    finally:
        end_boot()
        shutil.rmtree(str(scratch), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
