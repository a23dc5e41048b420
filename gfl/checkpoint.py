"""Checkpoints: tensors and plain data only, written completely or not at all, read without executing anything.

Each checkpoint of a run has a `.json` beside it with its size and SHA-256 (`gfl/common/checksum.py`).
"""

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from gfl.build import build_detector
from gfl.common import distributed
from gfl.common.checksum import is_missing, new_file_with_checksum, verify_checksum
from gfl.common.dataclass_from_dict import above, at_least, check_plain
from gfl.common.errors import UserError, error_context
from gfl.common.files import new_file
from gfl.common.published import download_advice
from gfl.common.text import describe, is_text, list_some, shell_command, short_repr
from gfl.common.torch_file import read_torch_file
from gfl.common.yaml_file import merge
from gfl.config import Config
from gfl.config_file import config_from_dict, config_to_dict, parse_overrides
from gfl.evaluation.inference import Detector, default_device
from gfl.model.average import WeightAverage
from gfl.model.precision import eval_dtype, memory_format

FORMAT = "gfl-1"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
DETECTOR_KEYS = {"model", "config", "class_names"}  # what evaluation needs
BACKBONE_TENSORS = {"conv1.weight", "layer1.0.conv1.weight"}  # in a file for `model.backbone.weights`
TRAINING_KEYS = {"progress", "optimizer", "scaler"}  # what --resume needs besides; a converted checkpoint has none


class Progress(NamedTuple):
    """Progress of a run: `step` steps of epoch `epoch` (from 0) are done."""

    epoch: Annotated[int, at_least(0)] = 0
    step: Annotated[int, at_least(0)] = 0
    best: float = -1.0  # the best AP so far
    steps_per_epoch: Annotated[int, at_least(0)] = 0  # what `step` counts against
    lr_factor: Annotated[float, above(0)] = 1.0  # on the learning rate; below 1 after `optim.on_divergence: rewind`
    since_best: Annotated[int, at_least(0)] = 0  # evaluations after the best AP


class RunningLoss(NamedTuple):
    """The total loss of a run over its last steps, as `gfl/training/divergence.py` averages and judges it."""

    steps: Annotated[int, at_least(0)] = 0  # that it has averaged
    mean: float = 0.0
    lowest: float = 0.0  # the lowest mean so far
    drop: float = 0.0  # how far the last loss lay below the mean before it


@dataclass
class TrainState:
    """Everything that a training step changes, which a checkpoint saves and ``--resume`` restores."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    running_loss: RunningLoss = field(default_factory=RunningLoss)
    bad_images: dict[str, str] = field(default_factory=dict)  # that were replaced by others: file name -> reason
    average: WeightAverage | None = None  # of the model's weights, with `optim.ema`

    @property
    def detector(self) -> nn.Module:
        """What is evaluated: the average of the weights, where there is one."""
        return self.average.model if self.average else self.model


def save_checkpoint(
    path: Path,
    state: TrainState,
    config: Config,
    class_names: Sequence[str],
    digests: Mapping[str, str],
    *,
    backup_to: Path | None = None,
) -> None:
    """Write everything that ``--resume`` needs; an interrupted write leaves the previous file.

    Args:
        digests: of the splits and of a teacher, by name; a resumed run reports whether they have changed.
        backup_to: where to move the previous file instead of overwriting it.

    Raises `UserError` if the disk is full or the folder cannot be written.
    """
    training = {
        "progress": state.progress._asdict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "running_loss": state.running_loss._asdict(),
        "bad_images": state.bad_images,
        "digests": dict(digests),
        "processes": distributed.world_size(),
    }
    if state.average:
        training["ema"] = {"updates": state.average.updates, "trained": state.model.state_dict()}
    content = detector_content(state.detector.state_dict(), config, class_names) | training
    write_checkpoint(path, content, backup_to=backup_to)


def write_checkpoint(path: Path, content: Mapping[str, Any], *, backup_to: Path | None = None) -> None:
    """Write the content of a checkpoint as `save_checkpoint` does, with the same arguments and errors."""
    try:
        with new_file_with_checksum(path, backup_to=backup_to) as unfinished:
            _save(content, unfinished)
    except UserError as error:
        raise UserError(f"{error}, then continue with --resume", code=error.code) from None


def detector_content(model: Mapping[str, Tensor], config: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """The part of a checkpoint that evaluation needs."""
    return {"format": FORMAT, "model": model, "config": config_to_dict(config), "class_names": list(class_names)}


def write_torch_file(path: Path, content: Any) -> None:
    """Write tensors and plain data completely or not at all.

    Raises `UserError` if the disk is full or the folder cannot be written.
    """
    with new_file(path) as unfinished:
        _save(content, unfinished)


def _save(content: Any, path: Path) -> None:
    with open(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError:  # torch's name for any failed write
            raise OSError(errno.ENOSPC, "the disk is full, or fails") from None
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint as plain data, on the CPU; raises `UserError` if it is missing, damaged or something else."""
    state = read_tensor_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= DETECTOR_KEYS:
        raise UserError(
            f"{path} is not a detector's checkpoint of this codebase{_hint(state, path)}", code="other_format"
        )
    _check_types(state, path)
    return state


def _hint(state: Any, path: Path) -> str:
    """What a file of tensors is instead of our checkpoint, and what to do with it."""
    if isinstance(state, dict) and "format" in state:
        missing = "".join(f", no {key}" for key in sorted(DETECTOR_KEYS - state.keys()))
        return f" of format {FORMAT!r}: it has format {short_repr(state['format'])}{missing}; use an intact one"
    if isinstance(state, dict) and state.keys() >= BACKBONE_TENSORS:
        return f" but holds a backbone only: train with model.backbone.weights={shell_command(path)}"
    return f"; {conversion_advice(path)}"


def conversion_advice(path: Path) -> str:
    """What to do with a file that another codebase may have written."""
    out = Path(f"{path.with_suffix('')}_gfl.pt")
    command = shell_command("python", "scripts/convert_checkpoint.py", path, out)
    return f"if it is one of mmdetection or torchvision, convert it: {command}"


def read_tensor_file(path: Path) -> Any:
    """Read a `torch.save` file, which must agree with its checksum if there is one; see `read_torch_file`.

    Raises `UserError` if the file is missing, damaged or of another kind.
    """
    return read_torch_file(path, verify=lambda opened: verify_checksum(path, opened))


def _check_types(state: dict[str, Any], path: Path) -> None:
    """Raise `UserError` unless model, config and class names have the types that we write; values are not checked."""

    def damaged(problem: str) -> UserError:
        return UserError(f"{path}: {problem}; it is damaged", code="damaged")

    model, config, names = state["model"], state["config"], state["class_names"]
    if not isinstance(model, dict) or not all(
        isinstance(name, str) and isinstance(model[name], Tensor) for name in model
    ):
        raise damaged("its model is not a dict of named tensors")
    if not isinstance(config, dict):
        raise damaged(f"its config is {describe(config)}, not a section with keys")
    check_plain(config, f"config in {path}")
    named = isinstance(names, list) and names and all(isinstance(name, str) and is_text(name) for name in names)
    if not named or len(set(names)) < len(names):
        raise damaged(f"its class_names are {describe(names)}, not a list of different names")


def damaged_part(path: Path, part: str) -> UserError:
    """The error to raise for a part of a checkpoint that is not as it was written."""
    return UserError(f"{path}: its {part} is not what this codebase writes; it is damaged", code="damaged")


def newest_checkpoint(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest readable checkpoint of a run, and the errors of newer ones.

    Raises `UserError` if there are checkpoints and none can be read.
    """
    problems = []
    for name in (LAST, PREVIOUS, BEST):
        if is_missing(run_dir / name):
            problems.append(f"{run_dir / name} is missing, but its checksum is there: it was deleted or moved")
        if (run_dir / name).is_file():
            try:
                read_checkpoint(run_dir / name)
            except UserError as error:
                problems.append(str(error))
            else:
                return run_dir / name, problems
    if problems:
        raise UserError(
            f"no checkpoint in {run_dir} can be read: {'; '.join(problems)}; give an intact one with --resume-from, or "
            "start again in another run_dir",
            code="damaged",
        )
    return None, []


def check_model_state(model: nn.Module, state: dict[str, Any], path: Path) -> None:
    """Raise `UserError` naming tensors of a checkpoint that do not fit `model` or hold NaN or infinity."""
    own, saved = model.state_dict(), state["model"]
    ours, theirs = ({name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (own, saved))
    if wrong := [name for name in {**own, **saved} if ours.get(name) != theirs.get(name)]:
        raise UserError(
            f"{path} is of another model: {len(wrong)} tensors are missing, unknown or of another shape "
            f"({list_some(wrong)}); use the config it was trained with",
            code="other_model",
        )
    if broken := [name for name in saved if not saved[name].isfinite().all()]:
        raise UserError(
            f"{path} has numbers that are not finite in {len(broken)} tensors ({list_some(broken)}); it is damaged, or "
            "training diverged: use an earlier checkpoint",
            code="not_finite",
        )


def load_model_state(model: nn.Module, state: dict[str, Any], path: Path, *, assign: bool = False) -> None:
    """Fill `model` from a checkpoint; with `assign` by new tensors, which a model on the meta device needs.

    Raises `UserError` as `check_model_state` does.
    """
    check_model_state(model, state, path)
    weights = state["model"]
    if assign:  # not views of the file, which another program may write over
        weights = {name: tensor.clone() for name, tensor in weights.items()}
    model.load_state_dict(weights, assign=assign)


def find_checkpoint(path: Path, *names: str) -> Path | None:
    """`path` itself if it is a file, else the first of `names` in the run folder `path`, else None."""
    candidates = [path, *(path / name for name in names)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def find_detector(path: Path) -> Path:
    """`path` itself if it is a file, else best.pt or else last.pt of the run folder `path`.

    Raises `UserError` if there is none.
    """
    checkpoint = find_checkpoint(path, BEST, LAST)
    if checkpoint is None:
        other = f"a run folder with {BEST} or {LAST}, or a .pt file of this codebase"
        more = "scripts/download_weights.py and convert_checkpoint.py make them from published ones"
        advice = download_advice(path) or f"give {other} ({more})"
        raise UserError(f"no checkpoint at {path}: {advice}", code="missing")
    return checkpoint


def load_detector(
    path: str | Path, overrides: Iterable[str] = (), *, device: torch.device | str | None = None
) -> Detector:
    """A trained detector, ready to `predict`.

    Args:
        path: a checkpoint, or a run folder, of which best.pt or else last.pt is loaded.
        overrides: ``section.key=value`` for the checkpoint's config.
        device: where it runs; by default a GPU if there is one.

    Raises `UserError` if there is no checkpoint or it is damaged, and for wrong overrides.
    """
    checkpoint = find_detector(Path(path))
    state = read_checkpoint(checkpoint)
    config = config_from_dict(merge(state["config"], parse_overrides(overrides)), f"config in {checkpoint}")
    class_names = tuple(state["class_names"])
    # On the meta device no memory is filled with random weights that the checkpoint's tensors replace.
    with torch.device("meta"), error_context(f"config in {checkpoint}"):
        model = build_detector(config, len(class_names))
    load_model_state(model, state, checkpoint, assign=True)
    device = device or default_device()
    model.eval().to(device, memory_format=memory_format(config.optim, eval_dtype(config, torch.device(device))))
    return Detector(model, config, class_names, checkpoint)
