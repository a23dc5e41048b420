"""Output that cannot fail: what cannot be written is dropped, and the program goes on."""

import contextlib
import io
import os
import select
import sys
from typing import TextIO


def protect_output() -> None:
    """Let no output end or change this program: call it first, before anything is printed or another file is opened.

    A closed pipe (``| head``, ``| tee`` after Ctrl-C), a full disk, a closed terminal and closed streams (``2>&-``)
    drop what is written to them, and characters that the encoding lacks are escaped. A reader that pauses (``| less``,
    Ctrl-S) is waited for, until `stop_waiting_for_readers` is called.
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
        """Write all of it, or drop the rest."""
        parts = (data[start : start + select.PIPE_BUF] for start in range(0, len(data), select.PIPE_BUF))
        with contextlib.suppress(OSError, ValueError):
            while (part := next(parts, None)) and self._wait():
                super().write(part)
        return len(data)

    def _wait(self) -> bool:
        """Wait until a part can be written; False if that is not worth it any more."""
        while not can_write(self.fileno(), timeout_s=0.5):
            if _Waiting.ended:
                return False
        return True


class _Waiting:
    """Whether output still waits for a reader that has paused."""

    ended = False


def stop_waiting_for_readers() -> None:
    """From now on drop what cannot be written at once, since a run that is asked to stop has little time."""
    _Waiting.ended = True


def can_write(fd: int, *, timeout_s: float = 0.0) -> bool:
    """Whether up to `select.PIPE_BUF` bytes can be written without waiting; true also where writing would fail."""
    return bool(select.select([], [fd], [], timeout_s)[1])
