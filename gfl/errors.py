"""What a user did wrong, told in one line."""

import sys
from collections.abc import Callable

INTERRUPTED = 130  # the shell's exit code after Ctrl-C


class UserError(Exception):
    """Bad input from outside the program; the message names the file, id or key and says what to do."""


def run(main: Callable, *args) -> None:
    """Call ``main(*args)`` and exit: 2 with one line on stderr after a `UserError`, 130 after Ctrl-C, 0 otherwise."""
    try:
        main(*args)
    except UserError as error:
        sys.exit(_say(f"error: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(_say("interrupted", INTERRUPTED))


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr, flush=True)
    return code
