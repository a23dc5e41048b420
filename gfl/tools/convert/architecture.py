"""Recognize what a checkpoint of another codebase holds, from its tensors' names and shapes and from its config.

`HEADS` is the one place that knows mmdetection's heads.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfl.common.errors import UserError
from gfl.common.text import list_some, short_repr
from gfl.model.backbone import ARCHITECTURES
from gfl.model.detector import PIXEL_MEAN, PIXEL_STD
from gfl.tools.convert.stored_weights import find_weights

# Buffers that hold the positions of the bins, in mmdetection and in V1.
PROJECT, PROJECT_V1 = "bbox_head.integral.project", "bbox_head.distribution_project.project"

# Buffers that some releases of mmdetection 3.x saved: how pixels are normalized.
PIXEL_BUFFERS = {"data_preprocessor.mean": PIXEL_MEAN, "data_preprocessor.std": PIXEL_STD}

# `key=value` in the text of a config, and the class of a head. Such texts are code, so they are searched, never run;
# the limits on lengths keep the search fast on a hostile text.
SETTING = re.compile(r"\b(\w{1,50})\s*=\s*(\[[^\[\]]{0,100}\]|['\"]?[\w.-]{1,100}(?![\w.(-]))")
HEAD_TYPE = re.compile(r"\btype\s*=\s*['\"]?(?:\w{1,50}\.){0,9}(\w{0,50}Head)\b")

HEAD_KEY = "bbox_head"  # among the settings: its class
AllowedSettings = Mapping[str, tuple[str | None, ...]]  # the supported values of each setting; None: not set

# Settings of backbone, pixels and neck that shapes do not show. Legacy configs have `add_extra_convs=True`.
COMMON_SETTINGS: AllowedSettings = {
    "style": ("pytorch", None),
    "to_rgb": ("True", None),
    "bgr_to_rgb": ("True", None),
    "add_extra_convs": ("on_output", "True", None),
}


class HeadKind(NamedTuple):
    """A head of mmdetection that our configs can describe."""

    type: str  # its class
    marker: str  # the tensor that identifies it
    outputs: Mapping[str, str]  # our head's last layers -> their names there
    head: Mapping[str, Any]  # what it implies for `model.head`
    extra_relu: bool  # for `model.fpn` (in mmdetection's own configs of it)
    offset: float  # for `model.points`
    recipe: Mapping[str, Any]  # for other sections, if no config is given
    settings: AllowedSettings  # of its config: what names and shapes do not show

    @property
    def model(self) -> dict[str, Mapping[str, Any]]:
        """What it implies for the config's `model` section."""
        return {"fpn": {"extra_relu": self.extra_relu}, "head": self.head, "points": {"offset": self.offset}}


GFL = HeadKind(
    type="GFLHead",
    marker="bbox_head.gfl_cls.weight",
    outputs={"cls_out": "gfl_cls", "reg_out": "gfl_reg"},
    head={"quality": "joint", "box": "general", "delta": 1.0, "conv_bias": False},
    extra_relu=False,
    offset=0.0,
    recipe={},
    settings={},
)
GFLV2 = GFL._replace(type="GFocalHead", marker="bbox_head.reg_conf.0.weight", head={**GFL.head, "quality": "dgqp"})
ATSS = HeadKind(
    type="ATSSHead",
    marker="bbox_head.atss_cls.weight",
    outputs={"cls_out": "atss_cls", "reg_out": "atss_reg", "quality_out": "atss_centerness"},
    head={"quality": "centerness_branch", "box": "anchor_delta", "conv_bias": False},
    extra_relu=False,
    offset=0.0,
    recipe={},
    settings={
        HEAD_KEY: ("ATSSHead", None),  # PAAHead has the same tensors
        "octave_base_scale": ("8", None),
        "target_stds": ("[0.1,0.1,0.2,0.2]",),
    },
)
FCOS = HeadKind(
    type="FCOSHead",
    marker="bbox_head.conv_centerness.weight",
    outputs={"cls_out": "conv_cls", "reg_out": "conv_reg", "quality_out": "conv_centerness"},
    head={"quality": "centerness_branch", "box": "dirac"},  # with or without conv_bias
    extra_relu=True,
    offset=0.5,
    recipe={"assign": {"kind": "fcos"}, "loss": {"box_weight": 1.0}},
    settings={
        HEAD_KEY: ("FCOSHead", None),
        "norm_on_bbox": ("True",),
        "centerness_on_reg": ("True",),
        "dcn_on_last_conv": ("False", None),
    },
)
HEADS = (GFLV2, GFL, ATSS, FCOS)  # GFLv2 has GFL's marker too


class ExternalCheckpoint(NamedTuple):
    """What a file of another codebase holds."""

    tensors: dict[str, Tensor]  # with the names of mmdetection, or of torchvision for a backbone
    class_names: tuple[str, ...]  # empty if the file does not name them
    settings: dict[str, str]  # of the config beside the tensors; empty if there is none
    codebase: str
    weights: str  # one line on which of the file's weights these are; empty for the only ones
    ignored: tuple[str, ...]  # what the file holds beside them

    @property
    def is_backbone(self) -> bool:
        """Whether it has neither neck nor box head: an image classifier, or the backbone alone."""
        return not any(name.startswith(("neck.", "bbox_head.")) for name in self.tensors)


def parse_external(content: Any, weights: str | None = None) -> ExternalCheckpoint:
    """Interpret what `read_torch_file` returned.

    Args:
        weights: "ema" or "model", where the file holds averaged weights and others; by default the averaged ones.

    Raises `UserError` if it is not a state dict of tensors.
    """
    meta = content.get("meta") if isinstance(content, dict) else None
    meta = meta if isinstance(meta, dict) else {}
    text = next((meta[key] for key in ("config", "cfg") if isinstance(meta.get(key), str)), "")  # of 2.x, of 3.x
    stored, summary, ignored = find_weights(content, weights, text)
    for name, tensor in stored.items():
        if tensor.numel() == 0:
            raise UserError(f"tensor {name} is empty", code="tensors")
    tensors = {normalize_key(name): tensor for name, tensor in stored.items()}
    if len(tensors) < len(stored):
        raise UserError("two tensors have the same name but for the version that wrote it", code="tensors")
    _check_pixels(tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in PIXEL_BUFFERS}
    dataset = meta.get("dataset_meta")
    named = [meta.get("CLASSES"), *(dataset.get(key) for key in ("classes", "CLASSES") if isinstance(dataset, dict))]
    class_names = next((tuple(names) for names in named if _is_name_list(names)), ())
    codebase = _recognize_codebase(tensors, meta)
    return ExternalCheckpoint(tensors, class_names, _read_settings(text), codebase, summary, ignored)


def normalize_key(name: str) -> str:
    """Rename old versions' DCN offsets and FCOS layers as new ones do."""
    return name.replace("conv2_offset.", "conv2.conv_offset.").replace("bbox_head.fcos_", "bbox_head.conv_")


def _check_pixels(tensors: Mapping[str, Tensor]) -> None:
    """Raise `UserError` if the file's own normalization of pixels, which few versions saved, is not ours."""
    for name, values in PIXEL_BUFFERS.items():
        found = tensors[name].flatten().double() if name in tensors else torch.tensor(values).double()
        if found.is_meta:
            continue
        if found.numel() != 3 or not torch.allclose(found, torch.tensor(values).double(), rtol=1e-4):
            raise UserError(
                f"{name} is {short_repr(found[:3].tolist())}, but this codebase normalizes with {list(values)}: it was "
                "trained on other pixel values",
                code="setting",
            )


def _read_settings(text: str) -> dict[str, str]:
    """The last value of every key, and the head's class: texts of old versions hold inherited values first."""
    settings = {key: "".join(value.split()).strip("'\"").replace(",]", "]") for key, value in SETTING.findall(text)}
    types = HEAD_TYPE.findall(text)
    return settings | ({HEAD_KEY: types[-1]} if types else {})


def _is_name_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _recognize_codebase(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    if PROJECT_V1 in tensors:
        return "implus/GFocal (V1)"
    if "bbox_head.reg_conf.0.weight" in tensors:
        return "implus/GFocalV2"
    if not any(name.startswith("bbox_head.") for name in tensors):
        return "weights of a backbone"
    version = meta.get("mmdet_version", "3.x" if "mmengine_version" in meta else "")
    return f"mmdetection {version}".rstrip() if isinstance(version, str) and version.isprintable() else "mmdetection"


def head_kind(tensors: Mapping[str, Tensor]) -> HeadKind:
    """The row of `HEADS`; raises `UserError` for another detector."""
    for kind in HEADS:
        if kind.marker in tensors:
            return kind
    others = [name for name in tensors if name.startswith("bbox_head.") and "_convs." not in name]
    known = ", ".join(kind.marker for kind in HEADS)
    raise UserError(
        f"not a supported detector, which would have one of {known}; found {list_some(others or list(tensors))}",
        code="unknown_detector",
    )


def allowed_settings(kind: HeadKind) -> AllowedSettings:
    """The settings that tensors do not show, with their supported values, the usual one first."""
    return {**COMMON_SETTINGS, **kind.settings}


def recognize_detector(checkpoint: ExternalCheckpoint) -> dict[str, Any]:
    """The config's `model` section, as far as names, shapes and the file's own config show it.

    Raises `UserError` for another detector, and for a setting that is not supported.
    """
    tensors, settings = checkpoint.tensors, checkpoint.settings
    kind = head_kind(tensors)
    _check_settings(kind, settings)
    head = {
        "channels": weight_shape(tensors, f"bbox_head.{kind.outputs['cls_out']}.weight")[1],
        "num_convs": _count_modules(tensors, "bbox_head.cls_convs."),
        "conv_bias": "bbox_head.cls_convs.0.conv.bias" in tensors,
        **kind.head,
    }
    if head["box"] == "general":
        head["reg_max"] = weight_shape(tensors, "bbox_head.gfl_reg.weight")[0] // 4 - 1
    if head["quality"] == "dgqp":
        hidden, inputs = weight_shape(tensors, kind.marker)[:2]
        head["dgqp"] = {"topk": inputs // 4 - 1, "hidden": hidden, "add_mean": True}
    extra_relu = settings.get("relu_before_extra_convs") == "True" if settings else kind.extra_relu
    prefix = "backbone."
    return {
        "backbone": recognize_backbone({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}),
        "fpn": {"channels": weight_shape(tensors, "neck.lateral_convs.0.conv.weight")[0], "extra_relu": extra_relu},
        "head": head,
        "points": {
            "strides": [8 * 2**level for level in range(_count_modules(tensors, "neck.fpn_convs."))],
            "offset": kind.offset,
        },
    }


def _check_settings(kind: HeadKind, settings: Mapping[str, str]) -> None:
    if not settings:
        return
    for key, allowed in allowed_settings(kind).items():
        value = settings.get(key)
        if value not in allowed:
            problem = f"does not set {key}" if value is None else f"has {key}={value}"
            raise UserError(f"its config {problem}; only {key}={allowed[0]} can be converted", code="setting")


def recognize_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config's `model.backbone` keys `name`, `dcn` and `dcn_stages`; raises `UserError` for another network."""
    if "layer1.0.conv2.weight" not in tensors:
        raise UserError(
            "neither a detector of mmdetection nor a ResNet or ResNeXt with torchvision's names, which would have "
            f"layer1.0.conv2.weight; found {list_some(list(tensors))}",
            code="tensors",
        )
    blocks = tuple(_count_modules(tensors, f"layer{stage}.") for stage in (1, 2, 3, 4))
    width = tuple(weight_shape(tensors, "layer1.0.conv2.weight")[:2])
    bottleneck = "layer1.0.conv3.weight" in tensors
    signature = (blocks, width, bottleneck)
    known = {
        (counts, (groups * group_width, group_width), block.expansion == 4): name
        for name, (block, counts, groups, group_width) in ARCHITECTURES.items()
    }
    if signature not in known:
        raise UserError(
            f"no supported backbone has {blocks} blocks and a first 3x3 convolution of {list(width)} channels",
            code="unknown_backbone",
        )
    offsets = {f"c{stage + 1}": f"layer{stage}.0.conv2.conv_offset.weight" for stage in (1, 2, 3, 4)}
    stages = [stage for stage, offset in offsets.items() if offset in tensors]
    kinds = {weight_shape(tensors, offsets[stage])[0] for stage in stages}
    if not kinds <= {18} and not kinds <= {27}:
        raise UserError(
            f"deformable convolutions with {sorted(kinds)} channels of offsets; supported are 18 (v1) and 27 (v2)",
            code="unknown_backbone",
        )
    return {
        "name": known[signature],
        "dcn": "none" if not kinds else "v1" if kinds == {18} else "v2",
        "dcn_stages": stages,
    }


def weight_shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size:
    """The shape (4 numbers) of a convolution's weight; raises `UserError` if it is missing or something else."""
    if name not in tensors:
        raise UserError(f"tensor {name} is missing; found {list_some(list(tensors))}", code="tensors")
    if tensors[name].dim() != 4:
        raise UserError(f"tensor {name} is {list(tensors[name].shape)}, not a convolution's weight", code="tensors")
    return tensors[name].shape


def _count_modules(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """The number of modules in a list, whose names are `prefix` and an index."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)})
