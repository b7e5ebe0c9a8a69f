"""The attacks themselves: a short run of each class finds nothing, and they would see a fault.

The long run is test/attack.py.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from attacks import trial
from attacks.trial import Ended
from conftest import ROOT

CLASSES = "system flips strangers tools meanwhile resources inputs untried".split()
TRIES = 6  # of each class


@pytest.mark.slow
def test_a_short_run_of_each_class_finds_nothing(tmp_path: Path) -> None:
    """It is the same in every run of the suite: the seed decides."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "test" / "attack.py"),
            "--seed",
            "0",
            "--tries",
            str(TRIES * len(CLASSES)),
        ],
        env=dict(os.environ, TMPDIR=str(tmp_path)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    assert done.returncode == 0, done.stdout
    table = map(str.split, re.findall(r"^ +\w+  .*$", done.stdout, re.MULTILINE))
    rows = {name: figures for name, *figures in table}
    assert set(CLASSES) <= set(rows), done.stdout
    for name in CLASSES:
        tries, survived, sentence, *faults = map(int, rows[name])
        assert 0 < tries == survived + sentence and faults == [0] * 4, done.stdout
    assert not list(tmp_path.iterdir()), "it clears away what it made"


@pytest.mark.parametrize(
    "ended, kind",
    (
        (Ended(0, "", ""), trial.SURVIVED),
        (Ended(1, "", "tool.py: a is not b; take b"), trial.SENTENCE),
        (Ended(1, "", "tool.py: a defect of this program, version 1"), trial.TRACEBACK),
        (Ended(1, "", "Traceback (most recent call last):"), trial.TRACEBACK),
        (Ended(1, "something", ""), trial.TRACEBACK),
        (Ended(70, "", "an exit status that nothing has"), trial.TRACEBACK),
        (Ended(-11, "", ""), trial.TRACEBACK),
        (Ended(0, "", "", hung=True), trial.HANG),
    ),
)
def test_an_end_is_judged(ended: Ended, kind: str) -> None:
    assert trial.judge_end(ended).kind == kind


def test_other_bytes_after_a_good_end_are_a_wrong_figure() -> None:
    expected = {"a": "1", "b": "2"}
    good, bad = Ended(0, "", ""), Ended(1, "", "tool.py: no; yes")
    assert trial.judge(good, dict(expected), expected).kind == trial.SURVIVED
    for made in ({"a": "1"}, {"a": "1", "b": "3"}, {"a": "1", "b": "2", "c": "4"}):
        assert trial.judge(good, made, expected).kind == trial.WRONG
        assert trial.judge(bad, made, expected).kind == trial.SENTENCE


def test_what_a_step_leaves_running_and_what_never_ends_is_seen_and_ended(tmp_path: Path) -> None:
    def leave() -> int:
        subprocess.Popen(["sleep", "600"])
        return 0

    def stay() -> int:
        while True:
            os.sched_yield()

    assert trial.fork(lambda: 0, tmp_path) == Ended(0, "", "")
    for work in (leave, stay):
        assert trial.fork(work, tmp_path, patience=1).hung


def test_damage_keeps_size_and_time_and_is_the_same_for_a_seed(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", []
    for _ in range(2):
        path.write_bytes(bytes(100))
        before = path.stat()
        said = trial.flip_bit(path, random.Random("seed"))
        contents.append((said, path.read_bytes()))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (100, before.st_mtime_ns)
    assert contents[0] == contents[1]
    assert sum(bin(byte).count("1") for byte in contents[0][1]) == 1


def test_a_change_outside_the_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("a")
    before = trial.snapshot(tmp_path)
    assert trial.snapshot(tmp_path) == before
    (tmp_path / "letter").chmod(0o600)
    assert trial.snapshot(tmp_path) != before
