"""From dense outputs to the detections of each image: the best (point, class) pairs, then NMS of their boxes."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import batched_nms

from gfl.structures import Detections


class Candidates(NamedTuple):
    """n (point, class) pairs that may be detections, image by image; a point may be there with several classes."""

    image: Tensor  # (n,) int64 in [0, B), rising
    point: Tensor  # (n,) int64 in [0, P)
    label: Tensor  # (n,) int64 in [0, C)
    score: Tensor  # (n,) by which they are ranked


def find_candidates(
    scores: Iterable[Tensor],
    level_sizes: Sequence[int],
    *,
    inside: Tensor | None = None,
    rank_factor: Tensor | None = None,
    score_thresh: float,
    pre_nms_topk: int,
) -> Candidates:
    """Per image and level the `pre_nms_topk` best pairs above `score_thresh`, so that only their boxes are decoded.

    Args:
        scores: (P, C) probabilities of each image. Computed one image at a time, they do not take new memory from the
            system for every batch: on a CPU its page faults cost several times as much as a sigmoid.
        level_sizes: points per level, summing to P.
        inside: (B, P) bool, False for points that detect nothing; None for none such.
        rank_factor: (B, P) by which scores are multiplied after the threshold and before NMS, as FCOS and ATSS do with
            the output of their quality branch.
    """
    # A loop's variable would keep the scores of one image while those of the next are computed.
    points, labels, values = zip(*map(partial(_above_threshold, score_thresh), scores), strict=True)
    num_points, first = sum(level_sizes), list(accumulate(level_sizes[:-1], initial=0))
    place = torch.cat([point + image * num_points for image, point in enumerate(points)])
    columns = [place, torch.cat(labels), torch.cat(values)]
    if inside is not None:
        within = inside.flatten()[place]
        columns = [column[within] for column in columns]
    place, score = columns[0], columns[2]
    starts = (torch.arange(len(points))[:, None] * num_points + torch.tensor(first)).flatten()
    bounds = [*torch.searchsorted(place, starts.to(place.device)).tolist(), len(place)]
    best = [start + score[start:end].topk(min(pre_nms_topk, end - start)).indices for start, end in pairwise(bounds)]
    place, label, score = (column[torch.cat(best)] for column in columns)
    if rank_factor is not None:
        score = score * rank_factor.flatten()[place]
    return Candidates(place // num_points, place % num_points, label, score)


def _above_threshold(score_thresh: float, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points, labels and values of the scores (P, C) above the threshold.

    Few points have any: they are found by their best class, faster than in a search of all scores.
    """
    point = (~(scores.amax(dim=1) <= score_thresh)).nonzero().squeeze(1)  # also those with a NaN beside their best
    scores = scores[point]
    row, label = (scores > score_thresh).nonzero(as_tuple=True)
    return point[row], label, scores[row, label]


def suppress(
    boxes_xyxy: Tensor, candidates: Candidates, num_images: int, *, nms_iou: float, max_detections: int
) -> Detections:
    """Class-wise NMS of the candidates with boxes (n, 4) in pixels, then the best of each of `num_images` images.

    NMS runs image by image: its work grows with the square of the boxes that it gets.
    """
    solid = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(dim=1)  # clipping leaves no area of a box outside its image
    image, point, label, score = (column[solid] for column in candidates)
    counts = image.bincount(minlength=num_images).tolist()
    found = []
    for image_columns in zip(*(c.split(counts) for c in (boxes_xyxy[solid], score, label, point)), strict=True):
        keep = batched_nms(*image_columns[:3], nms_iou)[:max_detections]
        found.append([column[keep] for column in image_columns])
    columns = zip(zip(*found, strict=True), (0.0, 0.0, -1, 0), strict=True)
    return Detections(*(pad_sequence(column, batch_first=True, padding_value=fill) for column, fill in columns))
