"""The losses against the slow oracle, and what they must not depend on."""

import itertools
from functools import partial

import batch_oracles
import numpy as np
import oracles
import pytest
import torch

import gfl.method.criterion
from gfl.method.assign import assign_atss, assign_fcos, assign_fovea, assign_max_iou, assign_tal
from gfl.method.box_representation import AnchorDeltaBox, DiracBox, GaussianBox, GeneralBox
from gfl.method.boxes import distances_to_boxes
from gfl.method.criterion import Criterion
from gfl.method.points import points_in_images
from gfl.method.quality import DistributionGuidedQuality, JointQuality, SeparateQuality, VarifocalQuality
from gfl.structures import HeadOutput, PointPredictions, Targets

QUALITIES = {
    "none": SeparateQuality,
    "centerness_branch": partial(SeparateQuality, by="centerness"),
    "iou_branch": partial(SeparateQuality, by="iou"),
    "centerness_guided": partial(SeparateQuality, by="centerness", guide=True),
    "iou_guided": partial(SeparateQuality, by="iou", guide=True),
    "joint": JointQuality,
    "dgqp": DistributionGuidedQuality,
    "varifocal": VarifocalQuality,
    "iou_branch_negatives": partial(SeparateQuality, by="iou", negatives=True),
}
BOXES = {"dirac": DiracBox, "anchor_delta": AnchorDeltaBox, "gaussian": GaussianBox, "general": GeneralBox}
WITHOUT_DGQP = list(itertools.product([name for name in QUALITIES if name != "dgqp"], BOXES))
EACH_ASSIGNER = pytest.mark.parametrize(
    "assigner", [assign_atss, assign_fcos, assign_fovea, assign_max_iou, assign_tal]
)
NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def make_criterion(*, delta=1.0, beta=2.0, **weights):
    return Criterion(assign_atss, JointQuality(beta=beta), GeneralBox(delta=delta), **weights)


def criterion_of(quality, box, assigner=assign_atss, **weights):
    return Criterion(assigner, QUALITIES[quality](), BOXES[box](), **weights)


def random_output(grid, batch, num_classes, generator):
    return HeadOutput(
        torch.randn(batch, len(grid.points), num_classes, generator=generator) - 1,
        torch.randn(batch, len(grid.points), 4, 17, generator=generator) * 2,
        None,
        grid,
    )


def random_batch(seed):
    """Output, boxes, labels and sizes of three images: crowded, empty, and small with one box."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(120, 160), (128, 100), (64, 70)]
    boxes = [oracles.random_boxes(n, *size, generator) for n, size in zip((8, 0, 1), sizes, strict=True)]
    labels = [torch.randint(5, (len(image_boxes),), generator=generator) for image_boxes in boxes]
    return random_output(oracles.grid_of(128, 160), 3, 5, generator), boxes, labels, torch.tensor(sizes)


def batch_of(quality, box, seed=0):
    """As `random_batch`, with the outputs of a row and a representation, as leaves."""
    output, boxes, labels, sizes = random_batch(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    reg_pred = torch.randn(*output.reg_pred.shape[:3], BOXES[box]().num_outputs, generator=generator)
    # Deltas so large that some points lie outside their predicted boxes; of the others, most distances positive.
    reg_pred = reg_pred * 5 if box == "anchor_delta" else reg_pred + 1
    branch = torch.randn(output.cls_logits.shape[:2], generator=generator) if "branch" in quality else None
    output = HeadOutput(output.cls_logits, reg_pred, branch, output.grid)
    for leaf in output[:3]:
        if leaf is not None:
            leaf.requires_grad_()
    return output, boxes, labels, sizes


def predictions(output):
    """Scores and boxes in pixels of the joint row with general distributions."""
    distances = GeneralBox().distances(output.reg_pred) * output.grid.strides[:, None]
    return PointPredictions(output.cls_logits.sigmoid(), distances_to_boxes(output.grid.points, distances))


def losses_and_gradients(criterion, output, targets, sizes):
    leaves = [output.cls_logits.clone().requires_grad_(), output.reg_pred.clone().requires_grad_()]
    losses = criterion(HeadOutput(*leaves, None, output.grid), targets, sizes)
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    return {name: loss.item() for name, loss in losses.items()}, gradients


# --- the slow oracle --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"delta": 0.5}, {"beta": 1.0}], ids=str)
def test_losses_equal_the_slow_oracle(options):
    output, boxes, labels, sizes = random_batch(1)
    losses = make_criterion(**options)(output, oracles.pad_targets(boxes, labels), sizes)
    expected = batch_oracles.batch_losses(output, boxes, labels, sizes, quality="joint", box="general", **options)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("quality", "box"), WITHOUT_DGQP)
def test_every_row_with_every_representation_equals_the_slow_oracle(quality, box):
    output, boxes, labels, sizes = batch_of(quality, box)
    losses = criterion_of(quality, box)(output, oracles.pad_targets(boxes, labels), sizes)
    expected = batch_oracles.batch_losses(output, boxes, labels, sizes, quality=quality, box=box)
    assert list(losses) == list(expected)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) > 0


def test_the_sum_of_weights_counts_as_at_least_1():
    output, boxes, labels, sizes = random_batch(0)
    targets, losses = oracles.pad_targets(boxes, labels), []
    for shift in (-9, -10):
        low = output._replace(cls_logits=output.cls_logits + shift)
        expected = batch_oracles.batch_losses(low, boxes, labels, sizes, quality="joint", box="general")
        losses.append(make_criterion()(low, targets, sizes)["box"].item())
        assert losses[-1] == pytest.approx(expected["box"], rel=1e-5)
    assert losses[1] < losses[0] / 2  # a mean would stay nearly the same


def test_loss_weights_scale_their_loss():
    output, boxes, labels, sizes = batch_of("iou_branch", "gaussian")
    targets = oracles.pad_targets(boxes, labels)
    names = ("cls_weight", "box_weight", "dfl_weight", "quality_weight")
    plain = criterion_of("iou_branch", "gaussian", **dict.fromkeys(names, 1.0))(output, targets, sizes)
    factors = (3.0, 5.0, 0.5, 7.0)
    weighted = criterion_of("iou_branch", "gaussian", **dict(zip(names, factors, strict=True)))(output, targets, sizes)
    for name, factor in zip(("cls", "box", "nll", "quality"), factors, strict=True):
        torch.testing.assert_close(weighted[name], factor * plain[name])


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quality", "box"), [*WITHOUT_DGQP, ("dgqp", "general")])
def test_classes_boxes_and_branch_learn_from_their_own_losses_alone(quality, box):
    """The quality and the box weights are constants to the gradient; training never sees the product with a branch."""
    output, boxes, labels, sizes = batch_of(quality, box)
    leaves = {"cls": output.cls_logits, "reg": output.reg_pred, "quality": output.quality_logits}
    criterion = criterion_of(quality, box)
    losses = criterion(criterion.quality(output), oracles.pad_targets(boxes, labels), sizes)
    reached = set()
    for loss, value in losses.items():
        for leaf, tensor in leaves.items():
            if tensor is None:
                continue
            gradient = torch.autograd.grad(value, tensor, allow_unused=True, retain_graph=True)[0]
            if gradient is not None and (gradient != 0).any():
                reached.add((loss, leaf))
    expected = {("cls", "cls"), *((loss, "reg") for loss in losses if loss in ("box", "dfl", "nll"))}
    expected |= {("quality", "quality")} if "branch" in quality else set()
    expected |= {("cls", "reg")} if quality == "dgqp" else set()  # through the predictor, not the quality target
    assert reached == expected


@pytest.mark.parametrize("quality", QUALITIES)
def test_points_that_are_neither_positive_nor_background_learn_nothing(quality):
    output, boxes, labels, sizes = batch_of(quality, "general")
    criterion, targets = criterion_of(quality, "general", assign_max_iou), oracles.pad_targets(boxes, labels)
    index = assign_max_iou(output.grid, targets, points_in_images(output.grid, sizes)).index
    leaves = [leaf for leaf in output[:3] if leaf is not None]
    losses = criterion(criterion.quality(output), targets, sizes)
    assert (index == -2).any()
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    for gradient in gradients:
        assert (gradient[index == -2] == 0).all()
        assert (gradient[index >= 0] != 0).any()
    assert (gradients[0][index == -1] != 0).any()  # the background teaches its classes
    if output.quality_logits is not None:
        assert (gradients[2][index == -1] != 0).any() == quality.endswith("negatives")


# --- predictions for the assigner -------------------------------------------------------------------------------------


def test_an_assigner_may_ask_for_detached_scores_and_boxes_in_pixels():
    output, boxes, labels, sizes = batch_of("dgqp", "general")
    seen = []

    def assigner(grid, targets, inside, predict):
        seen.append(predict())
        return assign_atss(grid, targets, inside)

    criterion = criterion_of("dgqp", "general", assigner)
    output = criterion.quality(output)
    losses = criterion(output, oracles.pad_targets(boxes, labels), sizes)
    expected = predictions(output)
    assert not any(tensor.requires_grad for tensor in seen[0])
    torch.testing.assert_close(seen[0].boxes_xyxy, expected.boxes_xyxy)
    product = expected.scores * output.quality_logits.sigmoid().unsqueeze(-1)
    torch.testing.assert_close(seen[0].scores, product)
    assert losses == Criterion(assign_atss, criterion.quality, criterion.box_repr)(
        output, oracles.pad_targets(boxes, labels), sizes
    )


def test_scores_are_computed_for_an_assigner_that_asks_only(monkeypatch):
    output, boxes, labels, sizes = batch_of("none", "general")
    asked = []
    monkeypatch.setattr(SeparateQuality, "scores", lambda self, output: asked.append(1) or output.cls_logits.sigmoid())
    for assigner in (assign_atss, assign_tal):
        criterion_of("none", "general", assigner)(output, oracles.pad_targets(boxes, labels), sizes)
        assert len(asked) == (assigner is assign_tal)


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", QUALITIES)
@EACH_ASSIGNER
def test_what_fills_padded_slots_does_not_matter(assigner, quality):
    output, boxes, labels, sizes = batch_of(quality, "general", seed=1)
    criterion, leaves = criterion_of(quality, "general", assigner), [leaf for leaf in output[:3] if leaf is not None]
    targets, results = oracles.pad_targets(boxes, labels, num_slots=11), []
    for filler in (0.0, torch.nan):
        filled = targets._replace(
            boxes_xyxy=targets.boxes_xyxy.masked_fill(~targets.valid.unsqueeze(-1), filler),
            labels=targets.labels.masked_fill(~targets.valid, 4),
        )
        losses = criterion(criterion.quality(output), filled, sizes)
        results.append((losses, torch.autograd.grad(sum(losses.values()), leaves)))
    assert results[0][0] == results[1][0]
    assert results[0][0]["box"] > 0
    assert all(map(torch.equal, results[0][1], results[1][1]))


@pytest.mark.parametrize("canvas", [(96, 192), (256, 320)])
def test_padding_an_image_further_changes_nothing(canvas):
    """The same raw outputs at the points of the image, any others elsewhere: the same losses and gradients."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor([[90, 125]])  # 96 x 128 alone
    targets = oracles.pad_targets([oracles.random_boxes(5, 90, 125, generator)], [torch.arange(5)])
    alone = random_output(oracles.grid_of(96, 128), 1, 5, generator)
    padded = random_output(oracles.grid_of(*canvas), 1, 5, generator)
    shared = points_in_images(padded.grid, sizes)
    padded.cls_logits[shared], padded.reg_pred[shared] = alone.cls_logits[0], alone.reg_pred[0]
    losses, gradients = losses_and_gradients(make_criterion(), alone, targets, sizes)
    losses_padded, gradients_padded = losses_and_gradients(make_criterion(), padded, targets, sizes)
    assert losses["box"] > 0
    assert losses_padded == pytest.approx(losses, rel=1e-6)
    for gradient, gradient_padded in zip(gradients, gradients_padded, strict=True):
        torch.testing.assert_close(gradient_padded[shared], gradient[0])
        assert (gradient_padded[~shared] == 0).all()


def test_extreme_outputs_give_finite_losses_and_gradients():
    output, boxes, labels, sizes = random_batch(2)
    output = output._replace(cls_logits=output.cls_logits * 500, reg_pred=output.reg_pred * 500)
    losses, gradients = losses_and_gradients(make_criterion(), output, oracles.pad_targets(boxes, labels), sizes)
    assert all(np.isfinite(loss) for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients)


# --- many processes ---------------------------------------------------------------------------------------------------


def split(output, targets, sizes):
    """The batch of `random_batch` as two: its crowded image, and the other two."""
    for images in (slice(0, 1), slice(1, 3)):
        part = output._replace(cls_logits=output.cls_logits[images], reg_pred=output.reg_pred[images])
        yield part, Targets(*(column[images] for column in targets[:3])), sizes[images]


@pytest.mark.parametrize("shift", [0, -9], ids=["usual scores", "weights that sum to less than 1"])
def test_the_mean_over_two_processes_is_the_loss_of_the_joint_batch(monkeypatch, shift):
    """Gradient averaging relies on it, although the processes have different numbers of positives."""
    output, boxes, labels, sizes = random_batch(0)
    output = output._replace(cls_logits=output.cls_logits + shift)
    targets = oracles.pad_targets(boxes, labels)
    joint = make_criterion()(output, targets, sizes)

    own = []
    monkeypatch.setattr(gfl.method.criterion, "world_size", lambda: 2)
    monkeypatch.setattr(gfl.method.criterion, "mean_over_processes", lambda tensor: own.append(tensor) or tensor)
    for part in split(output, targets, sizes):
        make_criterion()(*part)
    assert [tensor.shape for tensor in own] == [(2,), (2,)]  # one all-reduce of both normalisers per process

    monkeypatch.setattr(gfl.method.criterion, "mean_over_processes", lambda _: (own[0] + own[1]) / 2)
    parts = [make_criterion()(*part) for part in split(output, targets, sizes)]
    for name, loss in joint.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, loss)


def test_a_process_without_boxes_contributes_one_positive_per_image_and_no_weight(monkeypatch):
    """The mean over the processes is clamped, not its terms."""
    output, _, _, sizes = random_batch(0)
    sent = []
    monkeypatch.setattr(gfl.method.criterion, "mean_over_processes", lambda tensor: sent.append(tensor) or tensor)
    make_criterion()(output, oracles.pad_targets([NO_BOXES] * 3, [NO_LABELS] * 3), sizes)
    assert sent[0].tolist() == [3, 0]


# --- the graph --------------------------------------------------------------------------------------------------------


def test_compiles_to_one_graph_without_waiting_for_the_device():
    """`fullgraph` refuses `.item()`, `nonzero` and every branch on data."""
    output, boxes, labels, sizes = random_batch(0)
    targets = oracles.pad_targets(boxes, labels)
    losses, gradients = losses_and_gradients(make_criterion(), output, targets, sizes)
    compiled = torch.compile(make_criterion(), fullgraph=True, backend="eager")
    losses_compiled, gradients_compiled = losses_and_gradients(compiled, output, targets, sizes)
    assert losses_compiled == pytest.approx(losses, rel=1e-6)
    for ours, theirs in zip(gradients_compiled, gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_runs_forward_and_backward_on_tensors_without_data():
    """On the meta device there are no values to wait for."""
    output, boxes, labels, sizes = random_batch(0)
    to_meta = partial(torch.Tensor.to, device="meta")
    grid = output.grid._replace(points=to_meta(output.grid.points), strides=to_meta(output.grid.strides))
    leaves = [to_meta(leaf).requires_grad_() for leaf in output[:2]]
    targets = Targets(*map(to_meta, oracles.pad_targets(boxes, labels)[:3]))
    losses = make_criterion().to("meta")(HeadOutput(*leaves, None, grid), targets, to_meta(sizes))
    sum(losses.values()).backward()
    assert leaves[1].grad.shape == output.reg_pred.shape


@EACH_ASSIGNER
def test_points_in_an_ignored_region_learn_nothing_unless_they_learn_an_object(assigner):
    output, boxes, labels, sizes = random_batch(3)
    region = torch.tensor([30.0, 20.0, 100.0, 90.0])
    plain = oracles.pad_targets(boxes, labels)
    with_region = oracles.pad_targets(
        [torch.cat([b, region[None]]) for b in boxes], [torch.cat([n, n.new_zeros(1)]) for n in labels]
    )
    last = torch.zeros_like(with_region.valid)
    last[torch.arange(3), torch.tensor([len(n) for n in labels])] = True
    masked = with_region._replace(valid=with_region.valid & ~last, ignored=last)
    criterion = criterion_of("joint", "general", assigner)
    expected, (before, _) = losses_and_gradients(criterion, output, plain, sizes)
    losses, (after, _) = losses_and_gradients(criterion, output, masked, sizes)
    in_image = points_in_images(output.grid, sizes)
    positive = assigner(output.grid, plain, in_image, partial(predictions, output)).positive
    points = output.grid.points
    within = ((points > region[:2]) & (points < region[2:])).all(dim=-1) & ~positive
    assert (before[within & in_image] != 0).any()
    assert (after[within] == 0).all()
    torch.testing.assert_close(after[~within], before[~within], rtol=0, atol=0)
    assert losses["box"] == expected["box"]
