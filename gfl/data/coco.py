"""COCO-format json: checked, and turned into flat arrays that loader processes can share."""

import json
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gfl.common.errors import UserError
from gfl.common.text import format_value, is_text, list_some, short_repr
from gfl.data.image_files import check_file_name, check_files

MIN_SIDE = 1.0  # pixels; a smaller box is degenerate, as in the reference
MAX_COORDINATE = 2**31  # pixels; sizes and coordinates are below it
MAX_INTEGER = 2**62  # ids and whole numbers are below it: they fit int64, and a float can hold them


@dataclass(frozen=True)
class CocoData:
    """One split: boxes of image i are rows ``offsets[i]`` to ``offsets[i + 1]``, without crowd and degenerate ones."""

    annotations: str  # path of the json
    root: str  # folder of the images
    image_ids: np.ndarray  # (I,) int64
    file_names: np.ndarray  # (I,) str
    sizes: np.ndarray  # (I, 2) int64 height, width
    boxes_xyxy: np.ndarray  # (A, 4) float32 pixels, clipped to the image
    labels: np.ndarray  # (A,) int64 in [0, C)
    offsets: np.ndarray  # (I + 1,) int64
    class_names: tuple[str, ...]  # C names, by label
    category_ids: tuple[int, ...]  # the json's id of each label
    has_annotations: bool  # False for images-only json such as test-dev
    notes: tuple[str, ...] = field(default=())  # on boxes that were skipped, for the user

    def __len__(self) -> int:
        return len(self.image_ids)

    def boxes_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) and labels (n,) of image `index`."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes_xyxy[rows], self.labels[rows]


def load_coco(annotations: str, images: str, class_names: Sequence[str] | None = None) -> CocoData:
    """Read and check a split.

    Args:
        annotations: path of the json.
        images: folder that its file names are relative to.
        class_names: the classes by label of a checkpoint or of the training split; by default they are the json's
            categories by rising id.

    Raises `UserError` naming the file and the id of the first entry that cannot be used.
    """
    return build_coco_data(read_coco_json(annotations), annotations, images, class_names)


def build_coco_data(
    tree: dict[str, Any], annotations: str, images: str, class_names: Sequence[str] | None = None
) -> CocoData:
    """`load_coco` for a json that `read_coco_json` has already read from `annotations`."""
    image_ids, file_names, sizes = read_images(tree["images"], annotations)
    check_files(images, file_names, annotations)
    names = category_names(tree["categories"], annotations)
    class_names = tuple(names.values()) if class_names is None else tuple(class_names)
    category_ids = match_classes(names, class_names, annotations)
    entries = tree.get("annotations", [])
    row_of = {int(image_id): row for row, image_id in enumerate(image_ids)}
    label_of = {category: label for label, category in enumerate(category_ids)}
    rows, boxes, labels, notes = _read_annotations(entries, row_of, label_of, sizes, annotations)
    order = np.argsort(rows, kind="stable")
    return CocoData(
        annotations=annotations,
        root=images,
        image_ids=image_ids,
        file_names=file_names,
        sizes=sizes,
        boxes_xyxy=boxes[order],
        labels=labels[order],
        offsets=np.searchsorted(rows[order], np.arange(len(image_ids) + 1)),
        class_names=class_names,
        category_ids=category_ids,
        has_annotations="annotations" in tree,
        notes=notes,
    )


def read_coco_json(path: str) -> dict[str, Any]:
    """The json as a dict with at least `images` and `categories`; raises `UserError` for anything else."""
    if not path:
        raise UserError("no annotations given: set data.train.annotations and data.val.annotations")
    try:
        with open(path, encoding="utf-8") as file:
            tree = json.load(file)
    except OSError as error:
        raise UserError(
            f"cannot read annotations {path}: {error.strerror}; see data/README.md for where they go"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid json: {error}") from None
    except ValueError:  # Python converts at most 4300 digits
        raise UserError(f"{path}: not valid json: a number has thousands of digits") from None
    except RecursionError:
        raise UserError(f"{path}: not valid json: nested too deeply") from None
    for key in ("images", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list) or not tree[key]:
            raise UserError(f"{path}: not a COCO-format json: it needs a non-empty list {key!r}")
    if not isinstance(tree.get("annotations", []), list):
        raise UserError(f"{path}: not a COCO-format json: 'annotations' must be a list")
    return tree


def category_names(categories: Sequence[dict[str, Any]], path: str) -> dict[int, str]:
    """Category id -> name by rising id; a name that occurs twice gets the id appended, so that each names one class."""
    for entry in categories:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise UserError(f"{path}: category {short_repr(entry)} needs a whole number 'id' and a text 'name'")
        if abs(entry["id"]) >= MAX_INTEGER:
            raise UserError(f"{path}: category id {short_repr(entry['id'])} is beyond what 63 bits hold")
        if not is_text(entry["name"]):
            raise UserError(
                f"{path}: category id {entry['id']}: its name has control characters: {short_repr(entry['name'])}"
            )
    if repeated := duplicates(entry["id"] for entry in categories):
        raise UserError(f"{path}: category id {repeated[0]} occurs twice; ids must be unique")
    counts = Counter(entry["name"] for entry in categories)
    names = {
        entry["id"]: entry["name"] if counts[entry["name"]] == 1 else f"{entry['name']} (id {entry['id']})"
        for entry in sorted(categories, key=lambda entry: entry["id"])
    }
    if repeated := duplicates(names.values()):
        raise UserError(f"{path}: category name {short_repr(repeated[0])} stands for two categories; rename one")
    return names


def duplicates(values: Iterable[Hashable]) -> list[Any]:
    """The values that occur more than once, each listed once."""
    return [value for value, count in Counter(values).items() if count > 1]


def match_classes(names: dict[int, str], class_names: tuple[str, ...], path: str) -> tuple[int, ...]:
    """The category id of each class, found by name; raises `UserError` unless both have the same names."""
    ids = {name: category for category, name in names.items()}
    missing, extra = [n for n in class_names if n not in ids], [n for n in ids if n not in class_names]
    if missing or extra:
        raise UserError(
            f"{path}: its {len(ids)} categories are not the model's {len(class_names)} classes"
            + (f"; missing: {list_some(missing)}" if missing else "")
            + (f"; unknown: {list_some(extra)}" if extra else "")
            + "; use a json with the categories the model was trained on"
        )
    return tuple(ids[name] for name in class_names)


def read_images(entries: list[Any], path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (I,), file names (I,) and sizes (I, 2); raises `UserError` for the first entry that cannot be used."""
    ids, names, sizes = [], [], []
    for entry in entries:
        if not isinstance(entry, dict) or any(type(entry.get(key)) is not int for key in ("id", "width", "height")):
            raise UserError(f"{path}: image {short_repr(entry)} needs whole numbers 'id', 'width' and 'height'")
        has_size = all(0 < entry[side] < MAX_COORDINATE for side in ("width", "height"))
        if not has_size or not isinstance(entry.get("file_name"), str):
            raise UserError(
                f"{path}: image id {short_repr(entry['id'])} needs a 'file_name' and a size of at least 1 x 1"
            )
        if abs(entry["id"]) >= MAX_INTEGER:
            raise UserError(f"{path}: image id {short_repr(entry['id'])} is beyond what 63 bits hold")
        ids.append(entry["id"])
        names.append(entry["file_name"])
        check_file_name(entry["file_name"], f"{path}: image id {entry['id']}")
        sizes.append((entry["height"], entry["width"]))
    if repeated := duplicates(ids):
        raise UserError(f"{path}: image id {repeated[0]} occurs twice; ids must be unique")
    return np.array(ids, np.int64), np.array(names), np.array(sizes, np.int64).reshape(-1, 2)


def _read_annotations(
    entries: list[Any], row_of: dict[int, int], label_of: dict[int, int], sizes: np.ndarray, path: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Image rows (A,), boxes (A, 4) and labels (A,) of the boxes to train on, and notes on the others."""
    rows, boxes, labels, degenerate, num_crowd = [], [], [], [], 0
    for position, entry in enumerate(entries):
        row, label = check_annotation(entry, position, row_of, label_of, path)
        if entry.get("iscrowd"):
            num_crowd += 1
            continue
        box = visible_box(entry["bbox"], *sizes[row])
        if box is None:
            degenerate.append(entry_name(entry, position))
            continue
        rows.append(row)
        boxes.append(box)
        labels.append(label)
    notes = []
    if degenerate:
        plural = "box" if len(degenerate) == 1 else "boxes"
        notes.append(
            f"{len(degenerate)} degenerate {plural} skipped (under 1 px or outside the image; evaluation keeps them): "
            f"annotation {list_some(degenerate)}"
        )
    if num_crowd:
        notes.append(f"{num_crowd} crowd boxes left out of training")
    return (
        np.array(rows, np.int64),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        tuple(notes),
    )


def check_annotation(
    entry: Any, position: int, row_of: dict[int, int], label_of: dict[int, int], path: str
) -> tuple[int, int]:
    """Row of the image and label of one annotation.

    Raises `UserError` if it cannot be used, with the code "not_a_mapping", "image_id", "category_id", "bbox" or
    "iscrowd_or_area".
    """
    who = f"{path}: annotation {format_value(entry_name(entry, position))}"
    if not isinstance(entry, dict):
        raise UserError(f"{who} is not a mapping: {short_repr(entry)}", code="not_a_mapping")
    for key, known, group in (("image_id", row_of, "images"), ("category_id", label_of, "categories")):
        if type(entry.get(key)) is not int or entry[key] not in known:
            raise UserError(f"{who}: {key} {short_repr(entry.get(key))} is not among the json's {group}", code=key)
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise UserError(f"{who}: bbox must be four numbers [x, y, width, height], not {short_repr(box)}", code="bbox")
    if entry.get("iscrowd") not in (None, 0, 1) or not (entry.get("area") is None or _is_number(entry["area"])):
        raise UserError(f"{who}: iscrowd must be 0 or 1 and area a number, if present", code="iscrowd_or_area")
    return row_of[entry["image_id"]], label_of[entry["category_id"]]


def _is_number(value: Any) -> bool:
    """Also NaN and infinity; a whole number only if a float can hold it."""
    return type(value) is float or (type(value) is int and abs(value) < MAX_INTEGER)


def entry_name(entry: Any, position: int) -> int | str:
    """The id of an entry, or its position if it has no usable id."""
    return entry["id"] if isinstance(entry, dict) and type(entry.get("id")) is int else f"number {position}"


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


def image_path(data: CocoData, index: int) -> Path:
    """The file of image `index`."""
    return Path(data.root) / str(data.file_names[index])
