"""What a check of the data found: one line each, with a level, a count, the first few names and what to do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEVELS = ("ok", "warning", "error")  # by rising exit code


@dataclass(frozen=True)
class Finding:
    """One line of a report."""

    level: str  # one of LEVELS; "ok" is worth knowing, and nothing needs to be done
    count: int
    what: str  # goes on from the count: "boxes outside their image"
    advice: str  # what to do, or what training makes of it
    items: tuple[str | int, ...] = ()  # all names or ids
    reasons: tuple[str, ...] = ()  # one per item, where they differ

    def note(self) -> str:
        """The finding as a sentence."""
        names = f": {first_of(self.items)}" if self.items else ""
        return f"{self.count} {self.what}{names}; {self.advice}"


def finding(
    level: str, what: str, advice: str, items: Sequence[str | int], reasons: Sequence[str] = ()
) -> list[Finding]:
    """A list with one finding on these items; an empty one without items."""
    return [Finding(level, len(items), what, advice, tuple(items), tuple(reasons))] if items else []


def exit_code(findings: Iterable[Finding]) -> int:
    """0 fine, 1 warnings, 2 errors: training refuses the data or would stop on it."""
    return max((LEVELS.index(found.level) for found in findings), default=0)


def table(findings: Sequence[Finding], width: int) -> list[str]:
    """One line of about `width` characters per finding, errors first; names come last and give way."""
    if not findings:
        return []
    what_width = max(len(found.what) for found in findings)
    lines = []
    for found in sorted(findings, key=lambda found: -LEVELS.index(found.level)):
        line = f"  {found.level:<7} {found.count:>7}  {found.what:<{what_width}}  {found.advice}"
        room = width - len(line) - 3
        line += f" ({first_of(found.items, room)})" if found.items and room >= 6 else ""
        lines.append(printable(line.rstrip()))
    return lines


def first_of(items: Sequence[str | int], room: int = 60) -> str:
    """As many of the items as `room` characters hold, the first of them cut if need be, and how many more there are."""
    for count in range(min(len(items), room), 0, -1):
        end = f" +{len(items) - count}" if count < len(items) else ""
        text = ", ".join(map(str, items[:count]))
        if len(text) + len(end) <= room:
            return printable(text + end)
    return printable(text[: max(room - len(end) - 3, 0)] + "..." + end) if items else ""


def printable(text: str) -> str:
    """`text` with a question mark for whatever would disturb the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
