"""Detectors timed in turn: what slows the machine for a while slows them all, and ratios stay."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError
from gfl.common.text import one_line

WORKER = Path(__file__).with_name("worker.py")
PEERS = ("fcos", "retinanet", "mmdetection")


class Worker:
    """A detector in its own process; `measure` runs it once."""

    def __init__(self, name: str, process: subprocess.Popen, log: Any) -> None:
        self.name, self.process, self.log = name, process, log

    def measure(self) -> dict[str, Any]:
        """Seconds of one run (wall, cpu), bytes at the peak so far, version of torch.

        Raises `UserError` with the last line of the process where it has ended.
        """
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            lines = self.log.read().strip().splitlines() or ["no message"]
            raise UserError(f"{self.name} stopped: {one_line(lines[-1])}")
        return json.loads(answer)


@contextmanager
def start(name: str, python: str, settings: dict[str, Any]) -> Iterator[Worker]:
    """A worker that gets ready; its process ends with the context. Raises `UserError` where `python` does not run."""
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        try:
            process = subprocess.Popen([python, str(WORKER)], text=True, **pipes)
        except OSError as error:
            raise UserError(f"cannot run {python} for {name}: {error.strerror}") from None
        try:
            process.stdin.write(json.dumps({**settings, "name": name}) + "\n")
            process.stdin.flush()
            yield Worker(name, process, log)
        finally:
            process.kill()
            process.communicate()


def peers(text: str) -> list[tuple[str, str]]:
    """``fcos,mmdetection=path/to/python`` -> names with their interpreters. Raises ValueError for an unknown name."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name in PEERS for name, _, _ in pairs):
        raise ValueError(text)
    return [(name, python or sys.executable) for name, _, python in pairs]


def compare(settings: dict[str, Any], against: Sequence[tuple[str, str]], rounds: int) -> list[str]:
    """The lines of the report: seconds of ours and each peer, and their ratio in each round (median, min, max)."""
    with ExitStack() as stack:
        contestants = [("ours", sys.executable), *against]
        workers = [stack.enter_context(start(name, python, settings)) for name, python in contestants]
        for worker in workers:  # the first run also builds, chooses algorithms and allocates; it does not count
            worker.measure()
        results = {worker.name: [] for worker in workers}
        for _ in range(rounds):
            for worker in workers:
                results[worker.name].append(worker.measure())
    return [_line(name, found, results["ours"]) for name, found in results.items()]


def _line(name: str, found: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    parts = [f"{name} (torch {found[0]['torch']}): {found[-1]['memory'] / 2**30:.2f} GiB"]
    for clock in ("wall", "cpu"):
        parts.append(f"{clock} {statistics.median(run[clock] for run in found):.3f} s")
        if found is not ours:
            ratios = [mine[clock] / peer[clock] for mine, peer in zip(ours, found, strict=True)]
            parts.append(f"ours/{name} {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return ", ".join(parts)
