"""Image files: which names are allowed and exist, their orientation, their sizes from the header, and their pixels."""

import contextlib
import os
import warnings
from collections.abc import Iterable
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
    if not os.path.isdir(root):
        raise UserError(f"no image folder {root!r} (for {path}); see data/README.md for where data sets go")


def missing_files(root: str, file_names: Iterable[str]) -> list[int]:
    """Positions of the names that are no file below `root`."""
    return [i for i, name in enumerate(file_names) if not os.path.isfile(os.path.join(root, name))]


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, upright by its EXIF orientation.

    Args:
        size: (height, width) in the json. If only the unrotated pixels of the file have this size, the annotations
            were made on those and they are returned.

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
        f"image {path} is {width} x {height} but the json says {size[1]} x {size[0]}; its boxes would not fit; "
        "correct the json's width and height or the file",
        code="image_size",
    )


def _decode(data: np.ndarray, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(data, flags) if data.size else None
    except cv2.error:  # a damaged header that asks for an enormous image
        return None


def exif_orientation(path: Path) -> int:
    """EXIF orientation from 1 to 8; 1, which is upright, if the file has none."""
    with contextlib.suppress(Exception), warnings.catch_warnings():  # odd metadata may raise anything
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            return int(image.getexif().get(EXIF_ORIENTATION, 1))
    return 1


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """(width, height) of an image turned upright by its EXIF orientation, and as stored; no pixels are decoded.

    `read_image` returns it upright. A file with a sound header and damaged pixels passes.
    Raises `BadImage` for a file that is missing or not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and odd metadata, neither of which matters here
            with Image.open(path) as image:
                tags = getattr(image, "tag_v2", {})  # of a TIFF, whose size newer Pillows turn upright themselves
                stored = int(tags.get(TIFF_WIDTH, image.width)), int(tags.get(TIFF_HEIGHT, image.height))
                transposed = image.getexif().get(EXIF_ORIENTATION) in TRANSPOSED
    except FileNotFoundError:
        raise BadImage(f"no image {path}; add the file or remove it from the split", code="missing_image") from None
    except PermissionError as error:
        raise BadImage(f"cannot read image {path}: {error.strerror}", code="missing_image") from None
    except Exception:  # a damaged header can raise anything
        raise BadImage(
            f"image {path} is damaged or of an unknown format; restore it or leave it out", code="damaged_image"
        ) from None
    return (stored[::-1] if transposed else stored), stored
