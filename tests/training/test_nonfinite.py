"""Values that are not finite stop a run with the step, the losses and the images, and reach no checkpoint."""

import itertools

import pytest
import torch
from torch import nn

import train
from gfl.checkpoint import LAST, PREVIOUS, TrainState, read_checkpoint
from gfl.common.errors import UserError
from gfl.config import OptimConfig
from gfl.structures import Batch, Targets
from gfl.training import saving
from gfl.training.nonfinite import MAX_OVERFLOWS, FiniteGuard
from gfl.training.optim import build_optimizer
from gfl.training.step import StepResult

INFINITE = float("inf")


def batch(*image_ids):
    count = len(image_ids)
    targets = Targets(torch.zeros(count, 1, 4), torch.zeros(count, 1, dtype=torch.int64), torch.zeros(count, 1) > 0)
    sizes = torch.full((count, 2), 32)
    return Batch(torch.zeros(count, 3, 32, 32, dtype=torch.uint8), sizes, targets, torch.tensor(image_ids), sizes)


def new_guard(run_dir, fp16=False):
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimConfig(name="sgd", lr=0.1))
    return FiniteGuard(TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=fp16)), run_dir, rewind=False)


def result(norm=3.0, batches=(), **losses):
    losses = {name: torch.tensor(loss) for name, loss in (losses or {"cls": 1.0}).items()}
    return StepResult(losses, torch.tensor(norm), batches or [batch(1)])


@pytest.mark.parametrize("value", [float("nan"), -INFINITE])
@pytest.mark.parametrize("term", ["norm", "cls", "box"])
def test_step_losses_images_and_the_batch_are_reported(tmp_path, refusal, value, term):
    guard = new_guard(tmp_path)
    guard.record(6, result(cls=0.5, box=0.25))
    terms = {"norm": 3.0, "cls": 0.5, "box": 0.25} | {term: value}
    message = refusal(guard.record, 7, result(**terms, batches=[batch(41, 42), batch(43)]))
    for part in ("step 7 ", "41, 42, 43", "optim.lr", str(tmp_path / "not_finite_step7.pt")):
        assert part in message
    written = torch.load(tmp_path / "not_finite_step7.pt", weights_only=True)
    assert [each["image_ids"].tolist() for each in written["batches"]] == [[41, 42], [43]]
    assert written["batches"][0]["images"].shape == (2, 3, 32, 32)
    assert set(written["batches"][0]["targets"]) == {"boxes_xyxy", "labels", "valid", "ignored"}
    recorded = written["losses"] | {"norm": written["gradient_norm"]}
    assert str(recorded[term]) == str(value)


def test_under_fp16_a_gradient_may_overflow_but_a_loss_may_not(tmp_path, refusal):
    guard = new_guard(tmp_path, fp16=True)
    guard.record(1, result(norm=INFINITE))
    assert "step 2 " in refusal(guard.record, 2, result(cls=INFINITE))


def test_under_fp16_many_overflows_in_a_row_end_the_run(tmp_path, refusal):
    guard = new_guard(tmp_path, fp16=True)
    for step in range(1, MAX_OVERFLOWS):
        guard.record(step, result(norm=INFINITE))
    guard.record(20, result())  # a finite one starts the count again
    for step in range(1, MAX_OVERFLOWS):
        guard.record(20 + step, result(norm=INFINITE))
    assert "step 60 " in refusal(guard.record, 60, result(norm=INFINITE))


def test_a_batch_that_cannot_be_written_does_not_hide_the_error(tmp_path, refusal):
    message = refusal(new_guard(tmp_path / "nowhere").record, 5, result(norm=float("nan"), batches=[batch(8)]))
    for part in ("step 5 ", "images 8;", str(tmp_path / "nowhere")):
        assert part in message


def test_weights_that_are_not_finite_are_not_saved(tmp_path, refusal):
    guard = new_guard(tmp_path)
    guard.flush()
    with torch.no_grad():
        guard.state.model.bias[1] = INFINITE
    assert "bias" in refusal(guard.flush)


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken_third_step(monkeypatch):
    """Make the losses of the third step NaN."""
    original, calls = train.train_step, itertools.count(1)

    def train_step(state, parallel, criterion, *args):
        factor = float("nan") if next(calls) == 3 else 1.0

        def scaled(*inputs):
            return {name: loss * factor for name, loss in criterion(*inputs).items()}

        return original(state, parallel, scaled, *args)

    monkeypatch.setattr(train, "train_step", train_step)


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_checkpoint_before_it(run, tmp_path, broken_third_step):
    with pytest.raises(UserError) as error:
        run()
    assert error.value.code == "not_finite"
    assert "step 3 " in str(error.value)
    state = read_checkpoint(tmp_path / "run" / LAST)
    assert state["progress"]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_damaged_checkpoint_does_not_replace_the_one_before(run, tmp_path, broken_third_step, monkeypatch):
    with pytest.raises(UserError):
        run()
    last, previous = tmp_path / "run" / LAST, tmp_path / "run" / PREVIOUS
    last.write_bytes(b"damaged")
    good, kept = previous.read_bytes(), []
    save = saving.save_checkpoint

    def spy(*args, **kwargs):
        save(*args, **kwargs)
        kept.append(previous.read_bytes() == good)

    monkeypatch.setattr(saving, "save_checkpoint", spy)
    run("newest")  # from previous.pt
    assert kept[0]  # the damaged file was overwritten
    assert not kept[-1]  # then backups are made again
    assert read_checkpoint(previous)["format"] == read_checkpoint(last)["format"]


def test_the_random_numbers_of_a_step_depend_only_on_its_number(run, monkeypatch):
    original, drawn = train.train_step, []

    def train_step(*args):
        drawn.append(torch.rand(3))
        torch.rand(len(drawn))  # another number of draws in each step
        return original(*args)

    monkeypatch.setattr(train, "train_step", train_step)
    run()
    for step, numbers in enumerate(drawn, start=1):
        torch.manual_seed(step)  # the seed 0 and the step
        assert torch.equal(numbers, torch.rand(3))
