"""JPEGs of noise, and batches that a run's own loader makes of them."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from gfl.common.files import write_json
from gfl.config_file import config_from_dict
from gfl.data.coco import load_coco
from gfl.data.loader import batches, build_train_loader, prefetch
from gfl.data.sampler import TrainSampler
from gfl.structures import Batch
from gfl.tools.gpu_check.report import Options

WIDTH, HEIGHT, COUNT = 640, 480, 512  # resized to 800 x 1066, which is padded to 800 x 1088
REPEATS = 16  # of each image in an epoch
DETAIL = 4  # pixels per dot of noise: files of about 100 KB, as COCO's are


def write_jpegs(folder: Path, count: int) -> Path:
    """Write `count` images with eight boxes each; returns the json."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        noise = rng.integers(0, 256, (HEIGHT // DETAIL, WIDTH // DETAIL, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.jpg"), cv2.resize(noise, (WIDTH, HEIGHT)))
        images.append({"id": number + 1, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT})
        for x, y, w, h in rng.uniform([0, 0, 40, 40], [WIDTH - 200, HEIGHT - 200, 200, 200], (8, 4)).tolist():
            entry = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": 1, "iscrowd": 0}
            annotations.append(entry | {"bbox": [x, y, w, h], "area": w * h})
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    write_json(folder / "instances.json", tree)
    return folder / "instances.json"


@contextlib.contextmanager
def loaded_batches(options: Options, batch: int) -> Iterator[tuple[Callable[[torch.device], Iterator[Batch]], int]]:
    """A function of a device that gives endless batches on it, as training gets them, and how many may be queued."""
    folder = options.folder / "jpegs"
    if not (folder / "instances.json").exists():
        write_jpegs(folder, 8 if options.quick else COUNT)
    workers = 1 if options.quick else min(16, os.cpu_count() or 1)
    sides = {"short_side": 96, "long_side": 128} if options.quick else {}
    config = config_from_dict({"data": {"workers": workers, **sides}}, "check").data
    data = load_coco(str(folder / "instances.json"), str(folder / "images"))
    # Each image many times, so that no epoch, at whose start the workers are idle, ends within a measurement.
    sampler = TrainSampler(np.tile(np.arange(len(data)), REPEATS), data.sizes, batch=batch)
    loader = build_train_loader(data, config, sampler, seed=0, pin_memory=options.device.type == "cuda")

    def epochs() -> Iterator[Batch]:
        while True:
            yield from batches(loader)
            sampler.epoch += 1

    yield lambda device: prefetch(epochs(), device), workers * loader.prefetch_factor
