"""The log of a work folder: everything that a program and its children print, also in a file.

    log = run_log.start("work/pipeline.log", "bash scripts/pipeline.sh --data …")
    ...                          # print; run other programs
    log.end(0)

From start() on, stdout and stderr of this process lead to a process of its own, the copier. It
passes everything on at once, and writes finished lines into the file. Where an output is a
terminal, the programs see a terminal as well (a pseudo-terminal of the same size), so that they
draw their progress. The file gets what stands on the screen in the end: no bars, no colours.
If stdout and stderr are the same, they stay one stream, in their order.

The copier ignores the signals that end a run. It ends when all programs have ended that print to
it. Standard library only.
"""

import codecs
import contextlib
import errno
import fcntl
import os
import pty
import re
import selectors
import signal
import stat
import struct
import sys
import termios
import time
import tty
from typing import Any, Dict, Iterable, List, NamedTuple, Tuple

from common.core import cli, files
from common.core.cli import Refusal, shown

MARK = b"==== "  # each run's first line begins so, and the file too
LARGEST = 5 << 20  # bytes of earlier runs that a new run keeps
RUN_LARGEST = 100 << 20  # bytes of one run; what is more is only printed
CHUNK = 1 << 16  # bytes that the copier reads at once
PATIENCE = 2.0  # s that end() waits for programs that outlive the run
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
LONGEST = 100_000  # characters of a line; a longer one becomes several
ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")  # colours and movements
BEGUN_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*)?\Z")


# ---- what stands on the screen -------------------------------------------------------------------


class Screen:
    """The lines that are left when everything was printed: "\\r" goes back to the line's start."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self.line = ""
        self.column = 0
        self.rest = ""  # the beginning of an escape sequence

    def take(self, data: bytes, final: bool = False) -> str:
        """The lines that these bytes finish, with their newlines; at the end also the last one."""
        finished: List[str] = []
        text = ESCAPES.sub("", self.rest + self.decoder.decode(data, final))
        begun = BEGUN_ESCAPE.search(text)
        self.rest = begun.group() if begun else ""
        text = text[: len(text) - len(self.rest)]
        for part in re.split(r"([\r\n])", text):
            if part == "\n" or len(self.line) > LONGEST:
                finished.append(self.line.rstrip() + "\n")
                self.line, self.column = "", 0
            if part == "\r":
                self.column = 0
            elif part != "\n":
                end = self.column + len(part)
                self.line = self.line[: self.column] + part + self.line[end:]
                self.column = end
        if final and self.line.strip():
            finished.append(self.line.rstrip() + "\n")
        return "".join(finished)


# ---- the copier ----------------------------------------------------------------------------------


class Channel(NamedTuple):
    """A stream: what the programs print comes from `source` and goes to `target`."""

    source: int
    target: int
    screen: Screen
    is_terminal: bool


class Copier:
    """The process that passes on what is printed."""

    def __init__(self, channels: List[Channel], log: int) -> None:
        self.log, self.written = log, 0
        self.deaf: Dict[int, bool] = {}  # targets to which nothing can be written any more
        self.selector = selectors.DefaultSelector()
        for channel in channels:
            self.selector.register(channel.source, selectors.EVENT_READ, channel)

    def run(self) -> None:
        """Copy until nobody is left who prints."""
        while self.selector.get_map():
            for key, _ in self.selector.select():
                self.copy(key.data)

    def copy(self, channel: Channel) -> None:
        """Copy what can be read of a stream."""
        try:
            data = os.read(channel.source, CHUNK)
        except OSError:  # a pseudo-terminal that nobody has open gives EIO
            data = b""
        if data and not self.pass_on(channel, data):
            data = b""  # whoever prints gets a broken pipe, as without this process
        self.write(channel.screen.take(data, final=not data))
        if not data:
            self.selector.unregister(channel.source)
            os.close(channel.source)

    def pass_on(self, channel: Channel, data: bytes) -> bool:
        """Print; returns whether anybody will read more. A terminal that is gone is not needed."""
        if self.deaf.get(channel.target):
            return True
        try:
            files.append(channel.target, data)
        except OSError as error:
            if error.errno == errno.EPIPE:
                return False
            self.deaf[channel.target] = True
        return True

    def write(self, text: str) -> None:
        """Write lines into the file, unless this run's part is too large or the disk is full."""
        data = text.encode("utf-8", "backslashreplace")
        if not data or self.written > RUN_LARGEST:
            return
        self.written += len(data)
        if self.written > RUN_LARGEST:
            data = b"(the rest of this run is not in this file)\n"
        try:
            files.append(self.log, data)
        except OSError:
            self.written = RUN_LARGEST + 1


def size_of(terminal: int) -> bytes:
    """The size of a terminal, as the system has it."""
    return fcntl.ioctl(terminal, termios.TIOCGWINSZ, struct.pack("4H", 0, 0, 0, 0))


def give_size(channel: Channel) -> None:
    """Give the programs' pseudo-terminal the size of the terminal that is seen."""
    if channel.is_terminal:
        try:
            fcntl.ioctl(channel.source, termios.TIOCSWINSZ, size_of(channel.target))
        except OSError:  # the terminal has gone
            return


def open_channel(target: int) -> Tuple[Channel, int]:
    """A channel to an open file, and where the programs print to."""
    is_terminal = os.isatty(target)
    source, inlet = pty.openpty() if is_terminal else os.pipe()
    if is_terminal:
        tty.setraw(inlet)  # nothing is echoed, and "\n" stays "\n": the real one translates it
    channel = Channel(source, os.dup(target), Screen(), is_terminal)
    give_size(channel)
    return channel, inlet


def copy_all(channels: List[Channel], log: int) -> None:
    """The copier's process."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)

    def resize(number: int, frame: Any) -> None:
        for channel in channels:
            give_size(channel)

    signal.signal(signal.SIGWINCH, resize)
    status = 1
    try:
        Copier(channels, log).run()
        status = 0
    finally:
        os._exit(status)  # nothing of the process that it was made from may run


# ---- the file ------------------------------------------------------------------------------------


def open_file(path: str) -> int:
    """Open the log to append to it, and make it if it does not exist.

    It is never more than LARGEST bytes then: the oldest runs go.
    Raises: Refusal for a link, for what is not a regular file, and for a file of somebody else.
    """
    try:
        if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
            raise Refusal(
                f"{shown(path)} is a link or not a regular file, and the log of this run goes "
                "there; remove it, or name another folder"
            )
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(path, flags, files.MODE)
        status = os.fstat(log)
        if status.st_size and os.pread(log, len(MARK), 0) != MARK:
            raise Refusal(
                f"{shown(path)} exists and is not a log of this program; move it away, or name "
                "another folder"
            )
        # A file with a second name is replaced, so that nothing is written through that name.
        if status.st_size > LARGEST or status.st_nlink > 1:
            kept = os.pread(log, LARGEST, max(0, status.st_size - LARGEST))
            os.close(log)
            files.write_whole(path, kept[max(0, (b"\n" + kept).find(b"\n" + MARK)) :])
            return os.open(path, flags, files.MODE)
        return log
    except OSError as error:
        raise Refusal(
            f"the log {shown(path)} cannot be written: {cli.why(error)}; fix this, or name another "
            "folder"
        ) from None


def first_line(log: int, command: str) -> bytes:
    """The line with which a run begins in the log."""
    size = os.fstat(log).st_size
    is_torn = size and os.pread(log, 1, size - 1) != b"\n"  # by a killed run
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    text = (
        f"{when} {cli.program()} {cli.VERSION}, process {os.getpid()}, in {shown(os.getcwd())}: "
        f"{command}"
    )
    line = MARK + " ".join(text.split()).encode("utf-8", "backslashreplace") + b"\n"
    return b"\n" + line if is_torn else line


class Log:
    """What start() began."""

    def __init__(self, file: int, copier: int, targets: Dict[int, int]) -> None:
        self.file, self.copier = file, copier
        self.targets = targets  # {1 or 2: where it led before}
        self.began = time.monotonic()

    def end(self, status: int) -> None:
        """Let stdout and stderr lead where they led before, and finish the log.

        status: the exit status of this process.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # from here on nothing is lost
        for stream, target in ((sys.stdout, 1), (sys.stderr, 2)):
            try:
                stream.flush()
            except OSError:  # nobody reads it
                os.dup2(os.open(os.devnull, os.O_WRONLY), target)
        for number, target in self.targets.items():
            os.dup2(target, number)
        deadline = time.monotonic() + PATIENCE
        while os.waitpid(self.copier, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.005)
        seconds = time.monotonic() - self.began
        line = MARK + f"ended with status {status} after {seconds:.0f} s\n\n".encode("ascii")
        with contextlib.suppress(OSError):  # a full disk
            files.append(self.file, line)


def start(path: str, command: str, not_for_copier: Iterable[int] = ()) -> Log:
    """From now on write all that this process and its children print into a file as well.

    command: what its user typed. not_for_copier: open files that the copier must not hold.
    Raises: Refusal if the file cannot be used.
    """
    file = open_file(path)
    files.append(file, first_line(file, command))
    sys.stdout.flush()
    sys.stderr.flush()
    channels, inlets = [], {}
    channel, inlets[1] = open_channel(1)
    channels.append(channel)
    targets = {1: channel.target, 2: channel.target}
    if os.path.sameopenfile(1, 2):
        inlets[2] = inlets[1]
    else:
        channel, inlets[2] = open_channel(2)
        channels.append(channel)
        targets[2] = channel.target
    copier = os.fork()
    if not copier:
        for number in {*inlets.values(), *not_for_copier}:
            os.close(number)
        copy_all(channels, file)
    for number, inlet in inlets.items():
        os.dup2(inlet, number)
    for opened in {*inlets.values(), *(channel.source for channel in channels)}:
        os.close(opened)
    return Log(file, copier, targets)
