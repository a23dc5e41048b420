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
    parser.add_argument("--seeds", type=_at_least_one, default=1, help="seeds 0, 1, ... of every row (default 1)")
    parser.add_argument("--nproc", type=_at_least_one, default=1, help="processes (GPUs) per run (default 1)")
    parser.add_argument("--rows", nargs="+", default=[], metavar="NAME", help="only these rows")
    parser.add_argument("--out", default="runs/studies", help="folder of runs and reports (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of every run, run nothing")
    return parser.parse_args()


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the repository, also when called from elsewhere

import contextlib
import fcntl
import os
import platform
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial

import torch
from tqdm import tqdm

from gfl.ablation.study import (
    Run,
    Study,
    comma_separated,
    epochs_begun,
    load_study,
    plan,
    read_result,
    summarize,
    table,
)
from gfl.checkpoint import BEST, LAST, find_checkpoint
from gfl.common.errors import UserError, run
from gfl.common.files import write_text
from gfl.evaluation.plots import plot_study
from gfl.method.criterion import build_criterion
from gfl.model.detector import build_detector

POLL_S = 2.0


def main(args: argparse.Namespace) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's, and Ctrl-C, stop run and study alike
    study = load_study(args.study)
    runs = plan_runs(args, seeds=args.seeds, only=args.rows)
    check_rows(args.study, runs)
    if args.dry_run:
        for each in runs:
            print(f"# {each.row}, seed {each.seed}\n{shlex.join(command(each, args.nproc))}")
        print(
            f"{sum(read_result(each) is not None for each in runs)} of {len(runs)} runs are finished", file=sys.stderr
        )
        return
    left = [each for each in runs if read_result(each) is None]
    check_weights(left, args.scale)
    print(f"{study.title}: {len(runs)} runs, {len(runs) - len(left)} of them finished", flush=True)
    print(f"each prints to train.log in its folder below {Path(args.out) / 'runs'}", flush=True)
    failures: list[str] = []
    try:
        train_all(left, args.nproc, failures, on_run=lambda: write_report(study, args, failures))
    except KeyboardInterrupt:
        print("\nthe same command goes on from here", flush=True)
        raise
    finally:
        print(f"\n{write_report(study, args, failures)}")
    if failures:
        raise UserError(
            f"{len(failures)} of {len(runs)} runs failed; mend what they say and give the same command again"
        )


def plan_runs(args: argparse.Namespace, *, seeds: int, only: Sequence[str] = ()) -> list[Run]:
    return plan(args.study, root=Path(args.out) / "runs", scale=args.scale, seeds=seeds, only=only)


def check_rows(path: str, runs: list[Run]) -> None:
    """Before hours of training: whether each row is a detector and a criterion at all."""
    for each in runs:
        try:
            with torch.device("meta"):
                model = build_detector(each.config, 1, pretrained=False)
                build_criterion(each.config, model.quality, model.box_repr)
        except UserError as error:
            raise UserError(f"{path}: row {each.row!r}: {error}") from None


def check_weights(runs: list[Run], scale: str | None) -> None:
    """Before hours of training: the file that rows start from, which a scale may need made first."""
    for each in runs:
        model = each.config.model
        whole = model.weights != "none"  # which may be a run folder, as a backbone's may not
        weights = model.weights if whole else model.backbone.weights
        found = find_checkpoint(Path(weights), *((BEST, LAST) if whole else ()))
        if weights not in ("none", "torchvision") and not found:
            where = (
                f"the head of {scale}, or of its base, says how it is made"
                if scale
                else "data/README.md says where it comes from"
            )
            raise UserError(f"row {each.row!r} starts from {weights}, which is not there; {where}")


def command(each: Run, nproc: int) -> list[str]:
    """The command line of a run; `--resume` starts a run that is not there yet."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"] if nproc > 1 else []
    return [sys.executable, *launcher, os.path.relpath(ROOT / "train.py"), *each.arguments, "--resume"]


def train_all(runs: list[Run], nproc: int, failures: list[str], *, on_run: Callable[[], object]) -> None:
    """Train `runs` one after the other; a line in `failures` for each that failed."""
    start = time.monotonic()
    with tqdm(total=sum(each.config.optim.epochs for each in runs), unit="epoch", disable=None) as bar:  # terminal only
        for number, each in enumerate(runs, start=1):
            name, show = f"{each.row}, seed {each.seed}", partial(_show, bar, bar.n)
            bar.set_description(f"{number}/{len(runs)} {name}")
            problem = train(each, nproc, on_epochs=show)
            show(each.config.optim.epochs)
            minutes = (time.monotonic() - start) / 60
            passed = f"{minutes:.0f} min, {minutes / number * (len(runs) - number):.0f} min left"
            figures = read_result(each)
            if problem is None and figures is None:
                problem = "it recorded no AP for its last epoch; has the validation split boxes?"
            if problem:
                failures.append(f"{name}: {problem}")
            tqdm.write(f"[{number}/{len(runs)}] {name}: {problem or 'AP {:.1f}'.format(figures['AP'])}  ({passed})")
            sys.stdout.flush()
            on_run()


def _show(bar: tqdm, before: int, epochs: int) -> None:
    bar.update(before + epochs - bar.n)


def train(each: Run, nproc: int, *, on_epochs: Callable[[int], object]) -> str | None:
    """Train one run, what it prints in train.log of its folder; what went wrong, or None."""
    try:
        each.folder.mkdir(parents=True, exist_ok=True)
        log = open(each.folder / "train.log", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(f"cannot write to {each.folder}: {error.strerror}") from None
    with log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "it is being trained already, by another study or what is left of a killed one; wait for it"
        begin = log.seek(0, os.SEEK_END)
        with subprocess.Popen(command(each, nproc), stdout=log, stderr=subprocess.STDOUT) as process:
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_S)
                    on_epochs(epochs_begun(each) - 1)
            except KeyboardInterrupt:  # it saves, then stops
                process.terminate()
                process.wait()
                raise
        if process.returncode == 0:
            return None
        if process.returncode in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        log.seek(begin)
        lines = [line for line in log.read().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or [f"exit code {process.returncode}", *lines])[-1]


def write_report(study: Study, args: argparse.Namespace, failures: list[str]) -> str:
    """Write report.md, report.csv and report.png of all that is finished, also by earlier commands; what to print."""
    seeds = args.seeds
    # More seeds than asked for, where all rows have them: rows with different seeds would not compare.
    while all(read_result(each) for each in plan_runs(args, seeds=seeds + 1) if each.seed == seeds):
        seeds += 1
    runs = plan_runs(args, seeds=seeds)
    outcomes = summarize(study, {(each.row, each.seed): figures for each in runs if (figures := read_result(each))})
    folder = Path(args.out) / "-".join([Path(args.study).stem, *([Path(args.scale).stem] if args.scale else [])])
    text = table(outcomes)
    write_text(folder / "report.md", report(study.title, text, args, runs, failures))
    write_text(folder / "report.csv", comma_separated(outcomes))
    plot_study(study.title, outcomes, folder / "report.png")
    return f"{text}\n\nreport: {folder / 'report.md'}, report.csv, report.png"


def report(title: str, outcomes: str, args: argparse.Namespace, runs: list[Run], failures: list[str]) -> str:
    """The report as Markdown: the table, how to read it and how it was made."""
    words = ["python", "scripts/study.py", args.study, *(["--scale", args.scale] if args.scale else [])]
    words += [
        "--seeds",
        str(1 + max(each.seed for each in runs)),
        *(["--nproc", str(args.nproc)] if args.nproc > 1 else []),
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    failed = "".join(f"- {line}\n" for line in failures)
    folders = "".join(f"- {row}: `{folder}`\n" for row, folder in {r.row: r.folder.parent for r in runs}.items())
    return (
        f"# {title}\n\n{outcomes}\n\n"
        "AP in percent, mean over the seeds ± standard deviation. Difference: of AP to the baseline row, mean over the "
        "seeds ± half of the 95 % confidence interval (Student's t on differences paired by seed); with one seed there "
        "is none. Same sign as the paper's difference: open where the interval holds 0, or with one seed.\n\n"
        f"`{shlex.join(words)}`, {platform.machine()}, {device}, torch {torch.__version__}, "
        f"{date.today().isoformat()}\n\nRun folders, one per seed:\n\n{folders}"
        + (f"\nFailed:\n\n{failed}" if failures else "")
    )


if __name__ == "__main__":
    run(main, ARGS)
