"""One-bit flips and truncation of every file that a step reads, with its times as they were.

Where a product or a record was damaged, the step must make it again, or refuse. Where an input was
damaged, it must do what it does with that input in a fresh folder: the same bytes, or a refusal.
Compiled libraries, timm's patched source and the stamp of the environment are damaged, too.
"""

import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any, List, Tuple

from attacks import bed as ground
from attacks import trial
from attacks.bed import Bed
from attacks.trial import Outcome, Step

# What the user gives: a damaged one is another one, and nothing can say that it is damaged.
INPUTS = ("images/", "labels.txt", "net.onnx", "model.pth", "ILSVRC2012/")
# Files without a record: their own content decides whose they are and what they say.
WITHOUT_RECORD = ("acc.json", "acc_report.json", "compare.json", "merged/", "shard1/", "shard2/")


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    choice = dice.random()
    if choice < 0.04:
        return damage_library(bed, dice)
    if choice < 0.08:
        return damage_timm(bed, dice)
    if choice < 0.10:
        return damage_stamp(bed, dice)
    bed.restore()
    step = ground.choose(dice, ground.STEPS)
    path = choose_file(bed, step, dice)
    name = str(path.relative_to(bed.here))
    if path.name.endswith(".jsonl") and dice.random() < 0.5:
        done = damage_row(path, dice)
    else:
        done = damage(path, dice)
    ended = bed.run(step)
    what = f"{step.name}: {name}: {done}"
    if name.startswith(INPUTS):
        return what, judge_input(bed, step, ended)
    return what, judge_product(bed, step, name, ended)


def choose_file(bed: Bed, step: Step, dice: random.Random) -> Path:
    """A file that the step reads; each kind of file equally often."""
    kinds: Any = {}
    for path in bed.readable(step):
        kinds.setdefault((str(path.parent), path.suffix), []).append(path)
    return Path(dice.choice(kinds[dice.choice(sorted(kinds))]))


def damage(path: Path, dice: random.Random) -> str:
    """Damage a file in one of the ways. Returns: how."""
    return trial.flip_bit(path, dice) if dice.random() < 0.7 else trial.truncate(path, dice)


def damage_row(path: Path, dice: random.Random) -> str:
    """Damage one row of a record, drop it, double it, or swap it with the next one."""
    status, rows = path.stat(), path.read_bytes().splitlines(keepends=True)
    place, way = dice.randrange(len(rows)), dice.choice(("flip", "drop", "double", "swap", "empty"))
    row = rows[place]
    if way == "flip":
        byte = dice.randrange(len(row))
        changed = bytes([row[byte] ^ (1 << dice.randrange(8))])
        rows[place] = row[:byte] + changed + row[byte + 1 :]
    elif way == "drop":
        del rows[place]
    elif way == "double":
        rows.insert(place, row)
    elif way == "swap":
        rows[place - 1], rows[place] = rows[place], rows[place - 1]
    else:
        rows[place] = b"\n"
    path.write_bytes(b"".join(rows))
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"row {place + 1} of {len(rows)}: {way}"


def judge_product(bed: Bed, step: Step, name: str, ended: trial.Ended) -> Outcome:
    """After damage to a product or a record: the bytes of the undisturbed run, or a refusal."""
    outcome = trial.judge_end(ended)
    if name.startswith(WITHOUT_RECORD) or is_changed_report(step):
        return outcome  # what such a file says now is what it says
    made = bed.products(step)
    return trial.judge(ended, made, bed.expected[step.name])


def is_changed_report(step: Step) -> bool:
    """Whether the products show what any JSON file of the work folder says."""
    return step.name in ("report", "expect", "merge")


def judge_input(bed: Bed, step: Step, ended: trial.Ended) -> Outcome:
    """After damage to an input: what the step does with it in a fresh folder."""
    outcome = trial.judge_end(ended)
    if outcome.kind != trial.SURVIVED:
        return outcome
    made = bed.products(step)
    bed.remove_products(step)
    fresh = bed.run(step)
    if fresh.status:
        details = f"it ended well, but in a fresh folder it says: {fresh.last}"
        return Outcome(trial.WRONG, details)
    difference = trial.different(made, bed.products(step))
    if difference:
        return Outcome(trial.WRONG, f"not the products of a fresh folder: {difference}")
    return outcome


# ---- what the set-up made ------------------------------------------------------------------------


def damage_library(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A compiled library or its checksum is damaged: preprocessing gives the same bytes."""
    from common.core import native

    cache = bed.folder / "cache"
    shutil.rmtree(str(cache), ignore_errors=True)
    shutil.copytree(native.CACHE, str(cache), ignore=shutil.ignore_patterns("*.pyc"))
    paths = sorted(path for path in cache.iterdir() if ".so" in path.name)
    bed.restore()
    step = ground.BY_NAME[dice.choice(("preprocess", "postprocess"))]
    bed.remove_products(step)
    done: List[str] = []
    for path in paths:
        done.append(f"{path.name}: {damage(path, dice)}")

    def use_cache() -> None:
        native.CACHE = str(cache)

    ended = bed.run(step, use_cache)
    outcome = trial.judge(ended, bed.products(step), bed.expected[step.name])
    return f"{step.name}: {'; '.join(done)}", outcome


def damage_timm(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A file of timm's patched source is damaged: no network is made of it, or the same one."""
    from common.core import cli
    from common.model import network

    import timm_source

    copy, made = bed.folder / "timm", bed.folder / "network.txt"
    shutil.rmtree(str(copy), ignore_errors=True)
    shutil.copytree(network.TIMM, str(copy))
    timm_source.write_stamp(str(copy), timm_source.sha256(timm_source.PATCH), timm_source.OURS)

    def create() -> int:
        network.TIMM = str(copy)
        cli.run(lambda: write(made, repr(network.create_network("tresnet_m", 10))))
        return 0

    if not (bed.folder / "network-expected.txt").exists():
        trial.fork(create, bed.folder)
        made.rename(bed.folder / "network-expected.txt")
    models = "anti_aliasing space_to_depth inplace_abn helpers".split()
    names = [copy / "timm" / "models" / "tresnet.py", copy / timm_source.PATCHED]
    names += [copy / "timm" / "models" / "layers" / f"{name}.py" for name in models]
    path = dice.choice([name for name in names if name.exists()])
    done = damage(path, dice)
    outcome = trial.judge_end(trial.fork(create, bed.folder))
    if outcome.kind == trial.SURVIVED:
        if made.read_text() != (bed.folder / "network-expected.txt").read_text():
            outcome = Outcome(trial.WRONG, "the network is another one")
    return f"timm's {path.name}: {done}", outcome


def write(path: Path, text: str) -> int:
    path.write_text(text)
    return 0


def damage_stamp(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """The stamp of the environment is damaged: set-up does not take the environment for finished,
    unless the stamp still says what it said.
    """
    from common.core import environment, places

    folder = bed.folder / "environment"
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir()
    requirements = [environment.REQUIREMENTS]
    lines = environment.stamp_lines(requirements)
    stamp = folder / environment.STAMP
    stamp.write_text("".join(sorted(lines)))
    (folder / "bin").mkdir()
    (folder / "lib" / ("python%d.%d" % sys.version_info[:2]) / "site-packages").mkdir(parents=True)
    os.symlink("/bin/true", str(folder / "bin" / "python"))
    done = damage(stamp, dice)

    def look() -> int:
        return 0 if environment.finished(places.in_folder(str(folder)), requirements) else 3

    ended = trial.fork(look, bed.folder)
    if ended.status == 3:
        return f"stamp: {done}", Outcome(trial.SENTENCE, "it is made again")
    outcome = trial.judge_end(ended)
    if outcome.kind == trial.SURVIVED:
        if not lines <= set(stamp.read_text().splitlines(keepends=True)):
            outcome = Outcome(trial.WRONG, "a damaged stamp counts as finished")
    return f"stamp: {done}", outcome
