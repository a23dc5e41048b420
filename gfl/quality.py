"""Axis 1 of the ablations: how a detector says how well a box fits (table 1a, and GFLv2's).

A row of the table is a `Quality`: what it adds to the head's outputs, what the class logits learn, and how outputs
become scores.
"""

import torch
from torch import Tensor, nn

from gfl.config import HeadConfig
from gfl.errors import UserError
from gfl.losses import quality_focal_loss
from gfl.structures import HeadOutput


class JointQuality(nn.Module):
    """The paper's row: one logit per class is classification and localisation quality at once, trained with QFL."""

    def __init__(self, *, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, output: HeadOutput) -> HeadOutput:
        """The head's outputs with what this row predicts beside them: here nothing."""
        return output

    def logits(self, output: HeadOutput) -> Tensor:
        """Logits (B, P, C) of the scores."""
        return output.cls_logits

    def class_loss(self, output: HeadOutput, labels: Tensor, positive: Tensor, measure: Tensor) -> Tensor:
        """Elementwise loss (B, P, C).

        `labels` (B, P) in [0, C), any value where `positive` (B, P) is False; `measure` (B, P) the IoU of the predicted
        box with its ground truth. The target is the measure at the label's class and 0 elsewhere.
        """
        target = torch.zeros_like(output.cls_logits, dtype=measure.dtype)
        target.scatter_(-1, labels.unsqueeze(-1), (measure * positive).unsqueeze(-1))
        return quality_focal_loss(self.logits(output), target, beta=self.beta)

    def scores(self, output: HeadOutput) -> Tensor:
        """Class probabilities (B, P, C) in float32, by which detections are ranked."""
        return output.cls_logits.float().sigmoid()


class DistributionGuidedQuality(JointQuality):
    """GFLv2's row (arXiv 2011.12885): the score is a class probability times a quality read from the distributions.

    Its predictor (DGQP) sees, per side, the `topk` largest probabilities and their mean (`add_mean`): a sharp
    distribution has large ones. Gradient flows through it into the distributions. QFL acts on the product.
    """

    def __init__(self, *, beta: float = 2.0, topk: int = 4, hidden: int = 64, add_mean: bool = True) -> None:
        super().__init__(beta=beta)
        self.topk, self.add_mean = topk, add_mean
        self.hidden = nn.Linear(4 * (topk + add_mean), hidden)
        self.out = nn.Linear(hidden, 1)
        for layer in (self.hidden, self.out):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, output: HeadOutput) -> HeadOutput:
        """The head's outputs with `quality_logits` (B, P)."""
        statistics = output.reg_pred.float().softmax(dim=-1).topk(self.topk, dim=-1).values  # (B, P, 4, topk)
        if self.add_mean:
            statistics = torch.cat([statistics, statistics.mean(dim=-1, keepdim=True)], dim=-1)
        quality = self.out(self.hidden(statistics.flatten(-2)).relu())
        return output._replace(quality_logits=quality.squeeze(-1))

    def logits(self, output: HeadOutput) -> Tensor:
        """The logit of the product of two probabilities, in float32 and from their logits.

        ``1 / (sigmoid(a) sigmoid(q)) = (1 + e^-a) (1 + e^-q)``, so the odds against are ``e^-a + e^-q + e^(-a-q)``.
        """
        a, q = -output.cls_logits.float(), -output.quality_logits.float().unsqueeze(-1)
        return -torch.logaddexp(a, torch.logaddexp(q, a + q))

    def scores(self, output: HeadOutput) -> Tensor:
        """Class probabilities times qualities (B, P, C) in float32."""
        return super().scores(output) * output.quality_logits.float().sigmoid().unsqueeze(-1)


QUALITIES = {"joint": JointQuality, "dgqp": DistributionGuidedQuality}


def build_quality(head: HeadConfig, *, beta: float) -> JointQuality:
    """The row that the config names; raises `UserError` for one that does not exist or fit."""
    if head.quality not in QUALITIES:
        raise UserError(f"model.head.quality: {head.quality!r} does not exist; available: {', '.join(QUALITIES)}")
    if head.quality != "dgqp":
        return QUALITIES[head.quality](beta=beta)
    dgqp = head.dgqp
    if dgqp.topk > head.reg_max + 1:
        raise UserError(f"model.head.dgqp.topk: {dgqp.topk} are more than the {head.reg_max + 1} bins of a side")
    return DistributionGuidedQuality(beta=beta, topk=dgqp.topk, hidden=dgqp.hidden, add_mean=dgqp.add_mean)
