"""YOLO's layout: data.yaml with class names and splits; labels/*.txt beside images/, one object a line.

What a line is, `yolo_labels` decides. An empty or missing label file is an image without objects. Boxes are fractions
of the image turned upright by its EXIF orientation.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gfl.common.errors import UserError
from gfl.common.file_kinds import is_url
from gfl.common.text import shell_command
from gfl.common.yaml_file import read_yaml
from gfl.data.coco_json import duplicates
from gfl.data.image_errors import url_error
from gfl.data.image_files import find_images, image_sizes
from gfl.tools.prepare.darknet import FOLDER, is_darknet, read_darknet
from gfl.tools.prepare.faults import Faults
from gfl.tools.prepare.find_files import Folders, count_note, existing_end, unknown_files, walk
from gfl.tools.prepare.to_coco import BoxAdjustments, ImageRecord, Progress, Split, clip_box, read_lines
from gfl.tools.prepare.yolo_labels import BOX, LabelLine, LineFormat, decide, keypoint_numbers, parse_line

NOT_LABELS = ("classes.txt", "notes.txt")  # text files that tools leave among the labels


class LabelledImage(NamedTuple):
    """One image and the lines of its label file."""

    path: Path
    size: tuple[int, int]  # (width, height)
    labels: Path | None  # None if there is no label file
    lines: list[LabelLine]


@dataclass
class Source:
    """The files of one split."""

    name: str
    folders: list[Path] = field(default_factory=list)  # whose images are all taken
    lists: list[Path] = field(default_factory=list)  # text files that name images
    images: list[Path] = field(default_factory=list)


def read_yolo(
    path: Path, splits: Sequence[str], *, root: Path | None = None, labels: str = "auto", progress: Progress = iter
) -> tuple[list[Split], dict[int, str]]:
    """Some splits of a data.yaml, and its class names by index; the index is a box's category.

    Args:
        splits: keys of the file, such as train.
        root: the folder that the splits are relative to, instead of the `path` in the file.
        labels: how lines that are not boxes are read, one of `yolo_labels.LABELS`.

    Raises `UserError` that names the files, and the lines or keys, that cannot be used: all of one kind at once.
    """
    tree = _read_description(path)
    keypoints = keypoint_numbers(tree, str(path))
    names = _class_names(tree, path)
    root = _root(tree, path) if root is None else root
    if missing := [name for name in splits if not tree.get(name)]:
        has = ", ".join(yolo_splits(path)) or "no split"
        raise UserError(f"{path}: it has no {missing[0]} but {has}; name the keys to convert with --splits")
    faults, folders = Faults(), Folders()
    sources = [_source(name, tree[name], root, path, folders, faults) for name in splits]
    faults.raise_if_any()
    parts = [[_read_image(image, len(names), folders, faults) for image in progress(found.images)] for found in sources]
    images = [[image for image in part if image is not None] for part in parts]
    line_format = decide([line for part in images for image in part for line in image.lines], labels, keypoints)
    found = [_split(*pair, line_format, folders, faults) for pair in zip(sources, images, strict=True)]
    faults.raise_if_any()
    return found, names


def yolo_splits(path: Path) -> dict[str, Any]:
    """The splits that a data.yaml names, and what it says of each; raises `UserError` if it cannot be read."""
    tree = _read_description(path)
    return {name: tree[name] for name in ("train", "val", "test") if tree.get(name)}


def _read_description(path: Path) -> dict[str, Any]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in (".yaml", ".yml", ".data"))
        example = f", such as {found[0]}" if found else ", a data.yaml with names, train and val"
        raise UserError(f"{path} is a folder; give the file that describes the data set{example}", code="folder")
    return read_darknet(path) if is_darknet(path) else read_yaml(path)


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


def _source(name: str, value: Any, root: Path, path: Path, folders: Folders, faults: Faults) -> Source:
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{path}: {name} must be a folder, a text file, or a list of them, not {value!r:.80}")
    source = Source(name)
    for entry in entries:
        place = _resolve(entry, root, f"{path}: {name}", folders)
        if place.is_dir():
            source.folders.append(place)
            source.images += [Path(os.path.abspath(file)) for file in find_images(place)]
        else:
            source.lists.append(place)
            source.images += _listed_images(place, root, folders, faults)
    faults.raise_if_any()
    if not source.images:
        raise UserError(f"{path}: {name}: no images in {', '.join(entries)}{_other_files(source)}")
    if repeated := duplicates(source.images):
        raise UserError(f"{path}: {name}: image {repeated[0]} is listed more than once; keep one entry")
    source.images.sort()
    if not any(_find_labels(image, folders) for image in source.images):
        expected = _label_file(source.images[0])
        text_files = [file for file in walk(root) if file.suffix.lower() == ".txt" and file not in source.lists]
        elsewhere = f"; text files are in {text_files[0].parent}" if text_files else ""
        raise UserError(
            f"{path}: {name}: none of its {len(source.images)} images has labels; there is no {expected}, for "
            f"one{elsewhere}; put labels where YOLO expects them, in labels/ beside images/"
        )
    return source


def _other_files(source: Source) -> str:
    others = [file for folder in source.folders for file in unknown_files(folder)]
    return f"; {len(others)} files of other suffixes, the first: {others[0]}" if others else ""


def _resolve(entry: str, root: Path, where: str, folders: Folders) -> Path:
    # Exports of some services say ../train/images although train/ is beside the file.
    for candidate in (entry, entry.removeprefix("../")):
        if (root / candidate).exists():
            return root / candidate
    if found := folders.find(root, entry):
        return found
    if is_url(entry):
        raise url_error(entry)
    if rest := existing_end(entry, root):
        raise UserError(f"{where}: there is no {entry}, but {root / rest}; write {rest} there", code="elsewhere")
    raise UserError(
        f"{where}: there is no {root / entry}; correct it, or give the data set's folder with --root", code="no_folder"
    )


def _listed_images(source: Path, root: Path, folders: Folders, faults: Faults) -> list[Path]:
    """Absolute paths of the images that a text file names, relative to itself or to the data set."""
    images = []
    for line, name in read_lines(source):
        bases = (source.parent, root)
        spelled = (name, name.removeprefix(FOLDER))
        found = next((base / file for base in bases for file in spelled if (base / file).is_file()), None)
        found = found or next((file for base in bases if (file := folders.find(base, name)) and file.is_file()), None)
        with faults.collect(f"line {line}", "missing_image"):
            if found is None:
                raise UserError(f"{source} line {line}: there is no image {name!r:.80}; {_advice(name, source, root)}")
            images.append(Path(os.path.abspath(found)))
    return images


def _advice(name: str, source: Path, root: Path) -> str:
    """What to do about a line: lists made elsewhere begin with folders of that machine."""
    rest = existing_end(name, root) or existing_end(name, source.parent)
    if not rest:
        return "add it or remove the line"
    prefix = re.sub(r"[][\\.*^$|]", r"\\\g<0>", name[: len(name) - len(rest)])
    command = shell_command("sed", "-i", f"s|^{prefix}||", source)
    return f"there is {rest!r:.80}; remove the folders before it from the lines: {command}"


def _label_file(image: Path) -> Path:
    """The path with its last folder ``images`` replaced by ``labels``; beside the image if there is none."""
    return _replace_last(image.with_suffix(".txt"), "images", "labels")


def _replace_last(path: Path, old: str, new: str) -> Path:
    parts = list(path.parts)
    for position in reversed(range(len(parts) - 1)):
        if parts[position] == old:
            parts[position] = new
            break
    return Path(*parts)


def _find_labels(image: Path, folders: Folders) -> Path | None:
    """The label file of an image, whose name may differ in letter case and Unicode form, or None."""
    expected = _label_file(image)
    found = folders.same_name(expected)
    if found is None or found.stem == expected.stem:
        return found
    belongs_to_another = any(other.stem == found.stem for other in folders.images_of(image.with_name(found.stem)))
    return None if belongs_to_another else found


def _read_image(image: Path, num_classes: int, folders: Folders, faults: Faults) -> LabelledImage | None:
    """None if the image cannot be used; lines that cannot be read are left out. Either is a fault."""
    labels, lines = _find_labels(image, folders), []
    size = None
    with faults.collect(image, "image"):
        size, _ = image_sizes(image)
    with faults.collect(labels, "label_file"):
        for number, text in read_lines(labels) if labels else []:
            where = f"{labels} line {number}"
            with faults.collect(_short(labels, number), "not_number"):
                lines.append(parse_line(number, text.split(), where, num_classes))
    return size and LabelledImage(image, size, labels, lines)


def _short(labels: Path, line: int) -> str:
    return f"{labels.parent.name}/{labels.name} line {line}"


def _split(
    source: Source, images: Sequence[LabelledImage], line_format: LineFormat, folders: Folders, faults: Faults
) -> Split:
    folder = Path(os.path.commonpath([image.parent for image in source.images]))
    adjustments, records = BoxAdjustments(), []
    for image in images:
        boxes = []
        for line in image.lines:
            where = f"{image.labels} line {line.number}"
            with faults.collect(_short(image.labels, line.number), "label"):
                corners = line_format.convert(line, where)
                pixels = [value * image.size[axis % 2] for axis, value in enumerate(corners)]
                boxes += clip_box(line.index, pixels, image.size, where, adjustments)
        records.append(ImageRecord(image.path.relative_to(folder).as_posix(), *image.size, boxes))
    notes = adjustments.notes() + _corner_advice(images, adjustments) + line_format.notes(_places(images))
    return Split(source.name, folder, sorted(records), notes + _file_notes(source, images, folders))


def _places(images: Sequence[LabelledImage]) -> list[tuple[str, LabelLine]]:
    return [(f"{image.labels} line {line.number}", line) for image in images for line in image.lines]


def _corner_advice(images: Sequence[LabelledImage], adjustments: BoxAdjustments) -> tuple[str, ...]:
    """A sentence if the boxes read as well, and better, as corners."""
    boxes = [line.first for image in images for line in image.lines if line.count == BOX]
    as_corners = all(x1 < x2 and y1 < y2 for x1, y1, x2, y2 in boxes)
    if not adjustments.clipped or 2 * len(adjustments.clipped) < len(boxes) or not as_corners:
        return ()
    return ("every line also reads as x1 y1 x2 y2; if these are corners, rewrite them as cx cy w h",)


def _file_notes(source: Source, images: Sequence[LabelledImage], folders: Folders) -> tuple[str, ...]:
    """Sentences on files that have no counterpart, or that were not recognised."""
    without = [image.path for image in images if image.labels is None]
    renamed = [image.labels for image in images if image.labels and image.labels != _label_file(image.path)]
    used = [image.labels for image in images if image.labels]
    return (
        *count_note(without, "images have no label file and count as images without objects"),
        *count_note(_orphans(source, set(used), folders), "label files have no image and were left out"),
        *count_note(renamed, "label files have another spelling than their image and were taken"),
        *count_note(duplicates(used), "label files belong to several images, which differ in their suffix only"),
        *count_note(
            [file for folder in source.folders for file in unknown_files(folder)],
            "files beside the images have no suffix of an image and were left out",
        ),
    )


def _orphans(source: Source, used: set[Path], folders: Folders) -> list[Path]:
    """Label files of the split's folders that have no image on the disk."""
    trees = [_label_file(Path(os.path.abspath(folder)) / "x.txt").parent for folder in source.folders]
    files = [file for tree in trees for file in walk(tree)]
    files += [folder / name for folder in {path.parent for path in used} for name in folders.names(folder)]
    lists = {Path(os.path.abspath(file)) for file in source.lists}
    return sorted(
        file
        for file in set(files) - used - lists
        if file.suffix.lower() == ".txt"
        and file.name.lower() not in NOT_LABELS
        and not file.name.lower().startswith("readme")
        and not folders.images_of(_replace_last(file.with_suffix(""), "labels", "images"))
        and not folders.images_of(file.with_suffix(""))
    )
