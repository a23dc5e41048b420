"""The file of a study's runs, which scripts/study.py writes and the ledger reads."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gfl.ablation.records import Session
from gfl.ablation.study import METRICS, Study
from gfl.common.errors import UserError
from gfl.common.text import csv_text, one_line


class Conditions(NamedTuple):
    """What decides the last digits of a run; empty where it is not known."""

    threads: str
    torch: str
    machine: str
    start: str

    @classmethod
    def of(cls, sessions: Iterable[Session]) -> "Conditions":
        """Those of a run; several values are joined by "+" if its sessions differ."""
        every = list(sessions)
        values = [dict.fromkeys(str(getattr(session, field)) for session in every) for field in cls._fields]
        return cls(*(" + ".join(filter(None, each)) for each in values))

    def __str__(self) -> str:
        labels = {"machine": "", "threads": "threads per process: ", "torch": "torch ", "start": "start weights "}
        return ", ".join(f"{label}{value}" for field, label in labels.items() if (value := getattr(self, field)))


class SavedRuns(NamedTuple):
    """What files of runs say."""

    metrics: dict[tuple[str, int], dict[str, float]]  # in percent, by row and seed
    seconds: dict[tuple[str, int], float]  # where that is known
    conditions: dict[int, Conditions]  # by seed


def run_seconds(sessions: Iterable[Session]) -> float:
    """How long a run took."""
    return round(sum(session.seconds for session in sessions), 3)


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
    writer.writerow(["row", "seed", *metrics, "seconds", *Conditions._fields, "overrides"])
    for (row, seed), values in results.items():
        numbers = [round(values[name], 10) if name in values else None for name in metrics]  # 100 x has added digits
        own = sessions[row, seed]
        seconds = run_seconds(own) if own else None
        writer.writerow([csv_text(row), seed, *numbers, seconds, *Conditions.of(own), overrides[csv_text(row)]])
    return text.getvalue()


def read_runs(paths: Iterable[Path], study: Study) -> SavedRuns:
    """The runs in files of `format_runs`.

    Raises `UserError` for one that is not of `study`, or of rows that were others then, for a run that is there twice,
    and for a seed whose rows were trained on several machines, or with other threads: they cannot be compared.
    """
    found, overrides = SavedRuns({}, {}, {}), _overrides(study)
    names = {csv_text(row.name): row.name for row in study.rows}
    for path in paths:
        try:
            reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
            if missing := {"row", "seed", "AP", *Conditions._fields, "overrides"} - set(reader.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for line in reader:
                if line["overrides"] != overrides[line["row"]]:
                    raise ValueError(f"{line['row']} had other overrides")
                _add_line(found, names[line["row"]], line)
        except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path}: no results of {study.title!r} that can be used ({type(error).__name__}: {one_line(error)})",
                code="runs",
            ) from None
    return found


def _add_line(found: SavedRuns, row: str, line: Mapping[str, str]) -> None:
    """Add a run to `found`; raises `TypeError` or `ValueError` for one that cannot be used."""
    key = row, seed = row, int(line["seed"])
    if key in found.metrics:
        raise ValueError(f"{row} with seed {seed} is there twice")
    own = Conditions(*(line[name] for name in Conditions._fields))
    if found.conditions.setdefault(seed, own) != own:
        raise ValueError(f"rows with seed {seed} were trained in two ways: {found.conditions[seed]} and {own}")
    found.metrics[key] = {name: finite(line[name]) for name in METRICS if name == "AP" or line[name]}
    if not 0 <= found.metrics[key]["AP"] <= 100:
        raise ValueError(f"an AP of {line['AP']}")
    if line.get("seconds"):
        found.seconds[key] = finite(line["seconds"])


def _overrides(study: Study) -> dict[str, str]:
    """What each row changes, by its name in a CSV file."""
    return {csv_text(row.name): json.dumps(row.overrides, sort_keys=True) for row in study.rows}


def finite(text: str) -> float:
    """A number of a file; raises `ValueError` or `TypeError` for anything else."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
