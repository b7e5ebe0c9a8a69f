"""What no test had tried: a file system in user space, a clock that steps, no git, the work folder
of an older version, two users and one folder, very many images.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Callable, Iterator, Tuple

from conftest import DATA

from attacks import bed as ground
from attacks import faults, resources, trial
from attacks.bed import Bed
from attacks.faults import Order
from attacks.trial import Outcome, Skip

OLDER = DATA / "older_work.tar.xz"  # made by version 1.2.0 on the images and the network of bed.py
MANY = int(os.environ.get("ATTACK_IMAGES", "500"))
MOST_LINKS = 10_000  # to a file; ext4 has 65,000 at most
FIRST_USER, SECOND_USER, GROUP = 54321, 54322, 54323
FOLDER_MODES = {True: 0o2770, False: 0o755}  # shared with the group, or not
FILE_MODES = {True: 0o660, False: 0o644}
OPTIONS = (
    "--chmod-ignore --chown-ignore,--chmod-deny,--hide-hard-links,--delete-deny,--rename-deny,"
    "--multithreaded --enable-lock-forwarding,-o attr_timeout=0 -o entry_timeout=0,"
    "-o attr_timeout=30,--xattr-none,-o ro"
).split(",")
DENIES = ("deny", "-o ro")


def attack(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """One try. Returns: what was done, and the judgement."""
    kinds = (user_space, clock, clock, file_times, no_git, older, two_users, many_images)
    kind: Callable[[Bed, random.Random], Tuple[str, Outcome]] = dice.choices(
        kinds, (4, 4, 2, 4, 1, 3, 4, 1)
    )[0]
    bed.restore()
    before = trial.snapshot(bed.outside)
    what, outcome = kind(bed, dice)
    return f"{kind.__name__.replace('_', ' ')}: {what}", ground.judge_outside(bed, before, outcome)


# ---- a file system in user space -----------------------------------------------------------------


@contextlib.contextmanager
def mirrored(folder: Path, options: str) -> Iterator[None]:
    """During the block, a folder is its own mirror through FUSE, with the semantics of others."""
    words = ["bindfs", *options.split(), str(folder), str(folder)]
    done = subprocess.run([*words, "-o", "nonempty"], stderr=subprocess.PIPE)
    if done.returncode:
        done = subprocess.run(words, stderr=subprocess.PIPE)
    if done.returncode:
        raise Skip(f"bindfs cannot mount: {done.stderr.decode().strip()[:80]}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def user_space(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A network file system: its locks, links, modes and times are others."""
    if not shutil.which("bindfs") or os.geteuid() or not os.path.exists("/dev/fuse"):
        raise Skip("no bindfs, no /dev/fuse, or not root")
    step, options = ground.choose(dice, ground.STEPS), dice.choice(OPTIONS)
    fresh = dice.random() < 0.7
    if fresh:
        bed.remove_products(step)
    with mirrored(bed.here, options):
        ended = bed.run(step)
        made = bed.products(step)
        outcome = trial.judge(ended, made, bed.expected[step.name])
        if outcome.kind == trial.SENTENCE and not any(word in options for word in DENIES):
            outcome = Outcome(trial.DAMAGE, f"it refuses without need: {outcome.details}")
    return f"{step.name} on FUSE, {options}", ground.judge_after(bed, step, outcome)


# ---- the clock -----------------------------------------------------------------------------------


def clock(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """The clock steps while a step runs; files get the times of the system as it was."""
    if bed.page is None:
        raise Skip("no C compiler for the preloaded library")
    page, step = bed.page, ground.choose(dice, ground.STEPS)
    seconds = dice.choice((-(10**9), -86_400, -3600, -1, 1, 3600, 86_400 * 400))
    bed.remove_products(step)
    page.give(Order("", ["clock"], dice.randint(1, 60), error=seconds))
    ended = bed.run(step, lambda: faults.use(page))
    page.end()
    outcome = trial.judge(ended, bed.products(step), bed.expected[step.name])
    if outcome.kind == trial.SENTENCE:
        outcome = Outcome(trial.DAMAGE, f"it refuses for the clock: {outcome.details}")
    what = f"{step.name}: the clock steps by {seconds} s"
    return what, ground.judge_after(bed, step, outcome)


def file_times(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A clock was wrong when files were made: their times lie in the future, or long ago."""
    step = ground.choose(dice, ground.STEPS)
    paths = [path for path in bed.here.rglob("*") if path.is_file()]
    shift = dice.choice((-(10**9), -3600, 3600, 86_400 * 4000))
    for path in dice.sample(paths, dice.randint(1, len(paths))):
        status = path.stat()
        with contextlib.suppress(OverflowError):
            os.utime(str(path), (status.st_atime, status.st_mtime + shift))
    outcome = trial.judge(bed.run(step), bed.products(step), bed.expected[step.name])
    return f"{step.name}: files are {shift} s older", outcome


# ---- git, older versions -------------------------------------------------------------------------


def no_git(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """Without git what is patched stays good; what must be patched is refused."""
    from common.core import cli, packages, places
    from common.model import network

    import timm_source

    base = bed.folder / "checkout"
    copy = base / places.TIMM
    shutil.rmtree(str(base), ignore_errors=True)
    shutil.copytree(network.TIMM, str(copy))
    unpatched = dice.random() < 0.5
    if unpatched:
        (copy / places.PATCHED).unlink()
    folder = bed.folder / "programs"
    folder.mkdir(exist_ok=True)

    def main() -> int:
        places.ROOT = str(base)
        os.environ["PATH"] = str(folder)
        place = places.in_folder(str(base))
        cli.run(lambda: timm_source.prepare(place, packages.Source()))
        return 0

    outcome = trial.judge_end(trial.fork(main, bed.folder))
    if unpatched and outcome.kind == trial.SURVIVED:
        outcome = Outcome(trial.WRONG, "a source without a stamp counts as patched")
    if not unpatched and outcome.kind == trial.SENTENCE:
        outcome = Outcome(trial.DAMAGE, f"it refuses without need: {outcome.details}")
    return "unpatched" if unpatched else "patched", outcome


def older(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """The work folder of version 1.2.0: its products are made again, with the same bytes."""
    for path in bed.here.iterdir():
        if path.name not in ("images", "labels.txt", "net.onnx"):
            shutil.rmtree(str(path)) if path.is_dir() else path.unlink()
    with tarfile.open(str(OLDER)) as archive:
        for member in archive:
            if member.name.startswith("./images") or member.name in ("./labels.txt", "./net.onnx"):
                continue
            archive.extract(member, str(bed.here))
    moved = dice.random() < 0.3
    if not moved:
        keep_times(bed.here / "prep")
    for name in ("preprocess", "infer", "postprocess"):
        step = ground.BY_NAME[name]
        outcome = trial.judge(bed.run(step), bed.products(step), bed.expected[name])
        if outcome.kind == trial.SENTENCE:
            outcome = Outcome(trial.DAMAGE, f"{name} refuses: {outcome.details}")
        if outcome.kind != trial.SURVIVED:
            return f"{name}, moved: {moved}", outcome
    return f"moved: {moved}", outcome


def keep_times(folder: Path) -> None:
    """Let the manifest of version 1.2.0 name the times that its .bin files have now."""
    path, rows = folder / "manifest.jsonl", []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row.get("bin"):
            status = (folder / row["bin"]).stat()
            row.update(bin_mtime_ns=status.st_mtime_ns, bin_ctime_ns=status.st_ctime_ns)
        rows.append(json.dumps(row))
    path.write_text("\n".join(rows) + "\n")


# ---- two users, many images ----------------------------------------------------------------------


def two_users(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """A second user comes to the folder of a first one, who goes on afterwards."""
    if os.geteuid():
        raise Skip("only root can become another user")
    step, shared = ground.choose(dice, ground.STEPS), dice.random() < 0.5
    fresh = dice.random() < 0.5
    if fresh:
        bed.remove_products(step)
    for path in [bed.folder, bed.folder / "tmp"]:
        path.chmod(0o777)
    bed.folder.parent.chmod(0o711)  # perhaps a folder of mkdtemp()
    for path in [bed.here, *bed.here.rglob("*")]:
        os.chown(str(path), FIRST_USER, GROUP)
        modes = FOLDER_MODES if path.is_dir() else FILE_MODES
        path.chmod(modes[shared])

    def become(user: int) -> Callable[[], None]:
        def setup() -> None:
            resources.open_to_all(sys.base_prefix)
            resources.open_to_all(str(bed.folder))
            os.chdir(str(bed.here))
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(user)
            os.umask(0o007 if shared else 0o022)

        return setup

    what = f"{step.name}{' afresh' if fresh else ''}, {'shared' if shared else 'not shared'}"
    second = trial.judge_end(bed.run(step, become(SECOND_USER)))
    if second.kind in trial.BAD:
        return what, second
    first = trial.judge(
        bed.run(step, become(FIRST_USER)), bed.products(step), bed.expected[step.name]
    )
    if first.kind == trial.SENTENCE and not shared:
        first = Outcome(trial.DAMAGE, f"after the other user: {first.details}")
    return what, first if first.kind != trial.SURVIVED else second


def many_images(bed: Bed, dice: random.Random) -> Tuple[str, Outcome]:
    """MANY tiny images: all are prepared, and the second run prepares none."""
    folder = bed.here / "images"
    for number in range(MANY):
        path = str(folder / f"many{number:06}.jpg")
        if number % MOST_LINKS == 0:
            shutil.copyfile(str(folder / "i1.jpg"), path)
            first_of_them = path
        else:
            os.link(first_of_them, path)
    step = ground.BY_NAME["preprocess"]
    began = time.monotonic()
    outcome = trial.judge_end(bed.run(step, patience=7200))
    first = time.monotonic() - began
    count = sum(1 for _ in (bed.here / "prep").glob("*.bin"))
    if outcome.kind == trial.SURVIVED and count != MANY + ground.IMAGES:
        outcome = Outcome(trial.WRONG, f"{count} of {MANY + ground.IMAGES} images were prepared")
    began = time.monotonic()
    again = bed.run(step, patience=7200)
    if (
        outcome.kind == trial.SURVIVED
        and f"({MANY + ground.IMAGES} already there)" not in again.out
    ):
        outcome = Outcome(trial.WRONG, f"the second run: {again.out}{again.err}")
    seconds = f"{first:.0f} s, then {time.monotonic() - began:.0f} s"
    return f"{MANY} images in {seconds}", outcome
