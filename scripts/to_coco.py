"""Turn a data set in Pascal VOC's or YOLO's layout into COCO-format json, which training and evaluation read."""

import argparse
from pathlib import Path

from gfl.common.arguments import fraction, whole_number
from gfl.common.output import protect_output

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
    voc, yolo = add_voc(layouts, style), add_yolo(layouts, style)
    for layout, kind in ((voc, "files of ImageSets/Main"), (yolo, "keys of the data.yaml")):
        layout.add_argument("--splits", metavar="NAME", nargs="+", help=f"{kind} (default: train val)")
        layout.add_argument(
            "--out",
            metavar="FOLDER",
            type=Path,
            help="where to write instances_<split>.json (default: coco/ in the data set)",
        )
    return parser.parse_args()


def add_voc(layouts: argparse._SubParsersAction, style: dict) -> argparse.ArgumentParser:
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
    voc.add_argument(
        "--images", metavar="NAME", default="JPEGImages", help="folder of the images in FOLDER (%(default)s)"
    )
    voc.add_argument(
        "--annotations", metavar="NAME", default="Annotations", help="folder of the xml files in FOLDER (%(default)s)"
    )
    voc.add_argument(
        "--val-share",
        metavar="SHARE",
        type=share,
        help="instead of reading ImageSets/Main, take all images that have an xml and put this share of them, chosen "
        "at random, into the second of --splits; 0: all into one split",
    )
    voc.add_argument(
        "--seed", type=whole_number(), default=0, help="of --val-share: the same seed gives the same splits (0)"
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


def share(text: str) -> float:
    """The argument of --val-share."""
    if (value := fraction(text)) == 1:
        raise argparse.ArgumentTypeError("1 leaves nothing to train on")
    return value


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from gfl.common.errors import UserError, run
from gfl.common.files import distinct_file_names
from gfl.common.progress import print_line, progress_bar
from gfl.common.text import shell_command
from gfl.model.published import FOLDER, download_advice
from gfl.tools.next_command import relative, training_command
from gfl.tools.prepare.to_coco import Split, coco_tree, write_split
from gfl.tools.prepare.voc import VocFolders, class_names, listed_splits, random_splits, read_voc, unlisted_note
from gfl.tools.prepare.yolo import read_yolo

DOCTOR = ("python", "scripts/doctor.py")
START = FOLDER / "gfl_r50_fpn_1x_coco.pt"  # model.weights of configs/finetune.yaml


def main(args: argparse.Namespace) -> None:
    if args.layout == "voc":
        splits = read_voc_splits(args)
        categories = class_names(splits, args.classes)
    else:
        splits, categories = read_yolo(
            args.source, split_names(args), root=args.root, labels=args.labels, progress=progress
        )
    out = args.out or (args.source if args.layout == "voc" else args.source.parent) / "coco"
    trees = [coco_tree(split, categories) for split in splits]  # all of them, before any is written
    names = distinct_file_names([split.name for split in splits])
    files = [out / f"instances_{name}.json" for name in names]
    for split, tree, file in zip(splits, trees, files, strict=True):
        write_split(file, tree)
        print_summary(split, file)
    print_line(
        f"classes   {len(categories)}: {', '.join(f'{i} {name}' for i, name in enumerate(categories.values(), 1))}"
    )
    print_next_commands({split.name: (file, split.folder) for split, file in zip(splits, files, strict=True)})


def split_names(args: argparse.Namespace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(args.splits or ("train", "val")))


def read_voc_splits(args: argparse.Namespace) -> list[Split]:
    voc = VocFolders(args.source, args.images, args.annotations)
    if args.val_share is None:
        members = listed_splits(voc, split_names(args))
        notes = unlisted_note(voc, members)
    else:
        names = split_names(args) if args.splits or args.val_share else ("train",)
        wanted = 2 if args.val_share else 1
        if len(names) != wanted:
            raise UserError(f"--val-share {args.val_share:g} makes {wanted} splits; name {wanted} with --splits")
        members, notes = random_splits(voc, names, args.val_share, args.seed)
    splits = read_voc(voc, members, zero_based=args.zero_based, progress=progress)
    return [replace(splits[0], notes=splits[0].notes + notes), *splits[1:]]


def progress(images: Sequence[Any]) -> Iterable[Any]:
    return progress_bar(images, unit="image", leave=False)


def print_summary(split: Split, file: Path) -> None:
    empty = sum(not image.boxes for image in split.images)
    crowd = sum(box.crowd for box in split.boxes)
    counts = f"{len(split.images)} images ({empty} without objects), {len(split.boxes)} boxes"
    print_line(f"written   {file}: {counts}" + (f" ({crowd} difficult or ignored, as crowd)" if crowd else ""))
    for note in split.notes:
        print_line(f"note      {note}")


def print_next_commands(written: dict[str, tuple[Path, Path]]) -> None:
    """Print the commands to run next; `written` has the json and the image folder of each split."""
    train = next((name for name in ("train", "trainval") if name in written), None)
    val = next((name for name in ("val", "valid", "validation", "test") if name in written), None)
    if not (train and val):
        for file, images in written.values():
            print_line(f"next: {shell_command(*DOCTOR, relative(file), relative(images))}")
        return
    first, second = (map(relative, written[name]) for name in (train, val))
    check = shell_command(*DOCTOR, *first, "--val", *second, "--config", "configs/finetune.yaml")
    print_line(f"next: {check}")
    overrides = []
    if not START.is_file():
        overrides.append("model.weights=none")
        print(f"note      no {START}: this starts from an ImageNet backbone; {download_advice(START)}, a better start")
    splits = {"train": written[train], "val": written[val]}
    print_line(f"then: {training_command('configs/finetune.yaml', splits, overrides)}")


if __name__ == "__main__":
    run(main, ARGS)
