"""How well a data set fits the config, by its json alone: distances, object sizes, points per object, classes."""

from dataclasses import replace
from typing import Any

import numpy as np

from gfl.common.findings import Finding, finding_if_any
from gfl.common.yaml_file import list_in_yaml
from gfl.config import MAX_REG_MAX, Config
from gfl.data.annotation_marks import looks_like_region
from gfl.data.coco import CocoData
from gfl.data.dataset import size_in_eval
from gfl.evaluation.coco_eval import crowded_findings
from gfl.evaluation.targets import RegressionTargets, regression_targets, target_statistics

WARN_SHARE = 0.01  # of sides beyond reg_max, or of objects without a point, above which it is a warning
WARN_SHARE_SMALL = 0.05  # the same for objects below the finest stride
FEW_POINTS = 3  # an object with fewer is hard to learn
MAX_OBJECTS = 2_000  # whose points are assigned; the same for the doctor and the start of training, which then agree


def object_sizes(data: CocoData, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """(A,) square roots of the boxes' areas: in pixels of the file, and of the network's input in evaluation."""
    sizes, index = np.unique(data.sizes, axis=0, return_inverse=True)
    resized = np.array([size_in_eval(*size, config.data) for size in sizes.tolist()])
    scale = np.sqrt((resized / sizes).prod(axis=1))[index.reshape(-1)]
    width, height = (data.boxes_xyxy[:, 2:] - data.boxes_xyxy[:, :2]).T
    in_file = np.sqrt(width * height)
    return in_file, in_file * np.repeat(scale, np.diff(data.offsets))


def fit_statistics(data: CocoData, config: Config, *, max_boxes: int) -> dict[str, Any]:
    """Statistics of the training split; see `object_sizes`, `target_statistics` and `regression_targets`.

    `assigned` and `targets` are None where points are assigned by predictions.
    """
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
        "assigned": _assigned(targets) if targets else None,
        "targets": _with_range_aware(target_statistics(targets, config), data, config, max_boxes) if targets else None,
    }


def _assigned(targets: RegressionTargets) -> dict[str, Any]:
    return {
        "images": targets.images,
        "objects": len(targets.points),
        "without_point": int((targets.points == 0).sum()),
        f"under_{FEW_POINTS}_points": int((targets.points < FEW_POINTS).sum()),
        "mean_points": float(targets.points.mean()) if len(targets.points) else None,
    }


def _with_range_aware(statistics: dict[str, Any], data: CocoData, config: Config, max_boxes: int) -> dict[str, Any]:
    """With `share_beyond_range_aware`, what `assign.range_aware` would leave, where it may be a remedy."""
    is_remedy = config.assign.kind == "atss" and config.model.head.box == "general" and not config.assign.range_aware
    if not is_remedy or statistics.get("share_beyond", 0) <= WARN_SHARE:
        return statistics
    aware = replace(config, assign=replace(config.assign, range_aware=True))
    left = target_statistics(regression_targets(data, aware, max_boxes=max_boxes), aware)["share_beyond"]
    return statistics | {"share_beyond_range_aware": left}


def fit_findings(statistics: dict[str, Any], config: Config) -> list[Finding]:
    """The statistics of `fit_statistics` that call for another config."""
    sizes, assigned, targets = statistics["sizes"], statistics["assigned"], statistics["targets"]
    if not sizes["objects"]:
        return []
    if not assigned:
        what = f"objects: assign.kind {config.assign.kind} chooses their points by predictions"
        advice = "points per object and sides beyond reg_max are not known before training"
        return [*_small_objects(sizes), Finding("ok", sizes["objects"], what, advice)]
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
    share = targets["share_beyond"]
    level = "warning" if share > WARN_SHARE else "ok"
    what = f"sides ({share:.1%}) beyond reg_max {targets['reg_max']}, up to {targets['largest']:.0f} strides"
    advice = _range_advice(targets) if level == "warning" else "few enough"
    return [Finding(level, round(share * targets["points"] * 4), what, advice)]


def _range_advice(targets: dict[str, Any]) -> str:
    """What brings the sides into the range: values that a new run accepts, also one that starts from a checkpoint."""
    recommended, left = targets["recommended_reg_max"], targets.get("share_beyond_range_aware", 1)
    advice = f"model.head.reg_max={recommended} covers 99.9%"
    if recommended > MAX_REG_MAX:
        advice = f"{recommended} bins are more than {MAX_REG_MAX}: raise model.head.delta, with model.weights=none"
    return advice + (f", or assign.range_aware=true leaves {left:.1%}" if left <= WARN_SHARE else "")


def class_counts(data: CocoData, usable: np.ndarray | None = None) -> dict[str, int]:
    """Number of boxes by class name, in all images or in those of the mask (I,)."""
    labels = data.labels if usable is None else data.labels[np.repeat(usable, np.diff(data.offsets))]
    counts = np.bincount(labels, minlength=len(data.class_names))
    return dict(zip(data.class_names, counts.tolist(), strict=True))


def class_findings(data: CocoData, split: str) -> list[Finding]:
    """Classes without a box in the split, and of the training split those named like regions to ignore."""
    without = [name for name, count in class_counts(data).items() if not count]
    advice = {"train": "data.ignore_classes leaves them out", "val": "AP is the mean over the others"}
    regions = [name for name in data.class_names if looks_like_region(name)] if split == "train" else []
    option = f'trained as classes; leave them out with "data.ignore_classes={list_in_yaml(regions)}"'
    return [
        *finding_if_any("warning", "classes named like regions to ignore", option, regions),
        *finding_if_any("warning", f"classes without {split} boxes", advice[split], without),
    ]


def fit_notes(train: CocoData, val: CocoData, config: Config) -> list[str]:
    """Warnings before training starts; takes seconds even for COCO, since no image file is read."""
    statistics = fit_statistics(train, config, max_boxes=MAX_OBJECTS)
    found = [*class_findings(train, "train"), *class_findings(val, "val"), *fit_findings(statistics, config)]
    found += crowded_findings(val, config.eval, "val")
    return [entry.note() for entry in found if entry.level != "ok"]
