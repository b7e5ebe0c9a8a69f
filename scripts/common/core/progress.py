"""How far a long piece of work is, and how long it will take.

    with progress.Bar("inference", len(paths), "images", kept, lines_every=10) as bar:
        for batch in batches:
            bar.advance(len(batch))

    with progress.watched("inference on the card", len(paths), "images",
                          lambda: len(os.listdir(folder))):
        status = child.wait()

On a terminal tqdm draws a bar after two seconds, and erases it at the end. If stderr is not a
terminal, nothing is shown, so logs stay clean; a step may ask for a plain line every `lines_every`
seconds. The set-up runs before any package is installed: without tqdm, a terminal gets plain lines.
"""

import contextlib
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, Callable, Iterator, Optional, Type

PATIENCE = 2.0  # seconds before anything is drawn: shorter work needs no bar
REDRAW = 0.1  # seconds between two pictures on a terminal
TICK = 0.5  # seconds between two looks of watched()
LINES_EVERY = 10.0  # seconds between two lines on a terminal without tqdm, unless said otherwise

# What tqdm draws: with a known total, with an unknown one, and where nothing is counted. Without a
# total the {bar} is blank, but only with a {bar} does tqdm cut a line at the terminal's width.
COUNTED = (
    "{desc}: {percentage:3.0f} %|{bar}| {n:,.0f} of {total:,.0f}{unit} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}]"
)
OPEN_ENDED = "{desc}: {n:,.0f}{unit} [{elapsed}, {rate_noinv_fmt}]{bar}"
TIMED = "{desc} [{elapsed}]{bar}"


def on_terminal() -> bool:
    """Whether a line on stderr can be redrawn."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def duration(seconds: float) -> str:
    """A time in words that fit into a line: 42 s, 3:05 min, 2:07 h."""
    rounded = int(seconds + 0.5)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60}:{rounded % 60:02d} min"
    return f"{rounded // 3600}:{rounded % 3600 // 60:02d} h"


class Bar:
    """Counts how many of `total` units are done, and shows it.

    total: 0 if it is unknown.
    unit: "" if nothing is counted and only the time is shown.
    done: how many units were finished before this run.
    lines_every: seconds between plain lines where stderr is not a terminal; 0 for no lines.
    """

    def __init__(
        self, what: str, total: float, unit: str, done: float = 0, lines_every: float = 0
    ) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done = self.before = done
        self.lines_every = lines_every
        self.began = time.monotonic()
        self.terminal = on_terminal()
        if self.terminal:
            self.next = self.began + PATIENCE
        elif lines_every:
            self.next = self.began + lines_every
        else:
            self.next = float("inf")
        self.drawn: Any = None  # tqdm's bar, once there is something to draw
        self.lock = threading.RLock()  # watched() looks from another thread

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        with self.lock:
            if self.drawn is not None:
                self.drawn.close()
                self.drawn = None

    def advance(self, count: float = 1) -> None:
        """`count` more units are done."""
        with self.lock:
            self.reach(self.done + count)

    def reach(self, done: float, what: str = "") -> None:
        """`done` units are done now. what: the work that goes on, if it is another one now."""
        with self.lock:
            self.done, self.what = done, what or self.what
            now = time.monotonic()
            if now < self.next:
                return
            if self.terminal and self.draw(now):
                self.next = now + REDRAW
            else:
                print(self.text(now - self.began), file=sys.stderr, flush=True)
                self.next = now + (self.lines_every or LINES_EVERY)

    def turn_to(self, what: str) -> None:
        """Begin another work, which counts nothing."""
        with self.lock:
            self.what, self.total, self.unit = what, 0, ""
            self.before = self.done
            self.began = time.monotonic()
            if self.drawn is not None:
                self.drawn.close()
                self.drawn = None
            wait = PATIENCE if self.terminal else self.lines_every or float("inf")
            self.next = self.began + wait

    def draw(self, now: float) -> bool:
        """Bring tqdm's bar up to date. Returns: False if tqdm is not installed."""
        if self.drawn is None:
            try:
                from tqdm import tqdm  # here: most runs draw nothing
            except ImportError:
                return False
            tqdm.monitor_interval = 0  # no thread of its own: workers are forked
            tqdm.set_lock(threading.RLock())
            picture = OPEN_ENDED if self.unit else TIMED
            if self.total:
                picture = COUNTED
            self.drawn = tqdm(
                total=self.total or None,
                initial=self.before,
                file=sys.stderr,
                unit=f" {self.unit}",
                bar_format=picture,
                dynamic_ncols=True,
                leave=False,
                delay=PATIENCE,
            )
            self.drawn.start_t -= now - self.began
        self.drawn.n = self.done
        self.drawn.set_description_str(self.what, refresh=False)
        self.drawn.refresh()
        return True

    def erase(self) -> None:
        """Take the bar off the terminal until it is drawn again, to print something else."""
        with self.lock:
            if self.drawn is not None:
                self.drawn.clear()

    def say(self, sentence: str) -> None:
        """Print a line to stdout; the bar must not be in it."""
        with self.lock:
            self.erase()
            print(sentence, flush=True)

    def text(self, seconds: float) -> str:
        """The plain line after `seconds`: the work, how much is done, how fast, the time left."""
        speed = (self.done - self.before) / seconds if seconds else 0.0
        parts = []
        if self.unit and self.total:
            parts.append(f"{self.done:,.0f} of {self.total:,.0f} {self.unit}")
        elif self.unit:
            parts.append(f"{self.done:,.0f} {self.unit}")
        if speed >= 10:
            parts.append(f"{speed:,.0f}/s")
        elif speed >= 0.1:
            parts.append(f"{speed:.1f}/s")
        if self.total > self.done and speed:
            parts.append(f"about {duration((self.total - self.done) / speed)} left")
        else:
            parts.append(f"{duration(seconds)} so far")
        return f"{self.what}: {', '.join(parts)}"


@contextlib.contextmanager
def watched(
    what: str,
    total: float,
    unit: str,
    look: Optional[Callable[[], float]],
    done: float = 0,
    lines_every: float = 0,
) -> Iterator[Bar]:
    """A bar for work that another program does.

    look: returns how many units are done, every half second; an OSError means that it cannot know
    at the moment. None if the block itself counts with advance(); then only the time is updated.
    A thread calls it, so the block must not fork (subprocess is fine).
    """
    ended = threading.Event()
    with Bar(what, total, unit, done, lines_every) as bar:

        def watch() -> None:
            while not ended.wait(TICK):
                with contextlib.suppress(OSError):
                    if look:
                        bar.reach(look())
                    else:
                        bar.advance(0)

        watcher = threading.Thread(target=watch, daemon=True)
        if bar.terminal or lines_every:
            watcher.start()
        try:
            yield bar
        finally:
            ended.set()
            if watcher.ident:
                watcher.join()
