"""Statistics beyond AP, against constructed cases; the diagrams of them."""

import json

import numpy as np
import pytest

from gfl.config import Config, EvalConfig
from gfl.data.coco import load_coco
from gfl.evaluation.analysis import (
    accurate,
    rank_correlation,
    ranking_statistics,
    score_statistics,
    side_shapes,
    spread_statistics,
)
from gfl.evaluation.plots import plot_scores, plot_shapes, plot_spread, plot_targets
from gfl.evaluation.predictions import Predictions
from gfl.evaluation.targets import RegressionTargets, target_statistics

SIZES = np.array([[100, 50]])  # height and width of the one image


def normal(mean, sigma, num_bins=17):
    """A discretised normal distribution over bins."""
    density = np.exp(-((np.arange(num_bins) - mean) ** 2) / (2 * sigma**2))
    return density / density.sum()


def make_predictions(count, **columns):
    """Predictions of one image with constructed columns."""
    boxes = np.tile([10.0, 10, 30, 40], (count, 1))
    default = Predictions(
        images=np.zeros(count, np.int64),
        boxes_xyxy=boxes,
        labels=np.zeros(count, np.int64),
        scores=np.linspace(0.9, 0.1, count),
        points=np.full((count, 2), 20.0),
        strides=np.full(count, 8),
        scales=np.ones((count, 2)),
        probabilities=None,
        spreads=None,
        iou=np.full(count, 0.9),
        true_boxes=boxes,
        true_sigmas=np.full((count, 4), np.nan),
    )
    return default._replace(**columns)


def test_rank_correlation_depends_on_the_order_only_and_may_be_undefined():
    values = np.array([1.0, 2, 3, 4])
    assert rank_correlation(values, values**5) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(values, np.ones(4)) is None
    assert rank_correlation(values[:2], values[:2]) is None


def test_the_ap_by_iou_is_that_of_the_same_detections_in_their_best_order(coco_set):
    made = coco_set([(100, 50), (100, 50)], [(1, 7, [10, 10, 20, 30])]).save()
    data = load_coco(made.annotations, made.images)
    boxes = np.array([[60.0, 10, 80, 40], [10, 10, 30, 40]])  # beside the object and on it
    found = make_predictions(2, images=np.ones(2, np.int64), boxes_xyxy=boxes, iou=np.array([0.0, 1.0]))
    ranking = ranking_statistics(found, data, EvalConfig())
    assert ranking == {"AP": pytest.approx(0.5), "AP_by_iou": pytest.approx(1.0)}


def test_score_statistics_separate_detections_on_objects():
    iou = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3])  # in order on objects, against it elsewhere
    statistics = score_statistics(make_predictions(6, iou=iou))
    assert (statistics["detections"], statistics["detections_on_objects"]) == (6, 3)
    assert statistics["spearman_on_objects"] == pytest.approx(1)
    assert statistics["spearman"] == pytest.approx(1 - 6 * 8 / (6 * 35))


def test_accurate_detections_are_those_above_the_iou():
    found = accurate(make_predictions(4, iou=np.array([0.69, 0.7, 0.9, 0.0])))
    assert found.iou.tolist() == [0.7, 0.9]
    assert found.probabilities is None


# Spread against blur


def test_spread_statistics_are_over_all_and_per_level():
    sigmas = np.random.default_rng(0).uniform(0.5, 8, (40, 4))
    strides = np.where(np.arange(40) < 20, 8, 16)
    spreads = np.where(strides[:, None] == 8, sigmas * 3, -sigmas + 100)
    found = make_predictions(40, true_sigmas=sigmas, spreads=spreads, strides=strides)
    statistics = spread_statistics(found, SIZES)
    assert statistics["sides"] == 160
    fine, coarse = statistics["by_stride"]["8"], statistics["by_stride"]["16"]
    assert (fine["sides"], fine["spearman"]) == (80, pytest.approx(1))
    assert (coarse["sides"], coarse["spearman"]) == (80, pytest.approx(-1))
    assert all(group["predicted"] == pytest.approx(3 * group["blur"], rel=0.1) for group in fine["curve"])


def test_the_calibration_curve_is_by_deciles_of_the_predicted_spread():
    sigmas = np.arange(400.0).reshape(100, 4)
    shifted = make_predictions(100).boxes_xyxy + 3
    found = make_predictions(100, true_sigmas=sigmas, spreads=2 * sigmas, boxes_xyxy=shifted)
    curve = spread_statistics(found, SIZES)["curve"]
    assert [group["blur"] for group in curve] == [19.5 + 40 * decile for decile in range(10)]
    assert [group["predicted"] for group in curve] == [39 + 80 * decile for decile in range(10)]
    assert {group["error"] for group in curve} == {3.0}


def test_sides_on_the_border_of_the_image_are_left_out_of_in_frame():
    boxes = np.tile([0.0, 10, 50, 40], (10, 1))  # the image is 50 wide: left and right are cut off
    sigmas = np.arange(40.0).reshape(10, 4)
    spreads = sigmas.copy()
    spreads[:, 0] = 100 - spreads[:, 0]
    found = make_predictions(10, true_boxes=boxes, true_sigmas=sigmas, spreads=spreads)
    statistics = spread_statistics(found, SIZES)
    assert (statistics["sides"], statistics["in_frame"]["sides"]) == (40, 20)
    assert statistics["in_frame"]["spearman"] == pytest.approx(1)
    assert statistics["spearman"] < 0.9


def test_sides_of_unknown_blur_are_left_out():
    sigmas = np.arange(40.0).reshape(10, 4)
    spreads = sigmas.copy()
    sigmas[3], spreads[3] = np.nan, 1e6
    statistics = spread_statistics(make_predictions(10, true_sigmas=sigmas, spreads=spreads), SIZES)
    assert (statistics["sides"], statistics["spearman"]) == (36, pytest.approx(1))
    json.dumps(statistics, allow_nan=False)
    assert spread_statistics(make_predictions(3), SIZES) is None
    assert spread_statistics(make_predictions(3, spreads=np.ones((3, 4))), SIZES) is None


# Shapes of sides


def two_peaks(first, second, share):
    return (1 - share) * normal(first, 0.6) + share * normal(second, 0.6)


@pytest.mark.parametrize(
    ("probabilities", "shape"),
    [
        (np.maximum(0, 1 - abs(np.arange(17) - 3.4)), "sharp"),
        (normal(5, 0.4), "sharp"),
        (np.ones(17) / 17, "flat"),
        (normal(8, 2.5), "flat"),
        (normal(8, 0.8), "between"),
        (two_peaks(3, 9, 0.45), "two peaks"),
        (two_peaks(9, 3, 0.3), "two peaks"),
        (two_peaks(3, 9, 0.08), "between"),  # too little for a second peak
        (two_peaks(8, 9.5, 0.45), "between"),  # one broad mode
        (np.array([0, 0.15, 0.31, 0.22, 0.24, 0.08]), "between"),  # one mode with a shallow valley
    ],
)
def test_shapes_of_constructed_sides(probabilities, shape):
    assert side_shapes(probabilities[None, None], 1.0).tolist() == [[shape]]


def test_a_window_of_fine_bins_is_one_stride_wide():
    broad_in_bins = normal(20, 1.1, num_bins=65)  # within a stride of four bins
    assert side_shapes(broad_in_bins[None, None], 0.25).tolist() == [["sharp"]]
    assert side_shapes(broad_in_bins[None, None], 1.0).tolist() == [["between"]]


# Diagrams


def test_diagrams_are_drawn_also_where_statistics_are_undefined(tmp_path):
    sigmas = np.random.default_rng(0).uniform(0.5, 8, (40, 4))
    found, few = make_predictions(40, true_sigmas=sigmas, spreads=sigmas), make_predictions(2)
    assert score_statistics(few)["spearman"] is None
    named = [("a", found, score_statistics(found)), ("b", few, score_statistics(few))]
    plot_scores(named, tmp_path / "scores.png")
    plot_spread("a", found, spread_statistics(found, SIZES), tmp_path / "spread.png")
    plot_shapes([("a", {"sharp": 0.5, "flat": 0.5}), ("b", {"sharp": 0.0, "flat": 0.0})], tmp_path / "shapes.png")
    distances = np.linspace(0, 10, 40).reshape(-1, 4)
    learned = RegressionTargets(distances, np.zeros(10, np.int64), np.full(10, 1), images=1)
    plot_targets("a", distances, target_statistics(learned, Config()), tmp_path / "targets.png")
    assert len(list(tmp_path.glob("*.png"))) == 4
