"""The log of a run has all that was printed; for who looks on nothing else changes."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, List

from common.core import run_log
from common.core.cli import Refusal
from common.core.run_log import Screen

import pytest
from conftest import ROOT
from test_progress import Terminal

# A program with a log, as pipeline.py begins and ends one; it runs the words after the log's path.
PROGRAM = """
import os, subprocess, sys
from common.core import cli, run_log
def main():
    log = run_log.start(sys.argv[1], "the command")
    cli.AT_END.append(log.end)
    print("begun", flush=True)
    status = subprocess.call(sys.argv[2:])
    if status:
        raise cli.Refusal(f"the child ended with {status}")
cli.start("program")
cli.run(main)
"""
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(ROOT / "scripts"), TERM="xterm")


def command(log: Path, *words: str) -> List[str]:
    return [sys.executable, "-c", PROGRAM, str(log), *words]


def start(log: Path, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command(log, *words), env=ENVIRONMENT, **options)


def run(log: Path, *words: str, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        command(log, *words),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        **{"stderr": subprocess.PIPE, **options},
    )


def logged(log: Path) -> List[str]:
    """The lines of each run in a log, without the first and the last ones, which have times."""
    lines = log.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("====")]


# ---- what stands on the screen -------------------------------------------------------------------


@pytest.mark.parametrize(
    "printed, lines",
    (
        (b"a\nb", "a\nb\n"),
        (b"bar 10 %\rbar 20 %\r        \ra line\n", "a line\n"),
        (b"abc\rX\n", "Xbc\n"),
        (b"\x1b[31mred\x1b[0m and \x1b[2Kplain\n", "red and plain\n"),
        ("größer: 10 µs\n".encode(), "größer: 10 µs\n"),
        (b"not \xff UTF-8\n", "not \\xff UTF-8\n"),
        (b"bar 99 %\r        ", ""),
    ),
)
def test_a_screen_keeps_what_is_left_of_each_line(printed: bytes, lines: str) -> None:
    whole = Screen()
    assert whole.take(printed) + whole.take(b"", final=True) == lines
    single = Screen()
    assert "".join(single.take(bytes([byte])) for byte in printed) + single.take(b"", True) == lines


def test_a_line_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "LONGEST", 5)
    screen = Screen()
    lines = "".join(screen.take(b"abc") for _ in range(4)) + screen.take(b"", final=True)
    assert lines.replace("\n", "") == 4 * "abc" and lines.count("\n") == 2


# ---- programs ------------------------------------------------------------------------------------

CHILD = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"


def test_both_streams_and_the_last_sentence_are_logged_and_printed_as_before(
    tmp_path: Path,
) -> None:
    log = tmp_path / "a log.txt"
    done = run(log, sys.executable, "-c", CHILD)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        b"begun\nout\n",
        b"err\nprogram: the child ended with 3\n",
    )
    assert sorted(logged(log)) == ["begun", "err", "out", "program: the child ended with 3"]
    text = log.read_text()
    assert re.match(r"==== \d{4}-\d\d-\d\d [\d:]{8} program [\d.]+, process \d+, in .*: the", text)
    assert "\n==== ended with status 1 after 0 s\n" in text
    assert stat.S_IMODE(log.stat().st_mode) & 0o027 == 0


def test_one_stream_keeps_its_order_and_runs_are_appended(tmp_path: Path) -> None:
    both = (
        "import sys\nfor number in range(40):\n"
        "    print(number, file=(sys.stdout, sys.stderr)[number % 2], flush=True)"
    )
    for _ in range(2):
        done = run(tmp_path / "log", sys.executable, "-c", both, stderr=subprocess.STDOUT)
        assert done.stdout.split() == [b"begun", *(b"%d" % number for number in range(40))]
    assert logged(tmp_path / "log") == 2 * ["begun", *map(str, range(40))]
    assert (tmp_path / "log").read_text().count("the command\n") == 2


BAR = """
import time
from common.core import progress
progress.PATIENCE = 0.0
with progress.Bar("measuring", 40, "runs") as bar:
    for number in range(40):
        bar.advance()
        if number == 20:
            bar.say("half of it")
        time.sleep(0.02)
"""


def test_on_a_terminal_bars_are_drawn_and_the_log_has_none(tmp_path: Path) -> None:
    screen = Terminal(columns=90)
    child = start(
        tmp_path / "log", sys.executable, "-c", BAR, stdout=screen.stream, stderr=screen.stream
    )
    assert child.wait() == 0
    drawn = re.findall(r"\r(measuring: +\d+ %\|.*?\[.*?\])", screen.output())
    assert len(drawn) > 3 and "40 runs" in drawn[-1] and {len(bar) for bar in drawn} <= {89, 90}
    assert [line for line in screen.lines() if line] == ["begun", "half of it"]
    assert logged(tmp_path / "log") == ["begun", "half of it"]
    screen.close()


@pytest.mark.parametrize("number, status", ((signal.SIGINT, 130), (signal.SIGTERM, 143)))
def test_a_signal_ends_the_run_as_before_and_is_in_the_log(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    child = start(tmp_path / "log", "sleep", "60", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"begun\n"
    time.sleep(0.1)
    child.send_signal(number)
    child.communicate(timeout=30)
    assert child.returncode == status
    assert f"==== ended with status {status} after" in (tmp_path / "log").read_text()


def test_a_killed_run_leaves_what_it_printed(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "sleep", "0.4", stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"begun\n"
    child.kill()
    child.wait()
    assert child.stdout.read() == b"", "the copier ends when the last program has"
    assert logged(tmp_path / "log") == ["begun"]


def test_a_program_that_outlives_the_run_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "sleep 300 & echo $!"
    with open(str(tmp_path / "out"), "wb") as out:
        assert start(tmp_path / "log", "sh", "-c", words, stdout=out).wait() == 0
    orphan = int((tmp_path / "out").read_text().split()[1])
    os.kill(orphan, signal.SIGKILL)  # it is still there: nobody waited for its end
    assert logged(tmp_path / "log")[0] == "begun"


def test_a_reader_that_goes_ends_the_program(tmp_path: Path) -> None:
    child = start(tmp_path / "log", "yes", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"begun\n"
    child.stdout.close()
    assert child.wait(timeout=30) == 1 and child.stderr is not None
    assert b"the child ended with" in child.stderr.read()


# ---- the file ------------------------------------------------------------------------------------


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("my words\n")
    log = tmp_path / "log"
    log.symlink_to(mine)
    with pytest.raises(Refusal) as refused:
        run_log.open_file(str(log))
    assert "is a link or not a regular file" in refused.value.sentence
    log.unlink()
    os.mkfifo(str(log))
    with pytest.raises(Refusal):
        run_log.open_file(str(log))
    log.unlink()
    os.link(str(mine), str(log))
    with pytest.raises(Refusal) as refused:
        run_log.open_file(str(log))
    assert "is not a log of this program" in refused.value.sentence
    assert mine.read_text() == "my words\n"


def test_a_log_that_has_a_second_name_is_replaced(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("==== a log\n")
    os.link(str(mine), str(tmp_path / "log"))
    file = run_log.open_file(str(tmp_path / "log"))
    os.write(file, b"a new line\n")
    os.close(file)
    assert mine.read_text() == "==== a log\n"
    assert (tmp_path / "log").read_text() == "==== a log\na new line\n"


def test_the_oldest_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "LARGEST", 50)
    log = tmp_path / "log"
    log.write_text("==== one\n" + 5 * "a line\n" + "==== two\nits line\n")
    os.close(run_log.open_file(str(log)))
    assert log.read_text() == "==== two\nits line\n"


def test_a_run_that_prints_without_end_does_not_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "RUN_LARGEST", 25)
    ours, theirs = os.pipe()
    with open(str(tmp_path / "log"), "wb") as log, open(os.devnull, "wb") as out:
        channel = run_log.Channel(ours, out.fileno(), Screen(), False)
        os.write(theirs, b"0123456789\n")
        copier = run_log.Copier([channel], log.fileno())
        for _ in range(4):
            copier.copy(channel)
            os.write(theirs, b"0123456789\n")
    os.close(ours)
    os.close(theirs)
    expected = "0123456789\n0123456789\n(the rest of this run is not in this file)\n"
    assert (tmp_path / "log").read_text() == expected
