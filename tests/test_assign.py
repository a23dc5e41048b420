"""ATSS against the golden assignments and the slow oracle."""

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

from gfl.assign import assign_atss, build_assigner
from gfl.config import AssignConfig
from gfl.errors import UserError
from gfl.points import make_point_grid, points_in_images
from gfl.structures import Targets

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "atss.json").read_text())


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "atss.npz") as file:
        return dict(file)


def assign(image_sizes, boxes, batch_size, **options):
    """Index (B, P) and the grid, for one tensor of boxes per image."""
    grid = make_point_grid(oracles.feature_sizes(*batch_size), oracles.STRIDES)
    targets = oracles.pad_targets(boxes, [torch.zeros(len(image_boxes)) for image_boxes in boxes])
    inside = points_in_images(grid, torch.tensor(image_sizes))
    return assign_atss(grid, targets, inside, **options).index, grid


def random_batch(seed):
    """Sizes and boxes of five images, one of them without boxes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(128, 160), (97, 65), (33, 150), (70, 70), (32, 32)]
    counts = [6, 3, 2, 0, 1]
    return sizes, [oracles.random_boxes(n, *size, generator) for n, size in zip(counts, sizes, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case {case['case']}")
def test_assignments_equal_the_golden_ones(golden, case):
    name = f"c{case['case']}"
    boxes = torch.from_numpy(golden[f"{name}_boxes"])
    grid = make_point_grid(case["feature_hw"], oracles.STRIDES)
    inside = points_in_images(grid, torch.tensor([case["image_hw"]]))
    targets = oracles.pad_targets([boxes], [torch.from_numpy(golden[f"{name}_labels"])], len(boxes) + 3)
    assignment = assign_atss(grid, targets, inside)
    np.testing.assert_array_equal(assignment.index[0].numpy(), golden[f"{name}_assigned_gt"])
    assert assignment.positive.sum() == case["num_pos"]


def test_the_golden_cases_are_sixteen_and_have_positives(golden):
    assert len(CASES) == 16
    assert sum((golden[f"c{case}_assigned_gt"] >= 0).sum() for case in range(16)) > 1000


@pytest.mark.parametrize("options", [{}, {"topk": 4}, {"topk": 15}, {"anchor_scale": 5.0}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_of_uneven_images_equals_the_slow_oracle(seed, options):
    sizes, boxes = random_batch(seed)
    index, grid = assign(sizes, boxes, (160, 192), **options)
    scale = options.get("anchor_scale", 8.0)
    for image, size in enumerate(sizes):
        inside = [
            oracles.inside_image(*point, size)
            for point in zip(grid.points.tolist(), grid.strides.tolist(), strict=True)
        ]
        expected = oracles.atss(grid, inside, boxes[image], topk=options.get("topk", 9), scale=scale)
        assert index[image].tolist() == expected
    assert (index >= 0).any()


@pytest.mark.parametrize("seed", range(3))
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


@pytest.mark.parametrize("num_slots", [1, 4])
def test_without_boxes_all_is_background(num_slots):
    grid = make_point_grid(oracles.feature_sizes(64, 64), oracles.STRIDES)
    targets = oracles.pad_targets([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2, num_slots)
    assignment = assign_atss(grid, targets, torch.ones(2, len(grid.points), dtype=torch.bool))
    assert (assignment.index == -1).all()
    assert assignment.index.shape == (2, len(grid.points))
    assert not assignment.positive.any()


def test_a_batch_without_a_single_slot_is_background():
    grid = make_point_grid(oracles.feature_sizes(64, 64), oracles.STRIDES)
    targets = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool))
    index = assign_atss(grid, targets, torch.ones(2, len(grid.points), dtype=torch.bool)).index
    assert (index == -1).all()


def test_levels_with_fewer_points_than_topk():
    """A 64 px image has 4 points at stride 32 and one at 64 and 128; a large box is theirs as candidates."""
    box = torch.tensor([[2.0, 3.0, 61.0, 62.0]])
    index, grid = assign([(64, 64)], [box], (64, 64))
    assert grid.level_sizes[2:] == (4, 1, 1)
    assert index[0].tolist() == oracles.atss(grid, [True] * len(grid.points), box)
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
    grid = make_point_grid([(8, 8)], (8,))
    targets = oracles.pad_targets([[[17.0, 17.0, 33.0, 33.0]]], [[0]])
    index = assign_atss(grid, targets, torch.ones(1, 64, dtype=torch.bool)).index[0]
    assert grid.points[index >= 0].tolist() == [[24, 24], [32, 24], [24, 32], [32, 32]]


def test_positives_lie_in_their_boxes():
    sizes, boxes = random_batch(11)
    index, grid = assign(sizes, boxes, (160, 192))
    for image, image_boxes in enumerate(boxes):
        positive = index[image] >= 0
        points, own = grid.points[positive], image_boxes[index[image, positive]]
        assert (points > own[:, :2]).all()
        assert (points < own[:, 2:]).all()


def test_compiles_to_one_graph_without_asking_the_device():
    """`fullgraph` refuses `.item()`, `nonzero` and every branch on data."""
    sizes, boxes = random_batch(0)
    grid = make_point_grid(oracles.feature_sizes(160, 192), oracles.STRIDES)
    targets = oracles.pad_targets(boxes, [torch.zeros(len(image_boxes)) for image_boxes in boxes])
    inside = points_in_images(grid, torch.tensor(sizes))
    compiled = torch.compile(assign_atss, fullgraph=True, backend="eager")
    assert compiled(grid, targets, inside).index.equal(assign_atss(grid, targets, inside).index)


def test_runs_on_tensors_without_data():
    grid = make_point_grid(oracles.feature_sizes(64, 96), oracles.STRIDES, device="meta")
    with torch.device("meta"):
        targets = Targets(torch.rand(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3).bool())
        inside = points_in_images(grid, torch.tensor([[64, 96], [64, 96]]))
    assert assign_atss(grid, targets, inside).index.shape == (2, len(grid.points))


def test_build_by_name():
    assigner = build_assigner(AssignConfig(topk=5, anchor_scale=4.0))
    assert assigner.func is assign_atss
    assert assigner.keywords == {"topk": 5, "anchor_scale": 4.0}


def test_an_unknown_name_is_told_with_those_that_exist():
    with pytest.raises(UserError, match=r"assign\.kind: 'simota' does not exist; available: .*atss"):
        build_assigner(AssignConfig(kind="simota"))
