"""Checkpoints of other codebases are recognized by their tensors and settings, and others are refused."""

import json
import time
from collections import OrderedDict

import pytest
import torch
from external_models import (
    CONFIGS,
    GOLDEN,
    GOLDEN_MODELS,
    NAMES,
    TEXTS,
    Buffer,
    convert,
    golden_config,
    mmdet2,
    mmdet3,
    small_detector,
)
from torchvision import models

from gfl.common.torch_file import read_torch_file
from gfl.config_file import config_to_dict
from gfl.tools.convert.architecture import (
    PROJECT,
    PROJECT_V1,
    parse_external,
    recognize_backbone,
    recognize_detector,
)

BOTH = pytest.mark.parametrize("kind", ["atss", "fcos"])


def recognize(tensors, **meta):
    return recognize_detector(parse_external({"state_dict": tensors, "meta": meta}))


@pytest.mark.parametrize("name", GOLDEN_MODELS)
def test_the_golden_architectures_are_recognized(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    wanted = config_to_dict(golden_config(name))["model"]
    del wanted["head"]["dgqp"]["init"]  # which no file shows
    with torch.device("meta"):
        found = recognize_detector(parse_external({tensor: torch.empty(shape) for tensor, shape in golden.items()}))
    for section, values in found.items():
        assert values == {key: wanted[section][key] for key in values}


# --- the content of a file --------------------------------------------------------------------------------------------


def with_prefix(tensors):
    return OrderedDict((f"module.{name}", tensor) for name, tensor in tensors.items())


FILES = {
    "2.x": (mmdet2, "mmdetection 2.25.0", NAMES),
    "3.x": (mmdet3, "mmdetection 3.x", NAMES),
    "3.x without classes": (lambda t: {"state_dict": t, "meta": {"mmengine_version": "0.7"}}, "mmdetection 3.x", ()),
    "bare state dict": (lambda t: t, "mmdetection", ()),
    "multi-GPU wrapper": (lambda t: mmdet2(with_prefix(t)), "mmdetection 2.25.0", NAMES),
    "meta of an unknown class": (lambda t: {"state_dict": t, "meta": Buffer()}, "mmdetection", ()),
}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("file", FILES)
def test_the_files_of_every_version_are_understood(file, new_format, tmp_path):
    write, codebase, names = FILES[file]
    tensors = small_detector("gfl")
    torch.save(write(tensors), tmp_path / "in.pth", _use_new_zipfile_serialization=new_format)
    checkpoint = parse_external(read_torch_file(tmp_path / "in.pth"))
    assert (checkpoint.codebase, checkpoint.class_names) == (codebase, names)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert all(torch.equal(checkpoint.tensors[name], tensors[name]) for name in tensors)


def test_v1_and_v2_are_recognized_by_their_tensors():
    assert parse_external(small_detector("gflv2")).codebase == "implus/GFocalV2"
    v1 = small_detector("gfl")
    v1[PROJECT_V1] = v1.pop(PROJECT)
    assert parse_external(v1).codebase == "implus/GFocal (V1)"


def test_class_names_in_either_version_s_place_are_found():
    tensors = {"a": torch.ones(1)}
    for meta in ({"CLASSES": list(NAMES)}, {"CLASSES": None, "dataset_meta": {"CLASSES": NAMES}}):
        assert parse_external({"state_dict": tensors, "meta": meta}).class_names == NAMES


@pytest.mark.parametrize(
    "content", [{}, {"a": 1}, {"a": Buffer()}, [torch.ones(2)], None], ids=["empty", "number", "object", "list", "none"]
)
def test_content_without_a_state_dict_is_refused(content, refusal):
    assert refusal(parse_external, {"state_dict": content}).code == "not_state_dict"


def test_tensors_that_cannot_be_real_are_refused(refusal):
    for tensors in ({"a": torch.empty(0)}, {"a": torch.ones(1), "module.a": torch.ones(1)}):
        assert refusal(parse_external, tensors).code == "tensors"


# --- detectors and backbones ------------------------------------------------------------------------------------------


def with_head(*outputs):
    """Another detector: the small one with these outputs."""
    kept = {name: t for name, t in small_detector("gfl").items() if "bbox_head" not in name or "_convs" in name}
    return kept | {f"bbox_head.{name}.{last}": torch.ones(3) for name in outputs for last in ("weight", "bias")}


def renamed(old, new):
    return {name.replace(old, new): tensor for name, tensor in small_detector("gfl").items()}


@pytest.mark.parametrize(
    ("tensors", "code", "part"),
    [
        (with_head("retina_cls", "retina_reg"), "unknown_detector", "retina_cls.weight"),
        (with_head("vfnet_cls", "vfnet_reg"), "unknown_detector", "vfnet_cls.weight"),
        (with_head("conv_cls", "conv_reg"), "unknown_detector", "conv_cls.weight"),
        (renamed("bbox_head.", "roi_head."), "unknown_detector", "backbone"),
        (renamed("neck.", "neck.inner."), "tensors", "neck.lateral_convs.0.conv.weight"),
        (renamed("backbone.layer", "backbone.block"), "tensors", "layer1.0.conv2.weight"),
    ],
    ids=["RetinaNet", "VFNet", "FoveaBox", "two stages", "another neck", "another backbone"],
)
def test_another_detector_is_refused_naming_a_tensor(tensors, code, part, refusal):
    assert refusal(recognize, tensors).code == code
    assert part in refusal(recognize, tensors)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_every_backbone_of_torchvision_is_recognized(name):
    with torch.device("meta"):
        assert recognize_backbone(getattr(models, name)().state_dict())["name"] == name


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("resnet152", "unknown_backbone"),
        ("wide_resnet50_2", "unknown_backbone"),
        ("resnext101_32x8d", "unknown_backbone"),
        ("vgg11", "tensors"),
        ("swin_t", "tensors"),
    ],
)
def test_another_backbone_is_refused(name, code, refusal):
    with torch.device("meta"):
        theirs = getattr(models, name)().state_dict()
    assert refusal(recognize_backbone, theirs).code == code


# --- settings in the file's config ------------------------------------------------------------------------------------

REFUSED_SETTINGS = {
    "caffe": ("atss", "style='pytorch'", "style='caffe'", "style=caffe"),
    "bgr in 2.x": ("atss", "to_rgb=True", "to_rgb=False", "to_rgb=False"),
    "bgr in 3.x": ("fcos", "bgr_to_rgb=True", "bgr_to_rgb=False", "bgr_to_rgb=False"),
    "PAA": ("atss", "'ATSSHead'", "'PAAHead'", "bbox_head=PAAHead"),
    "PAA by its path": ("atss", "'ATSSHead'", "'mmdet.models.PAAHead'", "bbox_head=PAAHead"),
    "other anchors": ("atss", "octave_base_scale=8", "octave_base_scale=4", "octave_base_scale=4"),
    "other deltas": ("atss", "0.2, 0.2]", "0.1, 0.1]", "target_stds=[0.1,0.1,0.1,0.1]"),
    "other coder": ("atss", "target_stds", "normalizer", "target_stds"),
    "other neck": ("atss", "'on_output'", "'on_lateral'", "add_extra_convs=on_lateral"),
    "plain FCOS": ("fcos", "norm_on_bbox=True, centerness_on_reg=True,", "", "norm_on_bbox"),
    "distances in pixels": ("fcos", "norm_on_bbox=True", "norm_on_bbox=False", "norm_on_bbox=False"),
    "other branch": ("fcos", "centerness_on_reg=True", "centerness_on_reg=False", "centerness_on_reg=False"),
    "deformable towers": ("fcos", "on_last_conv=False", "on_last_conv=True", "dcn_on_last_conv=True"),
    "other FCOS": ("fcos", "'FCOSHead'", "'NASFCOSHead'", "bbox_head=NASFCOSHead"),
    "overridden": ("fcos", "center_sampling=True", "norm_on_bbox=False", "norm_on_bbox=False"),
}


@pytest.mark.parametrize(("kind", "old", "new", "part"), REFUSED_SETTINGS.values(), ids=REFUSED_SETTINGS)
def test_an_unsupported_setting_is_refused_by_name(kind, old, new, part, refusal):
    assert TEXTS[kind].count(old) == 1
    text = TEXTS[kind].replace(old, new)
    for key in ("config", "cfg"):
        assert refusal(recognize, small_detector(kind), **{key: text}).code == "setting"
        assert part in refusal(recognize, small_detector(kind), **{key: text})


@pytest.mark.parametrize("kind", ["gfl", "gflv2"])
def test_settings_of_gfl_are_checked_too(kind, refusal):
    text = "model = dict(backbone=dict(style='caffe'), neck=dict(add_extra_convs=True), bbox_head=dict(type='LDHead'))"
    assert "style=caffe" in refusal(recognize, small_detector(kind), config=text)
    assert recognize(small_detector(kind), config=text.replace("caffe", "pytorch"))["fpn"]["channels"] == 64


# As mmengine writes it: keys sorted, so that a class comes last, and long lists with one value per line.
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
def test_a_config_with_sorted_keys_is_read_like_any_other(kind, refusal):
    text, tensors = SORTED[kind], small_detector(kind)
    assert recognize(tensors, cfg=text) == recognize(tensors, cfg=TEXTS[kind])
    own, other = {"atss": ("ATSSHead", "PAAHead"), "fcos": ("FCOSHead", "NASFCOSHead")}[kind]
    assert f"bbox_head={other}" in refusal(recognize, tensors, cfg=text.replace(own, other))


def test_a_config_of_old_versions_contains_inherited_values_first(refusal):
    own = "\nmodel = dict(backbone=dict(depth=18), bbox_head=dict(norm_on_bbox=True, num_classes=3))"
    inherited = TEXTS["fcos"].replace("norm_on_bbox=True, ", "")
    assert "norm_on_bbox" in refusal(recognize, small_detector("fcos"), config=inherited)
    assert recognize(small_detector("fcos"), config=inherited + own) == recognize(small_detector("fcos"))


def test_the_config_decides_whether_the_neck_has_a_relu():
    text = TEXTS["fcos"].replace("relu_before_extra_convs=True", "")
    assert recognize(small_detector("fcos"))["fpn"]["extra_relu"]
    assert not recognize(small_detector("fcos"), config=text)["fpn"]["extra_relu"]


@pytest.mark.parametrize(
    "text", [None, 3, b"style='caffe'", ["style='caffe'"], Buffer()], ids=lambda text: type(text).__name__
)
def test_a_config_that_is_not_text_is_ignored(text):
    content = {"state_dict": {"a": torch.ones(1)}, "meta": {"config": text, "cfg": "style='pytorch'"}}
    assert parse_external(content).settings == {"style": "pytorch"}


@pytest.mark.parametrize(
    "part",
    ["a", "a.", "a=", "a =", " ", "a=dict(", "a=dict(type=", "a=dict(type=a.", "a=[", "a=[1,", "(", "a=a(", "\n"],
)
def test_the_text_of_a_hostile_config_is_searched_quickly(part):
    """A search that goes over the rest of the text again at every character would take hours."""
    started = time.monotonic()
    parse_external({"state_dict": {"a": torch.ones(1)}, "meta": {"config": "a=" + part * 100_000}})
    assert time.monotonic() - started < 10


def test_the_recognized_detectors_are_those_of_their_configs():
    for kind, config in CONFIGS.items():
        found = convert(small_detector(kind)).config.model
        assert (found.fpn, found.points, found.head.quality) == (
            config.model.fpn,
            config.model.points,
            config.model.head.quality,
        )
