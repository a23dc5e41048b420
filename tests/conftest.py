"""Fixtures: small COCO-format sets whose boxes are drawn in their images, refused inputs, and scripts as modules."""

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gfl.common.errors import UserError
from gfl.data.coco import CocoData, load_coco

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several, which share the cores
    torch.set_num_threads(1)

Box = tuple[int, int, list[float]]  # number of the image, category id, [x, y, width, height]


@dataclass
class CocoSet:
    """A written set; change `tree` and call `save` to change the json."""

    annotations: str
    images: str
    tree: dict[str, Any]

    def save(self) -> "CocoSet":
        Path(self.annotations).write_text(json.dumps(self.tree))
        return self

    def load(self, class_names: Sequence[str] | None = None) -> CocoData:
        return load_coco(self.annotations, self.images, class_names)

    def file(self, number: int) -> Path:
        return Path(self.images) / self.tree["images"][number]["file_name"]


def fill_box(pixels: np.ndarray, bbox: list[float], channel: int) -> None:
    """Draw a box [x, y, width, height] into `pixels` (H, W, 3): 250 in `channel` and 0 in the others."""
    if not np.isfinite(bbox).all():
        return
    x, y, width, height = bbox
    rows, columns = slice(max(int(y), 0), int(y + height)), slice(max(int(x), 0), int(x + width))
    pixels[rows, columns] = 0
    pixels[rows, columns, channel] = 250


def write_coco_set(
    folder: Path,
    sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Box],
    crowds: Sequence[Box],
    categories: dict[int, str],
) -> CocoSet:
    """The set that the fixture `coco_set` describes, in `folder`."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(len(sizes))
    pixels = [rng.integers(0, 50, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    images = [
        {"id": 900 - 7 * number, "file_name": f"{number:03}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes)
    ]
    annotations = []
    for box, iscrowd in [(box, 0) for box in boxes] + [(box, 1) for box in crowds]:
        number, category, bbox = box
        ids = {"id": len(annotations) + 1, "image_id": images[number]["id"], "category_id": category}
        annotations.append(ids | {"bbox": list(bbox), "area": bbox[2] * bbox[3], "iscrowd": iscrowd})
        if not iscrowd:
            channel = list(categories).index(category) % 3 if category in categories else 0
            fill_box(pixels[number], bbox, channel)
    for image, rgb in zip(images, pixels, strict=True):
        cv2.imwrite(str(folder / "images" / image["file_name"]), rgb[..., ::-1])
    tree = {
        "images": images,
        "categories": [{"id": category, "name": text} for category, text in categories.items()],
        "annotations": annotations,
    }
    return CocoSet(str(folder / "instances.json"), str(folder / "images"), tree).save()


@pytest.fixture
def coco_set(tmp_path) -> Callable[..., CocoSet]:
    """Write images and a json.

    The pixels of a box are 250 in channel (place of its category) % 3 of RGB, all others are below 50. Image ids
    fall from 900 in steps of 7, annotation ids rise from 1, so that none is mistaken for an index.

    Args of the factory:
        sizes: (width, height) per image.
        boxes: see `Box`; they are drawn in this order.
        crowds: boxes that are marked as crowd; not drawn.
        categories: id -> name, written in this order.
    """

    def build(
        sizes: Sequence[tuple[int, int]] = ((60, 40),),
        boxes: Sequence[Box] = ((0, 7, [10, 10, 20, 15]),),
        *,
        crowds: Sequence[Box] = (),
        categories: dict[int, str] | None = None,
        name: str = "set",
    ) -> CocoSet:
        return write_coco_set(tmp_path / name, sizes, boxes, crowds, categories or {7: "disc"})

    return build


class Refusal(str):
    """The message of a `UserError`, with its code."""

    code: str


@pytest.fixture
def refusal() -> Callable[..., Refusal]:
    """Call something that must raise `UserError`; returns the message, which must be a single line, and its code."""

    def call(function: Callable, *args: Any, **kwargs: Any) -> Refusal:
        with pytest.raises(UserError) as error:
            function(*args, **kwargs)
        message = Refusal(error.value)
        message.code = error.value.code
        assert message
        assert "\n" not in message
        return message

    return call


@pytest.fixture
def run(coco_set, tmp_path, monkeypatch) -> Callable[..., None]:
    """Train a tiny detector in this process, for an epoch of three steps, with a checkpoint after each.

    Args of the factory: `resume` as in train.py, the section `loss`, and keys of `optim`.
    """
    import train
    from gfl.config_file import config_from_dict
    from gfl.training.signals import StopRequest

    data = coco_set([(96, 64)] * 6, [(number, 7, [10, 10, 60, 40]) for number in range(6)])
    split = {"annotations": data.annotations, "images": data.images}
    tree = {
        "model": {
            "backbone": {"name": "resnet18", "weights": "none"},
            "fpn": {"channels": 64},
            "head": {"channels": 64, "num_convs": 1},
        },
        "data": {"train": split, "val": split, "short_side": 64, "long_side": 96, "workers": 0},
        "eval": {"interval": 9},
        "log": {"images": 0, "interval": 1},
        "save_interval": 1,
        "run_dir": str(tmp_path / "run"),
    }

    def call(resume: str = "", loss: dict[str, object] | None = None, **optim: object) -> None:
        optim = {"batch": 2, "base_batch": 2, "epochs": 1, "warmup_steps": 0} | optim
        sections = {"loss": loss or {}, "optim": optim}
        monkeypatch.setattr(train, "load_config", lambda *_: config_from_dict(tree | sections, "test"))
        train.main(argparse.Namespace(config="", overrides=[], resume=resume), StopRequest([]))

    return call


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """Import a file of scripts/ by its name."""

    def load(name: str) -> ModuleType:
        path = Path(__file__).resolve().parent.parent / "scripts" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
