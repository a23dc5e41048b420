"""Progress bars, on a terminal only, lines within its width, and a first line before the slow imports."""

import gc
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

from gfl.common.text import printable

tqdm.monitor_interval = 0  # its thread would run while loader processes are forked


def announce(text: str) -> None:
    """Print at once, on the main process only, and before it joins the others: imports may take minutes.

    Called before torch is imported, it also sets what must be set by then.
    """
    # Threads of OpenMP wait for each other only for a moment before they sleep. By default they keep their cores busy
    # for long, which takes them from the thread that is waited for as soon as another program runs.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # The rest holds until `gfl.common.errors.run`. Ctrl-C ends the program without the traceback of an import, and
    # nothing searches for the garbage of imports, which leave hardly any.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()
    if os.environ.get("RANK", "0") == "0":
        print_line(text)


def print_line(text: str, *, file: TextIO | None = None) -> None:
    """Print one line at once, whatever the names in it contain; it is not broken, so that commands can be copied.

    Args:
        file: stdout by default.
    """
    print(printable(text), flush=True, file=file)


def print_lines(lines: Iterable[str], *, indent: int = 0) -> None:
    """Print lines, which a terminal gets broken between words; further parts are indented by `indent` columns."""
    options = {"subsequent_indent": " " * indent, "break_long_words": False, "break_on_hyphens": False}
    for line in map(printable, lines):
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        fits = not width or len(line) <= width
        print(line if fits else "\n".join(textwrap.wrap(line, width, **options)))
    sys.stdout.flush()


def progress_bar(items: Iterable | None = None, *, enabled: bool = True, **options: Any) -> tqdm:
    """tqdm's bar around `items`, or one to update by hand; invisible where stderr is no terminal.

    Args:
        enabled: False on processes that print nothing.
        options: of `tqdm.tqdm`, such as ``total``, ``unit`` and ``desc``.
    """
    return tqdm(items, disable=None if enabled else True, **options)  # None: tqdm asks whether it is a terminal


class ByteBar:
    """A progress bar in bytes, on a terminal only; `show` takes the bytes done and their total, if it is known."""

    def __init__(self, text: str) -> None:
        self.bar = progress_bar(desc=text, unit="B", unit_scale=True)

    def __enter__(self) -> "ByteBar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, done: int, total: int | None) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)
