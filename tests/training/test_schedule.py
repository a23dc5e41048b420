"""How long runs are: epochs for enough steps, and patience, against a loop that counts."""

import numpy as np
import pytest

from gfl.checkpoint import Progress
from gfl.config import Config
from gfl.config_file import config_from_dict
from gfl.training.optim import warmup_steps
from gfl.training.schedule import after_evaluation, fit_schedule, is_finished


def config_of(**sections) -> Config:
    return config_from_dict(sections, "test")


@pytest.mark.parametrize(
    ("steps_per_epoch", "epochs", "steps", "interval"),
    [
        (1000, 12, (8, 11), 2),
        (125, 12, (8, 11), 2),
        (124, 13, (9, 12), 2),
        (22, 69, (46, 63), 12),
        (1, 1500, (1000, 1375), 250),
    ],
)
def test_small_sets_are_trained_for_enough_steps_in_the_same_proportions(steps_per_epoch, epochs, steps, interval):
    config = config_of(optim={"epochs": 12, "steps": [8, 11], "min_steps": 1500}, eval={"interval": 2})
    fitted = fit_schedule(config, steps_per_epoch)
    assert (fitted.optim.epochs, fitted.optim.steps, fitted.eval.interval) == (epochs, steps, interval)
    assert fit_schedule(fitted, steps_per_epoch) == fitted
    assert config_of() == fit_schedule(config_of(), steps_per_epoch)


@pytest.mark.parametrize(("warmup", "steps"), [(500, 500), (0, 0), (1, 1), (0.05, 13), (0.999, 264)])
def test_a_warm_up_below_1_is_a_share_of_all_steps(warmup, steps):
    assert warmup_steps(config_of(optim={"warmup_steps": warmup}).optim, 22) == steps


def obvious_end(aps: list[float | None], patience: int) -> int:
    """The number of evaluations that a run with these APs has."""
    for number in range(1, len(aps) + 1):
        seen = [ap if ap is not None else 0.0 for ap in aps[:number]]
        best = int(np.argmax(seen))
        later = [ap for ap in aps[best + 1 : number] if ap is not None]
        if seen[best] > 0 and patience and len(later) >= patience:
            return number
    return len(aps)


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_a_run_ends_when_its_best_evaluation_is_patience_evaluations_old(patience):
    rng = np.random.default_rng(patience)
    for _ in range(200):
        aps = [None if rng.random() < 0.1 else float(rng.integers(0, 5)) / 10 for _ in range(12)]
        config, progress, count = config_of(optim={"epochs": 12}, eval={"patience": patience}), Progress(), 0
        while not is_finished(progress, config):
            metrics = {"AP": aps[count]}
            progress, count = after_evaluation(progress, metrics)._replace(epoch=count + 1), count + 1
        assert count == obvious_end(aps, patience)
        assert progress.best == max((ap for ap in aps[:count] if ap is not None), default=-1.0)
