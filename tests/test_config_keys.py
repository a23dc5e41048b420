"""Every config key changes something observable, and stands in the table of docs/training.md."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import write_coco_set

import train as train_command
from gfl.build import build_criterion, build_detector
from gfl.checkpoint import TrainState
from gfl.common.errors import UserError
from gfl.config import Config, config_from_dict, parse_overrides
from gfl.data.loader import batches, load_training_data
from gfl.evaluation.inference import detect
from gfl.structures import Batch, Targets
from gfl.training.initial_weights import load_initial_weights
from gfl.training.optim import build_optimizer, learning_rate
from gfl.training.signals import StopRequest
from gfl.training.step import compute_losses, train_step

TRAINING_PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
SMALL_CONVS = 1
SMALL = (
    "model.backbone={name: resnet18, weights: none, frozen_stages: -1}",
    "model.fpn.channels=32",
    f"model.head={{channels: 64, num_convs: {SMALL_CONVS}}}",
)


def make(overrides: tuple[str, ...]) -> Config:
    return config_from_dict(parse_overrides((*SMALL, *overrides)), "test")


def attempt(function: Callable, *arguments: Any) -> Any:
    """What a function returns, or the message of its refusal."""
    try:
        return function(*arguments)
    except UserError as error:
        return str(error)


def keys_of(kind: type = Config, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        yield from keys_of(field.type, f"{name}.") if dataclasses.is_dataclass(field.type) else [name]


# --- what is observed -------------------------------------------------------------------------------------------------


def structure(config: Config) -> list:
    """Shapes, what is trained, and which modules are in training mode."""
    with torch.device("meta"):
        model = build_detector(config, 2).train()
    parameters = [(name, tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()]
    return [parameters, [module.training for module in model.modules()], str(model)]


def start(config: Config) -> Any:
    with torch.device("meta"):
        model = build_detector(config, 2)
    return attempt(load_initial_weights, model, config, ("disc", "ring"))


def scene() -> Batch:
    """Two noisy images with objects of several sizes."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (2, 3, 96, 128), generator=generator, dtype=torch.uint8)
    boxes = torch.tensor([[[5.0, 7, 90, 80], [20, 30, 52, 60]], [[60, 8, 76, 30], [3, 3, 125, 93]]])
    targets = Targets(boxes, torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 2, dtype=torch.bool))
    sizes = torch.tensor([[96, 128], [90, 128]])
    return Batch(images, sizes, targets, torch.tensor([1, 2]), sizes)


def build(config: Config) -> tuple:
    torch.manual_seed(0)
    model = build_detector(config, 2).train()
    with torch.no_grad():
        for parameter in (model.head.cls_out.weight, model.head.reg_out.weight):
            parameter.mul_(30)
    return model, build_criterion(config, model.quality, model.box_repr)


@torch.no_grad()
def losses(config: Config) -> dict[str, float]:
    found = compute_losses(*build(config), scene(), config.optim)
    return {name: loss.item() for name, loss in found.items()}


def update(config: Config) -> list[float]:
    """Weights after one step."""
    model, criterion = build(config)
    state = TrainState(model, build_optimizer(model, config.optim), torch.amp.GradScaler("cpu", enabled=False))
    train_step(state, model, criterion, iter([scene()] * config.optim.accumulate), config.optim, 0.1)
    return [parameter.detach().double().sum().item() for parameter in model.parameters()]


@torch.no_grad()
def detections(config: Config) -> list:
    return [column.tolist() for column in detect(build(config)[0].eval(), scene(), config.eval)[0]]


def optimizer(config: Config) -> list:
    found = build_optimizer(torch.nn.Linear(2, 2), config.optim)
    return [type(found), [{k: v for k, v in group.items() if k != "params"} for group in found.param_groups]]


def rates(config: Config) -> list[float]:
    return [learning_rate(step, config.optim, steps_per_epoch=50) for step in range(0, 700, 7)]


def layout(config: Config) -> list[bool]:
    model, optim = build(config)[0], config.optim
    return [model.to(memory_format=train_command.memory_format(optim)).backbone.conv1.weight.is_contiguous()]


def loaded(config: Config) -> Any:
    """Sizes and contents of all batches of an epoch, and what loads them."""

    def load() -> list:
        data = load_training_data(config, torch.device("cpu"))
        found = [data.train_loader.num_workers]
        for loader in (data.train_loader, data.val_loader) if not config.data.workers else ():
            for batch in batches(loader):
                boxes = batch.targets.boxes_xyxy.sum().item()
                found.append(
                    [batch.image_ids.tolist(), tuple(batch.images.shape), boxes, int(batch.images.long().sum())]
                )
                found.append(int((batch.images[..., :24].long() * torch.arange(24)).sum()))
        return found

    return attempt(load)


def run(config: Config) -> dict[str, Any]:
    """Files, records and saved checkpoints of a complete run of 2 epochs."""
    saved = []

    def record(path: Path, state: TrainState, *_: Any, **__: Any) -> None:
        saved.append((path.name, state.progress.epoch, state.progress.step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "save_checkpoint", record)
        train_command.train(config, torch.device("cpu"), StopRequest(()), resume=False)
    folder = Path(config.run_dir)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]
    pictures = sum(path.read_bytes().count(b"PNG") for path in folder.glob("tensorboard/*"))
    return {"saved": saved, "records": records, "pictures": pictures, "folder": folder.name}


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
    "model.head.box": (structure, "dirac"),
    "model.head.reg_max": (structure, "12"),
    "model.head.delta": (losses, "0.5"),
    "model.points.strides": (structure, "[8, 16, 32]"),
    "model.points.offset": (losses, "0.5"),
    "assign.kind": (losses, "fovea"),
    "assign.topk": (losses, "3"),
    "assign.anchor_scale": (losses, "4"),
    "assign.center_radius": (losses, "0.6", FCOS),
    "loss.qfl_beta": (losses, "1"),
    "loss.cls_weight": (losses, "3"),
    "loss.box_weight": (losses, "3"),
    "loss.dfl_weight": (losses, "3"),
    "loss.quality_weight": (losses, "3", BRANCH),
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
    "data.workers": (loaded, "1"),
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
    "optim.decay": (rates, "cosine"),
    "optim.steps": (rates, "[5]"),
    "optim.warmup_steps": (rates, "100"),
    "optim.warmup_ratio": (rates, "0.1"),
    "optim.clip_norm": (update, "0.01"),
    "optim.amp": (losses, "bf16"),
    "optim.channels_last": (layout, "true"),
    "eval.interval": (run, "2"),
    "eval.batch": (loaded, "2"),
    "eval.score_thresh": (detections, "0.3", MANY),
    "eval.pre_nms_topk": (detections, "5", MANY),
    "eval.nms_iou": (detections, "0.1", MANY),
    "eval.max_detections": (detections, "7", MANY),
    "eval.decode": (detections, "peak", MANY),
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
