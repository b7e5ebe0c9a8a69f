"""TResNet_preprocess.py: what it refuses; bad images and full disks cost no other image."""

import contextlib
import fcntl
import io
import os
import pty
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import termios
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

from common.core.files import stamp, write_whole
from common.data.prepared import read

import pytest
from conftest import ROOT, listed_sha256
from pictures import SCRIPT, bins, fill, pattern, png, prepare, prepare_refused, start_preparing


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts a small file system with some options, or changes its options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        command = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            ("remount," if mounted else "") + options,
            "tmpfs",
            str(folder),
        ]
        done = subprocess.run(command, stderr=subprocess.PIPE)
        if done.returncode:
            pytest.skip(f"this user may not mount a tmpfs: {os.fsdecode(done.stderr).strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


# ---- bad images ----------------------------------------------------------------------------------


def make_bad(source: Path, photo: Path) -> Dict[str, str]:
    """Put all kinds of bad images into a folder; what the program says of each."""
    (source / "truncated.jpg").write_bytes(photo.read_bytes()[:9000])
    (source / "empty.jpg").write_bytes(b"")
    (source / "text.png").write_text("not an image")
    (source / "script.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    )
    (source / "bomb.png").write_bytes(png(30000, 30000, b"\0" * 1000))
    (source / "half_bomb.png").write_bytes(png(12000, 12000, b"\0" * 1000))
    (source / "needle.png").write_bytes(png(1, 400000, b"\0" * 4 * 400000))
    (source / "folder.jpg").mkdir()
    os.mkfifo(str(source / "pipe.jpg"))
    (source / "broken_link.jpg").symlink_to("nowhere.jpg")
    (source / "device.jpg").symlink_to("/dev/zero")
    return {
        "truncated.jpg": "image file is truncated",
        "empty.jpg": "empty",
        "text.png": "not an image",
        "script.jpg": "not an image",
        "bomb.png": "decompression bomb",
        "half_bomb.png": "decompression bomb",
        "needle.png": "decompression bomb",
        "folder.jpg": "a folder without images",
        "pipe.jpg": "not a regular file",
        "broken_link.jpg": "broken link",
        "device.jpg": "not a regular file",
    }


def test_bad_images_are_listed_with_the_reason_and_all_others_made(
    photos: Path, tmp_path: Path
) -> None:
    source = tmp_path / "src"
    source.mkdir()
    good = sorted(photos.iterdir())[:3]
    for path in good:
        shutil.copy(str(path), str(source))
    expected = make_bad(source, good[0])
    said = prepare_refused(source, tmp_path / "prep")
    *lines, hint = said.splitlines()
    listed = dict(line[len("bad image ") :].split(": ", 1) for line in lines)
    assert hint == "to go on without the bad images, add --skip-bad"
    assert listed.keys() == expected.keys()
    for name, why in expected.items():
        assert listed[name].startswith(why), name
    golden = listed_sha256("sample.sha256")
    assert bins(tmp_path / "prep") == {
        path.stem + ".bin": golden[path.stem + ".bin"] for path in good
    }
    assert read(str(tmp_path / "prep")).bad == listed

    done = prepare(source, tmp_path / "prep", "--skip-bad")  # and now as a warning
    assert done.stdout == f"3 images in {tmp_path}/prep (3 already there), 11 bad images left out\n"
    assert done.stderr.splitlines() == lines


def test_skip_bad_does_not_pass_where_no_image_is_good(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.jpg").write_bytes(b"")
    assert "bad image a.jpg: empty" in prepare_refused(
        tmp_path / "src", tmp_path / "prep", "--skip-bad"
    )


def test_of_many_bad_images_the_first_20_are_listed(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for number in range(30):
        (tmp_path / "src" / f"{number}\n.jpg").write_bytes(b"")
    said = prepare_refused(tmp_path / "src", tmp_path / "prep").splitlines()
    assert len(said) == 22 and said[0] == "bad image '0\\n.jpg': empty"
    assert said[20] == "... and 10 more bad images, all in manifest.jsonl"


def test_a_bomb_does_not_take_memory(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.png"])
    zeros = zlib.compressobj(9)
    body = b"".join(zeros.compress(b"\0" * 30001 * 3 * 100) for _ in range(30)) + zeros.flush()
    small = png(30000, 3000, b"")
    (tmp_path / "src" / "bomb.png").write_bytes(
        small.replace(struct.pack(">II", 30000, 3000), struct.pack(">II", 30000, 30000)) + body
    )
    (tmp_path / "src" / "sparse.jpg").touch()
    os.truncate(str(tmp_path / "src" / "sparse.jpg"), 1 << 36)  # 64 GiB that take no space
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            measure,
            sys.executable,
            str(ROOT / SCRIPT),
            str(tmp_path / "src"),
            str(tmp_path / "prep"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.stderr.count(b"bad image ") == 2
    peak = int(done.stdout.split()[-1])  # KiB, with NumPy, Pillow and 16 MiB of the large file
    assert peak < 150 * 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    file = io.BytesIO()
    pattern(8, 8).save(file, "PNG")
    peaks = []
    for count in (100, 4000):
        source = tmp_path / str(count)
        source.mkdir()
        (source / "0.png").write_bytes(file.getvalue())
        for number in range(1, count):
            os.link(str(source / "0.png"), str(source / f"{number}.png"))
        process = start_preparing(source, tmp_path / f"prep{count}", "--img-size", 8)
        output = process.stdout.read()  # type: ignore[union-attr]
        peaks.append(os.wait4(process.pid, 0)[2].ru_maxrss)
        process.returncode = 0
        assert output.startswith(f"{count} images")
    assert peaks[1] - peaks[0] < 8 * 1024  # KiB: names and manifest rows, 2 KiB an image at most


# ---- disk and folders ----------------------------------------------------------------------------


def test_a_disk_too_small_is_refused_before_anything_is_written(
    tiny_disk: Any, tmp_path: Path
) -> None:
    disk = tiny_disk("size=2m")
    said = prepare_refused(fill(tmp_path / "src", [f"{i}.png" for i in range(5)]), disk / "prep")
    assert "3 MB are needed" in said and "only 2 MB are free" in said
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_up_ends_in_one_sentence_and_resumes(
    tiny_disk: Any, tmp_path: Path
) -> None:
    disk = tiny_disk("size=20m,nr_inodes=12")  # the space is enough, the inodes are not
    source = fill(tmp_path / "src", [f"{i:02}.png" for i in range(20)])
    said = prepare_refused(source, disk / "prep")
    assert re.fullmatch(
        r"TResNet_preprocess\.py: cannot write to \S+: No space left on device; free some space "
        r"and run the same command again, it goes on from here\n",
        said,
    )
    assert not list((disk / "prep").glob("*.part"))
    there = len(read(str(disk / "prep")).sources)
    tiny_disk("size=20m,nr_inodes=100")
    done = prepare(source, disk / "prep")
    assert (f"({there} already there)" if there else "20 made") in done.stdout
    prepare(source, tmp_path / "prep")
    assert bins(disk / "prep") == bins(tmp_path / "prep") and len(bins(tmp_path / "prep")) == 20


def test_a_read_only_target_is_refused(tiny_disk: Any, tmp_path: Path) -> None:
    source = fill(tmp_path / "src", ["a.png"])
    if os.getuid():
        disk = tmp_path / "locked"
        disk.mkdir(mode=0o500)
    else:
        disk = tiny_disk("size=2m,ro")
    assert "read-only" in prepare_refused(source, disk / "prep")


def test_folders_that_cannot_be_used_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    source = fill(tmp_path / "src", ["a.png", "sub/b.png"])
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "file").write_text("x")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "readme.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    for src, dst, message in (
        (source, source, "same folder"),
        (source, tmp_path / "link", "is a symbolic link"),
        (source, source / "prep", "DST is inside SRC"),
        (source, tmp_path / "link" / "prep", "DST is inside SRC"),
        (source, tmp_path, "SRC is inside DST"),
        (tmp_path / "gone", "out", "does not exist"),
        (tmp_path / "file", tmp_path / "out", "is not a folder"),
        (source, tmp_path / "file", "is a file"),
        (source, tmp_path / "file" / "x", "is a file"),
        (tmp_path / "none", tmp_path / "out", "no images in"),
    ):
        said = prepare_refused(src, dst, cwd=str(tmp_path))
        assert (
            message in said and said.startswith("TResNet_preprocess.py: ") and said.count("\n") == 1
        )
    assert sorted(tmp_path.rglob("*")) == before


def test_others_can_never_write_the_products(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["cat/a.png"])
    prepare(tmp_path / "src", tmp_path / "new" / "prep", umask=0)
    assert {path.name for path in (tmp_path / "new" / "prep").iterdir()} >= {
        "manifest.jsonl",
        "val_label.txt",
    }
    for path in [tmp_path / "new", *(tmp_path / "new").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    umask = os.umask(0)
    assert write_whole(str(tmp_path / "a"), b"old") == stamp((tmp_path / "a").stat())
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(OSError):
            write_whole(str(tmp_path / "a"), b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(str(tmp_path)) == ["a"]


# ---- the command line ----------------------------------------------------------------------------


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    for options in (
        [],
        [tmp_path],
        [tmp_path, "out", "-j", 0],
        [tmp_path, "out", "--img-size", "x"],
        [tmp_path, "out", "--dtype", "float16"],
        [tmp_path, "out", "--timeout", "nan"],
        [tmp_path, "out", "--timeout", 0],
        ["", "out"],
        [tmp_path, ""],
    ):
        assert "--help" in prepare_refused(*options, status=2)


def test_without_its_packages_it_says_which_is_missing_and_what_fixes_that(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.png", "b.png"])
    done = subprocess.run(
        [
            sys.executable,
            "-E",
            "-S",
            str(ROOT / SCRIPT),
            str(tmp_path / "src"),
            str(tmp_path / "prep"),
        ],  # -S: a bare Python
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
    )
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "prep").exists()
    assert re.fullmatch(
        r"TResNet_preprocess\.py: the package numpy is not installed for .*source \S+\n",
        done.stderr,
    )


def test_the_progress_bar_is_only_for_terminals(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["a.png", "b.png"])
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    code = (
        "import runpy; from common.core import progress; progress.PATIENCE = progress.REDRAW = 0; "
        f"runpy.run_path({str(ROOT / SCRIPT)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "src"), str(tmp_path / "prep")],
        stderr=theirs,
        stdout=subprocess.PIPE,
        check=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT / "scripts"), TERM="xterm"),
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: all is read
        while True:
            seen += os.read(ours, 10000)
    os.close(ours)
    assert b"2 of 2 images" in seen and seen.endswith(b" \r"), "drawn, then erased"
    assert b"2 of 2" not in done.stdout
    assert prepare(tmp_path / "src", tmp_path / "prep", "--force").stderr == ""


def test_a_run_with_nothing_to_do_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "src", ["a.png"])
    (tmp_path / "src" / "gone.png").symlink_to("nowhere")
    prepare(tmp_path / "src", tmp_path / "prep", "--skip-bad")
    for part in (
        "TResNet_preprocess.fast_path",
        "TResNet_preprocess.run_workers",
        "common.core.record.begin",
    ):
        monkeypatch.setattr(part, None)
    done = prepare(tmp_path / "src", tmp_path / "prep", "--skip-bad")
    assert done.stderr == "bad image gone.png: broken link\n"
    assert "(1 already there)" in done.stdout
