"""ResNets as torchvision names and builds them, without the classifier, frozen as the detection recipe wants."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from gfl.errors import UserError

ARCHITECTURES = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class Backbone(ResNet):
    """A torchvision ResNet that returns C3, C4 and C5 (strides 8, 16, 32); its state dict has torchvision's names.

    Args:
        frozen_stages: -1 trains everything, 0 freezes the stem, 1 also the first stage, ... up to 4.
        norm_eval: keep every BatchNorm on its running statistics in training; frozen ones always are.
    """

    def __init__(self, name: str, *, frozen_stages: int = 1, norm_eval: bool = True) -> None:
        block, layers = ARCHITECTURES[name]
        super().__init__(block, list(layers))
        del self.fc, self.avgpool
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
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)


def load_pretrained(backbone: Backbone, name: str, weights: str) -> None:
    """Fill `backbone` with ImageNet weights: ``none``, ``torchvision`` (its weights API, needs a network) or a file.

    A file holds a torchvision state dict; its classifier is ignored. Raises `UserError` for weights that are missing,
    unreadable or of another architecture.
    """
    if weights == "none":
        return
    state = _download(name) if weights == "torchvision" else _read(Path(weights))
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    shapes = {key: value.shape for key, value in state.items()}
    wanted = {key: value.shape for key, value in backbone.state_dict().items()}
    wrong = sorted(key for key in wanted.keys() | shapes.keys() if wanted.get(key) != shapes.get(key))
    if wrong:
        raise UserError(
            f"model.backbone.weights: {weights} does not fit {name}: {len(wrong)} tensors missing, left over or of "
            f"another shape ({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''})"
        )
    backbone.load_state_dict(state)


def _download(name: str) -> dict[str, Tensor]:
    try:
        return models.get_model_weights(name).IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the file that came has another hash
        raise UserError(
            f"model.backbone.weights: torchvision could not download {name} ({error}); put the file somewhere and give "
            "its path, or train from scratch with model.backbone.weights=none"
        ) from None


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.backbone.weights: no file {path}; give a path, 'torchvision' or 'none'")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types for a file it cannot read
        raise UserError(f"model.backbone.weights: cannot read {path}: damaged, or no file of tensors") from None
    entries = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries):
        raise UserError(f"model.backbone.weights: {path} is not a state dict of tensors")
    return state
