"""One image to the network's input: timm's evaluation transform by Pillow, and a faster way.

The faster way is for JPEG and gives the same bytes: simplejpeg decodes into an array, and resize.c
resizes only the pixels that the crop keeps.
"""

import ctypes
import functools
import io
import os
import stat
from typing import Any, BinaryIO, Callable, List, NamedTuple, Optional, Tuple

from common.core import native
from common.core.cli import why
from common.core.names import SUFFIXES
from common.data.evaluation import Evaluation

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

# Formats of photos, as far as the installed Pillow reads them. Only these: for EPS, Pillow would
# run Ghostscript. HEIF and JXL are there for a Pillow that reads them one day.
FORMATS = (
    *("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF", "HEIF", "JXL"),
)
# These have no mark at their beginning, so anything could be one of them: only by the suffix.
UNMARKED = {".tga": "TGA", ".dib": "DIB"}
WIDE = ("I", "F")  # how the modes begin whose values do not fit 8 bits
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
BYTES = {"float32": 4, "uint8": 1}  # of one value
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485  # of an image, before or after the resize
FAST_LIMIT = 1 << 24  # pixels, or bytes of a file; Pillow reads larger files piece by piece
Convert = Callable[[bytes, int, int], Optional[np.ndarray]]  # JPEG bytes, width, height -> .bin


class Converted(NamedTuple):
    """An image as a network takes it."""

    data: Any  # the content of its .bin, bytes or an array
    mode: str  # Pillow's mode of the image, such as RGB or I;16
    clipped: str  # see clipped_to()


# ---- the reference -------------------------------------------------------------------------------


def resized_size(width: int, height: int, evaluation: Evaluation) -> Tuple[int, int]:
    """(width, height) in pixels after the resize; the longer side is rounded down, as in timm."""
    short = evaluation.resized
    if evaluation.crop_mode == "squash":
        return short, short
    if width < height:
        return short, int(short * height / width)
    return int(short * width / height), short


def crop_offset(size: int, kept: int) -> int:
    """First pixel of a centre crop; Python rounds halves to even, as in timm."""
    return int(round((size - kept) / 2.0))


def reference_crop(image: Image.Image, evaluation: Evaluation) -> np.ndarray:
    """The reference for all other ways: resize and crop by Pillow alone.

    Returns: uint8 [img_size, img_size, 3], RGB.
    The two passes of the resize are two calls, because Pillow 13 does the vertical one first for
    tall images, and then rounds otherwise. Columns that the crop drops need no vertical pass.
    """
    image = image if image.mode == "RGB" else image.convert("RGB")
    size, method = evaluation.img_size, FILTERS[evaluation.interpolation]
    width, height = resized_size(image.width, image.height, evaluation)
    left, top = crop_offset(width, size), crop_offset(height, size)
    image = image.resize((width, image.height), method).crop((left, 0, left + size, image.height))
    image = image.resize((size, height), method).crop((0, top, size, top + size))
    return np.asarray(image)


def normalise(planes: np.ndarray, evaluation: Evaluation) -> np.ndarray:
    """Subtract the mean and divide by the std, in place and in float32, as torchvision does.

    planes: float32 [3, height, width], RGB in 0..1; this array is the result, too.
    """
    if evaluation.normalised:
        mean = np.array(evaluation.mean, np.float32).reshape(3, 1, 1)
        std = np.array(evaluation.std, np.float32).reshape(3, 1, 1)
        np.subtract(planes, mean, out=planes)
        np.divide(planes, std, out=planes)
    return planes


def network_input(pixels: np.ndarray, dtype: str, evaluation: Evaluation) -> bytes:
    """The content of a .bin.

    pixels: uint8 [height, width, 3], RGB.
    dtype: "uint8" for the pixels as they are, "float32" for [3, height, width], normalised.
    """
    if dtype == "uint8":
        return pixels.tobytes()
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype("<f4") / np.float32(255)
    return normalise(planes, evaluation).tobytes()


@functools.lru_cache(maxsize=None)
def known_formats(suffix: str) -> Tuple[str, ...]:
    """The formats of a file with this suffix, as far as the installed Pillow reads them."""
    Image.init()
    names = [*FORMATS, UNMARKED.get(suffix, "")]
    return tuple(name for name in names if name in Image.OPEN)


def clipped_to(image: Image.Image) -> str:
    """What an image becomes if its values do not fit 8 bits: "white", "black"; "" if they fit.

    Pillow cuts the values of 16 and 32 bits at 0 and 255 when it converts to RGB, and so does timm.
    """
    if not image.mode.startswith(WIDE):
        return ""
    low, high = np.ravel(image.getextrema()).tolist()
    if high > 255:
        return "white"
    return "black" if low < 0 or 0 < high <= 1 else ""


def convert(
    file: BinaryIO, evaluation: Evaluation, dtype: str, fast: Optional[Convert] = None
) -> Any:
    """The content of an image's .bin, as bytes or as an array. Arguments: see convert_image()."""
    return convert_image(file, evaluation, dtype, fast).data


def convert_image(
    file: BinaryIO,
    evaluation: Evaluation,
    dtype: str,
    fast: Optional[Convert] = None,
    suffix: str = "",
) -> Converted:
    """An image as the content of its .bin.

    fast: see fast_path(); takes a JPEG if it can. suffix: of its file, in small letters.
    Raises: any exception of Pillow for a bad image; ValueError for one of too many pixels.
    """
    is_small = file.seek(0, os.SEEK_END) < FAST_LIMIT
    file.seek(0)
    data = file.read() if is_small else b""
    stream = io.BytesIO(data) if is_small else file
    image = Image.open(stream, formats=known_formats(suffix))  # only the header
    width, height = resized_size(image.width, image.height, evaluation)
    after_first_pass = width * image.height
    if max(image.width * image.height, after_first_pass, width * height) > MOST_PIXELS:
        raise ValueError(
            f"decompression bomb: {image.width}x{image.height} pixels, resized {width}x{height}, "
            f"are more than {MOST_PIXELS:,} in all"
        )
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    if fast and is_small and is_jpeg:
        result = fast(data, image.width, image.height)
        if result is not None:
            return Converted(result, image.mode, "")
    mode, clipped = image.mode, clipped_to(image)
    return Converted(
        network_input(reference_crop(image, evaluation), dtype, evaluation), mode, clipped
    )


def convert_file(
    path: str, evaluation: Evaluation, dtype: str, fast: Optional[Convert] = None
) -> Tuple[Converted, os.stat_result]:
    """convert_image() for a path; also gives the status of the file that was read.

    Raises: as convert_image(); ValueError for a file that is empty or not a regular one, and for
    one with the suffix of a photo that the installed Pillow does not read: in a camera's raw file
    it would find the preview.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in SUFFIXES and suffix not in Image.registered_extensions():
        raise ValueError(
            f"Pillow {PIL.__version__} does not read {suffix} images; make a JPEG or PNG of it"
        )
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not block
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size == 0:
            raise ValueError("empty")
        return convert_image(file, evaluation, dtype, fast, suffix), status


def reason(error: Exception) -> str:
    """Why an image is bad, in a few words."""
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than twice {MOST_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or in no format known here"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    text = why(error)[:200]
    return text if text.isprintable() else repr(text)


# ---- the fast path -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1024)
def resize_weights(size: int, resized: int, first: int, kept: int) -> Tuple[np.ndarray, np.ndarray]:
    """Pillow's bilinear weights for an axis that is resized from `size` to `resized` pixels.

    first, kept: only for these pixels of the result.
    Returns: int32 [kept], the first source pixel of each, and int32 [kept, taps], the weights in
    units of 1 / 2**22. Computed in double precision and in the order of Pillow's
    precompute_coeffs() and normalize_coeffs_8bpc() (src/libImaging/Resample.c).
    """
    scale = size / resized
    support = max(scale, 1.0)
    centre = (np.arange(first, first + kept) + 0.5) * scale
    low = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + support + 0.5).astype(np.int64), size)
    taps = int((high - low).max())
    start = np.minimum(low, size - taps)  # all rows are equally long, none goes beyond the edge
    source = start[:, None] + np.arange(taps)
    weights = np.maximum(1.0 - np.abs((source - centre[:, None] + 0.5) * (1.0 / support)), 0.0)
    weights[(source < low[:, None]) | (source >= high[:, None])] = 0.0
    total = np.zeros(kept)
    for tap in range(taps):  # one after the other: np.sum adds in another order
        total += weights[:, tap]
    return start.astype(np.int32), (0.5 + weights / total[:, None] * (1 << 22)).astype(np.int32)


@functools.lru_cache(maxsize=256)
def split_weights(size: int, resized: int, first: int, kept: int) -> np.ndarray:
    """The weights of resize_weights() as AVX2 multiplies them: x_split of resize.c, int16."""
    _, weights = resize_weights(size, resized, first, kept)
    weights = np.pad(weights, ((0, 0), (0, -weights.shape[1] % 4))).reshape(kept, -1, 1, 2, 1, 2)
    return np.concatenate([weights >> 11, weights & 2047], 2).astype(np.int16).repeat(4, 4)


POINTER, INTEGER = ctypes.c_void_p, ctypes.c_ssize_t
KERNEL: List[Any] = [  # the arguments of crop_resize() in resize.c
    *[POINTER, INTEGER, INTEGER],  # image, width, size
    *[POINTER, POINTER, POINTER, INTEGER],  # x_first, x_weights, x_split, x_taps
    *[POINTER, POINTER, INTEGER],  # y_first, y_weights, y_taps
    *[POINTER, POINTER, POINTER, POINTER],  # rows, sums, planes, pixels
]


class FastPath:
    """Converts JPEG files, for one thread; each result is valid until the next call.

    Raises: RuntimeError with the reason if this machine cannot do it.
    """

    def __init__(self, evaluation: Evaluation, dtype: str) -> None:
        try:
            from simplejpeg import decode_jpeg
        except ImportError:
            raise RuntimeError("simplejpeg is not installed") from None
        self.decode, self.evaluation, self.is_float = decode_jpeg, evaluation, dtype == "float32"
        self.kernel = native.load("data/resize.c").crop_resize
        self.kernel.argtypes, self.kernel.restype = KERNEL, None
        size = evaluation.img_size
        self.image = self.rows = np.empty(0, np.uint8)  # they grow with the images, and stay
        self.sums = np.empty(3 * size, np.int32)
        self.result = np.empty(3 * size * size, dtype)

    def __call__(self, data: bytes, width: int, height: int) -> Optional[np.ndarray]:
        """The content of the .bin; None if Pillow has to do it, or has to say what is wrong."""
        if width * height > FAST_LIMIT:
            return None
        self.image = grown(self.image, width * height * 3 + 16)
        buffer = self.image[: width * height * 3]  # the kernel reads 16 bytes beyond its end
        try:
            image = self.decode(data, "RGB", buffer=buffer)
        except ValueError:
            return None
        if image.shape != (height, width, 3):
            return None
        self.resize(image)
        size = self.evaluation.img_size
        if self.is_float:
            normalise(self.result.reshape(3, size, size), self.evaluation)
        return self.result

    def resize(self, image: np.ndarray) -> None:
        """Resize and crop uint8 [height, width, 3] into the result."""
        height, width, _ = image.shape
        size = self.evaluation.img_size
        new_width, new_height = resized_size(width, height, self.evaluation)
        x_axis = width, new_width, crop_offset(new_width, size), size
        y_axis = height, new_height, crop_offset(new_height, size), size
        x_first, x_weights = resize_weights(*x_axis)
        y_first, y_weights = resize_weights(*y_axis)
        x_taps, y_taps = x_weights.shape[1], y_weights.shape[1]
        x_split = split_weights(*x_axis)
        rows_needed = int(y_first[-1] - y_first[0]) + y_taps
        self.rows = grown(self.rows, rows_needed * 3 * size)
        result = self.result.ctypes.data
        self.kernel(
            image.ctypes.data,
            width,
            size,
            x_first.ctypes.data,
            x_weights.ctypes.data,
            x_split.ctypes.data,
            x_taps,
            y_first.ctypes.data,
            y_weights.ctypes.data,
            y_taps,
            self.rows.ctypes.data,
            self.sums.ctypes.data,
            result if self.is_float else None,
            None if self.is_float else result,
        )


def grown(buffer: np.ndarray, size: int) -> np.ndarray:
    """The buffer, or a new one if it has less than `size` bytes."""
    return buffer if buffer.size >= size else np.empty(size, np.uint8)


def fast_path(evaluation: Evaluation, dtype: str) -> Optional[FastPath]:
    """A fast path whose bytes are those of the Pillow installed here; None for bicubic.

    Raises: RuntimeError with the reason if this machine cannot do it.
    """
    if evaluation.interpolation != "bilinear":
        return None
    fast = FastPath(evaluation, dtype)
    noise = Image.merge("RGB", [Image.effect_noise((171, 203), sigma) for sigma in (20, 60, 100)])
    for subsampling in (0, 1, 2):
        file = io.BytesIO()
        noise.save(file, "JPEG", subsampling=subsampling)
        result = fast(file.getvalue(), noise.width, noise.height)
        if result is None or result.tobytes() != convert(file, evaluation, dtype):
            raise RuntimeError("its result differs from that of the Pillow installed here")
    return fast
