"""What a checkpoint of another program holds, told from the names and shapes of its tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gfl.errors import UserError
from gfl.model.backbone import ARCHITECTURES

# Constants, the positions of the bins.
PROJECT, PROJECT_V1 = "bbox_head.integral.project", "bbox_head.distribution_project.project"


class Foreign(NamedTuple):
    """What a file of another program holds."""

    tensors: dict[str, Tensor]  # with the names of mmdetection, or of torchvision for a backbone
    class_names: tuple[str, ...]  # empty if it does not say
    program: str

    @property
    def is_backbone(self) -> bool:
        """No neck and no box head: an image classifier, or the backbone alone."""
        return not any(name.startswith(("neck.", "bbox_head.")) for name in self.tensors)


def parse_foreign(content: Any) -> Foreign:
    """What `read_torch_file` returned, understood. Raises `UserError` if it is no state dict of tensors."""
    content = content if isinstance(content, dict) else {}
    tensors = content.get("state_dict", content)
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError("it holds no state dict of tensors")
    for name, tensor in tensors.items():  # a view may repeat one number as often as it likes
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"tensor {name} claims more numbers than the file holds")
        if tensor.numel() == 0:
            raise UserError(f"tensor {name} is empty")
    num_tensors = len(tensors)
    # Wrappers for many GPUs put a prefix; before mmcv, offsets were not inside their convolution.
    tensors = {
        str(name).removeprefix("module.").replace("conv2_offset.", "conv2.conv_offset."): tensor
        for name, tensor in tensors.items()
    }
    if len(tensors) < num_tensors:
        raise UserError("two tensors have the same name but for the prefix 'module.'")
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    dataset = meta.get("dataset_meta")
    named = [meta.get("CLASSES"), *(dataset.get(key) for key in ("classes", "CLASSES") if isinstance(dataset, dict))]
    class_names = next((tuple(names) for names in named if _are_names(names)), ())
    return Foreign(tensors, class_names, _program(tensors, meta))


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _program(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    if PROJECT_V1 in tensors:
        return "implus/GFocal (V1)"
    if "bbox_head.reg_conf.0.weight" in tensors:
        return "implus/GFocalV2"
    if not any(name.startswith("bbox_head.") for name in tensors):
        return "ImageNet weights"
    version = meta.get("mmdet_version", "3.x" if "mmengine_version" in meta else "")
    return f"mmdetection {version}".rstrip() if isinstance(version, str) and version.isprintable() else "mmdetection"


def recognize_detector(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config's `model` section, as far as names and shapes tell it; raises `UserError` for another detector."""
    if "bbox_head.gfl_cls.weight" not in tensors:
        others = [name for name in tensors if name.startswith("bbox_head.") and "_convs." not in name]
        raise UserError(f"no GFL detector: bbox_head.gfl_cls.weight is missing; found {_some(others or list(tensors))}")
    head = {
        "channels": weight_shape(tensors, "bbox_head.gfl_cls.weight")[1],
        "num_convs": _count(tensors, "bbox_head.cls_convs."),
        "quality": "joint",
        "box": "general",
        "delta": 1.0,
        "reg_max": weight_shape(tensors, "bbox_head.gfl_reg.weight")[0] // 4 - 1,
    }
    if "bbox_head.reg_conf.0.weight" in tensors:
        hidden, inputs = weight_shape(tensors, "bbox_head.reg_conf.0.weight")[:2]
        head |= {"quality": "dgqp", "dgqp": {"topk": inputs // 4 - 1, "hidden": hidden, "add_mean": True}}
    prefix = "backbone."
    return {
        "backbone": recognize_backbone({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}),
        "fpn": {"channels": weight_shape(tensors, "neck.lateral_convs.0.conv.weight")[0]},
        "head": head,
        "points": {"strides": [8 * 2**level for level in range(_count(tensors, "neck.fpn_convs."))], "offset": 0.0},
    }


def recognize_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config's `model.backbone` keys `name`, `dcn` and `dcn_stages`; raises `UserError` for another network."""
    blocks = tuple(_count(tensors, f"layer{stage}.") for stage in (1, 2, 3, 4))
    width = tuple(weight_shape(tensors, "layer1.0.conv2.weight")[:2])
    bottleneck = "layer1.0.conv3.weight" in tensors
    signature = (blocks, width, bottleneck)
    known = {
        (counts, (groups * group_width, group_width), block.expansion == 4): name
        for name, (block, counts, groups, group_width) in ARCHITECTURES.items()
    }
    if signature not in known:
        raise UserError(
            f"no backbone known here has {blocks} blocks and a first 3x3 convolution of {list(width)} channels"
        )
    offsets = {f"c{stage + 1}": f"layer{stage}.0.conv2.conv_offset.weight" for stage in (1, 2, 3, 4)}
    stages = [stage for stage, offset in offsets.items() if offset in tensors]
    kinds = {weight_shape(tensors, offsets[stage])[0] for stage in stages}
    if not kinds <= {18} and not kinds <= {27}:
        raise UserError(
            f"deformable convolutions with {sorted(kinds)} channels of offsets; known are 18 (v1) and 27 (v2)"
        )
    return {
        "name": known[signature],
        "dcn": "none" if not kinds else "v1" if kinds == {18} else "v2",
        "dcn_stages": stages,
    }


def weight_shape(tensors: Mapping[str, Tensor], name: str) -> torch.Size:
    """Of the weight of a convolution."""
    if name not in tensors:
        raise UserError(f"tensor {name} is missing; found {_some(list(tensors))}")
    if tensors[name].dim() != 4:
        raise UserError(f"tensor {name} is {list(tensors[name].shape)}, no weight of a convolution")
    return tensors[name].shape


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many modules of a list there are, whose names are `prefix` and an index."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)})


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
