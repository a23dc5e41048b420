"""A table of the paper as data: its rows as overrides of one config, the runs they need, and their metrics."""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gfl.common.dataclass_from_dict import dataclass_from_dict
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


@dataclass(frozen=True)
class Study:
    """One table. Field names are the keys of the YAML files in configs/studies."""

    title: str = ""
    base: str = ""  # a config, relative to the study's file
    baseline: str = ""  # the row that the others are compared with
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
    study = dataclass_from_dict(Study, read_yaml(Path(path)), str(path))
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
            if name not in METRICS or type(value) not in (int, float) or not 0 <= value <= 100:
                raise UserError(
                    f"{path}: row {row.name!r}: paper: {format_value(name)}: {format_value(value)} is not one of "
                    f"{', '.join(METRICS)} with a number from 0 to 100"
                )
    return study


def plan(
    path: str | Path, *, root: Path, scale: str | None = None, seeds: int = 1, only: Sequence[str] = ()
) -> list[Run]:
    """The runs of the study at `path`, seed by seed, so that an interrupted study has complete tables.

    Args:
        root: the folder of the run folders. Each is named after its row and a digest of its config: equal rows of
            several tables share a run, and a changed config never finds an old result. The digest does not cover the
            content of files that a config names.
        scale: a config laid over the study's; the rows' overrides are laid over both.
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
    with error_context(path):
        load_config(configs[0], configs[1:])  # before any row, so that an error there is not a row's
    groups = {found.name.rpartition("-")[2]: found for found in sorted(root.glob("*-*"))}  # by digest
    return [
        _run(path, row, seed, configs, root, groups)
        for seed in range(seeds)
        for row in study.rows
        if not only or row.name in only
    ]


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


def read_result(run: Run) -> dict[str, float] | None:
    """The metrics of the last epoch in percent; None as long as the run is not finished."""
    found = None
    for record in _records(run.folder / "metrics.jsonl"):
        if "val/AP" in record and record.get("epoch") == run.config.optim.epochs:
            found = {name: 100 * record[f"val/{name}"] for name in METRICS if f"val/{name}" in record}
    return found


def started_epoch(run: Run) -> int:
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
        except ValueError:  # the last line, while it is being written
            continue
        if isinstance(record, dict):
            yield record
