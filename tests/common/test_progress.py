"""What is set before libraries are imported, and reset when the command begins."""

import gc
import os
import signal

import pytest

from gfl.common.errors import run
from gfl.common.progress import announce


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)]
)
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(given, expected, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", given)
    monkeypatch.setattr(signal, "signal", lambda signum, handler: handlers.append((signum, handler)))
    monkeypatch.setattr(signal, "getsignal", lambda signum: signal.default_int_handler)
    handlers = []
    announce("loading")
    assert handlers == [(signal.SIGINT, signal.SIG_DFL)]
    assert given.get("GOMP_SPINCOUNT") == expected
    assert (gc.isenabled(), run(gc.isenabled)) == (False, True)
    gc.unfreeze()
