"""Names of a finding on two lines."""

import pytest

from gfl.common.findings import name_lines


@pytest.mark.parametrize(
    ("items", "width", "lines"),
    [
        ([7, 8, 9], 20, ["7, 8, 9"]),
        (["a b c", "d e f"], 10, ["a b c,", "d e f"]),  # no break within a name
        (["aaaa", "bbbb", "cccc", "dddd"], 12, ["aaaa, bbbb,", "cccc, dddd"]),
        (["aaaa", "bbbb", "cccc", "dddd", "eeee"], 12, ["aaaa, bbbb", "and 3 more"]),
        (["a" * 15 + "z" * 15, "b"], 12, ["aaaa...zzzz,", "b"]),
        (["a" * 15 + "z" * 15, "b" * 10, "c"], 12, ["aaaa...zzzz", "and 2 more"]),
        ([], 9, []),
    ],
)
def test_names_are_complete_on_at_most_two_lines(items, width, lines):
    assert name_lines(items, width) == lines
