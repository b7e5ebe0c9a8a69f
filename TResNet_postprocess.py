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
import contextlib
import ctypes
import errno
import gc
import io
import json
import os
import re
import signal
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterable, List, NoReturn, Optional, Sequence, Tuple

import numpy as np

from TResNet_preprocess import SUFFIXES, VERSION, compiled, hashed_stem, read_manifest, write_whole

Label = Tuple[str, int, int]    # NAME, class, line number; a plain tuple, because 50,000 NamedTuples take 20 ms
TOP = 5
IMAGENET_CLASSES = 1000
COMPILE_FROM = 2_000_000        # values; compiling takes 0.2 to 0.4 s, and then saves about 0.15 s per million
CHUNK_VALUES = 256_000          # values; 3 ms of work, which an interrupted thread still finishes
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
    if not data.translate(None, b"0123456789+-.eE \n"):  # then float() takes exactly what NUMBER does, and is quicker
        with contextlib.suppress(ValueError):
            return np.array(list(map(float, words)), np.float64)
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

def fast_ranks(paths: Sequence[str], labels: np.ndarray, classes: int, workers: int) -> np.ndarray:
    """ranks() by compiled C, for TXT results exactly as ais_bench writes them; -1 where a file is anything else."""
    found = np.full(len(paths), -1, np.int32)
    if not paths[0].endswith(".txt"):
        return found
    pays = len(paths) * classes >= COMPILE_FROM
    try:
        kernel = compiled("TResNet_postprocess.c", pays).label_ranks
    except RuntimeError as error:
        if pays:
            print(f"note: the fast way is not used, Python reads all results: {error}", file=sys.stderr)
        return found
    pointer, integer = ctypes.c_void_p, ctypes.c_ssize_t
    kernel.argtypes, kernel.restype = [ctypes.c_char_p, integer, integer, pointer, pointer], None
    chunk = max(1, CHUNK_VALUES // classes)
    starts = iter(range(0, len(paths), chunk))

    def work() -> None:
        for start in starts:  # of all threads: each takes the next one
            some_paths = paths[start:start + chunk]
            kernel(os.fsencode("\0".join(some_paths)), len(some_paths), classes,
                   labels[start:].ctypes.data, found[start:].ctypes.data)

    with ThreadPoolExecutor(workers) as threads:  # ctypes lets them run at the same time
        try:
            for thread in [threads.submit(work) for _ in range(min(workers, -(-len(paths) // chunk)))]:
                thread.result()
        finally:
            for _ in starts:  # after Ctrl-C no thread finds another chunk
                pass
    return found


def ranks(paths: Sequence[str], labels: np.ndarray, classes: int, workers: int) -> np.ndarray:
    """int32 [len(paths)]: how many classes come before the label in each prediction; equal scores by rising class.

    labels: int64 [len(paths)], 0 to classes - 1. Exits with one sentence about the first file that is damaged or has
    another number of classes.
    """
    found = fast_ranks(paths, labels, classes, workers)
    for i in np.flatnonzero(found < 0).tolist():
        scores, label = read_result(paths[i]), labels[i]
        if len(scores) != classes:
            refuse(f"{paths[i]!a} holds {len(scores)} values, but {paths[0]!a} holds {classes}")
        found[i] = np.count_nonzero(scores > scores[label]) + np.count_nonzero(scores[:label] == scores[label])
    return found


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
    found = ranks(paths, indices, classes, workers)
    counts = np.bincount(found[(0 <= found) & (found < classes)], minlength=classes)
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
                        help="threads (default: %(default)s, the cores)")
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
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python's own end cannot be interrupted cleanly
