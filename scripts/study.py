"""Reproduce a table of the paper: train and evaluate its rows, and write a report beside the paper's values."""

import argparse
import os
import sys
from pathlib import Path

from gfl.common.arguments import seeds, whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train and evaluate the rows of a study, each with several seeds and in its own run folder. "
        "Finished runs are skipped and interrupted ones resumed: the same command continues. Writes report.md, "
        "report.csv, runs.csv and report.png.",
        epilog="example: python scripts/study.py configs/studies/table3.yaml --scale configs/scales/shapes.yaml\n"
        "after `make demo`, in minutes: python scripts/study.py configs/studies/table3.yaml --quick\n"
        "with 8 GPUs: python scripts/study.py configs/studies/table3.yaml --nproc 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="YAML file, see configs/studies/")
    parser.add_argument(
        "--scale", metavar="CONFIG", help="a config laid over the study's, such as configs/scales/shapes.yaml"
    )
    parser.add_argument(
        "--seeds",
        type=seeds,
        default=range(1),
        metavar="N",
        help="number of seeds of every row, 0, 1, ... (default 1); 3-4: only these, as for a second machine",
    )
    parser.add_argument("--nproc", type=whole_number(1, 9999), default=1, help="processes (GPUs) per run (default 1)")
    parser.add_argument(
        "--jobs",
        type=whole_number(1, 9999),
        help="runs at a time, each on its share of the cores and GPUs (default 1, with --quick 2)",
    )
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--out", default="runs/studies", help="folder of runs and reports (default %(default)s)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed of the headline and of its baseline row; by default at the scale of configs/scales/quick.yaml",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the command of every run and what is missing, run nothing"
    )
    args = parser.parse_args()
    if args.quick and (args.rows or args.seeds != range(1)):
        parser.error("--quick chooses rows and seeds itself: leave --rows and --seeds out")
    return args


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    if not ARGS.dry_run:
        announce(f"loading libraries and {ARGS.study}")

import signal

from gfl.ablation.jobs import train_command
from gfl.ablation.missing import find_downloads, find_missing, start_of_demo
from gfl.ablation.records import read_result
from gfl.ablation.run import check_rows, run_study
from gfl.ablation.study import StudyOptions, distinct
from gfl.common.errors import run
from gfl.common.progress import print_line
from gfl.common.text import shell_command

ROOT = Path(__file__).resolve().parent.parent
TRAIN, QUICK_SCALE = ROOT / "train.py", ROOT / "configs" / "scales" / "quick.yaml"


def main(args: argparse.Namespace) -> None:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(signum, signal.default_int_handler)  # stops all runs and the study as Ctrl-C does
    scale = args.scale or (os.path.relpath(QUICK_SCALE) if args.quick else None)
    start = start_of_demo(scale) if args.quick else ""
    numbers = {"seeds": args.seeds, "nproc": args.nproc, "jobs": args.jobs or 1 + args.quick}
    options = StudyOptions(
        args.study, scale, **numbers, rows=args.rows, out=Path(args.out), quick=args.quick, start=start
    )
    if args.dry_run:
        print_commands(options)
    else:
        run_study(options, TRAIN)


def print_commands(options: StudyOptions) -> None:
    """The command of every run, for a shell or a scheduler, and as comments what is missing and what is finished."""
    runs = distinct(options.plan(options.seeds, options.rows))
    check_rows(options.study, runs)
    results = [read_result(each) for each in runs]
    unfinished = [each for each, result in zip(runs, results, strict=True) if result is None]
    for missing in find_missing(unfinished):
        print_line(f"# missing: {missing}")
    for download in find_downloads(unfinished):
        print_line(f"# to download: {download}")
    for each, result in zip(runs, results, strict=True):
        print_line(f"# {each.row}, seed {each.seed}" + (f": finished, AP {result['AP']:.1f}" if result else ""))
        print_line(shell_command(*train_command(each, TRAIN, options.nproc)))
    print(f"{len(runs) - results.count(None)} of {len(runs)} runs are finished", file=sys.stderr)


if __name__ == "__main__":
    run(main, ARGS)
