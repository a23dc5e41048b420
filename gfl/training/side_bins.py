"""Side logits of a trained detector, re-sampled to the bins of another `model.head.reg_max` and `model.head.delta`.

The new logits must be linear in the old ones, since they are written into the weights of the last convolution. Old bins
that are also new ones keep their logits. A bin in between gets those of its two neighbours, interpolated, and one
beyond the old range that of the last bin, which already says "far away": with the mean of all bins, or none, the loss
of a detector of soft shapes took 35 steps instead of 15 to fall as far.

If that were all, expectations would move, in that detector by up to 0.5 strides with half its delta. So all bins that
are added are lowered as well, by `_lowering`. They still learn: at the two bins of its target DFL's gradient is the
probability minus the bin's share, which does not vanish with the probability.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfl.build import build_detector
from gfl.checkpoint import check_model_state
from gfl.common.errors import UserError
from gfl.config import MAX_REG_MAX, Config, HeadConfig

SIDE_TENSORS = ("head.reg_out.weight", "head.reg_out.bias")  # 4 x (reg_max + 1) rows, side by side
TOLERANCE = 0.05  # strides by which re-sampling may move the expectation of a side


def can_resample(old: HeadConfig, new: HeadConfig) -> bool:
    """Whether the old bins within the new range are new bins too: delta stays or is divided by a whole number.

    Otherwise no linear map keeps expectations: a side that is sure of a bin which no longer exists has to become
    balanced between its neighbours, and the logits of other bins do not say how.
    """
    ratio = old.delta / new.delta  # of which more than MAX_REG_MAX leaves the first bin only
    whole = ratio <= MAX_REG_MAX and math.isclose(ratio, round(ratio), rel_tol=1e-6)
    return old.box == new.box == "general" and whole


def resample_sides(state: Mapping[str, Any], old: Config, new: HeadConfig, path: Path) -> dict[str, Tensor]:
    """The `SIDE_TENSORS` of a checkpoint with config `old` for the bins of `new`, where `can_resample`.

    No expectation moves by more than `TOLERANCE` strides for the bins that are added. Of a side that has probability
    beyond a shorter new range, that part is lost, and added bins at the new edge may have some of it. Raises
    `UserError` naming `path` where the weights are not those of `old`, or where a level's scale is not positive, so
    that no bias lowers a logit on all levels.
    """
    with torch.device("meta"):
        check_model_state(build_detector(old, len(state["class_names"])), dict(state), path)
    model, head = state["model"], old.model.head
    smallest_scale = model["head.scales"].min().item()
    if smallest_scale <= 0:
        raise UserError(
            f"model.weights: {path} has a level whose scale is {smallest_scale:.3g}, so that its sides cannot be "
            f"re-sampled; add model.head.reg_max={head.reg_max} model.head.delta={head.delta}",
            code="architecture",
        )
    mix, added = bin_mixture(head, new)
    rows = {name: _mix_rows(mix, model[name]) for name in SIDE_TENSORS}
    bias = rows["head.reg_out.bias"].unflatten(0, (4, -1))
    bias[:, added] -= _lowering(mix, added, head, new) / smallest_scale
    return rows


def bin_mixture(old: HeadConfig, new: HeadConfig) -> tuple[Tensor, Tensor]:
    """Weights (N new, N old) of the old logits in each new one, and which new bins are no old ones, (N new) bool."""
    factor, index = round(old.delta / new.delta), torch.arange(new.reg_max + 1)
    at = (index / factor).clamp(max=old.reg_max)  # in old bins
    mix = (1 - (at[:, None] - torch.arange(old.reg_max + 1)).abs()).clamp(min=0)
    return mix, (index % factor > 0) | (index > old.reg_max * factor)


def _mix_rows(mix: Tensor, saved: Tensor) -> Tensor:
    """(4 x N old, ...) -> (4 x N new, ...)."""
    sides = saved.unflatten(0, (4, mix.shape[1]))
    return torch.einsum("nm,sm...->sn...", mix.to(saved), sides).flatten(0, 1)


def _lowering(mix: Tensor, added: Tensor, old: HeadConfig, new: HeadConfig) -> float:
    """The amount L by which the logits of added bins are lowered.

    Added bin j then has at most e^-L times the mean of the old probabilities p_k, with weights w_jk: the geometric mean
    of two numbers is no larger than the arithmetic one. So the expectation E moves by at most e^-L times the sum of
    w_jk p_k |x_j - E| over j and k, where |x_j - E| <= |x_j - x_k| + |x_k - E|; and the mean of |x_k - E| over p is at
    most half the range of the x_k.
    """
    shares, positions = mix[added], torch.arange(len(mix))[added] * new.delta
    if not len(shares):
        return 0.0
    far = (positions[:, None] - torch.arange(mix.shape[1]) * old.delta).abs()
    reach = min(old.reg_max * old.delta, new.reg_max * new.delta)
    moved = shares.sum(dim=0).max() * reach / 2 + (shares * far).sum(dim=0).max()
    return max(0.0, math.log(moved.item() / TOLERANCE))
