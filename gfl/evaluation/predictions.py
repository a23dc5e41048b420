"""The detections of a split beside its ground truth, for `gfl.evaluation.analysis`.

numpy arrays; n detections of a split, N bins per side, sides in the order left, top, right, bottom.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch

from gfl.common.errors import UserError
from gfl.common.text import format_value
from gfl.config import Config
from gfl.data.annotation_marks import ignored_because, is_number
from gfl.data.coco import CocoData
from gfl.data.coco_json import MAX_COORDINATE, read_coco_json
from gfl.data.loader import batches
from gfl.evaluation.inference import RawDetections, detect_with_sides
from gfl.method.boxes import box_iou
from gfl.model.detector import DenseDetector
from gfl.model.precision import eval_dtype
from gfl.structures import Batch


class GroundTruth(NamedTuple):
    """Ground truth of one image, without crowds and other regions to ignore."""

    boxes_xyxy: np.ndarray  # (g, 4) pixels
    category_ids: np.ndarray  # (g,)
    sigmas: np.ndarray  # (g, 4) blur of each side in pixels, NaN where the json has none that is possible


class Predictions(NamedTuple):
    """Detections of a split, each with the ground truth of its class that it overlaps most."""

    images: np.ndarray  # (n,) index of the image
    boxes_xyxy: np.ndarray  # (n, 4) pixels of the file
    labels: np.ndarray  # (n,)
    scores: np.ndarray  # (n,)
    points: np.ndarray  # (n, 2) the predicting point, pixels of the file
    strides: np.ndarray  # (n,) of its level, in pixels of the network's input
    scales: np.ndarray  # (n, 2) pixels of the file per pixel of the input, x and y
    probabilities: np.ndarray | None  # (n, 4, N); None without distributions
    spreads: np.ndarray | None  # (n, 4) standard deviation in pixels of the file; None where a side is a number only
    iou: np.ndarray  # (n,) 0 without such ground truth
    true_boxes: np.ndarray  # (n, 4) NaN without it
    true_sigmas: np.ndarray  # (n, 4) NaN where unknown

    @property
    def stride_pixels(self) -> np.ndarray:
        """(n, 4) pixels of the file per stride, along each side's axis."""
        return self.strides[:, None] * np.tile(self.scales, 2)

    def select(self, rows: np.ndarray | slice) -> "Predictions":
        """Some of the detections."""
        return Predictions(*(None if column is None else column[rows] for column in self))


def read_ground_truth(data: CocoData) -> list[GroundTruth]:
    """Ground truth by image index; `edge_sigma` is an extra field of soft shapes."""
    found: dict[int, list[tuple[list[float], int, list[float]]]] = {int(image_id): [] for image_id in data.image_ids}
    for entry in read_coco_json(data.annotations, outlines=False).get("annotations", []):
        if not ignored_because(entry, data.ignored_categories):
            x, y, width, height = entry["bbox"]
            sigmas = entry.get("edge_sigma", [np.nan] * 4)
            if not (isinstance(sigmas, list) and len(sigmas) == 4 and all(map(is_number, sigmas))):
                name = format_value(entry.get("id"))
                raise UserError(f"{data.annotations}: annotation {name}: edge_sigma is not four numbers")
            sigmas = [sigma if 0 <= sigma < MAX_COORDINATE else np.nan for sigma in sigmas]
            found[entry["image_id"]].append(([x, y, x + width, y + height], entry["category_id"], sigmas))
    ground_truths = []
    for entries in found.values():
        boxes, categories, sigmas = zip(*entries, strict=True) if entries else ((), (), ())
        ground_truths.append(GroundTruth(_rows(boxes), np.array(categories, np.int64), _rows(sigmas)))
    return ground_truths


def _rows(values: Iterable) -> np.ndarray:
    return np.array(list(values), np.float64).reshape(-1, 4)


def collect_predictions(
    model: DenseDetector,
    loader: Iterable[Batch],
    data: CocoData,
    config: Config,
    *,
    on_batch: Callable[[], object] = lambda: None,
) -> Predictions:
    """Detections of the split beside its ground truth."""
    device = next(model.parameters()).device
    ground_truths = read_ground_truth(data)
    row_of = {int(image_id): row for row, image_id in enumerate(data.image_ids)}
    parts: list[Predictions] = []
    rows: list[int] = []
    for batch in batches(loader):
        detections = detect_with_sides(model, batch.to(device), config.eval, dtype=eval_dtype(config, device))
        for image_id, found in zip(batch.image_ids.tolist(), detections, strict=True):
            row = row_of[image_id]
            rows.append(row)
            category_ids = np.array(data.category_ids)[found.labels]
            iou, true_boxes, true_sigmas = match(found.boxes_xyxy, category_ids, ground_truths[row])
            parts.append(
                Predictions(
                    images=np.full(len(found.scores), row),
                    boxes_xyxy=found.boxes_xyxy,
                    labels=found.labels,
                    scores=found.scores,
                    points=found.points,
                    strides=found.strides,
                    scales=found.scales,
                    probabilities=found.probabilities,
                    spreads=_spreads(found),
                    iou=iou,
                    true_boxes=true_boxes,
                    true_sigmas=true_sigmas,
                )
            )
        on_batch()
    parts = [parts[place] for place in np.argsort(rows, kind="stable")]  # in the order of the split
    columns = zip(*parts, strict=True)
    return Predictions(*(None if column[0] is None else np.concatenate(column) for column in columns))


def _spreads(found: RawDetections) -> np.ndarray | None:
    """(n, 4) standard deviations in pixels of the file; None where a side is a number only."""
    if found.probabilities is not None:
        return side_spread(found.probabilities, found.delta) * found.stride_pixels
    return None if found.deviations is None else found.deviations * found.stride_pixels


def side_spread(probabilities: np.ndarray, delta: float) -> np.ndarray:
    """Standard deviation of sides (..., N) -> (...) in strides, without what interpolation adds.

    A certain side at fraction f between two bins has variance f (1 - f) delta^2, which is no uncertainty.
    """
    bins = np.arange(probabilities.shape[-1])
    mean = (probabilities * bins).sum(-1)
    variance = (probabilities * (bins - mean[..., None]) ** 2).sum(-1)
    fraction = mean % 1
    return delta * np.sqrt(np.maximum(variance - fraction * (1 - fraction), 0))


def match(
    boxes: np.ndarray, category_ids: np.ndarray, ground_truth: GroundTruth
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU (n,), box (n, 4) and sigmas (n, 4) of the ground truth of its class that each detection overlaps most."""
    if not len(boxes) or not len(ground_truth.boxes_xyxy):
        return np.zeros(len(boxes)), np.full((len(boxes), 4), np.nan), np.full((len(boxes), 4), np.nan)
    iou = box_iou(torch.from_numpy(boxes)[:, None], torch.from_numpy(ground_truth.boxes_xyxy)).numpy()
    iou = np.where(category_ids[:, None] == ground_truth.category_ids, iou, 0)
    best, which = iou.max(axis=1), iou.argmax(axis=1)
    unmatched = (best == 0)[:, None]
    return (
        best,
        np.where(unmatched, np.nan, ground_truth.boxes_xyxy[which]),
        np.where(unmatched, np.nan, ground_truth.sigmas[which]),
    )
