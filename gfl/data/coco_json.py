"""COCO-format json as other tools write it: read, and its images and categories checked."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from gfl.common.errors import UserError
from gfl.common.text import is_text, list_some, parse_flag, short_repr
from gfl.common.yaml_file import list_in_yaml
from gfl.data.image_files import check_file_name
from gfl.data.json_file import read_json

T = TypeVar("T")

MAX_COORDINATE = 2**31  # pixels; sizes and coordinates are below it
MAX_INTEGER = 2**62  # ids and whole numbers are below it: they fit int64, and a float can hold them

WHOLE_NUMBERS = {  # what some exports write as 1.0 or "1"
    "images": ("id", "width", "height"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id"),
}
OTHER_FORMATS = {  # keys of a json that is not COCO's -> what it is
    "imagePath": "labelme's json of one image",
    "_via_img_metadata": "a project of the VGG Image Annotator",
    "regions": "a json of the VGG Image Annotator",
    "objects": "Supervisely's json of one image",
    "items": "Datumaro's json",
    "features": "GeoJSON",
    "frames": "a json of video frames",
    "videos": "a json of videos, as of YouTube-VIS",
}


def read_coco_json(path: str, *, outlines: bool = True) -> dict[str, Any]:
    """The json as a dict with at least `images` and `categories`; raises `UserError` for anything else.

    UTF-8 with or without a byte order mark, UTF-16 and UTF-32. Ids and sizes like 1.0 or "1" become whole numbers, and
    `iscrowd` like "0", "yes" or true becomes 0 or 1.

    Args:
        outlines: False where the polygons of `segmentation`, most of a json, are not needed: they are empty then, and
            what is wrong within them is not found. A file of COCO's size then takes a third of the memory.
    """
    tree = read_json(path, outlines=outlines)
    for key in ("images", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list) or not tree[key]:
            raise UserError(f"{path}: not a COCO-format json: it needs a non-empty list {key!r}{_other_format(tree)}")
    if not isinstance(tree.get("annotations", []), list):
        raise UserError(f"{path}: not a COCO-format json: 'annotations' must be a list")
    _convert_numbers(tree)
    return tree


def _other_format(tree: Any) -> str:
    """What a json that is not COCO's seems to be, as the end of a sentence; "" if unknown."""
    first = tree[0] if isinstance(tree, list) and tree else None
    if isinstance(first, dict):
        if {"image_id", "bbox", "score"} <= first.keys():
            return "; this is a list of detections, not annotations"
        if {"data", "annotations"} <= first.keys():
            return "; this is Label Studio's own json; export as COCO there"
        return f"; this is a list with {list_some(list(first))}, perhaps of another tool; export as COCO there"
    if not isinstance(tree, dict):
        return ""
    entries = tree.get("annotations")
    if isinstance(entries, list) and entries and isinstance(entries[0], dict) and "caption" in entries[0]:
        return "; this is COCO's json of captions; use the one of instances"
    inner = next(iter(tree.values()), None)
    keys = {*tree, *(inner if isinstance(inner, dict) else ())}  # VIA has an entry per image
    found = [what for key, what in OTHER_FORMATS.items() if key in keys]
    return f"; this is {found[0]}; export as COCO" if found else f"; it has {list_some(list(tree)) or 'nothing'}"


def _convert_numbers(tree: dict[str, Any]) -> None:
    for kind, keys in WHOLE_NUMBERS.items():
        for entry in tree.get(kind, ()):
            if not isinstance(entry, dict):
                continue
            for key in keys:
                # Most are whole numbers already, and a test of their type takes less time than a call.
                if type(entry.get(key)) is not int and (number := _whole_number(entry.get(key))) is not None:
                    entry[key] = number
    for entry in tree.get("annotations", ()):
        if isinstance(entry, dict) and type(entry.get("iscrowd")) in (str, bool, float):
            flag = parse_flag(entry["iscrowd"])
            entry["iscrowd"] = entry["iscrowd"] if flag is None else int(flag)


def _whole_number(value: Any) -> int | None:
    """The whole number that a float or a text of digits is."""
    if type(value) is str and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    if type(value) is float and value.is_integer() and abs(value) < MAX_INTEGER:
        return int(value)
    return None


def collect_faults(entries: Sequence[Any], check: Callable[[Any, int], T]) -> list[T]:
    """``check(entry, position)`` of every entry.

    Raises the first `UserError` that it raises, with the number and the names of all entries that have its fault, and
    the number of those with others.
    """
    results, faults = [], []
    for position, entry in enumerate(entries):
        try:
            results.append(check(entry, position))
        except UserError as error:
            faults.append((entry_name(entry, position), error.with_traceback(None)))
    if not faults:
        return results
    first = faults[0][1]
    same = [name for name, error in faults if error.code == first.code]
    message = str(first)
    if len(same) > 1:
        message += f"; {len(same)} entries have this fault: {list_some(same)}"
    if len(faults) > len(same):
        message += f"; {len(faults) - len(same)} have others"
    if len(faults) > 1:
        message += "; scripts/doctor.py lists all"
    raise UserError(message, code=first.code)


def category_names(categories: Sequence[dict[str, Any]], path: str) -> dict[int, str]:
    """Category id -> name by rising id; a name that occurs twice gets the id appended, so that each names one class."""
    collect_faults(categories, lambda entry, position: _check_category(entry, path))
    if repeated := duplicates(entry["id"] for entry in categories):
        raise UserError(f"{path}: category id {list_some(repeated)} occurs twice; ids must be unique")
    counts = Counter(entry["name"] for entry in categories)
    names = {
        entry["id"]: entry["name"] if counts[entry["name"]] == 1 else f"{entry['name']} (id {entry['id']})"
        for entry in sorted(categories, key=lambda entry: entry["id"])
    }
    if repeated := duplicates(names.values()):
        raise UserError(f"{path}: category name {short_repr(repeated[0])} stands for two categories; rename one")
    return names


def _check_category(entry: Any, path: str) -> None:
    if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
        raise UserError(f"{path}: category {short_repr(entry)} needs a whole number 'id' and a text 'name'")
    if abs(entry["id"]) >= MAX_INTEGER:
        raise UserError(f"{path}: category id {short_repr(entry['id'])} is beyond what 63 bits hold")
    if not is_text(entry["name"]):
        raise UserError(
            f"{path}: category id {entry['id']}: its name has control characters: {short_repr(entry['name'])}"
        )


def duplicates(values: Iterable[Hashable]) -> list[Any]:
    """The values that occur more than once, each listed once."""
    return [value for value, count in Counter(values).items() if count > 1]


def match_classes(names: dict[int, str], class_names: tuple[str, ...], path: str) -> tuple[int, ...]:
    """The category id of each class, found by name; raises `UserError` unless both have the same names."""
    ids = {name: category for category, name in names.items()}
    missing, extra = [n for n in class_names if n not in ids], [n for n in ids if n not in class_names]
    if missing or extra:
        looks = {_appearance(name): name for name in extra}
        few_more = not missing and len(extra) <= 3
        alike = [f"{name!a} and {looks[_appearance(name)]!a}" for name in missing if _appearance(name) in looks]
        raise UserError(
            f"{path}: its {len(ids)} categories are not the model's {len(class_names)} classes"
            + (f"; missing: {list_some([quote_invisible(name) for name in missing])}" if missing else "")
            + (f"; unknown: {list_some([quote_invisible(name) for name in extra])}" if extra else "")
            + (f"; these look alike but differ: {list_some(alike)}" if alike else "")
            + "; use a json with the categories the model was trained on"
            + (f', or leave them out with "data.ignore_classes={list_in_yaml(extra)}"' if few_more else "")
        )
    return tuple(ids[name] for name in class_names)


def has_invisible(name: str) -> bool:
    """Whether a name has characters that do not show, or spaces where they do not show."""
    shown = unicodedata.normalize("NFC", name)
    hidden = any(unicodedata.category(c) in ("Cf", "Cc", "Zl", "Zp") or (c != " " and c.isspace()) for c in shown)
    return shown != name or hidden or name != name.strip() or "  " in name


def quote_invisible(name: str) -> str:
    """`name`, with quotes and escapes if part of it would not show."""
    return ascii(name) if has_invisible(name) else name


def _appearance(name: str) -> str:
    """Equal for names that look the same, or differ in letter case only."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    return " ".join(shown.split()).casefold()


def read_images(entries: list[Any], path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (I,), file names (I,) and sizes (I, 2); raises `UserError` if some entries cannot be used."""
    rows = collect_faults(entries, lambda entry, position: _read_image_entry(entry, path))
    ids, names, sizes = zip(*rows, strict=True) if rows else ((), (), ())
    if repeated := duplicates(ids):
        raise UserError(f"{path}: image id {list_some(repeated)} occurs twice; ids must be unique")
    return np.array(ids, np.int64), np.array(names), np.array(sizes, np.int64).reshape(-1, 2)


def _read_image_entry(entry: Any, path: str) -> tuple[int, str, tuple[int, int]]:
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not int for key in ("id", "width", "height")):
        raise UserError(
            f"{path}: image {short_repr(entry)} needs whole numbers 'id', 'width' and 'height'", code="image_entry"
        )
    if "file_name" not in entry and "coco_url" in entry:
        raise UserError(
            f"{path}: image id {short_repr(entry['id'])} has a 'coco_url' but no 'file_name', as in LVIS; "
            "scripts/doctor.py with --fix-names OUT.json writes a json with the names",
            code="coco_url",
        )
    has_size = all(0 < entry[side] < MAX_COORDINATE for side in ("width", "height"))
    if not has_size or not isinstance(entry.get("file_name"), str):
        raise UserError(
            f"{path}: image id {short_repr(entry['id'])} needs a 'file_name' and a size of at least 1 x 1",
            code="image_size_or_name",
        )
    if abs(entry["id"]) >= MAX_INTEGER:
        raise UserError(f"{path}: image id {short_repr(entry['id'])} is beyond what 63 bits hold", code="large_id")
    try:
        check_file_name(entry["file_name"], f"{path}: image id {entry['id']}")
    except UserError as error:
        raise UserError(f"{error}; scripts/doctor.py with --fix-names OUT.json can do so", code=error.code) from None
    return entry["id"], entry["file_name"], (entry["height"], entry["width"])


def entry_name(entry: Any, position: int) -> int | str:
    """The id of an entry, or its position if it has no usable id."""
    return entry["id"] if isinstance(entry, dict) and type(entry.get("id")) is int else f"number {position}"
