"""Every config key changes something observable, and stands in the table of docs/training.md."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from config_observations import (
    averaging,
    backends,
    compilation,
    detections,
    divergence,
    endings,
    layout,
    loaded,
    losses,
    metrics_library,
    optimizer,
    rates,
    run,
    start,
    structure,
    teacher,
    teaching,
    update,
)
from conftest import write_coco_set

from gfl.config import Config
from gfl.config_file import config_from_dict, parse_overrides

TRAINING_PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
SMALL_CONVS = 1
SMALL = (
    "model.backbone={name: resnet18, weights: none, frozen_stages: -1}",
    "model.fpn.channels=32",
    f"model.head={{channels: 64, num_convs: {SMALL_CONVS}}}",
)


def make(overrides: tuple[str, ...]) -> Config:
    return config_from_dict(parse_overrides((*SMALL, *overrides)), "test")


def keys_of(kind: type = Config, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        yield from keys_of(field.type, f"{name}.") if dataclasses.is_dataclass(field.type) else [name]


# --- the rows: what is observed, the changed value, and what both configs have in common ----------------------------

BRANCH, DGQP, FCOS = "model.head.quality=iou_branch", "model.head.quality=dgqp", "assign.kind=fcos"
DEFORMABLE = ("model.backbone.name=resnet50", "model.backbone.dcn=v1", "model.backbone.dcn_stages=[c5]")
BROKEN = ("data.train.images=BROKEN/images", "data.train.annotations=BROKEN/instances.json")
DEEP = tuple(f"data.{s}={{annotations: DEEP/instances.json, images: DEEP/images}}" for s in ("train", "val"))
MANY = "eval.score_thresh=0.0"
ROWS: dict[str, tuple] = {
    "model.weights": (start, "nowhere.pt"),
    "model.backbone.name": (structure, "resnet34"),
    "model.backbone.weights": (start, "nowhere.pth"),
    "model.backbone.frozen_stages": (structure, "2"),
    "model.backbone.norm_eval": (structure, "false"),
    "model.backbone.dcn": (structure, "v2", *DEFORMABLE),
    "model.backbone.dcn_stages": (structure, "[c4, c5]", *DEFORMABLE),
    "model.fpn.channels": (structure, "64"),
    "model.fpn.extra_relu": (losses, "true"),
    "model.head.channels": (structure, "96"),
    "model.head.num_convs": (structure, "2"),
    "model.head.conv_bias": (structure, "true"),
    "model.head.quality": (structure, "iou_branch"),
    "model.head.dgqp.topk": (structure, "3", DGQP),
    "model.head.dgqp.hidden": (structure, "32", DGQP),
    "model.head.dgqp.add_mean": (structure, "false", DGQP),
    "model.head.dgqp.init": (losses, "kaiming", DGQP),
    "model.head.box": (structure, "dirac"),
    "model.head.reg_max": (structure, "12"),
    "model.head.delta": (losses, "0.5"),
    "model.head.initial_distance": (losses, "3", "model.head.box=dirac"),
    "model.points.strides": (structure, "[8, 16, 32]"),
    "model.points.offset": (losses, "0.5"),
    "assign.kind": (losses, "fovea"),
    "assign.topk": (losses, "3"),
    "assign.tal_topk": (losses, "3", "assign.kind=tal"),
    "assign.range_aware": (losses, "true", "model.head.reg_max=2"),
    "assign.anchor_scale": (losses, "4"),
    "assign.center_radius": (losses, "0.6", FCOS),
    "loss.qfl_beta": (losses, "1"),
    "loss.cls_weight": (losses, "3"),
    "loss.box_weight": (losses, "3"),
    "loss.dfl_weight": (losses, "3"),
    "loss.quality_weight": (losses, "3", BRANCH),
    "loss.distill.teacher": (teacher, "nowhere.pt"),
    "loss.distill.weight": (teaching, "3"),
    "loss.distill.temperature": (teaching, "2"),
    "loss.distill.region": (teaching, "both"),
    "data.train.annotations": (loaded, "OTHER/instances.json"),
    "data.train.images": (loaded, "OTHER/images"),
    "data.val.annotations": (loaded, "OTHER/instances.json"),
    "data.val.images": (loaded, "OTHER/images"),
    "data.short_side": (loaded, "48"),
    "data.long_side": (loaded, "50"),
    "data.eval_short_side": (loaded, "32"),
    "data.flip": (loaded, "1.0"),
    "data.augment": (loaded, "[{name: InvertImg, p: 1.0}]"),
    "data.keep_empty": (loaded, "true"),
    "data.bit_depth": (loaded, "12", *DEEP),
    "data.max_pixels": (loaded, "3000"),
    "data.workers": (loaded, "1"),
    "data.persistent_workers": (loaded, "false", "data.workers=1"),
    "data.on_bad_image": (loaded, "skip", *BROKEN),
    "data.ignored": (loaded, "mask", *DEEP),
    "data.ignore_classes": (loaded, "[ring]", *DEEP),
    "optim.name": (optimizer, "adamw"),
    "optim.lr": (rates, "0.02"),
    "optim.base_batch": (rates, "8"),
    "optim.batch": (loaded, "4"),
    "optim.accumulate": (loaded, "2"),
    "optim.momentum": (optimizer, "0.5"),
    "optim.weight_decay": (optimizer, "0.01"),
    "optim.bias_lr_factor": (optimizer, "2"),
    "optim.bias_decay_factor": (optimizer, "0"),
    "optim.epochs": (rates, "13", "optim.decay=cosine"),
    "optim.min_steps": (run, "12"),
    "optim.decay": (rates, "cosine"),
    "optim.steps": (rates, "[5]"),
    "optim.warmup_steps": (rates, "100"),
    "optim.warmup_ratio": (rates, "0.1"),
    "optim.clip_norm": (update, "0.01"),
    "optim.ema": (averaging, "0.9"),
    "optim.amp": (losses, "bf16"),
    "optim.channels_last": (layout, "true"),
    "optim.compile": (compilation, "default"),
    "optim.tf32": (backends, "false"),
    "optim.cudnn_benchmark": (backends, "true"),
    "optim.on_divergence": (divergence, "rewind"),
    "eval.interval": (run, "2"),
    "eval.patience": (endings, "1"),
    "eval.batch": (loaded, "2"),
    "eval.score_thresh": (detections, "0.3", MANY),
    "eval.pre_nms_topk": (detections, "5", MANY),
    "eval.nms_iou": (detections, "0.1", MANY),
    "eval.max_detections": (detections, "7", MANY),
    "eval.amp": (detections, "bf16", MANY),
    "eval.decode": (detections, "peak", MANY),
    "eval.tta_scales": (loaded, "[1.0, 0.5]"),
    "eval.tta_flip": (loaded, "true"),
    "eval.backend": (metrics_library, "hotcoco"),
    "log.interval": (run, "2"),
    "log.images": (run, "0"),
    "run_dir": (run, "OTHER/another_run"),
    "save_interval": (run, "2"),
    "seed": (loaded, "1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> dict[str, str]:
    """Small sets, one damaged, one of 16 bits with crowds and two classes: OTHER, BROKEN, DEEP and DATA in a row."""

    sizes = [(64, 48), (48, 64), (64, 48), (60, 40), (64, 64)]
    boxes = [(0, 7, [8, 8, 40, 30]), (1, 7, [4, 4, 20, 40]), (2, 7, [20, 8, 30, 30]), (3, 7, [6, 4, 33, 31])]
    folder = tmp_path_factory.mktemp("keys")
    for name, count in (("data", 4), ("other", 3), ("broken", 4)):
        made = write_coco_set(folder / name, sizes, boxes[:count], (), {7: "disc"})
        if name == "other":
            made.file(0).write_bytes(made.file(2).read_bytes())
        if name == "broken":
            made.file(0).write_bytes(b"no image")
    deep = write_coco_set(folder / "deep", sizes, [*boxes, (0, 8, [2, 2, 9, 9])], boxes[:1], {7: "disc", 8: "ring"})
    for number, (width, height) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 4096, (height, width, 3), np.uint16)
        cv2.imwrite(str(deep.file(number)), pixels)
    return {name.upper(): str(folder / name) for name in ("data", "other", "broken", "deep")}


@pytest.fixture(scope="module")
def observe(project) -> Callable:
    """A row's observation of a config, computed once for equal configs."""
    data = f"{{annotations: {project['DATA']}/instances.json, images: {project['DATA']}/images}}"
    common = {
        loaded: (f"data={{train: {data}, val: {data}, short_side: 64, long_side: 96, workers: 0}}", "optim.batch=2"),
        run: (
            f"data={{train: {data}, val: {data}, short_side: 32, long_side: 32, workers: 0, flip: 0}}",
            "optim={batch: 1, epochs: 2, warmup_steps: 0}",
            "log={interval: 1, images: 1}",
            "save_interval=3",
        ),
    }

    @functools.cache
    def call(function: Callable, overrides: tuple[str, ...]) -> Any:
        for name, folder in project.items():
            overrides = tuple(override.replace(name, folder) for override in overrides)
        if function is run and not any(override.startswith("run_dir=") for override in overrides):
            overrides = (*overrides, f"run_dir={project['DATA']}/{abs(hash(overrides))}/run")
        return function(make((*common.get(function, ()), *overrides)))

    common[divergence] = common[averaging] = common[run]
    return call


@pytest.mark.parametrize("key", ROWS)
def test_a_key_changes_what_it_says(key, observe):
    function, value, *shared = ROWS[key]
    before, after = observe(function, tuple(shared)), observe(function, (*shared, f"{key}={value}"))
    assert before != after


def test_an_equal_config_changes_nothing(observe):
    """Otherwise the test above would prove nothing."""
    for function in {row[0] for row in ROWS.values()}:
        assert observe(function, ()) == observe(function, (f"model.head.num_convs={SMALL_CONVS}",))


def test_every_key_has_a_row():
    assert list(keys_of()) == list(ROWS)


def test_the_table_of_keys_is_complete():
    (table,) = re.findall(r"^## Where each key is read$(.*?)(?=^## |\Z)", TRAINING_PAGE.read_text(), re.M | re.S)
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(key for row in rows for key in re.findall(r"`([\w.]+)`", row)) == sorted(keys_of())
