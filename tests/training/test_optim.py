"""Cosine decay and warm-up computed by hand, the optimisers, and the precision of forward passes.

`test_recipe.py` compares step decay with the reference.
"""

import pytest
import torch
from torch import nn

from gfl.config import OptimConfig
from gfl.training.optim import build_optimizer, learning_rate, scaled_lr, set_learning_rate


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.02), (2500, 0.02 * (1 + 0.5**0.5) / 2), (5000, 0.01), (7500, 0.02 * (1 - 0.5**0.5) / 2)],
)
def test_cosine_decay(step, rate):
    config = OptimConfig(lr=0.02, decay="cosine", epochs=10, warmup_steps=0)
    assert learning_rate(step, config, steps_per_epoch=1000) == pytest.approx(rate, rel=1e-9)


def test_warm_up_multiplies_the_decay():
    config = OptimConfig(decay="cosine", epochs=1, warmup_steps=200, warmup_ratio=0.1)
    rate = learning_rate(100, config, steps_per_epoch=400)
    assert rate == pytest.approx(0.01 * (0.1 + 0.9 * 0.5) * (1 + 0.5**0.5) / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("batch", "base_batch", "rate"), [(16, 16, 0.01), (4, 16, 0.0025), (32, 16, 0.02), (6, 8, 0.0075)]
)
def test_the_rate_is_linear_in_the_batch(batch, base_batch, rate):
    config = OptimConfig(batch=batch, base_batch=base_batch)
    assert scaled_lr(config) == pytest.approx(rate)
    assert learning_rate(600, config, steps_per_epoch=1000) == pytest.approx(rate)


@pytest.fixture
def layers():
    """A block as in a ResNet, its names included, and a frozen layer."""
    model = nn.ModuleDict(
        {
            "frozen": nn.Conv2d(3, 3, 1).requires_grad_(False),
            "conv": nn.Conv2d(3, 32, 1),
            "bn1": nn.BatchNorm2d(32),
            "tower": nn.Sequential(nn.Conv2d(32, 32, 1, bias=False), nn.GroupNorm(32, 32)),
            "linear": nn.Linear(32, 1),
            "downsample": nn.Sequential(nn.Conv2d(3, 32, 1, bias=False), nn.BatchNorm2d(32)),
        }
    )
    model.register_parameter("scales", nn.Parameter(torch.ones(5)))
    return model


def groups_by_name(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]


BIASES = {"conv.bias", "linear.bias", "downsample.1.bias"}  # the last as the official code counts, by names


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.02}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.02}),
    ],
)
def test_without_bias_factors_one_group_holds_what_is_not_frozen(layers, name, kind, settings):
    optimizer = build_optimizer(layers, OptimConfig(name=name, lr=0.3, momentum=0.8, weight_decay=0.02))
    trained = {name for name, parameter in layers.named_parameters() if parameter.requires_grad}
    assert type(optimizer) is kind
    assert groups_by_name(layers, optimizer) == [trained]
    assert trained > BIASES
    assert settings.items() <= optimizer.param_groups[0].items()


@pytest.mark.parametrize(
    ("factors", "lr_factor", "decay"),
    [
        ({"bias_lr_factor": 2.0, "bias_decay_factor": 0.0}, 2, 0),
        ({"bias_lr_factor": 3.0}, 3, 0.1),
        ({"bias_decay_factor": 0.5}, 1, 0.05),
    ],
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_biases_have_their_own_group_with_their_factors(layers, name, factors, lr_factor, decay):
    optimizer = build_optimizer(layers, OptimConfig(name=name, weight_decay=0.1, **factors))
    trained = {name for name, parameter in layers.named_parameters() if parameter.requires_grad}
    assert groups_by_name(layers, optimizer) == [trained - BIASES, BIASES]
    assert [group["lr_factor"] for group in optimizer.param_groups] == [1, lr_factor]
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.1, decay])


def test_the_bias_of_a_layer_on_its_own_has_its_factors_too():
    layer = nn.Linear(2, 3)
    optimizer = build_optimizer(layer, OptimConfig(bias_lr_factor=2.0, bias_decay_factor=0.0))
    assert groups_by_name(layer, optimizer) == [{"weight"}, {"bias"}]


def test_the_learning_rate_is_set_times_each_group_s_factor(layers):
    optimizer = build_optimizer(layers, OptimConfig(bias_lr_factor=2.0))
    for rate in (0.01, 0.5, 0.0):
        set_learning_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, 2 * rate]
    optimizer = build_optimizer(layers, OptimConfig())
    set_learning_rate(optimizer, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]


def test_factors_outlive_the_optimizer_s_state(layers):
    """A resumed run has the rates it had before."""
    config = OptimConfig(bias_lr_factor=2.0, bias_decay_factor=0.0)
    saved, resumed = build_optimizer(layers, config), build_optimizer(layers, config)
    resumed.load_state_dict(saved.state_dict())
    set_learning_rate(resumed, 0.1)
    assert [(group["lr"], group["weight_decay"]) for group in resumed.param_groups] == [(0.1, 1e-4), (0.2, 0)]
