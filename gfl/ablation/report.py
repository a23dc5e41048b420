"""The report of a study: its table and how it was made, every run's raw results, and a diagram."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path

from gfl.ablation.missing import START
from gfl.ablation.outcomes import format_csv, format_summary, format_table, summarize
from gfl.ablation.plot import plot_study
from gfl.ablation.records import Session, read_result, read_sessions
from gfl.ablation.study import METRICS, Run, Study, StudyOptions
from gfl.common.errors import UserError
from gfl.common.files import safe_file_name, write_text
from gfl.common.text import csv_text, markdown_code, markdown_text, one_line, printable, shell_command

READING = """\
AP in percent, mean over the seeds ± standard deviation. Difference: of AP to the baseline row, mean over the seeds ±
half of the 95 % confidence interval (Student's t on differences paired by seed); with one seed there is none.

Expected: which true difference would support the paper's claim, as the study's file says. Verdict: supported if the
runs show such a one, contradicted if they show another, open if they cannot tell. It needs a p-value of at most 0.05
after Holm's correction for all rows that expect something, which the intervals here do not have: a row may be open
although its own interval looks decided. Minutes: per run.
"""


CONDITIONS = ("threads", "torch", "machine", "start")  # that decide the last digits of a run


def write_report(options: StudyOptions, failures: Sequence[str]) -> str:
    """Write report.md, report.csv, runs.csv and report.png of all finished runs, also of earlier commands.

    Returns a summary.
    """
    study, seeds = options.load(), list(options.seeds)
    # More seeds than requested, if all rows have them: some may, since tables share runs, but rows with different seeds
    # are not the table that was asked for. Not for --quick, whose two rows no verdict is corrected for.
    while not options.quick and all(map(read_result, options.plan([seeds[-1] + 1]))):
        seeds.append(seeds[-1] + 1)
    while not options.quick and seeds[0] and all(map(read_result, options.plan([seeds[0] - 1]))):
        seeds.insert(0, seeds[0] - 1)
    runs = options.plan(seeds)
    results = {(run.row, run.seed): metrics for run in runs if (metrics := read_result(run))}
    sessions = {(run.row, run.seed): read_sessions(run) for run in runs if (run.row, run.seed) in results}
    outcomes = summarize(study, results, {key: _seconds(each) for key, each in sessions.items() if each})
    scale = Path(options.scale).stem if options.scale else ""
    names = dict.fromkeys(filter(None, [Path(options.study).stem, scale, "quick" * options.quick]))
    folder = options.out / safe_file_name("-".join(names))
    table = format_table(outcomes)
    made = _how_made(options, runs, sessions)
    failed = "\nFailed:\n\n" + "".join(f"- {markdown_text(line)}\n" for line in failures) if failures else ""
    write_text(folder / "report.md", f"# {markdown_text(study.title)}\n\n{table}\n\n{READING}\n{made}{failed}")
    write_text(folder / "report.csv", format_csv(outcomes))
    write_text(folder / "runs.csv", format_runs(study, results, sessions))
    plot_study(study.title, outcomes, folder / "report.png")
    files = f"report: {printable(str(folder / 'report.md'))}, report.csv, runs.csv, report.png"
    undecided = not options.quick and all(each.compared < 2 for each in outcomes)
    few = "\nwith one seed every verdict is open: --seeds 5 trains four more" if undecided else ""
    return f"{format_summary(outcomes)}\n\n{files}{few}"


def format_runs(
    study: Study,
    results: Mapping[tuple[str, int], Mapping[str, float]],
    sessions: Mapping[tuple[str, int], Sequence[Session]],
) -> str:
    """Every run as CSV: all its metrics in percent, how long it took and on what, and what its row was then."""
    overrides = _overrides(study)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    metrics = list(dict.fromkeys([*METRICS, *(name for each in results.values() for name in each)]))
    writer.writerow(["row", "seed", *metrics, "seconds", *CONDITIONS, "overrides"])
    for (row, seed), values in results.items():
        numbers = [round(values[name], 10) if name in values else None for name in metrics]  # 100 x has added digits
        own = sessions[row, seed]
        conditions = [_distinct(own, field) for field in CONDITIONS]
        seconds = _seconds(own) if own else None
        writer.writerow([csv_text(row), seed, *numbers, seconds, *conditions, overrides[csv_text(row)]])
    return text.getvalue()


def _overrides(study: Study) -> dict[str, str]:
    """What each row changes, by its name in a CSV file."""
    return {csv_text(row.name): json.dumps(row.overrides, sort_keys=True) for row in study.rows}


def read_runs(paths: Iterable[Path], study: Study) -> dict[tuple[str, int], dict[str, float]]:
    """The metrics in files of `format_runs`, by (row, seed).

    Raises `UserError` for one that is not of `study`, or of rows that were others then, for a run that is there twice,
    and for a seed whose rows were trained on several machines, or with other threads: they cannot be compared.
    """
    names = {csv_text(row.name): row.name for row in study.rows}
    found: dict[tuple[str, int], dict[str, float]] = {}
    conditions: dict[int, tuple[str, ...]] = {}
    for path in paths:
        try:
            reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
            if missing := {"row", "seed", "AP", *CONDITIONS, "overrides"} - set(reader.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for line in reader:
                row, seed, made = names[line["row"]], int(line["seed"]), tuple(line[name] for name in CONDITIONS)
                if line["overrides"] != _overrides(study)[line["row"]]:
                    raise ValueError(f"{row} had other overrides")
                if (row, seed) in found:
                    raise ValueError(f"{row} with seed {seed} is there twice")
                if conditions.setdefault(seed, made) != made:
                    raise ValueError(f"rows with seed {seed} were trained in two ways: {conditions[seed]} and {made}")
                values = {name: line[name] for name in METRICS if name == "AP" or line[name]}
                found[row, seed] = {name: finite(text) for name, text in values.items()}
                if not 0 <= found[row, seed]["AP"] <= 100:
                    raise ValueError(f"an AP of {line['AP']}")
        except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: no results of {study.title!r} that can be used ({type(error).__name__}: {one_line(error)})",
                code="runs",
            ) from None
    return found


def finite(text: str | float) -> float:
    """A metric of a file; raises `ValueError` or `TypeError` for anything else."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no metric")
    return value


def _seconds(sessions: Iterable[Session]) -> float:
    return round(sum(session.seconds for session in sessions), 3)


def format_seeds(seeds: Sequence[int]) -> str:
    """Neighbouring seeds as ``--seeds`` reads them."""
    first, last = min(seeds), max(seeds)
    return f"{first}-{last}" if first else str(last + 1)


def _distinct(sessions: Iterable[Session], field: str) -> str:
    values = (str(getattr(session, field)) for session in sessions)
    return " + ".join(dict.fromkeys(filter(None, values)))


def _how_made(options: StudyOptions, runs: Sequence[Run], sessions: Mapping[tuple[str, int], Sequence[Session]]) -> str:
    """The command, the conditions of all runs, and their folders."""
    command = ["python", "scripts/study.py", Path(options.study)]
    command += ["--scale", Path(options.scale)] if options.scale else []
    command += ["--quick"] if options.quick else ["--seeds", format_seeds([run.seed for run in runs])]
    for name, count in (("--nproc", options.nproc), ("--jobs", options.jobs)):
        command += [name, str(count)] if count > 1 else []
    labels = {"machine": "", "threads": "threads per process: ", "torch": "torch ", "start": "start weights "}
    every = [session for each in sessions.values() for session in each]
    made = [f"{label}{found}" for field, label in labels.items() if (found := _distinct(every, field))]
    lines = [", ".join([markdown_code(shell_command(*command)), *made, date.today().isoformat()]), ""]
    if options.quick:
        lines += ["Quick: one seed and a short training show how a study works, but cannot decide anything.", ""]
    if options.start:
        lines += [f"Rows start from the backbone of {markdown_code(options.start)}, since {START} is missing.", ""]
    ways: dict[int, set[tuple[str, ...]]] = {}
    for (_, seed), own in sessions.items():
        ways.setdefault(seed, set()).add(tuple(_distinct(own, field) for field in CONDITIONS))
    if mixed := [str(seed) for seed, found in ways.items() if len(found) > 1]:
        lines += [f"The rows of seed {', '.join(mixed)} were trained in different ways, see runs.csv.", ""]
    folders = {run.row: run.folder.parent for run in runs}
    listed = [f"- {markdown_text(row)}: {markdown_code(folder)}" for row, folder in folders.items()]
    return "\n".join([*lines, "Run folders, one per seed:", "", *listed, ""])
