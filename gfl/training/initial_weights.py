"""Initial weights of training: those of a trained detector, whose classes are matched by name, or of a backbone."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfl.checkpoint import conversion_advice, find_detector, load_model_state, read_checkpoint, read_tensor_file
from gfl.common.errors import UserError, error_context
from gfl.common.text import format_differences, list_some, shell_command
from gfl.config import Config, HeadConfig, ModelConfig
from gfl.config_file import config_differences, config_from_dict, config_to_dict
from gfl.model.backbone import Backbone, imagenet_weights
from gfl.model.detector import DenseDetector
from gfl.training.side_bins import can_resample, resample_sides

CLASS_TENSORS = ("head.cls_out.weight", "head.cls_out.bias")  # one row per class


def load_initial_weights(model: DenseDetector, config: Config, class_names: Sequence[str]) -> str:
    """Fill the newly built `model` from `model.weights`, or its backbone from `model.backbone.weights`.

    The outputs of classes that the checkpoint does not have stay as they are, and the sides of a checkpoint with other
    bins are re-sampled (`gfl/training/side_bins.py`). Returns one line for the user on both, empty if `model.weights`
    is none. Raises `UserError` for weights that are missing, damaged or of another architecture than `config`
    describes.
    """
    if config.model.weights == "none":
        load_backbone_weights(model.backbone, config.model.backbone.name, config.model.backbone.weights)
        return ""
    with error_context("model.weights"):
        path = find_detector(Path(config.model.weights))
    state = read_checkpoint(path)
    theirs = config_from_dict(state["config"], f"config in {path}")
    _check_architecture(theirs.model, config, path)
    known = list(state["class_names"])
    rows = {label: known.index(name) for label, name in enumerate(class_names) if name in known}
    own = model.state_dict()
    merged = {name: _class_rows(own[name], state["model"].get(name), rows, len(known), path) for name in CLASS_TENSORS}
    bins = _changed_bins(theirs.model.head, config.model.head)
    if bins:  # after the check above, those that can be re-sampled
        merged |= resample_sides(state, theirs, config.model.head, path)
    load_model_state(model, state | {"model": state["model"] | merged}, path)
    return f"{path}: {_summary(class_names, [class_names[label] for label in rows])}{bins}"


def _check_architecture(theirs: ModelConfig, config: Config, path: Path) -> None:
    """Raise `UserError` unless weights of `theirs` fit `config`; settings of training and bins of sides may differ."""
    ours = config.model
    training = {key: getattr(ours.backbone, key) for key in ("weights", "frozen_stages", "norm_eval")}
    backbone = dataclasses.replace(theirs.backbone, **training)
    known_bins = can_resample(theirs.head, ours.head)
    bins = {"reg_max": ours.head.reg_max, "delta": ours.head.delta} if known_bins else {}
    # Where weights begin that are not loaded says nothing of those that are.
    dgqp = dataclasses.replace(theirs.head.dgqp, init=ours.head.dgqp.init)
    head = dataclasses.replace(theirs.head, initial_distance=ours.head.initial_distance, dgqp=dgqp, **bins)
    wanted = dataclasses.replace(theirs, weights=ours.weights, backbone=backbone, head=head)
    changes = config_differences(config_to_dict(config), dataclasses.replace(config, model=wanted))
    if not changes:
        return
    plain = {key: new if isinstance(new, str) else json.dumps(new) for key, (_, new) in changes.items()}  # as YAML
    overrides = shell_command(*(f"{key}={new}" for key, new in plain.items()))
    differences = ", ".join(format_differences(changes))
    other_delta = theirs.head.box == ours.head.box == "general" and not known_bins
    why = "; delta can only be divided by a whole number" if other_delta else ""
    raise UserError(
        f"model.weights: {path} is of another architecture than the config ({differences}{why}); to fine-tune it, add "
        f"to the command: {overrides}",
        code="architecture",
    )


def _changed_bins(old: HeadConfig, new: HeadConfig) -> str:
    """What is re-sampled, as the end of the line for the user; empty where the bins are the same or not used."""
    changed = [
        f"{key} {getattr(old, key):g} -> {getattr(new, key):g}"
        for key in ("reg_max", "delta")
        if getattr(old, key) != getattr(new, key)
    ]
    if not changed or new.box != "general":
        return ""
    reach = new.reg_max * new.delta
    lost = f", what they said beyond {reach:g} strides is lost" if reach < old.reg_max * old.delta else ""
    return f"; {', '.join(changed)}: side logits re-sampled{lost}"


def _class_rows(own: Tensor, saved: Any, rows: dict[int, int], num_saved: int, path: Path) -> Tensor:
    """`own` (C, ...) with row `old` of `saved` (`num_saved`, ...) in place of row `new`, for new -> old in `rows`."""
    if not isinstance(saved, Tensor) or saved.shape != (num_saved, *own.shape[1:]):
        raise UserError(
            f"{path} is damaged: its class outputs do not match its {num_saved} class names", code="damaged"
        )
    merged = own.clone()
    merged[torch.tensor(list(rows), dtype=torch.int64)] = saved[list(rows.values())].to(own)
    return merged


def _summary(class_names: Sequence[str], kept: Sequence[str]) -> str:
    if len(kept) == len(class_names):
        return f"all {len(kept)} classes kept"
    fresh = ", ".join(name for name in class_names if name not in kept)
    names = f" ({', '.join(kept)})" if kept else ""
    return f"{len(kept)} of {len(class_names)} classes kept{names}, fresh: {fresh}"


def load_backbone_weights(backbone: Backbone, name: str, weights: str) -> None:
    """Fill `backbone` with ImageNet weights: ``none``, ``torchvision`` (its weights API, needs a network) or a file.

    A file holds a torchvision state dict, whose classifier is ignored, or a detector's checkpoint, whose backbone is
    used; deformable convolutions keep their initial offsets if the file has none. Raises `UserError` for weights that
    are missing, unreadable or of another architecture.
    """
    if weights == "none":
        return
    state = _download(name) if weights == "torchvision" else _read_backbone(Path(weights))
    own = backbone.state_dict()
    # ImageNet models have no offsets, and files older than PyTorch 0.4.1 no counters.
    optional = {key for key in own if "conv_offset" in key or key.endswith("num_batches_tracked")}
    state = {key: own[key] for key in optional} | {key: state[key] for key in state if not key.startswith("fc.")}
    wrong = sorted(key for key in own.keys() | state.keys() if _shape(own, key) != _shape(state, key))
    if wrong:
        foreign = own.keys().isdisjoint(state.keys() - optional)
        raise UserError(
            f"model.backbone.weights: {weights} does not fit {name}: {len(wrong)} tensors missing, left over or of "
            f"another shape: {list_some(wrong)}{'; ' + conversion_advice(Path(weights)) if foreign else ''}",
            code="architecture",
        )
    if broken := [key for key, tensor in state.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"model.backbone.weights: {weights} has numbers that are not finite in {len(broken)} tensors "
            f"({list_some(broken)}); it is damaged, or its training diverged: use another file",
            code="not_finite",
        )
    backbone.load_state_dict(state)


def _shape(state: dict[str, Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None


def _download(name: str) -> dict[str, Tensor]:
    if (weights := imagenet_weights(name)) is None:
        raise UserError(
            f"model.backbone.weights: torchvision has none for {name}; download open-mmlab's, then give the file that "
            "scripts/convert_checkpoint.py makes from them",
            code="missing",
        )
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the downloaded file has another hash
        raise UserError(
            f"model.backbone.weights: torchvision could not download {name} ({error}); put the file somewhere and give "
            "its path, or train from scratch with model.backbone.weights=none",
            code="download",
        ) from None


def _read_backbone(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.backbone.weights: no file {path}; give a file that scripts/convert_checkpoint.py made or of "
            "torchvision, 'torchvision' to download it, or 'none'",
            code="missing",
        )
    with error_context("model.backbone.weights"):
        state = read_tensor_file(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict) and "format" in state:  # of this codebase
        named = ((str(key), value) for key, value in state["model"].items())
        state = {key.removeprefix("backbone."): value for key, value in named if key.startswith("backbone.")}
    entries = state.items() if isinstance(state, dict) else [(None, None)]
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries):
        raise UserError(
            f"model.backbone.weights: {path} is neither a backbone's state dict nor a checkpoint of this codebase; "
            f"{conversion_advice(path)}",
            code="not_state_dict",
        )
    return state
