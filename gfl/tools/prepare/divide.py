"""Divide a set into training and validation images, at random and stratified by class.

Iterative stratification (K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the Stratification of Multi-Label Data", 2011):
class by class, the rarest first, each image goes to the side that lacks most of its share of the class, or else of all
images. Two rules are added for small sets: a class that two images have is on both sides, where other classes allow
it, and a class that one image has is in training. Near duplicates are one unit, which counts as several images.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from gfl.common.errors import UserError
from gfl.common.text import list_some, printable, truncate_middle
from gfl.data.coco import CocoData, build_coco_data
from gfl.tools.doctor.images import distinct_files, inspect_images
from gfl.tools.near_duplicates import group_near_duplicates
from gfl.tools.prepare.to_coco import Split, coco_tree

TRAIN, VAL = SIDES = (0, 1)
DEFAULT_SHARE = 0.2  # of validation
MAX_CLASSES = 20  # in the table; the rarest ones if there are more

OnImages = Callable[[int], object]  # called with the number of images that were decoded


class Unit(NamedTuple):
    """Images that stay together: one, entries of the same file, or near duplicates."""

    rows: tuple[int, ...]
    images_of: Counter[int]  # label -> how many of the images have it


class Division(NamedTuple):
    """The rows of the images of both sides, in their order, and what to print about it."""

    sides: tuple[list[int], list[int]]  # training and validation
    notes: tuple[str, ...]
    table: tuple[str, ...]  # images and boxes of each class


def divide(
    data: CocoData,
    share: float,
    seed: int,
    *,
    near_duplicates: bool = False,
    on_images: OnImages = lambda count: None,
) -> Division:
    """Divide the images of a split.

    Args:
        share: of the images that validation gets. It gets more where rare classes need it.
        seed: the same seed, file names and boxes give the same division.
        near_duplicates: keep images on one side that differ in compression, scale or brightness only.

    Raises `UserError` with the code "empty_split" if one side would be empty.
    """
    count, wanted = len(data), round(share * len(data))
    if not 0 < wanted < count:
        side = "train" if wanted else "val"
        advice = f"give a share of at least {1 / count:.2g} of either" if count > 1 else "add images"
        raise UserError(
            f"{data.annotations}: --val-share {share:g} of {count} images leaves {side} empty; {advice}",
            code="empty_split",
        )
    # A file that a json names twice is one image.
    units = _units(data, _groups(data, on_images) if near_duplicates else data.file_names.tolist())
    if len(units) == 1:
        raise UserError(
            f"{data.annotations}: all {count} images are the same file or near duplicates of each other; add others, "
            "or divide without --near-duplicates",
            code="empty_split",
        )
    train, val = (sorted(row for unit in side for row in unit.rows) for side in stratify(units, share, seed))
    notes = _notes(data, units, (train, val), wanted)
    return Division((train, val), notes, _table(data, (train, val)))


def divide_split(
    split: Split, categories: Mapping[Hashable, str], names: Sequence[str], by: Callable[[CocoData], Division]
) -> tuple[list[Split], Division]:
    """A split that no json holds yet as two.

    Args:
        categories: of `coco_tree`.
        names: of training and validation.
        by: `divide` with its settings.
    """
    folder = str(split.folder)
    division = by(build_coco_data(coco_tree(split, categories), folder, folder))
    parts = [
        replace(split, name=name, images=[split.images[row] for row in rows], notes=())
        for name, rows in zip(names, division.sides, strict=True)
    ]
    return [replace(parts[0], notes=split.notes), *parts[1:]], division


def _groups(data: CocoData, on_images: OnImages) -> list[int]:
    """The group of near duplicates of each image, those that cannot be read in groups of their own."""
    inspected = inspect_images(data, with_hashes=True, on_images=on_images)
    hash_of = {str(data.file_names[row]): inspected[row].hash for row in distinct_files(data)}
    group_of = dict(zip(hash_of, group_near_duplicates(list(hash_of.values())), strict=True))
    return [group_of[name] for name in data.file_names.tolist()]


def _units(data: CocoData, groups: Sequence[Hashable]) -> list[Unit]:
    rows_of = defaultdict(list)
    for row, group in enumerate(groups):
        rows_of[group].append(row)
    return [
        Unit(tuple(rows), Counter(label for row in rows for label in set(data.boxes_of(row)[1].tolist())))
        for rows in rows_of.values()
    ]


class _Sides:
    """The units of both sides while they are placed, and what each side still lacks."""

    def __init__(self, units: Sequence[Unit], share: float) -> None:
        shares, images_of = (1 - share, share), Counter()
        for unit in units:
            images_of.update(unit.images_of)
        self.units: tuple[list[Unit], list[Unit]] = ([], [])
        self.num_units = (Counter(), Counter())  # label -> units of a side that have it
        self.lacking = [part * sum(len(unit.rows) for unit in units) for part in shares]  # images
        self.lacking_of = [{label: part * count for label, count in images_of.items()} for part in shares]

    def put(self, unit: Unit, side: int) -> None:
        self.units[side].append(unit)
        self.num_units[side].update(unit.images_of.keys())
        self.lacking[side] -= len(unit.rows)
        for label, count in unit.images_of.items():
            self.lacking_of[side][label] -= count

    def move(self, unit: Unit, side: int) -> None:
        """Move a unit to `side` from the other one."""
        self.units[1 - side].remove(unit)
        self.num_units[1 - side].subtract(unit.images_of.keys())
        self.put(unit, side)

    def side_for(self, label: int, waiting: int) -> int:
        """The side of the next unit with `label`, of which `waiting` are not placed."""
        without = [side for side in SIDES if not self.num_units[side][label]]
        if len(without) == 2 and waiting == 1:
            return TRAIN  # the only one
        options = without if waiting <= len(without) else SIDES
        return max(options, key=lambda side: (self.lacking_of[side][label], self.lacking[side]), default=TRAIN)


def stratify(units: Sequence[Unit], share: float, seed: int) -> tuple[list[Unit], list[Unit]]:
    """The units of training and those of validation, whose share of the images is `share`; neither is empty.

    Args:
        units: at least two.
    """
    shuffled = random.Random(seed).sample(units, len(units))
    order = sorted(shuffled, key=lambda unit: -len(unit.rows))  # while there is room on both sides for large ones
    sides, members = _Sides(order, share), defaultdict(list)
    for position, unit in enumerate(order):
        for label in unit.images_of:
            members[label].append(position)
    waiting, placed = Counter({label: len(positions) for label, positions in members.items()}), set()
    while waiting:
        # A class of one unit first: in validation only it would be tested and never trained.
        label = min(waiting, key=lambda label: (len(members[label]) > 1, waiting[label], label))
        for position in members[label]:
            if position not in placed:
                sides.put(order[position], sides.side_for(label, waiting[label]))
                waiting.subtract(order[position].images_of.keys())
                placed.add(position)
        del waiting[label]
    for position, unit in enumerate(order):
        if position not in placed:  # it has no class
            sides.put(unit, max(SIDES, key=lambda side: sides.lacking[side]))
    _complete(sides)
    return sides.units


def _complete(sides: _Sides) -> None:
    """Move units to a side that has none, or none of a class, unless the other side then lacks a class."""
    for side in SIDES:
        for label, count in sorted(sides.num_units[1 - side].items()):
            if count < 2 or sides.num_units[side][label]:
                continue
            spare = [
                unit
                for unit in sides.units[1 - side]
                if label in unit.images_of and all(sides.num_units[1 - side][other] > 1 for other in unit.images_of)
            ]
            if spare:
                sides.move(min(spare, key=lambda unit: len(unit.rows)), side)
        if not sides.units[side]:  # as where no class has two images
            sides.move(min(sides.units[1 - side], key=lambda unit: (len(unit.images_of), len(unit.rows))), side)


def _notes(data: CocoData, units: Sequence[Unit], sides: Sequence[Sequence[int]], wanted: int) -> tuple[str, ...]:
    """Sentences on what is not as one may expect; `wanted` is the share of validation as a number of images."""
    copies = [len(unit.rows) for unit in units if len(unit.rows) > 1]
    notes = []
    if copies:
        what = "groups of the same file or near duplicates"
        notes.append(f"{what}: {len(copies)}, with {sum(copies)} images; each is on one side")
    if abs(len(sides[VAL]) - wanted) > max(1, wanted // 10):
        reason = "rare classes are on both sides" + ", groups of duplicates on one" * bool(copies)
        notes.append(f"validation has {len(sides[VAL])} images instead of {wanted}: {reason}")
    images = [_images_per_class(data, rows) for rows in sides]
    for side, name in zip(SIDES, ("training", "validation"), strict=True):
        only = np.flatnonzero((images[side] > 0) & (images[1 - side] == 0))
        if len(only):
            names = list_some([data.class_names[label] for label in only])
            notes.append(f"classes in {name} only, for lack of images: {names}")
    return tuple(notes)


def _images_per_class(data: CocoData, rows: Sequence[int]) -> np.ndarray:
    labels = [label for row in rows for label in set(data.boxes_of(row)[1].tolist())]
    return np.bincount(np.array(labels, np.int64), minlength=len(data.class_names))


def _table(data: CocoData, sides: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Lines with the images and boxes of each class on both sides, the rarest class first."""
    images = [_images_per_class(data, rows) for rows in sides]
    boxes = [
        np.bincount(np.concatenate([data.boxes_of(row)[1] for row in rows]), minlength=len(data.class_names))
        for rows in sides
    ]
    used = [label for label in np.argsort(sum(boxes), kind="stable").tolist() if sum(boxes)[label]]
    ranked = used[:MAX_CLASSES]
    more = f", the {MAX_CLASSES} rarest of {len(used)}" if len(used) > MAX_CLASSES else ""
    names = [truncate_middle(printable(data.class_names[label]), 28) for label in ranked]
    width = max(map(len, names), default=0)
    head = "".join(f"{text:>12}" for text in ("train images", "boxes", "val images", "boxes"))
    lines = [f"classes   images and boxes per class{more}", f"  {'':<{width}} {head}"]
    for label, name in zip(ranked, names, strict=True):
        cells = (images[TRAIN][label], boxes[TRAIN][label], images[VAL][label], boxes[VAL][label])
        lines.append(f"  {name:<{width}} " + "".join(f"{count:>12,}" for count in cells))
    return tuple(lines)
