"""A table of the paper as data: its rows as overrides of one config, what they should show, and their runs."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml

from gfl.ablation.verdict import supporting_range
from gfl.common.dataclass_from_dict import between, dataclass_from_dict
from gfl.common.errors import UserError, error_context
from gfl.common.text import format_value
from gfl.common.yaml_file import read_yaml
from gfl.config import Config
from gfl.config_file import config_to_dict, load_config

METRICS = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)  # section.key: value
    paper: dict[str, Any] = field(default_factory=dict)  # the paper's values, in percent
    against: str = ""  # the row it is compared with, if that is not the study's baseline
    expect: Literal["none", "better", "worse", "equal"] = "none"  # the outcome that supports the paper's claim
    within: Annotated[float, between(0, 100)] = 0.0  # points of AP, of `expect: equal`

    @property
    def expectation(self) -> str:
        """The expectation as text, empty without one."""
        return "" if self.expect == "none" else self.expect + (f" within {self.within:g}" if self.within else "")

    @property
    def supporting(self) -> tuple[float, float] | None:
        """The true differences of AP, between two ends, that would support the paper's claim; None without one."""
        return supporting_range(self.expect, self.within)


@dataclass(frozen=True)
class Study:
    """One table. Field names are the keys of the YAML files in configs/studies."""

    title: str = ""
    base: str = ""  # a config, relative to the study's file
    baseline: str = ""  # the row that the others are compared with
    rows: tuple[Row, ...] = ()
    headline: str = ""  # the row that --quick compares, the last by default

    def baseline_of(self, row: Row) -> Row | None:
        """The row that `row` is compared with; None for one that others are compared with only."""
        name = row.against or self.baseline
        return None if name == row.name else next(other for other in self.rows if other.name == name)

    def paper_difference(self, row: Row) -> float | None:
        """The paper's AP of `row` minus that of its baseline row, in points; None where it has none."""
        baseline = self.baseline_of(row)
        if baseline is None or not ("AP" in row.paper and "AP" in baseline.paper):
            return None
        return round(row.paper["AP"] - baseline.paper["AP"], 6)

    def shortened(self) -> "Study":
        """The headline and the row that it is compared with."""
        headline = next((row for row in self.rows if row.name == self.headline), self.rows[-1])
        baseline = self.baseline_of(headline)
        if baseline is None:
            raise UserError(
                f"{self.title}: headline: {headline.name!r} is compared with no other row; name one that is",
                code="headline",
            )
        return replace(self, baseline=baseline.name, rows=(baseline, headline))


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


class StudyOptions(NamedTuple):
    """What to run of a study, how and where."""

    study: str  # path of its YAML file
    scale: str | None = None  # path of a config laid over the study's
    seeds: Sequence[int] = (0,)  # of every row, in rising order
    nproc: int = 1  # processes per run
    jobs: int = 1  # runs at a time
    rows: Sequence[str] = ()  # only these, all by default
    out: Path = Path("runs/studies")  # folder of runs and reports
    quick: bool = False  # the headline and its baseline row only
    start: str = ""  # backbone weights in place of the scale's

    @property
    def root(self) -> Path:
        """The folder of all runs."""
        return self.out / "runs"

    def load(self) -> Study:
        """The study, or what --quick leaves of it."""
        study = load_study(self.study)
        return study.shortened() if self.quick else study

    def plan(self, seeds: Sequence[int], rows: Sequence[str] = ()) -> list[Run]:
        """The runs with `seeds`, of all rows by default."""
        if self.scale and not Path(self.scale).is_file():
            raise UserError(f"no scale at {self.scale}; those of this project are in configs/scales", code="scale")
        names = rows or [row.name for row in self.load().rows]
        overlays = [self.scale] if self.scale else []
        overlays += [f"model.backbone.weights={self.start}"] if self.start else []
        return plan(self.study, root=self.root, overlays=overlays, seeds=seeds, only=names)


def load_study(path: str | Path) -> Study:
    """Read a study; raises `UserError` naming the file and key for anything missing, misspelt or of the wrong type."""
    if not Path(path).is_file():
        raise UserError(f"no study at {path}; the paper's tables are in configs/studies", code="study")
    study = dataclass_from_dict(Study, read_yaml(Path(path)), str(path))
    if not (study.title and study.base and study.baseline and study.rows):
        raise UserError(f"{path}: a study needs a title, a base, a baseline and rows")
    names = [row.name for row in study.rows]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(f"{path}: rows need names, all different")
    for wanted in filter(None, (study.baseline, study.headline, *(row.against for row in study.rows))):
        if wanted not in names:
            raise UserError(f"{path}: there is no row {wanted!r} to compare with; rows: {_quoted(names)}")
    for row in study.rows:
        for name, value in row.paper.items():
            if name not in METRICS or type(value) not in (int, float) or not 0 <= value <= 100:
                raise UserError(
                    f"{path}: row {row.name!r}: paper: {format_value(name)}: {format_value(value)} is not one of "
                    f"{', '.join(METRICS)} with a number from 0 to 100"
                )
    for row in study.rows:
        with error_context(f"{path}: row {row.name!r}"):
            _check_expectation(row, study.baseline_of(row), study.paper_difference(row))
    return study


def _quoted(names: Sequence[str]) -> str:
    """On one line, although a name may have commas."""
    return ", ".join(map(repr, names))


def _check_expectation(row: Row, baseline: Row | None, paper_difference: float | None) -> None:
    """Raises `UserError` where the row expects nothing that can be compared, or something else than the paper found."""
    if (row.expect == "equal") != (row.within > 0):
        raise UserError(
            "expect: equal goes with within: POINTS, a difference of AP above 0 that is too small to matter, and no "
            "other expectation does",
            code="expect_within",
        )
    if row.expect != "none" and baseline is None:
        raise UserError(f"expect: {row.expect}: it is compared with no other row", code="expect_baseline")
    low, high = row.supporting or (-math.inf, math.inf)
    if paper_difference is not None and not low <= paper_difference <= high:
        raise UserError(
            f"expect: {row.expectation}, but the paper's difference is {paper_difference:+g}", code="expect_paper"
        )


def plan(
    path: str | Path, *, root: Path, overlays: Sequence[str] = (), seeds: Sequence[int] = (0,), only: Sequence[str] = ()
) -> list[Run]:
    """The runs of the study at `path`, seed by seed, so that an interrupted study has complete tables.

    Args:
        root: the folder of the run folders. Each is named after its row and a digest of its config: equal rows of
            several tables share a run, and a changed config never finds an old result. The digest does not cover the
            content of files that a config names.
        overlays: configs and overrides laid over the study's; the rows' overrides are laid over all of them.
        seeds: of every row.
        only: names of rows, all by default.

    Raises `UserError` for rows that do not exist and configs that are wrong.
    """
    study = load_study(path)
    names = [row.name for row in study.rows]
    if unknown := sorted(set(only) - set(names)):
        raise UserError(f"{path}: no row {_quoted(unknown)}; rows: {_quoted(names)}", code="row")
    configs = [os.path.relpath(Path(path).parent / study.base), *overlays]
    with error_context(path):
        load_config(configs[0], configs[1:])  # before any row, so that an error there is not a row's
    groups = {found.name.rpartition("-")[2]: found for found in sorted(root.glob("*-*"))}  # by digest
    return [
        _run(path, row, seed, configs, root, groups)
        for seed in seeds
        for row in study.rows
        if not only or row.name in only
    ]


def distinct(runs: Sequence[Run]) -> list[Run]:
    """Each run once, under the first of the equal rows that share it."""
    found: dict[Path, Run] = {}
    for run in runs:
        found.setdefault(run.folder, run)
    return list(found.values())


def _run(path: str | Path, row: Row, seed: int, configs: list[str], root: Path, groups: dict[str, Path]) -> Run:
    arguments = [*configs, *(f"{key}={_as_yaml(value)}" for key, value in row.overrides.items()), f"seed={seed}"]
    source = f"{path}: row {row.name!r}"
    digest = _digest(load_config(arguments[0], arguments[1:], source=source))
    slug = re.sub(r"[^a-z0-9.]+", "-", row.name.lower()).strip("-")
    group = groups.setdefault(digest, root / f"{slug}-{digest}")
    arguments.append(f"run_dir={group / f'seed{seed}'}")
    return Run(row.name, seed, tuple(arguments), load_config(arguments[0], arguments[1:], source=source))


def _as_yaml(value: Any) -> str:
    """A value on one line, as the command line reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _digest(config: Config) -> str:
    """Of every key that affects the metrics, except the seed."""
    tree = {name: section for name, section in config_to_dict(config).items() if name not in ("run_dir", "seed", "log")}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:8]
