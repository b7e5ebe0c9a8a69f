"""TResNet_preprocess.py: its bytes, its names, what it refuses; neither bad images nor interruptions lose any."""
import contextlib
import fcntl
import hashlib
import io
import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import time
import warnings
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import numpy as np
import pytest
from conftest import GOLDEN, ROOT, listed_sha256, refusal, sha256, succeed
from PIL import Image, ImageFile

import TResNet_preprocess as preprocess

SCRIPT = "TResNet_preprocess.py"
FLOAT_BYTES, UINT8_BYTES = 3 * 224 * 224 * 4, 3 * 224 * 224


def pattern(width: int, height: int) -> Image.Image:
    """An image that is the same everywhere, with every kind of edge."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([(x * 7 + y * 3) % 256, (x * y) % 256, (x * x + 5 * y) % 256], -1).astype(np.uint8))


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG file of 8-bit RGB whose header says width x height, whatever the data is."""
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def fill(folder: Path, names: List[str], size: int = 40) -> Path:
    """Small PNG images of these names, each a little different."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(os.path.join(str(folder), name), "wb") as file:
            pattern(size + number % 7, size).save(file, "PNG")
    return folder


def bins(folder: Path) -> Dict[str, str]:
    """{name: SHA-256} of all .bin files of a folder."""
    return {path.name: sha256(path) for path in folder.glob("*.bin")}


def rows(folder: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def children(pid: int) -> List[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(*args: object, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, str(ROOT / SCRIPT)] + [str(a) for a in args], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True, start_new_session=True, **options)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What the condition gives as soon as it is true; fails after some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def slow_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images that take about 60 ms each: time enough to interrupt."""
    folder = tmp_path_factory.mktemp("slow")
    big = np.asarray(pattern(1600, 1600))
    for number in range(24):
        Image.fromarray(np.roll(big, number, 1)).save(folder / f"s{number:02}.png", compress_level=1)
    return folder


@pytest.fixture(scope="module")
def slow_bins(slow_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    """What an undisturbed run makes of slow_images."""
    target = tmp_path_factory.mktemp("undisturbed") / "prep"
    succeed(SCRIPT, slow_images, target)
    return bins(target)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small file system with these options, or mounts it anew with others."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", ("remount," if mounted else "") + options, "tmpfs", str(folder)]
        done = subprocess.run(command, stderr=subprocess.PIPE)
        if done.returncode:
            pytest.skip(f"this user may not mount a tmpfs: {os.fsdecode(done.stderr).strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


# ---- the bytes

def test_sample_photos_become_the_bytes_of_the_original_environment(sample: Path, tmp_path: Path) -> None:
    done = succeed(SCRIPT, sample / "val_union", tmp_path / "prep")
    assert bins(tmp_path / "prep") == listed_sha256("sample.sha256")
    assert re.fullmatch(r"20 images in \S+: 20 made in [\d.]+ s, [\d.]+ images/s", done.stdout.splitlines()[-1])
    assert done.stderr == ""


def test_odd_images_become_the_bytes_of_the_original_environment(tmp_path: Path) -> None:
    succeed(SCRIPT, GOLDEN / "odd", tmp_path / "prep")
    made = {row["source"]: sha256(tmp_path / "prep" / row["bin"]) for row in rows(tmp_path / "prep") if "bin" in row}
    assert made == listed_sha256("odd.sha256")


@pytest.mark.parametrize("size, expected", [  # SHA-256 of what Pillow 9.5's one-step resize gives
    ((279, 589), "2635073f8b8c056c1b762c44e7bd28e9482b4358a8e28fb705409492d8bfc7d4"),  # Pillow 13 in one step: others
    ((300, 2000), "e02395a3e901d95c0770df3697bb7b788ac0b52533e0254abcb1f2efe2701816"),  # likewise
    ((2000, 300), "3dac9c00121eb237c7942745b7ee648dac9761c2d82232cb0f6795b126afc3de"),
    ((500, 375), "4cb66993f4fbd15d31d44d3afd90f273fdddfd5c5ed2308de2828d99a3d7456c"),
    ((256, 600), "4b37ffcd047dcd98d865632ef077df2c1da2175521bf7f03c90a1dc4299ba505"),
    ((100, 80), "f1a7b9df339f3c34322bd32ea94e27fe8e24c157f9fd5f76dbcf604204503f48")])
def test_the_resize_is_that_of_old_pillow_with_any_pillow(size: Any, expected: str) -> None:
    file = io.BytesIO()
    pattern(*size).save(file, "PNG")
    file.seek(0)
    assert hashlib.sha256(preprocess.convert(file, 224, "float32")).hexdigest() == expected


def test_uint8_is_the_same_pixels_in_height_width_channel_order(sample: Path, tmp_path: Path) -> None:
    succeed(SCRIPT, sample / "val_union", tmp_path / "prep", "--dtype", "uint8")
    folder = tmp_path / "prep"
    floats = {}
    for path in folder.glob("*.bin"):
        assert path.stat().st_size == UINT8_BYTES
        pixels = np.fromfile(str(path), np.uint8).reshape(224, 224, 3).transpose(2, 0, 1)
        floats[path.name] = hashlib.sha256((pixels.astype("<f4") / np.float32(255)).tobytes("C")).hexdigest()
    assert floats == listed_sha256("sample.sha256")


def test_img_size_resizes_to_eight_sevenths(tmp_path: Path) -> None:
    pattern(400, 300).save(tmp_path / "a.png")
    (tmp_path / "src").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "src" / "a.png")
    succeed(SCRIPT, tmp_path / "src", tmp_path / "prep", "--img-size", 100, "--dtype", "uint8")
    image = pattern(400, 300).resize((152, 300), Image.BILINEAR).resize((152, 114), Image.BILINEAR)  # floor(100 / .875)
    expected = np.asarray(image.crop((26, 7, 126, 107))).tobytes()
    assert (tmp_path / "prep" / "a.bin").read_bytes() == expected


def need_fast(img_size: int = 224, dtype: str = "float32") -> Callable[..., Any]:
    """The fast path; where it is meant to be (simplejpeg and a C compiler are installed) it must be there."""
    pytest.importorskip("simplejpeg", reason="the fast path needs simplejpeg")
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("the fast path needs a C compiler")
    return preprocess.fast_path(10**6, img_size, dtype)


def test_fast_path_gives_the_reference_bytes_on_3000_random_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 1 << 22)  # Pillow writes a progressive JPEG only from one buffer
    fast = [(dtype, need_fast(dtype=dtype)) for dtype in preprocess.BYTES]
    monkeypatch.setattr(preprocess, "has_avx2", lambda: False)  # other CPUs
    fast += [(dtype, need_fast(dtype=dtype)) for dtype in preprocess.BYTES]
    generator = random.Random(7)
    noise = np.random.RandomState(7).randint(0, 256, (700, 700, 3)).astype(np.uint8)
    smooth = np.asarray(pattern(700, 700))
    taken = 0
    for number in range(3200):
        most = 700 if number % 20 == 0 else 90
        width, height = generator.randint(1, most), generator.randint(1, most)
        if max(width, height) > 30 * min(width, height):
            width = height
        source = smooth if number % 2 else noise
        file = io.BytesIO()
        image = Image.fromarray(source[:height, :width])
        (image.convert("L") if number % 9 == 0 else image).save(
            file, "JPEG", quality=generator.randint(20, 98), subsampling=generator.randint(0, 2),
            progressive=generator.random() < 0.2)
        dtype, fast_path = generator.choice(fast)
        file.seek(0)
        expected = preprocess.convert(file, 224, dtype)
        result = fast_path(file.getvalue(), width, height)
        taken += result is not None
        assert result is None or result.tobytes() == expected, (number, width, height, dtype)
    assert taken == 3200


def test_fast_path_gives_the_reference_bytes_on_large_photos_and_other_sizes(sample: Path) -> None:
    for img_size in (31, 224, 299):
        fast = need_fast(img_size)
        for path in sorted((sample / "val_union").iterdir()):
            with path.open("rb") as file, Image.open(path) as image:
                result = fast(path.read_bytes(), image.width, image.height)
                assert result.tobytes() == preprocess.convert(file, img_size, "float32"), (path, img_size)


def test_fast_path_gives_the_golden_bytes_and_leaves_the_unusual_to_pillow(tmp_path: Path) -> None:
    fast = need_fast()
    calls = []

    def watched(*args: Any) -> Any:
        calls.append(fast(*args))
        return calls[-1]

    for name, expected in listed_sha256("odd.sha256").items():
        with open(str(GOLDEN / "odd" / name), "rb") as file:
            assert hashlib.sha256(preprocess.convert(file, 224, "float32", watched)).hexdigest() == expected, name
    assert len(calls) == 6 and all(result is not None for result in calls)  # the JPEGs, not CMYK or PNG


def test_a_damaged_jpeg_is_judged_by_pillow_with_or_without_the_fast_path(sample: Path) -> None:
    fast = need_fast()
    whole = (sample / "val_union" / "imagenet_00_243.jpg").read_bytes()
    generator = random.Random(3)
    outcomes = set()
    for number in range(60):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randint(2, len(damaged) - 1)] ^= 1 << generator.randint(0, 7)
        data = bytes(damaged[:generator.randint(100, len(damaged))] if number % 3 == 0 else damaged)
        results: List[Any] = []
        for path in (None, fast):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made = preprocess.convert(io.BytesIO(data), 224, "float32", path)
                results.append(bytes(memoryview(made).cast("B")))
            except Exception as error:  # whatever Pillow raises
                results.append(preprocess.reason(error))
        assert results[0] == results[1], number
        outcomes.add(type(results[0]))
    assert outcomes == {str, bytes}  # both kinds occurred


def test_many_images_take_the_fast_path_by_themselves(tmp_path: Path, sample: Path) -> None:
    need_fast()
    source = tmp_path / "src"
    source.mkdir()
    photos = sorted((sample / "val_union").iterdir())
    for number in range(320):
        os.link(str(photos[number % 20]), str(source / f"{number:03}.jpg"))
    done = succeed(SCRIPT, source, tmp_path / "prep")
    assert "fast path" not in done.stderr
    golden = listed_sha256("sample.sha256")
    assert bins(tmp_path / "prep") == {f"{number:03}.bin": golden[photos[number % 20].stem + ".bin"]
                                       for number in range(320)}


def test_without_a_compiler_and_cache_the_bytes_are_the_same_and_it_says_so(tmp_path: Path, sample: Path) -> None:
    for name in ("TResNet_preprocess.py", "TResNet_preprocess.c"):
        shutil.copy(str(ROOT / name), str(tmp_path / name))
    source = tmp_path / "src"
    source.mkdir()
    for number in range(300):
        os.link(str(sample / "val_union" / "imagenet_14_129.jpg"), str(source / f"{number:03}.jpg"))
    done = subprocess.run([sys.executable, str(tmp_path / SCRIPT), str(source), str(tmp_path / "prep")], check=True,
                          stderr=subprocess.PIPE, universal_newlines=True, env=dict(os.environ, PATH=str(tmp_path)))
    assert done.stderr.startswith("note: the fast path is not used, Pillow does it all: ")
    assert set(bins(tmp_path / "prep").values()) == {listed_sha256("sample.sha256")["imagenet_14_129.bin"]}


def test_runs_that_compile_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    need_fast()
    for name in ("TResNet_preprocess.py", "TResNet_preprocess.c"):
        shutil.copy(str(ROOT / name), str(tmp_path / name))
    code = ("import ctypes, TResNet_preprocess as p;"
            "print(bool(ctypes.cast(p.compiled('TResNet_preprocess.c', True).crop_resize, ctypes.c_void_p).value))")
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=str(tmp_path), stdout=subprocess.PIPE) for _ in range(4)]
    assert [run.communicate()[0] for run in runs] == [b"True\n"] * 4
    left = [name for name in os.listdir(str(tmp_path / "__pycache__")) if not name.endswith(".pyc")]
    assert len(left) == 1 and re.fullmatch(r"TResNet_preprocess-[0-9a-f]{16}\.so", left[0])


# ---- names and labels

def test_hostile_and_equal_names_each_get_a_bin_of_their_own(tmp_path: Path) -> None:
    names = ["plain.jpg", "with space.png", "-dash.png", "quote\"'.png", "line\nbreak.png", "a.b.png", "a.c.png",
             "same.png", "same.JPG", "\u5317\u4eac.png", os.fsdecode(b"\xff\xfe.png"), "one/x.png", "two/x.png", ".png",
             "l" * 250 + ".png", preprocess.hashed_stem("one/x.png") + ".png",
             preprocess.hashed_stem("same.png") + ".png", "$(touch pwned).png"]
    done = succeed(SCRIPT, fill(tmp_path / "src", names), tmp_path / "prep", cwd=str(tmp_path))
    assert done.stdout.startswith(f"{len(names)} images in ") and not (tmp_path / "pwned").exists()
    entries = preprocess.read_manifest(str(tmp_path / "prep"))[1]
    assert set(entries) == set(names)
    assert {entry["bin"] for entry in entries.values()} == set(bins(tmp_path / "prep"))
    assert len(bins(tmp_path / "prep")) == len(names)
    for name, entry in entries.items():
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.bin", entry["bin"]) and len(entry["bin"]) < 210
        plain = name in ("plain.jpg",)
        assert entry["bin"] == (preprocess.bin_stem(name, False) if plain else preprocess.hashed_stem(name)) + ".bin"


def test_stems_are_as_agreed_between_the_steps() -> None:
    assert preprocess.bin_stem("ILSVRC2012_val_00000001.JPEG", False) == "ILSVRC2012_val_00000001"
    digest = hashlib.sha256(b"dir/a b.jpg").hexdigest()[:12]
    assert preprocess.bin_stem("dir/a b.jpg", False) == preprocess.hashed_stem("dir/a b.jpg") == f"a_b-{digest}"
    assert preprocess.bin_stem("a.jpg", True) == "a-" + hashlib.sha256(b"a.jpg").hexdigest()[:12]
    assert preprocess.hashed_stem("-x.jpg").startswith("_x-")


def test_suffixes_in_any_case_are_found_and_other_files_are_not(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.JPG", "b.Jpeg", "c.PnG", "deep/er/d.jpeg", "notes.txt", "e.jpg.txt", "f"])
    succeed(SCRIPT, tmp_path / "src", tmp_path / "prep")
    assert set(preprocess.read_manifest(str(tmp_path / "prep"))[1]) == {"a.JPG", "b.Jpeg", "c.PnG", "deep/er/d.jpeg"}
    assert not (tmp_path / "prep" / "val_label.txt").exists()


def test_class_folders_get_labels_in_the_order_that_timm_numbers_them(tmp_path: Path) -> None:
    succeed(SCRIPT, fill(tmp_path / "src", ["n9/a.png", "n10/a.png", "n10/b.png", "B/x y.png"]), tmp_path / "prep")
    labels = dict(line.rsplit(" ", 1) for line in (tmp_path / "prep" / "val_label.txt").read_text().splitlines())
    stem = preprocess.hashed_stem
    assert labels == {stem("B/x y.png"): "0", stem("n9/a.png"): "1", stem("n10/a.png"): "2", stem("n10/b.png"): "2"}


@pytest.mark.parametrize("text", ["my cat 7\ndog 3\n", "x 0\ndog\t3\nmy cat 7", "a\nb\nc\ndog\ne\nf\ng\nmy cat\n"])
def test_class_map_gives_the_index(text: str, tmp_path: Path) -> None:
    fill(tmp_path / "src", ["my cat/1.png", "dog/2.png"])
    (tmp_path / "map.txt").write_text(text)
    succeed(SCRIPT, tmp_path / "src", tmp_path / "prep", "--class-map", tmp_path / "map.txt")
    labels = dict(line.split(" ") for line in (tmp_path / "prep" / "val_label.txt").read_text().splitlines())
    assert labels == {preprocess.hashed_stem("my cat/1.png"): "7", preprocess.hashed_stem("dog/2.png"): "3"}


@pytest.mark.parametrize("text, message", [("cat 1\nother 2\n", "no line for the class folder dog"),
                                           ("cat 1\ncat 2\ndog 3\n", "line 2"), ("cat 1\ndog\n", "line 2"),
                                           ("cat\n\ndog\n", "line 2"), ("", "line 1")])
def test_a_wrong_class_map_is_refused_before_anything_is_written(text: str, message: str, tmp_path: Path) -> None:
    fill(tmp_path / "src", ["cat/1.png", "dog/2.png"])
    (tmp_path / "map.txt").write_text(text)
    assert message in refusal(SCRIPT, tmp_path / "src", tmp_path / "prep", "--class-map", tmp_path / "map.txt")
    assert not (tmp_path / "prep").exists()


def test_link_loops_end_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    source = fill(tmp_path / "src", ["a/1.png"])
    fill(tmp_path, ["elsewhere/2.png"])
    (source / "a" / "up").symlink_to(source)
    (source / "a" / "over").symlink_to(tmp_path)
    (source / "self.jpg").symlink_to("self.jpg")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "again").symlink_to(tmp_path / "elsewhere")
    said = refusal(SCRIPT, source, tmp_path / "prep", timeout=30)
    assert said == "bad image self.jpg: broken link\n"
    assert {row["source"] for row in rows(tmp_path / "prep") if "bin" in row} == {"a/1.png", "again/2.png"}


# ---- bad images

def make_bad(source: Path, photo: Path) -> Dict[str, str]:
    """All kinds of bad images in a folder, and what is to be said of each."""
    (source / "truncated.jpg").write_bytes(photo.read_bytes()[:9000])
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.png").write_text("not an image")
    (source / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    (source / "bomb.png").write_bytes(png(30000, 30000, b"\0" * 1000))
    (source / "half_bomb.png").write_bytes(png(12000, 12000, b"\0" * 1000))
    (source / "needle.png").write_bytes(png(1, 400000, b"\0" * 4 * 400000))
    (source / "folder.jpg").mkdir()
    os.mkfifo(str(source / "pipe.jpg"))
    (source / "broken_link.jpg").symlink_to("nowhere.jpg")
    (source / "device.jpg").symlink_to("/dev/zero")
    return {"truncated.jpg": "image file is truncated", "empty.jpg": "empty", "text.png": "not an image",
            "script.jpg": "not an image", "bomb.png": "decompression bomb", "half_bomb.png": "decompression bomb",
            "needle.png": "decompression bomb", "folder.jpg": "a folder without images",
            "pipe.jpg": "not a regular file", "broken_link.jpg": "broken link", "device.jpg": "not a regular file"}


def test_bad_images_are_listed_with_the_reason_and_all_others_made(sample: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    good = sorted((sample / "val_union").iterdir())[:3]
    for path in good:
        shutil.copy(str(path), str(source))
    expected = make_bad(source, good[0])
    said = refusal(SCRIPT, source, tmp_path / "prep", timeout=60)
    listed = dict(line[len("bad image "):].split(": ", 1) for line in said.splitlines())
    assert listed.keys() == expected.keys()
    for name, why in expected.items():
        assert listed[name].startswith(why), name
    golden = listed_sha256("sample.sha256")
    assert bins(tmp_path / "prep") == {path.stem + ".bin": golden[path.stem + ".bin"] for path in good}
    entries = preprocess.read_manifest(str(tmp_path / "prep"))[1]
    assert {name: entry["error"] for name, entry in entries.items() if "error" in entry} == listed

    done = succeed(SCRIPT, source, tmp_path / "prep", "--skip-bad", timeout=60)  # and now as a warning
    assert "3 images in" in done.stdout and "(3 were there already), 11 bad ones left out" in done.stdout
    assert done.stderr.count("bad image ") == 11


def test_skip_bad_does_not_pass_where_no_image_is_good(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.jpg").write_bytes(b"")
    assert "bad image a.jpg: empty" in refusal(SCRIPT, tmp_path / "src", tmp_path / "prep", "--skip-bad")


def test_of_many_bad_images_the_first_20_are_listed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for number in range(30):
        (tmp_path / "src" / f"{number}\n.jpg").write_bytes(b"")
    said = refusal(SCRIPT, tmp_path / "src", tmp_path / "prep").splitlines()
    assert len(said) == 21 and said[0] == "bad image '0\\n.jpg': empty"
    assert said[-1] == "... and 10 more bad images, all in manifest.jsonl"


def test_a_bomb_does_not_take_memory(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.png"])
    zeros = zlib.compressobj(9)
    body = b"".join(zeros.compress(b"\0" * 30001 * 3 * 100) for _ in range(30)) + zeros.flush()
    whole = png(30000, 3000, b"")
    (tmp_path / "src" / "bomb.png").write_bytes(whole.replace(struct.pack(">II", 30000, 3000), struct.pack(
        ">II", 30000, 30000)) + body)
    (tmp_path / "src" / "sparse.jpg").touch()
    os.truncate(str(tmp_path / "src" / "sparse.jpg"), 1 << 36)  # 64 GiB that take no room
    measure = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:]);"
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    done = subprocess.run([sys.executable, "-c", measure, sys.executable, str(ROOT / SCRIPT), str(tmp_path / "src"),
                           str(tmp_path / "prep")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.stderr.count(b"bad image") == 2
    assert int(done.stdout.split()[-1]) < 150 * 1024  # KiB, with NumPy, Pillow and 16 MiB of the large file


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    file = io.BytesIO()
    pattern(8, 8).save(file, "PNG")
    peaks = []
    for count in (100, 6000):
        source = tmp_path / str(count)
        source.mkdir()
        (source / "0.png").write_bytes(file.getvalue())
        for number in range(1, count):
            os.link(str(source / "0.png"), str(source / f"{number}.png"))
        process = start(source, tmp_path / f"prep{count}", "--img-size", 8)
        output = process.stdout.read()  # type: ignore[union-attr]
        peaks.append(os.wait4(process.pid, 0)[2].ru_maxrss)
        process.returncode = 0
        assert output.startswith(f"{count} images")
    assert peaks[1] - peaks[0] < 12 * 1024  # KiB: names and manifest rows, 2 KiB an image at most


# ---- workers that die or hang

@pytest.mark.parametrize("number, options, why", [
    (signal.SIGKILL, [], r"its worker process was ended by signal 9 \(9 often means: out of memory\)"),
    (signal.SIGSTOP, ["--timeout", "1.5"], r"took longer than 1\.5 s")])
def test_an_image_whose_worker_dies_or_hangs_is_named_and_all_others_made(
        number: int, options: List[str], why: str, slow_images: Path, slow_bins: Dict[str, str], tmp_path: Path
) -> None:
    for attempt in range(8):
        target = tmp_path / f"prep{attempt}"
        process = start(slow_images, target, "-j", 2, *options)
        until(lambda: len(children(process.pid)) == 2)  # noqa: B023 - called at once
        time.sleep(0.05 * (attempt + 1))
        os.kill(children(process.pid)[0], number)
        output, errors = process.communicate(timeout=60)
        if process.returncode:
            break  # otherwise it was between two images, and nothing is lost
        assert errors == "" and bins(target) == slow_bins
    match = re.fullmatch(rf"bad image (s\d\d)\.png: {why}\n", errors)
    assert process.returncode == 1 and match, errors
    assert output.startswith("23 images in")
    assert bins(target) == {name: value for name, value in slow_bins.items() if name != match[1] + ".bin"}
    assert not list(target.glob("*.part"))
    succeed(SCRIPT, slow_images, target)  # and the next run makes it
    assert bins(target) == slow_bins


def test_an_image_that_always_kills_its_worker_costs_only_itself() -> None:
    def work(job: int) -> int:
        if job % 10 == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return job

    results: List[Any] = []
    for some in preprocess.run_workers(range(100), work, 3, 20, lambda job, why: (job, why)):
        results += some
    lost = [result for result in results if isinstance(result, tuple)]
    assert sorted(job for job, _ in lost) == list(range(3, 100, 10)) and "signal 9" in lost[0][1]
    assert sorted(set(r for r in results if isinstance(r, int))) == [job for job in range(100) if job % 10 != 3]


# ---- interruption and resume

@pytest.mark.parametrize("number, status, said", [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0)])
def test_a_signal_ends_all_processes_within_two_seconds(number: int, status: int, said: int, slow_images: Path,
                                                        tmp_path: Path) -> None:
    process = start(slow_images, tmp_path / "prep", "-j", 4)
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    workers = children(process.pid)
    assert len(workers) == 4
    sent = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output, errors = process.communicate(timeout=20)
    assert process.returncode == status and time.monotonic() - sent < 2
    assert len(errors.strip().splitlines()) == said and "Traceback" not in errors
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert not list((tmp_path / "prep").glob("*.part"))


def test_workers_do_not_outlive_a_killed_parent(slow_images: Path, tmp_path: Path) -> None:
    process = start(slow_images, tmp_path / "prep")
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    workers = children(process.pid)
    process.kill()
    process.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
                          for pid in workers), 2)


def test_killed_at_random_moments_it_ends_with_the_same_files(slow_images: Path, slow_bins: Dict[str, str],
                                                              tmp_path: Path) -> None:
    generator, target = random.Random(5), tmp_path / "prep"
    finished = kills = 0
    for number in range(10):
        process = start(slow_images, target)
        end = time.monotonic() + 10
        while number % 2 and process.poll() is None and time.monotonic() < end:  # in the middle of the work
            if len(preprocess.read_manifest(str(target))[1]) > finished:
                break
        time.sleep(generator.random() * (0.1 if number % 2 else 0.6))
        kills += process.poll() is None
        process.send_signal(generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        process.communicate()
        done = len(preprocess.read_manifest(str(target))[1]) if target.exists() else 0
        assert done >= finished, f"kill {number} lost finished images"
        finished = done
        assert all(path.stat().st_size == FLOAT_BYTES for path in target.glob("*.bin"))
    assert kills >= 3
    assert finished > 0 and f"({finished} were there already)" in succeed(SCRIPT, slow_images, target).stdout
    assert bins(target) == slow_bins and not list(target.glob("*.part"))


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """tmp_path with src/ of 5 images and prep/ made from it."""
    succeed(SCRIPT, fill(tmp_path / "src", [f"{letter}.png" for letter in "abcde"]), tmp_path / "prep")
    return tmp_path


def made_by(tmp_path: Path, *options: object) -> List[str]:
    """Run once more; the names of the .bin files that were made anew (by inode)."""
    before = {path.name: path.stat().st_ino for path in (tmp_path / "prep").glob("*.bin")}
    keep = [open(str(path), "rb") for path in (tmp_path / "prep").glob("*.bin")]  # so that no inode is used again
    succeed(SCRIPT, tmp_path / "src", tmp_path / "prep", *options)
    for file in keep:
        file.close()
    after = {path.name: path.stat().st_ino for path in (tmp_path / "prep").glob("*.bin")}
    return sorted(name for name, inode in after.items() if inode != before.get(name))


ALL = [f"{letter}.bin" for letter in "abcde"]


def test_what_is_done_is_not_done_again_and_force_does_all(prepared: Path) -> None:
    assert made_by(prepared) == []
    assert made_by(prepared, "--force") == ALL


def test_a_changed_image_is_done_again_and_a_removed_one_is_removed(prepared: Path) -> None:
    pattern(90, 50).save(prepared / "src" / "b.png")
    os.utime(str(prepared / "src" / "c.png"), ns=(1, 1))
    (prepared / "src" / "d.png").unlink()
    (prepared / "prep" / "e.bin").write_bytes(b"half")
    assert made_by(prepared) == ["b.bin", "c.bin", "e.bin"]
    assert sorted(bins(prepared / "prep")) == ["a.bin", "b.bin", "c.bin", "e.bin"]
    assert sorted(preprocess.read_manifest(str(prepared / "prep"))[1]) == ["a.png", "b.png", "c.png", "e.png"]


@pytest.mark.parametrize("option", [("--img-size", "64"), ("--dtype", "uint8")])
def test_other_settings_do_all_again(option: Any, prepared: Path) -> None:
    assert made_by(prepared, *option) == ALL
    sizes = {path.stat().st_size for path in (prepared / "prep").glob("*.bin")}
    assert sizes == {3 * 64 * 64 * 4 if "64" in option else UINT8_BYTES}


def test_another_version_or_another_source_does_all_again(prepared: Path) -> None:
    manifest = prepared / "prep" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace(f'"version": "{preprocess.VERSION}"', '"version": "0.9"'))
    assert made_by(prepared) == ALL
    shutil.copytree(str(prepared / "src"), str(prepared / "moved"))
    shutil.rmtree(str(prepared / "src"))
    (prepared / "moved").rename(prepared / "src2")
    said = succeed(SCRIPT, prepared / "src2", prepared / "prep")
    assert "5 made" in said.stdout and "everything is made anew: source was" in said.stderr


def test_a_torn_manifest_costs_only_what_was_torn(prepared: Path) -> None:
    manifest = prepared / "prep" / "manifest.jsonl"
    torn = json.loads(manifest.read_text().splitlines()[-1])["bin"]
    os.truncate(str(manifest), manifest.stat().st_size - 9)
    assert made_by(prepared) == [torn]
    assert all(len(row) >= 1 for row in rows(prepared / "prep"))  # and the manifest is whole again


def test_after_a_power_loss_only_what_the_disk_had_for_certain_counts(prepared: Path) -> None:
    manifest = prepared / "prep" / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    header = json.dumps(dict(json.loads(lines[0]), boot_id="another boot"))
    images = [line for line in lines if '"bin"' in line]
    manifest.write_text("\n".join([header] + images[:2] + ['{"synced": 2}'] + images[2:]) + "\n")
    assert made_by(prepared) == sorted(json.loads(line)["bin"] for line in images[2:])
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([json.dumps(dict(json.loads(lines[0]), boot_id="yet another"))] + lines[1:]) + "\n")
    assert len(made_by(prepared)) == 3  # those two are still on the disk, the other three nobody knows


def test_during_a_long_run_the_disk_is_told_to_keep_what_is_done(slow_images: Path, tmp_path: Path) -> None:
    program = ("import sys; sys.path.insert(0, sys.argv.pop(1)); import TResNet_preprocess as p;"
               "p.SYNC_EVERY = 0.1; p.MAX_BATCH = 1; p.main()")
    for attempt in range(5):  # a busy disk may take longer to sync than a run lasts
        target = tmp_path / str(attempt)
        subprocess.run([sys.executable, "-c", program, str(ROOT), str(slow_images), str(target)], check=True,
                       stdout=subprocess.PIPE)
        lines = rows(target)
        synced = [(index, row["synced"]) for index, row in enumerate(lines) if row.get("synced")]
        if synced:
            break
    assert synced and all(0 < count <= sum("bin" in row for row in lines[:index]) for index, count in synced)


def test_leftovers_of_a_killed_run_are_removed(prepared: Path) -> None:
    (prepared / "prep" / "a.bin.part").write_bytes(b"half")
    (prepared / "prep" / "manifest.jsonl.part").write_bytes(b"{")
    succeed(SCRIPT, prepared / "src", prepared / "prep")
    assert not list((prepared / "prep").glob("*.part"))


def test_a_second_run_in_the_same_folder_stops_and_says_who_holds_it(slow_images: Path, tmp_path: Path) -> None:
    process = start(slow_images, tmp_path / "prep")
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    said = refusal(SCRIPT, slow_images, tmp_path / "prep")
    assert f"is being written by another run, process {process.pid};" in said
    output, _ = process.communicate()
    assert process.returncode == 0 and output.startswith("24 images")


# ---- disk and folders

def test_a_disk_too_small_is_refused_before_anything_is_written(tiny_disk: Any, tmp_path: Path) -> None:
    disk = tiny_disk("size=2m")
    said = refusal(SCRIPT, fill(tmp_path / "src", [f"{i}.png" for i in range(5)]), disk / "prep")
    assert "3 MB are needed" in said and "only 2 MB are free" in said
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_ends_in_one_sentence_and_resumes(tiny_disk: Any, tmp_path: Path) -> None:
    disk = tiny_disk("size=20m,nr_inodes=12")  # the space is enough, the inodes are not
    source = fill(tmp_path / "src", [f"{i:02}.png" for i in range(20)])
    said = refusal(SCRIPT, source, disk / "prep")
    assert re.fullmatch(r"TResNet_preprocess\.py: cannot write to \S+: No space left on device; make room and run the "
                        r"same command again, it goes on from here\n", said)
    assert not list((disk / "prep").glob("*.part"))
    there = len(preprocess.read_manifest(str(disk / "prep"))[1])
    tiny_disk("size=20m,nr_inodes=100")
    done = succeed(SCRIPT, source, disk / "prep")
    assert f"({there} were there already)" in done.stdout if there else "20 made" in done.stdout
    succeed(SCRIPT, source, tmp_path / "prep")
    assert bins(disk / "prep") == bins(tmp_path / "prep") and len(bins(tmp_path / "prep")) == 20


def test_a_read_only_target_is_refused(tiny_disk: Any, tmp_path: Path) -> None:
    source = fill(tmp_path / "src", ["a.png"])
    if os.getuid():
        disk = tmp_path / "locked"
        disk.mkdir(mode=0o500)
    else:
        disk = tiny_disk("size=2m,ro")
    assert "read-only" in refusal(SCRIPT, source, disk / "prep")


def test_folders_that_cannot_be_meant_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = fill(tmp_path / "src", ["a.png", "sub/b.png"])
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "file").write_text("x")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for src, dst, message in ((source, source, "same folder"), (source, tmp_path / "link", "same folder"),
                              (source, source / "prep", "DST is inside SRC"),
                              (source, tmp_path / "link" / "prep", "DST is inside SRC"),
                              (source, tmp_path, "SRC is inside DST"), (tmp_path / "gone", "out", "does not exist"),
                              (tmp_path / "file", tmp_path / "out", "is not a folder"),
                              (source, tmp_path / "file", "is a file"), (source, tmp_path / "file" / "x", "is a file"),
                              (tmp_path / "none", tmp_path / "out", "no images in")):
        said = refusal(SCRIPT, src, dst, cwd=str(tmp_path))
        assert message in said and said.startswith("TResNet_preprocess.py: ") and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["stranger.bin", "stranger.npy"])
def test_a_folder_with_strangers_files_is_refused_with_their_names(name: str, prepared: Path) -> None:
    (prepared / "prep" / name).write_bytes(b"x")
    assert name in refusal(SCRIPT, prepared / "src", prepared / "prep")
    (prepared / "other").mkdir()
    (prepared / "other" / "a.bin").write_bytes(b"x")  # named like one of ours, but nothing says that we made it
    assert "a.bin" in refusal(SCRIPT, prepared / "src", prepared / "other")
    assert (prepared / "other" / "a.bin").read_bytes() == b"x"


def test_a_foreign_label_file_is_not_overwritten(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["cat/1.png"])
    (tmp_path / "prep").mkdir()
    (tmp_path / "prep" / "val_label.txt").write_text("mine")
    assert "val_label.txt" in refusal(SCRIPT, tmp_path / "src", tmp_path / "prep")
    assert (tmp_path / "prep" / "val_label.txt").read_text() == "mine"


def test_others_can_never_write_the_products(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.png"])
    succeed(SCRIPT, tmp_path / "src", tmp_path / "new" / "prep", preexec_fn=lambda: os.umask(0))
    for path in [tmp_path / "new", *(tmp_path / "new").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    umask = os.umask(0)
    preprocess.write_whole(str(tmp_path / "a"), b"old")
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError):
            preprocess.write_whole(str(tmp_path / "a"), b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(str(tmp_path)) == ["a"]


# ---- the command line

def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    for options in ([], [tmp_path], [tmp_path, "out", "-j", 0], [tmp_path, "out", "--img-size", "x"],
                    [tmp_path, "out", "--dtype", "float16"], [tmp_path, "out", "--timeout", "nan"]):
        assert "usage: " in refusal(SCRIPT, *options, status=2)


def test_the_progress_bar_is_only_for_terminals(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.png", "b.png"])
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    done = subprocess.run([sys.executable, str(ROOT / SCRIPT), str(tmp_path / "src"), str(tmp_path / "prep")],
                          stderr=theirs, stdout=subprocess.PIPE, check=True)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: all is read
        while True:
            seen += os.read(ours, 10000)
    os.close(ours)
    assert b"2/2" in seen
    assert b"2/2" not in done.stdout
    assert succeed(SCRIPT, tmp_path / "src", tmp_path / "prep", "--force").stderr == ""


def test_importing_it_loads_nothing_heavy() -> None:
    program = ("import sys; sys.path.insert(0, sys.argv[1]); import TResNet_preprocess;"
               "print([name for name in ('numpy', 'PIL', 'multiprocessing', 'tqdm', 'ctypes') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", program, str(ROOT)], stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b"[]"
