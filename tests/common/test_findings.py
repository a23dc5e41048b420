"""The lines of a report: one per finding, with its names below."""

import pytest

from gfl.common.findings import Finding, all_named, exit_code, name_lines, table


@pytest.mark.parametrize(
    ("items", "width", "lines"),
    [
        ([7, 8, 9], 20, ["7, 8, 9"]),
        (["a b c", "d e f"], 10, ["a b c,", "d e f"]),  # no break within a name
        (["aaaa", "bbbb", "cccc", "dddd"], 12, ["aaaa, bbbb,", "cccc, dddd"]),
        (["aaaa", "bbbb", "cccc", "dddd", "eeee"], 12, ["aaaa, bbbb", "and 3 more"]),
        (["a" * 15 + "z" * 15, "b"], 12, ["aaaa...zzzz,", "b"]),
        (["a" * 15 + "z" * 15, "b" * 10, "c"], 12, ["aaaa...zzzz", "and 2 more"]),
        (["a" * 30 + " = " + "b" * 30], 26, ["aaaa...aaaa = bbbb...bbbb"]),  # what joins two names stays
        ([], 9, []),
    ],
)
def test_names_are_complete_on_at_most_two_lines(items, width, lines):
    assert name_lines(items, width) == lines


@pytest.mark.parametrize("width", [30, 60, 100])
def test_errors_come_first_and_every_word_is_shown_in_any_width(width):
    findings = [
        Finding("ok", 3, "crowd boxes", "ignored", (1, 2, 3)),
        Finding("warning", 1, "boxes outside", "correct or delete", ("a",)),
        Finding("error", 1200, "images missing", "add the files", ("b",)),
    ]
    lines = table(findings, width)
    assert max(map(len, lines)) <= width
    expected = "error 1,200 images missing add the files b warning 1 boxes outside correct or delete a "
    assert " ".join(lines).replace(":", "").split() == f"{expected} ok 3 crowd boxes ignored".split()
    assert exit_code(findings) == 2
    assert [all_named(found, width) for found in findings] == [False, True, True]


def test_of_many_findings_the_most_severe_are_shown():
    warnings = [Finding("warning", 1, f"kind {number}", "") for number in range(14)]
    lines = table([*warnings, Finding("error", 1, "images missing", "")], 80)
    assert len(lines) == 12
    assert "images missing" in lines[0]
    assert [line.split()[-1] for line in lines[1:11]] == [str(number) for number in range(10)]
    assert "4 more" in lines[11]
