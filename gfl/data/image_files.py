"""Image files: which names are allowed and exist, their sizes from the header, and their pixels."""

import glob
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from gfl.common.errors import UserError
from gfl.config import DEFAULT_MAX_PIXELS
from gfl.data.image_containers import PNG_SIGNATURE
from gfl.data.image_errors import (
    BadImage,
    check_is_image,
    check_pixel_count,
    opencv_max_pixels,
    out_of_memory,
    undecoded,
    unopened,
)
from gfl.data.image_headers import Size, header_size, hidden_work
from gfl.data.orientation import TRANSPOSED, read_orientation, turn_upright, without_orientation

# In either case: all that OpenCV reads and that data sets contain; .jfif, .jpe and .mpo are JPEG.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
IMAGE_SUFFIXES += (".jfif", ".jpe", ".mpo", ".avif", ".gif", ".jp2", ".dib", ".ppm", ".pgm", ".pnm")
BitDepth = int | tuple[float, ...]  # the config's `data.bit_depth`

cv2.setNumThreads(0)  # loader processes are the parallelism; OpenCV's own threads would fight with them
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what cannot be read is reported in an error


def is_image(path: str | os.PathLike) -> bool:
    """Whether the name has the suffix of an image."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def check_file_name(name: str, where: str) -> None:
    """Raises `UserError` for a name that leads, or could lead, out of the folder it is relative to.

    Only the name is checked, since it comes with the json. Links on the disk were made by the user, who may well keep
    images elsewhere; they are followed. ``..`` is never safe: ``link/..`` is not the folder that contains the link.
    """
    if os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
        raise UserError(
            f"{where}: file name {name!r:.80} leads out of the image folder; write it relative to that folder",
            code="unsafe_file_name",
        )
    if len(name) > 4096:  # no system opens it, and an array of names takes that much for each
        raise UserError(f"{where}: file name {name!r:.80} is too long")


def check_image_folder(root: str, path: str) -> None:
    """Raises `UserError` if the image folder of the json `path` does not exist."""
    if not root:
        raise UserError(f"no image folder given for {path}: set data.train.images and data.val.images")
    if os.path.isfile(root):
        raise UserError(f"image folder {root!r} (for {path}) is a file; give the json first, then its image folder")
    if not os.path.isdir(root):
        raise UserError(f"no image folder {root!r} (for {path}); see data/README.md for where data sets go")


def missing_files(root: str, file_names: Iterable[str]) -> list[int]:
    """Positions of the names that are no file below `root`."""
    return [i for i, name in enumerate(file_names) if not os.path.isfile(os.path.join(root, name))]


def find_images(folder: Path) -> list[Path]:
    """The images in a folder and below, by name; links are followed and hidden files skipped."""
    found = glob.glob(f"{glob.escape(str(folder))}/**/*", recursive=True)
    return sorted(Path(name) for name in found if is_image(name) and os.path.isfile(name))


def read_image(
    path: Path, size: tuple[int, int] | None = None, *, bit_depth: BitDepth = 0, max_pixels: int = DEFAULT_MAX_PIXELS
) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, upright by `orientation.read_orientation`.

    Nothing is decoded before the size in the file's header is known to be the json's, and within the limit.

    Args:
        size: (height, width) in the json. If only the unrotated pixels of the file have this size, the annotations
            were made on those and they are returned.
        bit_depth, max_pixels: the config's `data.bit_depth` and `data.max_pixels`.

    Raises `BadImage` for a file that is missing, cannot be read, is too large or has another size, each cause with its
    own code.
    """
    data = _read_file(path)
    stored = check_header(path, data, max_pixels)
    orientation = read_orientation(data)
    upright = stored[::-1] if orientation in TRANSPOSED else stored
    wanted = upright if size is None else (size[1], size[0])
    if wanted not in (upright, stored):
        raise BadImage(
            f"image {path} is {stored[0]} x {stored[1]} but the json says {wanted[0]} x {wanted[1]}; its boxes would "
            "not fit; correct the json's width and height or the file",
            code="image_size",
        )
    pixels = _decode(path, data, bit_depth)
    if pixels.shape[1::-1] != stored:
        raise undecoded(path, data)
    return turn_upright(pixels, orientation if wanted == upright else 1)


def check_header(path: Path, data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> Size:
    """(width, height) as stored, by the header of an image file's content.

    Raises `BadImage` for what is no image, has no header that can be read, or would cost too much to decode.
    """
    check_is_image(path, data)
    stored = header_size(data)
    if stored is None:
        raise undecoded(path, data)
    check_pixel_count(path, *stored, max_pixels)
    if what := hidden_work(data):
        raise BadImage(
            f"image {path} has {what}, which no camera or editor writes; restore or convert it", code="damaged_image"
        )
    return stored


def value_range(path: Path) -> tuple[str, float, float] | None:
    """Type, lowest and highest of the values of an image file whose channels have more than 8 bits, else None.

    For a file that `read_image` has read.
    """
    with open(path, "rb") as file:
        start = file.read(32)
    has_8_bits = start[:2] in (b"\xff\xd8", b"BM") or start[:4] in (b"RIFF", b"GIF8") or start[4:8] == b"ftyp"
    if has_8_bits or (start[:8] == PNG_SIGNATURE and start[24:25] != b"\x10"):
        return None
    values = _imdecode(path, _read_file(path), cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype == np.uint8:
        return None
    return str(values.dtype), *finite_range(values)


def finite_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest of the finite values; 0 where there are none."""
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def positional(value: float) -> str:
    """A number as YAML reads it: six digits, of whole numbers ten, without an exponent."""
    precision = 10 if float(value).is_integer() else 6
    return np.format_float_positional(value, precision=precision, unique=True, fractional=False, trim="-")


def range_option(low: float, high: float) -> str:
    """The setting of `data.bit_depth` that makes these values 0 and 255."""
    ends = positional(low), positional(high)
    if ends[0] == ends[1]:  # as in an image of one value: any range that has it
        ends = ends[0], positional(high + max(1.0, abs(high) * 1e-3))
    return f"data.bit_depth=[{ends[0]},{ends[1]}]"


def scale_limits(bit_depth: BitDepth) -> tuple[float, float]:
    """The values that `data.bit_depth` makes 0 and 255."""
    return (0.0, 2.0**bit_depth - 1) if isinstance(bit_depth, int) else (float(bit_depth[0]), float(bit_depth[1]))


def _read_file(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise BadImage(f"{path} is a pipe or a device, not an image file", code="not_a_file")
        return path.read_bytes()
    except MemoryError:
        raise out_of_memory(path) from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise unopened(path, error) from None


def _decode(path: Path, data: bytes, bit_depth: BitDepth) -> np.ndarray:
    """(H, W, 3) uint8 RGB as stored; raises the error that names the cause where that fails."""
    data = without_orientation(data)
    if bit_depth and data[4:8] != b"ftyp":  # AVIF scales its own depths
        return _decode_scaled(path, data, bit_depth)
    image = _imdecode(path, data, cv2.IMREAD_COLOR_RGB)
    if image is not None:
        return image
    values = _imdecode(path, data, cv2.IMREAD_UNCHANGED)
    if values is not None:
        low, high = finite_range(values)
        raise BadImage(
            f"image {path} has pixels of type {values.dtype} with values from {positional(low)} to {positional(high)}, "
            f"which need a scale to become 8 bits; set data.bit_depth, for example {range_option(low, high)}",
            code="pixel_type",
        )
    raise undecoded(path, data)


def _decode_scaled(path: Path, data: bytes, bit_depth: BitDepth) -> np.ndarray:
    # Not IMREAD_COLOR_RGB, with which OpenCV 5.0 leaves a TIFF with 16 bits per colour as uninitialised memory.
    values = _imdecode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if values is None and (values := _imdecode(path, data, cv2.IMREAD_UNCHANGED)) is not None:
        values = values if values.ndim == 3 else values[..., None]
        values = values[..., :3] if values.shape[2] >= 3 else values[..., :1].repeat(3, axis=2)
    if values is None:
        raise undecoded(path, data)
    values = values[..., ::-1]
    if values.dtype == np.uint8:
        return values.copy()
    low, high = scale_limits(bit_depth)
    clipped = np.nan_to_num(values.astype(np.float32), nan=low).clip(low, high)
    return np.rint((clipped - low) * (255 / (high - low))).astype(np.uint8)


def _imdecode(path: Path, data: bytes, flags: int) -> np.ndarray | None:
    """Pixels as stored; None where OpenCV cannot decode them. Raises errors about size and memory."""
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except (cv2.error, MemoryError) as error:
        if isinstance(error, MemoryError) or error.code == cv2.Error.StsNoMem:
            width, height = header_size(data)
            raise out_of_memory(path, f" of {width} x {height}") from None
        return None


def image_sizes(path: Path) -> tuple[Size, Size]:
    """(width, height) of an image turned upright as `read_image` does, and as stored; from the header only.

    A file with a sound header and damaged pixels passes, and so does every size that OpenCV can decode.
    Raises `BadImage` for a file that is missing, not an image, or too large.
    """
    data = _read_file(path)
    stored = check_header(path, data, opencv_max_pixels())
    return (stored[::-1] if read_orientation(data) in TRANSPOSED else stored), stored
