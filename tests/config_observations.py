"""What a config makes observable: functions of a config whose results a changed key changes."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train as train_command
from gfl.build import build_criterion, build_detector
from gfl.checkpoint import Progress, TrainState
from gfl.common.errors import UserError
from gfl.config import Config
from gfl.data.loader import batches, load_training_data
from gfl.evaluation.coco_eval import evaluation_library
from gfl.evaluation.inference import detect
from gfl.model.precision import eval_dtype, memory_format
from gfl.structures import Batch, Targets
from gfl.training.acceleration import accelerated, set_up_backends
from gfl.training.initial_weights import load_initial_weights
from gfl.training.optim import build_optimizer, learning_rate
from gfl.training.schedule import is_finished
from gfl.training.signals import StopRequest
from gfl.training.step import compute_losses, train_step
from gfl.training.teacher import load_teacher


def attempt(function: Callable, *arguments: Any) -> Any:
    """What a function returns, or the message of its refusal."""
    try:
        return function(*arguments)
    except UserError as error:
        return str(error)


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


def teacher(config: Config) -> Any:
    return attempt(load_teacher, config, torch.device("cpu"))


@torch.no_grad()
def teaching(config: Config) -> float:
    """The loss against a teacher with random sides, whatever the config names."""
    model, _ = build(config)
    named = replace(config, loss=replace(config.loss, distill=replace(config.loss.distill, teacher="any")))
    generator = torch.Generator().manual_seed(1)
    criterion = build_criterion(
        named, model.quality, model.box_repr, lambda images: 4 * torch.randn(2, 257, 4, 17, generator=generator)
    )
    return compute_losses(model, criterion, scene(), config.optim)["ld"].item()


def update(config: Config) -> list[float]:
    """Weights after one step."""
    model, criterion = build(config)
    state = TrainState(model, build_optimizer(model, config.optim), torch.amp.GradScaler("cpu", enabled=False))
    train_step(state, model, criterion, iter([scene()] * config.optim.accumulate), config.optim, 0.1)
    return [parameter.detach().double().sum().item() for parameter in model.parameters()]


@torch.no_grad()
def detections(config: Config) -> list:
    model, dtype = build(config)[0].eval(), eval_dtype(config, torch.device("cpu"))
    return [column.tolist() for column in detect(model, scene(), config.eval, dtype=dtype)[0]]


def optimizer(config: Config) -> list:
    found = build_optimizer(torch.nn.Linear(2, 2), config.optim)
    return [type(found), [{k: v for k, v in group.items() if k != "params"} for group in found.param_groups]]


def rates(config: Config) -> list[float]:
    return [learning_rate(step, config.optim, steps_per_epoch=50) for step in range(0, 700, 7)]


def endings(config: Config) -> list[bool]:
    """Whether a run ends after so many evaluations that were no better than the best."""
    return [is_finished(Progress(epoch=1, best=0.5, since_best=count), config) for count in range(3)]


def layout(config: Config) -> list[torch.memory_format]:
    """In float32 and in half precision."""
    return [memory_format(config.optim, dtype) for dtype in (None, torch.bfloat16, torch.float16)]


def backends(config: Config) -> list[bool]:
    """What cuDNN and cuBLAS may do."""
    places = [(torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "allow_tf32")]
    places.append((torch.backends.cuda.matmul, "allow_tf32"))
    before = [getattr(*place) for place in places]
    set_up_backends(config.optim)
    found = [getattr(*place) for place in places]
    for place, value in zip(places, before, strict=True):
        setattr(*place, value)
    return found


def compilation(config: Config) -> list[str]:
    """How the losses of a step are compiled."""
    modes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, mode, **_: modes.append(mode) or function)
        patch.setattr("gfl.training.acceleration.compile_problem", lambda device: "")
        accelerated.__wrapped__(compute_losses, config.optim, torch.device("cpu"))
    return modes


def loaded(config: Config) -> Any:
    """Sizes and contents of all batches of an epoch, and what loads them."""

    def load() -> list:
        data = load_training_data(config, torch.device("cpu"))
        found = [data.train_loader.num_workers, data.train_loader.persistent_workers]
        for loader in (data.train_loader, data.val_loader) if not config.data.workers else ():
            for batch in (view for loaded in batches(loader) for view in (loaded, *loaded.views)):
                boxes = batch.targets.boxes_xyxy.sum().item()
                found.append(
                    [batch.image_ids.tolist(), tuple(batch.images.shape), boxes, int(batch.images.long().sum())]
                )
                found.append(int((batch.images[..., :24].long() * torch.arange(24)).sum()))
        return found

    return attempt(load)


def metrics_library(config: Config) -> Any:
    """The library that computes the metrics where hotcoco cannot be imported, or the error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "hotcoco", None)
        return attempt(lambda: evaluation_library(config.eval.backend)[1].__module__)


def divergence(config: Config) -> Any:
    """How a run is to react."""

    def refuse(*_: Any, **options: Any) -> None:
        raise UserError(str(options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "FiniteGuard", refuse)
        return attempt(train_command.train, config, torch.device("cpu"), StopRequest(()), lambda: None, "")


def averaging(config: Config) -> Any:
    """The decay of the average, if there is one."""

    def end(text: str) -> None:
        raise UserError(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_command, "WeightAverage", lambda network, decay: end(f"average of {decay}"))
        patch.setattr(train_command, "FiniteGuard", lambda *_, **__: end("no average"))
        return attempt(train_command.train, config, torch.device("cpu"), StopRequest(()), lambda: None, "")


def run(config: Config) -> dict[str, Any]:
    """Files, records and saved checkpoints of a complete run of 2 epochs."""
    saved = []

    def record(path: Path, state: TrainState, *_: Any, **__: Any) -> None:
        saved.append((path.name, state.progress.epoch, state.progress.step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gfl.training.saving.save_checkpoint", record)
        train_command.train(config, torch.device("cpu"), StopRequest(()), lambda: None, resume="")
    folder = Path(config.run_dir)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    records = [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]
    pictures = sum(path.read_bytes().count(b"PNG") for path in folder.glob("tensorboard/*"))
    return {"saved": saved, "records": records, "pictures": pictures, "folder": folder.name}
