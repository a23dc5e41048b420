"""Reproduce a table of the paper: train and evaluate its rows, and write a report beside the paper's values."""

import argparse
import sys
from pathlib import Path

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train and evaluate the rows of a study, each with several seeds and in its own run folder. "
        "Finished runs are skipped and interrupted ones resumed: the same command continues. Writes report.md, "
        "report.csv and report.png.",
        epilog="example: python scripts/study.py configs/studies/table3.yaml --scale configs/scales/shapes.yaml\n"
        "with 8 GPUs: python scripts/study.py configs/studies/table3.yaml --nproc 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="YAML file, see configs/studies/")
    parser.add_argument(
        "--scale", metavar="CONFIG", help="a config laid over the study's, such as configs/scales/shapes.yaml"
    )
    parser.add_argument(
        "--seeds", type=whole_number(1, 9999), default=1, help="seeds 0, 1, ... of every row (default 1)"
    )
    parser.add_argument("--nproc", type=whole_number(1, 9999), default=1, help="processes (GPUs) per run (default 1)")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--out", default="runs/studies", help="folder of runs and reports (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of every run, run nothing")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    if not ARGS.dry_run:
        announce(f"loading libraries and {ARGS.study}")

import signal

from gfl.ablation.run import StudyOptions, check_rows, run_study, train_command
from gfl.ablation.study import read_result
from gfl.common.errors import run
from gfl.common.progress import print_line
from gfl.common.text import shell_command

TRAIN = Path(__file__).resolve().parent.parent / "train.py"


def main(args: argparse.Namespace) -> None:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(signum, signal.default_int_handler)  # stops run and study as Ctrl-C does
    options = StudyOptions(args.study, args.scale, args.seeds, args.nproc, args.rows, Path(args.out))
    if args.dry_run:
        print_commands(options)
    else:
        run_study(options, TRAIN)


def print_commands(options: StudyOptions) -> None:
    """The command of every run, for a shell or a scheduler."""
    runs = options.plan(options.seeds, options.rows)
    check_rows(options.study, runs)
    for each in runs:
        print_line(f"# {each.row}, seed {each.seed}")
        print_line(shell_command(*train_command(each, TRAIN, options.nproc)))
    print(f"{sum(read_result(each) is not None for each in runs)} of {len(runs)} runs are finished", file=sys.stderr)


if __name__ == "__main__":
    run(main, ARGS)
