"""Findings on the boxes of a COCO-format json whose entries can be used."""

from collections.abc import Collection, Hashable
from typing import Any

from gfl.common.findings import Finding, finding_if_any
from gfl.data.annotation_marks import ignored_because, visible_box
from gfl.data.coco_json import entry_name

SLACK = 1.0  # pixels by which a box may reach outside its image; exports round


def repetition_findings(kept: list[tuple[int, Any]]) -> list[Finding]:
    """Annotations with the same image, class and box as an earlier one."""
    seen: set[Hashable] = set()
    copies = []
    for position, entry in kept:
        key = (entry["image_id"], entry["category_id"], *entry["bbox"])
        if key in seen:
            copies.append(entry_name(entry, position))
        seen.add(key)
    return finding_if_any("warning", "annotations that repeat another", "one object counts twice; delete", copies)


def box_findings(
    kept: list[tuple[int, Any]], sizes: dict[int, tuple[int, int]], ignored: Collection[int]
) -> list[Finding]:
    """Degenerate boxes, boxes that reach outside their image, and regions to ignore."""
    degenerate, outside = [], []
    regions: dict[str, list[int | str]] = {"crowd": [], "ignore": [], "class": []}
    for position, entry in kept:
        height, width = sizes[entry["image_id"]]
        name = entry_name(entry, position)
        if reason := ignored_because(entry, ignored):
            regions[reason].append(name)
        elif visible_box(entry["bbox"], height, width) is None:
            degenerate.append(name)
        else:
            x, y, w, h = entry["bbox"]
            if min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
                outside.append(name)
    return [
        *finding_if_any("warning", "boxes under 1 px or outside the image", "skipped; correct or delete", degenerate),
        *finding_if_any("warning", "boxes that reach outside the image", "clipped; check the export", outside),
        *finding_if_any("ok", "crowd boxes", "not trained on, ignored in AP", regions["crowd"]),
        *finding_if_any("ok", "boxes marked as ignored", "not trained on, as crowd in AP", regions["ignore"]),
        *finding_if_any("ok", "boxes of data.ignore_classes", "not trained on, as crowd in AP", regions["class"]),
    ]


def group_findings(categories: list[Any], used: set[int]) -> list[Finding]:
    """Categories without boxes that are the supercategory of others, as some exports write them."""
    groups = {entry["supercategory"] for entry in categories if isinstance(entry.get("supercategory"), str)}
    named = [entry["name"] for entry in categories if entry["id"] not in used and entry["name"] in groups]
    return finding_if_any("warning", "classes that only name a group", "data.ignore_classes leaves them out", named)
