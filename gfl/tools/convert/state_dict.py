"""Convert checkpoints of other codebases to ours, and ours to mmdetection's.

Supported are GFL, ATSS and the improved FCOS of mmdetection 2.x and 3.x, GFL of implus/GFocal (V1), GFLv2 of
implus/GFocalV2 (V2), and ImageNet backbones of torchvision and open-mmlab, which `architecture` recognizes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from gfl.build import build_detector
from gfl.common.errors import UserError
from gfl.common.text import printable, truncate_middle
from gfl.common.yaml_file import merge
from gfl.config import Config
from gfl.config_file import config_from_dict, config_to_dict
from gfl.model.backbone import Backbone
from gfl.tools.convert.architecture import (
    GFL,
    HEADS,
    PROJECT,
    PROJECT_V1,
    ExternalCheckpoint,
    HeadKind,
    head_kind,
    recognize_backbone,
    recognize_detector,
    weight_shape,
)

# COCO's classes by category id, for published files that do not name theirs.
COCO_CLASSES = tuple(
    name for name in FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"] if name not in ("__background__", "N/A")
)


class ConvertedDetector(NamedTuple):
    """A detector with our names."""

    state: dict[str, Tensor]
    config: Config
    class_names: tuple[str, ...]


def convert_detector(
    checkpoint: ExternalCheckpoint, config: Config | None = None, class_names: Sequence[str] = ()
) -> ConvertedDetector:
    """Convert a detector of mmdetection, V1 or V2.

    Args:
        config: what the file should hold; its other settings are kept. By default the paper's recipe for the detector.
        class_names: for a file that does not name its classes; by default COCO's.

    V1 counts labels from 1, but its head has no output for the background, so that output c is class c here too. Its
    points lie at the centres of anchors, which `points.offset` expresses.

    Raises `UserError` naming every tensor that is missing, unknown or of another shape, or the setting of the file or
    the field of `config` that does not fit.
    """
    kind, model = head_kind(checkpoint.tensors), recognize_detector(checkpoint)
    if PROJECT_V1 in checkpoint.tensors:
        model["points"]["offset"] = [(stride - 1) / (2 * stride) for stride in model["points"]["strides"]]
    if config:
        _check_config(model, config)
    tree = merge(config_to_dict(config) if config else dict(kind.recipe), {"model": model})
    config = config_from_dict(tree, "the file's architecture")
    names = _class_names(checkpoint, kind, class_names)
    with torch.device("meta"):  # names and shapes only
        own = build_detector(config, len(names)).state_dict()
    tensors = _drop_bin_positions(checkpoint.tensors, config)
    return ConvertedDetector(_rename_tensors(tensors, own, partial(mmdet_names, kind=kind)), config, names)


def _check_config(model: dict[str, Any], config: Config) -> None:
    """Raise `UserError` for the first field in which `config` differs from the recognised `model`.

    Where shapes are ambiguous, `model` takes over the config's value: topk numbers and their mean, or topk + 1 without.
    """
    wanted = config_to_dict(config)["model"]
    theirs, ours = model["head"].get("dgqp"), wanted["head"]["dgqp"]
    if theirs:
        theirs |= {"init": ours["init"]}  # no file shows how its training began
    if theirs and ours["topk"] + ours["add_mean"] == theirs["topk"] + 1:
        theirs |= {"topk": ours["topk"], "add_mean": ours["add_mean"]}
    for section, values in model.items():
        for key, value in values.items():
            found = wanted[section][key]
            # A config with the default offset also fits V1, whose points have one offset per level.
            unset = key == "offset" and isinstance(value, list) and found == 0
            if found != value and not unset:
                raise UserError(f"the config has model.{section}.{key} {found}, the file {value}", code="config")


def _class_names(checkpoint: ExternalCheckpoint, kind: HeadKind, given: Sequence[str]) -> tuple[str, ...]:
    """One name per output of the class head."""
    layer = f"bbox_head.{kind.outputs['cls_out']}.weight"
    outputs = weight_shape(checkpoint.tensors, layer)[0]
    names = checkpoint.class_names or tuple(given) or COCO_CLASSES
    if len(set(names)) < len(names) or not all(name and name.isprintable() for name in names):
        raise UserError("the class names are not all different, not empty and printable", code="classes")
    if len(names) == outputs:
        return names
    source = "the file names" if checkpoint.class_names else "--classes names" if given else "COCO has"
    problem = f"{layer} has {outputs} outputs, but {source} {len(names)} classes"
    if outputs == len(names) + 1:
        hint = "" if checkpoint.class_names else "; if it has none, name the classes with --classes"
        raise UserError(
            f"{problem}: a head with an output for the background, unlike {kind.type}{hint}", code="background"
        )
    hint = "" if checkpoint.class_names else "; name exactly those with --classes"
    raise UserError(f"{problem}{hint}", code="classes")


def _drop_bin_positions(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Leave out the positions of the bins, which must be the same as in our decoding."""
    positions = list(range(config.model.head.reg_max + 1))
    for name in (PROJECT, PROJECT_V1):
        if name in tensors and (tensors[name].dim() != 1 or tensors[name].tolist() != positions):
            raise UserError(f"{name} is not 0, 1, ..., {positions[-1]}", code="tensors")
    return {name: tensor for name, tensor in tensors.items() if name not in (PROJECT, PROJECT_V1)}


def _rename_tensors(
    tensors: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    names_of: Callable[[str, Tensor], list[str]],
) -> dict[str, Tensor]:
    """Give `tensors` the names, shapes and dtypes of `own`; raises `UserError` listing all that do not match.

    Args:
        names_of: the other codebase's names for one of our tensors.
    """
    state, unknown = {}, dict(tensors)
    missing, misshapen = [], []
    for name, like in own.items():
        names = names_of(name, like)
        found = [unknown.pop(theirs) for theirs in names if theirs in unknown]
        if not found and name.endswith("num_batches_tracked"):  # unknown before PyTorch 0.4.1, and unused
            found = [torch.zeros_like(like, device="cpu")]
        if len(found) < len(names):
            missing += [theirs for theirs in names if theirs not in tensors]
            continue
        if len(found) > 1 and all(scale.dim() == 0 for scale in found):
            found = [torch.stack(found)]
        tensor = found[0]
        if like.dim() == 2 and tensor.shape[2:] == (1, 1):  # our linear layer is a 1x1 convolution there
            tensor = tensor.flatten(1)
        if len(found) > 1 or tensor.shape != like.shape:
            wanted = [] if len(names) > 1 else list(like.shape)
            misshapen.append(f"{names[0]} is {list(tensor.shape)}, not {wanted}")
            continue
        if like.is_floating_point() and not tensor.is_floating_point():
            misshapen.append(f"{names[0]} is {tensor.dtype}, not {like.dtype}")
            continue
        state[name] = tensor.to(like.dtype)
    problems = {"missing": missing, "unknown": list(unknown), "of another shape or type": misshapen}
    if any(problems.values()):
        listed = [f"{_count(names)} {kind}: {_list_first(names)}" for kind, names in problems.items() if names]
        raise UserError(
            f"{'; '.join(listed)}; it is not exactly one of the models in docs/checkpoints.md, which can be converted",
            code="tensors",
        )
    broken = [names_of(name, own[name])[0] for name, tensor in state.items() if not _is_finite(tensor)]
    if broken:
        raise UserError(
            f"{_count(broken)} with numbers that are not finite: {_list_first(broken)}; the file is damaged or its "
            "training diverged: convert an earlier checkpoint",
            code="not_finite",
        )
    return state


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'' if len(names) == 1 else 's'}"


def _list_first(items: Sequence[str]) -> str:
    """The first three, printable, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(printable(truncate_middle(item, 160)) for item in items[:3]) + more


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(tensor.isfinite().all())


def mmdet_names(name: str, tensor: Tensor, kind: HeadKind = GFL) -> list[str]:
    """mmdetection's names for our tensor: one, or for the scales one per level.

    Raises `UserError` for a tensor that has no counterpart in that head.
    """
    match name.split("."):
        case ["backbone", *_]:
            return [name]
        case ["fpn", "lateral", level, last]:
            return [f"neck.lateral_convs.{level}.conv.{last}"]
        case ["fpn", "output", level, last]:
            return [f"neck.fpn_convs.{level}.conv.{last}"]
        case ["fpn", "extra", level, last]:
            return [f"neck.fpn_convs.{3 + int(level)}.conv.{last}"]
        case ["head", "scales"]:
            return [f"bbox_head.scales.{level}.scale" for level in range(len(tensor))]
        case ["head", out, last] if out in kind.outputs:
            return [f"bbox_head.{kind.outputs[out]}.{last}"]
        case ["head", "cls_tower" | "reg_tower" as tower, index, last]:
            layer = ("conv", "gn")[int(index) % 3]  # the third is the activation
            return [f"bbox_head.{tower.removesuffix('tower')}convs.{int(index) // 3}.{layer}.{last}"]
        case ["quality", "hidden" | "out" as layer, last]:
            return [f"bbox_head.reg_conf.{0 if layer == 'hidden' else 2}.{last}"]
    raise UserError(f"mmdetection has no name for {name}", code="tensors")


def to_mmdet(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Our state dict with the names and shapes of the matching detector of mmdetection, or of GFLv2.

    Raises `UserError` if none of them computes what `config` describes, or numbers are not finite.
    """
    kind = find_mmdet_head(config)
    if broken := [name for name, tensor in state.items() if not _is_finite(tensor)]:
        raise UserError(
            f"{_count(broken)} with numbers that are not finite: {_list_first(broken)}; its training diverged: "
            "export an earlier checkpoint",
            code="not_finite",
        )
    tensors = {PROJECT: torch.arange(config.model.head.reg_max + 1.0)} if config.model.head.box == "general" else {}
    for name, tensor in state.items():
        names = mmdet_names(name, tensor, kind)
        if name.startswith("quality.") and tensor.dim() == 2:
            tensor = tensor[..., None, None]
        tensors |= zip(names, tensor.unbind() if len(names) > 1 else [tensor], strict=True)
    return tensors


def find_mmdet_head(config: Config) -> HeadKind:
    """The head that computes what `config` describes; raises `UserError` if there is none."""
    model = config_to_dict(config)["model"]
    kinds = {(kind.head["quality"], kind.head["box"]): kind for kind in HEADS}
    quality, box = model["head"]["quality"], model["head"]["box"]
    if (quality, box) not in kinds:
        known = ", ".join(f"{q} with {b} ({kind.type})" for (q, b), kind in kinds.items())
        raise UserError(
            f"no head of mmdetection or GFLv2 has quality {quality} with box {box}; there are {known}",
            code="not_expressible",
        )
    kind = kinds[quality, box]
    for section, values in kind.model.items():
        for key, value in values.items():
            found = model[section][key]
            if found not in (value, [value] * len(model["points"]["strides"])):  # an offset may stand for each level
                raise UserError(
                    f"the matching {kind.type} has model.{section}.{key} {value}, this model {found}",
                    code="not_expressible",
                )
    return kind


def convert_backbone(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """A state dict for `model.backbone.weights`, without the classifier or other head, and the architecture's name.

    Raises `UserError` for an architecture or tensors that do not fit.
    """
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(("fc.", "head."))}
    name = recognize_backbone(tensors)["name"]
    with torch.device("meta"):
        own = Backbone(name).state_dict()
    return _rename_tensors(tensors, own, lambda key, _: [key]), name
