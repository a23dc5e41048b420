"""Post-processing of boxes that are all decoded already."""

from dataclasses import replace

from gfl.config import EvalConfig
from gfl.method.postprocess import find_candidates, suppress


def select_detections(boxes_xyxy, scores, level_sizes, *, rank_factor=None, **changes):
    """Detections from boxes (B, P, 4) and scores (B, P, C), with `changes` of the config's defaults."""
    config = replace(EvalConfig(), **changes)
    found = find_candidates(
        scores.float(),
        level_sizes,
        rank_factor=rank_factor,
        score_thresh=config.score_thresh,
        pre_nms_topk=config.pre_nms_topk,
    )
    boxes = boxes_xyxy.float()[found.image, found.point]
    return suppress(boxes, found, len(scores), nms_iou=config.nms_iou, max_detections=config.max_detections)
