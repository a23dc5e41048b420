#!/usr/bin/env python
"""Write the embedded data set, soft shapes: COCO-format images whose every box side has a known blur.

An existing set with the same arguments is kept; one with other arguments is replaced.
"""

import argparse
import time
from pathlib import Path

from gfl.common.arguments import fraction, whole_number
from gfl.common.output import protect_output

EXAMPLE = """example:
  python scripts/make_shapes.py --out data/shapes --train 800 --val 200 --seed 0
large objects, up to the whole image:
  python scripts/make_shapes.py --out data/shapes_large --size 0.5 1
sides a quarter as blurred, and annotated more precisely:
  python scripts/make_shapes.py --out data/shapes_sharp --softness 0.25"""
DEFAULT_OUT = "data/shapes"  # where configs/gfl_r18_shapes.yaml expects it


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default=DEFAULT_OUT, metavar="FOLDER", help="where to write it (default %(default)s)")
    parser.add_argument("--train", type=whole_number(1), default=800, help="training images (default %(default)s)")
    parser.add_argument("--val", type=whole_number(1), default=200, help="validation images (default %(default)s)")
    parser.add_argument(
        "--seed", type=whole_number(), default=0, help="a set is determined by its arguments (default %(default)s)"
    )
    shares = "width and height of objects, as shares of the image side from 0.05 to 1 (default 0.175 0.6875)"
    parser.add_argument("--size", nargs=2, type=fraction, metavar=("LOW", "HIGH"), help=shares)
    parser.add_argument(
        "--softness",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="on the blur of every side, and on how far annotations deviate from it; at most 2 (default %(default)s)",
    )
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    import cv2

    from gfl.common.errors import UserError
    from gfl.common.progress import print_line
    from gfl.common.text import shell_command
    from gfl.data.shapes import EXTENTS, Scene, write_shapes

    cv2.setNumThreads(0)
    print(f"soft shapes, seed {args.seed}: {args.train} training and {args.val} validation images", flush=True)
    start = time.perf_counter()
    try:
        scene = Scene(tuple(args.size or EXTENTS), args.softness)
        written = write_shapes(args.out, args.train, args.val, args.seed, scene)
    except OSError as error:
        raise UserError(f"cannot write to {args.out} ({error}); make room or choose another --out") from error
    if written:
        print_line(f"written to {args.out} in {time.perf_counter() - start:.1f} s")
    else:
        print_line(f"{args.out} has this set already, nothing to do")
    print_line(f"next: {shell_command('python', 'train.py', 'configs/gfl_r18_shapes.yaml', *_overrides(args.out))}")


def _overrides(out: str) -> list[str]:
    """The overrides that the training command needs if the set is not in the default folder."""
    if Path(out) == Path(DEFAULT_OUT):
        return []
    splits = ("train", "val")
    words = [f"data.{split}.annotations={out}/annotations/instances_{split}.json" for split in splits]
    return words + [f"data.{split}.images={out}/{split}" for split in splits]


if __name__ == "__main__":
    protect_output()
    args = parse_args()  # before anything heavy is imported: --help answers at once
    from gfl.common.errors import run

    run(main, args)
