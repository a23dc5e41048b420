"""A table of the paper as data: its rows as overrides of one config, the runs they need, and what came out of them."""

import csv
import hashlib
import io
import json
import math
import os
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from scipy import stats

from gfl.common.dataclass_from_dict import build
from gfl.common.errors import UserError
from gfl.common.yaml_file import read_yaml
from gfl.config import Config, config_to_dict, load_config

FIGURES = ("AP", "AP50", "AP75", "APS", "APM", "APL")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)  # section.key: value
    paper: dict[str, Any] = field(default_factory=dict)  # the paper's figures, in percent
    against: str = ""  # the row its difference is taken to, where that is not the study's baseline


@dataclass(frozen=True)
class Study:
    """One table. Field names are the keys of the YAML files in configs/studies."""

    title: str = ""
    base: str = ""  # a config, relative to the study's file
    baseline: str = ""  # the row that differences are taken to
    rows: tuple[Row, ...] = ()

    def baseline_of(self, row: Row) -> str:
        """The name of the row that `row` is compared with."""
        return row.against or self.baseline


class Run(NamedTuple):
    """One row trained with one seed."""

    row: str
    seed: int
    arguments: tuple[str, ...]  # of train.py
    config: Config

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.run_dir)


def load_study(path: str | Path) -> Study:
    """Read a study; raises `UserError` naming the file and key for anything missing, misspelt or of the wrong type."""
    study = build(Study, read_yaml(Path(path)), str(path))
    if not (study.title and study.base and study.baseline and study.rows):
        raise UserError(f"{path}: a study needs a title, a base, a baseline and rows")
    names = [row.name for row in study.rows]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{path}: rows need names, all different")
    for wanted in (study.baseline, *(row.against for row in study.rows if row.against)):
        if wanted not in names:
            raise UserError(f"{path}: there is no row {wanted!r} to compare with; rows: {', '.join(names)}")
    for row in study.rows:
        for name, value in row.paper.items():
            if name not in FIGURES or type(value) not in (int, float):
                raise UserError(
                    f"{path}: row {row.name!r}: paper: {name}: {value} is not one of {', '.join(FIGURES)} with a number"
                )
    return study


def plan(
    path: str | Path, *, root: Path, scale: str | None = None, seeds: int = 1, only: Sequence[str] = ()
) -> list[Run]:
    """The runs of the study at `path`, seed by seed, so that an interrupted study has whole tables.

    Args:
        root: the folder of the run folders. Each is named after its row and a digest of its whole config: rows of
            several tables that are the same run share it, and a changed config never finds an old result. What the
            files that a config names hold is not in the digest.
        scale: a config laid over the study's, under the rows' overrides.
        seeds: 0, 1, ..., seeds - 1.
        only: names of rows, all by default.

    Raises `UserError` for rows that do not exist and configs that are wrong.
    """
    study = load_study(path)
    if unknown := set(only) - {row.name for row in study.rows}:
        raise UserError(
            f"{path}: no row {', '.join(sorted(unknown))}; rows: {', '.join(row.name for row in study.rows)}"
        )
    configs = [os.path.relpath(Path(path).parent / study.base), *([scale] if scale else [])]
    groups = {found.name.rpartition("-")[2]: found for found in sorted(root.glob("*-*"))}  # by digest
    return [
        _run(path, row, seed, configs, root, groups)
        for seed in range(seeds)
        for row in study.rows
        if not only or row.name in only
    ]


def _run(path: str | Path, row: Row, seed: int, configs: list[str], root: Path, groups: dict[str, Path]) -> Run:
    arguments = [*configs, *(f"{key}={_as_yaml(value)}" for key, value in row.overrides.items()), f"seed={seed}"]
    try:
        digest = _digest(load_config(arguments[0], arguments[1:]))
    except UserError as error:
        raise UserError(f"{path}: row {row.name!r}: {str(error).removeprefix('command line: ')}") from None
    slug = re.sub(r"[^a-z0-9.]+", "-", row.name.lower()).strip("-")
    group = groups.setdefault(digest, root / f"{slug}-{digest}")
    arguments.append(f"run_dir={group / f'seed{seed}'}")
    return Run(row.name, seed, tuple(arguments), load_config(arguments[0], arguments[1:]))


def _as_yaml(value: Any) -> str:
    """A value on one line, as the command line reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _digest(config: Config) -> str:
    """Of all that decides the outcome but the seed."""
    tree = {name: section for name, section in config_to_dict(config).items() if name not in ("run_dir", "seed", "log")}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]


def read_result(run: Run) -> dict[str, float] | None:
    """The figures of the last epoch in percent; None as long as the run is not finished."""
    found = None
    for record in _records(run.folder / "metrics.jsonl"):
        if "val/AP" in record and record.get("epoch") == run.config.optim.epochs:
            found = {name: 100 * record[f"val/{name}"] for name in FIGURES if f"val/{name}" in record}
    return found


def epochs_begun(run: Run) -> int:
    """The epoch, from 1, of the last record of the run; 1 before there is any."""
    return max((record.get("epoch", 1) for record in _records(run.folder / "metrics.jsonl")), default=1)


def _records(path: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the last line while it is written
            continue
        if isinstance(record, dict):
            yield record


class Outcome(NamedTuple):
    """What came out of one row. Figures in percent."""

    name: str
    seeds: int
    mean: dict[str, float]
    spread: float | None  # standard deviation of AP over the seeds
    difference: float | None  # of AP to the baseline row, mean over the seeds that both have
    margin: float | None  # half of its confidence interval, from the paired differences
    paper: dict[str, float]
    paper_difference: float | None

    @property
    def verdict(self) -> str:
        """Whether the difference has the paper's sign: with one seed or within the margin it is open."""
        if self.difference is None or not self.paper_difference:
            return ""
        if self.margin is None or abs(self.difference) <= self.margin:
            return "open"
        return "yes" if (self.difference > 0) == (self.paper_difference > 0) else "no"


def summarize(study: Study, results: dict[tuple[str, int], dict[str, float]]) -> list[Outcome]:
    """One `Outcome` per row of `study` from the figures of its finished runs, by (row, seed)."""
    return [_outcome(study, row, results) for row in study.rows]


def _outcome(study: Study, row: Row, results: dict[tuple[str, int], dict[str, float]]) -> Outcome:
    runs = {seed: figures for (name, seed), figures in results.items() if name == row.name}
    names = [name for name in FIGURES if runs and all(name in figures for figures in runs.values())]
    mean = {name: statistics.fmean(figures[name] for figures in runs.values()) for name in names}
    values = [figures["AP"] for figures in runs.values()]
    difference = margin = paper_difference = None
    if study.baseline_of(row) != row.name:
        baseline = next(other for other in study.rows if other.name == study.baseline_of(row))
        theirs = {seed: results[baseline.name, seed]["AP"] for seed in runs if (baseline.name, seed) in results}
        pairs = [runs[seed]["AP"] - value for seed, value in theirs.items()]
        difference, margin = paired_difference(pairs)
        if "AP" in row.paper and "AP" in baseline.paper:
            paper_difference = row.paper["AP"] - baseline.paper["AP"]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Outcome(row.name, len(runs), mean, spread, difference, margin, row.paper, paper_difference)


def paired_difference(pairs: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean of paired differences and half the width of its `CONFIDENCE` interval (Student's t); None if unknown."""
    if not pairs:
        return None, None
    if len(pairs) == 1:
        return pairs[0], None
    error = statistics.stdev(pairs) / len(pairs) ** 0.5
    return statistics.fmean(pairs), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1)) * error


def _cells(outcome: Outcome) -> list[str]:
    def number(value: float | None, form: str = ".1f") -> str:
        return "" if value is None else f"{value:{form}}"

    ap = number(outcome.mean.get("AP")) + ("" if outcome.spread is None else f" ± {outcome.spread:.1f}")
    difference = number(outcome.difference, "+.1f") + ("" if outcome.margin is None else f" ± {outcome.margin:.1f}")
    return [
        outcome.name.replace("|", "\\|"),
        str(outcome.seeds),
        ap,
        number(outcome.mean.get("AP50")),
        number(outcome.mean.get("AP75")),
        difference,
        number(outcome.paper.get("AP")),
        number(outcome.paper_difference, "+.1f"),
        outcome.verdict,
    ]


COLUMNS = ("row", "seeds", "AP", "AP50", "AP75", "difference", "paper AP", "paper's difference", "same sign")


def table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as a Markdown table, its columns aligned."""
    rows = [list(COLUMNS), *map(_cells, outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def comma_separated(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as CSV, to six places."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paper = [f"paper {name}" for name in FIGURES]
    writer.writerow(["row", "seeds", *FIGURES, "AP spread", "AP difference", "margin", *paper, "paper AP difference"])
    for row in outcomes:
        ours = [row.mean.get(name) for name in FIGURES]
        theirs = [row.paper.get(name) for name in FIGURES]
        figures = [*ours, row.spread, row.difference, row.margin, *theirs, row.paper_difference]
        writer.writerow([row.name, row.seeds, *(None if value is None else round(value, 6) for value in figures)])
    return text.getvalue()
