"""The tensors passed between the parts of a detector, and the legend of their shapes.

    B  images in a batch                      L  levels of the pyramid (P3 to P7)
    G  ground-truth slots per image, padded   C  classes
    P  points over all levels, fine to        N  bins per box side, reg_max + 1
       coarse, row-major in each level        K  regression outputs per side (N for general distributions)
    M  detections per image, padded           4  box sides in the order left, top, right, bottom

Boxes are corners ``x1, y1, x2, y2`` in pixels; distances are from a point to the four sides, in strides of its level.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SIZE_DIVISOR = 32  # images are padded to a multiple of it, each by itself in the reference and as a batch here


class Targets(NamedTuple):
    """Ground truth of a batch, padded to G slots."""

    boxes_xyxy: Tensor  # (B, G, 4) float32, pixels of the padded input
    labels: Tensor  # (B, G) int64 in [0, C)
    valid: Tensor  # (B, G) bool, False in padding and for regions to ignore
    ignored: Tensor | None = None  # (B, G) bool, regions whose points learn nothing; None without any


class Batch(NamedTuple):
    """A batch as it leaves the loader; images are normalised on the device."""

    images: Tensor  # (B, 3, H, W) uint8 RGB, zero-padded right and bottom
    image_sizes: Tensor  # (B, 2) int64 height, width before padding
    targets: Targets
    image_ids: Tensor  # (B,) int64, the ids of the json
    orig_sizes: Tensor  # (B, 2) int64 height, width of the file
    mirrored: bool = False  # left to right, by test-time augmentation
    views: Sequence["Batch"] = ()  # the same images at other sizes or mirrored, by test-time augmentation

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=device.type != "cpu")

        return Batch(
            images=move(self.images),
            image_sizes=move(self.image_sizes),
            targets=Targets(*map(move, self.targets)),
            image_ids=move(self.image_ids),
            orig_sizes=move(self.orig_sizes),
            mirrored=self.mirrored,
            views=[view.to(device) for view in self.views],
        )


class PointGrid(NamedTuple):
    """The points at which the head predicts."""

    points: Tensor  # (P, 2) x, y in pixels
    strides: Tensor  # (P,) stride of each point's level
    level_shapes: tuple[tuple[int, int], ...]  # (L,) height, width of each level

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """(L,) points per level, which sum to P."""
        return tuple(height * width for height, width in self.level_shapes)


class HeadOutput(NamedTuple):
    """Raw outputs, the same in training and evaluation."""

    cls_logits: Tensor  # (B, P, C)
    reg_pred: Tensor  # (B, P, 4, K)
    quality_logits: Tensor | None  # (B, P) of a quality branch or predictor; None without one
    grid: PointGrid

    def images(self) -> Iterator["HeadOutput"]:
        """The output of each image as a batch of its own, without copies."""
        for row in range(len(self.cls_logits)):
            yield HeadOutput(*(None if column is None else column[row : row + 1] for column in self[:3]), self.grid)


class PointPredictions(NamedTuple):
    """What a head predicts at its points, for assigners that choose by it. No gradient flows back."""

    scores: Tensor  # (B, P, C) class probabilities, without a quality branch
    boxes_xyxy: Tensor  # (B, P, 4) pixels


Predict = Callable[[], PointPredictions]  # called by those assigners only, so that the others cost nothing more


class Assignment(NamedTuple):
    """Which ground truth each point learns."""

    index: Tensor  # (B, P) int64 slot in [0, G), -1 background, -2 ignored

    @property
    def positive(self) -> Tensor:
        """(B, P) bool, assigned to a ground truth."""
        return self.index >= 0

    @property
    def trained(self) -> Tensor:
        """(B, P) bool, positive or background: not ignored."""
        return self.index > -2


class Detections(NamedTuple):
    """The best detections of each image by descending score, padded to M slots."""

    boxes_xyxy: Tensor  # (B, M, 4) float32
    scores: Tensor  # (B, M) float32, 0 in empty slots
    labels: Tensor  # (B, M) int64, -1 in empty slots
    point_index: Tensor  # (B, M) int64 in [0, P): the point that predicted it
