"""Progress bars, on a terminal only."""

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(items: Iterable | None = None, *, enabled: bool = True, **options: Any) -> tqdm:
    """tqdm's bar around `items`, or one to update by hand; invisible where stderr is no terminal.

    Args:
        enabled: False on processes that print nothing.
        options: of `tqdm.tqdm`, such as ``total``, ``unit`` and ``desc``.
    """
    return tqdm(items, disable=None if enabled else True, **options)  # None: tqdm asks whether it is a terminal
