"""Axis 2 of the ablations: how a head's numbers describe the four sides of a box (table 2a).

A representation says how many numbers it needs per side and where they start (`initial`), turns them into distances
(`distances` in training, `decode` in evaluation), and may have a loss of its own (`loss`, called `loss_name`).
Distances are in strides of the point's level.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfl.method.losses import MAX_LOG_VARIANCE, distribution_focal_loss, gaussian_loss

ANCHOR_SCALE = 8.0  # side of the square that anchor deltas start from, in strides
DELTA_STDS = (0.1, 0.1, 0.2, 0.2)  # of x, y, width, height
MAX_LOG_RATIO = abs(math.log(16 / 1000))  # of a side to the square's


class BoxRepresentation(nn.Module):
    """What a row of table 2(a) provides; `decode` is `distances` unless a row is decoded in another way."""

    initial: Sequence[float] = (0.0,)  # what a side's numbers start at, but for small random weights
    loss_name: str | None = None

    @property
    def num_outputs(self) -> int:
        """Numbers per side, called K below."""
        return len(self.initial)

    def distances(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, K) -> (..., 4) in float32."""
        raise NotImplementedError

    def decode(self, reg_pred: Tensor) -> Tensor:
        """The distances (..., 4) that detections are made of."""
        return self.distances(reg_pred)

    def loss(self, reg_pred: Tensor, target_distances: Tensor) -> Tensor | None:
        """(..., 4, K), (..., 4) -> (...), averaged over the sides; None for rows without one."""
        return None


class DiracBox(BoxRepresentation):
    """Each side is one number, its distance: l, t, r, b as in FCOS (arXiv 1904.01355, with normalised targets).

    Args:
        start: the distance that all sides start at, in strides. At 0, behind a ReLU, half of them have no gradient.
    """

    def __init__(self, *, start: float = 0.0) -> None:
        super().__init__()
        self.initial = (start,)

    def distances(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, 1) -> (..., 4), not negative."""
        return F.relu(reg_pred.squeeze(-1).float())


class AnchorDeltaBox(BoxRepresentation):
    """Offset and log size against a square of 8 strides around the point: what ATSS regresses (V1, mmdetection).

    The four numbers are x, y, width and height instead of one per side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stds", torch.tensor(DELTA_STDS, device="cpu"), persistent=False)  # as `project` below

    def distances(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, 1) -> (..., 4); negative where the point lies outside the box."""
        deltas = reg_pred.squeeze(-1).float() * self.stds
        center = deltas[..., :2] * ANCHOR_SCALE
        half = deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * (ANCHOR_SCALE / 2)
        return torch.cat([half - center, half + center], dim=-1)


class GaussianBox(BoxRepresentation):
    """Each side is a normal distribution: its mean, which is the distance, and the logarithm of its variance.

    Args:
        start: the mean that all sides start at, in strides; the variance starts at 1.
    """

    loss_name = "nll"

    def __init__(self, *, start: float = 0.0) -> None:
        super().__init__()
        self.initial = (start, 0.0)

    def distances(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, 2) -> (..., 4) means, not negative."""
        return F.relu(reg_pred[..., 0].float())

    def deviations(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, 2) -> (..., 4) standard deviations in strides, within the limits of the loss."""
        return (reg_pred[..., 1].float().clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE) / 2).exp()

    def loss(self, reg_pred: Tensor, target_distances: Tensor) -> Tensor:
        """Negative log likelihood averaged over the sides; of the raw mean, so that a negative one still learns."""
        return gaussian_loss(reg_pred[..., 0], reg_pred[..., 1], target_distances).mean(dim=-1)


class GeneralBox(BoxRepresentation):
    """Each side is a discrete distribution over 0, delta, ..., reg_max * delta; its expectation is the distance.

    Section 3.2 and eq. 5 of the paper: n = `reg_max`, with `delta` the interval between neighbours, both in strides.

    Args:
        peak: decode by the highest mode alone instead of the whole distribution.
    """

    loss_name = "dfl"

    def __init__(self, *, reg_max: int = 16, delta: float = 1.0, peak: bool = False) -> None:
        super().__init__()
        self.initial = (0.0,) * (reg_max + 1)  # uniform: the expectation starts at half the range
        self.reg_max, self.delta, self.peak = reg_max, delta, peak
        # It is in no checkpoint, so it needs its values even in a model that is built on the meta device.
        project = torch.arange(self.num_outputs, dtype=torch.float32, device="cpu") * delta
        self.register_buffer("project", project, persistent=False)

    def probabilities(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, N) logits -> (..., 4, N) in float32."""
        return reg_pred.float().softmax(dim=-1)

    def distances(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, N) logits -> (..., 4) expectations, in float32 also under autocast."""
        return (self.probabilities(reg_pred) * self.project).sum(dim=-1)

    def decode(self, reg_pred: Tensor) -> Tensor:
        """Expectations (..., 4), or with `peak` those of the highest mode alone."""
        if not self.peak:
            return self.distances(reg_pred)
        probabilities = self.probabilities(reg_pred)
        mode = probabilities * highest_mode(probabilities)
        return (mode * self.project).sum(dim=-1) / mode.sum(dim=-1)

    def loss(self, reg_pred: Tensor, target_distances: Tensor) -> Tensor:
        """DFL averaged over the four sides: (..., 4, N), (..., 4) -> (...).

        Targets beyond the range are moved to 0.1 bins below its end, as in the reference.
        """
        bins = (target_distances / self.delta).clamp(0, self.reg_max - 0.1)
        return distribution_focal_loss(reg_pred, bins).mean(dim=-1)


def highest_mode(probabilities: Tensor) -> Tensor:
    """(..., N) -> (..., N) bool: the most probable bin and the bins on both sides down to the next valley."""
    step = probabilities.diff(dim=-1)
    top = probabilities.argmax(dim=-1, keepdim=True)
    # Numbers of rising and of falling steps before each bin. A bin after the top belongs to the mode if no step between
    # them rises, a bin before it if none falls.
    rises, falls = (F.pad(wrong.long().cumsum(dim=-1), (1, 0)) for wrong in (step > 0, step < 0))
    bins = torch.arange(probabilities.shape[-1], device=probabilities.device)
    return torch.where(bins >= top, rises == rises.gather(-1, top), falls == falls.gather(-1, top))
