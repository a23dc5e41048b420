"""No output, wherever it goes, ends a program or changes its exit code."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Prints in every way, then writes a file, which must not get what was printed.
PROGRAM = """
from gfl.common.output import protect_output
protect_output()
import os, sys
with open(sys.argv[1], "w") as file:
    print("a\\u00e4\\udcff" * 50_000)
    print("error", file=sys.stderr, flush=True)
    for fd in (1, 2):
        try:
            os.write(fd, b"from a library\\n")
        except OSError:
            pass
    sys.stdout.isatty(), sys.stderr.isatty()
    file.write("result")
sys.exit(3)
"""


def shell(command, path, **options):
    """The exit code of a shell command in which $P is the program."""
    environment = os.environ | {"P": PROGRAM, "FILE": str(path), "PYTHON": sys.executable}
    command = command.replace("RUN", '"$PYTHON" -c "$P" "$FILE"')
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, **options)


@pytest.mark.parametrize(
    "command",
    [
        "RUN | true; exit ${PIPESTATUS[0]}",
        "RUN 2>&1 | true; exit ${PIPESTATUS[0]}",
        "RUN >/dev/full",
        "RUN 2>/dev/full",
        "RUN >/dev/full 2>&1",
        "RUN >&-",
        "RUN 2>&-",
        "RUN >&- 2>&- <&-",
        "RUN 1</dev/null 2</dev/null",
        "PYTHONIOENCODING=ascii RUN",
        "PYTHONUNBUFFERED=1 RUN | true; exit ${PIPESTATUS[0]}",
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 RUN",
        "env -i RUN",
    ],
)
def test_a_program_writes_its_files_and_keeps_its_exit_code(command, tmp_path):
    path = tmp_path / "file"
    done = shell(command, path)
    assert done.returncode == 3, done.stderr
    assert path.read_text() == "result"
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


STOPPED = """
from gfl.common.output import protect_output
from gfl.training.signals import StopRequest
protect_output()
import os, sys
stop = StopRequest()
print("ready", flush=True)
while not stop.signum:
    print("x" * 1000, flush=True)
print("x" * 1_000_000)
os._exit(stop.signum)
"""


def test_a_reader_that_has_paused_does_not_keep_a_run_from_stopping():
    """Nobody reads the pipe, into which the signal handler writes as well."""
    command = [sys.executable, "-c", STOPPED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout.read(6) == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)  # the pipe is full
        process.terminate()
        assert process.wait(timeout=60) == signal.SIGTERM


def test_what_can_be_written_is_written_in_its_order(tmp_path):
    done = shell("PYTHONIOENCODING=utf-8 RUN", tmp_path / "file", timeout=60)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert out.replace("from a library\n", "") == "aä\\udcff" * 50_000 + "\n"
    assert err == "error\nfrom a library\n"
