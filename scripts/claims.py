"""Write docs/claims.md: every claim of the paper with the paper's figure, ours, and a verdict."""

import argparse
from pathlib import Path

from gfl.common.output import protect_output
from gfl.common.progress import announce

ROOT = Path(__file__).resolve().parent.parent


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=f"{__doc__} The claims are in configs/claims/paper.yaml, the results in the folder that it names, "
        "as STUDY-SCALE/runs.csv: copy them there from runs/studies.",
        epilog="example: python scripts/claims.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--claims", default=ROOT / "configs" / "claims" / "paper.yaml", type=Path, metavar="YAML")
    parser.add_argument("--out", default=ROOT / "docs" / "claims.md", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    announce("loading libraries and results")

from gfl.ablation.claims import format_ledger
from gfl.common.errors import run
from gfl.common.files import write_text
from gfl.common.progress import print_line


def main(args: argparse.Namespace) -> None:
    write_text(args.out, format_ledger(args.claims, ROOT))
    print_line(f"written: {args.out}")


if __name__ == "__main__":
    run(main, ARGS)
