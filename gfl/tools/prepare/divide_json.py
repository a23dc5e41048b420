"""Divide a COCO-format json, or two splits together, into new jsons for training and validation."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError
from gfl.data.coco import CocoData, build_coco_data
from gfl.data.coco_json import read_coco_json
from gfl.tools.prepare.divide import Division
from gfl.tools.prepare.to_coco import write_jsons


def divide_json(
    source: Sequence[str],
    merged: Sequence[str] | None,
    out: Path | None,
    by: Callable[[CocoData], Division],
) -> tuple[dict[str, tuple[Path, Path]], Division]:
    """Write <name>_train.json and <name>_val.json, which have all fields of the json <name>.json.

    Args:
        source, merged: path of a json and folder of its images; the second json, if any, is divided with the first.
        out: folder to write to; None for that of the first json.
        by: `divide` with its settings.

    Returns split -> json and image folder, and the division. Raises `UserError` for what training refuses, and rather
    than overwrite other content.
    """
    tree, data = _read(*source)
    if merged:
        tree, root = _merge(tree, data, *_read(*merged, class_names=data.class_names))
        data = build_coco_data(tree, source[0], root)
    division = by(data)
    path = Path(source[0])
    files = {name: (out or path.parent) / f"{path.stem}_{name}.json" for name in ("train", "val")}
    ids = [set(data.image_ids[rows].tolist()) for rows in division.sides]
    write_jsons({file: _part(tree, own) for file, own in zip(files.values(), ids, strict=True)})
    return {name: (file, Path(data.root)) for name, file in files.items()}, division


def _read(annotations: str, images: str, class_names: Sequence[str] | None = None) -> tuple[dict[str, Any], CocoData]:
    tree = read_coco_json(annotations)
    if not tree.get("annotations"):
        raise UserError(f"{annotations}: it has no annotations to divide by", code="no_annotations")
    return tree, build_coco_data(tree, annotations, images, class_names)


def _part(tree: dict[str, Any], image_ids: set[int]) -> dict[str, Any]:
    images = [entry for entry in tree["images"] if entry["id"] in image_ids]
    return tree | {
        "images": images,
        "annotations": [entry for entry in tree["annotations"] if entry["image_id"] in image_ids],
    }


def _merge(
    tree: dict[str, Any], data: CocoData, other_tree: dict[str, Any], other: CocoData
) -> tuple[dict[str, Any], str]:
    """Both jsons as one, with new ids for the second's images and annotations, and the folder that has both."""
    root = os.path.commonpath([os.path.abspath(data.root), os.path.abspath(other.root)])
    first_id = 1 + max(*data.image_ids.tolist(), *other.image_ids.tolist())
    image_of = {image_id: first_id + row for row, image_id in enumerate(other.image_ids.tolist())}
    category_of = dict(zip(other.category_ids, data.category_ids, strict=True))  # by class name
    ids = [entry["id"] for entry in tree["annotations"] if isinstance(entry.get("id"), int)]
    first_id = 1 + max(ids, default=0)
    images = [_below(root, data.root, entry) for entry in tree["images"]]
    images += [_below(root, other.root, entry) | {"id": image_of[entry["id"]]} for entry in other_tree["images"]]
    annotations = tree["annotations"] + [
        entry
        | {
            "id": first_id + position,
            "image_id": image_of[entry["image_id"]],
            "category_id": category_of[entry["category_id"]],
        }
        for position, entry in enumerate(other_tree["annotations"])
    ]
    return tree | {"images": images, "annotations": annotations}, root


def _below(root: str, folder: str, entry: dict[str, Any]) -> dict[str, Any]:
    """An image entry with its file name relative to `root`, of which `folder` is a part."""
    return entry | {"file_name": Path(os.path.relpath(folder, root), entry["file_name"]).as_posix()}
