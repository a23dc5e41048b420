"""Signals that ask a run to stop are recorded, and synchronized over processes."""

import os
import signal

import pytest
import torch.distributed as dist

from gfl.common.errors import Interrupted
from gfl.training.signals import SIGNALS, StopRequest


@pytest.fixture
def handlers():
    """The handlers of before come back."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def stop(handlers):
    """A request that records SIGUSR1 and SIGTERM."""
    return StopRequest([signal.SIGUSR1, signal.SIGTERM])


def test_the_first_signal_is_recorded_and_announced(stop, capfd):
    assert stop.synced_signal() == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.synced_signal() == signal.SIGUSR1
    assert capfd.readouterr().err.count("SIGUSR1") == 1
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # a second Ctrl-C ends the process


def test_a_closed_output_does_not_disturb(stop):
    before, (reading, writing) = os.dup(2), os.pipe()
    os.close(reading)
    os.dup2(writing, 2)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(writing)
    assert stop.synced_signal() == signal.SIGUSR1
    with pytest.raises(Interrupted):
        stop.raise_if_received()


@pytest.mark.parametrize("ignored", [False, True])
def test_the_end_of_the_terminal_stops_a_run_unless_nohup_started_it(ignored, handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    stop = StopRequest([signal.SIGHUP])
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.signum == (0 if ignored else signal.SIGHUP)


def test_only_the_main_process_announces(stop, capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.synced_signal() == signal.SIGUSR1
    assert capfd.readouterr().err == ""


def test_in_a_process_group_the_answer_is_that_of_the_previous_call(stop):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert stop.synced_signal() == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.synced_signal() == 0
        assert stop.synced_signal() == signal.SIGUSR1
    finally:
        dist.destroy_process_group()
