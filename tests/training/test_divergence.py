"""Diverging runs: which checkpoint is from before the loss rose, and going back to it."""

import pytest
import torch
from tiny_run import CONFIG, save

from gfl.checkpoint import BEST, LAST, PREVIOUS, Progress, RunningLoss, detector_content, write_torch_file
from gfl.training.divergence import WINDOW, add_loss, looks_diverged, newest_sane_checkpoint


def running(losses):
    loss = RunningLoss()
    for value in losses:
        loss = add_loss(loss, value)
    return loss


def test_the_running_loss_is_a_mean_and_then_follows_the_losses():
    assert running([1.0, 2.0, 6.0]) == RunningLoss(3, 3.0, 3.0, 1.5 - 6.0)
    loss = add_loss(running([2.0] * WINDOW), 2.0 + WINDOW)
    assert (loss.mean, loss.lowest) == (pytest.approx(3.0), 2.0)
    assert running([4.0] * WINDOW + [1.0] * 20 * WINDOW).lowest == pytest.approx(1.0)


NOISE = torch.randn(2000, generator=torch.Generator().manual_seed(0)).tolist()
LEARNING = [0.5 + 2 / (1 + step / 100) + 0.4 * noise for step, noise in enumerate(NOISE)]
CASES = {
    "learning": (LEARNING, False),
    "near zero": ([loss - 0.6 for loss in LEARNING], False),
    "negative": ([loss - 3 for loss in LEARNING], False),
    "tiny": ([0.001 * loss for loss in LEARNING], False),
    "learning, then slowly rising": (LEARNING + [0.6 * 1.005**step for step in range(400)], True),
    "negative, then rising": ([loss - 3 for loss in LEARNING] + [2.0] * WINDOW, True),
    "learning, then one huge step": ([*LEARNING, 1e4], True),
    "learning, then as bad as at the start": (LEARNING + [2.5] * WINDOW, True),
    "one bad batch": ([*LEARNING, 8.0], False),
    "one easy batch": ([*LEARNING[:200], 1.0], False),
    "learning, then collapsed": ([*LEARNING[:200], 0.05], True),
}


@pytest.mark.parametrize(("losses", "diverged"), CASES.values(), ids=CASES)
def test_a_loss_looks_diverged_far_above_its_lowest_or_suddenly_far_below(losses, diverged):
    assert looks_diverged(running(losses)) is diverged


SANE, RISEN, EARLY = RunningLoss(60, 1.0, 0.9), RunningLoss(60, 9.0, 0.9), RunningLoss(WINDOW - 1, 1.0, 1.0)


def test_the_newest_checkpoint_whose_loss_looks_sane_is_found(tmp_path):
    def found(now=SANE, **losses):
        for steps, (name, loss) in enumerate(losses.items(), start=1):
            save(tmp_path / f"{name}.pt", 1, Progress(0, steps, steps_per_epoch=5), running_loss=loss)
        return newest_sane_checkpoint(tmp_path, now)

    assert found() is None
    assert found(best=SANE, previous=SANE, last=SANE) == tmp_path / LAST
    assert found(best=SANE, previous=SANE, last=RISEN) == tmp_path / PREVIOUS
    assert found(previous=SANE, best=SANE, last=RISEN) == tmp_path / BEST
    assert found(best=SANE, previous=SANE, last=SANE, now=RISEN) == tmp_path / PREVIOUS
    assert found(best=EARLY, previous=RISEN, last=EARLY) is None
    assert found(best=SANE, previous=SANE, last=SANE) == tmp_path / LAST
    (tmp_path / LAST).write_bytes(b"damaged")
    (tmp_path / f"{PREVIOUS}.json").unlink()
    write_torch_file(tmp_path / PREVIOUS, detector_content({}, CONFIG, ["disc"]))  # weights only
    assert found() == tmp_path / BEST
