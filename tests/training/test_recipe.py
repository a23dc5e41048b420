"""Every published row's config is the reference's recipe: its values, its parameter groups, its rate at every step."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from gfl.build import build_detector
from gfl.config import Config, config_differences, config_to_dict, load_config
from gfl.tools.convert.state_dict import mmdet_names
from gfl.training.optim import build_optimizer, learning_rate, set_learning_rate

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NOT_PUBLISHED = {"gfl_r18_bccd", "gfl_r18_coco128", "gfl_r18_shapes", "gfl_r18_shapes_spread", "finetune"}
OTHERS = {"atss_r50_fpn_1x_coco", "fcos_r50_fpn_1x_coco"}  # tests/test_convert.py has what they must be
STEPS_PER_EPOCH = -(-117_266 // 16)  # train2017 has as many images with boxes

R50, R101, X101 = "resnet50", "resnet101", "resnext101_32x4d"
PLAIN = ("none", ())
C3_TO_C5, C4_TO_C5 = ("c3", "c4", "c5"), ("c4", "c5")


class Row(NamedTuple):
    """What sets one row of the tables apart; `figures` stand in its file's head."""

    recipe: str  # V1, MM or V2: whose
    backbone: str
    dcn: tuple[str, tuple[str, ...]]
    epochs: int
    figures: tuple[float, ...]  # on val2017, then the other one named: test-dev's, or of the same split by MM


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
SHORT_SIDES = {
    ("MM", 12): (800, 800),
    ("V1", 12): (800, 800),
    ("V2", 12): (800, 800),
    ("MM", 24): (480, 800),
    ("V1", 24): (480, 800),
    ("V2", 24): (480, 960),
}
WEIGHTS = {R50: "torchvision", R101: "torchvision", X101: "data/weights/resnext101_32x4d.pt"}
WARMUP_RATIO = {"MM": 0.001, "V1": 1 / 3, "V2": 0.001}
BIAS_FACTORS = {"MM": (1, 1), "V1": (2, 0), "V2": (1, 1)}  # on lr, on weight decay
LR, DECAY = 0.01, 1e-4

each_row = pytest.mark.parametrize("name", ROWS)


def load(name):
    return load_config(CONFIGS / f"{name}.yaml")


# --- values -----------------------------------------------------------------------------------------------------------


def test_every_coco_config_is_a_row_of_the_table_and_every_row_a_config():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == ROWS.keys() | NOT_PUBLISHED | OTHERS


def test_no_two_rows_are_the_same():
    assert len({row._replace(figures=()) for row in ROWS.values()}) == len(ROWS)


@each_row
def test_the_head_of_the_file_names_the_published_figures(name):
    (line,) = re.findall(r"^# expected: .*", (CONFIGS / f"{name}.yaml").read_text(), re.MULTILINE)
    figures = re.findall(r"\d\d\.\d", line)
    assert tuple(map(float, figures)) == ROWS[name].figures
    assert line.startswith(f"# expected: {figures[0]} AP on val2017 ")
    assert {"MM": "mmdetection", "V1": "official code", "V2": "GFLv2"}[ROWS[name].recipe] in line


@each_row
def test_the_model_is_the_published_one(name):
    row, model = ROWS[name], load(name).model
    backbone, head = model.backbone, model.head
    assert (backbone.name, backbone.weights) == (row.backbone, WEIGHTS[row.backbone])
    assert (backbone.dcn, backbone.dcn_stages) == row.dcn
    assert (backbone.frozen_stages, backbone.norm_eval) == (1, True)
    assert (model.fpn.channels, head.channels, head.num_convs) == (256, 256, 4)
    assert (head.box, head.reg_max, head.delta) == ("general", 16, 1)
    assert head.quality == ("dgqp" if row.recipe == "V2" else "joint")
    assert (head.dgqp.topk, head.dgqp.hidden, head.dgqp.add_mean) == (4, 64, True)
    assert (model.points.strides, model.points.offset) == ((8, 16, 32, 64, 128), 0)


@each_row
def test_assignment_and_losses_are_the_published_ones(name):
    assign, loss = load(name).assign, load(name).loss
    assert (assign.kind, assign.topk, assign.anchor_scale) == ("atss", 9, 8)
    assert (loss.qfl_beta, loss.cls_weight, loss.box_weight, loss.dfl_weight) == (2, 1, 2, 0.25)


@each_row
def test_the_data_are_coco_in_the_published_sizes(name):
    row, data = ROWS[name], load(name).data
    assert data.short_sides == SHORT_SIDES[row.recipe, row.epochs]
    assert (data.short_side_in_eval, data.long_side) == (800, 1333)
    assert (data.flip, data.augment, data.keep_empty) == (0.5, (), False)
    for split, year in [(data.train, "train2017"), (data.val, "val2017")]:
        assert split.annotations == f"data/coco/annotations/instances_{year}.json"
        assert split.images == f"data/coco/{year}"


@each_row
def test_the_schedule_is_the_published_one(name):
    row, optim = ROWS[name], load(name).optim
    assert (optim.name, optim.lr, optim.momentum, optim.weight_decay) == ("sgd", LR, 0.9, DECAY)
    assert (optim.batch, optim.base_batch, optim.accumulate) == (16, 16, 1)
    assert (optim.bias_lr_factor, optim.bias_decay_factor) == BIAS_FACTORS[row.recipe]
    assert (optim.epochs, optim.decay, optim.steps) == (row.epochs, "step", MILESTONES[row.epochs])
    assert (optim.warmup_steps, optim.warmup_ratio) == (500, pytest.approx(WARMUP_RATIO[row.recipe], rel=1e-15))
    assert (optim.clip_norm, optim.amp) == (0, "none")


@each_row
def test_detections_are_selected_as_published(name):
    config = load(name).eval
    assert (config.interval, config.score_thresh, config.pre_nms_topk) == (1, 0.05, 1000)
    assert (config.nms_iou, config.max_detections) == (0.6, 100)


@each_row
def test_nothing_else_is_set(name):
    changed = set(config_differences(config_to_dict(Config()), load(name)))
    assert changed <= {
        "run_dir",
        "model.backbone.name",
        "model.backbone.weights",
        "model.backbone.dcn",
        "model.backbone.dcn_stages",
        "model.head.quality",
        "data.train.annotations",
        "data.train.images",
        "data.val.annotations",
        "data.val.images",
        "data.short_side",
        "data.eval_short_side",
        "optim.epochs",
        "optim.steps",
        "optim.bias_lr_factor",
        "optim.bias_decay_factor",
        "optim.warmup_ratio",
    }


# --- what is trained, and how -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=ROWS)
def built(request):
    """A row, its detector without memory for the weights, and its optimiser."""
    config = load(request.param)
    with torch.device("meta"):
        model = build_detector(config, 80).train()
    return ROWS[request.param], model, build_optimizer(model, config.optim)


def is_frozen(name):
    return name.startswith(("backbone.conv1.", "backbone.bn1.", "backbone.layer1."))


def is_ordinary_bias(name):
    """The official code's rule; it takes the BatchNorm of a shortcut, `downsample.1`, for a layer with a bias."""
    return not re.search(r"(bn|gn)(\d+)?.(weight|bias)", name) and name.endswith(".bias")


def expected_settings(recipe, name, parameter):
    """(lr, weight decay) at the full rate, by the names the parameter has in mmdetection."""
    (ordinary_bias,) = {is_ordinary_bias(theirs) for theirs in mmdet_names(name, parameter)}
    lr_factor, decay_factor = BIAS_FACTORS[recipe] if ordinary_bias else (1, 1)
    return LR * lr_factor, DECAY * decay_factor


def names_by_group(model, optimizer):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def test_every_trained_parameter_has_the_reference_s_rate_and_decay(built):
    row, model, optimizer = built
    set_learning_rate(optimizer, LR)
    held = [
        (name, (group["lr"], group["weight_decay"]))
        for group, names in zip(optimizer.param_groups, names_by_group(model, optimizer), strict=True)
        for name in names
    ]
    assert len(dict(held)) == len(held)  # none is held twice
    assert dict(held) == {
        name: expected_settings(row.recipe, name, parameter)
        for name, parameter in model.named_parameters()
        if not is_frozen(name)
    }


def test_only_v1_treats_biases_apart(built):
    row, model, optimizer = built
    groups = names_by_group(model, optimizer)
    if row.recipe != "V1":
        assert len(groups) == 1
        return
    normal, biases = map(set, groups)
    assert {"head.cls_tower.1.bias", "backbone.layer2.0.bn1.bias", "head.scales"} <= normal
    assert {"head.cls_out.bias", "fpn.extra.0.bias", "backbone.layer2.0.downsample.1.bias"} <= biases
    assert all(name.endswith(".bias") for name in biases)
    assert sum("conv_offset" in name for name in biases) == (30 if row.dcn[0] == "v2" else 0)  # blocks of c3 to c5


def test_the_optimizer_is_plain_sgd_with_momentum(built):
    optimizer = built[2]
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert (group["momentum"], group["dampening"], group["nesterov"], group["maximize"]) == (0.9, 0, False, False)


def test_stem_and_first_stage_take_no_gradient_and_all_else_does(built):
    row, model, _ = built
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not is_frozen(name)}
    assert {"backbone.layer2.0.bn1.weight", "backbone.layer4.2.bn3.bias", "head.scales"} <= trained
    offsets = {f"c{int(name[14]) + 1}" for name in trained if name.endswith("conv_offset.weight")}
    assert offsets == set(row.dcn[1])
    assert any(name.startswith("quality.") for name in trained) == (row.recipe == "V2")


def test_every_batchnorm_keeps_its_statistics_in_training(built):
    model = built[1].train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) >= 53
    assert not any(norm.training for norm in norms)
    assert model.training


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


@pytest.mark.parametrize(
    "name",
    [
        "gfl_r50_fpn_1x_coco",
        "gfl_r50_fpn_1x_coco_v1recipe",
        "gfl_r50_fpn_ms2x_coco_v1recipe",
        "gflv2_r50_fpn_ms2x_coco",
    ],
)
def test_the_rate_of_every_step_is_mmcv_s(name):
    optim = load(name).optim
    steps = range(optim.epochs * STEPS_PER_EPOCH)
    ours = [learning_rate(step, optim, steps_per_epoch=STEPS_PER_EPOCH) for step in steps]
    np.testing.assert_allclose(ours, reference_rates(name), rtol=1e-12)


@each_row
def test_each_group_has_its_multiple_of_the_rate_at_every_turn_of_the_schedule(name):
    row, optim = ROWS[name], load(name).optim
    optimizer = build_optimizer(nn.Sequential(nn.Conv2d(1, 1, 1)), optim)
    theirs, factors = reference_rates(name), [1, 2] if row.recipe == "V1" else [1]
    turns = [1, 250, 500, *(epoch * STEPS_PER_EPOCH for epoch in MILESTONES[row.epochs])]
    for step in [step + shift for step in turns for shift in (-1, 0, 1)]:
        set_learning_rate(optimizer, learning_rate(step, optim, steps_per_epoch=STEPS_PER_EPOCH))
        rates = [group["lr"] for group in optimizer.param_groups if group["params"]]
        assert rates == pytest.approx([factor * theirs[step] for factor in factors], rel=1e-12)


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bias_lr", "bias_decay"),
    [("gfl_r50_fpn_1x_coco", 1, 1), ("gflv2_r50_fpn_1x_coco", 1, 1), ("gfl_r50_fpn_1x_coco_v1recipe", 2, 0)],
)
def test_two_steps_of_sgd_are_those_worked_by_hand(name, bias_lr, bias_decay):
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
