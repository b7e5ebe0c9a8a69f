"""Folders and files that cannot be used: what is said, and when."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Tuple

from common.ascend import host
from common.core import files
from common.core.cli import Refusal

import pytest
from conftest import ROOT, run_pipeline


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError) as caught:
        files.write_whole(str(tmp_path / "acc.json"), b"{}")
    assert caught.value.filename == str(tmp_path / "acc.json") and not list(tmp_path.iterdir())


def test_links_that_lead_round_are_not_taken_for_a_refused_link(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Refusal, match="Too many levels"):
        files.read_regular(str(tmp_path / "loop"))
    with pytest.raises(Refusal, match="it is a symbolic link"):
        files.read_regular(str(tmp_path / "loop"), follow_links=False)


@pytest.mark.parametrize(
    "name, said",
    (
        ("file", "cannot be made or written: {}/file is not a folder"),
        ("file/below", "cannot be made or written: {}/file is not a folder"),
        ("nowhere", "is a symbolic link to nowhere"),
        (os.fsdecode(b"\xff"), "has a name that is not UTF-8"),
    ),
)
def test_a_work_folder_that_cannot_be_is_seen_by_check_and_before_anything_starts(
    name: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    table = run_pipeline("--workdir", str(tmp_path / name), "--check")
    assert table.returncode == 1 and said.format(tmp_path) in table.stdout, (
        table.stdout + table.stderr
    )
    done = run_pipeline("--workdir", str(tmp_path / name))
    assert (
        done.returncode == 1
        and f"{said.format(tmp_path)}; name another folder with --workdir" in done.stderr
    )
    assert sorted(os.listdir(str(tmp_path))) == ["file", "nowhere"]


def test_a_work_folder_among_the_images_is_refused_before_the_export(tmp_path: Path) -> None:
    (tmp_path / "val_union").mkdir()
    for name in ("val_union/a.png", "model_best.pth.tar"):
        (tmp_path / name).touch()
    (tmp_path / "val_label.txt").write_text("a.png 0")
    done = run_pipeline("--data", str(tmp_path), "--workdir", str(tmp_path / "val_union" / "work"))
    assert done.returncode == 1 and "val_union/work is inside" in done.stderr, done.stderr
    assert not (tmp_path / "val_union" / "work").exists()


@pytest.mark.parametrize(
    "words, said",
    (
        (("--labels", "/nowhere"), "labels: cannot read /nowhere"),
        (
            ("--class-map", "val_label.txt"),
            "--class-map is for images in class folders, and these images are not in class folders",
        ),
        (
            ("--class-map", "val_label.txt", "--data", "."),
            "--class-map is for images in class folders (SRC/CLASS/IMAGE)",
        ),
        (
            ("--class-map", "/nowhere", "--data", "."),
            "--class-map is for images in class folders (SRC/CLASS/IMAGE)",
        ),
    ),
)
def test_labels_that_cannot_serve_are_seen_before_anything_is_made(
    words: Tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "val_union").mkdir()
    for name in ("val_union/a.png", "model_best.pth.tar"):
        (tmp_path / name).touch()
    (tmp_path / "val_label.txt").write_text("a.png 0")
    monkeypatch.chdir(tmp_path)
    done = run_pipeline(*words)
    assert done.returncode == 1 and said in done.stderr and not (tmp_path / "work").exists(), (
        done.stderr
    )


@pytest.mark.parametrize("before, after", ((0o022, 0o027), (0, 0o027), (0o077, 0o077)))
def test_rights_are_only_taken_away(before: int, after: int) -> None:
    mask = os.umask(before)
    try:
        files.limit_rights()
        assert os.umask(0) == after
    finally:
        os.umask(mask)


def test_no_program_sets_a_umask_of_its_own() -> None:
    setting = [path for path in (ROOT / "scripts").rglob("*.py") if "os.umask(" in path.read_text()]
    assert [path.name for path in setting] == ["files.py"]


def test_the_pipeline_starts_where_python_does_not_look_beside_programs() -> None:
    done = run_pipeline("--help", env=dict(os.environ, PYTHONSAFEPATH="1"))
    assert done.returncode == 0 and "--workdir" in done.stdout, done.stderr


def test_a_log_that_is_a_link_takes_nothing_from_the_file_it_leads_to(tmp_path: Path) -> None:
    """Tools write their output into a new file in the place of what has its name."""
    letter = tmp_path / "letter"
    letter.write_text("somebody's")
    (tmp_path / "link.log").symlink_to(letter)
    os.link(str(letter), str(tmp_path / "same.log"))
    for name in ("link.log", "same.log", "new.log"):
        log = tmp_path / name
        assert host.run_tool(["sh", "-c", "echo said"], str(log)) == 0
        assert log.read_text() == "said\n" and not log.is_symlink()
    assert letter.read_text() == "somebody's" and letter.stat().st_nlink == 1
    assert sorted(os.listdir(str(tmp_path))) == ["letter", "link.log", "new.log", "same.log"]


def test_what_the_system_cannot_say_is_not_taken_for_missing(tmp_path: Path) -> None:
    """A name that is too long for the system is asked about in vain, as on a broken disk."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("gone")
    for name, there, is_file in (
        ("file", True, True),
        ("loop", True, False),
        ("nowhere", True, False),
        ("gone", False, False),
        ("file/below", False, False),
        ("", True, False),
    ):
        path = os.path.join(str(tmp_path), name)
        assert (files.is_there(path), files.is_file(path)) == (there, is_file), name
    for ask in (files.is_there, files.is_file):
        with pytest.raises(OSError, match="too long"):
            ask(str(tmp_path / ("x" * 300)))


def test_a_lock_that_outlives_its_process_names_the_child_that_holds_it(tmp_path: Path) -> None:
    """Like a step that goes on after its pipeline was killed."""
    code = (
        "import subprocess, sys; from common.core import files; "
        "held = files.hold(sys.argv[1]); sleep = ['sleep', '600']; "
        "print(subprocess.Popen(sleep, pass_fds=[held], stdout=2).pid)"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "scripts"))
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    child = int(subprocess.check_output(command, env=environment, stderr=subprocess.DEVNULL))
    try:
        with pytest.raises(Refusal, match=f"in use by another run, process {child}; wait for it"):
            files.hold(str(tmp_path / ".lock"))
    finally:
        os.kill(child, signal.SIGKILL)
