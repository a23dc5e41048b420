"""COCO-format json: checked, and turned into flat arrays that loader processes can share."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl.common.errors import UserError
from gfl.common.text import list_some, short_repr
from gfl.data.annotation_columns import are_ordinary, marked_as_ignored, visible_boxes
from gfl.data.annotation_marks import (
    area_findings,
    boxes_as_written,
    check_annotation,
    partial_label_findings,
    rotation_findings,
)
from gfl.data.box_format import box_format_findings
from gfl.data.coco_json import (
    category_names,
    collect_faults,
    entry_name,
    match_classes,
    read_coco_json,
    read_images,
)
from gfl.data.file_names import check_files
from gfl.data.json_file import without_cycle_search

IGNORED = {  # why a box is left out of training, with the number of such boxes before it
    "crowd": "crowd boxes",
    "ignore": "boxes marked as ignored (ignore, isgroupof, difficult)",
    "class": "boxes of data.ignore_classes",
}


@dataclass(frozen=True)
class CocoData:
    """One split: image i has the boxes ``offsets[i]`` to ``offsets[i + 1]``, without ignored and degenerate ones."""

    annotations: str  # path of the json
    root: str  # folder of the images
    image_ids: np.ndarray  # (I,) int64
    file_names: np.ndarray  # (I,) str
    sizes: np.ndarray  # (I, 2) int64 height, width
    boxes_xyxy: np.ndarray  # (A, 4) float32 pixels, clipped to the image
    labels: np.ndarray  # (A,) int64 in [0, C)
    offsets: np.ndarray  # (I + 1,) int64
    class_names: tuple[str, ...]  # C names, by label
    category_ids: tuple[int, ...]  # the json's id of each label
    has_annotations: bool  # False for images-only json such as test-dev
    notes: tuple[str, ...]  # on boxes that were skipped, for the user
    eval_notes: tuple[str, ...]  # on what changes the metrics of this split
    ignored_xyxy: np.ndarray  # (K, 4) float32 pixels, clipped: crowds, boxes marked as ignored and of ignored classes
    ignored_offsets: np.ndarray  # (I + 1,) int64, as `offsets`
    ignored_classes: tuple[str, ...]  # categories of the json that are no class but regions to ignore
    ignored_categories: tuple[int, ...]  # their ids

    def __len__(self) -> int:
        return len(self.image_ids)

    def boxes_of(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (n, 4) and labels (n,) of image `index`."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.boxes_xyxy[rows], self.labels[rows]

    def ignored_of(self, index: int) -> np.ndarray:
        """Boxes (k, 4) of the regions of image `index` that are ignored."""
        return self.ignored_xyxy[self.ignored_offsets[index] : self.ignored_offsets[index + 1]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a run takes from the json: ids, names and sizes of images, boxes, labels and classes."""
        texts = (self.file_names.tolist(), self.class_names, self.category_ids, self.ignored_categories)
        arrays = (self.image_ids, self.sizes, self.boxes_xyxy, self.labels, self.offsets)
        digest = hashlib.sha256(repr(texts).encode("utf-8", "surrogatepass"))
        for array in (*arrays, self.ignored_xyxy, self.ignored_offsets):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def load_coco(
    annotations: str, images: str, class_names: Sequence[str] | None = None, *, ignore_classes: Collection[str] = ()
) -> CocoData:
    """Read and check a split.

    Args:
        annotations: path of the json.
        images: folder that its file names are relative to.
        class_names: the classes by label of a checkpoint or of the training split; by default they are the json's
            categories by rising id.
        ignore_classes: names of categories whose boxes are regions to ignore; those that the json lacks do no harm.

    Raises `UserError` naming the file and the entries that cannot be used.
    """
    with without_cycle_search():
        tree = read_coco_json(annotations, outlines=False)
        return build_coco_data(tree, annotations, images, class_names, ignore_classes=ignore_classes)


def build_coco_data(
    tree: dict[str, Any],
    annotations: str,
    images: str,
    class_names: Sequence[str] | None = None,
    *,
    ignore_classes: Collection[str] = (),
) -> CocoData:
    """`load_coco` for a json that `read_coco_json` has already read from `annotations`."""
    image_ids, file_names, sizes = read_images(tree["images"], annotations)
    check_files(images, file_names, annotations)
    names = category_names(tree["categories"], annotations)
    ignored = ignored_categories(names, tree["categories"], ignore_classes)
    names = {category: name for category, name in names.items() if category not in ignored}
    if not names:
        raise UserError(f"{annotations}: data.ignore_classes leaves no class to train")
    class_names = tuple(names.values()) if class_names is None else tuple(class_names)
    category_ids = match_classes(names, class_names, annotations)
    row_of = {int(image_id): row for row, image_id in enumerate(image_ids)}
    label_of: dict[int, int | None] = {category: label for label, category in enumerate(category_ids)}
    label_of |= dict.fromkeys(ignored)
    entries = tree.get("annotations", [])
    read = _read_annotations(entries, row_of, label_of, sizes, annotations)
    order, ignored_order = np.argsort(read.rows, kind="stable"), np.argsort(read.ignored_rows, kind="stable")
    return CocoData(
        annotations=annotations,
        root=images,
        image_ids=image_ids,
        file_names=file_names,
        sizes=sizes,
        boxes_xyxy=read.boxes[order],
        labels=read.labels[order],
        offsets=np.searchsorted(read.rows[order], np.arange(len(image_ids) + 1)),
        class_names=class_names,
        category_ids=category_ids,
        has_annotations="annotations" in tree,
        notes=(*(found.note() for found in partial_label_findings(tree["images"])), *read.notes),
        eval_notes=tuple(found.note() for found in area_findings(enumerate(entries))),
        ignored_xyxy=read.ignored_boxes[ignored_order],
        ignored_offsets=np.searchsorted(read.ignored_rows[ignored_order], np.arange(len(image_ids) + 1)),
        ignored_classes=tuple(ignored.values()),
        ignored_categories=tuple(ignored),
    )


def ignored_categories(
    names: dict[int, str], categories: Sequence[dict[str, Any]], ignore_classes: Collection[str]
) -> dict[int, str]:
    """Id -> name of the categories that `ignore_classes` names, by their own name or the one that `names` gives."""
    own = {entry["id"]: entry["name"] for entry in categories}
    return {category: own[category] for category, name in names.items() if {name, own[category]} & set(ignore_classes)}


def check_ignore_classes(data: CocoData, ignore_classes: Sequence[str]) -> None:
    """Raises `UserError` for names in `data.ignore_classes` that are no category of the training split."""
    if unknown := [name for name in ignore_classes if name not in data.ignored_classes]:
        raise UserError(
            f"{data.annotations}: data.ignore_classes names {list_some([short_repr(name) for name in unknown])}, "
            f"which are no categories there; the others are {list_some(data.class_names)}",
            code="ignore_classes",
        )


class _Boxes(NamedTuple):
    rows: np.ndarray  # (A,) row of the image
    boxes: np.ndarray  # (A, 4)
    labels: np.ndarray  # (A,)
    ignored_rows: np.ndarray  # (K,)
    ignored_boxes: np.ndarray  # (K, 4)
    notes: tuple[str, ...]


def _read_annotations(
    entries: list[Any], row_of: dict[int, int], label_of: dict[int, int | None], sizes: np.ndarray, path: str
) -> _Boxes:
    """The boxes to train on and those to ignore, and notes on the latter and on degenerate ones."""
    if not are_ordinary(entries, row_of.keys(), label_of.keys()):
        collect_faults(entries, lambda entry, position: check_annotation(entry, position, row_of, label_of, path))
    rows = np.array([row_of[entry["image_id"]] for entry in entries], np.int64)
    label_or_ignored = {category: -1 if label is None else label for category, label in label_of.items()}
    labels = np.array([label_or_ignored[entry["category_id"]] for entry in entries], np.int64)
    boxes = boxes_as_written(entries)
    corners, visible = visible_boxes(boxes, sizes[rows])
    crowd = np.array([bool(entry.get("iscrowd")) for entry in entries], bool)
    marked = marked_as_ignored(entries) & ~crowd
    ignored = crowd | marked | (labels < 0)
    reasons = {"crowd": crowd, "ignore": marked, "class": ignored & ~crowd & ~marked}
    counts = {reason: int(found.sum()) for reason, found in reasons.items()}
    degenerate = [entry_name(entries[row], row) for row in np.flatnonzero(~visible & ~ignored).tolist()]
    kept, left_out = visible & ~ignored, visible & ignored
    format_findings = box_format_findings(boxes, sizes[rows])
    return _Boxes(
        rows[kept],
        corners[kept].astype(np.float32),
        labels[kept],
        rows[left_out],
        corners[left_out].astype(np.float32),
        (*(found.note() for found in format_findings), *_notes(entries, degenerate, counts)),
    )


def _notes(entries: list[Any], degenerate: list[int | str], counts: dict[str, int]) -> tuple[str, ...]:
    notes = []
    if degenerate:
        plural = "box" if len(degenerate) == 1 else "boxes"
        notes.append(
            f"{len(degenerate)} degenerate {plural} skipped (under 1 px or outside the image; evaluation keeps them): "
            f"annotation {list_some(degenerate)}"
        )
    if any(counts.values()):
        texts = [f"{count} {IGNORED[reason]}" for reason, count in counts.items() if count]
        marked = counts["ignore"] or counts["class"]
        notes.append(f"{', '.join(texts)}: not trained on" + (", as crowd in evaluation" * bool(marked)))
    notes += [found.note() for found in rotation_findings(enumerate(entries))]
    return tuple(notes)


def image_path(data: CocoData, index: int) -> Path:
    """The file of image `index`."""
    return Path(data.root) / str(data.file_names[index])
