"""The reference's golden figures: their weights, and its names for our tensors."""

import zlib

import numpy as np
import torch
from torch import Tensor


def golden_weight(name: str, shape: list[int]) -> Tensor:
    """The weight that the reference's tensor `name` had: a fixed function of its name and shape."""
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "project":
        return torch.arange(shape[0], dtype=torch.float32)
    if last in ("running_mean", "bias"):
        value = 0.1 * noise
    elif last == "running_var":
        value = 1 + 0.2 * np.tanh(noise)
    elif last == "scale" or len(shape) == 1:
        value = 1 + 0.1 * noise
    else:
        value = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


def from_reference(reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the reference with our names."""
    state = {}
    for name, tensor in reference.items():
        if "scales" in name or "project" in name:
            continue
        state[_our_name(name)] = tensor
    scales = [reference[f"bbox_head.scales.{level}.scale"] for level in range(5)]
    return state | {"head.scales": torch.stack(scales)}


def _our_name(name: str) -> str:
    part, *rest = name.split(".")
    if part == "backbone":
        return name
    if part == "neck":
        kind, level, _, last = rest
        if kind == "lateral_convs":
            return f"fpn.lateral.{level}.{last}"
        return f"fpn.output.{level}.{last}" if int(level) < 3 else f"fpn.extra.{int(level) - 3}.{last}"
    if rest[0] in ("gfl_cls", "gfl_reg"):
        return f"head.{rest[0][4:]}_out.{rest[1]}"
    tower, number, kind, last = rest
    return f"head.{tower[:3]}_tower.{3 * int(number) + (kind == 'gn')}.{last}"
