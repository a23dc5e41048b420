#!/usr/bin/env python
"""Check a COCO-format data set before a GPU starts: json, image files, and how the boxes fit the config."""

import argparse
import sys
from pathlib import Path

from gfl.common.output import protect_output
from gfl.common.progress import announce

ROOT = Path(__file__).resolve().parent.parent  # of the configs
EXAMPLE = """exit code: 0 no problems, 1 warnings, 2 training would refuse the data or stop
example: python scripts/doctor.py train.json images/train --val val.json images/val --config configs/own_data.yaml
with other settings: python scripts/doctor.py train.json images/train data.short_side=640 model.head.reg_max=24"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", metavar="JSON", help="the training split")
    parser.add_argument("images", metavar="IMAGES", help="the folder its file names are relative to")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="override the config")
    parser.add_argument("--val", nargs=2, metavar=("JSON", "IMAGES"), help="the validation split")
    parser.add_argument(
        "--config", metavar="YAML", help="the training config (default: that of the command in the last line)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the complete result there, with all ids and names")
    parser.add_argument(
        "--near-duplicates",
        action="store_true",
        help="with --val: also find val images that equal one of train but for compression, scale, brightness or a "
        "little motion, as frames of a video do",
    )
    parser.add_argument(
        "--fix-names",
        metavar="OUT.json",
        help="check nothing, but write the json with file names that exist where only their spelling differs",
    )
    parser.add_argument(
        "--write-clean",
        metavar="OUT.json",
        help="report nothing, but write the json without images, annotations and categories that training refuses",
    )
    parser.add_argument(
        "--no-copies",
        nargs="*",
        metavar="JSON IMAGES",
        help="with --write-clean: also without images that have the pixels of one before them or, given another split, "
        "of one of its images",
    )
    return parser.parse_intermixed_args()  # overrides may also follow a flag


def fix_names(annotations: str, images: str, out: str) -> int:
    """Write a json whose file names exist; the exit code is 1 if some are still missing."""
    from gfl.common.text import format_value, list_some
    from gfl.data.file_names import write_fixed_names

    replaced, unknown = write_fixed_names(annotations, images, out)
    pairs = [f"{format_value(old)} is {format_value(new)}" for old, new in replaced.items()]
    print(f"{len(pairs)} file names replaced" + (f": {list_some(pairs)}" if pairs else ""))
    if unknown:
        print(f"{len(unknown)} names have no file, or several that may be meant: {list_some(unknown)}")
    report_written(out, images)
    return 1 if unknown else 0


def report_clean(counts: dict[str, tuple[int, int]], images: str, out: str) -> None:
    """Print what `write_clean` returned, and the next command."""
    for kind, (left, before) in counts.items():
        print(f"{kind}: {before - left} of {before} left out")
    report_written(out, images)


def report_written(out: str, images: str) -> None:
    from gfl.common.progress import print_line
    from gfl.common.text import shell_command

    print_line(f"written: {out}")
    print_line(f"next: {shell_command('python', 'scripts/doctor.py', Path(out), Path(images))}")


def main(args: argparse.Namespace) -> None:
    from gfl.common.errors import UserError
    from gfl.common.files import write_json
    from gfl.common.progress import print_line
    from gfl.config_file import load_config
    from gfl.tools.doctor.report import check_dataset, format_report
    from gfl.tools.doctor.write_clean import write_clean
    from gfl.tools.next_command import config_for_new_data, training_command

    if (args.fix_names or args.write_clean) and args.val:
        raise UserError("--fix-names and --write-clean take one json; run them for each, without --val")
    if args.near_duplicates and not args.val:
        raise UserError("--near-duplicates compares two splits; add --val JSON IMAGES", code="one_split")
    no_copies, others = args.no_copies is not None, args.no_copies or []
    if no_copies and (not args.write_clean or len(others) not in (0, 2)):
        raise UserError(
            "--no-copies belongs to --write-clean; it takes nothing, or another split's json and image folder"
        )
    config = load_config(args.config or str(ROOT / config_for_new_data()), args.overrides)
    if args.fix_names:
        sys.exit(fix_names(args.annotations, args.images, args.fix_names))
    if args.write_clean:
        counts = write_clean(
            (args.annotations, args.images), args.write_clean, config.data, no_copies=no_copies, others=others
        )
        return report_clean(counts, args.images, args.write_clean)
    split = args.annotations, args.images
    result = check_dataset(split, args.val, config, near_duplicates=args.near_duplicates, progress=True)
    print(format_report(result, hint=not args.json))
    if args.json:
        write_json(Path(args.json), result)
        print_line(f"complete result: {args.json}")
    if args.val and result["exit_code"] < 2:
        splits = {"train": (Path(args.annotations), Path(args.images)), "val": tuple(map(Path, args.val))}
        print_line(f"next: {training_command(args.config or config_for_new_data(), splits, args.overrides)}")
    sys.exit(result["exit_code"])


if __name__ == "__main__":
    protect_output()
    ARGS = parse_args()  # before anything heavy is imported: --help answers at once
    announce(f"loading libraries and {ARGS.annotations}")
    from gfl.common.errors import run

    run(main, ARGS)
