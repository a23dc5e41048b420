"""Small checkpoints of mmdetection's detectors, with the configs that describe them."""

import logging
from collections import OrderedDict
from functools import cache
from pathlib import Path

import numpy as np
import torch
from reference import golden_weight, neck_and_head_shapes
from torch import Tensor
from torchvision import models

from gfl.build import build_detector
from gfl.config import Config
from gfl.config_file import config_from_dict
from gfl.tools.convert.architecture import parse_external
from gfl.tools.convert.state_dict import ConvertedDetector, convert_detector, to_mmdet

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden"
GOLDEN_MODELS = sorted(path.stem for path in GOLDEN.glob("model_*.json"))
NAMES = ("disc", "ring", "cross")


def make_config(*, backbone=None, head=None, points=None, fpn=None) -> Config:
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


FCOS_HEAD = {"quality": "centerness_branch", "box": "dirac", "conv_bias": True}
CONFIGS = {
    "gfl": make_config(),
    "gflv2": make_config(head={"quality": "dgqp"}),
    "atss": make_config(head={"quality": "centerness_branch", "box": "anchor_delta"}),
    "fcos": make_config(head=FCOS_HEAD, fpn={"extra_relu": True}, points={"offset": 0.5}),
}
# The text of the config in a checkpoint, shortened.
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


def golden_config(name):
    """Our config of a golden model."""
    dcn = {"dcn": "v1", "dcn_stages": ["c3", "c4", "c5"]} if "dcnv1_c3c5" in name else {}
    backbone = {"r18": "resnet18", "r50": "resnet50", "r101": "resnet101", "x101": "resnext101_32x4d"}
    head = {"quality": "dgqp"} if name.startswith("model_gflv2") else {}
    tree = {"model": {"backbone": {"name": backbone[name.split("_")[2]], **dcn}, "head": head}}
    return config_from_dict(tree, name)


def mmdet_shapes(config: Config, classes: int) -> dict[str, list[int]]:
    """The names and shapes under which we write a detector for mmdetection."""
    with torch.device("meta"):
        state = build_detector(config, classes).state_dict()
        return {name: list(tensor.shape) for name, tensor in to_mmdet(state, config).items()}


def shapes_by_hand(kind: str, backbone: str = "resnet18", **size: int) -> dict[str, list[int]]:
    """Names and shapes of mmdetection's ATSS or FCOS, whose ResNets have torchvision's names."""
    with torch.device("meta"):
        layers = getattr(models, backbone)().state_dict()
    own = {f"backbone.{name}": list(like.shape) for name, like in layers.items() if not name.startswith("fc.")}
    size = {"channels": 64, "convs": 1, "classes": 3} | size
    return own | neck_and_head_shapes(kind, backbone=backbone, **size)


@cache
def _tensors(kind: str) -> dict[str, Tensor]:
    shapes = shapes_by_hand(kind, convs=2) if kind in ("atss", "fcos") else mmdet_shapes(CONFIGS[kind], 3)
    return {name: golden_weight(name, shape) for name, shape in shapes.items()}


def small_detector(kind: str) -> OrderedDict[str, Tensor]:
    """The state dict of mmdetection's gfl, gflv2, atss or fcos with 3 classes; a new dict with shared tensors."""
    return OrderedDict(_tensors(kind))


def convert(tensors, config=None, names=NAMES, **content) -> ConvertedDetector:
    return convert_detector(parse_external({"state_dict": tensors, **content}), config, names)


def assert_same_state(ours, theirs) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (tensor.shape, tensor.dtype), name
        assert torch.equal(ours[name], tensor), name


class Buffer:
    """Stands for mmengine's HistoryBuffer."""

    def __init__(self):
        self.history, self.log = np.arange(5.0), logging.getLogger("mmengine")


def mmdet2(tensors):
    """The content of a checkpoint file of mmdetection 2.x."""
    meta = {"CLASSES": NAMES, "mmdet_version": "2.25.0", "config": "model = dict(type='GFL')", "hook_msgs": {}}
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
    return {"meta": meta, "state_dict": tensors, "optimizer": optimizer}


def mmdet3(tensors):
    """The content of a checkpoint file of mmdetection 3.x."""
    meta = {"dataset_meta": {"classes": NAMES, "palette": [(1, 2, 3)]}, "mmengine_version": "0.7.1", "cfg": "text"}
    hub = {"log_scalars": {"loss": Buffer()}, "runtime_info": {"iter": 3}, "resumed_keys": {}}
    return {"meta": meta, "state_dict": tensors, "message_hub": hub, "param_schedulers": [{"last_step": 1}]}
