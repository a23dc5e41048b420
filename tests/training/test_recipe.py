"""Every published row's config is the reference's recipe: its values, its parameter groups, its rate at every step."""

import re
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from gfl.build import build_detector
from gfl.config import Config
from gfl.config_file import config_differences, config_to_dict, load_config
from gfl.tools.convert.state_dict import mmdet_names
from gfl.training.optim import build_optimizer, learning_rate, set_learning_rate

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NOT_PUBLISHED = {
    *("gfl_r18_bccd", "gfl_r18_coco128", "gfl_r18_shapes", "gfl_r18_shapes_spread", "gfl_r18_shapes_start"),
    *("finetune", "own_data"),
}
OTHERS = {"atss_r50_fpn_1x_coco", "fcos_r50_fpn_1x_coco"}  # the tests of the converter have what they must be
STEPS_PER_EPOCH = -(-117_266 // 16)  # train2017 has as many images with boxes

R50, R101, X101 = "resnet50", "resnet101", "resnext101_32x4d"
PLAIN = ("none", ())
C3_TO_C5, C4_TO_C5 = ("c3", "c4", "c5"), ("c4", "c5")


class Row(NamedTuple):
    """What sets one row of the tables apart; `published` stands in its file's head."""

    recipe: str  # V1, MM or V2: whose
    backbone: str
    dcn: tuple[str, tuple[str, ...]]
    epochs: int
    published: tuple[float, ...]  # AP on val2017, then the other one named: test-dev's, or of the same split by MM


# Copied from the papers, their code and mmdetection, so that no slip in a config can make its own test pass.
ROWS = {
    "gfl_r50_fpn_1x_coco": Row("MM", R50, PLAIN, 12, (40.2, 40.2)),
    "gfl_r50_fpn_ms2x_coco": Row("MM", R50, PLAIN, 24, (42.9, 43.1)),
    "gfl_r101_fpn_ms2x_coco": Row("MM", R101, PLAIN, 24, (44.7, 45.0)),
    "gfl_r101_dcnv1_c3c5_fpn_ms2x_coco": Row("MM", R101, ("v1", C3_TO_C5), 24, (47.1, 47.3)),
    "gfl_x101_32x4d_fpn_ms2x_coco": Row("MM", X101, PLAIN, 24, (45.9, 46.0)),
    "gfl_x101_32x4d_dcnv1_c4c5_fpn_ms2x_coco": Row("MM", X101, ("v1", C4_TO_C5), 24, (48.1, 48.2)),
    "gfl_r50_fpn_1x_coco_v1recipe": Row("V1", R50, PLAIN, 12, (40.2, 40.3)),
    "gfl_r50_fpn_ms2x_coco_v1recipe": Row("V1", R50, PLAIN, 24, (42.8, 43.1)),
    "gfl_r101_fpn_ms2x_coco_v1recipe": Row("V1", R101, PLAIN, 24, (44.9, 45.0)),
    "gfl_r101_dcnv2_c3c5_fpn_ms2x_coco_v1recipe": Row("V1", R101, ("v2", C3_TO_C5), 24, (47.2, 47.3)),
    "gfl_x101_32x4d_fpn_ms2x_coco_v1recipe": Row("V1", X101, PLAIN, 24, (45.7, 46.0)),
    "gfl_x101_32x4d_dcnv2_c3c5_fpn_ms2x_coco_v1recipe": Row("V1", X101, ("v2", C3_TO_C5), 24, (48.3, 48.2)),
    "gflv2_r50_fpn_1x_coco": Row("V2", R50, PLAIN, 12, (41.0, 41.1)),
    "gflv2_r50_fpn_ms2x_coco": Row("V2", R50, PLAIN, 24, (43.9, 44.4)),
    "gflv2_r101_fpn_ms2x_coco": Row("V2", R101, PLAIN, 24, (45.8, 46.0)),
    "gflv2_r101_dcnv2_c3c5_fpn_ms2x_coco": Row("V2", R101, ("v2", C3_TO_C5), 24, (48.0, 48.2)),
    "gflv2_x101_32x4d_dcnv2_c4c5_fpn_ms2x_coco": Row("V2", X101, ("v2", C4_TO_C5), 24, (48.8, 49.0)),
}
MILESTONES = {12: (8, 11), 24: (16, 22)}
WARMUP_RATIO = {"MM": 0.001, "V1": 1 / 3, "V2": 0.001}
BIAS_FACTORS = {"MM": (1, 1), "V1": (2, 0), "V2": (1, 1)}  # on lr, on weight decay
LR, DECAY = 0.01, 1e-4

each_row = pytest.mark.parametrize("name", ROWS)


def load(name):
    return load_config(CONFIGS / f"{name}.yaml")


def model_and_losses(row):
    """Every value that a published recipe fixes, by its key in the config."""
    return {
        "model.backbone.name": row.backbone,
        "model.backbone.weights": "data/weights/resnext101_32x4d.pt" if row.backbone == X101 else "torchvision",
        "model.backbone.dcn": row.dcn[0],
        "model.backbone.dcn_stages": row.dcn[1],
        "model.backbone.frozen_stages": 1,
        "model.backbone.norm_eval": True,
        "model.fpn.channels": 256,
        "model.head.channels": 256,
        "model.head.num_convs": 4,
        "model.head.box": "general",
        "model.head.reg_max": 16,
        "model.head.delta": 1,
        "model.head.quality": "dgqp" if row.recipe == "V2" else "joint",
        "model.head.dgqp.topk": 4,
        "model.head.dgqp.hidden": 64,
        "model.head.dgqp.add_mean": True,
        "model.points.strides": (8, 16, 32, 64, 128),
        "model.points.offset": 0,
        "assign.kind": "atss",
        "assign.topk": 9,
        "assign.anchor_scale": 8,
        "loss.qfl_beta": 2,
        "loss.cls_weight": 1,
        "loss.box_weight": 2,
        "loss.dfl_weight": 0.25,
    }


def data_schedule_and_evaluation(row):
    """As `model_and_losses`, the rest."""
    lr_factor, decay_factor = BIAS_FACTORS[row.recipe]
    longest = 960 if row.recipe == "V2" else 800
    return {
        "data.train.annotations": "data/coco/annotations/instances_train2017.json",
        "data.train.images": "data/coco/train2017",
        "data.val.annotations": "data/coco/annotations/instances_val2017.json",
        "data.val.images": "data/coco/val2017",
        "data.short_sides": (800, 800) if row.epochs == 12 else (480, longest),
        "data.short_side_in_eval": 800,
        "data.long_side": 1333,
        "data.flip": 0.5,
        "data.augment": (),
        "data.keep_empty": False,
        "optim.name": "sgd",
        "optim.lr": LR,
        "optim.momentum": 0.9,
        "optim.weight_decay": DECAY,
        "optim.batch": 16,
        "optim.base_batch": 16,
        "optim.accumulate": 1,
        "optim.bias_lr_factor": lr_factor,
        "optim.bias_decay_factor": decay_factor,
        "optim.epochs": row.epochs,
        "optim.decay": "step",
        "optim.steps": MILESTONES[row.epochs],
        "optim.warmup_steps": 500,
        "optim.warmup_ratio": pytest.approx(WARMUP_RATIO[row.recipe], rel=1e-15),
        "optim.clip_norm": 0,
        "optim.amp": "none",
        "eval.interval": 1,
        "eval.score_thresh": 0.05,
        "eval.pre_nms_topk": 1000,
        "eval.nms_iou": 0.6,
        "eval.max_detections": 100,
    }


# --- values -----------------------------------------------------------------------------------------------------------


def test_every_coco_config_is_one_row_of_the_table():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == ROWS.keys() | NOT_PUBLISHED | OTHERS
    assert len({row._replace(published=()) for row in ROWS.values()}) == len(ROWS)


@each_row
def test_the_head_of_the_file_names_the_published_results(name):
    (line,) = re.findall(r"^# expected: .*", (CONFIGS / f"{name}.yaml").read_text(), re.MULTILINE)
    numbers = re.findall(r"\d\d\.\d", line)
    assert tuple(map(float, numbers)) == ROWS[name].published
    assert line.startswith(f"# expected: {numbers[0]} AP on val2017 ")
    assert {"MM": "mmdetection", "V1": "official code", "V2": "GFLv2"}[ROWS[name].recipe] in line


@each_row
def test_a_config_is_the_published_recipe_and_sets_nothing_else(name):
    config, expected = load(name), model_and_losses(ROWS[name]) | data_schedule_and_evaluation(ROWS[name])
    assert {key: attrgetter(key)(config) for key in expected} == expected
    changed = set(config_differences(config_to_dict(Config()), config))
    assert changed <= expected.keys() | {"run_dir", "data.short_side", "data.eval_short_side"}


# --- what is trained, and how -----------------------------------------------------------------------------------------


def is_frozen(name):
    return name.startswith(("backbone.conv1.", "backbone.bn1.", "backbone.layer1."))


def is_ordinary_bias(name):
    """The official code's rule; it takes the BatchNorm of a shortcut, `downsample.1`, for a layer with a bias."""
    return not re.search(r"(bn|gn)(\d+)?.(weight|bias)", name) and name.endswith(".bias")


def expected_settings(row, name, parameter):
    """(lr, weight decay) at the full rate, by the names the parameter has in mmdetection."""
    (ordinary_bias,) = {is_ordinary_bias(theirs) for theirs in mmdet_names(name, parameter)}
    lr_factor, decay_factor = BIAS_FACTORS[row.recipe] if ordinary_bias else (1, 1)
    return LR * lr_factor, DECAY * decay_factor


@each_row
def test_every_trained_parameter_has_the_reference_s_rate_and_decay_under_plain_sgd(name):
    row, config = ROWS[name], load(name)
    with torch.device("meta"):
        model = build_detector(config, 80).train()
    optimizer = build_optimizer(model, config.optim)
    set_learning_rate(optimizer, LR)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(dict(settings)) == len(settings)  # none is held twice
    assert dict(settings) == {name: expected_settings(row, name, parameter) for name, parameter in trained.items()}
    assert trained.keys() == {name for name in names.values() if not is_frozen(name)}
    offsets = {f"c{int(name[14]) + 1}" for name in trained if name.endswith("conv_offset.weight")}
    assert offsets == set(row.dcn[1])
    assert any(name.startswith("quality.") for name in trained) == (row.recipe == "V2")
    assert len(optimizer.param_groups) == (2 if row.recipe == "V1" else 1)
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["momentum"], group["dampening"], group["nesterov"], group["maximize"]) == (0.9, 0, False, False)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) >= 53
    assert not any(norm.training for norm in norms)


# --- the rate ---------------------------------------------------------------------------------------------------------


def reference_rates(name):
    """mmcv's rule, step by step: a tenth from each milestone on, and below it a linear warm-up of 500 steps."""
    row, rates = ROWS[name], []
    for epoch in range(row.epochs):
        regular = LR * 0.1 ** len([milestone for milestone in MILESTONES[row.epochs] if epoch >= milestone])
        rates += [regular] * STEPS_PER_EPOCH
    for step in range(500):
        rates[step] *= 1 - (1 - step / 500) * (1 - WARMUP_RATIO[row.recipe])
    return rates


@pytest.mark.parametrize("name", ["gfl_r50_fpn_1x_coco", "gfl_r50_fpn_ms2x_coco_v1recipe", "gflv2_r50_fpn_ms2x_coco"])
def test_the_rate_of_every_step_is_mmcv_s_in_each_group(name):
    row, optim = ROWS[name], load(name).optim
    steps = range(optim.epochs * STEPS_PER_EPOCH)
    rates = reference_rates(name)
    ours = [learning_rate(step, optim, steps_per_epoch=STEPS_PER_EPOCH) for step in steps]
    np.testing.assert_allclose(ours, rates, rtol=1e-12)
    optimizer = build_optimizer(nn.Sequential(nn.Conv2d(1, 1, 1)), optim)
    for step in (0, 250, 500, 9 * STEPS_PER_EPOCH):
        set_learning_rate(optimizer, ours[step])
        factors = [1, 2] if row.recipe == "V1" else [1]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([f * rates[step] for f in factors])


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bias_lr", "bias_decay"), [("gfl_r50_fpn_1x_coco", 1, 1), ("gfl_r50_fpn_1x_coco_v1recipe", 2, 0)]
)
def test_two_steps_of_sgd_equal_those_computed_by_hand(name, bias_lr, bias_decay):
    """Momentum sums gradient and decay, the rate multiplies the sum; the second step has another rate."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1)).double()
    optimizer = build_optimizer(model, load(name).optim)
    start, gradients, rates = {"weight": 3.0, "bias": -5.0}, (0.5, 0.25), (0.01, 0.001)
    for key, value in start.items():
        getattr(model[0], key).data.fill_(value)
    for gradient, rate in zip(gradients, rates, strict=True):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        set_learning_rate(optimizer, rate)
        optimizer.step()
    for key, lr_factor, decay_factor in [("weight", 1, 1), ("bias", bias_lr, bias_decay)]:
        first = 0.5 + 1e-4 * decay_factor * start[key]
        value = start[key] - 0.01 * lr_factor * first
        second = 0.9 * first + 0.25 + 1e-4 * decay_factor * value
        assert getattr(model[0], key).item() == pytest.approx(value - 0.001 * lr_factor * second, rel=1e-12)
