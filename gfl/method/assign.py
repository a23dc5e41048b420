"""Axis 3 of the ablations: which points learn which box. Batched over padded ground truth, without host syncs.

An assigner is called with the grid, the targets, `inside` (B, P) bool, the points that may be assigned
(`points_in_images`), and `predict`, which all but `assign_tal` ignore.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gfl.method.boxes import box_area, box_iou, boxes_to_distances
from gfl.structures import Assignment, PointGrid, PointPredictions, Predict, Targets

MIN_INSIDE = 0.01  # pixels by which a positive point must lie within its box


def assign_atss(
    grid: PointGrid,
    targets: Targets,
    inside: Tensor,
    predict: Predict | None = None,
    *,
    topk: int = 9,
    anchor_scale: float = 8.0,
    reach: float | None = None,
) -> Assignment:
    """Adaptive training sample selection (arXiv 1912.02424, algorithm 1).

    Per ground truth: the `topk` points nearest to its centre on every level are candidates; their IoUs, each with a
    square of `anchor_scale` strides around the point, give the threshold mean + standard deviation; candidates that
    reach it and lie within the box are positive. A point claimed twice goes to the higher IoU, the lower slot on a tie.

    With `reach`, which is not in the paper, candidates from which a side of the box is farther than that many strides
    of their level are left out before the threshold is computed: a box too large for one level goes to a coarser one. A
    box in which no candidate would be left keeps all.

    Args:
        reach: the largest distance that the box representation can express, in strides.

    A box may get no point at all, as in the reference.
    """
    candidates, iou, eligible, within, threshold = _atss_candidates(grid, targets, inside, topk, anchor_scale, reach)
    positive = eligible & within & (iou >= threshold.unsqueeze(-1))
    return Assignment(resolve_conflicts(candidates, iou.masked_fill(~positive, -1.0), num_points=inside.shape[1]))


def atss_thresholds(
    grid: PointGrid, targets: Targets, inside: Tensor, *, topk: int, anchor_scale: float, reach: float | None
) -> Tensor:
    """(B, G) the IoU from which on `assign_atss`, with the same arguments, takes a candidate of each box."""
    return _atss_candidates(grid, targets, inside, topk, anchor_scale, reach).threshold


class _Candidates(NamedTuple):
    """The candidates of each box, and what decides whether they are positive."""

    index: Tensor  # (B, G, Q) into P
    iou: Tensor  # (B, G, Q) of their square with the box
    eligible: Tensor  # (B, G, Q) bool, in the image and, if there is one, within reach
    within: Tensor  # (B, G, Q) bool, inside the box
    threshold: Tensor  # (B, G) the least IoU


def _atss_candidates(
    grid: PointGrid, targets: Targets, inside: Tensor, topk: int, anchor_scale: float, reach: float | None
) -> _Candidates:
    boxes_xyxy = targets.boxes_xyxy.unsqueeze(2)  # (B, G, 1, 4)
    candidates, eligible = _nearest_points(grid, boxes_xyxy, inside, topk)  # (B, G, Q) each
    eligible &= targets.valid.unsqueeze(-1)

    iou = box_iou(anchor_boxes(grid, anchor_scale)[candidates], boxes_xyxy)  # (B, G, Q)
    distances = boxes_to_distances(grid.points[candidates], boxes_xyxy)  # (B, G, Q, 4)
    within = distances.amin(dim=-1) > MIN_INSIDE
    threshold = _mean_plus_std(iou, eligible)
    if reach is not None:
        fits = eligible & (distances.amax(dim=-1) <= reach * grid.strides[candidates])
        best = iou.masked_fill(~(fits & within), -1.0).amax(dim=-1)
        changed = (best >= 0) & (fits != eligible).any(dim=-1)
        # Of few candidates none may reach mean plus deviation: the best of those that may be positive always does.
        threshold = torch.where(changed, torch.minimum(_mean_plus_std(iou, fits), best), threshold)
        eligible = torch.where(changed.unsqueeze(-1), fits, eligible)
    return _Candidates(candidates, iou, eligible, within, threshold)


def anchor_boxes(grid: PointGrid, scale: float) -> Tensor:
    """(P, 4) a box of `scale` strides around every point."""
    half = grid.strides[:, None] * scale / 2
    return torch.cat([grid.points - half, grid.points + half], dim=-1)


def _nearest_points(grid: PointGrid, boxes_xyxy: Tensor, inside: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Indices (B, G, Q) into P of every level's `topk` points nearest to each box's centre, and which are eligible.

    Points outside the image are infinitely far away *before* the selection, so that padding never displaces a point; of
    equally near points the first comes first. Only points in the `topk` nearest rows and columns of a level are
    measured: to any other, that many in the same row or column are nearer.
    """
    x, y = ((boxes_xyxy[..., :2] + boxes_xyxy[..., 2:]) / 2).unbind(-1)  # (B, G, 1) each
    indices, finite, start = [], [], 0
    for height, width in grid.level_shapes:
        level = slice(start, start + height * width)
        points, allowed = grid.points[level], inside[:, None, level]  # (size, 2), (B, 1, size)
        columns, _ = _nearest(points[:width, 0] - x, allowed[..., :width], topk)
        rows, _ = _nearest(points[::width, 1] - y, allowed[..., ::width], topk)
        candidates = (rows.unsqueeze(-1) * width + columns.unsqueeze(-2)).flatten(-2)  # (B, G, at most topk * topk)
        distance = (points[candidates] - torch.stack([x, y], dim=-1)).pow(2).sum(dim=-1).sqrt()
        allowed = allowed.expand(-1, x.shape[1], -1).gather(-1, candidates)
        nearest, eligible = _nearest(distance, allowed, topk, candidates)
        indices.append(nearest + start)
        finite.append(eligible)
        start += height * width
    return torch.cat(indices, dim=-1), torch.cat(finite, dim=-1)


def _nearest(distance: Tensor, allowed: Tensor, count: int, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `index` (by default the position) of the least absolute distances along the last axis; which are allowed.

    A float's bits sort as the float does if it is not negative. With the index below them no two keys are equal, so
    that the order is the same on every device.
    """
    if index is None:
        index = torch.arange(distance.shape[-1], device=distance.device)
    bits = distance.abs().masked_fill(~allowed, torch.inf).view(torch.int32).long()
    keys = (bits << 32 | index).topk(min(count, distance.shape[-1]), dim=-1, largest=False).values
    return keys & 0xFFFFFFFF, (keys >> 32).int().view(torch.float32).isfinite()


def _mean_plus_std(iou: Tensor, eligible: Tensor) -> Tensor:
    """(B, G, Q) -> (B, G): mean plus unbiased standard deviation over the eligible candidates."""
    count = eligible.sum(dim=-1).clamp(min=1)
    mean = iou.masked_fill(~eligible, 0).sum(dim=-1) / count
    deviation = (iou - mean.unsqueeze(-1)).masked_fill(~eligible, 0)
    variance = deviation.pow(2).sum(dim=-1) / (count - 1).clamp(min=1)
    return mean + variance.sqrt()


def resolve_conflicts(candidates: Tensor, iou: Tensor, *, num_points: int) -> Tensor:
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


def assign_tal(grid: PointGrid, targets: Targets, inside: Tensor, predict: Predict, *, topk: int = 13) -> Assignment:
    """Task-aligned assignment (arXiv 2108.07755, section 3.2): a box goes to the points that already predict it best.

    Per ground truth the `topk` points of all levels with the highest metric (`task_alignment`) are candidates, of equal
    ones the first; those above 0 that lie within the box are positive. A point claimed twice goes to the higher IoU,
    the lower slot on a tie. A box that no predicted one overlaps gets no point.
    """
    boxes_xyxy = targets.boxes_xyxy.unsqueeze(2)  # (B, G, 1, 4)
    metric, iou = task_alignment(predict(), boxes_xyxy, targets.labels)
    metric = metric.masked_fill(~(targets.valid.unsqueeze(-1) & inside.unsqueeze(1)), 0)

    # Of equal metrics the first on every device, as in `_nearest`.
    keys = -metric.view(torch.int32).long() << 32 | torch.arange(metric.shape[-1], device=metric.device)
    candidates = keys.topk(min(topk, metric.shape[-1]), dim=-1, largest=False).values & 0xFFFFFFFF  # (B, G, Q)
    within = boxes_to_distances(grid.points[candidates], boxes_xyxy).amin(dim=-1) > MIN_INSIDE
    positive = within & (metric.gather(-1, candidates) > 0)
    claims = iou.gather(-1, candidates).masked_fill(~positive, -1.0)
    return Assignment(resolve_conflicts(candidates, claims, num_points=inside.shape[1]))


def task_alignment(predicted: PointPredictions, boxes_xyxy: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How well points predict ground truth (B, G, 1, 4) of labels (B, G): the metric and the IoU, (B, G, P) each.

    The metric is the score of the label times the IoU to the power of 6.
    """
    iou = box_iou(predicted.boxes_xyxy.unsqueeze(1), boxes_xyxy)
    score = predicted.scores.mT.gather(1, labels.unsqueeze(-1).expand_as(iou))
    return score * iou.square().pow(3), iou  # products only, which round alike on every device


def assign_fcos(
    grid: PointGrid, targets: Targets, inside: Tensor, predict: Predict | None = None, *, center_radius: float = 1.5
) -> Assignment:
    """FCOS's rule (arXiv 1904.01355) with centre sampling.

    A point learns the smallest box that it lies in, no further than `center_radius` strides from the centre along both
    axes, and whose farthest side is 4 to 8 strides away; from 0 on the finest level, without a limit on the coarsest.
    """
    distances = boxes_to_distances(grid.points[:, None], targets.boxes_xyxy[:, None])  # (B, P, G, 4)
    centers = (targets.boxes_xyxy[..., :2] + targets.boxes_xyxy[..., 2:])[:, None] / 2
    offset = (grid.points[:, None] - centers).abs().amax(dim=-1)  # (B, P, G)
    matches = (distances.amin(dim=-1) > 0) & (offset < center_radius * grid.strides[:, None])
    matches &= _in_size_range(grid, distances.amax(dim=-1), low=4, high=8)
    return _smallest_box(matches, targets, inside)


def assign_fovea(
    grid: PointGrid, targets: Targets, inside: Tensor, predict: Predict | None = None, *, shrink: float = 0.4
) -> Assignment:
    """FoveaBox's rule (arXiv 1904.03797): a point learns the smallest box in whose central region it lies.

    That region is the box with its sides times `shrink`. A level takes boxes whose area is that of a square of 2 to 8
    strides, from 1 px on the finest, to 16 strides on the coarsest; so neighbouring levels share some.
    """
    size = targets.boxes_xyxy[..., 2:] - targets.boxes_xyxy[..., :2]  # (B, G, 2)
    centers = targets.boxes_xyxy[..., :2] + size / 2
    offset = (grid.points[:, None] - centers[:, None]).abs()  # (B, P, G, 2)
    matches = (offset <= shrink / 2 * size[:, None]).all(dim=-1)
    edge = size.clamp(min=0).prod(dim=-1).sqrt()[:, None]
    matches &= _in_size_range(grid, edge, low=2, high=8, smallest=1.0, largest=16)
    return _smallest_box(matches, targets, inside)


def _in_size_range(
    grid: PointGrid, sizes: Tensor, *, low: float, high: float, smallest: float = 0.0, largest: float = torch.inf
) -> Tensor:
    """Whether `sizes` (B, P or 1, G) px fit each point's level: from `low` to `high` strides.

    The finest level starts at `smallest` pixels, the coarsest ends at `largest` strides.
    """
    low_px, high_px = low * grid.strides, high * grid.strides
    low_px[: grid.level_sizes[0]] = smallest
    high_px[len(high_px) - grid.level_sizes[-1] :] = largest * grid.strides[-1]
    return (sizes >= low_px[:, None]) & (sizes <= high_px[:, None])


def _smallest_box(matches: Tensor, targets: Targets, inside: Tensor) -> Assignment:
    """Of the boxes that a point matches, (B, P, G) bool, the one of least area, the lower slot on a tie."""
    if not matches.shape[-1]:
        return _background(inside)
    matches = matches & targets.valid[:, None] & inside.unsqueeze(-1)
    area = box_area(targets.boxes_xyxy)[:, None].expand(matches.shape).masked_fill(~matches, torch.inf)
    smallest, index = area.min(dim=-1)
    return Assignment(torch.where(smallest.isfinite(), index, -1))


def _background(inside: Tensor) -> Assignment:
    return Assignment(torch.full_like(inside, -1, dtype=torch.long))


def assign_max_iou(
    grid: PointGrid,
    targets: Targets,
    inside: Tensor,
    predict: Predict | None = None,
    *,
    anchor_scale: float = 8.0,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
) -> Assignment:
    """RetinaNet's rule (arXiv 1708.02002) with one square of `anchor_scale` strides per point.

    A point learns the box that its square overlaps most, from `positive_iou` on; below `negative_iou` it is background,
    in between it is ignored. Every box also gets the points that overlap it most of all, if they overlap it at all.
    """
    if not targets.valid.shape[-1]:
        return _background(inside)
    iou = box_iou(anchor_boxes(grid, anchor_scale)[:, None], targets.boxes_xyxy[:, None])  # (B, P, G)
    iou = iou.masked_fill(~(targets.valid[:, None] & inside.unsqueeze(-1)), 0)
    best, index = iou.max(dim=-1)
    index = torch.where(best >= positive_iou, index, torch.where(best < negative_iou, -1, -2))
    highest = iou.amax(dim=1, keepdim=True)  # of each box
    slots = torch.arange(iou.shape[-1], device=iou.device)
    forced = torch.where((iou == highest) & (highest > 0), slots, -1).amax(dim=-1)  # the last box that claims the point
    return Assignment(torch.where(forced >= 0, forced, index))


def leave_out_ignored(assignment: Assignment, grid: PointGrid, targets: Targets) -> Assignment:
    """Points within a region to ignore learn nothing (-2), unless they learn an object."""
    if targets.ignored is None:
        return assignment
    x, y = grid.points[:, None].unbind(-1)  # (P, 1) each
    left, top, right, bottom = targets.boxes_xyxy[:, None].unbind(-1)  # (B, 1, G) each
    within = (x > left) & (x < right) & (y > top) & (y < bottom) & targets.ignored[:, None]
    return Assignment(torch.where(within.any(dim=-1) & ~assignment.positive, -2, assignment.index))
