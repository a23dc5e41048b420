"""Convert checkpoints of other codebases to ours, and ours to mmdetection's."""

import argparse
from pathlib import Path

from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Convert a GFL, ATSS or improved FCOS checkpoint of mmdetection 2.x or 3.x, a GFL or GFLv2 one of "
        "implus/GFocal or implus/GFocalV2, or ImageNet weights of torchvision or open-mmlab. Which of them it is, and "
        "its architecture, are read from the file; nothing in it is executed.",
        epilog="example: python scripts/convert_checkpoint.py gfl_r50_fpn_1x_coco_20200629.pth gfl_r50.pt\n"
        "back: python scripts/convert_checkpoint.py --to mmdet runs/mine/best.pt mine_mmdet.pth",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", metavar="IN", help="the file to read")
    parser.add_argument("output", metavar="OUT", help="the file to write")
    parser.add_argument("--config", help="a config the file should fit; its data and other settings go into OUT")
    parser.add_argument("--classes", metavar="JSON", help="COCO json that names the classes, where IN does not")
    parser.add_argument(
        "--weights",
        choices=["ema", "model"],
        help="of a file with averaged weights (EMA) and those of the last training step: which to take (default: the "
        "averaged ones, usually the better model)",
    )
    parser.add_argument("--to", choices=["gfl", "mmdet"], default="gfl", help="the format of OUT (default: ours)")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce(f"loading libraries and {ARGS.input}")

from collections.abc import Sequence
from typing import Any

from gfl.checkpoint import FORMAT, detector_content, find_detector, read_checkpoint, write_torch_file
from gfl.common.errors import UserError, error_context, run
from gfl.common.files import writing
from gfl.common.progress import print_line
from gfl.common.text import list_some, printable, shell_command
from gfl.common.torch_file import read_torch_file
from gfl.config import Config
from gfl.config_file import config_from_dict, load_config
from gfl.data.coco_json import category_names, read_coco_json
from gfl.tools.convert.architecture import ExternalCheckpoint, allowed_settings, head_kind, parse_external
from gfl.tools.convert.state_dict import convert_backbone, convert_detector, to_mmdet


def main(args: argparse.Namespace) -> None:
    source, out = Path(args.input), Path(args.output)
    if args.to == "mmdet":
        source = find_detector(source)
        if args.config or args.classes or args.weights:
            raise UserError(
                "--config, --classes and --weights are for conversion to our format; our checkpoints contain a config, "
                "class names and one set of weights",
                code="options",
            )
    check_output(source, out)
    content = export_to_mmdet(source) if args.to == "mmdet" else import_external(source, args)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_torch_file(out, content)
    print_line(f"wrote    {out} ({out.stat().st_size / 2**20:.0f} MiB)")
    print_line(f"next     {next_command(content, out)}")


def check_output(source: Path, out: Path) -> None:
    """Raise `UserError` if `out` is `source`, a folder or a device."""
    if source.resolve() == out.resolve() or (out.exists() and not out.is_file()):
        raise UserError(
            f"{source} cannot be converted to {out}: it is the same file, a folder or a device; choose another OUT",
            code="output",
        )


def import_external(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The content of our file, converted from another codebase's."""
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise UserError(
            f"{path} is a checkpoint of this codebase already; --to mmdet converts it to mmdetection's",
            code="already_ours",
        )
    config = load_config(args.config) if args.config else None
    class_names = read_class_names(args.classes) if args.classes else ()
    with error_context(path):
        checkpoint = parse_external(content, args.weights)
        print_line(f"read     {path}: {checkpoint.codebase}, {len(checkpoint.tensors)} tensors")
        if checkpoint.weights:
            print_line(f"weights  {checkpoint.weights}")
        if checkpoint.ignored:
            print_line(f"ignored  {list_some(checkpoint.ignored)}, which are no weights of the model")
        if checkpoint.is_backbone:
            return import_backbone(checkpoint, config)
        state, config, class_names = convert_detector(checkpoint, config, class_names)
    print(model_summary(config, class_names))
    print_notes(checkpoint, args.classes)
    return detector_content(state, config, class_names)


def print_notes(checkpoint: ExternalCheckpoint, classes_file: str | None) -> None:
    """Print what the user should know about class names and about settings that could not be checked."""
    if checkpoint.class_names and classes_file:
        print("note     --classes was not needed: the file names its classes")
    if not checkpoint.class_names:
        print_line(f"note     the file names no classes; these are from {classes_file or 'COCO'}")
    if not checkpoint.settings:
        settings = allowed_settings(head_kind(checkpoint.tensors))
        unchecked = ", ".join(f"{key}={values[0]}" for key, values in settings.items())
        print(f"note     the file holds no config; check that it was trained with {unchecked}")


def read_class_names(annotations: str) -> tuple[str, ...]:
    return tuple(category_names(read_coco_json(annotations)["categories"], annotations).values())


def import_backbone(checkpoint: ExternalCheckpoint, config: Config | None) -> dict[str, Any]:
    state, name = convert_backbone(checkpoint.tensors)
    if config and config.model.backbone.name != name:
        raise UserError(
            f"the config has model.backbone.name {config.model.backbone.name}, the file {name}", code="config"
        )
    print(f"model    {name}, backbone only")
    return state


def export_to_mmdet(path: Path) -> dict[str, Any]:
    """The content of mmdetection's file, converted from our checkpoint."""
    state = read_checkpoint(path)
    config = config_from_dict(state["config"], f"config in {path}")
    names = list(state["class_names"])
    print_line(f"read     {path}: {len(state['model'])} tensors")
    print(model_summary(config, names))
    meta = {"CLASSES": names, "dataset_meta": {"classes": names}}  # the keys of mmdetection 2.x and 3.x
    with error_context(path):
        return {"meta": meta, "state_dict": to_mmdet(state["model"], config)}


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


def next_command(content: dict[str, Any], out: Path) -> str:
    """How to use the written file."""
    if "state_dict" in content:
        return "in mmdetection: load_from = " + repr(str(out))
    if "model" not in content:
        return "add to the training command: " + shell_command(f"model.backbone.weights={out}")
    annotations = content["config"]["data"]["val"]["annotations"]
    return shell_command("python", "eval.py", out) + ("" if annotations else " --data ANNOTATIONS.json IMAGES/")


if __name__ == "__main__":
    run(main, ARGS)
