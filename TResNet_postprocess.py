#!/usr/bin/env python3
"""Predictions + labels -> acc.json: Top-1 to Top-5 accuracy over every result in a folder.

    python3 TResNet_postprocess.py ./result/ ./ImageNet/val_label.txt ./ acc.json
    python3 TResNet_postprocess.py ./result/ ./prep_dataset/val_label.txt ./ acc.json --prep ./prep_dataset
    python3 TResNet_postprocess.py ./result/ ./ImageNet/val_label.txt ./ acc.json --min-top5 94.4

In:  RESULT, one file per image as the inference writes it: STEM_0.txt (each value as "%f ", then a newline), STEM_0.bin
     (raw float32) or STEM_0.npy; LABELS, lines "NAME[.suffix] INT".
Out: OUT_DIR/OUT_NAME, the accuracy as strings, and beside it ..._report.json, which accounts for every image: what the
     accuracy covers, what was left out and why. With --prep DIR that is checked against DIR/manifest.jsonl.
Exit status: 0 good, 1 something is wrong with the data, 2 wrong usage, 3 the accuracy is below --min-top1/--min-top5.
"""
import argparse
import errno
import gc
import io
import itertools
import json
import multiprocessing
import os
import re
import signal
import stat
import sys
from multiprocessing.connection import Connection, wait
from typing import Any, Dict, Iterable, List, NoReturn, Optional, Sequence, Tuple

import numpy as np

from TResNet_preprocess import SUFFIXES, VERSION, hashed_stem, read_manifest, write_whole

Label = Tuple[str, int, int]    # NAME, class, line number; a plain tuple, because 50,000 NamedTuples take 20 ms
TOP = 5
IMAGENET_CLASSES = 1000
BATCH_VALUES = 16_384           # values parsed at once: 128 KB for each NumPy temporary
CHUNK_VALUES = 512_000          # values in one order to a worker process: about 10 ms of work
PROCESSES_FROM = 1_000_000      # values; for fewer, starting processes takes longer than they save
TEXT_BEFORE = b"000000000000000 "
SPACE, NEWLINE = b" \n"
NO_PREFIX = -1 << 63            # the smallest int64, which no number needs
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
LARGEST_RESULT = 1 << 28        # bytes; no classifier's output comes near it, and a file is read whole
RESULT_NAME = re.compile(r"([^.].*)_(0|[1-9][0-9]*)\.(txt|bin|npy)", re.DOTALL)
NUMBER = re.compile(rb"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def refuse(sentence: str) -> NoReturn:
    raise SystemExit("TResNet_postprocess.py: " + sentence)


def some(names: Iterable[str]) -> str:
    """A few of the names, quoted so that no terminal or encoding can be upset by them."""
    names = sorted(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(ascii, names[:3])) + more


# ---- one result file

def read_regular_file(path: str, follow_links: bool, largest: int) -> bytes:
    """The whole file. A FIFO, a device or a folder is refused at once instead of waited for."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW))
        with open(file, "rb") as stream:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                refuse(f"{path!a} is not a regular file")
            if status.st_size > largest:
                refuse(f"{path!a} has {status.st_size:,} bytes; at most {largest:,} were expected")
            return stream.read()
    except OSError as error:
        what = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        return refuse(f"cannot read {path!a}: {what}")


def parse_txt(data: bytes, path: str) -> np.ndarray:
    """float64 [classes] from one line of decimal numbers."""
    if not data.endswith(b"\n"):
        refuse(f"{path!a} is half a file: it has no closing newline; run the inference again")
    lines = data.count(b"\n")
    if lines > 1:
        refuse(f"{path!a} holds {lines} lines; one sample per file was expected, because the lines of a batch cannot "
               "be told apart")
    words = data.split()
    for place, word in enumerate(words, 1):
        if not NUMBER.fullmatch(word):
            what = "not finite" if word.lstrip(b"-+").lower() in (b"nan", b"inf", b"infinity") else "not a number"
            refuse(f"{path!a}: value {place} is {word[:40].decode('latin-1')!a}, {what}")
    return np.array([float(word) for word in words], np.float64)


def parse_bin(data: bytes, path: str) -> np.ndarray:
    """float32 [classes] from the raw little-endian array."""
    if len(data) % 4:
        refuse(f"{path!a} is half a file: its {len(data)} bytes are not a multiple of 4 (float32)")
    return np.frombuffer(data, "<f4").astype(np.float32)


def parse_npy(data: bytes, path: str) -> np.ndarray:
    """float32 or float64 [classes] from a NumPy file, shaped [classes] or [1, classes]. No pickled objects."""
    stream = io.BytesIO(data)
    try:
        read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                       (2, 0): np.lib.format.read_array_header_2_0}[np.lib.format.read_magic(stream)]
        shape, _, dtype = read_header(stream)
    except Exception as error:  # the header is a Python literal: its parser raises a dozen types on a damaged one
        return refuse(f"{path!a} is not a whole NumPy file ({type(error).__name__}: {ascii(str(error)[:80])})")
    if dtype.kind not in "fiu":
        refuse(f"{path!a} holds {ascii(str(dtype))} values; numbers were expected")
    values = 1
    for length in shape:
        values *= int(length)
    rest = data[stream.tell():]
    if min(shape, default=1) < 0 or len(rest) != values * dtype.itemsize:
        refuse(f"{path!a} is half a file: {len(rest)} bytes follow its header, {values * dtype.itemsize} were expected")
    if len(shape) == 0 or values != shape[-1]:
        refuse(f"{path!a} has the shape {shape}; one sample per file was expected, [classes] or [1, classes]")
    return np.frombuffer(rest, dtype).astype(np.float32 if dtype.itemsize <= 4 and dtype.kind == "f" else np.float64)


def read_result(path: str) -> np.ndarray:
    """The prediction in one result file (.txt, .bin, .npy): float32 or float64 [classes], all finite.

    Exits with one sentence that names the file if it is damaged, holds NaN or infinity, or more than one sample.
    """
    data = read_regular_file(path, follow_links=False, largest=LARGEST_RESULT)
    if not data:
        refuse(f"{path!a} is empty; run the inference again")
    values = {".txt": parse_txt, ".bin": parse_bin, ".npy": parse_npy}[os.path.splitext(path)[1]](data, path)
    if not len(values):
        refuse(f"{path!a} holds no values")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        refuse(f"{path!a}: value {place + 1} is {values[place]}, not finite")
    return values


def refuse_strangers(folder: str, names: Sequence[str]) -> NoReturn:
    """Say what in the result folder is not a result."""
    matches = {name: RESULT_NAME.fullmatch(name) for name in names}
    strangers = [name for name, match in matches.items() if not match]
    if strangers:
        half = "; .part is half a file of an interrupted run" if any(s.endswith(".part") for s in strangers) else ""
        refuse(f"{folder!a} holds what is not a result (STEM_0.txt, .bin or .npy): {some(strangers)}{half}; "
               "move it away")
    outputs = [name for name, match in matches.items() if match and match.group(2) != "0"]
    if outputs:
        refuse(f"{folder!a} holds several outputs per image ({some(outputs)}); one, the class scores STEM_0, "
               "was expected")
    formats = {match.group(3): name for name, match in matches.items() if match}
    refuse(f"{folder!a} holds results in several formats ({some(formats.values())}); are some from another run?")


def result_files(folder: str) -> Dict[str, str]:
    """{stem: path} of the results STEM_0.txt (or .bin, .npy) in a folder, sorted by name.

    Exits with one sentence if the folder is missing or empty, or holds anything else: names that are no result's,
    several formats, several outputs per image. (Links, folders and so on under such names: see read_result.)
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        refuse(f"cannot read the result folder {folder!a}: {error.strerror}")
    if not names:
        refuse(f"{folder!a} holds no results")
    endings = {name[-len("_0.txt"):] for name in names}
    if len(endings) > 1 or not endings <= {"_0.txt", "_0.bin", "_0.npy"} or (
            "." in {name[0] for name in names} or min(map(len, names)) == len("_0.txt")):
        refuse_strangers(folder, names)
    start = os.path.join(folder, "")
    return {name[:-len("_0.txt")]: start + name for name in names}


# ---- labels

def read_labels(path: str) -> List[Label]:
    """The lines "NAME INT" of a labels file (NAME may hold spaces).

    A byte order mark, CRLF and empty lines are allowed. NAME is decoded as file names are: one that is not UTF-8
    still names its file.
    """
    data = read_regular_file(path, follow_links=True, largest=1 << 32)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        refuse(f"{path!a} is UTF-16 text; save it as UTF-8")
    labels = []
    for line, text in enumerate(os.fsdecode(data[3:] if data.startswith(b"\xef\xbb\xbf") else data).split("\n"), 1):
        words = text.rsplit(None, 1)
        if len(words) == 2 and words[1].isdigit() and words[1].isascii() and len(words[1]) <= 9:
            labels.append((words[0], int(words[1]), line))
        elif words:
            refuse(f"{path!a}, line {line}: {text[:80]!a} is not a label; 'NAME INT' was expected, as in "
                   "'cat.JPEG 281'")
    if not labels:
        refuse(f"{path!a} holds no labels")
    return labels


def stem_of(name: str) -> str:
    """The name without its image suffix."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in SUFFIXES else name


def match_labels(stems: Sequence[str], labels: List[Label], path: str) -> List[Label]:
    """The label of each stem: of the line whose NAME, NAME without image suffix, or hashed_stem(NAME) it is."""
    by_key = {}  # type: Dict[str, Label]
    conflicts = {}  # type: Dict[str, Label]
    # One key for each is enough for plain names; making all three takes longer than reading the labels.
    if any("." in stem or stem[-13:-12] == "-" for stem in stems):  # "-" and 12 digits end a hashed stem
        keyed = [(key, label) for label in labels for key in {stem_of(label[0]), label[0], hashed_stem(label[0])}]
    else:
        keyed = [(stem_of(label[0]), label) for label in labels]
    for key, label in keyed:
        if by_key.setdefault(key, label)[1] != label[1]:
            conflicts.setdefault(key, label)
    lacking = [stem for stem in stems if stem not in by_key]
    if lacking:
        refuse(f"{len(lacking)} of {len(stems)} predictions have no label in {path!a}: {some(lacking)}; "
               "a line 'NAME INT' was expected for each")
    for stem in stems if conflicts else ():
        if stem in conflicts:
            (_, index, line), (_, other, other_line) = by_key[stem], conflicts[stem]
            refuse(f"{path!a} gives {stem!a} two labels: {index} in line {line} and {other} in line {other_line}")
    return [by_key[stem] for stem in stems]


# ---- ranks

def text_memory(files: int, classes: int) -> bytearray:
    """Room for the text of so many TXT results (read_sort_keys), used again and again: fresh pages cost more time than
    reading into them. It begins as if a number stood before the first one, too."""
    memory = bytearray(len(TEXT_BEFORE) + files * (len("-12.345678 ") * classes + len("\n")) + 16)
    memory[:len(TEXT_BEFORE)] = TEXT_BEFORE
    return memory


def prefix_table() -> np.ndarray:
    """int64 [65536]: what the two characters before the units digit of a "%f" number add to its sort key.

    Index: the characters as a little-endian uint16. Entry: tens and hundreds as decimal digits in bits 52 to 59, all
    bits inverted after a minus; NO_PREFIX where the characters are not the beginning of a number.
    """
    table = np.full(1 << 16, NO_PREFIX, np.int64)
    for tens in range(10):
        for before in range(10):
            table[(48 + before) | 32 << 8] = 0                                           # "…5 3": another number's end
            table[(48 + before) | (48 + tens) << 8] = before << 56 | tens << 52          # "513"
        table[32 | (48 + tens) << 8] = tens << 52                                        # " 13"
        table[45 | (48 + tens) << 8] = ~(tens << 52)                                     # "-13"
    table[32 | 45 << 8] = ~0                                                             # " -3"
    return table


PREFIX = prefix_table()


def read_sort_keys(paths: Sequence[str], classes: int, memory: bytearray) -> Optional[np.ndarray]:
    """int64 [len(paths), classes]: numbers in the order of the values in TXT results, found without float().

    None unless every file is strictly "%f " times classes and a newline, every value below 1000 and above -100: then
    a key's digits are the value's six decimals (a byte each) and the integer part (four bits each) above them. Checks
    every byte. The files are read one behind the other into memory (see text_memory), each over the newline of the
    one before, which leaves numbers that end in a space each; the 16 bytes before that space are fetched for all.
    """
    view = memoryview(memory)
    room = len("-12.345678 ") * classes + len("\n")
    end = len(TEXT_BEFORE)
    ends = []
    for path in paths:
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size = os.readv(file, [view[end:end + room + 1]])
            finally:
                os.close(file)
        except OSError:
            return None
        end += size - 1
        if not 1 < size <= room or memory[end] != NEWLINE:
            return None
        ends.append(end - 1 - len(TEXT_BEFORE))
    memory[end:end + 8] = bytes(8)
    text = np.frombuffer(memory, np.uint8, (end - len(TEXT_BEFORE) + 7) // 8 * 8, len(TEXT_BEFORE))

    # The places of all spaces, by words of eight bytes: a number has nine characters or more with its space, so that no
    # word holds two. If one does, the place found for it is wrong, but then either one of the spaces is among the eight
    # characters before that place, or it is too far from the place before; both are refused below.
    words = (text == SPACE).view("<u8")
    spaces = np.flatnonzero(words != 0)
    if len(spaces) != len(paths) * classes:
        return None
    byte_in_word = words[spaces]          # 256 ** byte
    byte_in_word *= 0x0001020304050607    # moves the byte's number to the top
    byte_in_word >>= 56
    spaces <<= 3
    spaces += byte_in_word.view(np.int64)
    longest = (spaces[1:] - spaces[:-1]).max(initial=spaces[0] + 1)
    if longest > len("-12.345678 ") or not np.array_equal(spaces[classes - 1::classes], ends):
        return None
    if spaces.max() > ends[-1]:
        return None

    # The sixteen bytes before each space, "…10.123456": they begin in memory where the space lies in text.
    windows = np.ndarray((len(text),), "V16", memory, 0, (1,))[spaces]
    prefix = PREFIX[windows.view("<u8")[::2] >> 48]
    digits = windows.view(">i8")[1::2].astype(np.int64)
    digits ^= 0x302E303030303030  # "0.000000": leaves 0 to 9 in each byte, and 0 for the point
    wrong = int(np.bitwise_or.reduce(digits)) | int(np.bitwise_or.reduce(digits + 0x0600060606060606))
    if wrong & 0xF0FFF0F0F0F0F0F0 or prefix.min() == NO_PREFIX:
        return None
    units = digits >> 56
    units *= 0x0101 << 48
    digits ^= units         # moves the units to bits 48 to 51
    digits ^= prefix
    digits -= digits >> 63  # ~k + 1 = -k, so that -0.000000 equals 0.000000
    return digits.reshape(len(paths), classes)


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 [batch]: how many classes come before the label; equal scores in the order of the classes.

    scores [batch, classes], no NaN; labels int64 [batch].
    """
    own = scores[np.arange(len(labels)), labels][:, np.newaxis]
    before = np.count_nonzero(scores > own, axis=1)
    ties = scores == own
    if np.count_nonzero(ties) > len(labels):  # more than the labels themselves
        before += [np.count_nonzero(row[:label]) for row, label in zip(ties, labels)]
    return before


def ranks_of_files(paths: Sequence[str], labels: np.ndarray, classes: int, first: str, memory: bytearray
                   ) -> np.ndarray:
    """ranks() of the predictions in these files, the fast way if all allow it; otherwise file by file."""
    if paths[0].endswith(".txt"):
        keys = read_sort_keys(paths, classes, memory)
        if keys is not None:
            return ranks(keys, labels)
        if len(paths) > 1:
            return np.concatenate([ranks_of_files([path], labels[i:i + 1], classes, first, memory)
                                   for i, path in enumerate(paths)])
    predictions = [read_result(path) for path in paths]
    for i, prediction in enumerate(predictions):
        if len(prediction) != classes:
            refuse(f"{paths[i]!a} holds {len(prediction)} values, but {first!a} holds {classes}")
    return ranks(np.stack(predictions), labels)


def count_ranks(paths: Sequence[str], labels: np.ndarray, classes: int, first: str) -> np.ndarray:
    """int64 [6]: of how many predictions the label is the first, second, ... fifth class, or a later one."""
    counts = np.zeros(TOP + 1, np.int64)
    batch = max(1, min(256, BATCH_VALUES // classes))
    memory = text_memory(batch, classes)
    # Once 16 MB have been freed, glibc keeps what smaller arrays give back; otherwise it returns them to the system,
    # and the page faults on taking them again cost as much as all the work.
    np.empty(1 << 24, np.uint8)
    for start in range(0, len(paths), batch):
        stop = min(start + batch, len(paths))
        found = ranks_of_files(paths[start:stop], labels[start:stop], classes, first, memory)
        counts += np.bincount(np.minimum(found, TOP), minlength=TOP + 1)
    return counts


def serve(orders: Connection, parents: Iterable[Connection], paths: Sequence[str], labels: np.ndarray, classes: int
          ) -> None:
    """A worker process: receives (start, stop), sends back the counts, or the sentence of a refusal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    for connection in parents:  # while a worker held the parent's end, it would not notice the parent's death
        connection.close()
    try:
        while True:
            start, stop = orders.recv()
            try:
                orders.send(count_ranks(paths[start:stop], labels[start:stop], classes, paths[0]))
            except SystemExit as refusal:
                orders.send(str(refusal))
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        return


def count_ranks_in_processes(paths: Sequence[str], labels: np.ndarray, classes: int, workers: int) -> np.ndarray:
    """count_ranks() of all, on several processes. If files are refused, the first one's sentence is given."""
    chunk = max(1, CHUNK_VALUES // classes)
    chunks = iter([(start, min(start + chunk, len(paths))) for start in range(0, len(paths), chunk)])
    fork = multiprocessing.get_context("fork")  # the workers share the names without a copy
    busy = {}  # type: Dict[Any, Tuple[int, int]]
    processes = {}  # type: Dict[Any, Any]
    counts = np.zeros(TOP + 1, np.int64)
    refusals = {}
    try:
        for order in itertools.islice(chunks, workers):
            ours, theirs = fork.Pipe()
            arguments = theirs, [ours] + list(processes), paths, labels, classes
            process = fork.Process(target=serve, args=arguments, daemon=True)
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the worker is known and has its own handlers
            process.start()
            processes[ours] = process
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            theirs.close()
            ours.send(order)
            busy[ours] = order
        while busy:
            for ours in wait(list(busy)):
                start, stop = busy.pop(ours)
                try:
                    answer = ours.recv()
                except (EOFError, ConnectionResetError):
                    processes[ours].join()
                    refuse(f"a worker process was ended by the system (exit code {processes[ours].exitcode}; out of "
                           f"memory?) between {paths[start]!a} and {paths[stop - 1]!a}")
                if isinstance(answer, str):
                    refusals[start] = answer
                else:
                    counts += answer
                order = None if refusals else next(chunks, None)
                if order:
                    ours.send(order)
                    busy[ours] = order
        if refusals:
            raise SystemExit(refusals[min(refusals)])
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    return counts


# ---- every image accounted for

def account(prep: str, results: Dict[str, str]) -> Tuple[int, List[Dict[str, str]]]:
    """(number of images, the bad ones as {"source", "error"}) of a prepared folder.

    Exits with one sentence unless there is exactly one result for every .bin and none is older than its .bin.
    """
    header, images = read_manifest(prep)
    if not header or not images:
        refuse(f"{prep!a} holds no manifest.jsonl of TResNet_preprocess.py; give the prepared folder as --prep")
    bad = [{"source": source, "error": str(entry["error"])} for source, entry in images.items() if "error" in entry]
    prepared = {str(entry.get("bin")) for entry in images.values() if "error" not in entry}
    try:
        with os.scandir(prep) as entries:
            written = {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(".bin")}
    except OSError as error:
        refuse(f"cannot read the prepared folder {prep!a}: {error.strerror}")
    if prepared != set(written):
        refuse(f"the .bin files in {prep!a} are not those of its manifest ({some(prepared ^ set(written))}); "
               "run TResNet_preprocess.py again")
    stems = {name[:-len(".bin")] for name in prepared}
    strange = [stem for stem in results if stem not in stems]
    if strange:
        refuse(f"{len(strange)} results belong to no .bin in {prep!a}: {some(strange)}; are they another run's?")
    lacking = stems.difference(results)
    if lacking:
        refuse(f"the inference was incomplete: {len(lacking)} of {len(stems)} .bin files in {prep!a} have no result: "
               f"{some(lacking)}")
    try:
        older = [stem for stem, path in results.items() if os.lstat(path).st_mtime_ns < written[stem + ".bin"]]
    except OSError as error:
        refuse(f"cannot read {error.filename!a}: {error.strerror}")
    if older:
        refuse(f"{len(older)} of {len(results)} results are older than their .bin in {prep!a}: {some(older)}; "
               "run the inference again")
    return len(images), bad


def evaluate(result: str, labels: str, prep: Optional[str] = None, workers: int = 1) -> Dict[str, Any]:
    """Compare all predictions in a result folder with their labels.

    Returns a report that json can write: "classes" (int), "hits" ([Top-1, Top-2, ... Top-5] as counts, fewer for fewer
    classes), "counts" (labelled, images, preprocessed, bad, inferred, evaluated, left_out; None where that cannot be
    known without prep), "evaluated" (stems), "left_out" ([{"source", "error"}]), "labelled_without_prediction"
    (names), "notes" (sentences). Exits with one sentence if anything is amiss.
    """
    results = result_files(result)
    images, bad = account(prep, results) if prep is not None else (None, [])
    stems, paths = list(results), list(results.values())
    lines = read_labels(labels)
    classes = len(read_result(paths[0]))
    shift = int(classes == IMAGENET_CLASSES + 1)  # class 0 of 1001 is "background"
    for _, index, line in lines:
        if index >= classes - shift:
            refuse(f"{labels!a}, line {line}: label {index} is outside the classes 0 to {classes - shift - 1} of "
                   f"{paths[0]!a}")
    matched = match_labels(stems, lines, labels)
    indices = np.array([index for _, index, _ in matched], np.int64) + shift
    if workers > 1 and len(paths) * classes >= PROCESSES_FROM:
        counts = count_ranks_in_processes(paths, indices, classes, workers)
    else:
        counts = count_ranks(paths, indices, classes, paths[0])
    if counts.sum() != len(paths):
        refuse(f"{counts.sum()} of {len(paths)} predictions were counted; this is a defect of the program")

    names = {name for name, _, _ in lines}
    unpredicted = sorted(names.difference(name for name, _, _ in matched))
    notes = []
    if unpredicted:
        notes.append(f"{len(unpredicted)} of {len(names)} labelled names have no prediction: this is a subset")
    if bad:
        notes.append(f"{len(bad)} of {images} images were left out")
    return {
        "tool": "TResNet_postprocess.py", "version": VERSION, "result": os.path.abspath(result),
        "labels": os.path.abspath(labels), "prep": None if prep is None else os.path.abspath(prep),
        "classes": classes, "hits": np.cumsum(counts)[:min(TOP, classes)].tolist(),
        "counts": {"labelled": len(names), "images": images, "preprocessed": None if images is None else len(stems),
                   "bad": None if images is None else len(bad), "inferred": len(stems), "evaluated": len(stems),
                   "left_out": None if images is None else len(bad)},
        "notes": notes, "left_out": bad, "labelled_without_prediction": unpredicted, "evaluated": stems,
    }


def percentages(report: Dict[str, Any]) -> List[float]:
    """Top-1, Top-2, ... accuracy in per cent, rounded to two decimals."""
    return [round(100 * hits / report["counts"]["evaluated"], 2) for hits in report["hits"]]


def statistics(report: Dict[str, Any]) -> Dict[str, Any]:
    """The content of acc.json."""
    rows = [("Number of images", str(report["counts"]["evaluated"])), ("Number of classes", str(report["classes"]))]
    rows += [(f"Top{k} accuracy", f"{value}%") for k, value in enumerate(percentages(report), 1)]
    return {"title": "Overall statistical evaluation", "value": [{"key": key, "value": value} for key, value in rows]}


# ---- command line

def output_paths(out_dir: str, out_name: str, result: str, labels: str) -> Tuple[str, str]:
    """The paths of acc.json and its report; refuses those that would damage the input."""
    if out_name in ("", ".", "..") or os.path.basename(out_name) != out_name:
        refuse(f"OUT_NAME is {out_name!a}; a file name such as acc.json was expected")
    inside = os.path.join(os.path.realpath(result), "")
    if os.path.join(os.path.realpath(out_dir), "").startswith(inside):
        refuse(f"OUT_DIR {out_dir!a} lies in the result folder {result!a}; choose another, or the next run would take "
               f"{out_name!a} for a result")
    stem = out_name[:-len(".json")] if out_name.endswith(".json") else out_name
    paths = os.path.join(out_dir, out_name), os.path.join(out_dir, stem + "_report.json")
    for path in paths:
        if os.path.isdir(path):
            refuse(f"{path!a} is a folder; choose another OUT_NAME")
        if os.path.realpath(path) == os.path.realpath(labels):
            refuse(f"{path!a} is the labels file; choose another OUT_NAME")
    return paths


def parse_arguments(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    def percent(text: str) -> float:
        value = float(text)
        if not 0 <= value <= 100:
            raise ValueError
        return value

    def count(text: str) -> int:
        value = int(text)
        if not 1 <= value <= 1024:
            raise ValueError
        return value

    usage, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=usage, epilog=rest, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("result", metavar="RESULT", help="folder of results, one file per image")
    parser.add_argument("labels", metavar="LABELS", help='text file of lines "NAME[.suffix] INT"')
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder for the output; made if missing")
    parser.add_argument("out_name", metavar="OUT_NAME", help="file name of the output, such as acc.json")
    parser.add_argument("--prep", metavar="DIR", help="prepared folder: account for every image in its manifest")
    parser.add_argument("-j", "--workers", type=count, metavar="N", default=len(os.sched_getaffinity(0)),
                        help="processes (default: %(default)s, the cores)")
    parser.add_argument("--min-top1", type=percent, metavar="P", help="exit status 3 if Top-1 is below P per cent")
    parser.add_argument("--min-top5", type=percent, metavar="P", help="exit status 3 if Top-5 is below P per cent")
    return parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    gc.disable()  # a short life without cycles; looking for them in 50,000 names over and over takes 3 % of the time
    given = parse_arguments(arguments)
    accuracy_path, report_path = output_paths(given.out_dir, given.out_name, given.result, given.labels)
    report = evaluate(given.result, given.labels, given.prep, given.workers)
    table = statistics(report)
    try:
        os.makedirs(given.out_dir or ".", exist_ok=True)
        write_whole(report_path, json.dumps(report).encode("ascii"))
        write_whole(accuracy_path, json.dumps(table).encode("ascii"))  # last: where it stands, its report does
    except OSError as error:
        refuse(f"cannot write {error.filename or given.out_dir!a}: {error.strerror}")

    for row in table["value"]:
        print(row["key"] + ": " + row["value"])
    for note in report["notes"]:
        print(note)
    for image in report["left_out"][:3]:
        print(f"left out: {image['source']!a}: {image['error']!a}")
    print(f"wrote {ascii(accuracy_path)} and {ascii(report_path)}")
    reached = percentages(report)
    below = [f"Top-{k} accuracy {reached[min(k, len(reached)) - 1]}% is below {least}%"
             for k, least in ((1, given.min_top1), (5, given.min_top5))
             if least is not None and reached[min(k, len(reached)) - 1] < least]
    if below:
        print("TResNet_postprocess.py: " + ", ".join(below), file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("TResNet_postprocess.py: interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
