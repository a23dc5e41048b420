"""Sides re-sampled to other bins: expectations stay, scores stay, and what is added learns."""

import math

import oracles
import pytest
import torch

from gfl.build import build_detector
from gfl.checkpoint import detector_content, write_torch_file
from gfl.config_file import config_from_dict
from gfl.method.losses import distribution_focal_loss
from gfl.training.initial_weights import load_initial_weights
from gfl.training.side_bins import SIDE_TENSORS, can_resample, resample_sides

NAMES = ("disc", "ring")
WIDER = [(24, 1.0), (32, 1.0), (32, 0.5), (48, 0.5), (64, 0.25), (100, 1.0)]
SHORTER = [(8, 1.0), (16, 0.5), (31, 0.5), (1, 1.0)]


def config_of(reg_max=16, delta=1.0, quality="joint", **model):
    head = {"channels": 64, "num_convs": 1, "quality": quality, "reg_max": reg_max, "delta": delta}
    backbone = {"name": "resnet18", "weights": "none", "frozen_stages": -1}
    return config_from_dict({"model": {"backbone": backbone, "fpn": {"channels": 32}, "head": head} | model}, "test")


def distributions():
    """(n, 17) logits: sharp, on a boundary, broad, two-peaked, flat, with all kinds of tails."""
    x, found = torch.arange(17.0), []
    for centre in (0.0, 0.1, 3.0, 5.5, 7.8, 15.7, 16.0):
        found += [-((x - centre) ** 2) / (2 * width**2) for width in (0.15, 0.3, 0.6, 1.5, 5.0)]
        found += [-4 * (x - centre).abs(), torch.logaddexp(-9 * (x - centre).abs(), -0.5 * (x - 11) ** 2)]
    for share in (0.05, 0.2, 0.5):  # two bins only, next to each other and far apart
        for bins in ([0, 1], [6, 7], [15, 16], [0, 16], [2, 12]):
            found.append(torch.full((17,), -30.0))
            found[-1][bins] = torch.tensor([1 - share, share]).log()
    found += [torch.zeros(17), x / 2, *3 * torch.randn(40, 17, generator=torch.Generator().manual_seed(0))]
    return torch.stack(found)


def resampled(logits, config):
    """(n, 17) -> (n, N): what the last convolution says of those that it gave before, as columns of its weights."""
    old = config_of()
    state = detector_content(build_detector(old, 2).state_dict(), old, NAMES)
    weight = torch.zeros_like(state["model"]["head.reg_out.weight"])  # (4 * 17, 64, 3, 3)
    weight.view(4, 17, -1)[:, :, : len(logits)] = logits.T
    state["model"] |= {"head.reg_out.weight": weight, "head.reg_out.bias": torch.full((68,), 7.0)}
    weight, bias = resample_sides(state, old, config.model.head, "a.pt").values()
    found = (weight.flatten(1) + bias[:, None] - 7).unflatten(0, (4, -1))
    assert all(found[0].equal(side) for side in found)
    return found[0].T[: len(logits)]


@pytest.mark.parametrize(("reg_max", "delta"), WIDER + SHORTER)
def test_expectations_within_the_new_range_stay(reg_max, delta):
    logits = distributions()
    assert len(logits) <= 576
    beyond = (logits.double().softmax(-1) * (torch.arange(17) > reg_max * delta)).sum(-1)
    logits = logits[beyond < 1e-3]
    assert len(logits) > 3
    for old, new in zip(logits.tolist(), resampled(logits, config_of(reg_max, delta)).tolist(), strict=True):
        assert len(new) == reg_max + 1
        assert oracles.expectation(new, delta) == pytest.approx(oracles.expectation(old), abs=0.05)


@pytest.mark.parametrize(("reg_max", "factor"), [(24, 1), (8, 1), (32, 2), (31, 2), (6, 3)])
def test_bins_that_stay_keep_their_logits_to_the_bit(reg_max, factor):
    logits = distributions()
    kept = resampled(logits, config_of(reg_max, 1 / factor))[:, ::factor][:, :17]
    assert kept.equal((logits + 7 - 7)[:, : kept.shape[1]])


def fit_sides(model, features, targets, steps=40):
    """`model` with sides that were trained with DFL."""
    model.requires_grad_(False).head.reg_out.requires_grad_(True)
    optimizer = torch.optim.Adam(model.head.reg_out.parameters(), lr=0.02)
    bins = (targets / model.box_repr.delta).clamp(max=model.box_repr.reg_max - 0.1)
    for _ in range(steps):
        loss = distribution_focal_loss(model.head(features).reg_pred, bins).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def scene():
    """Features of two images on five levels, and sides of 0 to 14 strides for their points."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 32, 8 >> level, 8 >> level, generator=generator) for level in range(4)]
    return [*features, features[-1]], 14 * torch.rand(2, 86, 4, generator=generator)


@pytest.fixture(scope="module")
def trained(scene):
    """GFLv2's detector with trained sides, a scale per level and a predictor that reads them."""
    torch.manual_seed(2)
    model = fit_sides(build_detector(config_of(quality="dgqp"), 2), *scene)
    with torch.no_grad():
        model.head.scales.copy_(torch.tensor([0.3, 0.9, 1, 1.1, 1.5]))
        for parameter in model.quality.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize(("reg_max", "delta"), [(24, 1.0), (32, 1.0), (15, 1.0), (32, 0.5)])
@torch.no_grad()
def test_a_trained_detector_says_the_same_with_other_bins(reg_max, delta, scene, trained, tmp_path):
    (features, _), old = scene, trained
    write_torch_file(tmp_path / "a.pt", detector_content(old.state_dict(), config_of(quality="dgqp"), NAMES))
    config = config_of(reg_max, delta, "dgqp", weights=str(tmp_path / "a.pt"))
    new = build_detector(config, 2)
    line = load_initial_weights(new, config, NAMES)
    assert f"reg_max 16 -> {reg_max}" in line
    assert ("delta 1 -> 0.5" in line) == (delta == 0.5)
    before, after = (model.quality(model.head(features)) for model in (old, new))
    distances = old.box_repr.distances(before.reg_pred)
    assert distances.std() > 2
    inside = before.reg_pred.softmax(-1)[..., 16] < 1e-3 if reg_max < 16 else torch.ones_like(distances) > 0
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(new.box_repr.distances(after.reg_pred)[inside], distances[inside], atol=0.05, rtol=0)
    known = inside.all(dim=-1)
    scores = [old.quality.scores(before)[known], new.quality.scores(after)[known]]
    assert scores[0].std() > 1e-4
    torch.testing.assert_close(*scores, atol=1e-3, rtol=0)


def test_added_bins_learn(scene, tmp_path):
    """Sides beyond the old range, on which the old detector was trained as far as it could say."""
    features, targets = scene
    torch.manual_seed(2)
    old = fit_sides(build_detector(config_of(6), 2), features, targets)
    write_torch_file(tmp_path / "a.pt", detector_content(old.state_dict(), config_of(6), NAMES))
    config = config_of(14, weights=str(tmp_path / "a.pt"))
    model = build_detector(config, 2)
    load_initial_weights(model, config, NAMES)
    far = targets > 7
    errors = []
    for steps in (0, 40):
        fit_sides(model, features, targets, steps)
        errors.append((model.box_repr.distances(model.head(features).reg_pred) - targets)[far].abs().mean().item())
    assert errors[0] > 3
    assert errors[1] < 1


def test_only_a_delta_that_is_divided_by_a_whole_number_can_be_resampled():
    old = config_of(delta=0.3).model.head
    fits = {
        delta: can_resample(old, config_of(9, delta).model.head) for delta in (0.3, 0.15, 0.1, 0.2, 0.6, 0.29, 5e-324)
    }
    assert fits == {0.3: True, 0.15: True, 0.1: True, 0.2: False, 0.6: False, 0.29: False, 5e-324: False}


@pytest.mark.parametrize("scale", [0.0, -0.5])
def test_a_level_whose_scale_turns_biases_around_is_refused(scale, refusal):
    config = config_of()
    state = detector_content(build_detector(config, 2).state_dict(), config, NAMES)
    state["model"]["head.scales"][3] = scale
    message = refusal(resample_sides, state, config, config_of(24).model.head, "a.pt")
    assert message.code == "architecture"
    assert "model.head.reg_max=16" in message


def test_weights_that_are_not_those_of_their_config_are_refused(refusal):
    config = config_of()
    state = detector_content(build_detector(config, 2).state_dict(), config, NAMES)
    for name in SIDE_TENSORS:
        damaged = state | {"model": state["model"] | {name: state["model"][name][:-4]}}
        assert refusal(resample_sides, damaged, config, config_of(24).model.head, "a.pt").code == "other_model"
        damaged["model"][name] = state["model"][name] * math.inf
        assert refusal(resample_sides, damaged, config, config_of(24).model.head, "a.pt").code == "not_finite"
