"""What predictions and data say beyond AP, against constructed cases."""

import json

import numpy as np
import pytest
import torch

from gfl.build import build_detector
from gfl.config import config_from_dict
from gfl.data.loader import build_eval_loader
from gfl.evaluation.analysis import (
    accurate,
    rank_correlation,
    score_statistics,
    side_shapes,
    spread_statistics,
)
from gfl.evaluation.plots import plot_scores, plot_shapes, plot_spread, plot_targets
from gfl.evaluation.predictions import Predictions, Truth, collect_predictions, match, read_truth, side_spread
from gfl.training.data_fit import RegressionTargets, target_statistics


def tiny_config(**head):
    return config_from_dict(
        {
            "model": {
                "backbone": {"name": "resnet18", "weights": "none"},
                "fpn": {"channels": 64},
                "head": {"channels": 64, "num_convs": 1} | head,
            },
            "data": {"short_side": 64, "long_side": 96, "workers": 0},
            "eval": {"score_thresh": 0.0, "max_detections": 20},
        },
        "tiny",
    )


def normal(mean, sigma, num_bins=17):
    """A discretised normal distribution over bins."""
    density = np.exp(-((np.arange(num_bins) - mean) ** 2) / (2 * sigma**2))
    return density / density.sum()


def between(place, num_bins=17):
    """All that linear interpolation needs to be sure of `place`."""
    probabilities = np.zeros(num_bins)
    left = int(place)
    probabilities[left], probabilities[left + 1] = 1 - (place - left), place - left
    return probabilities


@pytest.mark.parametrize("delta", [0.25, 1.0, 2.0])
def test_a_side_that_is_sure_of_its_place_has_no_spread(delta):
    places = np.linspace(0.1, 15.3, 20)
    assert side_spread(np.stack([between(place) for place in places]), delta) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("delta", [0.25, 1.0])
def test_a_broad_side_has_its_deviation(delta):
    # Sums of a normal over integers are its integrals up to 1e-7 from sigma = 1 on; f (1 - f) comes off.
    for mean, interpolated in ((8.0, 0.0), (8.5, 0.25)):
        spread = side_spread(normal(mean, 1.5), delta)
        assert spread == pytest.approx(delta * (1.5**2 - interpolated) ** 0.5, rel=1e-4)


def test_a_match_is_of_the_same_class_and_the_highest_iou():
    truth = Truth(
        np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 9.0]]), np.array([3, 3, 4]), np.arange(12.0).reshape(3, 4)
    )
    boxes = np.array([[0, 0, 10, 6], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 10.0]])
    iou, matched, sigmas = match(boxes, np.array([3, 3, 3, 5]), truth)
    assert iou == pytest.approx([5 / 6, 0.9, 0, 0])
    assert matched[:2].tolist() == [[0, 0, 10, 5], [0, 0, 10, 10]]
    assert sigmas[:2].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert np.isnan(matched[2:]).all()


@pytest.mark.parametrize("count", [0, 2])
def test_no_truth_and_no_detections_match_nothing(count):
    nothing = Truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros((0, 4)))
    iou, matched, sigmas = match(np.ones((count, 4)), np.ones(count), nothing)
    assert (iou.shape, matched.shape, sigmas.shape) == ((count,), (count, 4), (count, 4))
    assert not iou.any()


def test_truth_is_by_image_without_crowds_and_with_the_blur_where_known(coco_set):
    drawn = coco_set([(60, 40)] * 2, [(1, 7, [1, 2, 10, 20])], crowds=[(1, 7, [0, 0, 5, 5])])
    assert np.isnan(read_truth(drawn.load())[1].sigmas).all()
    drawn.tree["annotations"][0]["edge_sigma"] = [1, 2, 3, 4]
    none, one = read_truth(drawn.save().load())
    assert none.boxes_xyxy.shape == (0, 4)
    assert one.boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert (one.category_ids.tolist(), one.sigmas.tolist()) == ([7], [[1, 2, 3, 4]])


def test_rank_correlation_sees_order_only_and_says_when_it_is_undefined():
    values = np.array([1.0, 2, 3, 4])
    assert rank_correlation(values, values**5) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(values, np.ones(4)) is None
    assert rank_correlation(values[:2], values[:2]) is None


def made(count, **columns):
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


def test_score_statistics_separate_detections_on_objects():
    iou = np.array([0.9, 0.8, 0.7, 0.1, 0.2, 0.3])  # in order on objects, against it elsewhere
    told = score_statistics(made(6, iou=iou))
    assert (told["detections"], told["detections_on_objects"]) == (6, 3)
    assert told["spearman_on_objects"] == pytest.approx(1)
    assert told["spearman"] == pytest.approx(1 - 6 * 8 / (6 * 35))


def test_spread_statistics_know_perfect_inverse_and_per_level_order():
    rng = np.random.default_rng(0)
    sigmas = rng.uniform(0.5, 8, (40, 4))
    strides = np.where(np.arange(40) < 20, 8, 16)
    spreads = np.where(strides[:, None] == 8, sigmas * 3, -sigmas + 100)
    sizes = np.array([[100, 50]])
    told = spread_statistics(made(40, true_sigmas=sigmas, spreads=spreads, strides=strides), sizes)
    assert told["sides"] == 160
    fine, coarse = told["by_stride"]["8"], told["by_stride"]["16"]
    assert (fine["sides"], fine["spearman"]) == (80, pytest.approx(1))
    assert (coarse["sides"], coarse["spearman"]) == (80, pytest.approx(-1))
    assert all(group["predicted"] == pytest.approx(3 * group["blur"], rel=0.1) for group in fine["curve"])


def test_the_calibration_curve_is_by_tenths_of_the_predicted_spread():
    sigmas = np.arange(400.0).reshape(100, 4)
    found = made(100, true_sigmas=sigmas, spreads=2 * sigmas, boxes_xyxy=made(100).boxes_xyxy + 3)
    curve = spread_statistics(found, np.array([[100, 50]]))["curve"]
    assert [group["blur"] for group in curve] == [19.5 + 40 * tenth for tenth in range(10)]
    assert [group["predicted"] for group in curve] == [39 + 80 * tenth for tenth in range(10)]
    assert {group["error"] for group in curve} == {3.0}


def test_sides_on_the_frame_are_left_out_of_the_figure_within():
    boxes = np.tile([0.0, 10, 50, 40], (10, 1))  # of a picture 50 wide and 100 high: left and right are cut
    sigmas = np.arange(40.0).reshape(10, 4)
    spreads = sigmas.copy()
    spreads[:, 0] = 100 - spreads[:, 0]
    told = spread_statistics(made(10, true_boxes=boxes, true_sigmas=sigmas, spreads=spreads), np.array([[100, 50]]))
    assert (told["sides"], told["in_frame"]["sides"]) == (40, 20)
    assert told["in_frame"]["spearman"] == pytest.approx(1)
    assert told["spearman"] < 0.9


def test_sides_of_unknown_blur_are_left_out():
    sigmas = np.arange(40.0).reshape(10, 4)
    spreads = sigmas.copy()
    sigmas[3], spreads[3] = np.nan, 1e6
    told = spread_statistics(made(10, true_sigmas=sigmas, spreads=spreads), np.array([[100, 50]]))
    assert (told["sides"], told["spearman"]) == (36, pytest.approx(1))
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("wrong", [None, 3, [1, 2, 3], [1, 2, 3, "4"]])
def test_a_blur_that_is_not_four_numbers_is_refused(wrong, coco_set, refusal):
    drawn = coco_set()
    drawn.tree["annotations"][0]["edge_sigma"] = wrong
    assert "annotation 1: edge_sigma" in refusal(read_truth, drawn.save().load())


def test_without_blur_or_spread_there_are_no_figures_of_it():
    assert spread_statistics(made(3), np.array([[100, 50]])) is None
    assert spread_statistics(made(3, spreads=np.ones((3, 4))), np.array([[100, 50]])) is None


def test_accurate_detections_are_those_above_the_iou():
    found = accurate(made(4, iou=np.array([0.69, 0.7, 0.9, 0.0])))
    assert found.iou.tolist() == [0.7, 0.9]
    assert found.probabilities is None


def two_peaks(first, second, share):
    return (1 - share) * normal(first, 0.6) + share * normal(second, 0.6)


@pytest.mark.parametrize(
    ("probabilities", "kind"),
    [
        (between(3.4), "sharp"),
        (normal(5, 0.4), "sharp"),
        (np.ones(17) / 17, "flat"),
        (normal(8, 2.5), "flat"),
        (normal(8, 0.8), "between"),
        (two_peaks(3, 9, 0.45), "two peaks"),
        (two_peaks(9, 3, 0.3), "two peaks"),
        (two_peaks(3, 9, 0.08), "between"),  # too little for a second peak
        (two_peaks(8, 9.5, 0.45), "between"),  # one broad hill
        (np.array([0, 0.15, 0.31, 0.22, 0.24, 0.08]), "between"),  # a dent in one
    ],
)
def test_shapes_of_constructed_sides(probabilities, kind):
    assert side_shapes(probabilities[None, None], 1.0).tolist() == [[kind]]


def test_a_stride_of_fine_bins_counts_as_a_stride():
    broad_in_bins = normal(20, 1.1, num_bins=65)  # within a stride of four bins
    assert side_shapes(broad_in_bins[None, None], 0.25).tolist() == [["sharp"]]
    assert side_shapes(broad_in_bins[None, None], 1.0).tolist() == [["between"]]


@pytest.mark.parametrize(
    "head", [{}, {"box": "gaussian", "quality": "none"}, {"box": "dirac", "quality": "iou_branch"}]
)
def test_collected_sides_lie_around_the_boxes_in_pixels_of_the_files(head, coco_set):
    drawn = coco_set([(128, 128), (64, 192)], [(0, 7, [10, 10, 90, 60]), (1, 7, [8, 16, 40, 20])]).load()
    config = tiny_config(**head)
    torch.manual_seed(0)
    model = build_detector(config, 1).eval()
    loader = build_eval_loader(drawn, config.data, batch=2)
    found = collect_predictions(model, loader, drawn, config, torch.device("cpu"))
    assert {int(image) for image in found.images} == {0, 1}
    assert all(column is None or len(column) == len(found.scores) for column in found)
    assert found.scales[found.images == 0] == pytest.approx(2)  # 128 -> 64
    assert found.scales[found.images == 1] == pytest.approx(2)  # 192 -> 96
    assert (found.probabilities is None, found.spreads is None) == (bool(head), head.get("box") == "dirac")
    if found.probabilities is None:
        return
    to_pixels = found.strides[:, None] * np.tile(found.scales, 2)
    assert found.spreads == pytest.approx(side_spread(found.probabilities, 1.0) * to_pixels)
    distances = (found.probabilities * np.arange(17)).sum(-1) * to_pixels
    boxes = np.concatenate([found.points - distances[:, :2], found.points + distances[:, 2:]], axis=1)
    limits = np.tile(drawn.sizes[found.images][:, ::-1], 2)
    assert boxes.clip(0, limits) == pytest.approx(found.boxes_xyxy, abs=1e-3)


def test_plots_are_drawn_also_without_figures(tmp_path):
    sigmas = np.random.default_rng(0).uniform(0.5, 8, (40, 4))
    found = made(40, true_sigmas=sigmas, spreads=sigmas)
    told = spread_statistics(found, np.array([[100, 50]]))
    undefined = score_statistics(made(2))
    plot_scores([("a", found, score_statistics(found)), ("b", made(2), undefined)], tmp_path / "scores.png")
    plot_spread("a", found, told, tmp_path / "spread.png")
    plot_shapes([("a", {"sharp": 0.5, "flat": 0.5}), ("b", {"sharp": 0.0, "flat": 0.0})], tmp_path / "shapes.png")
    distances = np.linspace(0, 10, 40).reshape(-1, 4)
    learned = RegressionTargets(distances, np.zeros(10, np.int64), np.full(10, 1), images=1)
    plot_targets("a", distances, target_statistics(learned, tiny_config()), tmp_path / "targets.png")
    assert undefined["spearman"] is None
    assert len(list(tmp_path.glob("*.png"))) == 4
