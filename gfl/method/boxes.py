"""Box arithmetic: pure functions on (..., 4) tensors of corners x1, y1, x2, y2."""

import torch
from torch import Tensor


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) -> (...) width times height."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def box_iou(a: Tensor, b: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Intersection over union, broadcast over leading dimensions: (..., 4), (..., 4) -> (...).

    Aligned pairs come from equal shapes, all pairs from ``box_iou(a[:, None], b)``. The union is kept above `eps`,
    so that two empty boxes have IoU 0.
    """
    intersection, union = _intersection_union(a, b)
    return intersection / union.clamp(min=eps)


def generalized_box_iou(a: Tensor, b: Tensor, *, eps: float = 1e-6) -> Tensor:
    """GIoU in [-1, 1] (arXiv 1902.09630), broadcast: (..., 4), (..., 4) -> (...)."""
    intersection, union = _intersection_union(a, b)
    union = union.clamp(min=eps)
    hull = torch.cat([torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])], dim=-1)
    hull_area = box_area(hull).clamp(min=eps)
    return intersection / union - (hull_area - union) / hull_area


def distance_box_iou(a: Tensor, b: Tensor, *, eps: float = 1e-6) -> Tensor:
    """DIoU in [-1, 1] (arXiv 1911.08287), broadcast: (..., 4), (..., 4) -> (...).

    IoU minus the squared distance of the centres over the squared diagonal of the smallest box around both.
    """
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    between = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return box_iou(a, b, eps=eps) - between.square().sum(dim=-1) / hull.square().sum(dim=-1).clamp(min=eps)


def _intersection_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    return intersection, box_area(a) + box_area(b) - intersection


def distances_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Points (..., 2) and distances l, t, r, b (..., 4) in the same unit -> corners (..., 4)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def boxes_to_distances(points: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Points (..., 2) and corners (..., 4) -> l, t, r, b (..., 4), negative where a point lies beyond a side."""
    return torch.cat([points - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points], dim=-1)


def centerness(distances: Tensor) -> Tensor:
    """FCOS's centerness (arXiv 1904.01355, eq. 3) from distances l, t, r, b: (..., 4) -> (...) in [0, 1].

    1 in the middle, 0 on a side and outside.
    """
    left_top, right_bottom = distances.clamp(min=0).unflatten(-1, (2, 2)).unbind(-2)
    ratio = torch.minimum(left_top, right_bottom) / torch.maximum(left_top, right_bottom).clamp(min=1e-6)
    return ratio.prod(dim=-1).sqrt()


def clip_boxes(boxes_xyxy: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes (B, P, 4) cut to the images' (B, 2) heights and widths."""
    height, width = image_sizes.to(boxes_xyxy.dtype).unbind(-1)
    limit = torch.stack([width, height, width, height], dim=-1)[:, None]
    return torch.minimum(boxes_xyxy.clamp(min=0), limit)
