"""What the class logits learn, and how they become scores."""

import oracles
import pytest
import torch
from torch import nn

from gfl.build import QUALITIES, build_quality
from gfl.common.errors import UserError
from gfl.config import DGQPConfig, HeadConfig
from gfl.method.boxes import centerness
from gfl.method.losses import quality_focal_loss
from gfl.method.points import make_point_grid
from gfl.method.quality import DistributionGuidedQuality, JointQuality
from gfl.structures import HeadOutput


def output(cls_logits):
    grid = make_point_grid([(1, cls_logits.shape[1])], (8,))
    return HeadOutput(cls_logits, torch.zeros(*cls_logits.shape[:2], 4, 17), None, grid)


def random_logits(*shape):
    return torch.randn(*shape or (2, 3, 4), generator=torch.Generator().manual_seed(0))


# --- the paper's row --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 2.0, 4.0])
def test_a_positive_learns_its_measure_at_its_class_and_0_elsewhere(beta):
    logits = random_logits()
    labels = torch.tensor([[2, 0, 3], [1, 1, 0]])
    positive = torch.tensor([[True, False, True], [False, True, False]])
    measure = torch.tensor([[0.9, 0.8, 0.25], [0.6, 0.5, 0.7]])
    target = torch.zeros(2, 3, 4)
    target[0, 0, 2], target[0, 2, 3], target[1, 1, 1] = 0.9, 0.25, 0.5
    loss = JointQuality(beta=beta).class_loss(output(logits), labels, positive, measure)
    torch.testing.assert_close(loss, quality_focal_loss(logits, target, beta=beta))


def test_labels_of_background_do_not_matter():
    logits, positive, measure = random_logits(), torch.zeros(2, 3, dtype=torch.bool), torch.rand(2, 3)
    losses = [
        JointQuality().class_loss(output(logits), torch.full((2, 3), label), positive, measure) for label in (0, 3)
    ]
    assert losses[0].equal(losses[1])
    assert losses[0].equal(quality_focal_loss(logits, torch.zeros(2, 3, 4)))


def test_scores_are_sigmoids_in_float32():
    logits = random_logits()
    assert JointQuality().scores(output(logits)).equal(logits.sigmoid())
    scores = JointQuality().scores(output(logits.bfloat16()))
    assert scores.equal(logits.bfloat16().float().sigmoid())


# --- GFLv2's row ------------------------------------------------------------------------------------------------------


def product_output(a, q):
    """`HeadOutput` of one class and as many points as `a` and `q` have."""
    return output(a[None, :, None])._replace(quality_logits=q[None])


def product_logits(a, q):
    return DistributionGuidedQuality().logits(product_output(a, q))[0, :, 0]


def with_reg_pred(reg_pred):
    return output(torch.zeros(*reg_pred.shape[:2], 3))._replace(reg_pred=reg_pred)


def random_dgqp(**options):
    """Weights and biases away from their small initial values."""
    quality = DistributionGuidedQuality(**options)
    generator = torch.Generator().manual_seed(1)
    for parameter in quality.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return quality


GRID = torch.cartesian_prod(*[torch.linspace(-12, 12, 49)] * 2).T


def test_logits_are_those_of_the_product_of_two_sigmoids():
    a, q = GRID.double()
    expected = (a.sigmoid() * q.sigmoid()).logit()
    torch.testing.assert_close(product_logits(a, q), expected.float(), rtol=1e-6, atol=1e-6)
    closed_form = -torch.logaddexp(-a, torch.logaddexp(-q, -a - q))
    torch.testing.assert_close(closed_form, expected, rtol=0, atol=1e-9)


def test_gradients_of_the_logits_are_those_of_the_product():
    leaves = [column.clone().requires_grad_() for column in GRID]
    ours = torch.autograd.grad(product_logits(*leaves).sum(), leaves)
    leaves = [column.double().requires_grad_() for column in GRID]
    product = leaves[0].sigmoid() * leaves[1].sigmoid()
    for mine, expected in zip(ours, torch.autograd.grad(product.logit().sum(), leaves), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [30.0, 80.0])
def test_extreme_logits_give_exact_products_and_finite_gradients(dtype, size):
    extremes = torch.tensor([-size, -1.0, 0.0, 1.0, size])
    a, q = (column.to(dtype).requires_grad_() for column in torch.cartesian_prod(extremes, extremes).T)
    logits = product_logits(a, q)
    assert logits.dtype == torch.float32
    expected = [oracles.product_logit(*pair) for pair in zip(a.tolist(), q.tolist(), strict=True)]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    for gradient in torch.autograd.grad(logits.sum(), (a, q)):
        assert gradient.isfinite().all()
        assert ((gradient >= 0) & (gradient <= 1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_qfl_on_extreme_products_is_finite(dtype):
    extremes = torch.tensor([-80.0, -30.0, 0.0, 30.0, 80.0])
    a, q = (column.to(dtype).requires_grad_() for column in torch.cartesian_prod(extremes, extremes).T)
    for measure in (0.0, 0.7, 1.0):
        loss = DistributionGuidedQuality().class_loss(
            product_output(a, q),
            torch.zeros(1, 25, dtype=torch.int64),
            torch.ones(1, 25, dtype=torch.bool),
            torch.full((1, 25), measure),
        )
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.sum(), (a, q)))


def test_qfl_of_a_product_learns_the_measure():
    a, q = random_logits(2, 6)
    found = product_output(a, q)
    labels, positive, measure = torch.zeros(1, 6).long(), torch.ones(1, 6, dtype=torch.bool), torch.rand(1, 6)
    product = a.double().sigmoid() * q.double().sigmoid()
    expected = quality_focal_loss(product.logit(), measure[0].double(), beta=2.5)
    loss = DistributionGuidedQuality(beta=2.5).class_loss(found, labels, positive, measure)
    torch.testing.assert_close(loss[0, :, 0].double(), expected, rtol=1e-5, atol=1e-7)


def test_scores_are_products_of_probabilities():
    logits, quality_logits = random_logits(2, 3, 4), random_logits(2, 3)
    found = output(logits)._replace(quality_logits=quality_logits)
    expected = logits.sigmoid() * quality_logits.sigmoid()[..., None]
    torch.testing.assert_close(DistributionGuidedQuality().scores(found), expected)
    torch.testing.assert_close(DistributionGuidedQuality().logits(found).sigmoid(), expected)


@pytest.mark.parametrize(("topk", "add_mean"), [(4, True), (4, False), (1, True), (17, True)])
def test_the_predictor_sees_each_side_s_largest_probabilities_and_their_mean(topk, add_mean):
    quality = random_dgqp(topk=topk, add_mean=add_mean)
    seen = []
    quality.hidden.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    reg_pred = 3 * random_logits(2, 5, 4, 17)
    predicted = quality(with_reg_pred(reg_pred)).quality_logits
    assert predicted.shape == (2, 5)
    assert seen[0].shape == (2, 5, 4 * (topk + add_mean))
    expected = [[oracles.side_statistics(point, topk, add_mean) for point in image] for image in reg_pred.tolist()]
    torch.testing.assert_close(seen[0], torch.tensor(expected))


@pytest.mark.parametrize("add_mean", [True, False])
def test_the_predictor_is_two_1x1_convolutions_on_a_map(add_mean):
    """As V2 writes it, over (B, 4 * bins, h, w)."""
    quality = random_dgqp(add_mean=add_mean)
    inputs = 4 * (4 + add_mean)
    convolutions = nn.Sequential(nn.Conv2d(inputs, 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1))
    for convolution, layer in ((convolutions[0], quality.hidden), (convolutions[2], quality.out)):
        convolution.load_state_dict({"weight": layer.weight[..., None, None], "bias": layer.bias})
    reg_map = 3 * random_logits(2, 4 * 17, 6, 7)
    largest = reg_map.unflatten(1, (4, 17)).softmax(dim=2).topk(4, dim=2).values
    statistics = torch.cat([largest, largest.mean(dim=2, keepdim=True)], dim=2) if add_mean else largest
    expected = convolutions(statistics.flatten(1, 2))
    predicted = quality(with_reg_pred(reg_map.flatten(2).mT.unflatten(-1, (4, 17)))).quality_logits
    torch.testing.assert_close(predicted, expected.flatten(1), rtol=1e-4, atol=1e-5)


def test_gradient_flows_into_the_distributions():
    quality, reg_pred = random_dgqp(), random_logits(1, 5, 4, 17).requires_grad_()
    found = quality(with_reg_pred(reg_pred))
    loss = quality.class_loss(found, torch.zeros(1, 5).long(), torch.ones(1, 5, dtype=torch.bool), torch.ones(1, 5))
    gradient = torch.autograd.grad(loss.sum(), reg_pred)[0]
    assert (gradient.abs().sum(dim=-1) > 0).all()


def test_the_predictor_adds_quality_logits_and_changes_nothing_else():
    before = with_reg_pred(random_logits(1, 5, 4, 17))
    after = DistributionGuidedQuality()(before)
    assert after._replace(quality_logits=None) == before
    assert JointQuality()(before) is before


def test_the_predictor_has_1409_parameters_and_starts_small():
    quality = DistributionGuidedQuality()
    assert sum(parameter.numel() for parameter in quality.parameters()) == 1409
    assert quality.hidden.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert (quality.hidden.bias == 0).all()
    assert (quality.out.bias == 0).all()


# --- the rows that the paper compares with ----------------------------------------------------------------------------

SEPARATE = ("none", "centerness_branch", "iou_branch", "centerness_guided", "iou_guided")
BRANCHES = ("centerness_branch", "iou_branch")
GUIDED = ("centerness_guided", "iou_guided")


def row(name):
    return build_quality(HeadConfig(quality=name), beta=2.0)


def branched_output():
    """Random outputs of two images of 6 points and 4 classes, with a branch."""
    generator = torch.Generator().manual_seed(3)
    logits, branch = torch.randn(2, 6, 4, generator=generator), torch.randn(2, 6, generator=generator)
    return output(logits)._replace(quality_logits=branch)


def targets():
    """Labels, positives and measures of `branched_output`'s points; the second image has one positive."""
    labels = torch.tensor([[2, 0, 3, 1, 1, 0], [1, 1, 0, 3, 2, 2]])
    positive = torch.tensor([[True, False, True, True, False, True], [False, True, False, False, False, False]])
    measure = torch.tensor([[0.9, 0.8, 0.25, 0.01, 0.5, 0.7], [0.3, 0.6, 1.0, 0.5, 0.2, 0.7]])
    return labels, positive, measure


def test_centerness_is_its_formula():
    distances = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)) * 9 - 1
    expected = torch.tensor([oracles.centerness(*point) for point in distances.tolist()])
    assert (expected == 0).any()
    assert (expected > 0.5).any()
    torch.testing.assert_close(centerness(distances), expected)
    by_hand = torch.tensor([[3.0, 3, 3, 3], [1, 2, 4, 2], [1, 2, 4, 8], [0, 1, 1, 1], [0, 0, 0, 0], [-1, 1, 3, 1]])
    assert centerness(by_hand).tolist() == [1, 0.5, 0.25, 0, 0, 0]


@pytest.mark.parametrize("name", QUALITIES)
def test_each_row_measures_boxes_by_what_its_name_says(name):
    iou, distances = torch.rand(2, 6), torch.rand(2, 6, 4) * 5
    expected = torch.ones(2, 6) if name == "none" else centerness(distances) if "centerness" in name else iou
    assert row(name).measure(iou, distances).equal(expected)


@pytest.mark.parametrize("name", QUALITIES)
def test_box_weights_are_the_measure_and_for_joint_scores_the_best_one_detached(name):
    found, (_, _, measure) = branched_output(), targets()
    found.cls_logits.requires_grad_()
    weight = row(name).box_weight(found, measure)
    scores = found.cls_logits.detach().sigmoid()
    if name == "dgqp":
        scores = scores * found.quality_logits.sigmoid().unsqueeze(-1)
    torch.testing.assert_close(weight, scores.amax(dim=-1) if name in ("joint", "dgqp") else measure)
    assert not weight.requires_grad


@pytest.mark.parametrize("name", ["none", *BRANCHES])
def test_class_logits_learn_the_class_alone_with_the_focal_loss(name):
    found, (labels, positive, measure) = branched_output(), targets()
    loss = row(name).class_loss(found, labels, positive, measure)
    for image in range(2):
        for p in range(6):
            for label, logit in enumerate(found.cls_logits[image, p].tolist()):
                is_target = bool(positive[image, p]) and labels[image, p] == label
                assert loss[image, p, label].item() == pytest.approx(oracles.focal(logit, is_target), rel=1e-4)


def at_label(loss, labels, positive):
    """Losses of the positives at their labels."""
    return loss.gather(-1, labels.unsqueeze(-1)).squeeze(-1)[positive]


@pytest.mark.parametrize("name", GUIDED)
def test_a_guide_shares_the_positive_loss_out_by_the_measure_and_keeps_its_sum(name):
    found, (labels, positive, measure) = branched_output(), targets()
    plain = row("none").class_loss(found, labels, positive, measure)
    guided = row(name).class_loss(found, labels, positive, measure)
    before, after = at_label(plain, labels, positive), at_label(guided, labels, positive)
    torch.testing.assert_close(after.sum(), before.sum())
    share = after / before / measure[positive] ** 1.5
    torch.testing.assert_close(share, share[:1].expand(5))
    target = torch.zeros_like(plain, dtype=torch.bool)
    target.scatter_(-1, labels.unsqueeze(-1), positive.unsqueeze(-1))
    assert guided[~target].equal(plain[~target])


@pytest.mark.parametrize("name", GUIDED)
def test_a_guide_s_weights_are_constants_to_the_gradient(name):
    found, (labels, positive, measure) = branched_output(), targets()
    logits = found.cls_logits.requires_grad_()
    plain = row("none").class_loss(found, labels, positive, measure)
    guided = row(name).class_loss(found, labels, positive, measure)
    expected = torch.autograd.grad(((guided / plain).detach() * plain).sum(), logits)[0]
    torch.testing.assert_close(torch.autograd.grad(guided.sum(), logits)[0], expected)


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize(("num_positive", "measure"), [(0, 0.5), (2, 0.0)], ids=["no positive", "measures of 0"])
def test_a_guide_without_anything_to_share_out_stays_finite(name, num_positive, measure):
    found = branched_output()
    positive = torch.zeros(2, 6, dtype=torch.bool)
    positive[0, :num_positive] = True
    logits = found.cls_logits.requires_grad_()
    loss = row(name).class_loss(found, targets()[0], positive, torch.full((2, 6), measure))
    assert loss.isfinite().all()
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("name", QUALITIES)
def test_only_a_branch_learns_the_measure(name):
    found, (_, _, measure) = branched_output(), targets()
    quality = row(name)
    loss = quality.branch_loss(found, measure)
    assert quality.has_branch == (name in BRANCHES)
    if name not in BRANCHES:
        assert loss is None
        return
    pairs = zip(found.quality_logits.flatten().tolist(), measure.flatten().tolist(), strict=True)
    expected = torch.tensor([oracles.cross_entropy(*pair) for pair in pairs]).reshape(2, 6)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", SEPARATE)
def test_scores_lack_the_branch_and_the_factor_is_the_branch(name):
    found = branched_output()
    assert row(name).scores(found).equal(found.cls_logits.sigmoid())
    factor = row(name).factor(found)
    if name in BRANCHES:
        assert factor.equal(found.quality_logits.sigmoid())
    else:
        assert factor is None


@pytest.mark.parametrize("name", ["joint", "dgqp"])
def test_joint_scores_have_no_factor(name):
    assert row(name).factor(branched_output()) is None


@pytest.mark.parametrize("name", SEPARATE)
def test_no_branch_reaches_the_class_loss(name):
    """Nor the other way round: training never sees the product."""
    found, (labels, positive, measure) = branched_output(), targets()
    found.cls_logits.requires_grad_()
    found.quality_logits.requires_grad_()
    loss = row(name).class_loss(found, labels, positive, measure)
    assert torch.autograd.grad(loss.sum(), found.quality_logits, allow_unused=True) == (None,)
    if name in BRANCHES:
        loss = row(name).branch_loss(found, measure)
        assert torch.autograd.grad(loss.sum(), found.cls_logits, allow_unused=True) == (None,)


@pytest.mark.parametrize("name", SEPARATE)
def test_separate_rows_compute_in_float32(name):
    found, (labels, positive, measure) = branched_output(), targets()
    half = found._replace(cls_logits=found.cls_logits.bfloat16(), quality_logits=found.quality_logits.bfloat16())
    same = half._replace(cls_logits=half.cls_logits.float(), quality_logits=half.quality_logits.float())
    quality = row(name)
    for function in (
        quality.scores,
        quality.factor,
        lambda found: quality.class_loss(found, labels, positive, measure),
        lambda found: quality.branch_loss(found, measure),
    ):
        expected = function(same)
        assert function(half) is None if expected is None else function(half).equal(expected)


# --- building ---------------------------------------------------------------------------------------------------------


def test_build_by_name():
    assert build_quality(HeadConfig(), beta=2.5).beta == 2.5


def test_build_takes_the_predictor_s_numbers_from_the_config():
    quality = build_quality(HeadConfig(quality="dgqp", dgqp=DGQPConfig(topk=3, hidden=8, add_mean=False)), beta=1.0)
    assert isinstance(quality, DistributionGuidedQuality)
    assert (quality.beta, quality.topk, quality.add_mean) == (1.0, 3, False)
    assert quality.hidden.weight.shape == (8, 12)


def test_as_many_probabilities_as_there_are_bins_at_most():
    build_quality(HeadConfig(quality="dgqp", reg_max=7, dgqp=DGQPConfig(topk=8)), beta=2.0)
    with pytest.raises(UserError, match=r"model\.head\.dgqp\.topk: 9 are more than the 8 bins of a side"):
        build_quality(HeadConfig(quality="dgqp", reg_max=7, dgqp=DGQPConfig(topk=9)), beta=2.0)


@pytest.mark.parametrize("box", ["dirac", "gaussian", "anchor_delta"])
def test_the_predictor_needs_general_distributions(refusal, box):
    message = refusal(build_quality, HeadConfig(quality="dgqp", box=box), beta=2.0)
    assert message == f"model.head.quality: dgqp reads the distributions of box: general; box: {box} predicts none"


def test_an_unknown_name_is_told_with_those_that_exist():
    with pytest.raises(UserError, match=r"model\.head\.quality: 'joined' does not exist; available: none, .*dgqp"):
        build_quality(HeadConfig(quality="joined"), beta=2.0)
