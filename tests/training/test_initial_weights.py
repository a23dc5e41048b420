"""Fine-tuning: which weights a detector of other classes takes over from a trained one, and which stay new."""

import dataclasses
import json
import shlex

import pytest
import torch

from gfl.build import build_detector
from gfl.checkpoint import detector_content, load_detector, write_torch_file
from gfl.common.errors import UserError
from gfl.config_file import config_from_dict, load_config
from gfl.training.initial_weights import CLASS_TENSORS, load_initial_weights

OLD = ("disc", "ring", "cross", "star")
NEW = ("cross", "moon", "disc")
JOINT = {"quality": "joint"}


def make_config(head=None, **model):
    tree = {
        "backbone": {"name": "resnet18", "weights": "none", "frozen_stages": -1},
        "fpn": {"channels": 32},
        "head": {"channels": 64, "num_convs": 1, **(head or JOINT)},
    }
    return config_from_dict({"model": tree | model}, "test")


def starting_from(path, config):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(path)))


def write_trained(path, config, class_names=OLD):
    """Write a checkpoint in which every tensor differs from a new model's, and return its state dict."""
    torch.manual_seed(11)
    model = build_detector(config, len(class_names))
    state = {k: torch.randn_like(v) if v.is_floating_point() else v + 9 for k, v in model.state_dict().items()}
    write_torch_file(path, detector_content(state, config, class_names))
    return state


def new_model(config, class_names=NEW):
    torch.manual_seed(5)
    return build_detector(config, len(class_names))


@pytest.fixture
def start(tmp_path):
    return tmp_path / "start.pt"


def refuse(config, code):
    with pytest.raises(UserError) as error:
        load_initial_weights(new_model(config), config, NEW)
    assert error.value.code == code
    return str(error.value)


@pytest.mark.parametrize(
    "head", [JOINT, {"quality": "dgqp"}, {"quality": "iou_branch", "box": "dirac"}, {"box": "gaussian"}], ids=str
)
def test_everything_but_the_rows_of_new_classes_is_loaded_bit_for_bit(start, head):
    config = make_config(head)
    saved, before = write_trained(start, config), new_model(config).state_dict()
    model = new_model(config)
    message = load_initial_weights(model, starting_from(start, config), NEW)
    for part in (str(start), "2 of 3", "cross, disc", "moon"):
        assert part in message
    after = model.state_dict()
    for name in after.keys() - set(CLASS_TENSORS):
        assert torch.equal(after[name], saved[name]), name
    for name in CLASS_TENSORS:
        assert after[name].shape[0] == 3
        assert torch.equal(after[name][0], saved[name][2])
        assert torch.equal(after[name][1], before[name][1])
        assert torch.equal(after[name][2], saved[name][0])


def test_class_tensors_are_all_tensors_with_a_row_per_class():
    config = make_config({"quality": "dgqp"})
    three, four = (build_detector(config, count).state_dict() for count in (3, 4))
    assert {name for name in three if three[name].shape != four[name].shape} == set(CLASS_TENSORS)


def test_classes_are_matched_by_name_in_any_order(start):
    config = make_config()
    saved = write_trained(start, config)
    model = new_model(config, OLD[::-1])
    assert "all 4" in load_initial_weights(model, starting_from(start, config), OLD[::-1])
    assert torch.equal(model.head.cls_out.weight, saved["head.cls_out.weight"].flip(0))
    names = ("Disc", "moon")  # case matters
    assert "0 of 2" in load_initial_weights(new_model(config, names), starting_from(start, config), names)


def test_without_weights_nothing_changes():
    config = make_config()
    model, other = new_model(config), new_model(config)
    assert load_initial_weights(model, config, NEW) == ""
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))


def test_of_a_run_folder_the_best_checkpoint_is_loaded(tmp_path):
    config = make_config()
    write_trained(tmp_path / "last.pt", config, ("moon",))
    write_trained(tmp_path / "best.pt", config)
    message = load_initial_weights(new_model(config), starting_from(tmp_path, config), NEW)
    assert str(tmp_path / "best.pt") in message


def test_another_architecture_is_refused_with_overrides_that_fit(start, tmp_path):
    theirs = make_config(
        {"quality": "dgqp", "channels": 96}, points={"strides": [8, 16, 32], "offset": [0.5, 0.4, 0.3]}
    )
    write_trained(start, theirs)
    message = refuse(starting_from(start, make_config()), "architecture")
    assert str(start) in message
    (tmp_path / "ours.yaml").write_text(json.dumps({"model": {"fpn": {"channels": 32}}}))
    overrides = [word for word in shlex.split(message) if word.startswith("model.") and "=" in word]
    fitting = load_config(tmp_path / "ours.yaml", overrides)
    assert not any("backbone.weights" in word for word in overrides)
    assert fitting.model.head.channels == 96
    assert fitting.model.points == theirs.model.points
    assert fitting.model.head.quality == "dgqp"


@pytest.mark.parametrize("change", [{"box": "anchor_delta"}, {"delta": 2.0}, {"delta": 0.7}], ids=str)
def test_a_difference_that_shapes_do_not_show_is_refused(start, change):
    head = {"box": "dirac"} if "box" in change else {}
    write_trained(start, make_config(head))
    message = refuse(starting_from(start, make_config(head | change)), "architecture")
    assert f"model.head.{next(iter(change))}" in message


def test_other_bins_are_no_other_architecture_and_advice_does_not_change_them(start):
    """What the error of another difference says to add, with the bins of the config, is a start that works."""
    theirs = make_config({"channels": 96})
    write_torch_file(start, detector_content(new_model(theirs, OLD).state_dict(), theirs, OLD))
    message = refuse(starting_from(start, make_config({"reg_max": 22, "delta": 0.5})), "architecture")
    words = [word for word in shlex.split(message) if word.startswith("model.") and "=" in word]
    assert words == ["model.head.channels=96"]
    config = starting_from(start, make_config({"channels": 96, "reg_max": 22, "delta": 0.5}))
    line = load_initial_weights(new_model(config), config, NEW)
    assert all(part in line for part in ("2 of 3", "reg_max 16 -> 22", "delta 1 -> 0.5", "beyond 11 strides"))


def test_how_a_new_run_would_begin_may_differ(start):
    for head, begin in (
        ({"quality": "dgqp"}, {"dgqp": {"init": "kaiming"}}),
        ({"box": "dirac"}, {"initial_distance": 8}),
    ):
        write_trained(start, make_config(head))
        config = starting_from(start, make_config(head | begin))
        assert load_initial_weights(new_model(config), config, NEW)


def test_bins_that_are_not_used_are_not_resampled(start):
    theirs = make_config({"box": "gaussian", "reg_max": 8})
    write_trained(start, theirs)
    message = refuse(starting_from(start, make_config({"box": "gaussian"})), "architecture")
    assert "model.head.reg_max=8" in message


def test_settings_of_the_backbones_training_may_differ(start):
    theirs = make_config(
        backbone={"name": "resnet18", "weights": "torchvision", "frozen_stages": 2, "norm_eval": False}
    )
    write_trained(start, theirs)
    config = starting_from(start, make_config())
    assert load_initial_weights(new_model(config), config, NEW)


def test_missing_and_damaged_weights_are_refused(start, tmp_path):
    message = refuse(starting_from(tmp_path / "nowhere", make_config()), "missing")
    assert "model.weights" in message
    assert str(tmp_path / "nowhere") in message
    state = write_trained(start, make_config())
    for damage, code in (
        ({"head.cls_out.weight": state["head.cls_out.weight"][:3]}, "damaged"),
        ({"head.cls_out.bias": None}, "damaged"),
        ({"fpn.extra": torch.zeros(1)}, "other_model"),
    ):
        write_torch_file(start, detector_content(state | damage, make_config(), OLD))
        assert str(start) in refuse(starting_from(start, make_config()), code)


@pytest.mark.parametrize("head", [JOINT, {"quality": "dgqp"}], ids=str)
def test_the_scores_of_known_classes_equal_those_of_the_start(start, head):
    config, images = make_config(head), torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    trained = new_model(config, OLD).eval()
    write_torch_file(start, detector_content(trained.state_dict(), config, OLD))
    torch.manual_seed(6)
    model = build_detector(config, len(NEW)).eval()
    load_initial_weights(model, starting_from(start, config), NEW)
    with torch.inference_mode():
        boxes, scores = model.decode(model(images))
        their_boxes, their_scores = trained.decode(trained(images))
    assert torch.equal(boxes, their_boxes)
    for new, old in [(0, 2), (2, 0)]:
        torch.testing.assert_close(scores[..., new], their_scores[..., old])
        assert not torch.allclose(scores[..., new], their_scores[..., old - 1], rtol=1e-3)


def test_a_fine_tuned_checkpoint_loads_without_its_start(start, tmp_path):
    config = starting_from(start, make_config())
    content = detector_content(new_model(config).state_dict(), config, NEW)
    write_torch_file(tmp_path / "tuned.pt", content)
    assert load_detector(tmp_path / "tuned.pt").class_names == NEW
