"""Make checkpoints of other programs ours, and ours mmdetection's."""

import argparse
from pathlib import Path


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
    parser.add_argument("--to", choices=["gfl", "mmdet"], default="gfl", help="whose names OUT gets (default: ours)")
    return parser.parse_args()


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once

from typing import Any

from gfl.checkpoint import FORMAT, find_checkpoint, read_checkpoint, weights, write_torch_file
from gfl.common.errors import UserError, run
from gfl.common.files import temporary
from gfl.config import Config, config_from_dict, load_config
from gfl.data.coco import category_names, read_coco_json
from gfl.tools.convert.architecture import Foreign, allowed_settings, head_kind, parse_foreign
from gfl.tools.convert.state_dict import convert_backbone, convert_detector, to_mmdet
from gfl.tools.convert.torch_file import read_torch_file


def main(args: argparse.Namespace) -> None:
    source, out = Path(args.input), Path(args.output)
    if args.to == "mmdet":
        source = find_own(source)
        if args.config or args.classes:
            raise UserError("--config and --classes are for conversion to ours; a checkpoint of ours has both")
    written = (out.resolve(), temporary(out).resolve())
    if source.resolve() in written or (out.exists() and not out.is_file()):
        raise UserError(f"{source} cannot go to {out}: the same file, a folder or a device; name another one to write")
    content = export(source) if args.to == "mmdet" else import_foreign(source, args)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    write_torch_file(out, content)
    print(f"wrote    {out} ({out.stat().st_size / 2**20:.0f} MiB)")
    print(f"next     {next_step(content, out)}")


def import_foreign(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The content of our file, from another program's."""
    content = read_torch_file(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise UserError(f"{path} is a checkpoint of this program already; --to mmdet converts it to mmdetection's")
    config = load_config(args.config) if args.config else None
    class_names = read_class_names(args.classes) if args.classes else ()
    try:
        foreign = parse_foreign(content)
        print(f"read     {path}: {foreign.program}, {len(foreign.tensors)} tensors")
        if foreign.is_backbone:
            return import_backbone(foreign, config)
        state, config, class_names = convert_detector(foreign, config, class_names)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    print(describe(config, class_names))
    if foreign.class_names and args.classes:
        print("note     --classes was not needed: the file names its own")
    if not foreign.class_names:
        print(f"note     the file names no classes; these are from {args.classes or 'COCO'}")
    if not foreign.settings:
        wanted = allowed_settings(head_kind(foreign.tensors))
        unchecked = ", ".join(f"{key}={values[0]}" for key, values in wanted.items())
        print(f"note     the file holds no config, so that nothing tells whether it was trained with {unchecked}")
    return weights(state, config, class_names)


def read_class_names(annotations: str) -> tuple[str, ...]:
    return tuple(category_names(read_coco_json(annotations)["categories"], annotations).values())


def import_backbone(foreign: Foreign, config: Config | None) -> dict[str, Any]:
    state, name = convert_backbone(foreign.tensors)
    if config and config.model.backbone.name != name:
        raise UserError(f"the config has model.backbone.name {config.model.backbone.name}, the file {name}")
    print(f"model    {name}, backbone only")
    return state


def find_own(path: Path) -> Path:
    """Our checkpoint at `path` or in the run folder `path`."""
    checkpoint = find_checkpoint(path, "best.pt", "last.pt")
    if checkpoint is None:
        raise UserError(f"no checkpoint at {path}: give a .pt file or a run folder")
    return checkpoint


def export(path: Path) -> dict[str, Any]:
    """The content of mmdetection's file, from our checkpoint."""
    state = read_checkpoint(path)
    config = config_from_dict(state["config"], f"config in {path}")
    names = list(state["class_names"])
    print(f"read     {path}: {len(state['model'])} tensors\n{describe(config, names)}")
    meta = {"CLASSES": names, "dataset_meta": {"classes": names}}  # as mmdetection 2.x and 3.x look for them
    try:
        return {"meta": meta, "state_dict": to_mmdet(state["model"], config)}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def describe(config: Config, class_names: tuple[str, ...]) -> str:
    """What was found, for the user to check."""
    model, head = config.model, config.model.head
    stages = ", ".join(model.backbone.dcn_stages)
    dcn = f" with DCN {model.backbone.dcn} in {stages}" if stages else ""
    seen = f"top {head.dgqp.topk}{' and their mean' if head.dgqp.add_mean else ''}"
    quality = f"quality from the distributions' {seen} (GFLv2)" if head.quality == "dgqp" else f"quality {head.quality}"
    box = f"reg_max {head.reg_max}" if head.box == "general" else f"box {head.box}"
    points = "i * stride" if model.points.offset == 0 else f"(i + offset) * stride, offset {model.points.offset}"
    first = ", ".join(class_names[:5]) + (", ..." if len(class_names) > 5 else "")
    lines = {
        "model": f"{model.backbone.name}{dcn}; FPN with {model.fpn.channels} channels",
        "head": f"{head.num_convs} x {head.channels} channels, {quality}, {box}",
        "points": f"strides {', '.join(map(str, model.points.strides))}, at {points}",
        "classes": f"{len(class_names)}: {first}",
    }
    return "\n".join(f"{name:<8} {value}" for name, value in lines.items())


def next_step(content: dict[str, Any], out: Path) -> str:
    if "state_dict" in content:
        return "in mmdetection: load_from = " + repr(str(out))
    if "model" not in content:
        return f"train with model.backbone.weights={out}"
    named = content["config"]["data"]["val"]["annotations"]
    return f"python eval.py {out}" + ("" if named else " --data ANNOTATIONS.json IMAGES/")


if __name__ == "__main__":
    run(main, ARGS)
