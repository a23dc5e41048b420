"""Every assigner compiles to one graph: nothing branches on data or waits for the device."""

from functools import partial

import batch_oracles
import oracles
import pytest
import torch

from gfl.method.assign import anchor_boxes, assign_atss, assign_fcos, assign_fovea, assign_max_iou, assign_tal
from gfl.structures import PointPredictions

pytestmark = pytest.mark.robustness


@pytest.mark.parametrize(
    "function", [assign_atss, partial(assign_atss, reach=2.0), assign_fcos, assign_fovea, assign_max_iou, assign_tal]
)
def test_every_assigner_compiles_to_one_graph(function):
    """`fullgraph` refuses `.item()`, `nonzero` and every branch on data."""
    generator, sizes = torch.Generator().manual_seed(0), [(128, 160), (97, 65), (70, 70)]
    boxes = [oracles.random_boxes(n, *size, generator) for n, size in zip((6, 3, 0), sizes, strict=True)]
    grid, targets = oracles.grid_of(128, 160), oracles.pad_targets(boxes, [torch.zeros(len(b)) for b in boxes])
    points = list(zip(grid.points.tolist(), grid.strides.tolist(), strict=True))
    inside = torch.tensor([[batch_oracles.inside_image(*point, size) for point in points] for size in sizes])
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    scores = torch.rand(*inside.shape, 5, generator=generator)
    predict = partial(PointPredictions, scores, anchor_boxes(grid, 8.0).expand(3, -1, -1))
    expected = function(grid, targets, inside, predict).index
    assert (expected >= 0).any()
    assert compiled(grid, targets, inside, predict).index.equal(expected)
