"""Axis 2 of the ablations: how a head's numbers describe the four sides of a box (table 2a).

A representation says how many numbers it needs per side (`num_outputs`), turns them into distances (`distances`), and
adds the loss of its own (`loss`). Distances are in strides of the point's level.
"""

import torch
from torch import Tensor, nn

from gfl.errors import UserError
from gfl.losses import distribution_focal_loss


class GeneralBox(nn.Module):
    """Each side is a discrete distribution over 0, delta, ..., reg_max * delta; its expectation is the distance.

    Section 3.2 and eq. 5 of the paper: n = `reg_max`, with `delta` the interval between neighbours, both in strides.
    """

    def __init__(self, *, reg_max: int = 16, delta: float = 1.0) -> None:
        super().__init__()
        self.num_outputs = reg_max + 1
        self.reg_max, self.delta = reg_max, delta
        # No checkpoint holds it, so it is real even in a model that is built on the meta device.
        project = torch.arange(self.num_outputs, dtype=torch.float32, device="cpu") * delta
        self.register_buffer("project", project, persistent=False)

    def probabilities(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, N) logits -> (..., 4, N) in float32."""
        return reg_pred.float().softmax(dim=-1)

    def distances(self, reg_pred: Tensor) -> Tensor:
        """(..., 4, N) logits -> (..., 4) expectations, in float32 also under autocast."""
        return (self.probabilities(reg_pred) * self.project).sum(dim=-1)

    def loss(self, reg_pred: Tensor, target_distances: Tensor) -> Tensor:
        """DFL averaged over the four sides: (..., 4, N), (..., 4) -> (...).

        Targets beyond the range are moved to 0.1 bins below its end, as in the reference.
        """
        bins = (target_distances / self.delta).clamp(0, self.reg_max - 0.1)
        return distribution_focal_loss(reg_pred, bins).mean(dim=-1)


BOX_REPRESENTATIONS = {"general": GeneralBox}


def build_box_repr(name: str, *, reg_max: int, delta: float) -> GeneralBox:
    """The representation called `name` in the config; raises `UserError` for one that does not exist."""
    if name not in BOX_REPRESENTATIONS:
        raise UserError(f"model.head.box: {name!r} does not exist; available: {', '.join(BOX_REPRESENTATIONS)}")
    return BOX_REPRESENTATIONS[name](reg_max=reg_max, delta=delta)
