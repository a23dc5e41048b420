"""ATSS against the golden assignments, and all assigners against slow oracles."""

import json
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

from gfl.build import build_assigner
from gfl.common.errors import UserError
from gfl.config import AssignConfig
from gfl.method.assign import assign_atss, assign_fcos, assign_fovea, assign_max_iou
from gfl.method.points import make_point_grid, points_in_images
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


@pytest.mark.parametrize("assigner", [assign_atss, assign_fcos, assign_fovea, assign_max_iou])
def test_a_batch_without_a_single_slot_is_background(assigner):
    grid = make_point_grid(oracles.feature_sizes(64, 64), oracles.STRIDES)
    targets = Targets(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, dtype=torch.bool))
    index = assigner(grid, targets, torch.ones(2, len(grid.points), dtype=torch.bool)).index
    assert (index.dtype, index.shape) == (torch.int64, (2, len(grid.points)))
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


# --- the other assigners ----------------------------------------------------------------------------------------------

FUNCTIONS = {
    "fcos": (assign_fcos, oracles.fcos),
    "fovea": (assign_fovea, oracles.fovea),
    "max_iou": (assign_max_iou, oracles.max_iou),
}
OTHERS = pytest.mark.parametrize(("function", "slow"), FUNCTIONS.values(), ids=FUNCTIONS)
SCENE_SIZES = [(128, 160), (97, 65), (160, 130), (70, 70), (32, 32), (160, 192)]
EMPTY = 3  # the image of `scene` without boxes


def small_grid(offset=0.0):
    """Three levels, so that boxes of an image of 160 x 192 reach the size of the coarsest."""
    return make_point_grid([(20, 24), (10, 12), (5, 6)], (8, 16, 32), offset=offset)


def scene(seed):
    """Boxes of the images of `SCENE_SIZES`, on quarters of a pixel so that float32 and the oracle agree on ties.

    Of all sizes; crowded, on the grid and so with ties and points on their sides; over the edges, outside and
    without area; none; one; and nested.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(count, *size):
        return (oracles.random_boxes(count, *size, generator) * 4).round() / 4

    center = torch.randint(3, 6, (14, 2), generator=generator) * 8
    half = torch.randint(1, 6, (14, 2), generator=generator) * 4
    crowd = torch.cat([center - half, center + half], dim=-1).float()
    beyond = random(6, 200, 200) * 2 - 100
    strange = torch.tensor([[-40.0, -60, 170, 220], [300, 300, 380, 390], [40, 40, 40, 40], [50, 20, 50, 90]])
    nested = torch.tensor([[96.0 - size, 80 - size, 96 + size, 80 + size] for size in (8, 16, 24, 40, 64, 80)])
    order = torch.randperm(len(nested), generator=generator)
    boxes = [random(6, 128, 160), crowd, torch.cat([beyond, strange]), torch.zeros(0, 4), random(1, 32, 32)]
    return [*boxes, nested[order]]


def inside_mask(grid, sizes):
    """(B, P) by the oracle."""
    points = list(zip(grid.points.tolist(), grid.strides.tolist(), strict=True))
    return torch.tensor([[oracles.inside_image(*point, size) for point in points] for size in sizes])


def assign_scene(function, boxes, grid, *, num_slots=None, filler=None, **options):
    """Index (B, P) and `inside`; `filler` stands in all padded slots."""
    targets = oracles.pad_targets(boxes, [torch.zeros(len(image)) for image in boxes], num_slots)
    if filler is not None:
        targets = targets._replace(
            boxes_xyxy=targets.boxes_xyxy.masked_fill(~targets.valid.unsqueeze(-1), filler),
            labels=targets.labels.masked_fill(~targets.valid, 7),
        )
    inside = inside_mask(grid, SCENE_SIZES[: len(boxes)])
    return function(grid, targets, inside, **options).index, inside


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcos", {}),
        ("fcos", {"radius": 1.0}),
        ("fcos", {"radius": 4.0}),
        ("fovea", {}),
        ("max_iou", {}),
        ("max_iou", {"scale": 4.0}),
        ("max_iou", {"positive": 0.6, "negative": 0.3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(2))
def test_each_assigner_equals_its_slow_oracle(name, options, offset, seed):
    function, slow = FUNCTIONS[name]
    ours = {"radius": "center_radius", "scale": "anchor_scale", "positive": "positive_iou", "negative": "negative_iou"}
    boxes, grid = scene(seed), small_grid(offset)
    index, inside = assign_scene(function, boxes, grid, **{ours[key]: value for key, value in options.items()})
    for image, image_boxes in enumerate(boxes):
        assert index[image].tolist() == slow(grid, inside[image].tolist(), image_boxes, **options)
    assert (index[EMPTY] == -1).all()
    for level in index.split(grid.level_sizes, dim=1):
        assert (level >= 0).any()
    assert (index == -2).any() == (name == "max_iou")


@OTHERS
@pytest.mark.parametrize("seed", range(2))
def test_each_assigner_equals_its_slow_oracle_on_five_levels(function, slow, seed):
    grid = make_point_grid(oracles.feature_sizes(160, 192), oracles.STRIDES)
    boxes = scene(seed)
    index, inside = assign_scene(function, boxes, grid)
    for image, image_boxes in enumerate(boxes):
        assert index[image].tolist() == slow(grid, inside[image].tolist(), image_boxes)


@OTHERS
@pytest.mark.parametrize("filler", [0.0, float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_what_fills_padded_slots_does_not_matter(function, slow, filler):
    boxes, grid = scene(0), small_grid()
    expected, _ = assign_scene(function, boxes, grid)
    assert assign_scene(function, boxes, grid, num_slots=20, filler=filler)[0].equal(expected)


@OTHERS
def test_an_invalid_slot_takes_no_point_wherever_it_stands(function, slow):
    """The smallest and best box of all, as an invalid one in slot 0: the others are assigned as without it."""
    grid, box = small_grid(0.5), torch.tensor([52.0, 52.0, 84.0, 84.0])
    real = torch.tensor([[44.0, 44.0, 92.0, 92.0], [20.0, 20.0, 110.0, 110.0]])
    inside = torch.ones(1, len(grid.points), dtype=torch.bool)
    expected = function(grid, oracles.pad_targets([real], [[0, 0]]), inside).index
    targets = oracles.pad_targets([torch.cat([box[None], real])], [[0, 0, 0]])
    assert (function(grid, targets, inside).index == 0).any()
    targets.valid[0, 0] = False
    assert (expected >= 0).any()
    assert function(grid, targets, inside).index.equal(torch.where(expected >= 0, expected + 1, expected))


@OTHERS
def test_points_outside_an_image_are_background_and_win_nothing(function, slow):
    """Boxes over the edge of a small image, on a grid that goes on: a point out there would be their best."""
    grid = small_grid()
    inside = inside_mask(grid, [(64, 64)])
    targets = oracles.pad_targets([[[40.0, 40.0, 120.0, 120.0], [56.0, 8.0, 88.0, 40.0]]], [[0, 0]])
    index = function(grid, targets, inside).index
    assert (index[~inside] == -1).all()
    everywhere = function(grid, targets, torch.ones_like(inside)).index
    assert (everywhere[~inside] >= 0).any()


@OTHERS
@pytest.mark.parametrize("num_slots", [1, 4])
def test_every_assigner_leaves_images_without_boxes_as_background(function, slow, num_slots):
    index, _ = assign_scene(function, [torch.zeros(0, 4)] * 2, small_grid(), num_slots=num_slots)
    assert (index == -1).all()


@OTHERS
def test_every_assigner_runs_on_tensors_without_data(function, slow):
    grid = make_point_grid(oracles.feature_sizes(64, 96), oracles.STRIDES, device="meta")
    with torch.device("meta"):
        targets = Targets(torch.rand(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3).bool())
        inside = torch.ones(2, len(grid.points), dtype=torch.bool)
    assert function(grid, targets, inside).index.shape == (2, len(grid.points))


@OTHERS
def test_every_assigner_compiles_to_one_graph(function, slow):
    boxes, grid = scene(0), small_grid()
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert assign_scene(compiled, boxes, grid)[0].equal(assign_scene(function, boxes, grid)[0])


def at(index, grid, x, y, stride):
    """The entry of one point of the first image."""
    found = (grid.points == torch.tensor([x, y])).all(dim=-1) & (grid.strides == stride)
    assert found.sum() == 1
    return index[0, found].item()


def test_fcos_gives_a_point_the_smallest_of_its_boxes():
    boxes = torch.tensor([[50.0, 50.0, 90.0, 90.0], [52.0, 54.0, 88.0, 86.0], [40.0, 45.0, 92.0, 90.0]])
    index, _ = assign_scene(assign_fcos, [boxes], small_grid())
    assert at(index, small_grid(), 72.0, 72.0, 8) == 1
    index, _ = assign_scene(assign_fcos, [boxes.flip(0)], small_grid())
    assert at(index, small_grid(), 72.0, 72.0, 8) == 1


@pytest.mark.parametrize(("reach", "strides"), [(64, {8, 16}), (65, {16}), (63, {8}), (128, {16, 32}), (400, {32})])
def test_fcos_levels_are_told_by_the_farthest_side_and_share_their_limits(reach, strides):
    """The point at 64, 64 has a box of which three sides are near."""
    grid = small_grid()
    index, _ = assign_scene(assign_fcos, [torch.tensor([[44.0, 44.0, 64.0 + reach, 84.0]])], grid, center_radius=1e3)
    assert {stride for stride in (8, 16, 32) if at(index, grid, 64.0, 64.0, stride) == 0} == strides


FOVEA_LEVELS = [(0.5, set()), (1, {8}), (31, {8}), (32, {8, 16}), (63, {8, 16}), (64, {8, 16, 32}), (65, {16, 32})]


@pytest.mark.parametrize(("edge", "strides"), [*FOVEA_LEVELS, (128, {16, 32}), (129, {32}), (512, {32}), (513, set())])
def test_fovea_levels_are_told_by_the_area_and_overlap(edge, strides):
    grid, half = small_grid(), edge / 2
    index, _ = assign_scene(assign_fovea, [torch.tensor([[64 - half, 64 - half, 64 + half, 64 + half]])], grid)
    assert {stride for stride in (8, 16, 32) if at(index, grid, 64.0, 64.0, stride) == 0} == strides


@pytest.mark.parametrize(
    ("left", "right", "expected"), [(-8.0, 48.0, 0), (-8.0, 48.5, -2), (0.0, 48.0, -2), (0.0, 48.5, -1)]
)
def test_max_iou_learns_from_a_half_and_ignores_from_two_fifths(left, right, expected):
    """IoUs of the first point's square with the box of 1/2, less, 2/5 and less; the second's is always larger."""
    grid = make_point_grid([(1, 2)], (8,))
    box = [left, -32.0, right, 32.0]
    assert oracles.iou([-24, -32, 40, 32], box) > oracles.iou([-32, -32, 32, 32], box)
    index = assign_max_iou(grid, oracles.pad_targets([[box]], [[0]]), torch.ones(1, 2, dtype=torch.bool)).index
    assert index.tolist() == [[expected, 0]]


def test_max_iou_gives_a_box_all_points_that_overlap_it_most_and_the_last_of_such_boxes_wins():
    """Both lie within all squares, so the overlap is everywhere the same, and far below 0.4."""
    grid = make_point_grid([(4, 4)], (16,))
    targets = oracles.pad_targets([[[12.0, 12.0, 22.0, 22.0], [14.0, 14.0, 22.0, 22.0]]], [[0, 0]])
    index = assign_max_iou(grid, targets, torch.ones(1, 16, dtype=torch.bool)).index
    assert (index == 1).all()


def test_max_iou_gives_no_point_to_a_box_that_no_square_overlaps():
    index, _ = assign_scene(assign_max_iou, [torch.tensor([[900.0, 900.0, 990.0, 990.0]])], small_grid())
    assert (index == -1).all()


def test_build_by_name():
    assigner = build_assigner(AssignConfig(topk=5, anchor_scale=4.0))
    assert assigner.func is assign_atss
    assert assigner.keywords == {"topk": 5, "anchor_scale": 4.0}


def test_build_takes_each_assigner_s_numbers_from_the_config():
    fcos, max_iou = (
        build_assigner(AssignConfig(kind="fcos", center_radius=2.5)),
        build_assigner(AssignConfig(kind="max_iou", anchor_scale=4.0)),
    )
    assert (fcos.func, fcos.keywords) == (assign_fcos, {"center_radius": 2.5})
    assert (max_iou.func, max_iou.keywords) == (assign_max_iou, {"anchor_scale": 4.0})
    assert build_assigner(AssignConfig(kind="fovea")) is assign_fovea


def test_an_unknown_name_is_told_with_those_that_exist():
    with pytest.raises(UserError, match=r"assign\.kind: 'simota' does not exist; available: .*atss"):
        build_assigner(AssignConfig(kind="simota"))
