"""Entries of a json that training refuses, as findings: one per kind of fault."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from gfl.common.errors import UserError
from gfl.common.findings import Finding, finding_if_any
from gfl.data.coco_json import entry_name

WRITE_CLEAN = "correct them, or --write-clean OUT.json"
FIX_NAMES = "correct the names"

# What is wrong with a refused entry, by the code of the error, and what to do; "" for all others of that list.
FAULTS = {
    "categories": {"": ("categories of unusable id or name", WRITE_CLEAN)},
    "images": {
        "": ("image entries of unusable id, file_name or size", WRITE_CLEAN),
        "unsafe_file_name": ("images whose file_name leads out of the folder", FIX_NAMES),
        "coco_url": ("images with a coco_url but no file_name, as in LVIS", FIX_NAMES),
    },
    "annotations": {
        "not_a_mapping": ("annotations that are no mapping", WRITE_CLEAN),
        "image_id": ("annotations with unknown image_id", WRITE_CLEAN),
        "category_id": ("annotations with unknown category_id", WRITE_CLEAN),
        "other_task": ("annotations without a box, of another task", "use a json with boxes"),
        "rotated": ("annotations with rotated boxes", "replace each by the upright box around it"),
        "bbox": ("annotations whose bbox is not four numbers", WRITE_CLEAN),
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
    kind: str,
    entries: list[Any],
    refused: Refused,
    commands: Mapping[str, str],
    known_categories: Collection[int] = (),
) -> list[Finding]:
    """One finding per kind of fault.

    Args:
        kind: the json's list of these entries, a key of `FAULTS`.
        commands: advice -> the command that follows it, where there is one.
        known_categories: ids that annotations may have.
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
        findings += finding_if_any("error", what, advice, names, reasons, commands.get(advice, ""))
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
