"""FCOS's, FoveaBox's, RetinaNet's and TOOD's rules against slow oracles, and what all assigners have in common."""

import batch_oracles
import oracles
import pytest
import torch
from reference import read_golden

from gfl.method.assign import (
    anchor_boxes,
    assign_atss,
    assign_fcos,
    assign_fovea,
    assign_max_iou,
    assign_tal,
    task_alignment,
)
from gfl.method.points import PointLayout, make_point_grid
from gfl.structures import PointPredictions, Targets

OTHERS = {
    "fcos": (assign_fcos, batch_oracles.fcos),
    "fovea": (assign_fovea, batch_oracles.fovea),
    "max_iou": (assign_max_iou, batch_oracles.max_iou),
}


def assign_tal_to_squares(grid, targets, inside):
    """As if every point predicted a square of 8 strides, with scores that differ from point to point."""
    points = torch.arange(len(grid.points) * 8, device=grid.points.device).reshape(-1, 8)
    scores, squares = points * 0.618 % 1 * 0.9 + 0.1, anchor_boxes(grid, 8.0)
    predicted = PointPredictions(*(tensor.expand(len(inside), -1, -1) for tensor in (scores, squares)))
    return assign_tal(grid, targets, inside, lambda: predicted)


EACH = pytest.mark.parametrize(
    "function", [assign_atss, assign_fcos, assign_fovea, assign_max_iou, assign_tal_to_squares]
)
SCENE_SIZES = [(128, 160), (97, 65), (160, 130), (70, 70), (32, 32), (160, 192)]
EMPTY = 3  # the image of `scene` without boxes


def small_grid(offset=0.0):
    """Three levels, so that boxes of an image of 160 x 192 reach the size of the coarsest."""
    return make_point_grid([(20, 24), (10, 12), (5, 6)], PointLayout((8, 16, 32), offset))


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
    unusual = torch.tensor([[-40.0, -60, 170, 220], [300, 300, 380, 390], [40, 40, 40, 40], [50, 20, 50, 90]])
    nested = torch.tensor([[96.0 - size, 80 - size, 96 + size, 80 + size] for size in (8, 16, 24, 40, 64, 80)])
    order = torch.randperm(len(nested), generator=generator)
    boxes = [random(6, 128, 160), crowd, torch.cat([beyond, unusual]), torch.zeros(0, 4), random(1, 32, 32)]
    return [*boxes, nested[order]]


def inside_mask(grid, sizes):
    """(B, P) by the oracle."""
    points = list(zip(grid.points.tolist(), grid.strides.tolist(), strict=True))
    return torch.tensor([[batch_oracles.inside_image(*point, size) for point in points] for size in sizes])


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


# --- all of them ------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("filler", [0.0, float("nan"), float("inf"), -1e30])
def test_what_fills_padded_slots_does_not_matter(function, filler):
    boxes, grid = scene(0), small_grid()
    expected, _ = assign_scene(function, boxes, grid)
    assert assign_scene(function, boxes, grid, num_slots=20, filler=filler)[0].equal(expected)


@EACH
def test_an_invalid_slot_gets_no_point(function):
    """The smallest and best box of all, as an invalid one in slot 0: the others are assigned as without it."""
    grid, box = small_grid(0.5), torch.tensor([36.0, 36.0, 100.0, 100.0])
    real = torch.tensor([[28.0, 28.0, 108.0, 108.0], [20.0, 20.0, 116.0, 116.0]])
    inside = torch.ones(1, len(grid.points), dtype=torch.bool)
    expected = function(grid, oracles.pad_targets([real], [[0, 0]]), inside).index
    targets = oracles.pad_targets([torch.cat([box[None], real])], [[0, 0, 0]])
    assert (function(grid, targets, inside).index == 0).any()
    targets.valid[0, 0] = False
    assert (expected >= 0).any()
    assert function(grid, targets, inside).index.equal(torch.where(expected >= 0, expected + 1, expected))


@EACH
def test_points_outside_an_image_are_background_and_win_nothing(function):
    """Boxes over the edge of a small image in a larger batch: a point in the padding would be their best."""
    grid = small_grid()
    inside = inside_mask(grid, [(64, 64)])
    targets = oracles.pad_targets([[[40.0, 40.0, 120.0, 120.0], [56.0, 8.0, 88.0, 40.0]]], [[0, 0]])
    index = function(grid, targets, inside).index
    assert (index[~inside] == -1).all()
    everywhere = function(grid, targets, torch.ones_like(inside)).index
    assert (everywhere[~inside] >= 0).any()


@EACH
@pytest.mark.parametrize("num_slots", [0, 1, 4])
def test_images_without_boxes_are_background(function, num_slots):
    grid = small_grid()
    targets = oracles.pad_targets([torch.zeros(0, 4)] * 2, [torch.zeros(0)] * 2, num_slots or 1)
    targets = Targets(*(column[:, :num_slots] for column in targets[:3]))
    assignment = function(grid, targets, torch.ones(2, len(grid.points), dtype=torch.bool))
    assert (assignment.index.dtype, assignment.index.shape) == (torch.int64, (2, len(grid.points)))
    assert (assignment.index == -1).all()
    assert not assignment.positive.any()
    assert assignment.trained.all()


@EACH
def test_nothing_waits_for_the_device(function):
    """On the meta device there are no values to wait for."""
    grid = oracles.grid_of(64, 96, device="meta")
    with torch.device("meta"):
        targets = Targets(torch.rand(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3).bool())
        inside = torch.ones(2, len(grid.points), dtype=torch.bool)
    assert function(grid, targets, inside).index.shape == (2, len(grid.points))


# --- fcos, fovea, max_iou ---------------------------------------------------------------------------------------------


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
def test_each_assigner_equals_its_slow_oracle(name, options, offset):
    function, slow = OTHERS[name]
    ours = {"radius": "center_radius", "scale": "anchor_scale", "positive": "positive_iou", "negative": "negative_iou"}
    boxes, grid = scene(0), small_grid(offset)
    index, inside = assign_scene(function, boxes, grid, **{ours[key]: value for key, value in options.items()})
    for image, image_boxes in enumerate(boxes):
        assert index[image].tolist() == slow(grid, inside[image].tolist(), image_boxes, **options)
    assert (index[EMPTY] == -1).all()
    for level in index.split(grid.level_sizes, dim=1):
        assert (level >= 0).any()
    assert (index == -2).any() == (name == "max_iou")


def at(index, grid, x, y, stride):
    """The entry of one point of the first image."""
    found = (grid.points == torch.tensor([x, y])).all(dim=-1) & (grid.strides == stride)
    assert found.sum() == 1
    return index[0, found].item()


@pytest.mark.parametrize(("reach", "strides"), [(64, {8, 16}), (65, {16}), (63, {8}), (128, {16, 32}), (400, {32})])
def test_the_level_of_fcos_follows_from_the_farthest_side(reach, strides):
    """The point at 64, 64 has a box of which three sides are near; levels share their limits."""
    grid = small_grid()
    index, _ = assign_scene(assign_fcos, [torch.tensor([[44.0, 44.0, 64.0 + reach, 84.0]])], grid, center_radius=1e3)
    assert {stride for stride in (8, 16, 32) if at(index, grid, 64.0, 64.0, stride) == 0} == strides


FOVEA_LEVELS = [(0.5, set()), (1, {8}), (31, {8}), (32, {8, 16}), (63, {8, 16}), (64, {8, 16, 32}), (65, {16, 32})]


@pytest.mark.parametrize(("edge", "strides"), [*FOVEA_LEVELS, (128, {16, 32}), (129, {32}), (512, {32}), (513, set())])
def test_the_level_of_fovea_follows_from_the_area(edge, strides):
    grid, half = small_grid(), edge / 2
    index, _ = assign_scene(assign_fovea, [torch.tensor([[64 - half, 64 - half, 64 + half, 64 + half]])], grid)
    assert {stride for stride in (8, 16, 32) if at(index, grid, 64.0, 64.0, stride) == 0} == strides


@pytest.mark.parametrize(
    ("left", "right", "expected"), [(-8.0, 48.0, 0), (-8.0, 48.5, -2), (0.0, 48.0, -2), (0.0, 48.5, -1)]
)
def test_max_iou_learns_from_a_half_and_ignores_from_two_fifths(left, right, expected):
    """IoUs of the first point's square with the box of 1/2, less, 2/5 and less; the second's is always larger."""
    grid = make_point_grid([(1, 2)], PointLayout((8,)))
    box = [left, -32.0, right, 32.0]
    assert oracles.iou([-24, -32, 40, 32], box) > oracles.iou([-32, -32, 32, 32], box)
    index = assign_max_iou(grid, oracles.pad_targets([[box]], [[0]]), torch.ones(1, 2, dtype=torch.bool)).index
    assert index.tolist() == [[expected, 0]]


def test_max_iou_gives_a_box_all_points_that_overlap_it_most_and_the_last_of_such_boxes_wins():
    """Both lie within all squares, so the overlap is everywhere the same, and far below 0.4."""
    grid = make_point_grid([(4, 4)], PointLayout((16,)))
    targets = oracles.pad_targets([[[12.0, 12.0, 22.0, 22.0], [14.0, 14.0, 22.0, 22.0]]], [[0, 0]])
    index = assign_max_iou(grid, targets, torch.ones(1, 16, dtype=torch.bool)).index
    assert (index == 1).all()


# --- tal --------------------------------------------------------------------------------------------------------------


def assign_predictions(grid, targets, scores, boxes_xyxy, *, inside=None, **options):
    """Index (B, P) for predictions (B, P, C) and (B, P, 4)."""
    inside = torch.ones(scores.shape[:2], dtype=torch.bool) if inside is None else inside
    return assign_tal(grid, targets, inside, lambda: PointPredictions(scores, boxes_xyxy), **options).index


def test_tal_equals_the_twelve_golden_assignments():
    golden, positives = read_golden("tal"), 0
    for case in range(12):
        of_case = {name.partition("_")[2]: array for name, array in golden.items() if name.startswith(f"tal{case}_")}
        boxes, labels, scores, predicted = (of_case[name] for name in ("boxes", "labels", "scores", "pred_boxes"))
        grid = make_point_grid(of_case["feature_hw"].tolist(), oracles.LAYOUT)
        targets = oracles.pad_targets([boxes], [labels], len(boxes) + 3)
        index = assign_predictions(grid, targets, scores[None], predicted[None])[0]
        assert index.tolist() == of_case["assigned_gt"].tolist()

        predictions = PointPredictions(scores[None], predicted[None])
        metric, _ = task_alignment(predictions, targets.boxes_xyxy.unsqueeze(2), targets.labels)
        of_winner = metric[0].gather(0, index.clamp(min=0)[None])[0]
        torch.testing.assert_close(of_winner[index >= 0], of_case["metric"][index >= 0])
        positives += (index >= 0).sum().item()
    assert positives > 500


@pytest.mark.parametrize("topk", [1, 13, 40])
def test_tal_equals_its_slow_oracle(topk):
    """Each point predicts some box of its image, more or less exactly, or a square."""
    grid, boxes = small_grid(), scene(1)
    generator = torch.Generator().manual_seed(topk)
    labels = [torch.randint(5, (len(image),), generator=generator) for image in boxes]
    shape, inside = (len(boxes), len(grid.points)), inside_mask(grid, SCENE_SIZES)
    scores, predicted = torch.rand(*shape, 5, generator=generator), anchor_boxes(grid, 4.0).repeat(len(boxes), 1, 1)
    for image, image_boxes in enumerate(boxes):
        if len(image_boxes):
            chosen = image_boxes[torch.randint(len(image_boxes), shape[1:], generator=generator)]
            near = chosen + torch.randn(chosen.shape, generator=generator) * 6
            near = torch.cat([torch.minimum(near[:, :2], near[:, 2:] - 1), near[:, 2:]], dim=-1)
            predicted[image] = torch.where(torch.rand(shape[1], 1, generator=generator) < 0.7, near, predicted[image])
    index = assign_predictions(grid, oracles.pad_targets(boxes, labels), scores, predicted, inside=inside, topk=topk)
    for image in range(len(boxes)):
        of_image = boxes[image], labels[image], scores[image], predicted[image]
        assert index[image].tolist() == batch_oracles.tal(grid, inside[image].tolist(), *of_image, topk=topk)
    assert (index >= 0).sum() >= topk


def test_of_points_that_predict_a_box_equally_well_tal_takes_the_first():
    grid, box = make_point_grid([(4, 8)], PointLayout((8,))), [-4.0, -4.0, 61.0, 29.0]
    predicted = torch.tensor([box]).expand(1, 32, 4)
    index = assign_predictions(grid, oracles.pad_targets([[box]], [[0]]), torch.full((1, 32, 1), 0.5), predicted)
    assert (index[0] >= 0).nonzero().flatten().tolist() == list(range(13))


def test_a_box_that_no_prediction_overlaps_gets_no_point():
    grid = small_grid()
    targets = oracles.pad_targets([[[40.0, 40.0, 90.0, 90.0]]], [[0]])
    far = torch.tensor([100.0, 100.0, 150.0, 150.0]).expand(1, len(grid.points), 4)
    assert (assign_predictions(grid, targets, torch.ones(1, len(grid.points), 1), far) == -1).all()
