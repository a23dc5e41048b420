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
from gfl.tools.doctor.images import file_and_size, inspect_images


def write_clean(
    split: Sequence[str],
    out: str,
    config: DataConfig,
    *,
    no_copies: bool = False,
    others: Sequence[str] = (),
) -> dict[str, tuple[int, int]]:
    """Write the usable part of a json and return how many of its entries are left, kind -> (left, before).

    Args:
        split, others: path of the json and folder of the images.
        config: of the data; its `bit_depth` and `max_pixels` count.
        no_copies: leave out images with the same pixels as one before them, or as one of `others`.

    The doctor finds no error in what is written, unless the json has no `annotations` at all. Raises `UserError` if
    no image or no box is left, and if `out` exists.
    """
    if os.path.lexists(out):
        raise UserError(f"--write-clean {out} exists; choose a new file")
    tree, usable, data = _read_usable(*split)
    inspected = inspect_images(data, config=config)
    unusable = {file_and_size(data, row) for row, image in inspected.items() if image.problem}
    copies: set[str] = set()
    if no_copies:
        known = inspect_images(_read_usable(*others)[2], config=config) if others else {}
        copies = copied_names(data, inspected, known)
    rows = [row for row in range(len(data)) if file_and_size(data, row) not in unusable]
    kept = set(data.image_ids[[row for row in rows if data.file_names[row] not in copies]].tolist())
    usable["images"] = [entry for entry in usable["images"] if entry["id"] in kept]
    if "annotations" in usable:
        usable["annotations"] = [entry for entry in usable["annotations"] if entry["image_id"] in kept]
    _check_enough_is_left(usable, *split)
    write_text(Path(out), json.dumps(tree | usable))
    return {kind: (len(entries), len(tree[kind])) for kind, entries in usable.items()}


def _check_enough_is_left(usable: dict[str, list[Any]], annotations: str, images: str) -> None:
    left = usable["images"]
    # Without the list it is a split for detection only, which has no boxes before either.
    if left and "annotations" in usable:
        left = build_coco_data(usable, annotations, images).labels
    if not len(left):
        what = "box to train or test on" if usable["images"] else "image"
        raise UserError(f"{annotations}: no {what} is left; scripts/doctor.py lists the reasons", code="nothing_left")


def _read_usable(annotations: str, images: str) -> tuple[dict[str, Any], dict[str, list[Any]], CocoData]:
    """The json, its usable entries, and these as a split."""
    tree = read_coco_json(annotations)
    check_image_folder(images, annotations)
    usable = usable_entries(tree, annotations, images, [])
    if not usable["images"] or not usable["categories"]:
        raise UserError(
            f"{annotations}: no image or no category is usable; scripts/doctor.py lists the reasons",
            code="nothing_left",
        )
    return tree, usable, build_coco_data(usable, annotations, images)
