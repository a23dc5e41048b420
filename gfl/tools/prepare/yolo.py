"""YOLO's layout: data.yaml with class names and splits; labels/*.txt beside images/, one object a line.

A line is ``class cx cy w h``, or ``class x1 y1 x2 y2 x3 y3 ...`` for a polygon, of which the bounding box is taken; all
but the class are fractions of the image, turned upright by its EXIF orientation. The count of numbers tells whether a
line is a box or a polygon, so one file may have both. An empty or missing file is an image without objects.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError
from gfl.common.yaml_file import read_yaml
from gfl.data.coco_json import duplicates
from gfl.data.image_files import image_sizes, is_image
from gfl.tools.prepare.to_coco import (
    BoxAdjustments,
    ImageRecord,
    Progress,
    Split,
    clip_box,
    parse_number,
    read_lines,
)

SLACK = 0.01  # a fraction may lie outside [0, 1] by this much: tools round; boxes are clipped


def read_yolo(
    path: Path, splits: Sequence[str], *, root: Path | None = None, progress: Progress = iter
) -> tuple[list[Split], dict[int, str]]:
    """Some splits of a data.yaml, and its class names by index; the index is a box's category.

    Args:
        splits: keys of the file, such as train.
        root: the folder that the splits are relative to, instead of the `path` in the file.

    Raises `UserError` that names the file, and the line or key, if anything cannot be used.
    """
    tree = read_yaml(path)
    if "kpt_shape" in tree:
        raise UserError(f"{path}: kpt_shape: labels with keypoints are not supported; use boxes or polygons")
    names = _class_names(tree, path)
    root = _root(tree, path) if root is None else root
    if missing := [name for name in splits if not tree.get(name)]:
        raise UserError(f"{path}: it has no {missing[0]}; name the keys to convert with --splits")
    return [_read_split(name, tree[name], root, path, len(names), progress) for name in splits], names


def _class_names(tree: dict[str, Any], path: Path) -> dict[int, str]:
    names = tree.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or set(names) != set(range(len(names))):
        raise UserError(f"{path}: names must be a list of class names, or give one for each of 0, 1, 2 ...")
    for index, name in names.items():
        # YAML reads no, off and yes as false and true.
        if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).isprintable():
            raise UserError(f"{path}: names: class {index} must be a text, not {name!r:.80}; put it in quotes")
    if tree.get("nc", len(names)) != len(names):
        raise UserError(f"{path}: nc is {tree['nc']!r:.80}, but there are {len(names)} names")
    return {index: str(names[index]) for index in range(len(names))}


def _root(tree: dict[str, Any], path: Path) -> Path:
    folder = tree.get("path") or "."
    if not isinstance(folder, str):
        raise UserError(f"{path}: path must be a folder, not {folder!r:.80}")
    root = path.parent / folder
    if not root.is_dir():
        raise UserError(f"{path}: path: no folder {root}; give the data set's folder with --root")
    return root


def _read_split(name: str, value: Any, root: Path, path: Path, num_classes: int, progress: Progress) -> Split:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{path}: {name} must be a folder, a text file, or a list of them, not {value!r:.80}")
    images = [image for entry in entries for image in _images(_resolve(entry, root, f"{path}: {name}"), root)]
    if not images:
        raise UserError(f"{path}: {name}: no images in {', '.join(entries)}")
    if repeated := duplicates(images):
        raise UserError(f"{path}: {name}: image {repeated[0]} is listed more than once; keep one entry")
    if not any(_label_file(image).is_file() for image in images):
        expected = _label_file(images[0])
        raise UserError(f"{path}: {name}: none of its {len(images)} images has labels; there is no {expected}, for one")
    folder = Path(os.path.commonpath([image.parent for image in images]))
    adjustments = BoxAdjustments()
    records = [_read_image(image, folder, num_classes, adjustments) for image in progress(sorted(images))]
    return Split(name, folder, sorted(records), adjustments.notes())


def _resolve(entry: str, root: Path, where: str) -> Path:
    # Exports of some services say ../train/images although train/ is beside the file.
    for candidate in (entry, entry.removeprefix("../")):
        if (found := root / candidate).exists():
            return found
    raise UserError(f"{where}: there is no {root / entry}; correct it, or give the data set's folder with --root")


def _images(source: Path, root: Path) -> list[Path]:
    """Absolute paths of the images in a folder and below, or listed in a text file."""
    if source.is_dir():
        found = glob.glob(f"{glob.escape(str(source))}/**/*", recursive=True)  # follows links and skips hidden files
        return [Path(os.path.abspath(name)) for name in found if is_image(name)]
    images = []
    for line, name in read_lines(source):
        # Lines are relative to the list file or to the data set.
        found = [path for path in (source.parent / name, root / name) if path.is_file()]
        if not found:
            raise UserError(f"{source} line {line}: there is no image {name!r:.80}; add it or remove the line")
        images.append(Path(os.path.abspath(found[0])))
    return images


def _label_file(image: Path) -> Path:
    """The path with its last folder ``images`` replaced by ``labels``; beside the image if there is none."""
    parts = list(image.with_suffix(".txt").parts)
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == "images":
            parts[position] = "labels"
            break
    return Path(*parts)


def _read_image(image: Path, folder: Path, num_classes: int, adjustments: BoxAdjustments) -> ImageRecord:
    size, _ = image_sizes(image)
    labels = _label_file(image)
    boxes = []
    for line, text in read_lines(labels) if os.path.lexists(labels) else []:
        where = f"{labels} line {line}"
        index, corners = _read_object(text.split(), where, num_classes)
        pixels = [value * size[axis % 2] for axis, value in enumerate(corners)]
        boxes += clip_box(index, pixels, size, where, adjustments)
    return ImageRecord(image.relative_to(folder).as_posix(), *size, boxes)


def _read_object(words: Sequence[str], where: str, num_classes: int) -> tuple[int, tuple[float, float, float, float]]:
    """Class index and x1, y1, x2, y2 as fractions of the image."""
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise UserError(f"{where}: {len(words)} numbers; write class cx cy w h, or class and at least 3 points x y")
    index, *values = (parse_number(word, where, "each value") for word in words)
    if index not in range(num_classes):
        raise UserError(f"{where}: class {words[0]} is not one of the {num_classes} in names, which count from 0")
    for word, value in zip(words[1:], values, strict=True):
        if not -SLACK <= value <= 1 + SLACK:
            raise UserError(f"{where}: {word} is not in [0, 1]; coordinates are fractions of the image, not pixels")
    if len(values) == 4:
        x, y, width, height = values
        return int(index), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return int(index), (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
