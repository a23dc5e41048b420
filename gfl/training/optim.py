"""Optimisers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from gfl.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW over the parameters that are not frozen.

    One group with the same rate and decay for all, or a second one for the biases where the config treats them
    differently. `set_learning_rate` honours each group's factor.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [{"params": [parameter for _, parameter in trained], "lr_factor": 1.0}]
    if (config.bias_lr_factor, config.bias_decay_factor) != (1.0, 1.0):
        biases = _biases(model)
        groups[0]["params"] = [parameter for name, parameter in trained if name not in biases]
        groups.append(
            {
                "params": [parameter for name, parameter in trained if name in biases],
                "lr_factor": config.bias_lr_factor,
                "weight_decay": config.weight_decay * config.bias_decay_factor,
            }
        )
    # Fused: such an update can be skipped on the device where a gradient is not finite.
    if config.name == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
        for _, parameter in trained:  # a skipped first update would leave them uninitialised
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def _biases(model: nn.Module) -> set[str]:
    """The biases that V1's recipe treats differently: all but those of norms.

    It recognises norms by the names bn and gn; those of the shortcuts have neither and so count as layers with a bias.
    """
    return {
        f"{name}.bias".removeprefix(".")
        for name, module in model.named_modules()
        if "downsample" in name or not isinstance(module, (nn.BatchNorm2d, nn.GroupNorm))
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_factor"]


def scaled_lr(config: OptimConfig) -> float:
    """The peak rate: `lr` scaled linearly from `base_batch` to `batch` images per step."""
    return config.lr * config.batch / config.base_batch


def learning_rate(step: int, config: OptimConfig, *, steps_per_epoch: int) -> float:
    """Rate of `step` (from 0): linear warm-up from `warmup_ratio`, times step or cosine decay."""
    rate = scaled_lr(config) * _decay(step, config, steps_per_epoch)
    warmup = warmup_steps(config, steps_per_epoch)
    if step >= warmup:
        return rate
    return rate * (config.warmup_ratio + (1 - config.warmup_ratio) * step / warmup)


def warmup_steps(config: OptimConfig, steps_per_epoch: int) -> int:
    """Steps of the warm-up, which the config may have as a share of all."""
    share = config.warmup_steps
    return round(share * config.epochs * steps_per_epoch) if share < 1 else int(share)


def _decay(step: int, config: OptimConfig, steps_per_epoch: int) -> float:
    if config.decay == "cosine":
        return (1 + math.cos(math.pi * step / (config.epochs * steps_per_epoch))) / 2
    return 0.1 ** _passed(step // steps_per_epoch, config.steps)


def _passed(epoch: int, milestones: Sequence[int]) -> int:
    return sum(epoch >= milestone for milestone in milestones)
