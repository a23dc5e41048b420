"""Intervals, p-values and Holm's correction, against definitions that are slow or of another library."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from gfl.ablation.verdict import LEVEL, holm, p_value, paired_difference, verdict

BETTER, WORSE, EQUAL = (0, math.inf), (-math.inf, 0), (-0.5, 0.5)
PAIRS = [
    np.random.default_rng(seed).normal(mean, 0.5, 2 + seed % 4).tolist()
    for seed in range(40)
    for mean in (-1.0, 0.0, 0.4, 2.0)
]


def student_density(t: float, df: int) -> float:
    scale = math.gamma((df + 1) / 2) / math.gamma(df / 2) / math.sqrt(df * math.pi)
    return scale * (1 + t * t / df) ** (-(df + 1) / 2)


def test_the_interval_holds_95_percent_of_students_distribution_around_the_mean():
    for pairs in PAIRS[:8]:
        mean, margin = paired_difference(pairs)
        error = np.std(pairs, ddof=1) / math.sqrt(len(pairs))
        inside, _ = integrate.quad(student_density, -margin / error, margin / error, args=(len(pairs) - 1,))
        assert (mean, inside) == (pytest.approx(np.mean(pairs)), pytest.approx(0.95, abs=1e-6))
    assert paired_difference([2.0]) == (2.0, None)
    assert paired_difference([]) == (None, None)


def test_p_values_are_those_of_scipys_tests():
    """The two-sided t-test against 0; for equality, the less extreme of the tests against both ends."""
    for pairs in PAIRS:
        assert p_value(pairs, BETTER) == p_value(pairs, WORSE) == pytest.approx(stats.ttest_1samp(pairs, 0).pvalue)
        if abs(np.mean(pairs)) < 0.5:
            above = stats.ttest_1samp(pairs, -0.5, alternative="greater").pvalue
            below = stats.ttest_1samp(pairs, 0.5, alternative="less").pvalue
            assert p_value(pairs, EQUAL) == pytest.approx(2 * max(above, below))
    assert p_value([1.0], BETTER) is None
    assert (p_value([1.0, 1.0], BETTER), p_value([0.0, 0.0], BETTER), p_value([0.0, 0.0], EQUAL)) == (0, 1, 0)


@pytest.mark.parametrize("supporting", [BETTER, WORSE, EQUAL])
def test_a_single_row_is_decided_where_its_interval_lies_on_one_side(supporting):
    low, high = supporting
    seen = set()
    for pairs in PAIRS:
        mean, margin = paired_difference(pairs)
        start, end = mean - margin, mean + margin
        expected = "open"
        if low < start and end < high:
            expected = "supported"
        elif end < low or start > high:
            expected = "contradicted"
        assert verdict(mean, p_value(pairs, supporting), supporting) == expected
        seen.add(expected)
    assert seen == {"open", "supported", "contradicted"}


def test_holm_is_the_closed_test_whose_every_intersection_is_tested_by_bonferroni():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 5, 6):
        values = [*rng.choice([0.001, 0.01, 0.02, 0.3], count - 1), rng.uniform()]  # with ties
        subsets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
        tested = {s: min(1.0, len(s) * min(values[i] for i in s)) for s in subsets}
        expected = [max(p for s, p in tested.items() if index in s) for index in range(count)]
        assert holm(values) == pytest.approx(expected)
    assert holm([]) == []


def test_at_most_5_percent_of_tables_have_a_wrong_verdict():
    """Made-up tables of five rows that share a baseline: the true differences lie where a verdict is easiest wrong."""
    rng, wrong, tables = np.random.default_rng(1), 0, 1500
    truths = [(0.0, BETTER), (0.0, WORSE), (0.5, EQUAL), (-0.5, EQUAL), (3.0, BETTER)]
    for _ in range(tables):
        baseline = rng.normal(0, 0.3, 4)
        pairs = [truth + rng.normal(0, 0.3, 4) - baseline for truth, _ in truths]
        adjusted = holm([p_value(each, expected) for each, (_, expected) in zip(pairs, truths, strict=True)])
        found = [verdict(np.mean(each), p, e) for each, p, (_, e) in zip(pairs, adjusted, truths, strict=True)]
        wrong += any(each != "open" for each in found[:4]) or found[4] == "contradicted"
    assert 0.01 * tables < wrong < (LEVEL + 0.015) * tables
