"""Progress: on a terminal a bar that goes again, elsewhere nothing, or a plain line at times."""

import contextlib
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from typing import Any, Iterator, List
from unittest import mock

from common.core import progress

import pytest
from conftest import ROOT


class Terminal:
    """A pseudo-terminal, and what a person sees on it."""

    def __init__(self, columns: int = 100, encoding: str = "utf-8") -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns)
        self.stream = open(theirs, "w", encoding=encoding)
        os.set_blocking(self.ours, False)
        self.received = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def output(self) -> str:
        """All that was written until now."""
        self.stream.flush()
        with contextlib.suppress(BlockingIOError):
            while True:
                self.received += os.read(self.ours, 10000)
        return self.received.decode(self.stream.encoding)

    def lines(self) -> List[str]:
        """What stands on the screen, each line without blanks at its end."""
        screen = []
        for written in self.output().split("\n"):
            line = ""
            for part in written.split("\r"):  # each overwrites the one before
                line = part + line[len(part) :]
            screen.append(line.rstrip())
        return screen

    def close(self) -> None:
        self.stream.close()
        os.close(self.ours)


@contextlib.contextmanager
def terminal(columns: int = 100, encoding: str = "utf-8") -> Iterator[Terminal]:
    """The terminal that this process has as stderr and stdout meanwhile."""
    made = Terminal(columns, encoding)
    with contextlib.redirect_stderr(made.stream), contextlib.redirect_stdout(
        made.stream
    ), mock.patch.dict(os.environ, TERM="xterm"):
        yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """The time that the module and tqdm read: [seconds]."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
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


@contextlib.contextmanager
def inference(clock: List[float], seconds: int, **options: Any) -> Iterator[progress.Bar]:
    """The bar of a step of 1,000 images after so many seconds: 100 were there, 10 a second came."""
    with progress.Bar("inference", 1000, "images", 100, **options) as bar:
        for _ in range(seconds):
            clock[0] += 1
            bar.advance(10)
        yield bar


def test_on_a_terminal_it_says_how_far_and_how_long_and_leaves_nothing(clock: List[float]) -> None:
    with terminal() as screen:
        with inference(clock, 40):
            (line,) = screen.lines()
            match = re.fullmatch(
                r"inference:  50 %\|(█+)[▉-▏]?( +)\| 500 of 1,000 images "
                r"\[00:40<00:50, 10\.00 images/s\]",
                line,
            )
            assert match and abs(len(match[1]) - len(match[2])) <= 1, line
        assert screen.lines() == [""]


def test_what_takes_less_than_two_seconds_draws_nothing(clock: List[float]) -> None:
    with terminal() as screen:
        with inference(clock, 1):
            pass
        assert screen.output() == ""
        with inference(clock, 2):
            assert "120 of 1,000 images" in screen.output()


def test_a_bar_is_as_wide_as_the_terminal_is_now(clock: List[float]) -> None:
    with terminal(80) as screen:
        with inference(clock, 5) as bar:
            (line,) = screen.lines()
            assert len(line) in (79, 80), "tqdm's versions differ in the last column"
            screen.resize(130)
            clock[0] += 1
            bar.advance()
            (line,) = screen.lines()
            assert len(line) in (129, 130)


def test_a_line_without_a_bar_is_cut_at_the_terminals_width(clock: List[float]) -> None:
    with terminal(40) as screen, progress.Bar("a package " * 10, 0, "MB") as bar:
        clock[0] += 3
        bar.advance()
        (line,) = screen.lines()
        assert line in (("a package " * 10)[:39], ("a package " * 10)[:40].rstrip())


def test_a_terminal_without_unicode_gets_ascii(clock: List[float]) -> None:
    with terminal(encoding="ascii") as screen, inference(clock, 40):
        assert re.fullmatch(r"inference:  50 %\|#+\d? +\| 500 of .*", screen.lines()[0])


def test_a_dumb_terminal_gets_no_bar(clock: List[float]) -> None:
    with terminal() as screen, mock.patch.dict(os.environ, TERM="dumb"):
        with inference(clock, 40):
            pass
        assert screen.output() == ""


def test_a_log_file_has_nothing_of_it_or_plain_lines(
    clock: List[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with inference(clock, 50):
        assert stream.getvalue() == ""
    with inference(clock, 45, lines_every=20):
        assert stream.getvalue().splitlines() == [
            "inference: 300 of 1,000 images, 10/s, about 1:10 min left",
            "inference: 500 of 1,000 images, 10/s, about 50 s left",
        ]


def test_without_a_total_it_says_how_much_and_since_when(
    clock: List[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.Bar("torch", 0, "MB", lines_every=10) as bar:
        clock[0] += 10
        bar.reach(35, "numpy")
    with progress.Bar("fitting", 0, "", lines_every=10) as bar:
        clock[0] += 10
        bar.advance(0)
    assert stream.getvalue() == "numpy: 35 MB, 3.5/s, 10 s so far\nfitting: 10 s so far\n"


def test_without_a_total_a_terminal_shows_no_share_of_it(clock: List[float]) -> None:
    with terminal() as screen:
        with progress.Bar("torch", 0, "MB") as bar:
            clock[0] += 10
            bar.reach(35, "numpy")
            assert screen.lines() == ["numpy: 35 MB [00:10,  3.50 MB/s]"]
        with progress.Bar("fitting", 0, "") as bar:
            clock[0] += 70
            bar.advance(0)
            assert screen.lines() == ["fitting [01:10]"]
        assert screen.lines() == [""]


def test_another_programs_work_is_counted_as_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TICK", 0.01)
    monkeypatch.setattr(progress, "PATIENCE", 0)
    threads = threading.active_count()
    made = tmp_path / "made"
    with terminal() as screen:
        with progress.watched("card", 2, "images", lambda: len(os.listdir(str(made)))):
            time.sleep(0.05)  # the folder is not there yet
            made.mkdir()
            (made / "a").touch()
            end = time.monotonic() + 5
            while "1 of 2 images" not in screen.output() and time.monotonic() < end:
                time.sleep(0.01)
            assert "1 of 2 images" in screen.lines()[0]
        assert screen.lines() == [""]
    assert threading.active_count() == threads


def test_a_line_that_is_printed_meanwhile_stands_alone(clock: List[float]) -> None:
    with terminal() as screen:
        with progress.Bar("compiling", 2, "models") as bar:
            clock[0] += 3
            bar.advance()
            assert "1 of 2 models" in screen.lines()[0]
            bar.say("one.om: compiled")
            assert screen.lines() == ["one.om: compiled", ""]
            clock[0] += 3
            bar.advance(0)
            assert "1 of 2 models" in screen.lines()[1]
        assert screen.lines() == ["one.om: compiled", ""]


SHOWS_AT_ONCE = """
import sys
from common.core import progress
progress.PATIENCE = 0.0
with progress.Bar("set-up", 0, "MB downloaded") as bar:
    bar.advance(5)
print("tqdm" in sys.modules)
"""


def has_imported_tqdm(stderr: Any, *options: str) -> str:
    """Whether a program that shows progress at once has imported tqdm: what it prints of that."""
    done = subprocess.run(
        [sys.executable, *options, "-c", SHOWS_AT_ONCE],
        stdout=subprocess.PIPE,
        stderr=stderr,
        check=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT / "scripts"), TERM="xterm"),
    )
    return done.stdout.decode().strip()


def test_before_there_are_packages_a_plain_line_does() -> None:
    """-S leaves out the installed packages, as in a Python that set-up has not filled yet."""
    with terminal() as screen:
        assert has_imported_tqdm(screen.stream, "-S") == "False"
        assert re.fullmatch(r"set-up: 5 MB downloaded, [\d,.]+/s, 0 s so far", screen.lines()[0])


def test_tqdm_is_imported_only_to_draw() -> None:
    with terminal() as screen:
        assert has_imported_tqdm(screen.stream) == "True"
    assert has_imported_tqdm(subprocess.DEVNULL) == "False"


@pytest.mark.parametrize(
    "seconds, text", ((0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (7199, "1:59 h"))
)
def test_durations(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
