"""Write a json without what training refuses: unusable entries, and images that are missing or cannot be read."""

import json
import os
from pathlib import Path

from gfl.common.errors import UserError
from gfl.common.files import write_text
from gfl.config import DataConfig
from gfl.data.coco import build_coco_data
from gfl.data.coco_json import read_coco_json
from gfl.data.image_files import check_image_folder
from gfl.tools.doctor.annotations import usable_entries
from gfl.tools.doctor.images import inspect_images


def write_usable(annotations: str, images: str, out: str, config: DataConfig) -> dict[str, tuple[int, int]]:
    """Write the usable part of a json and return how many of its entries are left, kind -> (left, before).

    Raises `UserError` if nothing usable is left, and if `out` exists.
    """
    if os.path.lexists(out):
        raise UserError(f"--leave-out {out} exists; choose a new file")
    tree = read_coco_json(annotations)
    check_image_folder(images, annotations)
    usable = usable_entries(tree, annotations, images, [])
    if not usable["images"] or not usable["categories"]:
        raise UserError(f"{annotations}: no image or no category is usable; run scripts/doctor.py for the reasons")
    data = build_coco_data(usable, annotations, images)
    problems = {
        str(data.file_names[row]) for row, image in inspect_images(data, config=config).items() if image.problem
    }
    usable["images"] = [entry for entry in usable["images"] if entry["file_name"] not in problems]
    kept = {entry["id"] for entry in usable["images"]}
    if "annotations" in usable:
        usable["annotations"] = [entry for entry in usable["annotations"] if entry["image_id"] in kept]
    if not kept:
        raise UserError(f"{annotations}: no image can be read; run scripts/doctor.py for the reasons")
    write_text(Path(out), json.dumps(tree | usable))
    return {kind: (len(entries), len(tree[kind])) for kind, entries in usable.items()}
