"""From raw outputs and ground truth to the losses of training (eq. 8 with the reference's normalisers)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gfl.common.distributed import mean_over_processes, world_size
from gfl.method.assign import leave_out_ignored
from gfl.method.box_representation import BoxRepresentation
from gfl.method.boxes import box_iou, boxes_to_distances, distances_to_boxes
from gfl.method.distillation import Distillation
from gfl.method.losses import giou_loss
from gfl.method.points import points_in_images
from gfl.method.quality import Quality
from gfl.structures import Assignment, HeadOutput, PointGrid, PointPredictions, Predict, Targets


class PointTargets(NamedTuple):
    """What each point learns, as far as it needs no prediction. Boxes and distances are in strides."""

    labels: Tensor  # (B, P) int64, any value where not positive
    boxes: Tensor  # (B, P, 4)
    distances: Tensor  # (B, P, 4) from the point to the sides of its box
    positive: Tensor  # (B, P) bool
    inside: Tensor  # (B, P) bool, not in padding
    trained: Tensor  # (B, P) bool, positive or background: neither ignored nor in padding


class Criterion(nn.Module):
    """Assign -> targets -> losses -> normalisers.

    Everything is dense over (B, P) and masked: the shapes do not depend on how many points are positive, and nothing
    waits for the device.

    Args:
        assigner: ``(grid, targets, inside, predict) -> Assignment`` (`gfl.method.assign`).
        distillation: adds the loss ``ld`` against a teacher.
    """

    def __init__(
        self,
        assigner: Callable[[PointGrid, Targets, Tensor, Predict | None], Assignment],
        quality: Quality,
        box_repr: BoxRepresentation,
        *,
        cls_weight: float = 1.0,
        box_weight: float = 2.0,
        dfl_weight: float = 0.25,
        quality_weight: float = 1.0,
        distillation: Distillation | None = None,
    ) -> None:
        super().__init__()
        self.assigner, self.quality, self.box_repr = assigner, quality, box_repr
        self.distillation = distillation
        self.cls_weight, self.box_weight = cls_weight, box_weight
        self.dfl_weight, self.quality_weight = dfl_weight, quality_weight

    def forward(
        self,
        output: HeadOutput,
        targets: Targets,
        image_sizes: Tensor,
        step: tuple[Tensor, Tensor] | None = None,
        images: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Weighted scalar losses whose sum is minimised.

        ``cls`` and ``box``; the box representation's own, ``dfl`` or ``nll``; ``quality`` of a quality branch; ``ld``.
        Without a single box in the batch all but ``cls`` are 0 and still reach every parameter; but for ``quality``
        where the background teaches the branch.

        `step`, for a batch that is one of several passes, is what `gfl.training.accumulation` knows of all of them:
        their number of positives, and by how much their sum of box weights exceeds this pass's. `images`, normalised,
        are for a teacher.
        """
        points = output.grid.points / output.grid.strides[:, None]
        boxes = distances_to_boxes(points, self.box_repr.distances(output.reg_pred))
        matched = self.match(output.grid, targets, image_sizes, partial(self._predictions, output, boxes))
        positive = matched.positive
        iou = box_iou(boxes.detach(), matched.boxes).clamp(0, 1)
        quality_target = self.quality.quality_target(iou, matched.distances)
        weight = self.quality.box_weight(output, quality_target) * positive
        num_positive, sum_weight = _normalisers(positive, weight, step)

        cls_loss = self.quality.class_loss(output, matched.labels, positive, matched.trained, quality_target)
        losses = {
            "cls": self.cls_weight * cls_loss / num_positive,
            "box": self.box_weight * (giou_loss(boxes, matched.boxes) * weight).sum() / sum_weight,
        }
        own_loss = self.box_repr.loss(output.reg_pred, matched.distances)
        if own_loss is not None:
            losses[self.box_repr.loss_name] = self.dfl_weight * (own_loss * weight).sum() / sum_weight
        branch_loss = self.quality.branch_loss(output, positive, matched.trained, quality_target)
        if branch_loss is not None:
            losses["quality"] = self.quality_weight * branch_loss / num_positive
        if self.distillation is not None:
            ld_loss = self.distillation(output, images, targets, matched.inside, matched.trained, weight)
            losses["ld"] = ld_loss / sum_weight
        return losses

    def match(
        self, grid: PointGrid, targets: Targets, image_sizes: Tensor, predict: Predict | None = None
    ) -> PointTargets:
        """Which ground truth each point learns; `predict` may be left out where the assigner needs no predictions."""
        inside = points_in_images(grid, image_sizes)
        assignment = leave_out_ignored(self.assigner(grid, targets, inside, predict), grid, targets)
        slot = assignment.index.clamp(min=0)  # other points read slot 0 and are masked by `positive`
        labels = targets.labels.gather(1, slot)
        boxes = targets.boxes_xyxy.gather(1, slot.unsqueeze(-1).expand(-1, -1, 4))

        # In strides, as in the reference. Other points get their own box: any finite one will do.
        points, positive = grid.points / grid.strides[:, None], assignment.positive
        boxes = torch.where(positive.unsqueeze(-1), boxes / grid.strides[:, None], _unit_boxes(points))
        trained = inside & assignment.trained
        return PointTargets(labels, boxes, boxes_to_distances(points, boxes), positive, inside, trained)

    @torch.no_grad()
    def _predictions(self, output: HeadOutput, boxes: Tensor) -> PointPredictions:
        """Scores, and `boxes` in strides as pixels."""
        return PointPredictions(self.quality.scores(output), boxes * output.grid.strides[:, None])


def _unit_boxes(points: Tensor) -> Tensor:
    return torch.cat([points - 1, points + 1], dim=-1)


def count_positive(positive: Tensor) -> Tensor:
    """Positives of a batch (B, P), at least one per image."""
    return positive.sum(dim=1).clamp(min=1).sum()


def _normalisers(positive: Tensor, weight: Tensor, step: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Number of positives and sum of box weights, both the mean over the processes.

    One all-reduce for the two. The sum over all processes is kept above 1, not the mean: so a run does not depend on
    how many processes share its batch.
    """
    mean = mean_over_processes(torch.stack([count_positive(positive).to(weight.dtype), weight.sum()]))
    if step is not None:
        mean = torch.stack([step[0], mean[1] * step[1]])
    mean = mean.clamp(min=1 / world_size())
    return mean[0], mean[1]
