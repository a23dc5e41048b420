"""hotcoco against pycocotools, on sets with everything that may be counted differently."""

import math
import sys

import numpy as np
import pytest

from gfl.common.errors import UserError
from gfl.evaluation.coco_eval import coco_metrics, evaluation_library

CATEGORIES = {7: "disc", 3: "ring", 40: "cross", 1: "never"}


def random_set(coco_set, seed, images=12, detections=8):
    """Crowds, ignored and degenerate boxes, ties of scores and IoUs, one class without boxes, ids in any order."""
    rng = np.random.default_rng(seed)
    found, boxes = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 10)):
            category = int(rng.choice([7, 3, 40]))
            x, y, width, height = rng.random(4) * [100, 80, 90, 70] * rng.choice([0.2, 1])
            boxes.append((image, category, [round(float(value), rng.integers(3)) for value in (x, y, width, height)]))
            for _ in range(rng.integers(0, detections)):
                shift = rng.normal(0, 4, 4) * (rng.random() < 0.7)
                box = [round(float(value), 3) for value in (np.array([x, y, width, height]) + shift).clip(0)]
                other = int(rng.choice([category, category, 3, 1]))
                score = round(float(rng.random()), rng.choice([1, 6]))
                found.append({"image": image, "category_id": other, "bbox": box, "score": score})
    made = coco_set([(200, 160)] * images, boxes, categories=CATEGORIES)
    ids = rng.permutation(images * 3)[:images].tolist()
    for row, entry in enumerate(made.tree["images"]):
        entry["id"] = ids[row]
    for entry, (row, _, _) in zip(made.tree["annotations"], boxes, strict=True):
        marks = rng.random(3)
        entry |= {"image_id": ids[row], "iscrowd": int(marks[0] < 0.1), "ignore": int(marks[1] < 0.1)}
        if marks[2] < 0.2:
            entry["area"] = float(rng.choice([0, 50, 2000, 20000]))
    rng.shuffle(made.tree["images"])
    results = [{"image_id": ids[entry.pop("image")]} | entry for entry in found]
    return made.save().load(), sorted(results, key=lambda result: result["image_id"])


@pytest.mark.parametrize(
    ("seed", "detections", "max_detections"), [(0, 2, 100), (1, 8, 100), (2, 60, 100), (3, 60, 250), (4, 1, 100)]
)
def test_hotcoco_gives_the_metrics_of_pycocotools(coco_set, seed, detections, max_detections):
    pytest.importorskip("hotcoco")
    data, results = random_set(coco_set, seed, detections=detections)
    expected, metrics = (
        coco_metrics(data, results, max_detections=max_detections, backend=backend)
        for backend in ("pycocotools", "hotcoco")
    )
    assert sum(value is None for value in expected["per_class"]["never"].values()) == 2
    assert metrics.keys() == expected.keys()
    for name, value in flatten(expected).items():
        assert flatten(metrics)[name] == (value if value is None else pytest.approx(value, abs=1e-12)), name


def flatten(metrics):
    per_class = {f"{name} {key}": value for name, each in metrics["per_class"].items() for key, value in each.items()}
    return {name: value for name, value in metrics.items() if name != "per_class"} | per_class


def test_without_hotcoco_pycocotools_is_taken_or_hotcoco_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    for backend in ("auto", "pycocotools"):
        assert evaluation_library(backend)[1].__module__ == "pycocotools.cocoeval"
    with pytest.raises(UserError) as caught:
        evaluation_library("hotcoco")
    assert caught.value.code == "missing_package"


def test_metrics_of_no_detection_are_0_or_undefined(coco_set):
    data, _ = random_set(coco_set, 5)
    values = flatten(coco_metrics(data, [])).values()
    assert {value for value in values if value is not None} == {0.0}
    assert not any(value is not None and math.isnan(value) for value in values)
