"""The results of a study's runs: means, spreads and differences per row, as Markdown and CSV."""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from scipy import stats

from gfl.ablation.study import METRICS, Row, Study
from gfl.common.text import csv_text, markdown_text

CONFIDENCE = 0.95


class Outcome(NamedTuple):
    """The result of one row. Metrics in percent."""

    name: str
    seeds: int
    mean: dict[str, float]
    spread: float | None  # standard deviation of AP over the seeds
    difference: float | None  # of AP from the baseline row's, mean over the seeds that both have
    margin: float | None  # half the width of its confidence interval, from the paired differences
    paper: dict[str, float]
    paper_difference: float | None

    @property
    def verdict(self) -> str:
        """Whether the difference has the paper's sign: "yes", "no", or "open" with one seed or within the margin."""
        if self.difference is None or not self.paper_difference:
            return ""
        if self.margin is None or abs(self.difference) <= self.margin:
            return "open"
        return "yes" if (self.difference > 0) == (self.paper_difference > 0) else "no"


def summarize(study: Study, results: dict[tuple[str, int], dict[str, float]]) -> list[Outcome]:
    """One `Outcome` per row of `study` from the metrics of its finished runs, by (row, seed)."""
    return [_outcome(study, row, results) for row in study.rows]


def _outcome(study: Study, row: Row, results: dict[tuple[str, int], dict[str, float]]) -> Outcome:
    runs = {seed: metrics for (name, seed), metrics in results.items() if name == row.name}
    names = [name for name in METRICS if runs and all(name in metrics for metrics in runs.values())]
    mean = {name: statistics.fmean(metrics[name] for metrics in runs.values()) for name in names}
    values = [metrics["AP"] for metrics in runs.values()]
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
        markdown_text(outcome.name),
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


def format_table(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as a Markdown table, its columns aligned."""
    rows = [list(COLUMNS), *map(_cells, outcomes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def format_csv(outcomes: Iterable[Outcome]) -> str:
    """The outcomes as CSV, to six places."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    paper = [f"paper {name}" for name in METRICS]
    writer.writerow(["row", "seeds", *METRICS, "AP spread", "AP difference", "margin", *paper, "paper AP difference"])
    for row in outcomes:
        ours = [row.mean.get(name) for name in METRICS]
        theirs = [row.paper.get(name) for name in METRICS]
        metrics = [*ours, row.spread, row.difference, row.margin, *theirs, row.paper_difference]
        writer.writerow(
            [csv_text(row.name), row.seeds, *(None if value is None else round(value, 6) for value in metrics)]
        )
    return text.getvalue()
