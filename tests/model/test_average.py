"""The average of weights against its formula."""

import pytest
import torch
from torch import nn

from gfl.model.average import WeightAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_weights_and_statistics_follow_the_formula(decay):
    trained = network()
    trained[0].weight.requires_grad_(False)  # frozen
    average, frozen = WeightAverage(trained, decay), trained[0].weight.clone()
    expected = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    for number in range(20):
        trained(torch.randn(5, 3, dtype=torch.float64))
        with torch.no_grad():
            for parameter in [*trained[1].parameters(), *trained[2].parameters()]:
                parameter += torch.randn_like(parameter)
        average.update()
        kept = min(decay, (1 + number) / (10 + number))
        for name, tensor in trained.state_dict().items():
            mean = kept * expected[name] + (1 - kept) * tensor
            expected[name] = tensor.clone() if "num_batches" in name else mean
    for name, tensor in average.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-12, atol=1e-15)
    assert torch.equal(average.model[0].weight, frozen)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
