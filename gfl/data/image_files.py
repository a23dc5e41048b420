"""Image files: which names are images, their orientation, their sizes from the header, and their pixels."""

import contextlib
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from gfl.common.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")  # in either case
EXIF_ORIENTATION, TIFF_WIDTH, TIFF_HEIGHT = 0x0112, 256, 257  # tags of EXIF and TIFF
TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange width and height

cv2.setNumThreads(0)  # loader processes are the parallelism; OpenCV's own threads would fight with them


class BadImage(UserError):
    """An image file that is missing, damaged or of another size than the json says."""


def is_image(path: str | os.PathLike) -> bool:
    """Whether the name ends like an image's."""
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, upright by its EXIF orientation.

    Args:
        size: (height, width) the json states. If only the file's unrotated pixels fit, the annotations were made
            on those and they are returned.

    Raises `BadImage` for a file that is missing, damaged or of another size.
    """
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise BadImage(f"cannot read image {path}: {error.strerror}", code="missing_image") from None
    for flags in (cv2.IMREAD_COLOR_RGB, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION):
        image = _decode(data, flags)
        if image is None:
            raise BadImage(
                f"image {path} is damaged or of an unknown format; restore it or leave it out", code="damaged_image"
            )
        if size is None or image.shape[:2] == tuple(size):
            return image
    height, width = image.shape[:2]
    raise BadImage(
        f"image {path} is {width} x {height} but the json says {size[1]} x {size[0]}; its boxes would not fit: "
        "correct the json's width and height or the file",
        code="image_size",
    )


def _decode(data: np.ndarray, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(data, flags) if data.size else None
    except cv2.error:  # a damaged header that asks for an enormous picture
        return None


def exif_orientation(path: Path) -> int:
    """EXIF's 1 to 8; 1, which is upright, where the file has none."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # odd metadata may raise anything
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
    return 1


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of an image turned upright by its EXIF orientation, and as stored; no pixel is decoded.

    Upright is what `read_image` returns for it. A file whose header is whole but whose pixels are not passes here.
    Raises `UserError` for a file that is no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and odd metadata, neither of which matters here
            with Image.open(path) as image:
                tags = getattr(image, "tag_v2", {})  # of a TIFF, whose size newer Pillows turn upright themselves
                stored = int(tags.get(TIFF_WIDTH, image.width)), int(tags.get(TIFF_HEIGHT, image.height))
                transposed = image.getexif().get(EXIF_ORIENTATION) in TRANSPOSED
    except FileNotFoundError:
        raise BadImage(f"no image {path}; bring it there or take it out of the split", code="missing_image") from None
    except PermissionError as error:
        raise BadImage(f"cannot read image {path}: {error.strerror}", code="missing_image") from None
    except Exception:  # a damaged header can raise anything
        raise BadImage(
            f"image {path} is damaged or of an unknown format; restore it or leave it out", code="damaged_image"
        ) from None
    return (stored[::-1] if transposed else stored), stored
