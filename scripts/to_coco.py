"""Turn a data set in Pascal VOC's or YOLO's layout into COCO-format json, which training and evaluation read."""

import argparse
from pathlib import Path

from gfl.common.arguments import fraction, whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce

EXAMPLE = (
    "example: python scripts/to_coco.py voc data/VOC2012\n"
    "another: python scripts/to_coco.py voc photos --val-share 0.3 --near-duplicates\n"
    "another: python scripts/to_coco.py yolo data/coco8/data.yaml"
)


def parse_args() -> argparse.Namespace:
    style = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLE}
    parser = argparse.ArgumentParser(
        description=f"{__doc__} The images are not moved or copied. An existing json with other content is not "
        "overwritten.",
        **style,
    )
    layouts = parser.add_subparsers(dest="layout", required=True)
    voc, yolo = add_voc(layouts, style), add_yolo(layouts, style)
    for layout, kind in ((voc, "lists of ImageSets/Main, or folders"), (yolo, "keys of the data.yaml")):
        layout.add_argument(
            "--splits", metavar="NAME", nargs="+", help=f"{kind}; with --val-share the names of both (train val)"
        )
        layout.add_argument(
            "--val-share",
            metavar="SHARE",
            type=fraction,
            help="divide all images (of a data.yaml: its train) at random, so that both splits have their share of "
            "each class, and put this share into the second; default: the splits of the data set, or 0.2 where it "
            "has none; 0: all into one",
        )
        layout.add_argument(
            "--seed", type=whole_number(), default=0, help="of --val-share: the same seed, the same splits (0)"
        )
        layout.add_argument(
            "--near-duplicates",
            action="store_true",
            help="with --val-share: keep images in one split that equal each other but for compression, scale, "
            "brightness or a little motion, as frames of a video do",
        )
        layout.add_argument(
            "--out",
            metavar="FOLDER",
            type=Path,
            help="where to write instances_<split>.json (default: coco/ in the data set)",
        )
    return parser.parse_args()


def add_voc(layouts: argparse._SubParsersAction, style: dict) -> argparse.ArgumentParser:
    voc = layouts.add_parser("voc", help="an xml file per image: the devkit's folders, or any others", **style)
    voc.add_argument("source", metavar="FOLDER", type=Path, help="the folder of the data set")
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
    for kind in ("images", "annotations"):
        what = "images" if kind == "images" else "xml files"
        voc.add_argument(
            f"--{kind}", metavar="NAME", help=f"folder of the {what} in FOLDER, . for itself (default: search for it)"
        )
    return voc


def add_yolo(layouts: argparse._SubParsersAction, style: dict) -> argparse.ArgumentParser:
    yolo = layouts.add_parser("yolo", help="data.yaml or obj.data, labels/*.txt beside images/", **style)
    yolo.add_argument("source", metavar="FILE", type=Path, help="the data.yaml, or the obj.data of Darknet and CVAT")
    yolo.add_argument(
        "--root",
        metavar="FOLDER",
        type=Path,
        help="the folder that the splits are relative to, instead of the path: in the file",
    )
    yolo.add_argument(
        "--labels",
        choices=("auto", "boxes", "polygons", "obb"),
        default="auto",
        help="what a line is: boxes: the first five numbers of each, others (keypoints, confidence) are left out; "
        "polygons: lines of 7, 9, 11 ... numbers; obb: four corners each; default: decide by the lines",
    )
    return yolo


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce(f"loading libraries and {ARGS.source}")

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gfl.common.errors import UserError, run
from gfl.common.files import distinct_file_names
from gfl.common.progress import print_line, progress_bar
from gfl.common.text import shell_command
from gfl.tools.next_command import data_commands
from gfl.tools.prepare.divide import DEFAULT_SHARE, divide, divide_split
from gfl.tools.prepare.to_coco import Split, coco_tree, write_jsons
from gfl.tools.prepare.voc import class_names, read_voc
from gfl.tools.prepare.voc_layout import find_splits, whole_set
from gfl.tools.prepare.yolo import read_yolo, yolo_splits


def main(args: argparse.Namespace) -> None:
    splits, categories, divided = read_voc_set(args) if args.layout == "voc" else read_yolo_set(args)
    if args.near_duplicates and (divided or args.val_share == 0):
        raise UserError(
            "--near-duplicates belongs to a division at random (--val-share); scripts/doctor.py --near-duplicates "
            "compares splits that exist",
            code="not_divided",
        )
    lines: tuple[str, ...] = ()
    if not divided:
        splits, lines = divide_at_random(splits[0], categories, args)
    out = args.out or (args.source if args.layout == "voc" else args.source.parent) / "coco"
    names = distinct_file_names([split.name for split in splits])
    files = [out / f"instances_{name}.json" for name in names]
    write_jsons({file: coco_tree(split, categories) for split, file in zip(splits, files, strict=True)})
    for split, file in zip(splits, files, strict=True):
        print_summary(split, file)
    numbered = ", ".join(f"{number} {name}" for number, name in enumerate(categories.values(), 1))
    for line in lines or [f"classes   {len(categories)}: {numbered}"]:
        print_line(line)
    written = {split.name: (file, split.folder) for split, file in zip(splits, files, strict=True)}
    for line in data_commands(written):
        print_line(line)


def read_voc_set(args: argparse.Namespace) -> tuple[list[Split], dict, bool]:
    """The splits, their categories, and whether the set has splits; if not, all images are one."""
    if args.val_share is None:
        parts, divided = find_splits(args.source, args.images, args.annotations, args.splits)
    else:
        parts, divided = [whole_set(args.source, args.images, args.annotations)], False
    splits = read_voc(parts, zero_based=args.zero_based, progress=progress)
    return splits, class_names(splits, args.classes), divided


def read_yolo_set(args: argparse.Namespace) -> tuple[list[Split], dict, bool]:
    """As `read_voc_set`."""
    has = yolo_splits(args.source)
    divided = args.val_share is None and (bool(args.splits) or "val" in has or "train" not in has)
    if args.val_share and not args.splits and has.get("val", has.get("train")) != has.get("train"):
        command = shell_command("python", "scripts/to_coco.py", "yolo", args.source)
        raise UserError(
            f"{args.source} has a val already, so leave --val-share out: {command} (or, to divide its train only, add "
            "--splits train val)",
            code="has_val",
        )
    names = tuple(dict.fromkeys(args.splits or ("train", "val")))
    keys = names if divided else names[:1]
    return *read_yolo(args.source, keys, root=args.root, labels=args.labels, progress=progress), divided


def divide_at_random(split: Split, categories: dict, args: argparse.Namespace) -> tuple[list[Split], tuple[str, ...]]:
    """The split as training and validation, and lines about it."""
    val_share = DEFAULT_SHARE if args.val_share is None else args.val_share
    names = tuple(dict.fromkeys(args.splits or (("train", "val") if val_share else ("train",))))
    if len(names) != (count := 2 if val_share else 1):
        raise UserError(f"--val-share {val_share:g} makes {count} splits; name {count} with --splits", code="names")
    if not val_share:
        return [replace(split, name=names[0])], ()
    with progress_bar(total=len(split.images), unit="image", leave=False, enabled=args.near_duplicates) as bar:
        settings = {"near_duplicates": args.near_duplicates, "on_images": bar.update}
        by = partial(divide, share=val_share, seed=args.seed, **settings)
        splits, division = divide_split(split, categories, names, by)
    chosen = f"{val_share:.0%} of the images, chosen at random by class, are for validation"
    notes = [f"note      {chosen} (--val-share, --seed)"] if args.val_share is None else []
    return splits, (*notes, *(f"note      {note}" for note in division.notes), *division.table)


def progress(images: Sequence[Any]) -> Iterable[Any]:
    return progress_bar(images, unit="image", leave=False)


def print_summary(split: Split, file: Path) -> None:
    empty = sum(not image.boxes for image in split.images)
    crowd = sum(box.crowd for box in split.boxes)
    counts = f"{len(split.images)} images ({empty} without objects), {len(split.boxes)} boxes"
    print_line(f"written   {file}: {counts}" + (f" ({crowd} difficult or ignored, as crowd)" if crowd else ""))
    for note in split.notes:
        print_line(f"note      {note}")


if __name__ == "__main__":
    run(main, ARGS)
