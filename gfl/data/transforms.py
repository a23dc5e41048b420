"""Resize, augment and flip an image with its boxes. All randomness comes from the generator that is passed in."""

import inspect
import os
import random
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import cv2
import numpy as np

from gfl.common.errors import UserError
from gfl.common.text import format_value, one_line, short_repr


def keep_ratio_size(height: int, width: int, *, short_side: float, long_side: float) -> tuple[int, int]:
    """(height, width) scaled until the short side is `short_side` or the long side `long_side`, as mmcv rounds it."""
    scale = min(long_side / max(height, width), short_side / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize(image: np.ndarray, boxes_xyxy: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Bilinear resize of an image and its boxes to (height, width)."""
    height, width = image.shape[:2]
    if size == (height, width):
        return image, boxes_xyxy
    scale = np.array([size[1] / width, size[0] / height] * 2, np.float32)
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR), boxes_xyxy * scale


def flip(image: np.ndarray, boxes_xyxy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror an image and its boxes left to right."""
    flipped = boxes_xyxy.copy()
    flipped[:, [0, 2]] = image.shape[1] - boxes_xyxy[:, [2, 0]]
    return cv2.flip(image, 1), flipped  # numpy's reversed view would have to be copied


class Augmentation:
    """A list of albumentations transforms as the config writes them: ``[{name: HueSaturationValue, p: 0.5}, ...]``.

    Raises `UserError` for a transform that albumentations does not have or arguments it does not take.
    """

    def __init__(self, transforms: Sequence[dict[str, Any]]) -> None:
        albumentations = _import_albumentations()
        built = [_build_transform(albumentations, entry) for entry in transforms]
        boxes = {"format": "pascal_voc", "label_fields": ["rows"], "min_width": 1, "min_height": 1}
        boxes |= {"clip": True, "filter_invalid_bboxes": True}  # together they accept any box
        self._moves_boxes = any(isinstance(transform, albumentations.DualTransform) for transform in built)
        self._compose = albumentations.Compose(
            built, bbox_params=albumentations.BboxParams(**boxes) if self._moves_boxes else None
        )

    def __call__(
        self, image: np.ndarray, boxes_xyxy: np.ndarray, labels: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image (H, W, 3), boxes (n, 4), labels (n,) -> the same after the transforms, perhaps with fewer boxes.

        Raises `UserError` if a transform fails or returns anything but a uint8 RGB image.
        """
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**32))))
        # Labels travel as row numbers, since albumentations passes them through float32.
        rows = np.arange(len(boxes_xyxy))
        given = {"bboxes": boxes_xyxy, "rows": rows} if self._moves_boxes else {}
        try:
            result = {"bboxes": boxes_xyxy, "rows": rows} | self._compose(image=image, **given)
        except Exception as error:  # a transform may raise anything, such as for a crop larger than the image
            raise UserError(f"data.augment: {type(error).__name__}: {one_line(error)}") from None
        image, rows = result["image"], np.asarray(result["rows"], np.int64)
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise UserError(
                f"data.augment: an image came back as {image.dtype} {image.shape}; transforms must keep uint8 RGB, "
                "images are normalised later, on the device"
            )
        return image, np.asarray(result["bboxes"], np.float32).reshape(-1, 4), labels[rows]


def _import_albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # otherwise it asks the network for a newer version
    try:
        version = metadata.version("albumentations")
        import albumentations  # imported here: it takes seconds, and most runs do not need it
    except (metadata.PackageNotFoundError, ImportError):
        version = "none"
    # AlbumentationsX has the same import name but another behaviour and licence.
    if not version.startswith("2.0."):
        raise UserError(f"data.augment needs albumentations 2.0, not {version}: pip install -r requirements.txt")
    return albumentations


def _build_transform(albumentations: Any, entry: dict[str, Any]) -> Any:
    arguments = dict(entry)
    name = arguments.pop("name", None)
    transform = getattr(albumentations, name, None) if isinstance(name, str) else None
    if not isinstance(transform, type) or not issubclass(transform, albumentations.BasicTransform):
        raise UserError(
            f"data.augment: {short_repr(name)} is not an albumentations transform; write {{name: ToGray, p: 0.1}}"
        )
    # albumentations itself only warns about an argument it does not know.
    if unknown := arguments.keys() - inspect.signature(transform.__init__).parameters:
        raise UserError(f"data.augment: {name} takes no argument {', '.join(sorted(map(format_value, unknown))[:3])}")
    try:
        return transform(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"data.augment: {name}: {one_line(error)}") from None
