"""The lock of a folder, held by a process of its own: a process never locks itself out."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys
from pathlib import Path
from gfl.common.lock import lock_folder
with lock_folder(Path(sys.argv[1]), sys.argv[2]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def locked_by_another_process(folder: Path, name: str) -> Iterator[subprocess.Popen]:
    """Hold a lock; it is released when the process's stdin is closed, or the process killed."""
    command = [sys.executable, "-c", HOLD, str(folder), name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
