"""Resume from a checkpoint, after checking all of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    damaged_part,
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
from gfl.config_file import config_differences, config_from_dict
from gfl.training.saved_optimizer import read_optimizer, read_scaler
from gfl.training.side_bins import can_resample

NEWEST, NAMES = "newest", {"previous": PREVIOUS, "best": BEST}  # of the checkpoint to resume from
NOT_IN_EARLIER_VERSIONS = {"lr_factor", "since_best"}  # fields of Progress
OTHER_OUTPUTS = ("model.head.", "model.points.")  # keys that change what the head's numbers mean, if not their shape
START = {"model.head.initial_distance", "model.head.dgqp.init"}  # keys of them that matter to a new run only
BINS = {"model.head.reg_max", "model.head.delta"}  # with which a run can start from another's weights
NEW_LOSS = ("model.", "assign.", "loss.", "data.")  # keys that change what the loss is
INPUTS = {  # what a run reads, by the names of its digests
    "train": "images, boxes or classes in data.train.annotations",
    "val": "images, boxes or classes in data.val.annotations",
    "teacher": "the checkpoint of loss.distill.teacher",
}
LAUNCH_FILE = "launch.txt"  # in the run folder: which call of torchrun began or resumed it


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
        digests: of the splits and of a teacher, by name.

    Returns how config, data and number of processes differ from the checkpoint's: name -> (old, new). Raises
    `UserError` naming `path`, before anything is filled, for a checkpoint of another run or with unusable parts.
    """
    saved = read_checkpoint(path)
    progress, running_loss = read_history(saved, path)
    _check_same_run(progress, saved["class_names"], path, config, class_names, steps_per_epoch)
    changes = config_differences(saved["config"], config)
    inputs = _input_differences(saved, path, digests)
    updates, trained = _read_trained(saved, path)
    _check_model(state, saved, path, changes, config)
    if "ema" in saved:
        _check_model(state, saved | {"model": trained}, path, changes, config)
    groups = state.optimizer.state_dict()["param_groups"]
    optimizer_state = read_optimizer(saved, path, state.optimizer, changes)
    bad_images = _read_texts(saved, "bad_images", path)
    scaler_state = read_scaler(saved["scaler"], path, state.scaler)
    state.model.load_state_dict(trained)
    if state.average:
        state.average.model.load_state_dict(saved["model"])
        state.average.updates = updates
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
        raise damaged_part(path, part)
    return texts


def _input_differences(saved: Mapping[str, Any], path: Path, digests: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    """How annotations, teacher and number of processes differ from those of the checkpoint: name -> (old, new)."""
    old = _read_texts(saved, "digests", path)
    differences: dict[str, tuple[Any, Any]] = {
        INPUTS[name]: (f"SHA-256 {old[name][:8]}", digest[:8])
        for name, digest in digests.items()
        if old.get(name, digest) != digest
    }
    processes, now = saved.get("processes", distributed.world_size()), distributed.world_size()
    if type(processes) is not int:
        raise damaged_part(path, "processes")
    return differences | ({"processes": (processes, now)} if processes != now else {})


def _check_model(
    state: TrainState, saved: dict[str, Any], path: Path, changes: Mapping[str, tuple[Any, Any]], config: Config
) -> None:
    """Raise `UserError` where the weights do not fit, with the keys of the config that may be why."""
    try:
        check_model_state(state.model, saved, path)
    except UserError as error:
        model = format_differences({key: change for key, change in changes.items() if key.startswith("model.")})
        if error.code != "other_model" or not model:
            raise
        because = f"{', '.join(model)}{_restart(saved, path, changes, config)}"
        raise UserError(f"{error}: {because}", code=error.code) from None
    others = {key: change for key, change in changes.items() if key.startswith(OTHER_OUTPUTS) and key not in START}
    if other := format_differences(others):
        raise UserError(
            f"{path}: outputs of its model mean something else ({', '.join(other)}); resume with the config it was "
            f"trained with{_restart(saved, path, changes, config)}",
            code="other_model",
        )


def _restart(saved: dict[str, Any], path: Path, changes: Mapping[str, tuple[Any, Any]], config: Config) -> str:
    """The way to other bins of the sides, as the end of a refusal; empty where more differs or they cannot be had."""
    theirs = config_from_dict(saved["config"], f"config in {path}").model
    only_bins = {key for key in changes if key.startswith("model.")} <= BINS
    if not only_bins or not can_resample(theirs.head, config.model.head):
        return ""
    return f"; or start a new run from it with model.weights={shell_command(path)} and another run_dir=..."


def _read_trained(saved: Mapping[str, Any], path: Path) -> tuple[int, Any]:
    """The weights that training goes on with, and of how many steps the model is their average: 0 where it is these."""
    ema = saved.get("ema", {"updates": 0, "trained": saved["model"]})
    usable = isinstance(ema, dict) and ema.keys() == {"updates", "trained"} and type(ema["updates"]) is int
    trained = ema["trained"] if usable and ema["updates"] >= 0 else None
    if not isinstance(trained, dict) or not all(isinstance(tensor, Tensor) for tensor in trained.values()):
        raise damaged_part(path, "ema")
    return ema["updates"], trained


def _read_progress(tree: Any, path: Path) -> Progress:
    progress = dataclass_from_dict(Progress, tree, f"progress in {path}")
    if missing := [field for field in Progress._fields if field not in {*tree, *NOT_IN_EARLIER_VERSIONS}]:
        raise UserError(f"progress in {path} lacks {', '.join(missing)}; it is damaged", code="damaged")
    if progress.step > progress.steps_per_epoch:
        raise UserError(
            f"progress in {path}: step {progress.step} is beyond the epoch's {progress.steps_per_epoch}", code="damaged"
        )
    return progress
