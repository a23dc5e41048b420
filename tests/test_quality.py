"""What the class logits learn, and how they become scores."""

import pytest
import torch

from gfl.config import HeadConfig
from gfl.errors import UserError
from gfl.losses import quality_focal_loss
from gfl.points import make_point_grid
from gfl.quality import JointQuality, build_quality
from gfl.structures import HeadOutput


def output(cls_logits):
    grid = make_point_grid([(1, cls_logits.shape[1])], (8,))
    return HeadOutput(cls_logits, torch.zeros(*cls_logits.shape[:2], 4, 17), None, grid)


def random_logits():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


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


def test_build_by_name():
    assert build_quality(HeadConfig(), beta=2.5).beta == 2.5


def test_an_unknown_name_is_told_with_those_that_exist():
    with pytest.raises(UserError, match=r"model\.head\.quality: 'joined' does not exist; available: .*joint"):
        build_quality(HeadConfig(quality="joined"), beta=2.0)
