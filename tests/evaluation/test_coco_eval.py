"""COCO metrics against pycocotools without our code, and the way from a model's outputs to COCO results."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from gfl.common.files import write_json
from gfl.config import DataConfig, EvalConfig
from gfl.data.loader import build_eval_loader
from gfl.evaluation.coco_eval import METRIC_NAMES, coco_metrics, draw_samples, format_metrics, run_detector
from gfl.method.quality import Quality
from gfl.structures import HeadOutput, PointGrid

NAMES = {7: "disc", 3: "ring", 40: "cross"}
SIZES = [(200, 150), (150, 200), (320, 240), (90, 60)]
BOXES = [
    (0, 7, [10, 10, 60, 50]),
    (0, 3, [100, 20, 20, 25]),
    (1, 7, [5, 40, 120, 110]),
    (1, 7, [60, 160, 30, 30]),
    (2, 40, [20, 20, 200, 150]),
    (2, 3, [230, 100, 80, 120]),
    (2, 7, [5, 190, 18, 28]),
    (3, 40, [30, 10, 40, 40]),
]


@pytest.fixture
def shapes(coco_set):
    return coco_set(SIZES, BOXES, categories=NAMES)


def results_of(made, jitter=0.0, score=0.9):
    """Detections at the true boxes, shifted by `jitter` times their size."""
    rng = np.random.default_rng(1)
    results = []
    for entry in made.tree["annotations"]:
        if entry.get("iscrowd"):
            continue
        x, y, width, height = entry["bbox"]
        dx, dy, dw, dh = jitter * rng.standard_normal(4)
        box = [x + dx * width, y + dy * height, width * np.exp(dw), height * np.exp(dh)]
        results.append(
            {
                "image_id": entry["image_id"],
                "category_id": entry["category_id"],
                "bbox": [round(float(value), 3) for value in box],
                "score": round(score - float(rng.uniform(0, 0.5)), 6),
            }
        )
    return results


def official(annotations, results_file, **params):
    """COCO's metrics without any of our code."""
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(annotations)
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(results_file)), "bbox")
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


# Metrics


def test_perfect_detections_score_1(shapes):
    metrics = coco_metrics(shapes.load(), results_of(shapes))
    assert {name: metrics[name] for name in METRIC_NAMES if name != "AR1"} == pytest.approx(
        dict.fromkeys((name for name in METRIC_NAMES if name != "AR1"), 1.0)
    )
    assert metrics["AR1"] < 1  # one image holds two discs
    assert list(metrics["per_class"]) == ["ring", "disc", "cross"]
    assert all(values == pytest.approx({"AP": 1, "AP50": 1}) for values in metrics["per_class"].values())


def test_perfect_detections_score_1_with_crowds_id_0_and_fields_left_out(coco_set):
    crowds = [(0, 7, [80, 80, 110, 60]), (2, 40, [0, 0, 100, 100])]
    made = coco_set(SIZES, BOXES, crowds=crowds, categories=NAMES)
    for entry in made.tree["annotations"]:
        entry["id"] -= 1  # pycocotools alone takes a match with id 0 for no match
        del entry["area"]
        if not entry["iscrowd"]:
            del entry["iscrowd"]
    found = results_of(made)
    inside_crowd = {"image_id": 900, "category_id": 7, "bbox": [90, 90, 30, 30], "score": 0.99}  # neither good nor bad
    metrics = coco_metrics(made.save().load(), [*found, inside_crowd])
    assert metrics["AP"] == pytest.approx(1)
    assert coco_metrics(made.load(), [*found, inside_crowd | {"category_id": 3}])["AP"] < 1


def test_no_detections_score_0(shapes):
    metrics = coco_metrics(shapes.load(), [])
    assert {metrics[name] for name in METRIC_NAMES} == {0.0}
    assert metrics["per_class"]["disc"] == {"AP": 0.0, "AP50": 0.0}


def test_detections_of_a_wrong_class_or_image_score_0(shapes):
    found = results_of(shapes)
    shifted = [result | {"image_id": 900 - (907 - result["image_id"]) % 28} for result in found]
    other = [result | {"category_id": {7: 3, 3: 40, 40: 7}[result["category_id"]]} for result in found]
    assert coco_metrics(shapes.load(), shifted)["AP50"] == pytest.approx(0)
    assert coco_metrics(shapes.load(), other)["AP50"] == pytest.approx(0)


def test_metrics_equal_pycocotools_on_the_written_file(shapes, tmp_path):
    data, found = shapes.load(), results_of(shapes, jitter=0.08)
    found += results_of(shapes, jitter=0.3, score=0.6)
    write_json(tmp_path / "detections.json", found)
    metrics = coco_metrics(data, found)
    expected = official(shapes.annotations, tmp_path / "detections.json")
    assert 0.1 < expected[0] < 0.9
    assert [metrics[name] for name in METRIC_NAMES] == expected
    for category, name in NAMES.items():
        expected = official(shapes.annotations, tmp_path / "detections.json", catIds=[category])
        assert metrics["per_class"][name] == pytest.approx({"AP": expected[0], "AP50": expected[1]})


def test_each_class_has_its_own_metrics_in_any_order_of_classes(shapes):
    found = [result for result in results_of(shapes) if result["category_id"] != 3]
    for class_names in (["ring", "disc", "cross"], ["disc", "cross", "ring"]):
        per_class = coco_metrics(shapes.load(class_names), found)["per_class"]
        assert list(per_class) == class_names
        assert {name: values["AP"] for name, values in per_class.items()} == pytest.approx(
            {"disc": 1, "ring": 0, "cross": 1}
        )


def test_metrics_without_objects_are_undefined(coco_set):
    made = coco_set([(300, 300)], [(0, 7, [10, 10, 100, 100])], categories={7: "disc", 3: "ring"})
    metrics = coco_metrics(made.load(), results_of(made))
    assert (metrics["AP"], metrics["APL"]) == pytest.approx((1, 1))
    assert [metrics[name] for name in ("APS", "APM", "ARS", "ARM")] == [None] * 4
    assert metrics["per_class"]["ring"] == {"AP": None, "AP50": None}
    assert metrics["per_class"]["disc"] == pytest.approx({"AP": 1, "AP50": 1})
    lines = [line.split() for line in format_metrics(metrics).splitlines()]
    assert lines[:4] == [
        ["AP", "AP50", "AP75", "APS", "APM", "APL"],
        ["1.000", "1.000", "1.000", "-", "-", "1.000"],
        ["AR1", "AR10", "AR100", "ARS", "ARM", "ARL"],
        ["1.000", "1.000", "1.000", "-", "-", "1.000"],
    ]
    assert lines[-3:] == [["class", "AP", "AP50"], ["ring", "-", "-"], ["disc", "1.000", "1.000"]]


def test_results_are_left_as_they_are(shapes):
    found = results_of(shapes)
    before = json.dumps(found)
    coco_metrics(shapes.load(), found)
    assert json.dumps(found) == before  # pycocotools writes into what it is given


# From a model to results


class Scores(Quality):
    """The outputs are scores."""

    def scores(self, output):
        return output.cls_logits


class FakeDetector(nn.Module):
    """Gives the boxes (B, P, 4) and scores (B, P, C) that `find` makes of images."""

    quality = Scores()  # no branch, whose score would multiply

    def forward(self, images):
        boxes, scores = self.find(images)
        count = scores.shape[1]
        return HeadOutput(scores, boxes, None, PointGrid(torch.zeros(count, 2), torch.ones(count), ((1, count),)))

    def decode_at(self, output, image, point):
        return output.reg_pred[image, point]


class ColourDetector(FakeDetector):
    """Finds the drawn rectangle of each channel, which is its class, with one point per class.

    It knows nothing but the pixels of the resized image, so that right results were mapped back rightly.
    """

    def find(self, images):
        boxes, scores = torch.zeros(len(images), 3, 4), torch.zeros(len(images), 3, 3)
        for row, image in enumerate(images):
            rest = image.sum(dim=0)
            for channel in range(3):
                mask = image[channel] - (rest - image[channel]) / 2 > 2  # a saturated colour, in units of deviations
                if mask.any():
                    ys, xs = mask.nonzero(as_tuple=True)
                    corners = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
                    boxes[row, channel] = torch.stack(corners).float()
                    scores[row, channel, channel] = 0.8
        return boxes, scores


DRAWN = [(0, 9, [8, 12, 24, 16]), (0, 2, [40, 4, 16, 32]), (1, 5, [4, 4, 28, 48]), (3, 9, [0, 0, 80, 40])]
FALLING = {9: "nine", 5: "five", 2: "two"}  # the order of the channels


@pytest.fixture
def drawn(coco_set):
    return coco_set([(60, 40), (40, 60), (30, 30), (80, 40)], DRAWN, categories=FALLING)


def detect_drawn(data, **changes):
    settings = DataConfig(**{"short_side": 80, "long_side": 160, "workers": 0} | changes)
    loader = build_eval_loader(data, settings, EvalConfig(batch=2))
    return run_detector(ColourDetector().train(), loader, data, EvalConfig(), torch.device("cpu"))


@pytest.mark.parametrize("short_side", [40, 80])
def test_results_are_in_pixels_and_ids_of_the_json(drawn, short_side):
    data = drawn.load(["nine", "five", "two"])
    results = detect_drawn(data, short_side=short_side)
    assert [result["image_id"] for result in results] == [879, 893, 900, 900]
    found = {(result["image_id"], result["category_id"]): result["bbox"] for result in results}
    true = {(entry["image_id"], entry["category_id"]): entry["bbox"] for entry in drawn.tree["annotations"]}
    assert found.keys() == true.keys()
    for key, box in true.items():
        assert found[key] == pytest.approx(box, abs=0.51)
    assert {result["score"] for result in results} == {0.8}
    assert json.loads(json.dumps(results)) == results


def test_a_model_that_finds_every_object_scores_1(drawn):
    data = drawn.load(["nine", "five", "two"])
    assert coco_metrics(data, detect_drawn(data, short_side=40))["AP50"] == pytest.approx(1)


class Fixed(FakeDetector):
    """The same boxes and scores for each image."""

    def __init__(self, boxes, scores):
        super().__init__()
        self.boxes, self.scores = torch.tensor(boxes), torch.tensor(scores)

    def find(self, images):
        return tuple(t.expand(len(images), *t.shape) for t in (self.boxes, self.scores))


def test_boxes_are_cut_to_the_image_before_they_are_mapped_back(coco_set):
    """60 x 40 is resized to 120 x 80 and padded to 128 x 96."""
    data = coco_set().load()
    model = Fixed(
        [[-20.0, 20.0, 126.0, 90.0], [20.0, 10.0, 40.0, 30.0], [10.0, 82.0, 50.0, 95.0]], [[0.5], [0.7], [0.9]]
    )
    loader = build_eval_loader(data, DataConfig(short_side=80, long_side=160, workers=0))
    results = run_detector(model, loader, data, EvalConfig(), torch.device("cpu"))
    assert [result["bbox"] for result in results] == [[10, 5, 10, 10], [0, 10, 60, 30]]
    assert [result["score"] for result in results] == [0.7, 0.5]
    assert {(result["image_id"], result["category_id"]) for result in results} == {(900, 7)}


def test_width_and_height_are_mapped_back_each_by_its_own_scale(coco_set):
    """300 x 7 is resized to 100 x 2: rounding makes 3 across and 3.5 down of it."""
    data = coco_set([(300, 7)], [(0, 7, [30, 0, 120, 7])]).load()
    loader = build_eval_loader(data, DataConfig(short_side=80, long_side=100, workers=0))
    results = run_detector(Fixed([[10.0, 0.0, 50.0, 2.0]], [[0.5]]), loader, data, EvalConfig(), torch.device("cpu"))
    assert results[0]["bbox"] == [30, 0, 120, 7]


def test_an_image_that_is_evaluated_twice_or_never_is_an_error(drawn):
    data = drawn.load(["nine", "five", "two"])
    loaded = list(build_eval_loader(data, DataConfig(short_side=40, workers=0)))
    device = torch.device("cpu")
    assert run_detector(ColourDetector(), loaded, data, EvalConfig(), device)
    for wrong in (loaded + loaded[:1], loaded[1:]):
        with pytest.raises(RuntimeError, match="exactly once"):
            run_detector(ColourDetector(), wrong, data, EvalConfig(), device)


def test_the_model_is_in_evaluation_mode_and_every_batch_is_reported(drawn):
    data, model, modes = drawn.load(["nine", "five", "two"]), ColourDetector().train(), []
    loader = build_eval_loader(data, DataConfig(short_side=40, workers=0), EvalConfig(batch=3))
    run_detector(model, loader, data, EvalConfig(), torch.device("cpu"), on_batch=lambda: modes.append(model.training))
    assert modes == [False, False]


def test_samples_show_the_first_images_with_confident_boxes(shapes):
    data = shapes.load()
    samples = draw_samples(data, results_of(shapes), 2, DataConfig())
    unsure = draw_samples(data, results_of(shapes, score=0.29), 2, DataConfig())
    nothing = draw_samples(data, [], 2, DataConfig())
    assert [sample.shape for sample in samples] == [(480, 640, 3), (640, 480, 3)]
    for sample, without, empty in zip(samples, unsure, nothing, strict=True):
        assert not np.array_equal(sample, empty)
        np.testing.assert_array_equal(without, empty)
    assert len(draw_samples(data, [], 99, DataConfig())) == 4
    assert draw_samples(data, [], 0, DataConfig()) == []
