#!/usr/bin/env python3
"""Make README's picture, docs/report.png: the report of a run on pictures that are drawn here, seen by a browser.

    .venv/bin/python test/readme_picture.py /tmp/drawn

In:  nothing. A small data set of drawn things is made in the folder given, and a checkpoint whose head is fitted to
     some of them, as that of the sample is; the whole chain runs on the others, in minutes. Chromium is needed.
Out: docs/report.png, under 200 kB.
"""
import io
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Tuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
from common import cli

import make_sample
from browser import browser
from PIL import Image, ImageDraw, ImageFilter

SIDE = 256  # pixels of a drawn picture
FITTED, TRIED = 6, 25  # pictures of each thing: to fit the head, and to be classified
WIDTH, HEIGHT = 1100, 1560  # of the screenshot, pixels
LARGEST = 200_000  # bytes
Points = List[Tuple[float, float]]


def turned(count: int, radii: Tuple[float, ...], turn: float) -> Points:
    """The corners of a star or polygon around 0, the radii taking turns."""
    return [(radii[place % len(radii)] * math.cos(turn + 2 * math.pi * place / count),
             radii[place % len(radii)] * math.sin(turn + 2 * math.pi * place / count)) for place in range(count)]


def heart(turn: float) -> Points:
    places = [2 * math.pi * step / 60 for step in range(60)]
    return [(math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y) for x, y in (
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in places)]


def outline(thing: str, turn: float) -> Points:
    """The corners of a thing of radius 1."""
    shapes = {"disc": (60, (1.0,)), "triangle": (3, (1.0,)), "square": (4, (1.0,)), "pentagon": (5, (1.0,)),
              "star": (10, (1.0, 0.4)), "sun": (24, (1.0, 0.72)), "cross": (8, (1.0, 0.3))}
    return heart(turn) if thing == "heart" else turned(*shapes[thing], turn)


THINGS = ("disc", "triangle", "square", "pentagon", "star", "sun", "cross", "heart")


def draw(thing: str, dice: random.Random) -> Image.Image:
    """A thing somewhere on a soft ground, in colours of its own, sometimes small, sometimes half hidden."""
    def colour() -> Tuple[int, ...]:
        return tuple(dice.randint(20, 235) for _ in range(3))

    ground = Image.new("RGB", (4, 4))
    ground.putdata([colour() for _ in range(16)])
    picture = ground.resize((SIDE, SIDE), Image.BICUBIC)
    pen = ImageDraw.Draw(picture)
    radius = dice.uniform(40, 95)
    x, y = (dice.uniform(SIDE / 2 - 30, SIDE / 2 + 30) for _ in range(2))
    corners = [(x + radius * a, y + radius * b) for a, b in outline(thing, dice.uniform(0, 2 * math.pi))]
    pen.polygon([(a + 7, b + 9) for a, b in corners], fill=(30, 30, 36))
    pen.polygon(corners, fill=colour())
    for _ in range(dice.randint(0, 3)):
        a, b = dice.uniform(0, SIDE), dice.uniform(0, SIDE)
        pen.ellipse([a, b, a + dice.uniform(10, 50), b + dice.uniform(10, 50)], fill=colour())
    return picture.filter(ImageFilter.GaussianBlur(dice.uniform(0.3, 2.5)))


def make_data(folder: Path) -> None:
    """val/THING/N.png to be classified, and model_best.pth.tar, fitted to others in fitted/."""
    dice = random.Random(7)
    labels: Dict[str, int] = {}
    for label, thing in enumerate(sorted(THINGS)):
        for kind, count in (("val", TRIED), ("fitted", FITTED)):
            (folder / kind / thing).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = folder / kind / thing / f"{thing} {number:02d}.png"
                draw(thing, dice).save(str(path))
                if kind == "fitted":
                    labels[str(path)] = label
    make_sample.CLASSES = len(THINGS)
    make_sample.make_checkpoint(labels, str(folder / "model_best.pth.tar"))


def screenshot(page: Path) -> bytes:
    """PNG of the head of a page, in few colours."""
    with browser() as shown:
        shown.open(page, WIDTH, HEIGHT)
        image = Image.open(io.BytesIO(shown.picture())).convert("RGB")
    for colours in (256, 128, 64, 32):
        data = io.BytesIO()
        image.quantize(colours, method=Image.MEDIANCUT, dither=Image.NONE).save(data, "PNG", optimize=True)
        if data.tell() < LARGEST:
            break
    return data.getvalue()


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", type=cli.path, help="where the data set and the work folder go")
    folder = Path(parser.parse_args().folder)
    if not (folder / "model_best.pth.tar").exists():
        make_data(folder)
    subprocess.run(["bash", str(ROOT / "scripts" / "pipeline.sh"), "--backend", "cpu", "--data", ".", "--workdir", "work",
                    "--perf", "--batch-sizes", "1,2,4,8", "--loop", "3", "--repeat", "1"], cwd=str(folder), check=True)
    picture = screenshot(folder / "work" / "report.html")
    (ROOT / "docs" / "report.png").write_bytes(picture)
    print(f"docs/report.png: {len(picture) / 1e3:.0f} kB; of {os.path.join(str(folder), 'work', 'report.html')}")


if __name__ == "__main__":
    cli.run(main, "no picture was written")
