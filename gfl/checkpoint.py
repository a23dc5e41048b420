"""Checkpoints: tensors and plain data only, written completely or not at all, read without executing anything.

Each checkpoint of a run has a `.json` beside it with its size and SHA-256, so that truncation and changes are detected.
"""

import contextlib
import json
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from gfl.build import build_detector
from gfl.common.dataclass_from_dict import at_least, check_plain
from gfl.common.errors import UserError, error_context
from gfl.common.files import ZIP_START, file_digest, temporary, write_json
from gfl.common.text import describe, is_text, list_some, shell_command, short_repr
from gfl.common.yaml_file import merge
from gfl.config import Config, config_from_dict, config_to_dict, parse_overrides
from gfl.evaluation.inference import Detector, default_device

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


@dataclass
class TrainState:
    """Everything that a training step changes, which a checkpoint saves and ``--resume`` restores."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)


def save_checkpoint(
    path: Path, state: TrainState, config: Config, class_names: Sequence[str], *, backup_to: Path | None = None
) -> None:
    """Write everything that ``--resume`` needs; an interrupted write leaves the previous file.

    Args:
        backup_to: where to move the previous file instead of overwriting it.

    Raises `UserError` if the disk is full or the folder cannot be written.
    """
    training = {
        "progress": state.progress._asdict(),
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
    }
    content = detector_content(state.model.state_dict(), config, class_names) | training
    try:
        write_torch_file(path, content, checksum=True, backup_to=backup_to)
    except UserError as error:
        raise UserError(f"{error}; free some space, then continue with --resume", code=error.code) from None


def detector_content(model: Mapping[str, Tensor], config: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """The part of a checkpoint that evaluation needs."""
    return {"format": FORMAT, "model": model, "config": config_to_dict(config), "class_names": list(class_names)}


def write_torch_file(path: Path, content: Any, *, checksum: bool = False, backup_to: Path | None = None) -> None:
    """Write tensors and plain data completely or not at all; with `checksum`, also a json with size and hash.

    Raises `UserError` if the disk is full or the folder cannot be written.
    """
    unfinished = temporary(path)
    try:
        with open(unfinished, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        written = _checksum(unfinished) if checksum else None
        if backup_to and path.is_file():
            _move(path, backup_to)
        _checksum_path(path).unlink(missing_ok=True)  # it belongs to the old file; a file without one is accepted
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            unfinished.unlink()
        reason = getattr(error, "strerror", None) or "the disk is full, or fails"
        raise UserError(f"cannot write {path}: {reason}", code="unwritable") from None
    if written:
        write_json(_checksum_path(path), written)


def _move(path: Path, target: Path) -> None:
    """Rename a checkpoint and its checksum, in an order that never leaves a checksum beside another file."""
    _checksum_path(target).unlink(missing_ok=True)
    os.replace(path, target)
    if _checksum_path(path).is_file():
        os.replace(_checksum_path(path), _checksum_path(target))


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _checksum(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path, "sha256")}


def _verify_checksum(path: Path) -> None:
    """Raise `UserError` if the file has changed since it was written; a file without a checksum is accepted."""
    try:
        written = json.loads(_checksum_path(path).read_text(encoding="utf-8"))
        size, digest = written["bytes"], written["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    found = path.stat().st_size
    if found != size:
        raise UserError(
            f"{path} has {found} bytes, but {short_repr(size)} were written: it is truncated or altered",
            code="checksum",
        )
    if _checksum(path)["sha256"] != digest:
        raise UserError(
            f"{path} was altered after it was written: its SHA-256 differs from that in {_checksum_path(path).name}",
            code="checksum",
        )


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
    """Read a `torch.save` file of tensors and plain data, on the CPU; pages are loaded when they are used.

    Raises `UserError` if the file is missing, damaged or of another kind.
    """
    try:
        _verify_checksum(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's content; they would be printed above our error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}", code="unreadable") from None
    except pickle.UnpicklingError:  # other objects beside the tensors, or damage of their descriptions
        problem = f"{path} is damaged, or holds more than tensors and plain data; {conversion_advice(path)}"
        raise UserError(problem, code="damaged") from None
    except Exception:  # torch raises many types for a file it cannot read
        raise UserError(f"{path} is damaged or not a file of tensors", code="damaged") from None


def _is_zip(path: Path) -> bool:
    """Whether it has torch's format since 1.6, the only one that can be memory-mapped."""
    with open(path, "rb") as file:
        return file.read(len(ZIP_START)) == ZIP_START


def _check_types(state: dict[str, Any], path: Path) -> None:
    """Raise `UserError` unless model, config and class names have the types that we write; values are not checked."""

    def damaged(problem: str) -> UserError:
        return UserError(f"{path}: {problem}; it is damaged", code="damaged")

    model, config, names = state["model"], state["config"], state["class_names"]
    if not isinstance(model, dict) or not all(isinstance(name, str) and _is_dense(model[name]) for name in model):
        raise damaged("its model is not a dict of named tensors in memory")
    if not isinstance(config, dict):
        raise damaged(f"its config is {describe(config)}, not a section with keys")
    check_plain(config, f"config in {path}")
    named = isinstance(names, list) and names and all(isinstance(name, str) and is_text(name) for name in names)
    if not named or len(set(names)) < len(names):
        raise damaged(f"its class_names are {describe(names)}, not a list of different names")


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def newest_checkpoint(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest readable checkpoint of a run, and the errors of newer ones.

    Raises `UserError` if there are checkpoints and none can be read.
    """
    problems = []
    for name in (LAST, PREVIOUS, BEST):
        if (run_dir / name).is_file():
            try:
                read_checkpoint(run_dir / name)
            except UserError as error:
                problems.append(str(error))
            else:
                return run_dir / name, problems
    if problems:
        raise UserError(f"no checkpoint in {run_dir} can be read: {'; '.join(problems)}", code="damaged")
    return None, []


def load_model_state(model: nn.Module, state: dict[str, Any], path: Path, *, assign: bool = False) -> None:
    """Fill `model` from a checkpoint; with `assign` the checkpoint's tensors become the model's own, without a copy.

    Raises `UserError` naming tensors that do not fit or hold NaN or infinity.
    """
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
    model.load_state_dict(saved, assign=assign)


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
        raise UserError(
            f"no checkpoint at {path}: give a run folder with {BEST} or {LAST}, or a .pt file of this codebase "
            "(scripts/convert_checkpoint.py makes them from published ones)",
            code="missing",
        )
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
    return Detector(model.eval().to(device or default_device()), config, class_names, checkpoint)
