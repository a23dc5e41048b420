"""Samples and their collation: a pure function of seed, epoch and index, with boxes where their pixels are."""

import cv2
import numpy as np
import pytest
import torch

from gfl.config import DataConfig, EvalConfig
from gfl.data.dataset import CocoDataset, Sample, collate
from gfl.data.orientation import turn_upright
from gfl.data.transforms import flip

SIZES = [(60, 40), (40, 60), (48, 48), (70, 30), (30, 50)]
BOXES = [(0, 7, [10, 10, 20, 15]), (0, 7, [35, 4, 20, 30]), (1, 7, [5, 5, 25, 40]), (3, 7, [2, 2, 60, 20])]
AUGMENT = ({"name": "RandomBrightnessContrast", "p": 0.8}, {"name": "Affine", "translate_px": [-5, 5], "p": 0.8})


@pytest.fixture
def data(coco_set):
    return coco_set(SIZES, BOXES).load()


def dataset(data, *, training=True, seed=0, **config):
    return CocoDataset(data, DataConfig(**{"short_side": 64, "long_side": 96} | config), training=training, seed=seed)


def short_sides(samples, epochs):
    return {min(samples[epoch, index].image.shape[:2]) for epoch in range(epochs) for index in range(5)}


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sample_is_a_function_of_seed_epoch_and_index(data):
    first, again, other = (dataset(data, seed=seed, short_side=(32, 64), augment=AUGMENT) for seed in (1, 1, 2))
    keys = [(epoch, index) for epoch in range(3) for index in range(5)]
    forwards = {key: first[key] for key in keys}
    backwards = {key: again[key] for key in reversed(keys)}
    for epoch, index in keys:
        assert_same(forwards[epoch, index], backwards[epoch, index])
        image = forwards[epoch, index].image
        assert not np.array_equal(image, other[epoch, index].image)
        assert not np.array_equal(image, forwards[(epoch + 1) % 3, index].image)


def test_boxes_of_a_sample_are_where_their_pixels_are(data):
    samples = dataset(data, short_side=(32, 64), flip=0.5)
    flipped = set()
    for epoch in range(20):
        image, boxes_xyxy, labels, image_id, orig_size, *_ = samples[epoch, 1]
        rows, columns = (np.flatnonzero((image[..., 0] > 125).any(axis=axis)) for axis in (1, 0))
        assert boxes_xyxy[0] == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=1)
        assert (labels.tolist(), image_id, orig_size) == ([0], 893, (60, 40))
        flipped.add(bool(boxes_xyxy[0, 0] > image.shape[1] - boxes_xyxy[0, 2]))
    assert flipped == {False, True}


@pytest.mark.parametrize("eval_short_side", [0, 36])
def test_training_draws_short_sides_from_the_whole_range(data, eval_short_side):
    config = {"short_side": (32, 40), "long_side": 1000, "eval_short_side": eval_short_side}
    assert short_sides(dataset(data, **config), 40) == set(range(32, 41))
    assert short_sides(dataset(data, training=False, **config), 3) == {eval_short_side or 40}


def test_evaluation_uses_the_largest_short_side_and_no_augmentation(data):
    config = {"short_side": (32, 64), "long_side": 1000, "flip": 1.0, "augment": ({"name": "VerticalFlip", "p": 1},)}
    image, boxes_xyxy, *_ = dataset(data, training=False, **config)[0, 0]
    assert image.shape == (64, 96, 3)
    assert boxes_xyxy[0].tolist() == pytest.approx([16, 16, 48, 40])
    assert (image[16:40, 16:48, 0] > 125).all()


def test_the_short_side_of_evaluation_is_limited_by_the_long_side_only(data):
    config = {"short_side": 48, "eval_short_side": 80}
    assert short_sides(dataset(data, training=False, long_side=1000, **config), 1) == {80}
    assert dataset(data, training=False, long_side=96, **config)[0, 0].image.shape == (64, 96, 3)


def test_views_have_their_sizes_and_their_boxes_where_the_pixels_are(data):
    """Twice the size in evaluation, which both sides limit, and half of it, each also mirrored."""
    config, views = DataConfig(short_side=36, long_side=48), EvalConfig(tta_scales=(2.0, 0.5), tta_flip=True)
    sample = CocoDataset(data, config, training=False, evaluation=views)[0, 1]
    seen = [sample, *sample.views]
    assert [view.image.shape[:2] for view in seen] == [(96, 64)] * 2 + [(24, 16)] * 2
    assert [view.mirrored for view in seen] == [False, True] * 2
    for view in seen:
        rows, columns = (np.flatnonzero((view.image[..., 0] > 125).any(axis=axis)) for axis in (1, 0))
        assert view.boxes_xyxy[0] == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=1)
    assert seen[1].boxes_xyxy[0] == pytest.approx([16, 8, 56, 72])
    batch = collate([sample, sample])
    assert [view.images.shape for view in (batch, *batch.views)] == [(2, 3, 96, 64)] * 2 + [(2, 3, 32, 32)] * 2
    assert [view.mirrored for view in (batch, *batch.views)] == [False, True] * 2


def test_training_samples_do_not_depend_on_the_short_side_of_evaluation(data):
    first, second = (dataset(data, short_side=(32, 64), eval_short_side=side, seed=2) for side in (0, 40))
    for index in range(5):
        assert_same(first[1, index], second[1, index])


# Collation


def sample(height, width, count, image_id=1):
    boxes_xyxy = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    return Sample(np.full((height, width, 3), 255, np.uint8), boxes_xyxy, np.arange(count) + 1, image_id, (9, 8))


def test_a_batch_is_padded_with_zeros_to_multiples_of_32():
    batch = collate([sample(33, 64, 2, image_id=5), sample(20, 70, 0, image_id=2**40)])
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    for image, (height, width) in zip(batch.images, [(33, 64), (20, 70)], strict=True):
        assert (image[:, :height, :width] == 255).all()
        assert image.sum(dtype=torch.int64) == 255 * 3 * height * width
    assert batch.image_sizes.tolist() == [[33, 64], [20, 70]]
    assert batch.image_ids.tolist() == [5, 2**40]
    assert batch.orig_sizes.tolist() == [[9, 8], [9, 8]]
    assert collate([sample(64, 32, 1)]).images.shape == (1, 3, 64, 32)  # no padding where none is needed


def test_channels_come_first():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    batch = collate([sample(32, 32, 1)._replace(image=image[:, ::-1])])  # a view with steps
    np.testing.assert_array_equal(batch.images[0].numpy(), image[:, ::-1].transpose(2, 0, 1))


def test_regions_to_ignore_travel_with_the_boxes_only_if_they_are_masked(coco_set):
    made = coco_set(boxes=[(0, 7, [10, 10, 20, 15])], crowds=[(0, 7, [40, 10, 15, 20])])
    plain = dataset(made.load(), flip=1.0)[0, 0]
    assert plain.labels.tolist() == [0]
    assert collate([plain]).targets.ignored is None
    masked = dataset(made.load(), flip=1.0, ignored="mask", augment=({"name": "HorizontalFlip", "p": 1},))[0, 0]
    scale = 96 / 60
    assert masked.boxes_xyxy[1] == pytest.approx(np.array([40, 10, 55, 30]) * scale, abs=0.5)  # flipped twice
    targets = collate([masked, plain]).targets
    assert targets.valid.tolist() == [[True, False], [True, False]]
    assert targets.ignored.tolist() == [[False, True], [False, False]]
    assert targets.labels.tolist() == [[0, 0], [0, 0]]
    assert dataset(made.load(), training=False, ignored="mask")[0, 0].labels.tolist() == [0]


def test_empty_slots_are_invalid():
    targets = collate([sample(32, 32, 1), sample(32, 32, 3), sample(32, 32, 0)]).targets
    assert targets.valid.tolist() == [[True, False, False], [True, True, True], [False, False, False]]
    assert targets.labels.tolist() == [[1, 0, 0], [1, 2, 3], [0, 0, 0]]
    assert targets.boxes_xyxy[0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert targets.boxes_xyxy[1].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (targets.boxes_xyxy.dtype, targets.labels.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("count", [1, 2])
def test_a_batch_without_boxes_has_one_invalid_slot(count):
    targets = collate([sample(32, 32, 0)] * count).targets
    assert targets.valid.tolist() == [[False]] * count
    assert targets.boxes_xyxy.shape == (count, 1, 4)


@pytest.mark.parametrize("training", [True, False])
def test_the_bit_depth_of_the_config_scales_samples(coco_set, training):
    made = coco_set(SIZES[:1], BOXES[:1])
    cv2.imwrite(str(made.file(0)), np.full((40, 60), 4095, np.uint16))
    data = made.load()
    assert dataset(data, training=training)[0, 0].image.max() == 15
    assert dataset(data, training=training, bit_depth=12)[0, 0].image.max() == 255


@pytest.mark.parametrize("shape", [(1, 9, 3), (9, 1, 3), (1, 1, 3)])
def test_mirrored_images_of_one_pixel_can_be_batched(shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for mirrored in (flip(image, boxes)[0], *(turn_upright(image, orientation) for orientation in range(1, 9))):
        height, width = mirrored.shape[:2]
        batch = collate([Sample(mirrored, boxes, labels, 1, (height, width))])
        np.testing.assert_array_equal(batch.images[0, :, :height, :width].permute(1, 2, 0).numpy(), mirrored)
