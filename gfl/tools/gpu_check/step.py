"""A training step on random data, as the sections run it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gfl.build import build_criterion, build_detector
from gfl.checkpoint import TrainState
from gfl.config import Config
from gfl.config_file import config_from_dict, load_config
from gfl.model.precision import autocast_dtype, memory_format
from gfl.structures import Batch, Targets
from gfl.tools.gpu_check.report import Options
from gfl.training.acceleration import set_up_backends
from gfl.training.optim import build_optimizer
from gfl.training.step import train_step

ROOT = Path(__file__).resolve().parents[3]
CLASSES = 80
RATE = 1e-6  # random boxes are not to be learned


def make_config(options: Options, *, small: bool = False, **optim: Any) -> Config:
    """R50 as on COCO, or a small detector where a CPU or a comparison needs one; `optim` are keys of that section."""
    if not (small or options.quick):
        overrides = ["model.backbone.weights=none", *(f"optim.{key}={value}" for key, value in optim.items())]
        return load_config(ROOT / "configs" / "gfl_r50_fpn_1x_coco.yaml", overrides)
    model = {
        "backbone": {"name": "resnet18", "weights": "none"},
        "fpn": {"channels": 64},
        "head": {"channels": 64, "num_convs": 1},
    }
    return config_from_dict({"model": model, "optim": optim, "eval": {"score_thresh": 0.0}}, "check")


class Step:
    """A detector in training; calling it takes one step with the next of some batches."""

    def __init__(self, config: Config, device: torch.device, *, seed: int = 0) -> None:
        self.config, self.device, optim = config, device, config.optim
        dtype = autocast_dtype(optim, device)
        torch.manual_seed(seed)
        self.model = build_detector(config, CLASSES).to(device, memory_format=memory_format(optim, dtype)).train()
        self.criterion = build_criterion(config, self.model.quality, self.model.box_repr)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.state = TrainState(self.model, build_optimizer(self.model, optim), scaler)

    def __call__(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        return train_step(self.state, self.model, self.criterion, batches, self.config.optim, RATE).losses


def fast_step(options: Options, **optim: Any) -> Step:
    """A step with all that a GPU is quickest with; `optim` has further keys of that section."""
    amp = "bf16" if options.device.type == "cuda" else "none"
    config = make_config(options, **{"amp": amp, "cudnn_benchmark": True, **optim})
    set_up_backends(config.optim)
    return Step(config, options.device)


def random_batch(count: int, height: int, width: int, *, boxes: int = 8) -> Batch:
    """Noise with random boxes of at least an eighth of the image, the same whenever it is called."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    corners = torch.rand(count, boxes, 2, generator=generator) * 0.5
    sides = 0.125 + 0.375 * torch.rand(count, boxes, 2, generator=generator)
    corners = torch.cat([corners, corners + sides], dim=-1) * torch.tensor([width, height] * 2)
    labels = torch.randint(0, CLASSES, (count, boxes), generator=generator)
    sizes = torch.tensor([[height, width]] * count)
    return Batch(images, sizes, Targets(corners, labels, labels >= 0), torch.arange(count), sizes)
