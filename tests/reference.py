"""The reference, mmdetection: its golden values and weights, and two of its detectors written a second time, slowly."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gfl.build import build_detector
from gfl.config import Config
from gfl.tools.convert.architecture import parse_external
from gfl.tools.convert.state_dict import convert_detector

GOLDEN = Path(__file__).parent / "golden"


def read_golden(name: str) -> dict[str, Tensor | list[str]]:
    """The arrays of one golden file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    is_text = {key: array.dtype.kind == "U" for key, array in arrays.items()}
    return {key: array.tolist() if is_text[key] else torch.from_numpy(array) for key, array in arrays.items()}


def golden_levels(golden: dict[str, Tensor], name: str) -> Tensor:
    """Maps (B, channels, h, w) of the five levels as (B, P, channels)."""
    return torch.cat([golden[f"{name}_{level}"].flatten(2).mT for level in range(5)], dim=1)


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
        value = noise / np.sqrt(np.prod(shape[1:])) * (0.5 if "conv_offset" in name else 1)
    return torch.from_numpy(np.asarray(value, np.float32))


def convert_golden(weights: dict[str, Tensor], *known: Any) -> tuple[dict[str, Tensor], Config]:
    """mmdetection's tensors as a state dict and config; `known` as in `convert_detector`."""
    return convert_detector(parse_external({"state_dict": weights}), *known)[:2]


def deviation_from_golden(name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> float:
    """How far the outputs of a golden model are off: the largest error over the levels, relative to the largest value.

    Its input is noise of 128 x 160 pixels. `dtype` is that of autocast, None for float32.
    """
    shapes, golden = json.loads((GOLDEN / f"{name}.json").read_text()), read_golden(name)
    state, config = convert_golden({tensor: golden_weight(tensor, shape) for tensor, shape in shapes.items()})
    with torch.device("meta"):  # no random weights only to replace them
        model = build_detector(config, 80).eval()
    model.load_state_dict(state, assign=True)
    model.to(device)
    noise = np.random.RandomState(int(golden["image_seed"])).standard_normal((1, 3, 128, 160))
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype, enabled=dtype is not None):
        output = model(torch.from_numpy(noise.astype(np.float32)).to(device))
        # Of GFLv2 the probability of the product.
        cls = output.cls_logits if config.model.head.quality == "joint" else model.quality.scores(output)
    deviations = []
    for kind, ours in (("cls", cls), ("reg", output.reg_pred.flatten(2))):
        for level, ours_at_level in enumerate(ours.split(output.grid.level_sizes, dim=1)):
            theirs = golden[f"{kind}_{level}"].flatten(2).mT
            deviations.append(((ours_at_level.cpu() - theirs).abs().max() / theirs.abs().max()).item())
    return float(np.max(deviations))  # NaN where any is; `max` would pass over it


# What mmdetection calls the last layers: classes, box, centerness.
OUTPUTS = {"atss": ("atss_cls", "atss_reg", "atss_centerness"), "fcos": ("conv_cls", "conv_reg", "conv_centerness")}
WIDTHS = {"resnet18": (128, 256, 512), "resnet50": (512, 1024, 2048)}  # of C3 to C5


def neck_and_head_shapes(kind: str, *, backbone: str, channels: int, convs: int, classes: int) -> dict[str, list[int]]:
    """mmdetection's names and shapes behind the backbone, from its sources: FPN, ATSSHead and FCOSHead."""
    shapes = {}

    def convolution(name, inputs, outputs, size, *, bias=True):
        shapes[f"{name}.weight"] = [outputs, inputs, size, size]
        if bias:
            shapes[f"{name}.bias"] = [outputs]

    for level, width in enumerate(WIDTHS[backbone]):
        convolution(f"neck.lateral_convs.{level}.conv", width, channels, 1)
    for level in range(5):
        convolution(f"neck.fpn_convs.{level}.conv", channels, channels, 3)
        shapes[f"bbox_head.scales.{level}.scale"] = []
    for tower in ("cls_convs", "reg_convs"):
        for layer in range(convs):
            convolution(f"bbox_head.{tower}.{layer}.conv", channels, channels, 3, bias=kind == "fcos")
            shapes[f"bbox_head.{tower}.{layer}.gn.weight"] = shapes[f"bbox_head.{tower}.{layer}.gn.bias"] = [channels]
    for name, outputs in zip(OUTPUTS[kind], (classes, 4, 1), strict=True):
        convolution(f"bbox_head.{name}", channels, outputs, 3)
    return shapes


def slow_detector(kind: str, tensors: dict[str, Tensor], features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """C3 to C5 of one image -> boxes_xyxy (P, 4), scores (P, C) of ATSS or of the improved FCOS, one point at a time.

    ATSS: offsets and log sizes of an anchor, a square of 8 strides with its centre on the grid. FCOS: distances from
    the middle of the cell to four sides, cut at 0 and in strides. Scores are class probabilities times centerness.
    """

    def convolve(name, x, **how):
        return F.conv2d(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"), **how)

    def tower(name, x):
        layer = 0
        while f"{name}.{layer}.conv.weight" in tensors:
            x = convolve(f"{name}.{layer}.conv", x, padding=1)
            x = F.group_norm(x, 32, tensors[f"{name}.{layer}.gn.weight"], tensors[f"{name}.{layer}.gn.bias"]).relu()
            layer += 1
        return x

    c3, c4, c5 = (convolve(f"neck.lateral_convs.{level}.conv", c) for level, c in enumerate(features))
    c4 = c4 + F.interpolate(c5, size=c4.shape[2:])
    c3 = c3 + F.interpolate(c4, size=c3.shape[2:])
    pyramid = [convolve(f"neck.fpn_convs.{level}.conv", c, padding=1) for level, c in enumerate((c3, c4, c5))]
    p6 = convolve("neck.fpn_convs.3.conv", pyramid[-1], padding=1, stride=2)
    p7 = convolve("neck.fpn_convs.4.conv", p6.relu() if kind == "fcos" else p6, padding=1, stride=2)

    cls_name, reg_name, centerness_name = (f"bbox_head.{name}" for name in OUTPUTS[kind])
    boxes, scores = [], []
    for level, (stride, feature) in enumerate(zip((8, 16, 32, 64, 128), (*pyramid, p6, p7), strict=True)):
        regression = tower("bbox_head.reg_convs", feature)
        cls = convolve(cls_name, tower("bbox_head.cls_convs", feature), padding=1)[0]
        reg = (convolve(reg_name, regression, padding=1) * tensors[f"bbox_head.scales.{level}.scale"])[0]
        centerness = convolve(centerness_name, regression, padding=1)[0, 0]
        for row in range(feature.shape[2]):
            for column in range(feature.shape[3]):
                numbers = reg[:, row, column].tolist()
                decode = _corners_of_atss if kind == "atss" else _corners_of_fcos
                boxes.append(decode(numbers, column, row, stride))
                scores.append(cls[:, row, column].sigmoid() * centerness[row, column].sigmoid())
    return torch.tensor(boxes), torch.stack(scores)


def _corners_of_atss(deltas: list[float], column: int, row: int, stride: int) -> list[float]:
    side = 8 * stride
    x, y = column * stride + 0.1 * deltas[0] * side, row * stride + 0.1 * deltas[1] * side
    limit = math.log(1000 / 16)
    width, height = (side * math.exp(min(max(0.2 * delta, -limit), limit)) for delta in deltas[2:])
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _corners_of_fcos(distances: list[float], column: int, row: int, stride: int) -> list[float]:
    x, y = column * stride + stride // 2, row * stride + stride // 2
    left, top, right, bottom = (max(distance, 0.0) * stride for distance in distances)
    return [x - left, y - top, x + right, y + bottom]
