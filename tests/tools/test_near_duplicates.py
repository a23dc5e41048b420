"""Perceptual hashes of photographs-like noise, of copies and of others, against distances counted bit by bit."""

import cv2
import numpy as np
import pytest

from gfl.tools.near_duplicates import BITS, MAX_DISTANCE, group_near_duplicates, image_hash, nearest_duplicates


def picture(seed, height=120, width=160):
    """Blurred noise: all frequencies, the low ones the strongest, as in photographs."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 8, 24))
    return cv2.normalize(smooth, None, 20, 235, cv2.NORM_MINMAX).astype(np.uint8)


def compressed(pixels, quality):
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def scaled(pixels, factor):
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def distance(first, second):
    return (int.from_bytes(first, "big") ^ int.from_bytes(second, "big")).bit_count()


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: compressed(pixels, 30),
        lambda pixels: scaled(pixels, 0.5),
        lambda pixels: scaled(pixels, 2.0),
        lambda pixels: cv2.add(pixels, np.full_like(pixels, 15)),
        lambda pixels: compressed(scaled(cv2.convertScaleAbs(pixels, alpha=0.9), 0.5), 30),
    ],
)
def test_a_changed_copy_is_near_and_other_images_are_far(change):
    pictures = [picture(seed) for seed in range(6)]
    hashes, copies = [image_hash(pixels) for pixels in pictures], [image_hash(change(pixels)) for pixels in pictures]
    for one in range(6):
        for other in range(6):
            assert (distance(hashes[one], copies[other]) <= MAX_DISTANCE) == (one == other)
    assert nearest_duplicates(hashes, copies[::-1]) == [5, 4, 3, 2, 1, 0]


def flip(value, bits):
    """The hash with its first bits inverted."""
    number = int.from_bytes(value, "big") ^ sum(1 << (255 - bit) for bit in range(bits))
    return number.to_bytes(32, "big")


def test_groups_are_connected_components():
    """A chain whose ends are far from each other, a pair at the very limit, one beyond it, and an image unread."""
    a, b, c = (image_hash(picture(seed)) for seed in (1, 2, 3))
    hashes = [a, b, flip(a, 80), c, flip(a, 40), flip(b, MAX_DISTANCE), flip(c, MAX_DISTANCE + 1), b"", b""]
    groups = group_near_duplicates(hashes)
    members = [{row for row in range(9) if groups[row] == group} for group in dict.fromkeys(groups)]
    assert members == [{0, 2, 4}, {1, 5}, {3}, {6}, {7}, {8}]
    assert nearest_duplicates([flip(b, MAX_DISTANCE + 1), b""], hashes) == [5, None]
    assert nearest_duplicates([flip(a, 80)], [a]) == [None]
    ends_first = [flip(a, bits) for bits in (0, 40, 200, 160, 80, 120)]  # two chains that a last pair joins
    assert len({*group_near_duplicates(ends_first)}) == 1
    assert nearest_duplicates(hashes[:2], []) == [None, None]
    assert nearest_duplicates([], hashes) == group_near_duplicates([]) == []


def test_images_of_one_colour_are_duplicates_of_each_other():
    hashes = [image_hash(np.full((30, 40, 3), value, np.uint8)) for value in (0, 3, 128, 255)]
    assert len({*hashes}) == 1
    assert len(hashes[0]) * 8 == BITS + 1
