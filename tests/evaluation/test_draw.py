"""Drawn detections: what is drawn where, and which pixels stay as they are."""

import numpy as np
import pytest

from gfl.evaluation import draw
from gfl.evaluation.inference import bin_positions, mean_and_std


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(60, 200, (480, 640, 3), dtype=np.uint8)


def sharp(distance, num_bins=17):
    """DFL's optimum: all mass on the two bins around the distance."""
    bins = np.arange(num_bins)
    return np.maximum(0, 1 - abs(bins - distance))


def positions_of(points, stride, num_bins=17):
    """Where bins of one stride lie: (n, 4, num_bins) pixels."""
    return bin_positions(np.array(points, float), np.full((len(points), 4), float(stride)), num_bins)


def bright(picture, colour):
    """Mask of the pixels that have (almost) that colour."""
    return (np.abs(picture.astype(int) - colour) < 12).all(-1)


def test_only_the_outline_changes(photo):
    before = photo.copy()
    picture = draw.draw_boxes(photo, [[100, 150, 300, 350]], [0], [""])
    assert (picture.dtype, picture.shape) == (np.uint8, photo.shape)
    np.testing.assert_array_equal(photo, before)  # the argument is not drawn on

    ys, xs = np.nonzero((picture != photo).any(-1))
    near = np.minimum.reduce([abs(xs + 0.5 - 100), abs(xs + 0.5 - 300), abs(ys + 0.5 - 150), abs(ys + 0.5 - 350)])
    assert near.max() < 3
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == pytest.approx((100, 300, 150, 350), abs=3)
    for y, x in ((250, 100), (250, 300), (150, 200), (350, 200)):
        assert bright(picture[y - 1 : y + 1, x - 1 : x + 1], draw.PALETTE[0]).any()


def test_small_images_are_enlarged_and_boxes_with_them(photo):
    picture = draw.draw_boxes(photo[:120, :160], [[40, 30, 120, 90]], [1], [""])
    assert picture.shape == (480, 640, 3)
    rows, columns = np.nonzero(bright(picture, draw.PALETTE[1]))
    assert (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1) == pytest.approx((160, 480, 120, 360), abs=3)
    box = [[1, 1, 8, 8]]
    assert draw.draw_boxes(photo[:12, :16], box, [0], ["x"], box, min_long_side=1).shape == (12, 16, 3)
    assert draw.draw_boxes(photo[:1, :300], [], [], []).shape == (2, 640, 3)


def test_without_boxes_every_pixel_stays(photo):
    none = np.zeros((0, 4), np.float32)
    np.testing.assert_array_equal(draw.draw_boxes(photo, none, [], [], none), photo)
    distributions = draw.draw_distributions(photo, none, np.zeros((0, 2)), [], np.zeros((0, 4, 17)), [], [])
    np.testing.assert_array_equal(distributions, photo)


def test_boxes_are_clipped_to_the_image_and_those_outside_are_not_drawn(photo):
    over = draw.draw_boxes(photo, [[-50, -20, 700, 900]], [0], [""])
    for edge in (over[:3], over[-3:], over[:, :3], over[:, -3:]):
        assert bright(edge, draw.PALETTE[0]).sum() > 400
    outside = [[-50, -50, -10, -10], [700, 10, 800, 50], [np.nan, 0, 10, 10], [0, 0, np.inf, 10], [50, 50, 40, 60]]
    np.testing.assert_array_equal(draw.draw_boxes(photo, outside, range(5), ["a"] * 5, outside), photo)


def test_boxes_of_one_pixel_and_empty_ones_are_visible(photo):
    tiny = [[10, 10, 11, 11], [639, 479, 640, 480], [0, 0, 0, 0], [320, 240, 320, 240]]
    picture = draw.draw_boxes(photo, tiny, [0, 1, 2, 3], [""] * 4, tiny)
    assert all(bright(picture, draw.PALETTE[label]).any() for label in range(4))


def test_tags_stay_inside_the_image_and_do_not_overlap(photo):
    black = np.zeros_like(photo)
    boxes = [[600, 2, 640, 40], [600, 2, 640, 40]]
    picture = draw.draw_boxes(black, boxes, [0, 1], ["first 0.91", "second 0.52"])
    plain = draw.draw_boxes(black, boxes, [0, 1], ["", ""])
    for label in (0, 1):
        tag = bright(picture, draw.PALETTE[label]) & ~bright(plain, draw.PALETTE[label])
        assert tag.sum() > 400
    crowd = draw.draw_boxes(black, boxes * 20, [0] * 40, ["tag"] * 40)  # no room for 40 tags, and no error
    assert crowd.shape == black.shape


def test_the_first_detection_is_on_top_and_far_tags_do_not_compete(photo):
    black = np.zeros_like(photo)
    same = draw.draw_boxes(black, [[100, 200, 200, 300]] * 2, [0, 1], ["", ""])
    assert bright(same, draw.PALETTE[0]).any()
    assert not bright(same, draw.PALETTE[1]).any()
    level = draw.draw_boxes(black, [[100, 200, 200, 300], [400, 200, 500, 300]], [0, 1], ["left", "right"])
    for label, x in ((0, 100), (1, 400)):
        assert bright(level[185:195, x : x + 20], draw.PALETTE[label]).any()


def test_targets_are_white_dashes_under_the_detections(photo):
    box = [[100, 100, 300, 300]]
    target = draw.draw_boxes(photo, [], [], [], box)
    share = bright(target[150:250, 99:101], draw.WHITE).mean()
    assert 0.3 < share < 0.7
    both = draw.draw_boxes(photo, box, [0], [""], box)
    assert not bright(both, draw.WHITE).any()


def test_bars_stand_where_the_bins_are():
    """All four sides lie exactly on bins: one bar each, straight over or beside that side of the enlarged crop."""
    box, point = np.array([40.0, 48.0, 120.0, 96.0]), [80, 72]
    probabilities = np.stack([sharp(5), sharp(3), sharp(5), sharp(3)])
    black, positions = np.zeros((160, 160, 3), np.uint8), positions_of([point], 8)
    picture = draw.draw_distributions(black, [box], [point], positions, probabilities[None], [0], ["ellipse 0.93"])
    assert (picture.dtype, picture.ndim) == (np.uint8, 3)

    # Corner, length and zoom of the crop in the returned picture, which is half the size of the layout's constants.
    left = draw.GAP + (draw.CELL_WIDTH + draw.GAP) // 2 - draw.GAP // 2
    top, length = (draw.GAP + draw.TITLE + draw.STRIP) // 2, draw.PANEL // 2
    x0, y0, side = draw._region((160, 160), box, positions[0], probabilities)
    above = bright(picture[top - 30, left : left + length], draw.PALETTE[0])
    beside = bright(picture[top : top + length, left + length + 30], draw.PALETTE[0])
    for bars, start, sides in ((above, x0, box[[0, 2]]), (beside, y0, box[[1, 3]])):
        coloured = np.nonzero(bars)[0] + 0.5
        places = (sides - start) * length / side
        split = coloured < places.mean()
        assert [coloured[split].mean(), coloured[~split].mean()] == pytest.approx(places, abs=1)


def test_broad_distributions_are_low(photo):
    box = np.array([[200.0, 200.0, 328.0, 328.0]])
    flat = np.full((1, 4, 17), 1 / 17)
    peaked = np.tile(sharp(8), (1, 4, 1))
    heights = []
    for probabilities in (peaked, flat):
        picture = draw.draw_distributions(
            photo, box, [[264, 264]], positions_of([[264, 264]], 8), probabilities, [0], ["cell 0.5"]
        )
        strip = picture[(draw.GAP + draw.TITLE) // 2 :][: draw.STRIP // 2 - 1, -draw.CELL_WIDTH // 2 :]
        rows = np.nonzero(bright(strip, draw.PALETTE[0]).any(1))[0]
        heights.append(len(strip) - rows.min())
    assert heights[0] > 4 * heights[1]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_one_panel_per_detection(photo, count):
    rng = np.random.default_rng(count)
    points = rng.uniform(0, 480, (count, 2))
    probabilities = rng.dirichlet(np.full(17, 0.2), (count, 4))
    positions = positions_of(points, 32)
    boxes, _ = mean_and_std(positions, probabilities)
    labels, texts = np.arange(count) * 5, [f"thing {i}" for i in range(count)]
    picture = draw.draw_distributions(photo, boxes, points, positions, probabilities, labels, texts)
    columns, rows = {1: (2, 1), 2: (3, 1), 3: (2, 2), 6: (3, 3)}[count]
    assert abs(picture.shape[1] - columns * (draw.CELL_WIDTH + draw.GAP) / 2) < draw.GAP
    assert abs(picture.shape[0] - rows * (draw.CELL_HEIGHT + draw.GAP) / 2) < 2 * draw.FONT + draw.GAP


def test_a_box_of_one_pixel_in_the_corner_has_a_panel(photo):
    probabilities = np.stack([sharp(0), sharp(0), sharp(0.125), sharp(0.125)])[None]
    positions = positions_of([[639, 479]], 8)
    picture = draw.draw_distributions(
        photo, [[639, 479, 640, 480]], [[639, 479]], positions, probabilities, [3], ["dot"]
    )
    assert bright(picture, draw.PALETTE[3]).sum() > 500


def test_a_picture_that_cannot_be_written_names_its_file(photo, tmp_path, refusal):
    draw.save_image(photo, tmp_path / "new" / "a.png")
    impossible = tmp_path / "new" / "a.png" / "b.png"
    assert str(impossible) in refusal(draw.save_image, photo, impossible)
