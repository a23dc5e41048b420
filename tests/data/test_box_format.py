"""Boxes that are fractions or corners."""

import numpy as np
import pytest

from gfl.data.box_format import box_format_findings

BOXES = np.array([[10, 8, 40, 30], [80, 50, 50, 40], [20, 60, 31, 47], [100, 10, 43, 29]], float)
SIZES = np.full((4, 2), (120, 160))
CORNERS = BOXES + np.pad(BOXES[:, :2], ((0, 0), (2, 0)))


@pytest.mark.parametrize(
    ("boxes", "count", "word"),
    [
        (BOXES, 0, ""),
        (BOXES / [160, 120, 160, 120], 4, "fractions"),
        (CORNERS, 3, "corners"),
        (CORNERS[:2], 0, ""),  # too few to tell
        (np.add(BOXES, [0, 0, 100, 0]), 0, ""),  # outside, but not inside as corners either
        (np.full((4, 4), np.nan), 0, ""),
        (BOXES[:0], 0, ""),
    ],
)
def test_fractions_and_corners_are_recognised(boxes, count, word):
    findings = box_format_findings(boxes, SIZES[: len(boxes)])
    assert [found.count for found in findings] == [count] * bool(count)
    assert all(word in found.advice for found in findings)
