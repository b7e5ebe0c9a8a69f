"""What images are called: which are found, the stem of each .bin, the class of a folder."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

from common.core.names import bin_stem, hashed_stem
from common.data.images import find_images

import pytest
from conftest import ROOT
from pictures import bins, fill, labels_of, prepare, prepare_refused
from records import prepared_sources


def test_hostile_and_equal_names_each_get_a_bin_of_their_own(tmp_path: Path) -> None:
    names = [
        "plain.jpg",
        "with space.png",
        "-dash.png",
        "quote\"'.png",
        "line\nbreak.png",
        "a.b.png",
        "a.c.png",
        "same.png",
        "same.JPG",
        "\u5317\u4eac.png",
        os.fsdecode(b"\xff\xfe.png"),
        "one/x.png",
        "two/x.png",
        ".png",
        "l" * 250 + ".png",
        hashed_stem("one/x.png") + ".png",
        hashed_stem("same.png") + ".png",
        "$(touch pwned).png",
    ]
    done = prepare(fill(tmp_path / "src", names), tmp_path / "prep", cwd=str(tmp_path))
    assert done.stdout.startswith(f"{len(names)} images in ") and not (tmp_path / "pwned").exists()
    made = prepared_sources(tmp_path / "prep")
    assert set(made) == set(names)
    assert set(made.values()) == set(bins(tmp_path / "prep"))
    assert len(bins(tmp_path / "prep")) == len(names)
    for name, bin_name in made.items():
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*\.bin", bin_name) and len(bin_name) < 210
        assert (
            bin_name
            == (bin_stem(name, False) if name == "plain.jpg" else hashed_stem(name)) + ".bin"
        )


def test_stems_are_as_agreed_between_the_steps() -> None:
    assert bin_stem("ILSVRC2012_val_00000001.JPEG", False) == "ILSVRC2012_val_00000001"
    digest = hashlib.sha256(b"dir/a b.jpg").hexdigest()[:12]
    assert bin_stem("dir/a b.jpg", False) == hashed_stem("dir/a b.jpg") == f"a_b-{digest}"
    assert bin_stem("a.jpg", True) == "a-" + hashlib.sha256(b"a.jpg").hexdigest()[:12]
    assert hashed_stem("-x.jpg").startswith("_x-")


def test_suffixes_in_any_case_are_found_and_other_files_are_not(tmp_path: Path) -> None:
    fill(
        tmp_path / "src",
        ["a.JPG", "b.Jpeg", "c.PnG", "deep/er/d.jpeg", "notes.txt", "e.jpg.txt", "f"],
    )
    prepare(tmp_path / "src", tmp_path / "prep")
    assert set(prepared_sources(tmp_path / "prep")) == {
        "a.JPG",
        "b.Jpeg",
        "c.PnG",
        "deep/er/d.jpeg",
    }
    assert not (tmp_path / "prep" / "val_label.txt").exists()


def test_link_loops_end_and_linked_folders_are_read_once(tmp_path: Path) -> None:
    source = fill(tmp_path / "src", ["a/1.png"])
    fill(tmp_path, ["elsewhere/2.png"])
    (source / "a" / "up").symlink_to(source)
    (source / "a" / "over").symlink_to(tmp_path)
    (source / "self.jpg").symlink_to("self.jpg")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "again").symlink_to(tmp_path / "elsewhere")
    said = prepare_refused(source, tmp_path / "prep").splitlines()
    assert said[0] == "bad image self.jpg: broken link" and len(said) == 2
    assert set(prepared_sources(tmp_path / "prep")) == {"a/1.png", "again/2.png"}


def test_images_and_manifests_are_read_without_any_package(tmp_path: Path) -> None:
    prepare(fill(tmp_path / "src", ["a.png", "b/c.PNG"]), tmp_path / "prep")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "from common.core import names; from common.data import images, labels, prepared;"
        "made = prepared.read(sys.argv[3]).sources.values();"
        "print(sorted(images.find_images(sys.argv[2])[0]) == sorted(made))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-E",
            "-S",
            "-c",
            code,
            str(ROOT / "scripts"),
            str(tmp_path / "src"),
            str(tmp_path / "prep"),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == b"True\n"
    assert sorted(find_images(str(tmp_path / "src"))[0]) == ["a.png", "b/c.PNG"]


# ---- labels of class folders ---------------------------------------------------------------------


def test_class_folders_get_labels_in_the_order_that_timm_numbers_them(tmp_path: Path) -> None:
    prepare(
        fill(tmp_path / "src", ["n9/a.png", "n10/a.png", "n10/b.png", "B/x y.png"]),
        tmp_path / "prep",
    )
    stem = hashed_stem
    assert labels_of(tmp_path / "prep") == {
        stem("B/x y.png"): "0",
        stem("n9/a.png"): "1",
        stem("n10/a.png"): "2",
        stem("n10/b.png"): "2",
    }


def test_class_folders_with_digits_that_are_no_numbers_get_labels_too(tmp_path: Path) -> None:
    prepare(
        fill(tmp_path / "src", ["5\u00b2/a.png", "10/b.png", "\uff11/c.png", "5/d.png"]),
        tmp_path / "prep",
    )
    assert labels_of(tmp_path / "prep") == {
        hashed_stem("5/d.png"): "0",
        hashed_stem("5\u00b2/a.png"): "1",
        hashed_stem("10/b.png"): "2",
        hashed_stem("\uff11/c.png"): "3",
    }


@pytest.mark.parametrize(
    "text", ["my cat 7\ndog 3\n", "x 0\ndog\t3\nmy cat 7", "a\nb\nc\ndog\ne\nf\ng\nmy cat\n"]
)
def test_class_map_gives_the_index(text: str, tmp_path: Path) -> None:
    fill(tmp_path / "src", ["my cat/1.png", "dog/2.png"])
    (tmp_path / "map.txt").write_text(text)
    prepare(tmp_path / "src", tmp_path / "prep", "--class-map", tmp_path / "map.txt")
    assert labels_of(tmp_path / "prep") == {
        hashed_stem("my cat/1.png"): "7",
        hashed_stem("dog/2.png"): "3",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("cat 1\nother 2\n", "no line for the class folder dog"),
        ("cat 1\ncat 2\ndog 3\n", "line 2"),
        ("cat 1\ndog\n", "line 2"),
        ("cat\n\ndog\n", "line 2"),
        ("", "line 1"),
    ],
)
def test_a_wrong_class_map_is_refused_before_anything_is_written(
    text: str, message: str, tmp_path: Path
) -> None:
    fill(tmp_path / "src", ["cat/1.png", "dog/2.png"])
    (tmp_path / "map.txt").write_text(text)
    assert message in prepare_refused(
        tmp_path / "src", tmp_path / "prep", "--class-map", tmp_path / "map.txt"
    )
    assert not (tmp_path / "prep").exists()
