"""Divergence: whether the loss of a run has risen or collapsed, and the way back to a checkpoint from before that."""

import gc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gfl.checkpoint import BEST, LAST, PREVIOUS, RunningLoss, read_checkpoint, write_checkpoint
from gfl.common import distributed
from gfl.common.errors import UserError
from gfl.common.progress import print_line
from gfl.training.resume import NEWEST, read_history

WINDOW = 50  # steps that the running loss averages over
MAX_RISE = 0.25  # of the running loss above its lowest, as a part of that
MAX_DROP = 0.75  # of one loss below the running loss, as a part of that
REWIND_FACTOR = 0.1  # on the learning rate after going back: a rate may be far too high and not give NaN


class Diverged(UserError):
    """A divergence after which the run goes back to `checkpoint` by itself."""

    def __init__(self, message: str, checkpoint: Path) -> None:
        super().__init__(message, code="not_finite")
        self.checkpoint = checkpoint


def add_loss(running: RunningLoss, loss: float) -> RunningLoss:
    """The running loss after one more step: the mean of the first `WINDOW` steps, an exponential one after them."""
    steps = running.steps + 1
    mean = running.mean + (loss - running.mean) / min(steps, WINDOW)
    return RunningLoss(steps, mean, min(mean, running.lowest) if steps > WINDOW else mean, running.mean - loss)


def looks_diverged(running: RunningLoss) -> bool:
    """Whether the running loss is more than `MAX_RISE` above its lowest, or the last loss `MAX_DROP` below the mean.

    A run that learns stays within a few percent of its lowest. A network that collapses has a loss near 0 at once: its
    scores, which weight the box losses, are all 0. A loss with a Gaussian's likelihood may be near 0 or negative, so
    that both must be that part of 1 at least: losses of an untrained detector are of that order.
    """
    rise = running.mean - running.lowest
    return rise > MAX_RISE * max(abs(running.lowest), 1.0) or running.drop > MAX_DROP * max(abs(running.mean), 1.0)


def newest_sane_checkpoint(run_dir: Path, now: RunningLoss) -> Path | None:
    """The newest checkpoint of a run whose loss did not look diverged; None if there is none.

    A mean tells late. So last.pt is not trusted either where the loss looks diverged `now`, and train.py keeps
    previous.pt then; best.pt has its AP as a proof. Checkpoints of the first `WINDOW` steps do not count: nothing tells
    yet whether their loss is high, and a new run soon gets there.
    """
    steps = {}
    for name in (PREVIOUS, BEST) if looks_diverged(now) else (LAST, PREVIOUS, BEST):
        path = run_dir / name
        with suppress(UserError):
            progress, running = read_history(read_checkpoint(path), path)
            if running.steps >= WINDOW and not looks_diverged(running):
                steps[path] = (progress.epoch, progress.step)
    return max(steps, key=steps.get, default=None)


def train_with_rewind(train: Callable[[str], None], resume: str) -> None:
    """Call ``train(resume)``; where it raises `Diverged`, resume from that checkpoint at `REWIND_FACTOR` of the rate.

    The same steps at the same rate would diverge again. The factor is in the new last.pt, so that a run that is
    interrupted after this continues in the same way, and does not go back twice.
    """
    try:
        return train(resume)
    except Diverged as error:
        checkpoint = error.checkpoint
        if distributed.is_main():
            print_line(f"rewind   {error}")
    gc.collect()  # frees the model and the loader processes of the failed call; before here its frames are alive
    if distributed.is_main():
        content = read_checkpoint(checkpoint)
        content["progress"]["lr_factor"] = REWIND_FACTOR
        write_checkpoint(checkpoint.with_name(LAST), content)
    train(NEWEST)
