"""The whole network, from normalised images to raw outputs, and decoding them to boxes and scores."""

from functools import cache

import torch
from torch import Tensor, nn

from gfl.method.box_representation import BoxRepresentation
from gfl.method.boxes import distances_to_boxes
from gfl.method.quality import Quality
from gfl.model.head import GFLHead
from gfl.structures import HeadOutput

# Mean and standard deviation of ImageNet's RGB values.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class DenseDetector(nn.Module):
    """Backbone -> FPN -> head -> quality, with raw outputs in training and evaluation alike."""

    def __init__(
        self, backbone: nn.Module, fpn: nn.Module, head: GFLHead, quality: Quality, box_repr: BoxRepresentation
    ) -> None:
        super().__init__()
        self.backbone, self.fpn, self.head = backbone, fpn, head
        self.quality, self.box_repr = quality, box_repr

    def forward(self, images: Tensor) -> HeadOutput:
        """Normalised images (B, 3, H, W), H and W multiples of 32 -> raw outputs."""
        return self.quality(self.head(self.fpn(self.backbone(images))))

    def decode(self, output: HeadOutput) -> tuple[Tensor, Tensor]:
        """Raw outputs -> boxes_xyxy (B, P, 4) in pixels and scores (B, P, C), both float32.

        A quality branch is not in these scores: `quality.rank_factor` multiplies them after the score threshold.
        """
        grid = output.grid
        return self._boxes(output.reg_pred, grid.points, grid.strides), self.quality.scores(output)

    def decode_at(self, output: HeadOutput, image: Tensor, point: Tensor) -> Tensor:
        """Boxes (n, 4) as `decode` gives them, of n points only: their images (n,) and their indices (n,) in P."""
        return self._boxes(output.reg_pred[image, point], output.grid.points[point], output.grid.strides[point])

    def _boxes(self, reg_pred: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        return distances_to_boxes(points, self.box_repr.decode(reg_pred) * strides[:, None])


def normalize_images(images: Tensor, image_sizes: Tensor) -> Tensor:
    """uint8 RGB (B, 3, H, W) -> float32 with ImageNet's mean and deviation, exactly 0 outside each image's (h, w)."""
    mean, std = _pixel_statistics(images.device)
    normalised = images.to(torch.float32, copy=True).sub_(mean).div_(std)
    # Strips are faster than a mask, but sizes that Python reads make a GPU wait, and a compiler stop.
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        for image, (height, width) in zip(normalised, image_sizes.tolist(), strict=True):
            image[:, height:] = image[:, :, width:] = 0
        return normalised
    rows = torch.arange(images.shape[-2], device=images.device)[:, None] < image_sizes[:, 0, None, None]
    columns = torch.arange(images.shape[-1], device=images.device) < image_sizes[:, 1, None, None]
    return normalised.mul_((rows & columns)[:, None])


@cache
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (3, 1, 1) each, copied to a device only once, since that waits for it."""
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
