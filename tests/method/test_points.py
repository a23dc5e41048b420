"""The point grid, and which of its points belong to an image."""

import oracles
import pytest
import torch

from gfl.method.points import PointLayout, make_point_grid, points_in_images

V1_OFFSETS = tuple((stride - 1) / (2 * stride) for stride in oracles.STRIDES)  # the middles of pixels


def test_levels_run_fine_to_coarse_and_rows_top_to_bottom():
    grid = make_point_grid([(2, 3), (1, 2)], PointLayout((8, 16)))
    assert grid.points.tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0], [16, 0]]
    assert grid.strides.tolist() == [8] * 6 + [16] * 2
    assert grid.level_sizes == (6, 2)


@pytest.mark.parametrize(
    ("offset", "points"), [(0.5, [[4, 4], [12, 4], [8, 8]]), ((0.25, 0.5), [[2, 2], [10, 2], [8, 8]])]
)
def test_offsets_are_in_strides_one_for_all_levels_or_one_each(offset, points):
    assert make_point_grid([(1, 2), (1, 1)], PointLayout((8, 16), offset)).points.tolist() == points


def test_offsets_of_v1_give_the_middles_of_pixels():
    """V1's points (i + 0.5) * s - 0.5 are (i + (s - 1) / 2s) * s, exactly: both sides have few binary digits."""
    grid = oracles.grid_of(800, 1344, V1_OFFSETS)
    expected = [
        [(column + 0.5) * stride - 0.5, (row + 0.5) * stride - 0.5]
        for (height, width), stride in zip(oracles.feature_sizes(800, 1344), oracles.STRIDES, strict=True)
        for row in range(height)
        for column in range(width)
    ]
    assert grid.points.tolist() == expected


@pytest.mark.parametrize("layout", [PointLayout((8, 16), (0.5,)), PointLayout((8, 16), ()), PointLayout((8, 16, 32))])
def test_there_are_as_many_strides_and_offsets_as_levels(layout):
    with pytest.raises(ValueError, match="zip"):
        make_point_grid([(2, 3), (1, 2)], layout)


@pytest.mark.parametrize(
    ("image_size", "padded"),
    [((32, 33), (32, 64)), ((33, 32), (64, 32)), ((1, 64), (32, 64)), ((96, 65), (96, 96)), ((128, 160), (128, 160))],
)
def test_points_lie_in_the_image_rounded_up_to_32(image_size, padded):
    grid = oracles.grid_of(128, 160)
    inside = points_in_images(grid, torch.tensor([image_size]))[0]
    x, y = grid.points.unbind(-1)
    assert inside.equal((x < padded[1]) & (y < padded[0]))
    assert inside.any()


@pytest.mark.parametrize("offset", [7 / 16, 0.5, V1_OFFSETS])
def test_whether_a_point_is_inside_does_not_depend_on_the_offset(offset):
    """What counts is where the cell starts: at stride 64 and offset 0.5 the only point of a 32 px image is at 32."""
    sizes = torch.tensor([[32, 32], [100, 50], [128, 160]])
    inside = [points_in_images(oracles.grid_of(128, 160, value), sizes) for value in (0.0, offset)]
    assert inside[0].equal(inside[1])


def test_an_image_keeps_exactly_the_points_it_has_alone():
    """However far its batch is padded, and whatever the other images are."""
    alone, batch = oracles.grid_of(64, 96), oracles.grid_of(256, 320)
    inside = points_in_images(batch, torch.tensor([[200, 310], [50, 70]]))[1]
    assert batch.points[inside].equal(alone.points)
    assert batch.strides[inside].equal(alone.strides)
