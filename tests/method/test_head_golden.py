"""Losses, gradients, scores and detections of the reference's heads, GFL's and GFLv2's, from its raw outputs."""

import numpy as np
import oracles
import pytest
import torch
from dense_detections import select_detections
from reference import golden_levels, read_golden

from gfl.method.assign import assign_atss
from gfl.method.box_representation import GeneralBox
from gfl.method.boxes import clip_boxes, distances_to_boxes
from gfl.method.criterion import Criterion
from gfl.method.points import make_point_grid
from gfl.method.quality import DistributionGuidedQuality, JointQuality
from gfl.structures import HeadOutput

SCALE = 1.25  # by which the golden images had been resized


def golden_output(golden):
    """Leaves; the class outputs of GFLv2's head are probabilities."""
    grid = make_point_grid([tuple(golden[f"cls_{level}"].shape[-2:]) for level in range(5)], oracles.LAYOUT)
    reg_pred = golden_levels(golden, "reg").unflatten(-1, (4, 17))
    return HeadOutput(golden_levels(golden, "cls").requires_grad_(), reg_pred.requires_grad_(), None, grid)


def as_logits(output):
    return output


def as_joint_logits(output):
    """The golden probabilities of v2 as logits of one score."""
    return output._replace(cls_logits=output.cls_logits.logit())


def as_product(output):
    """The golden probabilities of v2 as products: a quality above all of a point's, and the rest for the classes."""
    quality = output.cls_logits.detach().amax(dim=-1, keepdim=True).sqrt()
    class_logits = (output.cls_logits / quality).logit()
    return output._replace(cls_logits=class_logits, quality_logits=quality.squeeze(-1).logit())


HEADS = pytest.mark.parametrize(
    ("name", "quality", "convert"),
    [
        ("head_gfl", JointQuality, as_logits),
        ("head_gflv2", JointQuality, as_joint_logits),
        ("head_gflv2", DistributionGuidedQuality, as_product),
    ],
)


def losses_and_gradients(golden, quality, convert, targets):
    """The gradient of classes is with respect to the golden outputs."""
    leaves = golden_output(golden)
    losses = Criterion(assign_atss, quality(), GeneralBox())(convert(leaves), targets, golden["image_hw"])
    gradients = torch.autograd.grad(sum(losses.values()), (leaves.cls_logits, leaves.reg_pred))
    return {name: loss.item() for name, loss in losses.items()}, gradients


@HEADS
def test_losses_and_gradients_equal_the_golden_ones(name, quality, convert):
    """Of GFLv2 with a second sigmoid in the box weights.

    The golden code weights boxes by the sigmoid of the product, as if that were still a logit. GFLv2's box weights are
    the product itself (its code, and every description of it), and so are ours.
    """

    class SecondSigmoid(quality):
        def scores(self, output):
            return super().scores(output).sigmoid()

    golden = read_golden(name)
    boxes, labels = ([golden[f"{kind}_{image}"] for image in range(3)] for kind in ("boxes", "labels"))
    row = quality if name == "head_gfl" else SecondSigmoid
    losses, gradients = losses_and_gradients(golden, row, convert, oracles.pad_targets(boxes, labels))
    for ours, theirs in (("cls", "loss_cls"), ("box", "loss_bbox"), ("dfl", "loss_dfl")):
        assert losses[ours] == pytest.approx(golden[theirs].sum().item(), rel=1e-5)
    expected = golden_levels(golden, "cls_grad"), golden_levels(golden, "reg_grad").unflatten(-1, (4, 17))
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6 * theirs.abs().max().item())


@HEADS
def test_losses_without_boxes_equal_the_golden_ones(name, quality, convert):
    golden = read_golden(name)
    targets = oracles.pad_targets([torch.zeros(0, 4)] * 3, [torch.zeros(0)] * 3)
    losses, gradients = losses_and_gradients(golden, quality, convert, targets)
    assert losses["cls"] == pytest.approx(golden["empty_loss_cls"].sum().item(), rel=1e-5)
    assert (losses["box"], losses["dfl"]) == (0, 0)
    assert (gradients[1] == 0).all()


@pytest.mark.parametrize(
    ("quality", "convert"), [(JointQuality, as_joint_logits), (DistributionGuidedQuality, as_product)]
)
def test_scores_are_the_golden_probabilities_of_v2(quality, convert):
    output = golden_output(read_golden("head_gflv2"))
    torch.testing.assert_close(quality().scores(convert(output)), output.cls_logits, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["head_gfl", "head_gflv2"])
def test_detections_equal_the_golden_ones(name):
    golden = read_golden(name)
    output = golden_output(golden)
    scores, grid = output.cls_logits.sigmoid() if name == "head_gfl" else output.cls_logits, output.grid
    distances = GeneralBox().decode(output.reg_pred) * grid.strides[:, None]
    boxes = clip_boxes(distances_to_boxes(grid.points, distances), golden["image_hw"])
    detections = select_detections(boxes.detach(), scores.detach(), grid.level_sizes)
    for image in range(3):
        theirs = [golden[f"det_{kind}_{image}"] for kind in ("scores", "labels", "boxes")]
        ours = [detections.scores[image], detections.labels[image], detections.boxes_xyxy[image] / SCALE]
        # Two of v2 have the very same score, and their order is undefined.
        theirs, ours = ([column[np.lexsort((side[1], -side[0]))] for column in side] for side in (theirs, ours))
        assert ours[1].equal(theirs[1])
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(ours[2], theirs[2], rtol=1e-5, atol=1e-3)
