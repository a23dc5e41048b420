"""Errors of the user, which commands report in one line instead of a traceback."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator

from gfl.common.text import printable

ERROR_FILE = "GFL_ERROR_FILE"  # environment variable: path of a file that is written with the first `UserError`


class Interrupted(Exception):
    """Raised after a command has stopped cleanly because of a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        return f"interrupted by {signal.Signals(self.signum).name}"


class UserError(Exception):
    """Bad input from the user; the message names the file, id or key and says what to do.

    Args:
        code: a stable word for the kind of error, where code or tests distinguish it from others.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def error_context(subject: object) -> Iterator[None]:
    """Put `subject` before the message of a `UserError` raised within; its code stays."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{subject}: {error}", code=error.code) from None


def run(main: Callable, *args) -> None:
    """Call ``main(*args)``; a `UserError` becomes one line on stderr and exit code 2, a signal 128 + its number."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # of `gfl.common.progress.announce`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    gc.freeze()  # what is imported stays: no search for garbage looks at it again, at the end neither
    gc.enable()
    try:
        return main(*args)
    except UserError as error:
        line, code = f"error: {printable(str(error))}", 2
        if path := os.environ.get(ERROR_FILE):
            # Only the first: other processes then fail since this one is gone.
            with contextlib.suppress(OSError), open(path, "x", encoding="utf-8", errors="replace") as file:
                file.write(f"{error}\n")
    except Interrupted as error:
        line, code = str(error), 128 + error.signum
    except KeyboardInterrupt:
        line, code = "interrupted", 130
    # Only here, after the except clauses, can the failed call's objects be freed, and with them its loader processes.
    gc.collect()
    print(line, file=sys.stderr, flush=True)
    if "RANK" in os.environ:  # one of many: destroying a broken process group could wait for processes that have ended
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
