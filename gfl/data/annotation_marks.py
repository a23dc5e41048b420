"""What an annotation is: an object to train on, a region to ignore, or degenerate; and what its fields contradict."""

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding_if_any
from gfl.common.text import format_value, parse_flag, short_repr
from gfl.data.coco_json import MAX_COORDINATE, MAX_INTEGER, entry_name

MIN_SIDE = 1.0  # pixels; a smaller box is degenerate, as in the reference
# Fields that mark a box as not to be learned: of mmdetection, Open Images, Pascal VOC and many exports.
MARKS = ("ignore", "ignored", "is ignore", "is ignored", "is group of", "is crowd", "difficult", "is difficult")
IGNORE_KEYS = frozenset(
    spelling
    for mark in MARKS
    for joined in (mark.title().replace(" ", ""),)
    for spelling in (mark.replace(" ", "_"), mark.replace(" ", ""), joined, joined[0].lower() + joined[1:])
)
FIELD_GROUPS = ("attributes", "extra", "flags")  # where tools put fields of their own
REGION_WORDS = ("ignore", "dontcare", "donotcare")  # within names of classes for regions without exact boxes
MIN_SHARE, MAX_SHARE = 0.01, 1.01  # of its box that a mask covers
CONSTANT_SHARES = (math.pi / 4, 0.5)  # of discs and triangles, which are no other scale

Numbered = Iterable[tuple[int, dict[str, Any]]]  # position in the json and annotation


def ignored_because(entry: dict[str, Any], ignored_categories: Collection[int] = ()) -> str:
    """Why a checked annotation is a region to ignore: "crowd", "ignore" or "class"; "" if it is an object."""
    if entry.get("iscrowd"):
        return "crowd"
    if is_marked_anywhere(entry):
        return "ignore"
    return "class" if entry["category_id"] in ignored_categories else ""


def is_marked_anywhere(entry: dict[str, Any]) -> bool:
    """Whether a field of an annotation, its own or in a group, marks it as not to be learned."""
    return _is_marked(entry) or any(_is_marked(entry[group]) for group in FIELD_GROUPS if group in entry)


def _is_marked(fields: Any) -> bool:
    if not isinstance(fields, dict) or IGNORE_KEYS.isdisjoint(fields):
        return False
    flags = {key: parse_flag(fields[key]) for key in IGNORE_KEYS & fields.keys()}
    return any(bool(fields[key]) if flag is None else flag for key, flag in flags.items())


def looks_like_region(name: str) -> bool:
    """Whether the name of a class reads like regions to ignore."""
    letters = "".join(filter(str.isalpha, name.lower()))
    return letters == "others" or any(word in letters for word in REGION_WORDS)


def own_area(bbox: Sequence[float]) -> float:
    return float(bbox[2]) * float(bbox[3])


def boxes_as_written(entries: Sequence[dict[str, Any]]) -> np.ndarray:
    """The `bbox` of checked annotations, (n, 4) float64, which may be any numbers."""
    numbers = chain.from_iterable(entry["bbox"] for entry in entries)
    return np.fromiter(numbers, np.float64, 4 * len(entries)).reshape(-1, 4)


def usable_area(entry: dict[str, Any]) -> float | None:
    """The area of an annotation, None if it is missing, no number, not finite or not above 0."""
    area = entry.get("area")
    return area if is_number(area) and math.isfinite(area) and area > 0 else None


def check_annotation(
    entry: Any, position: int, row_of: dict[int, int], label_of: dict[int, int | None], path: str
) -> tuple[int, int | None]:
    """Row of the image and label of one annotation, None for a class that is ignored.

    Raises `UserError` if it cannot be used, with the code "not_a_mapping", "other_task", "image_id", "category_id",
    "rotated", "bbox" or "iscrowd".
    """

    def refuse(reason: str, code: str) -> UserError:  # only then is the entry described, which takes time
        return UserError(f"{path}: annotation {format_value(entry_name(entry, position))}{reason}", code=code)

    if not isinstance(entry, dict):
        raise refuse(f" is not a mapping: {short_repr(entry)}", "not_a_mapping")
    box = entry.get("bbox")
    if box is None and (task := _other_task(entry)):
        raise refuse(f" has no bbox but {task}; use a json with boxes", "other_task")
    for key, known, group in (("image_id", row_of, "images"), ("category_id", label_of, "categories")):
        if type(entry.get(key)) is not int or entry[key] not in known:
            raise refuse(f": {key} {short_repr(entry.get(key))} is not among the json's {group}", key)
    numbers = isinstance(box, list) and all(map(is_number, box))
    if numbers and len(box) in (5, 8):
        what = "[x, y, width, height, angle]" if len(box) == 5 else "four corners"
        raise refuse(
            f": a bbox of {len(box)} numbers is a rotated box, {what}; only upright boxes [x, y, width, height] "
            "can be trained: replace each by the upright box around it",
            "rotated",
        )
    if not numbers or len(box) != 4:
        raise refuse(f": bbox must be four numbers [x, y, width, height], not {short_repr(box)}", "bbox")
    if entry.get("iscrowd") not in (None, 0, 1):
        raise refuse(f": iscrowd must be 0 or 1, not {short_repr(entry['iscrowd'])}", "iscrowd")
    return row_of[entry["image_id"]], label_of[entry["category_id"]]


def _other_task(entry: dict[str, Any]) -> str:
    """What an annotation without a box has instead."""
    for key, what in (
        ("segments_info", "'segments_info': this is a panoptic json"),
        ("keypoints", "'keypoints': this is a json of keypoints only"),
        ("segmentation", "a 'segmentation': this is a json of masks only"),
        ("caption", "a 'caption': this is a json of captions"),
    ):
        if key in entry:
            return what
    return ""


def is_number(value: Any) -> bool:
    """Also NaN and infinity; a whole number only if a float can hold it."""
    return type(value) is float or (type(value) is int and abs(value) < MAX_INTEGER)


def visible_box(bbox: list[float], image_height: int, image_width: int) -> tuple[float, float, float, float] | None:
    """Corners clipped to the image, or None for a degenerate box."""
    x, y, width, height = bbox
    finite = all(abs(value) < MAX_COORDINATE for value in bbox)  # False for NaN
    if not finite or min(width, height) < MIN_SIDE:
        return None
    return clip_corners((x, y, x + width, y + height), image_height, image_width)


def clip_corners(
    xyxy: Sequence[float], image_height: int, image_width: int
) -> tuple[float, float, float, float] | None:
    """Corners clipped to the image, or None if nothing of the box is inside."""
    x1, y1, x2, y2 = xyxy
    x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(image_width)), min(y2, float(image_height))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def rotation_findings(entries: Numbered) -> list[Finding]:
    """Boxes that an annotation tool has rotated: COCO's `bbox` is the box before its rotation, or around it."""
    rotated = [entry_name(entry, position) for position, entry in entries if _rotation(entry)]
    what = "annotations of rotated boxes (as CVAT's attributes.rotation)"
    return finding_if_any("warning", what, "trained as upright boxes; check one by eye", rotated)


def _rotation(entry: dict[str, Any]) -> float:
    """The angle of a box in degrees, 0 if it has none."""
    if "attributes" not in entry and "rotation" not in entry:
        return 0.0
    attributes = entry.get("attributes")
    found = [attributes.get("rotation")] if isinstance(attributes, dict) else []
    for value in [*found, entry.get("rotation")]:
        try:
            angle = float(value) % 360
        except (TypeError, ValueError, OverflowError):
            continue
        if angle and math.isfinite(angle):
            return angle
    return 0.0


def partial_label_findings(images: Iterable[dict[str, Any]]) -> list[Finding]:
    """Images of which LVIS says that not all classes are annotated."""
    partial = [
        entry["id"] for entry in images if entry.get("not_exhaustive_category_ids") or entry.get("neg_category_ids")
    ]
    return finding_if_any(
        "warning",
        "images with LVIS's not_exhaustive_category_ids or neg_category_ids",
        "these are not read: unlabelled objects train as background, and AP is not LVIS AP",
        partial,
    )


def area_findings(entries: Numbered) -> list[Finding]:
    """Areas that make APS, APM and APL others than one expects."""
    entries = list(entries)
    areas = [usable_area(entry) for _, entry in entries]
    wrong = [
        entry_name(entry, position)
        for (position, entry), area in zip(entries, areas, strict=True)
        if area is None and entry.get("area") is not None
    ]
    usable = [area is not None for area in areas]
    return [
        *finding_if_any(
            "warning", "areas that are no number above 0", "evaluation uses width x height of the box", wrong
        ),
        *_far_areas(list(compress(entries, usable)), np.array(list(compress(areas, usable)), np.float64)),
    ]


def _far_areas(entries: list[tuple[int, dict[str, Any]]], area: np.ndarray) -> list[Finding]:
    """Areas that no mask within the box can have, if most boxes have such."""
    boxes = boxes_as_written([entry for _, entry in entries])
    has_size = np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    if not has_size.any():
        return []
    (width, height), area = boxes[has_size, 2:].T, area[has_size]
    share = area / (width * height)
    far = (share < MIN_SHARE) | (area > MAX_SHARE * (width + 1) * (height + 1))  # sides may be rounded, or inclusive
    if far.sum() * 2 <= len(area):
        far = np.full(len(area), _is_another_scale(share, area, width, height))
    if not far.any():
        return []
    names = [entry_name(entry, position) for position, entry in compress(compress(entries, has_size), far)]
    what = f"areas far from width x height (median {np.median(share):.3g} times)"
    return [Finding("warning", len(names), what, "APS, APM and APL sort by area; correct or delete it", tuple(names))]


def _is_another_scale(share: np.ndarray, area: np.ndarray, width: np.ndarray, height: np.ndarray) -> bool:
    """Whether the areas (n,) are one multiple of width x height for nearly all boxes, or the same for all."""
    middle, size = float(np.median(share)), width * height
    if len(area) > 2 and np.ptp(area) == 0 and np.ptp(size) > 0.1 * size.max():
        return True
    known_shape = min(abs(middle - constant) for constant in CONSTANT_SHARES) < 0.01
    rounded = (area >= (width - 1) * (height - 1)) & (area <= (width + 1) * (height + 1))
    multiple = (np.abs(share / middle - 1) < 1e-3) & ~rounded
    return len(area) > 1 and not known_shape and bool(multiple.sum() * 10 >= len(area) * 9)
