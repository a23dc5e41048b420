"""All that is wrong with a COCO-format json at once, by the rules of `gfl.data.coco`, which stops at the first."""

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding
from gfl.data.coco import (
    CocoData,
    category_names,
    check_annotation,
    check_files,
    coco_data,
    match_classes,
    read_images,
    visible_box,
)

SLACK = 1.0  # pixels by which a box may reach outside its image; exports round
# Names that are no class, from class lists whose first entry, or gaps between ids, were written out.
PLACEHOLDERS = {"background", "__background__", "_background_", "bg", "n/a", "unlabeled", "unlabelled"}

# What a refused annotation is about, by the first word of the reason, and what to do.
REFUSED = {
    "image_id": ("annotations with unknown image_id", "correct or delete them"),
    "category_id": ("annotations with unknown category_id", "correct or delete them"),
    "bbox": ("annotations whose bbox is not four numbers", "correct or delete them"),
    "iscrowd": ("annotations with a wrong iscrowd or area", "iscrowd is 0 or 1, area a number"),
}
OTHERWISE = ("unusable annotations", "--json lists the reasons")


def examine(tree: dict[str, Any], annotations: str, images: str, split: str) -> tuple[list[Finding], CocoData | None]:
    """Findings on a json that `read_coco_json` has read, and the split without what is refused.

    Args:
        split: "train" or "val".

    The split is None where nothing usable is left. With an error among the findings training refuses the json;
    without one it takes it.
    """
    found: list[Finding] = []
    categories = _check_categories(tree["categories"], annotations, found)
    entries = _check_images(tree["images"], annotations, images, found)
    if not entries:
        return found, None  # whatever else there is to find follows from it
    sound = {"categories": categories, "images": entries}
    if "annotations" in tree:
        sound["annotations"] = _check_annotations(tree, sound, annotations, found)
    refused = any(entry.level == "error" for entry in found)
    try:
        data = coco_data(sound if refused else tree, annotations, images)
    except UserError as error:
        if not refused:
            found.append(Finding("error", 1, "reason why training refuses it", "", (str(error),)))
        return found, None
    return found + _check_content(data, split), data


def compare_categories(train: CocoData, val: CocoData) -> list[Finding]:
    """Whether the two splits have the same classes, by name."""
    names = dict(zip(val.category_ids, val.class_names, strict=True))
    try:
        ids = match_classes(names, train.class_names, val.annotations)
    except UserError as error:
        only = [f"without {name}" for name in train.class_names if name not in val.class_names]
        only += [f"with {name}" for name in val.class_names if name not in train.class_names]
        what, reasons = "classes that only one split has", (str(error),)
        return [Finding("error", len(only), what, "take the same in both jsons", tuple(only), reasons)]
    pairs = zip(train.class_names, train.category_ids, ids, strict=True)
    moved = [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]
    return finding("warning", "classes with another id in val", "matched by name; check one by eye", moved)


def _check_categories(entries: list[Any], path: str, found: list[Finding]) -> list[Any]:
    """The usable categories."""
    refused = _refusals(entries, lambda entry, position: category_names([entry], path))
    found += _on_entries("error", "categories of unusable id or name", "correct them", entries, refused)
    sound = [entry for position, entry in enumerate(entries) if position not in refused]
    ids, names = [entry["id"] for entry in sound], [entry["name"] for entry in sound]
    nothings = [name for name in names if name.strip().lower() in PLACEHOLDERS]
    found += finding("error", "category ids that occur twice", "give each its own", _twice(ids))
    found += finding("warning", "class names that occur twice", "a class each; rename or merge", _twice(names))
    found += finding("warning", "names that are no class", "leave them out of both jsons", nothings)
    return _first_of_each(sound)


def _check_images(entries: list[Any], path: str, root: str, found: list[Finding]) -> list[Any]:
    """The usable images whose files are there."""
    refused = _refusals(entries, lambda entry, position: read_images([entry], path))
    found += _on_entries("error", "image entries of unusable id, file_name or size", "correct them", entries, refused)
    sound = [entry for position, entry in enumerate(entries) if position not in refused]
    ids, names = [entry["id"] for entry in sound], [entry["file_name"] for entry in sound]
    found += finding("error", "image ids that occur twice", "give each its own", _twice(ids))
    found += finding("warning", "files listed twice", "merge their boxes", _twice(names))
    sound = _first_of_each(sound)
    absent = _absent_files(sound, path, root)
    names = [sound[position]["file_name"] for position in sorted(absent)]
    paths = [os.path.join(root, name) for name in names]
    reasons = [f"no file {looked_for}" for looked_for in paths]
    all_absent = paths and len(paths) == len(sound)
    advice = f"wrong folder? looked for {paths[0]}" if all_absent else "bring them or leave them out"
    found += finding("error", "images that are not in the folder", advice, names, reasons)
    return [entry for position, entry in enumerate(sound) if position not in absent]


def _absent_files(entries: list[Any], path: str, root: str) -> set[int]:
    """Positions of the entries whose files are not there."""

    def check(names: Sequence[str]) -> None:
        check_files(root, np.array(names), path)

    try:
        check([entry["file_name"] for entry in entries])
    except UserError:
        return set(_refusals(entries, lambda entry, position: check([entry["file_name"]])))
    return set()


def _check_annotations(tree: dict[str, Any], sound: dict[str, Any], path: str, found: list[Finding]) -> list[Any]:
    """The usable annotations of usable images and categories; those of others are not blamed for it."""
    entries = tree["annotations"]
    known_images, known_categories = _whole_ids(tree["images"]), _whole_ids(tree["categories"])
    row_of, label_of = dict.fromkeys(known_images, 0), dict.fromkeys(known_categories, 0)

    def check(entry: Any, position: int) -> None:
        check_annotation(entry, position, row_of, label_of, path)

    refused = _refusals(entries, check)
    orphans = _orphans(tree["images"], entries, known_images)
    blamed = {position: reason for position, reason in refused.items() if position not in orphans}
    found += _on_refused(entries, blamed, path, known_categories)
    names = [_name(entries[position], position) for position in sorted(orphans)]
    found += finding("ok", "annotations whose image entry has a wrong id", "correct that one", names)
    image_ids, category_ids = _whole_ids(sound["images"]), _whole_ids(sound["categories"])
    kept = [
        (position, entry)
        for position, entry in enumerate(entries)
        if position not in refused and entry["image_id"] in image_ids and entry["category_id"] in category_ids
    ]
    found += _on_annotation_ids(entries)
    found += _on_copies(kept)
    found += _on_boxes(kept, {entry["id"]: (entry["height"], entry["width"]) for entry in sound["images"]})
    found += _on_groups(sound["categories"], {entry["category_id"] for _, entry in kept})
    return [entry for _, entry in kept]


def _orphans(images: list[Any], entries: list[Any], known: set[int]) -> set[int]:
    """Positions of annotations with an unknown image_id that may be the right id of a discarded image entry.

    Which entry it is cannot be told; all are meant where there are no more unknown ids than entries without their own.
    """
    lost = len(images) - len(known)  # doubled or unusable
    strangers: dict[str, set[int]] = {}
    for position, entry in enumerate(entries):
        image = entry.get("image_id") if isinstance(entry, dict) else None
        if image is not None and not (_is_whole(image) and image in known):
            strangers.setdefault(repr(image), set()).add(position)
    return set().union(*strangers.values()) if len(strangers) <= lost else set()


def _on_refused(entries: list[Any], refused: dict[int, str], path: str, categories: set[int]) -> list[Finding]:
    """One finding per kind of refusal; rules that are not known here get one of their own."""
    kinds: dict[str, dict[int, str]] = {}
    for position, reason in refused.items():
        entry = entries[position]
        name = entry.get("id", f"number {position}") if isinstance(entry, dict) else f"number {position}"
        word = reason.removeprefix(f"{path}: annotation {name}: ").split()[0]
        kinds.setdefault(word if word in REFUSED else "", {})[position] = reason
    found = []
    for kind, positions in kinds.items():
        what, advice = REFUSED.get(kind, OTHERWISE)
        if kind == "category_id":
            advice = _shifted(entries, categories) or advice
        found += _on_entries("error", what, advice, entries, positions)
    return found


def _shifted(entries: list[Any], categories: set[int]) -> str:
    """Advice where all category ids would be known if they were one higher or lower."""
    given = [entry.get("category_id") for entry in entries if isinstance(entry, dict)]
    used = {category for category in given if _is_whole(category)}
    for shift, direction in ((1, "low"), (-1, "high")):
        if used and {category + shift for category in used} <= categories:
            return f"all ids seem one too {direction}"
    return ""


def _on_annotation_ids(entries: list[Any]) -> list[Finding]:
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    without = [f"number {position}" for position, value in enumerate(ids) if not _is_whole(value)]
    twice = _twice(value for value in ids if _is_whole(value))
    return [
        *finding("warning", "annotations without a whole id", "no matter here; other tools fail", without),
        *finding("warning", "annotation ids that occur twice", "no matter here; other tools fail", twice),
    ]


def _on_copies(kept: list[tuple[int, Any]]) -> list[Finding]:
    """Annotations that an earlier one of the same image, class and box makes superfluous."""
    seen: set[Hashable] = set()
    copies = []
    for position, entry in kept:
        key = (entry["image_id"], entry["category_id"], *entry["bbox"])
        if key in seen:
            copies.append(_name(entry, position))
        seen.add(key)
    return finding("warning", "annotations that repeat another", "one object counts twice; delete", copies)


def _on_boxes(kept: list[tuple[int, Any]], sizes: dict[int, tuple[int, int]]) -> list[Finding]:
    degenerate, outside, crowds = [], [], []
    for position, entry in kept:
        height, width = sizes[entry["image_id"]]
        if entry.get("iscrowd"):
            crowds.append(_name(entry, position))
        elif visible_box(entry["bbox"], height, width) is None:
            degenerate.append(_name(entry, position))
        else:
            x, y, w, h = entry["bbox"]
            if min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
                outside.append(_name(entry, position))
    return [
        *finding("warning", "boxes under 1 px or outside the image", "not learned; correct or delete", degenerate),
        *finding("warning", "boxes that reach outside the image", "cut to it; check the export", outside),
        *finding("ok", "crowd boxes", "not learned, ignored in AP", crowds),
    ]


def _on_groups(categories: list[Any], used: set[int]) -> list[Finding]:
    """Categories without boxes whose name others give as the group they belong to, as some exports write them."""
    groups = {entry["supercategory"] for entry in categories if isinstance(entry.get("supercategory"), str)}
    named = [entry["name"] for entry in categories if entry["id"] not in used and entry["name"] in groups]
    return finding("warning", "classes that only name a group", "leave them out of both jsons", named)


def _check_content(data: CocoData, split: str) -> list[Finding]:
    """What train.py refuses of a json that is in order."""
    if not data.has_annotations:
        return [Finding("error", 0, "annotations", "'annotations' lacks in the json")]
    if not len(data.labels):
        return [Finding("error" if split == "train" else "warning", 0, "boxes to learn or to find", "check the export")]
    empty = data.image_ids[np.diff(data.offsets) == 0].tolist()
    advice = "dropped unless data.keep_empty" if split == "train" else "each detection is a mistake"
    return finding("ok", "images without boxes", advice, empty)


def _refusals(entries: list[Any], check: Callable[[Any, int], object]) -> dict[int, str]:
    """Position -> reason of the entries that `check(entry, position)` refuses."""
    refused = {}
    for position, entry in enumerate(entries):
        try:
            check(entry, position)
        except UserError as error:
            refused[position] = str(error)
    return refused


def _on_entries(level: str, what: str, advice: str, entries: list[Any], reasons: dict[int, str]) -> list[Finding]:
    return finding(level, what, advice, [_name(entries[at], at) for at in reasons], [*reasons.values()])


def _name(entry: Any, position: int) -> int | str:
    return entry["id"] if isinstance(entry, dict) and _is_whole(entry.get("id")) else f"number {position}"


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _whole_ids(entries: list[Any]) -> set[int]:
    return {entry["id"] for entry in entries if isinstance(entry, dict) and _is_whole(entry.get("id"))}


def _twice(values: Iterable[Hashable]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _first_of_each(entries: list[Any]) -> list[Any]:
    """Without entries whose id an earlier one has."""
    return list({entry["id"]: entry for entry in reversed(entries)}.values())[::-1]
