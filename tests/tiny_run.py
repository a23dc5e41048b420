"""A tiny model in training, with everything that a checkpoint holds."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from gfl.checkpoint import Progress, RunningLoss, TrainState, save_checkpoint
from gfl.config_file import config_from_dict

CONFIG = config_from_dict(
    {
        "model": {
            "backbone": {"name": "resnet18", "weights": "none", "frozen_stages": -1},
            "fpn": {"channels": 32},
            "head": {"channels": 64, "num_convs": 1},
        },
        "optim": {"name": "adamw", "lr": 0.003},
    },
    "test",
)
CLASS_NAMES, DIGESTS = ("disc", "ring"), {"train": "ab" * 32, "val": "cd" * 32}
RUNNING_LOSS, BAD_IMAGES = RunningLoss(60, 1.5, 1.25), {"a.png": "a.png is no image"}
PROGRESS = Progress(epoch=1, step=2, best=0.25, steps_per_epoch=5)
INPUTS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def new_state() -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2))


def train(state: TrainState, steps: int) -> TrainState:
    for _ in range(steps):
        state.optimizer.zero_grad()
        state.scaler.scale(state.model(INPUTS).square().mean()).backward()
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.average:
            state.average.update()
    return state


def save(
    path: Path,
    steps: int = 1,
    progress: Progress = PROGRESS,
    backup_to: Path | None = None,
    running_loss: RunningLoss = RUNNING_LOSS,
    digests: Mapping[str, str] = DIGESTS,
) -> Path:
    """Write the checkpoint of a new run after `steps` steps."""
    state = train(new_state(), steps)
    state.progress, state.running_loss, state.bad_images = progress, running_loss, dict(BAD_IMAGES)
    save_checkpoint(path, state, CONFIG, CLASS_NAMES, digests, backup_to=backup_to)
    return path
