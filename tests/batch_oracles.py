"""Slow, obvious versions of the batched code: assignment, losses and detections, one image and one point at a time."""

import math
import statistics
from functools import partial
from typing import NamedTuple

from oracles import area, centerness, cross_entropy, decode, focal, giou, iou, own_loss, qfl, sigmoid, varifocal

from gfl.structures import PointGrid

# --- assignment -------------------------------------------------------------------------------------------------------


def inside_image(point, stride, image_size):
    """Whether a point's cell starts in the image padded to a multiple of 32."""
    height, width = (math.ceil(int(side) / 32) * 32 for side in image_size)
    return math.floor(point[0] / stride) * stride < width and math.floor(point[1] / stride) * stride < height


def atss(grid: PointGrid, inside, boxes, *, topk=9, scale=8.0, reach=math.inf):
    """Algorithm 1 of arXiv 1912.02424 for one image: the box of each point, -1 for background.

    Candidates with a side farther than `reach` strides are taken only for a box that has none of the others within it.
    """
    points, strides = grid.points.tolist(), grid.strides.tolist()
    best = [(-1.0, -1)] * len(points)  # IoU and slot
    for slot, box in enumerate(boxes.tolist()):
        center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, start = [], 0
        for size in grid.level_sizes:
            level = [p for p in range(start, start + size) if inside[p]]
            candidates += sorted(level, key=lambda p: math.dist(points[p], center))[:topk]
            start += size
        overlap = {}
        for p in candidates:
            (x, y), half = points[p], strides[p] * scale / 2
            overlap[p] = iou([x - half, y - half, x + half, y + half], box)
        sides = {p: _sides(points[p], box) for p in candidates}
        near = [p for p in candidates if max(sides[p]) <= reach * strides[p]]
        usable = [p for p in near if min(sides[p]) > 0.01]
        values = [overlap[p] for p in (near if usable else candidates)]
        threshold = statistics.mean(values) + (statistics.stdev(values) if len(values) > 1 else 0.0)
        if len(near) < len(candidates) and usable:
            threshold = min(threshold, max(overlap[p] for p in usable))
        for p in usable or candidates:
            if overlap[p] >= threshold and min(sides[p]) > 0.01 and overlap[p] > best[p][0]:
                best[p] = overlap[p], slot
    return [slot for _, slot in best]


def _sides(point, box):
    return [point[0] - box[0], point[1] - box[1], box[2] - point[0], box[3] - point[1]]


def fcos(grid: PointGrid, inside, boxes, *, radius=1.5):
    """FCOS with centre sampling for one image: the box of each point, -1 for background."""
    strides = grid.strides.tolist()
    assigned = []
    for (x, y), stride, is_inside in zip(grid.points.tolist(), strides, inside, strict=True):
        low = 0 if stride == strides[0] else 4 * stride
        high = math.inf if stride == strides[-1] else 8 * stride
        matching = []
        for slot, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = [x - x1, y - y1, x2 - x, y2 - y]
            off_center = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
            if min(sides) > 0 and off_center < radius * stride and low <= max(sides) <= high:
                matching.append((area([x1, y1, x2, y2]), slot))
        assigned.append(min(matching)[1] if matching and is_inside else -1)
    return assigned


def fovea(grid: PointGrid, inside, boxes):
    """FoveaBox for one image: the box of each point, -1 for background."""
    strides = grid.strides.tolist()
    assigned = []
    for (x, y), stride, is_inside in zip(grid.points.tolist(), strides, inside, strict=True):
        low = 1 if stride == strides[0] else 2 * stride
        high = 16 * stride if stride == strides[-1] else 8 * stride
        matching = []
        for slot, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            # The middle box has 2/5 of the sides, so 1/5 to each side of the centre.
            in_middle = abs(x - (x1 + x2) / 2) <= (x2 - x1) / 5 and abs(y - (y1 + y2) / 2) <= (y2 - y1) / 5
            if in_middle and low**2 <= area([x1, y1, x2, y2]) <= high**2:
                matching.append((area([x1, y1, x2, y2]), slot))
        assigned.append(min(matching)[1] if matching and is_inside else -1)
    return assigned


def max_iou(grid: PointGrid, inside, boxes, *, scale=8.0, positive=0.5, negative=0.4):
    """RetinaNet's rule for one image: the box of each point, -1 for background, -2 for neither."""
    boxes = boxes.tolist()
    overlaps, assigned = [], []
    for (x, y), stride, is_inside in zip(grid.points.tolist(), grid.strides.tolist(), inside, strict=True):
        half = stride * scale / 2
        square = [x - half, y - half, x + half, y + half]
        overlap = [iou(square, box) if is_inside else 0.0 for box in boxes]
        best = max(overlap, default=0.0)
        assigned.append(overlap.index(best) if best >= positive else -1 if best < negative else -2)
        overlaps.append(overlap)
    for slot in range(len(boxes)):
        most = max(overlap[slot] for overlap in overlaps)
        for p, overlap in enumerate(overlaps):
            if most > 0 and overlap[slot] == most:
                assigned[p] = slot
    return assigned


def tal(grid: PointGrid, inside, boxes, labels, scores, predicted, *, topk=13):
    """Task-aligned assignment (arXiv 2108.07755) for one image: the box of each point, -1 for background."""
    points, predicted = grid.points.tolist(), predicted.tolist()
    best = [(-1.0, -1)] * len(points)  # IoU and slot
    for slot, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        overlap = [iou(one, box) for one in predicted]
        metric = [scores[p, label].item() * overlap[p] ** 6 if inside[p] else 0.0 for p in range(len(points))]
        for p in sorted(range(len(points)), key=lambda p: -metric[p])[:topk]:
            if metric[p] > 0 and min(_sides(points[p], box)) > 0.01 and overlap[p] > best[p][0]:
                best[p] = overlap[p], slot
    return [slot for _, slot in best]


# --- losses -----------------------------------------------------------------------------------------------------------


class Positive(NamedTuple):
    """The loss terms of one positive point, before weights and normalisers."""

    at_label: float  # class loss at its label
    quality: float  # the quality target
    weight: float  # of its box terms
    giou: float
    own: float  # the box representation's own loss
    branch: float


def batch_losses(output, boxes, labels, image_sizes, *, quality, box, delta=1.0, beta=2.0):
    """The weighted losses of a batch under ATSS, for any row but GFLv2's and any box representation."""
    points, strides = output.grid.points.tolist(), output.grid.strides.tolist()
    class_loss = {"joint": partial(qfl, beta=beta), "varifocal": varifocal}.get(quality, focal)
    background, branch_background, num_positive, positives = 0.0, 0.0, 0, []
    for image, image_size in enumerate(image_sizes):
        inside = [inside_image(point, stride, image_size) for point, stride in zip(points, strides, strict=True)]
        assigned = atss(output.grid, inside, boxes[image])
        num_positive += max(sum(slot >= 0 for slot in assigned), 1)
        for p, slot in enumerate(assigned):
            label = labels[image][slot].item() if slot >= 0 else None
            if inside[p]:
                logits = enumerate(output.cls_logits[image, p].tolist())
                background += sum(class_loss(logit, 0) for other, logit in logits if other != label)
            if inside[p] and slot < 0 and quality.endswith("negatives"):
                branch_background += qfl(output.quality_logits[image, p].item(), 0)
            if slot >= 0:
                true_box = boxes[image][slot].tolist()
                positives.append(_positive(output, (image, p), true_box, label, quality, box, delta, class_loss))
    sum_weight = max(sum(positive.weight for positive in positives), 1)
    losses = {
        "cls": (background + _class_loss_of_positives(positives, quality)) / num_positive,
        "box": 2 * sum(positive.weight * positive.giou for positive in positives) / sum_weight,
    }
    if box in ("general", "gaussian"):
        own = sum(positive.weight * positive.own for positive in positives)
        losses["dfl" if box == "general" else "nll"] = 0.25 * own / sum_weight
    if "branch" in quality:
        losses["quality"] = (sum(positive.branch for positive in positives) + branch_background) / num_positive
    return losses


def _positive(output, index, true_box, label, quality, box, delta, class_loss):
    (x, y), stride = output.grid.points[index[1]].tolist(), output.grid.strides[index[1]].item()
    logits, sides = output.cls_logits[index].tolist(), output.reg_pred[index].tolist()
    x1, y1, x2, y2 = true_box = [value / stride for value in true_box]
    x, y = x / stride, y / stride
    left, top, right, bottom = decode(box, sides, delta)
    predicted = [x - left, y - top, x + right, y + bottom]
    distances = [x - x1, y - y1, x2 - x, y2 - y]
    by = quality.partition("_")[0]
    target = {"none": 1.0, "centerness": centerness(*distances)}.get(by, iou(predicted, true_box))
    joint = quality in ("joint", "varifocal")
    return Positive(
        at_label=class_loss(logits[label], target if joint else 1),
        quality=target,
        weight=max(map(sigmoid, logits)) if joint else target,
        giou=1 - giou(predicted, true_box),
        own=own_loss(box, sides, distances, delta),
        branch=cross_entropy(output.quality_logits[index].item(), target) if "branch" in quality else 0.0,
    )


def _class_loss_of_positives(positives, quality):
    """At their labels; a guide distributes the sum by the quality to the power of 1.5."""
    total = sum(positive.at_label for positive in positives)
    if not quality.endswith("guided"):
        return total
    weighted = [positive.at_label * positive.quality**1.5 for positive in positives]
    return sum(loss * total / sum(weighted) for loss in weighted)


# --- post-processing --------------------------------------------------------------------------------------------------


def greedy_nms(boxes, scores, iou_thresh):
    """Indices that survive, best first."""
    kept = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[index], boxes[other]) <= iou_thresh for other in kept):
            kept.append(index)
    return kept


def detections(boxes, scores, level_sizes, *, score_thresh, pre_nms_topk, nms_iou, max_detections):
    """(score, label, point) of one image's detections, best first, from (P, 4) and (P, C) tensors."""
    boxes, scores = boxes.tolist(), scores.tolist()
    num_classes = len(scores[0])
    chosen, start = [], 0
    for size in level_sizes:
        pairs = [(scores[p][label], label, p) for p in range(start, start + size) for label in range(num_classes)]
        chosen += sorted((pair for pair in pairs if pair[0] > score_thresh), reverse=True)[:pre_nms_topk]
        start += size
    kept = []
    for wanted in range(num_classes):
        rivals = [pair for pair in chosen if pair[1] == wanted]
        kept += [rivals[i] for i in greedy_nms([boxes[p] for *_, p in rivals], [s for s, *_ in rivals], nms_iou)]
    return sorted(kept, reverse=True)[:max_detections]
