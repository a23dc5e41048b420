"""Detections of a split beside its ground truth."""

import numpy as np
import pytest
from tiny_detector import make_config, make_detector

from gfl.config import EvalConfig
from gfl.data.loader import build_eval_loader
from gfl.evaluation.predictions import GroundTruth, collect_predictions, match, read_ground_truth, side_spread


def interpolated(place, num_bins=17):
    """The two bins of linear interpolation at `place`."""
    return np.maximum(0, 1 - abs(np.arange(num_bins) - place))


@pytest.mark.parametrize("delta", [0.25, 1.0, 2.0])
def test_a_side_that_is_certain_of_its_place_has_no_spread(delta):
    probabilities = np.stack([interpolated(place) for place in np.linspace(0.1, 15.3, 20)])
    assert side_spread(probabilities, delta) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("delta", [0.25, 1.0])
def test_a_broad_side_has_its_deviation(delta):
    # Sums of a normal over integers are its integrals up to 1e-7 from sigma = 1 on; f (1 - f) comes off.
    for mean, interpolation in ((8.0, 0.0), (8.5, 0.25)):
        density = np.exp(-((np.arange(17) - mean) ** 2) / (2 * 1.5**2))
        spread = side_spread(density / density.sum(), delta)
        assert spread == pytest.approx(delta * (1.5**2 - interpolation) ** 0.5, rel=1e-4)


def test_a_match_has_the_same_class_and_the_highest_iou():
    boxes_xyxy = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 9.0]])
    ground_truth = GroundTruth(boxes_xyxy, np.array([3, 3, 4]), np.arange(12.0).reshape(3, 4))
    boxes = np.array([[0, 0, 10, 6], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 10, 10.0]])
    iou, matched, sigmas = match(boxes, np.array([3, 3, 3, 5]), ground_truth)
    assert iou == pytest.approx([5 / 6, 0.9, 0, 0])
    assert matched[:2].tolist() == [[0, 0, 10, 5], [0, 0, 10, 10]]
    assert sigmas[:2].tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]
    assert np.isnan(matched[2:]).all()


@pytest.mark.parametrize("count", [0, 2])
def test_without_ground_truth_nothing_is_matched(count):
    nothing = GroundTruth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros((0, 4)))
    iou, matched, sigmas = match(np.ones((count, 4)), np.ones(count), nothing)
    assert (iou.shape, matched.shape, sigmas.shape) == ((count,), (count, 4), (count, 4))
    assert not iou.any()


def test_ground_truth_is_by_image_without_regions_to_ignore_and_with_the_blur_where_known(coco_set):
    drawn = coco_set([(60, 40)] * 2, [(1, 7, [1, 2, 10, 20])], crowds=[(1, 7, [0, 0, 5, 5])])
    assert np.isnan(read_ground_truth(drawn.load())[1].sigmas).all()
    drawn.tree["annotations"][0]["edge_sigma"] = [1, 2, 3, 4]
    drawn.tree["annotations"].append(drawn.tree["annotations"][0] | {"id": 9, "ignore": 1})
    none, one = read_ground_truth(drawn.save().load())
    assert none.boxes_xyxy.shape == (0, 4)
    assert one.boxes_xyxy.tolist() == [[1, 2, 11, 22]]
    assert (one.category_ids.tolist(), one.sigmas.tolist()) == ([7], [[1, 2, 3, 4]])


@pytest.mark.parametrize("wrong", [None, 3, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, 10**400], [1, 2, 3, True]])
def test_a_blur_that_is_not_four_numbers_is_refused(wrong, coco_set, refusal):
    drawn = coco_set()
    drawn.tree["annotations"][0]["edge_sigma"] = wrong
    assert "annotation 1: edge_sigma" in refusal(read_ground_truth, drawn.save().load())


def test_an_impossible_blur_is_unknown(coco_set):
    drawn = coco_set()
    drawn.tree["annotations"][0]["edge_sigma"] = [float("inf"), -1, 1e308, 2]
    sigmas = read_ground_truth(drawn.save().load())[0].sigmas[0]
    assert np.isnan(sigmas).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    "head", [{}, {"box": "gaussian", "quality": "none"}, {"box": "dirac", "quality": "iou_branch"}]
)
def test_collected_sides_are_in_pixels_of_the_files(head, coco_set):
    drawn = coco_set([(128, 128), (64, 192)], [(0, 7, [10, 10, 90, 60]), (1, 7, [8, 16, 40, 20])]).load()
    config = make_config(**head)
    loader = build_eval_loader(drawn, config.data, EvalConfig(batch=2))
    found = collect_predictions(make_detector(config).model, loader, drawn, config)
    assert {int(image) for image in found.images} == {0, 1}
    assert all(column is None or len(column) == len(found.scores) for column in found)
    assert found.scales == pytest.approx(2)  # 128 -> 64 and 192 -> 96
    assert (found.probabilities is None, found.spreads is None) == (bool(head), head.get("box") == "dirac")
    if found.probabilities is None:
        return
    to_pixels = found.strides[:, None] * np.tile(found.scales, 2)
    assert found.spreads == pytest.approx(side_spread(found.probabilities, 1.0) * to_pixels)
    distances = (found.probabilities * np.arange(17)).sum(-1) * to_pixels
    boxes = np.concatenate([found.points - distances[:, :2], found.points + distances[:, 2:]], axis=1)
    limits = np.tile(drawn.sizes[found.images][:, ::-1], 2)
    assert boxes.clip(0, limits) == pytest.approx(found.boxes_xyxy, abs=1e-3)
