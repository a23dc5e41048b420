#!/usr/bin/env python
"""Check a COCO-format data set before a GPU starts: json, image files, and how the boxes fit the config."""

import argparse
import sys
from pathlib import Path

EXAMPLE = """exit code: 0 no problems, 1 warnings, 2 training would refuse the data or stop
example: python scripts/doctor.py train.json images/train --val val.json images/val --config configs/finetune.yaml
with other settings: python scripts/doctor.py train.json images/train data.short_side=640 model.head.reg_max=24"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", metavar="JSON", help="the training split")
    parser.add_argument("images", metavar="IMAGES", help="the folder its file names are relative to")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override the config")
    parser.add_argument("--val", nargs=2, metavar=("JSON", "IMAGES"), help="the validation split")
    parser.add_argument("--config", metavar="YAML", help="the training config (default: the values in gfl/config.py)")
    parser.add_argument("--json", metavar="FILE", help="write the complete result there, with all ids and names")
    return parser.parse_intermixed_args()  # overrides may also follow a flag


def main(args: argparse.Namespace) -> None:
    from gfl.common.files import write_json
    from gfl.config import config_from_dict, load_config, parse_overrides
    from gfl.tools.doctor.report import check_dataset, format_report

    if args.config:
        config = load_config(args.config, args.overrides)
    else:
        config = config_from_dict(parse_overrides(args.overrides), "command line")
    result = check_dataset((args.annotations, args.images), args.val, config, progress=True)
    print(format_report(result, hint=not args.json))
    if args.json:
        write_json(Path(args.json), result)
        print(f"complete result: {args.json}")
    sys.exit(result["exit_code"])


if __name__ == "__main__":
    ARGS = parse_args()  # before anything heavy is imported: --help answers at once
    from gfl.common.errors import run

    run(main, ARGS)
