"""ATSS over ten million points against one that measures every point and sorts, on boxes with and without ties."""

import pytest
import torch

import gfl.method.assign
from gfl.method.assign import assign_atss
from gfl.method.points import PointLayout, make_point_grid, points_in_images
from gfl.structures import Targets

pytestmark = pytest.mark.robustness
LAYOUTS = (PointLayout((8, 16, 32, 64, 128)), PointLayout((8, 16, 32, 64, 128), offset=0.5))


def nearest_of_all(grid, boxes_xyxy, inside, topk):
    """What `_nearest_points` returns, from the distances to all points; equal ones keep their order."""
    centers = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2
    distance = (grid.points - centers).pow(2).sum(dim=-1).sqrt()
    distance = distance.masked_fill(~inside[:, None], torch.inf)
    indices, eligible, start = [], [], 0
    for level in distance.split(grid.level_sizes, dim=-1):
        values, order = level.sort(dim=-1, stable=True)
        indices.append(order[..., :topk] + start)
        eligible.append(values[..., :topk].isfinite())
        start += level.shape[-1]
    return torch.cat(indices, dim=-1), torch.cat(eligible, dim=-1)


def random_image(generator, whole):
    """A padded size, the size within it, and 12 boxes, some of them outside; in whole pixels there are many ties."""
    height, width = (torch.randint(1, 45, (2,), generator=generator) * 32).tolist()
    sizes = [max(side - int(torch.randint(64, (1,), generator=generator)), 1) for side in (height, width)]
    corners = torch.rand(1, 12, 2, generator=generator) * torch.tensor([width, height]) * 1.2 - 20
    boxes = torch.cat([corners, corners + torch.rand(corners.shape, generator=generator).pow(2) * 500], dim=-1)
    boxes = boxes.round() if whole else boxes
    targets = Targets(boxes, torch.zeros(1, 12, dtype=torch.int64), torch.ones(1, 12, dtype=torch.bool))
    return (height, width), torch.tensor([sizes]), targets


@pytest.mark.parametrize("whole", [True, False], ids=["whole pixels", "fractions"])
def test_no_point_of_ten_million_differs(whole, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    quick, points, positive, number = gfl.method.assign._nearest_points, 0, 0, 0
    while points < 10_000_000:
        size, image_size, targets = random_image(generator, whole)
        layout, number = LAYOUTS[number % 2], number + 1
        maps = [tuple(-(-side // stride) for side in size) for stride in layout.strides]
        grid = make_point_grid(maps, layout)
        inside = points_in_images(grid, image_size)
        found = []
        for method in (quick, nearest_of_all):
            monkeypatch.setattr(gfl.method.assign, "_nearest_points", method)
            found.append(assign_atss(grid, targets, inside).index)
        assert found[0].equal(found[1])
        points, positive = points + inside.shape[1], positive + int((found[0] >= 0).sum())
    assert positive > 10_000
