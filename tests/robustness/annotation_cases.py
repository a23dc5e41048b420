"""The annotations that `fuzz.py` mutates, and what training, evaluation and the doctor do with them."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import annotation_mutators
import cv2
import numpy as np
from mutators import mutate_bytes, mutate_tree, with_raw

from gfl.common.findings import table
from gfl.config_file import config_from_dict
from gfl.data.coco import load_coco
from gfl.data.coco_json import read_coco_json
from gfl.data.dataset import CocoDataset, collate
from gfl.data.sampler import TrainSampler, train_candidates
from gfl.evaluation.coco_eval import coco_metrics, format_metrics
from gfl.evaluation.predictions import read_ground_truth
from gfl.tools.doctor import annotations as doctor

Attempt = Callable[..., Any]  # calls a function with arguments; None if it refuses its input


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
    """As `check_annotations`, and the doctor judges as training does."""
    path, root = str(folder / "instances.json"), str(folder / "images")
    check_annotations(folder, attempt)
    tree = attempt(read_coco_json, path)
    if tree is None or "annotations" not in tree:  # without them a split is only for detection
        return
    findings, _ = doctor.check_annotations(tree, path, root, "train")
    "\n".join(table(findings, 100)).encode()
    accepted = attempt(load_coco, path, root) is not None
    assert accepted == all(finding.level != "error" for finding in findings), findings
