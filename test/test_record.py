"""The record of a product: what it believes, never destroys, and what a crafted one cannot do."""

import itertools
import os
import random
import shutil
import signal
import socket
import stat
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

from common.core import files, recipe, record
from common.core.cli import Refusal
from common.core.record import Draft, Made, Part, Recipe, Record, Row

import infer_onnx
import numpy as np
import onnx
import pytest
from conftest import ROOT, run_here
from records import (
    change_file,
    change_rows,
    made,
    restart,
    rows_of,
    unfinish,
    write_finished,
    write_rows,
)
from test_infer import RUNNER, infer_images, make_model, overwrite, put_images, refuses

import TResNet_postprocess

MADE_BY = Recipe({"tool": "a_test.py", "options": {"size": 1}})
VICTIM = b"somebody's only copy"


@pytest.fixture
def limit() -> Iterator[None]:
    """Let a test that waits for ever fail."""

    def fail(number: int, frame: Any) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A file that this program made at once, with notes."""
    path = tmp_path / "net.onnx"
    record.write(
        str(path),
        MADE_BY,
        {str(path): b"weights" * 100},
        evaluation={"img_size": 224, "crop_pct": 0.875},
    )
    return path


def about(path: Path) -> Record:
    return record.read(str(path))


def record_of(path: Path) -> Path:
    return Path(record.path_of(str(path)))


def write_again(path: Path, content: bytes = b"new") -> None:
    record.write(str(path), MADE_BY, {str(path): content})


# ---- what still holds ----------------------------------------------------------------------------


def test_a_product_is_current_until_its_recipe_or_its_content_is_another(product: Path) -> None:
    assert about(product).is_current(MADE_BY)
    other = Recipe({**MADE_BY.row, "options": {"size": 2}})
    assert (
        not about(product).is_current(other)
        and about(product).differences(other) == "other options"
    )
    os.utime(str(product), ns=(1, 1))
    assert about(product).is_current(MADE_BY), "it was only touched"
    overwrite(product, b"weightz" * 100)
    assert not about(product).is_current(MADE_BY)


def test_a_record_gives_what_was_written_with_its_notes(product: Path) -> None:
    said = about(product)
    assert said.recipe == MADE_BY.row and said.finished and said.believed and not said.foreign
    assert said.notes == {"evaluation": {"img_size": 224, "crop_pct": 0.875}}
    assert said.made == {"net.onnx": made(product.parent, "net.onnx")}
    assert record.read(str(product.parent / "nothing")).recipe == {}


def test_names_that_are_not_utf_8_survive(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.onnx")
    write_again(path)
    assert about(path).is_current(MADE_BY) and list(about(path).made) == [path.name]


def test_what_an_earlier_run_made_beside_and_this_one_does_not_goes(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("perf.json", "perf.png")]
    record.write(str(tmp_path / "perf"), MADE_BY, dict.fromkeys(paths, b"old"))
    record.write(str(tmp_path / "perf"), MADE_BY, {paths[0]: b"new"})
    assert sorted(os.listdir(str(tmp_path))) == ["perf.json", "perf.record.jsonl"]


def test_a_run_that_was_killed_between_name_and_row_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.onnx"

    def killed(piece: record.Piece) -> Row:
        raise SystemExit(137)

    with monkeypatch.context() as patched:
        patched.setattr(record, "row_of", killed)
        with pytest.raises(SystemExit):
            write_again(path, b"first")
    assert path.read_bytes() == b"first" and not about(path).is_current(MADE_BY)
    write_again(path, b"second")
    assert path.read_bytes() == b"second" and sorted(os.listdir(str(tmp_path))) == [
        "net.onnx",
        "net.onnx.record.jsonl",
    ]


def folder_run(work: Path, names: List[str]) -> record.Writer:
    """Begin a run that makes work/result/NAME for each of the names."""
    before = record.read(str(work / "result"))
    kept = before.kept(MADE_BY)
    return record.begin_folder(before, MADE_BY, [f"result/{name}" for name in names], kept.values())


def test_a_folder_is_made_piece_by_piece_and_finished_pieces_stay(tmp_path: Path) -> None:
    with folder_run(tmp_path, ["a", "b"]) as writer:
        writer.publish([Draft("a", [["a.bin", 1, 1]], [writer.part("result/a", b"1")])])
    first = (tmp_path / "result" / "a").stat().st_ino
    said = record.read(str(tmp_path / "result"))
    assert not said.finished and list(said.kept(MADE_BY)) == ["a"]
    with folder_run(tmp_path, ["a", "b"]) as writer:
        writer.publish([Draft("b", [["b.bin", 1, 1]], [writer.part("result/b", b"2")])])
        writer.finish(seconds=2.5)
    said = record.read(str(tmp_path / "result"))
    assert (
        said.finished
        and sorted(said.pieces) == ["a", "b"]
        and said.pieces["a"].inputs == [["a.bin", 1, 1]]
    )
    assert (tmp_path / "result" / "a").stat().st_ino == first and said.ending == {
        "pieces": 2,
        "seconds": 2.5,
    }


def test_a_finished_record_that_lost_a_piece_is_not_finished(tmp_path: Path) -> None:
    """What a run made that nobody knows of any more is not up to date."""
    with folder_run(tmp_path, ["a", "b"]) as writer:
        writer.publish([Draft(name, [], [writer.part(f"result/{name}", b"1")]) for name in "ab"])
        writer.finish()
    path = tmp_path / "result.record.jsonl"
    change_rows(path, lambda rows: rows.remove(next(row for row in rows if row.get("key") == "b")))
    said = record.read(str(tmp_path / "result"))
    assert not said.finished and not said.is_current(MADE_BY) and list(said.kept(MADE_BY)) == ["a"]


def test_with_other_settings_the_parts_that_a_killed_run_left_go(tmp_path: Path) -> None:
    """Its record knows all names from the beginning."""
    folder_run(tmp_path, ["a.txt", "b.txt"]).__exit__(None, None, None)
    for name in (
        "result/a.txt.0123abcd.part",
        "result/b.txt.89abcdef.part",
        "result.record.jsonl.00000000.part",
    ):
        (tmp_path / name).write_bytes(b"half")
    with folder_run(tmp_path, ["a.npy"]) as writer:
        writer.publish([Draft("a", [], [writer.part("result/a.npy", b"1")])])
    assert os.listdir(str(tmp_path / "result")) == ["a.npy"]
    assert sorted(os.listdir(str(tmp_path))) == ["result", "result.record.jsonl"]


# ---- after a restart of the machine --------------------------------------------------------------


def test_after_a_restart_an_unfinished_record_is_believed_where_content_agrees(
    tmp_path: Path,
) -> None:
    with folder_run(tmp_path, ["a", "b", "c"]) as writer:
        writer.publish(
            [Draft(name, [], [writer.part(f"result/{name}", b"content")]) for name in "abc"]
        )
        writer.finish()
    path = tmp_path / "result.record.jsonl"
    overwrite(tmp_path / "result" / "b", bytes(7))
    change_file(
        path, "result/b", ctime_ns=(tmp_path / "result" / "b").stat().st_ctime_ns
    )  # only the content shows it
    (tmp_path / "result" / "c").write_bytes(b"")
    restart(path)
    said = record.read(str(tmp_path / "result"))
    assert said.believed and sorted(said.kept(MADE_BY)) == ["a", "b"]
    unfinish(path)
    said = record.read(str(tmp_path / "result"))
    assert not said.believed and list(said.kept(MADE_BY)) == ["a"]


def test_after_a_power_loss_empty_files_are_replaced_and_others_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The disk may have all names, the content of some files, and only the record's beginning."""
    folder_run(tmp_path, ["a", "b", "c"]).__exit__(None, None, None)
    restart(tmp_path / "result.record.jsonl")
    (tmp_path / "result" / "a").write_bytes(b"")
    (tmp_path / "result" / "b").write_bytes(b"half")
    with folder_run(tmp_path, ["a", "b", "c"]) as writer:
        writer.publish(
            [Draft(name, [], [writer.part(f"result/{name}", b"content")]) for name in "abc"]
        )
        writer.finish()
    assert {path.read_bytes() for path in (tmp_path / "result").iterdir()} == {b"content"}
    assert [path.read_bytes() for path in (tmp_path / "result.aside").iterdir()] == [b"half"]
    assert capsys.readouterr().err.endswith(
        f"{tmp_path}/result/b: not as this program made it; moved to {tmp_path}/result.aside\n"
    )


# ---- what is not ours stays ----------------------------------------------------------------------


def test_a_file_of_another_content_is_set_aside_and_the_product_made_again(
    product: Path, capsys: pytest.CaptureFixture
) -> None:
    product.write_bytes(VICTIM)
    write_again(product)
    product.write_bytes(VICTIM + b"!")
    write_again(product)
    aside = product.parent / "net.onnx.aside"
    assert product.read_bytes() == b"new"
    assert (aside / "net.onnx").read_bytes() == VICTIM and (
        aside / "net.onnx.2"
    ).read_bytes() == VICTIM + b"!"
    assert capsys.readouterr().err.count(f"moved to {aside}") == 2
    assert stat.S_IMODE(aside.stat().st_mode) & 0o027 == 0


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_no_record_names_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    path, other = tmp_path / "net.onnx", tmp_path / "other"
    other.write_bytes(VICTIM)
    if kind == "file":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other if kind == "link" else "nowhere")
    before = path.lstat()
    with pytest.raises(
        Refusal, match="net.onnx: no record says that this program made it; move it away"
    ):
        write_again(path)
    assert path.lstat() == before and sorted(os.listdir(str(tmp_path))) == ["net.onnx", "other"]


def test_a_link_in_the_place_of_a_product_is_replaced_and_its_target_stays(product: Path) -> None:
    (product.parent / "other").write_bytes(product.read_bytes())
    product.unlink()
    product.symlink_to("other")
    assert not about(product).is_current(MADE_BY)
    write_again(product)
    assert (
        product.read_bytes() == b"new"
        and (product.parent / "other").read_bytes() == b"weights" * 100
    )
    assert not product.is_symlink()


def test_the_folder_for_what_is_set_aside_is_not_reached_through_a_link(product: Path) -> None:
    (product.parent / "elsewhere").mkdir()
    (product.parent / "net.onnx.aside").symlink_to("elsewhere")
    product.write_bytes(VICTIM)
    with pytest.raises(Refusal, match="net.onnx.aside is a symbolic link; remove it"):
        write_again(product)
    assert product.read_bytes() == VICTIM and os.listdir(str(product.parent / "elsewhere")) == []


def somebodys(folder: Path) -> Dict[str, bytes]:
    """Fill a folder with files of somebody else's; {name: content}."""
    folder.mkdir()
    contents = {"a_0.txt": VICTIM, "thesis.txt": b"a year of work"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def inference_words(model: Path, images: Path) -> List[object]:
    """The words that make the folder result/ beside a model."""
    names = ("--model", "--input", "--output", "--output_dirname")
    return list(itertools.chain(*zip(names, (model, images, model.parent, "result"))))


def contents_of(folder: Path) -> Dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def old_record(path: Path, folder: Path, prefix: str) -> None:
    """A crafted record as version 1.2 wrote them, which knows every file of a folder truly."""
    import hashlib
    import json

    entries = [
        [
            f"{prefix}{file.name}",
            *files.stamp(file.stat()),
            hashlib.sha256(file.read_bytes()).hexdigest(),
        ]
        for file in folder.iterdir()
    ]
    rows = [
        {"tool": "infer_onnx.py", "boot_id": "x"},
        {"expected": [entry[0] for entry in entries]},
        *({"inputs": [], "files": [entry]} for entry in entries),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def new_record(path: Path, folder: Path, prefix: str) -> None:
    """A crafted record as this version writes them, which knows every file of a folder truly."""
    pieces = [
        record.Piece(file.name, [], [made(folder, file.name)._replace(name=prefix + file.name)], {})
        for file in folder.iterdir()
    ]
    entries = [piece.files[0] for piece in pieces]
    announced = [[entry.name, entry.size, entry.checksum] for entry in entries]
    write_rows(
        path,
        [
            {"recipe": {"tool": "infer_onnx.py"}, "about": {}, "boot_id": record.boot_id()},
            {"expected": [entry[0] for entry in announced]},
            {"announced": announced},
            *map(record.row_of, pieces),
            {"finished": True, "pieces": len(pieces)},
        ],
    )


@pytest.mark.parametrize("craft", [old_record, new_record])
def test_nothing_is_removed_through_a_link_in_the_place_of_the_product_folder(
    craft: Callable[[Path, Path, str], None], tmp_path: Path
) -> None:
    contents = somebodys(tmp_path / "home")
    images, model = put_images(tmp_path / "images", ["a.bin"]), make_model(tmp_path / "model.onnx")
    (tmp_path / "result").symlink_to("home")
    craft(tmp_path / "result.record.jsonl", tmp_path / "home", "result/")
    for force in ([], ["--force"]):
        said = refuses(*inference_words(model, images), "--outfmt", "TXT", *force)
        assert (
            "result is a symbolic link, and nothing is made or removed through a link; name "
            in said
        )
        assert said.count("\n") == 1
    assert contents_of(tmp_path / "home") == contents


@pytest.mark.parametrize("craft", [old_record, new_record])
@pytest.mark.parametrize(
    "prefix",
    [
        "../home/",
        "{home}/",
        "result/../home/",
        "home/../home/",
        "./home/",
        "home//",
        "result/x/../../home/",
    ],
)
def test_names_that_lead_out_of_the_records_folder_are_ignored(
    craft: Callable[[Path, Path, str], None], prefix: str, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    contents = [somebodys(tmp_path / "home"), somebodys(work / "home")]
    images, model = put_images(tmp_path / "images", ["a.bin"]), make_model(work / "model.onnx")
    craft(work / "result.record.jsonl", tmp_path / "home", prefix.format(home=tmp_path / "home"))
    assert not record.read(str(work / "result")).names()
    before = record.read(str(work / "result"))
    if craft is old_record:  # without its names it is not a record at all
        assert before.foreign and "is not a record of this program" in refuses(
            *inference_words(model, images)
        )
    else:
        infer_images(model, images)
        assert (work / "result" / "a_0.txt").exists()
    assert [contents_of(tmp_path / "home"), contents_of(work / "home")] == contents


@pytest.mark.parametrize(
    "name",
    [
        "a\0b",
        "",
        "/",
        "x" * 100_000,
        "result/" + "y" * 5000,
        5,
        None,
        ["a"],
        {},
        True,
        "..",
        ".",
        "a/b/c",
        "\ud800",
    ],
)
def test_names_that_no_file_can_have_do_no_harm(name: Any, tmp_path: Path) -> None:
    images, model = put_images(tmp_path / "images", ["a.bin"]), make_model(tmp_path / "model.onnx")
    entry = [name, 3, 1, 1, "00000000"]
    write_rows(
        tmp_path / "result.record.jsonl",
        [
            {"recipe": {"tool": "infer_onnx.py"}, "about": {}, "boot_id": ""},
            {"expected": [name]},
            {"announced": [[name, 3, "00000000"]]},
            {"key": "a", "inputs": [], "files": [entry]},
            {"finished": True, "pieces": 1},
        ],
    )
    infer_images(model, images)
    assert (tmp_path / "result" / "a_0.txt").read_bytes() == b"0.000000 0.500000 0.000000 \n"


def test_a_crafted_record_cannot_have_a_file_of_another_content_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, model = put_images(tmp_path / "images", ["a.bin"]), make_model(tmp_path / "model.onnx")
    somebodys(tmp_path / "home")
    for name in ("thesis.txt", "home/thesis.txt"):
        (tmp_path / name).write_bytes(VICTIM)
    entries = [[name, len(VICTIM), 1, 1, "01234567"] for name in ("thesis.txt", "home/thesis.txt")]
    write_rows(
        tmp_path / "result.record.jsonl",
        [
            {"recipe": {"tool": "infer_onnx.py"}, "about": {}, "boot_id": record.boot_id()},
            {"key": "a", "inputs": [], "files": entries},
            {"finished": True, "pieces": 1},
        ],
    )
    said = infer_images(model, images).stderr
    assert {path.read_bytes() for path in (tmp_path / "result.aside").iterdir()} == {VICTIM}
    assert len(os.listdir(str(tmp_path / "result.aside"))) == 2
    assert ": not as this program made it; moved to " in said


def test_parts_get_fresh_names_so_nothing_that_lies_there_is_written_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard link, a link, a FIFO: under the names of an earlier version's part and of ours."""
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    os.link(str(victim), str(tmp_path / "acc.json.part"))
    os.mkfifo(str(tmp_path / "perf.json.part"))
    for name in ("acc.json", "perf.json"):
        files.write_whole(str(tmp_path / name), b"new")
    monkeypatch.setattr(files.os, "urandom", lambda count: b"\1\2\3\4")
    for make in (
        lambda path: os.link(str(victim), path),
        lambda path: os.symlink(str(victim), path),
        os.mkfifo,
    ):
        make(str(tmp_path / "acc.json.01020304.part"))
        with pytest.raises(FileExistsError):
            files.write_whole(str(tmp_path / "acc.json"), b"newer")
        os.unlink(str(tmp_path / "acc.json.01020304.part"))  # it is there still
    assert victim.read_bytes() == VICTIM and (tmp_path / "acc.json").read_bytes() == b"new"


def test_the_accuracy_is_not_written_into_a_hard_link_under_the_old_parts_name(
    tmp_path: Path,
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(VICTIM)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "a_0.txt").write_text("1.000000 2.000000 \n")
    (tmp_path / "labels.txt").write_text("a 1\n")
    os.link(str(victim), str(tmp_path / "acc.json.part"))
    os.symlink(str(victim), str(tmp_path / "acc_report.json.part"))
    run_here(
        TResNet_postprocess.main, tmp_path / "result", tmp_path / "labels.txt", tmp_path, "acc.json"
    )
    assert (
        victim.read_bytes() == VICTIM
        and victim.stat().st_nlink == 2
        and (tmp_path / "acc.json").exists()
    )


# ---- what is not a regular file ------------------------------------------------------------------


def make_device(path: str) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # /dev/null
    except PermissionError:
        pytest.skip("this user may not make a device")


def make_socket(path: str) -> None:
    before = os.getcwd()
    os.chdir(os.path.dirname(path))  # the whole path may be too long for one
    try:
        with socket.socket(socket.AF_UNIX) as made_socket:
            made_socket.bind(os.path.basename(path))
    finally:
        os.chdir(before)


IRREGULAR: List[Callable[[str], Any]] = [os.mkfifo, make_device, make_socket, os.mkdir]
irregular = pytest.mark.parametrize("make", IRREGULAR, ids=["FIFO", "device", "socket", "folder"])


@irregular
@pytest.mark.parametrize(
    "name, words",
    [
        ("result.record.jsonl", []),
        ("images/manifest.jsonl", []),
        ("model.onnx.record.jsonl", []),
        ("model.onnx", []),
        ("aipp.cfg", ["--aipp", "aipp.cfg"]),
    ],
)
def test_the_inference_opens_nothing_that_is_not_a_regular_file(
    name: str, words: List[str], make: Callable[[str], Any], limit: None, tmp_path: Path
) -> None:
    images, model = put_images(tmp_path / "images", ["a.bin"]), make_model(tmp_path / "model.onnx")
    if (tmp_path / name).exists():
        (tmp_path / name).unlink()
    make(str(tmp_path / name))
    said = refuses(*inference_words(model, images), *words, cwd=str(tmp_path))
    assert (
        said.count("\n") == 1
        and os.path.basename(name) in said
        and not (tmp_path / "result").exists()
    )


@irregular
def test_a_result_that_is_not_a_regular_file_is_set_aside_and_made_again(
    make: Callable[[str], Any], limit: None, tmp_path: Path
) -> None:
    images, model = put_images(tmp_path / "images", ["a.bin"]), make_model(tmp_path / "model.onnx")
    result = tmp_path / "result" / "a_0.txt"
    infer_images(model, images)
    result.unlink()
    make(str(result))
    kind = stat.S_IFMT(result.lstat().st_mode)
    done = infer_images(model, images)
    assert (
        "1 image inferred" in done.stdout
        and result.read_bytes() == b"0.000000 0.500000 0.000000 \n"
    )
    assert stat.S_IFMT((tmp_path / "result.aside" / "a_0.txt").lstat().st_mode) == kind
    assert f"moved to {tmp_path}/result.aside" in done.stderr


@irregular
@pytest.mark.parametrize(
    "name", ["labels.txt", "result/a_0.txt", "result.record.jsonl", "acc.json", "acc_report.json"]
)
def test_the_accuracy_opens_nothing_that_is_not_a_regular_file(
    name: str, make: Callable[[str], Any], limit: None, tmp_path: Path
) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "a_0.txt").write_text("1.000000 2.000000 \n")
    (tmp_path / "labels.txt").write_text("a 1\n")
    if (tmp_path / name).exists():
        (tmp_path / name).unlink()
    make(str(tmp_path / name))
    with pytest.raises(Refusal) as refusal:
        run_here(
            TResNet_postprocess.main,
            tmp_path / "result",
            tmp_path / "labels.txt",
            tmp_path,
            "acc.json",
        )
    assert os.path.basename(name) in refusal.value.sentence and "\n" not in refusal.value.sentence
    assert stat.S_IFMT((tmp_path / name).lstat().st_mode) != stat.S_IFREG


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, make_device, make_socket, lambda path: os.symlink("elsewhere", path)],
    ids=["FIFO", "device", "socket", "link"],
)
def test_a_lock_is_a_regular_file(make: Callable[[str], Any], limit: None, tmp_path: Path) -> None:
    make(str(tmp_path / ".lock"))
    with pytest.raises(
        Refusal,
        match=".lock cannot be locked: it is (a symbolic link|not a regular file); remove it",
    ):
        files.hold(str(tmp_path / ".lock"))
    assert os.listdir(str(tmp_path)) == [".lock"]


# ---- an input is all its files, and what was loaded is what is recorded --------------------------


def model_in_two_files(folder: Path, scale: float) -> Path:
    """The model of test_infer with its weights in weights.bin beside it."""
    folder.mkdir()
    whole = onnx.load(str(make_model(folder / "whole.onnx", scale=scale)))
    onnx.save_model(
        whole,
        str(folder / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    (folder / "whole.onnx").unlink()
    return folder / "model.onnx"


def test_another_content_of_a_models_data_file_is_seen(tmp_path: Path) -> None:
    model, other = (
        model_in_two_files(tmp_path / name, scale) for name, scale in (("a", 1.0), ("b", 2.0))
    )
    assert model.read_bytes() == other.read_bytes(), "only the data file differs"
    images = put_images(tmp_path / "images", ["a.bin"])
    infer_images(model, images, "--batchsize", 1)
    assert "1 result in" in infer_images(model, images, "--batchsize", 1).stdout
    recorded = rows_of(model.parent / "result.record.jsonl")[0]["recipe"]["inputs"]
    assert [name for name, _ in recorded] == ["model.onnx", "weights.bin"]
    overwrite(model.parent / "weights.bin", (other.parent / "weights.bin").read_bytes())
    done = infer_images(model, images, "--batchsize", 1)
    assert "everything is inferred again: other inputs" in done.stdout
    assert (model.parent / "result" / "a_0.txt").read_bytes() == b"0.000000 1.000000 0.000000 \n"


@pytest.mark.parametrize("words", [[], ["--batchsize", 1]], ids=["loaded first", "hashed first"])
@pytest.mark.parametrize("turn_back", [False, True])
def test_a_model_that_is_replaced_while_the_inference_begins_is_refused(
    words: List[object], turn_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link is turned to another model between the two readings, and back after the second."""
    models = [make_model(tmp_path / f"{scale}.onnx", scale=scale) for scale in (1.0, 2.0)]
    link, images = tmp_path / "model.onnx", put_images(tmp_path / "images", ["a.bin"])
    link.symlink_to(models[0])

    def turn(model: Path) -> None:
        link.unlink()
        link.symlink_to(model)

    second = (infer_onnx.recipe, "make") if not words else (infer_onnx, "open_model")
    real = getattr(*second)

    def swapped(*arguments: Any, **options: Any) -> Any:
        turn(models[1])
        found = real(*arguments, **options)
        if turn_back:
            turn(models[0])
        return found

    with monkeypatch.context() as patched:
        patched.setattr(*second, swapped)
        said = refuses(*inference_words(link, images), *words)
    assert "replaced while the inference began" in said or "was changed while it was in use" in said
    assert not (tmp_path / "result").exists() and not (tmp_path / "result.record.jsonl").exists()
    turn(models[0])
    infer_images(link, images, *words)
    assert (tmp_path / "result" / "a_0.txt").read_bytes() == b"0.000000 0.500000 0.000000 \n"


def test_an_input_that_is_only_linked_or_gets_another_mode_counts(tmp_path: Path) -> None:
    """quantize_amct.py lends its images to AMCT as hard links, which changes one of their times."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"one")
    made_by = recipe.make(__file__, {}, inputs=[str(source)])
    os.link(str(source), str(tmp_path / "lent"))
    source.chmod(0o600)
    record.write(str(target), made_by, {str(target): b"of one"})
    assert target.read_bytes() == b"of one"


def test_an_input_that_is_replaced_before_the_product_is_written_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"one")
    made_by = recipe.make(__file__, {}, inputs=[str(source)])
    files.write_whole(str(source), b"two")
    with pytest.raises(Refusal, match="in was changed while it was in use"):
        record.write(str(target), made_by, {str(target): b"of one"})
    assert os.listdir(str(tmp_path)) == ["in"]


# ---- damage --------------------------------------------------------------------------------------


def flips(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The content with one bit flipped, in turn each of so many chosen by chance."""
    places = random.Random(seed).sample(range(8 * len(content)), min(count, 8 * len(content)))
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        yield bytes(damaged)


def facts(said: Record) -> Tuple[Any, ...]:
    return said.recipe, said.about, said.pieces, said.finished


def test_no_flipped_bit_of_a_products_record_changes_what_it_says(product: Path) -> None:
    """It is as before, or the product is not up to date; its notes are as before, or missing."""
    path = record_of(product)
    content, whole = path.read_bytes(), record.read(str(product))
    lost = 0
    for damaged in flips(content, 8 * len(content)):
        said = Record(str(path), damaged)
        assert said.notes in (whole.notes, {})
        assert facts(said) == facts(whole) or not said.is_current(MADE_BY)
        assert "net.onnx" in said.names(), "it is known still, and made again"
        lost += facts(said) != facts(whole)
    assert lost > 1000


@pytest.mark.slow
def test_no_flipped_bit_of_an_exported_models_record_changes_the_evaluation(
    small_model: Path,
) -> None:
    path = small_model / "tresnet.onnx.record.jsonl"
    whole = record.read(str(small_model / "tresnet.onnx"))
    made_by = Recipe(whole.recipe)
    assert whole.notes["evaluation"]["img_size"] == 64 and whole.is_current(made_by)
    for damaged in flips(path.read_bytes(), 2000):
        said = Record(str(path), damaged)
        assert said.notes in (whole.notes, {})
        assert facts(said) == facts(whole) or not (
            said.finished and said.pieces and said.recipe == whole.recipe
        )


def test_no_flipped_bit_of_a_manifest_makes_other_settings_or_sources(tmp_path: Path) -> None:
    from common.data import prepared

    put_images(tmp_path / "prep", [f"{index}.bin" for index in range(5)])
    pieces = {f"{index}.png": [f"{index}.bin"] for index in range(5)}
    write_finished(
        tmp_path / "prep" / "manifest.jsonl",
        {"tool": prepared.TOOL, "options": {"img_size": 4}, "versions": {"numpy": "1"}},
        pieces,
        {"given": ["img_size"]},
        {"bad.png": {"error": "empty"}},
    )
    content = (tmp_path / "prep" / "manifest.jsonl").read_bytes()
    whole = prepared.read(str(tmp_path / "prep"))
    assert whole.bad and len(whole.sources) == 5
    lost = 0
    for damaged in flips(content, 8 * len(content)):
        record_now = Record(str(tmp_path / "prep" / "manifest.jsonl"), damaged)
        said = prepared.described(record_now)
        pairs: Any = zip(whole, said)
        for before, now in pairs:
            assert now.items() <= before.items()
        assert (said.settings, said.about) in ((whole.settings, whole.about), ({}, {})), (
            "together or not at all"
        )
        assert said == whole or not record_now.finished or not record_now.recipe
        lost += said != whole
    assert lost > 1000


def test_a_flipped_bit_in_any_row_costs_no_more_than_making_it_again(product: Path) -> None:
    path = record_of(product)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    for place, line in enumerate(lines):
        path.write_bytes(
            b"".join([*lines[:place], bytes([line[0] ^ 1]) + line[1:], *lines[place + 1 :]])
        )
        if not about(product).is_current(MADE_BY):
            record.write(str(product), MADE_BY, {str(product): b"weights" * 100})
        assert about(product).is_current(MADE_BY) and product.read_bytes() == b"weights" * 100
    assert not (product.parent / "net.onnx.aside").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\n",
        b"no record\n",
        b'{"audio": "a.wav"}\n',
        b"\xff" * 100,
        b"[" * 100_000,
        b'{"boot_id": 1}\n',
        b"[1]\n",
        b"\r" * 50,
    ],
)
def test_a_file_that_is_not_a_record_is_refused_and_stays(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx.record.jsonl").write_bytes(content)
    with pytest.raises(
        Refusal, match="net.onnx.record.jsonl is not a record of this program; move it away"
    ):
        write_again(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx.record.jsonl").read_bytes() == content


# ---- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [12, 20])
def test_results_that_changed_places_are_refused_even_where_no_time_tells_it(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems have no time of a change; the time of the modification is set back."""
    monkeypatch.setattr(
        files, "stamp", lambda status: (status.st_size, status.st_mtime_ns, status.st_mtime_ns)
    )
    names = [f"i{index:02}" for index in range(20)]
    images, model = (
        put_images(tmp_path / "images", [f"{name}.bin" for name in names]),
        make_model(tmp_path / "model.onnx"),
    )
    infer_images(model, images)
    (tmp_path / "labels.txt").write_text("".join(f"{name} 0\n" for name in names))
    accuracy = (tmp_path / "result", tmp_path / "labels.txt", tmp_path, "acc.json")
    run_here(TResNet_postprocess.main, *accuracy)
    before = (tmp_path / "acc.json").read_bytes()
    chosen = [tmp_path / "result" / f"{name}_0.txt" for name in names[20 - count :]]
    contents = [path.read_bytes() for path in chosen]
    for path, content in zip(chosen, [*contents[1:], contents[0]]):
        overwrite(path, content)
    with pytest.raises(
        Refusal, match=f"{count} result files in .* did not come from the run that made the others"
    ):
        run_here(TResNet_postprocess.main, *accuracy)
    assert (tmp_path / "acc.json").read_bytes() == before
    infer_images(model, images, "--force")
    run_here(TResNet_postprocess.main, *accuracy)
    assert (tmp_path / "acc.json").read_bytes() == before


# ---- records of version 1.2 and before -----------------------------------------------------------


def test_products_of_an_older_version_are_made_again_and_changed_files_set_aside(
    tmp_path: Path,
) -> None:
    images, model = (
        put_images(tmp_path / "images", ["a.bin", "b.bin", "c.bin"]),
        make_model(tmp_path / "model.onnx"),
    )
    infer_images(model, images)
    old_record(tmp_path / "result.record.jsonl", tmp_path / "result", "result/")
    (tmp_path / "result_summary.json").unlink()
    (tmp_path / "result" / "b_0.txt").write_bytes(VICTIM)
    (tmp_path / "result" / "c_0.txt").write_bytes(b"")
    done = infer_images(model, images)
    assert "everything is inferred again: an earlier version of this program made it" in done.stdout
    assert (
        "3 images inferred" in done.stdout and "b_0.txt: not as this program made it" in done.stderr
    )
    assert [path.read_bytes() for path in (tmp_path / "result.aside").iterdir()] == [VICTIM]
    assert "are up to date" in infer_images(model, images).stdout


def test_a_crafted_name_in_a_record_of_an_older_version_is_ignored(tmp_path: Path) -> None:
    lines = b'{"boot_id": "x"}\n{"files": [[5, 1, 1, 1, "%s"]]}\n{"bin": 5}\n' % (b"0" * 64)
    assert Record(str(tmp_path / "net.onnx.record.jsonl"), lines).names() == set()


def test_of_an_older_version_a_bin_is_known_by_its_times(tmp_path: Path) -> None:
    import json

    put_images(tmp_path, ["a.bin", "b.bin"])
    _, modified, changed = files.stamp((tmp_path / "a.bin").stat())
    rows = [
        {"tool": "TResNet_preprocess.py", "boot_id": "x"},
        *(
            {
                "bin": f"{stem}.bin",
                "source": f"{stem}.png",
                "bin_mtime_ns": modified,
                "bin_ctime_ns": changed,
            }
            for stem in "ab"
        ),
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(str(tmp_path / "b.bin"))
    said = record.read_path(str(tmp_path / "manifest.jsonl"))
    assert said.older and not said.foreign and not said.recipe and not said.pieces
    assert said.is_ours("a.bin") and not said.is_ours("b.bin")


# ---- the recipe ----------------------------------------------------------------------------------


@pytest.fixture
def copied_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the program's sources, which recipe.sources() reads."""
    shutil.copytree(
        str(ROOT / "scripts"),
        str(tmp_path / "scripts"),
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in ROOT.glob("*.py"):
        shutil.copy(str(path), str(tmp_path))
    monkeypatch.setattr(recipe, "ROOT", str(tmp_path))
    monkeypatch.setattr(recipe, "SCRIPTS", str(tmp_path / "scripts"))
    return tmp_path


PROGRAMS = (
    "TResNet_preprocess.py",
    "TResNet_pth2onnx.py",
    RUNNER,
    "scripts/infer_om.py",
    "scripts/onnx2om.py",
    "scripts/perf_sweep.py",
    "scripts/report.py",
    "scripts/forecast_fp16.py",
    "scripts/quantize_onnx.py",
)


def changed_by(root: Path, name: str) -> List[str]:
    """The programs whose recipe changes with a comment in a file of scripts/common."""

    def all_sources() -> List[str]:
        recipe.sources.cache_clear()
        recipe.read_once.cache_clear()
        return [recipe.sources(str(root / program)) for program in PROGRAMS]

    before = all_sources()
    with open(str(root / "scripts" / "common" / name), "a") as file:
        file.write("/* a comment */\n" if name.endswith(".c") else "# a comment\n")
    after = all_sources()
    return [program for program, one, other in zip(PROGRAMS, before, after) if one != other]


def test_a_comment_changes_the_recipes_of_the_programs_that_import_the_module(
    copied_program: Path,
) -> None:
    assert changed_by(copied_program, "results/plots.py") == [
        "scripts/perf_sweep.py",
        "scripts/report.py",
        "scripts/forecast_fp16.py",
    ]
    assert changed_by(copied_program, "model/graph.py") == ["TResNet_pth2onnx.py"], (
        "imported in a function"
    )
    assert "TResNet_preprocess.py" in changed_by(copied_program, "data/images.py"), (
        "imported directly"
    )
    assert "TResNet_preprocess.py" in changed_by(copied_program, "core/native.py"), (
        "through another module"
    )
    assert "TResNet_preprocess.py" in changed_by(copied_program, "data/resize.c"), (
        "compiled by another module"
    )
    assert not {RUNNER, "TResNet_pth2onnx.py"} & set(changed_by(copied_program, "data/resize.c"))
    assert set(changed_by(copied_program, "core/cli.py")) == set(PROGRAMS)
    assert set(changed_by(copied_program, "__init__.py")) == set(PROGRAMS)
    assert changed_by(copied_program, "core/progress.py") == []


def test_a_module_in_a_package_counts_with_the_packages_that_it_lies_in(
    tmp_path: Path, copied_program: Path
) -> None:
    package = copied_program / "scripts" / "common" / "deep" / "er"
    package.mkdir(parents=True)
    for path in (package.parent / "__init__.py", package / "__init__.py"):
        path.write_text("")
    (package / "one.py").write_text(
        "from common.deep.er import (two,\n                            three)\n"
    )
    (package / "two.py").write_text('SOURCE = "deep/fast.c"\n')
    (package / "three.py").write_text("def f() -> None:\n    import common.deep.other as x, os\n")
    (package.parent / "other.py").write_text("")
    (package.parent / "fast.c").write_text("")
    (copied_program / "program.py").write_text("from common.deep.er.one import name\n")
    found = {
        os.path.relpath(path, str(copied_program))
        for path in recipe.closure(str(copied_program / "program.py"))
    }
    inside = {
        f"scripts/common/deep/{name}"
        for name in (
            "__init__.py",
            "other.py",
            "er/__init__.py",
            "er/one.py",
            "er/two.py",
            "er/three.py",
            "fast.c",
        )
    }
    assert found == {"program.py", "scripts/common/__init__.py", *inside}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_module_that_a_program_really_loads_is_in_its_recipe(program: str) -> None:
    import subprocess
    import sys

    code = (
        "import os, runpy, sys; sys.path.insert(0, os.path.dirname(sys.argv[1]));"
        "runpy.run_path(sys.argv[1], run_name='other');"
        "names = [name for name in sys.modules if name.split('.')[0] == 'common'];"
        "print(*(sys.modules[name].__file__ for name in names), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / program)],
        stdout=subprocess.PIPE,
        check=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT / "scripts")),
    )
    loaded = {os.path.realpath(path) for path in done.stdout.decode().splitlines()}
    counted = set(map(os.path.realpath, recipe.closure(str(ROOT / program))))
    assert len(loaded) >= 3
    assert {
        path for path in loaded - counted if os.path.basename(path) not in recipe.NOT_COUNTED
    } == set()


def test_several_files_of_others_are_named_in_the_plural(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("mine")
    before = record.read(str(tmp_path / "a"))
    with pytest.raises(Refusal, match="a, .*b: no record says .* made them; move them away, or"):
        before.refuse_others(["a", "b"])


def test_the_recipe_names_inputs_and_settings_by_content(tmp_path: Path) -> None:
    for name in ("in", "settings"):
        (tmp_path / name).write_text(name)
    found = recipe.make(
        __file__,
        {"size": (1, 2)},
        ("numpy", "no-such-package"),
        [str(tmp_path / "in")],
        [str(tmp_path / "settings")],
        device="CPU",
    )
    assert found.row["options"] == {"size": [1, 2]} and found.row["device"] == "CPU"
    assert found.row["versions"] == {"numpy": np.__version__, "no-such-package": ""}
    assert found.row["inputs"] == [["in", recipe.sha256(str(tmp_path / "in"))]]
    assert [name for name, _ in found.row["settings"]] == ["settings"] and len(found.files) == 2


# ---- who may become a product --------------------------------------------------------------------


def test_a_file_of_another_program_is_adopted_only_if_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "made").write_bytes(b"model")
    os.chmod(str(tmp_path / "made"), 0o666)
    (tmp_path / "link").symlink_to("made")
    with pytest.raises(Refusal, match="link is a link or not a regular file"):
        record.adopt(str(tmp_path / "net.om"), MADE_BY, str(tmp_path / "link"))
    record.adopt(
        str(tmp_path / "net.om"), MADE_BY, str(tmp_path / "made"), evaluation={"img_size": 224}
    )
    assert (tmp_path / "net.om").read_bytes() == b"model" and not (tmp_path / "made").exists()
    assert stat.S_IMODE((tmp_path / "net.om").stat().st_mode) == 0o640
    assert about(tmp_path / "net.om").is_current(MADE_BY)
    assert about(tmp_path / "net.om").notes == {"evaluation": {"img_size": 224}}


def test_a_part_is_what_its_checksum_says(tmp_path: Path) -> None:
    with folder_run(tmp_path, ["a"]) as writer:
        part = writer.part("result/a", np.arange(4, dtype="<f4"))
        assert part == Part(
            "result/a", part.path, 16, files.checksum(np.arange(4, dtype="<f4").tobytes())
        )
        (piece,) = writer.publish([Draft("a", [], [part])])
    assert piece.files == [made(tmp_path, "result/a")] and isinstance(piece.files[0], Made)
