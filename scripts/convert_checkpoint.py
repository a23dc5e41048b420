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

from typing import Any

from gfl.checkpoint import find_detector, read_checkpoint, write_torch_file
from gfl.common.errors import UserError, error_context, run
from gfl.common.files import writing
from gfl.common.progress import print_line
from gfl.common.text import shell_command
from gfl.config_file import config_from_dict
from gfl.tools.convert.import_file import import_external, model_summary
from gfl.tools.convert.state_dict import to_mmdet


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
    if args.to == "mmdet":
        content = export_to_mmdet(source)
    else:
        content = import_external(source, config=args.config, classes=args.classes, weights=args.weights)
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
