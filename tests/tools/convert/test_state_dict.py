"""Checkpoints of other programs: what goes in comes out under our names, and what does not fit is told."""

import importlib.util
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from reference import golden_weight, neck_and_head_shapes, slow_detector
from torchvision import models

from gfl.build import build_detector
from gfl.checkpoint import FORMAT, load_detector, read_checkpoint, weights, write_torch_file
from gfl.common.errors import run
from gfl.config import config_from_dict, config_to_dict, load_config
from gfl.model.backbone import Backbone, load_pretrained
from gfl.tools.convert.architecture import FCOS, PROJECT, PROJECT_V1, parse_foreign, recognize_detector
from gfl.tools.convert.state_dict import COCO_CLASSES, convert_backbone, convert_detector, mmdet_names, to_mmdet
from gfl.tools.convert.torch_file import read_torch_file
from gfl.training.signals import StopRequest

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden"
NAMES = ("disc", "ring", "cross")
CLS, REG = "bbox_head.gfl_cls.weight", "bbox_head.gfl_reg.weight"
IMAGES = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def make_config(*, backbone=None, head=None, points=None, fpn=None):
    return config_from_dict(
        {
            "model": {
                "backbone": {"name": "resnet18", "weights": "none"} | (backbone or {}),
                "fpn": {"channels": 64} | (fpn or {}),
                "head": {"channels": 64, "num_convs": 1} | (head or {}),
                "points": points or {},
            }
        },
        "test",
    )


SMALL, SMALL_V2 = make_config(), make_config(head={"quality": "dgqp"})


def load_program(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names_and_shapes(config, classes):
    """Of mmdetection's detector."""
    with torch.device("meta"):
        state = build_detector(config, classes).state_dict()
        return {name: list(tensor.shape) for name, tensor in to_mmdet(state, config).items()}


@pytest.fixture(scope="module")
def small_tensors():
    return {name: golden_weight(name, shape) for name, shape in names_and_shapes(SMALL_V2, 3).items()}


@pytest.fixture
def v2(small_tensors):
    """A small GFLv2 of mmdetection; copied where a test changes it."""
    return OrderedDict(small_tensors)


@pytest.fixture
def v1_head(small_tensors):
    """A small GFL of mmdetection."""
    return OrderedDict((name, tensor) for name, tensor in small_tensors.items() if ".reg_conf." not in name)


def assert_same(ours, theirs):
    assert list(ours) == list(theirs) or set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype), name
        assert torch.equal(ours[name], tensor), name


def converted(tensors, config=None, names=NAMES, **content):
    return convert_detector(parse_foreign({"state_dict": tensors, **content}), config, names)


# --- names and shapes -------------------------------------------------------------------------------------------------


def golden_config(name):
    dcn = {"dcn": "v1", "dcn_stages": ["c3", "c4", "c5"]} if "dcnv1_c3c5" in name else {}
    known = {"r18": "resnet18", "r50": "resnet50", "r101": "resnet101", "x101": "resnext101_32x4d"}
    head = {"quality": "dgqp"} if name.startswith("model_gflv2") else {}
    tree = {"model": {"backbone": {"name": known[name.split("_")[2]], **dcn}, "head": head}}
    return config_from_dict(tree, name)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("model_*.json")))
def test_names_and_shapes_are_those_of_the_golden_model(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert names_and_shapes(golden_config(name), 80) == golden


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("model_*.json")))
def test_the_golden_architecture_is_recognised(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    wanted = config_to_dict(golden_config(name))["model"]
    with torch.device("meta"):
        found = recognize_detector(parse_foreign({tensor: torch.empty(shape) for tensor, shape in golden.items()}))
    for section, values in found.items():
        assert values == {key: wanted[section][key] for key in values}


def test_a_golden_file_of_80_classes_is_converted_with_the_names_of_coco(tmp_path):
    shapes = json.loads((GOLDEN / "model_gfl_r18_fpn.json").read_text())
    tensors = {name: golden_weight(name, shape) for name, shape in shapes.items()}
    torch.save({"state_dict": tensors}, tmp_path / "in.pth")
    state, config, names = convert_detector(parse_foreign(read_torch_file(tmp_path / "in.pth")))
    assert (len(names), names[0], names[10], names[11], names[-1]) == (
        80,
        "person",
        "fire hydrant",
        "stop sign",
        "toothbrush",
    )
    assert len(set(names)) == 80
    build_detector(config, 80).load_state_dict(state)
    assert_same(to_mmdet(state, config), tensors)


@pytest.mark.parametrize("config", [SMALL, SMALL_V2], ids=["gfl", "gflv2"])
def test_there_and_back_is_the_identity_from_either_end(config, v1_head, v2):
    theirs = v1_head if config is SMALL else v2
    ours = converted(theirs).state
    assert_same(to_mmdet(ours, config), theirs)
    assert_same(converted(to_mmdet(ours, config)).state, ours)


def test_every_tensor_keeps_its_place(v2):
    """Names by hand, so that two renamings that cancel are seen."""
    ours = converted(v2).state
    for name, theirs in {
        "backbone.layer3.1.bn2.running_var": "backbone.layer3.1.bn2.running_var",
        "fpn.lateral.2.weight": "neck.lateral_convs.2.conv.weight",
        "fpn.output.0.bias": "neck.fpn_convs.0.conv.bias",
        "fpn.extra.0.weight": "neck.fpn_convs.3.conv.weight",
        "fpn.extra.1.bias": "neck.fpn_convs.4.conv.bias",
        "head.cls_tower.0.weight": "bbox_head.cls_convs.0.conv.weight",
        "head.reg_tower.1.bias": "bbox_head.reg_convs.0.gn.bias",
        "head.cls_out.weight": CLS,
        "head.reg_out.bias": "bbox_head.gfl_reg.bias",
    }.items():
        assert torch.equal(ours[name], v2[theirs]), name
    assert ours["head.scales"].tolist() == [v2[f"bbox_head.scales.{level}.scale"].item() for level in range(5)]
    assert torch.equal(ours["quality.hidden.weight"], v2["bbox_head.reg_conf.0.weight"][:, :, 0, 0])
    assert torch.equal(ours["quality.out.bias"], v2["bbox_head.reg_conf.2.bias"])


def test_towers_of_many_convolutions_keep_their_order():
    config = make_config(head={"num_convs": 12})  # two digits
    shapes = names_and_shapes(config, 2)
    tensors = {name: torch.full(shape, float(place)) for place, (name, shape) in enumerate(shapes.items())}
    tensors[PROJECT] = torch.arange(17.0)
    state, found, _ = converted(tensors, names=("a", "b"))
    assert found.model.head.num_convs == 12
    for layer in range(12):
        own = state[f"head.cls_tower.{3 * layer}.weight"]
        assert torch.equal(own, tensors[f"bbox_head.cls_convs.{layer}.conv.weight"])


# --- files of every program -------------------------------------------------------------------------------------------


class Buffer:
    def __init__(self):
        self.history, self.log = np.arange(5.0), logging.getLogger("mmengine")


def mmdet2(tensors):
    meta = {"CLASSES": NAMES, "mmdet_version": "2.25.0", "config": "model = dict(type='GFL')", "hook_msgs": {}}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    return {"meta": meta, "state_dict": tensors, "optimizer": optimizer}


def mmdet3(tensors):
    meta = {"dataset_meta": {"classes": NAMES, "palette": [(1, 2, 3)]}, "mmengine_version": "0.7.1", "cfg": "text"}
    hub = {"log_scalars": {"loss": Buffer()}, "runtime_info": {"iter": 3}, "resumed_keys": {}}
    return {"meta": meta, "state_dict": tensors, "message_hub": hub, "param_schedulers": [{"last_step": 1}]}


DRESSES = {
    "mmdetection 2.x": (mmdet2, "mmdetection 2.25.0"),
    "mmdetection 3.x": (mmdet3, "mmdetection 3.x"),
    "state dict of 3.x without classes": (lambda t: {"state_dict": t, "meta": {"mmengine_version": "0.7"}}, "3.x"),
    "bare state dict": (lambda t: t, "mmdetection"),
    "wrapped": (lambda t: mmdet2(OrderedDict((f"module.{name}", tensor) for name, tensor in t.items())), "2.25.0"),
    "meta of foreign classes": (lambda t: {"state_dict": t, "meta": Buffer()}, "mmdetection"),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dress", DRESSES)
def test_a_file_of_mmdetection_is_understood(dress, new, v1_head, tmp_path):
    path, (wrap, program) = tmp_path / "in.pth", DRESSES[dress]
    torch.save(wrap(v1_head), path, _use_new_zipfile_serialization=new)
    foreign = parse_foreign(read_torch_file(path))
    assert program in foreign.program
    state, config, names = convert_detector(foreign, None, NAMES)
    assert names == NAMES
    assert config.model.head == SMALL.model.head
    assert config.model.points.offset == 0
    assert_same(to_mmdet(state, config), v1_head)


def test_the_files_own_names_come_before_those_given(v1_head):
    assert converted(v1_head, names=("a", "b", "c"), meta={"CLASSES": ["x", "y", "z"]}).class_names == ("x", "y", "z")
    meta = {"CLASSES": None, "dataset_meta": {"CLASSES": NAMES}}
    assert converted(v1_head, names=(), meta=meta).class_names == NAMES


def test_points_of_v1_lie_where_its_anchors_have_their_centres(v1_head):
    v1_head[PROJECT_V1] = v1_head.pop(PROJECT)
    foreign = parse_foreign({"state_dict": v1_head, "meta": {"CLASSES": NAMES}})
    assert foreign.program == "implus/GFocal (V1)"
    state, config, _ = convert_detector(foreign)
    assert config.model.points.offset == tuple((s - 1) / (2 * s) for s in (8, 16, 32, 64, 128))
    model = build_detector(config, 3).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 128, 256))
    points = output.grid.points.split(output.grid.level_sizes)
    for stride, ours in zip((8, 16, 32, 64, 128), points, strict=True):
        columns, rows = torch.arange(256 // stride), torch.arange(128 // stride)
        expected = [((x + 0.5) * stride - 0.5, (y + 0.5) * stride - 0.5) for y in rows for x in columns]
        assert torch.equal(ours, torch.tensor(expected)), stride


def test_gflv2_has_its_quality_predictor(v2):
    foreign = parse_foreign({"state_dict": v2})
    assert foreign.program == "implus/GFocalV2"
    assert convert_detector(foreign, None, NAMES).config.model.head == SMALL_V2.model.head


def test_the_config_says_what_the_20_inputs_of_the_quality_predictor_are(v2):
    without_mean = make_config(head={"quality": "dgqp", "dgqp": {"topk": 5, "add_mean": False}})
    assert converted(v2, without_mean).config.model == without_mean.model
    assert converted(v2, SMALL_V2).config.model == SMALL_V2.model


def test_what_the_file_does_not_say_is_the_configs(v1_head):
    config = config_from_dict(
        config_to_dict(SMALL) | {"optim": {"lr": 0.5}, "data": {"val": {"annotations": "a.json"}}}, "test"
    )
    found = converted(v1_head, config).config
    assert (found.optim, found.data, found.model) == (config.optim, config.data, config.model)


@pytest.mark.parametrize(("dcn", "old_names"), [("v1", True), ("v1", False), ("v2", False)])
def test_deformable_convolutions_are_found_under_old_and_new_names(dcn, old_names):
    config = make_config(backbone={"name": "resnet50", "dcn": dcn, "dcn_stages": ["c4", "c5"]})
    with torch.device("meta"):
        own = build_detector(config, 3).state_dict()
    shapes = {theirs: shape for theirs, shape in names_and_shapes(config, 3).items() if "offset" in theirs}
    assert shapes["backbone.layer3.0.conv2.conv_offset.weight"] == [18 if dcn == "v1" else 27, 256, 3, 3]
    tensors = {name: torch.zeros(shape) for name, shape in names_and_shapes(config, 3).items()}
    tensors[PROJECT] = torch.arange(17.0)
    tensors["backbone.layer4.2.conv2.conv_offset.bias"] += 3
    if old_names:
        tensors = {name.replace("conv2.conv_offset", "conv2_offset"): tensor for name, tensor in tensors.items()}
    state, found, _ = converted(tensors)
    assert found.model.backbone.dcn == dcn
    assert found.model.backbone.dcn_stages == ("c4", "c5")
    assert {name: tensor.shape for name, tensor in state.items()} == {name: like.shape for name, like in own.items()}
    assert (state["backbone.layer4.2.conv2.conv_offset.bias"] == 3).all()


def test_half_precision_becomes_float32(v1_head):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in v1_head.items()}
    state = converted(half).state
    kinds = {(tensor.dtype, name.endswith("num_batches_tracked")) for name, tensor in state.items()}
    assert kinds == {(torch.float32, False), (torch.int64, True)}
    assert torch.equal(state["head.cls_out.weight"], half[CLS].float())
    assert state["head.scales"].tolist() == [half[f"bbox_head.scales.{level}.scale"].item() for level in range(5)]


def test_files_older_than_num_batches_tracked_and_project_are_converted(v1_head):
    old = {n: t for n, t in v1_head.items() if not n.endswith("num_batches_tracked") and n != PROJECT}
    state = converted(old).state
    assert_same(state, converted(v1_head).state)


# --- ATSS and FCOS ----------------------------------------------------------------------------------------------------

# As a checkpoint's config reads, in short.
TEXTS = {
    "atss": """
dataset = dict(pipeline=[dict(type='Normalize', std=[58.395, 57.12, 57.375], to_rgb=True)])
model = dict(
    type='ATSS',
    backbone=dict(type='ResNet', depth=18, norm_cfg=dict(type='BN'), style='pytorch'),
    neck=dict(type='FPN', start_level=1, add_extra_convs='on_output', num_outs=5),
    bbox_head=dict(
        type='ATSSHead',
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=8, scales_per_octave=1),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1,
                                                               0.2, 0.2])))
""",
    "fcos": """
model = dict(
    data_preprocessor=dict(type='DetDataPreprocessor', bgr_to_rgb=True),
    backbone=dict(type='ResNet', depth=18, style='pytorch'),
    neck=dict(type='FPN', add_extra_convs='on_output', relu_before_extra_convs=True),
    bbox_head=dict(
        type='FCOSHead', norm_on_bbox=True, centerness_on_reg=True, dcn_on_last_conv=False, center_sampling=True))
""",
}
PUBLISHED = {"atss": "atss_r50_fpn_1x_coco.yaml", "fcos": "fcos_r50_fpn_1x_coco.yaml"}
BRANCHED = {
    "atss": make_config(head={"quality": "centerness_branch", "box": "anchor_delta"}),
    "fcos": make_config(
        head={"quality": "centerness_branch", "box": "dirac", "conv_bias": True},
        fpn={"extra_relu": True},
        points={"offset": 0.5},
    ),
}
BOTH = pytest.mark.parametrize("kind", list(BRANCHED))


def branched_shapes(kind, backbone="resnet18", **size):
    """Names and shapes of mmdetection's ATSS or FCOS, by hand; it has torchvision's names for ResNets."""
    with torch.device("meta"):
        layers = getattr(models, backbone)().state_dict()
    own = {f"backbone.{name}": list(like.shape) for name, like in layers.items() if not name.startswith("fc.")}
    size = {"channels": 64, "convs": 1, "classes": 3} | size
    return own | neck_and_head_shapes(kind, backbone=backbone, **size)


@pytest.fixture(scope="module")
def branched_tensors():
    shapes = {kind: branched_shapes(kind, convs=2) for kind in BRANCHED}
    return {kind: {name: golden_weight(name, shape) for name, shape in own.items()} for kind, own in shapes.items()}


@pytest.fixture
def branched(kind, branched_tensors):
    """A small detector of mmdetection; copied where a test changes it."""
    return OrderedDict(branched_tensors[kind])


@BOTH
def test_atss_and_fcos_go_there_and_back(kind, branched):
    for meta in ({}, {"config": TEXTS[kind]}, {"cfg": TEXTS[kind], "mmengine_version": "0.7"}):
        state, config, _ = converted(branched, meta=meta)
        assert_same(to_mmdet(state, config), branched)
        assert_same(converted(to_mmdet(state, config)).state, state)


@BOTH
def test_our_atss_and_fcos_have_the_names_of_mmdetection(kind):
    config = BRANCHED[kind]
    assert names_and_shapes(config, 3) == branched_shapes(kind)
    ours = build_detector(config, 3).state_dict()
    back = converted(to_mmdet(ours, config))
    assert_same(back.state, ours)
    assert back.config.model.head == config.model.head
    assert (back.config.model.fpn, back.config.model.points) == (config.model.fpn, config.model.points)


@BOTH
def test_a_published_architecture_gets_the_settings_of_our_config(kind):
    with torch.device("meta"):
        shapes = branched_shapes(kind, "resnet50", channels=256, convs=4, classes=80)
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    wanted = load_config(ROOT / "configs" / PUBLISHED[kind])
    for given in (None, wanted):
        _, found, names = converted(tensors, given, names=(), meta={"config": TEXTS[kind]})
        assert (found.model, found.assign, found.loss) == (wanted.model, wanted.assign, wanted.loss)
        assert names == COCO_CLASSES
    assert found == wanted


@BOTH
def test_converted_weights_predict_what_a_second_implementation_does(kind, branched):
    for name in branched:  # a trained head's outputs spread more than noise: some sides lie beyond their point
        if name.startswith("bbox_head.") and "_reg.weight" in name:
            branched[name] = 3 * branched[name]
    state, config, _ = converted(branched)
    model = build_detector(config, 3).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        boxes_xyxy, scores = model.predict(IMAGES)
        wanted_boxes, wanted_scores = slow_detector(kind, branched, model.backbone(IMAGES))
    assert boxes_xyxy.shape == (1, 129, 4)
    assert wanted_boxes.std() > 20
    assert wanted_scores.std() > 0.05
    torch.testing.assert_close(boxes_xyxy[0], wanted_boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(scores[0], wanted_scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["fcos"])
def test_fcos_of_old_versions_has_other_names(kind, branched):
    old = {name.replace("head.conv_", "head.fcos_"): tensor for name, tensor in branched.items()}
    assert "bbox_head.fcos_centerness.bias" in old
    assert_same(converted(old).state, converted(branched).state)


@pytest.mark.parametrize("kind", ["fcos"])
def test_fcos_may_have_towers_without_biases(kind, branched):
    bare = {name: tensor for name, tensor in branched.items() if not ("_convs" in name and name.endswith("conv.bias"))}
    bare |= {name: tensor for name, tensor in branched.items() if name.startswith("neck.")}
    state, config, _ = converted(bare)
    assert not config.model.head.conv_bias
    assert_same(to_mmdet(state, config), bare)


@pytest.mark.parametrize(("kind", "text"), [("fcos", TEXTS["fcos"].replace("relu_before_extra_convs=True", ""))])
def test_the_files_config_says_whether_the_neck_has_a_relu(kind, text, branched):
    assert converted(branched).config.model.fpn.extra_relu
    assert not converted(branched, meta={"config": text}).config.model.fpn.extra_relu


REFUSED_SETTINGS = {
    "caffe": ("atss", "style='pytorch'", "style='caffe'", "has style=caffe; only style=pytorch"),
    "bgr in 2.x": ("atss", "to_rgb=True", "to_rgb=False", "has to_rgb=False"),
    "bgr in 3.x": ("fcos", "bgr_to_rgb=True", "bgr_to_rgb=False", "has bgr_to_rgb=False"),
    "PAA": ("atss", "'ATSSHead'", "'PAAHead'", "has bbox_head=PAAHead; only bbox_head=ATSSHead"),
    "PAA by its path": ("atss", "'ATSSHead'", "'mmdet.models.PAAHead'", "has bbox_head=PAAHead"),
    "other anchors": ("atss", "octave_base_scale=8", "octave_base_scale=4", "has octave_base_scale=4"),
    "other deltas": ("atss", "0.2, 0.2]", "0.1, 0.1]", "has target_stds=[0.1,0.1,0.1,0.1]"),
    "other coder": ("atss", "target_stds", "normalizer", "does not set target_stds"),
    "other neck": ("atss", "'on_output'", "'on_lateral'", "has add_extra_convs=on_lateral"),
    "plain FCOS": ("fcos", "norm_on_bbox=True, centerness_on_reg=True,", "", "does not set norm_on_bbox; only"),
    "distances in pixels": ("fcos", "norm_on_bbox=True", "norm_on_bbox=False", "has norm_on_bbox=False"),
    "other branch": ("fcos", "centerness_on_reg=True", "centerness_on_reg=False", "has centerness_on_reg=False"),
    "deformable towers": ("fcos", "on_last_conv=False", "on_last_conv=True", "has dcn_on_last_conv=True"),
    "other FCOS": ("fcos", "'FCOSHead'", "'NASFCOSHead'", "has bbox_head=NASFCOSHead"),
    "overridden": ("fcos", "center_sampling=True", "norm_on_bbox=False", "has norm_on_bbox=False"),
}


@pytest.mark.parametrize(("kind", "old", "new", "expected"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
def test_a_setting_that_we_have_not_is_refused(kind, old, new, expected, branched, holds, refuse, tmp_path):
    assert TEXTS[kind].count(old) == 1
    text = TEXTS[kind].replace(old, new)
    for key in ("config", "cfg"):
        holds({"state_dict": branched, "meta": {"CLASSES": NAMES, key: text}})
        message = refuse(tmp_path / "in.pth", tmp_path / "out.pt")
        assert message.startswith(f"{tmp_path / 'in.pth'}: its config ")
        assert expected in message


# As mmengine writes it: keys sorted, so that a class stands last, and long lists one value per line.
SORTED = {
    "atss": """
model = dict(
    backbone=dict(depth=18, style='pytorch', type='ResNet'),
    bbox_head=dict(
        anchor_generator=dict(octave_base_scale=8, type='AnchorGenerator'),
        bbox_coder=dict(
            target_stds=[
                0.1,
                0.1,
                0.2,
                0.2,
            ],
            type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        type='ATSSHead'),
    data_preprocessor=dict(bgr_to_rgb=True, type='DetDataPreprocessor'),
    neck=dict(add_extra_convs='on_output', type='FPN'),
    type='ATSS')
""",
    "fcos": """
model = dict(
    backbone=dict(depth=18, style='pytorch', type='ResNet'),
    bbox_head=dict(
        centerness_on_reg=True,
        norm_on_bbox=True,
        type='FCOSHead'),
    neck=dict(add_extra_convs='on_output', relu_before_extra_convs=True, type='FPN'))
""",
}


@BOTH
def test_a_sorted_config_is_read_like_any_other(kind, branched, refusal):
    text = SORTED[kind]
    assert converted(branched, meta={"cfg": text}).config == converted(branched, meta={"cfg": TEXTS[kind]}).config
    other = {"ATSSHead": "PAAHead", "FCOSHead": "NASFCOSHead"}[f"{kind.upper()}Head"]
    assert f"has bbox_head={other}" in refusal(
        converted, branched, meta={"cfg": text.replace(f"{kind.upper()}Head", other)}
    )


@pytest.mark.parametrize("kind", ["fcos"])
def test_a_config_of_old_versions_holds_what_it_inherits_first(kind, branched, refusal):
    own = "\nmodel = dict(backbone=dict(depth=18), bbox_head=dict(norm_on_bbox=True, num_classes=3))"
    plain = TEXTS[kind].replace("norm_on_bbox=True, ", "")
    assert "does not set norm_on_bbox" in refusal(converted, branched, meta={"config": plain})
    assert converted(branched, meta={"config": plain + own}).config.model.head == converted(branched).config.model.head


def test_settings_of_gfl_are_checked_too(v1_head, v2, refusal):
    text = "model = dict(backbone=dict(style='caffe'), neck=dict(add_extra_convs=True), bbox_head=dict(type='LDHead'))"
    for tensors in (v1_head, v2):
        assert "has style=caffe" in refusal(converted, tensors, meta={"config": text})
        assert converted(tensors, meta={"config": text.replace("caffe", "pytorch")}).config.model.fpn == SMALL.model.fpn


@BOTH
def test_what_could_not_be_checked_is_told(kind, branched, convert, tmp_path):
    special = {"atss": "bbox_head=ATSSHead, octave_base_scale=8", "fcos": "norm_on_bbox=True, centerness_on_reg=True"}
    for meta, silent in (({"CLASSES": NAMES}, False), ({"CLASSES": NAMES, "config": TEXTS[kind]}, True)):
        torch.save({"state_dict": branched, "meta": meta}, tmp_path / "in.pth")
        notes = [line for line in convert(tmp_path / "in.pth", tmp_path / "out.pt").splitlines() if "note" in line]
        assert len(notes) == (not silent)
        assert silent or ("holds no config" in notes[0] and "style=pytorch" in notes[0] and special[kind] in notes[0])


@pytest.mark.parametrize(
    "text", [None, 3, b"style='caffe'", ["style='caffe'"], Buffer()], ids=lambda text: type(text).__name__
)
def test_a_config_that_is_no_text_counts_as_none(text, v1_head, tmp_path):
    torch.save({"state_dict": v1_head, "meta": {"config": text, "cfg": "style='pytorch'"}}, tmp_path / "in.pth")
    assert parse_foreign(read_torch_file(tmp_path / "in.pth")).settings == {"style": "pytorch"}


@pytest.mark.parametrize(
    "part",
    ["a", "a.", "a=", "a =", " ", "a=dict(", "a=dict(type=", "a=dict(type=a.", "a=[", "a=[1,", "(", "a=a(", "\n"],
)
def test_the_text_of_a_hostile_config_is_searched_quickly(part, v1_head):
    """A search that goes over the rest of the text again at every character would take hours."""
    started = time.monotonic()
    parse_foreign({"state_dict": v1_head, "meta": {"config": "a=" + part * 500_000}})
    assert time.monotonic() - started < 30


@BOTH
def test_atss_and_fcos_go_through_the_program_and_back(kind, branched, convert, tmp_path):
    content = {"state_dict": branched, "meta": {"CLASSES": NAMES, "mmdet_version": "2.25.0", "config": TEXTS[kind]}}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    config = BRANCHED[kind]
    printed = convert(tmp_path / "in.pth", tmp_path / "ours.pt")
    for expected in ("mmdetection 2.25.0", "quality centerness_branch", f"box {config.model.head.box}", "3: disc"):
        assert expected in printed
    convert("--to", "mmdet", tmp_path / "ours.pt", tmp_path / "back.pth")
    assert_same(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], branched)
    found = load_detector(tmp_path / "ours.pt")[1]
    assert found.assign.kind == kind
    assert found.loss.box_weight == (1.0 if kind == "fcos" else 2.0)


@BOTH
@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"head": {}}, "model.head.quality joint"),
        ({"head": {"quality": "centerness_branch"}}, "model.head.box general"),
        ({"head": {"quality": "iou_branch"}}, "model.head.quality iou_branch"),
        ({"points": {"offset": 0.25}}, "model.points.offset 0.25"),
    ],
)
def test_a_config_of_another_detector_is_refused(kind, model, field, branched, refusal):
    tree = config_to_dict(BRANCHED[kind])["model"]
    head = model.get("head", tree["head"]) | {"channels": 64, "num_convs": 2, "conv_bias": tree["head"]["conv_bias"]}
    config = make_config(fpn=tree["fpn"], points=model.get("points", tree["points"]), head=head)
    assert field in refusal(converted, branched, config)


@pytest.mark.parametrize("kind", ["fcos"])
def test_the_points_of_fcos_are_not_those_of_a_config_for_gfl(kind, branched, refusal):
    tree = config_to_dict(BRANCHED[kind])["model"]
    config = make_config(fpn=tree["fpn"], head=tree["head"] | {"num_convs": 2})
    assert "the config has model.points.offset 0.0, the file 0.5" in refusal(converted, branched, config)
    config = make_config(points={"offset": 0.5}, head=tree["head"] | {"num_convs": 2})
    assert "the config has model.fpn.extra_relu False, the file True" in refusal(converted, branched, config)


@BOTH
def test_a_wrong_number_of_classes_is_told_of_atss_and_fcos(kind, branched, refusal):
    layer, head = {"atss": ("atss_cls", "ATSSHead"), "fcos": ("conv_cls", "FCOSHead")}[kind]
    message = refusal(converted, branched, names=("a", "b"))
    assert f"bbox_head.{layer}.weight has 3 outputs, but there are 2 classes" in message
    assert f"an output for the background, unlike {head}" in message
    assert "3 outputs, but there are 80 classes; name exactly those" in refusal(converted, branched, names=())
    branched[f"bbox_head.{layer}.bias"] = torch.ones(2)
    assert f"bbox_head.{layer}.bias is [2], not [3]" in refusal(converted, branched)


BRANCHED_MISFITS = {
    "no centerness of ATSS": ("atss", {"bbox_head.atss_centerness.weight": None}, "missing: bbox_head.atss_centerness"),
    "no boxes of FCOS": ("fcos", {"bbox_head.conv_reg.bias": None}, "missing: bbox_head.conv_reg.bias"),
    "more anchors": ("atss", {"bbox_head.atss_reg.weight": torch.ones(36, 64, 3, 3)}, "is [36, 64, 3, 3], not [4, 64"),
    "a bias in ATSS": ("atss", {"bbox_head.cls_convs.0.conv.bias": torch.ones(64)}, "unknown: bbox_head.cls_convs.0"),
    "one bias missing": ("fcos", {"bbox_head.reg_convs.1.conv.bias": None}, "missing: bbox_head.reg_convs.1.conv.bias"),
    "deformable": (
        "fcos",
        {"bbox_head.reg_convs.1.conv.conv_offset.bias": torch.ones(27)},
        "reg_convs.1.conv.conv_off",
    ),
    "AutoAssign": ("fcos", {"bbox_head.center_prior.mean": torch.ones(3, 2)}, "unknown: bbox_head.center_prior.mean"),
    "bins in FCOS": ("fcos", {"bbox_head.conv_reg.weight": torch.ones(68, 64, 3, 3)}, "not [4, 64, 3, 3]"),
}


@pytest.mark.parametrize(("kind", "changes", "expected"), BRANCHED_MISFITS.values(), ids=BRANCHED_MISFITS)
def test_a_tensor_that_does_not_fit_atss_or_fcos_is_named(kind, changes, expected, branched, refusal):
    tensors = {name: tensor for name, tensor in (branched | changes).items() if tensor is not None}
    assert expected in refusal(converted, tensors)


UNKNOWN_THERE = {
    "joint with plain sides": (
        {"quality": "joint", "box": "dirac"},
        {},
        {},
        "quality joint with box dirac; there",
    ),
    "IoU branch": (
        {"quality": "iou_branch", "box": "anchor_delta"},
        {},
        {},
        "iou_branch with box anchor_delta",
    ),
    "no branch": ({"quality": "none"}, {}, {}, "quality none with box general"),
    "biases of ATSS": (
        {"quality": "centerness_branch", "box": "anchor_delta", "conv_bias": True},
        {},
        {},
        "ATSSHead has model.head.conv_bias False, this model True",
    ),
    "points of ATSS": (
        {"quality": "centerness_branch", "box": "anchor_delta"},
        {},
        {"offset": 0.5},
        "ATSSHead has model.points.offset 0.0, this model 0.5",
    ),
    "points of FCOS": (
        {"quality": "centerness_branch", "box": "dirac"},
        {"extra_relu": True},
        {},
        "FCOSHead has model.points.offset 0.5, this model 0.0",
    ),
    "neck of FCOS": (
        {"quality": "centerness_branch", "box": "dirac"},
        {},
        {"offset": 0.5},
        "FCOSHead has model.fpn.extra_relu True, this model False",
    ),
    "biases of GFL": ({"conv_bias": True}, {}, {}, "GFLHead has model.head.conv_bias False, this model True"),
}


@pytest.mark.parametrize(("head", "fpn", "points", "expected"), UNKNOWN_THERE.values(), ids=UNKNOWN_THERE)
def test_a_model_that_no_head_there_expresses_is_refused(head, fpn, points, expected, refuse, tmp_path):
    config = make_config(head=head, fpn=fpn, points=points)
    state = build_detector(config, 3).state_dict()
    write_torch_file(tmp_path / "in.pt", weights(state, config, NAMES))
    assert expected in refuse("--to", "mmdet", tmp_path / "in.pt", tmp_path / "out.pth")


def test_offsets_that_are_the_same_on_every_level_are_one_offset():
    config = make_config(
        head={"quality": "centerness_branch", "box": "dirac"}, fpn={"extra_relu": True}, points={"offset": [0.5] * 5}
    )
    assert "bbox_head.conv_reg.weight" in names_and_shapes(config, 3)


def test_a_tensor_without_a_place_in_a_head_has_no_name_there(refusal):
    assert "head.quality_out.bias" in refusal(mmdet_names, "head.quality_out.bias", torch.ones(1))
    assert mmdet_names("head.quality_out.bias", torch.ones(1), FCOS) == ["bbox_head.conv_centerness.bias"]


# --- the program ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script():
    return load_program(ROOT / "scripts" / "convert_checkpoint.py")


@pytest.fixture
def convert(script, monkeypatch, capsys):
    """Run the program with these words; returns what it printed."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, words)])
        run(script.main, script.parse_args())
        return capsys.readouterr().out

    return call


@pytest.fixture
def holds(script, monkeypatch):
    """Make the program find this content in whatever it reads."""
    return lambda content: monkeypatch.setattr(script, "read_torch_file", lambda path: content)


def tree_of(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.fixture
def refuse(convert, capsys, tmp_path):
    """The one line on stderr; the exit code must be 2, and nothing may be written."""

    def call(*words):
        before = tree_of(tmp_path)
        with pytest.raises(SystemExit) as left:
            convert(*words)
        lines = capsys.readouterr().err.strip().splitlines()
        assert left.value.code == 2
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert tree_of(tmp_path) == before
        return lines[0].removeprefix("error: ")

    return call


@pytest.fixture(scope="module")
def ours(tmp_path_factory, small_tensors):
    """A run folder with best.pt, and the model in it."""
    folder = tmp_path_factory.mktemp("run")
    state = convert_detector(parse_foreign(small_tensors), SMALL_V2, NAMES).state
    write_torch_file(folder / "best.pt", weights(state, SMALL_V2, NAMES))
    model = build_detector(SMALL_V2, 3).eval()
    model.load_state_dict(state)
    return folder, model


def test_a_detector_goes_to_mmdetection_and_back_through_files(ours, convert, tmp_path):
    folder, model = ours
    printed = convert("--to", "mmdet", folder, tmp_path / "new" / "mmdet.pth")
    assert "load_from = " in printed
    theirs = torch.load(tmp_path / "new" / "mmdet.pth", weights_only=True)
    assert list(theirs["meta"]["CLASSES"]) == list(theirs["meta"]["dataset_meta"]["classes"]) == list(NAMES)
    printed = convert(tmp_path / "new" / "mmdet.pth", tmp_path / "back.pt")
    for expected in ("implus/GFocalV2", "resnet18", "FPN", "reg_max 16", "3: disc, ring, cross", "eval.py"):
        assert expected in printed
    assert_same(read_checkpoint(tmp_path / "back.pt")["model"], model.state_dict())
    back, config, names, _ = load_detector(tmp_path / "back.pt")
    assert (config.model.head, names) == (SMALL_V2.model.head, NAMES)
    with torch.no_grad():
        for found, expected in zip(back.predict(IMAGES), model.predict(IMAGES), strict=True):
            assert torch.equal(found, expected)
    assert sorted(os.listdir(tmp_path)) == ["back.pt", "new"]
    assert os.listdir(tmp_path / "new") == ["mmdet.pth"]


def test_the_program_in_a_process_of_its_own(v1_head, tmp_path):
    torch.save(mmdet2(v1_head), tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    command = [sys.executable, ROOT / "scripts" / "convert_checkpoint.py", "in.pth", "out.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mmdetection 2.25.0" in done.stdout
    assert_same(to_mmdet(load_detector(tmp_path / "out.pt")[0].state_dict(), SMALL), v1_head)


def test_classes_are_named_by_a_json_in_the_order_of_their_ids(v1_head, convert, refuse, tmp_path):
    torch.save(v1_head, tmp_path / "in.pth")
    message = refuse(tmp_path / "in.pth", tmp_path / "out.pt")
    assert "3 outputs, but there are 80 classes; name exactly those with --classes" in message
    categories = [{"id": number, "name": name} for number, name in ((9, "cross"), (2, "disc"), (5, "ring"))]
    images = [{"id": 1, "file_name": "1.png", "width": 3, "height": 4}]
    tree = {"images": images, "annotations": [], "categories": categories}
    (tmp_path / "classes.json").write_text(json.dumps(tree))
    assert "3: disc, ring, cross" in convert(
        tmp_path / "in.pth", tmp_path / "out.pt", "--classes", tmp_path / "classes.json"
    )
    assert read_checkpoint(tmp_path / "out.pt")["class_names"] == list(NAMES)
    (tmp_path / "classes.json").write_text(json.dumps(tree | {"categories": categories[:2]}))
    message = refuse(tmp_path / "in.pth", tmp_path / "out2.pt", "--classes", tmp_path / "classes.json")
    assert "3 outputs, but there are 2 classes" in message
    assert "no.json" in refuse(tmp_path / "in.pth", tmp_path / "out2.pt", "--classes", tmp_path / "no.json")


def write_config(path, **model):
    tree = config_to_dict(make_config(**model))["model"]
    path.write_text(yaml.safe_dump({"model": tree, "data": {"val": {"annotations": "my.json"}}}))
    return path


def test_a_config_that_fits_goes_into_the_file(v1_head, convert, tmp_path):
    torch.save(mmdet3(v1_head), tmp_path / "in.pth")
    config = write_config(tmp_path / "config.yaml")
    printed = convert(tmp_path / "in.pth", tmp_path / "out.pt", "--config", config)
    assert printed.strip().endswith(f"python eval.py {tmp_path / 'out.pt'}")
    assert load_detector(tmp_path / "out.pt")[1] == load_config(config)


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"backbone": {"name": "resnet34"}}, "model.backbone.name resnet34"),
        ({"backbone": {"name": "resnet50", "dcn": "v1", "dcn_stages": ["c5"]}}, "model.backbone"),
        ({"backbone": {"dcn": "v1", "dcn_stages": ["c5"]}}, "model.backbone.dcn v1"),
        ({"fpn": {"channels": 128}}, "model.fpn.channels 128"),
        ({"head": {"reg_max": 8}}, "model.head.reg_max 8"),
        ({"head": {"delta": 0.5}}, "model.head.delta 0.5"),
        ({"head": {"channels": 128}}, "model.head.channels 128"),
        ({"head": {"num_convs": 2}}, "model.head.num_convs 2"),
        ({"head": {"quality": "dgqp"}}, "model.head.quality dgqp"),
        ({"points": {"strides": [8, 16, 32]}}, "model.points.strides [8, 16, 32]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_its_field(model, field, v1_head, holds, refuse, tmp_path):
    holds(mmdet2(v1_head))
    config = write_config(tmp_path / "config.yaml", **model)
    message = refuse(tmp_path / "in.pth", tmp_path / "out.pt", "--config", config)
    assert message.startswith(f"{tmp_path / 'in.pth'}: the config has {field}")
    assert "the file" in message


def replaced(**changes):
    """A change of tensors: by name with _ for ., None deletes."""

    def change(tensors):
        for name, value in changes.items():
            (name,) = [full for full in tensors if full.replace(".", "_") == name] or [name]
            tensors.pop(name, None)
            if value is not None:
                tensors[name] = value
        return tensors

    return change


def renamed(old, new):
    return lambda tensors: OrderedDict((name.replace(old, new), tensor) for name, tensor in tensors.items())


def with_head(*outputs):
    """A change to a head of another detector, with these outputs."""

    def change(tensors):
        kept = {name: tensor for name, tensor in tensors.items() if "bbox_head" not in name or "_convs" in name}
        return kept | {f"bbox_head.{name}.{last}": torch.ones(3) for name in outputs for last in ("weight", "bias")}

    return change


MISFITS = {
    "RetinaNet": (with_head("retina_cls", "retina_reg"), "no detector known here", "retina_cls.weight"),
    "VFNet": (with_head("vfnet_cls", "vfnet_reg"), "no detector known here", "vfnet_cls.weight"),
    "FoveaBox": (with_head("conv_cls", "conv_reg"), "no detector known here", "conv_cls.weight"),
    "control characters": (replaced(**{"a\nb\x1b[2J": torch.ones(1)}), "unknown"),
    "two stages": (renamed("bbox_head.", "roi_head."), "no detector known here"),
    "other neck": (renamed("neck.", "neck.inner."), "neck.lateral_convs.0.conv.weight is missing"),
    "other backbone": (renamed("backbone.layer", "backbone.block"), "layer1.0.conv2.weight is missing"),
    "missing": (replaced(neck_fpn_convs_1_conv_bias=None), "missing: neck.fpn_convs.1.conv.bias"),
    "missing weight": (replaced(bbox_head_gfl_reg_weight=None), "bbox_head.gfl_reg.weight is missing"),
    "missing norm": (replaced(backbone_bn1_running_var=None), "missing: backbone.bn1.running_var"),
    "missing scale": (replaced(bbox_head_scales_3_scale=None), "missing: bbox_head.scales.3.scale"),
    "extra": (replaced(extra=torch.ones(2)), "1 tensors unknown: extra"),
    "ema": (replaced(ema_backbone_conv1_weight=torch.ones(2)), "unknown: ema_backbone_conv1_weight"),
    "shape": (replaced(bbox_head_gfl_cls_bias=torch.ones(4)), "bbox_head.gfl_cls.bias is [4], not [3]"),
    "no shape": (replaced(bbox_head_gfl_cls_bias=torch.tensor(1.0)), "bbox_head.gfl_cls.bias is [], not [3]"),
    "shape of all scales": (
        replaced(**{f"bbox_head_scales_{level}_scale": torch.ones(1) for level in range(5)}),
        "bbox_head.scales.0.scale is",
    ),
    "shape of a scale": (replaced(bbox_head_scales_2_scale=torch.ones(1)), "bbox_head.scales"),
    "no convolution": (replaced(bbox_head_gfl_cls_weight=torch.ones(3)), "no weight of a convolution"),
    "kernel": (replaced(bbox_head_gfl_cls_weight=torch.ones(3, 64, 1, 1)), "is [3, 64, 1, 1], not [3, 64, 3, 3]"),
    "channels": (replaced(bbox_head_gfl_cls_weight=torch.ones(3, 48, 3, 3)), "model.head.channels"),
    "width": (replaced(backbone_layer1_0_conv2_weight=torch.ones(32, 32, 3, 3)), "no backbone known", "[32, 32]"),
    "bins": (replaced(bbox_head_integral_project=torch.linspace(0, 1, 17)), "project is not 0, 1, ..., 16"),
    "number of bins": (replaced(bbox_head_integral_project=torch.arange(9.0)), "project is not 0, 1, ..., 16"),
    "background": (
        replaced(bbox_head_gfl_cls_weight=torch.ones(4, 64, 3, 3), bbox_head_gfl_cls_bias=torch.ones(4)),
        "4 outputs, but there are 3 classes: a head with an output for the background",
    ),
    "too few classes": (
        replaced(bbox_head_gfl_cls_weight=torch.ones(9, 64, 3, 3), bbox_head_gfl_cls_bias=torch.ones(9)),
        "9 outputs, but there are 3 classes",
    ),
    "offsets": (
        replaced(**{"backbone.layer4.0.conv2.conv_offset.weight": torch.ones(36, 512, 3, 3)}),
        "[36] channels of offsets",
    ),
    "offsets where none can be": (
        replaced(**{"backbone.layer4.0.conv2.conv_offset.weight": torch.ones(18, 512, 3, 3)}),
        "resnet18 has no bottlenecks",
    ),
    "nothing": (lambda tensors: {}, "no state dict of tensors"),
    "numbers": (lambda tensors: {"a": 1}, "no state dict of tensors"),
    "objects": (lambda tensors: {"a": Buffer()}, "no state dict of tensors"),
    "unnamed": (lambda tensors: [torch.ones(2)], "no state dict of tensors"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_tensors_that_do_not_fit_are_named(name, v1_head, holds, refuse, tmp_path):
    change, *expected = MISFITS[name]
    holds({"state_dict": change(v1_head), "meta": {"CLASSES": NAMES}})
    message = refuse(tmp_path / "in.pth", tmp_path / "out.pt")
    assert message.startswith(f"{tmp_path / 'in.pth'}: ")
    for part in expected:
        assert part in message


def test_a_head_of_81_outputs_has_one_for_the_background(v1_head, refusal):
    v1_head[PROJECT_V1] = v1_head.pop(PROJECT)
    v1_head |= {CLS: torch.ones(81, 64, 3, 3), "bbox_head.gfl_cls.bias": torch.ones(81)}
    for meta in ({}, {"CLASSES": COCO_CLASSES}):
        message = refusal(convert_detector, parse_foreign({"state_dict": v1_head, "meta": meta}))
        assert "81 outputs, but there are 80 classes" in message
        assert "background" in message


def test_several_misfits_are_told_at_once(v1_head, refusal):
    tensors = replaced(neck_fpn_convs_1_conv_bias=None, bbox_head_gfl_cls_bias=torch.ones(4), a=torch.ones(2))(v1_head)
    message = refusal(converted, tensors)
    for part in ("1 tensors missing: neck.fpn_convs.1.conv.bias", "unknown: a", "is [4], not [3]"):
        assert part in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("bbox_head.gfl_cls.bias", (2**40,)),
        ("bbox_head.gfl_reg.weight", (2**38, 64, 3, 3)),
        ("bbox_head.gfl_cls.weight", (3, 2**40, 3, 3)),
        ("neck.lateral_convs.0.conv.weight", (2**40, 128, 1, 1)),
        ("bbox_head.scales.0.scale", (2**40,)),
        (PROJECT, (2**40,)),
    ],
)
def test_a_tensor_that_claims_a_huge_shape_is_refused(name, shape, v1_head, refuse, tmp_path):
    """One number with strides of 0, in a precision that has to be converted."""
    v1_head[name] = torch.zeros(1, dtype=torch.float16).as_strided(shape, (0,) * len(shape))
    torch.save(mmdet2(v1_head), tmp_path / "in.pth")
    assert str(tmp_path / "in.pth") in refuse(tmp_path / "in.pth", tmp_path / "out.pt")


def test_truncated_and_other_files_are_refused(v1_head, refuse, tmp_path):
    path = tmp_path / "in.pth"
    for new in (True, False):
        torch.save(mmdet2(v1_head), path, _use_new_zipfile_serialization=new)
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)
        assert refuse(path, tmp_path / "out.pt") == f"{path} is truncated, damaged or no PyTorch file"
    assert str(tmp_path / "no.pth") in refuse(tmp_path / "no.pth", tmp_path / "out.pt")
    assert "Is a directory" in refuse(tmp_path, tmp_path / "out.pt")


def test_a_place_that_cannot_be_written_is_told(v1_head, refuse, tmp_path):
    torch.save(mmdet2(v1_head), tmp_path / "in.pth")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link.pt").symlink_to("in.pth")
    for out in ("folder", "in.pth", "folder/../in.pth", "link.pt", "file/out.pt", "file/more/out.pt"):
        assert str(tmp_path / out) in refuse(tmp_path / "in.pth", tmp_path / out)


def test_the_input_is_not_what_is_written_through(v1_head, convert, tmp_path):
    """OUT is written as OUT.tmp first; in a process of its own, since a mapped file that shrinks kills it."""
    path = tmp_path / "out.pt.tmp"
    torch.save(mmdet2(v1_head), path)
    before = path.read_bytes()
    child = multiprocessing.get_context("fork").Process(target=convert, args=(path, tmp_path / "out.pt"))
    child.start()
    child.join(60)
    assert child.exitcode in (0, 2)
    assert path.read_bytes() == before
    if child.exitcode == 0:
        assert_same(to_mmdet(load_detector(tmp_path / "out.pt")[0].state_dict(), SMALL), v1_head)


def test_our_own_checkpoint_is_not_taken_for_a_foreign_one(ours, refuse, tmp_path):
    message = refuse(ours[0] / "best.pt", tmp_path / "out.pt")
    assert message.startswith(f"{ours[0] / 'best.pt'} is a checkpoint of this program already")


@pytest.mark.parametrize("as_folder", [True, False])
def test_our_checkpoint_is_not_replaced_by_its_own_conversion(as_folder, ours, refuse, tmp_path):
    path = tmp_path / "run" / "best.pt"
    path.parent.mkdir()
    path.write_bytes((ours[0] / "best.pt").read_bytes())
    assert str(path) in refuse("--to", "mmdet", path.parent if as_folder else path, path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"points": {"offset": 0.5}}, "GFocalHead has model.points.offset 0.0, this model 0.5"),
        ({"head": {"quality": "dgqp", "delta": 0.5}}, "GFocalHead has model.head.delta 1.0, this model 0.5"),
    ],
)
def test_what_mmdetection_cannot_express_is_refused(change, expected, small_tensors, refuse, tmp_path):
    state = convert_detector(parse_foreign(small_tensors), None, NAMES).state
    config = make_config(**{"head": {"quality": "dgqp"}} | change)
    torch.save(weights(state, config, NAMES), tmp_path / "in.pt")
    assert expected in refuse("--to", "mmdet", tmp_path / "in.pt", tmp_path / "out.pth")


def test_what_is_no_checkpoint_of_ours_does_not_go_to_mmdetection(v1_head, refuse, tmp_path):
    torch.save(mmdet2(v1_head), tmp_path / "in.pth")
    assert "in.pth is not a checkpoint" in refuse("--to", "mmdet", tmp_path / "in.pth", tmp_path / "out.pth")
    assert "no checkpoint at" in refuse("--to", "mmdet", tmp_path, tmp_path / "out.pth")
    assert "no checkpoint at" in refuse("--to", "mmdet", tmp_path / "no.pt", tmp_path / "out.pth")


def test_an_unknown_tensor_of_ours_has_no_name_there(refusal):
    for name in ("head.new.weight", "aux.weight", "fpn.lateral.0", "head.cls_out"):
        assert name in refusal(mmdet_names, name, torch.ones(1))


def test_resuming_from_converted_weights_is_a_clear_error(coco_set, tmp_path, refusal):
    """Their own error, not a missing key."""
    train = load_program(ROOT / "train.py")
    data = coco_set(categories={1: "disc", 2: "ring", 3: "cross"}, boxes=[(0, 1, [10, 10, 20, 15])])
    split = {"annotations": data.annotations, "images": data.images}
    tree = config_to_dict(SMALL) | {
        "data": {"train": split, "val": split, "workers": 0},
        "run_dir": str(tmp_path / "run"),
    }
    config = config_from_dict(tree | {"optim": {"batch": 1}}, "test")
    state = build_detector(config, 3).state_dict()
    (tmp_path / "run").mkdir()
    write_torch_file(tmp_path / "run" / "last.pt", weights(state, config, NAMES))
    message = refusal(train.Trainer, config, torch.device("cpu"), StopRequest([]), resume=True)
    assert message.startswith(f"{tmp_path / 'run' / 'last.pt'} holds weights only")
    assert "--resume" in message
    assert "already holds a run" in refusal(train.Trainer, config, torch.device("cpu"), StopRequest([]), resume=False)


# --- backbones --------------------------------------------------------------------------------------------------------


def test_a_backbone_of_torchvision_becomes_a_file_of_weights(convert, tmp_path):
    theirs = models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "in.pth")
    printed = convert(tmp_path / "in.pth", tmp_path / "out.pt")
    assert "resnet18, backbone only" in printed
    assert printed.strip().endswith(f"model.backbone.weights={tmp_path / 'out.pt'}")
    backbone = Backbone("resnet18")
    load_pretrained(backbone, "resnet18", str(tmp_path / "out.pt"))
    assert_same(backbone.state_dict(), {name: t for name, t in theirs.items() if not name.startswith("fc.")})


def test_a_backbone_of_open_mmlab_becomes_a_file_of_weights(convert, tmp_path):
    with torch.device("meta"):
        names = Backbone("resnext101_32x4d").state_dict()
    theirs = {f"backbone.{name}": torch.full_like(like, 3, device="cpu") for name, like in names.items()}
    theirs |= {"head.fc.weight": torch.ones(1000, 2048), "head.fc.bias": torch.ones(1000)}
    content = {"meta": {"CLASSES": ["tench"], "mmcls": Buffer()}, "state_dict": theirs}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    assert "resnext101_32x4d, backbone only" in convert(tmp_path / "in.pth", tmp_path / "out.pt")
    with torch.device("meta"):
        backbone = Backbone("resnext101_32x4d")
    backbone.to_empty(device="cpu")
    load_pretrained(backbone, "resnext101_32x4d", str(tmp_path / "out.pt"))
    assert all((tensor == 3).all() for tensor in backbone.state_dict().values())


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_backbone_is_recognised(name):
    with torch.device("meta"):
        theirs = getattr(models, name)().state_dict()
    assert convert_backbone(theirs)[1] == name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet152", "no backbone known here has (3, 8, 36, 3) blocks"),
        ("wide_resnet50_2", "no backbone known here"),
        ("resnext101_32x8d", "no backbone known here"),
        ("vgg11", "layer1.0.conv2.weight is missing"),
        ("swin_t", "layer1.0.conv2.weight is missing"),
    ],
)
def test_another_network_is_refused(name, expected, refusal):
    with torch.device("meta"):
        theirs = getattr(models, name)().state_dict()
    assert expected in refusal(convert_backbone, theirs)


def test_a_backbone_that_does_not_fit_is_refused_in_the_files_own_names(refuse, tmp_path):
    theirs = models.resnet18().state_dict()
    theirs.pop("bn1.bias")
    torch.save(theirs, tmp_path / "in.pth")
    message = refuse(tmp_path / "in.pth", tmp_path / "out.pt")
    assert message == f"{tmp_path / 'in.pth'}: 1 tensors missing: bn1.bias"
    config = write_config(tmp_path / "config.yaml", backbone={"name": "resnet50"})
    theirs["bn1.bias"] = torch.zeros(64)
    torch.save(theirs, tmp_path / "in.pth")
    message = refuse(tmp_path / "in.pth", tmp_path / "out.pt", "--config", config)
    assert "model.backbone.name resnet50, the file resnet18" in message


def test_converted_weights_are_plain_tensors_and_say_their_format(v1_head, convert, tmp_path):
    torch.save(mmdet3(v1_head), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.pt")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert content.keys() == {"format", "model", "config", "class_names"}
    assert content["format"] == FORMAT
