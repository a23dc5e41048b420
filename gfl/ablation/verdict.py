"""What differences paired by seed say about an expectation: intervals, p-values, and Holm's correction for many rows.

A row is decided where the interval of its difference lies wholly among the differences that support it, or wholly
outside. The p-value is the level at which the interval stops doing so: for a sign that is the two-sided paired t-test,
for equality two one-sided tests, each at half the level.
"""

import math
import statistics
from collections.abc import Sequence

from scipy import stats

LEVEL = 0.05  # the chance of any wrong verdict in a table, and that a single interval misses


def supporting_range(expect: str, within: float = 0.0) -> tuple[float, float] | None:
    """The true differences, between two ends, that ``better``, ``worse`` or ``equal`` expects; None for others."""
    ends = {"better": (0, math.inf), "worse": (-math.inf, 0), "equal": (-within, within)}
    return ends.get(expect)


def paired_difference(pairs: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean of paired differences and half the width of its 95 % interval (Student's t); None where it is unknown."""
    if not pairs:
        return None, None
    if len(pairs) == 1:
        return pairs[0], None
    return statistics.fmean(pairs), float(stats.t.isf(LEVEL / 2, len(pairs) - 1)) * _standard_error(pairs)


def p_value(pairs: Sequence[float], supporting: tuple[float, float]) -> float | None:
    """How likely a mean as far from the nearest end of `supporting` is if the true one lies there; None if unknown."""
    if len(pairs) < 2:
        return None
    mean, error = statistics.fmean(pairs), _standard_error(pairs)
    distance = min(abs(mean - end) for end in supporting if math.isfinite(end))
    if error == 0:
        return float(distance == 0)
    return float(2 * stats.t.sf(distance / error, len(pairs) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number by Holm's step-down method, in their order.

    Those at most `LEVEL` may be called significant together (Scandinavian Journal of Statistics 6, 1979, page 65).
    """
    adjusted, highest, count = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdict(difference: float | None, p: float | None, supporting: tuple[float, float]) -> str:
    """``supported``, ``contradicted`` or ``open``, from an adjusted p-value."""
    if difference is None or p is None or p > LEVEL:
        return "open"
    return "supported" if supporting[0] < difference < supporting[1] else "contradicted"


def _standard_error(pairs: Sequence[float]) -> float:
    return statistics.stdev(pairs) / len(pairs) ** 0.5


def format_p(p: float) -> str:
    """A p-value to three places, never as 0."""
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"
