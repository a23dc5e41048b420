"""What claims other than differences of AP say about trained runs: one number per seed, from the runs of a study."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from gfl.ablation.records import read_result
from gfl.ablation.report import format_seeds
from gfl.ablation.study import Run, StudyOptions
from gfl.checkpoint import LAST, load_detector
from gfl.common.errors import UserError
from gfl.common.text import shell_command
from gfl.data.coco import CocoData
from gfl.data.loader import batches, build_eval_loader
from gfl.evaluation.analysis import rank_correlation, sides_in_frame
from gfl.evaluation.coco_eval import coco_metrics, run_detector
from gfl.evaluation.inference import Detector, detect
from gfl.evaluation.predictions import collect_predictions
from gfl.evaluation.report import load_split
from gfl.model.precision import eval_dtype
from gfl.structures import Batch

LEAST_IOU = 0.5  # of detections whose sides count
HIGH_QUALITY = 0.8  # least quality of background points that count; an untrained branch gives 0.5
PASSES = 8  # over the split, per detector that is timed


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
    peak = load_detector(detector.checkpoint, ["eval.decode=peak"], device=_device(detector))
    at_peak, at_mean = (100 * _average_precision(each, data) for each in (peak, detector))
    return Value(at_peak - at_mean, f"AP {at_peak:.2f} and {at_mean:.2f}")


def _average_precision(detector: Detector, data: CocoData) -> float:
    settings = detector.config.eval
    loader = build_eval_loader(data, detector.config.data, settings)
    results = run_detector(detector.model, loader, data, settings, _device(detector), dtype=_dtype(detector))
    return coco_metrics(data, results, max_detections=settings.max_detections, backend=settings.backend)["AP"]


def spread_against_error(detector: Detector, data: CocoData) -> Value:
    """Spearman's correlation of a side's predicted spread and its error, within levels, averaged by their sides.

    Over the sides within the image of detections that overlap an object by `LEAST_IOU`. Over all levels at once it
    would also show that large objects have both large spreads and large errors. Where spread is localisation
    confidence, it is above 0.
    """
    loader = build_eval_loader(data, detector.config.data, detector.config.eval)
    found = collect_predictions(detector.model, loader, data, detector.config)
    found = found.select(found.iou >= LEAST_IOU)
    visible = sides_in_frame(found, data.sizes)
    error, levels = np.abs(found.boxes_xyxy - found.true_boxes), np.repeat(found.strides[:, None], 4, axis=1)
    parts = []
    for level in np.unique(levels):
        sides = visible & (levels == level)
        if (correlation := rank_correlation(found.spreads[sides], error[sides])) is not None:
            parts.append((correlation, int(sides.sum())))
    if not parts:
        raise UserError(f"{detector.checkpoint} detects too little to correlate spreads with errors", code="measure")
    values, counts = zip(*parts, strict=True)
    return Value(float(np.average(values, weights=counts)), f"{sum(counts)} sides of {len(counts)} levels")


def background_with_high_quality(branch: Detector, joint: Detector, data: CocoData) -> Value:
    """Percent of the points outside of all boxes that get a quality of `HIGH_QUALITY`: branch minus joint score."""
    shares = [100 * _share_of_background(each, data) for each in (branch, joint)]
    return Value(shares[0] - shares[1], f"{shares[0]:.3f} % and {shares[1]:.3f} %")


def _share_of_background(detector: Detector, data: CocoData) -> float:
    row_of = {int(image_id): row for row, image_id in enumerate(data.image_ids)}
    high = total = 0
    for batch in _device_batches(detector, data):
        _, output = detect(detector.model, batch, detector.config.eval, dtype=_dtype(detector))
        quality = detector.model.quality.rank_factor(output)
        if quality is None:
            quality = detector.model.quality.scores(output).amax(dim=-1)
        scales = (batch.orig_sizes / batch.image_sizes).flip(-1)  # x, y
        for image_id, scale, of_image in zip(batch.image_ids.tolist(), scales, quality, strict=True):
            row = row_of[image_id]
            boxes = torch.from_numpy(np.concatenate([data.boxes_of(row)[0], data.ignored_of(row)])).to(of_image.device)
            points = (output.grid.points * scale)[:, None]  # pixels of the file, as the boxes
            background = ~((points > boxes[:, :2]) & (points < boxes[:, 2:])).all(dim=-1).any(dim=-1)
            high += int((of_image[background] >= HIGH_QUALITY).sum())
            total += int(background.sum())
    return high / total


def extra_time(with_both: Detector, with_neither: Detector, data: CocoData) -> Value:
    """Percent by which detecting the split takes longer, medians of several passes, without reading images.

    Each detector is the first in every other pass, since what runs second may find a warmer or a busier machine.
    """
    loaded = list(_device_batches(with_both, data))
    timed: list[tuple[Detector, list[float]]] = [(with_both, []), (with_neither, [])]
    for turn in range(1 + PASSES):  # the first, which is slower, is left out
        for detector, seconds in timed[:: -1 if turn % 2 else 1]:
            start = time.perf_counter()
            for batch in loaded:
                detect(detector.model, batch, detector.config.eval, dtype=_dtype(detector))
            seconds.append(time.perf_counter() - start)
    ours, theirs = (1000 * float(np.median(seconds[1:])) / len(data) for _, seconds in timed)
    return Value(100 * (ours / theirs - 1), f"{ours:.2f} and {theirs:.2f} ms per image")


def _device(detector: Detector) -> torch.device:
    return next(detector.model.parameters()).device


def _dtype(detector: Detector) -> torch.dtype | None:
    return eval_dtype(detector.config, _device(detector))


def _device_batches(detector: Detector, data: CocoData) -> Iterator[Batch]:
    for batch in batches(build_eval_loader(data, detector.config.data, detector.config.eval)):
        yield batch.to(_device(detector))


MEASURES = {
    "peak": Measure("table3", ("both",), "points of AP", peak_over_expectation),
    "spread": Measure("table3", ("both",), "rank correlation", spread_against_error),
    "background": Measure(
        "table1a_atss", ("IoU-branch", "joint with QFL"), "percent of points", background_with_high_quality
    ),
    "cost": Measure("table3", ("both", "neither"), "percent of time", extra_time),
}


class Measured(NamedTuple):
    """A measure of one seed, and the AP of the runs that have it."""

    name: str
    seed: int
    value: Value
    ap: dict[str, float]  # in percent, by row


def measure_runs(options: StudyOptions, studies: Path, names: Sequence[str]) -> Iterator[Measured]:
    """The measures `names` of the runs that `options` describes, seed by seed; `studies` has the studies' files.

    Raises `UserError` with the command of the study, before anything is measured, for runs that are not finished.
    """
    runs = {name: _runs(options, MEASURES[name], studies) for name in names}
    _check_finished(options, runs, studies)
    for name in names:
        measure = MEASURES[name]
        for seed in options.seeds:
            own = {row: runs[name][row, seed] for row in measure.rows}
            detectors = [load_detector(run.folder / LAST) for run in own.values()]
            value = measure.of(*detectors, load_split(detectors[0]))
            yield Measured(name, seed, value, {row: read_result(run)["AP"] for row, run in own.items()})


def _runs(options: StudyOptions, measure: Measure, studies: Path) -> dict[tuple[str, int], Run]:
    """By row and seed."""
    options = options._replace(study=str(studies / f"{measure.study}.yaml"))
    return {(run.row, run.seed): run for run in options.plan(options.seeds, measure.rows)}


def _check_finished(options: StudyOptions, runs: dict[str, dict[tuple[str, int], Run]], studies: Path) -> None:
    """Raise `UserError` with a command for each study that has runs to be trained."""
    wanted: dict[str, dict[str, None]] = {}  # rows, in order and once, by study
    for name, of_measure in runs.items():
        rows = dict.fromkeys(row for (row, _), run in of_measure.items() if read_result(run) is None)
        if rows:
            wanted.setdefault(MEASURES[name].study, {}).update(rows)
    commands = []
    for study, rows in wanted.items():
        words = ["python", "scripts/study.py", os.path.relpath(studies / f"{study}.yaml"), "--scale", options.scale]
        words += ["--seeds", format_seeds(options.seeds), "--out", options.out, "--rows", *rows]
        commands.append(shell_command(*words))
    if commands:
        raise UserError(f"runs that are not finished; train them with {'; and '.join(commands)}", code="measure_runs")
