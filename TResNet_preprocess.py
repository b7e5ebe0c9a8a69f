#!/usr/bin/env python3
"""Images to network inputs: one .bin for each image, the same bytes as timm's evaluation transform gives.

    python3 TResNet_preprocess.py ./ImageNet/val_union ./prep_dataset
    python3 TResNet_preprocess.py ./ImageNet/val ./prep_uint8 --dtype uint8 --skip-bad -j 8

In:   every image under SRC, in one folder or in class folders, by suffix in any case.
Out:  DST/<stem>.bin          float32 [3, 224, 224], RGB in 0..1, little-endian, no header: 602,112 bytes;
                              or with --dtype uint8 [224, 224, 3], 0..255: 150,528 bytes
      DST/manifest.jsonl      what each .bin was made from, and which images were bad and why
      DST/val_label.txt       only where all images lie in class folders: `<stem> <class index>` lines
A run that was stopped, by whatever, is continued by running the same command again.
Exit status: 0 done, 1 failure or bad images (all others are done), 2 wrong usage, 130 Ctrl-C, 143 SIGTERM.
"""
import argparse
import collections
import contextlib
import errno
import fcntl
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace
from typing import Any, BinaryIO, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

VERSION = "1.0.0"
TOOL = "TResNet_preprocess.py"
MANIFEST = "manifest.jsonl"
LABELS = "val_label.txt"

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # no others: Pillow would run Ghostscript for EPS

IMG_SIZE = 224      # pixels, each side of what the network sees
CROP_PCT = 0.875    # of the resized image's shorter side, 256 pixels for 224; timm's figure for TResNet
BYTES = {"float32": 4, "uint8": 1}  # of one value
MAX_BATCH = 64      # images handed to a worker at once: as many as it can do in about
BATCH_SECONDS = 0.05  # seconds, which is what a killed run has to do again
SYNC_EVERY = 10.0   # seconds; what a power loss can cost
TIMEOUT = 60.0      # seconds for one image
COMPILE_FROM = 300  # images; compiling takes 0.2 to 0.4 s, and then saves about 1.5 ms an image
FAST_LIMIT = 1 << 24  # pixels or file bytes; what is larger is left to Pillow, which reads piece by piece


# ---- files and names, used by the other steps as well

def write_whole(path: str, data: Any, durable: bool = False) -> None:
    """Write a file that appears whole under its name or not at all, with mode 0640 less what the umask takes away.

    `data` is bytes or any contiguous buffer. With `durable` it is on the disk before it appears: a power loss cannot
    leave it empty. Raises OSError; `path`.part is gone then.
    """
    part = path + ".part"
    try:
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o640)
        try:
            rest = memoryview(data).cast("B")
            while rest:  # one write may stop short
                rest = rest[os.write(file, rest):]
            if durable:
                os.fsync(file)
        finally:
            os.close(file)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def shown(name: str) -> str:
    """A file name for a message: as it is if that is harmless, otherwise quoted with escapes, as repr() does."""
    return name if name.isprintable() and name == name.strip() != "" else repr(name)


def without_suffix(name: str) -> str:
    """The name less its image suffix, in any case; other dots stay: 'a.b.JPEG' -> 'a.b', 'a.txt' -> 'a.txt'."""
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[:len(name) - len(suffix)]


def hashed_stem(relative_path: str) -> str:
    """A stem for any path: the safe characters of its base name, '-', 12 hex digits of the path's SHA-256."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", without_suffix(os.path.basename(relative_path)))[:80]
    safe = re.sub(r"^(-|$)", "_", safe)  # a leading dash would be taken for an option
    return safe + "-" + hashlib.sha256(os.fsencode(relative_path)).hexdigest()[:12]


def bin_stem(relative_path: str, clashes: bool) -> str:
    """The stem of an image's .bin: its own name where that is plain and unique, otherwise hashed_stem().

    ais_bench cuts a name at its first dot, and its later versions accept only [_A-Za-z0-9/.-] in a path.
    """
    stem = without_suffix(relative_path)
    if not clashes and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,199}", stem):  # file systems allow 255 with suffixes
        return stem
    return hashed_stem(relative_path)


def name_bins(sources: Iterable[str]) -> Dict[str, str]:
    """{source: stem of its .bin}, all different whatever the names are, independent of their order."""
    plain = {source: bin_stem(source, False) for source in sources}
    hashed = {source: hashed_stem(source) for source in plain}
    taken, count = set(hashed.values()), collections.Counter(plain.values())
    stems = {source: bin_stem(source, count[stem] > 1 or (stem in taken and stem != hashed[source]))
             for source, stem in plain.items()}
    owner = {stem: source for source, stem in stems.items()}
    for source, stem in stems.items():
        if owner[stem] != source:
            raise SystemExit(f"{TOOL}: {shown(source)} and {shown(owner[stem])} would both become {stem}.bin; "
                             "rename one of them")
    return stems


def read_rows(folder: str) -> Tuple[Dict[str, Any], List[Dict[str, Any]], int]:
    """(header, image rows in order, how many of those were on the disk for certain) of a folder's manifest."""
    try:
        with open(os.path.join(folder, MANIFEST), encoding="ascii", errors="replace") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return {}, [], 0
    parsed: List[Any] = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):  # the last line of a killed run may be torn
            parsed.append(json.loads(line))
    if not parsed or not isinstance(parsed[0], dict) or parsed[0].get("tool") != TOOL:
        return {}, [], 0
    rows = [row for row in parsed[1:] if isinstance(row, dict) and isinstance(row.get("source"), str)]
    synced = [row["synced"] for row in parsed[1:] if isinstance(row, dict) and isinstance(row.get("synced"), int)]
    return parsed[0], rows, max(synced, default=0)


def read_manifest(folder: str) -> Tuple[Dict[str, Any], Dict[str, Dict[str, Any]]]:
    """(header, {source: its last entry}) of a prepared folder, ({}, {}) if it has no manifest of ours.

    An entry is {"bin", "source", "size", "mtime_ns"} of a finished image, or {"source", "error"} of a bad one.
    """
    header, rows, _ = read_rows(folder)
    return header, {row["source"]: row for row in rows}


# ---- what there is to do

def find_images(folder: str) -> Tuple[Dict[str, Tuple[int, int]], Dict[str, str]]:
    """({source: (size, mtime_ns)}, {source: reason}) of all images under a folder, and of what only looks like one.

    Links are followed, but no folder is entered twice and none that the folder itself lies in: loops end.
    """
    images: Dict[str, Tuple[int, int]] = {}
    bad: Dict[str, str] = {}
    doubtful: List[str] = []  # folders named like images
    entered, above = set(), os.path.realpath(folder)
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        entered.add((os.stat(above).st_dev, os.stat(above).st_ino))
    real, linked = [""], []  # type: List[str], List[str]
    while real or linked:
        relative = real.pop() if real else linked.pop(0)
        try:
            status = os.stat(os.path.join(folder, relative))
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(folder, relative)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            bad[relative or "."] = f"folder cannot be read: {error.strerror}"
            continue
        for entry in entries:
            source, named_image = os.path.join(relative, entry.name), entry.name.lower().endswith(SUFFIXES)
            try:
                status = entry.stat()
            except OSError as error:
                if named_image:
                    bad[source] = ("broken link" if entry.is_symlink() else f"cannot be read: {error.strerror}")
                continue
            if stat.S_ISDIR(status.st_mode):
                (linked if entry.is_symlink() else real).append(source)
                doubtful += [source] if named_image else []
            elif named_image and stat.S_ISREG(status.st_mode):
                images[source] = status.st_size, status.st_mtime_ns
            elif named_image:
                bad[source] = "not a regular file"
    bad.update((source, "a folder without images, named like an image") for source in doubtful
               if not any(image.startswith(source + "/") for image in images))
    return images, bad


def natural_key(name: str) -> List[Any]:
    """Sorts 'class10' after 'class9', as timm sorts class folders: a network trained with timm numbers them so."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name.lower())] + [name]


def read_class_map(path: str) -> Dict[str, int]:
    """{class folder: index} from `FOLDER INT` lines, or from one folder name a line, where the first line is 0."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().rstrip().split("\n")
    except OSError as error:
        raise SystemExit(f"{TOOL}: cannot read the class map {shown(path)}: {error.strerror}") from None
    numbered = any(re.fullmatch(r".*\S\s+[0-9]+\s*", line) for line in lines)
    classes: Dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        match = re.fullmatch(r"\s*(.*\S)\s+([0-9]{1,9})\s*" if numbered else r"\s*(.*\S)()\s*", line)
        if not match or classes.setdefault(match[1], int(match[2] or number - 1)) != int(match[2] or number - 1):
            raise SystemExit(f"{TOOL}: {shown(path)}, line {number}: expected `CLASS_FOLDER INT`, each folder once "
                             f"(or one folder name in every line), found {shown(line[:80])}")
    return classes


def class_labels(images: Iterable[str], stems: Dict[str, str], class_map: Optional[str]) -> Optional[bytes]:
    """The text of val_label.txt if every image lies in a class folder, otherwise None."""
    folders = {source: os.path.dirname(source) for source in images}
    if not all(folder and "/" not in folder for folder in folders.values()):
        if class_map:
            raise SystemExit(f"{TOOL}: --class-map is for images in class folders (SRC/CLASS/IMAGE), but "
                             f"{shown(next(s for s, f in folders.items() if not f or '/' in f))} is not in one")
        return None
    names = sorted(set(folders.values()), key=natural_key)
    classes = read_class_map(class_map) if class_map else {name: index for index, name in enumerate(names)}
    for name in names:
        if name not in classes:
            raise SystemExit(f"{TOOL}: {shown(str(class_map))} has no line for the class folder {shown(name)}")
    return "".join(f"{stems[source]} {classes[folder]}\n" for source, folder in folders.items()).encode("ascii")


# ---- one image

def resized_size(width: int, height: int, short: int) -> Tuple[int, int]:
    """(width, height) in pixels after the shorter side became `short`; the longer one is rounded down, as in timm."""
    return (short, int(short * height / width)) if width < height else (int(short * width / height), short)


def crop_offset(size: int, kept: int) -> int:
    """First pixel of a centre crop; Python rounds halves to even, as in timm."""
    return int(round((size - kept) / 2.0))


def reference_crop(image: Any, img_size: int) -> Any:
    """uint8 [img_size, img_size, 3] of a Pillow image, by Pillow alone: what everything else is measured against.

    The two passes of the resize are asked for one by one: Pillow 13 took to doing the vertical one first for tall
    images, which rounds otherwise. The columns that the crop drops need no vertical pass.
    """
    import numpy as np
    from PIL import Image
    image = image if image.mode == "RGB" else image.convert("RGB")
    width, height = resized_size(image.width, image.height, math.floor(img_size / CROP_PCT))
    left, top = crop_offset(width, img_size), crop_offset(height, img_size)
    image = image.resize((width, image.height), Image.BILINEAR).crop((left, 0, left + img_size, image.height))
    image = image.resize((img_size, height), Image.BILINEAR).crop((0, top, img_size, top + img_size))
    return np.asarray(image)


def network_input(pixels: Any, dtype: str) -> bytes:
    """uint8 [height, width, 3] to the bytes of a .bin: uint8 as they are, or float32 [3, height, width] in 0..1."""
    import numpy as np
    if dtype == "uint8":
        return pixels.tobytes()
    return (np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype("<f4") / np.float32(255)).tobytes()


def convert(file: BinaryIO, img_size: int, dtype: str, fast: Optional[Callable[..., Any]] = None,
            size: int = FAST_LIMIT) -> Any:
    """The bytes of an image file's .bin; raises whatever Pillow raises for a bad image, and ValueError.

    size: that of the file in bytes, if known: reading sets aside all the memory that it is asked for.
    """
    from PIL import Image
    small = file.seek(0, os.SEEK_END) < FAST_LIMIT
    file.seek(0)
    data = file.read() if small else b""
    image = Image.open(io.BytesIO(data) if small else file, formats=FORMATS)  # reads no more than the header
    width, height = resized_size(image.width, image.height, math.floor(img_size / CROP_PCT))
    if max(image.width * image.height, width * height) > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"decompression bomb: {image.width}x{image.height} pixels, resized {width}x{height}, are more "
                         f"than {Image.MAX_IMAGE_PIXELS:,} in all")
    if fast and small and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        result = fast(data, image.width, image.height)
        if result is not None:
            return result
    return network_input(reference_crop(image, img_size), dtype)


def reason(error: Exception) -> str:
    """Why an image is bad, in a few words."""
    from PIL import Image, UnidentifiedImageError
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than twice {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in no format known here"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(" ".join(text.split())[:200])


# ---- the fast path for JPEG: simplejpeg decodes into an array, compiled C resizes only what is kept

@functools.lru_cache(maxsize=1024)
def resize_weights(size: int, resized: int, first: int, kept: int) -> Tuple[Any, Any]:
    """Pillow's bilinear weights for pixels first..first+kept of an axis resized from `size` to `resized` pixels.

    Returns (int32 [kept]: first source pixel, int32 [kept, taps]: weights in 1/2**22), computed in double precision
    in the order of Pillow's precompute_coeffs() and normalize_coeffs_8bpc() (src/libImaging/Resample.c).
    """
    import numpy as np
    scale = size / resized
    support = max(scale, 1.0)
    centre = (np.arange(first, first + kept) + 0.5) * scale
    low = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + support + 0.5).astype(np.int64), size)
    taps = int((high - low).max())
    start = np.minimum(low, size - taps)  # all rows of weights equally long, none beyond the edge
    source = start[:, None] + np.arange(taps)
    weights = np.maximum(1.0 - np.abs((source - centre[:, None] + 0.5) * (1.0 / support)), 0.0)
    weights[(source < low[:, None]) | (source >= high[:, None])] = 0.0
    total = np.zeros(kept)
    for tap in range(taps):  # one after the other: np.sum adds in another order
        total += weights[:, tap]
    return start.astype(np.int32), (0.5 + weights / total[:, None] * (1 << 22)).astype(np.int32)


@functools.lru_cache(maxsize=256)
def split_weights(size: int, resized: int, first: int, kept: int) -> Any:
    """The weights of resize_weights() once more, as AVX2 multiplies them: x_split of TResNet_preprocess.c, int16."""
    import numpy as np
    _, weights = resize_weights(size, resized, first, kept)
    weights = np.pad(weights, ((0, 0), (0, -weights.shape[1] % 4))).reshape(kept, -1, 1, 2, 1, 2)
    return np.concatenate([weights >> 11, weights & 2047], 2).astype(np.int16).repeat(4, 4)


def has_avx2() -> bool:
    """Whether this CPU has the 256-bit integer instructions; what was compiled for them must not run without."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return bool(re.search(r"^flags\s*:.* avx2( |$)", file.read(), re.MULTILINE))


def compiled(name: str, pays: bool) -> Any:
    """The C file `name` beside this one as a loaded library, compiled at first use if that `pays` for so much work.

    Raises RuntimeError with the reason if there is none, empty if it would not pay.
    """
    import ctypes
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    try:
        with open(source, "rb") as file:
            text = file.read()
        flags = ["-std=gnu99", "-O3", "-shared", "-fPIC"] + (["-mavx2"] if has_avx2() else [])
        key = hashlib.sha256(repr((text, flags, os.uname().machine)).encode()).hexdigest()[:16]
        cache = os.path.join(os.path.dirname(source), "__pycache__")
        library = os.path.join(cache, f"{name[:-len('.c')]}-{key}.so")
        if os.access(library, os.R_OK):
            return ctypes.CDLL(library)
        compiler = shutil.which("cc") or shutil.which("gcc")
        if not pays or not compiler:
            raise RuntimeError("no C compiler (cc, gcc) is installed" if pays else "")
        with contextlib.suppress(OSError):  # where the program cannot be written to, it is compiled every time
            os.makedirs(cache, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache if os.access(cache, os.W_OK) else None) as scratch:
            made = os.path.join(scratch, "made.so")
            subprocess.run([compiler] + flags + [source, "-o", made], check=True, timeout=60,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            loaded = ctypes.CDLL(made)
            with contextlib.suppress(OSError), open(made, "rb") as file:
                os.fsync(file.fileno())
                os.replace(made, library)  # several runs may do this at once: each has its own, whole
            return loaded
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"its C part cannot be compiled or loaded ({shown(str(error))})") from None


def fast_path(images: int, img_size: int, dtype: str) -> Callable[[bytes, int, int], Any]:
    """The function (JPEG bytes, width, height) -> .bin bytes, or None for Pillow to do it.

    Raises RuntimeError with the reason if there is none, empty if it would not pay for so few images.
    """
    import ctypes

    import numpy as np
    try:
        import simplejpeg
    except ImportError:
        raise RuntimeError("simplejpeg is not installed") from None
    kernel = compiled("TResNet_preprocess.c", images >= COMPILE_FROM).crop_resize
    pointer, integer = ctypes.c_void_p, ctypes.c_ssize_t
    kernel.argtypes = [pointer, integer, integer, pointer, pointer, pointer, integer, pointer, pointer, integer,
                       pointer, pointer, pointer, pointer]
    kernel.restype = None
    short = math.floor(img_size / CROP_PCT)
    sums = np.empty(3 * img_size, np.int32)
    result = np.empty(3 * img_size * img_size, dtype)
    planes, pixels = (result.ctypes.data, None) if dtype == "float32" else (None, result.ctypes.data)
    buffers = {"image": np.empty(0, np.uint8), "rows": np.empty(0, np.uint8)}  # they grow with the images, and stay

    def buffer(name: str, size: int) -> Any:
        if buffers[name].size < size:
            buffers[name] = np.empty(size, np.uint8)
        return buffers[name][:size]

    def convert_jpeg(data: bytes, width: int, height: int) -> Any:
        if width * height > FAST_LIMIT:
            return None
        try:
            image = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer("image", width * height * 3 + 16)[:-16])
        except ValueError:  # broken, or only doubtful: Pillow decides
            return None
        if image.shape != (height, width, 3):
            return None
        new_width, new_height = resized_size(width, height, short)
        x_axis = width, new_width, crop_offset(new_width, img_size), img_size
        (x_first, x_weights), x_split = resize_weights(*x_axis), split_weights(*x_axis)
        y_first, y_weights = resize_weights(height, new_height, crop_offset(new_height, img_size), img_size)
        rows = buffer("rows", (int(y_first[-1] - y_first[0]) + y_weights.shape[1]) * 3 * img_size)
        kernel(image.ctypes.data, width, img_size, x_first.ctypes.data, x_weights.ctypes.data, x_split.ctypes.data,
               x_weights.shape[1], y_first.ctypes.data, y_weights.ctypes.data, y_weights.shape[1], rows.ctypes.data,
               sums.ctypes.data, planes, pixels)
        return result

    from PIL import Image
    noise = Image.merge("RGB", [Image.effect_noise((171, 203), sigma) for sigma in (20, 60, 100)])
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        noise.save(file, "JPEG", subsampling=subsampling)
        file.seek(0)
        expected, found = convert(file, img_size, dtype), convert_jpeg(file.getvalue(), noise.width, noise.height)
        if found is None or found.tobytes() != expected:
            raise RuntimeError("its result differs from that of the Pillow installed here")
    return convert_jpeg


# ---- worker processes

def serve(connection: Any, progress: Any, slot: int, parent: int, work: Callable[[Any], Any]) -> None:
    """A worker: takes lists of jobs, gives back lists of results; progress[slot] says which job it is at, from 1."""
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: does not outlive its parent
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others print to it, without the image's name
    while True:
        results = []
        for position, job in enumerate(connection.recv(), 1):
            progress[slot] = position
            results.append(work(job))
        connection.send(results)


def run_workers(all_jobs: Iterable[Any], work: Callable[[Any], Any], workers: int, timeout: float,
                lost: Callable[[Any, str], Any]) -> Iterator[List[Any]]:
    """Yield lists of the results of work(job), run in processes; lost(job, why) for one that killed or hung its worker.

    Every worker has its own pipe, so that its end is noticed; it is replaced, and the rest of its jobs is done again.
    """
    import mmap
    import multiprocessing
    import selectors
    jobs = collections.deque(all_jobs)
    context = multiprocessing.get_context("fork")
    progress = mmap.mmap(-1, workers)  # a byte for each worker
    selector = selectors.DefaultSelector()
    idle_deaths = 0

    def start(slot: int) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, progress, slot, os.getpid(), work), daemon=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # until it has its own handlers
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
        theirs.close()
        worker = SimpleNamespace(process=process, connection=ours, slot=slot, batch=1, jobs=[], seen=0, waited=0.0)
        selector.register(ours, selectors.EVENT_READ, worker)
        give(worker)

    def give(worker: SimpleNamespace) -> None:
        size = max(1, min(worker.batch, len(jobs) // (2 * workers)))  # smaller in the end: all end at the same time
        worker.jobs = [jobs.popleft() for _ in range(min(size, len(jobs)))]
        worker.given = time.monotonic()
        progress[worker.slot] = worker.seen = 0
        worker.waited = 0.0
        if worker.jobs:
            with contextlib.suppress(OSError):  # it has died: its pipe says so next time
                worker.connection.send(worker.jobs)

    def busy() -> List[SimpleNamespace]:
        return [key.data for key in selector.get_map().values() if key.data.jobs]

    def end(worker: SimpleNamespace) -> None:
        worker.process.kill()
        selector.unregister(worker.connection)
        worker.connection.close()

    try:
        for slot in range(workers):
            start(slot)
        tick = min(1.0, timeout / 4)
        before = time.monotonic()
        while busy():
            dead: List[Tuple[SimpleNamespace, str]] = []
            for key, _ in selector.select(tick):
                try:
                    results = key.data.connection.recv()
                except (EOFError, OSError):
                    key.data.process.join(5)
                    code = key.data.process.exitcode or 0
                    dead.append((key.data, "its worker process was ended by " + (
                        f"signal {-code} (9 often means: out of memory)" if code < 0 else f"exit status {code}")))
                else:
                    quick = time.monotonic() - key.data.given < BATCH_SECONDS
                    key.data.batch = min(MAX_BATCH, key.data.batch * 2) if quick else max(1, key.data.batch // 2)
                    give(key.data)
                    yield results
            now = time.monotonic()
            passed, before = min(now - before, 2 * tick), now  # this process, too, may have been stopped for a while
            for worker in busy():
                worker.waited = worker.waited + passed if progress[worker.slot] == worker.seen else 0.0
                worker.seen = progress[worker.slot]
                if worker.waited > timeout and worker not in [gone for gone, _ in dead]:
                    dead.append((worker, f"took longer than {timeout:g} s"))
            for worker, why in dead:
                end(worker)
                worker.process.join(5)
                position = progress[worker.slot]
                culprit = worker.jobs.pop(position - 1) if position and worker.jobs else None
                jobs.extendleft(reversed(worker.jobs))
                idle_deaths += culprit is None
                if idle_deaths > 100:
                    raise SystemExit(f"{TOOL}: the worker processes keep being ended from outside ({why}); "
                                     "is there enough memory? Try fewer --workers")
                if culprit is not None:
                    yield [lost(culprit, why)]
                if jobs:
                    start(worker.slot)
    except (BlockingIOError, MemoryError) as error:
        raise SystemExit(f"{TOOL}: cannot start a worker process ({error}); try fewer --workers") from None
    finally:
        for key in list(selector.get_map().values()):
            end(key.data)


# ---- the run

def boot_id() -> str:
    """A text that changes whenever the machine starts anew; '' where there is none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def check_folders(source: str, target: str) -> None:
    """Refuse a SRC and DST that cannot be meant, before anything is written."""
    if not os.path.isdir(source):
        raise SystemExit(f"{TOOL}: SRC must be a folder of images, but {shown(source)} "
                         + ("is not a folder" if os.path.lexists(source) else "does not exist"))
    real_source, real_target = os.path.realpath(source), os.path.realpath(target)
    if real_source == real_target:
        raise SystemExit(f"{TOOL}: SRC and DST are the same folder, {shown(source)}; give DST a folder of its own")
    for inner, outer, text in ((real_target, real_source, "DST is inside SRC"), (real_source, real_target,
                                                                                 "SRC is inside DST")):
        if os.path.commonpath([inner, outer]) == outer:
            raise SystemExit(f"{TOOL}: {text} ({shown(inner)} in {shown(outer)}); give DST a folder of its own")
    existing = real_target
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise SystemExit(f"{TOOL}: DST cannot be a folder: {shown(existing)} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SystemExit(f"{TOOL}: DST cannot be written: {shown(existing)} is read-only for this user")


def check_space(target: str, needed: int) -> None:
    """Refuse to start what cannot fit on the disk; `needed` in bytes."""
    while not os.path.isdir(target):
        target = os.path.dirname(os.path.abspath(target))
    disk = os.statvfs(target)
    free = disk.f_bavail * disk.f_frsize
    if disk.f_blocks and needed > free:
        raise SystemExit(f"{TOOL}: {needed / 1e6:,.0f} MB are needed in {shown(target)}, but only {free / 1e6:,.0f} MB "
                         "are free; make room or choose a DST on another disk")


def lock(folder: str) -> None:
    """Hold a folder for this run, until the process ends, however it ends."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"{TOOL}: {shown(folder)} is being written by another run, process "
                         f"{read_manifest(folder)[0].get('pid', 'unknown')}; wait for it or stop it") from None
    except OSError:
        os.close(held)  # some network file systems have no locks


def remove_parts(folder: str) -> None:
    """Remove what killed runs and killed workers left half written."""
    with os.scandir(folder) as listing:
        parts = [entry.path for entry in listing if entry.name.endswith(".part")
                 and entry.name[:-5] in (MANIFEST, LABELS) or entry.name.endswith(".bin.part")]
    for part in parts:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def list_bad(bad: Dict[str, str]) -> None:
    """Tell which images were left out, on stderr."""
    for source, why in sorted(bad.items())[:20]:
        print(f"bad image {shown(source)}: {why}", file=sys.stderr)
    if len(bad) > 20:
        print(f"... and {len(bad) - 20} more bad images, all in {MANIFEST}", file=sys.stderr)


def parse_arguments() -> argparse.Namespace:
    def positive(convert_text: Callable[[str], Any], most: float) -> Callable[[str], Any]:
        def number(text: str) -> Any:
            value = convert_text(text)
            if not 0 < value <= most:
                raise ValueError
            return value
        number.__name__ = f"number (more than 0, at most {most:g})"  # argparse: "invalid <name> value: ..."
        return number

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", metavar="SRC", help="folder of images, or of class folders of images")
    parser.add_argument("dst", metavar="DST", help="folder for the .bin files; made if need be")
    parser.add_argument("-j", "--workers", type=positive(int, 4096), metavar="N", default=len(os.sched_getaffinity(0)),
                        help="processes (default: one for each core, here %(default)s)")
    parser.add_argument("--img-size", type=positive(int, 4096), metavar="PIXELS", default=IMG_SIZE,
                        help="of each side; images are resized to 8/7 of it first (default: %(default)s)")
    parser.add_argument("--dtype", choices=sorted(BYTES), default="float32",
                        help="float32 CHW in 0..1, or uint8 HWC for a model with AIPP (default: %(default)s)")
    parser.add_argument("--skip-bad", action="store_true", help="bad images are a warning, not a failure")
    parser.add_argument("--force", action="store_true", help="make every .bin anew, finished or not")
    parser.add_argument("--class-map", metavar="FILE",
                        help="`CLASS_FOLDER INT` lines, or one class folder a line (default: folders in natural order)")
    parser.add_argument("--timeout", type=positive(float, 1e6), metavar="SECONDS", default=TIMEOUT,
                        help="an image that takes longer is bad (default: %(default)s)")
    return parser.parse_args()


def plan(args: argparse.Namespace, images: Dict[str, Tuple[int, int]], stems: Dict[str, str], bin_size: int
         ) -> Tuple[List[Dict[str, Any]], int, List[str]]:
    """(rows of the manifest that still hold, how many of them are on the disk for certain, files of ours to remove)."""
    header, rows, synced = read_rows(args.dst)
    found: Dict[str, int] = {}
    if os.path.isdir(args.dst):
        with os.scandir(args.dst) as listing:
            found = {entry.name: entry.stat(follow_symlinks=False).st_size for entry in listing
                     if entry.name.endswith((".bin", ".npy")) or entry.name == LABELS}
    ours = {str(row.get("bin")) for row in rows} | {stem + ".bin" for stem in stems.values()} if header else set()
    strangers = sorted(name for name in found
                       if (args.labelled and not header.get("labels") if name == LABELS else name not in ours))
    if strangers:
        raise SystemExit(f"{TOOL}: {shown(args.dst)} holds files that this program did not make or cannot account for ("
                         f"{', '.join(map(shown, strangers[:5]))}{', ...' if len(strangers) > 5 else ''}; "
                         f"{len(strangers)} in all); move them away or choose another DST")
    settings = {"version": VERSION, "img_size": args.img_size, "dtype": args.dtype, "source": os.path.abspath(args.src)}
    changed = [f"{name} was {header.get(name)}" for name in settings if header and header.get(name) != settings[name]]
    if changed:
        print(f"everything is made anew: {shown(', '.join(changed))}", file=sys.stderr)
    if changed or args.force:
        rows = []
    if header.get("boot_id") != boot_id():  # what the disk had not got may be lost or empty
        rows = rows[:synced]
    last = {row["source"]: index for index, row in enumerate(rows)}
    valid = [index for source, index in last.items() if source in images
             and (rows[index].get("size"), rows[index].get("mtime_ns")) == images[source]
             and rows[index].get("bin") == stems[source] + ".bin" and found.get(stems[source] + ".bin") == bin_size]
    kept = [rows[index] for index in sorted(valid)]
    holds = {row["bin"] for row in kept} | ({LABELS} if args.labelled or not header.get("labels") else set())
    return kept, sum(index < synced for index in valid), [name for name in found if name not in holds]


def write_manifest(args: argparse.Namespace, kept: List[Dict[str, Any]], synced: int, bad: Dict[str, str]) -> None:
    """Begin the manifest of this run with what still holds from earlier ones and what is bad at first sight."""
    header = {"tool": TOOL, "version": VERSION, "img_size": args.img_size, "dtype": args.dtype,
              "source": os.path.abspath(args.src), "boot_id": boot_id(), "pid": os.getpid(), "labels": args.labelled}
    rows = [header] + kept[:synced] + [{"synced": synced}] + kept[synced:]  # type: List[Dict[str, Any]]
    rows += [{"source": source, "error": why} for source, why in sorted(bad.items())]
    write_whole(os.path.join(args.dst, MANIFEST), lines(rows), durable=True)


def lines(rows: Iterable[Dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode("ascii")  # non-UTF-8 names survive as \udcXX


def make_work(args: argparse.Namespace, images: int) -> Callable[[Tuple[str, str]], Dict[str, Any]]:
    """The function that a worker does for each (source, stem): write the .bin, return its row of the manifest."""
    import logging
    import warnings
    warnings.simplefilter("ignore")  # doubtful metadata is no news for someone who wants the pixels
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    fast = None
    try:
        fast = fast_path(images, args.img_size, args.dtype)
    except RuntimeError as error:
        if images >= COMPILE_FROM:
            print(f"note: the fast path is not used, Pillow does it all: {error}", file=sys.stderr)

    def work(job: Tuple[str, str]) -> Dict[str, Any]:
        source, stem = job
        try:
            descriptor = os.open(os.path.join(args.src, source), os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
                    raise ValueError("empty" if stat.S_ISREG(status.st_mode) else "not a regular file")
                data = convert(file, args.img_size, args.dtype, fast, status.st_size)
        except Exception as error:  # Pillow raises a dozen kinds for broken files, SyntaxError among them
            return {"source": source, "error": reason(error)}
        try:
            write_whole(os.path.join(args.dst, stem + ".bin"), data)
        except OSError as error:
            return {"source": source, "write_error": error.errno}
        return {"bin": stem + ".bin", "source": source, "size": status.st_size, "mtime_ns": status.st_mtime_ns}

    return work


def process(args: argparse.Namespace, todo: List[Tuple[str, str]], bad: Dict[str, str], kept: int) -> None:
    """Make the .bin of every (source, stem) and note it in the manifest; bad images are added to `bad`."""
    work = make_work(args, len(todo))
    bar = None
    if sys.stderr.isatty():
        import tqdm
        tqdm.tqdm.monitor_interval = 0  # no thread beside the forks
        bar = tqdm.tqdm(total=kept + len(todo), initial=kept, unit="image", smoothing=0.1)
    rows_written, syncing, covered, last_sync = kept + len(bad), None, 0, time.monotonic()
    manifest = os.open(os.path.join(args.dst, MANIFEST), os.O_WRONLY | os.O_APPEND)

    def lost(job: Tuple[str, str], why: str) -> Dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):  # it may have been finished, but nobody can tell
            os.unlink(os.path.join(args.dst, job[1] + ".bin"))
        return {"source": job[0], "error": why}

    all_results = run_workers(todo, work, min(args.workers, max(1, len(todo))), args.timeout, lost)
    try:
        with contextlib.closing(all_results):
            for rows in all_results:
                for row in rows:
                    if "write_error" in row:
                        raise OSError(row["write_error"], os.strerror(row["write_error"]))
                    if "error" in row:
                        bad[row["source"]] = row["error"]
                append(manifest, lines(rows))
                rows_written += len(rows)
                if bar:
                    bar.update(len(rows))
                if syncing is None and time.monotonic() - last_sync > SYNC_EVERY:
                    with contextlib.suppress(FileNotFoundError):
                        syncing = subprocess.Popen(["sync", "-f", args.dst], stdin=subprocess.DEVNULL,
                                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    covered, last_sync = rows_written, time.monotonic()
                elif syncing is not None and syncing.poll() is not None:
                    if syncing.returncode == 0:
                        append(manifest, lines([{"synced": covered}]))
                    syncing, last_sync = None, time.monotonic()
    finally:
        if bar:
            bar.close()
        if syncing is not None:
            syncing.kill()


def terminate(*_: Any) -> None:
    """On SIGTERM: end like on Ctrl-C, the workers too, but without a word."""
    sys.exit(143)


def append(file: int, data: bytes) -> None:
    """Write all of `data` to an open file."""
    while data:
        data = data[os.write(file, data):]


def main() -> None:
    args = parse_arguments()
    started = time.monotonic()
    signal.signal(signal.SIGTERM, terminate)
    os.umask(os.umask(0) | 0o027)  # ais_bench refuses what others could have written
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    check_folders(args.src, args.dst)
    images, bad = find_images(args.src)
    if "." in bad:
        raise SystemExit(f"{TOOL}: SRC, {shown(args.src)}: {bad['.']}")
    if not images and not bad:
        raise SystemExit(f"{TOOL}: no images in {shown(args.src)}: no file there ends in {', '.join(SUFFIXES)}")
    stems = name_bins(source for source in [*images, *bad] if source.lower().endswith(SUFFIXES))
    labels = class_labels(images, stems, args.class_map)
    args.labelled = labels is not None
    exists = os.path.isdir(args.dst)
    if exists:
        lock(args.dst)
    bin_size = 3 * args.img_size * args.img_size * BYTES[args.dtype]
    kept, synced, stale = plan(args, images, stems, bin_size)
    done = {row["source"] for row in kept}
    todo = [(source, stems[source]) for source in images if source not in done]
    freed = sum(os.lstat(os.path.join(args.dst, name)).st_size for name in stale)
    check_space(args.dst, len(todo) * (-(-bin_size // 4096) * 4096 + 256) - freed)
    try:
        os.makedirs(args.dst, exist_ok=True)
        if not exists:
            lock(args.dst)
        remove_parts(args.dst)
        for name in stale:
            os.unlink(os.path.join(args.dst, name))
        write_manifest(args, kept, synced, bad)
        if labels is not None:
            write_whole(os.path.join(args.dst, LABELS), labels)
        try:
            process(args, todo, bad, len(kept))
        finally:
            remove_parts(args.dst)  # a worker that was ended may have left one
    except OSError as error:
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "put that right"
        raise SystemExit(f"{TOOL}: cannot write to {shown(args.dst)}: {error.strerror}; {advice} and run the same "
                         "command again, it goes on from here") from None

    seconds = time.monotonic() - started
    made = len(todo) - sum(source in bad for source, _ in todo)
    list_bad(bad)
    if labels is not None:
        classes = len(set(map(os.path.dirname, images)))
        print(f"labels from {classes} class folders in {shown(os.path.join(args.dst, LABELS))}")
    print(f"{made + len(kept)} images in {shown(args.dst)}"
          + (f" ({len(kept)} were there already)" if kept else "") + (f", {len(bad)} bad ones left out" if bad else "")
          + f": {made} made in {seconds:.1f} s, {made / seconds:.1f} images/s")
    sys.exit(1 if bad and not (args.skip_bad and made + len(kept)) else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print(f"\n{TOOL}: interrupted; run the same command again, it goes on from here", file=sys.stderr)
        sys.exit(130)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python's own end cannot be interrupted cleanly
