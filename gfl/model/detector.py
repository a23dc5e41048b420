"""The whole detector, and how a config builds it."""

from functools import cache

import torch
from torch import Tensor, nn

from gfl.common.errors import UserError
from gfl.config import Config
from gfl.method.box_representation import BoxRepresentation, build_box_repr
from gfl.method.boxes import distances_to_boxes
from gfl.method.quality import Quality, build_quality
from gfl.model.backbone import Backbone, load_pretrained
from gfl.model.fpn import FPN
from gfl.model.head import GFLHead
from gfl.structures import HeadOutput

# Mean and standard deviation of ImageNet's RGB values.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class Detector(nn.Module):
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

        A quality branch is not in these scores: `quality.factor` multiplies them after the score threshold.
        """
        grid = output.grid
        distances = self.box_repr.decode(output.reg_pred) * grid.strides[:, None]
        return distances_to_boxes(grid.points, distances), self.quality.scores(output)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> boxes_xyxy (B, P, 4), scores (B, P, C) with all that multiplies them."""
        output = self(images)
        boxes_xyxy, scores = self.decode(output)
        factor = self.quality.factor(output)
        return boxes_xyxy, scores if factor is None else scores * factor.unsqueeze(-1)


def normalize_images(images: Tensor, image_sizes: Tensor) -> Tensor:
    """uint8 RGB (B, 3, H, W) -> float32 with ImageNet's mean and deviation, exactly 0 outside each image's (h, w)."""
    mean, std = _pixel_statistics(images.device)
    rows = torch.arange(images.shape[-2], device=images.device)[:, None] < image_sizes[:, 0, None, None]
    columns = torch.arange(images.shape[-1], device=images.device) < image_sizes[:, 1, None, None]
    return ((images.float() - mean) / std) * (rows & columns)[:, None]


@cache
def _pixel_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation, (3, 1, 1) each, copied to a device only once, since that waits for it."""
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))


def build_detector(config: Config, num_classes: int, *, pretrained: bool = True) -> Detector:
    """A detector as `config` describes it.

    Args:
        pretrained: load the backbone weights that the config names; False where a checkpoint follows.

    Raises `UserError` for a value that does not exist and for weights that do not fit.
    """
    model = config.model
    offset, num_levels = model.points.offset, len(model.points.strides)
    if isinstance(offset, tuple) and len(offset) != num_levels:
        raise UserError(f"model.points.offset: {len(offset)} values for {num_levels} levels")
    quality = build_quality(model.head, beta=config.loss.qfl_beta)
    box_repr = build_box_repr(model.head, decode=config.eval.decode)
    backbone = Backbone(
        model.backbone.name,
        frozen_stages=model.backbone.frozen_stages,
        norm_eval=model.backbone.norm_eval,
        dcn=model.backbone.dcn,
        dcn_stages=model.backbone.dcn_stages,
    )
    if pretrained:
        load_pretrained(backbone, model.backbone.name, model.backbone.weights)
    fpn = FPN(backbone.out_channels, model.fpn.channels, num_extra=num_levels - 3, extra_relu=model.fpn.extra_relu)
    head = GFLHead(
        num_classes,
        box_repr.num_outputs,
        strides=model.points.strides,
        in_channels=model.fpn.channels,
        channels=model.head.channels,
        num_convs=model.head.num_convs,
        conv_bias=model.head.conv_bias,
        quality_branch=quality.has_branch,
        offset=offset,
    )
    return Detector(backbone, fpn, head, quality, box_repr)
