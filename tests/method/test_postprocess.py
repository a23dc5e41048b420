"""Detections against the slow oracle, and the rules for thresholds, ties and empty images."""

import batch_oracles
import oracles
import pytest
import torch
from dense_detections import select_detections

from gfl.method.postprocess import find_candidates


def random_image(seed, level_sizes=(60, 25, 6), num_classes=3):
    """Boxes that overlap a good deal, and scores."""
    generator = torch.Generator().manual_seed(seed)
    boxes = oracles.random_boxes(12, 100, 120, generator)
    boxes = boxes[torch.randint(12, (sum(level_sizes),), generator=generator)]
    boxes = boxes + torch.rand(len(boxes), 4, generator=generator) * torch.tensor([0.0, 0.0, 8.0, 8.0])
    return boxes, torch.rand(len(boxes), num_classes, generator=generator) ** 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score_thresh": 0.3},
        {"pre_nms_topk": 10},
        {"nms_iou": 0.3},
        {"nms_iou": 0.9},
        {"max_detections": 5},
        {"score_thresh": 0.0, "pre_nms_topk": 40, "nms_iou": 0.5, "max_detections": 20},
    ],
    ids=str,
)
def test_detections_equal_the_slow_oracle(options):
    settings = {"score_thresh": 0.05, "pre_nms_topk": 1000, "nms_iou": 0.6, "max_detections": 100} | options
    level_sizes = (60, 25, 6)
    images = [random_image(seed) for seed in range(2)]
    boxes, scores = (torch.stack(column) for column in zip(*images, strict=True))
    found = select_detections(boxes, scores, level_sizes, **settings)
    for image in range(2):
        expected = batch_oracles.detections(boxes[image], scores[image], level_sizes, **settings)
        count = len(expected)
        assert 0 < count < scores[image].numel()
        assert found.scores[image, :count].tolist() == [score for score, *_ in expected]
        assert found.labels[image, :count].tolist() == [label for _, label, _ in expected]
        assert found.point_index[image, :count].tolist() == [point for *_, point in expected]
        assert found.boxes_xyxy[image, :count].equal(boxes[image, found.point_index[image, :count]])
        assert (found.labels[image, count:] == -1).all()
        assert (found.scores[image, count:] == 0).all()


def test_equal_boxes_of_two_classes_both_stay_and_of_one_class_do_not():
    boxes = torch.tensor([[[10.0, 10.0, 50.0, 60.0]] * 2])
    scores = torch.tensor([[[0.9, 0.0, 0.8], [0.7, 0.6, 0.0]]])
    found = select_detections(boxes, scores, (2,))
    assert found.labels.tolist() == [[0, 2, 1]]
    assert found.point_index.tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(("nms_iou", "count"), [(0.59, 1), (0.61, 2)])
def test_nms_threshold(nms_iou, count):
    """Two boxes with IoU 0.6."""
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0]]])
    found = select_detections(boxes, torch.tensor([[[0.9], [0.8]]]), (2,), nms_iou=nms_iou)
    assert found.labels.shape == (1, count)


def test_a_score_at_the_threshold_is_not_a_detection():
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 60.0, 6.0]]])
    found = select_detections(boxes, torch.tensor([[[0.5], [0.5001]]]), (2,), score_thresh=0.5)
    assert found.point_index.tolist() == [[1]]


def test_top_k_is_per_level():
    boxes = torch.arange(6.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
    found = select_detections(boxes[None], scores[None, :, None], (3, 3), pre_nms_topk=1)
    assert found.point_index.tolist() == [[0, 3]]


def test_without_detections_the_columns_are_empty():
    found = select_detections(torch.rand(2, 5, 4), torch.zeros(2, 5, 3), (4, 1))
    assert [tuple(column.shape) for column in found] == [(2, 0, 4), (2, 0), (2, 0), (2, 0)]
    assert found.labels.dtype == found.point_index.dtype == torch.int64


def test_images_with_fewer_detections_are_padded():
    boxes = torch.arange(3.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.7]])
    found = select_detections(boxes.expand(3, 3, 4), scores[..., None], (3,))
    assert found.labels.tolist() == [[0, 0, 0], [-1, -1, -1], [0, -1, -1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.5, 0.1], [0, 0, 0], [0.7, 0, 0]]))
    assert found.point_index[0].tolist() == [1, 2, 0]
    assert found.boxes_xyxy[2].tolist() == [[40, 40, 50, 50], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_boxes_without_area_are_no_detections():
    boxes = torch.tensor([[[0.0, 0.0, 0.0, 9.0], [5.0, 5.0, 9.0, 5.0], [9.0, 0.0, 5.0, 4.0], [1.0, 2.0, 3.0, 4.0]]])
    found = select_detections(boxes, torch.full((1, 4, 1), 0.9), (4,))
    assert found.point_index.tolist() == [[3]]


def test_half_precision_gives_float32_detections():
    boxes, scores = random_image(0)
    found = select_detections(boxes[None].bfloat16(), scores[None].bfloat16(), (60, 25, 6))
    assert found.boxes_xyxy.dtype == found.scores.dtype == torch.float32


def test_a_rank_factor_multiplies_scores_after_the_threshold():
    boxes = torch.tensor([[[0.0, 0, 20, 20], [100, 0, 120, 20], [200, 0, 220, 20], [1, 0, 21, 20]]])
    scores = torch.tensor([[[0.06], [0.9], [0.04], [0.5]]])
    factor = torch.tensor([[0.5, 0.01, 1.0, 0.9]])
    found = select_detections(boxes, scores, (4,), rank_factor=factor)
    # Of the overlapping first and last the last survives; the second stays, although its product is below 0.05.
    assert found.point_index.tolist() == [[3, 1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.45, 0.009]]))


def test_a_rank_factor_decides_which_of_two_overlapping_boxes_survives():
    boxes = torch.tensor([[[0.0, 0, 20, 20], [1, 0, 21, 20]]])
    found = select_detections(boxes, torch.tensor([[[0.9], [0.5]]]), (2,), rank_factor=torch.tensor([[0.1, 0.9]]))
    assert found.point_index.tolist() == [[1]]


def test_defaults_are_the_reference_s():
    """A score of 0.05, 1000 candidates per level, IoU 0.6, 100 detections."""
    boxes = torch.arange(1200.0)[:, None] * 20 + torch.tensor([0.0, 0.0, 10.0, 10.0])
    scores = torch.linspace(0.9, 0.04, 1200)
    found = select_detections(boxes[None], scores[None, :, None], (1200,), max_detections=2000)
    assert found.scores.shape == (1, 1000)
    assert select_detections(boxes[None], scores[None, :, None], (1200,)).scores.shape == (1, 100)
    found = select_detections(boxes[None, :2], torch.tensor([[[0.049], [0.051]]]), (2,))
    assert found.point_index.tolist() == [[1]]


def test_an_image_s_detections_do_not_depend_on_the_batch():
    """To the bit, with many equal scores, scores that are not numbers, and an image without candidates."""
    images = [random_image(seed, num_classes=40) for seed in range(4)]
    boxes, scores = (torch.stack(column) for column in zip(*images, strict=True))
    scores, factor = (scores * 8).round() / 8, torch.rand(scores.shape[:2], generator=torch.Generator().manual_seed(0))
    scores[1], scores[2, 3] = 0.0, torch.nan
    options = {"pre_nms_topk": 1500, "max_detections": 5000}
    together = select_detections(boxes, scores, (60, 25, 6), rank_factor=factor, **options)
    for row in range(4):
        own = slice(row, row + 1)
        alone = select_detections(boxes[own], scores[own], (60, 25, 6), rank_factor=factor[own], **options)
        count = alone.labels.shape[1]
        assert (count == 0) == (row == 1)
        assert all(many[row, :count].equal(one[0]) for many, one in zip(together, alone, strict=True))
        assert (together.labels[row, count:] == -1).all()


def test_points_that_are_not_inside_are_no_candidates():
    scores = torch.tensor([[[0.9, 0.1], [0.8, 0.7]], [[0.3, 0.6], [0.2, 0.9]]])
    inside = torch.tensor([[False, True], [True, True]])
    found = find_candidates(scores, (1, 1), inside=inside, score_thresh=0.5, pre_nms_topk=1)
    assert [column.tolist() for column in found[:3]] == [[0, 1, 1], [1, 0, 1], [0, 1, 1]]
    torch.testing.assert_close(found.score, torch.tensor([0.8, 0.6, 0.9]))


def test_a_score_that_is_not_a_number_hides_no_other_of_its_point():
    scores = torch.tensor([[0.9, torch.nan], [torch.nan, torch.nan], [0.5, 0.7]])
    found = find_candidates([scores], (3,), score_thresh=0.5, pre_nms_topk=9)
    assert [column.tolist() for column in found[1:3]] == [[0, 2], [0, 1]]  # 0.5 is not above the threshold
