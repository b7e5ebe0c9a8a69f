"""What is made again, and what is not: after a change, a kill at any moment, a power loss."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

from common.core import recipe, record
from common.core.record import Row
from common.data import prepared as folders
from common.data.prepared import Prepared, read

import pytest
from conftest import ROOT, Shared, refusal
from pictures import (
    bins,
    children,
    fill,
    pattern,
    prepare,
    prepare_refused,
    start_preparing,
    until,
    write_slow_images,
)
from records import (
    change_file,
    change_rows,
    manifest_of,
    prepared_sources,
    restart,
    rows_of,
    unfinish,
    write_finished,
)
from test_record import irregular, new_record, old_record, somebodys

ALL = [f"{letter}.bin" for letter in "abcde"]


@pytest.fixture(scope="session")
def slow_images(shared: Shared) -> Path:
    return shared("slow images", write_slow_images)


@pytest.fixture(scope="session")
def slow_bins(slow_images: Path, shared: Shared) -> Dict[str, str]:
    """What an undisturbed run makes of slow_images."""
    return bins(
        shared("slow images prepared", lambda folder: prepare(slow_images, folder) and None)
    )


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """tmp_path with src/ of 5 images and prep/ made from it."""
    prepare(fill(tmp_path / "src", [f"{letter}.png" for letter in "abcde"]), tmp_path / "prep")
    return tmp_path


def made_again(tmp_path: Path, *options: object) -> List[str]:
    """Run once more; the names of the .bin files that were made again (by inode)."""
    before = {path.name: path.stat().st_ino for path in (tmp_path / "prep").glob("*.bin")}
    bin_paths = (tmp_path / "prep").glob("*.bin")
    keep = [open(str(path), "rb") for path in bin_paths]  # so that no inode is used again
    prepare(tmp_path / "src", tmp_path / "prep", *options)
    for file in keep:
        file.close()
    after = {path.name: path.stat().st_ino for path in (tmp_path / "prep").glob("*.bin")}
    return sorted(name for name, inode in after.items() if inode != before.get(name))


def power_loss(folder: Path, pieces: int) -> List[str]:
    """As if the machine had started again when the record held so many images.

    Returns: the names of the .bin files of the other images.
    """
    path = manifest_of(folder)
    unfinish(path)
    restart(path)
    images = [row for row in rows_of(path) if row.get("files") and row["key"] != folders.BESIDE]
    lost = images[pieces:]

    def forget(rows: List[Row]) -> None:
        rows[:] = [row for row in rows if row not in lost]

    change_rows(path, forget)
    return sorted(row["files"][0][0] for row in lost)


# ---- after a change ------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again_and_force_does_all(prepared: Path) -> None:
    assert made_again(prepared) == []
    assert made_again(prepared, "--force") == ALL


def test_a_changed_image_is_done_again_and_a_removed_one_is_removed(prepared: Path) -> None:
    pattern(90, 50).save(prepared / "src" / "b.png")
    (prepared / "src" / "d.png").unlink()
    (prepared / "prep" / "e.bin").write_bytes(b"half")
    assert made_again(prepared) == ["b.bin", "e.bin"]
    assert sorted(bins(prepared / "prep")) == ["a.bin", "b.bin", "c.bin", "e.bin"]
    assert sorted(prepared_sources(prepared / "prep")) == ["a.png", "b.png", "c.png", "e.png"]


def in_place(path: Path, content: bytes) -> None:
    """Another content of the same size and with the same modification time."""
    status = path.stat()
    assert status.st_size == len(content)
    path.write_bytes(content)
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))


def test_another_content_of_the_same_size_and_time_is_seen(prepared: Path) -> None:
    source, good = prepared / "src" / "b.png", bins(prepared / "prep")
    other = (prepared / "src" / "c.png").read_bytes()
    source.write_bytes(source.read_bytes() + b"\0" * 2000)  # behind the end, nothing is read
    made_again(prepared)
    in_place(source, other + b"\0" * (source.stat().st_size - len(other)))
    in_place(prepared / "prep" / "d.bin", b"\0" * 602112)
    assert made_again(prepared) == ["b.bin", "d.bin"]
    assert bins(prepared / "prep") == dict(good, **{"b.bin": good["c.bin"]})


def test_files_that_were_only_touched_or_copied_stay(prepared: Path) -> None:
    os.utime(str(prepared / "src" / "c.png"), ns=(1, 1))
    (prepared / "src" / "d.png").chmod(0o600)
    os.utime(str(prepared / "prep" / "e.bin"))
    assert made_again(prepared) == []
    shutil.copytree(str(prepared / "prep"), str(prepared / "copy"))
    (prepared / "prep").rename(prepared / "before")
    (prepared / "copy").rename(prepared / "prep")
    assert made_again(prepared) == []


def test_an_image_that_was_touched_and_broken_leaves_no_bin(prepared: Path) -> None:
    (prepared / "src" / "c.png").write_bytes(b"no image")
    prepare(prepared / "src", prepared / "prep", "--skip-bad")
    assert sorted(bins(prepared / "prep")) == ["a.bin", "b.bin", "d.bin", "e.bin"]


def test_a_bin_from_the_future_is_made_again(prepared: Path) -> None:
    """Its result would be older for ever."""
    tomorrow = time.time_ns() + 86400 * 10**9
    os.utime(str(prepared / "prep" / "b.bin"), ns=(tomorrow, tomorrow))
    change_file(manifest_of(prepared / "prep"), "b.bin", mtime_ns=tomorrow)
    assert made_again(prepared) == ["b.bin"]
    assert (prepared / "prep" / "b.bin").stat().st_mtime_ns < time.time_ns()


@pytest.mark.parametrize(
    "row",
    [
        {"key": 5, "inputs": [], "files": []},
        {"key": "a.png"},
        {"key": "a.png", "inputs": [], "files": 3},
        {"key": "a.png", "inputs": [], "files": [["a.bin"]]},
        {"key": "a.png", "inputs": 1, "files": []},
        {"key": "a.png", "inputs": [], "files": [], "notes": []},
        {"expected": 7},
        {"expected": [1, "../x"]},
        {"announced": "x"},
        {"announced": [[1]]},
        {"announced": [["../x", 1, "0"]]},
        {"announced": [["x.bin", float("inf"), "0"]]},
        {"recipe": 7},
        {"recipe": [["a"]]},
        {},
    ],
)
def test_malformed_rows_of_a_manifest_are_passed_over(row: Row, prepared: Path) -> None:
    change_rows(manifest_of(prepared / "prep"), lambda rows: rows.append(row))
    assert made_again(prepared) == []


def test_a_bin_that_is_not_as_it_was_recorded_is_made_again(prepared: Path) -> None:
    good = bins(prepared / "prep")
    (prepared / "prep" / "b.bin").write_bytes(b"\0" * 602112)
    (prepared / "prep" / "c.bin").unlink()
    (prepared / "prep" / "d.bin").unlink()
    (prepared / "prep" / "d.bin").symlink_to("a.bin")
    piece = folders.open_record(str(prepared / "prep")).pieces["a.png"]
    source, made = (prepared / "src" / "a.png").stat(), (prepared / "prep" / "a.bin").stat()
    assert piece.inputs == [["a.png", source.st_size, source.st_mtime_ns, source.st_ctime_ns]]
    assert [made[:4] for made in piece.files] == [
        ("a.bin", 602112, made.st_mtime_ns, made.st_ctime_ns)
    ]
    assert made_again(prepared) == ["b.bin", "c.bin", "d.bin"]
    assert bins(prepared / "prep") == good


@pytest.mark.parametrize(
    "option, changed",
    [(("--img-size", "64"), "img_size was 224"), (("--dtype", "uint8"), "dtype was float32")],
)
def test_other_settings_keep_what_is_there_unless_forced(
    option: Any, changed: str, prepared: Path
) -> None:
    before = bins(prepared / "prep")
    change_rows(manifest_of(prepared / "prep"), lambda rows: rows[-1].update(seconds=7200.0))
    said = prepare_refused(prepared / "src", prepared / "prep", *option)
    words = f"holds 5 images (they took 7200 s), made with other settings: {changed}; to keep them"
    assert words in said
    assert bins(prepared / "prep") == before
    prepare(prepared / "src", prepared / "prep", *option, "--force")
    sizes = [path.stat().st_size for path in (prepared / "prep").glob("*.bin")]
    assert sizes == [3 * 64 * 64 * 4 if "64" in option else 150528] * 5


@pytest.mark.parametrize(
    "change, changed",
    [
        (lambda recipe: recipe.update(sources="0" * 64), "this program was updated"),
        (
            lambda recipe: recipe["versions"].update(Pillow="9.4.9"),
            "Pillow was 9.4.9 and is {Pillow}",
        ),
        (
            lambda recipe: recipe["versions"].update(simplejpeg=""),
            "simplejpeg was missing and is {simplejpeg}",
        ),
    ],
)
def test_another_program_or_another_package_does_all_again(
    change: Callable[[Row], None], changed: str, prepared: Path
) -> None:
    def another(rows: List[Row]) -> None:
        change(rows[0]["recipe"])
        rows[-1].update(seconds=0.1)  # a time from half a second on is printed

    change_rows(manifest_of(prepared / "prep"), another)
    done = prepare(prepared / "src", prepared / "prep")
    now = changed.format_map(recipe.versions(["Pillow", "simplejpeg"]))
    assert "5 made" in done.stdout and done.stderr == f"{now}: converting 5 images again\n"
    assert made_again(prepared) == []


def test_the_recipe_says_what_decides_over_the_bytes(prepared: Path) -> None:
    about, program = (
        folders.open_record(str(prepared / "prep")),
        str(ROOT / "TResNet_preprocess.py"),
    )
    assert about.recipe == {
        "tool": "TResNet_preprocess.py",
        "sources": recipe.sources(program),
        "versions": recipe.versions(["numpy", "Pillow", "simplejpeg"]),
        "inputs": [],
        "settings": [],
        "options": {
            "img_size": 224,
            "crop_pct": 0.875,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
            "dtype": "float32",
            "source": str(prepared / "src"),
            "shard": [1, 1],
        },
    }
    assert about.about == {
        "given": [],
        "labels": False,
        "class_folders": [],
        "class_order": "natural",
        "folder": str(prepared / "prep"),
    }
    assert about.recipe["versions"]["numpy"] and about.recipe["versions"]["Pillow"]


def test_of_a_manifest_of_another_program_nothing_is_believed(tmp_path: Path) -> None:
    nothing = Prepared({}, {}, {}, {}, {}, {}, {})
    assert read(str(tmp_path)) == read(str(tmp_path / "gone")) == nothing
    write_finished(tmp_path / "manifest.jsonl", {"tool": "another"}, {"a.png": []})
    assert read(str(tmp_path)) == nothing


@pytest.mark.parametrize("force", ([], ["--force"]))
def test_a_manifest_of_another_program_is_not_replaced(force: List[str], tmp_path: Path) -> None:
    fill(tmp_path / "src", ["1.png"])
    (tmp_path / "prep").mkdir()
    (tmp_path / "prep" / "manifest.jsonl").write_text('{"audio": "a.wav"}\n')
    said = refusal("TResNet_preprocess.py", tmp_path / "src", tmp_path / "prep", *force)
    assert (
        "prep/manifest.jsonl is not a record of this program; move it away, or name another place"
        in said
    )
    assert (tmp_path / "prep" / "manifest.jsonl").read_text() == '{"audio": "a.wav"}\n'


def test_a_torn_manifest_costs_only_what_was_torn(prepared: Path) -> None:
    path = manifest_of(prepared / "prep")
    lines = path.read_bytes().splitlines(keepends=True)
    last = rows_of(path)[-2]["files"][0][0]
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:60])
    assert made_again(prepared) == [last]
    assert len(prepared_sources(prepared / "prep")) == 5 and "finished" in rows_of(path)[-1], (
        "it is whole again"
    )


def test_without_its_recipe_nothing_of_a_manifest_is_kept(prepared: Path) -> None:
    """The images may have been made with any settings."""
    path = manifest_of(prepared / "prep")
    path.write_bytes(path.read_bytes().replace(b'"crop_mode": "center"', b'"crop_mode": "cente2"'))
    done = prepare(prepared / "src", prepared / "prep", "--crop-mode", "squash")
    assert (
        "5 made" in done.stdout
        and done.stderr == "its record is damaged: converting all images again\n"
    )
    assert read(str(prepared / "prep")).settings["crop_mode"] == "squash"


def test_a_removed_image_alone_takes_its_bin_away(prepared: Path) -> None:
    (prepared / "src" / "d.png").unlink()
    assert made_again(prepared) == []
    assert sorted(bins(prepared / "prep")) == ["a.bin", "b.bin", "c.bin", "e.bin"]


def test_labels_of_ours_go_with_the_class_folders(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["cat/1.png"])
    prepare(tmp_path / "src", tmp_path / "prep")
    assert (
        read(str(tmp_path / "prep")).about["labels"]
        and (tmp_path / "prep" / "val_label.txt").exists()
    )
    fill(tmp_path / "src", ["2.png"])
    prepare(tmp_path / "src", tmp_path / "prep")
    assert not read(str(tmp_path / "prep")).about["labels"]
    assert not (tmp_path / "prep" / "val_label.txt").exists()


def test_a_second_run_with_nothing_to_do_rewrites_nothing(prepared: Path) -> None:
    def states() -> Dict[str, Any]:
        return {
            path.name: (path.stat().st_ino, path.stat().st_ctime_ns)
            for path in (prepared / "prep").iterdir()
        }

    before = states()
    assert "(5 already there)" in prepare(prepared / "src", prepared / "prep").stdout
    assert states() == before


# ---- after a power loss --------------------------------------------------------------------------


def test_after_a_restart_an_unfinished_run_is_not_believed_until_the_step_ran(
    prepared: Path,
) -> None:
    lost = power_loss(prepared / "prep", 2)
    assert read(str(prepared / "prep")).sources == {} and len(lost) == 3
    assert made_again(prepared) == lost
    assert len(prepared_sources(prepared / "prep")) == 5


def test_after_a_restart_content_decides_over_what_an_unfinished_run_made(prepared: Path) -> None:
    power_loss(prepared / "prep", 5)
    (prepared / "prep" / "b.bin").write_bytes(b"")
    in_place(prepared / "prep" / "d.bin", b"\0" * 602112)
    change_file(
        manifest_of(prepared / "prep"),
        "d.bin",  # as if only the content showed it
        ctime_ns=(prepared / "prep" / "d.bin").stat().st_ctime_ns,
    )
    assert made_again(prepared) == ["b.bin", "d.bin"]
    power_loss(prepared / "prep", 5)
    assert made_again(prepared) == []


def test_a_finished_run_is_on_the_disk(prepared: Path) -> None:
    restart(manifest_of(prepared / "prep"))
    assert len(prepared_sources(prepared / "prep")) == 5
    assert made_again(prepared) == []


def test_after_a_power_loss_all_files_of_ours_are_known_still(prepared: Path) -> None:
    """Even if some files are empty, and the record has only its beginning."""
    power_loss(prepared / "prep", 1)
    path = manifest_of(prepared / "prep")
    change_rows(path, lambda rows: rows.__setitem__(slice(3, None), []))
    (prepared / "prep" / "c.bin").write_bytes(b"")
    for name in "abcde":
        (prepared / "src" / f"{name}.png").rename(prepared / "src" / f"{name}2.png")
    done = prepare(prepared / "src", prepared / "prep")
    assert "5 images" in done.stdout
    assert sorted(bins(prepared / "prep")) == [f"{letter}2.bin" for letter in "abcde"]


# ---- after a kill --------------------------------------------------------------------------------


def test_leftovers_of_a_killed_run_are_removed(prepared: Path) -> None:
    """Those of names that this program makes, with its own ending."""
    (prepared / "src" / "b.png").unlink()
    others = ["a.bin.part", "a.bin.0123ABCD.part", "mine.txt.0123abcd.part"]
    for name in (
        *others,
        "a.bin.0123abcd.part",
        "b.bin.89abcdef.part",
        "manifest.jsonl.00000000.part",
    ):
        (prepared / "prep" / name).write_bytes(b"half")
    prepare(prepared / "src", prepared / "prep")
    assert sorted(path.name for path in (prepared / "prep").glob("*.part")) == sorted(others)


def test_what_a_killed_run_was_to_make_is_known_to_a_run_with_other_images(prepared: Path) -> None:
    """Its record holds nothing of it but the names."""
    path = manifest_of(prepared / "prep")
    unfinish(path)
    change_rows(path, lambda rows: rows.__setitem__(slice(2, None), []))
    assert {"expected": ALL} in rows_of(path)
    for name in ALL:
        (prepared / "prep" / name).rename(prepared / "prep" / f"{name}.0123abcd.part")
    for name in "abcde":
        (prepared / "src" / f"{name}.png").rename(prepared / "src" / f"{name}2.png")
    prepare(prepared / "src", prepared / "prep")
    assert sorted(path.name for path in (prepared / "prep").iterdir()) == [
        *(f"{letter}2.bin" for letter in "abcde"),
        "manifest.jsonl",
    ]


@pytest.mark.parametrize(
    "number, status, said",
    [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0), (signal.SIGHUP, 129, 0)],
)
def test_a_signal_ends_all_processes(
    number: int, status: int, said: int, slow_images: Path, tmp_path: Path
) -> None:
    process = start_preparing(slow_images, tmp_path / "prep", "-j", 4)
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    workers = children(process.pid)
    assert len(workers) == 4
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # as a terminal does
    _, errors = process.communicate()
    assert process.returncode == status
    assert len(bins(tmp_path / "prep")) < 24, "it did not go on to the end"
    assert len(errors.strip().splitlines()) == said and "Traceback" not in errors
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert not list((tmp_path / "prep").glob("*.part"))
    if said:
        assert errors.strip() == (
            "TResNet_preprocess.py: interrupted; run the same command again, it goes on from here"
        )


def test_workers_do_not_outlive_a_killed_parent(slow_images: Path, tmp_path: Path) -> None:
    process = start_preparing(slow_images, tmp_path / "prep")
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    workers = children(process.pid)
    process.kill()
    process.communicate()
    until(lambda: not any(is_running(pid) for pid in workers))


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    return False


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_files(
    slow_images: Path, slow_bins: Dict[str, str], tmp_path: Path
) -> None:
    generator, target = random.Random(5), tmp_path / "prep"
    finished = kills = 0

    def images_done() -> int:
        return len(prepared_sources(target))

    for number in range(10):
        process = start_preparing(slow_images, target)
        if number % 2:  # in the middle of the work
            until(lambda: process.poll() is not None or images_done() > finished)  # noqa: B023
        time.sleep(generator.random() * (0.1 if number % 2 else 0.6))
        kills += process.poll() is None
        kinds = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
        process.send_signal(generator.choice(kinds))
        process.communicate()
        done = images_done()
        assert done >= finished, f"kill {number} lost finished images"
        finished = done
        assert all(path.stat().st_size == 602112 for path in target.glob("*.bin"))
    assert kills >= 3
    assert finished > 0 and f"({finished} already there)" in prepare(slow_images, target).stdout
    assert bins(target) == slow_bins and not list(target.glob("*.part"))


# ---- what is not a regular file, links -----------------------------------------------------------


@irregular
def test_a_manifest_that_is_not_a_regular_file_is_refused_at_once(
    make: Callable[[str], Any], prepared: Path
) -> None:
    before = bins(prepared / "prep")
    manifest_of(prepared / "prep").unlink()
    make(str(manifest_of(prepared / "prep")))
    for options in ([], ["--force"]):
        said = prepare_refused(prepared / "src", prepared / "prep", *options)
        sentence = f"TResNet_preprocess.py: {prepared}/prep/manifest.jsonl is not a regular file"
        assert said.startswith(sentence) and said.count("\n") == 1
    assert bins(prepared / "prep") == before


@irregular
def test_what_is_not_a_regular_file_in_the_place_of_a_bin_is_set_aside(
    make: Callable[[str], Any], prepared: Path
) -> None:
    before = bins(prepared / "prep")
    (prepared / "prep" / "b.bin").unlink()
    make(str(prepared / "prep" / "b.bin"))
    done = prepare(prepared / "src", prepared / "prep")
    assert "1 made" in done.stdout
    assert f"b.bin: not as this program made it; moved to {prepared}/prep/aside" in done.stderr
    assert bins(prepared / "prep") == before and os.listdir(str(prepared / "prep" / "aside")) == [
        "b.bin"
    ]


@pytest.mark.parametrize("craft", [old_record, new_record])
def test_a_prepared_folder_that_is_a_link_is_refused(
    craft: Callable[[Path, Path, str], None], tmp_path: Path
) -> None:
    """Its manifest, which lies there as well, may call somebody's files this program's own."""
    fill(tmp_path / "src", ["a.png"])
    contents = somebodys(tmp_path / "home")
    craft(tmp_path / "home" / "manifest.jsonl", tmp_path / "home", "")
    (tmp_path / "prep").symlink_to("home")
    for name in ("prep", "prep/"):
        said = prepare_refused(tmp_path / "src", f"{tmp_path}/{name}", "--force")
        assert "is a symbolic link, and nothing is made or removed through a link; name " in said
    assert {name: (tmp_path / "home" / name).read_bytes() for name in contents} == contents


# ---- two runs ------------------------------------------------------------------------------------


def test_a_second_run_in_the_same_folder_stops_and_says_who_holds_it(
    slow_images: Path, tmp_path: Path
) -> None:
    process = start_preparing(slow_images, tmp_path / "prep")
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    said = prepare_refused(slow_images, tmp_path / "prep")
    assert f"is in use by another run, process {process.pid};" in said
    output, _ = process.communicate()
    assert process.returncode == 0 and output.startswith("24 images")


@pytest.mark.parametrize("name", ["stranger.bin", "stranger.npy", "STRANGER.NPY", "A.Bin"])
def test_a_folder_with_strangers_files_is_refused_with_their_names(
    name: str, prepared: Path
) -> None:
    (prepared / "prep" / name).write_bytes(b"x")
    assert name in prepare_refused(prepared / "src", prepared / "prep")
    (prepared / "other").mkdir()
    (prepared / "other" / "a.bin").write_bytes(
        b"x"
    )  # named like one of ours, but nothing says that we made it
    assert "a.bin" in prepare_refused(prepared / "src", prepared / "other")
    assert (prepared / "other" / "a.bin").read_bytes() == b"x"


def test_a_foreign_label_file_is_not_overwritten(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["cat/1.png"])
    (tmp_path / "prep").mkdir()
    (tmp_path / "prep" / "val_label.txt").write_text("mine")
    assert "val_label.txt" in prepare_refused(tmp_path / "src", tmp_path / "prep")
    shutil.move(str(tmp_path / "src" / "cat" / "1.png"), str(tmp_path / "src"))
    prepare(tmp_path / "src", tmp_path / "prep")  # without class folders no labels are written
    assert (tmp_path / "prep" / "val_label.txt").read_text() == "mine"


def test_the_names_of_the_manifest_and_of_the_labels_are_those_of_readme() -> None:
    assert (record.MANIFEST, folders.LABELS) == ("manifest.jsonl", "val_label.txt")
