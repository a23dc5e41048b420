"""Box arithmetic against numbers computed by hand."""

import oracles
import pytest
import torch

from gfl.method.boxes import (
    box_area,
    box_iou,
    boxes_to_distances,
    centerness,
    clip_boxes,
    distances_to_boxes,
    generalized_box_iou,
)

PAIRS = {
    "identical": ([1, 2, 4, 6], [1, 2, 4, 6], 1, 1),
    "overlapping": ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7, 1 / 7 - 2 / 9),
    "nested": ([0, 0, 4, 4], [1, 1, 2, 3], 1 / 8, 1 / 8),
    "disjoint in x": ([0, 0, 1, 1], [2, 0, 3, 1], 0, -1 / 3),
    "disjoint in x and y": ([0, 0, 1, 1], [2, 2, 3, 3], 0, -7 / 9),
    "sharing a side": ([0, 0, 1, 1], [1, 0, 2, 1], 0, 0),
    "sharing a corner": ([0, 0, 1, 1], [1, 1, 2, 2], 0, -1 / 2),
    "a point inside the other": ([1, 1, 1, 1], [0, 0, 2, 2], 0, 0),
    "a line across the other": ([0, 1, 4, 1], [1, 0, 2, 2], 0, -3 / 4),
    "the same point twice": ([1, 1, 1, 1], [1, 1, 1, 1], 0, 0),
    "two points": ([0, 0, 0, 0], [3, 4, 3, 4], 0, -1),
}


def some_boxes(count, seed):
    return oracles.random_boxes(count, 100, 140, torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(("a", "b", "iou", "giou"), PAIRS.values(), ids=PAIRS)
def test_overlap_of_a_pair_in_both_orders(a, b, iou, giou):
    a, b = torch.tensor(a).float().requires_grad_(), torch.tensor(b).float()
    for first, second in ((a, b), (b, a)):
        assert box_iou(first, second).item() == pytest.approx(iou, abs=1e-6)
        assert generalized_box_iou(first, second).item() == pytest.approx(giou, abs=1e-6)
    generalized_box_iou(a, b).backward()
    assert a.grad.isfinite().all()


@pytest.mark.parametrize(("function", "slow"), [(box_iou, oracles.iou), (generalized_box_iou, oracles.giou)])
def test_all_pairs_by_broadcasting(function, slow):
    a, b = some_boxes(7, 0), some_boxes(5, 1)
    expected = torch.tensor([[slow(one, other) for other in b.tolist()] for one in a.tolist()], dtype=torch.float64)
    torch.testing.assert_close(function(a[:, None], b), expected)
    torch.testing.assert_close(function(a[:5], b), expected[:5].diagonal())


def test_tiny_boxes_keep_their_overlap():
    """Boxes are in strides: an area of 1e-5 is a small object on a coarse level, and far above what guards division."""
    a, b = torch.tensor([0.0, 0.0, 4e-3, 3e-3]), torch.tensor([0.0, 0.0, 2e-3, 3e-3])
    assert box_iou(a, b).item() == pytest.approx(0.5, rel=1e-4)
    assert generalized_box_iou(a, b).item() == pytest.approx(0.5, rel=1e-4)


def test_area():
    assert box_area(torch.tensor([[1.0, 2.0, 4.0, 6.0], [1.0, 2.0, 1.0, 6.0]])).tolist() == [12, 0]


def test_distances_are_left_top_right_bottom_and_negative_beyond_a_side():
    point, box = torch.tensor([10.0, 20.0]), torch.tensor([7.0, 16.0, 15.0, 26.0])
    distances = torch.tensor([3.0, 4.0, 5.0, 6.0])
    assert boxes_to_distances(point, box).equal(distances)
    assert distances_to_boxes(point, distances).equal(box)
    assert boxes_to_distances(point, torch.tensor([12.0, 0.0, 15.0, 18.0])).tolist() == [-2, 20, 5, -2]


def test_distances_and_boxes_are_inverse_and_broadcast():
    points, boxes = torch.rand(6, 2, dtype=torch.float64) * 100, some_boxes(4, 2)
    distances = boxes_to_distances(points, boxes[:, None])
    assert distances.shape == (4, 6, 4)
    torch.testing.assert_close(distances_to_boxes(points, distances), boxes[:, None].expand(4, 6, 4))


def test_centerness_is_its_formula():
    distances = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 9 - 1
    expected = torch.tensor([oracles.centerness(*point) for point in distances.tolist()])
    torch.testing.assert_close(centerness(distances), expected)
    by_hand = torch.tensor([[3.0, 3, 3, 3], [1, 2, 4, 2], [1, 2, 4, 8], [0, 1, 1, 1], [0, 0, 0, 0], [-1, 1, 3, 1]])
    assert centerness(by_hand).tolist() == [1, 0.5, 0.25, 0, 0, 0]


def test_centerness_of_tiny_boxes_is_that_of_large_ones():
    assert centerness(torch.tensor([1e-4, 2e-4, 4e-4, 2e-4])).item() == pytest.approx(0.5)


def test_clipping_uses_each_image_s_own_height_and_width():
    boxes = torch.tensor([-5.0, -6.0, 300.0, 200.0]).expand(2, 3, 4)
    clipped = clip_boxes(boxes, torch.tensor([[100, 250], [150, 320]]))
    assert clipped[0].tolist() == [[0, 0, 250, 100]] * 3
    assert clipped[1].tolist() == [[0, 0, 300, 150]] * 3


def test_clipping_leaves_boxes_inside_alone_and_flattens_those_outside():
    boxes = torch.tensor([[[1.5, 2.5, 30.0, 40.0], [60.0, 70.0, 80.0, 90.0], [-9.0, -8.0, -3.0, -2.0]]])
    clipped = clip_boxes(boxes, torch.tensor([[40, 50]]))
    assert clipped.tolist() == [[[1.5, 2.5, 30, 40], [50, 40, 50, 40], [0, 0, 0, 0]]]
