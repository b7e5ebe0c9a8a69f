"""One result file, as ais_bench writes it, and a folder of such files."""

import contextlib
import io
import os
import re
from typing import Dict, Iterator, NoReturn, Sequence

from common.core import record
from common.core.cli import Refusal, shown, some
from common.core.files import checksum, read_regular
from common.core.names import FORMATS, RESULT

import numpy as np

NUMBER = re.compile(rb"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
# The ends of results' names, all of one length. ais_bench counts a model's outputs from 0; the
# older tool, benchmark.x86_64, counted them from 1 (in result/dumpOutput_device0/).
OLDER_ENDINGS = ("_1.txt", "_1.bin")
ENDINGS = {*(f"_0.{outfmt.lower()}" for outfmt in FORMATS), *OLDER_ENDINGS}
ENDING = len("_0.txt")
FLOAT16_BYTES = 2  # of one value
CHUNK = 256  # results that are read at once
RESULTS_ADVICE = "name the folder that the inference wrote, such as ./result"


# ---- one result file -----------------------------------------------------------------------------


def encode(sample: np.ndarray, outfmt: str) -> bytes:
    """The content of the result file of one sample.

    sample: float32 [classes], or of any other shape; outfmt: one of FORMATS.
    """
    if outfmt == "TXT":
        values = sample.reshape(-1).tolist()
        return ("%f " * len(values) % tuple(values)).encode() + b"\n"
    if outfmt == "NPY":
        buffer = io.BytesIO()
        np.save(buffer, sample[None], allow_pickle=False)
        return buffer.getvalue()
    return np.ascontiguousarray(sample).tobytes()


def parse_txt(data: bytes, path: str, classes: int = 0) -> np.ndarray:
    """float64 [classes] from one line of decimal numbers.

    Only of the older tool a line is whole without its end, if it has all values.
    """
    is_older = path.endswith(OLDER_ENDINGS) and data.endswith(b" ")
    has_all = is_older and len(data.split()) == classes
    if not data.endswith(b"\n") and not has_all:
        raise Refusal(
            f"{shown(path)} is half a file: it has no closing newline; run the inference again"
        )
    lines = data.count(b"\n")
    if lines > 1:
        raise Refusal(
            f"{shown(path)} holds {lines} lines; one sample per file was expected, because nothing "
            "says which line of a batch is which image"
        )
    words = data.split()
    plain = not data.translate(None, b"0123456789+-.eE \n")
    if plain:  # then float() takes exactly what NUMBER does, and is quicker
        with contextlib.suppress(ValueError):
            return np.array(list(map(float, words)), np.float64)
    for place, word in enumerate(words, 1):
        if not NUMBER.fullmatch(word):
            infinite = word.lstrip(b"-+").lower() in (b"nan", b"inf", b"infinity")
            problem = "not finite" if infinite else "not a number"
            raise Refusal(
                f"{shown(path)}: value {place} is {word[:40].decode('latin-1')!a}, {problem}"
            )
    return np.array([float(word) for word in words], np.float64)


def parse_bin(data: bytes, path: str, classes: int = 0) -> np.ndarray:
    """float32 [classes] from the raw little-endian array.

    A model that was compiled with atc's --output_type=FP16 writes float16. Only the number of
    classes shows that.
    """
    if classes and len(data) == FLOAT16_BYTES * classes:
        return np.frombuffer(data, "<f2").astype(np.float32)
    if len(data) % 4:
        raise Refusal(
            f"{shown(path)} is half a file: its {len(data)} bytes are not a multiple of 4 (float32)"
        )
    return np.frombuffer(data, "<f4").astype(np.float32)


def parse_npy(data: bytes, path: str) -> np.ndarray:
    """float32 or float64 [classes] from a NumPy file, shaped [classes] or [1, classes].

    Pickled objects are not read.
    """
    stream = io.BytesIO(data)
    try:
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[np.lib.format.read_magic(stream)]
        shape, _, dtype = read_header(stream)
    except Exception as error:  # the parser of the header, a Python literal, raises many types
        raise Refusal(
            f"{shown(path)} is not a whole NumPy file ({type(error).__name__}: "
            f"{ascii(str(error)[:80])})"
        ) from None
    if dtype.kind not in "fiu":
        raise Refusal(f"{shown(path)} holds {ascii(str(dtype))} values; numbers were expected")
    values = 1
    for length in shape:
        values *= int(length)
    rest = data[stream.tell() :]
    if min(shape, default=1) < 0 or len(rest) != values * dtype.itemsize:
        raise Refusal(
            f"{shown(path)} is half a file: {len(rest)} bytes follow its header, "
            f"{values * dtype.itemsize} were expected"
        )
    if len(shape) == 0 or values != shape[-1]:
        raise Refusal(
            f"{shown(path)} has the shape {shape}; one sample per file was expected, [classes] or "
            "[1, classes]"
        )
    fits_float32 = dtype.itemsize <= 4 and dtype.kind == "f"
    return np.frombuffer(rest, dtype).astype(np.float32 if fits_float32 else np.float64)


def read_result(path: str, classes: int = 0) -> np.ndarray:
    """The prediction in one result file (.txt, .bin, .npy).

    classes: of the model, 0 if nobody knows; see parse_bin().
    Returns float32 or float64 [classes], all finite.
    Raises: Refusal if the file is damaged, a link or not a file, holds NaN or infinity, or more
    than one sample.
    """
    return parse_result(read_regular(path, follow_links=False), path, classes)


def parse_result(data: bytes, path: str, classes: int = 0) -> np.ndarray:
    """read_result() for the content of a file."""
    if not data:
        raise Refusal(f"{shown(path)} is empty; run the inference again")
    suffix = os.path.splitext(path)[1]
    if suffix == ".npy":
        values = parse_npy(data, path)
    else:
        values = {".txt": parse_txt, ".bin": parse_bin}[suffix](data, path, classes)
    if not len(values):
        raise Refusal(f"{shown(path)} holds no values")
    if not np.isfinite(values).all():
        place = int(np.flatnonzero(~np.isfinite(values))[0])
        raise Refusal(f"{shown(path)}: value {place + 1} is {values[place]}, not finite")
    return values


def percent(part: float, total: float) -> float:
    """Per cent, rounded to two decimals; 100 only if it is all of them."""
    value = round(100 * part / total, 2)
    return value if part == total else min(value, 99.99)


# ---- a folder of them ----------------------------------------------------------------------------


def refuse_foreign(folder: str, names: Sequence[str]) -> NoReturn:
    """Say which files in the result folder are not results, or not of one kind."""
    matches = {name: RESULT.fullmatch(name) for name in names}
    foreign = [name for name, match in matches.items() if not match]
    if foreign:
        unfinished = any(name.endswith(".part") for name in foreign)
        half = "; .part is half a file of an interrupted run" if unfinished else ""
        raise Refusal(
            f"{shown(folder)} holds other files than results (STEM_0.txt, .bin or .npy): "
            f"{some(foreign)}{half}; move them away"
        )
    outputs = [name for name, match in matches.items() if match and match.group(2) != "0"]
    if outputs:
        raise Refusal(
            f"{shown(folder)} holds several outputs per image ({some(outputs)}); one, the class "
            "scores STEM_0, was expected"
        )
    formats = {match.group(3): name for name, match in matches.items() if match}
    raise Refusal(
        f"{shown(folder)} holds results in several formats ({some(formats.values())}); move those "
        "of another run away"
    )


def result_files(folder: str) -> Dict[str, str]:
    """{stem: path} of the results STEM_0.txt (or .bin, .npy) in a folder, sorted by name.

    Instead all may be STEM_1.txt or STEM_1.bin, as the older tool calls them.
    Raises: Refusal if the folder is missing or empty, or holds anything else: other names, several
    formats, several outputs per image. read_result() refuses links and folders with such names.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise Refusal(
            f"cannot read the result folder {shown(folder)}: {error.strerror}; {RESULTS_ADVICE}"
        ) from None
    if not names:
        raise Refusal(f"{shown(folder)} holds no results; {RESULTS_ADVICE}")
    endings = {name[-ENDING:] for name in names}
    of_one_kind = len(endings) == 1 and endings <= ENDINGS
    without_stem = min(map(len, names)) == ENDING
    hidden = "." in {name[0] for name in names}
    if not of_one_kind or without_stem or hidden:
        refuse_foreign(folder, names)
    start = os.path.join(folder, "")
    return {name[:-ENDING]: start + name for name in names}


def chunks(
    paths: Dict[str, str], stems: Sequence[str], size: int = CHUNK, classes: int = 0
) -> Iterator[np.ndarray]:
    """The results of the stems in their order: arrays [up to `size`, classes].

    They are float32, or float64 where the files hold more digits (TXT is read as float64).
    paths: {stem: path}, as result_files() gives them; classes: see read_result().
    Raises: Refusal as read_result() does, for a result with another number of classes than the
    first one has, and for results that are not what the record of their folder says.
    """
    expected = 0
    for start in range(0, len(stems), size):
        rows = []
        checksums: Dict[str, Dict[str, str]] = {}  # by folder: {file name: of what was read}
        for stem in stems[start : start + size]:
            data = read_regular(paths[stem], follow_links=False)
            folder, name = os.path.split(paths[stem])
            checksums.setdefault(folder, {})[name] = checksum(data)
            row = parse_result(data, paths[stem], classes)
            expected = expected or len(row)
            if len(row) != expected:
                raise Refusal(
                    f"{shown(paths[stem])} holds {len(row)} values, but "
                    f"{shown(paths[stems[0]])} holds {expected}"
                )
            rows.append(row)
        for folder, of_folder in checksums.items():
            record.check_results(folder, of_folder)
        yield np.stack(rows)


def answers(paths: Dict[str, str], stems: Sequence[str], classes: int = 0) -> np.ndarray:
    """int64 [stems]: the network's answer for each image, the class of the highest score.

    Of equal scores the lower class counts. Arguments and errors: as for chunks().
    """
    rows = chunks(paths, stems, classes=classes)
    return np.concatenate([scores.argmax(1) for scores in rows])


def are_all_equal(paths: Sequence[str]) -> bool:
    """Whether several result files have the same content; the first that differs ends the search.

    Raises: Refusal for a file that cannot be read.
    """
    contents = (read_regular(path, follow_links=False) for path in paths)
    first = next(contents, b"")
    return len(paths) > 1 and all(content == first for content in contents)
