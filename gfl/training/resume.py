"""Resume from a checkpoint, after checking all of it."""

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
    TRAINING_KEYS,
    Progress,
    RunningLoss,
    TrainState,
    check_model_state,
    find_checkpoint,
    newest_checkpoint,
    read_checkpoint,
)
from gfl.common import distributed
from gfl.common.checksum import is_missing
from gfl.common.dataclass_from_dict import dataclass_from_dict
from gfl.common.errors import UserError
from gfl.common.files import write_text
from gfl.common.progress import print_line
from gfl.common.text import format_differences, shell_command
from gfl.config import Config
from gfl.config_file import config_differences

NEWEST, NAMES = "newest", {"previous": PREVIOUS, "best": BEST}  # of the checkpoint to resume from
NOT_IN_EARLIER_VERSIONS = {"lr_factor"}  # fields of Progress
OTHER_OUTPUTS = ("model.head.", "model.points.")  # keys that change what the head's numbers mean, if not their shape
NEW_LOSS = ("model.", "assign.", "loss.", "data.")  # keys that change what the loss is
OPTIMIZER_KEYS = ("optim.name", "optim.bias_lr_factor", "optim.bias_decay_factor", "model.backbone.frozen_stages")
LAUNCH_FILE = "launch.txt"  # in the run folder: which call of torchrun began or resumed it

# An optimizer's state per parameter: "step" is one number, the others have the parameter's shape.
STATE_KEYS = {torch.optim.SGD: {"momentum_buffer"}, torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}}


def find_resume_checkpoint(run_dir: Path, resume: str) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from, or None for a new run, and the errors of newer ones; the same on all processes.

    Processes that torchrun restarts after a failure resume from the newest, whatever the command says.

    Args:
        resume: "" for a new run, "newest", "previous", "best" or a path.

    Raises `UserError` for a new run in a folder that already holds one, which is never overwritten, and where the
    checkpoint that `resume` names does not exist.
    """
    restarted = distributed.is_main() and _read_launch_id(run_dir) == distributed.launch_id() != ""
    resume = NEWEST if distributed.share_from_main(restarted) else resume
    names = (LAST, PREVIOUS, BEST)
    if not resume and (find_checkpoint(run_dir, *names) or any(is_missing(run_dir / name) for name in names)):
        raise UserError(
            f"{run_dir} already holds a run: continue with --resume, or choose another run_dir=...", code="run_exists"
        )
    if resume not in ("", NEWEST):
        path = run_dir / NAMES[resume] if resume in NAMES else Path(resume)
        if not path.is_file():
            which = "give previous, best or the path of a checkpoint"
            raise UserError(f"--resume-from {resume}: there is no file {path}; {which}", code="missing")
        return path, []
    found = distributed.share_from_main(newest_checkpoint(run_dir) if distributed.is_main() else None)
    if resume and not found[0] and distributed.is_main():
        print_line(f"resume   nothing in {run_dir} yet, starting from the beginning")
    return found


def resume_option(path: Path) -> str:
    """The option of train.py that resumes from a checkpoint of the run folder."""
    return next((f"--resume-from {name}" for name, file in NAMES.items() if file == path.name), "--resume")


def write_launch_id(run_dir: Path) -> None:
    """Record in the run folder which call of torchrun began or resumed the run."""
    if distributed.launch_id():
        write_text(run_dir / LAUNCH_FILE, distributed.launch_id())


def _read_launch_id(run_dir: Path) -> str | None:
    try:
        return (run_dir / LAUNCH_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def restore(
    state: TrainState,
    path: Path,
    *,
    config: Config,
    class_names: Sequence[str],
    digests: Mapping[str, str],
    steps_per_epoch: int,
) -> dict[str, tuple[Any, Any]]:
    """Fill `state` from the checkpoint at `path`.

    Args:
        digests: of the splits, by name.

    Returns how config, data and number of processes differ from the checkpoint's: name -> (old, new). Raises
    `UserError` naming `path`, before anything is filled, for a checkpoint of another run or with unusable parts.
    """
    saved = read_checkpoint(path)
    progress, running_loss = read_history(saved, path)
    _check_same_run(progress, saved["class_names"], path, config, class_names, steps_per_epoch)
    changes = config_differences(saved["config"], config)
    inputs = _input_differences(saved, path, digests)
    _check_model(state, saved, path, changes)
    groups = state.optimizer.state_dict()["param_groups"]
    optimizer_state = _read_optimizer(saved, path, state.optimizer, changes)
    bad_images = _read_texts(saved, "bad_images", path)
    scaler_state = _read_scaler(saved["scaler"], path, state.scaler)
    state.model.load_state_dict(saved["model"])
    state.optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
    if scaler_state:
        state.scaler.load_state_dict(scaler_state)
    state.progress, state.bad_images = progress, bad_images
    # Another loss is no sign of a divergence.
    state.running_loss = RunningLoss() if any(key.startswith(NEW_LOSS) for key in changes) else running_loss
    return changes | inputs


def _check_same_run(
    progress: Progress,
    saved_names: Sequence[str],
    path: Path,
    config: Config,
    class_names: Sequence[str],
    steps_per_epoch: int,
) -> None:
    """Raise `UserError` where the checkpoint's epochs, classes or steps cannot be those of this run."""
    if (progress.epoch, progress.step) > (config.optim.epochs, 0):
        raise UserError(
            f"{path} has trained {progress.epoch} epochs and {progress.step} steps, more than optim.epochs="
            f"{config.optim.epochs}: raise it, or evaluate with {shell_command('python', 'eval.py', path)}",
            code="fewer_epochs",
        )
    if tuple(saved_names) != tuple(class_names):
        other = "the same classes in another order" if {*saved_names} == {*class_names} else "other classes"
        raise UserError(
            f"{path} was trained on {other} than the training json has by rising id; start a new run_dir",
            code="other_classes",
        )
    if progress.steps_per_epoch != steps_per_epoch:
        raise UserError(
            f"{path} has {progress.steps_per_epoch} steps per epoch, not {steps_per_epoch}: "
            "optim.batch or the training data changed; start a new run_dir",
            code="other_data",
        )


def read_history(saved: Mapping[str, Any], path: Path) -> tuple[Progress, RunningLoss]:
    """How far the run of a checkpoint was, and its loss, which earlier versions did not record.

    Raises `UserError` naming `path` if they are missing or wrong.
    """
    if not saved.keys() >= TRAINING_KEYS:
        raise UserError(
            f"{path} holds weights only, as conversion writes them; --resume cannot use it: start a new run from "
            f"it with model.weights={path} and another run_dir=...",
            code="weights_only",
        )
    running_loss = dataclass_from_dict(RunningLoss, saved.get("running_loss", {}), f"running_loss in {path}")
    return _read_progress(saved["progress"], path), running_loss


def _read_texts(saved: Mapping[str, Any], part: str, path: Path) -> dict[str, str]:
    """A part that maps names to texts; empty in a checkpoint of an earlier version."""
    texts = saved.get(part, {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for item in texts.items() for text in item):
        raise _damaged_part(path, part)
    return texts


def _input_differences(saved: Mapping[str, Any], path: Path, digests: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    """How the annotations and the number of processes differ from those of the checkpoint: name -> (old, new)."""
    old = _read_texts(saved, "digests", path)
    differences: dict[str, tuple[Any, Any]] = {
        f"images, boxes or classes in data.{split}.annotations": (f"SHA-256 {old[split][:8]}", digest[:8])
        for split, digest in digests.items()
        if old.get(split, digest) != digest
    }
    processes, now = saved.get("processes", distributed.world_size()), distributed.world_size()
    if type(processes) is not int:
        raise _damaged_part(path, "processes")
    return differences | ({"processes": (processes, now)} if processes != now else {})


def _check_model(state: TrainState, saved: dict[str, Any], path: Path, changes: Mapping[str, tuple[Any, Any]]) -> None:
    """Raise `UserError` where the weights do not fit, with the keys of the config that may be why."""
    try:
        check_model_state(state.model, saved, path)
    except UserError as error:
        model = format_differences({key: change for key, change in changes.items() if key.startswith("model.")})
        because = f": {', '.join(model)}" if error.code == "other_model" and model else ""
        raise UserError(f"{error}{because}", code=error.code) from None
    if other := format_differences({key: change for key, change in changes.items() if key.startswith(OTHER_OUTPUTS)}):
        raise UserError(
            f"{path}: outputs of its model mean something else ({', '.join(other)}); start a new run from it with "
            f"model.weights={shell_command(path)} and another run_dir=...",
            code="other_model",
        )


def _read_progress(tree: Any, path: Path) -> Progress:
    progress = dataclass_from_dict(Progress, tree, f"progress in {path}")
    if missing := [field for field in Progress._fields if field not in {*tree, *NOT_IN_EARLIER_VERSIONS}]:
        raise UserError(f"progress in {path} lacks {', '.join(missing)}; it is damaged", code="damaged")
    if progress.step > progress.steps_per_epoch:
        raise UserError(
            f"progress in {path}: step {progress.step} is beyond the epoch's {progress.steps_per_epoch}", code="damaged"
        )
    return progress


def _damaged_part(path: Path, part: str) -> UserError:
    return UserError(f"{path}: its {part} is not what this codebase writes; it is damaged", code="damaged")


def _read_optimizer(
    saved: Mapping[str, Any],
    path: Path,
    optimizer: torch.optim.Optimizer,
    changes: Mapping[str, tuple[Any, Any]],
) -> dict[int, dict[str, Any]]:
    """The optimizer's state of each parameter, by the parameter's number."""
    tree = saved["optimizer"]
    groups = tree.get("param_groups") if isinstance(tree, dict) else None
    states = tree.get("state") if isinstance(tree, dict) else None
    sizes = [_group_size(group) for group in groups] if isinstance(groups, list) else [None]
    if None in sizes or not isinstance(states, dict):
        raise _damaged_part(path, "optimizer")
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


def _read_scaler(tree: Any, path: Path, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """The scaler's state; empty unless both the saved and the resumed run use fp16."""
    wanted = scaler.state_dict()
    if tree == {} or not wanted:
        return {}
    usable = isinstance(tree, dict) and tree.keys() == wanted.keys()
    usable = usable and all(type(tree[key]) in (int, float) and 0 <= tree[key] < math.inf for key in wanted)
    if not usable or not tree["scale"] or not tree["growth_interval"]:
        raise _damaged_part(path, "scaler")
    return tree
