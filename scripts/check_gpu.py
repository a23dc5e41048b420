"""Check a GPU: results against golden values, repeated and resumed runs, throughput. It needs no network."""

import argparse

from gfl.common.arguments import whole_number
from gfl.common.output import protect_output
from gfl.common.progress import announce

# Section -> the most seconds that it may take on a GPU.
SECTIONS = {
    "golden": 100,
    "same_as_cpu": 60,
    "resume": 60,
    "throughput": 150,
    "processes": 80,
    "compiled": 300,
    "shapes": 150,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Check that results on a GPU are right and how fast they come; write report.md and report.json.",
        epilog="example: python scripts/check_gpu.py\n"
        "without a GPU, to try the script itself: python scripts/check_gpu.py --device cpu --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-o", "--out", default="runs/check_gpu", metavar="FOLDER", help="default %(default)s")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default %(default)s")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, a minute or two in all")
    parser.add_argument("--minutes", type=whole_number(1), default=10, help="for all sections (default %(default)s)")
    names = ", ".join(SECTIONS)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", default=list(SECTIONS), metavar="SECTION", help=names)
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)  # run it in this process
    parser.add_argument("--work", help=argparse.SUPPRESS)  # the folder that sections share
    return parser.parse_args()


if __name__ == "__main__":  # before the heavy imports, so that --help answers at once
    protect_output()
    ARGS = parse_args()
    if not ARGS.section:
        announce("loading libraries")

import sys
import tempfile
import time
from pathlib import Path

import torch

from gfl.common.errors import UserError, run
from gfl.common.files import write_json, write_text
from gfl.common.progress import print_line
from gfl.common.text import shell_command
from gfl.tools.gpu_check import correctness, runs, throughput
from gfl.tools.gpu_check.report import FAILED, NOT_RUN, Check, Options, machine, markdown, run_section, write_checks

FUNCTIONS = {
    "golden": correctness.golden,
    "same_as_cpu": correctness.same_as_cpu,
    "resume": correctness.resume,
    "throughput": throughput.throughput,
    "processes": runs.processes,
    "compiled": throughput.compiled,
    "shapes": runs.shapes,
}


def main(args: argparse.Namespace) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("torch finds no CUDA device here; --device cpu --quick tries the script without one")
    if args.section:
        options = Options(torch.device(args.device), args.quick, Path(args.work))
        return write_checks(FUNCTIONS[args.section](options), log_of(options.folder, args.section))
    out, start = Path(args.out), time.monotonic()
    sections: dict[str, list[Check]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in args.only:
            sections[name] = check_section(name, args, Path(work), start + 60 * args.minutes - time.monotonic())
            write_report(out, args, sections)  # after each: an interruption leaves what is known
    outcomes = [check.outcome for checks in sections.values() for check in checks]
    failed, missing = outcomes.count(FAILED), outcomes.count(NOT_RUN)
    found = f"{failed} checks failed, {missing} not run"
    print_line(f"{found}; report: {out / 'report.md'}, numbers: {out / 'report.json'}")
    sys.exit(1 if failed or missing else 0)


def check_section(name: str, args: argparse.Namespace, work: Path, left_s: float) -> list[Check]:
    """The checks of one section, printed as they come; it gets no more time than is left."""
    print_line(name)
    if left_s < 5:
        checks = [Check("the section", NOT_RUN, f"the {args.minutes} minutes are over")]
        print_line(f"  {checks[0].line()}")
        return checks
    command = [sys.executable, __file__, "--section", name, "--device", args.device, "--work", str(work)]
    command += ["--quick"] if args.quick else []
    limit_s = min(left_s, SECTIONS[name]) if args.device == "cuda" else left_s
    return run_section(command, log_of(work, name), limit_s, lambda check: print_line(f"  {check.line()}"))


def log_of(work: Path, name: str) -> Path:
    """Where the process of a section writes its checks."""
    return work / f"{name}.jsonl"


def write_report(out: Path, args: argparse.Namespace, sections: dict[str, list[Check]]) -> None:
    found = machine()
    words = ["--device", args.device, *(["--quick"] if args.quick else [])]
    command = shell_command("python", "scripts/check_gpu.py", *words)
    write_text(out / "report.md", markdown(found, sections, command))
    checks = {name: [check._asdict() for check in checks] for name, checks in sections.items()}
    write_json(out / "report.json", {"machine": found, "sections": checks})


if __name__ == "__main__":
    run(main, ARGS)
