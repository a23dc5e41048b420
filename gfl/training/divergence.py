"""Divergence: whether the loss of a run has risen for good, and the way back to a checkpoint from before that."""

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
REWIND_FACTOR = 0.5  # on the learning rate after going back


class Diverged(UserError):
    """A divergence after which the run goes back to `checkpoint` by itself."""

    def __init__(self, message: str, checkpoint: Path) -> None:
        super().__init__(message, code="not_finite")
        self.checkpoint = checkpoint


def add_loss(running: RunningLoss, loss: float) -> RunningLoss:
    """The running loss after one more step: the mean of the first `WINDOW` steps, an exponential one after them."""
    steps = running.steps + 1
    mean = running.mean + (loss - running.mean) / min(steps, WINDOW)
    return RunningLoss(steps, mean, min(mean, running.lowest) if steps > WINDOW else mean)


def has_risen(running: RunningLoss) -> bool:
    """Whether the running loss is so far above its lowest that the run diverges: by more than `MAX_RISE`.

    A run that learns stays within a few percent of its lowest. A loss with a Gaussian's likelihood may be near 0 or
    negative, so that the rise must be that part of 1 at least: losses of an untrained detector are of that order.
    """
    return running.mean - running.lowest > MAX_RISE * max(abs(running.lowest), 1.0)


def newest_sane_checkpoint(run_dir: Path, now: RunningLoss) -> Path | None:
    """The newest checkpoint of a run whose loss had not risen; None if there is none.

    A mean tells late. So last.pt is not trusted either where the loss has risen `now`, and train.py keeps previous.pt
    then; best.pt has its AP as a proof. Checkpoints of the first `WINDOW` steps do not count: nothing tells yet
    whether their loss is high, and a new run soon gets there.
    """
    steps = {}
    for name in (PREVIOUS, BEST) if has_risen(now) else (LAST, PREVIOUS, BEST):
        path = run_dir / name
        with suppress(UserError):
            progress, running = read_history(read_checkpoint(path), path)
            if running.steps >= WINDOW and not has_risen(running):
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
