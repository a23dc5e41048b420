"""Optimisers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from gfl.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the parameters that are not frozen, all with the same rate and decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.name == "sgd":  # not fused: with fp16, a first step that overflows leaves its momentum uninitialised
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def scaled_lr(config: OptimConfig) -> float:
    """The peak rate: `lr` scaled linearly from `base_batch` to `batch` images per step."""
    return config.lr * config.batch / config.base_batch


def learning_rate(step: int, config: OptimConfig, *, steps_per_epoch: int) -> float:
    """Rate of `step` (from 0): linear warm-up from `warmup_ratio`, times step or cosine decay."""
    rate = scaled_lr(config) * _decay(step, config, steps_per_epoch)
    if step >= config.warmup_steps:
        return rate
    return rate * (config.warmup_ratio + (1 - config.warmup_ratio) * step / config.warmup_steps)


def _decay(step: int, config: OptimConfig, steps_per_epoch: int) -> float:
    if config.decay == "cosine":
        return (1 + math.cos(math.pi * step / (config.epochs * steps_per_epoch))) / 2
    return 0.1 ** _passed(step // steps_per_epoch, config.steps)


def _passed(epoch: int, milestones: Sequence[int]) -> int:
    return sum(epoch >= milestone for milestone in milestones)


def autocast_dtype(config: OptimConfig, device: torch.device) -> torch.dtype | None:
    """What forward passes are computed in, None for float32.

    ``amp: auto`` is bf16 only where the hardware has it: elsewhere it is emulated, and slower than float32.
    """
    if config.amp == "auto":
        return torch.bfloat16 if _has_native_bf16(device) else None
    return {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.amp]


def _has_native_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()  # torch 2.10 has no public question for it
