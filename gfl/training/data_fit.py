"""How well a data set fits the config, by its json alone: distances, object sizes, points per object, classes."""

from typing import Any, NamedTuple

import numpy as np
import torch

from gfl.build import build_assigner, build_point_layout
from gfl.common.findings import Finding, finding_if_any
from gfl.config import Config
from gfl.data.coco import CocoData
from gfl.data.transforms import keep_ratio_size
from gfl.method.boxes import boxes_to_distances
from gfl.method.points import make_point_grid, points_in_images
from gfl.structures import SIZE_DIVISOR, Targets

TAIL = 0.001  # share of sides that may exceed the recommended reg_max
WARN_SHARE = 0.01  # of sides beyond reg_max, or of objects without a point, above which it is a warning
WARN_SHARE_SMALL = 0.05  # the same for objects below the finest stride
FEW_POINTS = 3  # an object with fewer is hard to learn
# Objects whose points are assigned: at every start of training, and when the user asks for a check.
MAX_OBJECTS_AT_START, MAX_OBJECTS_ON_DEMAND = 1_000, 8_000


class RegressionTargets(NamedTuple):
    """What the box branch is trained on, for some images of a split."""

    distances: np.ndarray  # (m, 4) strides, of all positive points
    levels: np.ndarray  # (m,) their levels
    points: np.ndarray  # (n,) number of points of every object
    images: int  # number of images


def regression_targets(data: CocoData, config: Config, *, max_boxes: int | None = None) -> RegressionTargets:
    """Distances and levels of the positive points of a split, and the number of points of each object.

    Images have their size in evaluation and are not flipped; the assigner is the config's. No image file is read.
    With `max_boxes` only images at equal intervals are used, with about as many boxes in total.
    """
    assigner, layout = build_assigner(config.assign), build_point_layout(config.model.points)
    distances, levels, points = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    chosen = _choose_images(np.flatnonzero(np.diff(data.offsets)), len(data.labels), max_boxes)
    for index in chosen:
        boxes, labels = data.boxes_of(index)
        height, width = data.sizes[index].tolist()
        size = _size_in_eval(height, width, config)
        padded = [-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size]
        maps = [tuple(-(-side // stride) for side in padded) for stride in layout.strides]
        grid = make_point_grid(maps, layout)
        scale = torch.tensor([size[1] / width, size[0] / height]).repeat(2)
        boxes_xyxy = (torch.from_numpy(boxes) * scale)[None]
        targets = Targets(boxes_xyxy, torch.from_numpy(labels)[None], torch.ones(1, len(boxes), dtype=torch.bool))
        assignment = assigner(grid, targets, points_in_images(grid, torch.tensor([size])))
        point = assignment.positive[0].nonzero().squeeze(1)
        slot = assignment.index[0, point]
        target_distances = boxes_to_distances(grid.points[point], boxes_xyxy[0, slot])
        distances.append((target_distances / grid.strides[point, None]).numpy())
        levels.append(np.searchsorted(np.cumsum(grid.level_sizes), point.numpy(), side="right"))
        points.append(np.bincount(slot.numpy(), minlength=len(boxes)))
    return RegressionTargets(np.concatenate(distances), np.concatenate(levels), np.concatenate(points), len(chosen))


def _choose_images(images: np.ndarray, boxes: int, max_boxes: int | None) -> np.ndarray:
    """All images, or some at equal intervals that have about `max_boxes` boxes in total."""
    if max_boxes is None or boxes <= max_boxes:
        return images
    # At least 20 images, since a few crowded ones say little about a split; at most one per 5 boxes, for the time.
    count = min(len(images), max(20, round(len(images) * max_boxes / boxes)), max_boxes // 5)
    return images[np.linspace(0, len(images) - 1, count).round().astype(np.int64)]


def _size_in_eval(height: int, width: int, config: Config) -> tuple[int, int]:
    return keep_ratio_size(height, width, short_side=config.data.short_side_in_eval, long_side=config.data.long_side)


def target_statistics(targets: RegressionTargets, config: Config) -> dict[str, Any]:
    """The share of sides beyond the range of `reg_max` and `delta`, overall and per level, and a better `reg_max`."""
    distances, levels = targets.distances, targets.levels
    head, strides = config.model.head, config.model.points.strides
    limit = head.reg_max * head.delta
    if not distances.size:
        return {"points": 0}
    recommended = int(np.ceil(np.quantile(distances, 1 - TAIL) / head.delta))
    by_stride = {str(stride): distances[levels == level] for level, stride in enumerate(strides)}
    return {
        "points": len(distances),
        "points_by_stride": {stride: len(part) for stride, part in by_stride.items()},
        "reg_max": head.reg_max,
        "delta": head.delta,
        "share_beyond": float((distances > limit).mean()),
        "share_beyond_by_stride": {
            stride: float((part > limit).mean()) for stride, part in by_stride.items() if len(part)
        },
        "largest": float(distances.max()),
        "recommended_reg_max": max(1, recommended),
    }


def object_sizes(data: CocoData, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(A,) square roots of the boxes' areas: in pixels of the file, and of the network's input in evaluation."""
    sizes, index = np.unique(data.sizes, axis=0, return_inverse=True)
    resized = np.array([_size_in_eval(*size, config) for size in sizes.tolist()])
    scale = np.sqrt((resized / sizes).prod(axis=1))[index.reshape(-1)]
    width, height = (data.boxes_xyxy[:, 2:] - data.boxes_xyxy[:, :2]).T
    in_file = np.sqrt(width * height)
    return in_file, in_file * np.repeat(scale, np.diff(data.offsets))


def fit_statistics(data: CocoData, config: Config, *, max_boxes: int) -> dict[str, Any]:
    """Statistics of the training split; see `object_sizes`, `target_statistics` and `regression_targets`."""
    targets = regression_targets(data, config, max_boxes=max_boxes)
    finest = config.model.points.strides[0]
    in_file, in_input = object_sizes(data, config)
    quantiles = ("0.05", "0.5", "0.95") if len(in_file) else ()
    return {
        "sizes": {
            "objects": len(in_file),
            "under_8_px_in_file": int((in_file < 8).sum()),
            "finest_stride": finest,
            "under_finest_stride": int((in_input < finest).sum()),
            "quantiles_px": {q: float(np.quantile(in_input, float(q))) for q in quantiles},
        },
        "assigned": {
            "images": targets.images,
            "objects": len(targets.points),
            "without_point": int((targets.points == 0).sum()),
            f"under_{FEW_POINTS}_points": int((targets.points < FEW_POINTS).sum()),
            "mean_points": float(targets.points.mean()) if len(targets.points) else None,
        },
        "targets": target_statistics(targets, config),
    }


def fit_findings(statistics: dict[str, Any], config: Config) -> list[Finding]:
    """The statistics of `fit_statistics` that call for another config."""
    sizes, assigned, targets = statistics["sizes"], statistics["assigned"], statistics["targets"]
    if not sizes["objects"]:
        return []
    return [*_small_objects(sizes), *_without_points(assigned, sizes["objects"]), *_sides_beyond(targets, config)]


def _small_objects(sizes: dict[str, Any]) -> list[Finding]:
    count, stride = sizes["under_finest_stride"], sizes["finest_stride"]
    level = "warning" if count > WARN_SHARE_SMALL * sizes["objects"] else "ok"
    what = f"objects ({count / sizes['objects']:.1%}) under the finest stride, {stride} px"
    return [Finding(level, count, what, "raise data.short_side" if level == "warning" else "")] if count else []


def _without_points(assigned: dict[str, Any], objects: int) -> list[Finding]:
    sampled = assigned["objects"]
    sample = "" if sampled == objects else f" of {sampled} sampled"
    findings = []
    for key, what in (
        ("without_point", "without a positive point"),
        (f"under_{FEW_POINTS}_points", f"with under {FEW_POINTS} points"),
    ):
        count = assigned[key]
        level = "warning" if key == "without_point" and count > WARN_SHARE * sampled else "ok"
        advice = "raise data.short_side or change assign.kind" if level == "warning" else ""
        if count:
            findings.append(Finding(level, count, f"objects{sample} ({count / sampled:.1%}) {what}", advice))
    return findings


def _sides_beyond(targets: dict[str, Any], config: Config) -> list[Finding]:
    if config.model.head.box != "general" or not targets["points"] or not targets["share_beyond"]:
        return []  # the other box representations have no range
    share, recommended = targets["share_beyond"], targets["recommended_reg_max"]
    level = "warning" if share > WARN_SHARE else "ok"
    what = f"sides ({share:.1%}) beyond reg_max {targets['reg_max']}, up to {targets['largest']:.0f} strides"
    advice = f"model.head.reg_max={recommended} covers 99.9%" if recommended > targets["reg_max"] else ""
    return [Finding(level, round(share * targets["points"] * 4), what, advice)]


def class_counts(data: CocoData, usable: np.ndarray | None = None) -> dict[str, int]:
    """Number of boxes by class name, in all images or in those of the mask (I,)."""
    labels = data.labels if usable is None else data.labels[np.repeat(usable, np.diff(data.offsets))]
    counts = np.bincount(labels, minlength=len(data.class_names))
    return dict(zip(data.class_names, counts.tolist(), strict=True))


def class_findings(data: CocoData, split: str) -> list[Finding]:
    """Classes without a box in the split."""
    without = [name for name, count in class_counts(data).items() if not count]
    advice = {"train": "leave them out of both jsons", "val": "AP is the mean over the others"}
    return finding_if_any("warning", f"classes without {split} boxes", advice[split], without)


def fit_notes(train: CocoData, val: CocoData, config: Config) -> list[str]:
    """Warnings before training starts; takes seconds even for COCO, since no image file is read."""
    statistics = fit_statistics(train, config, max_boxes=MAX_OBJECTS_AT_START)
    found = [*class_findings(train, "train"), *class_findings(val, "val"), *fit_findings(statistics, config)]
    return [entry.note() for entry in found if entry.level != "ok"]
