"""The inputs that `fuzz.py` mutates, and what the commands do with them.

`write_KIND` writes a mutated input and returns a description of the mutation; `check_KIND` uses the input.
"""

import copy
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import annotation_mutators
import cv2
import numpy as np
import torch
import yaml
from mutators import SYNTAX, hostile, mutate_bytes, mutate_tree, with_raw
from resources import limited
from torch import nn

from gfl import checkpoint as checkpoints
from gfl.build import build_criterion, build_detector
from gfl.common.findings import table
from gfl.config import Config, config_from_dict, config_to_dict, load_config, save_config
from gfl.data.coco import CocoData, load_coco
from gfl.data.coco_json import read_coco_json
from gfl.data.dataset import CocoDataset, Sample, collate
from gfl.data.loader import build_eval_loader, build_train_loader
from gfl.data.sampler import TrainSampler, train_candidates
from gfl.evaluation.coco_eval import coco_metrics, format_metrics
from gfl.evaluation.inference import detect
from gfl.evaluation.predictions import read_ground_truth
from gfl.model.detector import DenseDetector
from gfl.tools.doctor import annotations as doctor
from gfl.training.optim import autocast_dtype, build_optimizer, learning_rate, set_learning_rate
from gfl.training.resume import restore

Attempt = Callable[..., Any]  # calls a function with arguments; None if it refuses its input


# Annotations


def coco_tree() -> dict[str, Any]:
    """Three images, three categories, and boxes of every sort: crowd, degenerate, outside, without optional fields."""
    boxes = [
        (900, 7, [10, 10, 20, 15], {"area": 300, "iscrowd": 0, "segmentation": [[10, 10, 30, 10, 30, 25]]}),
        (900, 3, [0.5, 2.25, 30.0, 12.5], {"area": 375.0, "iscrowd": 0}),
        (893, 7, [5, 5, 10, 10], {"iscrowd": 1}),
        (893, 90, [1, 1, 0, 5], {"area": 0}),
        (886, 90, [-5, -5, 100, 100], {"edge_sigma": [1.0, 2.0, 0.5, 1.5]}),
        (886, 3, [12, 3, 9, 9], {}),
    ]
    return {
        "info": {"description": "made", "year": 2024},
        "images": [
            {"id": 900 - 7 * n, "file_name": f"{n}.png", "width": width, "height": height}
            for n, (width, height) in enumerate([(60, 40), (50, 30), (40, 40)])
        ],
        "categories": [
            {"id": i, "name": name, "supercategory": "thing"} for i, name in [(7, "é"), (90, "b"), (3, "c")]
        ],
        "annotations": [
            {"id": number, "image_id": image, "category_id": category, "bbox": box, **more}
            for number, (image, category, box, more) in enumerate(boxes, start=1)
        ],
    }


def write_images(folder: Path) -> None:
    folder.mkdir()
    for entry in coco_tree()["images"]:
        cv2.imwrite(str(folder / entry["file_name"]), np.full((entry["height"], entry["width"], 3), 99, np.uint8))


def write_annotations(folder: Path, rng: random.Random) -> str:
    write_images(folder / "images")
    tree = coco_tree()
    if rng.random() < 0.75:
        done = mutate_tree(tree, rng)
        content = with_raw(json.dumps(tree)).encode()
    else:
        content, done = mutate_bytes(json.dumps(tree, indent=rng.choice([None, 1]), ensure_ascii=False).encode(), rng)
    (folder / "instances.json").write_bytes(content)
    return done


def check_annotations(folder: Path, attempt: Attempt) -> None:
    data = attempt(load_coco, str(folder / "instances.json"), str(folder / "images"))
    if data is None:
        return
    "\n".join([*data.class_names, *data.notes]).encode()  # train.py prints them
    if data.has_annotations:
        result = {"image_id": int(data.image_ids[0]), "category_id": data.category_ids[0], "bbox": [10, 10, 20, 15]}
        format_metrics(coco_metrics(data, [result | {"score": 0.9}])).encode()
        coco_metrics(data, [])
    attempt(read_ground_truth, data)
    candidates = attempt(train_candidates, data, keep_empty=False)
    if candidates is not None:
        TrainSampler(candidates, data.sizes, batch=4).epoch_batches(0)
    small = config_from_dict({"data": {"short_side": [32, 64], "long_side": 64}}, "fuzz").data
    dataset = CocoDataset(data, small, training=True)
    samples = [attempt(dataset.__getitem__, (0, index)) for index in range(len(data))]
    if read := [sample for sample in samples if sample]:
        collate(read)


def write_odd_annotations(folder: Path, rng: random.Random) -> str:
    write_images(folder / "images")
    content, done = annotation_mutators.mutate(coco_tree(), rng)
    (folder / "instances.json").write_bytes(content)
    return done


def check_odd_annotations(folder: Path, attempt: Attempt) -> None:
    """As `check_annotations`, at a cost that suits the file, and the doctor judges as training does."""
    path, root = str(folder / "instances.json"), str(folder / "images")
    refused: list[bool] = []

    def load() -> None:
        refused.append(True)
        load_coco(path, root)
        refused[0] = False

    with limited(seconds=5, megabytes=64 + 64e-6 * Path(path).stat().st_size):
        check_annotations(folder, attempt)
    attempt(load)
    tree = attempt(read_coco_json, path)
    if tree is not None and "annotations" in tree:  # without them a split is only for detection
        findings, _ = doctor.check_annotations(tree, path, root, "train")
        assert refused == [any(finding.level == "error" for finding in findings)], findings
        "\n".join(table(findings, 100)).encode()


# Configs


@cache
def full_config() -> dict[str, Any]:
    """Every key, on the small set."""
    augment = [
        {"name": "HueSaturationValue", "hue_shift_limit": [-5, 5], "p": 0.5},
        {"name": "RandomCrop", "height": 16, "width": 16},
    ]
    tree = {"data": {"augment": augment}, "model": {"points": {"offset": [0.5] * 5}}, "seed": 3}
    tree["model"] |= {"backbone": {"name": "resnet18", "weights": "none"}, "head": {"quality": "dgqp"}}
    return config_to_dict(config_from_dict(tree, "fuzz"))


def write_configs(folder: Path, rng: random.Random) -> str:
    write_images(folder / "images")
    (folder / "instances.json").write_text(json.dumps(coco_tree()))
    tree = copy.deepcopy(full_config())
    (folder / "other.yaml").write_text(yaml.safe_dump({"base": ["third.yaml"], "optim": tree["optim"]}))
    (folder / "third.yaml").write_text(rng.choice(["seed: 1", "base: config.yaml", "base: [other.yaml]"]))
    kind = rng.random()
    if kind < 0.25:
        syntax = rng.choice(SYNTAX)
        content, done = syntax.encode("utf-8", "surrogatepass"), f"syntax {syntax[:60]!r}"
    elif kind < 0.75:
        tree["base"] = rng.choice([[], None, "other.yaml"])
        done = mutate_tree(tree, rng)
        text = yaml.safe_dump(tree, default_flow_style=rng.choice([None, True, False]), sort_keys=False)
        content = with_raw(text).encode("utf-8", "surrogatepass")
    else:
        content, done = mutate_bytes(yaml.safe_dump(tree, sort_keys=False).encode(), rng)
    (folder / "config.yaml").write_bytes(content)
    return done


def check_configs(folder: Path, attempt: Attempt) -> None:
    config = attempt(load_config, folder / "config.yaml")
    if config is None:
        return
    attempt(save_config, config, folder / "saved" / "config.yaml")
    assert load_config(folder / "saved" / "config.yaml") == config
    attempt(build_from, config, load_coco(str(folder / "instances.json"), str(folder / "images")))


def build_from(config: Config, data: CocoData) -> None:
    """Build what train.py builds before its first step, at little cost."""
    optim = config.optim
    sampler = TrainSampler(
        train_candidates(data, keep_empty=config.data.keep_empty),
        data.sizes,
        batch=optim.batch,
        accumulate=optim.accumulate,
        seed=config.seed,
    )
    train = build_train_loader(data, config.data, sampler, seed=config.seed)
    build_eval_loader(data, config.data, batch=config.eval.batch)
    sampler.epoch_batches(0)
    torch.manual_seed(config.seed)
    with torch.device("meta"):
        model = build_detector(config, len(data.class_names))
    build_criterion(config, model.quality, model.box_repr)
    optimizer = build_optimizer(nn.Linear(2, 2), optim)
    autocast_dtype(optim, torch.device("cpu"))
    for step in (0, 1, optim.warmup_steps, optim.epochs * sampler.steps_per_epoch):
        set_learning_rate(optimizer, learning_rate(step, optim, steps_per_epoch=sampler.steps_per_epoch))
    if augmentation := train.dataset.dataset.augmentation:
        boxes_xyxy, labels = data.boxes_of(0)
        augmentation(np.zeros((40, 60, 3), np.uint8), boxes_xyxy, labels, np.random.default_rng(0))


# Checkpoints


@cache
def trained() -> tuple[Config, DenseDetector, torch.optim.Optimizer, torch.amp.GradScaler]:
    """A small detector with a trainable head, after a step with the scaler of fp16."""
    tree = {
        "model": {
            "backbone": {"name": "resnet18", "weights": "none", "frozen_stages": 4},
            "fpn": {"channels": 32},
            "head": {"channels": 64, "num_convs": 1},
        },
        "optim": {"name": "adamw"},
    }
    config = config_from_dict(tree, "fuzz")
    torch.manual_seed(0)
    model = build_detector(config, 2)
    optimizer, scaler = build_optimizer(model, config.optim), torch.amp.GradScaler("cpu")
    step(optimizer, scaler)
    return config, model, optimizer, scaler


def step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """One update with gradients of 1."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad()
    scaler.scale(sum(parameter.sum() for parameter in parameters)).backward()
    scaler.step(optimizer)
    scaler.update()


@cache
def good_state() -> dict[str, Any]:
    """The content of a checkpoint; no case may change it."""
    config, model, optimizer, scaler = trained()
    progress = checkpoints.Progress(epoch=1, step=2, best=0.25, steps_per_epoch=5)
    training = {"progress": progress._asdict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
    return copy.deepcopy(checkpoints.detector_content(dict(model.state_dict()), config, ("disc", "ring")) | training)


def shallow(tree: Any) -> Any:
    """Containers copied, tensors shared."""
    if isinstance(tree, dict):
        return {key: shallow(value) for key, value in tree.items()}
    return [shallow(value) for value in tree] if isinstance(tree, list) else tree


def write_checkpoints(folder: Path, rng: random.Random) -> str:
    path = folder / checkpoints.LAST
    state, done = shallow(good_state()), ""
    in_bytes = rng.random() < 0.35
    if not in_bytes:
        part = rng.choice([state, *(key for key in state if isinstance(state[key], (dict, list)))])
        done = mutate_tree(state if part is state else {part: state[part]}, rng)
        if part is not state and rng.random() < 0.5:
            state[part] = rng.choice([state[part], hostile(rng)])
    checkpoints.write_torch_file(path, state, checksum=rng.random() < 0.5)
    if in_bytes:
        content, done = mutate_bytes(path.read_bytes(), rng, near=50_000)
        path.write_bytes(content)
    checksum = path.with_name(path.name + ".json")
    if checksum.is_file() and rng.random() < 0.5:
        written = json.loads(checksum.read_text())
        mutate_tree(written, rng)
        content = with_raw(json.dumps(written)).encode()
        checksum.write_bytes(rng.choice([content, mutate_bytes(checksum.read_bytes(), rng)[0]]))
        done += ", checksum mutated"
    return done + ("" if checksum.is_file() else ", no checksum")


def check_checkpoints(folder: Path, attempt: Attempt) -> None:
    path = folder / checkpoints.LAST
    attempt(checkpoints.newest_checkpoint, folder)
    if detector := attempt(checkpoints.load_detector, path):
        "\n".join(detector.class_names).encode()
        detect_on(detector.model, detector.config)
    config, model, _, _ = trained()
    optimizer, scaler = build_optimizer(model, config.optim), torch.amp.GradScaler("cpu")
    state = checkpoints.TrainState(model, optimizer, scaler)
    changes = attempt(restore, state, path, config=config, class_names=("disc", "ring"), steps_per_epoch=5)
    if changes is not None:
        step(optimizer, scaler)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def detect_on(model: DenseDetector, config: Config) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    detect(model, collate([Sample(image, *none, 1, (64, 64))]), config.eval)
