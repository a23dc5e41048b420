"""The lock of a run folder, so that two trainings never write to it at the same time."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gfl.common import distributed
from gfl.common.errors import Interrupted, UserError
from gfl.common.lock import lock_folder
from gfl.training.signals import StopRequest

LOCK_FILE = "train.lock"
WAIT_S = 60.0  # for a job that is still stopping while it is resumed: SLURM and Kubernetes give it 30 s


@contextlib.contextmanager
def run_lock(run_dir: Path, stop: StopRequest, *, resume: bool) -> Iterator[Callable[[], None]]:
    """Hold the lock of the run folder; the main process does it for all.

    Yields the function of `lock_folder`, which does nothing on the other processes.

    Args:
        resume: wait a while for a process that has it; a new run would find this process's checkpoints anyway.

    Raises on every process what the main one met: `UserError` if the folder is in use or cannot be written,
    `Interrupted` if it received a signal while it waited.
    """
    with contextlib.ExitStack() as stack:
        problem, keep = None, lambda: None
        if distributed.is_main():
            try:
                wait_s = WAIT_S if resume else 0.0
                lock = lock_folder(run_dir, LOCK_FILE, wait_s=wait_s, on_poll=stop.raise_if_received)
                keep = stack.enter_context(lock)
            except (UserError, Interrupted) as error:
                problem = error
        if problem := distributed.share_from_main(problem):
            raise problem
        yield keep
