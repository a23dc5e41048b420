"""How long a run is: epochs that make up enough steps, and the end of a run that no longer gets better."""

from dataclasses import replace
from typing import Any

from gfl.checkpoint import Progress
from gfl.config import Config


def fit_schedule(config: Config, steps_per_epoch: int) -> Config:
    """The config with so many epochs that they have `optim.min_steps`, where its own are fewer.

    What counts epochs, `optim.steps` and `eval.interval`, grows in proportion. A config that fits stays as it is, so
    that what this returned can be given again.
    """
    optim = config.optim
    epochs = -(-optim.min_steps // steps_per_epoch)
    if epochs <= optim.epochs:
        return config
    factor = epochs / optim.epochs
    steps = tuple(round(epoch * factor) for epoch in optim.steps)
    interval = min(max(1, round(config.eval.interval * factor)), epochs)
    return replace(
        config, optim=replace(optim, epochs=epochs, steps=steps), eval=replace(config.eval, interval=interval)
    )


def after_evaluation(progress: Progress, metrics: dict[str, Any] | None) -> Progress:
    """`progress` with the AP of an evaluation; as it is without metrics, and where the split has no box to find."""
    ap = metrics["AP"] if metrics else None
    if ap is None:
        return progress
    if ap > progress.best:
        return progress._replace(best=ap, since_best=0)
    # A run whose AP is still 0 has not begun to find anything.
    return progress._replace(since_best=progress.since_best + 1) if progress.best > 0 else progress


def stops_early(progress: Progress, config: Config) -> bool:
    """Whether `eval.patience` evaluations in a row were no better than the best before them."""
    return 0 < config.eval.patience <= progress.since_best


def is_finished(progress: Progress, config: Config) -> bool:
    """Whether nothing is left to train."""
    return progress.epoch >= config.optim.epochs or stops_early(progress, config)
