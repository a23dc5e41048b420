"""Every assigner compiles to one graph: nothing branches on data or waits for the device."""

from functools import partial

import batch_oracles
import oracles
import pytest
import torch

from gfl.method.assign import assign_atss, assign_fcos, assign_fovea, assign_max_iou

pytestmark = pytest.mark.robustness


@pytest.mark.parametrize(
    "function", [assign_atss, partial(assign_atss, reach=2.0), assign_fcos, assign_fovea, assign_max_iou]
)
def test_every_assigner_compiles_to_one_graph(function):
    """`fullgraph` refuses `.item()`, `nonzero` and every branch on data."""
    generator, sizes = torch.Generator().manual_seed(0), [(128, 160), (97, 65), (70, 70)]
    boxes = [oracles.random_boxes(n, *size, generator) for n, size in zip((6, 3, 0), sizes, strict=True)]
    grid, targets = oracles.grid_of(128, 160), oracles.pad_targets(boxes, [torch.zeros(len(b)) for b in boxes])
    points = list(zip(grid.points.tolist(), grid.strides.tolist(), strict=True))
    inside = torch.tensor([[batch_oracles.inside_image(*point, size) for point in points] for size in sizes])
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert compiled(grid, targets, inside).index.equal(function(grid, targets, inside).index)
