"""Signals that ask a run to stop are recorded, and synchronized over processes."""

import os
import signal

import pytest
import torch.distributed as dist

from gfl.training.signals import StopRequest


@pytest.fixture
def stop():
    """A request that records SIGUSR1 and SIGTERM; the handlers of before come back."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    yield StopRequest([signal.SIGUSR1, signal.SIGTERM])
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_the_first_signal_is_recorded_and_announced(stop, capfd):
    assert stop.synced_signal() == 0
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.synced_signal() == signal.SIGUSR1
    assert capfd.readouterr().err.count("SIGUSR1") == 1
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # a second Ctrl-C ends the process


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
