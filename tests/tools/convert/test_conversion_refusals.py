"""Detectors that do not fit are refused naming every tensor or the field of the config."""

import pytest
import torch
from external_models import FCOS_HEAD, convert, make_config, small_detector

from gfl.tools.convert.architecture import PROJECT
from gfl.tools.convert.state_dict import COCO_CLASSES, to_mmdet

CLS, REG = "bbox_head.gfl_cls.weight", "bbox_head.gfl_reg.weight"


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"backbone": {"name": "resnet34"}}, "model.backbone.name"),
        ({"backbone": {"name": "resnet50", "dcn": "v1", "dcn_stages": ["c5"]}}, "model.backbone"),
        ({"fpn": {"channels": 128}}, "model.fpn.channels"),
        ({"fpn": {"extra_relu": True}}, "model.fpn.extra_relu"),
        ({"head": {"reg_max": 8}}, "model.head.reg_max"),
        ({"head": {"delta": 0.5}}, "model.head.delta"),
        ({"head": {"channels": 128}}, "model.head.channels"),
        ({"head": {"num_convs": 2}}, "model.head.num_convs"),
        ({"head": {"quality": "dgqp"}}, "model.head.quality"),
        ({"head": {"box": "dirac"}}, "model.head.box"),
        ({"points": {"strides": [8, 16, 32]}}, "model.points.strides"),
        ({"points": {"offset": 0.5}}, "model.points.offset"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_refused_with_its_field(model, field, refusal):
    assert refusal(convert, small_detector("gfl"), make_config(**model)).code == "config"
    assert field in refusal(convert, small_detector("gfl"), make_config(**model))


@pytest.mark.parametrize(
    ("kind", "names", "code"),
    [
        ("gfl", (), "classes"),  # COCO has 80
        ("atss", ("a", "b"), "background"),
        ("fcos", ("a", "b"), "background"),
        ("gfl", ("a", "b", "c", "d"), "classes"),
        ("gfl", ("a", "a", "b"), "classes"),
        ("gfl", ("a", "\x1b", "b"), "classes"),
    ],
)
def test_class_names_that_do_not_fit_the_outputs_are_refused(kind, names, code, refusal):
    assert refusal(convert, small_detector(kind), names=names).code == code


@pytest.mark.parametrize("meta", [{}, {"CLASSES": COCO_CLASSES}], ids=["no names", "80 names"])
def test_a_head_with_81_outputs_has_one_for_the_background(meta, refusal):
    tensors = small_detector("gfl") | {CLS: torch.ones(81, 64, 3, 3), "bbox_head.gfl_cls.bias": torch.ones(81)}
    assert refusal(convert, tensors, names=(), meta=meta).code == "background"


# --- tensors that do not fit ------------------------------------------------------------------------------------------

SCALES = {f"bbox_head.scales.{level}.scale": torch.ones(1) for level in range(5)}
OFFSETS = "backbone.layer4.0.conv2.conv_offset.weight"
# Changes of tensors (None deletes), and a part of the message.
MISFITS = {
    "missing": ("gfl", {"neck.fpn_convs.1.conv.bias": None}, "missing: neck.fpn_convs.1.conv.bias"),
    "missing weight": ("gfl", {REG: None}, REG),
    "missing norm": ("gfl", {"backbone.bn1.running_var": None}, "missing: backbone.bn1.running_var"),
    "missing scale": ("gfl", {"bbox_head.scales.3.scale": None}, "missing: bbox_head.scales.3.scale"),
    "unknown": ("gfl", {"ema_other_weight": torch.ones(2)}, "unknown: ema_other_weight"),
    "shape": ("gfl", {"bbox_head.gfl_cls.bias": torch.ones(4)}, "bbox_head.gfl_cls.bias is [4], not [3]"),
    "no shape": ("gfl", {"bbox_head.gfl_cls.bias": torch.tensor(1.0)}, "bbox_head.gfl_cls.bias is [], not [3]"),
    "shape of all scales": ("gfl", SCALES, "bbox_head.scales.0.scale"),
    "shape of a scale": ("gfl", {"bbox_head.scales.2.scale": torch.ones(1)}, "bbox_head.scales"),
    "not a convolution": ("gfl", {CLS: torch.ones(3)}, CLS),
    "integers": ("gfl", {CLS: torch.ones(3, 64, 3, 3, dtype=torch.int64)}, f"{CLS} is torch.int64"),
    "kernel": ("gfl", {CLS: torch.ones(3, 64, 1, 1)}, "[3, 64, 1, 1], not [3, 64, 3, 3]"),
    "channels": ("gfl", {CLS: torch.ones(3, 48, 3, 3)}, "model.head.channels"),
    "width": ("gfl", {"backbone.layer1.0.conv2.weight": torch.ones(32, 32, 3, 3)}, "[32, 32]"),
    "bins": ("gfl", {PROJECT: torch.linspace(0, 1, 17)}, PROJECT),
    "number of bins": ("gfl", {PROJECT: torch.arange(9.0)}, PROJECT),
    "number of offsets": ("gfl", {OFFSETS: torch.ones(36, 512, 3, 3)}, "[36]"),
    "offsets where none can be": ("gfl", {OFFSETS: torch.ones(18, 512, 3, 3)}, "resnet18"),
    "several": (
        "gfl",
        {"neck.fpn_convs.1.conv.bias": None, "bbox_head.gfl_cls.bias": torch.ones(4), "a": torch.ones(2)},
        "missing: neck.fpn_convs.1.conv.bias; 1 tensor unknown: a; 1 tensor of another shape or type: bbox",
    ),
    "no centerness of ATSS": ("atss", {"bbox_head.atss_centerness.weight": None}, "bbox_head.atss_centerness.weight"),
    "more anchors": ("atss", {"bbox_head.atss_reg.weight": torch.ones(36, 64, 3, 3)}, "[36, 64, 3, 3], not [4, 64"),
    "a bias in ATSS": ("atss", {"bbox_head.cls_convs.0.conv.bias": torch.ones(64)}, "bbox_head.cls_convs.0.conv.bias"),
    "no boxes of FCOS": ("fcos", {"bbox_head.conv_reg.bias": None}, "missing: bbox_head.conv_reg.bias"),
    "one bias missing": ("fcos", {"bbox_head.reg_convs.1.conv.bias": None}, "bbox_head.reg_convs.1.conv.bias"),
    "deformable": ("fcos", {"bbox_head.reg_convs.1.conv.conv_offset.bias": torch.ones(27)}, "1.conv.conv_offset.bias"),
    "AutoAssign": ("fcos", {"bbox_head.center_prior.mean": torch.ones(3, 2)}, "bbox_head.center_prior.mean"),
    "bins in FCOS": ("fcos", {"bbox_head.conv_reg.weight": torch.ones(68, 64, 3, 3)}, "not [4, 64, 3, 3]"),
}


@pytest.mark.parametrize(("kind", "changes", "part"), MISFITS.values(), ids=MISFITS)
def test_tensors_that_do_not_fit_are_named(kind, changes, part, refusal):
    tensors = {name: tensor for name, tensor in (small_detector(kind) | changes).items() if tensor is not None}
    assert part in refusal(convert, tensors)


BRANCH = {"quality": "centerness_branch"}
ATSS_HEAD = BRANCH | {"box": "anchor_delta"}


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ({"head": {"quality": "joint", "box": "dirac"}}, ["joint", "dirac"]),
        ({"head": {"quality": "iou_branch", "box": "anchor_delta"}}, ["iou_branch", "anchor_delta"]),
        ({"head": {"quality": "none"}}, ["none", "general"]),
        ({"head": ATSS_HEAD | {"conv_bias": True}}, ["ATSSHead", "model.head.conv_bias"]),
        ({"head": ATSS_HEAD, "points": {"offset": 0.5}}, ["ATSSHead", "model.points.offset"]),
        ({"head": FCOS_HEAD, "fpn": {"extra_relu": True}}, ["FCOSHead", "model.points.offset"]),
        ({"head": FCOS_HEAD, "points": {"offset": 0.5}}, ["FCOSHead", "model.fpn.extra_relu"]),
        ({"head": {"conv_bias": True}}, ["GFLHead", "model.head.conv_bias"]),
        ({"head": {"quality": "dgqp"}, "points": {"offset": 0.5}}, ["GFocalHead", "model.points.offset"]),
        ({"head": {"quality": "dgqp", "delta": 0.5}}, ["GFocalHead", "model.head.delta"]),
    ],
    ids=str,
)
def test_a_model_that_mmdetection_cannot_express_is_refused(model, parts, refusal):
    config = make_config(**model)
    assert refusal(to_mmdet, {}, config).code == "not_expressible"
    assert all(part in refusal(to_mmdet, {}, config) for part in parts)


# --- numbers that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(value, refusal):
    """1e300 is finite in the file's precision only."""
    shapes = {CLS: (3, 64, 3, 3), "backbone.bn1.bias": (64,)}
    broken = {name: torch.full(shape, value, dtype=torch.float64) for name, shape in shapes.items()}
    message = refusal(convert, small_detector("gfl") | broken)
    assert message.code == "not_finite"
    assert "2 tensors" in message
    assert all(name in message for name in broken)


def test_a_diverged_model_is_not_exported(refusal):
    message = refusal(to_mmdet, {"fpn.lateral.0.bias": torch.tensor([float("nan")])}, make_config())
    assert message.code == "not_finite"
    assert "fpn.lateral.0.bias" in message


def test_a_long_list_of_tensors_is_cut_to_its_first_and_a_count(refusal):
    unknown = {f"bbox_head.aux.{number}.weight": torch.ones(1) for number in range(200)}
    message = refusal(convert, small_detector("gfl") | unknown)
    assert "200 tensors unknown: bbox_head.aux.0.weight" in message
    assert "197 more" in message
    assert len(message) < 400


@pytest.mark.parametrize(("part", "code"), [("mean", "setting"), ("std", "setting"), ("none", "")])
def test_saved_statistics_of_pixels_must_be_ours(part, code, refusal):
    pixels = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
    tensors = {f"data_preprocessor.{key}": torch.tensor(values)[:, None, None] for key, values in pixels.items()}
    if not code:
        assert convert(small_detector("gfl") | tensors).state.keys() == convert(small_detector("gfl")).state.keys()
        return
    tensors[f"data_preprocessor.{part}"] = torch.tensor([103.53, 116.28, 1.0])[:, None, None]
    assert refusal(convert, small_detector("gfl") | tensors).code == code
