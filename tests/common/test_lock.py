"""Folders are used by one process at a time, and a lock ends with its process."""

import errno
import fcntl
import os
import signal
import socket
import threading

import pytest
from locked_folder import locked_by_another_process

from gfl.common.files import temporary
from gfl.common.lock import lock_folder

NAME = "train.lock"


def enter(folder, **options):
    with lock_folder(folder, NAME, **options):
        pass


def test_a_folder_in_use_is_refused_with_process_and_machine(tmp_path, refusal):
    with locked_by_another_process(tmp_path, NAME) as other:
        message = refusal(enter, tmp_path)
        assert message.code == "locked"
        for fragment in (str(tmp_path), str(other.pid), socket.gethostname()):
            assert fragment in message
        other.stdin.close()
        other.wait()
        enter(tmp_path)


def test_the_lock_of_a_killed_process_blocks_nothing_and_what_it_left_is_removed(tmp_path):
    with locked_by_another_process(tmp_path, NAME) as other:
        other.kill()
    assert (tmp_path / NAME).exists()
    dead = temporary(tmp_path / "last.pt").name.replace(f".{os.getpid()}-", f".{other.pid}-")
    (tmp_path / dead).touch()
    with lock_folder(tmp_path, NAME):
        assert os.listdir(tmp_path) == [NAME]
        assert str(os.getpid()) in (tmp_path / NAME).read_text()


def test_it_waits_for_a_process_that_is_still_stopping(tmp_path, capsys):
    with locked_by_another_process(tmp_path, NAME) as other:
        threading.Timer(0.2, other.stdin.close).start()
        enter(tmp_path, wait_s=60)
    assert capsys.readouterr().out.count(str(other.pid)) == 1


def test_waiting_can_be_ended(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with locked_by_another_process(tmp_path, NAME), pytest.raises(KeyboardInterrupt):
        enter(tmp_path, wait_s=60, on_poll=interrupt)


def test_child_processes_do_not_keep_the_lock(tmp_path):
    with lock_folder(tmp_path, NAME):
        child = os.fork()
        if not child:
            signal.pause()  # with all files of its parent open
        os.link(tmp_path / NAME, tmp_path / "kept")  # so that it is not the removal that frees the lock
    os.rename(tmp_path / "kept", tmp_path / NAME)
    try:
        with locked_by_another_process(tmp_path, NAME):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_that_its_owner_removes_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    calls = []

    def lock_after_the_owner_has_left(file, operation):
        if not calls:
            (tmp_path / NAME).unlink()
        calls.append(file)

    monkeypatch.setattr(fcntl, "lockf", lock_after_the_owner_has_left)
    with lock_folder(tmp_path, NAME):
        assert (tmp_path / NAME).exists()
    assert len(calls) == 2


def test_nothing_remains_of_a_folder_that_was_not_used(tmp_path):
    enter(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    enter(tmp_path / "empty")
    assert os.listdir(tmp_path / "empty") == []


def test_a_folder_that_was_moved_and_made_anew_keeps_its_other_lock(tmp_path):
    with lock_folder(tmp_path / "run", NAME):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / NAME).touch()
    assert (tmp_path / "run" / NAME).exists()


def test_a_lock_whose_file_was_deleted_is_taken_again_unless_another_process_was_faster(tmp_path, refusal):
    with lock_folder(tmp_path, NAME) as keep:
        (tmp_path / NAME).unlink()
        keep()
        assert str(os.getpid()) in (tmp_path / NAME).read_text()
        (tmp_path / NAME).unlink()
        with locked_by_another_process(tmp_path, NAME) as other:
            message = refusal(keep)
            assert message.code == "lock_lost"
            assert str(other.pid) in message


def test_a_link_or_a_pipe_in_the_place_of_a_lock_is_refused(tmp_path, refusal):
    (tmp_path / "other").write_text("precious")
    (tmp_path / NAME).symlink_to(tmp_path / "other")
    assert refusal(enter, tmp_path).code == "unwritable"
    assert (tmp_path / "other").read_text() == "precious"
    (tmp_path / NAME).unlink()
    os.mkfifo(tmp_path / NAME)
    assert refusal(enter, tmp_path).code == "unwritable"


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_noted(tmp_path, monkeypatch, capsys, error):
    def fail(file, operation):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "lockf", fail)
    enter(tmp_path)
    assert str(tmp_path) in capsys.readouterr().out


def test_a_folder_that_cannot_be_used_is_refused(tmp_path, refusal):
    (tmp_path / "file").touch()
    assert refusal(enter, tmp_path / "file").code == "folder_is_file"
    assert refusal(enter, tmp_path / "file" / "below").code == "unwritable"
