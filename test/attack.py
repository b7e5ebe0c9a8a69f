#!/usr/bin/env python3
"""Attack the program in every way that anybody thought of: does it stay whole, and honest?

    python3 test/attack.py --tries 2000 --seed 1       # all classes in turn
    python3 test/attack.py --only system --tries 200
    python3 test/attack.py --only flips --seed 1 --try 37    # one try again

Each try runs a step on a small finished work folder while something goes wrong, and is judged:

    survived       it ended well, with the bytes of an undisturbed run
    one sentence   it ended with a message, and the same command recovers
    traceback      an error that nobody expected, or a crash
    hang           it did not end, or left a process behind
    wrong figure   it ended well with other bytes, or its products are others after a second run
    damage         files of somebody else changed, something is left, or it never recovers

The last four are faults: each is printed with the words that repeat it, and the exit status is 1.
The classes are the modules of test/attacks/. A try depends only on its class, seed and number.
What a machine lacks (a C compiler, root, FUSE) leaves tries out; the table says how many and why.
"""

import argparse
import collections
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, Counter, Dict, Iterable, List

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "test"), str(ROOT / "scripts"), str(ROOT)]
from attacks import bed as ground  # noqa: E402
from attacks import faults, trial  # noqa: E402

CLASSES = (
    "system",
    "flips",
    "strangers",
    "tools",
    "meanwhile",
    "resources",
    "inputs",
    "untried",
)


# What the steps import when they need it: a try, which is a copy of this process, has it already.
PACKAGES = (
    "numpy onnx onnxruntime onnxruntime.quantization torch PIL.Image pyarrow.parquet jinja2 "
    "matplotlib.backends.backend_agg matplotlib.pyplot onnx.shape_inference"
).split()
PROGRAMS = "infer_om npu_info onnx2om perf_sweep quantize_amct".split()
MODULES = (
    "common.results.plots common.results.figures common.model.graph common.model.network "
    "common.model.quantisation common.model.speed common.data.pixels"
).split()
EVERY = {"tools": 4, "resources": 3}  # rounds in which a class has a try: its programs are slow


class Table:
    """Tries and outcomes of each class."""

    def __init__(self) -> None:
        self.counts: Dict[str, Counter[str]] = {}
        self.left_out: Dict[str, Counter[str]] = {}
        self.failures: List[str] = []

    def add(self, name: str, kind: str) -> None:
        self.counts.setdefault(name, collections.Counter())[kind] += 1

    def leave_out(self, name: str, reason: str) -> None:
        self.left_out.setdefault(name, collections.Counter())[reason] += 1

    def __str__(self) -> str:
        heads = ("class", "tries", *trial.OUTCOMES)
        rows: List[List[Any]] = []
        total: Counter[str] = collections.Counter()
        for name, counts in self.counts.items():
            rows.append(row_of(name, counts))
            total.update(counts)
        lines = list(map(line_of, [heads, *rows, row_of("all", total)]))
        for name, reasons in self.left_out.items():
            lines += [f"{name}: {count} left out: {why}" for why, count in reasons.items()]
        return "\n".join(lines)


def row_of(name: str, counts: "Counter[str]") -> List[Any]:
    return [name, sum(counts.values()), *(counts[kind] for kind in trial.OUTCOMES)]


def line_of(words: Iterable[Any]) -> str:
    return "  ".join(f"{word:>12}" for word in words)


def load(name: str) -> ModuleType:
    return importlib.import_module(f"attacks.{name}")


def one_try(bed: ground.Bed, table: Table, name: str, seed: int, number: int, loud: bool) -> None:
    """Carry out a try and note its outcome."""
    dice = random.Random(f"{seed} {name} {number}")
    try:
        what, outcome = load(name).attack(bed, dice)
    except trial.Skip as reason:
        table.leave_out(name, str(reason))
        return
    except Exception:  # of the attack itself: the other tries go on
        what, outcome = "the attack itself", trial.Outcome(trial.TRACEBACK, traceback.format_exc())
    table.add(name, outcome.kind)
    line = f"{name} --seed {seed} --try {number}: {what}: {outcome.kind}"
    if outcome.kind in trial.BAD:
        table.failures.append(f"{line}: {outcome.details}")
        print(f"FAULT {line}\n    {outcome.details}", flush=True)
    elif loud:
        print(f"{line}: {outcome.details}", flush=True)


def prepare(folder: Path) -> ground.Bed:
    """Import what the tries need before they are copies of this process, and make the ground."""
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            print(f"without {package}")
    for module in (*(step.module for step in ground.STEPS), *PROGRAMS, *MODULES):
        importlib.import_module(module)
    page = faults.Page(folder / "order") if faults.is_preloaded() else None
    return ground.make(folder, page)


def attack(names: List[str], tries: int, seed: int, only: int, loud: bool, folder: Path) -> Table:
    """Try each class in turn. Returns: what happened."""
    table, bed = Table(), prepare(folder)
    if only:
        one_try(bed, table, names[0], seed, only, loud=True)
        return table
    began, number, done = time.monotonic(), 0, 0
    while done < tries:
        number += 1
        for name in names:
            if len(names) == 1 or number % EVERY.get(name, 1) == 0:
                one_try(bed, table, name, seed, number, loud)
                done += 1
        if number % 25 == 0:
            print(f"({done} tries, {time.monotonic() - began:.0f} s)", flush=True)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="CLASS", help=", ".join(CLASSES))
    parser.add_argument("--tries", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument(
        "--try", type=int, default=0, dest="number", help="only this one, of --only"
    )
    parser.add_argument("--verbose", action="store_true", help="a line for each try")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(CLASSES)
    unknown = set(names) - set(CLASSES)
    if unknown:
        parser.error(f"there is no class {', '.join(unknown)}; there are {', '.join(CLASSES)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clear away, then end
    folder = Path(tempfile.mkdtemp(prefix="attack-", dir=os.environ.get("ATTACK_FOLDER")))
    try:
        library = faults.build(folder)
        if library and not faults.is_preloaded():
            os.environ["ATTACK_FOLDER"] = str(folder)
            os.environ["LD_PRELOAD"] = str(library)
            import subprocess

            return subprocess.call([sys.executable, *sys.argv])
        table = attack(
            names,
            arguments.tries,
            arguments.seed,
            arguments.number,
            arguments.verbose,
            folder,
        )
    finally:
        shutil.rmtree(str(folder), ignore_errors=True)
    print(table)
    for failure in table.failures:
        print(f"\nFAULT {failure}")
    return 1 if table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
