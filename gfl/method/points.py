"""The grid of points of the pyramid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gfl.structures import PointGrid

SIZE_DIVISOR = 32  # images are padded to a multiple of it, singly in the reference and as a batch in ours


def make_point_grid(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    offset: float | Sequence[float] = 0.0,
    device: torch.device | None = None,
) -> PointGrid:
    """Points at ``(index + offset) * stride`` of every level, from the (height, width) of its feature map.

    `offset` is in strides, one for all levels or one per level: 0 is mmdetection's convention; see "Deviations" in the
    README.
    """
    points, point_strides = [], []
    offsets = offset if isinstance(offset, Sequence) else [offset] * len(strides)
    for (height, width), stride, shift in zip(feature_sizes, strides, offsets, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + shift) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + shift) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([grid_x, grid_y], dim=-1).reshape(-1, 2))
        point_strides.append(torch.full((height * width,), float(stride), device=device))
    level_sizes = tuple(height * width for height, width in feature_sizes)
    return PointGrid(torch.cat(points), torch.cat(point_strides), level_sizes)


def points_in_images(grid: PointGrid, image_sizes: Tensor) -> Tensor:
    """(B, 2) heights and widths -> (B, P) bool: the point's cell starts within its image's own area.

    The own area is the image padded to `SIZE_DIVISOR` by itself, as in the reference, so that what is trained does
    not depend on the other images of the batch.
    """
    padded = torch.div(image_sizes + SIZE_DIVISOR - 1, SIZE_DIVISOR, rounding_mode="floor") * SIZE_DIVISOR
    cell_start = torch.floor(grid.points / grid.strides[:, None]) * grid.strides[:, None]
    return (cell_start < padded.flip(-1)[:, None]).all(dim=-1)
