"""The state of the optimizer and of the gradient scaler in a checkpoint, checked before it is used."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfl.checkpoint import damaged_part
from gfl.common.errors import UserError
from gfl.common.text import format_differences

OPTIMIZER_KEYS = ("optim.name", "optim.bias_lr_factor", "optim.bias_decay_factor", "model.backbone.frozen_stages")

# An optimizer's state per parameter: "step" is one number, the others have the parameter's shape.
STATE_KEYS = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def read_optimizer(
    saved: Mapping[str, Any],
    path: Path,
    optimizer: torch.optim.Optimizer,
    changes: Mapping[str, tuple[Any, Any]],
) -> dict[int, dict[str, Any]]:
    """The optimizer's state of each parameter, by the parameter's number.

    Args:
        changes: of the config since then, which may be why it does not fit.

    Raises `UserError` naming `path` if it is of another optimizer or damaged.
    """
    tree = saved["optimizer"]
    groups = tree.get("param_groups") if isinstance(tree, dict) else None
    states = tree.get("state") if isinstance(tree, dict) else None
    sizes = [_group_size(group) for group in groups] if isinstance(groups, list) else [None]
    if None in sizes or not isinstance(states, dict):
        raise damaged_part(path, "optimizer")
    if "optim.name" in changes or sizes != [len(group["params"]) for group in optimizer.param_groups]:
        changed = format_differences({key: changes[key] for key in OPTIMIZER_KEYS if key in changes})
        raise UserError(
            f"{path} was trained with another optimizer; --resume cannot change {', '.join(changed or OPTIMIZER_KEYS)}",
            code="other_optimizer",
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in states.items():
        known = type(number) is int and 0 <= number < len(parameters)
        if not known or not _state_fits(state, parameters[number], STATE_KEYS[type(optimizer)]):
            raise UserError(
                f"{path}: its optimizer's state does not fit the model's parameters; it is damaged", code="damaged"
            )
    return {number: _copy_memory_format(state, parameters[number]) for number, state in states.items()}


def _group_size(group: Any) -> int | None:
    """The number of parameters of a parameter group, None if it is not one."""
    params = group.get("params") if isinstance(group, dict) else None
    return len(params) if isinstance(params, list) else None


def _state_fits(state: Any, parameter: Tensor, keys: set[str]) -> bool:
    """Whether `state` has `keys`, the shapes of `parameter`, and values that training produces."""
    if not isinstance(state, dict) or state.keys() != keys:
        return False
    if state.get("momentum_buffer", 0) is None:  # SGD without momentum
        return True
    shapes = {key: torch.Size() if key == "step" else parameter.shape for key in keys}
    finite = all(_is_finite_tensor(state[key], shape) for key, shape in shapes.items())
    return finite and all((state[key] >= 0).all() for key in keys & {"step", "exp_avg_sq"})


def _is_finite_tensor(value: Any, shape: torch.Size) -> bool:
    return (
        isinstance(value, Tensor)
        and (value.shape, value.dtype) == (shape, torch.float32)
        and bool(value.isfinite().all())
    )


def _copy_memory_format(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """`state` in the memory format of its parameter, which may have changed: fused updates ignore strides."""

    def convert(value: Any) -> Any:
        same_shape = isinstance(value, Tensor) and value.shape == parameter.shape
        return torch.empty_like(parameter, device="cpu").copy_(value) if same_shape else value

    return {key: convert(value) for key, value in state.items()}


def read_scaler(tree: Any, path: Path, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """The scaler's state; empty unless both the saved and the resumed run use fp16.

    Raises `UserError` naming `path` if it is damaged.
    """
    wanted = scaler.state_dict()
    if tree == {} or not wanted:
        return {}
    usable = isinstance(tree, dict) and tree.keys() == wanted.keys()
    usable = usable and all(type(tree[key]) in (int, float) and 0 <= tree[key] < math.inf for key in wanted)
    if not usable or not tree["scale"] or not tree["growth_interval"]:
        raise damaged_part(path, "scaler")
    return tree
