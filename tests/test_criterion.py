"""The losses against the golden figures and the slow oracle, and what they must not depend on."""

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

import gfl.method.criterion
from gfl.build import (
    ASSIGNERS,
    BOX_REPRESENTATIONS,
    QUALITIES,
    build_box_representation,
    build_criterion,
    build_detector,
    build_quality,
)
from gfl.config import AssignConfig, HeadConfig, config_from_dict
from gfl.method.assign import assign_atss, assign_max_iou
from gfl.method.box_representation import GeneralBox
from gfl.method.boxes import clip_boxes, distances_to_boxes
from gfl.method.criterion import Criterion
from gfl.method.points import make_point_grid, points_in_images
from gfl.method.postprocess import select_detections
from gfl.method.quality import DistributionGuidedQuality, JointQuality
from gfl.model.head import GFLHead
from gfl.structures import HeadOutput, Targets

LOSSES = ("cls", "box", "dfl")
GOLDEN_SCALE = 1.25  # by which the golden images had been resized
NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def make_criterion(*, delta=1.0, beta=2.0, quality=JointQuality, **weights):
    return Criterion(assign_atss, quality(beta=beta), GeneralBox(delta=delta), **weights)


def random_output(grid, batch, num_classes, generator):
    return HeadOutput(
        torch.randn(batch, len(grid.points), num_classes, generator=generator) - 1,
        torch.randn(batch, len(grid.points), 4, 17, generator=generator) * 2,
        None,
        grid,
    )


def random_batch(seed, *, canvas=(128, 160), num_classes=5):
    """Output, boxes, labels and sizes of three images: crowded, empty, and small with one box."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(120, 160), (128, 100), (64, 70)]
    boxes = [oracles.random_boxes(n, *size, generator) for n, size in zip((8, 0, 1), sizes, strict=True)]
    labels = [torch.randint(num_classes, (len(image_boxes),), generator=generator) for image_boxes in boxes]
    grid = make_point_grid(oracles.feature_sizes(*canvas), oracles.STRIDES)
    return random_output(grid, 3, num_classes, generator), boxes, labels, torch.tensor(sizes)


def with_gradient(output):
    return output._replace(
        cls_logits=output.cls_logits.clone().requires_grad_(), reg_pred=output.reg_pred.clone().requires_grad_()
    )


def losses_and_gradients(criterion, output, targets, sizes):
    output = with_gradient(output)
    losses = criterion(output, targets, sizes)
    gradients = torch.autograd.grad(sum(losses.values()), (output.cls_logits, output.reg_pred))
    return {name: loss.item() for name, loss in losses.items()}, gradients


# --- golden -----------------------------------------------------------------------------------------------------------


def read_golden(name):
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


@pytest.fixture(scope="module")
def golden():
    return read_golden("head_gfl")


@pytest.fixture(scope="module")
def golden_v2():
    """Of GFLv2's head, whose class outputs are probabilities."""
    return read_golden("head_gflv2")


def golden_levels(golden, name):
    """The reference's maps (B, channels, h, w) of all levels as (B, P, channels)."""
    return torch.cat([golden[f"{name}_{level}"].flatten(2).mT for level in range(5)], dim=1)


def golden_output(golden):
    sizes = [tuple(golden[f"cls_{level}"].shape[-2:]) for level in range(5)]
    grid = make_point_grid(sizes, oracles.STRIDES)
    reg_pred = golden_levels(golden, "reg").unflatten(-1, (4, 17))
    return HeadOutput(golden_levels(golden, "cls"), reg_pred, None, grid)


def golden_targets(golden):
    boxes, labels = ([golden[f"{name}_{image}"] for image in range(3)] for name in ("boxes", "labels"))
    return oracles.pad_targets(boxes, labels)


def no_targets():
    return oracles.pad_targets([NO_BOXES] * 3, [NO_LABELS] * 3)


def assert_golden(losses, gradients, golden):
    for name, theirs in zip(LOSSES, ("loss_cls", "loss_bbox", "loss_dfl"), strict=True):
        assert losses[name] == pytest.approx(golden[theirs].sum().item(), rel=1e-5)
    cls_gradient, reg_gradient = golden_levels(golden, "cls_grad"), golden_levels(golden, "reg_grad")
    for ours, theirs in zip(gradients, (cls_gradient, reg_gradient.unflatten(-1, (4, 17))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * theirs.abs().max().item())


def assert_golden_without_boxes(losses, gradients, golden):
    assert losses["cls"] == pytest.approx(golden["empty_loss_cls"].sum().item(), rel=1e-5)
    assert (losses["box"], losses["dfl"]) == (0, 0)
    assert (gradients[1] == 0).all()


def test_losses_and_gradients_equal_the_golden_ones(golden):
    assert_golden(
        *losses_and_gradients(make_criterion(), golden_output(golden), golden_targets(golden), golden["image_hw"]),
        golden,
    )


def test_losses_without_boxes_equal_the_golden_ones(golden):
    assert_golden_without_boxes(
        *losses_and_gradients(make_criterion(), golden_output(golden), no_targets(), golden["image_hw"]), golden
    )


def as_joint_logits(output):
    """The golden probabilities of v2 as logits of one score."""
    return output._replace(cls_logits=output.cls_logits.logit())


def as_product(output):
    """The golden probabilities of v2 as products: of a quality above all of a point's, and what is left to classes."""
    quality = output.cls_logits.detach().amax(dim=-1, keepdim=True).sqrt()
    class_logits = (output.cls_logits / quality).logit()
    return output._replace(cls_logits=class_logits, quality_logits=quality.squeeze(-1).logit())


V2_OUTPUTS = pytest.mark.parametrize(
    ("quality", "as_logits"), [(JointQuality, as_joint_logits), (DistributionGuidedQuality, as_product)]
)


def losses_and_gradients_of_probabilities(quality, as_logits, golden, targets):
    """As `losses_and_gradients`; the class gradient is with respect to the probabilities."""
    leaves = with_gradient(golden_output(golden))
    losses = make_criterion(quality=quality)(as_logits(leaves), targets, golden["image_hw"])
    gradients = torch.autograd.grad(sum(losses.values()), (leaves.cls_logits, leaves.reg_pred))
    return {name: loss.item() for name, loss in losses.items()}, gradients


@V2_OUTPUTS
def test_all_of_v2_but_a_second_sigmoid_in_the_box_weights_equals_the_golden_figures(golden_v2, quality, as_logits):
    """The golden code weights boxes by the sigmoid of the product, as if that were still a logit.

    GFLv2's box weights are the product itself (its code, and every description of it), and so are ours.
    """

    class SecondSigmoid(quality):
        def scores(self, output):
            return super().scores(output).sigmoid()

    assert_golden(
        *losses_and_gradients_of_probabilities(SecondSigmoid, as_logits, golden_v2, golden_targets(golden_v2)),
        golden_v2,
    )


@V2_OUTPUTS
def test_losses_without_boxes_equal_the_golden_ones_of_v2(golden_v2, quality, as_logits):
    assert_golden_without_boxes(
        *losses_and_gradients_of_probabilities(quality, as_logits, golden_v2, no_targets()), golden_v2
    )


@V2_OUTPUTS
def test_scores_are_the_golden_ones_of_v2(golden_v2, quality, as_logits):
    output = golden_output(golden_v2)
    torch.testing.assert_close(quality().scores(as_logits(output)), output.cls_logits, rtol=1e-5, atol=0)


def test_detections_equal_the_golden_ones_of_v2(golden_v2):
    output = golden_output(golden_v2)
    distances = GeneralBox().distances(output.reg_pred) * output.grid.strides[:, None]
    boxes = clip_boxes(distances_to_boxes(output.grid.points, distances), golden_v2["image_hw"])
    detections = select_detections(boxes, output.cls_logits, output.grid.level_sizes)
    for image in range(3):
        theirs = [golden_v2[f"det_{kind}_{image}"] for kind in ("scores", "labels", "boxes")]
        ours = [detections.scores[image], detections.labels[image], detections.boxes_xyxy[image] / GOLDEN_SCALE]
        # Two have the very same score, and their order is nobody's promise.
        theirs, ours = ([column[np.lexsort((side[1], -side[0]))] for column in side] for side in (theirs, ours))
        assert ours[1].equal(theirs[1])
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(ours[2], theirs[2], rtol=1e-5, atol=1e-3)


# --- the slow oracle --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"delta": 0.5}, {"beta": 1.0}], ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_losses_are_the_oracle_s_sums_over_their_normalisers(seed, options):
    output, boxes, labels, sizes = random_batch(seed)
    losses = make_criterion(**options)(output, oracles.pad_targets(boxes, labels), sizes)
    images = [
        oracles.image_loss(*outputs, output.grid, *truth, **options)
        for outputs, truth in zip(
            zip(output.cls_logits, output.reg_pred, strict=True), zip(boxes, labels, sizes, strict=True), strict=True
        )
    ]
    num_positive = sum(max(image.num_positive, 1) for image in images)
    sum_weight = sum(image.sum_weight for image in images)
    assert sum_weight > 1
    assert losses["cls"].item() == pytest.approx(sum(image.cls for image in images) / num_positive, rel=1e-5)
    assert losses["box"].item() == pytest.approx(2 * sum(image.box for image in images) / sum_weight, rel=1e-5)
    assert losses["dfl"].item() == pytest.approx(0.25 * sum(image.dfl for image in images) / sum_weight, rel=1e-5)


def test_the_sum_of_weights_counts_as_at_least_1():
    output, boxes, labels, sizes = random_batch(0)
    output = output._replace(cls_logits=output.cls_logits - 9)
    images = [
        oracles.image_loss(cls_logits, reg_pred, output.grid, *truth)
        for cls_logits, reg_pred, *truth in zip(output.cls_logits, output.reg_pred, boxes, labels, sizes, strict=True)
    ]
    assert sum(image.sum_weight for image in images) < 0.5
    losses = make_criterion()(output, oracles.pad_targets(boxes, labels), sizes)
    assert losses["box"].item() == pytest.approx(2 * sum(image.box for image in images), rel=1e-5)


def test_loss_weights_scale_their_loss():
    output, boxes, labels, sizes = random_batch(0)
    targets = oracles.pad_targets(boxes, labels)
    plain = make_criterion(cls_weight=1.0, box_weight=1.0, dfl_weight=1.0)(output, targets, sizes)
    weighted = make_criterion(cls_weight=3.0, box_weight=5.0, dfl_weight=0.5)(output, targets, sizes)
    for name, factor in zip(LOSSES, (3.0, 5.0, 0.5), strict=True):
        torch.testing.assert_close(weighted[name], factor * plain[name])


# --- other rows and representations -----------------------------------------------------------------------------------

BRANCHES = ("centerness_branch", "iou_branch")
WITHOUT_DGQP = list(itertools.product([name for name in QUALITIES if name != "dgqp"], BOX_REPRESENTATIONS))
LEGAL = [*WITHOUT_DGQP, ("dgqp", "general")]
COMBINATIONS = pytest.mark.parametrize(("quality", "box"), LEGAL)


def loss_names(quality, box):
    own = {"general": ["dfl"], "gaussian": ["nll"]}.get(box, [])
    return ["cls", "box", *own, *(["quality"] if quality in BRANCHES else [])]


def criterion_of(quality, box, assigner=assign_atss, *, decode="expectation", **weights):
    head = HeadConfig(quality=quality, box=box)
    return Criterion(assigner, build_quality(head, beta=2.0), build_box_representation(head, decode=decode), **weights)


def batch_of(quality, box, seed=0):
    """As `random_batch`, with the outputs of a row and a representation, all of which want gradients."""
    output, boxes, labels, sizes = random_batch(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    num_outputs = build_box_representation(HeadConfig(box=box)).num_outputs
    reg_pred = torch.randn(*output.reg_pred.shape[:3], num_outputs, generator=generator)
    # Deltas so large that some points lie outside their predicted boxes; of the others, most distances positive.
    reg_pred = reg_pred * 5 if box == "anchor_delta" else reg_pred + 1
    branch = torch.randn(output.cls_logits.shape[:2], generator=generator) if quality in BRANCHES else None
    output = with_gradient(output._replace(reg_pred=reg_pred))
    return output._replace(quality_logits=None if branch is None else branch.requires_grad_()), boxes, labels, sizes


@pytest.mark.parametrize(("quality", "box"), WITHOUT_DGQP)
def test_every_row_with_every_representation_equals_the_slow_oracle(quality, box):
    output, boxes, labels, sizes = batch_of(quality, box)
    losses = criterion_of(quality, box)(output, oracles.pad_targets(boxes, labels), sizes)
    expected = oracles.batch_losses(output, boxes, labels, sizes, quality=quality, box=box)
    assert list(losses) == loss_names(quality, box)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) > 0


def head_and_criterion(quality, box):
    """A small head with random weights, as `build_detector` puts it together, and its criterion."""
    model = {"head": {"quality": quality, "box": box, "reg_max": 8}}
    config = config_from_dict({"model": model}, "test")
    row = build_quality(config.model.head, beta=2.0)
    box_repr = build_box_representation(config.model.head)
    torch.manual_seed(0)
    head = GFLHead(
        5,
        box_repr.num_outputs,
        strides=oracles.STRIDES,
        in_channels=32,
        channels=64,
        num_convs=1,
        conv_bias=True,
        quality_branch=row.has_branch,
    )
    for parameter in (*head.parameters(), *row.parameters()):
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return head, build_criterion(config, row, box_repr)


def losses_of_head(head, criterion, boxes, labels):
    generator = torch.Generator().manual_seed(1)
    features = [torch.randn(2, 32, *size, generator=generator) for size in oracles.feature_sizes(96, 96)]
    losses = criterion(
        criterion.quality(head(features)), oracles.pad_targets(boxes, labels), torch.tensor([[96, 96], [80, 70]])
    )
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}


def gradients(*modules):
    """By name; a parameter without one is missing."""
    pairs = itertools.chain(*(module.named_parameters() for module in modules))
    return {name: parameter.grad for name, parameter in pairs if parameter.grad is not None}


@COMBINATIONS
def test_every_parameter_of_every_combination_learns(quality, box):
    """The second image has no boxes."""
    head, criterion = head_and_criterion(quality, box)
    boxes = [torch.tensor([[10.0, 12.0, 60.0, 70.0], [4.0, 30.0, 30.0, 90.0], [0.0, 0.0, 96.0, 96.0]]), NO_BOXES]
    losses = losses_of_head(head, criterion, boxes, [torch.tensor([0, 3, 4]), NO_LABELS])
    assert list(losses) == loss_names(quality, box)
    assert all(np.isfinite(loss) and loss != 0 for loss in losses.values())
    found = gradients(head, criterion.quality)
    assert len(found) == len([*head.parameters(), *criterion.quality.parameters()])
    for name, gradient in found.items():
        assert gradient.isfinite().all(), name
        assert (gradient != 0).any(), name


@COMBINATIONS
def test_every_parameter_of_every_combination_gets_a_gradient_without_boxes(quality, box):
    """Otherwise gradient averaging would wait forever for a process whose images are all empty."""
    head, criterion = head_and_criterion(quality, box)
    losses = losses_of_head(head, criterion, [NO_BOXES] * 2, [NO_LABELS] * 2)
    assert list(losses) == loss_names(quality, box)
    assert losses.pop("cls") > 0
    assert set(losses.values()) == {0}
    found = gradients(head, criterion.quality)
    assert len(found) == len([*head.parameters(), *criterion.quality.parameters()])
    assert all(gradient.isfinite().all() for gradient in found.values())


@COMBINATIONS
def test_classes_boxes_and_branch_learn_from_their_own_losses_alone(quality, box):
    """The measure and the box weights are constants to the gradient; training never sees the product with a branch."""
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
    expected |= {("quality", "quality")} if quality in BRANCHES else set()
    expected |= {("cls", "reg")} if quality == "dgqp" else set()  # through the predictor, not the measure
    assert reached == expected


@pytest.mark.parametrize("quality", QUALITIES)
def test_points_that_are_neither_positive_nor_background_learn_nothing(quality):
    output, boxes, labels, sizes = batch_of(quality, "general")
    criterion, targets = criterion_of(quality, "general", assign_max_iou), oracles.pad_targets(boxes, labels)
    index = assign_max_iou(output.grid, targets, points_in_images(output.grid, sizes)).index
    leaves = [leaf for leaf in (output.cls_logits, output.reg_pred, output.quality_logits) if leaf is not None]
    losses = criterion(criterion.quality(output), targets, sizes)
    assert (index == -2).any()
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    for gradient in gradients:
        assert (gradient[index == -2] == 0).all()
        assert (gradient[index >= 0] != 0).any()
    assert (gradients[0][index == -1] != 0).any()  # the background teaches its classes


@pytest.mark.parametrize("box", ["general", "gaussian"])
def test_the_weights_scale_the_representation_s_own_loss_and_the_branch_s(box):
    output, boxes, labels, sizes = batch_of("iou_branch", box)
    targets = oracles.pad_targets(boxes, labels)
    plain = criterion_of("iou_branch", box, dfl_weight=1.0)(output, targets, sizes)
    weighted = criterion_of("iou_branch", box, dfl_weight=0.5, quality_weight=3.0)(output, targets, sizes)
    for name, factor in zip(plain, (1.0, 1.0, 0.5, 3.0), strict=True):
        torch.testing.assert_close(weighted[name], factor * plain[name])


def test_how_boxes_are_decoded_in_evaluation_does_not_matter_to_training():
    output, boxes, labels, sizes = random_batch(0)
    targets = oracles.pad_targets(boxes, labels)
    expected = criterion_of("joint", "general")(output, targets, sizes)
    assert criterion_of("joint", "general", decode="peak")(output, targets, sizes) == expected


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("kind", ["fcos", "fovea", "max_iou"])
def test_no_row_or_assigner_lets_padded_slots_into_the_losses(kind, quality):
    output, boxes, labels, sizes = batch_of(quality, "general", seed=1)
    targets = oracles.pad_targets(boxes, labels, num_slots=11)
    filled = targets._replace(boxes_xyxy=targets.boxes_xyxy.masked_fill(~targets.valid.unsqueeze(-1), torch.nan))
    criterion = criterion_of(quality, "general", ASSIGNERS[kind](AssignConfig()))
    leaves = [leaf for leaf in output[:3] if leaf is not None]
    before, after = (criterion(criterion.quality(output), truth, sizes) for truth in (targets, filled))
    assert before == after
    assert before["box"] > 0
    gradient = torch.autograd.grad(sum(after.values()), leaves)
    assert all(map(torch.equal, gradient, torch.autograd.grad(sum(before.values()), leaves)))


# --- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [(96, 192), (128, 160), (256, 320)])
def test_padding_an_image_further_changes_nothing(canvas):
    """The same raw outputs at the points of the image, any others elsewhere: the same losses and gradients."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.tensor([[90, 125]])  # 96 x 128 alone
    targets = oracles.pad_targets([oracles.random_boxes(5, 90, 125, generator)], [torch.arange(5)])
    alone = random_output(make_point_grid(oracles.feature_sizes(96, 128), oracles.STRIDES), 1, 5, generator)
    padded = random_output(make_point_grid(oracles.feature_sizes(*canvas), oracles.STRIDES), 1, 5, generator)
    shared = points_in_images(padded.grid, sizes)
    padded.cls_logits[shared], padded.reg_pred[shared] = alone.cls_logits[0], alone.reg_pred[0]

    losses, gradients = losses_and_gradients(make_criterion(), alone, targets, sizes)
    losses_padded, gradients_padded = losses_and_gradients(make_criterion(), padded, targets, sizes)
    assert losses["box"] > 0
    assert losses_padded == pytest.approx(losses, rel=1e-6)
    for gradient, gradient_padded in zip(gradients, gradients_padded, strict=True):
        torch.testing.assert_close(gradient_padded[shared], gradient[0])
        assert (gradient_padded[~shared] == 0).all()


@pytest.mark.parametrize("filler", [0.0, float("nan"), float("inf"), 1e30])
def test_what_fills_the_padded_slots_does_not_matter(filler):
    output, boxes, labels, sizes = random_batch(1)
    targets = oracles.pad_targets(boxes, labels, num_slots=11)
    expected = losses_and_gradients(make_criterion(), output, targets, sizes)
    filled = targets._replace(
        boxes_xyxy=targets.boxes_xyxy.masked_fill(~targets.valid.unsqueeze(-1), filler),
        labels=targets.labels.masked_fill(~targets.valid, 4),
    )
    losses, gradients = losses_and_gradients(make_criterion(), output, filled, sizes)
    assert losses == expected[0]
    assert all(map(torch.equal, gradients, expected[1]))


def test_extreme_outputs_give_finite_losses_and_gradients():
    output, boxes, labels, sizes = random_batch(2)
    output = output._replace(cls_logits=output.cls_logits * 500, reg_pred=output.reg_pred * 500)
    losses, gradients = losses_and_gradients(make_criterion(), output, oracles.pad_targets(boxes, labels), sizes)
    assert all(np.isfinite(loss) for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_half_precision_outputs_give_float32_losses():
    output, boxes, labels, sizes = random_batch(2)
    half = output._replace(cls_logits=output.cls_logits.bfloat16(), reg_pred=output.reg_pred.bfloat16())
    same = half._replace(cls_logits=half.cls_logits.float(), reg_pred=half.reg_pred.float())
    targets = oracles.pad_targets(boxes, labels)
    expected = make_criterion()(same, targets, sizes)
    for name, loss in make_criterion()(half, targets, sizes).items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name])


# --- many processes ---------------------------------------------------------------------------------------------------


def split(output, targets, sizes):
    """The batch of `random_batch` as two: its crowded image, and the other two."""
    for images in (slice(0, 1), slice(1, 3)):
        part = output._replace(cls_logits=output.cls_logits[images], reg_pred=output.reg_pred[images])
        yield part, Targets(*(column[images] for column in targets)), sizes[images]


@pytest.mark.parametrize("shift", [0, -9], ids=["usual scores", "weights that sum to less than 1"])
def test_the_mean_over_two_processes_is_the_loss_of_the_joint_batch(monkeypatch, shift):
    """What gradient averaging relies on, although the processes have different numbers of positives."""
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
    for name in LOSSES:
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, joint[name])


def test_normalisers_are_clamped_after_the_mean_over_processes(monkeypatch):
    """A process without boxes must not lift the mean: its weights count 0, not 1."""
    output, _, _, sizes = random_batch(0)
    seen = []
    monkeypatch.setattr(gfl.method.criterion, "mean_over_processes", lambda tensor: seen.append(tensor) or tensor)
    make_criterion()(output, oracles.pad_targets([NO_BOXES] * 3, [NO_LABELS] * 3), sizes)
    assert seen[0].tolist() == [3, 0]  # an image counts as one positive at least


# --- the graph --------------------------------------------------------------------------------------------------------


def test_compiles_to_one_graph_without_asking_the_device():
    """`fullgraph` refuses `.item()`, `nonzero` and every branch on data."""
    output, boxes, labels, sizes = random_batch(0)
    targets = oracles.pad_targets(boxes, labels)
    expected = losses_and_gradients(make_criterion(), output, targets, sizes)
    compiled = torch.compile(make_criterion(), fullgraph=True, backend="eager")
    losses, gradients = losses_and_gradients(compiled, output, targets, sizes)
    assert losses == pytest.approx(expected[0], rel=1e-6)
    for ours, theirs in zip(gradients, expected[1], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_runs_forward_and_backward_on_tensors_without_data():
    """Nothing may wait for a value on the device: on the meta device there is none."""
    output, boxes, labels, sizes = random_batch(0)
    to_meta = partial(torch.Tensor.to, device="meta")
    grid = output.grid._replace(points=to_meta(output.grid.points), strides=to_meta(output.grid.strides))
    output = HeadOutput(
        to_meta(output.cls_logits).requires_grad_(), to_meta(output.reg_pred).requires_grad_(), None, grid
    )
    targets = Targets(*map(to_meta, oracles.pad_targets(boxes, labels)))
    losses = make_criterion().to("meta")(output, targets, to_meta(sizes))
    sum(losses.values()).backward()
    assert output.reg_pred.grad.shape == output.reg_pred.shape


def test_without_boxes_every_parameter_still_gets_a_gradient():
    """Otherwise gradient averaging would wait forever for a process whose images are all empty."""
    config = config_from_dict(
        {
            "model": {
                "backbone": {"name": "resnet18", "weights": "none", "frozen_stages": -1},
                "fpn": {"channels": 64},
                "head": {"channels": 64, "num_convs": 1},
            }
        },
        "test",
    )
    model = build_detector(config, 3).train()
    criterion = build_criterion(config, model.quality, model.box_repr)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    targets = oracles.pad_targets([NO_BOXES] * 2, [NO_LABELS] * 2)
    losses = criterion(model(images), targets, torch.tensor([[64, 96], [50, 60]]))
    assert losses["cls"].isfinite()
    assert losses["cls"] > 0
    assert (losses["box"].item(), losses["dfl"].item()) == (0, 0)
    sum(losses.values()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_build_takes_its_numbers_from_the_config():
    tree = {
        "assign": {"topk": 5, "anchor_scale": 4.0},
        "loss": {"cls_weight": 3.0, "box_weight": 4.0, "dfl_weight": 5.0, "quality_weight": 6.0},
    }
    quality, box_repr = JointQuality(), GeneralBox()
    criterion = build_criterion(config_from_dict(tree, "test"), quality, box_repr)
    assert (criterion.cls_weight, criterion.box_weight, criterion.dfl_weight) == (3, 4, 5)
    assert criterion.quality_weight == 6
    output, boxes, labels, sizes = random_batch(0)
    expected = make_criterion(cls_weight=3.0, box_weight=4.0, dfl_weight=5.0)
    expected.assigner = partial(assign_atss, topk=5, anchor_scale=4.0)
    targets = oracles.pad_targets(boxes, labels)
    assert criterion(output, targets, sizes) == expected(output, targets, sizes)
