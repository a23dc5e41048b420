"""Turn a data set in Pascal VOC's or YOLO's layout into COCO-format json, which training and evaluation read."""

import argparse
from pathlib import Path

EXAMPLE = (
    "example: python scripts/to_coco.py voc data/VOC2012 --out data/VOC2012/coco\n"
    "another: python scripts/to_coco.py yolo data/coco8/data.yaml --out data/coco8/coco"
)


def parse_args() -> argparse.Namespace:
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLE}
    parser = argparse.ArgumentParser(
        description=f"{__doc__} The images are not moved or copied. An existing json with other content is not "
        "overwritten.",
        **style,
    )
    layouts = parser.add_subparsers(dest="layout", required=True)
    voc = layouts.add_parser("voc", help="Annotations/*.xml, JPEGImages/, ImageSets/Main/<split>.txt", **style)
    voc.add_argument("source", metavar="FOLDER", type=Path, help="the folder that contains them")
    voc.add_argument(
        "--classes",
        metavar="NAME",
        nargs="+",
        help="the classes in this order (default: those that occur in the splits, in alphabetical order)",
    )
    voc.add_argument(
        "--zero-based",
        action="store_true",
        help="corners are edges counted from 0, as many tools write them, instead of VOC's pixels counted from 1",
    )
    yolo = layouts.add_parser("yolo", help="data.yaml, labels/*.txt beside images/", **style)
    yolo.add_argument("source", metavar="FILE", type=Path, help="the data.yaml")
    yolo.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        help="the folder that the splits are relative to, instead of the path: in the file",
    )
    for layout, kind in ((voc, "files of ImageSets/Main"), (yolo, "keys of the data.yaml")):
        layout.add_argument(
            "--splits", metavar="NAME", nargs="+", default=["train", "val"], help=f"{kind} (default: train val)"
        )
        layout.add_argument(
            "--out", metavar="FOLDER", type=Path, required=True, help="where to write instances_<split>.json"
        )
    return parser.parse_args()


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once

import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from gfl.common.errors import run
from gfl.common.progress import progress_bar
from gfl.tools.prepare.to_coco import Split, coco_tree, write_split
from gfl.tools.prepare.voc import class_names, read_voc
from gfl.tools.prepare.yolo import read_yolo


def main(args: argparse.Namespace) -> None:
    names = tuple(dict.fromkeys(args.splits))
    if args.layout == "voc":
        splits = [read_voc(args.source, name, zero_based=args.zero_based, progress=progress) for name in names]
        categories = class_names(splits, args.classes)
    else:
        splits, categories = read_yolo(args.source, names, root=args.root, progress=progress)
    trees = [coco_tree(split, categories) for split in splits]  # all of them, before any is written
    files = [args.out / f"instances_{split.name}.json" for split in splits]
    for split, tree, file in zip(splits, trees, files, strict=True):
        write_split(file, tree)
        print_summary(split, file)
    print(f"classes   {len(categories)}: {', '.join(f'{i} {name}' for i, name in enumerate(categories.values(), 1))}")
    print_next_commands({split.name: (file, split.folder) for split, file in zip(splits, files, strict=True)})


def progress(images: Sequence[Any]) -> Iterable[Any]:
    return progress_bar(images, unit="image", leave=False)


def print_summary(split: Split, file: Path) -> None:
    empty = sum(not image.boxes for image in split.images)
    crowd = sum(box.crowd for box in split.boxes)
    counts = f"{len(split.images)} images ({empty} without objects), {len(split.boxes)} boxes"
    print(f"written   {file}: {counts}" + (f" ({crowd} difficult, as crowd)" if crowd else ""))
    for note in split.notes:
        print(f"note      {note}")


def print_next_commands(written: dict[str, tuple[Path, Path]]) -> None:
    """Print the commands to run next; `written` has the json and the image folder of each split."""
    train = next((name for name in ("train", "trainval") if name in written), None)
    val = next((name for name in ("val", "test") if name in written), None)
    if not (train and val):
        for file, images in written.values():
            print(f"next: python scripts/doctor.py {quote(file)} {quote(images)}")
        return
    words = {name: " ".join(map(quote, written[name])) for name in (train, val)}
    print(f"next: python scripts/doctor.py {words[train]} --val {words[val]} --config configs/finetune.yaml")
    overrides = [
        f"data.{role}.{key}={quote(path)}"
        for role, name in (("train", train), ("val", val))
        for key, path in zip(("annotations", "images"), written[name], strict=True)
    ]
    print(f"then: python train.py configs/finetune.yaml {' '.join(overrides)} model.weights=START.pt")


def quote(path: Path) -> str:
    """The path quoted for the shell, relative to the current folder if it is below it."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


if __name__ == "__main__":
    run(main, ARGS)
