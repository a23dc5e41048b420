"""The losses of the paper (arXiv 2006.04388): elementwise, unreduced, in float32 or the input's higher precision."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl.method.boxes import generalized_box_iou

MAX_LOG_VARIANCE = 8.0


def quality_focal_loss(logits: Tensor, target: Tensor, *, beta: float = 2.0) -> Tensor:
    """QFL, eq. 2: ``|y - sigmoid(x)|^beta * BCE(sigmoid(x), y)``.

    `logits` of any shape, `target` of the same shape in [0, 1]: the IoU at the ground truth's class, 0 elsewhere.
    """
    logits = _at_least_float32(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (target - logits.sigmoid()).abs().pow(beta) * cross_entropy


def varifocal_loss(logits: Tensor, target: Tensor, *, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """Varifocal loss (arXiv 2008.13367, eq. 2) with p = sigmoid(x).

    ``y * BCE(p, y)`` where y > 0; ``alpha * p^gamma * BCE(p, 0)`` elsewhere.
    `logits` of any shape, `target` y of the same shape in [0, 1], as for QFL.
    """
    logits = _at_least_float32(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return torch.where(target > 0, target, alpha * logits.sigmoid().pow(gamma)) * cross_entropy


def distribution_focal_loss(reg_logits: Tensor, target_bins: Tensor) -> Tensor:
    """DFL, eq. 6: cross entropy to the two bins around the target, weighted by nearness.

    `reg_logits` (..., N) before the softmax, `target_bins` (...) in [0, N - 1] -> (...). The minimum puts all mass on
    these two bins, and its expectation is the target.
    """
    log_prob = _at_least_float32(reg_logits).log_softmax(dim=-1)
    left = target_bins.floor().clamp(max=reg_logits.shape[-1] - 2)  # the last bin is only ever a right neighbour
    right_weight = target_bins - left
    left = left.unsqueeze(-1).long()  # a copy: inductor may keep it for the backward pass, and fails to keep a view
    log_left, log_right = log_prob.gather(-1, left).squeeze(-1), log_prob.gather(-1, left + 1).squeeze(-1)
    return -(1 - right_weight) * log_left - right_weight * log_right


def generalized_focal_loss(
    prob_left: Tensor, prob_right: Tensor, target: Tensor, *, left: float | Tensor, right: float | Tensor, beta: float
) -> Tensor:
    """GFL, eq. 7: focal loss, QFL and DFL are its special cases, which training uses in their stabler forms.

    `prob_left` and `prob_right` are the probabilities of the values ``left <= target <= right``; all of one shape. The
    minimum over them lies at ``prob_left = (right - target) / (right - left)`` and the rest on the right.
    """
    difference = target - (left * prob_left + right * prob_right)
    cross_entropy = torch.xlogy(right - target, prob_left) + torch.xlogy(target - left, prob_right)
    return -difference.abs().pow(beta) * cross_entropy


def gaussian_loss(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Negative log likelihood of a normal distribution without its constant, all of one shape.

    Log variances are kept within +-`MAX_LOG_VARIANCE`, so that no single target can drive the loss to infinity.
    """
    log_variance = _at_least_float32(log_variance).clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE)
    return (target - mean).pow(2) * (-log_variance).exp() / 2 + log_variance / 2


def giou_loss(boxes_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """1 - GIoU (arXiv 1902.09630): (..., 4), (..., 4) -> (...) in [0, 2]."""
    return 1 - generalized_box_iou(boxes_xyxy, target_xyxy)


def _at_least_float32(x: Tensor) -> Tensor:
    """Losses of half-precision outputs are computed in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
