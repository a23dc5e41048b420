"""Checkpoints: tensors and plain data only, written whole or not at all, read without executing anything.

Beside each of a run lies a `.json` with its size and SHA-256, so that one cut off or altered later is recognised.
"""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from gfl.common.dataclass_from_dict import at_least, check_plain, describe, is_text, shorten, shown
from gfl.common.errors import UserError
from gfl.common.files import file_digest, temporary, write_json
from gfl.config import Config, config_from_dict, config_to_dict, merge, parse_overrides
from gfl.model.detector import Detector, build_detector

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


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    config: Config,
    class_names: tuple[str, ...],
    progress: Progress,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    keep: Path | None = None,
) -> None:
    """Write everything a run needs to go on; an interrupted write leaves the previous file.

    Args:
        keep: where the previous file goes instead of being overwritten.

    Raises `UserError` if the disk is full or the folder cannot be written.
    """
    training = {
        "progress": progress._asdict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }
    try:
        write_torch_file(path, weights(model.state_dict(), config, class_names) | training, proof=True, keep=keep)
    except UserError as error:
        raise UserError(f"{error}; free some space, then go on with --resume") from None


def weights(model: Mapping[str, Tensor], config: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """The part of a checkpoint that evaluation needs."""
    config_tree, names = config_to_dict(config), list(class_names)
    return {"format": FORMAT, "model": model, "config": config_tree, "class_names": names}


def write_torch_file(path: Path, content: Any, *, proof: bool = False, keep: Path | None = None) -> None:
    """Write tensors and plain data, whole or not at all, then with `proof` size and hash beside it.

    Raises `UserError` if the disk is full or forbids it.
    """
    unfinished = temporary(path)
    try:
        with open(unfinished, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        written = _proof(unfinished) if proof else None
        if keep and path.is_file():
            _move(path, keep)
        _proof_path(path).unlink(missing_ok=True)  # it is of the old file; without one a file is taken as it is
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            unfinished.unlink()
        reason = getattr(error, "strerror", None) or "the disk is full, or fails"
        raise UserError(f"cannot write {path}: {reason}") from None
    if written:
        write_json(_proof_path(path), written)


def _move(path: Path, target: Path) -> None:
    """Rename a checkpoint and its proof; whenever it is interrupted, no proof stands beside another file than its."""
    _proof_path(target).unlink(missing_ok=True)
    os.replace(path, target)
    if _proof_path(path).is_file():
        os.replace(_proof_path(path), _proof_path(target))


def _proof_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _proof(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path, "sha256")}


def _check_proof(path: Path) -> None:
    """Raises `UserError` if the file is not the one that was written; a file without a proof is taken as it is."""
    try:
        written = json.loads(_proof_path(path).read_text(encoding="utf-8"))
        size, digest = written["bytes"], written["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path} has {found} bytes, but {shorten(size)} were written: it is cut off or altered")
    if _proof(path)["sha256"] != digest:
        raise UserError(f"{path} is not as it was written: its SHA-256 differs from that in {_proof_path(path).name}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The checkpoint as plain data, on the CPU; raises `UserError` if it is missing, damaged or something else."""
    try:
        _check_proof(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is in the file; it would stand above the one line
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror or error}") from None
    except Exception:  # torch raises many types for a file it cannot read
        raise UserError(f"{path} is not a checkpoint of this program, or it is damaged") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= WEIGHTS:
        raise UserError(
            f"{path} is not a checkpoint of this program (format {FORMAT!r}), or lacks parts; "
            "scripts/convert_checkpoint.py reads those of other programs"
        )
    _check_weights(state, path)
    return state


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
            f"{path} is of another model: {len(wrong)} tensors differ, first {shown(wrong[0])}; "
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


def load_detector(path: Path, overrides: Iterable[str] = ()) -> tuple[Detector, Config, tuple[str, ...], Path]:
    """The trained detector in evaluation mode, its config, its class names and the file they come from.

    Args:
        path: a checkpoint, or a run folder, whose best.pt is taken or else its last.pt.
        overrides: ``section.key=value`` for the checkpoint's config.
    """
    checkpoint = find_checkpoint(path, BEST, LAST)
    if checkpoint is None:
        raise UserError(f"no checkpoint at {path}: give a .pt file or a run folder with best.pt or last.pt")
    state = read_checkpoint(checkpoint)
    config = config_from_dict(merge(state["config"], parse_overrides(overrides)), f"config in {checkpoint}")
    class_names = tuple(state["class_names"])
    with torch.device("meta"):  # no random weights only to replace them; the file's pages are read as they are used
        try:
            model = build_detector(config, len(class_names), pretrained=False)
        except UserError as error:
            raise UserError(f"config in {checkpoint}: {error}") from None
    load_model_state(model, state, checkpoint, assign=True)
    return model.eval(), config, class_names, checkpoint
