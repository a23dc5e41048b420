"""The file of measures, which scripts/measure.py writes and the ledger reads."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gfl.ablation.measures import MEASURES, Measured
from gfl.ablation.runs_file import finite
from gfl.common.errors import UserError
from gfl.common.text import one_line

COLUMNS = ("measure", "seed", "value", "detail", "machine", "AP")
Lines = dict[tuple[str, int], dict[str, str]]  # by measure and seed


def measure_line(measured: Measured, machine: str) -> dict[str, str]:
    """A line of the file; `machine` is the one that measured it."""
    ap = json.dumps({row: round(value, 6) for row, value in measured.ap.items()})
    value, detail = measured.value
    fields = (measured.name, str(measured.seed), str(round(value, 6)), detail, machine, ap)
    return dict(zip(COLUMNS, fields, strict=True))


def format_lines(lines: Lines) -> str:
    """Lines as CSV, measure by measure, seed by seed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    order = list(MEASURES)
    writer.writerows(lines[key] for key in sorted(lines, key=lambda key: (order.index(key[0]), key[1])))
    return text.getvalue()


def read_lines(path: Path) -> Lines:
    """The lines of a file of `format_lines`; raises `UserError` for another file and for a seed that is there twice."""
    lines: Lines = {}
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
        for line in reader:
            key = line["measure"], int(line["seed"])
            if key in lines:
                raise ValueError(f"{key[0]} of seed {key[1]} is there twice")
            ap = json.loads(line["AP"])
            if not isinstance(ap, dict) or set(ap) != set(MEASURES[key[0]].rows) or None in line:
                raise ValueError(f"{key[0]} of seed {key[1]} has other rows or columns")
            finite(line["value"])
            if not all(type(value) in (int, float) and 0 <= value <= 100 for value in ap.values()):
                raise ValueError(f"{key[0]} of seed {key[1]} has no AP of each row, but {line['AP']}")
            lines[key] = line
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: no measures that can be used ({type(error).__name__}: {one_line(error)}); if another version of "
            "measure.py wrote it, delete it and measure again",
            code="measures",
        ) from None
    return lines


def read_measures(paths: Sequence[Path]) -> Lines:
    """The lines of all these files; raises `UserError` as `read_lines`, also for a seed that is in two of them."""
    found: Lines = {}
    for path in paths:
        lines = read_lines(path)
        if doubled := lines.keys() & found:
            name, seed = min(doubled)
            raise UserError(f"{path}: {name} of seed {seed} is in another file too", code="measures")
        found |= lines
    return found


def values_of(name: str, lines: Lines, results: Mapping[tuple[str, int], Mapping[str, float]]) -> list[float]:
    """The values of a measure, one per seed.

    `results` are those of its study, by (row, seed). Raises `UserError` for a measure of other runs than theirs.
    """
    values = []
    for (other, seed), line in lines.items():
        if other == name:
            for row, ap in json.loads(line["AP"]).items():
                if abs(results.get((row, seed), {}).get("AP", math.inf) - ap) > 1e-6:
                    raise UserError(
                        f"{name} of seed {seed} was measured on a run of {row!r} with an AP of {ap}, which is not the "
                        f"one in the results of {MEASURES[name].study}: measure again",
                        code="measures",
                    )
            values.append(finite(line["value"]))
    return values
