"""What is attacked: a small finished run of each step, and the words that make it again.

The steps run on images of 32 pixels and a network of four layers, so that a try takes a tenth of a
second; the export takes a narrow TResNet for 64 pixels.
"""

import os
import random
import re
import shutil
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Set, Tuple

from conftest import ROOT, small_network

from attacks import faults, trial
from attacks.trial import Ended, Products, Step

SIDE = 32
IMAGES = 5
CLASSES = 10
WORK = ["--workdir", "work"]

STEPS = [
    Step(
        "preprocess",
        "TResNet_preprocess.py",
        ["images", "prep", "--img-size", str(SIDE), "-j", "2"],
        ["images/*", "prep/*"],
        ["prep/*.bin"],
        weight=8,
    ),
    Step(
        "export",
        "TResNet_pth2onnx.py",
        ["model.pth", "tresnet.onnx", "--img-size", "64"],
        ["model.pth", "tresnet.onnx*"],
        ["tresnet.onnx"],
        weight=1,
    ),
    Step(
        "infer",
        "scripts/infer_onnx.py",
        "--model net.onnx --input prep --output . --output_dirname result --outfmt NPY "
        "--batchsize 2".split(),
        ["net.onnx", "prep/*", "result*", "result/*"],
        ["result/*"],
        weight=8,
    ),
    Step(
        "postprocess",
        "TResNet_postprocess.py",
        "result labels.txt . acc.json --prep prep".split(),
        ["result/*", "result.record.jsonl", "prep/*", "labels.txt", "acc*.json"],
        ["acc.json", "acc_report.json"],
        weight=8,
    ),
    Step(
        "compare",
        "scripts/compare_results.py",
        "result result_b --json compare.json".split(),
        ["result/*", "result_b/*", "result*.jsonl", "compare.json"],
        ["compare.json"],
    ),
    Step(
        "predict",
        "scripts/predict.py",
        ["net.onnx", "images", "--json", "--img-size", str(SIDE)],
        ["net.onnx", "images/*", "acc_report.json"],
        [],
        weight=2,
    ),
    Step(
        "quantise",
        "scripts/quantize_onnx.py",
        "net.onnx net_int8.onnx --calibrate prep".split(),
        ["net.onnx", "prep/*", "net_int8*"],
        ["net_int8.onnx"],
        weight=1,
    ),
    Step(
        "forecast",
        "scripts/forecast_fp16.py",
        "net.onnx --input prep --output . --labels labels.txt".split(),
        ["net.onnx", "prep/*", "forecast*", "keep_dtype.txt", "labels.txt"],
        ["forecast.json", "keep_dtype.txt"],
        weight=2,
    ),
    Step(
        "speed",
        "scripts/forecast_speed.py",
        "net.onnx --output .".split(),
        ["net.onnx", "speed*"],
        ["speed.json"],
        weight=2,
    ),
    Step(
        "merge",
        "scripts/merge_reports.py",
        "shard1 shard2 --output merged".split(),
        ["shard1/acc*.json", "shard2/acc*.json", "merged/*"],
        ["merged/acc.json", "merged/acc_report.json"],
    ),
    Step(
        "report",
        "scripts/report.py",
        ["."],
        ["*.json", "prep/*", "result/*", "*.jsonl"],
        ["report.html"],
        weight=3,
    ),
    Step(
        "unpack",
        "scripts/prepare_data.py",
        "ILSVRC2012 unpacked".split(),
        ["ILSVRC2012/*", "unpacked*", "unpacked/*"],
        ["unpacked/val_union/*", "unpacked/val_label.txt"],
        weight=3,
    ),
]
BY_NAME = {step.name: step for step in STEPS}


class Bed(NamedTuple):
    """The prepared ground of all tries."""

    folder: Path
    finished: Path  # a finished run of every step, which each try copies
    here: Path  # where a try runs: always the same path, because records hold it
    outside: Path  # somebody's files, which nothing may change
    expected: Dict[str, Products]  # by step
    names: List[str]  # of all files of a finished run
    page: Optional[faults.Page]  # None without the preloaded library

    def run(
        self,
        step: Step,
        before: Callable[[], object] = lambda: None,
        patience: float = trial.PATIENCE,
        folder: Optional[Path] = None,
    ) -> Ended:
        """Run a step where the tries run. before: is called first in its process."""

        def prepare() -> None:
            temporary(self.folder / "tmp")
            before()

        with small_network():
            return trial.fork(trial.start_of(step, ROOT, prepare), folder or self.here, patience)

    def restore(self) -> None:
        """Bring the folder of the tries back to the finished run."""
        trial.replace(self.finished, self.here)
        shutil.rmtree(str(self.folder / "tmp"), ignore_errors=True)
        (self.folder / "tmp").mkdir()

    def products(self, step: Step) -> Products:
        return trial.products(self.here, step.makes)

    def remove_products(self, step: Step) -> None:
        """As if the step had never run."""
        for pattern in [*step.makes, *REMAINS.get(step.name, ())]:
            for path in self.here.glob(pattern):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(str(path))
                else:
                    path.unlink()

    def readable(self, step: Step) -> List[Path]:
        """The files that a step reads."""
        paths: Set[Path] = set()
        for pattern in step.reads:
            paths.update(path for path in self.here.glob(pattern) if path.is_file())
        return sorted(path for path in paths if path.stat().st_size)


ASIDE = re.compile(r"(^|/|\.)aside/")  # in the path of a file that was moved out of the way
# What else a step writes: patterns.
REMAINS = {
    "preprocess": ["prep/manifest.jsonl"],
    "export": ["tresnet.onnx.record.jsonl"],
    "infer": ["result.record.jsonl", "result_summary.json"],
    "quantise": ["net_int8*"],
    "forecast": ["forecast*"],
    "speed": ["speed*"],
    "report": ["report.html.record.jsonl"],
    "unpack": ["unpacked/*.record.jsonl"],
}


COUNTED: Dict[Tuple[str, str, faults.Order, bool], int] = {}


def counted(bed: Bed, step: Step, order: faults.Order, fresh: bool) -> int:
    """How many calls of an order's kinds an undisturbed run of a step makes; counted once.

    fresh: whether the step makes its products again.
    """
    key = (str(bed.folder), step.name, order, fresh)
    if key not in COUNTED:
        assert bed.page is not None
        page = bed.page
        page.give(order)
        bed.run(step, lambda: faults.use(page))
        COUNTED[key] = page.count
        page.end()
        bed.restore()
        if fresh:
            bed.remove_products(step)
    return COUNTED[key]


def temporary(folder: Path) -> None:
    """Let this process use `folder` for temporary files. In a child, after a fork."""
    import tempfile

    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None


def choose(dice: random.Random, steps: List[Step]) -> Step:
    return dice.choices(steps, [step.weight for step in steps])[0]


# ---- making it -----------------------------------------------------------------------------------


def make_images(folder: Path) -> None:
    """Five small images of three formats."""
    from pictures import pattern

    folder.mkdir()
    for number, suffix in enumerate(("png", "jpg", "jpg", "webp", "bmp")):
        pattern(40 + 3 * number, 50 - number).save(str(folder / f"i{number}.{suffix}"))


def make_checkpoint(path: Path) -> None:
    """A training checkpoint of a narrow TResNet-M with ten classes and random weights."""
    from common.model import network

    import torch

    torch.manual_seed(0)
    with small_network():
        created = network.create_network("tresnet_m", CLASSES).train()
        with torch.no_grad():
            created(torch.rand(4, 3, 64, 64))
    torch.save({"arch": "tresnet_m", "epoch": 1, "state_dict": created.state_dict()}, str(path))


def make_archive(folder: Path, images: Path) -> None:
    """ImageNet as it is distributed, with few images: a tar file and its devkit."""
    import tarfile

    folder.mkdir()
    with tarfile.open(str(folder / "ILSVRC2012_img_val.tar"), "w") as archive:
        for number in range(1, 4):
            archive.add(str(images / "i1.jpg"), f"ILSVRC2012_val_{number:08}.JPEG")
    (folder / "val_label.txt").write_text(
        "".join(f"ILSVRC2012_val_{number:08}.JPEG {number}\n" for number in range(1, 4))
    )


def make_inputs(folder: Path) -> int:
    """Write what the user gives. Returns: 0, an exit status."""
    from ascend.helpers import save_network

    make_images(folder / "images")
    labels = "".join(
        f"{path.name} {number % 3}\n"
        for number, path in enumerate(sorted((folder / "images").iterdir()))
    )
    (folder / "labels.txt").write_text(labels)
    save_network(folder / "net.onnx")
    make_checkpoint(folder / "model.pth")
    make_archive(folder / "ILSVRC2012", folder / "images")
    return 0


def make_outside(folder: Path) -> None:
    """Somebody else's files."""
    folder.mkdir()
    (folder / "letter.txt").write_text("nobody may change this\n" * 20)
    (folder / "bin").mkdir()
    (folder / "bin" / "i0.bin").write_bytes(bytes(range(256)) * 48)
    (folder / "empty").write_bytes(b"")


def other_steps() -> List[Step]:
    """What makes the inputs of some steps: the same programs with other words."""
    steps = []
    infer = BY_NAME["infer"]
    words = [word.replace("result", "result_b").replace("NPY", "TXT") for word in infer.words]
    steps.append(infer._replace(words=words))
    for shard in ("1", "2"):
        steps.append(
            BY_NAME["preprocess"]._replace(
                words=[
                    "images",
                    f"shard{shard}/prep",
                    "--img-size",
                    str(SIDE),
                    "--shard",
                    f"{shard}/2",
                ]
            )
        )
        steps.append(
            infer._replace(
                words=[
                    word.replace("prep", f"shard{shard}/prep") if word == "prep" else word
                    for word in infer.words
                ]
            )
        )
        steps[-1] = infer._replace(
            words=f"--model net.onnx --input shard{shard}/prep --output shard{shard} "
            "--output_dirname result --outfmt NPY --batchsize 2".split()
        )
        steps.append(
            BY_NAME["postprocess"]._replace(
                words=f"shard{shard}/result labels.txt shard{shard} acc.json "
                f"--prep shard{shard}/prep".split()
            )
        )
    return steps


def make(folder: Path, page: Optional[faults.Page] = None) -> Bed:
    """Make the ground in an empty folder. Raises: RuntimeError if a step fails undisturbed."""
    bed = Bed(folder, folder / "finished", folder / "here", folder / "outside", {}, [], page)
    bed.here.mkdir(mode=0o750)
    make_outside(bed.outside)
    done = trial.fork(lambda: make_inputs(bed.here), bed.folder)
    if done.status:
        raise RuntimeError(f"the inputs cannot be made: {done.err}")
    order = "preprocess infer".split()
    steps = [BY_NAME[name] for name in order]
    steps += other_steps()
    steps += [step for step in STEPS if step.name not in order]
    for step in steps:
        done = bed.run(step)
        if done.status:
            raise RuntimeError(f"{step.name} {step.words} fails undisturbed: {done.out}{done.err}")
    for step in STEPS:
        bed.expected[step.name] = bed.products(step)
        if step.makes and not bed.expected[step.name]:
            raise RuntimeError(f"{step.name} made nothing")
    bed.names.extend(trial.listing(bed.here))
    trial.replace(bed.here, bed.finished)
    return bed


# ---- after an attack -----------------------------------------------------------------------------


def judge_after(bed: Bed, step: Step, outcome: trial.Outcome, more: bool = True) -> trial.Outcome:
    """Run the same command again without the attack: it must give the bytes of a finished run.

    more: whether files that a finished run does not leave are damage, too.
    """
    if outcome.kind in trial.BAD:
        return outcome
    again = trial.judge(bed.run(step), bed.products(step), bed.expected[step.name])
    if again.kind == trial.SENTENCE:
        return trial.Outcome(trial.DAMAGE, f"after '{outcome.details}' it refuses: {again.details}")
    if again.kind != trial.SURVIVED:
        return again._replace(details=f"in the second run: {again.details}")
    left = set(trial.listing(bed.here)) - set(bed.names)
    # What could not be read is not known as ours: it is set aside, and that is said.
    left = {name for name in left if not ASIDE.search(name)}
    if left and more:
        return trial.Outcome(trial.DAMAGE, f"files are left: {sorted(left)[:5]}")
    return outcome


def judge_outside(
    bed: Bed, before: Dict[str, trial.State], outcome: trial.Outcome
) -> trial.Outcome:
    """Damage if anything outside the work folder is not as it was."""
    after = trial.snapshot(bed.outside)
    changed = [name for name in {*before, *after} if before.get(name) != after.get(name)]
    if changed:
        return trial.Outcome(trial.DAMAGE, f"outside, {sorted(changed)[:4]} changed")
    return outcome
