"""One image to the network's input: timm's evaluation transform by Pillow, and a faster way that gives the same bytes.

The fast path is for JPEG: simplejpeg decodes into an array, and resize.c resizes only what the crop keeps.
"""

import ctypes
import functools
import io
import os
import stat
from typing import Any, BinaryIO, Callable, Optional, Tuple

from common.core import native
from common.core.cli import why
from common.data.evaluation import Evaluation

import numpy as np
from PIL import Image, UnidentifiedImageError

FORMATS = (
    "JPEG",
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    "TIFF",
    "WEBP",
)  # no others: Pillow would run Ghostscript for EPS

FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
BYTES = {"float32": 4, "uint8": 1}  # of one value
FAST_LIMIT = (
    1 << 24
)  # pixels or file bytes; what is larger is left to Pillow, which reads piece by piece


# ---- the reference ---------------------------------------------------------------------------------------------------


def resized_size(width: int, height: int, evaluation: Evaluation) -> Tuple[int, int]:
    """(width, height) in pixels after the resize: both sides alike for squash, else the longer one is rounded down."""
    short = evaluation.resized
    if evaluation.crop_mode == "squash":
        return short, short
    return (
        (short, int(short * height / width))
        if width < height
        else (int(short * width / height), short)
    )


def crop_offset(size: int, kept: int) -> int:
    """First pixel of a centre crop; Python rounds halves to even, as in timm."""
    return int(round((size - kept) / 2.0))


def reference_crop(image: Image.Image, evaluation: Evaluation) -> np.ndarray:
    """uint8 [img_size, img_size, 3] of an image, by Pillow alone: what everything else is measured against.

    The two passes of the resize are asked for one by one: Pillow 13 took to doing the vertical one first for tall
    images, which rounds otherwise. The columns that the crop drops need no vertical pass.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    size, method = evaluation.img_size, FILTERS[evaluation.interpolation]
    width, height = resized_size(image.width, image.height, evaluation)
    left, top = crop_offset(width, size), crop_offset(height, size)
    image = image.resize((width, image.height), method).crop((left, 0, left + size, image.height))
    image = image.resize((size, height), method).crop((0, top, size, top + size))
    return np.asarray(image)


def normalise(planes: np.ndarray, evaluation: Evaluation) -> np.ndarray:
    """float32 [3, height, width] in 0..1 less the mean, over the std; in place, in float32, as torchvision does it."""
    if evaluation.normalised:
        mean, std = (
            np.array(values, np.float32).reshape(3, 1, 1)
            for values in (evaluation.mean, evaluation.std)
        )
        np.subtract(planes, mean, out=planes)
        np.divide(planes, std, out=planes)
    return planes


def network_input(pixels: np.ndarray, dtype: str, evaluation: Evaluation) -> bytes:
    """uint8 [height, width, 3] to the bytes of a .bin: uint8 as they are, or normalised float32 [3, height, width]."""
    if dtype == "uint8":
        return pixels.tobytes()
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype("<f4") / np.float32(255)
    return normalise(planes, evaluation).tobytes()


def convert(
    file: BinaryIO, evaluation: Evaluation, dtype: str, fast: Optional[Callable[..., Any]] = None
) -> Any:
    """The bytes of an image file's .bin, of a JPEG by `fast` if that can do it.

    Raises: whatever Pillow raises for a bad image, and ValueError for one of too many pixels.
    """
    small = file.seek(0, os.SEEK_END) < FAST_LIMIT
    file.seek(0)
    data = file.read() if small else b""
    image = Image.open(
        io.BytesIO(data) if small else file, formats=FORMATS
    )  # reads no more than the header
    width, height = resized_size(image.width, image.height, evaluation)
    if (
        max(image.width * image.height, width * height, width * image.height)
        > Image.MAX_IMAGE_PIXELS
    ):
        raise ValueError(
            f"decompression bomb: {image.width}x{image.height} pixels, resized {width}x{height}, are more "
            f"than {Image.MAX_IMAGE_PIXELS:,} in all"
        )
    if fast and small and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        result = fast(data, image.width, image.height)
        if result is not None:
            return result
    return network_input(reference_crop(image, evaluation), dtype, evaluation)


def convert_file(
    path: str, evaluation: Evaluation, dtype: str, fast: Optional[Callable[..., Any]] = None
) -> Tuple[Any, os.stat_result]:
    """(convert() of the file, its status). Raises: likewise, also for what is empty or no regular file."""
    with open(
        os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0
    ) as file:  # a FIFO must not be waited for
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise ValueError("empty" if stat.S_ISREG(status.st_mode) else "not a regular file")
        return convert(file, evaluation, dtype, fast), status


def reason(error: Exception) -> str:
    """Why an image is bad, in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than twice {Image.MAX_IMAGE_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in no format known here"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = why(error)[:200]
    return text if text.isprintable() else repr(text)


# ---- the fast path ---------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def resize_weights(size: int, resized: int, first: int, kept: int) -> Tuple[np.ndarray, np.ndarray]:
    """Pillow's bilinear weights for pixels first..first+kept of an axis resized from `size` to `resized` pixels.

    Returns (int32 [kept]: first source pixel, int32 [kept, taps]: weights in 1/2**22), computed in double precision
    in the order of Pillow's precompute_coeffs() and normalize_coeffs_8bpc() (src/libImaging/Resample.c).
    """
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
def split_weights(size: int, resized: int, first: int, kept: int) -> np.ndarray:
    """The weights of resize_weights() once more, as AVX2 multiplies them: x_split of resize.c, int16."""
    _, weights = resize_weights(size, resized, first, kept)
    weights = np.pad(weights, ((0, 0), (0, -weights.shape[1] % 4))).reshape(kept, -1, 1, 2, 1, 2)
    return np.concatenate([weights >> 11, weights & 2047], 2).astype(np.int16).repeat(4, 4)


def fast_path(evaluation: Evaluation, dtype: str) -> Optional[Callable[[bytes, int, int], Any]]:
    """The function (JPEG bytes, width, height) -> .bin bytes, or None for Pillow to do it; one thread may use it.

    The bytes are valid until the next call. None for bicubic, which Pillow does. Raises: RuntimeError with the reason
    if there is no fast path here.
    """
    if evaluation.interpolation != "bilinear":
        return None
    try:
        import simplejpeg
    except ImportError:
        raise RuntimeError("simplejpeg is not installed") from None
    kernel = native.load("data/resize.c").crop_resize
    pointer, integer = ctypes.c_void_p, ctypes.c_ssize_t
    kernel.argtypes = [
        pointer,
        integer,
        integer,
        pointer,
        pointer,
        pointer,
        integer,
        pointer,
        pointer,
        integer,
        pointer,
        pointer,
        pointer,
        pointer,
    ]
    kernel.restype = None
    img_size = evaluation.img_size
    sums = np.empty(3 * img_size, np.int32)
    result = np.empty(3 * img_size * img_size, dtype)
    planes, pixels = (
        (result.ctypes.data, None) if dtype == "float32" else (None, result.ctypes.data)
    )
    buffers = {
        "image": np.empty(0, np.uint8),
        "rows": np.empty(0, np.uint8),
    }  # they grow with the images, and stay

    def buffer(name: str, size: int) -> np.ndarray:
        if buffers[name].size < size:
            buffers[name] = np.empty(size, np.uint8)
        return buffers[name][:size]

    def convert_jpeg(data: bytes, width: int, height: int) -> Optional[np.ndarray]:
        if width * height > FAST_LIMIT:
            return None
        try:
            image = simplejpeg.decode_jpeg(
                data, "RGB", buffer=buffer("image", width * height * 3 + 16)[:-16]
            )
        except ValueError:  # broken, or only doubtful: Pillow decides
            return None
        if image.shape != (height, width, 3):
            return None
        new_width, new_height = resized_size(width, height, evaluation)
        x_axis = width, new_width, crop_offset(new_width, img_size), img_size
        (x_first, x_weights), x_split = resize_weights(*x_axis), split_weights(*x_axis)
        y_first, y_weights = resize_weights(
            height, new_height, crop_offset(new_height, img_size), img_size
        )
        rows = buffer("rows", (int(y_first[-1] - y_first[0]) + y_weights.shape[1]) * 3 * img_size)
        kernel(
            image.ctypes.data,
            width,
            img_size,
            x_first.ctypes.data,
            x_weights.ctypes.data,
            x_split.ctypes.data,
            x_weights.shape[1],
            y_first.ctypes.data,
            y_weights.ctypes.data,
            y_weights.shape[1],
            rows.ctypes.data,
            sums.ctypes.data,
            planes,
            pixels,
        )
        if planes:
            normalise(result.reshape(3, img_size, img_size), evaluation)
        return result

    noise = Image.merge("RGB", [Image.effect_noise((171, 203), sigma) for sigma in (20, 60, 100)])
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        noise.save(file, "JPEG", subsampling=subsampling)
        file.seek(0)
        expected, found = (
            convert(file, evaluation, dtype),
            convert_jpeg(file.getvalue(), noise.width, noise.height),
        )
        if found is None or found.tobytes() != expected:
            raise RuntimeError("its result differs from that of the Pillow installed here")
    return convert_jpeg
