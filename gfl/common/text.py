"""How values and names from user input appear: in messages on one line, in commands, and in reports."""

import codecs
import html
import itertools
import re
import reprlib
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TRUE_TEXTS = ("true", "t", "yes", "y", "on")
FALSE_TEXTS = ("", "false", "f", "no", "n", "off", "none", "null", "unspecified")


def is_text(value: str) -> bool:
    """Whether it can be printed and written: no control characters and no surrogates."""
    return not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def decode_text(data: bytes) -> str:
    """The content of a text file: UTF-8, or UTF-16 with a byte order mark; raises `UnicodeDecodeError` for any other.

    A byte order mark, which some editors write, is left out.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


def printable(text: str) -> str:
    """`text` for a terminal: a question mark for each character that controls it, or that it cannot show."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def shell_command(*words: str | Path) -> str:
    """A command line as bash reads it, printable for any name; a `Path` is never taken for an option."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str | Path) -> str:
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if text.isprintable():
        return shlex.quote(text)
    data = text.encode("utf-8", "surrogateescape")
    return "$'" + "".join(chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in data) + "'"


def markdown_text(value: Any) -> str:
    """A name within Markdown, also in a cell of a table: as it is, without HTML and markup of its own."""
    text = html.escape(printable(str(value)), quote=False)
    return re.sub(r"([\\`*\[\]|~$])", r"\\\1", text)


def markdown_code(value: Any) -> str:
    """A path or command within Markdown, as code."""
    text = printable(str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned; the cells are Markdown already."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def csv_text(value: Any) -> str:
    """A name in a cell of a CSV file, which spreadsheets must not run as a formula."""
    text = printable(str(value))
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def one_line(error: Exception) -> str:
    """The message of another library's exception on one line of at most 240 characters."""
    return truncate(" ".join(str(error).split()), 240)


def truncate(text: str, limit: int) -> str:
    """The first `limit` characters of `text`, the last three of them "..." where it is longer."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def truncate_middle(text: str, limit: int) -> str:
    """At most `limit` characters: the start and the end of `text`, which distinguish names, with "..." between."""
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def truncate_parts(text: str, limit: int) -> str:
    """As `truncate_middle`, but of ``a = b`` and ``a -> b`` each part is shortened, and what joins them stays."""
    for joint in (" = ", " -> "):
        parts = text.split(joint)
        part_limit = (limit - len(joint) * (len(parts) - 1)) // len(parts)
        if len(text) > limit and len(parts) > 1 and part_limit > 8:
            return joint.join(truncate_middle(part, part_limit) for part in parts)
    return truncate_middle(text, limit)


def short_repr(value: Any) -> str:
    """`repr` on one line of at most 80 characters, fast for values of any size and depth."""
    return truncate(" ".join(_REPR.repr(value).split()), 80)


def format_value(value: Any, limit: int = 80) -> str:
    """A name or value within a sentence: text as it is, unless it is too long or cannot be printed."""
    text = str(value) if isinstance(value, (str, Path)) else short_repr(value)
    return text if 0 < len(text) <= limit and text.isprintable() else short_repr(text)


def describe(value: Any) -> str:
    """A value with its type, as an error shows it."""
    return "nothing" if value is None else f"{short_repr(value)} ({type(value).__name__})"


def list_some(items: Sequence[Any]) -> str:
    """The first three items, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(format_value, items[:3])) + more


def parse_flag(value: Any) -> bool | None:
    """Whether a mark is set, as tools write it: 1, 1.0, "1", true, "True", "yes"; None if that is unclear."""
    text = str(value).strip().lower()
    if text in FALSE_TEXTS or text in TRUE_TEXTS:
        return text in TRUE_TEXTS
    try:
        return float(text) != 0
    except ValueError:
        return None


def format_differences(differences: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """``optim.lr: 0.01 -> 0.02`` for each difference, key -> (old, new)."""
    return [f"{key}: {format_value(old)} -> {format_value(new)}" for key, (old, new) in differences.items()]


class _Repr(reprlib.Repr):
    def repr_dict(self, x: dict, level: int) -> str:
        """In the order of its keys instead of sorted."""
        if level <= 0:
            return "{...}"
        first = itertools.islice(x.items(), self.maxdict)
        entries = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in first]
        return "{" + ", ".join(entries + ["..."] * (len(x) > self.maxdict)) + "}"

    def repr_int(self, x: int, level: int) -> str:
        """Python's own `repr` raises an error beyond 4300 digits."""
        return repr(x) if abs(x) < 10**40 else "a number of more than 40 digits"


_REPR = _Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 4, 80, 80
