"""The results of a study's runs: means, spreads, differences and verdicts per row, as Markdown and CSV."""

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gfl.ablation.study import METRICS, Row, Study
from gfl.ablation.verdict import format_p, holm, p_value, paired_difference, verdict
from gfl.common.text import csv_text, markdown_table, markdown_text, printable


class Outcome(NamedTuple):
    """The result of one row. Metrics in percent."""

    row: Row
    seeds: int
    mean: dict[str, float]
    spread: float | None  # standard deviation of AP over the seeds
    compared: int  # seeds that it and its baseline row have
    difference: float | None  # of AP from the baseline row's, mean over these seeds
    margin: float | None  # half the width of its confidence interval, from the paired differences
    paper_difference: float | None
    p: float | None = None  # of what the row expects, adjusted for the number of rows
    verdict: str = ""  # on what the row expects, empty without an expectation
    minutes: float | None = None  # per run


def summarize(
    study: Study,
    results: Mapping[tuple[str, int], Mapping[str, float]],
    seconds: Mapping[tuple[str, int], float] | None = None,
) -> list[Outcome]:
    """One `Outcome` per row of `study`.

    Args:
        results: metrics of its finished runs, by (row, seed).
        seconds: how long they took, where that is known.
    """
    pairs = {row.name: _differences(study, row, results) for row in study.rows}
    p_values = _adjusted_p_values(study, pairs)
    return [_outcome(study, row, results, pairs[row.name], p_values.get(row.name), seconds or {}) for row in study.rows]


def _differences(study: Study, row: Row, results: Mapping[tuple[str, int], Mapping[str, float]]) -> list[float]:
    """Of AP from the baseline row's, one per seed that both have."""
    baseline = study.baseline_of(row)
    if baseline is None:
        return []
    seeds = [seed for name, seed in results if name == row.name and (baseline.name, seed) in results]
    return [results[row.name, seed]["AP"] - results[baseline.name, seed]["AP"] for seed in seeds]


def _adjusted_p_values(study: Study, pairs: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """By row, adjusted for all rows with an expectation: their number is fixed before any of them has run."""
    rows = [row for row in study.rows if row.supporting]
    known = [p_value(pairs[row.name], row.supporting) for row in rows]
    adjusted = holm([1.0 if p is None else p for p in known])
    return {row.name: None if p is None else a for row, p, a in zip(rows, known, adjusted, strict=True)}


def _outcome(
    study: Study,
    row: Row,
    results: Mapping[tuple[str, int], Mapping[str, float]],
    pairs: Sequence[float],
    p: float | None,
    seconds: Mapping[tuple[str, int], float],
) -> Outcome:
    runs = [metrics for (name, _), metrics in results.items() if name == row.name]
    names = [name for name in METRICS if runs and all(name in metrics for metrics in runs)]
    values, times = (
        [metrics["AP"] for metrics in runs],
        [time for (name, _), time in seconds.items() if name == row.name],
    )
    difference, margin = paired_difference(pairs)
    return Outcome(
        row,
        seeds=len(runs),
        mean={name: statistics.fmean(metrics[name] for metrics in runs) for name in names},
        spread=statistics.stdev(values) if len(values) > 1 else None,
        compared=len(pairs),
        difference=difference,
        margin=margin,
        paper_difference=study.paper_difference(row),
        p=p,
        verdict=verdict(difference, p, row.supporting) if row.supporting else "",
        minutes=statistics.fmean(times) / 60 if times else None,
    )


COLUMNS = (
    *("row", "seeds", "AP", "AP50", "AP75", "difference", "paper AP", "paper's difference"),
    *("expected", "adjusted p", "verdict", "minutes"),
)


def _cells(outcome: Outcome) -> list[str]:
    row = outcome.row
    return [
        markdown_text(row.name),
        str(outcome.seeds),
        _number(outcome.mean.get("AP"), outcome.spread),
        _number(outcome.mean.get("AP50")),
        _number(outcome.mean.get("AP75")),
        _number(outcome.difference, outcome.margin, "+.1f"),
        _number(row.paper.get("AP")),
        _number(outcome.paper_difference, form="+.1f"),
        row.expectation,
        "" if outcome.p is None else format_p(outcome.p),
        outcome.verdict,
        _number(outcome.minutes),
    ]


def _number(value: float | None, margin: float | None = None, form: str = ".1f") -> str:
    return "" if value is None else f"{value:{form}}" + ("" if margin is None else f" ± {margin:.1f}")


def format_table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as a Markdown table."""
    return markdown_table(COLUMNS, list(map(_cells, outcomes)))


def format_summary(outcomes: Iterable[Outcome]) -> str:
    """The columns that matter most, for a terminal."""
    lines = [("row", "AP", "difference", "paper's", "verdict")]
    for each in outcomes:
        ours = _number(each.mean.get("AP"), each.spread), _number(each.difference, each.margin, "+.1f")
        lines.append((printable(each.row.name), *ours, _number(each.paper_difference, form="+.1f"), each.verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def format_csv(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as CSV, to six places."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paper = [f"paper {name}" for name in METRICS]
    numbers = [*METRICS, "AP spread", "AP difference", "margin", *paper, "paper AP difference", "adjusted p", "minutes"]
    writer.writerow(["row", "seeds", *numbers, "expected", "verdict"])
    for each in outcomes:
        ours = [each.mean.get(name) for name in METRICS]
        theirs = [each.row.paper.get(name) for name in METRICS]
        values = [
            *ours,
            each.spread,
            each.difference,
            each.margin,
            *theirs,
            each.paper_difference,
            each.p,
            each.minutes,
        ]
        rounded = [None if value is None else round(value, 6) for value in values]
        writer.writerow([csv_text(each.row.name), each.seeds, *rounded, each.row.expectation, each.verdict])
    return text.getvalue()
