"""Shared by the readers of other layouts: parsing text files, clipping boxes to images, writing COCO-format json."""

import json
import math
import os
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gfl.common.errors import UserError
from gfl.common.files import write_text
from gfl.common.text import decode_text
from gfl.data.annotation_marks import clip_corners

LINE_END = re.compile(r"\r\n|\r|\n")
ROUNDING = 0.5  # pixels by which a coordinate may lie outside the image without a note

Progress = Callable[[Sequence[Any]], Iterable[Any]]  # iterates over a sequence and may show a progress bar


class Box(NamedTuple):
    """One object of an image."""

    category: Hashable  # a key of the categories given to `coco_tree`
    xyxy: tuple[float, float, float, float]  # pixels from the outer corner of the first pixel, within the image
    crowd: bool = False  # ignored in evaluation, left out of training


class ImageRecord(NamedTuple):
    """One image and its objects."""

    file_name: str  # relative to the folder of its split, with forward slashes
    width: int
    height: int
    boxes: list[Box]


@dataclass(frozen=True)
class Split:
    """The images of one split, by rising file name."""

    name: str
    folder: Path  # of the images
    images: list[ImageRecord]
    notes: tuple[str, ...] = ()  # on adjusted boxes, for the user

    @property
    def boxes(self) -> list[Box]:
        return [box for image in self.images for box in image.boxes]


def parse_number(text: str | None, where: str, what: str) -> float:
    """A finite number; raises `UserError` that names its place `where` and its meaning `what`."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {what} must be a number, not {text!r:.80}", code="not_number")
    return value


class BoxAdjustments:
    """The places (file and line or object) of boxes that could not be converted unchanged."""

    def __init__(self) -> None:
        self.clipped: list[str] = []  # reached outside the image
        self.dropped: list[str] = []  # empty, or entirely outside

    def notes(self) -> tuple[str, ...]:
        """A sentence for each kind of adjustment that occurred."""
        kinds = {
            "reached outside their image and were clipped": self.clipped,
            "are empty or outside their image and were dropped": self.dropped,
        }
        return tuple(f"{len(places)} boxes {what}, the first: {places[0]}" for what, places in kinds.items() if places)


def clip_box(
    category: Hashable,
    xyxy: Sequence[float],
    size: tuple[int, int],
    where: str,
    adjustments: BoxAdjustments,
    *,
    crowd: bool = False,
) -> list[Box]:
    """The box clipped to its image of `size` (width, height), or no box if nothing is left.

    Either case is recorded in `adjustments`.
    """
    width, height = size
    clipped = clip_corners(xyxy, height, width)
    if clipped is None:
        adjustments.dropped.append(where)
        return []
    if max(abs(new - old) for new, old in zip(clipped, xyxy, strict=True)) > ROUNDING:
        adjustments.clipped.append(where)
    return [Box(category, clipped, crowd)]


def coco_tree(split: Split, categories: Mapping[Hashable, str]) -> dict[str, Any]:
    """COCO-format json: image, annotation and category ids from 1, in the order given; boxes to 1/1000 pixel."""
    category_ids = {key: number for number, key in enumerate(categories, 1)}
    images, annotations = [], []
    for image_id, image in enumerate(split.images, 1):
        size = {"width": image.width, "height": image.height}
        images.append({"id": image_id, "file_name": image.file_name} | size)
        for box in image.boxes:
            x1, y1, x2, y2 = box.xyxy
            bbox = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_ids[box.category],
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 3),
                    "iscrowd": int(box.crowd),
                }
            )
    categories = [{"id": category_ids[key], "name": name} for key, name in categories.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_jsons(trees: Mapping[Path, Any]) -> None:
    """Write each json unless its file has the same content; raises `UserError` rather than replace other content.

    Then none of them is written.
    """
    texts = {path: json.dumps(tree) for path, tree in trees.items()}
    existing = {path: _content(path) for path in texts if os.path.lexists(path)}
    for path, content in existing.items():
        if content != texts[path]:
            raise UserError(f"{path} exists with other content; delete it, or choose another --out", code="file_exists")
    for path in texts.keys() - existing.keys():
        write_text(path, texts[path])


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of the non-blank lines of a text file; raises `UserError` if it cannot be read."""
    try:
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file: {error}") from None
    return [(number, line.strip()) for number, line in enumerate(LINE_END.split(text), 1) if line.strip()]
