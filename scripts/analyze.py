"""Analyze the scores and side distributions of checkpoints: pictures and statistics beyond AP."""

import argparse

from gfl.common.arguments import fraction, whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce, print_lines


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Score against IoU of the detections of one or several checkpoints, the regression targets of the "
        "data in strides and the reg_max they need, the shapes of the side distributions with examples, and on "
        "soft shapes the predicted spread of every side against the true blur of its edge. Writes pictures and "
        "analysis.json.",
        epilog="example: python scripts/analyze.py runs/gfl_r18_shapes -o analysis\n"
        "side by side: python scripts/analyze.py runs/joint runs/branch -o analysis",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="+", help="run folders (their best.pt, else last.pt) or .pt files")
    parser.add_argument("-o", "--out", required=True, help="folder for the pictures and analysis.json")
    parser.add_argument("--data", nargs=2, metavar=("JSON", "IMAGES"), help="another split than the config's data.val")
    parser.add_argument(
        "--score", type=fraction, default=0.3, help="min. score of detections to classify (default 0.3)"
    )
    parser.add_argument("--examples", type=whole_number(), default=3, help="boxes drawn per shape (default 3)")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce(f"loading libraries and {', '.join(ARGS.checkpoints)}")

from gfl.checkpoint import load_detector
from gfl.common.errors import run
from gfl.common.files import output_folder, write_json
from gfl.evaluation.report import ReportOptions, format_report, load_split, plot_comparison, short_names, write_report
from gfl.model.precision import set_backends


def main(args: argparse.Namespace) -> None:
    options = ReportOptions(output_folder(args.out), args.score, args.examples)
    reports = []
    for name, checkpoint in zip(short_names(args.checkpoints), args.checkpoints, strict=True):
        detector = load_detector(checkpoint)
        set_backends(detector.config.optim)
        data = load_split(detector, args.data)
        reports.append(write_report(name, checkpoint, detector, data, options))
        print(format_report(reports[-1]))
    plot_comparison(reports, options.out)
    write_json(options.out / "analysis.json", {report.name: report.statistics for report in reports})
    pictures = ", ".join(sorted(path.name for path in options.out.glob("*.png")))
    print_lines(["", f"statistics: {options.out / 'analysis.json'}", f"pictures in {options.out}: {pictures}"])


if __name__ == "__main__":
    run(main, ARGS)
