"""The bytes of a .bin: those of the original environment, with or without the fast path."""

import hashlib
import io
import os
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Callable, List

from common.core import native
from common.data import pixels
from common.data.evaluation import DEFAULT

import numpy as np
import pytest
from conftest import GOLDEN, ROOT, listed_sha256, sha256, succeed
from pictures import SCRIPT, bins, fill, pattern, prepare
from PIL import Image, ImageFile
from records import prepared_sources


def need_fast(img_size: int = 224, dtype: str = "float32") -> Callable[..., Any]:
    """The fast path; it must exist where simplejpeg and a C compiler are installed."""
    pytest.importorskip("simplejpeg", reason="the fast path needs simplejpeg")
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("the fast path needs a C compiler")
    fast = pixels.fast_path(DEFAULT._replace(img_size=img_size), dtype)
    assert fast
    return fast


def copy_program(folder: Path) -> None:
    """Copy the step and the packages that it needs, without anything compiled."""
    shutil.copy(str(ROOT / SCRIPT), str(folder))
    shutil.copytree(
        str(ROOT / "scripts" / "common"),
        str(folder / "scripts" / "common"),
        ignore=shutil.ignore_patterns("__pycache__"),
    )


# ---- the reference -------------------------------------------------------------------------------


def test_sample_photos_become_the_bytes_of_the_original_environment(
    photos: Path, tmp_path: Path
) -> None:
    done = succeed(SCRIPT, photos, tmp_path / "prep")
    assert bins(tmp_path / "prep") == listed_sha256("sample.sha256")
    assert re.fullmatch(
        r"20 images in \S+: 20 made in [\d.]+ s, [\d.]+ images/s", done.stdout.splitlines()[-1]
    )
    need_fast()
    assert "note:" not in done.stderr  # it was taken


def test_odd_images_become_the_bytes_of_the_original_environment(tmp_path: Path) -> None:
    prepare(GOLDEN / "odd", tmp_path / "prep")
    made = {
        source: sha256(tmp_path / "prep" / name)
        for source, name in prepared_sources(tmp_path / "prep").items()
    }
    assert made == listed_sha256("odd.sha256")


@pytest.mark.parametrize(
    "size, expected",
    [  # SHA-256 of what Pillow 9.5's one-step resize gives
        (
            (279, 589),
            "2635073f8b8c056c1b762c44e7bd28e9482b4358a8e28fb705409492d8bfc7d4",
        ),  # Pillow 13 in one step: others
        (
            (300, 2000),
            "e02395a3e901d95c0770df3697bb7b788ac0b52533e0254abcb1f2efe2701816",
        ),  # others, too
        ((2000, 300), "3dac9c00121eb237c7942745b7ee648dac9761c2d82232cb0f6795b126afc3de"),
        ((500, 375), "4cb66993f4fbd15d31d44d3afd90f273fdddfd5c5ed2308de2828d99a3d7456c"),
        ((256, 600), "4b37ffcd047dcd98d865632ef077df2c1da2175521bf7f03c90a1dc4299ba505"),
        ((100, 80), "f1a7b9df339f3c34322bd32ea94e27fe8e24c157f9fd5f76dbcf604204503f48"),
    ],
)
def test_the_resize_is_that_of_old_pillow_with_any_pillow(size: Any, expected: str) -> None:
    file = io.BytesIO()
    pattern(*size).save(file, "PNG")
    assert hashlib.sha256(pixels.convert(file, DEFAULT, "float32")).hexdigest() == expected


def test_uint8_is_the_same_pixels_in_height_width_channel_order(
    photos: Path, tmp_path: Path
) -> None:
    prepare(photos, tmp_path / "prep", "--dtype", "uint8")
    floats = {}
    for path in (tmp_path / "prep").glob("*.bin"):
        assert path.stat().st_size == 150528
        image = np.fromfile(str(path), np.uint8).reshape(224, 224, 3).transpose(2, 0, 1)
        floats[path.name] = hashlib.sha256(
            (image.astype("<f4") / np.float32(255)).tobytes("C")
        ).hexdigest()
    assert floats == listed_sha256("sample.sha256")


def test_img_size_resizes_to_eight_sevenths(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    pattern(400, 300).save(tmp_path / "src" / "a.png")
    prepare(tmp_path / "src", tmp_path / "prep", "--img-size", 100, "--dtype", "uint8")
    bilinear = Image.Resampling.BILINEAR
    image = pattern(400, 300).resize((152, 300), bilinear).resize((152, 114), bilinear)
    expected = np.asarray(image.crop((26, 7, 126, 107))).tobytes()
    assert (tmp_path / "prep" / "a.bin").read_bytes() == expected


def test_the_reason_of_a_bad_image_is_one_harmless_line() -> None:
    assert pixels.reason(ValueError("two\n  lines")) == "two lines"
    assert pixels.reason(SyntaxError("bell \a")) == r"'bell \x07'"
    assert pixels.reason(OSError()) == "OSError"
    assert len(pixels.reason(ValueError("x" * 999))) == 200


# ---- the fast path -------------------------------------------------------------------------------


def test_fast_path_gives_the_reference_bytes_on_800_random_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        ImageFile, "MAXBLOCK", 1 << 22
    )  # Pillow writes a progressive JPEG only from one buffer
    fast = [(dtype, need_fast(dtype=dtype)) for dtype in pixels.BYTES]
    if native.has_avx2():
        monkeypatch.setattr(native, "has_avx2", lambda: False)  # other CPUs
        fast += [(dtype, need_fast(dtype=dtype)) for dtype in pixels.BYTES]
    generator = random.Random(7)
    noise = np.random.RandomState(7).randint(0, 256, (700, 700, 3)).astype(np.uint8)
    smooth = np.asarray(pattern(700, 700))
    for number in range(800):
        most = 700 if number % 20 == 0 else 90
        width, height = generator.randint(1, most), generator.randint(1, most)
        if max(width, height) > 30 * min(width, height):
            width = height
        source = smooth if number % 2 else noise
        file = io.BytesIO()
        image = Image.fromarray(source[:height, :width])
        (image.convert("L") if number % 9 == 0 else image).save(
            file,
            "JPEG",
            quality=generator.randint(20, 98),
            subsampling=generator.randint(0, 2),
            progressive=generator.random() < 0.2,
        )
        with Image.open(file) as image:
            reference = pixels.reference_crop(image, DEFAULT)
        expected = {
            dtype: pixels.network_input(reference, dtype, DEFAULT) for dtype in pixels.BYTES
        }
        for dtype, fast_path in fast:
            result = fast_path(file.getvalue(), width, height)
            assert result is not None and result.tobytes() == expected[dtype], (
                number,
                width,
                height,
                dtype,
            )


def test_fast_path_gives_the_reference_bytes_on_large_photos_and_other_sizes(photos: Path) -> None:
    for img_size in (31, 224, 299):
        setting = DEFAULT._replace(img_size=img_size)
        fast = need_fast(img_size)
        for path in sorted(photos.iterdir()):
            with path.open("rb") as file, Image.open(path) as image:
                result = fast(path.read_bytes(), image.width, image.height)
                assert result.tobytes() == pixels.convert(file, setting, "float32"), (
                    path,
                    img_size,
                )


def test_fast_path_gives_the_golden_bytes_and_leaves_the_unusual_to_pillow() -> None:
    fast = need_fast()
    calls = []

    def watched(*args: Any) -> Any:
        calls.append(fast(*args))
        return calls[-1]

    for name, expected in listed_sha256("odd.sha256").items():
        with open(str(GOLDEN / "odd" / name), "rb") as file:
            assert (
                hashlib.sha256(pixels.convert(file, DEFAULT, "float32", watched)).hexdigest()
                == expected
            ), name
    assert len(calls) == 6 and all(
        result is not None for result in calls
    )  # the JPEGs, not CMYK or PNG


def test_a_damaged_jpeg_is_judged_by_pillow_with_or_without_the_fast_path(photos: Path) -> None:
    fast = need_fast()
    whole = (photos / "imagenet_00_243.jpg").read_bytes()
    generator = random.Random(3)
    outcomes = set()
    for number in range(60):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randint(2, len(damaged) - 1)] ^= 1 << generator.randint(0, 7)
        data = bytes(
            damaged[: generator.randint(100, len(damaged))] if number % 3 == 0 else damaged
        )
        results: List[Any] = []
        for path in (None, fast):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made = pixels.convert(io.BytesIO(data), DEFAULT, "float32", path)
                results.append(bytes(memoryview(made).cast("B")))
            except Exception as error:  # any that Pillow raises
                results.append(pixels.reason(error))
        assert results[0] == results[1], number
        outcomes.add(type(results[0]))
    assert outcomes == {str, bytes}  # both kinds occurred


def test_without_a_compiler_and_cache_the_bytes_are_the_same_and_it_says_so_once(
    tmp_path: Path, photos: Path
) -> None:
    copy_program(tmp_path)
    (tmp_path / "src").mkdir()
    for name in "ab":
        os.link(str(photos / "imagenet_14_129.jpg"), str(tmp_path / "src" / f"{name}.jpg"))
    done = subprocess.run(
        [sys.executable, str(tmp_path / SCRIPT), str(tmp_path / "src"), str(tmp_path / "prep")],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        env=dict(os.environ, PATH=str(tmp_path)),
    )
    assert re.fullmatch(r"note: the fast path is not used, Pillow does it all: \S.*\n", done.stderr)
    golden = listed_sha256("sample.sha256")["imagenet_14_129.bin"]
    assert bins(tmp_path / "prep") == {"a.bin": golden, "b.bin": golden}


def test_without_simplejpeg_the_bytes_are_the_same_and_it_says_so(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    done = prepare(photos, tmp_path / "prep")
    assert (
        done.stderr
        == "note: the fast path is not used, Pillow does it all: simplejpeg is not installed\n"
    )
    assert bins(tmp_path / "prep") == listed_sha256("sample.sha256")


def test_a_fast_path_that_differs_from_this_pillow_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_fast()
    crop = pixels.reference_crop
    monkeypatch.setattr(
        pixels, "reference_crop", lambda image, evaluation: crop(image, evaluation) ^ 1
    )
    done = prepare(fill(tmp_path / "src", ["a.png"]), tmp_path / "prep")
    assert (
        "Pillow does it all: its result differs from that of the Pillow installed here\n"
        in done.stderr
    )


@pytest.mark.slow
def test_runs_that_compile_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    need_fast()
    copy_program(tmp_path)
    code = (
        "import ctypes; from common.core import native;"
        "print(bool(ctypes.cast(native.load('data/resize.c').crop_resize, ctypes.c_void_p).value))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=str(tmp_path / "scripts"), stdout=subprocess.PIPE
        )
        for _ in range(4)
    ]
    assert [run.communicate()[0] for run in runs] == [b"True\n"] * 4
    cache = tmp_path / "scripts" / "common" / "__pycache__"
    left = [name for name in os.listdir(str(cache)) if not name.endswith(".pyc")]
    assert len(left) == 2
    assert re.fullmatch(r"(resize-[0-9a-f]{16}\.so)\|\1\.sha256", "|".join(sorted(left)))
