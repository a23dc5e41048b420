"""Test-time augmentation: detections of all views against slow oracles, with sides where no view is mirrored."""

import batch_oracles
import numpy as np
import pytest
import torch
from tiny_detector import make_config, make_detector

from gfl.data.dataset import Sample, collate
from gfl.data.transforms import resize
from gfl.evaluation.views import Origins
from gfl.model.detector import normalize_images
from gfl.structures import PointGrid

HEADS = {"general": {}, "gaussian": {"box": "gaussian", "quality": "none"}, "deltas": {"box": "anchor_delta"}}
NAMES = ("disc", "ring")
SETTINGS = {"score_thresh": 0.5, "max_detections": 40, "pre_nms_topk": 1000, "nms_iou": 0.6}
NO_BOXES = np.zeros((0, 4), np.float32)


def detector_with(head="general", *, short_side=64, **evaluation):
    data = {"short_side": short_side, "long_side": 96}
    return make_detector(make_config(data=data, evaluation=SETTINGS | evaluation, **HEADS[head]), NAMES, seed=1)


@pytest.fixture(scope="module")
def pixels():
    """(60, 76, 3) RGB noise in blocks: mirrored and then resized by half it is the same as the other way round."""
    coarse = np.random.default_rng(1).integers(0, 256, (15, 19, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)


@torch.no_grad()
def seen_by_hand(model, pixels, size, mirrored):
    """Boxes (P, 4) in pixels of the file, scores (P, C) and level sizes of one view, a box at a time."""
    image = resize(pixels, NO_BOXES, size)[0]
    image = image[:, ::-1] if mirrored else image
    padded = np.zeros((-(-size[0] // 32) * 32, -(-size[1] // 32) * 32, 3), np.uint8)
    padded[: size[0], : size[1]] = image
    images = torch.from_numpy(padded).permute(2, 0, 1)[None]
    output = model(normalize_images(images, torch.tensor([size])))
    boxes, scores = (column[0].double() for column in model.decode(output))
    (height, width), placed = pixels.shape[:2], []
    for x1, y1, x2, y2 in boxes.tolist():
        x1, x2 = (size[1] - x2, size[1] - x1) if mirrored else (x1, x2)
        x1, x2 = (min(max(x, 0), size[1]) * width / size[1] for x in (x1, x2))
        y1, y2 = (min(max(y, 0), size[0]) * height / size[0] for y in (y1, y2))
        placed.append([x1, y1, x2, y2])
    return torch.tensor(placed), scores, output.grid.level_sizes


@pytest.mark.parametrize("head", HEADS)
def test_detections_are_those_of_one_nms_over_all_views(head, pixels):
    detector = detector_with(head, tta_scales=[1.0, 0.7], tta_flip=True)
    sizes = [(64, 81), (45, 57)]
    views = [seen_by_hand(detector.model, pixels, size, mirrored) for size in sizes for mirrored in (False, True)]
    boxes, scores = (torch.cat(column) for column in list(zip(*views, strict=True))[:2])
    levels = [size for *_, level_sizes in views for size in level_sizes]
    scores[(boxes[:, 2:] <= boxes[:, :2]).any(dim=1)] = 0
    expected = batch_oracles.detections(boxes, scores, levels, **SETTINGS)
    found = detector.predict(pixels)
    assert found.scores == pytest.approx([score for score, *_ in expected])
    assert found.labels.tolist() == [label for _, label, _ in expected]
    assert found.boxes_xyxy == pytest.approx(boxes[[point for *_, point in expected]].numpy(), abs=1e-3)
    starts = np.cumsum([0, *(len(view[0]) for view in views)])
    assert set(np.searchsorted(starts, [point for *_, point in expected], side="right")) == {1, 2, 3, 4}


@pytest.mark.parametrize("head", HEADS)
def test_a_mirrored_image_has_the_same_views_and_so_the_mirrored_detections(head, pixels):
    """With their points and sides, whatever the network has learned."""
    detector = detector_with(head, short_side=60, tta_scales=[1.0, 0.5], tta_flip=True)
    one, other = detector.predict(pixels), detector.predict(np.ascontiguousarray(pixels[:, ::-1]))
    width, swapped = pixels.shape[1], [2, 1, 0, 3]
    mirror = np.array([-1.0, 1.0, -1.0, 1.0])
    offset = np.array([width, 0.0, width, 0.0])
    assert len(one.scores) > 10
    assert other.scores.tolist() == one.scores.tolist()
    assert other.boxes_xyxy == pytest.approx((offset + mirror * one.boxes_xyxy)[:, swapped], abs=1e-3)
    assert other.points == pytest.approx(offset[:2] + mirror[:2] * one.points, abs=1e-3)
    if one.sides is None:
        return
    assert other.sides.expectation == pytest.approx((offset + mirror * one.sides.expectation)[:, swapped], abs=1e-3)
    assert other.sides.std == pytest.approx(one.sides.std[:, swapped], abs=1e-3)
    quantiles = offset[:, None] + mirror[:, None] * one.sides.quantiles
    quantiles[:, [0, 2]] = quantiles[:, [0, 2], ::-1]
    assert other.sides.quantiles == pytest.approx(quantiles[:, swapped], abs=1e-3)


@pytest.mark.parametrize("head", ["general", "gaussian"])
def test_sides_of_all_views_are_those_of_their_boxes(head, pixels):
    found = detector_with(head, tta_scales=[1.0, 0.7], tta_flip=True).predict(pixels)
    inside = np.tile(pixels.shape[1::-1], 2)
    assert found.sides.expectation.clip(0, inside) == pytest.approx(found.boxes_xyxy, abs=1e-3)


def test_a_single_scale_is_evaluation_at_that_size(pixels):
    scaled = detector_with(tta_scales=[0.5]).predict(pixels)
    config = make_config(data={"short_side": 64, "long_side": 48, "eval_short_side": 32}, evaluation=SETTINGS)
    small = make_detector(config, NAMES, seed=1).predict(pixels)
    assert len(small.scores)
    for name in ("boxes_xyxy", "scores", "labels", "points"):
        np.testing.assert_array_equal(getattr(scaled, name), getattr(small, name))


def test_every_point_has_the_image_size_of_its_view():
    """Two images; two views with levels of 4 and 1, and of 2 and 1 points."""
    sample = Sample(np.zeros((40, 60, 3), np.uint8), NO_BOXES, np.zeros(0, np.int64), 1, (40, 60))
    small = sample._replace(image=sample.image[:20, :30], mirrored=True)
    other, other_small = (each._replace(image=each.image[:-1]) for each in (sample, small))
    batch = collate([sample._replace(views=[small]), other._replace(views=[other_small])])
    grid = PointGrid(torch.zeros(8, 2), torch.zeros(8), ((2, 2), (1, 1), (1, 2), (1, 1)))
    for image, sizes in enumerate([([40, 60], [20, 30]), ([39, 60], [19, 30])]):
        origins = Origins.of(batch, grid, torch.full((8,), image), torch.arange(8))
        assert origins.sizes.tolist() == [sizes[0]] * 5 + [sizes[1]] * 3
        assert origins.mirrored.tolist() == [False] * 5 + [True] * 3
