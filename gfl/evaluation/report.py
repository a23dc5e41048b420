"""The analysis of checkpoints on a split: statistics beyond AP, diagrams, and drawn examples of side distributions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gfl.common.errors import UserError
from gfl.common.files import distinct_file_names
from gfl.common.progress import progress_bar
from gfl.common.text import printable
from gfl.config import Config
from gfl.data.coco import CocoData, image_path, load_coco
from gfl.data.image_files import read_image
from gfl.data.loader import build_eval_loader
from gfl.evaluation.analysis import (
    SHAPES,
    accurate,
    ranking_statistics,
    score_statistics,
    side_shapes,
    spread_statistics,
)
from gfl.evaluation.draw import draw_distributions, save_image
from gfl.evaluation.inference import Detector, bin_positions
from gfl.evaluation.plots import plot_scores, plot_shapes, plot_spread, plot_targets
from gfl.evaluation.predictions import Predictions, collect_predictions
from gfl.evaluation.targets import regression_targets, target_statistics


class ReportOptions(NamedTuple):
    """Where a report goes, and what it draws."""

    out: Path  # folder of the pictures
    min_score: float = 0.3  # of the detections whose sides are classified by shape
    max_examples: int = 3  # drawn per shape


class Report(NamedTuple):
    """The analysis of one checkpoint."""

    name: str
    found: Predictions
    statistics: dict[str, Any]  # its part of analysis.json


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """A name for each path that is safe in file names: the last part of it, or as many parts as distinguish them.

    Raises `UserError` for a path that occurs twice.
    """
    names = [os.path.abspath(checkpoint).removesuffix(".pt").removesuffix(".pth") for checkpoint in checkpoints]
    parts = [Path(name).parts[1:] for name in names]  # without the root
    if len(set(parts)) < len(parts):
        raise UserError("the same checkpoint is named twice; name each once", code="same_checkpoint")
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({part[-n:] for part in parts}) == len(parts))
    return distinct_file_names(["-".join(part[-length:]) for part in parts])


def load_split(detector: Detector, split: Sequence[str] | None = None) -> CocoData:
    """The split (json, image folder), by default the config's `data.val`; raises `UserError` if it has no boxes."""
    val = detector.config.data.val
    annotations, images = split or (val.annotations, val.images)
    if not annotations:
        raise UserError(f"{detector.checkpoint} names no data to analyze; give it with --data ANNOTATIONS.json IMAGES/")
    ignore_classes = detector.config.data.ignore_classes
    data = load_coco(annotations, images, detector.class_names, ignore_classes=ignore_classes)
    if not len(data.labels):
        raise UserError(f"{annotations} has no boxes to compare detections with", code="no_boxes")
    return data


def write_report(name: str, checkpoint: str, detector: Detector, data: CocoData, options: ReportOptions) -> Report:
    """Analyze the detections on a split; writes the pictures of this checkpoint, whose files start with `name`.

    Raises `UserError` if nothing is detected, or the pictures cannot be written.
    """
    found = _detect(detector, data)
    targets = regression_targets(data, detector.config)
    statistics: dict[str, Any] = {
        "checkpoint": checkpoint,
        "annotations": data.annotations,
        "scores": score_statistics(found),
        "ranking": ranking_statistics(found, data, detector.config.eval),
        "targets": target_statistics(targets, detector.config) if targets else None,
    }
    if targets and len(targets.distances):
        plot_targets(name, targets.distances, statistics["targets"], options.out / f"{name}.targets.png")
    if found.probabilities is not None:
        statistics["shapes"] = _report_shapes(name, detector, data, found, options)
    sides = accurate(found)
    statistics["spread"] = spread_statistics(sides, data.sizes)
    if statistics["spread"]:
        plot_spread(name, sides, statistics["spread"], options.out / f"{name}.spread.png")
    return Report(name, found, statistics)


def plot_comparison(reports: Sequence[Report], out: Path) -> None:
    """Write the diagrams that show all checkpoints side by side: scores.png and, with distributions, shapes.png."""
    plot_scores([(each.name, each.found, each.statistics["scores"]) for each in reports], out / "scores.png")
    shapes = [(each.name, each.statistics["shapes"]) for each in reports if "shapes" in each.statistics]
    if shapes:
        plot_shapes(shapes, out / "shapes.png")


def _detect(detector: Detector, data: CocoData) -> Predictions:
    config = detector.config
    loader = build_eval_loader(data, config.data, config.eval)
    with progress_bar(total=len(loader), unit="batch") as bar:
        found = collect_predictions(detector.model, loader, data, config, on_batch=bar.update)
    if not len(found.scores):
        raise UserError(
            f"{detector.checkpoint} detects nothing in {data.annotations} above eval.score_thresh "
            f"{config.eval.score_thresh}; train it longer",
            code="no_detections",
        )
    return found


def _report_shapes(
    name: str, detector: Detector, data: CocoData, found: Predictions, options: ReportOptions
) -> dict[str, float]:
    """Shares of the shapes among the sides of confident detections; draws the detections with most sides of each."""
    confident = np.flatnonzero(found.scores >= options.min_score)
    shapes = side_shapes(found.probabilities[confident], detector.config.model.head.delta)
    for shape in SHAPES:
        counts = (shapes == shape).sum(axis=1)
        order = np.lexsort((-found.scores[confident], -counts))[: options.max_examples]
        for number, place in enumerate(order[counts[order] > 0]):
            example = _draw_example(found, int(confident[place]), data, detector.config)
            save_image(example, options.out / f"{name}.{shape.replace(' ', '_')}.{number}.png")
    return {shape: float((shapes == shape).mean()) if shapes.size else 0.0 for shape in SHAPES}


def _draw_example(found: Predictions, detection: int, data: CocoData, config: Config) -> np.ndarray:
    """The distributions of one detection beside its image."""
    row = int(found.images[detection])
    path, size = image_path(data, row), tuple(data.sizes[row].tolist())
    image = read_image(path, size, bit_depth=config.data.bit_depth, max_pixels=config.data.max_pixels)
    delta = config.model.head.delta
    one = found.select(slice(detection, detection + 1))
    positions = bin_positions(one.points, one.stride_pixels, one.probabilities.shape[-1], delta=delta)
    text = f"{data.class_names[one.labels[0]]} {one.scores[0]:.2f}, IoU {one.iou[0]:.2f}"
    return draw_distributions(image, one.boxes_xyxy, one.points, positions, one.probabilities, one.labels, [text])


def format_report(report: Report) -> str:
    """The main statistics as text."""
    statistics = report.statistics
    scores, ranking, targets = (statistics[part] for part in ("scores", "ranking", "targets"))
    lines = [
        f"\n{report.name}: {scores['detections']} detections on {printable(statistics['annotations'])}",
        f"scores   rank correlation with IoU {_number(scores['spearman'])}, "
        f"{_number(scores['spearman_on_objects'])} over the {scores['detections_on_objects']} with IoU >= 0.5",
    ]
    lines.append(f"ranking  AP {_number(ranking['AP'])}; {_number(ranking['AP_by_iou'])} if ranked by the true IoU")
    if targets is None:
        lines.append("targets  not known: points are assigned by the predictions of each step of training")
    elif targets["points"]:
        lines.append(
            f"targets  {targets['share_beyond']:.3%} of the sides beyond reg_max {targets['reg_max']}, the largest at "
            f"{targets['largest']:.1f} strides; reg_max {targets['recommended_reg_max']} covers 99.9 % of them"
        )
    else:
        lines.append("targets  no point learns any box: they are too small for the strides, or outside their images")
    if "shapes" in statistics:
        lines.append("sides    " + ", ".join(f"{share:.1%} {shape}" for shape, share in statistics["shapes"].items()))
    if spread := statistics["spread"]:
        lines.append(
            f"spread   rank correlation with the true blur {_number(spread['spearman'])} over {spread['sides']} sides, "
            f"median {spread['median_predicted']:.1f} px for {spread['median_blur']:.1f} px"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
