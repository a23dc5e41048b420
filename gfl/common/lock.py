"""Locks of folders: held by one process at a time, and released by the system when it ends, however it ends."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from gfl.common.errors import UserError
from gfl.common.files import remove_leftovers, writing
from gfl.common.progress import print_line

POLL_S = 0.5
HELD = (errno.EAGAIN, errno.EACCES)
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without -o flock, NFS without its lock service


@contextlib.contextmanager
def lock_folder(
    folder: Path, name: str, *, wait_s: float = 0.0, on_poll: Callable[[], object] = lambda: None
) -> Iterator[Callable[[], None]]:
    """Hold the lock `name` of a folder, which is created, and remove what killed processes left in it.

    Yields a function that takes the lock again where somebody has deleted its file, and raises `UserError` where
    another process was faster: call it before anything is overwritten.

    The locks are POSIX's: network file systems pass these on between machines, and loader processes, which may live a
    little longer than the process that forked them, do not inherit them. The file explains itself to people; only the
    lock on it counts, so that the file of a killed process blocks nothing.

    Args:
        wait_s: how long to wait, in seconds, for a process that has it.
        on_poll: called again and again while waiting; may raise.

    Raises `UserError` that names the process that has it, or if the folder cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose a folder", code="folder_is_file")
    path, created = folder / name, not folder.exists()
    file = _wait_for(path, wait_s, on_poll)

    def keep() -> None:
        nonlocal file
        if _is_at(path, file):
            return
        if not (again := _try_lock(path)):
            raise UserError(
                f"{path} was deleted, and {_owner(path)} uses {folder} now: nothing more is written there",
                code="lock_lost",
            )
        file.close()
        file = again

    try:
        remove_leftovers(folder)
        yield keep
    finally:
        with contextlib.suppress(OSError):
            if _is_at(path, file):  # the folder may have been moved away, and another made in its place
                path.unlink()  # before the lock goes: afterwards it may be another process's
        file.close()
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if nothing was written into it


def _wait_for(path: Path, wait_s: float, on_poll: Callable[[], object]) -> IO[str]:
    deadline, waiting = time.monotonic() + wait_s, False
    while True:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if file := _try_lock(path):
            return file
        owner = _owner(path)
        if time.monotonic() >= deadline:
            raise UserError(
                f"{path.parent} is in use by {owner}: wait until it ends, stop it, or choose another folder",
                code="locked",
            )
        if not waiting:
            print_line(f"wait     up to {wait_s:.0f} s for {owner}, which still uses {path.parent}, to end")
        waiting = True
        on_poll()
        time.sleep(POLL_S)


def _try_lock(path: Path) -> IO[str] | None:
    """The locked file, or None while another process has it."""
    while True:
        with writing(path):
            file = _open(path)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, file):
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}")
                    file.flush()
                    return file
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    print_line(f"note     {path.parent} has no locks ({error.strerror}): use it from one process only")
                    return file
                file.close()
                if error.errno in HELD:
                    return None
                raise
            file.close()  # its owner has removed it between our opening and locking it


def _open(path: Path) -> IO[str]:
    """The file of a lock; a link would lead the text in it to another file, and a pipe would wait for a reader."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EEXIST, "it is a pipe or a device")
    return open(fd, "a", encoding="utf-8")


def _is_at(path: Path, file: IO[str]) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip() or "another process"
    return "another process"
