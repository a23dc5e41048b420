"""Configs and checkpoints that `fuzz.py` mutates, and what the commands do with them.

`write_KIND` writes a mutated input and returns a description of the mutation; `check_KIND` uses the input.
"""

import contextlib
import copy
import json
import random
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from annotation_cases import Attempt, coco_tree, write_images
from checkpoint_mutators import STATE_MUTATIONS, inject, mutate_lengths
from mutators import SYNTAX, hostile, mutate_bytes, mutate_tree, with_raw
from text_mutators import BOMBS, graft, mutate_text
from torch import nn

from gfl import checkpoint as checkpoints
from gfl.build import build_criterion, build_detector
from gfl.common.errors import UserError
from gfl.common.torch_file import read_torch_file
from gfl.config import Config
from gfl.config_file import config_from_dict, config_to_dict, load_config, save_config
from gfl.data.coco import CocoData, load_coco
from gfl.data.dataset import Sample, collate
from gfl.data.loader import build_eval_loader, build_train_loader
from gfl.data.sampler import TrainSampler, train_candidates
from gfl.evaluation.inference import detect
from gfl.model.backbone import Backbone
from gfl.model.detector import DenseDetector
from gfl.model.precision import autocast_dtype
from gfl.tools.convert.architecture import parse_external
from gfl.tools.convert.state_dict import convert_detector
from gfl.training.initial_weights import load_backbone_weights
from gfl.training.optim import build_optimizer, learning_rate, set_learning_rate
from gfl.training.resume import restore


def write_unchanged(folder: Path) -> None:
    """A good input of each kind: what it takes to use it is what mutated ones are measured by."""
    checkpoints.write_checkpoint(folder / checkpoints.LAST, good_state())
    write_images(folder / "images")
    (folder / "instances.json").write_text(json.dumps(coco_tree()))
    (folder / "config.yaml").write_text(yaml.safe_dump(full_config()))


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
    if kind < 0.15:
        syntax = rng.choice([rng.choice(SYNTAX), rng.choice(BOMBS)])
        content, done = syntax.encode("utf-8", "surrogatepass"), f"syntax {syntax[:60]!r}"
    elif kind < 0.35:
        done = graft(tree, rng)
        content = yaml.safe_dump(tree, sort_keys=False).encode("utf-8", "surrogatepass")
    elif kind < 0.6:
        text, done = mutate_text(yaml.safe_dump(tree, sort_keys=False), rng)
        content = text.encode("utf-8", "surrogatepass")
    elif kind < 0.8:
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
    build_eval_loader(data, config.data, config.eval)
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
    training |= {"running_loss": checkpoints.RunningLoss(60, 1.5, 1.25)._asdict(), "bad_images": {"a.png": "empty"}}
    training |= {"digests": {"train": "ab", "val": "cd"}, "processes": 1}
    return copy.deepcopy(checkpoints.detector_content(dict(model.state_dict()), config, ("disc", "ring")) | training)


def shallow(tree: Any) -> Any:
    """Containers copied, tensors shared."""
    if isinstance(tree, dict):
        return {key: shallow(value) for key, value in tree.items()}
    return [shallow(value) for value in tree] if isinstance(tree, list) else tree


def write_checkpoints(folder: Path, rng: random.Random) -> str:
    path = folder / checkpoints.LAST
    state, done = shallow(good_state()), ""
    way = rng.choice(["tree", "tree", "bytes", "lengths", "graft", "tensor", "keys", "instructions", "instructions"])
    if way in STATE_MUTATIONS:
        done = STATE_MUTATIONS[way](state, rng)
    if way == "tree":
        part = rng.choice([state, *(key for key in state if isinstance(state[key], (dict, list)))])
        done = mutate_tree(state if part is state else {part: state[part]}, rng)
        if part is not state and rng.random() < 0.5:
            state[part] = rng.choice([state[part], hostile(rng)])
    later = way in ("bytes", "lengths", "instructions")  # where the checksum mostly refuses it
    with_checksum = rng.random() < (0.1 if later else 0.5)
    (checkpoints.write_checkpoint if with_checksum else checkpoints.write_torch_file)(path, state)
    if way in ("bytes", "lengths"):
        mutate = mutate_lengths if way == "lengths" else partial(mutate_bytes, near=50_000)
        content, done = mutate(path.read_bytes(), rng)
        path.write_bytes(content)
    if way == "instructions":
        done = f"{inject(path, rng)} at {done}"
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
    attempt(load_backbone_weights, Backbone("resnet18"), "resnet18", str(path))
    with contextlib.suppress(UserError):  # of a good one, too: conversion is for those of other codebases
        convert_detector(parse_external(read_torch_file(path)))
    config, model, _, _ = trained()
    optimizer, scaler = build_optimizer(model, config.optim), torch.amp.GradScaler("cpu")
    state = checkpoints.TrainState(model, optimizer, scaler)
    expected = {"class_names": ("disc", "ring"), "digests": {"train": "ab", "val": "cd"}, "steps_per_epoch": 5}
    changes = attempt(restore, state, path, config=config, **expected)
    if changes is not None:
        step(optimizer, scaler)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def detect_on(model: DenseDetector, config: Config) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    detect(model, collate([Sample(image, *none, 1, (64, 64))]), config.eval)
