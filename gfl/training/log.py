"""The log of a run: a progress bar or plain lines, metrics.jsonl, TensorBoard; by the main process only."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from gfl.checkpoint import Progress
from gfl.common.distributed import mean_over_processes
from gfl.common.errors import UserError
from gfl.common.files import append, writing
from gfl.common.progress import print_line, progress_bar
from gfl.config import Config
from gfl.training.metrics_file import METRICS_FILE, drop_after


class RunLog:
    """The record of one training run; records of an earlier attempt beyond `progress` are dropped.

    Args:
        enabled: False on all processes but the main one; they take part in the averages only.

    Raises `UserError` if the run folder cannot be written.
    """

    def __init__(
        self, run_dir: Path, config: Config, progress: Progress, steps_per_epoch: int, *, enabled: bool
    ) -> None:
        self.epochs, self.total_steps = config.optim.epochs, config.optim.epochs * steps_per_epoch
        self.images_per_step, self.interval = config.optim.batch, config.log.interval
        self.enabled, self.bar = enabled, None
        first_step = progress.epoch * steps_per_epoch + progress.step
        self.step, self.epoch = first_step, progress.epoch + 1
        self._sums: list[Tensor] = []
        self._warned = False
        self._since = self._last_step = time.perf_counter()
        if not enabled:
            return
        from gfl.training.event_file import EventFile  # slow to import, and only the main process needs it

        self.path = run_dir / METRICS_FILE
        with writing(run_dir):
            damaged = drop_after(self.path, first_step, evaluated=progress.step < steps_per_epoch)
        if damaged:
            print_line(f"warning  {damaged} damaged line(s) dropped from {self.path}")
        self.events = EventFile(run_dir / "tensorboard", purge_step=first_step + 1)
        if sys.stderr.isatty():
            # The losses stand in the lines above it, so that 80 columns have room for a bar.
            layout = "{desc} |{bar}| {percentage:3.0f}% {n_fmt}/{total_fmt} <{remaining}{postfix}"
            self.bar = progress_bar(
                total=self.total_steps,
                initial=first_step,
                desc=f"epoch {min(self.epoch, self.epochs)}/{self.epochs}",
                bar_format=layout,
                dynamic_ncols=True,
            )

    def train_step(self, step: int, epoch: int, losses: dict[str, Tensor], rate: float, *, last: bool = False) -> None:
        """Record that `step` steps are done; means are logged every `log.interval` steps and after the `last`."""
        if self.bar and epoch != self.epoch:
            self.bar.set_description_str(f"epoch {epoch}/{self.epochs}", refresh=False)
        self.step, self.epoch = step, epoch
        self._sums.append(torch.stack([loss.float() for loss in losses.values()]))
        if self.bar:
            self.bar.update()
        self._last_step = time.perf_counter()
        if step % self.interval and not last:
            return
        means = mean_over_processes(torch.stack(self._sums).mean(dim=0)).tolist()
        means = dict(zip(losses, means, strict=True))
        images_per_s = len(self._sums) * self.images_per_step / max(time.perf_counter() - self._since, 1e-9)
        self._sums.clear()
        if self.enabled:
            self._report(means, rate, images_per_s)
        self._since = time.perf_counter()

    def _report(self, losses: dict[str, float], rate: float, images_per_s: float) -> None:
        scalars = {f"loss/{name}": value for name, value in losses.items()}
        self._record(scalars | {"lr": rate, "images_per_s": images_per_s})
        terms = {name: f"{value:.3f}" if value >= 0.01 else f"{value:.1e}" for name, value in losses.items()}
        parts = [*(f"{name} {value}" for name, value in terms.items()), f"lr {rate:.1e}"]
        if self.bar:
            self.bar.set_postfix_str(f"{images_per_s:.1f} images/s")
            self._print_parts([f"epoch {self.epoch:>3}", f"step {self.step:>6}", *parts])
            return
        text = "  ".join(parts)
        minutes, seconds = divmod(round((self.total_steps - self.step) * self.images_per_step / images_per_s), 60)
        self._print(
            f"epoch {self.epoch:>3}  step {self.step:>6}/{self.total_steps}  {text}  {images_per_s:6.1f} images/s  "
            f"ETA {minutes // 60}:{minutes % 60:02}:{seconds:02}"
        )

    def evaluation(self, metrics: dict[str, Any], samples: list[np.ndarray]) -> None:
        """Record COCO metrics and images with detections, uint8 (H, W, 3), at the step and epoch of the last call."""
        overall = {f"val/{name}": value for name, value in metrics.items() if isinstance(value, float)}
        per_class = {f"val_class/{name}": each["AP"] for name, each in metrics["per_class"].items()}
        defined = {name: value for name, value in per_class.items() if value is not None}
        images = {f"val/{number}": sample for number, sample in enumerate(samples)}
        self._record(overall | defined, images)
        values = {name: value for name, value in metrics.items() if name != "per_class"}
        text = [f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in values.items()]
        head = f"epoch {self.epoch:>3}  val"
        if self._width:
            recall = [part for part in text if part.startswith("AR")]
            self._print_parts([head, *(part for part in text if part not in recall)])
            head, text = " " * len(head), recall
        self._print_parts([head, *text])
        self._since += time.perf_counter() - self._last_step  # the speed is of training only

    def close(self) -> None:
        """Remove the progress bar; may be called twice."""
        if self.bar:
            self.bar.close()
            self.bar = None

    def _print_parts(self, parts: list[str]) -> None:
        """Print parts side by side, on a terminal within its width."""
        for line in fit_parts(parts, self._width) if self._width else ["  ".join(parts)]:
            self._print(line)

    @property
    def _width(self) -> int:
        """Columns of the terminal that lines go to; 0 without one."""
        return shutil.get_terminal_size().columns if self.bar and sys.stdout.isatty() else 0

    def _print(self, text: str) -> None:
        tqdm.write(text) if self.bar else print(text, flush=True)

    def _record(self, values: dict[str, float], images: dict[str, np.ndarray] | None = None) -> None:
        line = json.dumps({"step": self.step, "epoch": self.epoch, **values}) + "\n"
        self._try_to_write(append, self.path, line.encode())
        self._try_to_write(self.events.add, self.step, values, images or {})

    def _try_to_write(self, write: Callable[..., None], *args: Any) -> None:
        """Call `write`; what cannot be written is said once: training is worth more than its log, and goes on."""
        try:
            write(*args)
        except UserError as error:
            if not self._warned:
                self._print(f"warning  {error}; training goes on, and its log has gaps")
            self._warned = True


def fit_parts(parts: Sequence[str], width: int) -> list[str]:
    """The parts on one line, with two spaces between them or one, else on lines indented by the first part's length."""
    for space in ("  ", " "):
        if len(line := space.join(parts)) <= width:
            return [line]
    indent, lines = " " * len(parts[0]), [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + 1 + len(part) > width and lines[-1] != indent:
            lines.append(indent)
        lines[-1] += f" {part}"
    return lines
