"""What the class logits learn, and how they become scores: the paper's row and those it compares with."""

import itertools
from functools import partial

import oracles
import pytest
import torch

from gfl.method.boxes import centerness
from gfl.method.losses import quality_focal_loss, varifocal_loss
from gfl.method.points import PointLayout, make_point_grid
from gfl.method.quality import DistributionGuidedQuality, JointQuality, SeparateQuality, VarifocalQuality
from gfl.structures import HeadOutput

SEPARATE = {
    "none": SeparateQuality(),
    "centerness_branch": SeparateQuality(by="centerness"),
    "iou_branch": SeparateQuality(by="iou"),
    "centerness_guided": SeparateQuality(by="centerness", guide=True),
    "iou_guided": SeparateQuality(by="iou", guide=True),
    "iou_branch_negatives": SeparateQuality(by="iou", negatives=True),
}
JOINT = {"joint": JointQuality(), "dgqp": DistributionGuidedQuality(), "varifocal": VarifocalQuality()}
ROWS = SEPARATE | JOINT
EACH = pytest.mark.parametrize("name", ROWS)
GUIDED = pytest.mark.parametrize("name", ["centerness_guided", "iou_guided"])
BRANCHES = ("centerness_branch", "iou_branch", "iou_branch_negatives")


def random_output():
    """Outputs of two images of 6 points and 4 classes, with a branch."""
    generator = torch.Generator().manual_seed(3)
    logits, branch = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, generator=generator)
    grid = make_point_grid([(1, 6)], PointLayout((8,)))
    return HeadOutput(logits.requires_grad_(), torch.zeros(2, 6, 4, 17), branch.requires_grad_(), grid)


def targets():
    """Labels, positives and qualities of `random_output`'s points; the second image has one positive."""
    labels = torch.tensor([[2, 0, 3, 1, 1, 0], [1, 1, 0, 3, 2, 2]])
    positive = torch.tensor([[True, False, True, True, False, True], [False, True, False, False, False, False]])
    quality = torch.tensor([[0.9, 0.8, 0.25, 0.01, 0.5, 0.7], [0.3, 0.6, 1.0, 0.5, 0.2, 0.7]])
    return labels, positive, quality


def at_labels():
    """(2, 6, 4) bool, the label's class of positives."""
    labels, positive, _ = targets()
    return torch.zeros(2, 6, 4, dtype=torch.bool).scatter_(-1, labels.unsqueeze(-1), positive.unsqueeze(-1))


def trained_points(positive):
    """All points but the last of each image, unless positive."""
    return torch.arange(6).expand(2, 6).lt(5) | positive


def class_loss(row, output, labels, positive, quality):
    return row.class_loss(output, labels, positive, trained_points(positive), quality)


def branch_loss(row, output, positive, quality):
    return row.branch_loss(output, positive, trained_points(positive), quality)


def class_gradient(row, output, labels, positive, quality):
    return torch.autograd.grad(class_loss(row, output, labels, positive, quality), output.cls_logits)[0]


# --- the joint rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "elementwise"),
    [
        *((JointQuality(beta=beta), partial(quality_focal_loss, beta=beta)) for beta in (0.0, 2.0, 4.0)),
        (VarifocalQuality(), varifocal_loss),
    ],
    ids=["beta 0", "beta 2", "beta 4", "varifocal"],
)
def test_a_positive_learns_its_quality_at_its_class_and_0_elsewhere(row, elementwise):
    output, (labels, positive, quality) = random_output(), targets()
    target = torch.zeros(2, 6, 4)
    for image, point in positive.nonzero().tolist():
        target[image, point, labels[image, point]] = quality[image, point]
    expected = elementwise(output.cls_logits, target)
    expected = expected.sum() - expected[1, 5].sum()  # the only point that is not trained
    torch.testing.assert_close(class_loss(row, output, labels, positive, quality), expected)
    gradient = class_gradient(row, output, labels, positive, quality)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, output.cls_logits)[0])


@EACH
def test_labels_of_background_do_not_matter(name):
    output, (_, _, quality) = random_output(), targets()
    positive = torch.zeros(2, 6, dtype=torch.bool)
    losses = [class_loss(ROWS[name], output, torch.full((2, 6), label), positive, quality) for label in (0, 3)]
    assert losses[0].equal(losses[1])


@EACH
def test_scores_are_float32_products_of_sigmoids_and_only_a_branch_is_a_rank_factor(name):
    half = random_output()
    half = half._replace(cls_logits=half.cls_logits.bfloat16(), quality_logits=half.quality_logits.bfloat16())
    classes, branch = half.cls_logits.float().sigmoid(), half.quality_logits.float().sigmoid()
    scores, factor = ROWS[name].scores(half), ROWS[name].rank_factor(half)
    torch.testing.assert_close(scores, classes * branch.unsqueeze(-1) if name == "dgqp" else classes)
    assert (factor is not None) == (name in BRANCHES)
    assert factor is None or factor.equal(branch)


# --- the rows that the paper compares with ----------------------------------------------------------------------------


@EACH
def test_each_row_measures_boxes_by_what_its_name_says(name):
    iou, distances = torch.rand(2, 6), torch.rand(2, 6, 4) * 5
    expected = torch.ones(2, 6) if name == "none" else centerness(distances) if "centerness" in name else iou
    assert ROWS[name].quality_target(iou, distances).equal(expected)


@EACH
def test_box_weights_are_the_quality_and_for_joint_scores_the_best_one_detached(name):
    output, (_, _, quality) = random_output(), targets()
    weight = ROWS[name].box_weight(output, quality)
    expected = ROWS[name].scores(output).detach().amax(dim=-1) if name in JOINT else quality
    torch.testing.assert_close(weight, expected)
    assert not weight.requires_grad


@pytest.mark.parametrize("name", ["none", *BRANCHES])
def test_class_logits_learn_the_class_alone_with_the_focal_loss(name):
    output, (labels, positive, quality) = random_output(), targets()
    loss = class_loss(SEPARATE[name], output, labels, positive, quality)
    pairs = zip(output.cls_logits.flatten().tolist(), at_labels().flatten().tolist(), strict=True)
    expected = torch.tensor([oracles.focal(logit, is_target) for logit, is_target in pairs]).reshape(2, 6, 4)
    torch.testing.assert_close(loss, expected.sum() - expected[1, 5].sum())


@GUIDED
def test_a_guide_distributes_the_positive_loss_by_the_quality_and_keeps_its_sum(name):
    output, (labels, positive, quality) = random_output(), targets()
    rows = SEPARATE["none"], SEPARATE[name]
    plain, guided = (class_loss(row, output, labels, positive, quality) for row in rows)
    torch.testing.assert_close(guided, plain)
    # The weights are constants to the gradient, which shows them.
    plain, guided = (class_gradient(row, output, labels, positive, quality) for row in rows)
    share = guided[at_labels()] / plain[at_labels()] / quality[positive] ** 1.5
    torch.testing.assert_close(share, share[:1].expand(5))
    assert guided[~at_labels()].equal(plain[~at_labels()])


@GUIDED
@pytest.mark.parametrize(("num_positive", "quality"), [(0, 0.5), (2, 0.0)], ids=["no positive", "qualities of 0"])
def test_a_guide_without_anything_to_distribute_stays_finite(name, num_positive, quality):
    output, positive = random_output(), torch.zeros(2, 6, dtype=torch.bool)
    positive[0, :num_positive] = True
    arguments = output, targets()[0], positive, torch.full((2, 6), quality)
    assert class_loss(SEPARATE[name], *arguments).isfinite()
    assert class_gradient(SEPARATE[name], *arguments).isfinite().all()


@GUIDED
def test_a_guide_keeps_the_sum_of_small_losses_too(name):
    """Confident detectors: the sum of the positives' losses is far below 1."""
    output, (labels, positive, quality) = random_output(), targets()
    output = output._replace(cls_logits=torch.where(at_labels(), output.cls_logits + 2, -20))
    sums = [class_loss(SEPARATE[key], output, labels, positive, quality) for key in ("none", name)]
    assert sums[0] < 0.1
    torch.testing.assert_close(sums[1], sums[0])


@EACH
def test_only_a_branch_learns_the_quality_of_positives_and_with_negatives_0_of_the_background(name):
    output, (_, positive, quality) = random_output(), targets()
    loss = branch_loss(ROWS[name], output, positive, quality)
    assert (ROWS[name].branch_prior is not None) == (name in BRANCHES) == (loss is not None)
    if loss is None:
        return
    expected = 0.0
    for image, point in itertools.product(range(2), range(6)):
        logit = output.quality_logits[image, point].item()
        if positive[image, point]:
            expected += oracles.cross_entropy(logit, quality[image, point].item())
        elif name == "iou_branch_negatives" and point < 5:  # the last one is not trained
            expected += oracles.qfl(logit, 0.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", SEPARATE)
def test_class_loss_and_branch_do_not_learn_from_each_other(name):
    """Training never sees their product."""
    output, (labels, positive, quality) = random_output(), targets()
    loss = class_loss(SEPARATE[name], output, labels, positive, quality)
    assert torch.autograd.grad(loss, output.quality_logits, allow_unused=True)[0] is None
    loss = branch_loss(SEPARATE[name], output, positive, quality)
    if loss is not None:
        assert torch.autograd.grad(loss, output.cls_logits, allow_unused=True)[0] is None


@pytest.mark.parametrize("name", [name for name in ROWS if name != "dgqp"])
def test_rows_without_a_predictor_leave_the_outputs_as_they_are(name):
    output = random_output()
    assert ROWS[name](output) is output


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_give_the_losses_of_float32(name, dtype):
    output, (labels, positive, quality) = random_output(), targets()
    half = output._replace(cls_logits=output.cls_logits.to(dtype), quality_logits=output.quality_logits.to(dtype))
    full = half._replace(cls_logits=half.cls_logits.float(), quality_logits=half.quality_logits.float())
    for loss in (
        lambda x: class_loss(ROWS[name], x, labels, positive, quality),
        lambda x: branch_loss(ROWS[name], x, positive, quality),
    ):
        found, expected = loss(half), loss(full)
        assert (found is None) == (expected is None)
        assert found is None or found.equal(expected)
