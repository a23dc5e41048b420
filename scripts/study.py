"""Reproduce a table of the paper: train and evaluate its rows, and write a report beside the paper's figures."""

import argparse
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train and evaluate the rows of a study, each with several seeds and in its own run folder. "
        "Finished runs are skipped and interrupted ones resumed, so the same command goes on. Writes report.md, "
        "report.csv and report.png.",
        epilog="example: python scripts/study.py configs/studies/table3.yaml --scale configs/scales/shapes.yaml\n"
        "with 8 GPUs: python scripts/study.py configs/studies/table3.yaml --nproc 8",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="YAML file, see configs/studies/")
    parser.add_argument(
        "--scale", metavar="CONFIG", help="a config laid over the study's, such as configs/scales/shapes.yaml"
    )
    parser.add_argument("--seeds", type=_count, default=1, help="seeds 0, 1, ... of every row (default 1)")
    parser.add_argument("--nproc", type=_count, default=1, help="processes (GPUs) per run (default 1)")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--out", default="runs/studies", help="folder of runs and reports (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of every run, run nothing")
    return parser.parse_args()


def _count(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the repository, also when called from elsewhere

import contextlib
import os
import platform
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from datetime import date

import torch
from tqdm import tqdm

from gfl.errors import UserError, run
from gfl.files import write_text
from gfl.plots import plot_study
from gfl.study import Run, comma_separated, epochs_begun, load_study, plan, read_result, summarize, table

POLL_S = 2.0


def main(args: argparse.Namespace) -> None:
    out = Path(args.out)
    study = load_study(args.study)
    runs = plan(args.study, root=out / "runs", scale=args.scale, seeds=args.seeds, only=args.rows)
    left = [each for each in runs if read_result(each) is None]
    if args.dry_run:
        for each in runs:
            print(shlex.join(command(each, args.nproc)))
        print(f"{len(runs) - len(left)} of {len(runs)} runs are finished", file=sys.stderr)
        return
    print(f"{study.title}: {len(runs)} runs, {len(runs) - len(left)} of them finished", flush=True)
    failures = train_all(left, args.nproc)

    results = {(each.row, each.seed): figures for each in runs if (figures := read_result(each))}
    outcomes = summarize(study, results)
    folder = out / "-".join([Path(args.study).stem, *([Path(args.scale).stem] if args.scale else [])])
    write_text(folder / "report.md", report(study.title, table(outcomes), args, failures))
    write_text(folder / "report.csv", comma_separated(outcomes))
    plot_study(study.title, outcomes, folder / "report.png")
    print(f"\n{table(outcomes)}\n\nreport: {folder / 'report.md'}, report.csv, report.png")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(runs)} runs failed; mend what they say and give the same command again"
        )


def command(each: Run, nproc: int) -> list[str]:
    """The command line of a run; `--resume` starts a run that is not there yet."""
    python = [sys.executable] if nproc == 1 else ["torchrun", "--standalone", f"--nproc_per_node={nproc}"]
    return [*python, os.path.relpath(ROOT / "train.py"), *each.arguments, "--resume"]


def train_all(runs: list[Run], nproc: int) -> list[str]:
    """Train `runs` one after the other; a line for each that failed."""
    failures, start = [], time.monotonic()
    with tqdm(total=sum(each.config.optim.epochs for each in runs), unit="epoch", disable=None) as bar:  # terminal only
        for number, each in enumerate(runs, start=1):
            name, before = f"{each.row}, seed {each.seed}", bar.n
            bar.set_description(f"{number}/{len(runs)} {name}")
            problem = train(each, nproc, on_epochs=lambda done: bar.update(before + done - bar.n))  # noqa: B023
            bar.update(before + each.config.optim.epochs - bar.n)
            minutes = (time.monotonic() - start) / 60
            left = f"{minutes:.0f} min, {minutes / number * (len(runs) - number):.0f} min left"
            figures = read_result(each)
            if problem is None and figures is None:
                problem = "it recorded no figures for its last epoch"
            if problem:
                failures.append(f"{name}: {problem}")
            tqdm.write(f"[{number}/{len(runs)}] {name}: {problem or 'AP {:.1f}'.format(figures['AP'])}  ({left})")
            sys.stdout.flush()
    return failures


def train(each: Run, nproc: int, *, on_epochs: Callable[[int], object]) -> str | None:
    """Train one run, what it prints in train.log of its folder; what went wrong, or None."""
    try:
        each.folder.mkdir(parents=True, exist_ok=True)
        log = open(each.folder / "train.log", "a", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(f"cannot write to {each.folder}: {error.strerror}") from None
    with log, subprocess.Popen(command(each, nproc), stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_S)
                on_epochs(epochs_begun(each) - 1)
        except KeyboardInterrupt:  # the run got it too, and saves
            process.wait()
            raise
    if process.returncode == 0:
        return None
    if process.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    lines = (each.folder / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")


def report(title: str, outcomes: str, args: argparse.Namespace, failures: list[str]) -> str:
    """The report as Markdown: the table, how to read it and how it was made."""
    words = ["python", "scripts/study.py", args.study, *(["--scale", args.scale] if args.scale else [])]
    words += ["--seeds", str(args.seeds), *(["--rows", *args.rows] if args.rows else [])]
    failed = "".join(f"- {line}\n" for line in failures)
    return (
        f"# {title}\n\n{outcomes}\n\n"
        "AP in percent, mean over the seeds ± standard deviation. Difference: of AP to the baseline row, mean over the "
        "seeds ± half of the 95 % confidence interval (Student's t on differences paired by seed); with one seed there "
        "is none. Same sign as the paper's: open where the interval holds 0, or with one seed.\n\n"
        f"`{shlex.join(words)}`, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{date.today().isoformat()}\n" + (f"\nFailed:\n\n{failed}" if failures else "")
    )


if __name__ == "__main__":
    run(main, ARGS)
