"""Images as they are read, and boxes that move with the pixels."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gfl.data.transforms import Augmentation, flip, keep_ratio_size, read_image, resize

GOLDEN = np.load(Path(__file__).parent / "golden" / "resize.npz")


def picture(height, width, *boxes):
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


def test_keep_ratio_size_follows_the_reference_on_every_golden_row():
    ours = [
        keep_ratio_size(height, width, short_side=short, long_side=long)
        for width, height, long, short, _, _ in GOLDEN["rows"].tolist()
    ]
    assert ours == [(height, width) for *_, width, height in GOLDEN["rows"].tolist()]


def test_keep_ratio_size_is_never_empty():
    assert keep_ratio_size(1, 5000, short_side=800, long_side=1333) == (1, 1333)
    assert keep_ratio_size(5000, 1, short_side=800, long_side=1333) == (1333, 1)


def test_resized_pixels_are_the_references():
    image = GOLDEN["image"]
    size = keep_ratio_size(*image.shape[:2], short_side=100, long_side=120)
    resized, _ = resize(image, np.zeros((0, 4), np.float32), size)
    assert resized.shape == GOLDEN["resized"].shape
    assert np.abs(resized.astype(int) - GOLDEN["resized"]).max() <= 1


@pytest.mark.parametrize("size", [(80, 120), (120, 60), (40, 60), (57, 91), (20, 30)])
def test_resize_moves_boxes_with_pixels(size):
    box = [10, 12, 34, 32]
    image, boxes_xyxy = resize(picture(40, 60, box), np.array([box], np.float32), size)
    assert image.shape == (*size, 3)
    assert boxes_xyxy.dtype == np.float32
    assert boxes_xyxy[0] == pytest.approx(np.array(box) * np.tile([size[1] / 60, size[0] / 40], 2))
    assert extent(image[..., 0] > 127) == pytest.approx(boxes_xyxy[0], abs=0.51)


def test_flip_moves_boxes_with_pixels_and_leaves_its_input_alone():
    boxes = np.array([[10, 12, 34, 32], [0, 0, 5, 40]], np.float32)
    image = picture(40, 60, *boxes.astype(int).tolist())
    before = image.copy(), boxes.copy()
    flipped, flipped_boxes = flip(image, boxes)
    assert flipped_boxes.tolist() == [[26, 12, 50, 32], [55, 0, 60, 40]]
    assert [extent(flipped[..., 0] == 255 - number) for number in range(2)] == flipped_boxes.tolist()
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(boxes, before[1])


def test_flip_twice_is_the_identity():
    image, boxes = GOLDEN["image"], np.array([[1.5, 2.25, 30.0, 17.75]], np.float32)
    again, again_boxes = flip(*flip(image, boxes))
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(again_boxes, boxes)


# Reading


def test_channels_are_red_green_blue(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (7, 9))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, rgb)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16"])
def test_every_png_gives_three_channels(tmp_path, mode):
    grey = Image.fromarray(np.tile(np.array([[0, 255]], np.uint8), (8, 4)))
    if mode == "I;16":
        grey = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    grey = grey if mode in ("L", "I;16") else grey.convert(mode)
    grey.save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", (8, 8))
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)
    assert (image[:, 0::2] == 0).all()
    assert (image[:, 1::2] == 255).all()


def test_a_missing_image_is_named(tmp_path, refusal):
    assert f"cannot read image {tmp_path / 'none.png'}" in refusal(read_image, tmp_path / "none.png")
    assert f"cannot read image {tmp_path}" in refusal(read_image, tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_file_that_was_cut_off_is_named(tmp_path, refusal, suffix, share):
    data = cv2.imencode(suffix, GOLDEN["image"])[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(read_image, path, (61, 83))
    assert f"image {path} is damaged" in message


def test_a_file_that_is_no_image_is_named(tmp_path, refusal):
    path = tmp_path / "page.jpg"
    path.write_text("<html>404</html>")
    assert f"image {path} is damaged or of an unknown format" in refusal(read_image, path)


def test_a_damaged_header_with_an_enormous_size_is_named(tmp_path, refusal):
    data = bytearray(cv2.imencode(".jpg", GOLDEN["image"])[1].tobytes())
    start = data.index(b"\xff\xc0") + 5  # the size in the frame header: height, width
    assert data[start : start + 4] == bytes([0, 61, 0, 83])
    data[start : start + 4] = b"\xf0\x00\xf0\x00"  # more than OpenCV reads, which it raises an error of its own for
    path = tmp_path / "huge.jpg"
    path.write_bytes(data)
    assert f"image {path} is damaged" in refusal(read_image, path, (61, 83))


def test_another_size_than_the_jsons_is_refused_with_both(tmp_path, refusal):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), picture(40, 60))
    message = refusal(read_image, path, (41, 60))
    assert f"image {path} is 60 x 40 but the json says 60 x 41" in message
    assert refusal(read_image, path, (60, 40))  # turned without an EXIF tag


@pytest.fixture
def turned(tmp_path):
    """40 high and 60 wide in the file, its left third white; EXIF says to turn it by 90 degrees clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(picture(40, 60, [0, 0, 20, 40])).save(path, exif=exif, quality=95)
    return path


def test_a_turned_photograph_is_upright_where_the_json_says_so(turned):
    image = read_image(turned, (60, 40))
    assert image.shape == (60, 40, 3)
    assert extent(image[..., 0] > 127) == [0, 0, 40, 20]
    np.testing.assert_array_equal(image, read_image(turned))


def test_a_turned_photograph_stays_as_stored_where_the_json_has_that_size(turned):
    image = read_image(turned, (40, 60))
    assert image.shape == (40, 60, 3)
    assert extent(image[..., 0] > 127) == [0, 0, 20, 40]


def test_a_turned_photograph_of_another_size_is_refused(turned, refusal):
    assert "is 60 x 40 but the json says 50 x 40" in refusal(read_image, turned, (40, 50))


# Augmentation

BOXES = np.array([[4, 6, 20, 22], [30, 10, 50, 34], [8, 26, 26, 38]], np.float32)
LABELS = np.array([2**24 + 1, 2, 2**40 + 3])  # float32 would round the first and the last


def augment(transforms, boxes=BOXES, labels=LABELS, seed=0):
    image = picture(40, 60, *boxes.astype(int).tolist())
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


def test_augmentation_draws_anew_from_a_generator_that_goes_on():
    augmentation, rng = Augmentation(MANY), np.random.default_rng(0)
    first, second = (augmentation(GOLDEN["image"], BOXES, LABELS, rng)[0] for _ in range(2))
    assert not np.array_equal(first, second)


def test_an_albumentations_flip_equals_ours():
    image, boxes, labels = augment([{"name": "HorizontalFlip", "p": 1}])
    ours, our_boxes = flip(picture(40, 60, *BOXES.astype(int).tolist()), BOXES)
    np.testing.assert_array_equal(image, ours)
    np.testing.assert_allclose(boxes, our_boxes, atol=1e-4)
    assert boxes.dtype == np.float32
    assert (labels.tolist(), labels.dtype) == (LABELS.tolist(), np.int64)


def test_boxes_and_labels_follow_when_a_crop_takes_boxes_away():
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
def test_an_image_without_boxes_stays_without(transforms):
    _, boxes, labels = augment(transforms, BOXES[:0], LABELS[:0])
    assert (boxes.shape, labels.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    ("entry", "fragments"),
    [
        ({"name": "HorizontalFlop"}, ["'HorizontalFlop' is not an albumentations transform"]),
        ({"name": "Compose", "transforms": []}, ["'Compose' is not"]),
        ({"name": "__name__"}, ["'__name__' is not"]),
        ({"name": 3}, ["3 is not"]),
        ({"p": 1}, ["None is not"]),
        ({"name": "HorizontalFlip", "probability": 1}, ["HorizontalFlip takes no argument probability"]),
        ({"name": "HorizontalFlip", "p": 2}, ["HorizontalFlip", "less than or equal to 1"]),
        ({"name": "RandomCrop", "height": "tall", "width": 9}, ["RandomCrop", "height"]),
        ({"name": "RandomCrop"}, ["RandomCrop", "height", "required"]),
    ],
)
def test_a_transform_that_does_not_exist_or_fit_is_named(refusal, entry, fragments):
    message = refusal(Augmentation, [{"name": "ToGray"}, entry])
    assert message.startswith("data.augment: ")
    assert all(fragment in message for fragment in fragments)


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "RandomCrop", "height": 100, "width": 100, "p": 1},  # larger than the image
        {"name": "Normalize", "p": 1},  # gives float32, of which a uint8 batch keeps nothing
    ],
)
def test_a_transform_that_does_not_suit_the_image_is_named(refusal, entry):
    assert "data.augment" in refusal(augment, [entry])
