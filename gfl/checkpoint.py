"""Checkpoints: tensors and plain data only, written whole or not at all, read without executing anything.

Beside each of a run lies a `.json` with its size and SHA-256, so that one cut off or altered later is recognised.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from gfl.build import build_detector
from gfl.common.dataclass_from_dict import at_least, check_plain
from gfl.common.errors import UserError
from gfl.common.files import file_digest, temporary, write_json
from gfl.common.text import describe, format_value, is_text, short_repr
from gfl.common.yaml_file import merge
from gfl.config import Config, config_from_dict, config_to_dict, parse_overrides
from gfl.evaluation.inference import Detector, default_device

FORMAT = "gfl-1"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
WEIGHTS = {"model", "config", "class_names"}  # what evaluation needs
TRAINING = {"progress", "optimizer", "scaler"}  # what --resume needs besides; a converted checkpoint has none


class Progress(NamedTuple):
    """Where a run stands: `step` steps of epoch `epoch` (from 0) are done."""

    epoch: Annotated[int, at_least(0)] = 0
    step: Annotated[int, at_least(0)] = 0
    best: float = -1.0  # the best AP so far
    steps_per_epoch: Annotated[int, at_least(0)] = 0  # what `step` counts against


@dataclass
class TrainState:
    """All that a training step changes: what a checkpoint saves and ``--resume`` restores."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)


def save_checkpoint(
    path: Path, state: TrainState, config: Config, class_names: Sequence[str], *, backup_to: Path | None = None
) -> None:
    """Write everything a run needs to go on; an interrupted write leaves the previous file.

    Args:
        backup_to: where the previous file goes instead of being overwritten.

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
        raise UserError(f"{error}; free some space, then go on with --resume") from None


def detector_content(model: Mapping[str, Tensor], config: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """The part of a checkpoint that evaluation needs."""
    return {"format": FORMAT, "model": model, "config": config_to_dict(config), "class_names": list(class_names)}


def write_torch_file(path: Path, content: Any, *, checksum: bool = False, backup_to: Path | None = None) -> None:
    """Write tensors and plain data, whole or not at all, then with `checksum` size and hash beside it.

    Raises `UserError` if the disk is full or forbids it.
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
        _checksum_path(path).unlink(missing_ok=True)  # it is of the old file; without one a file is taken as it is
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            unfinished.unlink()
        reason = getattr(error, "strerror", None) or "the disk is full, or fails"
        raise UserError(f"cannot write {path}: {reason}") from None
    if written:
        write_json(_checksum_path(path), written)


def _move(path: Path, target: Path) -> None:
    """Rename a checkpoint and its checksum; at no moment does a checksum stand beside another file than its own."""
    _checksum_path(target).unlink(missing_ok=True)
    os.replace(path, target)
    if _checksum_path(path).is_file():
        os.replace(_checksum_path(path), _checksum_path(target))


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _checksum(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path, "sha256")}


def _verify_checksum(path: Path) -> None:
    """Raises `UserError` if the file is not the one that was written; a file without a checksum is taken as it is."""
    try:
        written = json.loads(_checksum_path(path).read_text(encoding="utf-8"))
        size, digest = written["bytes"], written["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    found = path.stat().st_size
    if found != size:
        raise UserError(
            f"{path} has {found} bytes, but {short_repr(size)} were written: it is cut off or altered", code="checksum"
        )
    if _checksum(path)["sha256"] != digest:
        raise UserError(
            f"{path} is not as it was written: its SHA-256 differs from that in {_checksum_path(path).name}"
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint as plain data, on the CPU; raises `UserError` if it is missing, damaged or something else."""
    state = read_tensor_file(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= WEIGHTS:
        raise UserError(
            f"{path} is not a checkpoint of this codebase (format {FORMAT!r}), or lacks parts; "
            "scripts/convert_checkpoint.py reads those of other codebases"
        )
    _check_weights(state, path)
    return state


def read_tensor_file(path: Path) -> Any:
    """What `torch.save` wrote of tensors and plain data, on the CPU, its pages read as they are used.

    Raises `UserError` if the file is missing, damaged or of another kind.
    """
    try:
        _verify_checksum(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is in the file; it would stand above the one line
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except Exception:  # torch raises many types for a file it cannot read
        raise UserError(
            f"{path} is damaged, or no file of tensors; scripts/convert_checkpoint.py reads those of other codebases"
        ) from None


def _is_zip(path: Path) -> bool:
    """Whether it has torch's format since 1.6, the only one that can be mapped into memory."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_weights(state: dict[str, Any], path: Path) -> None:
    """Raises `UserError` for parts that are not of the types that are written; values are not looked at."""
    model, config, names = state["model"], state["config"], state["class_names"]
    if not isinstance(model, dict) or not all(isinstance(name, str) and _is_dense(model[name]) for name in model):
        raise UserError(f"{path}: its model is not named tensors in memory; it is damaged")
    if not isinstance(config, dict):
        raise UserError(f"{path}: its config is {describe(config)}, not a section with keys; it is damaged")
    check_plain(config, f"config in {path}")
    named = isinstance(names, list) and names and all(isinstance(name, str) and is_text(name) for name in names)
    if not named or len(set(names)) < len(names):
        raise UserError(f"{path}: its class_names are {describe(names)}, not a list of different names; it is damaged")


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def newest_checkpoint(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a run that can be read, and what is wrong with newer ones.

    Raises `UserError` if there are some and none can be read.
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
        raise UserError(f"no checkpoint in {run_dir} can be read: {'; '.join(problems)}")
    return None, []


def load_model_state(model: nn.Module, state: dict[str, Any], path: Path, *, assign: bool = False) -> None:
    """Fill `model` from a checkpoint, or with `assign` make the checkpoint's tensors the model's own.

    Raises `UserError` naming tensors that do not fit or hold NaN or infinity.
    """
    own, saved = model.state_dict(), state["model"]
    kind = {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}
    wrong = [name for name in own if name not in saved or (saved[name].shape, saved[name].dtype) != kind[name]]
    wrong += [name for name in saved if name not in own]
    if wrong:
        raise UserError(
            f"{path} is of another model: {len(wrong)} tensors differ, first {format_value(wrong[0])}; "
            "use the config it was trained with"
        )
    if broken := [name for name in saved if not saved[name].isfinite().all()]:
        raise UserError(
            f"{path} has numbers that are not finite in {len(broken)} tensors, first {broken[0]}; it is damaged, or "
            "training diverged: use an earlier checkpoint"
        )
    model.load_state_dict(saved, assign=assign)


def find_checkpoint(path: Path, *names: str) -> Path | None:
    """`path` itself if it is a file, else the first of `names` in the run folder `path`, else None."""
    candidates = [path, *(path / name for name in names)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def load_detector(
    path: str | Path, overrides: Iterable[str] = (), *, device: torch.device | str | None = None
) -> Detector:
    """A trained detector, ready to `predict`.

    Args:
        path: a checkpoint, or a run folder, whose best.pt is taken or else its last.pt.
        overrides: ``section.key=value`` for the checkpoint's config.
        device: where it runs; by default a GPU if there is one.

    Raises `UserError` if there is no checkpoint or it is damaged, and for wrong overrides.
    """
    checkpoint = find_checkpoint(Path(path), BEST, LAST)
    if checkpoint is None:
        raise UserError(f"no checkpoint at {path}: give a .pt file or a run folder with best.pt or last.pt")
    state = read_checkpoint(checkpoint)
    config = config_from_dict(merge(state["config"], parse_overrides(overrides)), f"config in {checkpoint}")
    class_names = tuple(state["class_names"])
    with torch.device("meta"):  # no random weights only to replace them; the file's pages are read as they are used
        try:
            model = build_detector(config, len(class_names))
        except UserError as error:
            raise UserError(f"config in {checkpoint}: {error}") from None
    load_model_state(model, state, checkpoint, assign=True)
    return Detector(model.eval().to(device or default_device()), config, class_names, checkpoint)
