"""Weights are loaded from checkpoints into models, and detectors from run folders."""

import shutil

import pytest
import torch
from tiny_run import CLASS_NAMES, CONFIG, new_state, save
from torch import nn

from gfl.build import build_detector
from gfl.checkpoint import (
    BEST,
    DETECTOR_KEYS,
    FORMAT,
    LAST,
    TRAINING_KEYS,
    detector_content,
    load_detector,
    load_model_state,
    read_checkpoint,
    write_torch_file,
)
from gfl.config_file import config_to_dict


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), "2.weight"),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), "2.weight"),
        (nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1), nn.Linear(1, 1)), "3.weight"),
    ],
    ids=["other shape", "fewer layers", "more layers"],
)
def test_a_checkpoint_of_another_model_is_refused_naming_a_tensor(tmp_path, refusal, other, first):
    state = read_checkpoint(save(tmp_path / LAST))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    message = refusal(load_model_state, other, state, tmp_path / LAST)
    assert str(tmp_path / LAST) in message
    assert first in message
    assert refusal(load_model_state, other, state, tmp_path / LAST).code == "other_model"
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in before.items())


def test_weights_that_are_not_finite_are_refused_naming_a_tensor(tmp_path, refusal):
    state = read_checkpoint(save(tmp_path / LAST))
    state["model"]["2.bias"] = torch.full((1,), float("nan"))
    assert "2.bias" in refusal(load_model_state, new_state().model, state, tmp_path / LAST)
    assert refusal(load_model_state, new_state().model, state, tmp_path / LAST).code == "not_finite"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose best and last detectors differ in one number."""
    folder = tmp_path_factory.mktemp("run")
    model = build_detector(CONFIG, 2)
    for name, value in ((LAST, 3.0), (BEST, 7.0)):
        with torch.no_grad():
            model.head.scales.fill_(value)
        write_torch_file(folder / name, detector_content(model.state_dict(), CONFIG, CLASS_NAMES))
    return folder


def test_a_detector_is_loaded_from_best_then_last_or_the_given_file(run_dir, tmp_path):
    for path, file, scale in [(run_dir, run_dir / BEST, 7), (run_dir / LAST, run_dir / LAST, 3)]:
        detector = load_detector(path)
        assert (detector.config, detector.class_names, detector.checkpoint) == (CONFIG, CLASS_NAMES, file)
        assert detector.model.head.scales.tolist() == [scale] * 5
        assert not detector.model.training
    (tmp_path / LAST).symlink_to(run_dir / LAST)
    assert load_detector(tmp_path).checkpoint == tmp_path / LAST


def test_overrides_change_the_config_of_a_checkpoint(run_dir, refusal):
    config = load_detector(run_dir, ["eval.nms_iou=0.5", "data.workers=0"]).config
    assert (config.eval.nms_iou, config.data.workers, config.optim.lr) == (0.5, 0, 0.003)
    assert "eval.nms_iou" in refusal(load_detector, run_dir, ["eval.nms_io=0.5"])
    message = refusal(load_detector, run_dir, ["model.head.reg_max=8"])
    assert str(run_dir / BEST) in message
    assert "head.reg_out.weight" in message


def test_a_path_without_checkpoint_is_named(tmp_path, refusal):
    for path in (tmp_path, tmp_path / "none.pt"):
        assert str(path) in refusal(load_detector, path)
        assert refusal(load_detector, path).code == "missing"
    assert str(tmp_path / "none.pt") in refusal(read_checkpoint, tmp_path / "none.pt")
    assert refusal(read_checkpoint, tmp_path / "none.pt").code == "unreadable"


@pytest.mark.parametrize(
    ("section", "change", "key"),
    [("optim", {"nesterov": True}, "optim.nesterov"), ("model", {"head": {"quality": "best"}}, "model.head.quality")],
)
def test_a_config_that_this_version_does_not_know_is_named_with_its_file(tmp_path, refusal, section, change, key):
    tree = config_to_dict(CONFIG)
    tree[section] |= change
    path = tmp_path / LAST
    content = dict.fromkeys(DETECTOR_KEYS | TRAINING_KEYS) | {"model": {}, "config": tree, "class_names": ["a"]}
    torch.save(content | {"format": FORMAT}, path)
    message = refusal(load_detector, path)
    assert str(path) in message
    assert key in message


def test_a_loaded_detector_does_not_change_with_its_file(run_dir, tmp_path):
    path = tmp_path / "copy.pt"
    shutil.copy(run_dir / BEST, path)
    model = load_detector(path, device="cpu").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path.write_bytes(bytes(path.stat().st_size))  # in place, as cp does
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
