"""Progress: on a terminal one line that goes again, elsewhere nothing, or a plain line now and then."""
import io
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, List

from common import progress

import pytest


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """The time that the room reads: [seconds]."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    monkeypatch.setenv("TERM", "xterm")
    return now


def test_what_is_done_is_counted_whoever_looks_meanwhile() -> None:
    bar = progress.Bar("measuring", 10, "runs")
    with bar.lock:  # a thread that looks has it
        counting = threading.Thread(target=bar.advance)
        counting.start()
        counting.join(0.2)
        bar.reach(5)
    counting.join()
    assert bar.done == 6


def count(stream: io.StringIO, clock: List[float], monkeypatch: pytest.MonkeyPatch, seconds: int, **options: Any
          ) -> str:
    """What a step of 1,000 images, 100 of them there already and 10 a second, writes until it was at it so long."""
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Bar("inference", 1000, "images", 100, **options) as bar:
        for _ in range(seconds):
            clock[0] += 1
            bar.advance(10)
    return stream.getvalue()


def test_on_a_terminal_it_says_how_far_and_how_long_and_leaves_nothing(
        clock: List[float], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = count(Terminal(), clock, monkeypatch, 40).split(progress.ERASE)
    assert len(shown) == 41, "nothing in the first second; erased at the end"
    assert shown[-2] == "inference: ██████░░░░░░  50 % 500 of 1,000 images, 10/s, about 50 s left"
    assert shown[0] == shown[-1] == "" and "\n" not in "".join(shown)


def test_what_is_quick_shows_nothing(clock: List[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(Terminal(), clock, monkeypatch, 1) == ""


def test_a_log_file_has_nothing_of_it_or_plain_lines(clock: List[float], monkeypatch: pytest.MonkeyPatch) -> None:
    assert count(io.StringIO(), clock, monkeypatch, 50) == ""
    assert count(io.StringIO(), clock, monkeypatch, 45, lines_every=20).splitlines() == [
        "inference: 300 of 1,000 images, 10/s, about 1:10 min left",
        "inference: 500 of 1,000 images, 10/s, about 50 s left"]


def test_a_line_is_never_wider_than_the_terminal(clock: List[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((30, 24)))
    shown = count(Terminal(), clock, monkeypatch, 5).split(progress.ERASE)
    assert max(map(len, shown)) == 29


def test_without_a_total_it_says_how_much_and_since_when(clock: List[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Bar("torch", 0, "MB", lines_every=10) as bar:
        clock[0] += 10
        bar.reach(35, "numpy")
    with progress.Bar("fitting", 0, "", lines_every=10) as bar:
        clock[0] += 10
        bar.advance(0)
    assert stream.getvalue() == "numpy: 35 MB, 3.5/s, 10 s so far\nfitting: 10 s so far\n"


def test_another_programs_work_is_counted_as_it_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.setattr(progress, "PATIENCE", 0)
    stream, threads = Terminal(), threading.active_count()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress.watched("card", 2, "images", lambda: len(os.listdir(str(tmp_path / "made")))):
        time.sleep(0.05)  # the folder is not there yet
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").touch()
        end = time.monotonic() + 5
        while "1 of 2 images" not in stream.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    assert "1 of 2 images" in stream.getvalue() and stream.getvalue().endswith(progress.ERASE)
    assert threading.active_count() == threads


def test_a_line_that_is_printed_meanwhile_stands_alone(clock: List[float], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    with progress.Bar("compiling", 2, "models") as bar:
        clock[0] += 3
        bar.advance()
        bar.say("one.om: compiled")
    assert stream.getvalue().endswith(progress.ERASE + "one.om: compiled\n")


@pytest.mark.parametrize("seconds, text", ((0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (7199, "1:59 h")))
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
