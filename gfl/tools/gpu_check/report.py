"""Checks and their outcomes: sections that run in processes of their own, and the report about all of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from gfl.common.errors import UserError

OK, FAILED, NOT_RUN = "ok", "failed", "not run"


class Check(NamedTuple):
    """One line of the report."""

    name: str
    outcome: str  # ok, failed or not run
    detail: str  # what was found; why it failed or was not run
    values: dict[str, Any] | None = None  # numbers behind it, for the json only

    def line(self) -> str:
        return f"{self.outcome:<8} {self.name}: {self.detail}"


class Options(NamedTuple):
    """What every section gets."""

    device: torch.device
    quick: bool  # sizes at which a CPU needs seconds
    folder: Path  # for what a section writes; removed afterwards


def attempt(name: str, check: Callable[[], Check]) -> Check:
    """What `check` returns; whatever it raises is a failed check, and the others go on."""
    try:
        return check()
    except UserError as error:
        return Check(name, FAILED, str(error))
    except Exception as error:  # of any kind
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        return Check(name, FAILED, f"{type(error).__name__}: {first[:300]}")


def judge(name: str, good: bool, detail: str, **values: Any) -> Check:
    """A check that is ok where `good`."""
    return Check(name, OK if good else FAILED, detail, values)


def worst(errors: Iterable[float]) -> float:
    """The largest, or NaN where any is: `max` would pass over it."""
    return float(np.max(list(errors)))


def run_section(command: Sequence[str], log: Path, limit_s: float, on_check: Callable[[Check], None]) -> list[Check]:
    """The checks of a section that `command` runs; it appends each as a line of json to `log`.

    A process of its own, so that neither a crash of the GPU nor a hang ends the others: what it finished counts.
    """
    log.write_text("")
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # else products may not repeat to the bit
    checks: list[Check] = []
    start = time.monotonic()
    with open(log.with_suffix(".err"), "w+") as errors:
        process = subprocess.Popen(command, stdout=errors, stderr=errors, env=environment, start_new_session=True)
        running, late = True, False
        try:
            while running and not late:
                running = process.poll() is None
                for line in log.read_text().rpartition("\n")[0].splitlines()[len(checks) :]:  # complete lines
                    checks.append(Check(**json.loads(line)))
                    on_check(checks[-1])
                late = running and time.monotonic() - start > limit_s
                time.sleep(0.1 if running else 0)
        finally:
            _end(process)
        errors.seek(0)
        last = ([line for line in errors.read().splitlines() if line.strip()] or ["without a message"])[-1]
    if late or process.returncode:
        reason = f"stopped after its {limit_s:.0f} s" if late else f"exit code {process.returncode}: {last[:300]}"
        checks.append(Check("the rest of the section", NOT_RUN if late else FAILED, reason))
        on_check(checks[-1])
    return checks


def _end(process: subprocess.Popen) -> None:
    """End a section with what it started: trainings end theirs when they are asked to, so that is tried first."""
    for signum, wait_s in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signum)
                process.wait(wait_s)


def write_checks(checks: Iterable[Check], log: Path) -> None:
    """Append each check to `log` as soon as it is there."""
    with open(log, "a") as file:
        for check in checks:
            file.write(json.dumps(check._asdict()) + "\n")
            file.flush()


def machine() -> dict[str, str]:
    """Hardware and versions, by name."""
    found = {
        "GPUs": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "CPU cores": str(os.cpu_count()),
        "Python": sys.version.split()[0],
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "date": time.strftime("%Y-%m-%d"),
    }
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        found["GPUs"] += f" ({memory:.0f} GiB)"
    return found


def markdown(machine: dict[str, str], sections: dict[str, list[Check]], command: str) -> str:
    """The report."""
    lines = ["# Check of a GPU", "", f"`{command}`", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine.items()]
    for section, checks in sections.items():
        lines += ["", f"## {section}", "", "| check | outcome | |", "|---|---|---|"]
        lines += [f"| {c.name} | {c.outcome} | {c.detail.replace('|', '/')} |" for c in checks]
    return "\n".join(lines) + "\n"
