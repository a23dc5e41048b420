"""One training per run folder, and every process of another hears of it."""

import signal

import pytest
from locked_folder import locked_by_another_process

from gfl.common import distributed
from gfl.common.errors import Interrupted, UserError
from gfl.training.run_lock import LOCK_FILE, run_lock
from gfl.training.signals import StopRequest


@pytest.fixture
def stop():
    return StopRequest([])


def enter(run_dir, stop, *, resume):
    with run_lock(run_dir, stop, resume=resume):
        assert (run_dir / LOCK_FILE).exists()


def test_a_new_run_does_not_wait_for_a_folder_in_use(tmp_path, stop, refusal, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits"))
    with locked_by_another_process(tmp_path, LOCK_FILE):
        assert refusal(enter, tmp_path, stop, resume=False).code == "locked"
    enter(tmp_path, stop, resume=False)


def test_a_signal_ends_the_wait_of_a_resumed_run(tmp_path, stop):
    stop.signum = signal.SIGUSR1
    with locked_by_another_process(tmp_path, LOCK_FILE), pytest.raises(Interrupted) as error:
        enter(tmp_path, stop, resume=True)
    assert error.value.signum == signal.SIGUSR1


def test_other_processes_raise_what_the_main_one_met(tmp_path, stop, refusal, monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "share_from_main", lambda value: UserError("in use", code="locked"))
    assert refusal(enter, tmp_path, stop, resume=True).code == "locked"
    assert not (tmp_path / LOCK_FILE).exists()
