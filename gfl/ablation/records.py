"""What the folder of a run says: its metrics, how far it is, how long it took and on what."""

import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gfl.ablation.study import Run
from gfl.checkpoint import BEST, LAST, find_checkpoint
from gfl.common.files import append, file_digest
from gfl.config import ModelConfig, OptimConfig
from gfl.model.precision import autocast_dtype, precision_name

SESSIONS_FILE = "sessions.jsonl"


class Session(NamedTuple):
    """A process of a study that trained a run, or a part of it where it was interrupted."""

    seconds: float
    threads: int  # per process of the run
    torch: str  # its version
    machine: str  # what kind of machine, and the precision there: `amp: auto` depends on it
    start: str = ""  # the first digits of the SHA-256 of its start weights, where they are a file


def add_session(run: Run, seconds: float, threads: int, start: str) -> None:
    """Note that this machine has trained `run`. Raises `UserError` if that cannot be written."""
    machine = machine_name(run.config.optim)
    session = Session(round(seconds, 3), threads, torch.__version__, machine, start)
    append(run.folder / SESSIONS_FILE, json.dumps(session._asdict()).encode() + b"\n")


def machine_name(config: OptimConfig) -> str:
    """This machine's processor, its instruction set or GPU, and the precision in which it trains."""
    cuda = torch.cuda.is_available()
    device = (
        torch.cuda.get_device_name() if cuda else f"{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    )
    precision = precision_name(autocast_dtype(config, torch.device("cuda" if cuda else "cpu")))
    return f"{platform.machine()}, {device}, {precision}"


def start_digest(config: ModelConfig) -> str:
    """Twelve digits of the SHA-256 of the checkpoint that training starts from; empty if that is no file here."""
    path = find_checkpoint(Path(config.backbone.weights if config.weights == "none" else config.weights), BEST, LAST)
    return file_digest(path, "sha256")[:12] if path else ""


def read_sessions(run: Run) -> list[Session]:
    """The sessions in which studies have trained `run`; none where somebody gave its command by hand."""
    records = _records(run.folder / SESSIONS_FILE)
    fields, later = set(Session._fields), Session._field_defaults.keys()
    return [Session(**record) for record in records if record.keys() | later == fields]


def read_result(run: Run) -> dict[str, float] | None:
    """The metrics of the last epoch in percent; None as long as the run is not finished."""
    found = None
    for record in _records(run.folder / "metrics.jsonl"):
        if "val/AP" in record and record.get("epoch") == run.config.optim.epochs:
            found = {name[4:]: 100 * value for name, value in record.items() if name.startswith("val/")}
    return found


def started_epoch(run: Run) -> int:
    """The epoch, from 1, of the last record of the run; 1 before there is any."""
    return max((record.get("epoch", 1) for record in _records(run.folder / "metrics.jsonl")), default=1)


def _records(path: Path) -> Iterable[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # the last line, while it is being written
            continue
        if isinstance(record, dict):
            yield record
