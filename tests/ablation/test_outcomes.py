"""Means, differences and verdicts of a study, and how its report shows them."""

import csv
import io
import re

import cv2
import pytest
import scipy

from gfl.ablation.outcomes import COLUMNS, format_csv, format_summary, format_table, summarize
from gfl.ablation.plot import plot_study
from gfl.ablation.study import Row, Study


def outcomes_of(rows, results):
    study = Study(title="T", base="b", baseline="base", rows=tuple(rows))
    metrics = {key: {"AP": value, "AP50": value + 10} for key, value in results.items()}
    return {outcome.row.name: outcome for outcome in summarize(study, metrics)}


def test_differences_are_taken_over_the_seeds_that_both_rows_have():
    rows = [Row("base", paper={"AP": 39.0}), Row("new", paper={"AP": 40.0}), Row("other", against="new")]
    found = outcomes_of(rows, {("base", 0): 1.0, ("base", 1): 3.0, ("new", 1): 5.0, ("new", 2): 90.0})
    assert (found["new"].difference, found["new"].margin, found["new"].paper_difference) == (2.0, None, 1.0)
    assert (found["base"].mean["AP"], found["base"].spread) == (2.0, pytest.approx(2**0.5))
    assert (found["base"].difference, found["base"].verdict) == (None, "")
    assert (found["other"].seeds, found["other"].difference) == (0, None)


def test_a_verdict_is_on_what_the_row_expects_and_counts_rows_that_have_not_run():
    rows = [Row("base"), Row("new", expect="better"), Row("missing", expect="worse"), Row("free")]
    differences = [0.9, 1.0, 1.1]
    results = {("base", seed): 20.0 for seed in range(3)}
    results |= {(name, seed): 20.0 + value for name in ("new", "free") for seed, value in enumerate(differences)}
    found = outcomes_of(rows, results)
    alone = scipy.stats.ttest_1samp(differences, 0).pvalue
    assert found["new"].p == pytest.approx(2 * alone)  # of two rows with an expectation
    assert [each.verdict for each in found.values()] == ["", "supported", "open", ""]
    assert outcomes_of(rows, {("base", 0): 0.0, ("new", 0): 9.0})["new"].verdict == "open"  # one seed


def test_table_and_csv_agree_and_leave_unknown_values_out():
    rows = [Row("base", paper={"AP": 39.0}), Row("new, strange"), Row("missing")]
    found = outcomes_of(rows, {("base", 0): 20.0, ("base", 1): 22.0, ("new, strange", 0): 25.0}).values()
    lines = format_table(found).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "| 21.0 ± 1.4" in lines[2]
    assert "| +5.0" in lines[3]
    head, _, line, _ = format_summary(found).splitlines()
    assert (line.index("25.0"), line.index("+5.0")) == (head.index("AP"), head.index("difference"))
    written = {row["row"]: row for row in csv.DictReader(io.StringIO(format_csv(found)))}
    assert written["new, strange"]["AP difference"] == "5.0"
    assert (written["missing"]["AP"], written["base"]["paper AP"]) == ("", "39.0")


def test_names_of_rows_are_only_text(tmp_path):
    name = "=1+1|<img src=x>`$\\frac$\x1b[2J"
    found = list(outcomes_of([Row("base"), Row(name)], {("base", 0): 1.0, (name, 0): 2.0}).values())
    line = format_table(found).splitlines()[3]
    assert line.isprintable()
    assert all(map(str.isprintable, format_summary(found).split("\n")))
    assert "<" not in line
    assert len(re.findall(r"(?<!\\)\|", line)) == len(COLUMNS) + 1
    assert list(csv.reader(io.StringIO(format_csv(found))))[2][0].startswith("'=1+1|")
    plot_study("$\\nothing$", found, tmp_path / "a.png")  # which would be an error in a formula


def test_a_plot_is_drawn_for_one_seed_for_several_and_for_none(tmp_path):
    rows = [Row("base", paper={"AP": 39.0}), Row("new", paper={"AP": 40.0}), Row("missing")]
    one = {("base", 0): 20.0, ("new", 0): 25.0}
    for name, results in (("none", {}), ("one", one), ("two", one | {("base", 1): 21.0, ("new", 1): 24.0})):
        plot_study("T", list(outcomes_of(rows, results).values()), tmp_path / f"{name}.png")
        assert cv2.imread(str(tmp_path / f"{name}.png")).std() > 5
