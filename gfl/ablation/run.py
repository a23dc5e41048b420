"""Train the runs of a study one after the other, each in its own process, and write the report."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from gfl.ablation.outcomes import format_csv, format_table, summarize
from gfl.ablation.plot import plot_study
from gfl.ablation.study import Run, Study, load_study, plan, read_result, started_epoch
from gfl.build import build_criterion, build_detector
from gfl.checkpoint import BEST, LAST, find_checkpoint
from gfl.common.errors import ERROR_FILE, UserError, error_context
from gfl.common.files import safe_file_name, write_text, writing
from gfl.common.lock import lock_folder
from gfl.common.progress import print_line, progress_bar
from gfl.common.text import markdown_code, markdown_text, printable, shell_command

POLL_S = 2.0
LOCK_FILE = "study.lock"  # in a run's folder, beside the one that train.py holds itself


class StudyOptions(NamedTuple):
    """What to run of a study, and where."""

    study: str  # path of its YAML file
    scale: str | None = None  # path of a config laid over the study's
    seeds: int = 1  # 0, 1, ... of every row
    nproc: int = 1  # processes per run
    rows: Sequence[str] = ()  # only these, all by default
    out: Path = Path("runs/studies")  # folder of runs and reports

    def plan(self, seeds: int, rows: Sequence[str] = ()) -> list[Run]:
        """The runs of `seeds` seeds."""
        return plan(self.study, root=self.out / "runs", scale=self.scale, seeds=seeds, only=rows)


def run_study(options: StudyOptions, train_script: Path) -> None:
    """Train the unfinished runs, and write the report after every run.

    Raises `UserError` for rows that do not describe a detector, for missing weights, and in the end for failed runs.
    """
    study, runs = load_study(options.study), options.plan(options.seeds, options.rows)
    check_rows(options.study, runs)
    unfinished = [run for run in runs if read_result(run) is None]
    check_weights(unfinished, options.scale)
    print_line(f"{study.title}: {len(runs)} runs, {len(runs) - len(unfinished)} of them finished")
    print_line(f"each prints to train.log in its folder below {options.out / 'runs'}")
    failures: list[str] = []
    try:
        train_runs(unfinished, options, train_script, failures, on_run=lambda: write_report(study, options, failures))
    except KeyboardInterrupt:
        print("\nthe same command continues from here", flush=True)
        raise
    finally:
        print(f"\n{write_report(study, options, failures)}")
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


def check_weights(runs: list[Run], scale: str | None) -> None:
    """Before hours of training, check that the weights and teachers of rows exist; raises `UserError` otherwise."""
    for run in runs:
        teacher = run.config.loss.distill.teacher
        if teacher != "none" and not find_checkpoint(Path(teacher), BEST, LAST):
            raise UserError(
                f"row {run.row!r} learns from {teacher}, which does not exist; the comment at the top of the study "
                "says how to make it",
                code="no_teacher",
            )
        model = run.config.model
        if model.weights != "none":
            weights, names = model.weights, (BEST, LAST)  # of a run folder
        else:
            weights, names = model.backbone.weights, ()
        if weights not in ("none", "torchvision") and not find_checkpoint(Path(weights), *names):
            hint = (
                f"the comment at the top of {scale}, or of its base, says how to make it"
                if scale
                else "data/README.md says where to get it"
            )
            raise UserError(f"row {run.row!r} starts from {weights}, which does not exist; {hint}", code="no_weights")


def train_command(run: Run, train_script: Path, nproc: int) -> list[str]:
    """The command line of a run; `--resume` also starts a new run."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"] if nproc > 1 else []
    return [sys.executable, *launcher, os.path.relpath(train_script), *run.arguments, "--resume"]


def train_runs(
    runs: list[Run], options: StudyOptions, train_script: Path, failures: list[str], *, on_run: Callable[[], object]
) -> None:
    """Train `runs` one after the other; `failures` gets a line for each that failed."""
    start = time.monotonic()
    with progress_bar(total=sum(run.config.optim.epochs for run in runs), unit="epoch") as bar:
        for number, run in enumerate(runs, start=1):
            name, show = printable(f"{run.row}, seed {run.seed}"), partial(_show_epochs, bar, bar.n)
            bar.set_description(f"{number}/{len(runs)} {name}")
            problem = train_run(run, train_command(run, train_script, options.nproc), on_epochs=show)
            show(run.config.optim.epochs)
            minutes = (time.monotonic() - start) / 60
            passed = f"{minutes:.0f} min, {minutes / number * (len(runs) - number):.0f} min left"
            metrics = read_result(run)
            if problem is None and metrics is None:
                problem = "it recorded no AP for its last epoch; has the validation split boxes?"
            if problem:
                failures.append(f"{name}: {problem}")
            result = printable(problem) if problem else f"AP {metrics['AP']:.1f}"
            tqdm.write(f"[{number}/{len(runs)}] {name}: {result}  ({passed})")
            sys.stdout.flush()
            on_run()


def _show_epochs(bar: tqdm, before: int, epochs: int) -> None:
    bar.update(before + epochs - bar.n)


def train_run(run: Run, command: list[str], *, on_epochs: Callable[[int], object]) -> str | None:
    """Train one run, unless another study does; returns what went wrong, or None."""
    try:
        with lock_folder(run.folder, LOCK_FILE):
            return _train_locked(run, command, on_epochs)
    except UserError as error:
        if error.code != "locked":
            raise
        return str(error)


def _train_locked(run: Run, command: list[str], on_epochs: Callable[[int], object]) -> str | None:
    """Train one run, its output in train.log of its folder."""
    errors = run.folder / "error.txt"
    with writing(run.folder):
        errors.unlink(missing_ok=True)
        log = open(run.folder / "train.log", "a", encoding="utf-8", errors="replace")  # noqa: SIM115, closed below
    with log:
        environment = os.environ | {ERROR_FILE: str(errors.absolute())}
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as process:
            try:
                while process.poll() is None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_S)
                    on_epochs(started_epoch(run) - 1)
            except KeyboardInterrupt:  # the run saves, then stops
                process.terminate()
                process.wait()
                raise
    if process.returncode == 0:
        return None
    if process.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    with contextlib.suppress(OSError):
        return errors.read_text(encoding="utf-8").strip()
    return f"exit code {process.returncode}, see {run.folder / 'train.log'}"


def write_report(study: Study, options: StudyOptions, failures: list[str]) -> str:
    """Write report.md, report.csv and report.png of all finished runs, also of earlier commands; returns a summary."""
    seeds = options.seeds
    # More seeds than requested, if all rows have them: rows with different seeds would not be comparable.
    while all(read_result(run) for run in options.plan(seeds + 1) if run.seed == seeds):
        seeds += 1
    runs = options.plan(seeds)
    outcomes = summarize(study, {(run.row, run.seed): metrics for run in runs if (metrics := read_result(run))})
    names = [Path(options.study).stem, *([Path(options.scale).stem] if options.scale else [])]
    folder = options.out / safe_file_name("-".join(names))
    table = format_table(outcomes)
    write_text(folder / "report.md", format_report(study.title, table, options, runs, failures))
    write_text(folder / "report.csv", format_csv(outcomes))
    plot_study(study.title, outcomes, folder / "report.png")
    return f"{table}\n\nreport: {printable(str(folder / 'report.md'))}, report.csv, report.png"


def format_report(title: str, table: str, options: StudyOptions, runs: list[Run], failures: list[str]) -> str:
    """The report as Markdown: the table, how to read it and how it was made."""
    command = ["python", "scripts/study.py", Path(options.study)]
    command += ["--scale", Path(options.scale)] if options.scale else []
    command += ["--seeds", str(1 + max(run.seed for run in runs))]
    command += ["--nproc", str(options.nproc)] if options.nproc > 1 else []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores"
    failed = "".join(f"- {markdown_text(line)}\n" for line in failures)
    folders = "".join(
        f"- {markdown_text(row)}: {markdown_code(folder)}\n"
        for row, folder in {r.row: r.folder.parent for r in runs}.items()
    )
    return (
        f"# {markdown_text(title)}\n\n{table}\n\n"
        "AP in percent, mean over the seeds ± standard deviation. Difference: of AP to the baseline row, mean over the "
        "seeds ± half of the 95 % confidence interval (Student's t on differences paired by seed); with one seed there "
        "is none. Same sign as the paper's difference: open where the interval contains 0, or with one seed.\n\n"
        f"{markdown_code(shell_command(*command))}, {platform.machine()}, {device}, torch {torch.__version__}, "
        f"{date.today().isoformat()}\n\nRun folders, one per seed:\n\n{folders}"
        + (f"\nFailed:\n\n{failed}" if failures else "")
    )
