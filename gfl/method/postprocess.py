"""From dense boxes and scores to the detections of each image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from gfl.structures import Detections


def select_detections(
    boxes_xyxy: Tensor,
    scores: Tensor,
    level_sizes: Sequence[int],
    *,
    rank_factor: Tensor | None = None,
    score_thresh: float = 0.05,
    pre_nms_topk: int = 1000,
    nms_iou: float = 0.6,
    max_detections: int = 100,
) -> Detections:
    """Per level the `pre_nms_topk` best (point, class) pairs above `score_thresh`, class-wise NMS, the best overall.

    Args:
        boxes_xyxy: (B, P, 4) pixels.
        scores: (B, P, C) probabilities.
        level_sizes: points per level, summing to P.
        rank_factor: (B, P) by which scores are multiplied after the threshold and before NMS, as FCOS and ATSS do with
            the output of their quality branch.

    One point may give boxes of several classes.
    """
    rank_factor = [None] * len(scores) if rank_factor is None else rank_factor
    detections = [
        _select_one(*image, level_sizes, score_thresh, pre_nms_topk, nms_iou, max_detections)
        for image in zip(boxes_xyxy.float(), scores.float(), rank_factor, strict=True)
    ]
    return _pad(detections)


def _select_one(
    boxes_xyxy: Tensor,
    scores: Tensor,
    rank_factor: Tensor | None,
    level_sizes: Sequence[int],
    score_thresh: float,
    pre_nms_topk: int,
    nms_iou: float,
    max_detections: int,
) -> Detections:
    num_classes = scores.shape[-1]
    pairs, start = [], 0
    for size in level_sizes:
        level = scores[start : start + size].flatten()
        candidates = (level > score_thresh).nonzero().squeeze(1)
        best = level[candidates].topk(min(pre_nms_topk, candidates.numel())).indices
        pairs.append(candidates[best] + start * num_classes)
        start += size
    pair = torch.cat(pairs)
    point, label = pair // num_classes, pair % num_classes
    boxes, score = boxes_xyxy[point], scores.flatten()[pair]
    if rank_factor is not None:
        score = score * rank_factor[point]
    solid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)  # clipping leaves no area of a box outside its image
    boxes, score, label, point = boxes[solid], score[solid], label[solid], point[solid]
    keep = batched_nms(boxes, score, label, nms_iou)[:max_detections]
    return Detections(boxes[keep], score[keep], label[keep], point[keep])


def _pad(detections: list[Detections]) -> Detections:
    fill = Detections(0.0, 0.0, -1, 0)
    return Detections(
        *(
            torch.nn.utils.rnn.pad_sequence(column, batch_first=True, padding_value=value)
            for column, value in zip(zip(*detections, strict=True), fill, strict=True)
        )
    )
