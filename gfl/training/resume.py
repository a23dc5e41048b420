"""Resume from a checkpoint: all of it is checked before any of it is used."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfl.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    TRAINING,
    Progress,
    TrainState,
    find_checkpoint,
    load_model_state,
    newest_checkpoint,
    read_checkpoint,
)
from gfl.common import distributed
from gfl.common.dataclass_from_dict import dataclass_from_dict
from gfl.common.errors import UserError
from gfl.common.files import write_text
from gfl.config import Config, config_differences

LAUNCH = "launch.txt"  # in the run folder: which call of torchrun has begun or resumed it

# What an optimiser keeps of a parameter; "step" is one number, the others have the parameter's shape.
KEPT = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def find_resume_checkpoint(run_dir: Path, *, resume: bool) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, None for a new run, and what is wrong with newer ones; the same on all processes.

    Processes that torchrun starts again after a failure resume without ``--resume``. Raises `UserError` for a folder
    that holds a run already if `resume` is False: it is never overwritten.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"run_dir {run_dir} is a file; choose a folder")
    restarted = distributed.is_main() and _read_launch_id(run_dir) == distributed.launch_id() != ""
    resume = resume or distributed.share_from_main(restarted)
    if find_checkpoint(run_dir, LAST, PREVIOUS, BEST) and not resume:
        raise UserError(f"{run_dir} already holds a run: go on with --resume, or choose another run_dir=...")
    found = distributed.share_from_main(newest_checkpoint(run_dir) if distributed.is_main() else None)
    if resume and not found[0] and distributed.is_main():
        print(f"resume   nothing in {run_dir} yet, starting from the beginning")
    return found


def write_launch_id(run_dir: Path) -> None:
    """Record which call of torchrun began or resumed the run."""
    if distributed.launch_id():
        write_text(run_dir / LAUNCH, distributed.launch_id())


def _read_launch_id(run_dir: Path) -> str | None:
    try:
        return (run_dir / LAUNCH).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def restore(
    state: TrainState, path: Path, *, config: Config, class_names: Sequence[str], steps_per_epoch: int
) -> dict[str, tuple[Any, Any]]:
    """Fill model, optimizer, scaler and progress of `state` from the checkpoint at `path`.

    Returns how `config` differs from the checkpoint's: key -> (old, new). Raises `UserError` naming `path` for a
    checkpoint of another run, or with unusable parts; nothing is filled then.
    """
    saved = read_checkpoint(path)
    if not saved.keys() >= TRAINING:
        raise UserError(
            f"{path} holds weights only, as conversion writes them; --resume cannot go on from it", code="weights_only"
        )
    progress = _read_progress(saved["progress"], path)
    if tuple(saved["class_names"]) != tuple(class_names):
        other = "the same classes in another order" if {*saved["class_names"]} == {*class_names} else "other classes"
        raise UserError(f"{path} was trained on {other} than the training json has by rising id; start a new run_dir")
    if progress.steps_per_epoch != steps_per_epoch:
        raise UserError(
            f"{path} has {progress.steps_per_epoch} steps per epoch, not {steps_per_epoch}: "
            "optim.batch or the training data changed; start a new run_dir"
        )
    groups = state.optimizer.state_dict()["param_groups"]
    kept = _read_optimizer(saved, path, state.optimizer, config.optim.name)
    scale = _read_scaler(saved["scaler"], path, state.scaler)
    load_model_state(state.model, saved, path)
    state.optimizer.load_state_dict({"state": kept, "param_groups": groups})
    if scale:
        state.scaler.load_state_dict(scale)
    state.progress = progress
    return config_differences(saved["config"], config)


def _read_progress(tree: Any, path: Path) -> Progress:
    progress = dataclass_from_dict(Progress, tree, f"progress in {path}")
    if missing := [field for field in Progress._fields if field not in tree]:
        raise UserError(f"progress in {path} lacks {', '.join(missing)}; it is damaged")
    if progress.step > progress.steps_per_epoch:
        raise UserError(f"progress in {path}: step {progress.step} is beyond the epoch's {progress.steps_per_epoch}")
    return progress


def _read_optimizer(
    state: Mapping[str, Any], path: Path, optimizer: torch.optim.Optimizer, name: str
) -> dict[int, dict[str, Tensor]]:
    """What the optimiser keeps of each parameter, by its number."""
    tree, saved_name = state["optimizer"], state["config"].get("optim", {})
    groups = tree.get("param_groups") if isinstance(tree, dict) else None
    kept = tree.get("state") if isinstance(tree, dict) else None
    sizes = [_size(group) for group in groups] if isinstance(groups, list) else [None]
    if None in sizes or not isinstance(kept, dict) or not isinstance(saved_name, dict):
        raise UserError(f"{path}: its optimizer is not what this program writes; it is damaged")
    if saved_name.get("name") != name or sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise UserError(
            f"{path} was trained with another optim.name, bias factor or frozen_stages; --resume cannot change it"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, entry in kept.items():
        known = type(number) is int and 0 <= number < len(parameters)
        if not known or not _fits(entry, parameters[number], KEPT[type(optimizer)]):
            raise UserError(f"{path}: what its optimizer keeps does not fit the model's parameters; it is damaged")
    return {number: _match_layout(entry, parameters[number]) for number, entry in kept.items()}


def _match_layout(entry: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """`entry` in the memory format of its parameter, which may have changed: fused updates go by place in memory."""

    def like(value: Any) -> Any:
        same = isinstance(value, Tensor) and value.shape == parameter.shape
        return torch.empty_like(parameter, device="cpu").copy_(value) if same else value

    return {key: like(value) for key, value in entry.items()}


def _size(group: Any) -> int | None:
    params = group.get("params") if isinstance(group, dict) else None
    return len(params) if isinstance(params, list) else None


def _fits(entry: Any, parameter: Tensor, keys: set[str]) -> bool:
    if not isinstance(entry, dict) or entry.keys() != keys:
        return False
    shapes = {key: torch.Size() if key == "step" else parameter.shape for key in keys}
    if entry.get("momentum_buffer", 0) is None:  # SGD without momentum
        return True
    kept = all(_is_finite(entry[key], shape) for key, shape in shapes.items())
    return kept and all((entry[key] >= 0).all() for key in keys & {"step", "exp_avg_sq"})


def _is_finite(value: Any, shape: torch.Size) -> bool:
    return (
        isinstance(value, Tensor)
        and (value.shape, value.dtype, value.layout) == (shape, torch.float32, torch.strided)
        and value.device.type != "meta"
        and bool(value.isfinite().all())
    )


def _read_scaler(tree: Any, path: Path, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """The scaler's state; empty where the run, or the one that goes on, is not in fp16."""
    wanted = scaler.state_dict()
    if tree == {} or not wanted:
        return {}
    usable = isinstance(tree, dict) and tree.keys() == wanted.keys()
    usable = usable and all(type(tree[key]) in (int, float) and 0 <= tree[key] < math.inf for key in wanted)
    if not usable or not tree["scale"] or not tree["growth_interval"]:
        raise UserError(f"{path}: its scaler is not what this program writes; it is damaged")
    return tree
