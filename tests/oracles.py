"""Slow, obvious versions of the batched code: one image, one box, one point at a time, in Python floats."""

import decimal
import math
import statistics
from typing import NamedTuple

import torch

from gfl.structures import PointGrid, Targets

STRIDES = (8, 16, 32, 64, 128)


class ImageLoss(NamedTuple):
    """One image's unweighted sums, and what they are divided by once summed over the images."""

    cls: float
    box: float
    dfl: float
    num_positive: int
    sum_weight: float


# --- inputs -----------------------------------------------------------------------------------------------------------


def feature_sizes(height, width):
    """Feature maps of an input of this size."""
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]


def random_boxes(count, height, width, generator):
    """(count, 4) boxes inside an image, at least 4 pixels wide and high, of all sizes."""
    size = torch.tensor([width, height])
    extent = 4 + torch.rand(count, 2, generator=generator) ** 2 * (size - 4)
    start = torch.rand(count, 2, generator=generator) * (size - extent)
    return torch.cat([start, start + extent], dim=-1)


def pad_targets(boxes, labels, num_slots=None):
    """`Targets` from one (n, 4) and one (n,) tensor per image. Padded slots hold rubbish that must not matter."""
    num_slots = num_slots or max(1, *map(len, boxes))
    targets = Targets(
        torch.tensor([3.0, 5.0, 47.0, 53.0]).repeat(len(boxes), num_slots, 1),
        torch.zeros(len(boxes), num_slots, dtype=torch.int64),
        torch.zeros(len(boxes), num_slots, dtype=torch.bool),
    )
    for image, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        count = len(image_boxes)
        targets.boxes_xyxy[image, :count] = torch.as_tensor(image_boxes)
        targets.labels[image, :count] = torch.as_tensor(image_labels)
        targets.valid[image, :count] = True
    return targets


# --- boxes ------------------------------------------------------------------------------------------------------------


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def iou(a, b):
    shared = intersection(a, b)
    return shared / (area(a) + area(b) - shared)


def centerness(left, top, right, bottom):
    """Equation 3 of arXiv 1904.01355; 0 for a point that is not within the box."""
    if min(left, top, right, bottom) <= 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def giou(a, b):
    union = area(a) + area(b) - intersection(a, b)
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    return iou(a, b) - (hull - union) / hull


# --- losses -----------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(logits):
    exponentials = [math.exp(x - max(logits)) for x in logits]
    return [e / sum(exponentials) for e in exponentials]


def qfl(logit, target, beta=2.0):
    """Equation 2."""
    score = sigmoid(logit)
    return -(abs(target - score) ** beta) * ((1 - target) * math.log(1 - score) + target * math.log(score))


def dfl(logits, target):
    """Equation 6, for a target strictly below the last bin."""
    probability = softmax(logits)
    left = math.floor(target)
    right = left + 1
    return -((right - target) * math.log(probability[left]) + (target - left) * math.log(probability[right]))


def focal(logit, label):
    """Focal loss with alpha 0.25 and gamma 2 (arXiv 1708.02002)."""
    score = sigmoid(logit)
    if label:
        return -0.25 * (1 - score) ** 2 * math.log(score)
    return -0.75 * score**2 * math.log(1 - score)


def cross_entropy(logit, target):
    """Binary cross entropy."""
    return -target * math.log(sigmoid(logit)) - (1 - target) * math.log(1 - sigmoid(logit))


def expectation(logits, delta=1.0):
    """Equation 5."""
    return sum(index * delta * probability for index, probability in enumerate(softmax(logits)))


# --- box representations ----------------------------------------------------------------------------------------------


def anchor_box(deltas, x, y, stride):
    """mmdetection's DeltaXYWHBBoxCoder on the square of 8 strides around a point, with stds 0.1, 0.1, 0.2, 0.2."""
    dx, dy, dw, dh = (number * std for number, std in zip(deltas, (0.1, 0.1, 0.2, 0.2), strict=True))
    side, limit = 8 * stride, abs(math.log(16 / 1000))
    width, height = (side * math.exp(min(max(d, -limit), limit)) for d in (dw, dh))
    center_x, center_y = x + side * dx, y + side * dy
    return [center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2]


def anchor_deltas(box, x, y, stride):
    """The four numbers that `anchor_box` turns into `box`."""
    side, (x1, y1, x2, y2) = 8 * stride, box
    dx, dy = ((x1 + x2) / 2 - x) / side, ((y1 + y2) / 2 - y) / side
    return [dx / 0.1, dy / 0.1, math.log((x2 - x1) / side) / 0.2, math.log((y2 - y1) / side) / 0.2]


def highest_mode(probabilities):
    """Walk down from the first of the largest numbers to both sides, until the next one is larger."""
    first = last = probabilities.index(max(probabilities))
    while first > 0 and probabilities[first - 1] <= probabilities[first]:
        first -= 1
    while last + 1 < len(probabilities) and probabilities[last + 1] <= probabilities[last]:
        last += 1
    return [first <= index <= last for index in range(len(probabilities))]


def peak(logits, delta=1.0):
    """The expectation of the highest mode alone."""
    probabilities = softmax(logits)
    bins = [i for i, belongs in enumerate(highest_mode(probabilities)) if belongs]
    return sum(i * delta * probabilities[i] for i in bins) / sum(probabilities[i] for i in bins)


def decode(box, sides):
    """l, t, r, b in strides of a representation's four lists of raw outputs."""
    if box == "general":
        return [expectation(numbers) for numbers in sides]
    if box == "anchor_delta":
        x1, y1, x2, y2 = anchor_box([numbers[0] for numbers in sides], 0.0, 0.0, 1.0)
        return [-x1, -y1, x2, y2]
    return [max(numbers[0], 0.0) for numbers in sides]


def own_loss(box, sides, distances):
    """Mean over the sides of the representation's own loss; 0 where it has none."""
    if box == "general":
        last_bin = len(sides[0]) - 1
        return statistics.mean(
            dfl(numbers, min(max(distance, 0.0), last_bin - 0.1))
            for numbers, distance in zip(sides, distances, strict=True)
        )
    if box == "gaussian":
        return statistics.mean(
            (distance - mean) ** 2 / (2 * math.exp(log_variance)) + log_variance / 2
            for (mean, log_variance), distance in zip(sides, distances, strict=True)
        )
    return 0.0


# --- quality ----------------------------------------------------------------------------------------------------------


def side_statistics(sides, topk, add_mean):
    """What GFLv2's predictor sees of one point: of each side the `topk` largest probabilities, then their mean."""
    numbers = []
    for logits in sides:
        largest = sorted(softmax(logits), reverse=True)[:topk]
        numbers += largest + ([sum(largest) / topk] if add_mean else [])
    return numbers


def product_logit(a, q):
    """Logit of sigmoid(a) * sigmoid(q), with digits enough for any logits."""
    with decimal.localcontext() as context:
        context.prec = 120
        product = 1 / ((1 + decimal.Decimal(-a).exp()) * (1 + decimal.Decimal(-q).exp()))
        return float((product / (1 - product)).ln())


# --- deformable convolution -------------------------------------------------------------------------------------------


def bilinear(channel, y, x):
    """Value of a map between its pixels; 0 outside."""
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < len(channel) and 0 <= column < len(channel[0]):
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * channel[row][column]
    return value


def deform_conv(channels, weight, offsets, masks, *, stride, groups):
    """3x3 deformable convolution with padding 1 of one image, as nested lists (out channels, h, w).

    `offsets` holds dy, dx of the nine samples in turn as maps, `masks` one map per sample, or None. All are nested
    lists; `weight` is (out channels, channels per group, 3, 3).
    """
    per_group = len(weight[0])
    outputs = []
    for out, kernel in enumerate(weight):
        first = out // (len(weight) // groups) * per_group
        output = [[0.0] * len(offsets[0][0]) for _ in offsets[0]]
        for i, row in enumerate(output):
            for j in range(len(row)):
                for sample in range(9):
                    y = i * stride - 1 + sample // 3 + offsets[2 * sample][i][j]
                    x = j * stride - 1 + sample % 3 + offsets[2 * sample + 1][i][j]
                    factor = masks[sample][i][j] if masks else 1.0
                    for c in range(per_group):
                        value = bilinear(channels[first + c], y, x)
                        row[j] += factor * kernel[c][sample // 3][sample % 3] * value
        outputs.append(output)
    return outputs


# --- assignment -------------------------------------------------------------------------------------------------------


def inside_image(point, stride, image_size):
    """Whether a point's cell starts in the image padded to a multiple of 32."""
    height, width = (math.ceil(int(side) / 32) * 32 for side in image_size)
    return math.floor(point[0] / stride) * stride < width and math.floor(point[1] / stride) * stride < height


def atss(grid: PointGrid, inside, boxes, *, topk=9, scale=8.0):
    """Algorithm 1 of arXiv 1912.02424 for one image: the box of each point, -1 for background."""
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
        threshold = statistics.mean(overlap.values()) + statistics.stdev(overlap.values())
        for p in candidates:
            x, y = points[p]
            margin = min(x - box[0], y - box[1], box[2] - x, box[3] - y)
            if overlap[p] >= threshold and margin > 0.01 and overlap[p] > best[p][0]:
                best[p] = overlap[p], slot
    return [slot for _, slot in best]


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


# --- the whole loss ---------------------------------------------------------------------------------------------------


def image_loss(cls_logits, reg_pred, grid: PointGrid, boxes, labels, image_size, *, delta=1.0, beta=2.0):
    """`ImageLoss` of one image from (P, C) and (P, 4, N) raw outputs and its (n, 4) boxes."""
    points, strides = grid.points.tolist(), grid.strides.tolist()
    inside = [inside_image(point, stride, image_size) for point, stride in zip(points, strides, strict=True)]
    assigned = atss(grid, inside, boxes)
    cls_sum = box_sum = dfl_sum = weight_sum = 0.0
    for p, slot in enumerate(assigned):
        if not inside[p]:
            continue
        logits = cls_logits[p].tolist()
        target = [0.0] * len(logits)
        if slot >= 0:
            x, y = (value / strides[p] for value in points[p])
            true_box = [value / strides[p] for value in boxes[slot].tolist()]
            left, top, right, bottom = (expectation(side, delta) for side in reg_pred[p].tolist())
            box = [x - left, y - top, x + right, y + bottom]
            target[labels[slot]] = iou(box, true_box)
            weight = max(sigmoid(logit) for logit in logits)
            distances = [x - true_box[0], y - true_box[1], true_box[2] - x, true_box[3] - y]
            last_bin = reg_pred.shape[-1] - 1
            bins = [min(max(distance / delta, 0.0), last_bin - 0.1) for distance in distances]
            box_sum += weight * (1 - giou(box, true_box))
            dfl_sum += weight * statistics.mean(map(dfl, reg_pred[p].tolist(), bins))
            weight_sum += weight
        cls_sum += sum(qfl(logit, y, beta) for logit, y in zip(logits, target, strict=True))
    return ImageLoss(cls_sum, box_sum, dfl_sum, sum(slot >= 0 for slot in assigned), weight_sum)


def batch_losses(output, boxes, labels, image_sizes, *, quality, box):
    """The weighted losses of a batch under ATSS, for any row of table 1(a) and any box representation."""
    points, strides = output.grid.points.tolist(), output.grid.strides.tolist()
    background = box_sum = own_sum = branch_sum = weight_sum = 0.0
    positives = []  # loss at the label's class and measure
    num_positive = 0
    for image, image_size in enumerate(image_sizes):
        inside = [inside_image(point, stride, image_size) for point, stride in zip(points, strides, strict=True)]
        assigned = atss(output.grid, inside, boxes[image])
        num_positive += max(sum(slot >= 0 for slot in assigned), 1)
        for p, slot in enumerate(assigned):
            logits = output.cls_logits[image, p].tolist()
            label = labels[image][slot].item() if slot >= 0 else None
            if inside[p]:
                loss = qfl if quality == "joint" else focal
                background += sum(loss(logit, 0) for other, logit in enumerate(logits) if other != label)
            if slot < 0:
                continue
            sides = output.reg_pred[image, p].tolist()
            x, y = (value / strides[p] for value in points[p])
            left, top, right, bottom = decode(box, sides)
            found = [x - left, y - top, x + right, y + bottom]
            true_box = [value / strides[p] for value in boxes[image][slot].tolist()]
            distances = [x - true_box[0], y - true_box[1], true_box[2] - x, true_box[3] - y]
            kind = quality.partition("_")[0]
            measure = {"none": 1.0, "centerness": centerness(*distances)}.get(kind, iou(found, true_box))
            at_label = qfl(logits[label], measure) if quality == "joint" else focal(logits[label], 1)
            positives.append((at_label, measure))
            weight = max(map(sigmoid, logits)) if quality == "joint" else measure
            weight_sum += weight
            box_sum += weight * (1 - giou(found, true_box))
            own_sum += weight * own_loss(box, sides, distances)
            if quality.endswith("branch"):
                branch_sum += cross_entropy(output.quality_logits[image, p].item(), measure)
    positive_sum = sum(loss for loss, _ in positives)
    if quality.endswith("guided"):
        weighted = [loss * measure**1.5 for loss, measure in positives]
        positive_sum = sum(loss * positive_sum / sum(weighted) for loss in weighted)
    losses = {"cls": (background + positive_sum) / num_positive, "box": 2 * box_sum / max(weight_sum, 1)}
    if box in ("general", "gaussian"):
        losses["dfl" if box == "general" else "nll"] = 0.25 * own_sum / max(weight_sum, 1)
    if quality.endswith("branch"):
        losses["quality"] = branch_sum / num_positive
    return losses


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
