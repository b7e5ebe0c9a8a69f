"""An append-only file of JSON rows: what a run has finished so far, told truly after a kill and after a power loss.

The first row is a header. A row `{"synced": N}` says that all that the first N rows after the header speak of was on
the disk for certain. After the machine started anew only those can be trusted: what the disk had not got may be lost,
or empty, so whoever wants to use the other rows compares the content of the files with what they say of it.
Standard library only.
"""
import contextlib
import json
import os
import subprocess
import time
from typing import Any, Dict, Iterable, List, NamedTuple, Optional

from common.files import append, write_whole

SYNC_EVERY = 1.0  # seconds; what a power loss can cost, and little is left to wait for at the end

Row = Dict[str, Any]


class Told(NamedTuple):
    """What a journal tells."""
    header: Row  # {} if there is no journal
    rows: List[Row]
    synced: int  # the disk had what the first so many rows speak of
    trusted: int  # what the first so many rows speak of need not be compared with its content


def boot_id() -> str:
    """A text that changes whenever the machine starts anew; '' where there is none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def encode(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")  # names that are not UTF-8 survive as \udcXX


def read(path: str) -> Told:
    """What the journal says; a line that is torn, as the last one of a killed run may be, is passed over."""
    parsed: List[Any] = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open(
            path, encoding="ascii", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                parsed.append(json.loads(line))
    if not parsed or not isinstance(parsed[0], dict) or "boot_id" not in parsed[0]:
        return Told({}, [], 0, 0)
    header, entries = parsed[0], [row for row in parsed[1:] if isinstance(row, dict)]
    rows = [row for row in entries if "synced" not in row]
    synced = max((row["synced"] for row in entries if isinstance(row.get("synced"), int)), default=0)
    synced = max(0, min(synced, len(rows)))
    return Told(header, rows, synced, len(rows) if header.pop("boot_id") == boot_id() else synced)


class Journal:
    """A journal that is being written; it begins with the rows of an earlier run that still hold, synced ones first."""

    def __init__(self, path: str, header: Row, rows: List[Row], synced: int) -> None:
        self.folder = os.path.dirname(os.path.abspath(path))
        first = [dict(header, boot_id=boot_id()), *rows[:synced], {"synced": synced}, *rows[synced:]]
        write_whole(path, encode(first), durable=True)
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.rows, self.covered, self.synced = len(rows), synced, synced
        self.syncing: Optional["subprocess.Popen[bytes]"] = None
        self.last_sync = time.monotonic()

    def add(self, rows: List[Row]) -> None:
        """Append rows; now and then the disk is told, in the background, to keep what they speak of."""
        append(self.file, encode(rows))
        self.rows += len(rows)
        if self.syncing is None and time.monotonic() - self.last_sync > SYNC_EVERY:
            self.start_sync()
        elif self.syncing is not None and self.syncing.poll() is not None:
            self.end_sync()

    def start_sync(self) -> None:
        with contextlib.suppress(OSError):  # a system without sync: rows stay unsynced, which is true
            self.syncing = subprocess.Popen(["sync", "-f", self.folder], stdin=subprocess.DEVNULL,
                                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.covered, self.last_sync = self.rows, time.monotonic()

    def end_sync(self) -> None:
        if self.syncing is not None and self.syncing.wait() == 0:
            append(self.file, encode([{"synced": self.covered}]))
            self.synced = self.covered
        self.syncing, self.last_sync = None, time.monotonic()

    def finish(self) -> None:
        """All is done: wait until the disk has it."""
        self.end_sync()
        if self.synced < self.rows:
            self.start_sync()
            self.end_sync()
            os.fsync(self.file)

    def close(self) -> None:
        """End, finished or not."""
        if self.syncing is not None:
            self.syncing.kill()  # not waited for: while the disk is busy no signal ends it
            self.syncing = None
        os.close(self.file)
