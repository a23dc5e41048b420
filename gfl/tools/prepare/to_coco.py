"""What the readers of other layouts share: image sizes from file headers, boxes made fit, COCO-format json."""

import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gfl.common.errors import UserError
from gfl.common.files import write_json

ROUNDING = 0.5  # pixels by which a written coordinate may miss the image's edge without being worth a word

Progress = Callable[[Sequence[Any]], Iterable[Any]]  # goes through a sequence and may show how far it is


class Box(NamedTuple):
    """One object of an image."""

    category: Hashable  # a key of the categories given to `coco_tree`
    xyxy: tuple[float, float, float, float]  # pixels from the outer corner of the first pixel, within the image
    crowd: bool = False  # for evaluation to ignore and training to leave out


class Picture(NamedTuple):
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
    pictures: list[Picture]
    notes: tuple[str, ...] = ()  # what is odd, for the user

    @property
    def boxes(self) -> list[Box]:
        return [box for picture in self.pictures for box in picture.boxes]


def number(text: str | None, where: str, what: str) -> float:
    """A finite number; raises `UserError` naming `where` it stands and `what` it is."""
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {what} must be a number, not {text!r:.80}")
    return value


class Oddities:
    """Where boxes are written that could not be taken as they are."""

    def __init__(self) -> None:
        self.cut: list[str] = []  # reached beyond the image
        self.unusable: list[str] = []  # empty, or wholly outside

    def notes(self) -> tuple[str, ...]:
        told = (("reached beyond their image and were cut to it", self.cut),)
        told += (("are empty or outside their image and were left out", self.unusable),)
        return tuple(f"{len(where)} boxes {what}, the first: {where[0]}" for what, where in told if where)


def fit(
    category: Hashable,
    xyxy: Sequence[float],
    size: tuple[int, int],
    where: str,
    oddities: Oddities,
    *,
    crowd: bool = False,
) -> list[Box]:
    """The box cut to its image of `size` (width, height), or none if nothing is left; `oddities` hears of either."""
    x1, y1, x2, y2 = xyxy
    inside = max(x1, 0.0), max(y1, 0.0), min(x2, float(size[0])), min(y2, float(size[1]))
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        oddities.unusable.append(where)
        return []
    if max(abs(new - old) for new, old in zip(inside, xyxy, strict=True)) > ROUNDING:
        oddities.cut.append(where)
    return [Box(category, inside, crowd)]


def coco_tree(split: Split, categories: Mapping[Hashable, str]) -> dict[str, Any]:
    """COCO-format json: image, annotation and category ids from 1, in the order given; boxes to 1/1000 pixel."""
    ids = {key: number for number, key in enumerate(categories, 1)}
    images, annotations = [], []
    for image_id, picture in enumerate(split.pictures, 1):
        images.append({"id": image_id, "file_name": picture.file_name} | _size(picture))
        for box in picture.boxes:
            x1, y1, x2, y2 = box.xyxy
            bbox = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[box.category],
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 3),
                    "iscrowd": int(box.crowd),
                }
            )
    named = [{"id": ids[key], "name": name} for key, name in categories.items()]
    return {"images": images, "annotations": annotations, "categories": named}


def write_split(path: Path, tree: dict[str, Any]) -> None:
    """Write the json; one that says the same already is left. Raises `UserError` rather than replace another."""
    if path.exists():
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == tree
        except (OSError, ValueError):
            same = False
        if not same:
            raise UserError(f"{path} is there and says something else; delete it, or choose another --out")
        return
    write_json(path, tree)


def _size(picture: Picture) -> dict[str, int]:
    return {"width": picture.width, "height": picture.height}


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, text) of the lines of a text file that are not blank; raises `UserError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin with a byte order mark
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file: {error}") from None
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
