"""Axis 1 of the ablations: how a detector says how well a box fits (table 1a).

A row of the table is a `Quality`: what the class logits learn, and how outputs become scores.
"""

import torch
from torch import Tensor

from gfl.errors import UserError
from gfl.losses import quality_focal_loss
from gfl.structures import HeadOutput


class JointQuality:
    """The paper's row: one logit per class is classification and localisation quality at once, trained with QFL."""

    def __init__(self, *, beta: float = 2.0) -> None:
        self.beta = beta

    def class_loss(self, output: HeadOutput, labels: Tensor, positive: Tensor, measure: Tensor) -> Tensor:
        """Elementwise loss (B, P, C).

        `labels` (B, P) in [0, C), any value where `positive` (B, P) is False; `measure` (B, P) the IoU of the predicted
        box with its ground truth. The target is the measure at the label's class and 0 elsewhere.
        """
        target = torch.zeros_like(output.cls_logits, dtype=measure.dtype)
        target.scatter_(-1, labels.unsqueeze(-1), (measure * positive).unsqueeze(-1))
        return quality_focal_loss(output.cls_logits, target, beta=self.beta)

    def scores(self, output: HeadOutput) -> Tensor:
        """Class probabilities (B, P, C) in float32, by which detections are ranked."""
        return output.cls_logits.float().sigmoid()


QUALITIES = {"joint": JointQuality}


def build_quality(name: str, *, beta: float) -> JointQuality:
    """The row called `name` in the config; raises `UserError` for one that does not exist."""
    if name not in QUALITIES:
        raise UserError(f"model.head.quality: {name!r} does not exist; available: {', '.join(QUALITIES)}")
    return QUALITIES[name](beta=beta)
