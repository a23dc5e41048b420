"""Measure what claims other than differences of AP say about the trained runs of studies."""

import argparse
from pathlib import Path

from gfl.common.arguments import seeds
from gfl.common.output import protect_output
from gfl.common.progress import announce

NAMES = ("peak", "spread", "background", "cost")  # of gfl.ablation.measures, which is slow to import


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure, on runs that scripts/study.py has trained: what reading sides at their peak changes, "
        "whether their spread follows their error, how often the background gets a high quality from an IoU branch, "
        "and the time that QFL and DFL take. Writes measures-SCALE.csv beside the reports. For the time nothing else "
        "should run. The runs are those of table 3's rows both and neither and of table 1a's IoU-branch and joint.",
        epilog="example: python scripts/measure.py --scale configs/scales/shapes.yaml --seeds 5",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scale", required=True, metavar="CONFIG", help="the scale that the runs were trained at")
    parser.add_argument(
        "--seeds",
        type=seeds,
        default=range(1),
        metavar="N",
        help="number of seeds, 0, 1, ... (default 1); 3-4: only these",
    )
    parser.add_argument(
        "--measures", nargs="+", choices=NAMES, default=NAMES, help="only these (default all); others in the file stay"
    )
    parser.add_argument("--out", default="runs/studies", help="folder of runs and reports (default %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries and the runs")

from gfl.ablation.measures import MEASURES, measure_runs
from gfl.ablation.measures_file import format_lines, measure_line, read_lines
from gfl.ablation.records import machine_name
from gfl.ablation.study import StudyOptions
from gfl.common.errors import run
from gfl.common.files import write_text
from gfl.common.progress import print_line
from gfl.config_file import load_config

STUDIES = Path(__file__).resolve().parent.parent / "configs" / "studies"


def main(args: argparse.Namespace) -> None:
    options = StudyOptions("", args.scale, args.seeds, out=Path(args.out))
    path = options.out / f"measures-{Path(args.scale).stem}.csv"
    lines = read_lines(path) if path.exists() else {}
    machine = machine_name(load_config(args.scale).optim)
    for each in measure_runs(options, STUDIES, args.measures):
        value, detail = each.value
        print_line(f"{each.name}, seed {each.seed}: {value:+.3f} {MEASURES[each.name].unit}  ({detail})")
        lines[each.name, each.seed] = measure_line(each, machine)
        write_text(path, format_lines(lines))
    print_line(f"written: {path}")


if __name__ == "__main__":
    run(main, ARGS)
