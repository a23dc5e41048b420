"""Localisation distillation (LD, arXiv 2102.12252): side distributions learn those of a trained teacher."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfl.method.assign import anchor_boxes, atss_thresholds
from gfl.method.boxes import box_iou, distance_box_iou
from gfl.structures import HeadOutput, PointGrid, Targets

VALUABLE_FROM = 0.25  # share of a box's threshold at which its valuable region begins: the paper's gamma
VALUABLE_WEIGHT = 0.25  # of that region against the main one, as in the official code


def distillation_loss(reg_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 10.0) -> Tensor:
    """KL divergence of the student's softened distribution from the teacher's: (..., N), (..., N) -> (...).

    Logits are divided by the temperature T before the softmax. As in the reference, the divergence is averaged over the
    N bins instead of summed, and multiplied by T squared. Computed in float32 or the input's higher precision.
    """

    def log_probabilities(logits: Tensor) -> Tensor:
        return (logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature).log_softmax(dim=-1)

    student, teacher = log_probabilities(reg_logits), log_probabilities(teacher_logits.detach())
    return F.kl_div(student, teacher, reduction="none", log_target=True).mean(dim=-1) * temperature**2


class Distillation(nn.Module):
    """The loss of the student's sides against the teacher's, in the regions where it is taught.

    The main region are the positives, with the weight of their other box terms. The valuable one lies around it, with
    weights of its own (`valuable_region`) and, as in the official code, a quarter of their effect.

    Args:
        teacher: normalised images (B, 3, H, W) -> its side logits (B, P, 4, N), at the student's points.
        main: whether the main region is taught.
        valuable: ``(grid, targets, inside) -> (B, P)`` weights of the valuable region; None to leave it out.
    """

    def __init__(
        self,
        teacher: Callable[[Tensor], Tensor],
        *,
        weight: float = 0.25,
        temperature: float = 10.0,
        main: bool = True,
        valuable: Callable[[PointGrid, Targets, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.valuable = teacher, valuable
        self.weight, self.temperature, self.main = weight, temperature, main

    def forward(
        self, output: HeadOutput, images: Tensor, targets: Targets, inside: Tensor, trained: Tensor, box_weight: Tensor
    ) -> Tensor:
        """The weighted sum over all points, a scalar that is yet to be divided by the sum of the box weights.

        Args:
            output: of the student.
            inside: (B, P) bool, points that are not in padding.
            trained: (B, P) bool, points that are neither ignored nor in padding.
            box_weight: (B, P) of the box terms, 0 where not positive.
        """
        with torch.no_grad():
            taught = self.teacher(images)
            weight = box_weight if self.main else torch.zeros_like(box_weight)
            if self.valuable is not None:
                weight = weight + VALUABLE_WEIGHT * self.valuable(output.grid, targets, inside) * trained
        loss = distillation_loss(output.reg_pred, taught, temperature=self.temperature).mean(dim=-1)
        return self.weight * (loss * weight).sum()


def valuable_region(
    grid: PointGrid, targets: Targets, inside: Tensor, *, topk: int, anchor_scale: float, reach: float | None
) -> Tensor:
    """Weights (B, P) of the valuable localisation region (VLR, algorithm 1) under `assign_atss` with these arguments.

    It consists, per box, of the points of all levels whose square has a DIoU with the box from `VALUABLE_FROM` times
    ATSS's threshold up to below the threshold. They need not be candidates, nor lie within the box. As in the official
    code, the weight of a point is the IoU of its square with the box, the largest of several; elsewhere it is 0. Points
    in padding are left to the caller.
    """
    threshold = atss_thresholds(grid, targets, inside, topk=topk, anchor_scale=anchor_scale, reach=reach)
    squares, boxes_xyxy = anchor_boxes(grid, anchor_scale), targets.boxes_xyxy.unsqueeze(2)  # (P, 4), (B, G, 1, 4)
    diou, threshold = distance_box_iou(squares, boxes_xyxy), threshold.unsqueeze(-1)
    belongs = (diou >= VALUABLE_FROM * threshold) & (diou < threshold)  # never in padded slots: their threshold is 0
    return (box_iou(squares, boxes_xyxy) * belongs).amax(dim=1)
