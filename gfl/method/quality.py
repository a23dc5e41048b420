"""Axis 1 of the ablations: how a detector estimates how well a box fits (table 1a, GFLv2's row, and others).

A row of the table is a `Quality`: what it adds to the head's outputs, what the class logits learn, how much a box
counts, and how outputs become scores. The quality that a box has is its IoU with the ground truth, or its centerness.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from gfl.method.boxes import centerness
from gfl.method.dense_loss import background_loss
from gfl.method.losses import quality_focal_loss, varifocal_loss
from gfl.structures import HeadOutput

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
VARIFOCAL_ALPHA, VARIFOCAL_GAMMA = 0.75, 2.0
BACKGROUND_PRIOR = 0.01  # initial output of a branch that learns the background too, as of the classes
GUIDE_POWER = 1.5  # of the quality, in the weights of guided rows


class Quality(nn.Module):
    """A row: what it predicts and learns, and how outputs become scores. The defaults suit most rows."""

    # Initial output of the branch on the regression tower that predicts `quality_logits`; None for a head without one.
    branch_prior: float | None = None

    def forward(self, output: HeadOutput) -> HeadOutput:
        """The head's outputs, with what this row adds to them; by default nothing."""
        return output

    def quality_target(self, iou: Tensor, distances: Tensor) -> Tensor:
        """How well a box fits, (B, P).

        `iou` (B, P) of the predicted box with its ground truth, `distances` (B, P, 4) to the sides of the latter.
        """
        return iou

    def class_loss(
        self, output: HeadOutput, labels: Tensor, positive: Tensor, trained: Tensor, quality_target: Tensor
    ) -> Tensor:
        """Sum over the classes of all trained points.

        `labels` (B, P) in [0, C), any class where `positive` (B, P) is False; `trained` (B, P), positive or background;
        `quality_target` (B, P).
        """
        raise NotImplementedError

    def branch_loss(
        self, output: HeadOutput, positive: Tensor, trained: Tensor, quality_target: Tensor
    ) -> Tensor | None:
        """Sum of the quality branch's losses, arguments as of `class_loss`; None without a branch."""
        return None

    def box_weight(self, output: HeadOutput, quality_target: Tensor) -> Tensor:
        """Weight (B, P) of a positive's box terms, without gradient."""
        raise NotImplementedError

    def scores(self, output: HeadOutput) -> Tensor:
        """Class probabilities (B, P, C) in float32, to which the score threshold applies."""
        return output.cls_logits.float().sigmoid()

    def rank_factor(self, output: HeadOutput) -> Tensor | None:
        """Qualities (B, P) by which scores are multiplied after the threshold, to rank detections; None for 1."""
        return None


class JointQuality(Quality):
    """The paper's row: one logit per class is classification and localisation quality at once, trained with QFL."""

    def __init__(self, *, beta: float = 2.0) -> None:
        super().__init__()
        self.beta = beta

    def logits(self, output: HeadOutput) -> Tensor:
        """Logits (B, P, C) of the scores."""
        return output.cls_logits

    def class_loss(
        self, output: HeadOutput, labels: Tensor, positive: Tensor, trained: Tensor, quality_target: Tensor
    ) -> Tensor:
        """QFL: the target is the quality at the label's class and 0 elsewhere."""
        background, at_label = background_loss(self.logits(output), labels, positive, trained, beta=self.beta)
        return background + (quality_focal_loss(at_label, quality_target, beta=self.beta) * positive).sum()

    def box_weight(self, output: HeadOutput, quality_target: Tensor) -> Tensor:
        """The detached best score, which is that of the best logit."""
        best = output.cls_logits.detach().amax(dim=-1, keepdim=True)
        return self.scores(output._replace(cls_logits=best)).detach().squeeze(-1)


class VarifocalQuality(JointQuality):
    """The joint row with VarifocalNet's class loss (arXiv 2008.13367) in place of QFL.

    What weights a positive is its target, not its distance from it, and the background weighs less.
    """

    def __init__(self) -> None:
        super().__init__(beta=VARIFOCAL_GAMMA)

    def class_loss(
        self, output: HeadOutput, labels: Tensor, positive: Tensor, trained: Tensor, quality_target: Tensor
    ) -> Tensor:
        """Varifocal loss with the targets of QFL; its background is QFL's but for alpha."""
        background, at_label = background_loss(self.logits(output), labels, positive, trained, beta=self.beta)
        loss = varifocal_loss(at_label, quality_target, alpha=VARIFOCAL_ALPHA, gamma=self.beta)
        return VARIFOCAL_ALPHA * background + (loss * positive).sum()


class DistributionGuidedQuality(JointQuality):
    """GFLv2's row (arXiv 2011.12885): the score is a class probability times a quality read from the distributions.

    Its predictor (DGQP) reads, per side, the `topk` largest probabilities and their mean (`add_mean`): a sharp
    distribution has large ones. Gradient flows through it into the distributions. QFL acts on the product.

    Args:
        kaiming: draw the weights by Kaiming's rule instead of with the reference's deviation of 0.01. What the hidden
            units get is positive, so that all weights of a unit move together; with AdamW, whose first steps are as
            long for small gradients, they leave 0.01 behind within a few steps, and most units die.
    """

    def __init__(
        self, *, beta: float = 2.0, topk: int = 4, hidden: int = 64, add_mean: bool = True, kaiming: bool = False
    ) -> None:
        super().__init__(beta=beta)
        self.topk, self.add_mean = topk, add_mean
        self.hidden = nn.Linear(4 * (topk + add_mean), hidden)
        self.out = nn.Linear(hidden, 1)
        for layer in (self.hidden, self.out):
            if kaiming:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
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


class SeparateQuality(Quality):
    """The rows that the paper compares with: class logits learn the class alone, with the focal loss.

    The quality, if any, is predicted by a branch, whose sigmoid multiplies the scores in evaluation only; or it guides,
    that is, it weights the class losses of positives and nothing is predicted. It also weights box terms, as in ATSS
    and FCOS.

    Args:
        by: what the quality of a box is, ``iou`` or ``centerness``; None for nothing, and a weight of 1.
        guide: guided, without a branch.
        negatives: the background teaches the branch a quality of 0. A plain cross entropy over so many points would
            swamp the positives, so it has QFL's factor; the loss of positives stays as it is.
    """

    def __init__(self, *, by: str | None = None, guide: bool = False, negatives: bool = False) -> None:
        super().__init__()
        self.by, self.guide, self.negatives = by, guide, negatives
        if by is not None and not guide:
            self.branch_prior = BACKGROUND_PRIOR if negatives else 0.5

    def quality_target(self, iou: Tensor, distances: Tensor) -> Tensor:
        """IoU, centerness or 1, (B, P)."""
        if self.by is None:
            return torch.ones_like(iou)
        return iou if self.by == "iou" else centerness(distances)

    def class_loss(
        self, output: HeadOutput, labels: Tensor, positive: Tensor, trained: Tensor, quality_target: Tensor
    ) -> Tensor:
        """Focal loss with target 1 at the label's class of positives; its background is QFL's but for alpha."""
        background, at_label = background_loss(output.cls_logits, labels, positive, trained, beta=FOCAL_GAMMA)
        ones = torch.ones_like(at_label)
        loss = sigmoid_focal_loss(at_label, ones, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA) * positive
        if self.guide:
            # After IoU-balanced classification loss (arXiv 1908.05641): the sum over positives stays what it was.
            weight, fixed = quality_target.pow(GUIDE_POWER), loss.detach()
            loss = loss * weight * (fixed.sum() / (fixed * weight).sum().clamp(min=1e-6))
        return (1 - FOCAL_ALPHA) * background + loss.sum()

    def branch_loss(
        self, output: HeadOutput, positive: Tensor, trained: Tensor, quality_target: Tensor
    ) -> Tensor | None:
        """Binary cross entropy of positives against their quality; with `negatives` QFL of the background against 0."""
        if self.branch_prior is None:
            return None
        logits = output.quality_logits.float()
        loss = F.binary_cross_entropy_with_logits(logits, quality_target, reduction="none")
        if not self.negatives:
            return (loss * positive).sum()
        background = quality_focal_loss(logits, torch.zeros_like(logits), beta=FOCAL_GAMMA)
        return (torch.where(positive, loss, background) * trained).sum()

    def box_weight(self, output: HeadOutput, quality_target: Tensor) -> Tensor:
        """The quality itself."""
        return quality_target

    def rank_factor(self, output: HeadOutput) -> Tensor | None:
        """The branch's qualities (B, P) in float32."""
        return None if self.branch_prior is None else output.quality_logits.float().sigmoid()
