"""The teacher of localisation distillation (`loss.distill`): a trained detector that a run learns from."""

from pathlib import Path

import torch
from torch import Tensor, nn

from gfl.checkpoint import find_detector, load_detector
from gfl.common.errors import UserError, error_context
from gfl.common.files import file_digest
from gfl.common.text import format_differences
from gfl.config import Config
from gfl.config_file import config_differences, config_to_dict
from gfl.model.detector import DenseDetector
from gfl.model.precision import autocast_dtype, memory_format

# What both must have, so that the same logits mean the same side at the same point.
SAME_KEYS = ("model.head.box", "model.head.reg_max", "model.head.delta", "model.points.strides", "model.points.offset")


class Teacher(nn.Module):
    """A frozen detector that gives its side logits, computed under autocast to `dtype` (None: in float32)."""

    def __init__(self, detector: DenseDetector, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.detector, self.dtype = detector.eval().requires_grad_(False), dtype

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, P, 4, N)."""
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype is not None):
            return self.detector(images).reg_pred


def load_teacher(config: Config, device: torch.device) -> Teacher | None:
    """The detector that `loss.distill.teacher` names, in the run's precision and layout; None without one.

    Its classes, backbone and widths may differ from the student's. Raises `UserError` if it is missing or damaged, or
    if its sides or points are not those of the student.
    """
    if config.loss.distill.teacher == "none":
        return None
    with error_context("loss.distill.teacher"):
        found = load_detector(config.loss.distill.teacher, device=device)
        differences = config_differences(config_to_dict(found.config), config)
        if wrong := format_differences({key: differences[key] for key in SAME_KEYS if key in differences}):
            raise UserError(
                f"{found.checkpoint} has other sides or points than the student ({', '.join(wrong)}); both need "
                "model.head.box=general with the same reg_max and delta, and the same model.points",
                code="other_sides",
            )
    dtype = autocast_dtype(config.optim, device)
    return Teacher(found.model.to(memory_format=memory_format(config.optim, dtype)), dtype)


def teacher_digest(config: Config) -> dict[str, str]:
    """The SHA-256 of the teacher's checkpoint under the name that a resumed run reports; empty without a teacher."""
    if config.loss.distill.teacher == "none":
        return {}
    return {"teacher": file_digest(find_detector(Path(config.loss.distill.teacher)), "sha256")}
