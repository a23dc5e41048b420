"""Images that differ little: re-compressed, rescaled, brightened copies and neighbouring frames of a video.

Each image gets a perceptual hash: the signs of its lowest frequencies about their median (the DCT hash of C. Zauner,
"Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, with 16 x 16 frequencies instead of 8 x 8).
Copies have nearly the same bits, other images differ in about half of them.

`MAX_DISTANCE` lies far from both: docs/own_data.md has the distances measured on photographs. Images that were
mirrored, turned or cropped are not found.
"""

from collections.abc import Sequence

import cv2
import numpy as np

SIDE = 64  # pixels of the small grey image
FREQUENCIES = 16  # along each axis
BITS = FREQUENCIES**2 - 1  # without the mean
MAX_DISTANCE = BITS // 5  # 51 bits by which near duplicates may differ
MIN_PRODUCT = BITS - 2 * MAX_DISTANCE  # of their signs
CHUNK = 256  # images that are compared with all others at once


def image_hash(pixels: np.ndarray) -> bytes:
    """The hash of an image, uint8 (H, W, 3) RGB."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    lowest = cv2.dct(small)[:FREQUENCIES, :FREQUENCIES].ravel()[1:]
    return np.packbits(lowest > np.median(lowest)).tobytes()


def group_near_duplicates(hashes: Sequence[bytes]) -> list[int]:
    """The group of each image, named by a number; near duplicates of near duplicates are in one group.

    Args:
        hashes: of `image_hash`; an image without one (b"") has no duplicates.
    """
    signs, groups = _signs(hashes), np.arange(len(hashes))
    for start in range(0, len(hashes), CHUNK):
        near = signs[start : start + CHUNK] @ signs.T >= MIN_PRODUCT
        for row in np.flatnonzero(near.sum(axis=1) > 1):
            joined = np.unique(groups[near[row]])
            groups[np.isin(groups, joined)] = joined[0]
    return groups.tolist()


def nearest_duplicates(hashes: Sequence[bytes], others: Sequence[bytes]) -> list[int | None]:
    """For each image the position of its nearest duplicate among `others`, None if there is none."""
    signs, other_signs, found = _signs(hashes), _signs(others), []
    for start in range(0, len(hashes) if others else 0, CHUNK):
        agreement = signs[start : start + CHUNK] @ other_signs.T
        best = agreement.argmax(axis=1)
        found += [
            int(column) if near else None
            for column, near in zip(best, agreement.max(axis=1) >= MIN_PRODUCT, strict=True)
        ]
    return found or [None] * len(hashes)


def _signs(hashes: Sequence[bytes]) -> np.ndarray:
    """The bits as 1 and -1, (n, BITS) float32: a product of two rows is the bits that agree less those that differ."""
    signs = np.zeros((len(hashes), BITS), np.float32)
    known = [row for row, value in enumerate(hashes) if value]
    if known:
        packed = np.frombuffer(b"".join(hashes[row] for row in known), np.uint8).reshape(len(known), -1)
        signs[known] = 2.0 * np.unpackbits(packed, axis=1, count=BITS) - 1.0
    return signs
