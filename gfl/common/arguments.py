"""Types for `argparse`, which refuses what is out of range in its own one line."""

import argparse
from collections.abc import Callable

MAX_COUNT = 10**9  # far beyond use, so that a typing error is refused before memory or time runs out


def whole_number(low: int = 0, high: int = MAX_COUNT) -> Callable[[str], int]:
    """A type for whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if len(text) < 20 and text.isascii() and text.removeprefix("-").isdecimal() and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from {low} to {high}")

    return read


def seeds(text: str) -> range:
    """A type for how many seeds, from 0, or for a range of them: 3 is 0, 1, 2 and 3-4 is 3, 4."""
    first, dash, last = text.partition("-")
    if not first:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is neither a number of seeds nor a range of them as 3-4")
    number = whole_number(0 if dash else 1, 9999)
    found = range(number(first), number(last) + 1) if dash else range(number(first))
    if not found:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} has no seed in it")
    return found


def fraction(text: str) -> float:
    """A type for numbers from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 0 to 1")
    return value


def not_empty(text: str) -> str:
    """A type for texts that a script may pass empty by mistake."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text
