"""The toy of disturbed features: what it measures is the error of what it has learned."""

import numpy as np
import torch

from gfl.method.box_representation import DiracBox, GeneralBox


def test_the_error_of_a_number_grows_with_its_target_and_that_of_a_distribution_does_not(script, monkeypatch):
    toy = script("disturbed_sides")
    for name, value in (("STEPS", 500), ("TARGETS", 64), ("TRIALS", 50)):
        monkeypatch.setattr(toy, name, value)
    torch.manual_seed(0)
    number = toy.disturbed_error(toy.OwnWeights, DiracBox(), 0.0)
    distribution = toy.disturbed_error(toy.OwnWeights, GeneralBox(), 1.0)
    # Adam moves all weights alike, to y / sum(x) with E x = sqrt(2 / pi), so that noise of NOISE is passed on with
    # NOISE y / (WIDTH^0.5 E x) as its deviation, whose mean absolute value is E x times that.
    expected = np.arange(1, 16, 2) * toy.NOISE / toy.WIDTH**0.5
    np.testing.assert_allclose(number, expected, rtol=0.25)
    assert distribution.max() < expected[1]
