"""What a head's numbers say about the sides of a box: each representation's decoding and its loss."""

import oracles
import pytest
import torch

from gfl.method.box_representation import AnchorDeltaBox, DiracBox, GaussianBox, GeneralBox, highest_mode
from gfl.method.boxes import distances_to_boxes
from gfl.method.losses import distribution_focal_loss, giou_loss

BOXES = {  # outputs per side, loss of its own
    "dirac": (DiracBox(), 1, None),
    "anchor_delta": (AnchorDeltaBox(), 1, None),
    "gaussian": (GaussianBox(), 2, "nll"),
    "general": (GeneralBox(), 17, "dfl"),
}
EACH = pytest.mark.parametrize(("box", "num_outputs", "loss_name"), BOXES.values(), ids=BOXES)


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- all of them ------------------------------------------------------------------------------------------------------


@EACH
def test_what_minimises_the_training_loss_decodes_to_the_target(box, num_outputs, loss_name):
    """The representation's own loss where it has one, else GIoU."""
    target = torch.rand(6, 4, generator=torch.Generator().manual_seed(0)) * 11 + 1
    points = torch.zeros(6, 2)
    target_boxes = distances_to_boxes(points, target)
    reg_pred = torch.ones(6, 4, num_outputs, requires_grad=True)
    steps = 300
    optimizer = torch.optim.Adam([reg_pred], lr=0.3, betas=(0.8, 0.9))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - step / steps) ** 2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = box.loss(reg_pred, target)
        if loss is None:
            loss = giou_loss(distances_to_boxes(points, box.distances(reg_pred)), target_boxes)
        loss.sum().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(box.distances(reg_pred.detach()), target, rtol=0, atol=0.02)
    torch.testing.assert_close(box.decode(reg_pred.detach()), target, rtol=0, atol=0.02)


@EACH
def test_distances_and_losses_are_float32_under_autocast_and_for_half_precision(box, num_outputs, loss_name):
    reg_pred, target = random_logits(6, 4, num_outputs).bfloat16(), torch.full((6, 4), 3.3)
    with torch.autocast("cpu", torch.bfloat16):
        distances, loss = box.distances(reg_pred), box.loss(reg_pred, target)
    assert distances.dtype == torch.float32
    assert distances.equal(box.distances(reg_pred.float()))
    assert loss is None or loss.equal(box.loss(reg_pred.float(), target))


@EACH
def test_outputs_and_loss_are_as_declared_and_constants_are_not_stored_in_checkpoints(box, num_outputs, loss_name):
    loss = box.loss(random_logits(5, 4, num_outputs), torch.ones(5, 4))
    assert (box.num_outputs, box.loss_name) == (num_outputs, loss_name)
    assert (loss is None) == (loss_name is None)
    assert loss is None or loss.shape == (5,)
    assert box.state_dict() == {}


@pytest.mark.parametrize("box", [DiracBox(), GaussianBox()], ids=["dirac", "gaussian"])
def test_the_first_number_is_the_distance_and_never_negative(box):
    reg_pred = random_logits(7, 4, box.num_outputs)
    expected = [[max(numbers[0], 0.0) for numbers in point] for point in reg_pred.tolist()]
    assert box.distances(reg_pred).tolist() == expected
    assert box.decode(reg_pred).tolist() == expected


# --- anchor deltas ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.5, 3.0, 40.0], ids=lambda size: f"deltas of {size}")
@pytest.mark.parametrize("stride", [8.0, 64.0])
def test_anchor_deltas_are_mmdetection_s_on_a_square_of_8_strides(size, stride):
    """Deltas of 40 reach the limit of the log sizes."""
    deltas, points = random_logits(50, 4) * size, torch.rand(50, 2, generator=torch.Generator().manual_seed(1)) * 500
    distances = AnchorDeltaBox().distances(deltas.unsqueeze(-1)) * stride
    expected = [oracles.anchor_box(d, *p, stride) for d, p in zip(deltas.tolist(), points.tolist(), strict=True)]
    torch.testing.assert_close(distances_to_boxes(points, distances), torch.tensor(expected), rtol=1e-5, atol=1e-2)


def test_anchor_deltas_of_a_box_decode_to_it():
    """Also of boxes that do not hold the point: their distances are negative."""
    boxes = oracles.random_boxes(60, 40, 40, torch.Generator().manual_seed(2))
    deltas = torch.tensor([oracles.anchor_deltas(box, 20.0, 20.0, 1.0) for box in boxes.tolist()])
    distances = AnchorDeltaBox().decode(deltas.unsqueeze(-1))
    assert (distances < 0).any()
    torch.testing.assert_close(distances_to_boxes(torch.tensor([20.0, 20.0]), distances), boxes, rtol=0, atol=1e-4)


# --- normal distributions ---------------------------------------------------------------------------------------------


def test_the_gaussian_loss_is_the_mean_likelihood_of_the_sides():
    reg_pred, target = random_logits(5, 4, 2), torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) * 6
    expected = [oracles.own_loss("gaussian", *pair) for pair in zip(reg_pred.tolist(), target.tolist(), strict=True)]
    torch.testing.assert_close(GaussianBox().loss(reg_pred, target), torch.tensor(expected))


def test_a_negative_mean_still_learns_from_its_likelihood():
    reg_pred = torch.tensor([[-2.0, 0.0]] * 4, requires_grad=True)
    GaussianBox().loss(reg_pred, torch.full((4,), 3.0)).backward()
    assert (reg_pred.grad[:, 0] < 0).all()
    assert (reg_pred.grad[:, 1] < 0).all()  # and its variance grows


def test_deviations_are_square_roots_of_the_variances_within_the_limits_of_the_loss():
    log_variance = torch.tensor([0.0, 2.0, -3.0, 50.0, -50.0]).bfloat16()
    expected = (log_variance.float().clamp(-8, 8).exp()) ** 0.5
    deviations = GaussianBox().deviations(torch.stack([torch.zeros(5).bfloat16(), log_variance], dim=-1))
    assert deviations.dtype == torch.float32
    torch.testing.assert_close(deviations, expected)


# --- general distributions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reg_max", "delta"), [(4, 2.0), (8, 0.25), (16, 1.0), (16, 0.5), (33, 1.0)])
def test_the_optimum_of_a_general_distribution_decodes_to_its_target(reg_max, delta):
    """All mass on the two bins around the target. DFL is convex in the logits, so no gradient means the minimum."""
    bins = torch.linspace(0, reg_max - 0.1, 40).reshape(10, 4)
    probabilities = (1 - (bins.unsqueeze(-1) - torch.arange(reg_max + 1)).abs()).clamp(min=0)
    logits = probabilities.log().clamp(min=-80).requires_grad_()
    for box in (GeneralBox(reg_max=reg_max, delta=delta), GeneralBox(reg_max=reg_max, delta=delta, peak=True)):
        gradient = torch.autograd.grad(box.loss(logits, bins * delta).sum(), logits)[0]
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)
        torch.testing.assert_close(box.distances(logits), bins * delta, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(box.decode(logits), bins * delta, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("reg_max", "delta"), [(16, 1.0), (16, 0.5), (8, 2.0), (1, 1.0)])
def test_distance_is_the_expectation_over_0_to_reg_max_times_delta(reg_max, delta):
    box = GeneralBox(reg_max=reg_max, delta=delta)
    assert box.num_outputs == reg_max + 1
    logits = random_logits(2, 3, 4, reg_max + 1)
    expected = sum(i * delta * logits.softmax(-1)[..., i] for i in range(reg_max + 1))
    torch.testing.assert_close(box.distances(logits), expected)
    torch.testing.assert_close(box.probabilities(logits * 20).sum(-1), torch.ones(2, 3, 4))


@pytest.mark.parametrize(("target", "clamped"), [(40.0, 15.9), (16.0, 15.9), (15.95, 15.9), (-3.0, 0.0), (15.8, 15.8)])
@pytest.mark.parametrize("delta", [1.0, 0.5])
def test_targets_beyond_the_range_move_to_its_ends(target, clamped, delta):
    logits = random_logits(4, 17)
    expected = distribution_focal_loss(logits, torch.full((4,), clamped)).mean()
    loss = GeneralBox(delta=delta).loss(logits, torch.full((4,), target * delta))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


# --- the highest mode -------------------------------------------------------------------------------------------------

# As integers, so that the sums are exact.
MODES = {
    "two peaks": [1, 5, 2, 4, 1],
    "the later of two peaks": [1, 4, 2, 5, 1],
    "two peaks of one height": [1, 5, 2, 5, 1],
    "a peak at the left end": [9, 4, 2, 3, 1],
    "rising": [1, 2, 3, 4, 5],
    "flat": [2, 2, 2, 2, 2],
    "a flat top": [1, 5, 5, 5, 1, 2],
    "a flat valley": [1, 5, 1, 1, 3],
    "a step on the way down": [0, 1, 1, 6, 2, 2, 0, 0],
    "one bin with all": [0, 0, 1, 0, 0],
    "at both ends": [7, 0, 0, 0, 6],
    "two bins": [3, 2],
}


@pytest.mark.parametrize("numbers", MODES.values(), ids=MODES)
def test_the_highest_mode_ends_where_the_distribution_rises_again(numbers):
    probabilities = torch.tensor(numbers) / sum(numbers)
    assert highest_mode(probabilities).tolist() == oracles.highest_mode(numbers)
    assert highest_mode(probabilities.flip(0).expand(2, 3, -1))[1, 2].tolist() == oracles.highest_mode(numbers[::-1])


@pytest.mark.parametrize("bins", [2, 5, 17])
def test_the_highest_mode_of_random_distributions_equals_the_slow_oracle(bins):
    smooth = random_logits(60, 4, bins).softmax(-1)
    coarse = torch.randint(0, 4, (60, 4, bins), generator=torch.Generator().manual_seed(bins)).float()  # many ties
    for probabilities in (smooth, coarse):
        expected = [[oracles.highest_mode(side) for side in point] for point in probabilities.tolist()]
        assert highest_mode(probabilities).tolist() == expected


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_peak_decodes_the_expectation_of_the_highest_mode_and_training_that_of_all_bins(delta):
    logits = random_logits(40, 4, 17) * 2
    box = GeneralBox(delta=delta, peak=True)
    expected = torch.tensor([[oracles.peak(side, delta) for side in point] for point in logits.tolist()])
    torch.testing.assert_close(box.decode(logits), expected, rtol=1e-4, atol=1e-4)
    assert box.distances(logits).equal(GeneralBox(delta=delta).decode(logits))
    assert (box.decode(logits) - box.distances(logits)).abs().max() > delta
