"""`Detector.predict`: the same for every kind of image, its boxes `detect`'s, its sides against slow oracles."""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_detector import make_config, make_detector

from gfl.common.errors import UserError
from gfl.data.dataset import Sample, collate
from gfl.data.transforms import keep_ratio_size, resize
from gfl.evaluation.inference import QUANTILES, bin_positions, detect, mean_and_std, quantiles_of_bins

HEADS = {
    "general": {},
    "fine bins": {"reg_max": 24, "delta": 0.5},
    "gaussian": {"box": "gaussian", "quality": "none"},
    "dirac": {"box": "dirac", "quality": "iou_branch"},
}
NAMES = ("disc", "ring", "cross")


def detector_with(head):
    return make_detector(make_config(**HEADS[head]), NAMES)


@pytest.fixture(scope="module")
def general():
    return detector_with("general")


@pytest.fixture(scope="module")
def pixels():
    """(120, 170, 3) RGB, smooth."""
    x, y = np.meshgrid(np.arange(170), np.arange(120))
    waves = [np.sin(x / 9) + np.cos(y / 5), np.sin(y / 11) - np.cos(x / 17), np.sin((x + y) / 7)]
    return (127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def detect_by_hand(detector, pixels):
    """`detect` on the batch that evaluation would make of the image."""
    height, width = pixels.shape[:2]
    size = keep_ratio_size(height, width, short_side=64, long_side=96)
    resized, boxes = resize(pixels, np.zeros((0, 4), np.float32), size)
    batch = collate([Sample(resized, boxes, np.zeros(0, np.int64), 0, (height, width))])
    return *detect(detector.model, batch, detector.config.eval), (width / size[1], height / size[0])


def assert_equal(one, two):
    assert one.class_names == two.class_names
    for name in ("boxes_xyxy", "labels", "scores", "points"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    for name in one.sides._fields:
        np.testing.assert_array_equal(getattr(one.sides, name), getattr(two.sides, name), err_msg=name)


def test_what_is_shown_of_a_prediction_names_the_best_and_fits_a_screen(general, pixels):
    found = general.predict(pixels, score_thresh=0.0)
    assert len(found.scores) > 5
    assert f"{found.class_names[0]} {found.scores[0]:.2f}" in repr(found)
    assert max(len(repr(found)), len(repr(general))) < 200


# Images


def test_a_path_a_pil_image_and_an_array_give_the_same(general, pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "image.png")
    by_array = general.predict(pixels)
    assert len(by_array.scores) == 20
    assert_equal(by_array, general.predict(tmp_path / "image.png"))
    assert_equal(by_array, general.predict(str(tmp_path / "image.png")))
    assert_equal(by_array, general.predict(Image.fromarray(pixels)))


def test_paths_are_read_with_the_bit_depth_of_the_config(general, pixels, tmp_path):
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(tmp_path / "image.png")
    config = replace(general.config, data=replace(general.config.data, bit_depth=(0.0, 255 * 16.0)))
    grey = pixels[..., :1].repeat(3, axis=2)
    assert_equal(replace(general, config=config).predict(tmp_path / "image.png"), general.predict(grey))


def test_views_of_arrays_are_read_as_their_copies(general, pixels):
    read_only = pixels.copy()
    read_only.setflags(write=False)
    for view in (pixels[..., ::-1], np.rot90(pixels), pixels[::2, 3:], read_only):  # OpenCV's BGR to RGB, ...
        assert_equal(general.predict(view), general.predict(view.copy()))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pil_images_of_other_modes_are_converted(general, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    assert_equal(general.predict(image), general.predict(np.asarray(image.convert("RGB"))))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_rotated_images_are_turned_upright_by_their_exif(general, pixels, tmp_path, orientation):
    turns = {3: 2, 6: 1, 8: 3}[orientation]  # quarter turns, counter-clockwise, from upright to stored
    exif, path = Image.Exif(), tmp_path / "image.jpg"
    exif[0x0112] = orientation
    Image.fromarray(np.rot90(pixels, turns).copy()).save(path, exif=exif)
    with Image.open(path) as image:
        upright = general.predict(np.rot90(np.asarray(image), -turns).copy())
        assert_equal(upright, general.predict(image))
    assert_equal(upright, general.predict(path))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (np.zeros((8, 8, 3), np.float32), ValueError),
        (np.zeros((8, 8, 3), np.int64), ValueError),
        (np.zeros((8, 8), np.uint8), ValueError),
        (np.zeros((8, 8, 4), np.uint8), ValueError),
        (np.zeros((3, 8, 8), np.uint8), ValueError),
        (np.zeros((0, 8, 3), np.uint8), ValueError),
        (Image.new("F", (8, 8)), ValueError),
        (Image.new("I;16", (8, 8)), ValueError),
        (torch.zeros(3, 8, 8), TypeError),
        (None, TypeError),
    ],
    ids=["float", "int64", "grey", "RGBA", "channels first", "empty", "PIL F", "PIL I;16", "tensor", "None"],
)
def test_other_images_are_refused(general, wrong, error):
    with pytest.raises(error):
        general.predict(wrong)


def test_a_file_that_cannot_be_read_is_named(general, tmp_path, refusal):
    (tmp_path / "damaged.png").write_bytes(b"no image")
    for name in ("damaged.png", "missing.png"):
        assert str(tmp_path / name) in refusal(general.predict, tmp_path / name)


# Detections


@pytest.mark.parametrize("head", HEADS)
def test_boxes_scores_and_labels_are_those_of_detect(head, pixels):
    detector = detector_with(head)
    found = detector.predict(pixels)
    detections, output, scale = detect_by_hand(detector, pixels)
    kept = detections.labels[0] >= 0
    np.testing.assert_allclose(found.boxes_xyxy, detections.boxes_xyxy[0][kept].numpy())
    np.testing.assert_array_equal(found.scores, detections.scores[0][kept].numpy())
    np.testing.assert_array_equal(found.labels, detections.labels[0][kept].numpy())
    points = output.grid.points[detections.point_index[0][kept]].numpy() * scale
    np.testing.assert_allclose(found.points, points, rtol=1e-6)
    assert found.class_names == tuple(NAMES[label] for label in found.labels)
    assert len(set(found.labels)) > 1
    assert (np.diff(found.scores) <= 0).all()


def test_the_score_threshold_of_the_config_can_be_replaced(general, pixels):
    found = general.predict(pixels)
    threshold = float(np.median(found.scores))
    above = general.predict(pixels, score_thresh=threshold)
    np.testing.assert_array_equal(above.boxes_xyxy, found.boxes_xyxy[found.scores > threshold])
    config = replace(general.config, eval=replace(general.config.eval, score_thresh=threshold))
    assert_equal(above, replace(general, config=config).predict(pixels))


@pytest.mark.parametrize("head", HEADS)
def test_without_detections_there_are_empty_arrays(head, pixels):
    found = detector_with(head).predict(pixels, score_thresh=1.0)
    assert (found.boxes_xyxy.shape, found.points.shape) == ((0, 4), (0, 2))
    assert (found.labels.shape, found.scores.shape, found.class_names) == ((0,), (0,), ())
    assert found.labels.dtype == np.int64
    if head == "dirac":
        assert found.sides is None
        return
    assert [found.sides.expectation.shape, found.sides.std.shape, found.sides.quantiles.shape] == [
        (0, 4),
        (0, 4),
        (0, 4, 3),
    ]
    bins = {"general": (0, 4, 17), "fine bins": (0, 4, 25), "gaussian": None}[head]
    for values in (found.sides.positions, found.sides.probabilities):
        assert (None if values is None else values.shape) == bins


# Sides


def test_a_dirac_detector_has_no_sides(pixels):
    assert detector_with("dirac").predict(pixels).sides is None


@pytest.mark.parametrize("head", ["general", "fine bins", "gaussian"])
def test_the_expectation_is_the_decoded_box_before_it_is_clipped(head, pixels):
    detector = detector_with(head)
    sides = detector.predict(pixels).sides
    detections, output, scale = detect_by_hand(detector, pixels)
    boxes, _ = detector.model.decode(output)
    decoded = boxes[0, detections.point_index[0][detections.labels[0] >= 0]].detach().numpy() * np.tile(scale, 2)
    np.testing.assert_allclose(sides.expectation, decoded, rtol=1e-4, atol=1e-3)
    assert (decoded < 0).any() or (decoded > np.tile(pixels.shape[1::-1], 2)).any()  # some would be clipped


def deviation(positions, probabilities):
    mean = sum(p * x for p, x in zip(probabilities, positions, strict=True))
    return sum(p * (x - mean) ** 2 for p, x in zip(probabilities, positions, strict=True)) ** 0.5


def quantile(positions, probabilities, level):
    """Where the cumulative mass reaches `level`: each bin's mass is even over the interval around it."""
    bins = sorted(zip(positions, probabilities, strict=True))
    width, passed = bins[1][0] - bins[0][0], 0.0
    wanted = level * sum(probabilities)
    for position, mass in bins:
        if passed + mass >= wanted:
            return position - width / 2 + width * (wanted - passed) / mass
        passed += mass
    raise AssertionError("the mass is never reached")


@pytest.mark.parametrize("head", ["general", "fine bins"])
def test_deviations_and_quantiles_equal_slow_oracles(head, pixels):
    found = detector_with(head).predict(pixels)
    positions, probabilities = found.sides.positions.tolist(), found.sides.probabilities.astype(float).tolist()
    for n in range(len(found.scores)):
        for side in range(4):
            bins = positions[n][side], probabilities[n][side]
            assert found.sides.std[n, side] == pytest.approx(deviation(*bins), rel=1e-5)
            wanted = [quantile(*bins, level) for level in (0.05, 0.5, 0.95)]
            assert found.sides.quantiles[n, side].tolist() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("head", ["general", "fine bins", "gaussian"])
def test_quantiles_rise_and_lie_within_the_bins(head, pixels):
    sides = detector_with(head).predict(pixels).sides
    assert (np.diff(sides.quantiles, axis=-1) > 0).all()
    if sides.positions is None:
        return
    half = abs(sides.positions[..., 1] - sides.positions[..., 0])[..., None] / 2
    assert (sides.quantiles >= sides.positions.min(-1, keepdims=True) - half).all()
    assert (sides.quantiles <= sides.positions.max(-1, keepdims=True) + half).all()


def test_quantiles_of_gaussian_sides_are_the_normals(pixels):
    sides = detector_with("gaussian").predict(pixels).sides
    assert (sides.positions, sides.probabilities) == (None, None)
    for mean, std, quantiles in zip(
        sides.expectation.ravel(), sides.std.ravel(), sides.quantiles.reshape(-1, 3), strict=True
    ):
        normal = NormalDist(mean, std)
        assert quantiles.tolist() == pytest.approx([normal.inv_cdf(level) for level in (0.05, 0.5, 0.95)], abs=1e-3)


def test_quantiles_of_opposite_sides_mirror_each_other():
    probabilities = np.random.default_rng(0).dirichlet(np.full(17, 0.3), size=50)
    right, left = 100 + 8.0 * np.arange(17), 100 - 8.0 * np.arange(17)
    of_right = quantiles_of_bins(np.tile(right, (50, 1)), probabilities)
    of_left = quantiles_of_bins(np.tile(left, (50, 1)), probabilities)
    np.testing.assert_allclose(of_left, 200 - of_right[:, ::-1])


def test_quantiles_of_certain_and_of_uniform_sides():
    positions = np.arange(17.0)[None]
    certain = np.eye(17)[[3]]
    assert quantiles_of_bins(positions, certain)[0].tolist() == pytest.approx([2.55, 3.0, 3.45])
    uniform = np.full((1, 17), 1 / 17)
    assert quantiles_of_bins(positions, uniform)[0].tolist() == pytest.approx([-0.5 + 17 * q for q in QUANTILES])


def test_bin_positions_run_outwards_from_the_point():
    positions = bin_positions(np.array([[100.0, 60.0]]), np.full((1, 4), 8.0), 5, delta=0.5)
    np.testing.assert_allclose(positions[0, 0], [100, 96, 92, 88, 84])
    np.testing.assert_allclose(positions[0, 1], [60, 56, 52, 48, 44])
    np.testing.assert_allclose(positions[0, 2], [100, 104, 108, 112, 116])
    np.testing.assert_allclose(positions[0, 3], [60, 64, 68, 72, 76])


def test_two_bins_of_linear_interpolation_have_their_place_and_a_bernoulli_deviation():
    distances = np.array([3.7, 1.625, 4.6875, 2.0])
    probabilities = np.maximum(0, 1 - abs(np.arange(17) - distances[:, None]))
    mean, std = mean_and_std(bin_positions(np.array([[96.0, 48.0]]), np.full((1, 4), 16.0), 17)[0], probabilities)
    np.testing.assert_allclose(mean, [96 - 16 * 3.7, 48 - 26, 96 + 75, 48 + 32])
    share = distances % 1
    np.testing.assert_allclose(std, 16 * np.sqrt(share * (1 - share)))


def test_a_truncated_pil_image_is_damaged(general, tmp_path):
    Image.new("RGB", (64, 64), (200, 10, 10)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(UserError) as error:
        general.predict(image)
    assert error.value.code == "damaged_image"


@pytest.mark.parametrize("score_thresh", [-0.1, 1.5, float("nan")])
def test_a_score_threshold_outside_0_and_1_is_refused(general, score_thresh):
    with pytest.raises(ValueError, match="score_thresh"):
        general.predict(np.zeros((8, 8, 3), np.uint8), score_thresh=score_thresh)


def test_outputs_that_are_not_finite_are_reported_once(pixels, capsys):
    detector = detector_with("dirac")
    detect_by_hand(detector, pixels)
    assert not capsys.readouterr().out
    detector.model.head.cls_out.bias.data[1] = float("nan")
    for _ in range(2):
        detect_by_hand(detector, pixels)
    assert capsys.readouterr().out.count("not finite") == 1
