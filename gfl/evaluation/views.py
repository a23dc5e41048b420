"""Test-time augmentation: the outputs for all views of a batch as one, and where in the image each of them was seen.

V views; the first is the batch itself, the others are its `views`. Points of the joined output are ordered by view.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from gfl.config import EvalConfig
from gfl.structures import Batch, HeadOutput, PointGrid


def join_outputs(outputs: Sequence[HeadOutput]) -> HeadOutput:
    """One output with the points and levels of all views; that of a single view is returned as it is."""
    if len(outputs) == 1:
        return outputs[0]
    grids = [output.grid for output in outputs]
    grid = PointGrid(
        points=torch.cat([grid.points for grid in grids]),
        strides=torch.cat([grid.strides for grid in grids]),
        level_shapes=tuple(shape for grid in grids for shape in grid.level_shapes),
    )
    columns = zip(*(output[:3] for output in outputs), strict=True)
    return HeadOutput(*(None if column[0] is None else torch.cat(column, dim=1) for column in columns), grid)


def in_views(config: EvalConfig) -> str:
    """What is said after a number of images; nothing without test-time augmentation."""
    return f" in {config.num_views} views" if config.num_views > 1 else ""


class Origins(NamedTuple):
    """The views in which n candidates or detections were seen."""

    sizes: Tensor  # (n, 2) int64 height, width of their images there
    mirrored: Tensor  # (n,) bool

    @classmethod
    def of(cls, batch: Batch, grid: PointGrid, image: Tensor, point: Tensor) -> "Origins":
        """Of candidates in images (n,) of the batch, at points (n,) of the joined grid."""
        views = (batch, *batch.views)
        levels = len(grid.level_sizes) // len(views)
        ends = torch.tensor(list(accumulate(grid.level_sizes))[levels - 1 :: levels], device=point.device)
        view = torch.bucketize(point, ends, right=True)
        sizes = torch.stack([each.image_sizes for each in views])
        mirrored = torch.tensor([each.mirrored for each in views], device=point.device)
        return cls(sizes[view, image], mirrored[view])

    def to_view(self, boxes_xyxy: Tensor, sizes: Tensor) -> Tensor:
        """Boxes (n, 4) of these views in pixels of a view that is not mirrored, whose images have `sizes` (n, 2)."""
        x1, y1, x2, y2 = boxes_xyxy.unbind(1)
        width = self.sizes[:, 1]
        mirrored = torch.stack([width - x2, y1, width - x1, y2], dim=1)
        boxes = torch.where(self.mirrored[:, None], mirrored, boxes_xyxy)
        return boxes * (sizes / self.sizes).flip(1).repeat(1, 2)

    def points(self, points: Tensor) -> Tensor:
        """Points (n, 2) of these views where they are when no view is mirrored, in the pixels of each."""
        x = torch.where(self.mirrored, self.sizes[:, 1] - points[:, 0], points[:, 0])
        return torch.stack([x, points[:, 1]], dim=1)

    def by_side(self, values: Tensor) -> Tensor:
        """Values (n, 4, ...) of left, top, right, bottom in these views -> the same when no view is mirrored."""
        mirrored = self.mirrored.view(-1, *[1] * (values.ndim - 1))
        return torch.where(mirrored, values[:, [2, 1, 0, 3]], values)
