"""--clean lists and removes what records call the program's own, and nothing else."""

import os
from pathlib import Path
from typing import Dict, List

from common.core import record
from common.results import leftovers
from common.results.leftovers import find, known_records

import pytest

MADE_BY = record.Recipe({"tool": "a test"})
CONTENT = b"0123456789"


def make(product: Path) -> Path:
    """A product of one file, with its record."""
    product.parent.mkdir(parents=True, exist_ok=True)
    record.write(str(product), MADE_BY, {str(product): CONTENT})
    return product


def make_folder(folder: Path, names: List[str], path: str) -> Path:
    """A folder of files with the record at a path."""
    folder.mkdir(parents=True, exist_ok=True)
    below = os.path.relpath(str(folder), os.path.dirname(path))
    full = [name if below == "." else f"{below}/{name}" for name in names]
    with record.begin(record.read_path(path), MADE_BY, full) as writer:
        for name in full:
            writer.publish([record.Draft(name, [], [writer.part(name, CONTENT)])])
        writer.finish()
    return folder


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder in which several runs have left something."""
    work = tmp_path / "w o r k"
    for name in ("tresnet.onnx", "tresnet_bs1.om", "perf", "run.json", "mine.onnx"):
        make(work / name)
    for name in ("prep_dataset", "prep_dataset-0123abcd"):
        folder = work / name
        make_folder(folder, ["a.bin", "b.bin"], str(folder / "manifest.jsonl"))
    make_folder(work / "result", ["a_0.npy"], str(work / "result.record.jsonl"))
    make(work / "tune" / "conv4.onnx")
    make(work / "tune" / "conv4-float32-float16" / "conv4_bs8.om")
    (work / "tune" / "tune.log").write_text("not ours by a record")
    return work


def listed(found: List[leftovers.Leftover], work: Path) -> Dict[str, int]:
    return {os.path.relpath(leftover.path, str(work)): leftover.files for leftover in found}


def tree(folder: Path) -> Dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def needed(work: Path) -> List[str]:
    return [
        str(work / "tresnet.onnx.record.jsonl"),
        str(work / "prep_dataset-0123abcd" / "manifest.jsonl"),
    ]


def test_what_is_not_needed_is_listed_with_its_size(
    work: Path, capsys: pytest.CaptureFixture
) -> None:
    before = tree(work)
    found = find(str(work), needed(work), tunes=False)
    assert listed(found, work) == {
        "prep_dataset": 2,
        "result": 1,
        "tresnet_bs1.om": 1,
        "tune/conv4.onnx": 1,
        "tune/conv4-float32-float16/conv4_bs8.om": 1,
    }
    for leftover in found:
        record_size = os.path.getsize(leftover.record.path)
        assert leftover.bytes == leftover.files * len(CONTENT) + record_size
    assert set(listed(find(str(work), needed(work), tunes=True), work)) == {
        "prep_dataset",
        "result",
        "tresnet_bs1.om",
    }
    leftovers.show(str(work), found)
    assert capsys.readouterr().out.count(f"{work}/") == 5 and tree(work) == before


def test_only_that_is_removed_and_empty_folders_with_it(work: Path) -> None:
    before = tree(work)
    leftovers.remove(find(str(work), needed(work), tunes=False))
    stays = ("tresnet.onnx", "prep_dataset-", "perf", "run.json", "mine.onnx", "tune/tune.log")
    assert tree(work) == {
        name: content for name, content in before.items() if name.startswith(stays)
    }
    assert not (work / "prep_dataset").exists() and not (work / "result").exists()
    assert [path.name for path in (work / "tune").iterdir()] == ["tune.log"]
    assert find(str(work), needed(work), tunes=False) == []


def test_what_was_changed_stays_with_its_record(work: Path, capsys: pytest.CaptureFixture) -> None:
    (work / "tresnet_bs1.om").write_bytes(b"something of the user's")
    (work / "prep_dataset" / "notes.txt").write_text("mine")
    leftovers.remove(find(str(work), needed(work), tunes=False))
    assert (work / "tresnet_bs1.om").read_bytes() == b"something of the user's"
    assert (work / "tresnet_bs1.om.record.jsonl").exists()
    assert [path.name for path in (work / "prep_dataset").iterdir()] == ["notes.txt"]
    said = capsys.readouterr().out
    assert "tresnet_bs1.om': what was changed since it was made stays\n" in said


@pytest.mark.parametrize("name", ("result", "prep_dataset", "tune", "tune/conv4-float32-float16"))
def test_nothing_is_removed_through_a_link(name: str, work: Path, tmp_path: Path) -> None:
    (work / name).rename(tmp_path / "elsewhere")
    (work / name).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    leftovers.remove(find(str(work), needed(work), tunes=False))
    assert tree(tmp_path / "elsewhere") == before and (work / name).is_symlink()


def test_a_record_that_is_a_link_or_damaged_removes_nothing(work: Path, tmp_path: Path) -> None:
    (work / "tresnet_bs1.om.record.jsonl").rename(tmp_path / "a record")
    (work / "tresnet_bs1.om.record.jsonl").symlink_to(tmp_path / "a record")
    (work / "result.record.jsonl").write_text('{"files": [["../../x", 1, 1, 1, "00000000"]]}\n')
    assert not any("bs1" in path for path in known_records(str(work)))
    leftovers.remove(find(str(work), needed(work), tunes=False))
    for name in ("tresnet_bs1.om", "result/a_0.npy", "result.record.jsonl"):
        assert (work / name).exists()


@pytest.mark.parametrize(
    "size, words",
    ((0, "0 kB"), (1, "1 kB"), (999_999, "1000 kB"), (1_250_000, "1.2 MB"), (12e9, "12 GB")),
)
def test_sizes(size: int, words: str) -> None:
    assert leftovers.size_words(int(size)) == words
