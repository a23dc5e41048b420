"""The general distribution of a box side: its expectation, its interval and its loss."""

import pytest
import torch

from gfl.box_repr import GeneralBox, build_box_repr
from gfl.config import HeadConfig
from gfl.errors import UserError
from gfl.losses import distribution_focal_loss


def random_logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("reg_max", "delta"), [(16, 1.0), (16, 0.5), (8, 2.0), (1, 1.0)])
def test_distance_is_the_expectation_over_0_to_reg_max_times_delta(reg_max, delta):
    box = GeneralBox(reg_max=reg_max, delta=delta)
    assert box.num_outputs == reg_max + 1
    logits = random_logits(2, 3, 4, reg_max + 1)
    expected = sum(i * delta * logits.softmax(-1)[..., i] for i in range(reg_max + 1))
    torch.testing.assert_close(box.distances(logits), expected)


def test_a_sharp_distribution_reads_its_own_bin():
    logits = torch.full((5, 17), -100.0)
    logits[range(5), [0, 3, 8, 15, 16]] = 100.0
    assert GeneralBox(reg_max=16, delta=0.5).distances(logits).tolist() == [0, 1.5, 4, 7.5, 8]


def test_probabilities_sum_to_1():
    probabilities = GeneralBox().probabilities(random_logits(3, 4, 17) * 20)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 4))


@pytest.mark.parametrize("delta", [1.0, 0.5, 2.0])
def test_loss_is_dfl_in_units_of_delta_averaged_over_the_sides(delta):
    logits = random_logits(5, 4, 17)
    bins = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) * 15.9
    expected = sum(distribution_focal_loss(logits[:, side], bins[:, side]) for side in range(4)) / 4
    torch.testing.assert_close(GeneralBox(delta=delta).loss(logits, bins * delta), expected)


@pytest.mark.parametrize(("target", "clamped"), [(40.0, 15.9), (16.0, 15.9), (15.95, 15.9), (-3.0, 0.0), (15.8, 15.8)])
@pytest.mark.parametrize("delta", [1.0, 0.5])
def test_targets_beyond_the_range_move_to_its_ends(target, clamped, delta):
    logits = random_logits(4, 17)
    expected = distribution_focal_loss(logits, torch.full((4,), clamped)).mean()
    loss = GeneralBox(delta=delta).loss(logits, torch.full((4,), target * delta))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_all_is_float32_under_autocast_and_for_half_precision():
    box, logits = GeneralBox(), random_logits(6, 4, 17).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        distances, loss = box.distances(logits), box.loss(logits, torch.full((6, 4), 3.3))
    assert distances.equal(box.distances(logits.float()))
    assert loss.equal(box.loss(logits.float(), torch.full((6, 4), 3.3)))


def test_the_bins_are_not_stored_in_checkpoints():
    assert GeneralBox().state_dict() == {}


def test_build_by_name():
    box = build_box_repr(HeadConfig(reg_max=7, delta=0.25))
    assert (box.num_outputs, box.delta) == (8, 0.25)


def test_an_unknown_name_is_told_with_those_that_exist():
    with pytest.raises(UserError, match=r"model\.head\.box: 'gausian' does not exist; available: .*general"):
        build_box_repr(HeadConfig(box="gausian"))
