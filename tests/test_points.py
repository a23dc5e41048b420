"""The point grid, and which of its points belong to an image."""

import oracles
import pytest
import torch

from gfl.method.points import make_point_grid, points_in_images


def test_levels_run_fine_to_coarse_and_rows_top_to_bottom():
    grid = make_point_grid([(2, 3), (1, 2)], (8, 16))
    assert grid.points.tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0], [16, 0]]
    assert grid.strides.tolist() == [8] * 6 + [16] * 2
    assert grid.level_sizes == (6, 2)


def test_offset_is_in_strides():
    grid = make_point_grid([(1, 2), (1, 1)], (8, 16), offset=0.5)
    assert grid.points.tolist() == [[4, 4], [12, 4], [8, 8]]


def test_each_level_may_have_its_own_offset():
    grid = make_point_grid([(1, 2), (1, 1)], (8, 16), offset=[0.25, 0.5])
    assert grid.points.tolist() == [[2, 2], [10, 2], [8, 8]]


def test_offsets_of_v1_give_the_middles_of_pixels():
    """V1's points (i + 0.5) * s - 0.5 are (i + (s - 1) / 2s) * s; both sides have few binary digits."""
    sizes = oracles.feature_sizes(800, 1344)
    offset = tuple((stride - 1) / (2 * stride) for stride in oracles.STRIDES)
    grid = make_point_grid(sizes, oracles.STRIDES, offset=offset)
    expected = [
        [(column + 0.5) * stride - 0.5, (row + 0.5) * stride - 0.5]
        for (height, width), stride in zip(sizes, oracles.STRIDES, strict=True)
        for row in range(height)
        for column in range(width)
    ]
    assert grid.points.tolist() == expected
    assert grid.points[0].tolist() == [3.5, 3.5]
    assert grid.points[-1].tolist() == [63.5 + 10 * 128, 63.5 + 6 * 128]


def test_the_same_offset_for_every_level_is_one_offset():
    sizes = oracles.feature_sizes(64, 96)
    for offset in (0.0, 0.25):
        each = make_point_grid(sizes, oracles.STRIDES, offset=[offset] * 5)
        assert each.points.equal(make_point_grid(sizes, oracles.STRIDES, offset=offset).points)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_as_many_offsets_as_levels(count):
    with pytest.raises(ValueError, match="zip"):
        make_point_grid([(2, 3), (1, 2)], (8, 16), offset=[0.5] * count)


def test_as_many_strides_as_levels():
    with pytest.raises(ValueError, match="zip"):
        make_point_grid([(2, 3), (1, 2)], (8, 16, 32))


@pytest.mark.parametrize(
    ("image_size", "padded"),
    [((32, 33), (32, 64)), ((33, 32), (64, 32)), ((1, 64), (32, 64)), ((96, 65), (96, 96)), ((128, 160), (128, 160))],
)
def test_points_lie_in_the_image_rounded_up_to_32(image_size, padded):
    grid = make_point_grid(oracles.feature_sizes(128, 160), oracles.STRIDES)
    inside = points_in_images(grid, torch.tensor([image_size]))[0]
    x, y = grid.points.unbind(-1)
    assert inside.equal((x < padded[1]) & (y < padded[0]))
    assert inside.any()


@pytest.mark.parametrize("offset", [7 / 16, 0.5, [(stride - 1) / (2 * stride) for stride in oracles.STRIDES]])
def test_whether_a_point_is_inside_does_not_depend_on_the_offset(offset):
    """What counts is where the cell starts: at stride 64 and offset 0.5 the only point of a 32 px image is at 32."""
    sizes = torch.tensor([[32, 32], [100, 50], [128, 160]])
    inside = [
        points_in_images(make_point_grid(oracles.feature_sizes(128, 160), oracles.STRIDES, offset=value), sizes)
        for value in (0.0, offset)
    ]
    assert inside[0].equal(inside[1])


def test_points_of_an_image_do_not_depend_on_the_other_images():
    sizes = torch.tensor([[200, 310], [33, 40], [256, 320]])
    grid = make_point_grid(oracles.feature_sizes(256, 320), oracles.STRIDES)
    together = points_in_images(grid, sizes)
    for image, size in enumerate(sizes):
        assert together[image].equal(points_in_images(grid, size[None])[0])


def test_an_image_keeps_exactly_the_points_it_has_alone():
    """However far its batch is padded: the grid of its own padded size is what remains of the batch's."""
    alone = make_point_grid(oracles.feature_sizes(64, 96), oracles.STRIDES)
    batch = make_point_grid(oracles.feature_sizes(256, 320), oracles.STRIDES)
    inside = points_in_images(batch, torch.tensor([[50, 70]]))[0]
    assert batch.points[inside].equal(alone.points)
    assert batch.strides[inside].equal(alone.strides)
