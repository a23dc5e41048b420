"""A detector of other classes starts from a trained one: all its weights, and the class rows whose names agree."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gfl.checkpoint import BEST, LAST, find_checkpoint, load_model_state, read_checkpoint
from gfl.common.dataclass_from_dict import told
from gfl.common.errors import UserError
from gfl.config import Config, config_differences, config_from_dict, config_to_dict
from gfl.model.detector import Detector

CLASS_TENSORS = ("head.cls_out.weight", "head.cls_out.bias")  # one row per class


def load_initial_weights(model: Detector, config: Config, class_names: Sequence[str]) -> str:
    """Fill `model`, newly built, from the checkpoint `model.weights`; classes that it does not know stay as they are.

    Returns one line that says what was kept, empty where `model.weights` is none. Raises `UserError` for a checkpoint
    that is missing, damaged or of another architecture than `config` describes.
    """
    if config.model.weights == "none":
        return ""
    path = find_checkpoint(Path(config.model.weights), BEST, LAST)
    if path is None:
        raise UserError(
            f"model.weights: no checkpoint at {config.model.weights}; give a run folder, a .pt file of this program "
            "(scripts/convert_checkpoint.py makes them from published ones), or none"
        )
    state = read_checkpoint(path)
    _check_architecture(state["config"], config, path)
    known = list(state["class_names"])
    rows = {label: known.index(name) for label, name in enumerate(class_names) if name in known}
    own = model.state_dict()
    taken = {name: _class_rows(own[name], state["model"].get(name), rows, len(known), path) for name in CLASS_TENSORS}
    load_model_state(model, state | {"model": state["model"] | taken}, path)
    return f"{path}: {_summary(class_names, [class_names[label] for label in rows])}"


def _check_architecture(tree: Mapping[str, Any], config: Config, path: Path) -> None:
    """Raise `UserError` unless both configs describe the same model; how it is trained may differ."""
    ours, theirs = config.model, config_from_dict(tree, f"config in {path}").model
    training = {key: getattr(ours.backbone, key) for key in ("weights", "frozen_stages", "norm_eval")}
    backbone = dataclasses.replace(theirs.backbone, **training)
    wanted = dataclasses.replace(config, model=dataclasses.replace(theirs, weights=ours.weights, backbone=backbone))
    changes = config_differences(config_to_dict(config), wanted)
    if not changes:
        return
    plain = {key: new if isinstance(new, str) else json.dumps(new) for key, (_, new) in changes.items()}  # as YAML
    overrides = shlex.join(f"{key}={new}" for key, new in plain.items())
    raise UserError(
        f"model.weights: {path} is of another architecture than the config ({', '.join(told(changes))}); to train on "
        f"from it, add to the command: {overrides}"
    )


def _class_rows(own: Tensor, saved: Any, rows: dict[int, int], num_saved: int, path: Path) -> Tensor:
    """`own` (C, ...) with row `old` of `saved` (`num_saved`, ...) in place of row `new` for each of `rows`."""
    if not isinstance(saved, Tensor) or saved.shape != (num_saved, *own.shape[1:]):
        raise UserError(f"{path} is damaged: its class outputs are not those of its {num_saved} class names")
    merged = own.clone()
    merged[torch.tensor(list(rows), dtype=torch.int64)] = saved[list(rows.values())].to(own)
    return merged


def _summary(class_names: Sequence[str], kept: Sequence[str]) -> str:
    if len(kept) == len(class_names):
        return f"all {len(kept)} classes kept"
    fresh = ", ".join(name for name in class_names if name not in kept)
    names = f" ({', '.join(kept)})" if kept else ""
    return f"{len(kept)} of {len(class_names)} classes kept{names}, fresh: {fresh}"
