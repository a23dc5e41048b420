"""What predictions and data say beyond AP: scores against IoU, targets in strides, shapes of the side distributions.

numpy arrays; n detections of a whole split, N bins per side, sides in the order left, top, right, bottom.
"""

from typing import Any

import numpy as np
import torch
from scipy import stats

from gfl.assign import build_assigner
from gfl.box_repr import highest_mode
from gfl.boxes import boxes_to_distances
from gfl.config import Config
from gfl.data.coco import CocoData
from gfl.data.transforms import keep_ratio_size
from gfl.points import SIZE_DIVISOR, make_point_grid, points_in_images
from gfl.predictions import Predictions
from gfl.structures import Targets

SHAPES = ("sharp", "between", "flat", "two peaks")
SHARP, FLAT = 0.9, 0.5  # least mass of a sharp side's best stride, most of a flat side's
SECOND_PEAK = 0.2  # least mass outside the highest mode of a side with two peaks
DEEP = 0.5  # the valley before the second peak is at most this share of its height
TAIL = 0.001  # share of sides that may exceed the recommended reg_max
QUANTILES = 10  # of the calibration curve


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's; None where fewer than three pairs or a constant leave it undefined."""
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


def regression_targets(data: CocoData, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """What the box branch learns on a split: distances (m, 4) in strides and level (m,) of all positive points.

    Images in their size for evaluation, unflipped, and the config's assigner; no image is read.
    """
    assigner, points = build_assigner(config.assign), config.model.points
    distances, levels = [], []
    for index in range(len(data)):
        boxes, labels = data.boxes_of(index)
        if not len(boxes):
            continue
        height, width = data.sizes[index].tolist()
        size = keep_ratio_size(
            height, width, short_side=config.data.short_side_in_eval, long_side=config.data.long_side
        )
        padded = [-(-side // SIZE_DIVISOR) * SIZE_DIVISOR for side in size]
        maps = [tuple(-(-side // stride) for side in padded) for stride in points.strides]
        grid = make_point_grid(maps, points.strides, offset=points.offset)
        scale = torch.tensor([size[1] / width, size[0] / height]).repeat(2)
        boxes_xyxy = (torch.from_numpy(boxes) * scale)[None]
        targets = Targets(boxes_xyxy, torch.from_numpy(labels)[None], torch.ones(1, len(boxes), dtype=torch.bool))
        assignment = assigner(grid, targets, points_in_images(grid, torch.tensor([size])))
        point = assignment.positive[0].nonzero().squeeze(1)
        target_boxes = boxes_xyxy[0, assignment.index[0, point]]
        distances.append((boxes_to_distances(grid.points[point], target_boxes) / grid.strides[point, None]).numpy())
        levels.append(np.searchsorted(np.cumsum(grid.level_sizes), point.numpy(), side="right"))
    return np.concatenate(distances or [np.zeros((0, 4))]), np.concatenate(levels or [np.zeros(0, np.int64)])


def target_statistics(distances: np.ndarray, levels: np.ndarray, config: Config) -> dict[str, Any]:
    """The share of sides beyond the range of `reg_max` and `delta`, overall and per level; the `reg_max` to take."""
    head, strides = config.model.head, config.model.points.strides
    limit = head.reg_max * head.delta
    if not distances.size:
        return {"points": 0}
    wanted = int(np.ceil(np.quantile(distances, 1 - TAIL) / head.delta))
    return {
        "points": len(distances),
        "reg_max": head.reg_max,
        "delta": head.delta,
        "share_beyond": float((distances > limit).mean()),
        "share_beyond_by_stride": {
            str(stride): float((distances[levels == level] > limit).mean())
            for level, stride in enumerate(strides)
            if (levels == level).any()
        },
        "largest": float(distances.max()),
        "recommended_reg_max": max(1, wanted),
    }


def side_shapes(probabilities: np.ndarray, delta: float) -> np.ndarray:
    """(n, 4, N) -> (n, 4) text, one of `SHAPES`.

    Two peaks: outside the highest mode lies much of the mass, and a peak with a deep valley before it. Else sharp or
    flat by the mass of the best window that is one stride wide.
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


def accurate(found: Predictions, *, min_iou: float = 0.7) -> Predictions:
    """The detections that overlap an object of their class by `min_iou` or more."""
    chosen = found.iou >= min_iou
    return Predictions(*(None if column is None else column[chosen] for column in found))


def spread_statistics(found: Predictions, sizes: np.ndarray) -> dict[str, Any] | None:
    """Predicted spread of each side against the true blur of its edge, over all and per level; None without either.

    For `accurate` detections. Sides that the frame of an image cuts off (`sizes` (I, 2) heights and widths) have no
    visible blur: left out they give `in_frame`. See `calibration` for what each part says.
    """
    if found.spreads is None or not np.isfinite(found.true_sigmas).any():
        return None
    spread, sigma, error = found.spreads, found.true_sigmas, found.boxes_xyxy - found.true_boxes
    stride, known = np.repeat(found.strides[:, None], 4, axis=1), np.isfinite(sigma)
    limit = np.tile(sizes[found.images][:, ::-1], 2)
    in_frame = (found.true_boxes > 0) & (found.true_boxes < limit)

    def part(chosen: np.ndarray) -> dict[str, Any]:
        rows = chosen & known
        return calibration(spread[rows], sigma[rows], error[rows])

    return part(np.ones_like(in_frame)) | {
        "in_frame": part(in_frame),
        "by_stride": {f"{value:g}": part(stride == value) for value in np.unique(stride)},
    }


def calibration(spread: np.ndarray, sigma: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """What predicted spreads (m,) say of the true blur (m,) and of the errors of the sides (m,), all in pixels.

    Their rank correlation with the blur, and the calibration curve: by tenths of the predicted spread its mean, the
    median blur and the root mean square error.
    """
    groups = [group for group in np.array_split(np.argsort(spread), QUANTILES) if len(group)]
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
