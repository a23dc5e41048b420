"""Losses against golden values, the formulas of the paper and their derivatives."""

import math

import oracles
import pytest
import torch
from reference import read_golden
from torchvision.ops import sigmoid_focal_loss

from gfl.method.boxes import box_iou
from gfl.method.losses import (
    MAX_LOG_VARIANCE,
    distribution_focal_loss,
    gaussian_loss,
    generalized_focal_loss,
    giou_loss,
    quality_focal_loss,
    varifocal_loss,
)

BETAS = [0, 1, 2, 2.5, 4]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(scope="module")
def golden():
    return read_golden("losses")


def quality_target(golden):
    """The golden scores at their labels; label 6 is background."""
    target = torch.zeros_like(golden["qfl_logits"])
    foreground = golden["qfl_labels"] < target.shape[1]
    target[foreground, golden["qfl_labels"][foreground]] = golden["qfl_scores"][foreground]
    return target


def loss_and_gradient(function, leaf):
    leaf = leaf.clone().requires_grad_()
    loss = function(leaf)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
def test_qfl_equals_the_golden_values(golden, beta):
    target = quality_target(golden)
    loss, gradient = loss_and_gradient(
        lambda logits: quality_focal_loss(logits, target, beta=beta), golden["qfl_logits"]
    )
    close(loss.sum(dim=1), golden[f"qfl_loss_beta{beta}"])
    close(gradient, golden[f"qfl_grad_beta{beta}"])


def test_varifocal_loss_equals_the_golden_values():
    golden = read_golden("varifocal")
    loss, gradient = loss_and_gradient(lambda x: varifocal_loss(x, golden["vfl_target"]), golden["vfl_logits"])
    close(loss, golden["vfl_loss_True"])  # with the factor y, mmdetection's `iou_weighted`
    close(gradient, golden["vfl_grad_True"])


def test_dfl_equals_the_golden_values(golden):
    loss, gradient = loss_and_gradient(
        lambda logits: distribution_focal_loss(logits, golden["dfl_target"]), golden["dfl_logits"]
    )
    close(loss, golden["dfl_loss"])
    close(gradient, golden["dfl_grad"])


def test_giou_loss_and_iou_equal_the_golden_values(golden):
    loss, gradient = loss_and_gradient(lambda boxes: giou_loss(boxes, golden["giou_target"]), golden["giou_pred"])
    close(loss, golden["giou_loss"])
    close(gradient, golden["giou_grad"])
    close(box_iou(golden["giou_pred"], golden["giou_target"]), golden["iou_aligned"])


@pytest.mark.parametrize("beta", BETAS)
def test_qfl_is_equation_2_and_zero_where_the_score_is_the_quality(beta):
    for logit, target in ((0.3, 0.0), (-2.0, 1.0), (1.7, 0.6), (-0.4, 0.9)):
        loss = quality_focal_loss(*torch.tensor([logit, target], dtype=torch.float64), beta=beta)
        assert loss.item() == pytest.approx(oracles.qfl(logit, target, beta), rel=1e-12)
    if beta == 0:
        return
    logits = torch.linspace(-5, 5, 1001).double()
    loss = quality_focal_loss(logits, torch.full_like(logits, 0.3), beta=beta)
    assert logits.sigmoid()[loss.argmin()].item() == pytest.approx(0.3, abs=0.003)
    at_target = quality_focal_loss(torch.tensor(0.3).double().logit(), torch.tensor(0.3).double(), beta=beta)
    assert at_target.item() == pytest.approx(0, abs=1e-12)


def test_beta_is_2_unless_given():
    logits, target = torch.tensor([1.7, -0.4]), torch.tensor([0.6, 0.9])
    assert quality_focal_loss(logits, target).equal(quality_focal_loss(logits, target, beta=2.0))


def test_dfl_at_the_ends_of_the_range_is_cross_entropy():
    logits = torch.randn(17, generator=torch.Generator().manual_seed(2)).double()
    log_probability = logits.log_softmax(-1)
    close(distribution_focal_loss(logits, torch.tensor(0.0).double()), -log_probability[0])
    close(distribution_focal_loss(logits, torch.tensor(16.0).double()), -log_probability[16])


@DTYPES
def test_losses_are_finite_and_float32_at_extreme_logits(dtype):
    logits = torch.tensor([-30.0, 30.0, -1000.0, 1000.0]).to(dtype)[:, None].expand(4, 3)
    target = torch.tensor([0.0, 0.7, 1.0]).expand(4, 3)
    found = [loss_and_gradient(lambda x, b=beta: quality_focal_loss(x, target, beta=b), logits) for beta in BETAS]
    found.append(loss_and_gradient(lambda x: varifocal_loss(x, target), logits))
    sharp = torch.full((3, 17), -30.0).to(dtype)
    sharp[:, 4] = 30
    found += [loss_and_gradient(lambda x: distribution_focal_loss(x, torch.tensor([0.0, 4.5, 16.0])), sharp)]
    for loss, gradient in found:
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
    assert found[-1][0][0].item() == pytest.approx(60, rel=1e-6)


def test_half_precision_outputs_lose_no_precision_in_the_losses():
    generator = torch.Generator().manual_seed(3)
    logits, log_variance = (torch.randn(64, 17, generator=generator).bfloat16() for _ in range(2))
    target, bins = torch.rand(64, 17, generator=generator), torch.rand(64, generator=generator) * 16
    assert quality_focal_loss(logits, target).equal(quality_focal_loss(logits.float(), target))
    assert varifocal_loss(logits, target).equal(varifocal_loss(logits.float(), target))
    assert distribution_focal_loss(logits, bins).equal(distribution_focal_loss(logits.float(), bins))
    expected = gaussian_loss(logits.float(), log_variance.float(), target)
    assert gaussian_loss(logits, log_variance, target).equal(expected)


# --- the normal distribution ------------------------------------------------------------------------------------------


def test_the_gaussian_loss_is_a_normal_distribution_s_likelihood_without_its_constant():
    generator = torch.Generator().manual_seed(6)
    mean, log_variance, target = (torch.randn(40, generator=generator, dtype=torch.float64) * 2 for _ in range(3))
    likelihood = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(target)
    close(gaussian_loss(mean, log_variance, target), -likelihood - math.log(2 * math.pi) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_variances_leave_the_gaussian_loss_and_its_gradient_finite(dtype):
    extremes = torch.tensor([-1000.0, -30.0, 0.0, 30.0, 1000.0])
    mean, log_variance = torch.cartesian_prod(extremes, extremes).T.to(dtype)
    leaves = mean.clone().requires_grad_(), log_variance.clone().requires_grad_()
    loss = gaussian_loss(*leaves, torch.full((25,), 3.0))
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.sum(), leaves))
    at_target = gaussian_loss(torch.zeros(2), torch.tensor([-1000.0, 1000.0]), torch.zeros(2))
    assert at_target.tolist() == [-4, 4]
    assert MAX_LOG_VARIANCE == 8


# --- the general form, equation 7 -------------------------------------------------------------------------------------


def general_form_of_logits(logits, target, *, beta):
    """Equation 7 between the labels 0 and 1."""
    return generalized_focal_loss((-logits).sigmoid(), logits.sigmoid(), target, left=0, right=1, beta=beta)


def assert_same_loss_and_gradient(function, other, leaf):
    for actual, expected in zip(loss_and_gradient(function, leaf), loss_and_gradient(other, leaf), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gamma", [0, 1, 2, 2.5])
def test_focal_loss_is_a_special_case(gamma):
    logits, label = torch.linspace(-6, 6, 100).double(), (torch.arange(100) % 2).double()
    assert_same_loss_and_gradient(
        lambda x: general_form_of_logits(x, label, beta=gamma),
        lambda x: sigmoid_focal_loss(x, label, alpha=-1, gamma=gamma),
        logits,
    )


@pytest.mark.parametrize("beta", BETAS)
def test_qfl_is_a_special_case(beta):
    logits, target = torch.meshgrid(torch.linspace(-6, 6, 40).double(), torch.linspace(0, 1, 7).double(), indexing="ij")
    assert_same_loss_and_gradient(
        lambda x: general_form_of_logits(x, target, beta=beta),
        lambda x: quality_focal_loss(x, target, beta=beta),
        logits,
    )


def test_dfl_is_a_special_case():
    """Of beta 0, between the two bins around the target, whose probabilities do not sum to 1."""
    logits = torch.randn(40, 17, generator=torch.Generator().manual_seed(4)).double()
    target = torch.linspace(0, 15.99, 40).double()
    left = target.long().unsqueeze(-1)

    def general_form(x):
        probability = x.softmax(dim=-1)
        pair = (probability.gather(-1, left + shift).squeeze(-1) for shift in (0, 1))
        left_bin = left.squeeze(-1).double()
        return generalized_focal_loss(*pair, target, left=left_bin, right=left_bin + 1, beta=0)

    assert_same_loss_and_gradient(general_form, lambda x: distribution_focal_loss(x, target), logits)


def test_the_golden_focal_loss_is_the_general_form_times_alpha(golden):
    label = torch.zeros_like(golden["qfl_logits"])
    foreground = golden["qfl_labels"] < label.shape[1]
    label[foreground, golden["qfl_labels"][foreground]] = 1
    alpha = 0.25 * label + 0.75 * (1 - label)
    loss, gradient = loss_and_gradient(
        lambda logits: alpha * general_form_of_logits(logits, label, beta=2), golden["qfl_logits"]
    )
    close(loss, golden["focal_loss"])
    close(gradient, golden["focal_grad"])


def test_the_golden_qfl_of_probabilities_is_the_general_form(golden):
    target = quality_target(golden)
    loss, gradient = loss_and_gradient(
        lambda p: generalized_focal_loss(1 - p, p, target, left=0, right=1, beta=2), golden["qflprob_input"]
    )
    close(loss.sum(dim=1), golden["qflprob_loss"])
    close(gradient, golden["qflprob_grad"])


@pytest.mark.parametrize("beta", [0, 0.5, 1, 2, 4])
def test_the_minimum_of_the_general_form_has_the_target_as_its_expectation(beta):
    """Section 3 of the paper, along probabilities that sum to 1."""
    grid = torch.linspace(0, 1, 10_001, dtype=torch.float64)[1:-1]
    for left, right, target in [(0, 1, 0.3), (0, 1, 0.95), (3, 4, 3.5), (3, 5, 3.25), (-2, 6, 5.0), (0.5, 0.75, 0.6)]:
        best = (right - target) / (right - left)

        def loss_at(prob_left, left=left, right=right, target=target):
            targets = torch.full_like(prob_left, target)
            return generalized_focal_loss(prob_left, 1 - prob_left, targets, left=left, right=right, beta=beta)

        assert grid[loss_at(grid).argmin()].item() == pytest.approx(best, abs=1e-4)
        around = torch.tensor([best - 0.01, best, best + 0.01], dtype=torch.float64)
        _, (below, at, above) = loss_and_gradient(loss_at, around)
        assert below < 0 < above
        if beta == 0 or beta > 1:  # |x|^beta has a kink at 0 otherwise
            assert at.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("beta", [0, 1, 2])
def test_the_general_form_is_finite_where_a_probability_of_0_has_no_weight(beta):
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    at_left = generalized_focal_loss(one, zero, torch.tensor([3.0]).double(), left=3, right=4, beta=beta)
    at_right = generalized_focal_loss(zero, one, torch.tensor([4.0]).double(), left=3, right=4, beta=beta)
    assert (at_left.item(), at_right.item()) == (0, 0)
