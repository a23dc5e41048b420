"""Run a study: check its rows, train what is not finished, and write the report after every run."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from gfl.ablation.jobs import Share, train_all
from gfl.ablation.missing import check_missing
from gfl.ablation.records import read_result, started_epoch
from gfl.ablation.report import write_report
from gfl.ablation.study import Run, StudyOptions, distinct
from gfl.build import build_criterion, build_detector
from gfl.common.errors import UserError, error_context
from gfl.common.progress import print_line, progress_bar
from gfl.common.text import printable


def run_study(options: StudyOptions, train_script: Path) -> None:
    """Train the unfinished runs, and write the report after every run.

    Raises `UserError` for rows that do not describe a detector, for what is missing, and in the end for failed runs.
    """
    study, runs = options.load(), distinct(options.plan(options.seeds, options.rows))
    check_rows(options.study, runs)
    unfinished = [run for run in runs if read_result(run) is None]
    check_missing(unfinished)
    print_line(f"{study.title}: {len(runs)} runs, {len(runs) - len(unfinished)} of them finished")
    print_line(f"each prints to train.log in its folder below {options.root}")
    failures: list[str] = []
    report = partial(write_report, options, failures)
    try:
        train_runs(unfinished, Share(options.jobs, options.nproc), train_script, failures, on_run=report)
    except KeyboardInterrupt:
        print("\nthe same command continues from here", flush=True)
        raise
    finally:
        print(f"\n{report()}")
    if failures:
        raise UserError(f"{len(failures)} of {len(runs)} runs failed; fix these errors and give the same command again")


def check_rows(path: str, runs: list[Run]) -> None:
    """Before hours of training, build each row's detector and criterion; raises `UserError` naming the row."""
    for run in runs:
        if run.config.optim.min_steps or run.config.eval.patience:
            raise UserError(
                f"{path}: row {run.row!r} has optim.min_steps or eval.patience: rows are compared after equally many "
                "epochs, so a study takes neither",
                code="unequal_training",
            )
        with error_context(f"{path}: row {run.row!r}"), torch.device("meta"):
            model = build_detector(run.config, 1)
            build_criterion(run.config, model.quality, model.box_repr)


def train_runs(
    runs: Sequence[Run], share: Share, train_script: Path, failures: list[str], *, on_run: Callable[[], object]
) -> None:
    """Train `runs` with a progress bar; `failures` gets a line for each that failed."""
    start, ended = time.monotonic(), []
    with progress_bar(total=sum(run.config.optim.epochs for run in runs), unit="epoch") as bar:

        def show(active: Sequence[Run]) -> None:
            names = "; ".join(printable(f"{run.row}, seed {run.seed}") for run in active)
            bar.set_description(f"{len(ended) + len(active)}/{len(runs)} {names}")
            done = sum(run.config.optim.epochs for run in ended) + sum(started_epoch(run) - 1 for run in active)
            bar.update(done - bar.n)

        def end(run: Run, problem: str | None) -> None:
            ended.append(run)
            name, metrics = f"{run.row}, seed {run.seed}", read_result(run)
            if problem is None and metrics is None:
                problem = "it recorded no AP for its last epoch; has the validation split boxes?"
            if problem:
                failures.append(f"{name}: {problem}")
            minutes = (time.monotonic() - start) / 60
            passed = f"{minutes:.0f} min, {minutes / len(ended) * (len(runs) - len(ended)):.0f} min left"
            result = problem or f"AP {metrics['AP']:.1f}"
            tqdm.write(printable(f"[{len(ended)}/{len(runs)}] {name}: {result}  ({passed})"))
            sys.stdout.flush()
            on_run()

        train_all(runs, train_script, share, on_poll=show, on_end=end)
