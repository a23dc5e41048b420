"""Axis 3 of the ablations: which points learn which box. Batched over padded ground truth, without host syncs."""

from collections.abc import Callable

import torch
from torch import Tensor

from gfl.boxes import box_iou, boxes_to_distances
from gfl.errors import UserError
from gfl.structures import Assignment, PointGrid, Targets

MIN_INSIDE = 0.01  # pixels by which a positive point must lie within its box


def assign_atss(
    grid: PointGrid, targets: Targets, inside: Tensor, *, topk: int = 9, anchor_scale: float = 8.0
) -> Assignment:
    """Adaptive training sample selection (arXiv 1912.02424, algorithm 1).

    Per ground truth: the `topk` points nearest to its centre on every level are candidates; their IoUs, each with a
    square of `anchor_scale` strides around the point, give the threshold mean + standard deviation; candidates that
    reach it and lie within the box are positive. A point claimed twice goes to the higher IoU, the lower slot on a tie.

    Args:
        inside: (B, P) bool, the points that may be assigned (`points_in_images`).

    A box may get no point at all, as in the reference.
    """
    boxes_xyxy = targets.boxes_xyxy.unsqueeze(2)  # (B, G, 1, 4)
    candidates, eligible = _nearest_points(grid, boxes_xyxy, inside, topk)  # (B, G, Q) each
    eligible &= targets.valid.unsqueeze(-1)

    points, strides = grid.points[candidates], grid.strides[candidates].unsqueeze(-1)
    half = strides * anchor_scale / 2
    iou = box_iou(torch.cat([points - half, points + half], dim=-1), boxes_xyxy)  # (B, G, Q)
    threshold = _mean_plus_std(iou, eligible)
    within = boxes_to_distances(points, boxes_xyxy).amin(dim=-1) > MIN_INSIDE
    positive = eligible & within & (iou >= threshold.unsqueeze(-1))
    return Assignment(_resolve(candidates, iou.masked_fill(~positive, -1.0), num_points=inside.shape[1]))


def _nearest_points(grid: PointGrid, boxes_xyxy: Tensor, inside: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Indices (B, G, Q) into P of every level's `topk` points nearest to each box's centre, and which of them exist.

    Points outside the image are infinitely far *before* the selection, so that padding never displaces a point.
    """
    centers = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2  # (B, G, 1, 2)
    indices, finite, start = [], [], 0
    for size in grid.level_sizes:
        level = slice(start, start + size)
        distance = (grid.points[level] - centers).pow(2).sum(dim=-1).sqrt()  # (B, G, size)
        distance = distance.masked_fill(~inside[:, None, level], torch.inf)
        nearest = distance.topk(min(topk, size), dim=-1, largest=False)
        indices.append(nearest.indices + start)
        finite.append(nearest.values.isfinite())
        start += size
    return torch.cat(indices, dim=-1), torch.cat(finite, dim=-1)


def _mean_plus_std(iou: Tensor, eligible: Tensor) -> Tensor:
    """(B, G, Q) -> (B, G): mean plus unbiased standard deviation over the eligible candidates."""
    count = eligible.sum(dim=-1).clamp(min=1)
    mean = iou.masked_fill(~eligible, 0).sum(dim=-1) / count
    deviation = (iou - mean.unsqueeze(-1)).masked_fill(~eligible, 0)
    variance = deviation.pow(2).sum(dim=-1) / (count - 1).clamp(min=1)
    return mean + variance.sqrt()


def _resolve(candidates: Tensor, iou: Tensor, *, num_points: int) -> Tensor:
    """Claims (B, G, Q) with IoU -1 where there is none -> (B, P) the slot that wins each point, -1 background.

    Two scatter reductions instead of a (B, G, P) table; both are order-independent and so deterministic on a GPU.
    """
    batch, num_slots, num_candidates = candidates.shape
    claims, claim_iou = candidates.flatten(1), iou.flatten(1)
    best = iou.new_full((batch, num_points), -1.0).scatter_reduce(1, claims, claim_iou, "amax")
    slots = torch.arange(num_slots, device=iou.device).repeat_interleave(num_candidates).expand(batch, -1)
    wins = (claim_iou >= 0) & (claim_iou == best.gather(1, claims))
    slots = torch.where(wins, slots, num_slots)
    index = slots.new_full((batch, num_points), num_slots).scatter_reduce(1, claims, slots, "amin")
    return torch.where(index == num_slots, -1, index)


ASSIGNERS: dict[str, Callable[..., Assignment]] = {"atss": assign_atss}


def build_assigner(kind: str) -> Callable[..., Assignment]:
    """The assigner called `kind` in the config; raises `UserError` for one that does not exist."""
    if kind not in ASSIGNERS:
        raise UserError(f"assign.kind: {kind!r} does not exist; available: {', '.join(ASSIGNERS)}")
    return ASSIGNERS[kind]
