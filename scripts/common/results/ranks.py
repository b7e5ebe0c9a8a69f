"""The results of many images, read at once: what the network answered, and the labels' ranks.

Compiled C reads results exactly as ais_bench writes them; Python reads all others, and says what
is wrong with a damaged one.
"""

import ctypes
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Optional, Sequence

from common.core import native, record
from common.core.cli import Refusal, shown
from common.core.files import checksum_of, is_there, read_regular
from common.results import figures
from common.results.results import read_result

import numpy as np

CHUNK_VALUES = 256_000  # values; some ms of work, which an interrupted thread still finishes
# From so many values on a missing compiler is felt: Python needs 0.15 s per million.
SLOW_FROM = 2_000_000


class Ranked(NamedTuple):
    """Where the label of each of n results stands among the classes, and what was read for it."""

    ranks: np.ndarray  # int32 [n]: how many classes come before the label; -1 if not known
    checksums: np.ndarray  # uint32 [n]: CRC-32 of each file; [0] where no record needs them
    top: np.ndarray  # int32 [n, up to 5]: as figures.Predictions has it
    probability: np.ndarray  # float32 [n, up to 5]: of these classes, 0 to 1

    def keep(self, place: int, scores: np.ndarray) -> None:
        """Note the highest of the scores, float64 [m, classes], of the results from `place` on."""
        end = place + len(scores)
        best = figures.best_classes(scores)
        self.top[place:end], self.probability[place:end] = best

    def predictions(self, labels: np.ndarray, places: Any = slice(None)) -> figures.Predictions:
        """What is kept of these results; labels: int [n]; places: of some of them."""
        return figures.Predictions(
            self.top[places], self.probability[places], labels[places], self.ranks[places]
        )


def load_kernel(values: int) -> Any:
    """label_ranks() of ranks.c; None, and for many values a note, where it cannot be compiled."""
    try:
        kernel = native.load("results/ranks.c").label_ranks
    except RuntimeError as error:
        if values >= SLOW_FROM:
            note = f"note: the fast way is not used, Python reads all results: {error}"
            print(note, file=sys.stderr)
        return None
    text, pointer, integer = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_ssize_t
    kernel.argtypes = [text, integer, integer, text, integer, pointer, pointer, pointer, pointer]
    kernel.restype = None
    return kernel


def has_record(paths: Sequence[str]) -> bool:
    """Whether a record beside their folder says what the results should be."""
    return is_there(record.path_of(os.path.dirname(paths[0])))


def nothing_ranked(paths: Sequence[str], classes: int) -> Ranked:
    """The form of n results that nobody has read yet."""
    results, kept = len(paths), min(figures.TOP, classes)
    checksums = results if has_record(paths) else 0  # otherwise they would cost time for nothing
    return Ranked(
        np.full(results, -1, np.int32),
        np.zeros(checksums, np.uint32),
        np.zeros((results, kept), np.int32),
        np.zeros((results, kept), np.float32),
    )


def read_fast(paths: Sequence[str], labels: np.ndarray, classes: int, workers: int) -> Ranked:
    """read() by compiled C, for results exactly as ais_bench writes them.

    The rank is -1 where a file is anything else. A NumPy file must hold float32 and have the header
    of the first one.
    """
    ranked = nothing_ranked(paths, classes)
    header: Optional[bytes] = b""
    if paths[0].endswith(".txt"):
        header = None
    elif paths[0].endswith(".npy"):
        header = read_regular(paths[0], follow_links=False)[: -4 * classes]
        if b"'<f4'" not in header:
            return ranked
    kernel = load_kernel(len(paths) * classes)
    if kernel is None:
        return ranked
    chunk = max(1, CHUNK_VALUES // classes)
    starts = iter(range(0, len(paths), chunk))

    def work() -> None:
        for start in starts:  # of all threads: each takes the next one
            paths_of_chunk = paths[start : start + chunk]
            scores = np.zeros((len(paths_of_chunk), classes))
            kernel(
                os.fsencode("\0".join(paths_of_chunk)),
                len(paths_of_chunk),
                classes,
                header,
                len(header or b""),
                labels[start:].ctypes.data,
                ranked.ranks[start:].ctypes.data,
                ranked.checksums[start:].ctypes.data if len(ranked.checksums) else None,
                scores.ctypes.data,
            )
            ranked.keep(start, scores)

    with ThreadPoolExecutor(workers) as threads:  # ctypes lets them run at the same time
        try:
            used = min(workers, math.ceil(len(paths) / chunk))
            running = [threads.submit(work) for _ in range(used)]
            for thread in running:
                thread.result()
        finally:
            for _ in starts:  # after Ctrl-C no thread finds another chunk
                pass
    return ranked


def read(paths: Sequence[str], labels: np.ndarray, classes: int, workers: int) -> Ranked:
    """How many classes come before the label in each result: those of a higher score, and of an
    equal score those of a lower number.

    paths: of n result files; labels: int64 [n], 0 to classes - 1.
    Raises: Refusal about the first file that is damaged or has another number of classes.
    """
    ranked = read_fast(paths, labels, classes, workers)
    unranked = np.flatnonzero(ranked.ranks < 0).tolist()
    # Beside float32 results a file of half their size is half a file, not one of float16.
    may_be_float16 = len(unranked) == len(paths)
    for i in unranked:
        scores, label = read_result(paths[i], classes if may_be_float16 else 0), labels[i]
        if len(scores) != classes:
            raise Refusal(
                f"{shown(paths[i])} holds {len(scores)} values, but {shown(paths[0])} holds "
                f"{classes}; run the inference again"
            )
        sizes = [os.path.getsize(path) for path in (paths[i], paths[0])]
        if paths[i].endswith(".bin") and sizes[0] != sizes[1]:
            raise Refusal(
                f"{shown(paths[i])} holds {sizes[0]} bytes, but "
                f"{shown(paths[0])} holds {sizes[1]}; run the inference again"
            )
        higher = np.count_nonzero(scores > scores[label])
        equal_before = np.count_nonzero(scores[:label] == scores[label])
        ranked.ranks[i] = higher + equal_before
        ranked.keep(i, scores[None].astype(np.float64))
        if len(ranked.checksums):
            ranked.checksums[i] = int(checksum_of(paths[i]) or "0", 16)
    return ranked
