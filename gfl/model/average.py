"""The exponential moving average of a network's weights (EMA), to be evaluated in place of the weights."""

import copy
from itertools import chain

import torch
from torch import Tensor, nn


class WeightAverage:
    """A copy of `network` whose weights follow those of the network.

    After n updates an average keeps ``min(decay, (1 + n) / (10 + n))`` of itself: early weights are worth little, and a
    short run would otherwise never get rid of the first ones. Statistics of norms are averaged alike.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(network).requires_grad_(False)
        self.decay, self.updates = decay, 0
        self.pairs = list(zip(_tensors(self.model), _tensors(network), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """One step towards the network's present weights; equal numbers stay equal to the bit."""
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        for average, current in self.pairs:
            if average.is_floating_point():
                average.lerp_(current, 1 - kept)
            else:  # a norm counts its batches
                average.copy_(current)


def _tensors(network: nn.Module) -> list[Tensor]:
    return list(chain(network.parameters(), network.buffers()))
