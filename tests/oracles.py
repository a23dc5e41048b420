"""Inputs of tests, and slow, obvious versions of the formulas: one number or one box at a time, in Python floats."""

import decimal
import math
import statistics

import torch

from gfl.method.points import PointLayout, make_point_grid
from gfl.structures import PointGrid, Targets

STRIDES = (8, 16, 32, 64, 128)
LAYOUT = PointLayout(STRIDES)


# --- inputs -----------------------------------------------------------------------------------------------------------


def feature_sizes(height, width):
    """Feature maps of an input of this size."""
    return [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]


def grid_of(height, width, offset=0.0, *, device=None) -> PointGrid:
    """The points of an input of this size."""
    return make_point_grid(feature_sizes(height, width), PointLayout(STRIDES, offset), device=device)


def random_boxes(count, height, width, generator):
    """(count, 4) boxes inside an image, at least 4 pixels wide and high, of all sizes."""
    size = torch.tensor([width, height])
    extent = 4 + torch.rand(count, 2, generator=generator) ** 2 * (size - 4)
    start = torch.rand(count, 2, generator=generator) * (size - extent)
    return torch.cat([start, start + extent], dim=-1)


def pad_targets(boxes, labels, num_slots=None):
    """`Targets` from one (n, 4) and one (n,) tensor per image. Padded slots hold a box that must not matter."""
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


def varifocal(logit, target):
    """Equation 2 of arXiv 2008.13367 with alpha 0.75 and gamma 2."""
    return (target if target > 0 else 0.75 * sigmoid(logit) ** 2) * cross_entropy(logit, target)


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


def decode(box, sides, delta=1.0):
    """l, t, r, b in strides of a representation's four lists of raw outputs."""
    if box == "general":
        return [expectation(numbers, delta) for numbers in sides]
    if box == "anchor_delta":
        x1, y1, x2, y2 = anchor_box([numbers[0] for numbers in sides], 0.0, 0.0, 1.0)
        return [-x1, -y1, x2, y2]
    return [max(numbers[0], 0.0) for numbers in sides]


def own_loss(box, sides, distances, delta=1.0):
    """Mean over the sides of the representation's own loss; 0 where it has none."""
    if box == "general":
        last_bin = len(sides[0]) - 1
        return statistics.mean(
            dfl(numbers, min(max(distance / delta, 0.0), last_bin - 0.1))
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
    """Inputs of GFLv2's predictor at one point: of each side the `topk` largest probabilities, then their mean."""
    numbers = []
    for logits in sides:
        largest = sorted(softmax(logits), reverse=True)[:topk]
        numbers += largest + ([sum(largest) / topk] if add_mean else [])
    return numbers


def product_logit(a, q):
    """Logit of sigmoid(a) * sigmoid(q), with enough digits for any logits."""
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
