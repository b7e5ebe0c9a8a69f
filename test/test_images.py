"""Which files of a folder are images: none vanishes, and what is passed over is said."""

import errno
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Dict

from common.core.names import SUFFIXES
from common.data.images import class_folders, find_images
from common.data.pixels import clipped_to

import numpy as np
import pytest
from attacks import faults
from conftest import run
from pictures import fill, labels_of, pattern, prepare, prepare_refused
from PIL import Image
from records import prepared_sources

# ---- suffixes ------------------------------------------------------------------------------------

WRITTEN = {  # {suffix: what Pillow calls the format}
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".tif": "TIFF",
    ".TIFF": "TIFF",
    ".webp": "WEBP",
    ".apng": "PNG",
    ".dib": "DIB",
    ".pnm": "PPM",
    ".tga": "TGA",
}
Image.init()
if "AVIF" in Image.SAVE:
    WRITTEN[".avif"] = "AVIF"


def reference(path: Path) -> bytes:
    """The .bin of an image of 32 x 32 pixels at --img-size 32 --crop-pct 1: its own pixels."""
    with Image.open(str(path)) as image:
        pixels = np.asarray(image.convert("RGB"))
    return bytes((pixels.transpose(2, 0, 1).astype("<f4") / np.float32(255)).tobytes())


WHOLE = ("--img-size", 32, "--crop-pct", 1)


def test_every_suffix_that_pillow_reads_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    for number, (suffix, kind) in enumerate(WRITTEN.items()):
        pattern(32, 32).save(str(folder / f"i{number}{suffix}"), kind)
    prepare(folder, tmp_path / "prep", *WHOLE)
    made = prepared_sources(tmp_path / "prep")
    assert sorted(made) == sorted(path.name for path in folder.iterdir())
    for source, name in made.items():
        assert (tmp_path / "prep" / name).read_bytes() == reference(folder / source), source


def test_a_photo_that_pillow_does_not_read_is_counted_and_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "src", ["bolt/a.png", "nut/b.png"])
    (folder / "bolt" / "c.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    pattern(40, 40).save(str(folder / "nut" / "raw.dng"), "TIFF")  # as a camera's preview
    said = prepare_refused(folder, tmp_path / "prep").splitlines()
    assert [line.split(": ")[0] for line in said[:2]] == [
        "bad image bolt/c.HEIC",
        "bad image nut/raw.dng",
    ]
    assert said[0].endswith("does not read .heic images; make a JPEG or PNG of it")
    assert "does not read .dng images" in said[1]
    done = prepare(folder, tmp_path / "prep", "--skip-bad")
    assert "2 images in" in done.stdout and "2 bad images left out" in done.stdout
    assert sorted(prepared_sources(tmp_path / "prep")) == ["bolt/a.png", "nut/b.png"]


def test_a_suffix_is_that_of_an_image_if_pillow_registers_it_for_a_format_of_photos() -> None:
    formats = {*WRITTEN.values(), "PNG", "GIF", "BMP", "AVIF", "MPO"}
    Image.init()
    photo = {suffix for suffix, kind in Image.EXTENSION.items() if kind in formats}
    assert photo - set(SUFFIXES) <= {".icb", ".vda", ".vst"}, "names of TGA that nobody uses"


# ---- what is passed over -------------------------------------------------------------------------


def test_files_and_folders_of_other_programs_are_passed_over_and_said(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "val",
        [
            "bolt/a.png",
            "nut/b.png",
            ".ipynb_checkpoints/a-checkpoint.png",
            "bolt/.ipynb_checkpoints/a-checkpoint.png",
            "__MACOSX/bolt/a.png",
            "nut/@eaDir/b.png",
        ],
    )
    (folder / "bolt" / "._a.png").write_bytes(b"\0\x05\x16\x07\0\x02\0\0Mac OS X")
    (folder / "bolt" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    done = prepare(folder, tmp_path / "prep", "--img-size", 32)
    assert sorted(prepared_sources(tmp_path / "prep")) == ["bolt/a.png", "nut/b.png"]
    assert set(labels_of(tmp_path / "prep").values()) == {"0", "1"}
    assert done.stdout.splitlines()[0] == (
        "passed over: 4 folders of other programs (.ipynb_checkpoints/, __MACOSX/, "
        "bolt/.ipynb_checkpoints/ and 1 more), 3 files that are not images (.DS_Store, "
        "bolt/._a.png, bolt/Thumbs.db)"
    )


# ---- what cannot be read -------------------------------------------------------------------------


def deep(folder: Path, name: str) -> None:
    """A chain of folders whose path is longer than the system takes (4,096 bytes)."""
    here = os.open(str(folder), os.O_RDONLY)
    try:
        for _ in range(17):
            os.mkdir(name, dir_fd=here)
            inner = os.open(name, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        os.close(os.open("lost.png", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    finally:
        os.close(here)


@pytest.mark.parametrize(
    "make, source, why",
    [
        (
            lambda folder: (folder / "disk2").symlink_to("/no/such/disk"),
            "disk2",
            "broken link; it may have led to a folder of images",
        ),
        (
            lambda folder: (folder / "x.png").symlink_to("gone.png"),
            "x.png",
            "broken link",
        ),
        (
            lambda folder: (folder / "loop").symlink_to("loop"),
            "loop",
            "broken link; it may have led to a folder of images",
        ),
    ],
)
def test_a_link_that_leads_nowhere_is_named(
    make: Any, source: str, why: str, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "src", ["a.png"])
    make(folder)
    expected = f"bad image {source}: {why}\n"
    assert prepare_refused(folder, tmp_path / "prep").startswith(expected)
    done = prepare(folder, tmp_path / "prep", "--skip-bad")
    assert done.stderr == expected and "1 bad image left out" in done.stdout


def test_a_folder_whose_path_is_too_long_is_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "src", ["a.png"])
    deep(folder, "d" * 250)
    (source, why) = list(find_images(str(folder)).bad.items())[0]
    assert source.startswith("d" * 250) and why == "folder cannot be read: File name too long"
    said = prepare_refused(folder, tmp_path / "prep")
    assert "folder cannot be read: File name too long" in said and "lost" not in said


def test_class_folders_are_not_numbered_if_one_of_them_cannot_be_looked_at(tmp_path: Path) -> None:
    folder = fill(tmp_path / "val", ["bolt/a.png", "nut/b.png"])
    (folder / "ring").symlink_to("ring")
    said = prepare_refused(folder, tmp_path / "prep")
    assert "ring cannot be read (Too many levels of symbolic links), and classes are" in said
    (folder / "ring").unlink()
    assert class_folders(str(folder)) == ["bolt", "nut"]


# ---- values that do not fit 8 bits ---------------------------------------------------------------

WIDE: Dict[str, Any] = {
    "white16.png": np.full((32, 32), 40000, np.uint16),
    "ramp16.tif": np.arange(1024, dtype=np.uint16).reshape(32, 32) * 60,
    "fits16.png": np.arange(1024, dtype=np.uint16).reshape(32, 32) % 256,
    "ramp32.tif": np.arange(1024, dtype=np.int32).reshape(32, 32) * 1000,
    "unit.tif": np.linspace(0, 1, 1024, dtype=np.float32).reshape(32, 32),
}


def test_images_of_16_and_32_bits_keep_pillows_bytes_and_are_said(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    clipped: Dict[str, str] = {}
    for name, values in WIDE.items():
        Image.fromarray(values).save(str(folder / name))
        with Image.open(str(folder / name)) as image:
            if name != "fits16.png":
                clipped[name] = f"{image.mode} to {'black' if name == 'unit.tif' else 'white'}"
    pattern(32, 32).save(str(folder / "plain.png"))
    done = prepare(folder, tmp_path / "prep", *WHOLE)
    made = prepared_sources(tmp_path / "prep")
    for name in WIDE:
        assert (tmp_path / "prep" / made[name]).read_bytes() == reference(folder / name), name
    white = np.frombuffer((tmp_path / "prep" / made["white16.png"]).read_bytes(), "<f4")
    assert set(white.tolist()) == {1.0}, "40,000 of 65,535 is grey, but becomes white"
    notes = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
    counted = []
    for line in notes:
        match = re.match(r"note: (\d+) images? of mode (\S+) (?:is|are) clipped to (\w+):", line)
        assert match, line
        counted.append("%s × %s to %s" % match.groups())
    kinds = Counter(clipped.values())
    assert counted == [f"{count} × {kind}" for kind, count in sorted(kinds.items())]
    again = prepare(folder, tmp_path / "prep", *WHOLE).stdout
    assert [line for line in again.splitlines() if line.startswith("note: ")] == notes


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 255]], np.int32), ""),
        (np.array([[0, 256]], np.int32), "white"),
        (np.array([[-1, 255]], np.int32), "black"),
        (np.array([[0.0, 1.0]], np.float32), "black"),
        (np.array([[0.0, 0.0]], np.float32), ""),
        (np.array([[0, 300]], np.uint16), "white"),
        (np.array([[0, 200]], np.uint8), ""),
    ],
)
def test_what_becomes_of_values_that_do_not_fit(values: np.ndarray, expected: str) -> None:
    assert clipped_to(Image.fromarray(values)) == expected


@pytest.mark.parametrize("suffix, kind", [(".tga", "TGA"), (".dib", "DIB")])
def test_a_format_without_a_mark_is_known_only_by_its_suffix(
    suffix: str, kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "src"
    folder.mkdir()
    pattern(32, 32).save(str(folder / f"good{suffix}"), kind)
    (folder / "damaged.jpg").write_bytes((folder / f"good{suffix}").read_bytes())
    said = prepare_refused(folder, tmp_path / "prep", *WHOLE)
    assert said.startswith("bad image damaged.jpg: not an image, or in no format known here\n")
    assert list(prepared_sources(tmp_path / "prep")) == [f"good{suffix}"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "stat"])
def test_a_folder_that_a_bad_disk_does_not_give_is_named(kind: str, tmp_path: Path) -> None:
    """The preloaded library fails the system's calls on the folder with EIO, as a bad disk does."""
    library = faults.build(tmp_path)
    if not library:
        pytest.skip("the library needs a C compiler")
    folder = fill(tmp_path / "src", ["a.png", "lost/b.png"])
    page = faults.Page(tmp_path / "order")
    below = str(folder / "lost")
    page.give(faults.Order(below, [kind], nth=1, error=errno.EIO, lasting=True))
    environment = {"LD_PRELOAD": str(library), faults.VARIABLE: str(page.path)}
    words = (folder, tmp_path / "prep", "--img-size", 32, "-j", 1)
    done = run("TResNet_preprocess.py", *words, env=environment)
    assert page.fired and done.returncode == 1
    assert done.stderr.startswith("bad image lost: folder cannot be read: Input/output error\n")
    done = run("TResNet_preprocess.py", *words, "--skip-bad", env=environment)
    assert done.returncode == 0 and "1 image in" in done.stdout
