"""Tensors of other codebases get our names and shapes and keep their values, and those that do not fit are named."""

import json

import pytest
import torch
from external_models import (
    CONFIGS,
    FCOS_HEAD,
    GOLDEN,
    GOLDEN_MODELS,
    NAMES,
    ROOT,
    TEXTS,
    assert_same_state,
    convert,
    golden_config,
    make_config,
    mmdet_shapes,
    shapes_by_hand,
    small_detector,
)
from reference import golden_weight, slow_detector
from torchvision import models

from gfl.build import build_detector
from gfl.config_file import config_from_dict, config_to_dict, load_config
from gfl.model.backbone import Backbone
from gfl.tools.convert.architecture import FCOS, PROJECT, PROJECT_V1
from gfl.tools.convert.state_dict import COCO_CLASSES, convert_backbone, find_mmdet_head, mmdet_names, to_mmdet

CLS, REG = "bbox_head.gfl_cls.weight", "bbox_head.gfl_reg.weight"
BOTH = pytest.mark.parametrize("kind", ["atss", "fcos"])
ALL = pytest.mark.parametrize("kind", list(CONFIGS))


# --- names, shapes and values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_exported_names_and_shapes_are_those_of_the_golden_model(name):
    assert mmdet_shapes(golden_config(name), 80) == json.loads((GOLDEN / f"{name}.json").read_text())


@BOTH
def test_exported_names_and_shapes_are_those_of_mmdetection_s_sources(kind):
    assert mmdet_shapes(CONFIGS[kind], 3) == shapes_by_hand(kind)


@ALL
def test_conversion_there_and_back_is_the_identity_from_either_end(kind):
    theirs = small_detector(kind)
    for meta in ({}, {"config": TEXTS.get(kind, "")}, {"cfg": TEXTS.get(kind, ""), "mmengine_version": "0.7"}):
        state, config, _ = convert(theirs, meta=meta)
        assert_same_state(to_mmdet(state, config), theirs)
        assert_same_state(convert(to_mmdet(state, config)).state, state)


def test_every_tensor_keeps_its_place():
    """With names by hand, so that two renamings that cancel are detected."""
    theirs = small_detector("gflv2")
    ours = convert(theirs).state
    for name, their_name in {
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
        assert torch.equal(ours[name], theirs[their_name]), name
    assert ours["head.scales"].tolist() == [theirs[f"bbox_head.scales.{level}.scale"].item() for level in range(5)]
    assert torch.equal(ours["quality.hidden.weight"], theirs["bbox_head.reg_conf.0.weight"][:, :, 0, 0])
    assert torch.equal(ours["quality.out.bias"], theirs["bbox_head.reg_conf.2.bias"])


def test_towers_of_many_convolutions_keep_their_order():
    shapes = mmdet_shapes(make_config(head={"num_convs": 12}), 2)  # indices of two digits
    tensors = {name: torch.full(shape, float(place)) for place, (name, shape) in enumerate(shapes.items())}
    tensors[PROJECT] = torch.arange(17.0)
    state, found, _ = convert(tensors, names=("a", "b"))
    assert found.model.head.num_convs == 12
    for layer in range(12):
        own = state[f"head.cls_tower.{3 * layer}.weight"]
        assert torch.equal(own, tensors[f"bbox_head.cls_convs.{layer}.conv.weight"])


@BOTH
def test_converted_weights_predict_what_a_second_implementation_does(kind):
    tensors = small_detector(kind)
    for name in tensors:  # outputs of a trained head spread more than noise: some sides lie beyond their point
        if name.startswith("bbox_head.") and "_reg.weight" in name:
            tensors[name] = 3 * tensors[name]
    state, config, _ = convert(tensors)
    model = build_detector(config, 3).eval()
    model.load_state_dict(state)
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(images)
        boxes_xyxy, scores = model.decode(output)
        scores = scores * model.quality.rank_factor(output)[..., None]
        wanted_boxes, wanted_scores = slow_detector(kind, tensors, model.backbone(images))
    assert boxes_xyxy.shape == (1, 129, 4)
    assert wanted_boxes.std() > 20
    assert wanted_scores.std() > 0.05
    torch.testing.assert_close(boxes_xyxy[0], wanted_boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(scores[0], wanted_scores, rtol=1e-4, atol=1e-6)


def test_points_of_v1_lie_at_the_centres_of_its_anchors():
    v1 = small_detector("gfl")
    v1[PROJECT_V1] = v1.pop(PROJECT)
    state, config, _ = convert(v1)
    assert config.model.points.offset == tuple((s - 1) / (2 * s) for s in (8, 16, 32, 64, 128))
    assert convert(v1, CONFIGS["gfl"]).config.model.points == config.model.points
    model = build_detector(config, 3).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 128, 256))
    points = output.grid.points.split(output.grid.level_sizes)
    for stride, ours in zip((8, 16, 32, 64, 128), points, strict=True):
        columns, rows = torch.arange(256 // stride), torch.arange(128 // stride)
        expected = [((x + 0.5) * stride - 0.5, (y + 0.5) * stride - 0.5) for y in rows for x in columns]
        assert torch.equal(ours, torch.tensor(expected)), stride


@pytest.mark.parametrize(("dcn", "old_names"), [("v1", True), ("v1", False), ("v2", False)])
def test_deformable_convolutions_are_found_under_old_and_new_names(dcn, old_names):
    config = make_config(backbone={"name": "resnet50", "dcn": dcn, "dcn_stages": ["c4", "c5"]})
    with torch.device("meta"):
        own = build_detector(config, 3).state_dict()
    shapes = mmdet_shapes(config, 3)
    assert shapes["backbone.layer3.0.conv2.conv_offset.weight"] == [18 if dcn == "v1" else 27, 256, 3, 3]
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tensors[PROJECT] = torch.arange(17.0)
    tensors["backbone.layer4.2.conv2.conv_offset.bias"] += 3
    if old_names:
        tensors = {name.replace("conv2.conv_offset", "conv2_offset"): tensor for name, tensor in tensors.items()}
    state, found, _ = convert(tensors)
    assert found.model.backbone.dcn == dcn
    assert found.model.backbone.dcn_stages == ("c4", "c5")
    assert {name: tensor.shape for name, tensor in state.items()} == {name: like.shape for name, like in own.items()}
    assert (state["backbone.layer4.2.conv2.conv_offset.bias"] == 3).all()


def test_half_precision_becomes_float32():
    half = {name: t.half() if t.is_floating_point() else t for name, t in small_detector("gfl").items()}
    state = convert(half).state
    kinds = {(tensor.dtype, name.endswith("num_batches_tracked")) for name, tensor in state.items()}
    assert kinds == {(torch.float32, False), (torch.int64, True)}
    assert torch.equal(state["head.cls_out.weight"], half[CLS].float())
    assert state["head.scales"].tolist() == [half[f"bbox_head.scales.{level}.scale"].item() for level in range(5)]


def test_files_older_than_num_batches_tracked_and_project_are_converted():
    new = small_detector("gfl")
    old = {n: t for n, t in new.items() if not n.endswith("num_batches_tracked") and n != PROJECT}
    assert_same_state(convert(old).state, convert(new).state)


def test_fcos_of_old_versions_has_other_names():
    new = small_detector("fcos")
    old = {name.replace("head.conv_", "head.fcos_"): tensor for name, tensor in new.items()}
    assert "bbox_head.fcos_centerness.bias" in old
    assert_same_state(convert(old).state, convert(new).state)


def test_fcos_may_have_towers_without_biases():
    bare = {n: t for n, t in small_detector("fcos").items() if not ("_convs" in n and n.endswith("conv.bias"))}
    bare |= {name: tensor for name, tensor in small_detector("fcos").items() if name.startswith("neck.")}
    state, config, _ = convert(bare)
    assert not config.model.head.conv_bias
    assert_same_state(to_mmdet(state, config), bare)


# --- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "file"), [("atss", "atss_r50_fpn_1x_coco"), ("fcos", "fcos_r50_fpn_1x_coco")])
def test_a_published_architecture_gets_the_settings_of_our_config(kind, file):
    shapes = shapes_by_hand(kind, "resnet50", channels=256, convs=4, classes=80)
    with torch.device("meta"):
        tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    wanted = load_config(ROOT / "configs" / f"{file}.yaml")
    for given in (None, wanted):
        _, found, names = convert(tensors, given, names=(), meta={"config": TEXTS[kind]})
        assert (found.model, found.assign, found.loss) == (wanted.model, wanted.assign, wanted.loss)
        assert names == COCO_CLASSES
    assert found == wanted


def test_the_config_distinguishes_meanings_of_the_quality_predictor_s_20_inputs():
    without_mean = make_config(head={"quality": "dgqp", "dgqp": {"topk": 5, "add_mean": False}})
    for config in (without_mean, CONFIGS["gflv2"]):
        assert convert(small_detector("gflv2"), config).config.model == config.model


def test_other_settings_come_from_the_given_config():
    tree = config_to_dict(CONFIGS["gfl"]) | {"optim": {"lr": 0.5}, "data": {"val": {"annotations": "a.json"}}}
    config = config_from_dict(tree, "test")
    found = convert(small_detector("gfl"), config).config
    assert (found.optim, found.data, found.model) == (config.optim, config.data, config.model)


# --- class names ------------------------------------------------------------------------------------------------------


def test_a_golden_file_of_80_classes_has_the_class_names_of_coco():
    shapes = json.loads((GOLDEN / "model_gfl_r18_fpn.json").read_text())
    tensors = {name: golden_weight(name, shape) for name, shape in shapes.items()}
    state, config, names = convert(tensors, names=())
    assert (names[0], names[10], names[11], names[-1]) == ("person", "fire hydrant", "stop sign", "toothbrush")
    assert len(set(names)) == 80
    build_detector(config, 80).load_state_dict(state)
    assert_same_state(to_mmdet(state, config), tensors)


def test_names_in_the_file_come_before_given_ones():
    assert convert(small_detector("gfl"), names=("a", "b", "c"), meta={"CLASSES": NAMES}).class_names == NAMES


# --- to mmdetection ---------------------------------------------------------------------------------------------------


def test_the_same_offset_on_every_level_is_one_offset():
    config = make_config(head=FCOS_HEAD, fpn={"extra_relu": True}, points={"offset": [0.5] * 5})
    assert find_mmdet_head(config) is FCOS


@pytest.mark.parametrize("name", ["head.new.weight", "aux.weight", "fpn.lateral.0", "head.cls_out"])
def test_a_tensor_without_a_counterpart_is_named(name, refusal):
    assert name in refusal(mmdet_names, name, torch.ones(1))


def test_names_depend_on_the_head(refusal):
    assert "head.quality_out.bias" in refusal(mmdet_names, "head.quality_out.bias", torch.ones(1))
    assert mmdet_names("head.quality_out.bias", torch.ones(1), FCOS) == ["bbox_head.conv_centerness.bias"]


# --- backbones --------------------------------------------------------------------------------------------------------


def test_a_backbone_of_open_mmlab_loses_its_prefix_and_classifier():
    with torch.device("meta"):
        own = Backbone("resnext101_32x4d").state_dict()
        theirs = {f"backbone.{name}": torch.empty_like(tensor) for name, tensor in own.items()}
        theirs |= {"head.fc.weight": torch.ones(1000, 2048), "head.fc.bias": torch.ones(1000)}
        state, name = convert_backbone(theirs)
    assert name == "resnext101_32x4d"
    assert {name: tensor.shape for name, tensor in state.items()} == {name: like.shape for name, like in own.items()}


def test_a_backbone_that_does_not_fit_is_refused_with_the_file_s_own_names(refusal):
    theirs = models.resnet18().state_dict()
    assert_same_state(convert_backbone(theirs)[0], {n: t for n, t in theirs.items() if not n.startswith("fc.")})
    theirs.pop("bn1.bias")
    assert "missing: bn1.bias" in refusal(convert_backbone, theirs)
