"""Findings of a data check, one line each: level, count, what was found, what to do, and the first few names."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gfl.common.text import list_some, printable, truncate_parts

LEVELS = ("ok", "warning", "error")  # the position is the exit code
INDENT = " " * 6  # of the names below a finding
MAX_NAME_LINES = 2
MAX_FINDINGS = 12  # of a table; the most severe ones


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    level: str  # one of LEVELS; "ok" is for information only
    count: int
    what: str  # follows the count: "boxes outside their image"
    advice: str  # what to do, or how training handles it
    items: tuple[str | int, ...] = ()  # names or ids of all entries concerned
    reasons: tuple[str, ...] = ()  # one per item, where they differ
    command: str = ""  # that corrects it

    def note(self) -> str:
        """The finding as a sentence."""
        names = f": {list_some(self.items)}" if self.items else ""
        return f"{self.count} {self.what}{names}; {self.advice}"


def finding_if_any(
    level: str, what: str, advice: str, items: Sequence[str | int], reasons: Sequence[str] = (), command: str = ""
) -> list[Finding]:
    """A list with one finding about `items`; an empty list if there are none."""
    return [Finding(level, len(items), what, advice, tuple(items), tuple(reasons), command)] if items else []


def exit_code(findings: Iterable[Finding]) -> int:
    """0 without warnings, 1 with warnings, 2 with errors, which make training refuse the data or stop."""
    return max((LEVELS.index(found.level) for found in findings), default=0)


def table(findings: Sequence[Finding], width: int) -> list[str]:
    """Lines of at most `width` characters, errors first; the names are listed below warnings and errors.

    Of many findings the most severe are shown, and the number of the others.
    """
    if not findings:
        return []
    count_width = max(len(f"{found.count:,}") for found in findings)
    lines = []
    ranked = sorted(findings, key=lambda found: -LEVELS.index(found.level))
    shown = ranked if len(ranked) <= MAX_FINDINGS else ranked[: MAX_FINDINGS - 1]
    for found in shown:
        start = f"  {found.level:<7} {found.count:>{count_width},}  "
        sentence = start + found.what + (f": {found.advice}" if found.advice else "")
        wrapped = textwrap.wrap(sentence, width, subsequent_indent=" " * len(start), break_on_hyphens=False)
        names = name_lines(found.items, width - len(INDENT)) if found.level != "ok" else []
        lines += [printable(line) for line in wrapped] + [INDENT + line for line in names]
    if len(shown) < len(ranked):
        lines.append(f"  and {len(ranked) - len(shown)} more kinds of findings, in the json (--json FILE)")
    return lines


def all_named(found: Finding, width: int) -> bool:
    """Whether `table` shows every name of the finding."""
    return not found.items or (found.level != "ok" and _num_omitted(found.items, width - len(INDENT)) == 0)


def name_lines(items: Sequence[str | int], width: int) -> list[str]:
    """As many items as fit on `MAX_NAME_LINES` lines of `width` characters, and the number of the others.

    Only an item longer than a line is shortened, in its middle.
    """
    return _pack_lines(items, len(items) - _num_omitted(items, width), width)


def _num_omitted(items: Sequence[str | int], width: int) -> int:
    for count in range(min(len(items), MAX_NAME_LINES * width), 1, -1):
        if len(_pack_lines(items, count, width)) <= MAX_NAME_LINES:
            return len(items) - count
    return max(len(items) - 1, 0)


def _pack_lines(items: Sequence[str | int], count: int, width: int) -> list[str]:
    """The first `count` items on lines that break between items only."""
    rest = len(items) - count
    pieces = [truncate_parts(printable(str(item)), width - 1) for item in items[:count]]
    pieces = [piece + "," for piece in pieces[:-1]] + pieces[-1:] + ([f"and {rest} more"] if rest else [])
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + 1 + len(piece) <= width:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return lines
