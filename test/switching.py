#!/usr/bin/env python3
"""Switch options at random in one work folder: is every result that of a fresh folder?

    python3 test/switching.py --steps 50 --seed 0

Each step runs the pipeline with other data, image size, crop, bytes or floats, batch size, format
or number of skipped images in the same work folder; accuracy, predictions, prepared images and the
ONNX file must be those of a run with the same options in a folder of its own (made once for each
combination). Now and then a step is killed half-way first, or a file of the work folder is cut or
overwritten in place: then the same command must recover.
"""

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, List

from power_cut import kill_session

ROOT = Path(__file__).resolve().parent.parent
CHOICES: Dict[str, List[List[str]]] = {
    "size": [["--img-size", "32"], ["--img-size", "64"]],
    "crop": [[], [], ["--crop-mode", "squash"]],
    "bytes": [[], ["--uint8"]],
    "batch": [["--batch-size", "3"], ["--batch-size", "8"]],
    "format": [["--outfmt", "TXT"], ["--outfmt", "NPY"]],
}


def make_data(folder: Path) -> List[Path]:
    """Two data sets with the sample's checkpoint.

    The sample's photos, and half of them with another label and with a broken image.
    """
    sample, other = folder / "sample", folder / "other data"
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "make_sample.py"), str(sample)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (other / "val_union").mkdir(parents=True)
    labels = (sample / "val_label.txt").read_text().splitlines()[:10]
    for line in labels:
        shutil.copy(str(sample / "val_union" / line.split()[0]), str(other / "val_union"))
    (other / "val_union" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    (other / "val_label.txt").write_text(
        "\n".join([labels[0].split()[0] + " 7", *labels[1:], "broken.jpg 3"]) + "\n"
    )
    os.link(str(sample / "model_best.pth.tar"), str(other / "model_best.pth.tar"))
    return [sample, other]


def command(workdir: Path, options: List[str]) -> List[str]:
    return [
        "bash",
        str(ROOT / "scripts" / "pipeline.sh"),
        *"--backend cpu --skip-bad --workdir".split(),
        str(workdir),
        *options,
    ]


def run_pipeline(workdir: Path, options: List[str]) -> None:
    done = subprocess.run(
        command(workdir, options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SystemExit(
            f"exit status {done.returncode} with {options}: {done.stdout.decode()[-2000:]}"
        )


def products(workdir: Path) -> Dict[str, str]:
    """{what: SHA-256} of what the last run is for."""
    found = {path.name: path for path in (workdir / "result").iterdir()}
    found.update((name, workdir / name) for name in ("acc.json", "tresnet.onnx"))
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(found.items())
    }


def damage(workdir: Path, dice: random.Random) -> str:
    """Cut or overwrite one product, with its time as it was; its name."""
    paths: List[Path] = []
    for pattern in ("prep_dataset*/*.bin", "result/*", "tresnet.onnx", "acc.json"):
        paths += workdir.glob(pattern)
    path = dice.choice(sorted(paths))
    status, data = path.stat(), path.read_bytes()
    with open(str(path), "r+b") as file:
        if dice.random() < 0.5:
            file.truncate(len(data) // 2)
        else:
            file.seek(len(data) // 2)
            file.write(bytes(min(4096, len(data) // 2)))
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))
    return str(path.relative_to(workdir))


def interrupt(workdir: Path, options: List[str], seconds: float) -> None:
    """Begin the run and kill all of it."""
    process = subprocess.Popen(
        command(workdir, options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(seconds)
    kill_session(process.pid)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    dice, scratch = random.Random(arguments.seed), Path(tempfile.mkdtemp(prefix="switching-"))
    expected: Dict[str, Dict[str, str]] = {}
    try:
        data = make_data(scratch)
        for step in range(1, arguments.steps + 1):
            options = ["--data", str(dice.choice(data))]
            for choices in CHOICES.values():
                options += dice.choice(choices)
            before = ""
            if step > 1 and dice.random() < 0.3:
                before = f", after damage to {damage(scratch / 'work', dice)}"
            elif dice.random() < 0.2:
                before = ", after a kill"
                interrupt(scratch / "work", options, dice.uniform(1, 20))
            key = " ".join(options)
            if key not in expected:
                run_pipeline(scratch / "fresh", options)
                expected[key] = products(scratch / "fresh")
                shutil.rmtree(str(scratch / "fresh"))
            run_pipeline(scratch / "work", options)
            wrong = {name for name, _ in products(scratch / "work").items() ^ expected[key].items()}
            if wrong:
                raise SystemExit(
                    f"step {step}, {key}{before}: {sorted(wrong)[:5]} differ from a fresh folder's"
                )
            print(
                f"step {step}: {key.replace(str(scratch), '')}{before}: as in a fresh folder",
                flush=True,
            )
    finally:
        shutil.rmtree(str(scratch), ignore_errors=True)


if __name__ == "__main__":
    main()
