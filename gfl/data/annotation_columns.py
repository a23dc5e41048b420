"""All annotations of a json at once, as columns: quick tests and arrays, equal to what `annotation_marks` says of each.

Where a column is unusual, the functions for one annotation decide, which also know the messages.
"""

from collections.abc import Collection, Iterable
from itertools import chain
from typing import Any

import numpy as np

from gfl.data.annotation_marks import FIELD_GROUPS, IGNORE_KEYS, MIN_SIDE, is_marked_anywhere
from gfl.data.coco_json import MAX_COORDINATE, MAX_INTEGER


def are_ordinary(entries: list[Any], image_ids: Collection[int], category_ids: Collection[int]) -> bool:
    """Whether all entries surely pass `check_annotation`; False where that has to be asked."""
    if not _types(entries) <= {dict}:
        return False
    images, categories, boxes, crowds = (
        [entry.get(key) for entry in entries] for key in ("image_id", "category_id", "bbox", "iscrowd")
    )
    whole = _types(images) <= {int} and _types(categories) <= {int}
    if not whole or not _types(boxes) <= {list} or not set(map(len, boxes)) <= {4}:
        return False
    if not _types(chain.from_iterable(boxes)) <= {int, float} or not _types(crowds) <= {int, type(None)}:
        return False
    known = set(images) <= set(image_ids) and set(categories) <= set(category_ids) and set(crowds) <= {None, 0, 1}
    return known and all(-MAX_INTEGER < end < MAX_INTEGER for box in boxes for end in (min(box), max(box)))


def _types(values: Iterable[Any]) -> set[type]:
    return set(map(type, values))


def marked_as_ignored(entries: list[dict[str, Any]]) -> np.ndarray:
    """(n,) whether a field other than `iscrowd` marks a checked annotation as a region to ignore."""
    if (IGNORE_KEYS.union(FIELD_GROUPS) - {"iscrowd"}).isdisjoint(frozenset().union(*entries)):
        return np.zeros(len(entries), bool)
    return np.array([is_marked_anywhere(entry) for entry in entries], bool)


def visible_boxes(boxes: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (n, 4) clipped to the images, and whether each box (n,) is not degenerate; see `visible_box`.

    Args:
        boxes: (n, 4) x, y, width, height, which may be any numbers.
        sizes: (n, 2) height and width of their images.
    """
    finite = (np.abs(boxes) < MAX_COORDINATE).all(axis=1)  # False for NaN
    boxes = np.where(finite[:, None], boxes, 0.0)
    near, sides, ends = boxes[:, :2], boxes[:, 2:], sizes[:, ::-1].astype(np.float64)
    far = near + sides
    # Not np.maximum, which does not say which zero it takes of 0.0 and -0.0.
    low, high = np.where(near < 0.0, 0.0, near), np.where(ends < far, ends, far)
    visible = finite & (sides >= MIN_SIDE).all(axis=1) & (low < high).all(axis=1)
    return np.concatenate([low, high], axis=1), visible
