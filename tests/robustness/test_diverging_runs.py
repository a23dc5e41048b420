"""Runs that diverge: stopping with the checkpoint to go back to, going back on request, and by themselves."""

import itertools
import json
import math

import faults
import pytest
import torch

import train
from gfl.checkpoint import LAST, PREVIOUS, read_checkpoint
from gfl.common.errors import UserError
from gfl.training import divergence

pytestmark = pytest.mark.robustness

RISE, NAN, END = 8, 11, 15  # of 15 steps: where the loss rises, and where it is NaN
SANE = RISE - 2  # the last step with a checkpoint of which the next does not tell that the loss rises
RATE = 1e-4


@pytest.fixture
def diverging(run, monkeypatch):
    """Train for 15 steps, in which the loss diverges as often as `times` says; `rates` has each step with its rate."""
    monkeypatch.setattr(divergence, "WINDOW", 3)
    original, rates = train.train_step, []

    def call(resume="", times=1, interrupted=None, **optim):
        rises, nans = itertools.repeat(1e4, times * (NAN - RISE)), itertools.repeat(math.nan, times)

        def train_step(state, parallel, criterion, batches, config, rate):
            step = torch.initial_seed()  # the seed is 0
            if step == interrupted:
                raise KeyboardInterrupt
            factor = next(nans, 1.0) if step == NAN else next(rises, 1.0) if RISE <= step < NAN else 1.0
            rates.append((step, rate))

            def scaled(*inputs):
                return {name: loss * factor for name, loss in criterion(*inputs).items()}

            return original(state, parallel, scaled, batches, config, rate)

        monkeypatch.setattr(train, "train_step", train_step)
        run(resume, epochs=5, lr=RATE, clip_norm=1.0, **optim)

    call.rates = rates
    return call


def steps(rates):
    return [step for step, _ in rates]


def records(folder):
    """Step and rate of each logged step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["lr"]) for line in lines if "lr" in line]


def position(path):
    progress = read_checkpoint(path)["progress"]
    return progress["epoch"] * 3 + progress["step"]


def test_a_diverged_run_stops_and_continues_from_before_the_rise_on_request(diverging, tmp_path, capsys):
    folder = tmp_path / "run"
    with pytest.raises(UserError) as error:
        diverging()
    assert error.value.code == "not_finite"
    assert "--resume-from previous" in str(error.value)
    # However long the loss was high, previous.pt is from before.
    assert (position(folder / LAST), position(folder / PREVIOUS)) == (NAN - 1, SANE)
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        diverging("newest", times=0, interrupted=NAN)
    (warning,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning"))
    assert "--resume-from previous" in warning
    diverging.rates.clear()
    with pytest.raises(KeyboardInterrupt):
        diverging("previous", times=0, interrupted=SANE + 1)
    assert position(folder / LAST) == SANE  # which a plain --resume takes from now on
    diverging("newest", times=0)
    assert diverging.rates == [(step, RATE) for step in range(SANE + 1, END + 1)]
    assert records(folder) == [(step, RATE) for step in range(1, END + 1)]


def test_a_run_goes_back_by_itself_once(diverging, tmp_path):
    with pytest.raises(UserError) as error:
        diverging(times=2, on_divergence="rewind")
    assert error.value.code == "not_finite"
    again = [(step, RATE / 10) for step in range(SANE + 1, NAN + 1)]
    assert diverging.rates == [(step, RATE) for step in range(1, NAN + 1)] + again


def test_a_run_that_went_back_and_was_interrupted_continues_to_the_bit(diverging, tmp_path):
    diverging(on_divergence="rewind")
    assert steps(diverging.rates) == [*range(1, NAN + 1), *range(SANE + 1, END + 1)]
    folder = (tmp_path / "run").rename(tmp_path / "expected")
    with pytest.raises(KeyboardInterrupt):
        diverging(on_divergence="rewind", interrupted=END - 1)
    diverging("newest", times=0)
    expected, found = (read_checkpoint(each / LAST) for each in (folder, tmp_path / "run"))
    assert found["progress"] == expected["progress"]
    assert found["progress"]["lr_factor"] == 0.1
    assert found["running_loss"] == expected["running_loss"]
    torch.testing.assert_close(found["model"], expected["model"], rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer"]["state"], expected["optimizer"]["state"], rtol=0, atol=0)
    assert records(tmp_path / "run") == records(folder) == [(n, RATE if n <= SANE else RATE / 10) for n in range(1, 16)]


def test_all_processes_go_back_when_one_has_a_loss_that_is_not_finite(tmp_path):
    config, run = faults.write_config(tmp_path), tmp_path / "run"
    words = [config, f"run_dir={run}", "optim.on_divergence=rewind"]
    program = {"program": "tests/robustness/train_with_nan.py", "PYTHONPATH": str(faults.ROOT)}
    training = faults.Training(*words, launcher=faults.TWO_PROCESSES, **program)
    assert training.end() == 0, training.text
    assert training.text.count("rewind   step 8 ") == 1
    assert read_checkpoint(run / LAST)["progress"]["lr_factor"] == 0.1
    assert steps(records(run)) == list(range(1, 11))


def test_a_rate_that_ruins_the_weights_for_some_steps_before_nan(tmp_path):
    """55 steps that learn, then a thousand times their rate: the loss explodes and is saved before it is NaN."""
    config, run = faults.write_config(tmp_path), tmp_path / "run"
    words = [config, f"run_dir={run}", "eval.interval=999", "optim.steps=[]", "save_interval=1"]

    def train_on(*others):
        training = faults.Training(*words, *others)
        return training.end(), training.text.strip().splitlines()[-1]

    assert train_on("optim.epochs=11")[0] == 0
    code, line = train_on("optim.epochs=20", "optim.lr=10.0", "--resume")
    assert code == 2
    assert line.endswith("--resume-from previous")
    sane, ruined = (read_checkpoint(run / name)["running_loss"] for name in (PREVIOUS, LAST))
    assert ruined["mean"] > 10 * sane["mean"]
    assert train_on("optim.epochs=14", "--resume-from", "previous")[0] == 0
    assert read_checkpoint(run / LAST)["running_loss"]["mean"] < sane["mean"]
