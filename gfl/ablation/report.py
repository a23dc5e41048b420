"""The report of a study: its table and how it was made, every run's raw results, and a diagram."""

from collections.abc import Mapping, Sequence
from datetime import date
from itertools import groupby
from pathlib import Path

from gfl.ablation.missing import START
from gfl.ablation.outcomes import Outcome, format_csv, format_summary, format_table, summarize
from gfl.ablation.plot import plot_study
from gfl.ablation.records import Session, read_result, read_sessions
from gfl.ablation.runs_file import Conditions, format_runs, read_runs, run_seconds
from gfl.ablation.study import Run, Study, StudyOptions, load_study
from gfl.common.files import safe_file_name, write_text
from gfl.common.text import markdown_code, markdown_text, printable, shell_command

READING = """\
AP in percent, mean over the seeds ± standard deviation. Difference: of AP to the baseline row, mean over the seeds ±
half of the 95 % confidence interval (Student's t on differences paired by seed); with one seed there is none.

Expected: which true difference would support the paper's claim, as the study's file says. Verdict: supported if the
runs show such a one, contradicted if they show another, open if they cannot tell. It needs a p-value of at most 0.05
after Holm's correction for all rows that expect something, which the intervals here do not have: a row may be open
although its own interval looks decided. Minutes: per run.
"""


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
    outcomes = summarize(study, results, {key: run_seconds(each) for key, each in sessions.items() if each})
    scale = Path(options.scale).stem if options.scale else ""
    names = dict.fromkeys(filter(None, [Path(options.study).stem, scale, "quick" * options.quick]))
    folder = options.out / safe_file_name("-".join(names))
    made = _how_made(options, runs, sessions)
    failed = "\nFailed:\n\n" + "".join(f"- {markdown_text(line)}\n" for line in failures) if failures else ""
    _write(study, outcomes, made + failed, folder)
    write_text(folder / "runs.csv", format_runs(study, results, sessions))
    files = f"report: {printable(str(folder / 'report.md'))}, report.csv, runs.csv, report.png"
    undecided = not options.quick and all(each.compared < 2 for each in outcomes)
    few = "\nwith one seed every verdict is open: --seeds 5 trains four more" if undecided else ""
    return f"{format_summary(outcomes)}\n\n{files}{few}"


def write_joined_report(options: StudyOptions, paths: Sequence[Path], folder: Path, *, root: Path) -> None:
    """Write report.md, report.csv and report.png of runs in several files, such as those of several machines.

    Args:
        options: study and scale of all of them.
        root: the folder to which the path of the study is relative.

    Raises `UserError` as `read_runs`.
    """
    table = load_study(root / options.study)
    runs = read_runs(paths, table)
    made = f"Of {', '.join(markdown_code(path.name) for path in paths)}, as by\n\n"
    # Seeds that follow one another under the same conditions, as one command trains them.
    numbered = enumerate(sorted(runs.conditions))
    for (conditions, _), group in groupby(numbered, lambda pair: (runs.conditions[pair[1]], pair[1] - pair[0])):
        seeds = [seed for _, seed in group]
        trained = {row for row, seed in runs.metrics if seed in seeds}
        rows = [] if len(trained) == len(table.rows) else [row.name for row in table.rows if row.name in trained]
        command = _command(options._replace(seeds=seeds, rows=rows))
        made += f"- {', '.join(filter(None, [command, markdown_text(str(conditions))]))}\n"
    _write(table, summarize(table, runs.metrics, runs.seconds), made, folder)


def _write(study: Study, outcomes: Sequence[Outcome], made: str, folder: Path) -> None:
    text = f"# {markdown_text(study.title)}\n\n{format_table(outcomes)}\n\n{READING}\n{made}"
    write_text(folder / "report.md", text)
    write_text(folder / "report.csv", format_csv(outcomes))
    plot_study(study.title, outcomes, folder / "report.png")


def format_seeds(seeds: Sequence[int]) -> str:
    """Neighbouring seeds as ``--seeds`` reads them."""
    first, last = min(seeds), max(seeds)
    return f"{first}-{last}" if first else str(last + 1)


def _command(options: StudyOptions) -> str:
    command = ["python", "scripts/study.py", Path(options.study)]
    command += ["--scale", Path(options.scale)] if options.scale else []
    command += ["--quick"] if options.quick else ["--seeds", format_seeds(options.seeds)]
    for name, count in (("--nproc", options.nproc), ("--jobs", options.jobs)):
        command += [name, str(count)] if count > 1 else []
    command += ["--rows", *options.rows] if options.rows else []
    return markdown_code(shell_command(*command))


def _how_made(options: StudyOptions, runs: Sequence[Run], sessions: Mapping[tuple[str, int], Sequence[Session]]) -> str:
    """The command, the conditions of all runs, and their folders."""
    names = list(dict.fromkeys(run.row for run in runs))
    reported = [name for name in names if name in options.rows or any(name == row for row, _ in sessions)]
    rows = reported if options.rows and reported != names else []
    command = _command(options._replace(seeds=[run.seed for run in runs], rows=rows))
    conditions = str(Conditions.of(session for each in sessions.values() for session in each))
    lines = [", ".join(filter(None, [command, conditions, date.today().isoformat()])), ""]
    if options.quick:
        lines += ["Quick: one seed and a short training show how a study works, but cannot decide anything.", ""]
    if options.start:
        lines += [f"Rows start from the backbone of {markdown_code(options.start)}, since {START} is missing.", ""]
    ways: dict[int, set[Conditions]] = {}
    for (_, seed), own in sessions.items():
        ways.setdefault(seed, set()).add(Conditions.of(own))
    if mixed := [str(seed) for seed, found in ways.items() if len(found) > 1]:
        lines += [f"The rows of seed {', '.join(mixed)} were trained in different ways, see runs.csv.", ""]
    folders = {run.row: run.folder.parent for run in runs}
    listed = [f"- {markdown_text(row)}: {markdown_code(folder)}" for row, folder in folders.items()]
    return "\n".join([*lines, "Run folders, one per seed:", "", *listed, ""])
