"""One training step: the update of the weights, what it leaves alone, and advice when memory runs out."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gfl.build import build_criterion, build_detector
from gfl.checkpoint import TrainState
from gfl.common.errors import UserError
from gfl.config import OptimConfig
from gfl.config_file import config_from_dict
from gfl.structures import Batch, Targets
from gfl.training.optim import build_optimizer
from gfl.training.step import advise_on_memory, train_step, update_weights

OPTIMIZERS = pytest.mark.parametrize("name", ["sgd", "adamw"])
NOT_FINITE = pytest.mark.parametrize("value", [float("nan"), float("inf")])


def new_state(name="sgd", fp16=False):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimConfig(name=name, lr=0.1))
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=fp16, init_scale=1024.0))


def update(state, factor=1.0, loss=1.0):
    state.optimizer.zero_grad()
    state.scaler.scale(state.model(torch.full((4, 3), factor)).square().sum()).backward()
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in state.model.parameters()])
    update_weights(state, norm, {"all": torch.tensor(loss)})
    return norm


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@OPTIMIZERS
@NOT_FINITE
@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_optimizer(name, value, fp16, steps_before):
    state = new_state(name, fp16)
    for _ in range(steps_before):
        update(state)
    weights, momenta = copy.deepcopy((state.model.state_dict(), state.optimizer.state_dict()["state"]))
    assert not update(state, value).isfinite()
    assert_equal(state.model.state_dict(), weights)
    if momenta:  # AdamW creates its state in its first update
        assert_equal(state.optimizer.state_dict()["state"], momenta)
    update(state)
    assert all(tensor.isfinite().all() for tensor in state.model.state_dict().values())


@OPTIMIZERS
@NOT_FINITE
def test_a_loss_that_is_not_finite_changes_no_weights_even_if_its_gradient_is(name, value):
    state = new_state(name)
    weights = copy.deepcopy(state.model.state_dict())
    assert update(state, loss=value).isfinite()
    assert_equal(state.model.state_dict(), weights)


@OPTIMIZERS
def test_ordinary_updates_equal_those_of_the_plain_optimizer(name):
    state = new_state(name)
    other = copy.deepcopy(state.model)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    plain = kind(other.parameters(), lr=0.1, weight_decay=1e-4, **momentum)
    for _ in range(5):
        update(state)
        plain.zero_grad()
        other(torch.ones(4, 3)).square().sum().backward()
        plain.step()
    torch.testing.assert_close(state.model.state_dict(), other.state_dict())


class OperatorCounts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **kwargs or {})


def test_an_ordinary_step_never_waits_for_the_device():
    """On a GPU each of these operators would wait for it."""
    tree = {
        "model": {
            "backbone": {"name": "resnet18", "weights": "none"},
            "fpn": {"channels": 64},
            "head": {"channels": 64, "num_convs": 1},
        }
    }
    config = config_from_dict(tree, "test")
    model = build_detector(config, 2).train()
    state = TrainState(model, build_optimizer(model, config.optim), torch.amp.GradScaler("cpu", enabled=False))
    targets = Targets(
        torch.tensor([[[8.0, 8, 40, 30]]]), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.bool)
    )
    sizes = torch.tensor([[64, 96]])
    batch = Batch(torch.zeros(1, 3, 64, 96, dtype=torch.uint8), sizes, targets, torch.tensor([1]), sizes)
    criterion = build_criterion(config, model.quality, model.box_repr)
    with OperatorCounts() as calls:
        train_step(state, model, criterion, iter([batch]), config.optim, 0.01)
    assert calls.count["aten::convolution"] > 20
    for waiting in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select"):
        assert calls.count[waiting] == 0


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[x] can't allocate memory: 9 bytes")]
)
def test_running_out_of_memory_names_the_batch_and_the_keys_to_change(error):
    with pytest.raises(UserError) as caught, advise_on_memory((4, 3, 800, 1344)):
        raise error
    assert caught.value.code == "out_of_memory"
    for part in ("4 images", "800", "1344", "optim.accumulate"):
        assert part in str(caught.value)


def test_a_cpu_running_out_of_memory_is_recognized():
    with pytest.raises(UserError) as caught, advise_on_memory((1, 3, 32, 32)):
        torch.empty(2**50)
    assert caught.value.code == "out_of_memory"


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="another"), advise_on_memory((1, 3, 32, 32)):
        raise RuntimeError("another")
