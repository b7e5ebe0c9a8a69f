"""How far a long piece of work is, and how long it will take: one line, redrawn on a terminal, from two seconds on.

    with progress.Bar("inference", len(paths), "images", kept, lines_every=10) as bar:
        for batch in batches:
            bar.advance(len(batch))

    with progress.watched("inference on the card", len(paths), "images", lambda: len(os.listdir(folder))):
        status = child.wait()

Where stderr is no terminal nothing is shown, so that nothing of it is in a log; or, where a step asks for that, a plain
line every `lines_every` seconds. Standard library only: the set-up runs before there is any package.
"""
import contextlib
import os
import shutil
import sys
import threading
import time
from types import TracebackType
from typing import Callable, Iterator, Optional, Type

PATIENCE = 2.0  # seconds before anything is shown: what takes less needs no bar
REDRAW = 0.1    # seconds between two pictures on a terminal
TICK = 0.5      # seconds between two looks of watched()
BLOCKS = 12     # characters of the bar itself
ERASE = "\r\x1b[K"  # back to the line's begin, and delete to its end


def on_terminal() -> bool:
    """Whether a line on stderr can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def duration(seconds: float) -> str:
    """A time in words that fit into a line: 42 s, 3:05 min, 2:07 h."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Bar:
    """Counts what is done of `total` units (0: nobody knows how many; no unit: only the time is told) and shows it.

    done: how many were finished before this run; lines_every: seconds between plain lines where stderr is no terminal,
    0 for none.
    """

    def __init__(self, what: str, total: float, unit: str, done: float = 0, lines_every: float = 0) -> None:
        self.what, self.total, self.unit, self.done, self.before = what, total, unit, done, done
        self.terminal, self.lines_every = on_terminal(), lines_every
        self.began = time.monotonic()
        self.next = self.began + (PATIENCE if self.terminal else lines_every or float("inf"))
        self.drawn, self.lock = False, threading.RLock()  # watched() looks from another thread

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self.erase()

    def advance(self, count: float = 1) -> None:
        """So many units more are done."""
        with self.lock:
            self.reach(self.done + count)

    def reach(self, done: float, what: str = "") -> None:
        """`done` units are done by now; what: what is at work now, if that has changed."""
        with self.lock:
            self.done, self.what = done, what or self.what
            now = time.monotonic()
            if now < self.next:
                return
            text = self.text(now - self.began)
            if self.terminal:
                sys.stderr.write(ERASE + text[:shutil.get_terminal_size().columns - 1])
                self.drawn, self.next = True, now + REDRAW
            else:
                sys.stderr.write(text + "\n")
                self.next = now + self.lines_every
            sys.stderr.flush()

    def say(self, sentence: str) -> None:
        """Print a line to stdout, which the bar must not stand in."""
        with self.lock:
            self.erase()
            print(sentence, flush=True)

    def text(self, seconds: float) -> str:
        """The line after so many seconds: what, how much of how much, how fast, how long still."""
        new = self.done - self.before
        speed = new / seconds if seconds else 0.0
        of_total = f" of {self.total:,.0f}" if self.total else ""
        parts = [f"{self.done:,.0f}{of_total} {self.unit}"] if self.unit else []
        parts += [f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s"] * (speed >= 0.1)
        parts += [f"about {duration((self.total - self.done) / speed)} left" if self.total > self.done and speed
                  else f"{duration(seconds)} so far"]
        picture = self.picture() + " " if self.terminal and self.total else ""
        return f"{self.what}: {picture}{', '.join(parts)}"

    def picture(self) -> str:
        share = min(1.0, self.done / self.total)
        full, empty = "█░" if (sys.stderr.encoding or "").lower().replace("-", "") == "utf8" else "#."
        return f"{full * int(BLOCKS * share)}{empty * (BLOCKS - int(BLOCKS * share))} {100 * share:3.0f} %"

    def erase(self) -> None:
        """Take the line off the terminal, for instance before something else is printed."""
        with self.lock:
            if self.drawn:
                sys.stderr.write(ERASE)
                sys.stderr.flush()
                self.drawn = False


@contextlib.contextmanager
def watched(what: str, total: float, unit: str, look: Optional[Callable[[], float]], done: float = 0,
            lines_every: float = 0) -> Iterator[Bar]:
    """A bar for work that another program does: look() says every half second how many units are done by now.

    look: None if the block itself counts, by advance(), and only the time goes on meanwhile.

    A thread looks, so the block must not fork (subprocess is fine). An OSError of look() means: not known at present.
    """
    ended = threading.Event()
    with Bar(what, total, unit, done, lines_every) as bar:
        def watch() -> None:
            while not ended.wait(TICK):
                with contextlib.suppress(OSError):
                    bar.reach(look()) if look else bar.advance(0)

        watcher = threading.Thread(target=watch, daemon=True)
        if bar.terminal or lines_every:
            watcher.start()
        try:
            yield bar
        finally:
            ended.set()
            if watcher.ident:
                watcher.join()
