"""The grid of points of the pyramid."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gfl.structures import SIZE_DIVISOR, PointGrid


class PointLayout(NamedTuple):
    """Where the points of each level lie: at ``(index + offset) * stride``.

    An offset of 0 is mmdetection's convention; docs/deviations.md has the others.
    """

    strides: tuple[int, ...]  # pixels, from fine to coarse
    offset: float | tuple[float, ...] = 0.0  # in strides, one for all levels or one per level


def make_point_grid(
    feature_sizes: Sequence[tuple[int, int]], layout: PointLayout, *, device: torch.device | None = None
) -> PointGrid:
    """The points of every level, from the (height, width) of its feature map."""
    points, point_strides = [], []
    offsets = layout.offset if isinstance(layout.offset, tuple) else [layout.offset] * len(layout.strides)
    for (height, width), stride, offset in zip(feature_sizes, layout.strides, offsets, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + offset) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + offset) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([grid_x, grid_y], dim=-1).reshape(-1, 2))
        point_strides.append(torch.full((height * width,), float(stride), device=device))
    return PointGrid(torch.cat(points), torch.cat(point_strides), tuple(feature_sizes))


def points_in_images(grid: PointGrid, image_sizes: Tensor) -> Tensor:
    """(B, 2) heights and widths -> (B, P) bool: the point's cell starts within its image's own area.

    That area is the image padded to `SIZE_DIVISOR` by itself, as in the reference, so that training does not depend on
    the other images of the batch.
    """
    padded = torch.div(image_sizes + SIZE_DIVISOR - 1, SIZE_DIVISOR, rounding_mode="floor") * SIZE_DIVISOR
    cell_start = torch.floor(grid.points / grid.strides[:, None]) * grid.strides[:, None]
    return (cell_start < padded.flip(-1)[:, None]).all(dim=-1)
