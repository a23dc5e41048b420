"""Statistics of predictions beyond AP: scores against IoU, shapes and spreads of the side distributions.

numpy arrays; n detections of a split, N bins per side, sides in the order left, top, right, bottom.
"""

from typing import Any

import numpy as np
import torch
from scipy import stats

from gfl.config import EvalConfig
from gfl.data.coco import CocoData
from gfl.evaluation.coco_eval import coco_metrics
from gfl.evaluation.predictions import Predictions
from gfl.method.box_representation import highest_mode

SHAPES = ("sharp", "between", "flat", "two peaks")
SHARP, FLAT = 0.9, 0.5  # min. mass in the best window of a sharp side, max. of a flat side
SECOND_PEAK = 0.2  # min. mass outside the highest mode of a side with two peaks
DEEP = 0.5  # the valley before the second peak is at most this share of its height
DECILES = 10  # groups of the calibration curve
ACCURATE = 0.7  # least IoU of accurate detections


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's; None where it is undefined: for fewer than three pairs, or a constant."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(stats.spearmanr(a, b).statistic)


def score_statistics(found: Predictions) -> dict[str, Any]:
    """How well scores rank detections by IoU: over all, and over those that overlap an object of their class."""
    on_object = found.iou >= 0.5
    return {
        "detections": len(found.scores),
        "spearman": rank_correlation(found.scores, found.iou),
        "detections_on_objects": int(on_object.sum()),
        "spearman_on_objects": rank_correlation(found.scores[on_object], found.iou[on_object]),
    }


def ranking_statistics(found: Predictions, data: CocoData, settings: EvalConfig) -> dict[str, float | None]:
    """AP of the detections ranked by their scores, and of the same ones ranked by their true IoU.

    What separates them is what scores could still gain, what separates the second from 1 is due to boxes and classes.
    """
    boxes = np.concatenate([found.boxes_xyxy[:, :2], found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]], axis=1)
    columns = data.image_ids[found.images].tolist(), np.array(data.category_ids)[found.labels].tolist(), boxes.tolist()

    def average_precision(scores: np.ndarray) -> float | None:
        results = [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*columns, scores.tolist(), strict=True)
        ]
        return coco_metrics(data, results, max_detections=settings.max_detections, backend=settings.backend)["AP"]

    return {"AP": average_precision(found.scores), "AP_by_iou": average_precision(found.iou)}


def side_shapes(probabilities: np.ndarray, delta: float) -> np.ndarray:
    """(n, 4, N) -> (n, 4) text, one of `SHAPES`.

    Two peaks: much of the mass lies outside the highest mode, and a deep valley separates a second peak from it. Else
    sharp or flat by the mass in the best window that is one stride wide.
    """
    width = min(probabilities.shape[-1], round(1 / delta) + 1) if delta < 1 else 2
    window = np.lib.stride_tricks.sliding_window_view(probabilities, width, axis=-1).sum(-1).max(-1)
    shapes = np.where(window >= SHARP, "sharp", np.where(window <= FLAT, "flat", "between"))
    return np.where(_has_two_peaks(probabilities), "two peaks", shapes)


def _has_two_peaks(probabilities: np.ndarray) -> np.ndarray:
    """(..., N) -> (...) bool."""
    outside = probabilities * ~highest_mode(torch.from_numpy(probabilities)).numpy()
    first, second = probabilities.argmax(-1)[..., None], outside.argmax(-1)[..., None]
    bins = np.arange(probabilities.shape[-1])
    between = (bins > np.minimum(first, second)) & (bins < np.maximum(first, second))
    valley = np.where(between, probabilities, np.inf).min(-1)
    return (outside.sum(-1) >= SECOND_PEAK) & (valley <= outside.max(-1) * DEEP)


def accurate(found: Predictions) -> Predictions:
    """The detections that overlap an object of their class by `ACCURATE` or more."""
    return found.select(found.iou >= ACCURATE)


def spread_statistics(found: Predictions, sizes: np.ndarray) -> dict[str, Any] | None:
    """Predicted spread of each side against the true blur of its edge, over all and per level; None without either.

    For `accurate` detections. `in_frame` leaves out sides on the border of their image (`sizes` (I, 2) heights and
    widths), whose blur is not visible. `calibration` describes each part.
    """
    if found.spreads is None or not np.isfinite(found.true_sigmas).any():
        return None
    spread, sigma, error = found.spreads, found.true_sigmas, found.boxes_xyxy - found.true_boxes
    stride, known = np.repeat(found.strides[:, None], 4, axis=1), np.isfinite(sigma)
    in_frame = sides_in_frame(found, sizes)

    def part(chosen: np.ndarray) -> dict[str, Any]:
        rows = chosen & known
        return calibration(spread[rows], sigma[rows], error[rows])

    return part(np.ones_like(in_frame)) | {
        "in_frame": part(in_frame),
        "by_stride": {f"{value:g}": part(stride == value) for value in np.unique(stride)},
    }


def sides_in_frame(found: Predictions, sizes: np.ndarray) -> np.ndarray:
    """(n, 4) bool: sides whose true place is not on the border of their image, to which detections are clipped."""
    limits = np.tile(sizes[found.images][:, ::-1], 2)
    return (found.true_boxes > 0) & (found.true_boxes < limits)


def calibration(spread: np.ndarray, sigma: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """Predicted spreads (m,) against the true blur (m,) and the errors of the sides (m,), all in pixels.

    Their rank correlation with the blur, and the calibration curve: for each decile of the predicted spread its mean,
    the median blur and the root mean square error.
    """
    groups = [group for group in np.array_split(np.argsort(spread), DECILES) if len(group)]
    return {
        "sides": len(spread),
        "spearman": rank_correlation(spread, sigma),
        "median_predicted": float(np.median(spread)) if len(spread) else None,
        "median_blur": float(np.median(sigma)) if len(spread) else None,
        "curve": [
            {
                "predicted": float(spread[group].mean()),
                "blur": float(np.median(sigma[group])),
                "error": float(np.sqrt((error[group] ** 2).mean())),
            }
            for group in groups
        ],
    }
