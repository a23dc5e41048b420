"""ATSS against the golden assignments and the slow oracle, and what it must not depend on."""

import json

import batch_oracles
import oracles
import pytest
import torch
from reference import GOLDEN, read_golden

from gfl.method.assign import assign_atss
from gfl.method.boxes import boxes_to_distances
from gfl.method.points import PointLayout, make_point_grid, points_in_images

CASES = json.loads((GOLDEN / "atss.json").read_text())


def assign(image_sizes, boxes, batch_size, **options):
    """Index (B, P) and the grid, for one tensor of boxes per image."""
    grid = oracles.grid_of(*batch_size)
    targets = oracles.pad_targets(boxes, [torch.zeros(len(image_boxes)) for image_boxes in boxes])
    inside = points_in_images(grid, torch.tensor(image_sizes))
    return assign_atss(grid, targets, inside, **options).index, grid


def random_batch(seed):
    """Sizes and boxes of five images, one of them without boxes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(128, 160), (97, 65), (33, 150), (70, 70), (32, 32)]
    counts = [6, 3, 2, 0, 1]
    return sizes, [oracles.random_boxes(n, *size, generator) for n, size in zip(counts, sizes, strict=True)]


def test_assignments_equal_the_sixteen_golden_ones():
    golden, positives = read_golden("atss"), 0
    assert len(CASES) == 16
    for case in CASES:
        name = f"c{case['case']}"
        boxes = golden[f"{name}_boxes"]
        grid = make_point_grid(case["feature_hw"], oracles.LAYOUT)
        inside = points_in_images(grid, torch.tensor([case["image_hw"]]))
        targets = oracles.pad_targets([boxes], [golden[f"{name}_labels"]], len(boxes) + 3)
        assignment = assign_atss(grid, targets, inside)
        assert assignment.index[0].tolist() == golden[f"{name}_assigned_gt"].tolist(), name
        assert assignment.positive.sum() == case["num_pos"]
        positives += case["num_pos"]
    assert positives > 1000


@pytest.mark.parametrize("options", [{}, {"topk": 4}, {"topk": 15}, {"anchor_scale": 5.0}], ids=str)
def test_a_batch_of_uneven_images_equals_the_slow_oracle(options):
    topk, scale = options.get("topk", 9), options.get("anchor_scale", 8.0)
    for seed in range(2):
        sizes, boxes = random_batch(seed)
        index, grid = assign(sizes, boxes, (160, 192), **options)
        points = list(zip(grid.points.tolist(), grid.strides.tolist(), strict=True))
        for image, size in enumerate(sizes):
            inside = [batch_oracles.inside_image(*point, size) for point in points]
            assert index[image].tolist() == batch_oracles.atss(grid, inside, boxes[image], topk=topk, scale=scale)
        assert (index >= 0).any()


@pytest.mark.parametrize("reach", [1, 2, 3.25, 5])
def test_range_aware_assignment_of_huge_boxes_equals_the_slow_oracle(reach):
    """Boxes of up to one and a half images; on quarters of a pixel, so that distances equal the reach exactly."""
    generator, size, moved, beyond = torch.Generator().manual_seed(3), (160, 192), 0, {None: 0, reach: 0}
    boxes = [oracles.random_boxes(4, 240, 280, generator) - 40 for _ in range(3)]
    boxes = [(image * 4).round() / 4 for image in boxes] + [torch.tensor([[64 - 80.0, 20, 64 + 80, 140]])]
    indices = {chosen: assign([size] * 4, boxes, size, reach=chosen) for chosen in (None, reach)}
    for image, image_boxes in enumerate(boxes):
        index, grid = indices[reach]
        assert index[image].tolist() == batch_oracles.atss(grid, [True] * len(grid.points), image_boxes, reach=reach)
        for chosen, (found, _) in indices.items():
            point = (found[image] >= 0).nonzero()[:, 0]
            sides = boxes_to_distances(grid.points[point], image_boxes[found[image, point]])
            beyond[chosen] += (sides > reach * grid.strides[point, None]).sum().item()
        moved += not index[image].equal(indices[None][0][image])
    assert moved
    assert beyond[reach] < beyond[None]


def test_a_box_goes_to_the_level_that_reaches_its_sides_or_stays_where_none_does():
    box = torch.tensor([[2.0, 3.0, 190.0, 157.0]])  # sides of at least 94 px from any point
    levels = {}
    for reach in (None, 8, 5, 2, 1, 0.5):
        index, grid = assign([(160, 192)], [box], (160, 192), reach=reach)
        levels[reach] = grid.strides[index[0] >= 0].unique().tolist()
    assert levels == {None: [16], 8: [16], 5: [32], 2: [64], 1: [128], 0.5: [16]}


@pytest.mark.parametrize("seed", range(2))
def test_an_image_is_assigned_alone_as_in_its_batch(seed):
    sizes, boxes = random_batch(seed)
    together, grid = assign(sizes, boxes, (256, 320))
    for image, (size, image_boxes) in enumerate(zip(sizes, boxes, strict=True)):
        padded = tuple(-(-side // 32) * 32 for side in size)
        alone, _ = assign([size], [image_boxes], padded)
        inside = points_in_images(grid, torch.tensor([size]))[0]
        assert together[image, inside].equal(alone[0])
        assert (together[image, ~inside] == -1).all()


def test_the_order_of_the_boxes_does_not_matter():
    sizes, boxes = random_batch(7)
    index, _ = assign(sizes[:1], boxes[:1], (128, 160))
    flipped, _ = assign(sizes[:1], [boxes[0].flip(0)], (128, 160))
    assert index.equal(torch.where(flipped < 0, -1, len(boxes[0]) - 1 - flipped))


def test_levels_with_fewer_points_than_topk():
    """A 64 px image has 4 points at stride 32 and one at 64 and 128; a large box has them all as candidates."""
    box = torch.tensor([[2.0, 3.0, 61.0, 62.0]])
    index, grid = assign([(64, 64)], [box], (64, 64))
    assert grid.level_sizes[2:] == (4, 1, 1)
    assert index[0].tolist() == batch_oracles.atss(grid, [True] * len(grid.points), box)
    assert (index >= 0).any()


def test_of_identical_boxes_the_lower_slot_wins():
    box = torch.tensor([[20.0, 20.0, 90.0, 80.0]])
    single, _ = assign([(128, 128)], [box], (128, 128))
    double, _ = assign([(128, 128)], [box.repeat(3, 1)], (128, 128))
    assert (single >= 0).any()
    assert double.equal(single)


@pytest.mark.parametrize(
    "box", [[9.0, 9.0, 15.0, 15.0], [300.0, 300.0, 340.0, 350.0], [40.0, 40.0, 40.0, 40.0], [8.0, 8.0, 16.0, 16.0]]
)
def test_a_box_that_holds_no_point_gets_none(box):
    """Between the points, outside the image, empty, and with points only on its border."""
    index, _ = assign([(128, 128)], [torch.tensor([box])], (128, 128))
    assert (index == -1).all()


def test_a_point_must_lie_more_than_a_hundredth_of_a_pixel_inside():
    for margin, expected in ((0.009, []), (0.011, [(16, 16)])):
        box = torch.tensor([[16 - margin, 9.0, 23.0, 23.0]])
        index, grid = assign([(64, 64)], [box], (64, 64))
        assert [tuple(point) for point in grid.points[index[0] >= 0].tolist()] == expected


def test_an_iou_that_equals_the_threshold_is_positive():
    """A small box within the squares of all its candidates: equal IoUs of 1/16, so the deviation is 0."""
    grid = make_point_grid([(8, 8)], PointLayout((8,)))
    targets = oracles.pad_targets([[[17.0, 17.0, 33.0, 33.0]]], [[0]])
    index = assign_atss(grid, targets, torch.ones(1, 64, dtype=torch.bool)).index[0]
    assert grid.points[index >= 0].tolist() == [[24, 24], [32, 24], [24, 32], [32, 32]]


def test_a_reach_that_every_candidate_has_changes_nothing():
    """Two levels with four equal IoUs each: mean plus deviation is above all of them, so that the box has no point."""
    grid = make_point_grid([(8, 8), (4, 4)], PointLayout((8, 16)))
    targets = oracles.pad_targets([[[31.0, 31.0, 33.0, 33.0]]], [[0]])
    for reach in (None, 100):
        index = assign_atss(grid, targets, torch.ones(1, 80, dtype=torch.bool), topk=4, reach=reach).index
        assert (index == -1).all()
