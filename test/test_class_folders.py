"""Class folders: how they are numbered, also without a good image, and counted."""

import os
import shutil
from pathlib import Path
from typing import Any, Dict, List

from common.core import recipe, record
from common.core.cli import Refusal
from common.core.names import name_bins
from common.data import labels
from common.data.images import class_folders, find_images

import numpy as np
import pytest
from pictures import fill, prepare, prepare_refused
from test_postprocess import post, scores, write


@pytest.fixture
def five_folders(tmp_path: Path) -> Path:
    """Five class folders with one image each."""
    return fill(tmp_path / "val", [f"n{number}/x{number}.png" for number in (1, 2, 3, 9, 10)])


def without_hashes(text: str) -> Dict[str, str]:
    """{image's name: its label}; in class folders the stems have a hash behind the name."""
    return {line.partition("-")[0]: line.split()[1] for line in text.splitlines()}


def folder_numbers(folder: Path) -> Dict[str, str]:
    images = find_images(str(folder)).images
    text = labels.class_labels(str(folder), images, name_bins(images), None)
    assert text is not None
    return without_hashes(text.decode())


def test_folders_are_numbered_in_natural_order(five_folders: Path) -> None:
    assert folder_numbers(five_folders) == {"x1": "0", "x2": "1", "x3": "2", "x9": "3", "x10": "4"}


@pytest.mark.parametrize("damage", ["broken image", "no image", "unreadable link to an image"])
def test_a_folder_without_a_good_image_keeps_its_number(damage: str, five_folders: Path) -> None:
    (five_folders / "n2" / "x2.png").unlink()
    if damage == "broken image":
        (five_folders / "n2" / "x2.png").write_bytes(b"no image")
    elif damage == "unreadable link to an image":
        (five_folders / "n2" / "x2.png").symlink_to("nowhere")
    found = folder_numbers(five_folders)
    found.pop("x2", None)
    assert found == {"x1": "0", "x3": "2", "x9": "3", "x10": "4"}


def test_a_link_to_nowhere_is_refused_and_hidden_folders_do_not_count(
    five_folders: Path, tmp_path: Path
) -> None:
    (five_folders / ".thumbnails").mkdir()
    assert class_folders(str(five_folders)) == ["n1", "n2", "n3", "n9", "n10"]
    shutil.rmtree(str(five_folders / "n2"))
    (five_folders / "n2").symlink_to("gone")
    assert (
        f"{five_folders}/n2 is a link to nowhere, and classes are numbered by their folders"
        in prepare_refused(five_folders, tmp_path / "prep")
    )
    (tmp_path / "map").write_bytes(
        b"\xef\xbb\xbfn1 4\nn3 3\nn9 2\nn10 1\n"
    )  # with a byte order mark
    mapped = (five_folders, tmp_path / "prep", "--img-size", 32, "--class-map", tmp_path / "map")
    broken = "bad image n2: broken link; it may have led to a folder of images\n"
    assert prepare_refused(*mapped).startswith(broken)
    assert prepare(*mapped, "--skip-bad").stderr == broken
    assert without_hashes((tmp_path / "prep" / "val_label.txt").read_text()) == {
        "x1": "4",
        "x3": "3",
        "x9": "2",
        "x10": "1",
    }


def test_text_order_numbers_folders_by_their_letters_as_torchvision_does(
    five_folders: Path, tmp_path: Path
) -> None:
    text = prepare(
        five_folders, tmp_path / "prep", "--img-size", 32, "--class-order", "text"
    ).stdout
    folders = sorted(path.name for path in five_folders.iterdir())  # as ImageFolder does
    assert folders == ["n1", "n10", "n2", "n3", "n9"]
    expected = {f"x{folder[1:]}": str(place) for place, folder in enumerate(folders)}
    assert without_hashes((tmp_path / "prep" / "val_label.txt").read_text()) == expected
    assert (
        "note: class 1 is n10 in text order (torchvision's), which is used, and n2 in natural "
        "order (timm's); if the network was trained so: --class-order natural\n"
    ) in text
    again = prepare(five_folders, tmp_path / "prep", "--img-size", 32).stdout
    assert "note: class 1 is n2 in natural order (timm's), which is used, and n10 in text" in again
    assert folder_numbers(five_folders) == without_hashes(
        (tmp_path / "prep" / "val_label.txt").read_text()
    )
    assert "5 images in" in again and "(5 already there)" in again


def test_orders_that_are_the_same_are_not_mentioned_and_flat_images_have_none(
    tmp_path: Path,
) -> None:
    same = fill(tmp_path / "val", ["bolt/a.png", "nut/b.png"])
    assert "--class-order" not in prepare(same, tmp_path / "prep", "--img-size", 32).stdout
    flat = fill(tmp_path / "flat", ["a.png"])
    assert (
        "--class-order is for images in class folders (SRC/CLASS/IMAGE), but a.png is not in one"
        in prepare_refused(flat, tmp_path / "prep2", "--class-order", "text")
    )


@pytest.mark.parametrize(
    "names, classes, good",
    [
        (5, 5, True),
        (5, 1000, False),
        (2, 1000, False),
        (1000, 1001, True),
        (1001, 1001, True),
        (1002, 1001, False),
    ],
)
def test_folders_are_counted_against_the_networks_classes(
    names: int, classes: int, good: bool
) -> None:
    folders: List[str] = [f"n{number}" for number in range(names)]
    if good:
        labels.check_folders("val", folders, classes)
        return
    with pytest.raises(
        Refusal, match=f"val has {names} class folders .* but the network has {classes} classes"
    ):
        labels.check_folders("val", folders, classes)


def test_the_accuracy_of_too_few_folders_is_refused_by_hand_as_well(
    five_folders: Path, tmp_path: Path
) -> None:
    prepare(five_folders, tmp_path / "prep", "--img-size", 32)
    stems = [path.stem for path in (tmp_path / "prep").glob("*.bin")]
    write(tmp_path / "result", {stem: scores(9, 0) for stem in stems})
    with pytest.raises(Refusal, match="has 5 class folders .* but the network has 9 classes"):
        post.evaluate(str(tmp_path / "result"), str(tmp_path / "prep" / "val_label.txt"))


def test_headings_and_commas_in_a_labels_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("image label\nx.png 1\n")
    with pytest.raises(
        Refusal, match="line 1: 'image label' is not a label; .* if this is a heading, remove it"
    ):
        labels.read_labels(str(tmp_path / "l.txt"))
    (tmp_path / "l.txt").write_text("y.png 0\nz.png 0\nx.png,1\n")
    with pytest.raises(Refusal, match="line 3: .* put a space where the comma is"):
        labels.read_labels(str(tmp_path / "l.txt"))


@pytest.mark.parametrize(
    "text, multi_label, expected",
    (
        ("a b.jpg 7\n\nc 0\n", False, [("a b.jpg", (7,), 1), ("c", (0,), 3)]),
        ("a b.jpg 17 3 3\nc\n", True, [("a b.jpg", (3, 17), 1), ("c", (), 2)]),
        (
            "[[395, 65], []]",
            False,
            [("ILSVRC2012_val_00000001", (65, 395), 1), ("ILSVRC2012_val_00000002", (), 2)],
        ),
    ),
)
def test_labels_of_any_form_say_name_classes_and_line(
    text: str, multi_label: bool, expected: List[Any], tmp_path: Path
) -> None:
    path = tmp_path / ("real.json" if text.startswith("[") else "labels.txt")
    path.write_text(text)
    found = labels.read_label_file(str(path), multi_label)
    assert found == [labels.Label(*row) for row in expected]


@pytest.mark.parametrize(
    "classes, most, multi_label, offset",
    ((1000, 999, False, 0), (1001, 999, False, 1), (1001, 1000, False, 0), (1001, 999, True, 0)),
)
def test_the_background_class_shifts_labels_of_imagenet(
    classes: int, most: int, multi_label: bool, offset: int
) -> None:
    lines = [labels.Label("a", (0, most), 1), labels.Label("b", (), 2)]
    assert labels.label_offset(lines, classes, "l.txt", multi_label) == offset
    assert labels.label_offset(lines, classes, "l.txt", multi_label, background=False) == 0
    others = {offset: labels.other_offset(lines, classes, offset, multi_label)}
    both_fit = classes == 1001 and most < 1000 and not multi_label
    assert others == {offset: 1 - offset if both_fit else None}


def test_a_summary_that_is_the_users_stays(tmp_path: Path) -> None:
    (tmp_path / "result_summary.json").write_text("mine")
    before, made_by = record.read(str(tmp_path / "result")), recipe.make(record.__file__, {})
    with pytest.raises(
        Refusal, match="result_summary.json: no record says that this program made it"
    ):
        record.begin_folder(before, made_by, ["result/a_0.txt", "result_summary.json"])
    assert os.listdir(str(tmp_path)) == ["result_summary.json"]


def test_a_model_that_is_not_what_its_record_says_is_refused_where_it_is_used(
    tmp_path: Path,
) -> None:
    model = tmp_path / "net.onnx"
    made_by = recipe.make(record.__file__, {})
    record.write(str(model), made_by, {str(model): np.arange(1000, dtype=np.uint8).tobytes()})
    assert record.read(str(model)).is_current(made_by)
    status = model.stat()
    model.write_bytes(bytes(1000))
    os.utime(str(model), ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not record.read(str(model)).is_current(made_by)
    with pytest.raises(
        Refusal, match="net.onnx changed after this program created it; run the step"
    ):
        recipe.make(record.__file__, {}, inputs=[str(model)])


def test_a_part_of_imagenet_is_told_how_its_folders_get_their_numbers() -> None:
    names = ["n01440764", "n02102040"]
    with pytest.raises(Refusal, match="--class-map FILE, or put Kaggle's LOC_synset_mapping.txt"):
        labels.check_folders("val", names, 1000)
    with pytest.raises(Refusal, match="--class-map FILE$"):
        labels.check_folders("val", names, 10)
