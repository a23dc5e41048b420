"""TensorBoard's event file, written at once: TensorBoard's own writer has a thread, whose errors are tracebacks."""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import image, scalar

from gfl.common.files import append, writing


class EventFile:
    """A new event file in a folder.

    Args:
        purge_step: TensorBoard hides what earlier files of the folder hold from this step on.

    Raises `UserError`, as `add` does, if it cannot be written.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        # TensorBoard reads the files of a folder in the order of their names.
        self.path = folder / f"events.out.tfevents.{time.time_ns() // 10**6}.{socket.gethostname()}.{os.getpid()}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        start = SessionLog(status=SessionLog.START)
        self._write([Event(file_version="brain.Event:2"), Event(step=purge_step, session_log=start)])

    def add(self, step: int, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Add numbers and images, uint8 (H, W, 3), by their names."""
        summaries = [scalar(name, value) for name, value in scalars.items()]
        summaries += [image(name, pixels, dataformats="HWC") for name, pixels in images.items()]
        self._write([Event(step=step, summary=summary) for summary in summaries])

    def _write(self, events: list[Event]) -> None:
        buffer = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(buffer).write(event.SerializeToString())
        append(self.path, buffer.getvalue())
