"""Conversion of another codebase's file to the content of ours, with lines on what it holds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gfl.checkpoint import FORMAT, detector_content
from gfl.common.errors import UserError, error_context
from gfl.common.progress import print_line
from gfl.common.text import list_some, printable
from gfl.common.torch_file import read_torch_file
from gfl.config import Config
from gfl.config_file import load_config
from gfl.data.coco_json import category_names, read_coco_json
from gfl.tools.convert.architecture import ExternalCheckpoint, allowed_settings, head_kind, parse_external
from gfl.tools.convert.state_dict import convert_backbone, convert_detector


def import_external(
    path: Path, *, config: str | None = None, classes: str | None = None, weights: str | None = None
) -> dict[str, Any]:
    """The content of our file, converted from another codebase's at `path`, with lines on what was found in it.

    Args:
        config: path of a config that it must fit, whose other sections go into the content.
        classes: path of a COCO json that names the classes where the file does not; by default COCO's.
        weights: which of two sets, as `parse_external` takes it.

    Raises `UserError` for files that are damaged, of an unknown codebase or do not fit.
    """
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise UserError(
            f"{path} is a checkpoint of this codebase already; --to mmdet converts it to mmdetection's",
            code="already_ours",
        )
    fit = load_config(config) if config else None
    class_names = _read_class_names(classes) if classes else ()
    with error_context(path):
        checkpoint = parse_external(content, weights)
        print_line(f"read     {path}: {checkpoint.codebase}, {len(checkpoint.tensors)} tensors")
        if checkpoint.weights:
            print_line(f"weights  {checkpoint.weights}")
        if checkpoint.ignored:
            print_line(f"ignored  {list_some(checkpoint.ignored)}, which are no weights of the model")
        if checkpoint.is_backbone:
            return _import_backbone(checkpoint, fit)
        state, fit, class_names = convert_detector(checkpoint, fit, class_names)
    print(model_summary(fit, class_names))
    _print_notes(checkpoint, classes)
    return detector_content(state, fit, class_names)


def _print_notes(checkpoint: ExternalCheckpoint, classes_file: str | None) -> None:
    """Print what the user should know about class names and about settings that could not be checked."""
    if checkpoint.class_names and classes_file:
        print("note     --classes was not needed: the file names its classes")
    if not checkpoint.class_names:
        print_line(f"note     the file names no classes; these are from {classes_file or 'COCO'}")
    if not checkpoint.settings:
        settings = allowed_settings(head_kind(checkpoint.tensors))
        unchecked = ", ".join(f"{key}={values[0]}" for key, values in settings.items())
        print(f"note     the file holds no config; check that it was trained with {unchecked}")


def _read_class_names(annotations: str) -> tuple[str, ...]:
    return tuple(category_names(read_coco_json(annotations)["categories"], annotations).values())


def _import_backbone(checkpoint: ExternalCheckpoint, config: Config | None) -> dict[str, Any]:
    state, name = convert_backbone(checkpoint.tensors)
    if config and config.model.backbone.name != name:
        raise UserError(
            f"the config has model.backbone.name {config.model.backbone.name}, the file {name}", code="config"
        )
    print(f"model    {name}, backbone only")
    return state


def model_summary(config: Config, class_names: Sequence[str]) -> str:
    """The recognized architecture and classes in a few lines, for the user to check."""
    model, head = config.model, config.model.head
    stages = ", ".join(model.backbone.dcn_stages)
    dcn = f" with DCN {model.backbone.dcn} in {stages}" if stages else ""
    statistics = f"top {head.dgqp.topk}{' and their mean' if head.dgqp.add_mean else ''}"
    dgqp = f"quality from the distributions' {statistics} (GFLv2)"
    quality = dgqp if head.quality == "dgqp" else f"quality {head.quality}"
    box = f"reg_max {head.reg_max}" if head.box == "general" else f"box {head.box}"
    points = "i * stride" if model.points.offset == 0 else f"(i + offset) * stride, offset {model.points.offset}"
    first = printable(", ".join(class_names[:5])) + (", ..." if len(class_names) > 5 else "")
    lines = {
        "model": f"{model.backbone.name}{dcn}; FPN with {model.fpn.channels} channels",
        "head": f"{head.num_convs} x {head.channels} channels, {quality}, {box}",
        "points": f"strides {', '.join(map(str, model.points.strides))}, at {points}",
        "classes": f"{len(class_names)}: {first}",
    }
    return "\n".join(f"{name:<8} {value}" for name, value in lines.items())
