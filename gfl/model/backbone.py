"""ResNets as torchvision names and builds them, without the classifier, and frozen as in detection recipes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights, resnet
from torchvision.ops import deform_conv2d

from gfl.common.errors import UserError


def imagenet_weights(name: str) -> WeightsEnum | None:
    """torchvision's ImageNet weights that detection recipes start from, not its newest; None if it has none."""
    try:
        return get_model_weights(name).IMAGENET1K_V1
    except ValueError:
        return None


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(conv(x))`; one convolution where the norm stays on its running statistics, for it is linear then.

    This spares passes over the feature map (on a CPU one forward and two backward) and a copy kept in between. The
    weights of both learn as they do apart.
    """
    if norm.training or conv.bias is not None or isinstance(conv, DeformConv):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class BasicBlock(resnet.BasicBlock):
    """torchvision's block of two convolutions, each joined with its norm where that is possible."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(conv_norm(x, self.conv1, self.bn1))
        return _add_shortcut(self, conv_norm(out, self.conv2, self.bn2), x)


class Bottleneck(resnet.Bottleneck):
    """torchvision's block of three convolutions, each joined with its norm where that is possible."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(conv_norm(x, self.conv1, self.bn1))
        out = self.relu(conv_norm(out, self.conv2, self.bn2))
        return _add_shortcut(self, conv_norm(out, self.conv3, self.bn3), x)


def _add_shortcut(block: BasicBlock | Bottleneck, out: Tensor, x: Tensor) -> Tensor:
    """The end of a block: ReLU of the sum, in place of `out`."""
    out += x if block.downsample is None else conv_norm(x, *block.downsample)
    return block.relu(out)


# Block, blocks per stage, groups of the 3x3 convolutions, channels per group in the first stage.
ARCHITECTURES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2), 1, 64),
    "resnet34": (BasicBlock, (3, 4, 6, 3), 1, 64),
    "resnet50": (Bottleneck, (3, 4, 6, 3), 1, 64),
    "resnet101": (Bottleneck, (3, 4, 23, 3), 1, 64),
    "resnext101_32x4d": (Bottleneck, (3, 4, 23, 3), 32, 4),
}


class Backbone(resnet.ResNet):
    """A torchvision ResNet that returns C3, C4 and C5 (strides 8, 16, 32); its state dict has torchvision's names.

    Args:
        frozen_stages: -1 trains everything, 0 freezes the stem, 1 also the first stage, ... up to 4.
        norm_eval: keep every BatchNorm on its running statistics in training; frozen ones always are.
        dcn: ``none``, ``v1`` or ``v2``: the deformable convolutions that replace the 3x3 convolutions of `dcn_stages`
            (``c2`` to ``c5``).

    Raises `UserError` for `dcn` without `dcn_stages`, `dcn_stages` without `dcn`, and for both without bottlenecks.
    """

    def __init__(
        self,
        name: str,
        *,
        frozen_stages: int = 1,
        norm_eval: bool = True,
        dcn: str = "none",
        dcn_stages: Sequence[str] = (),
    ) -> None:
        block, layers, groups, width_per_group = ARCHITECTURES[name]
        super().__init__(block, list(layers), groups=groups, width_per_group=width_per_group)
        del self.fc, self.avgpool
        if (dcn == "none") != (len(dcn_stages) == 0):
            raise UserError(f"model.backbone: dcn {dcn} with dcn_stages {list(dcn_stages)}; give both, or neither")
        if dcn != "none" and block is BasicBlock:
            raise UserError(f"model.backbone.dcn: {name} has no bottlenecks to put them in; resnet50 and deeper have")
        for stage in dcn_stages:
            for bottleneck in getattr(self, f"layer{int(stage[1]) - 1}"):
                bottleneck.conv2 = DeformConv(bottleneck.conv2, modulated=dcn == "v2")
        self.norm_eval = norm_eval
        self.out_channels = tuple(width * block.expansion for width in (128, 256, 512))
        stages = [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3, self.layer4]
        self._frozen = stages[: frozen_stages + 1]  # a plain list: no second registration in the state dict
        for stage in self._frozen:
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        """Training mode, except for the norms that stay on their running statistics."""
        super().train(mode)
        for root in [self] if self.norm_eval else self._frozen:
            for module in root.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) normalised -> C3, C4, C5."""
        x = self.maxpool(self.relu(conv_norm(images, self.conv1, self.bn1)))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


class DeformConv(nn.Conv2d):
    """The convolution `plain` with samples at learned offsets (v1, arXiv 1703.06211).

    `modulated` also weighs every sample by a learned number in (0, 1) (v2, arXiv 1811.11168). One group of offsets;
    offsets start at 0 and weights at 1/2, as in mmcv, whose names the state dict has.
    """

    def __init__(self, plain: nn.Conv2d, *, modulated: bool) -> None:
        window = {"kernel_size": plain.kernel_size, "stride": plain.stride, "padding": plain.padding}
        super().__init__(plain.in_channels, plain.out_channels, **window, groups=plain.groups, bias=False)
        self.weight = plain.weight
        self.samples = plain.kernel_size[0] * plain.kernel_size[1]
        self.modulated = modulated
        self.conv_offset = nn.Conv2d(plain.in_channels, self.samples * (3 if modulated else 2), **window)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        # Offsets in half precision would be off by whole pixels, and torchvision has no such kernel on the CPU.
        with torch.autocast(x.device.type, enabled=False):
            features = x.float()
            offset, mask = self.conv_offset(features), None
            if self.modulated:
                offset, mask = offset.split([2 * self.samples, self.samples], dim=1)
                mask = mask.sigmoid()
            window = {"stride": self.stride, "padding": self.padding}
            return deform_conv2d(features, offset, self.weight, **window, mask=mask).to(x.dtype)
