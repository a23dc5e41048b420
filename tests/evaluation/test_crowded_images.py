"""`eval.max_detections` above 100: also the evaluation's, with COCO's metric beside it."""

from dataclasses import replace

import numpy as np
import pytest

from gfl.config import Config, EvalConfig
from gfl.evaluation.coco_eval import METRIC_NAMES, coco_metrics, crowded_findings, format_metrics
from gfl.training.data_fit import fit_notes

GRID = [[12 * (k % 16), 12 * (k // 16), 10, 10] for k in range(150)]


@pytest.fixture
def crowded(coco_set):
    """150 boxes in the first image, 3 in the second."""
    boxes = [(0, 7, box) for box in GRID] + [(1, 7, box) for box in GRID[:3]]
    return coco_set([(200, 130), (200, 130)], boxes)


def perfect(crowded):
    return [
        {"image_id": e["image_id"], "category_id": 7, "bbox": e["bbox"], "score": 1 - e["id"] / 1000}
        for e in crowded.tree["annotations"]
    ]


def test_perfect_detections_score_1_beside_the_metric_with_100(crowded):
    data, results = crowded.load(), perfect(crowded)
    official = coco_metrics(data, results)
    metrics = coco_metrics(data, results, max_detections=150)
    assert official["AP"] < 0.7
    assert [metrics[name] for name in ("AP", "AP50", "AP75", "APS", "AR150", "ARS")] == pytest.approx([1.0] * 6)
    assert metrics["per_class"]["disc"]["AP"] == pytest.approx(1)
    assert metrics["AP@100"] == official["AP"]
    for name in ("AR1", "AR10", "AR100", "APM", "APL"):
        assert metrics[name] == official[name]
    assert all(name in format_metrics(metrics) for name in ("AP@100", "AR150"))


@pytest.mark.parametrize("max_detections", [5, 100])
def test_up_to_100_the_metrics_are_cocos(crowded, max_detections):
    data, results = crowded.load(), perfect(crowded)
    assert coco_metrics(data, results, max_detections=max_detections) == coco_metrics(data, results)


def test_where_no_image_is_crowded_a_larger_number_changes_nothing(coco_set):
    rng = np.random.default_rng(0)
    boxes = [(i, 7, rng.uniform(5, 90, 4).round(1).tolist()) for i in range(4) for _ in range(6)]
    made = coco_set([(200, 200)] * 4, boxes)
    data, results = made.load(), perfect(made)
    for result in results:
        result["bbox"] = [value + rng.uniform(0, 6) for value in result["bbox"]]
    one, other = coco_metrics(data, results), coco_metrics(data, results, max_detections=300)
    assert [other[name] for name in METRIC_NAMES] == pytest.approx([one[name] for name in METRIC_NAMES])
    assert other["AP@100"] == one["AP"] > 0


def test_crowded_images_are_noted(crowded, coco_set):
    data, settings = crowded.load(), EvalConfig()
    (finding,) = crowded_findings(data, settings)
    assert (finding.count, finding.items) == (1, ("000.png",))
    assert "eval.max_detections=150" in finding.advice
    assert crowded_findings(data, replace(settings, max_detections=150)) == []
    assert any("eval.max_detections=150" in note for note in fit_notes(data, data, Config()))
