"""What a user did wrong, reported in one line instead of a traceback."""

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from gfl.common.text import printable

ERROR_FILE = "GFL_ERROR_FILE"  # environment variable: a file that gets the message of a `UserError` as well


class Interrupted(Exception):
    """The program has stopped in good order because of a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class UserError(Exception):
    """Bad input from the user; the message names the file, id or key and says what to do.

    Args:
        code: a stable word for the kind of error, where code or tests tell it apart from others.
    """

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def run(main: Callable, *args) -> None:
    """Call ``main(*args)``; a `UserError` becomes one line on stderr and exit code 2, a signal 128 + its number."""
    try:
        return main(*args)
    except UserError as error:
        line, code = f"error: {printable(str(error))}", 2
        if path := os.environ.get(ERROR_FILE):
            with contextlib.suppress(OSError):
                Path(path).write_text(f"{error}\n", encoding="utf-8", errors="replace")
    except Interrupted as error:
        line, code = str(error), 128 + error.signum
    except KeyboardInterrupt:
        line, code = "interrupted", 130
    except BrokenPipeError:  # the reader of our output has seen enough, as head has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still in the buffer
        sys.exit(1)
    # Only here, after the except clauses, can the failed call's objects go, and with them its loader processes.
    gc.collect()
    print(line, file=sys.stderr, flush=True)
    if "RANK" in os.environ:  # one of many: to take a broken process group apart may wait for those that are gone
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
