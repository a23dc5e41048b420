"""The ledger: every claim with what the runs of its study say, in each world that the study was run in."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from gfl.ablation.measures import MEASURES
from gfl.ablation.measures_file import read_measures, values_of
from gfl.ablation.outcomes import summarize
from gfl.ablation.report import write_joined_report
from gfl.ablation.runs_file import SavedRuns, read_runs
from gfl.ablation.study import Study, StudyOptions, load_study
from gfl.ablation.verdict import format_p, p_value, paired_difference, supporting_range, verdict
from gfl.common.dataclass_from_dict import between, dataclass_from_dict
from gfl.common.errors import UserError, error_context
from gfl.common.text import markdown_code, markdown_table, markdown_text, shell_command
from gfl.common.yaml_file import read_yaml

NOT_RUN = "not run"


@dataclass(frozen=True)
class World:
    """A scale on which studies are run."""

    name: str = ""
    scale: str = ""  # its config


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the rows or the measure that tests it."""

    claim: str = ""
    source: str = ""  # table or publication
    study: str = ""  # the name of its file
    rows: tuple[str, ...] = ()  # with an expectation; the claim holds if all of them are as expected
    measure: str = ""  # in place of study and rows, a name of `gfl.ablation.measures`
    expect: Literal["none", "better", "worse", "equal"] = "none"  # of a measure: above 0, below 0, or near 0
    within: Annotated[float, between(0, 1000)] = 0.0  # of `expect: equal`, in the unit of the measure


@dataclass(frozen=True)
class Ledger:
    """Field names are the keys of configs/claims/paper.yaml."""

    results: str = ""  # the folder of the results, STUDY-SCALE/runs.csv
    worlds: tuple[World, ...] = ()
    claims: tuple[Claim, ...] = ()


class Difference(NamedTuple):
    """What the seeds of one row or measure say."""

    mean: float | None  # None without a seed
    margin: float | None  # half the width of its interval
    seeds: int
    verdict: str
    p: float | None  # adjusted for the rows of its study
    starts: int  # start weights that the seeds were trained from
    digits: int = 1  # after the point


def load_ledger(path: str | Path) -> Ledger:
    """Read a ledger; raises `UserError` naming the file and key for anything missing, misspelt or of the wrong type."""
    ledger = dataclass_from_dict(Ledger, read_yaml(Path(path)), str(path))
    if not (ledger.results and ledger.worlds and ledger.claims):
        raise UserError(f"{path}: a ledger needs results, worlds and claims", code="ledger")
    if not all(each.name and each.scale for each in ledger.worlds):
        raise UserError(f"{path}: a world needs a name and a scale", code="ledger")
    for claim in ledger.claims:
        if not (claim.claim and claim.source and (_has_measure(claim) if claim.measure else _has_rows(claim))):
            raise UserError(
                f"{path}: a claim needs claim, source, and either study and rows, or expect and a measure, one of "
                f"{', '.join(MEASURES)} (with within for expect: equal): {claim}",
                code="ledger",
            )
    return ledger


def _has_measure(claim: Claim) -> bool:
    complete = claim.measure in MEASURES and claim.expect != "none" and (claim.expect == "equal") == (claim.within > 0)
    return complete and not (claim.study or claim.rows)


def _has_rows(claim: Claim) -> bool:
    return bool(claim.study and claim.rows) and claim.expect == "none" and not claim.within


def format_ledger(path: str | Path, root: Path) -> str:
    """The ledger at `path` as Markdown, with results and studies below `root`.

    Raises `UserError` for claims that no study tests, and for results of other rows than the study's.
    """
    ledger = load_ledger(path)
    needed = [claim.study for claim in ledger.claims if claim.study]
    if any(claim.measure for claim in ledger.claims):
        needed += [measure.study for measure in MEASURES.values()]
    studies = {name: load_study(root / "configs" / "studies" / f"{name}.yaml") for name in needed}
    columns = ("claim", "source", "rows or measure", "paper", *(world.name for world in ledger.worlds))
    for world in ledger.worlds:
        if not (root / world.scale).is_file():
            raise UserError(f"{path}: {world.name}: no scale at {world.scale}", code="ledger")
    rows, verdicts = [], {world.name: Counter() for world in ledger.worlds}
    for claim in ledger.claims:
        with error_context(f"{path}: {claim.claim!r}"):
            tested_by = _tested_by(claim, studies)
            found = [_find(claim, studies, root / ledger.results, Path(world.scale).stem) for world in ledger.worlds]
        cells = [claim.claim, claim.source, *tested_by, *map(_cell, found)]
        rows.append([markdown_text(cell) for cell in cells])
        for world, each in zip(ledger.worlds, found, strict=True):
            verdicts[world.name][_verdict(each)] += 1
    scales = [world.scale for world in ledger.worlds]
    commands = [("scripts/study.py", f"configs/studies/{name}.yaml", "--scale", s) for s in scales for name in studies]
    commands += [("scripts/measure.py", "--scale", scale) for scale in scales]
    listed = "".join(f"- {markdown_code(shell_command('python', *words))}\n" for words in commands)
    counts = "".join(f"- {markdown_text(name)}: {_format_counts(each)}\n" for name, each in verdicts.items())
    return f"{HEAD}\n{counts}\n{markdown_table(columns, rows)}\n\n{COMMANDS}\n{listed}"


def write_joined_reports(path: str | Path, root: Path) -> list[Path]:
    """The report of all runs of each study whose runs are in several files, among the results of the ledger at `path`.

    Returns their folders. Raises `UserError` for results that are not of a study and a scale, or cannot be used.
    """
    folders = []
    for first in sorted((root / load_ledger(path).results).glob("*/runs.csv")):
        if len(files := _files(first)) > 1:
            name, _, scale = first.parent.name.rpartition("-")
            options = StudyOptions(f"configs/studies/{name}.yaml", f"configs/scales/{scale}.yaml")
            write_joined_report(options, files, first.parent, root=root)
            folders.append(first.parent)
    return folders


HEAD = """\
# Claims

Written by `python scripts/claims.py` from the results of the studies; do not edit it. Numbers are differences of AP in
points, of each row from the row that it is compared with: the paper's on COCO, and ours as the mean over the seeds ±
half of the 95 % confidence interval, paired by seed. A row is decided by its p-value, at most 0.05, which unlike the
interval has Holm's correction for all rows of its table ([how](ablations.md#verdicts)); nothing corrects across tables.
A claim is supported if all of its rows are, contradicted if one is, and open otherwise. The last claims are not about
AP alone: what is measured on the trained runs, in which unit, and what supports the claim, is in their third column,
and nothing corrects for their number ([more](ablations.md#the-ledger)).
"""
COMMANDS = """\
The commands, each with `--seeds N`; those of studies with `--jobs 2` too, and `--dry-run` says what is missing for
them:
"""


def _check_rows(claim: Claim, study: Study) -> None:
    rows = {row.name: row for row in study.rows}
    for name in claim.rows:
        if name not in rows or not rows[name].supporting or study.paper_difference(rows[name]) is None:
            tested = [row.name for row in study.rows if row.supporting and study.paper_difference(row) is not None]
            raise UserError(
                f"study {claim.study}: row {name!r} has no expectation with a difference of the paper; rows that have: "
                f"{', '.join(tested)}",
                code="claim_row",
            )


def _tested_by(claim: Claim, studies: dict[str, Study]) -> tuple[str, str]:
    """The cells of what tests a claim, and of the paper's figure."""
    if claim.measure:
        ends = {"better": "above 0", "worse": "below 0", "equal": f"within {claim.within:g}"}
        return f"{claim.measure}, {MEASURES[claim.measure].unit}: {ends[claim.expect]}", "-"
    study = studies[claim.study]
    _check_rows(claim, study)
    of_paper = {row.name: study.paper_difference(row) for row in study.rows}
    return "; ".join(claim.rows), "; ".join(f"{of_paper[name]:+.1f}" for name in claim.rows)


def _find(claim: Claim, studies: dict[str, Study], results: Path, scale: str) -> list[Difference]:
    """What one world says about a claim."""
    if claim.measure:
        lines, name = read_measures(_files(results / f"measures-{scale}.csv")), MEASURES[claim.measure].study
        runs = _read(studies[name], results / f"{name}-{scale}")
        values = values_of(claim.measure, lines, runs.metrics)
        starts = _starts(runs, {seed for measure, seed in lines if measure == claim.measure})
        mean, margin = paired_difference(values)
        supporting = supporting_range(claim.expect, claim.within)
        p = p_value(values, supporting)
        return [Difference(mean, margin, len(values), verdict(mean, p, supporting), p, starts, digits=2)]
    study = studies[claim.study]
    runs = _read(study, results / f"{claim.study}-{scale}")
    by_name = {}
    for each in summarize(study, runs.metrics):
        starts = _starts(runs, {seed for row, seed in runs.metrics if row == each.row.name})
        found = Difference(each.difference, each.margin, each.compared, each.verdict, each.p, starts)
        by_name[each.row.name] = found
    return [by_name[name] for name in claim.rows]


def _read(study: Study, folder: Path) -> SavedRuns:
    return read_runs(_files(folder / "runs.csv"), study)


def _starts(runs: SavedRuns, seeds: set[int]) -> int:
    return len({runs.conditions[seed].start for seed in seeds})


def _files(path: Path) -> list[Path]:
    """The file of one machine and those of others: a.csv, a.2.csv."""
    return [*filter(Path.is_file, [path]), *sorted(path.parent.glob(f"{path.stem}.*.csv"))]


def _verdict(found: list[Difference]) -> str:
    """On a claim that all of these test."""
    verdicts = {each.verdict for each in found}
    if not any(each.seeds for each in found):
        return NOT_RUN
    return "contradicted" if "contradicted" in verdicts else "supported" if verdicts == {"supported"} else "open"


def _format_counts(verdicts: Counter[str]) -> str:
    kinds = ("supported", "contradicted", "open", NOT_RUN)
    return ", ".join(f"{verdicts[kind]} {kind}" for kind in kinds if verdicts[kind])


def _cell(found: list[Difference]) -> str:
    seeds = [each.seeds for each in found if each.seeds]
    decided = _verdict(found)
    if not seeds:
        return decided
    count = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{seeds[0]}"
    most = max(each.starts for each in found)
    starts = f", {most} starts" if most > 1 else ""
    return f"{decided}: {'; '.join(map(_number, found))} ({count} seed{'s' * (count != '1')}{starts})"


def _number(found: Difference) -> str:
    if found.mean is None:
        return NOT_RUN
    margin = "" if found.margin is None else f" ± {found.margin:.{found.digits}f}"
    p = "" if found.p is None else f", p {format_p(found.p)}"
    return f"{found.mean:+.{found.digits}f}{margin}{p}"
