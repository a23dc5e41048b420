"""All errors in a COCO-format json at once, by the rules of `gfl.data.coco`, which stops at the first one."""

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from gfl.common.errors import UserError
from gfl.common.file_kinds import is_url
from gfl.common.findings import Finding, finding_if_any
from gfl.data.annotation_marks import (
    area_findings,
    check_annotation,
    partial_label_findings,
    rotation_findings,
)
from gfl.data.box_format import box_format_findings
from gfl.data.coco import CocoData, build_coco_data, ignored_categories
from gfl.data.coco_json import (
    category_names,
    duplicates,
    entry_name,
    has_invisible,
    match_classes,
    quote_invisible,
    read_images,
)
from gfl.data.file_names import find_spellings, fix_names_command, write_clean_command
from gfl.data.image_files import missing_files
from gfl.tools.doctor.box_findings import box_findings, group_findings, repetition_findings
from gfl.tools.doctor.refusals import FIX_NAMES, WRITE_CLEAN, is_integer, refusal_findings, refused_entries

# Names in class lists that stand for no class: a first entry for the background, or filled gaps between ids.
PLACEHOLDERS = {"background", "__background__", "_background_", "bg", "n/a", "unlabeled", "unlabelled"}


def check_annotations(
    tree: dict[str, Any], annotations: str, images: str, split: str, ignore_classes: Collection[str] = ()
) -> tuple[list[Finding], CocoData | None]:
    """Findings on a json that `read_coco_json` has read, and the split without the entries that cannot be used.

    Args:
        annotations, images: path of the json and folder of the images.
        split: "train" or "val".
        ignore_classes: names of categories whose boxes are regions to ignore.

    The split is None if nothing usable is left. Training refuses the json exactly if one of the findings is an error.
    """
    findings: list[Finding] = []
    usable = usable_entries(tree, annotations, images, findings, ignore_classes, split)
    if not usable["images"]:
        return findings, None  # all further findings would follow from it
    refused = any(found.level == "error" for found in findings)
    try:
        data = build_coco_data(usable if refused else tree, annotations, images, ignore_classes=ignore_classes)
    except UserError as error:
        if not refused:
            findings.append(Finding("error", 1, "reason why training refuses it", "", (str(error),)))
        return findings, None
    return findings + _content_findings(data, split), data


def usable_entries(
    tree: dict[str, Any],
    annotations: str,
    images: str,
    findings: list[Finding],
    ignore_classes: Collection[str] = (),
    split: str = "train",
) -> dict[str, list[Any]]:
    """The categories, images and annotations of `check_annotations` that can be used; its findings are appended."""
    commands = {
        FIX_NAMES: fix_names_command(annotations, images),
        WRITE_CLEAN: write_clean_command(annotations, images),
    }
    usable = {"categories": _check_categories(tree["categories"], annotations, commands, findings, ignore_classes)}
    usable["images"] = _check_images(tree["images"], annotations, images, commands, findings)
    if not usable["images"]:
        return usable
    unknown_are_findings = findings if split == "train" else []
    ignored = _ignored_ids(usable["categories"], annotations, ignore_classes, unknown_are_findings)
    if "annotations" in tree:
        usable["annotations"] = _check_entries(tree, usable, annotations, commands, ignored, findings)
    return usable


def compare_categories(train: CocoData, val: CocoData) -> list[Finding]:
    """Whether the two splits have the same classes, by name."""
    names = dict(zip(val.category_ids, val.class_names, strict=True))
    try:
        ids = match_classes(names, train.class_names, val.annotations)
    except UserError as error:
        only = [f"without {quote_invisible(name)}" for name in train.class_names if name not in val.class_names]
        only += [f"with {quote_invisible(name)}" for name in val.class_names if name not in train.class_names]
        what, reasons = "classes that only one split has", (str(error),)
        return [Finding("error", len(only), what, "use the same classes in both jsons", tuple(only), reasons)]
    pairs = zip(train.class_names, train.category_ids, ids, strict=True)
    moved = [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]
    return finding_if_any("warning", "classes with another id in val", "matched by name; check one by eye", moved)


def _check_categories(
    entries: list[Any],
    path: str,
    commands: Mapping[str, str],
    findings: list[Finding],
    ignore_classes: Collection[str],
) -> list[Any]:
    """The usable categories."""
    refused = refused_entries(entries, lambda entry, position: category_names([entry], path))
    findings += refusal_findings("categories", entries, refused, commands)
    usable = [entry for position, entry in enumerate(entries) if position not in refused]
    ids, names = [entry["id"] for entry in usable], [entry["name"] for entry in usable]
    placeholders = [name for name in names if name.strip().lower() in PLACEHOLDERS and name not in ignore_classes]
    repeated = duplicates(names)
    findings += finding_if_any("error", "category ids that occur twice", "give each its own", duplicates(ids))
    findings += finding_if_any("warning", "class names that occur twice", "a class each; rename or merge", repeated)
    findings += finding_if_any(
        "warning", "names that are no class", "data.ignore_classes leaves them out", placeholders
    )
    invisible = [ascii(name) for name in names if has_invisible(name)]
    findings += finding_if_any("warning", "class names with characters that do not show", "rename them", invisible)
    return _first_of_each_id(usable)


def _ignored_ids(
    categories: list[Any], path: str, ignore_classes: Collection[str], findings: list[Finding]
) -> Collection[int]:
    """Ids of the categories that `ignore_classes` names; names without a category are an error."""
    try:
        found = ignored_categories(category_names(categories, path), categories, ignore_classes)
    except UserError:
        return ()
    unknown = [name for name in ignore_classes if name not in found.values()]
    findings += finding_if_any("error", "names in data.ignore_classes that are no category", "correct them", unknown)
    return found


def _check_images(
    entries: list[Any], path: str, root: str, commands: Mapping[str, str], findings: list[Finding]
) -> list[Any]:
    """The usable images whose files exist."""
    refused = refused_entries(entries, lambda entry, position: read_images([entry], path))
    findings += refusal_findings("images", entries, refused, commands)
    usable = [entry for position, entry in enumerate(entries) if position not in refused]
    ids, names = [entry["id"] for entry in usable], [entry["file_name"] for entry in usable]
    findings += finding_if_any("error", "image ids that occur twice", "give each its own", duplicates(ids))
    findings += finding_if_any("warning", "files listed twice", "merge their boxes", duplicates(names))
    usable = _first_of_each_id(usable)
    missing = missing_files(root, [entry["file_name"] for entry in usable])
    absent = set(missing)
    present = {entry["file_name"] for position, entry in enumerate(usable) if position not in absent}
    findings += _missing_findings(root, commands, [usable[position]["file_name"] for position in missing], present)
    return [entry for position, entry in enumerate(usable) if position not in absent]


def _missing_findings(root: str, commands: Mapping[str, str], names: list[str], present: set[str]) -> list[Finding]:
    """Images without a file, apart from those whose file exists under another spelling."""
    spelled = find_spellings(root, names, present) if names else {}
    absent = [name for name in names if name not in spelled]
    paths = [os.path.join(root, name) for name in absent]
    all_missing = paths and not present and not spelled
    advice = f"wrong folder? looked for {paths[0]}" if all_missing else "add or leave out"
    advice = "download them into the folder, then correct the names" if any(map(is_url, absent)) else advice
    reasons = [f"no file {file}" for file in paths]
    pairs = [f"{name} -> {file}" for name, file in spelled.items()]
    fix, clean = commands[FIX_NAMES], "" if all_missing else commands[WRITE_CLEAN]
    what = "images whose file has another spelling"
    return [
        *finding_if_any("error", what, "correct the names", pairs, command=fix),
        *finding_if_any("error", "images that are not in the folder", advice, absent, reasons, clean),
    ]


def _check_entries(
    tree: dict[str, Any],
    usable: dict[str, Any],
    path: str,
    commands: Mapping[str, str],
    ignored: Collection[int],
    findings: list[Finding],
) -> list[Any]:
    """The usable annotations of usable images and categories; those of unusable ones are no findings themselves."""
    entries = tree["annotations"]
    known_images, known_categories = _integer_ids(tree["images"]), _integer_ids(tree["categories"])
    row_of, label_of = dict.fromkeys(known_images, 0), dict.fromkeys(known_categories, 0)
    refused = refused_entries(
        entries, lambda entry, position: check_annotation(entry, position, row_of, label_of, path)
    )
    orphans = _orphans(tree["images"], entries, known_images)
    own_faults = {position: error for position, error in refused.items() if position not in orphans}
    findings += refusal_findings("annotations", entries, own_faults, commands, known_categories)
    names = [entry_name(entries[position], position) for position in sorted(orphans)]
    findings += finding_if_any("ok", "annotations whose image entry has a wrong id", "correct that entry", names)
    image_ids, category_ids = _integer_ids(usable["images"]), _integer_ids(usable["categories"])
    kept = [
        (position, entry)
        for position, entry in enumerate(entries)
        if position not in refused and entry["image_id"] in image_ids and entry["category_id"] in category_ids
    ]
    findings += _annotation_id_findings(entries)
    findings += repetition_findings(kept)
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in usable["images"]}
    findings += box_findings(kept, sizes, ignored)
    findings += rotation_findings(kept) + area_findings(kept) + partial_label_findings(usable["images"])
    boxes = np.array([entry["bbox"] for _, entry in kept], np.float64).reshape(-1, 4)
    box_sizes = np.array([sizes[entry["image_id"]] for _, entry in kept]).reshape(-1, 2)
    findings += box_format_findings(boxes, box_sizes)
    findings += group_findings(usable["categories"], {*ignored} | {entry["category_id"] for _, entry in kept})
    return [entry for _, entry in kept]


def _orphans(images: list[Any], entries: list[Any], known: set[int]) -> set[int]:
    """Positions of annotations with an unknown image_id that may be the right id of a discarded image entry.

    Which annotation belongs to which entry is not known; it is all or none: all if there are at most as many unknown
    ids as discarded entries.
    """
    num_discarded = len(images) - len(known)  # of unusable or repeated id
    positions_of: dict[str, set[int]] = {}
    for position, entry in enumerate(entries):
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        if image_id is not None and not (is_integer(image_id) and image_id in known):
            positions_of.setdefault(repr(image_id), set()).add(position)
    return set().union(*positions_of.values()) if len(positions_of) <= num_discarded else set()


def _annotation_id_findings(entries: list[Any]) -> list[Finding]:
    ids = {position: entry.get("id") for position, entry in enumerate(entries) if isinstance(entry, dict)}
    without = [f"number {position}" for position, value in ids.items() if not is_integer(value)]
    repeated = duplicates(value for value in ids.values() if is_integer(value))
    advice = "harmless here; other tools fail"
    return [
        *finding_if_any("warning", "annotations without an integer id", advice, without),
        *finding_if_any("warning", "annotation ids that occur twice", advice, repeated),
    ]


def _content_findings(data: CocoData, split: str) -> list[Finding]:
    """What train.py refuses in a valid json."""
    if not data.has_annotations:
        return [Finding("error", 0, "annotations", "the json has no 'annotations'")]
    if not len(data.labels):
        return [Finding("error" if split == "train" else "warning", 0, "boxes to train or test on", "check the export")]
    empty = data.image_ids[np.diff(data.offsets) == 0].tolist()
    advice = "dropped unless data.keep_empty" if split == "train" else "every detection there is a false positive"
    return finding_if_any("ok", "images without boxes", advice, empty)


def _integer_ids(entries: list[Any]) -> set[int]:
    return {entry["id"] for entry in entries if isinstance(entry, dict) and is_integer(entry.get("id"))}


def _first_of_each_id(entries: list[Any]) -> list[Any]:
    return list({entry["id"]: entry for entry in reversed(entries)}.values())[::-1]
