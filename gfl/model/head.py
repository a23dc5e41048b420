"""The dense head: two towers shared by all levels, with class logits and four sides at every point."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gfl.method.points import PointLayout, make_point_grid
from gfl.structures import HeadOutput

GROUPS = 32  # of GroupNorm
CLASS_PRIOR = 0.01  # initial score of every class, so that the background does not swamp the first steps


class GFLHead(nn.Module):
    """The head of every detector here; box representation and quality only decide what it outputs.

    Args:
        initial: what the regression outputs of a side start at (`box_repr.initial`).
        layout: of the points, one entry per level of the pyramid.
        conv_bias: of the towers.
        quality_prior: initial probability of one more logit per point, from the regression tower
            (`quality.branch_prior`); None without it.
    """

    def __init__(
        self,
        num_classes: int,
        initial: Sequence[float],
        layout: PointLayout,
        *,
        in_channels: int = 256,
        channels: int = 256,
        num_convs: int = 4,
        conv_bias: bool = False,
        quality_prior: float | None = None,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_outputs, self.layout = num_classes, len(initial), layout
        self.cls_tower = _tower(in_channels, channels, num_convs, conv_bias)
        self.reg_tower = _tower(in_channels, channels, num_convs, conv_bias)
        self.cls_out = _conv(channels, num_classes)
        # Made without a branch as well: heads that differ in it or in the box representation share all other weights.
        quality_out = _conv(channels, 1)
        self.reg_out = _conv(channels, 4 * self.num_outputs)
        self.quality_out = quality_out if quality_prior is not None else None
        self.scales = nn.Parameter(torch.ones(len(layout.strides)))  # one per level, on the regression outputs
        nn.init.constant_(self.cls_out.bias, -math.log((1 - CLASS_PRIOR) / CLASS_PRIOR))
        if self.quality_out:
            nn.init.constant_(self.quality_out.bias, math.log(quality_prior / (1 - quality_prior)))
        with torch.no_grad():
            self.reg_out.bias.copy_(torch.tensor(initial).repeat(4))

    def forward(self, pyramid: Sequence[Tensor]) -> HeadOutput:
        """Features (B, channels, H/s, W/s) from fine to coarse -> raw outputs over all points."""
        cls_logits, reg_pred, quality_logits = [], [], []
        for scale, feature in zip(self.scales, pyramid, strict=True):
            cls_logits.append(_flatten(self.cls_out(self.cls_tower(feature)), self.num_classes))
            regression = self.reg_tower(feature)
            reg_pred.append(_flatten(self.reg_out(regression).float() * scale, 4 * self.num_outputs))
            if self.quality_out:
                quality_logits.append(self.quality_out(regression).flatten(1))
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in pyramid]
        grid = make_point_grid(sizes, self.layout, device=pyramid[0].device)
        reg = torch.cat(reg_pred, dim=1).unflatten(-1, (4, self.num_outputs))
        quality = torch.cat(quality_logits, dim=1) if self.quality_out else None
        return HeadOutput(torch.cat(cls_logits, dim=1), reg, quality, grid)


def _tower(in_channels: int, channels: int, num_convs: int, conv_bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(num_convs):
        layers += [
            _conv(in_channels if index == 0 else channels, channels, bias=conv_bias),
            nn.GroupNorm(GROUPS, channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _conv(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.01)
    if bias:
        nn.init.zeros_(conv.bias)
    return conv


def _flatten(output: Tensor, width: int) -> Tensor:
    """(B, width, h, w) -> (B, h * w, width), row-major."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, width)
