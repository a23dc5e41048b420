"""What a detector of other classes takes over from a trained one, and what it leaves."""

import dataclasses
import json
import shlex

import pytest
import torch
from gfl.training.finetune import CLASS_TENSORS, load_initial_weights

from gfl.build import build_detector
from gfl.checkpoint import load_detector, weights, write_torch_file
from gfl.config import config_from_dict, load_config, parse_overrides

OLD = ("disc", "ring", "cross", "star")
NEW = ("cross", "moon", "disc")
JOINT = {"quality": "joint"}


def config(head=None, **model):
    tree = {
        "backbone": {"name": "resnet18", "weights": "none", "frozen_stages": -1},
        "fpn": {"channels": 32},
        "head": {"channels": 64, "num_convs": 1, **(head or JOINT)},
    }
    return config_from_dict({"model": tree | model}, "test")


def starting_from(path, settings):
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, weights=str(path)))


def trained(path, settings, class_names=OLD):
    """Write a checkpoint whose every tensor differs from a new model's, and return them."""
    torch.manual_seed(11)
    model = build_detector(settings, len(class_names))
    state = {k: torch.randn_like(v) if v.is_floating_point() else v + 9 for k, v in model.state_dict().items()}
    write_torch_file(path, weights(state, settings, class_names))
    return state


def fresh(settings, class_names=NEW):
    torch.manual_seed(5)
    return build_detector(settings, len(class_names))


@pytest.mark.parametrize(
    "head", [JOINT, {"quality": "dgqp"}, {"quality": "iou_branch", "box": "dirac"}, {"box": "gaussian"}], ids=str
)
def test_all_but_the_rows_of_new_classes_is_taken_bit_for_bit(tmp_path, head):
    settings = config(head)
    saved, before = trained(tmp_path / "start.pt", settings), fresh(settings).state_dict()
    model = fresh(settings)
    said = load_initial_weights(model, starting_from(tmp_path / "start.pt", settings), NEW)
    assert said == f"{tmp_path / 'start.pt'}: 2 of 3 classes kept (cross, disc), fresh: moon"
    after = model.state_dict()
    for name in after.keys() - set(CLASS_TENSORS):
        assert torch.equal(after[name], saved[name]), name
    for name in CLASS_TENSORS:
        assert after[name].shape[0] == 3
        assert torch.equal(after[name][0], saved[name][2])
        assert torch.equal(after[name][1], before[name][1])
        assert torch.equal(after[name][2], saved[name][0])


def test_every_tensor_with_a_row_per_class_is_known():
    settings = config({"quality": "dgqp"})
    three, four = (build_detector(settings, count).state_dict() for count in (3, 4))
    assert {name for name in three if three[name].shape != four[name].shape} == set(CLASS_TENSORS)


def test_a_fresh_class_starts_at_the_prior_and_near_zero_weights(tmp_path):
    settings = config()
    trained(tmp_path / "start.pt", settings)
    model = fresh(settings)
    load_initial_weights(model, starting_from(tmp_path / "start.pt", settings), NEW)
    assert model.head.cls_out.bias[1].sigmoid().item() == pytest.approx(0.01)
    assert model.head.cls_out.weight[1].std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (OLD, "all 4 classes kept"),
        (tuple(reversed(OLD)), "all 4 classes kept"),
        (("Disc", "moon"), "0 of 2 classes kept, fresh: Disc, moon"),
    ],
)
def test_what_is_kept_is_said(tmp_path, names, told):
    settings = config()
    saved = trained(tmp_path / "start.pt", settings)
    model = fresh(settings, names)
    said = load_initial_weights(model, starting_from(tmp_path / "start.pt", settings), names)
    assert said == f"{tmp_path / 'start.pt'}: {told}"
    if names == tuple(reversed(OLD)):
        assert torch.equal(model.head.cls_out.weight, saved["head.cls_out.weight"].flip(0))


def test_without_weights_nothing_is_touched_and_nothing_said():
    settings = config()
    model, other = fresh(settings), fresh(settings)
    assert load_initial_weights(model, settings, NEW) == ""
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_of_a_run_folder_the_best_is_taken(tmp_path):
    settings = config()
    trained(tmp_path / "last.pt", settings, ("moon",))
    trained(tmp_path / "best.pt", settings)
    said = load_initial_weights(fresh(settings), starting_from(tmp_path, settings), NEW)
    assert said.startswith(f"{tmp_path / 'best.pt'}: 2 of 3")


def test_another_architecture_is_refused_with_the_overrides_that_fit(tmp_path, refusal):
    theirs = config({"quality": "dgqp", "channels": 96}, points={"strides": [8, 16, 32], "offset": [0.5, 0.4, 0.3]})
    trained(tmp_path / "start.pt", theirs)
    ours = starting_from(tmp_path / "start.pt", config())
    message = refusal(load_initial_weights, fresh(ours), ours, NEW)
    assert message.startswith(f"model.weights: {tmp_path / 'start.pt'} is of another architecture")
    assert "model.head.channels: 64 -> 96" in message
    overrides = parse_overrides(shlex.split(message.partition("add to the command: ")[2]))
    (tmp_path / "ours.yaml").write_text(json.dumps({"model": {"fpn": {"channels": 32}}}))
    fitting = load_config(tmp_path / "ours.yaml", shlex.split(message.partition("add to the command: ")[2]))
    assert "backbone" not in overrides["model"]
    assert fitting.model.head.channels == 96
    assert fitting.model.points == theirs.model.points
    assert fitting.model.head.quality == "dgqp"


@pytest.mark.parametrize("change", [{"box": "anchor_delta"}, {"delta": 0.5}], ids=str)
def test_what_tensors_do_not_show_is_an_architecture_too(tmp_path, refusal, change):
    head = {"box": "dirac"} if "box" in change else {}
    trained(tmp_path / "start.pt", config(head))
    ours = starting_from(tmp_path / "start.pt", config(head | change))
    assert f"model.head.{next(iter(change))}" in refusal(load_initial_weights, fresh(ours), ours, NEW)


def test_how_the_backbone_is_trained_may_differ(tmp_path):
    theirs = config(backbone={"name": "resnet18", "weights": "torchvision", "frozen_stages": 2, "norm_eval": False})
    trained(tmp_path / "start.pt", theirs)
    ours = starting_from(tmp_path / "start.pt", config())
    assert load_initial_weights(fresh(ours), ours, NEW)


def test_what_is_missing_or_damaged_is_refused(tmp_path, refusal):
    ours = starting_from(tmp_path / "nowhere", config())
    assert f"model.weights: no checkpoint at {tmp_path / 'nowhere'}" in refusal(
        load_initial_weights, fresh(ours), ours, NEW
    )
    state = trained(tmp_path / "start.pt", config())
    for damage in (
        {"head.cls_out.weight": state["head.cls_out.weight"][:3]},
        {"head.cls_out.bias": None},
        {"fpn.extra": torch.zeros(1)},
    ):
        write_torch_file(tmp_path / "start.pt", weights(state | damage, config(), OLD))
        ours = starting_from(tmp_path / "start.pt", config())
        assert str(tmp_path / "start.pt") in refusal(load_initial_weights, fresh(ours), ours, NEW)


@pytest.mark.parametrize("head", [JOINT, {"quality": "dgqp"}], ids=str)
def test_the_detector_answers_for_known_classes_as_the_start_does(tmp_path, head):
    settings, images = config(head), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    start = fresh(settings, OLD).eval()
    write_torch_file(tmp_path / "start.pt", weights(start.state_dict(), settings, OLD))
    torch.manual_seed(6)
    model = build_detector(settings, len(NEW)).eval()
    load_initial_weights(model, starting_from(tmp_path / "start.pt", settings), NEW)
    with torch.inference_mode():
        boxes, scores = model.decode(model(images))
        their_boxes, their_scores = start.decode(start(images))
    assert torch.equal(boxes, their_boxes)
    for new, old in [(0, 2), (2, 0)]:
        torch.testing.assert_close(scores[..., new], their_scores[..., old])
        assert not torch.allclose(scores[..., new], their_scores[..., old - 1], rtol=1e-3)


def test_a_run_that_was_tuned_needs_its_start_no_more(tmp_path):
    settings = config()
    trained(tmp_path / "start.pt", settings)
    tuned = starting_from(tmp_path / "start.pt", settings)
    write_torch_file(tmp_path / "tuned.pt", weights(fresh(settings).state_dict(), tuned, NEW))
    (tmp_path / "start.pt").unlink()
    assert load_detector(tmp_path / "tuned.pt")[2] == NEW
