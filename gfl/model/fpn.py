"""The feature pyramid (arXiv 1612.03144) with P6 and P7 from the output P5, as in RetinaNet-style detectors."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """C3, C4, C5 -> P3 to P7, all with `channels` channels; P6 and P7 by strided convolutions.

    Args:
        extra_relu: a ReLU between P6 and P7, as FCOS has it.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int = 256, num_extra: int = 2, *, extra_relu: bool = False
    ) -> None:
        super().__init__()
        self.extra_relu = extra_relu
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.extra = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(num_extra))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone features from fine to coarse -> pyramid features (B, channels, H/s, W/s) from fine to coarse."""
        merged = [conv(feature) for conv, feature in zip(self.lateral, features, strict=True)]
        for level in range(len(merged) - 1, 0, -1):
            size = merged[level - 1].shape[-2:]
            merged[level - 1] = merged[level - 1] + F.interpolate(merged[level], size=size, mode="nearest")
        pyramid = [conv(feature) for conv, feature in zip(self.output, merged, strict=True)]
        for index, conv in enumerate(self.extra):
            feature = F.relu(pyramid[-1]) if self.extra_relu and index > 0 else pyramid[-1]
            if feature.shape[-1] == 1:
                # One more column of the convolution's own zero padding. Without it, oneDNN leaves a part of the
                # weights' gradient unset in bf16 (torch 2.14 on a CPU), which may be anything.
                feature = F.pad(feature, (0, 1))
            pyramid.append(conv(feature))
        return pyramid
