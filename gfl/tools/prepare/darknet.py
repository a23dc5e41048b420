"""Darknet's layout, which CVAT exports as YOLO 1.1: obj.data names lists of images and the file of class names."""

from pathlib import Path
from typing import Any

from gfl.common.errors import UserError
from gfl.tools.prepare.to_coco import read_lines

FOLDER = "data/"  # where Darknet expects the files, and exports call them so wherever they are


def is_darknet(path: Path) -> bool:
    """Whether the name is that of Darknet's description of a data set."""
    return path.suffix.lower() == ".data"


def read_darknet(path: Path) -> dict[str, Any]:
    """What a data.yaml would say: `names`, and the list of images of each split; raises `UserError`."""
    pairs = [(number, *line.partition("=")) for number, line in read_lines(path)]
    if wrong := [number for number, _, equals, _ in pairs if not equals]:
        raise UserError(f"{path} line {wrong[0]}: write key = value, as Darknet's obj.data", code="not_darknet")
    tree: dict[str, Any] = {key.strip(): value.strip().removeprefix(FOLDER) for _, key, _, value in pairs}
    if "names" not in tree:
        raise UserError(f"{path}: it has no names, the file of class names", code="not_darknet")
    names = [name for _, name in read_lines(path.parent / tree["names"])]
    return tree | {"names": names, "val": tree.get("val") or tree.get("valid")}
