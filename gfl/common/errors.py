"""What a user did wrong, told in one line."""

import gc
import os
import signal
import sys
from collections.abc import Callable


class Interrupted(Exception):
    """The program has stopped in good order because of a signal."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.signum = signum


class UserError(Exception):
    """Bad input from outside the program; the message names the file, id or key and says what to do."""


def run(main: Callable, *args) -> None:
    """Call ``main(*args)``; a `UserError` becomes one line on stderr and exit code 2, a signal 128 + its number."""
    try:
        return main(*args)
    except UserError as error:
        line, code = "error: " + "".join(c if c.isprintable() else "?" for c in str(error)), 2
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
