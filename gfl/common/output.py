"""Output that cannot fail: what cannot be written is dropped, and the program goes on."""

import io
import os
import sys
from typing import TextIO


def protect_output() -> None:
    """Let no output end or change this program: call it first, before anything is printed or another file is opened.

    A closed pipe (``| head``, ``| tee`` after Ctrl-C), a full disk, a closed terminal and closed streams (``2>&-``)
    drop what is written to them, and characters that the encoding lacks are escaped.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # It gets the lowest free number, which is `fd`. Otherwise the next file that is opened would get it, and
            # libraries that print would write into that file.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _lossy(1, sys.stdout), _lossy(2, sys.stderr)


def _lossy(fd: int, stream: TextIO | None) -> TextIO:
    """A text stream like `stream` that writes to `fd` and drops what cannot be written."""
    if stream is None:  # it was closed when the program started
        return open(os.devnull, "w", encoding="utf-8", errors="backslashreplace")
    if not isinstance(stream, io.TextIOWrapper):  # of the caller's own, in memory for example
        return stream
    raw = _LossyFile(fd, "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _LossyFile(io.FileIO):
    def write(self, data) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written  # None: it would have to wait for a reader
