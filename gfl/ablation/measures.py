"""What claims other than differences of AP say about trained runs: one number per seed, from the runs of a study."""

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gfl.ablation.records import read_result
from gfl.ablation.report import finite, format_seeds
from gfl.ablation.study import StudyOptions
from gfl.checkpoint import LAST, load_detector
from gfl.common.errors import UserError
from gfl.common.text import shell_command
from gfl.data.coco import CocoData
from gfl.data.loader import batches, build_eval_loader
from gfl.evaluation.analysis import rank_correlation
from gfl.evaluation.coco_eval import coco_metrics, run_detector
from gfl.evaluation.inference import Detector, detect
from gfl.evaluation.predictions import Predictions, collect_predictions
from gfl.evaluation.report import load_split
from gfl.method.points import points_in_images
from gfl.model.detector import normalize_images
from gfl.model.precision import eval_dtype
from gfl.structures import Batch

LEAST_IOU = 0.5  # of detections whose sides count
HIGH_QUALITY = 0.5  # least quality of background points that count
PASSES = 3  # over the split, per detector that is timed


class Value(NamedTuple):
    """A measure of one seed."""

    value: float
    detail: str  # what it is made of


class Measure(NamedTuple):
    """A number that trained rows of a study have."""

    study: str  # the name of its file
    rows: tuple[str, ...]  # whose detectors it needs, in this order
    unit: str
    of: Callable[..., Value]  # of these detectors and the validation split


def peak_over_expectation(detector: Detector, data: CocoData) -> Value:
    """AP with sides read at their highest mode minus AP with their expectation, in points."""
    device = next(detector.model.parameters()).device
    peak = load_detector(detector.checkpoint, ["eval.decode=peak"], device=device)
    at_peak, at_mean = (100 * coco_metrics(data, _results(each, data))["AP"] for each in (peak, detector))
    return Value(at_peak - at_mean, f"AP {at_peak:.2f} and {at_mean:.2f}")


def spread_against_error(detector: Detector, data: CocoData) -> Value:
    """Spearman's correlation of a side's predicted spread and its error, both in strides of its level.

    Over the sides of detections that overlap an object by `LEAST_IOU`: where spread is localisation confidence, it is
    above 0.
    """
    loader = build_eval_loader(data, detector.config.data, detector.config.eval)
    found = collect_predictions(detector.model, loader, data, detector.config)
    spread, error = _in_strides(found.select(found.iou >= LEAST_IOU))
    value = rank_correlation(spread, error)
    if value is None:
        raise UserError(f"{detector.checkpoint} detects too little to correlate spreads with errors", code="measure")
    return Value(value, f"{len(spread)} sides")


def _in_strides(found: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Spreads and absolute errors (m,) of all sides."""
    error = np.abs(found.boxes_xyxy - found.true_boxes)
    return (found.spreads / found.stride_pixels).ravel(), (error / found.stride_pixels).ravel()


def background_with_high_quality(branch: Detector, joint: Detector, data: CocoData) -> Value:
    """Percent of the points outside of all boxes that get a quality of `HIGH_QUALITY`: branch minus joint score."""
    shares = [100 * _share_of_background(each, data) for each in (branch, joint)]
    return Value(shares[0] - shares[1], f"{shares[0]:.3f} % and {shares[1]:.3f} %")


def _share_of_background(detector: Detector, data: CocoData) -> float:
    high = total = 0
    for batch in _device_batches(detector, data):
        images = normalize_images(batch.images, batch.image_sizes)
        with torch.inference_mode():
            output = detector.model(images)
            quality = detector.model.quality.rank_factor(output)
            if quality is None:
                quality = detector.model.quality.scores(output).amax(dim=-1)
        points, boxes = output.grid.points, batch.targets.boxes_xyxy
        inside = ((points[:, None] > boxes[:, None, :, :2]) & (points[:, None] < boxes[:, None, :, 2:])).all(-1).any(-1)
        background = points_in_images(output.grid, batch.image_sizes) & ~inside
        high += int((quality[background] >= HIGH_QUALITY).sum())
        total += int(background.sum())
    return high / total


def extra_time(with_both: Detector, with_neither: Detector, data: CocoData) -> Value:
    """Percent by which detecting the split takes longer, medians of several passes in turn, without reading images."""
    loaded = [list(_device_batches(each, data)) for each in (with_both, with_neither)]
    seconds = [[], []]
    for _ in range(1 + PASSES):  # the first, which is slower, is left out
        for detector, images, times in zip((with_both, with_neither), loaded, seconds, strict=True):
            start = time.perf_counter()
            for batch in images:
                detect(detector.model, batch, detector.config.eval)
            times.append(time.perf_counter() - start)
    ours, theirs = (1000 * float(np.median(times[1:])) / len(data) for times in seconds)
    return Value(100 * (ours / theirs - 1), f"{ours:.2f} and {theirs:.2f} ms per image")


def _device_batches(detector: Detector, data: CocoData) -> Iterator[Batch]:
    device = next(detector.model.parameters()).device
    for batch in batches(build_eval_loader(data, detector.config.data, detector.config.eval)):
        yield batch.to(device)


def _results(detector: Detector, data: CocoData) -> list[dict]:
    loader = build_eval_loader(data, detector.config.data, detector.config.eval)
    device = next(detector.model.parameters()).device
    dtype = eval_dtype(detector.config, device)
    return run_detector(detector.model, loader, data, detector.config.eval, device, dtype=dtype)


MEASURES = {
    "peak": Measure("table3", ("both",), "points of AP", peak_over_expectation),
    "spread": Measure("table3", ("both",), "rank correlation", spread_against_error),
    "background": Measure(
        "table1a_atss", ("IoU-branch", "joint with QFL"), "percent of points", background_with_high_quality
    ),
    "cost": Measure("table3", ("both", "neither"), "percent of time", extra_time),
}
COLUMNS = ("measure", "seed", "value", "detail")


def measure_runs(options: StudyOptions, name: str, studies: Path) -> Iterator[tuple[int, Value]]:
    """Seed by seed the measure `name` of runs that `options` describes, in order.

    Raises `UserError` with the command of the study for runs that are not finished.
    """
    measure = MEASURES[name]
    options = options._replace(study=str(studies / f"{measure.study}.yaml"), rows=measure.rows)
    runs = {(run.row, run.seed): run for run in options.plan(options.seeds, measure.rows)}
    unfinished = [run for run in runs.values() if read_result(run) is None]
    if unfinished:
        command = [
            "python",
            "scripts/study.py",
            options.study,
            "--scale",
            options.scale,
            "--seeds",
            format_seeds(options.seeds),
        ]
        raise UserError(
            f"{name}: {len(unfinished)} of {len(runs)} runs are not finished; train them with "
            f"{shell_command(*command, '--rows', *measure.rows)}",
            code="measure_runs",
        )
    for seed in options.seeds:
        detectors = [load_detector(runs[row, seed].folder / LAST) for row in measure.rows]
        yield seed, measure.of(*detectors, load_split(detectors[0]))


def format_measures(values: Sequence[tuple[str, int, Value]]) -> str:
    """Measures (name, seed, value) as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([name, seed, round(each.value, 6), each.detail] for name, seed, each in values)
    return text.getvalue()


def read_measures(path: Path) -> dict[str, list[float]]:
    """The values in a file of `format_measures`, by measure; raises `UserError` for another one."""
    found: dict[str, list[float]] = {}
    try:
        for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")):
            found.setdefault(line["measure"], []).append(finite(line["value"]))
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no measures ({type(error).__name__}: {error})", code="measures") from None
    return found
