"""GFLv2's row: a quality read from the distributions, and the logit of its product with the class probability."""

import oracles
import pytest
import torch
from torch import nn

from gfl.method.losses import quality_focal_loss
from gfl.method.points import PointLayout, make_point_grid
from gfl.method.quality import DistributionGuidedQuality
from gfl.structures import HeadOutput

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def random_tensor(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def output_of(reg_pred):
    grid = make_point_grid([(1, reg_pred.shape[1])], PointLayout((8,)))
    return HeadOutput(torch.zeros(*reg_pred.shape[:2], 3), reg_pred, None, grid)


def product_output(a, q):
    """`HeadOutput` of one class and as many points as `a` and `q` have."""
    return output_of(torch.zeros(1, len(a), 4, 17))._replace(cls_logits=a[None, :, None], quality_logits=q[None])


def product_logits(a, q):
    return DistributionGuidedQuality().logits(product_output(a, q))[0, :, 0]


def random_predictor(**options):
    """Weights and biases away from their small initial values."""
    quality = DistributionGuidedQuality(**options)
    generator = torch.Generator().manual_seed(1)
    for parameter in quality.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return quality


def test_logits_and_gradients_are_those_of_the_product_of_two_sigmoids():
    a, q = torch.cartesian_prod(*[torch.linspace(-12, 12, 49)] * 2).T
    ours, theirs = ([column.to(dtype).requires_grad_() for column in (a, q)] for dtype in (a.dtype, torch.float64))
    logits, expected = product_logits(*ours), (theirs[0].sigmoid() * theirs[1].sigmoid()).logit()
    torch.testing.assert_close(logits, expected.float(), rtol=1e-6, atol=1e-6)
    for gradient, reference in zip(
        torch.autograd.grad(logits.sum(), ours), torch.autograd.grad(expected.sum(), theirs), strict=True
    ):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-5, atol=1e-7)


@DTYPES
@pytest.mark.parametrize("size", [30.0, 80.0])
def test_extreme_logits_give_exact_products_and_finite_losses_and_gradients(dtype, size):
    extremes = torch.tensor([-size, -1.0, 0.0, 1.0, size])
    a, q = (column.to(dtype).requires_grad_() for column in torch.cartesian_prod(extremes, extremes).T)
    logits = product_logits(a, q)
    assert logits.dtype == torch.float32
    expected = [oracles.product_logit(*pair) for pair in zip(a.tolist(), q.tolist(), strict=True)]
    torch.testing.assert_close(logits, torch.tensor(expected), rtol=1e-6, atol=1e-6)
    for gradient in torch.autograd.grad(logits.sum(), (a, q)):
        assert ((gradient >= 0) & (gradient <= 1)).all()
    for target in (0.0, 0.7, 1.0):
        loss = DistributionGuidedQuality().class_loss(
            product_output(a, q),
            torch.zeros(1, 25, dtype=torch.int64),
            *[torch.ones(1, 25, dtype=torch.bool)] * 2,
            torch.full((1, 25), target),
        )
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (a, q)))


def test_qfl_acts_on_the_product():
    a, q = random_tensor(2, 6)
    labels, positive, target = torch.zeros(1, 6).long(), torch.ones(1, 6, dtype=torch.bool), torch.rand(1, 6)
    product = a.double().sigmoid() * q.double().sigmoid()
    expected = quality_focal_loss(product.logit(), target[0].double(), beta=2.5)
    quality = DistributionGuidedQuality(beta=2.5)
    for point in range(6):
        alone = positive & (torch.arange(6) == point)
        loss = quality.class_loss(product_output(a, q), labels, alone, alone, target)
        torch.testing.assert_close(loss.double(), expected[point], rtol=1e-5, atol=1e-7)
    background = quality_focal_loss(product.logit(), torch.zeros(6).double(), beta=2.5).sum()
    loss = quality.class_loss(product_output(a, q), labels, ~positive, positive, target)
    torch.testing.assert_close(loss.double(), background, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("topk", "add_mean"), [(4, True), (4, False), (1, True), (17, True)])
def test_the_predictor_reads_each_side_s_largest_probabilities_and_their_mean(topk, add_mean):
    quality = random_predictor(topk=topk, add_mean=add_mean)
    inputs = []
    quality.hidden.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    reg_pred = 3 * random_tensor(2, 5, 4, 17)
    assert quality(output_of(reg_pred)).quality_logits.shape == (2, 5)
    expected = [[oracles.side_statistics(point, topk, add_mean) for point in image] for image in reg_pred.tolist()]
    torch.testing.assert_close(inputs[0], torch.tensor(expected))


@pytest.mark.parametrize("add_mean", [True, False])
def test_the_predictor_is_two_1x1_convolutions_on_a_map(add_mean):
    """As V2 writes it, over (B, 4 * bins, h, w)."""
    quality = random_predictor(add_mean=add_mean)
    convolutions = nn.Sequential(nn.Conv2d(4 * (4 + add_mean), 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1))
    for convolution, layer in ((convolutions[0], quality.hidden), (convolutions[2], quality.out)):
        convolution.load_state_dict({"weight": layer.weight[..., None, None], "bias": layer.bias})
    reg_map = 3 * random_tensor(2, 4 * 17, 6, 7)
    largest = reg_map.unflatten(1, (4, 17)).softmax(dim=2).topk(4, dim=2).values
    statistics = torch.cat([largest, largest.mean(dim=2, keepdim=True)], dim=2) if add_mean else largest
    expected = convolutions(statistics.flatten(1, 2))
    predicted = quality(output_of(reg_map.flatten(2).mT.unflatten(-1, (4, 17)))).quality_logits
    torch.testing.assert_close(predicted, expected.flatten(1), rtol=1e-4, atol=1e-5)


def test_gradient_flows_into_the_distributions():
    quality, reg_pred = random_predictor(), random_tensor(1, 5, 4, 17).requires_grad_()
    output = quality(output_of(reg_pred))
    positive = torch.ones(1, 5, dtype=torch.bool)
    loss = quality.class_loss(output, torch.zeros(1, 5).long(), positive, positive, torch.ones(1, 5))
    gradient = torch.autograd.grad(loss, reg_pred)[0]
    assert (gradient.abs().sum(dim=-1) > 0).all()


def test_the_predictor_has_1409_parameters_starts_small_and_adds_nothing_but_quality_logits():
    quality, before = DistributionGuidedQuality(), output_of(random_tensor(1, 5, 4, 17))
    assert sum(parameter.numel() for parameter in quality.parameters()) == 1409
    for layer in (quality.hidden, quality.out):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.3)
        assert (layer.bias == 0).all()
    assert quality(before)._replace(quality_logits=None) == before
