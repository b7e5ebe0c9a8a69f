"""What is made again, and what is not: after a change, after a kill at any moment, after a power loss."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

from common import journal, manifest, record
from common.manifest import read_manifest

import pytest
from conftest import ROOT, Shared, refusal
from pictures import bins, children, fill, pattern, prepare, refused, rows, start, until, write_slow_images

ALL = [f"{letter}.bin" for letter in "abcde"]


@pytest.fixture(scope="session")
def slow_images(shared: Shared) -> Path:
    return shared("slow images", write_slow_images)


@pytest.fixture(scope="session")
def slow_bins(slow_images: Path, shared: Shared) -> Dict[str, str]:
    """What an undisturbed run makes of slow_images."""
    return bins(shared("slow images prepared", lambda folder: prepare(slow_images, folder) and None))


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """tmp_path with src/ of 5 images and prep/ made from it."""
    prepare(fill(tmp_path / "src", [f"{letter}.png" for letter in "abcde"]), tmp_path / "prep")
    return tmp_path


def made_by(tmp_path: Path, *options: object) -> List[str]:
    """Run once more; the names of the .bin files that were made anew (by inode)."""
    before = {path.name: path.stat().st_ino for path in (tmp_path / "prep").glob("*.bin")}
    keep = [open(str(path), "rb") for path in (tmp_path / "prep").glob("*.bin")]  # so that no inode is used again
    prepare(tmp_path / "src", tmp_path / "prep", *options)
    for file in keep:
        file.close()
    after = {path.name: path.stat().st_ino for path in (tmp_path / "prep").glob("*.bin")}
    return sorted(name for name, inode in after.items() if inode != before.get(name))


def rewrite(folder: Path, change: Callable[[List[Dict[str, Any]]], Any]) -> None:
    """Change the lines of a folder's manifest; the first one is the header."""
    lines = rows(folder)
    change(lines)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def power_loss(folder: Path, synced: int) -> List[str]:
    """As if the machine had started anew when the disk had got so many .bin files; the names of the others."""
    there = [row for row in rows(folder) if "bin" in row]

    def forget(lines: List[Dict[str, Any]]) -> None:
        lines[:] = [line for line in lines if "synced" not in line]
        first = lines.index(there[0])
        lines[first + synced:first + synced] = [{"synced": first - 1 + synced}]
        lines[0]["boot_id"] = "another boot"

    rewrite(folder, forget)
    return sorted(row["bin"] for row in there[synced:])


# ---- after a change --------------------------------------------------------------------------------------------------

def test_what_is_done_is_not_done_again_and_force_does_all(prepared: Path) -> None:
    assert made_by(prepared) == []
    assert made_by(prepared, "--force") == ALL


def test_a_changed_image_is_done_again_and_a_removed_one_is_removed(prepared: Path) -> None:
    pattern(90, 50).save(prepared / "src" / "b.png")
    (prepared / "src" / "d.png").unlink()
    (prepared / "prep" / "e.bin").write_bytes(b"half")
    assert made_by(prepared) == ["b.bin", "e.bin"]
    assert sorted(bins(prepared / "prep")) == ["a.bin", "b.bin", "c.bin", "e.bin"]
    assert sorted(read_manifest(str(prepared / "prep"))[1]) == ["a.png", "b.png", "c.png", "e.png"]


def in_place(path: Path, content: bytes) -> None:
    """Another content of the same size and with the same modification time."""
    status = path.stat()
    assert status.st_size == len(content)
    path.write_bytes(content)
    os.utime(str(path), ns=(status.st_atime_ns, status.st_mtime_ns))


def test_another_content_of_the_same_size_and_time_is_seen(prepared: Path) -> None:
    source, good = prepared / "src" / "b.png", bins(prepared / "prep")
    other = (prepared / "src" / "c.png").read_bytes()
    source.write_bytes(source.read_bytes() + b"\0" * 2000)  # what stands after a picture's end is not read
    made_by(prepared)
    in_place(source, other + b"\0" * (source.stat().st_size - len(other)))
    in_place(prepared / "prep" / "d.bin", b"\0" * 602112)
    assert made_by(prepared) == ["b.bin", "d.bin"]
    assert bins(prepared / "prep") == dict(good, **{"b.bin": good["c.bin"]})


def test_files_that_were_only_touched_or_copied_stay(prepared: Path) -> None:
    os.utime(str(prepared / "src" / "c.png"), ns=(1, 1))
    (prepared / "src" / "d.png").chmod(0o600)
    os.utime(str(prepared / "prep" / "e.bin"))
    assert made_by(prepared) == []
    shutil.copytree(str(prepared / "prep"), str(prepared / "copy"))
    (prepared / "prep").rename(prepared / "before")
    (prepared / "copy").rename(prepared / "prep")
    assert made_by(prepared) == []


def test_an_image_that_was_touched_and_broken_leaves_no_bin(prepared: Path) -> None:
    (prepared / "src" / "c.png").write_bytes(b"no image")
    prepare(prepared / "src", prepared / "prep", "--skip-bad")
    assert sorted(bins(prepared / "prep")) == ["a.bin", "b.bin", "d.bin", "e.bin"]


def test_a_bin_from_the_future_is_made_again(prepared: Path) -> None:
    """Its result would be older for ever."""
    tomorrow = time.time_ns() + 86400 * 10**9
    os.utime(str(prepared / "prep" / "b.bin"), ns=(tomorrow, tomorrow))
    rewrite(prepared / "prep", lambda lines: [line.update(bin_mtime_ns=tomorrow) for line in lines
                                              if line.get("bin") == "b.bin"])
    assert made_by(prepared) == ["b.bin"]
    assert (prepared / "prep" / "b.bin").stat().st_mtime_ns < time.time_ns()


@pytest.mark.parametrize("row", [{"source": 5, "bin": []}, {"source": "a.png"}, {"bin": "a.bin"}, {"expected": 7},
                                 {"expected": [1]}, {"error": {}}, {"synced": "x"}, {"seconds": "1"}, {"files": 3}])
def test_malformed_rows_of_a_manifest_are_passed_over(row: Dict[str, Any], prepared: Path) -> None:
    rewrite(prepared / "prep", lambda lines: lines.append(row))
    assert made_by(prepared) == []


def test_a_bin_that_is_not_as_it_was_recorded_is_made_again(prepared: Path) -> None:
    good = bins(prepared / "prep")
    (prepared / "prep" / "b.bin").write_bytes(b"\0" * 602112)
    (prepared / "prep" / "c.bin").unlink()
    (prepared / "prep" / "d.bin").unlink()
    (prepared / "prep" / "d.bin").symlink_to("a.bin")
    entry = read_manifest(str(prepared / "prep"))[1]["a.png"]
    assert set(entry) == {"bin", "source", "size", "mtime_ns", "ctime_ns", "bin_mtime_ns", "bin_ctime_ns", "checksum"}
    assert entry["bin_mtime_ns"] == (prepared / "prep" / "a.bin").stat().st_mtime_ns
    assert made_by(prepared) == ["b.bin", "c.bin", "d.bin"]
    assert bins(prepared / "prep") == good


@pytest.mark.parametrize("option, changed", [(("--img-size", "64"), "img_size was 224"),
                                             (("--dtype", "uint8"), "dtype was float32")])
def test_other_settings_keep_what_is_there_unless_forced(option: Any, changed: str, prepared: Path) -> None:
    before = bins(prepared / "prep")
    rewrite(prepared / "prep", lambda lines: [line.update(seconds=7200.0) for line in lines if "seconds" in line])
    said = refused(prepared / "src", prepared / "prep", *option)
    assert f"holds 5 images, which took 7200 s, made with other settings: {changed}; to keep them, name" in said
    assert bins(prepared / "prep") == before
    prepare(prepared / "src", prepared / "prep", *option, "--force")
    sizes = [path.stat().st_size for path in (prepared / "prep").glob("*.bin")]
    assert sizes == [3 * 64 * 64 * 4 if "64" in option else 150528] * 5


def old_program(header: Dict[str, Any]) -> None:
    """What version 1.0.0 wrote."""
    for name in ("sources", "versions"):
        del header[name]
    header.update(version="1.0.0", pid=1)


@pytest.mark.parametrize("change, changed", [
    (lambda header: header.update(sources="0" * 64), "this program was updated"),
    (old_program, "this program was updated"),
    (lambda header: header["versions"].update(Pillow="9.4.9"), "Pillow was 9.4.9"),
    (lambda header: header["versions"].update(simplejpeg=""), "simplejpeg was missing")])
def test_another_program_or_another_package_does_all_again(
        change: Callable[[Dict[str, Any]], None], changed: str, prepared: Path) -> None:
    def another(lines: List[Dict[str, Any]]) -> None:
        change(lines[0])
        for line in lines:
            line.update({"seconds": 0.1} if "seconds" in line else {})  # on a busy machine it took longer, and is told

    rewrite(prepared / "prep", another)
    done = prepare(prepared / "src", prepared / "prep")
    assert "5 made" in done.stdout and done.stderr == f"everything is made anew (5 images): {changed}\n"
    assert made_by(prepared) == []


def test_the_header_says_what_decides_over_the_bytes(prepared: Path) -> None:
    header, _ = read_manifest(str(prepared / "prep"))
    assert header == {
        "tool": "TResNet_preprocess.py", "sources": record.sources(str(ROOT / "TResNet_preprocess.py")),
        "versions": record.versions(["numpy", "Pillow", "simplejpeg"]), "img_size": 224, "crop_pct": 0.875,
        "crop_mode": "center", "interpolation": "bilinear", "mean": [0, 0, 0], "std": [1, 1, 1], "dtype": "float32",
        "source": str(prepared / "src"), "given": [], "labels": False, "class_folders": [],
        "shard": [1, 1]}
    assert header["versions"]["numpy"] and header["versions"]["Pillow"]


def test_a_manifest_of_another_program_is_none(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path)) == read_manifest(str(tmp_path / "gone")) == ({}, {})
    journal.Journal(str(tmp_path / "manifest.jsonl"), {"tool": "another"}, [{"source": "a"}], 0).close()
    assert read_manifest(str(tmp_path)) == ({}, {})


@pytest.mark.parametrize("force", ([], ["--force"]))
def test_a_manifest_of_another_program_is_not_replaced(force: List[str], tmp_path: Path) -> None:
    fill(tmp_path / "src", ["1.png"])
    (tmp_path / "prep").mkdir()
    (tmp_path / "prep" / "manifest.jsonl").write_text('{"audio": "a.wav"}\n')
    said = refusal("TResNet_preprocess.py", tmp_path / "src", tmp_path / "prep", *force)
    assert "did not make or cannot account for (manifest.jsonl); move them away" in said
    assert (tmp_path / "prep" / "manifest.jsonl").read_text() == '{"audio": "a.wav"}\n'


def test_a_torn_manifest_costs_only_what_was_torn(prepared: Path) -> None:
    last = [row for row in rows(prepared / "prep") if "bin" in row][-1]["bin"]
    text = (prepared / "prep" / "manifest.jsonl").read_text()
    (prepared / "prep" / "manifest.jsonl").write_text(text[:text.index(f'"bin": "{last}"') + 20])
    assert made_by(prepared) == [last]
    assert len(rows(prepared / "prep")) >= 7  # header, names, images: the manifest is whole again


def test_labels_of_ours_go_with_the_class_folders(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["cat/1.png"])
    prepare(tmp_path / "src", tmp_path / "prep")
    assert read_manifest(str(tmp_path / "prep"))[0]["labels"] and (tmp_path / "prep" / "val_label.txt").exists()
    fill(tmp_path / "src", ["2.png"])
    prepare(tmp_path / "src", tmp_path / "prep")
    assert not read_manifest(str(tmp_path / "prep"))[0]["labels"]
    assert not (tmp_path / "prep" / "val_label.txt").exists()


# ---- after a power loss ----------------------------------------------------------------------------------------------

def test_after_a_power_loss_what_the_disk_may_not_have_had_is_read_and_made_again_if_it_is_not_whole(
        prepared: Path) -> None:
    lost = power_loss(prepared / "prep", 2)
    assert len(read_manifest(str(prepared / "prep"))[1]) == 2
    assert len(lost) == 3
    (prepared / "prep" / lost[0]).write_bytes(b"")
    in_place(prepared / "prep" / lost[1], b"\0" * 602112)
    rewrite(prepared / "prep", lambda lines: [  # as if nothing but the content told it
        line.update(bin_ctime_ns=(prepared / "prep" / lost[1]).stat().st_ctime_ns)
        for line in lines if line.get("bin") == lost[1]])
    assert made_by(prepared) == lost[:2]
    power_loss(prepared / "prep", 2)
    assert made_by(prepared) == []


def test_a_finished_run_is_on_the_disk(prepared: Path) -> None:
    rewrite(prepared / "prep", lambda lines: lines[0].update(boot_id="another boot"))
    assert len(read_manifest(str(prepared / "prep"))[1]) == 5
    assert made_by(prepared) == []


def test_after_a_power_loss_all_files_of_ours_are_known_still(prepared: Path) -> None:
    power_loss(prepared / "prep", 2)
    for name in "abcde":
        (prepared / "src" / f"{name}.png").rename(prepared / "src" / f"{name}2.png")
    assert "5 images" in prepare(prepared / "src", prepared / "prep").stdout
    assert sorted(bins(prepared / "prep")) == [f"{letter}2.bin" for letter in "abcde"]


@pytest.mark.slow
def test_during_a_long_run_the_disk_is_told_to_keep_what_is_done(slow_images: Path, tmp_path: Path) -> None:
    program = ("import sys; sys.path.insert(0, sys.argv.pop(1)); import TResNet_preprocess as p;"
               "from common import journal, workers; journal.SYNC_EVERY = 0.1; workers.MAX_BATCH = 1; p.main()")
    for attempt in range(5):  # a busy disk may take longer to sync than a run lasts
        target = tmp_path / str(attempt)
        subprocess.run([sys.executable, "-c", program, str(ROOT), str(slow_images), str(target)], check=True,
                       stdout=subprocess.PIPE)
        lines = rows(target)[1:]
        synced = [(index, line["synced"]) for index, line in enumerate(lines) if "synced" in line]
        if len(synced) > 2:
            break
    assert synced[0][1] == 2 and synced[-1][1] == 27 and len(synced) > 2  # in the beginning, in the end, in between
    assert all(count <= sum("synced" not in line for line in lines[:index]) for index, count in synced)


# ---- after a kill ----------------------------------------------------------------------------------------------------

def test_leftovers_of_a_killed_run_are_removed(prepared: Path) -> None:
    for name in ("a.bin", "manifest.jsonl", "val_label.txt", "mine.txt"):
        (prepared / "prep" / f"{name}.part").write_bytes(b"half")
    prepare(prepared / "src", prepared / "prep")
    assert [path.name for path in (prepared / "prep").glob("*.part")] == ["mine.txt.part"]


@pytest.mark.alone
@pytest.mark.parametrize("number, status, said", [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0),
                                                  (signal.SIGHUP, 129, 0)])
def test_a_signal_ends_all_processes_within_two_seconds(number: int, status: int, said: int, slow_images: Path,
                                                        tmp_path: Path) -> None:
    process = start(slow_images, tmp_path / "prep", "-j", 4)
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    workers = children(process.pid)
    assert len(workers) == 4
    sent = time.monotonic()
    if number == signal.SIGTERM:
        process.send_signal(number)
    else:
        os.killpg(process.pid, number)  # as a terminal does
    output, errors = process.communicate(timeout=20)
    assert process.returncode == status and time.monotonic() - sent < 2
    assert len(errors.strip().splitlines()) == said and "Traceback" not in errors
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
    assert not list((tmp_path / "prep").glob("*.part"))
    if said:
        assert errors.strip() == ("TResNet_preprocess.py: interrupted; run the same command again, it goes on from "
                                  "here")


def test_workers_do_not_outlive_a_killed_parent(slow_images: Path, tmp_path: Path) -> None:
    process = start(slow_images, tmp_path / "prep")
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    workers = children(process.pid)
    process.kill()
    process.communicate()
    until(lambda: not any(Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
                          for pid in workers), 2)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_files(slow_images: Path, slow_bins: Dict[str, str],
                                                              tmp_path: Path) -> None:
    generator, target = random.Random(5), tmp_path / "prep"
    finished = kills = 0
    for number in range(10):
        process = start(slow_images, target)
        end = time.monotonic() + 10
        while number % 2 and process.poll() is None and time.monotonic() < end:  # in the middle of the work
            if len(read_manifest(str(target))[1]) > finished:
                break
        time.sleep(generator.random() * (0.1 if number % 2 else 0.6))
        kills += process.poll() is None
        process.send_signal(generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        process.communicate()
        done = len(read_manifest(str(target))[1]) if target.exists() else 0
        assert done >= finished, f"kill {number} lost finished images"
        finished = done
        assert all(path.stat().st_size == 602112 for path in target.glob("*.bin"))
    assert kills >= 3
    assert finished > 0 and f"({finished} were there already)" in prepare(slow_images, target).stdout
    assert bins(target) == slow_bins and not list(target.glob("*.part"))


# ---- two runs --------------------------------------------------------------------------------------------------------

def test_a_second_run_in_the_same_folder_stops_and_says_who_holds_it(slow_images: Path, tmp_path: Path) -> None:
    process = start(slow_images, tmp_path / "prep")
    until(lambda: list((tmp_path / "prep").glob("*.bin")))
    said = refused(slow_images, tmp_path / "prep")
    assert f"is in use by another run, process {process.pid};" in said
    output, _ = process.communicate()
    assert process.returncode == 0 and output.startswith("24 images")


@pytest.mark.parametrize("name", ["stranger.bin", "stranger.npy", "STRANGER.NPY", "A.Bin"])
def test_a_folder_with_strangers_files_is_refused_with_their_names(name: str, prepared: Path) -> None:
    (prepared / "prep" / name).write_bytes(b"x")
    assert name in refused(prepared / "src", prepared / "prep")
    (prepared / "other").mkdir()
    (prepared / "other" / "a.bin").write_bytes(b"x")  # named like one of ours, but nothing says that we made it
    assert "a.bin" in refused(prepared / "src", prepared / "other")
    assert (prepared / "other" / "a.bin").read_bytes() == b"x"


def test_a_foreign_label_file_is_not_overwritten(tmp_path: Path) -> None:
    fill(tmp_path / "src", ["cat/1.png"])
    (tmp_path / "prep").mkdir()
    (tmp_path / "prep" / "val_label.txt").write_text("mine")
    assert "val_label.txt" in refused(tmp_path / "src", tmp_path / "prep")
    shutil.move(str(tmp_path / "src" / "cat" / "1.png"), str(tmp_path / "src"))
    prepare(tmp_path / "src", tmp_path / "prep")  # without class folders no labels are written
    assert (tmp_path / "prep" / "val_label.txt").read_text() == "mine"


def test_the_names_of_the_manifest_and_of_the_labels_are_those_of_readme() -> None:
    assert (manifest.MANIFEST, manifest.LABELS) == ("manifest.jsonl", "val_label.txt")
