"""Resize, flip and augmentation: boxes move with the pixels."""

from pathlib import Path

import numpy as np
import pytest

from gfl.data.transforms import Augmentation, flip, keep_ratio_size, resize

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "resize.npz")


def draw(height, width, *boxes):
    """A black image with a filled rectangle of its own colour per box: 255, 254, ... in all channels."""
    image = np.zeros((height, width, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2] = 255 - number
    return image


def extent(mask):
    """Corners of the true pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


# Resize and flip


def test_keep_ratio_size_equals_mmcv_on_every_golden_row():
    ours = [
        keep_ratio_size(height, width, short_side=short, long_side=long)
        for width, height, long, short, _, _ in GOLDEN["rows"].tolist()
    ]
    assert ours == [(height, width) for *_, width, height in GOLDEN["rows"].tolist()]


def test_keep_ratio_size_is_never_empty():
    assert keep_ratio_size(1, 5000, short_side=800, long_side=1333) == (1, 1333)
    assert keep_ratio_size(5000, 1, short_side=800, long_side=1333) == (1333, 1)


def test_resized_pixels_equal_mmcv():
    image = GOLDEN["image"]
    size = keep_ratio_size(*image.shape[:2], short_side=100, long_side=120)
    resized, _ = resize(image, np.zeros((0, 4), np.float32), size)
    assert resized.shape == GOLDEN["resized"].shape
    assert np.abs(resized.astype(int) - GOLDEN["resized"]).max() <= 1


@pytest.mark.parametrize("size", [(80, 120), (120, 60), (40, 60), (57, 91), (20, 30)])
def test_resize_moves_boxes_with_pixels(size):
    box = [10, 12, 34, 32]
    image, boxes_xyxy = resize(draw(40, 60, box), np.array([box], np.float32), size)
    assert image.shape == (*size, 3)
    assert boxes_xyxy.dtype == np.float32
    assert boxes_xyxy[0] == pytest.approx(np.array(box) * np.tile([size[1] / 60, size[0] / 40], 2))
    assert extent(image[..., 0] > 127) == pytest.approx(boxes_xyxy[0], abs=0.51)


def test_flip_moves_boxes_with_pixels_and_leaves_its_input_alone():
    boxes = np.array([[10, 12, 34, 32], [0, 0, 5, 40]], np.float32)
    image = draw(40, 60, *boxes.astype(int).tolist())
    before = image.copy(), boxes.copy()
    flipped, flipped_boxes = flip(image, boxes)
    assert flipped_boxes.tolist() == [[26, 12, 50, 32], [55, 0, 60, 40]]
    assert [extent(flipped[..., 0] == 255 - number) for number in range(2)] == flipped_boxes.tolist()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(boxes, before[1])


# Augmentation

BOXES = np.array([[4, 6, 20, 22], [30, 10, 50, 34], [8, 26, 26, 38]], np.float32)
LABELS = np.array([2**24 + 1, 2, 2**40 + 3])  # float32 would round the first and the last


def augment(transforms, boxes=BOXES, labels=LABELS, seed=0):
    image = draw(40, 60, *boxes.astype(int).tolist())
    return Augmentation(transforms)(image, boxes, labels, np.random.default_rng(seed))


MANY = [
    {"name": "HueSaturationValue", "p": 0.5},
    {"name": "RandomBrightnessContrast", "p": 0.9},
    {"name": "Affine", "translate_px": [-9, 9], "p": 0.9},
]


def test_augmentation_is_a_function_of_the_generator():
    augmentation, image = Augmentation(MANY), GOLDEN["image"]
    results = [augmentation(image, BOXES, LABELS, np.random.default_rng(seed)) for seed in (1, 2, 1)]
    fresh = Augmentation(MANY)(image, BOXES, LABELS, np.random.default_rng(1))
    for first, again, other in zip(results[0], results[2], fresh, strict=True):
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(first, other)
    assert not np.array_equal(results[0][0], results[1][0])
    rng = np.random.default_rng(1)
    first, second = (augmentation(image, BOXES, LABELS, rng)[0] for _ in range(2))  # one generator, used twice
    assert not np.array_equal(first, second)


def test_an_albumentations_flip_equals_ours():
    image, boxes, labels = augment([{"name": "HorizontalFlip", "p": 1}])
    ours, our_boxes = flip(draw(40, 60, *BOXES.astype(int).tolist()), BOXES)
    np.testing.assert_array_equal(image, ours)
    np.testing.assert_allclose(boxes, our_boxes, atol=1e-4)
    assert boxes.dtype == np.float32
    assert (labels.tolist(), labels.dtype) == (LABELS.tolist(), np.int64)


def test_boxes_and_labels_stay_together_when_a_crop_removes_boxes():
    counts = set()
    for seed in range(20):
        image, boxes, labels = augment([{"name": "RandomCrop", "height": 24, "width": 24, "p": 1}], seed=seed)
        assert image.shape == (24, 24, 3)
        counts.add(len(labels))
        for box, label in zip(boxes, labels, strict=True):
            colour = 255 - LABELS.tolist().index(label)
            assert extent(image[..., 0] == colour) == pytest.approx(box, abs=1e-3)
        seen = np.isin(255 - np.arange(len(LABELS)), image)
        assert len(labels) == seen.sum()
    assert {1, 2} <= counts


@pytest.mark.parametrize("transforms", [[{"name": "HorizontalFlip", "p": 1}], [{"name": "ToGray", "p": 1}]])
def test_an_image_without_boxes_has_none_after_augmentation(transforms):
    _, boxes, labels = augment(transforms, BOXES[:0], LABELS[:0])
    assert (boxes.shape, labels.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"name": "HorizontalFlop"}, ["'HorizontalFlop'"]),
        ({"name": "Compose", "transforms": []}, ["'Compose'"]),
        ({"name": "__name__"}, ["'__name__'"]),
        ({"name": 3}, ["3 is not"]),
        ({"p": 1}, ["None"]),
        ({"name": "HorizontalFlip", "probability": 1}, ["HorizontalFlip", "probability"]),
        ({"name": "HorizontalFlip", "p": 2}, ["HorizontalFlip"]),
        ({"name": "RandomCrop", "height": "tall", "width": 9}, ["RandomCrop", "height"]),
        ({"name": "RandomCrop"}, ["RandomCrop", "height"]),
    ],
)
def test_an_unknown_transform_or_argument_is_named(refusal, entry, named):
    message = refusal(Augmentation, [{"name": "ToGray"}, entry])
    assert message.startswith("data.augment: ")
    assert all(name in message for name in named)


def test_another_version_of_albumentations_is_refused(refusal, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.4.0")
    assert "1.4.0" in refusal(Augmentation, [{"name": "ToGray"}])


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "RandomCrop", "height": 100, "width": 100, "p": 1},  # larger than the image
        {"name": "Normalize", "p": 1},  # returns float32
    ],
)
def test_a_transform_that_fails_on_the_image_is_refused(refusal, entry):
    assert refusal(augment, [entry]).startswith("data.augment: ")
