"""Entries of a json that training refuses, as findings: one per kind of fault."""

from collections.abc import Callable, Collection
from typing import Any

from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding_if_any
from gfl.data.coco_json import entry_name

LEAVE_OUT = "correct them, or --leave-out OUT.json"
FIX_NAMES = "correct the names"

# What is wrong with a refused entry, by the code of the error, and what to do; "" for all others of that list.
FAULTS = {
    "categories": {"": ("categories of unusable id or name", LEAVE_OUT)},
    "images": {
        "": ("image entries of unusable id, file_name or size", LEAVE_OUT),
        "unsafe_file_name": ("images whose file_name leads out of the folder", FIX_NAMES),
        "coco_url": ("images with a coco_url but no file_name, as in LVIS", FIX_NAMES),
    },
    "annotations": {
        "not_a_mapping": ("annotations that are no mapping", LEAVE_OUT),
        "image_id": ("annotations with unknown image_id", LEAVE_OUT),
        "category_id": ("annotations with unknown category_id", LEAVE_OUT),
        "other_task": ("annotations without a box, of another task", "use a json with boxes"),
        "rotated": ("annotations with rotated boxes", "replace each by the upright box around it"),
        "bbox": ("annotations whose bbox is not four numbers", LEAVE_OUT),
        "iscrowd": ("annotations with a wrong iscrowd", "it is 0 or 1"),
    },
}

Refused = dict[int, UserError]  # position of an entry -> why it cannot be used


def refused_entries(entries: list[Any], check: Callable[[Any, int], object]) -> Refused:
    """The entries for which `check(entry, position)` raises `UserError`."""
    refused = {}
    for position, entry in enumerate(entries):
        try:
            check(entry, position)
        except UserError as error:
            refused[position] = error.with_traceback(None)  # which would hold all its frames
    return refused


def refusal_findings(
    kind: str, entries: list[Any], refused: Refused, known_categories: Collection[int] = (), fix_names: str = ""
) -> list[Finding]:
    """One finding per kind of fault.

    Args:
        kind: the json's list of these entries, a key of `FAULTS`.
        known_categories: ids that annotations may have.
        fix_names: the command that corrects names.
    """
    faults, groups = FAULTS[kind], {}
    for position, error in refused.items():
        groups.setdefault(error.code if error.code in faults else "", []).append(position)
    findings = []
    for code, positions in groups.items():
        what, advice = faults[code]
        if code == "category_id":
            advice = _off_by_one_advice(entries, known_categories) or advice
        names = [entry_name(entries[position], position) for position in positions]
        reasons = [str(refused[position]) for position in positions]
        command = fix_names if advice == FIX_NAMES else ""
        findings += finding_if_any("error", what, advice, names, reasons, command)
    return findings


def _off_by_one_advice(entries: list[Any], categories: Collection[int]) -> str:
    """Advice if all category ids would be known if they were one higher or lower, else ""."""
    ids = [entry.get("category_id") for entry in entries if isinstance(entry, dict)]
    used = {category for category in ids if is_integer(category)}
    for shift, direction in ((1, "low"), (-1, "high")):
        if used and {category + shift for category in used} <= set(categories):
            return f"all ids seem one too {direction}"
    return ""


def is_integer(value: Any) -> bool:
    return type(value) is int
