"""Write a json without what training refuses: unusable entries, and images that are missing or cannot be read."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError
from gfl.common.files import write_text
from gfl.config import DataConfig
from gfl.data.coco import CocoData, build_coco_data
from gfl.data.coco_json import read_coco_json
from gfl.data.image_files import check_image_folder
from gfl.tools.doctor.annotations import usable_entries
from gfl.tools.doctor.copies import copied_names
from gfl.tools.doctor.images import DEFAULTS, inspect_images


def write_usable(
    split: Sequence[str],
    out: str,
    *,
    config: DataConfig = DEFAULTS,
    no_copies: bool = False,
    others: Sequence[str] = (),
) -> dict[str, tuple[int, int]]:
    """Write the usable part of a json and return how many of its entries are left, kind -> (left, before).

    Args:
        split, others: path of the json and folder of the images.
        config: of the data; its `bit_depth` and `max_pixels` count.
        no_copies: leave out images with the same pixels as one before them, or as one of `others`.

    Raises `UserError` if nothing usable is left, and if `out` exists.
    """
    if os.path.lexists(out):
        raise UserError(f"--leave-out {out} exists; choose a new file")
    tree, usable, data = _read_usable(*split)
    inspected = inspect_images(data, config=config)
    left_out = {str(data.file_names[row]) for row, image in inspected.items() if image.problem}
    if no_copies:
        known = inspect_images(_read_usable(*others)[2], config=config) if others else {}
        left_out |= copied_names(data, inspected, known)
    usable["images"] = [entry for entry in usable["images"] if entry["file_name"] not in left_out]
    kept = {entry["id"] for entry in usable["images"]}
    if "annotations" in usable:
        usable["annotations"] = [entry for entry in usable["annotations"] if entry["image_id"] in kept]
    if not kept:
        raise UserError(f"{split[0]}: no image is left; run scripts/doctor.py for the reasons", code="nothing_left")
    write_text(Path(out), json.dumps(tree | usable))
    return {kind: (len(entries), len(tree[kind])) for kind, entries in usable.items()}


def _read_usable(annotations: str, images: str) -> tuple[dict[str, Any], dict[str, list[Any]], CocoData]:
    """The json, its usable entries, and these as a split."""
    tree = read_coco_json(annotations)
    check_image_folder(images, annotations)
    usable = usable_entries(tree, annotations, images, [])
    if not usable["images"] or not usable["categories"]:
        raise UserError(f"{annotations}: no image or no category is usable; run scripts/doctor.py for the reasons")
    return tree, usable, build_coco_data(usable, annotations, images)
