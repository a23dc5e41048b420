"""What is not finite: it reaches neither weights nor checkpoints, it is told, and ordinary steps do not wait."""

import argparse
import copy
import itertools
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train
from gfl.checkpoint import LAST, PREVIOUS, read_checkpoint
from gfl.config import OptimConfig, config_from_dict
from gfl.data.loader import batches
from gfl.structures import Batch, Targets
from gfl.training.nonfinite import MOST_OVERFLOWS, FiniteGuard, memory_advice
from gfl.training.optim import build_optimizer
from gfl.training.signals import StopRequest

OPTIMIZERS = pytest.mark.parametrize("name", ["sgd", "adamw"])
NOT_FINITE = pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
TINY = {
    "model": {
        "backbone": {"name": "resnet18", "weights": "none"},
        "fpn": {"channels": 64},
        "head": {"channels": 64, "num_convs": 1},
    },
    "optim": {"batch": 2, "base_batch": 2, "epochs": 1, "warmup_steps": 0},
    "log": {"images": 0},
}


def batch(*image_ids):
    count = len(image_ids)
    targets = Targets(torch.zeros(count, 1, 4), torch.zeros(count, 1, dtype=torch.int64), torch.zeros(count, 1) > 0)
    sizes = torch.full((count, 2), 32)
    return Batch(torch.zeros(count, 3, 32, 32, dtype=torch.uint8), sizes, targets, torch.tensor(image_ids), sizes)


def guarded(tmp_path, name="sgd", fp16=False):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1))
    scaler = torch.amp.GradScaler("cpu", enabled=fp16, init_scale=1024.0)
    return model, FiniteGuard(optimizer, scaler, tmp_path)


def update(model, guard, factor=1.0, loss=None):
    guard.optimizer.zero_grad()
    guard.scaler.scale(model(torch.full((4, 3), factor)).square().sum()).backward()
    guard.scaler.unscale_(guard.optimizer)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    guard.update(norm, {"all": torch.tensor(1.0) if loss is None else loss})
    return norm


def copy_of(tree):
    return copy.deepcopy(tree)


def equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@OPTIMIZERS
@NOT_FINITE
@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("before", [0, 2])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_the_optimizer(tmp_path, name, value, fp16, before):
    model, guard = guarded(tmp_path, name, fp16)
    for _ in range(before):
        update(model, guard)
    weights, momenta = copy_of(model.state_dict()), copy_of(guard.optimizer.state_dict()["state"])
    assert not update(model, guard, value).isfinite()
    equal(model.state_dict(), weights)
    if momenta:  # AdamW's are made by its first update
        equal(guard.optimizer.state_dict()["state"], momenta)
    update(model, guard)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@OPTIMIZERS
@NOT_FINITE
def test_a_loss_that_is_not_finite_changes_nothing_even_where_its_gradient_is(tmp_path, name, value):
    model, guard = guarded(tmp_path, name)
    weights = copy_of(model.state_dict())
    assert update(model, guard, loss=torch.tensor(value)).isfinite()
    equal(model.state_dict(), weights)


@OPTIMIZERS
def test_ordinary_updates_are_those_of_the_plain_optimizer(tmp_path, name):
    model, guard = guarded(tmp_path, name)
    other = copy.deepcopy(model)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    plain = kind(other.parameters(), lr=0.1, weight_decay=1e-4, **momentum)
    for _ in range(5):
        update(model, guard)
        plain.zero_grad()
        other(torch.ones(4, 3)).square().sum().backward()
        plain.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict())


@NOT_FINITE
@pytest.mark.parametrize("where", ["norm", "cls", "box"])
def test_step_terms_images_and_the_batch_are_told(tmp_path, refusal, value, where):
    _, guard = guarded(tmp_path)
    terms = {"norm": 3.0, "cls": 0.5, "box": 0.25}
    guard.see(6, torch.tensor(3.0), {"cls": torch.tensor(0.5), "box": torch.tensor(0.25)}, [batch(1)])
    terms[where] = value
    tensors = {name: torch.tensor(term) for name, term in terms.items()}
    message = refusal(guard.see, 7, tensors.pop("norm"), tensors, [batch(41, 42), batch(43)])
    assert message.startswith("step 7 is not finite")
    assert "images 41, 42, 43;" in message
    assert "optim.lr" in message
    written = torch.load(tmp_path / "not_finite_step7.pt", weights_only=True)
    assert str(tmp_path / "not_finite_step7.pt") in message
    assert [each["image_ids"].tolist() for each in written["batches"]] == [[41, 42], [43]]
    assert written["batches"][0]["images"].shape == (2, 3, 32, 32)
    assert set(written["batches"][0]["targets"]) == {"boxes_xyxy", "labels", "valid"}
    told = written["losses"] | {"norm": written["gradient_norm"]}
    assert str(told[where]) == str(value)


def test_under_fp16_a_gradient_may_overflow_but_a_loss_may_not(tmp_path, refusal):
    _, guard = guarded(tmp_path, fp16=True)
    infinite = torch.tensor(float("inf"))
    guard.see(1, infinite, {"cls": torch.tensor(1.0)}, [batch(1)])
    assert "step 2 " in refusal(guard.see, 2, torch.tensor(1.0), {"cls": infinite}, [batch(1)])


def test_under_fp16_a_gradient_that_always_overflows_ends_the_run(tmp_path, refusal):
    _, guard = guarded(tmp_path, fp16=True)
    infinite, loss = torch.tensor(float("inf")), {"cls": torch.tensor(1.0)}
    for step in range(1, MOST_OVERFLOWS):
        guard.see(step, infinite, loss, [batch(1)])
    guard.see(20, torch.tensor(1.0), loss, [batch(1)])  # one that does not starts the count again
    for step in range(1, MOST_OVERFLOWS):
        guard.see(20 + step, infinite, loss, [batch(1)])
    assert "gradient norm inf" in refusal(guard.see, 60, infinite, loss, [batch(1)])


def test_a_batch_that_cannot_be_written_leaves_the_message(tmp_path, refusal):
    _, guard = guarded(tmp_path / "nowhere")
    message = refusal(guard.see, 5, torch.tensor(float("nan")), {"cls": torch.tensor(1.0)}, [batch(8)])
    assert message.startswith("step 5 is not finite")
    assert "images 8;" in message
    assert "cannot write" in message


def test_weights_that_are_not_finite_are_not_saved(tmp_path, refusal):
    model, guard = guarded(tmp_path)
    guard.settle(model)
    with torch.no_grad():
        model.bias[1] = float("inf")
    assert "(bias) and are not saved" in refusal(guard.settle, model)


def test_running_out_of_memory_says_what_to_change(refusal):
    def run_out(error):
        with memory_advice((4, 3, 800, 1344)):
            raise error

    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[x] can't allocate memory: 9 bytes")):
        message = refusal(run_out, error)
        assert "4 images of 800 x 1344" in message
        assert "optim.accumulate" in message
    with pytest.raises(RuntimeError, match="another"):
        run_out(RuntimeError("another"))


def test_more_memory_than_there_is_is_recognised_on_a_cpu(refusal):
    def ask():
        with memory_advice((1, 3, 32, 32)):
            torch.empty(2**50)

    assert "out of memory" in refusal(ask)


@pytest.fixture
def config(coco_set, tmp_path):
    data = coco_set([(96, 64)] * 6, [(number, 7, [10, 10, 60, 40]) for number in range(6)])
    split = {"annotations": data.annotations, "images": data.images}
    sizes = {"short_side": 64, "long_side": 96, "workers": 0}
    return TINY | {"data": {"train": split, "val": split} | sizes, "run_dir": str(tmp_path / "run")}


def trainer(tree):
    return train.Trainer(config_from_dict(tree, "test"), torch.device("cpu"), StopRequest([]), resume=False)


class Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **kwargs or {})


def test_an_ordinary_step_asks_the_device_for_nothing(config, monkeypatch):
    """On a GPU each of these would wait for it; the guard's own look is at values that have arrived."""
    monkeypatch.setattr(FiniteGuard, "_check", lambda guard, seen: None)
    run = trainer(config)
    taken = list(batches(run.train_loader))
    with Calls() as calls:
        run.train_step(iter(taken), 1, 0.01)
    assert calls.count["aten::convolution"] > 20
    for asking in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"):
        assert calls.count[asking] == 0


def test_what_a_step_draws_is_a_function_of_the_step(config):
    run, drawn = trainer(config), []
    forward = run.forward
    run.forward = lambda batch: (drawn.append(torch.rand(3)), forward(batch))[1]
    for step in (4, 5, 4):
        torch.rand(step)
        run.train_step(batches(run.train_loader), step, 0.01)
    equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_a_loss_that_is_not_finite_ends_the_run_and_the_checkpoint_before_it_stands(
    config, tmp_path, refusal, monkeypatch
):
    forward, calls = train.Trainer.forward, itertools.count(1)

    def break_third(self, batch):
        factor = float("nan") if next(calls) == 3 else 1.0
        return {name: loss * factor for name, loss in forward(self, batch).items()}

    monkeypatch.setattr(train.Trainer, "forward", break_third)
    monkeypatch.setattr(train, "load_config", lambda *_: config_from_dict(config | {"save_interval": 1}, "test"))
    message = refusal(train.main, argparse.Namespace(config="", overrides=[], resume=False), StopRequest([]))
    assert message.startswith("step 3 is not finite")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["progress"]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_one_before(config, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    first = trainer(config)
    first.move_to(0, 1)
    for _ in range(2):
        first.save(LAST)
    (run_dir / LAST).write_bytes(b"cut off")
    good = (run_dir / PREVIOUS).read_bytes()
    second = train.Trainer(config_from_dict(config, "test"), torch.device("cpu"), StopRequest([]), resume=True)
    assert second.checkpoint == run_dir / PREVIOUS
    second.save(LAST)
    assert (run_dir / PREVIOUS).read_bytes() == good
    second.save(LAST)
    assert read_checkpoint(run_dir / PREVIOUS)["format"] == read_checkpoint(run_dir / LAST)["format"]
