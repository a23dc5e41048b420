"""How values and names from outside appear in messages: in one line, of moderate length, printable."""

import itertools
import reprlib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def is_text(value: str) -> bool:
    """Whether it can be printed and written: neither control characters nor halves of surrogate pairs."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def printable(text: str) -> str:
    """`text` with a question mark for whatever would disturb the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(error: Exception, limit: int = 240) -> str:
    """The message of another library's exception on one line of at most `limit` characters."""
    return truncate(" ".join(str(error).split()), limit)


def truncate(text: str, limit: int) -> str:
    """`text`, cut off with "..." where it is longer than `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def truncate_middle(text: str, limit: int) -> str:
    """`text` with "..." in its middle where it is longer than `limit` characters: both ends tell names apart."""
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def short_repr(value: Any, limit: int = 80) -> str:
    """`repr` in one line, cut off, at little cost for values of any size and depth."""
    return truncate(" ".join(_REPR.repr(value).split()), limit)


def format_value(value: Any, limit: int = 80) -> str:
    """A name or value within a sentence: text as it is, unless it is long or cannot be printed."""
    text = str(value) if isinstance(value, (str, Path)) else short_repr(value)
    return text if 0 < len(text) <= limit and text.isprintable() else short_repr(text)


def describe(value: Any) -> str:
    """A value with its type, as an error shows it."""
    return "nothing" if value is None else f"{short_repr(value)} ({type(value).__name__})"


def list_some(items: Sequence[Any], limit: int = 3) -> str:
    """The first `limit` items, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(map(format_value, items[:limit])) + more


def format_differences(differences: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """``optim.lr: 0.01 -> 0.02`` for each of such differences: key -> (old, new)."""
    return [f"{key}: {format_value(old)} -> {format_value(new)}" for key, (old, new) in differences.items()]


class _Repr(reprlib.Repr):
    def repr_dict(self, x: dict, level: int) -> str:
        """In the order of its keys, the first of which tell most."""
        if level <= 0:
            return "{...}"
        first = itertools.islice(x.items(), self.maxdict)
        entries = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in first]
        return "{" + ", ".join(entries + ["..."] * (len(x) > self.maxdict)) + "}"

    def repr_int(self, x: int, level: int) -> str:
        """Beyond 4300 digits Python's own `repr` is an error."""
        return repr(x) if abs(x) < 10**40 else "a number of more than 40 digits"


_REPR = _Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 4, 80, 80
