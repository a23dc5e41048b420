"""Detections against the golden ones and the slow oracle."""

from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

from gfl.method.box_representation import GeneralBox
from gfl.method.boxes import clip_boxes, distances_to_boxes
from gfl.method.points import make_point_grid
from gfl.method.postprocess import select_detections

GOLDEN_SCALE = 1.25  # by which the golden images had been resized


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "head_gfl.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def random_image(seed, level_sizes=(60, 25, 6), num_classes=3):
    """Boxes that overlap a good deal, and scores."""
    generator = torch.Generator().manual_seed(seed)
    boxes = oracles.random_boxes(12, 100, 120, generator)
    boxes = boxes[torch.randint(12, (sum(level_sizes),), generator=generator)]
    boxes = boxes + torch.rand(len(boxes), 4, generator=generator) * torch.tensor([0.0, 0.0, 8.0, 8.0])
    return boxes, torch.rand(len(boxes), num_classes, generator=generator) ** 2


def test_detections_equal_the_golden_ones(golden):
    flat = {
        name: torch.cat([golden[f"{name}_{level}"].flatten(2).mT for level in range(5)], dim=1)
        for name in ("cls", "reg")
    }
    grid = make_point_grid([tuple(golden[f"cls_{level}"].shape[-2:]) for level in range(5)], oracles.STRIDES)
    distances = GeneralBox().distances(flat["reg"].unflatten(-1, (4, 17))) * grid.strides[:, None]
    boxes = clip_boxes(distances_to_boxes(grid.points, distances), golden["image_hw"])
    detections = select_detections(boxes, flat["cls"].sigmoid(), grid.level_sizes)
    for image in range(3):
        assert detections.labels[image].equal(golden[f"det_labels_{image}"])
        torch.testing.assert_close(detections.scores[image], golden[f"det_scores_{image}"], rtol=1e-5, atol=0)
        theirs = golden[f"det_boxes_{image}"]
        torch.testing.assert_close(detections.boxes_xyxy[image] / GOLDEN_SCALE, theirs, rtol=1e-5, atol=1e-3)
        assert boxes[image, detections.point_index[image]].equal(detections.boxes_xyxy[image])


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
@pytest.mark.parametrize("seed", range(2))
def test_detections_equal_the_slow_oracle(seed, options):
    settings = {"score_thresh": 0.05, "pre_nms_topk": 1000, "nms_iou": 0.6, "max_detections": 100} | options
    level_sizes = (60, 25, 6)
    images = [random_image(10 * seed + image) for image in range(2)]
    boxes, scores = (torch.stack(column) for column in zip(*images, strict=True))
    found = select_detections(boxes, scores, level_sizes, **settings)
    for image in range(2):
        expected = oracles.detections(boxes[image], scores[image], level_sizes, **settings)
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


def test_nothing_found_is_empty():
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
