"""The runs of a study as processes, several at a time, each with its share of the machine."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from gfl.ablation.records import add_session, start_digest
from gfl.ablation.study import Run
from gfl.common.errors import ERROR_FILE, UserError
from gfl.common.files import writing
from gfl.common.lock import lock_folder

POLL_S = 2.0
LOCK_FILE = "study.lock"  # in a run's folder, beside the one that train.py holds itself


class Share(NamedTuple):
    """The part of the machine that each of `jobs` runs gets."""

    jobs: int = 1  # runs at a time
    nproc: int = 1  # processes per run

    @property
    def threads(self) -> int:
        """Per process; of all that PyTorch would use here, which `OMP_NUM_THREADS` may limit."""
        return max(1, torch.get_num_threads() // (self.jobs * self.nproc))

    def environment(self, place: int) -> dict[str, str]:
        """Variables of the run at `place`, from 0 to `jobs` - 1; GPUs are shared only where there are too few."""
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        if self.jobs > 1 and len(gpus) > 1:
            own = [gpus[(place * self.nproc + index) % len(gpus)] for index in range(self.nproc)]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        return variables


class Job:
    """A run that is being trained, its output in train.log of its folder.

    Raises `UserError` where another study trains it or its folder cannot be written.
    """

    def __init__(self, run: Run, command: Sequence[str], share: Share, place: int) -> None:
        self.run, self.share, self.place = run, share, place
        self._began, self._weights = time.monotonic(), start_digest(run.config.model)
        self._errors = run.folder / "error.txt"
        environment = os.environ | share.environment(place) | {ERROR_FILE: str(self._errors.absolute())}
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_folder(run.folder, LOCK_FILE))
            with writing(run.folder):
                self._errors.unlink(missing_ok=True)
                log = open(run.folder / "train.log", "a", encoding="utf-8", errors="replace")  # noqa: SIM115
            stack.enter_context(log)
            self.process = stack.enter_context(
                subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            )
            self._stack = stack.pop_all()

    def close(self) -> int:
        """Wait for the process, note its time and release the folder; returns its exit code."""
        with self._stack:
            code = self.process.wait()
            add_session(self.run, time.monotonic() - self._began, self.share.threads, self._weights)
        return code

    def finish(self) -> str | None:
        """As `close`, but returns what went wrong, or None; raises `KeyboardInterrupt` where Ctrl-C has stopped it."""
        code = self.close()
        if code == 0:
            return None
        if code in (130, -signal.SIGINT):
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):
            return self._errors.read_text(encoding="utf-8").strip()
        return f"exit code {code}, see {self.run.folder / 'train.log'}"


def train_command(run: Run, train_script: Path, nproc: int) -> list[str]:
    """The command line of a run; `--resume` also starts a new run."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={nproc}"] if nproc > 1 else []
    return [sys.executable, *launcher, os.path.relpath(train_script), *run.arguments, "--resume"]


def train_all(
    runs: Sequence[Run],
    train_script: Path,
    share: Share,
    *,
    on_poll: Callable[[list[Run]], object],
    on_end: Callable[[Run, str | None], object],
) -> None:
    """Train `runs`, which have folders of their own, as many at a time as `share` says.

    Whatever ends the study stops all of them; each saves first.

    Args:
        on_poll: called every moment with the runs that are being trained.
        on_end: called with each run that has ended, and what went wrong.
    """
    waiting, jobs, places = deque(runs), [], list(range(share.jobs))
    try:
        while waiting or jobs:
            while waiting and places:
                run = waiting.popleft()
                try:
                    jobs.append(Job(run, train_command(run, train_script, share.nproc), share, places[0]))
                    places.pop(0)
                except UserError as error:
                    if error.code != "locked":
                        raise
                    on_end(run, str(error))
            on_poll([job.run for job in jobs])
            for job in _wait(jobs):
                jobs.remove(job)
                places.append(job.place)
                on_end(job.run, job.finish())
    except BaseException:  # each saves, then stops
        for job in jobs:
            job.process.terminate()
        for job in jobs:
            job.close()
        raise


def _wait(jobs: Sequence[Job]) -> list[Job]:
    """Those that have ended after a moment."""
    if jobs:
        with contextlib.suppress(subprocess.TimeoutExpired):
            jobs[0].process.wait(POLL_S)
    return [job for job in jobs if job.process.poll() is not None]
