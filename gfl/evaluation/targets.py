"""What the box branch learns from a split: the distances from points to the sides of their boxes, in strides."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gfl.build import Assigner, build_assigner, build_point_layout, needs_predictions
from gfl.config import Config
from gfl.data.coco import CocoData
from gfl.data.dataset import size_in_eval
from gfl.method.boxes import boxes_to_distances
from gfl.method.points import make_point_grid, points_in_images
from gfl.structures import SIZE_DIVISOR, PointGrid, Targets

TAIL = 0.001  # share of sides that may exceed the recommended reg_max
POINTS = 2**15  # assigned at once: many small images, or one large one


class RegressionTargets(NamedTuple):
    """What the box branch is trained on, for some images of a split."""

    distances: np.ndarray  # (m, 4) strides, of all positive points
    levels: np.ndarray  # (m,) their levels
    points: np.ndarray  # (n,) number of points of every object
    images: int  # number of images


def regression_targets(data: CocoData, config: Config, *, max_boxes: int | None = None) -> RegressionTargets | None:
    """Distances and levels of the positive points of a split, and the number of points of each object.

    Images have their size in evaluation and are not flipped; the assigner is the config's. No image file is read.
    With `max_boxes` only images at equal intervals are used, with about as many boxes in total. None where the assigner
    needs predictions, which change with every step.
    """
    if needs_predictions(config.assign):
        return None
    chosen = _choose_images(np.flatnonzero(np.diff(data.offsets)), len(data.labels), max_boxes)
    assigner, layout = build_assigner(config.assign, config.model.head), build_point_layout(config.model.points)
    sizes = np.array([size_in_eval(*size, config.data) for size in data.sizes[chosen].tolist()]).reshape(-1, 2)
    padded = -(-sizes // SIZE_DIVISOR) * SIZE_DIVISOR
    parts = [(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))]
    for shape in np.unique(padded, axis=0):
        rows = np.flatnonzero((padded == shape).all(axis=1))
        grid = make_point_grid([tuple(-(-shape // stride)) for stride in layout.strides], layout)
        batch = max(1, POINTS // len(grid.points))
        for part in np.split(rows, range(batch, len(rows), batch)):
            parts.append(_assigned(data, chosen[part], torch.from_numpy(sizes[part]), assigner, grid))
    distances, levels, points = map(np.concatenate, zip(*parts, strict=True))
    return RegressionTargets(distances, levels, points, len(chosen))


def _assigned(
    data: CocoData, images: np.ndarray, sizes: Tensor, assigner: Assigner, grid: PointGrid
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, levels and points of `images`, resized to `sizes` (B, 2) and assigned on one grid."""
    boxes = [torch.from_numpy(data.boxes_of(index)[0]) for index in images]
    scale = (sizes.flip(1) / torch.from_numpy(data.sizes[images]).flip(1)).float().repeat(1, 2)
    boxes_xyxy = pad_sequence(boxes, batch_first=True) * scale[:, None]
    valid = torch.arange(boxes_xyxy.shape[1]) < torch.tensor([len(of_image) for of_image in boxes])[:, None]
    labels = torch.zeros(valid.shape, dtype=torch.int64)  # they do not matter here
    assignment = assigner(grid, Targets(boxes_xyxy, labels, valid), points_in_images(grid, sizes), None)
    image, point = assignment.positive.nonzero(as_tuple=True)
    slot = assignment.index[image, point]
    distances = boxes_to_distances(grid.points[point], boxes_xyxy[image, slot]) / grid.strides[point, None]
    levels = np.searchsorted(np.cumsum(grid.level_sizes), point.numpy(), side="right")
    counts = torch.zeros(valid.shape, dtype=torch.int64).index_put_((image, slot), torch.tensor(1), accumulate=True)
    return distances.numpy(), levels, counts[valid].numpy()


def _choose_images(images: np.ndarray, boxes: int, max_boxes: int | None) -> np.ndarray:
    """All images, or some at equal intervals that have about `max_boxes` boxes in total."""
    if max_boxes is None or boxes <= max_boxes:
        return images
    # At least 20 images, since a few crowded ones say little about a split; at most one per 5 boxes, for the time.
    count = min(len(images), max(20, round(len(images) * max_boxes / boxes)), max_boxes // 5)
    return images[np.linspace(0, len(images) - 1, count).round().astype(np.int64)]


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
