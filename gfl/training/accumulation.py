"""What the passes of one step share, so that their losses add up to those of one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gfl.common.distributed import mean_over_processes
from gfl.method.criterion import Criterion, count_positive
from gfl.method.points import PointLayout, make_point_grid
from gfl.structures import Batch


@torch.no_grad()
def step_normalisers(
    criterion: Criterion, passes: Sequence[Batch], layout: PointLayout, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """For each pass what `Criterion.forward` takes as `step`, two scalars on `device`.

    The number of positives of all passes is exact, since assignment needs no prediction: `build_criterion` refuses an
    assigner that does. So is the sum of box weights where weights need none: without a quality, and for centerness.
    Scores and IoUs of the other passes are unknown; there the mean weight of the pass's own positives stands for that
    of the step's.
    """
    sums = mean_over_processes(torch.stack([_sums(criterion, batch, layout, device) for batch in passes]))
    num_positive, sum_weight = sums.sum(dim=0)
    # A pass without positives has no box weight to scale.
    return [(num_positive, torch.where(own > 0, sum_weight / own, 0)) for own in sums[:, 1]]


def _sums(criterion: Criterion, batch: Batch, layout: PointLayout, device: torch.device) -> Tensor:
    """(2,) positives, and the sum of their weights if every box were predicted perfectly, with a score of 1."""
    batch = batch.to(device)
    height, width = batch.images.shape[-2:]
    feature_sizes = [(-(-height // stride), -(-width // stride)) for stride in layout.strides]
    grid = make_point_grid(feature_sizes, layout, device=device)
    matched = criterion.match(grid, batch.targets, batch.image_sizes)
    iou = matched.positive.to(torch.float32)
    weight = criterion.quality.quality_target(iou, matched.distances) * iou
    return torch.stack([count_positive(matched.positive).to(weight.dtype), weight.sum()])
