"""Localisation distillation against golden values and a slow version of its regions."""

import math
import statistics

import batch_oracles
import oracles
import pytest
import torch
from reference import read_golden

from gfl.method.assign import assign_atss
from gfl.method.box_representation import GeneralBox
from gfl.method.boxes import distance_box_iou
from gfl.method.criterion import Criterion
from gfl.method.distillation import Distillation, distillation_loss, valuable_region
from gfl.method.points import points_in_images
from gfl.method.quality import JointQuality
from gfl.structures import HeadOutput

ATSS = {"topk": 9, "anchor_scale": 8.0, "reach": None}


def region(**changes):
    return lambda grid, targets, inside: valuable_region(grid, targets, inside, **ATSS | changes)


def random_batch(seed=0):
    """Student's output, the teacher's sides, boxes, labels and sizes: a crowded image, an empty and a small one."""
    generator = torch.Generator().manual_seed(seed)
    grid, sizes = oracles.grid_of(128, 160), [(120, 160), (128, 100), (64, 70)]
    boxes = [oracles.random_boxes(n, *size, generator) for n, size in zip((6, 0, 1), sizes, strict=True)]
    labels = [torch.randint(3, (len(image_boxes),), generator=generator) for image_boxes in boxes]
    classes = torch.randn(3, len(grid.points), 3, generator=generator) - 1
    sides, taught = torch.randn(2, 3, len(grid.points), 4, 9, generator=generator) * 3
    return HeadOutput(classes, sides, None, grid), taught, boxes, labels, torch.tensor(sizes)


def losses_of(output, taught, targets, sizes, **options):
    distillation = Distillation(lambda images: taught, **options)
    criterion = Criterion(assign_atss, JointQuality(), GeneralBox(reg_max=8), distillation=distillation)
    return criterion(output, targets, sizes, None, torch.zeros(3, 3, 128, 160))


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1, 5, 10])
def test_loss_and_gradient_equal_the_golden_values(temperature):
    golden = read_golden("distillation")
    student = golden["ld_student"].clone().requires_grad_()
    loss = distillation_loss(student, golden["ld_teacher"], temperature=temperature)
    torch.testing.assert_close(loss, golden[f"ld_loss_T{temperature}"], rtol=1e-9, atol=1e-12)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    torch.testing.assert_close(gradient, golden[f"ld_grad_T{temperature}"], rtol=1e-9, atol=1e-12)


def test_half_precision_is_computed_in_float32_and_equal_sides_have_no_loss():
    logits = torch.randn(50, 17, generator=torch.Generator().manual_seed(0)).bfloat16() * 8
    loss = distillation_loss(logits, logits.flip(0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, distillation_loss(logits.float(), logits.flip(0).float()), rtol=0, atol=0)
    assert (distillation_loss(logits, logits) == 0).all()


def test_diou_is_iou_minus_the_distance_of_the_centres():
    boxes = oracles.random_boxes(40, 100, 140, torch.Generator().manual_seed(0))
    expected = [diou(a, b) for a, b in zip(boxes[:20].tolist(), boxes[20:].tolist(), strict=True)]
    assert distance_box_iou(boxes[:20], boxes[20:]).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


# --- the regions ------------------------------------------------------------------------------------------------------


def diou(a, b):
    centres = [[(box[0] + box[2]) / 2, (box[1] + box[3]) / 2] for box in (a, b)]
    corners = [[min(a[0], b[0]), min(a[1], b[1])], [max(a[2], b[2]), max(a[3], b[3])]]
    return oracles.iou(a, b) - math.dist(*centres) ** 2 / math.dist(*corners) ** 2


def slow_region(grid, inside, boxes, *, topk=9, scale=8.0):
    """The weights of the valuable region of one image, point by point."""
    points, weights = grid.points.tolist(), [0.0] * len(grid.points)
    squares = [
        [x - scale / 2 * s, y - scale / 2 * s, x + scale / 2 * s, y + scale / 2 * s]
        for (x, y), s in zip(points, grid.strides.tolist(), strict=True)
    ]
    for box in boxes.tolist():
        centre, start, candidates = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], 0, []
        for size in grid.level_sizes:
            level = [p for p in range(start, start + size) if inside[p]]
            candidates += sorted(level, key=lambda p: math.dist(points[p], centre))[:topk]
            start += size
        overlaps = [oracles.iou(squares[p], box) for p in candidates]
        threshold = statistics.mean(overlaps) + statistics.stdev(overlaps)
        for p, square in enumerate(squares):
            if inside[p] and threshold / 4 <= diou(square, box) < threshold:
                weights[p] = max(weights[p], oracles.iou(square, box))
    return weights


def slow_loss(batch, main, valuable):
    """0.25 times the weighted mean divergence over the sides, by the sum of the box weights."""
    output, taught, boxes, _, sizes = batch
    points = list(zip(output.grid.points.tolist(), output.grid.strides.tolist(), strict=True))
    total = sum_weight = 0.0
    for image, size in enumerate(sizes):
        inside = [batch_oracles.inside_image(*point, size) for point in points]
        assigned = batch_oracles.atss(output.grid, inside, boxes[image])
        around = slow_region(output.grid, inside, boxes[image])
        for p, slot in enumerate(assigned):
            score = max(map(oracles.sigmoid, output.cls_logits[image, p].tolist())) if slot >= 0 else 0.0
            sum_weight += score
            weight = score * main + around[p] / 4 * valuable
            if weight:
                sides = zip(output.reg_pred[image, p].tolist(), taught[image, p].tolist(), strict=True)
                total += weight * statistics.mean(divergence(*side) for side in sides)
    return 0.25 * total / max(sum_weight, 1)


def divergence(student, teacher):
    p, q = (oracles.softmax([logit / 10 for logit in logits]) for logits in (teacher, student))
    return 100 * statistics.mean(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(("main", "valuable"), [(True, False), (False, True), (True, True)])
def test_the_loss_of_each_region_equals_the_slow_oracle(main, valuable):
    batch = random_batch()
    output, taught, boxes, labels, sizes = batch
    targets = oracles.pad_targets(boxes, labels, 8)
    losses = losses_of(output, taught, targets, sizes, main=main, valuable=region() if valuable else None)
    assert losses["ld"].item() == pytest.approx(slow_loss(batch, main, valuable), rel=1e-4)
    assert losses["ld"] > 0
    without = Criterion(assign_atss, JointQuality(), GeneralBox(reg_max=8))(output, targets, sizes)
    assert {name: loss for name, loss in losses.items() if name != "ld"} == without


@pytest.mark.parametrize("options", [{}, {"topk": 4}, {"anchor_scale": 5.0}], ids=str)
def test_the_valuable_region_equals_the_slow_oracle(options):
    output, _, boxes, labels, sizes = random_batch(1)
    inside = points_in_images(output.grid, sizes)
    weights = region(**options)(output.grid, oracles.pad_targets(boxes, labels, 8), inside) * inside
    settings = {"topk": options.get("topk", 9), "scale": options.get("anchor_scale", 8.0)}
    for image, image_boxes in enumerate(boxes):
        expected = slow_region(output.grid, inside[image], image_boxes, **settings)
        assert weights[image].tolist() == pytest.approx(expected, rel=1e-5)
    assert (weights > 0).sum() > 100


def test_the_threshold_of_the_region_is_that_of_the_assignment():
    """With a reach that leaves out candidates the region is another."""
    output, _, boxes, labels, sizes = random_batch(1)
    arguments = output.grid, oracles.pad_targets(boxes, labels), points_in_images(output.grid, sizes)
    far, near = region(reach=1e6)(*arguments), region(reach=4.0)(*arguments)
    assert torch.equal(far, region()(*arguments))
    assert not torch.equal(far, near)


# --- what must not happen ---------------------------------------------------------------------------------------------


def test_only_sides_of_trained_points_learn():
    output, taught, boxes, labels, sizes = random_batch()
    targets = oracles.pad_targets(boxes, labels, 8)
    ignored = torch.zeros_like(targets.valid)
    ignored[:, 7] = True
    targets.boxes_xyxy[:, 7] = torch.tensor([0.0, 0, 70, 128])
    targets = targets._replace(ignored=ignored)
    classes, sides = (leaf.requires_grad_() for leaf in output[:2])
    loss = losses_of(output, taught.requires_grad_(), targets, sizes, valuable=region())["ld"]
    gradients = torch.autograd.grad(loss, [sides, classes, taught], allow_unused=True)
    assert gradients[1:] == (None, None)
    inside = points_in_images(output.grid, sizes)
    positive = assign_atss(output.grid, targets, inside).positive
    x, y = output.grid.points.unbind(-1)
    in_ignored = (x > 0) & (x < 70) & (y > 0) & (y < 128) & ~positive
    learns = (gradients[0] != 0).flatten(2).any(-1)
    assert not learns[~inside | in_ignored].any()
    assert learns[positive].all()
    assert learns[~positive].any()


def test_compiles_to_one_graph_without_waiting_for_the_device():
    output, taught, boxes, labels, sizes = random_batch()
    targets = oracles.pad_targets(boxes, labels)
    eager = losses_of(output, taught, targets, sizes, valuable=region())
    compiled = torch.compile(losses_of, fullgraph=True, backend="eager")(
        output, taught, targets, sizes, valuable=region()
    )
    torch.testing.assert_close(compiled["ld"], eager["ld"])
