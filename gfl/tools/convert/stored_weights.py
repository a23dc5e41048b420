"""Find the weights of a model in what another codebase saved, among its containers and prefixes.

Averaged weights (EMA) usually detect better than those of the last training step, so they are taken where a file has
both. The EMA hooks of mmcv and mmengine swap the two: the averaged ones are saved in the model's own place.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from gfl.common.errors import UserError
from gfl.common.text import describe, format_value, list_some
from gfl.common.torch_pickle import Placeholder

EMA, MODEL = "ema", "model"  # the averaged weights, those of the last training step
CONTAINERS = {
    MODEL: ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "student"),
    EMA: (
        *("ema_state_dict", "state_dict_ema", "model_ema", "ema", "ema_model", "model_ema_state_dict"),
        *("ema_model_state_dict", "swa_model", "swa_state_dict", "averaged_model", "teacher"),
    ),
}
MAX_NESTING = 3  # of containers in containers
# DistributedDataParallel and AveragedModel, torch.compile, FSDP, activation checkpointing: anywhere in a name.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
OUTER_NAMES = ("model", "net", "network", "detector")  # attributes that hold a model, as in Lightning's modules
TEACHER, STUDENT = "teacher.", "student."  # of semi-supervised detectors: the teacher is the student's average
COUNTERS = ("steps", "n_averaged")  # of mmengine's and PyTorch's averaged models
BUFFER = "ema_"  # mmcv's hook keeps weights as buffers with this prefix and "_" for each "." of their names


class StoredWeights(NamedTuple):
    """The weights that were taken."""

    tensors: dict[str, Tensor]
    summary: str  # one line on where they were; empty if there is nothing to say
    ignored: tuple[str, ...]  # what else the file holds


class _Weights(NamedTuple):
    """One of the state dicts of a file."""

    tensors: dict[str, Tensor]
    place: str  # where it is in the file; empty for the file itself


def find_weights(content: Any, choice: str | None = None, config_text: str = "") -> StoredWeights:
    """The weights in `content`, which `read_torch_file` returned.

    Args:
        choice: "ema" or "model"; by default the averaged weights if there are any.
        config_text: the training config beside the weights; empty if there is none.

    Raises `UserError` if there is no state dict of tensors, or no averaged one though `choice` is "ema".
    """
    found = _find_state_dicts(content)
    if not found:
        raise UserError(_why_none(content), code="not_state_dict")
    places = [weights.place for weights in found.values()]
    if EMA not in found and not found[MODEL].tensors.keys().isdisjoint(COUNTERS):  # an averaged model by itself
        found = {EMA: found[MODEL]}
    swapped = EMA in found and MODEL in found and _is_mmengine(content, found[EMA].tensors)
    removed: set[str] = set()
    for kind, (tensors, place) in found.items():
        tensors = _without_wrappers(tensors, removed)
        if kind == EMA:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in COUNTERS}
        found[kind] = _Weights(tensors, place)
    if swapped:
        found = {EMA: found[MODEL], MODEL: found[EMA]}
    elif EMA not in found:
        found = _split(found[MODEL], config_text)
    choice = choice or (EMA if EMA in found else MODEL)
    if choice not in found:
        only = "no averaged weights" if choice == EMA else "only averaged weights"
        raise UserError(f"it holds {only}; leave out --weights {choice}", code="weights")
    used = {"meta", *(place.partition(".")[0] for place in places)}
    ignored = tuple(str(key) for key in content if key not in used) if any(places) else ()
    return StoredWeights(found[choice].tensors, _summarize(found, choice, removed), ignored)


def _find_state_dicts(content: Any, nesting: int = 0) -> dict[str, _Weights]:
    """By kind, `EMA` or `MODEL`; `content` itself counts as `MODEL`."""
    if not isinstance(content, dict) or not content or nesting > MAX_NESTING:
        return {}
    if all(isinstance(value, Tensor) for value in content.values()):
        return {MODEL: _Weights({str(name): tensor for name, tensor in content.items()}, "")}
    found = {}
    for kind, keys in CONTAINERS.items():
        for key in keys:
            inner = _find_state_dicts(content.get(key), nesting + 1)
            if inner:
                tensors, place = inner.get(MODEL) or inner[EMA]
                found[kind] = _Weights(tensors, f"{key}.{place}" if place else key)
                break
    return found


def _is_mmengine(content: Mapping[str, Any], ema: Mapping[str, Tensor]) -> bool:
    """Whether mmengine's EMAHook wrote it, which swaps the values of state_dict and ema_state_dict when it saves."""
    meta = content.get("meta")
    versioned = isinstance(meta, dict) and "mmengine_version" in meta
    return "ema_state_dict" in content and ("steps" in ema or "message_hub" in content or versioned)


def _without_wrappers(tensors: Mapping[str, Tensor], removed: set[str]) -> dict[str, Tensor]:
    """The tensors under the names that the model itself gives them; the parts left out are added to `removed`."""
    plain = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        kept = ".".join(part for part in parts if part not in WRAPPERS)
        removed.update(part for part in parts if part in WRAPPERS)
        if kept in plain:
            raise UserError(
                f"two tensors are named {format_value(kept)} but for prefixes such as 'module.'", code="tensors"
            )
        plain[kept] = tensor
    while outer := next((outer for outer in OUTER_NAMES if _all_below(outer, plain)), ""):  # they may be nested
        plain = {name.removeprefix(f"{outer}."): tensor for name, tensor in plain.items()}
        removed.add(outer)
    return plain


def _all_below(outer: str, names: Iterable[str]) -> bool:
    names = [name for name in names if name not in COUNTERS]
    return bool(names) and all(name.startswith(f"{outer}.") for name in names)


def _split(weights: _Weights, config_text: str) -> dict[str, _Weights]:
    """The averaged weights and the others, where one state dict holds both."""
    tensors, place = weights
    of = f" of {place}" if place else ""
    if all(name.startswith((TEACHER, STUDENT)) for name in tensors):
        roles = {EMA: TEACHER, MODEL: STUDENT}
        parts = {
            kind: _Weights({n.removeprefix(role): t for n, t in tensors.items() if n.startswith(role)}, f"{role}*{of}")
            for kind, role in roles.items()
        }
        return {kind: part for kind, part in parts.items() if part.tensors}
    buffers = {name: BUFFER + name.replace(".", "_") for name in tensors if not name.startswith(BUFFER)}
    buffers = {name: buffer for name, buffer in buffers.items() if buffer in tensors}
    if not buffers:
        return {MODEL: weights}
    named = {name: tensor for name, tensor in tensors.items() if name not in buffers.values()}
    own = _Weights(named, place or "the tensors without ema_")
    beside = _Weights(named | {name: tensors[buffer] for name, buffer in buffers.items()}, f"the ema_* tensors{of}")
    # The hook swaps them at the end of an epoch, before checkpoints are saved; with iterations there is no such end.
    return {EMA: beside, MODEL: own} if "IterBasedRunner" in config_text else {EMA: own, MODEL: beside}


def _summarize(found: Mapping[str, _Weights], choice: str, removed: set[str]) -> str:
    """One line on what was taken; empty for the only state dict of a file, under the usual names."""
    names = {EMA: "averaged (EMA)", MODEL: "of the last training step"}
    other = MODEL if choice == EMA else EMA
    parts = []
    if EMA in found:
        parts.append(f"{names[choice]} taken" + (f", from {found[choice].place}" if found[choice].place else ""))
    elif found[choice].place not in ("", "state_dict"):
        parts.append(f"from {found[choice].place}")
    if removed:
        parts.append(f"without the prefix {', '.join(f'{part}.' for part in sorted(removed))}")
    if other in found:
        parts.append(f"--weights {other} takes those {names[other]}, from {found[other].place}")
    return "; ".join(parts)


def _why_none(content: Any) -> str:
    """Why there is no state dict of tensors in a file, and what to do."""
    advice = "save its state_dict() instead: torch.save(model.state_dict(), FILE)"
    if isinstance(content, Placeholder):
        return f"it holds a Python object, such as a complete model, whose classes are not imported; {advice}"
    if not isinstance(content, dict) or not content:
        return f"it holds no state dict of tensors but {describe(content)}; {advice}"
    keys = [key for kind in CONTAINERS.values() for key in kind if key in content]
    objects = [key for key in keys if isinstance(content[key], Placeholder)]
    if objects:
        return f"its {list_some(objects)} is a Python object, whose classes are not imported; {advice}"
    inner = next((content[key] for key in keys if isinstance(content[key], dict)), content)
    others = [key for key, value in inner.items() if not isinstance(value, Tensor)]
    if len(others) < len(inner):
        return f"its state dict holds something else than tensors: {list_some(others)}"
    return f"it holds no state dict of tensors; its keys are {list_some(list(inner))}"
