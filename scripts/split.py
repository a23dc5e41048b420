"""Divide a COCO-format json without splits into one for training and one for validation."""

import argparse
from pathlib import Path

from gfl.common.arguments import fraction, whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce

EXAMPLE = """example: python scripts/split.py data/mine/all.json data/mine/images --val-share 0.2
a leaky set divided anew: python scripts/split.py train.json images --merge val.json images --near-duplicates"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nBoth have their share of each class, and a class that two images have is in\n"
        "both where possible. All fields of the json are kept, and the images stay where\nthey are. Files with other "
        "content are not overwritten.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("annotations", metavar="JSON", help="which is written as JSON_train.json and JSON_val.json")
    parser.add_argument("images", metavar="IMAGES", help="the folder its file names are relative to")
    parser.add_argument(
        "--val-share", metavar="SHARE", type=fraction, default=0.2, help="of the images, for validation (%(default)s)"
    )
    parser.add_argument("--seed", type=whole_number(), default=0, help="the same seed gives the same division (0)")
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="keep images on one side that equal each other but for compression, scale, brightness or a little "
        "motion, as frames of a video do; decodes all images",
    )
    parser.add_argument(
        "--merge", metavar=("JSON", "IMAGES"), nargs=2, help="divide these images too, such as those of a val split"
    )
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where to write (default: beside the json)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    from functools import partial

    from gfl.common.files import output_folder
    from gfl.common.progress import print_line, progress_bar
    from gfl.tools.next_command import data_commands
    from gfl.tools.prepare.divide import divide
    from gfl.tools.prepare.divide_json import divide_json

    out = output_folder(args.out) if args.out else None
    with progress_bar(unit="image", leave=False, enabled=args.near_duplicates) as bar:
        settings = {"near_duplicates": args.near_duplicates, "on_images": bar.update}
        by = partial(divide, share=args.val_share, seed=args.seed, **settings)
        written, division = divide_json((args.annotations, args.images), args.merge, out, by)
    for (file, _), rows in zip(written.values(), division.sides, strict=True):
        print_line(f"written   {file}: {len(rows)} images")
    for line in (*(f"note      {note}" for note in division.notes), *division.table, *data_commands(written)):
        print_line(line)


if __name__ == "__main__":
    protect_output()
    ARGS = parse_args()  # before anything heavy is imported: --help answers at once
    announce(f"loading libraries and {ARGS.annotations}")
    from gfl.common.errors import run

    run(main, ARGS)
