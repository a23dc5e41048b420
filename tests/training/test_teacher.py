"""The teacher of a run: what it may be, and what a run makes of it."""

import copy

import pytest
import torch
from tiny_detector import make_config
from torch import nn

import train
from gfl.build import build_criterion, build_detector
from gfl.checkpoint import BEST, LAST, TrainState, detector_content, read_checkpoint, write_torch_file
from gfl.config_file import config_from_dict, config_to_dict
from gfl.structures import Batch, Targets
from gfl.training.optim import build_optimizer
from gfl.training.step import train_step
from gfl.training.teacher import Teacher, load_teacher

CPU = torch.device("cpu")


def with_teacher(config, path, **distill):
    tree = config_to_dict(config)
    tree["loss"]["distill"] |= {"teacher": str(path)} | distill
    return config_from_dict(tree, "test")


def write_teacher(folder, config, classes=("disc",)):
    torch.manual_seed(1)
    state = build_detector(config, len(classes)).state_dict()
    write_torch_file(folder / BEST, detector_content(state, config, classes))
    return folder


def make_batch(images=2):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (1, 3, 64, 96), generator=generator, dtype=torch.uint8).expand(images, -1, -1, -1)
    boxes = torch.tensor([[[8.0, 8, 70, 50], [40, 10, 60, 60]]]).expand(images, -1, -1)
    targets = Targets(boxes, torch.zeros(boxes.shape[:2], dtype=torch.int64), torch.ones(boxes.shape[:2]).bool())
    sizes = torch.tensor([[64, 96]] * images)
    return Batch(pixels, sizes, targets, torch.arange(images), sizes)


# --- what is loaded ---------------------------------------------------------------------------------------------------


def test_a_teacher_may_have_other_classes_widths_and_quality_and_is_frozen(tmp_path):
    assert load_teacher(make_config(), CPU) is None
    config = make_config(channels=96, num_convs=2, quality="dgqp")
    path = write_teacher(tmp_path, config, ("ring", "disc", "cup"))
    teacher = load_teacher(with_teacher(make_config(), path), CPU)
    sides = teacher(torch.zeros(2, 3, 64, 96))
    assert sides.shape == build_detector(make_config(), 1)(torch.zeros(2, 3, 64, 96)).reg_pred.shape
    assert not sides.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.detector.modules())


def test_a_teacher_is_computed_in_the_precision_and_layout_of_the_run(tmp_path):
    config = with_teacher(make_config(), write_teacher(tmp_path, make_config()))
    tree = config_to_dict(config)
    tree["optim"]["amp"] = "bf16"
    teacher = load_teacher(config_from_dict(tree, "test"), CPU)
    assert teacher.detector.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert computed_in(teacher) == torch.bfloat16
    assert computed_in(load_teacher(config, CPU)) == torch.float32


def computed_in(teacher):
    dtypes = []
    teacher.detector.head.reg_out.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    teacher(torch.zeros(1, 3, 64, 96))
    return dtypes[0]


def with_points(**points):
    tree = config_to_dict(make_config())
    tree["model"]["points"] |= points
    return config_from_dict(tree, "test")


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (make_config(box="dirac"), "model.head.box"),
        (make_config(reg_max=8), "model.head.reg_max"),
        (make_config(delta=0.5), "model.head.delta"),
        (with_points(offset=0.5), "model.points.offset"),
        (with_points(strides=[8, 16, 32]), "model.points.strides"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_teacher_with_other_sides_or_points_is_refused(other, key, tmp_path, refusal):
    message = refusal(load_teacher, with_teacher(make_config(), write_teacher(tmp_path, other)), CPU)
    assert message.code == "other_sides"
    assert key in message
    assert str(tmp_path) in message
    assert "loss.distill.teacher" in message


def test_a_missing_teacher_is_refused(tmp_path, refusal):
    message = refusal(load_teacher, with_teacher(make_config(), tmp_path / "none.pt"), CPU)
    assert message.code == "missing"
    assert "loss.distill.teacher" in message


# --- steps ------------------------------------------------------------------------------------------------------------


def step_of(config, model, teacher, batches, rate=0.0):
    state = TrainState(model, build_optimizer(model, config.optim), torch.amp.GradScaler("cpu", enabled=False))
    criterion = build_criterion(config, model.quality, model.box_repr, teacher)
    return train_step(state, model.train(), criterion, iter(batches), config.optim, rate)


def test_a_student_that_is_its_own_teacher_learns_nothing_until_it_changes():
    config = with_teacher(make_config(), "any", region="both")
    torch.manual_seed(0)
    model = build_detector(config, 1)
    with torch.no_grad():
        model.head.reg_out.weight.mul_(30)
    teacher = Teacher(copy.deepcopy(model), None)
    assert step_of(config, model, teacher, [make_batch()], rate=0.01).losses["ld"] == 0
    assert step_of(config, model, teacher, [make_batch()]).losses["ld"] > 0


def test_passes_of_a_step_have_the_loss_of_one_batch():
    """Of equal images, for whose weights the mean of a pass stands."""
    config = with_teacher(make_config(), "any", region="both", weight=5.0)
    tree = config_to_dict(config)
    tree["optim"]["accumulate"] = 2
    torch.manual_seed(0)
    model, teacher = build_detector(config, 1), Teacher(build_detector(config, 1), None)
    nn.init.normal_(teacher.detector.head.reg_out.weight)
    whole = step_of(config, model, teacher, [make_batch(4)])
    parts = step_of(config_from_dict(tree, "test"), model, teacher, [make_batch(2)] * 2)
    assert whole.losses["ld"] > 0
    torch.testing.assert_close(parts.losses["ld"], whole.losses["ld"], rtol=1e-5, atol=0)
    torch.testing.assert_close(parts.grad_norm, whole.grad_norm, rtol=1e-4, atol=0)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_an_interrupted_run_continues_to_the_bit_and_saves_no_teacher(run, tmp_path, monkeypatch, ema):
    run()
    folder = (tmp_path / "run").rename(tmp_path / "teacher")
    plain = read_checkpoint(folder / LAST)
    options = {"loss": {"distill": {"teacher": str(folder), "weight": 100.0, "region": "both"}}, "ema": ema}
    run(**options)
    whole = read_checkpoint((tmp_path / "run").rename(tmp_path / "whole") / LAST)
    original, left = train.train_step, [2]

    def interrupted(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return original(*args)

    monkeypatch.setattr(train, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(**options)
    monkeypatch.setattr(train, "train_step", original)
    run("newest", **options)
    resumed = read_checkpoint(tmp_path / "run" / LAST)
    for name, tensor in whole["model"].items():
        assert torch.equal(resumed["model"][name], tensor), name
    assert whole["model"].keys() == plain["model"].keys()
    assert not torch.equal(whole["model"]["head.reg_out.weight"], plain["model"]["head.reg_out.weight"])
