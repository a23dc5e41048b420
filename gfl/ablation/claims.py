"""The ledger: every claim with what the runs of its study say, in each world that the study was run in."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gfl.ablation.outcomes import Outcome, summarize
from gfl.ablation.report import read_runs
from gfl.ablation.study import Study, load_study
from gfl.common.dataclass_from_dict import dataclass_from_dict
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
    """A sentence of the paper and the rows that test it."""

    claim: str = ""
    source: str = ""  # table or publication
    study: str = ""  # the name of its file
    rows: tuple[str, ...] = ()  # with an expectation; the claim holds if all of them are as expected


@dataclass(frozen=True)
class Ledger:
    """Field names are the keys of configs/claims/paper.yaml."""

    results: str = ""  # the folder of the results, STUDY-SCALE/runs.csv
    worlds: tuple[World, ...] = ()
    claims: tuple[Claim, ...] = ()


class ClaimResult(NamedTuple):
    """What one world says about a claim."""

    verdict: str  # supported, contradicted, open, or NOT_RUN
    outcomes: tuple[Outcome, ...]  # of the claim's rows, in their order


def load_ledger(path: str | Path) -> Ledger:
    """Read a ledger; raises `UserError` naming the file and key for anything missing, misspelt or of the wrong type."""
    ledger = dataclass_from_dict(Ledger, read_yaml(Path(path)), str(path))
    if not (ledger.results and ledger.worlds and ledger.claims):
        raise UserError(f"{path}: a ledger needs results, worlds and claims", code="ledger")
    if not all(each.name and each.scale for each in ledger.worlds):
        raise UserError(f"{path}: a world needs a name and a scale", code="ledger")
    for claim in ledger.claims:
        if not (claim.claim and claim.source and claim.study and claim.rows):
            raise UserError(f"{path}: a claim needs claim, source, study and rows: {claim}", code="ledger")
    return ledger


def format_ledger(path: str | Path, root: Path) -> str:
    """The ledger at `path` as Markdown, with results and studies below `root`.

    Raises `UserError` for claims that no study tests, and for results of other rows than the study's.
    """
    ledger = load_ledger(path)
    studies = {claim.study: root / "configs" / "studies" / f"{claim.study}.yaml" for claim in ledger.claims}
    loaded = {name: load_study(file) for name, file in studies.items()}
    columns = ("claim", "source", "rows", "paper", *(world.name for world in ledger.worlds))
    rows = []
    for claim in ledger.claims:
        with error_context(f"{path}: {claim.claim!r}"):
            _check_rows(claim, loaded[claim.study])
            found_by_world = [
                _find(claim, loaded[claim.study], root / ledger.results, world) for world in ledger.worlds
            ]
        paper = ", ".join(f"{each.paper_difference:+.1f}" for each in found_by_world[0].outcomes)
        cells = [claim.claim, claim.source, ", ".join(claim.rows), paper, *map(_cell, found_by_world)]
        rows.append([markdown_text(cell) for cell in cells])
    commands = [
        markdown_code(
            shell_command("python", "scripts/study.py", f"configs/studies/{name}.yaml", "--scale", world.scale)
        )
        for world in ledger.worlds
        for name in studies
    ]
    listed = "".join(f"- {command}\n" for command in commands)
    return f"{HEAD}\n{markdown_table(columns, rows)}\n\n{COMMANDS}\n{listed}"


HEAD = """\
# Claims

Written by `python scripts/claims.py` from the results of the studies; do not edit it. Numbers are differences of AP in
points, of each row from the row that it is compared with: the paper's on COCO, and ours as the mean over the seeds ±
half of the 95 % confidence interval, paired by seed. A row's verdict is that of its table, with Holm's correction for
all rows of it ([how](ablations.md#verdicts)); nothing corrects across tables. A claim is supported if all of its rows
are, contradicted if one is, and open otherwise.
"""
COMMANDS = """\
The commands, each with `--seeds N --jobs 2`; `--dry-run` says what is missing for it:
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


def _find(claim: Claim, study: Study, results: Path, world: World) -> ClaimResult:
    file = results / f"{claim.study}-{Path(world.scale).stem}" / "runs.csv"
    found = read_runs(file, study) if file.is_file() else {}
    by_name = {outcome.row.name: outcome for outcome in summarize(study, found)}
    outcomes = tuple(by_name[name] for name in claim.rows)
    if all(outcome.difference is None for outcome in outcomes):
        return ClaimResult(NOT_RUN, outcomes)
    verdicts = {outcome.verdict for outcome in outcomes}
    decided = "contradicted" if "contradicted" in verdicts else "supported" if verdicts == {"supported"} else "open"
    return ClaimResult(decided, outcomes)


def _cell(result: ClaimResult) -> str:
    if result.verdict == NOT_RUN:
        return NOT_RUN
    parts = []
    for outcome in result.outcomes:
        margin = "" if outcome.margin is None else f" ± {outcome.margin:.1f}"
        parts.append(NOT_RUN if outcome.difference is None else f"{outcome.difference:+.1f}{margin}")
    seeds = [outcome.compared for outcome in result.outcomes if outcome.compared]
    count = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{seeds[0]}"
    return f"{result.verdict}: {', '.join(parts)} ({count} seed{'s' * (count != '1')})"
