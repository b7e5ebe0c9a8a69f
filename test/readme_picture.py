#!/usr/bin/env python3
"""Make README's picture, docs/report.png: the report of a run on pictures that are drawn here, seen
by a browser.

    .venv/bin/python test/readme_picture.py /tmp/drawn

In:  nothing. A small data set of drawn things is made in the folder given, and a checkpoint whose
     head is fitted to some of them, as that of the sample is; the whole chain runs on the others,
     in minutes. Chromium is needed.
Out: docs/report.png, under 200 kB. So that mistakes, confusion and classes are on one picture, the
     sections about speed and most of the images are left out of it.
"""

import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Dict, Tuple

sys.path.insert(
    0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scripts")
)
from common.core import cli, options

import make_sample
from browser import browser
from PIL import Image, ImageDraw, ImageFilter

ROOT = Path(cli.ROOT)
SIDE = 256  # pixels of a drawn picture
FITTED, TRIED = 6, 25  # pictures of each thing: to fit the head, and to be classified
WIDTH, HEIGHT = 1100, 1760  # of the screenshot, pixels
LARGEST = 200_000  # bytes
SHORTER = """
for (const id of ["speed", "expected", "comparison"]) document.getElementById(id)?.remove();
for (const row of [...document.querySelectorAll("#mistakes li")].slice(6)) row.remove();
for (const group of [...document.querySelectorAll("#mistakes details")].slice(2)) group.remove();
for (const row of [...document.querySelectorAll("#confusion tbody tr")].slice(3)) row.remove();
"""
Colour = Tuple[int, ...]
# Above, below, and of the things that are strewn over it: a network of random weights knows colours
# and textures.
SCENES: Dict[str, Tuple[Colour, Colour, Colour]] = {
    "night sky": ((12, 14, 44), (36, 40, 92), (240, 240, 220)),
    "sunset": ((60, 40, 110), (240, 120, 50), (255, 220, 90)),
    "meadow": ((120, 190, 230), (60, 140, 50), (235, 90, 120)),
    "sea": ((150, 200, 235), (20, 80, 150), (225, 240, 245)),
    "desert": ((190, 215, 235), (215, 170, 100), (170, 120, 70)),
    "forest": ((70, 110, 80), (20, 50, 26), (44, 92, 40)),
    "snow": ((170, 185, 205), (245, 248, 252), (255, 255, 255)),
    "bricks": ((150, 70, 54), (120, 52, 42), (196, 186, 172)),
}


def near(colour: Colour, dice: random.Random, spread: int = 42) -> Colour:
    return tuple(min(255, max(0, value + dice.randint(-spread, spread))) for value in colour)


def draw(scene: str, dice: random.Random) -> Image.Image:
    """A scene: a ground that goes from one colour to another, and things strewn over it; no two are
    alike.
    """
    above, below, thing = (near(colour, dice) for colour in SCENES[scene])
    ground = Image.new("RGB", (3, 8))
    colours = []
    for row in range(8):
        between = tuple(int(a + (b - a) * row / 7) for a, b in zip(above, below))
        colours += [near(between, dice, 12) for _ in range(3)]
    ground.putdata(colours)
    picture = ground.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    strew(ImageDraw.Draw(picture), scene, thing, dice)
    return picture.filter(ImageFilter.GaussianBlur(dice.uniform(0.3, 2.0)))


def strew(pen: ImageDraw.ImageDraw, scene: str, thing: Colour, dice: random.Random) -> None:
    """Draw the things of a scene."""
    for _ in range(dice.randint(8, 60)):
        x, y, size = dice.uniform(-20, SIDE), dice.uniform(0, SIDE), dice.uniform(3, 9)
        fill = near(thing, dice, 20)
        if scene in ("night sky", "snow", "meadow"):
            pen.ellipse([x, y, x + size, y + size], fill=fill)
        elif scene == "forest":
            pen.polygon(
                [(x, y + 9 * size), (x + 5 * size, y + 9 * size), (x + 2.5 * size, y)], fill=fill
            )
        elif scene == "bricks":
            pen.rectangle(
                [x // 40 * 40, y // 20 * 20, x // 40 * 40 + 36, y // 20 * 20 + 2], fill=fill
            )
        else:
            pen.arc(
                [x, SIDE / 3 + y, x + 9 * size, SIDE / 3 + y + 3 * size],
                180,
                350,
                fill=fill,
                width=3,
            )
    if scene == "sunset":
        x, y, size = dice.uniform(40, 200), dice.uniform(90, 190), dice.uniform(20, 40)
        pen.ellipse([x - size, y - size, x + size, y + size], fill=thing)


def make_data(folder: Path) -> None:
    """val/SCENE/N.png to be classified, and model_best.pth.tar, fitted to others in fitted/."""
    dice = random.Random(7)
    labels: Dict[str, int] = {}
    for label, scene in enumerate(sorted(SCENES)):
        for kind, count in (("val", TRIED), ("fitted", FITTED)):
            (folder / kind / scene).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / kind / scene / f"{scene} {number:02d}.png"
                draw(scene, dice).save(str(path))
                if kind == "fitted":
                    labels[str(path)] = label
    make_sample.CLASSES = len(SCENES)
    checkpoint = make_sample.make_checkpoint(labels)
    (folder / "model_best.pth.tar").write_bytes(checkpoint)


def screenshot(page: Path) -> bytes:
    """PNG of the head of a page, in few colours."""
    with browser() as shown:
        shown.open(page, WIDTH, HEIGHT)
        shown.value(SHORTER)
        image = Image.open(io.BytesIO(shown.picture())).convert("RGB")
    for colours in (256, 128, 64, 32):
        data = io.BytesIO()
        image.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            data, "PNG", optimize=True
        )
        if data.tell() < LARGEST:
            break
    return data.getvalue()


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "folder", type=options.path, help="where the data set and the work folder go"
    )
    folder = Path(parser.parse_args().folder)
    if not (folder / "model_best.pth.tar").exists():
        make_data(folder)
    subprocess.run(
        [
            "bash",
            str(ROOT / "scripts" / "pipeline.sh"),
            "--backend",
            "cpu",
            "--data",
            ".",
            "--workdir",
            "work",
            "--perf",
            "--batch-sizes",
            "1,2,4,8",
            "--loop",
            "3",
            "--repeat",
            "1",
        ],
        cwd=str(folder),
        check=True,
    )
    picture = screenshot(folder / "work" / "report.html")
    (ROOT / "docs" / "report.png").write_bytes(picture)
    page = os.path.join(str(folder), "work", "report.html")
    print(f"docs/report.png: {len(picture) / 1e3:.0f} kB; of {page}")


if __name__ == "__main__":
    cli.run(main, "no picture was written")
