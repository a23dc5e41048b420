"""Numbers on command lines are within their range."""

import argparse

import pytest

from gfl.common.arguments import fraction, seeds, whole_number

WRONG = ["", "x", "nan", "inf", "1e400", "-inf", "9" * 5000, "1e3", "1_0", "0x1", " 1 2", "\u00b2", "\u0661"]


@pytest.mark.parametrize("text", [*WRONG, "-1", "11", "2.0"])
def test_a_whole_number_is_in_its_range(text):
    with pytest.raises(argparse.ArgumentTypeError):
        whole_number(0, 10)(text)


@pytest.mark.parametrize("text", ["", "x", "nan", "inf", "1e400", "9" * 5000, "-0.1", "1.1"])
def test_a_fraction_is_from_0_to_1(text):
    with pytest.raises(argparse.ArgumentTypeError):
        fraction(text)


def test_what_is_in_range_is_read():
    assert [whole_number(-5)(text) for text in ("-5", "0", "007")] == [-5, 0, 7]
    assert [fraction(text) for text in ("0", "0.25", "1")] == [0.0, 0.25, 1.0]


def test_seeds_are_counted_from_0_or_a_range():
    assert [list(seeds(text)) for text in ("1", "3", "0-1", "3-4", "7-7")] == [[0], [0, 1, 2], [0, 1], [3, 4], [7]]
    for text in ("0", "-1", "4-3", "1-", "a-b", "1-2-3", "", "99999"):
        with pytest.raises(argparse.ArgumentTypeError):
            seeds(text)
