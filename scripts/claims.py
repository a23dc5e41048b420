"""Write docs/claims.md: every claim of the paper with the paper's figure, ours, and a verdict."""

import argparse
from pathlib import Path

from gfl.common.output import protect_output
from gfl.common.progress import announce

ROOT = Path(__file__).resolve().parent.parent
CLAIMS, PAGE = ROOT / "configs" / "claims" / "paper.yaml", ROOT / "docs" / "claims.md"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"{__doc__} The claims are in configs/claims/paper.yaml, the results in the folder that it names, "
        "as STUDY-SCALE/runs.csv and measures-SCALE.csv: copy them there from runs/studies. Files of other machines "
        "are called runs.2.csv, measures-SCALE.2.csv and so on; a study's report is then written anew, of all of them.",
        epilog="example: python scripts/claims.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries and results")

from gfl.ablation.claims import format_ledger, write_joined_reports
from gfl.common.errors import run
from gfl.common.files import write_text
from gfl.common.progress import print_line


def main(args: argparse.Namespace) -> None:
    write_text(PAGE, format_ledger(CLAIMS, ROOT))
    print_line(f"written: {PAGE}")
    for folder in write_joined_reports(CLAIMS, ROOT):
        print_line(f"written: report of the runs of several machines in {folder}")


if __name__ == "__main__":
    run(main, ARGS)
