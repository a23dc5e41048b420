"""Errors of a data set collected while it is read, so that a user sees all of one kind at once."""

import contextlib
from collections.abc import Iterator, Sequence

from gfl.common.errors import UserError
from gfl.common.text import truncate_middle

MAX_KINDS = 4  # in one message
MAX_PLACES = 3  # of one kind, besides the first


class Faults:
    """The errors of files, lines and objects, by kind."""

    def __init__(self) -> None:
        self._found: dict[str, list[tuple[str, UserError]]] = {}  # kind -> places and errors

    @contextlib.contextmanager
    def collect(self, place: object, kind: str) -> Iterator[None]:
        """Keep a `UserError` raised within instead of raising it; its code, if it has one, is its kind."""
        try:
            yield
        except UserError as error:
            self._found.setdefault(error.code or kind, []).append((str(place), error))

    def raise_if_any(self) -> None:
        """Raise one `UserError` that has the first error of each kind, how many there are and where."""
        if not self._found:
            return
        kinds = list(self._found.values())
        parts = [_sentence(found) for found in kinds[:MAX_KINDS]]
        if more := sum(map(len, kinds[MAX_KINDS:])):
            parts.append(f"and {more} errors of other kinds")
        raise UserError("; also ".join(parts), code=kinds[0][0][1].code)


def _sentence(found: Sequence[tuple[str, UserError]]) -> str:
    (_, first), *others = found
    if not others:
        return str(first)
    places = ", ".join(truncate_middle(place, 80) for place, _ in others[:MAX_PLACES])
    more = f" and {len(others) - MAX_PLACES} more" if len(others) > MAX_PLACES else ""
    return f"{first} ({len(found)} like this in all, also {places}{more})"
