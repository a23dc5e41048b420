"""Whole columns of annotations against the functions for one annotation, on everything that a json may hold."""

import itertools
import math

import numpy as np
import pytest

from gfl.common.errors import UserError
from gfl.data.annotation_columns import are_ordinary, marked_as_ignored, visible_boxes
from gfl.data.annotation_marks import check_annotation, is_marked_anywhere, visible_box

NUMBERS = [0.0, -0.0, -5.0, 0.5, 1.0, 63.0, 64.0, 100.0, 1e9, 2.0**31, math.inf, -math.inf, math.nan]
HEIGHT, WIDTH = 64, 100


def test_boxes_are_clipped_and_left_out_as_one_by_one():
    boxes = np.array(list(itertools.product(NUMBERS, repeat=4)))
    corners, visible = visible_boxes(boxes, np.tile([HEIGHT, WIDTH], (len(boxes), 1)))
    expected = [visible_box(box, HEIGHT, WIDTH) for box in boxes.tolist()]
    assert visible.tolist() == [box is not None for box in expected]
    np.testing.assert_array_equal(corners[visible], [box for box in expected if box is not None])


FIELDS = {
    "image_id": [1, 2, 3, True, 1.0, "1", None, [1]],
    "category_id": [7, 8, 9, True, 7.0, None],
    "bbox": [
        [1, 2, 3, 4],
        [1.5, 2, 3, 4.0],
        [math.nan] * 4,
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, True],
        [1, 2, 3, 2**63],
        [1, 2, 3, 10**400],
        [1, 2, 3, math.inf],
        [1, 2, 3, "4"],
        (1, 2, 3, 4),
        None,
    ],
    "iscrowd": [0, 1, None, 2, True, 0.0, "0"],
}


@pytest.mark.parametrize("field", FIELDS)
def test_what_is_ordinary_passes_the_check(field):
    good = {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    outcomes = []
    for value in FIELDS[field]:
        entries = [good, good | {field: value}]
        try:
            check_annotation(entries[1], 1, {1: 0, 2: 1}, {7: 0, 8: None}, "a.json")
            passes = True
        except UserError:
            passes = False
        ordinary = are_ordinary(entries, {1, 2}, {7, 8})
        assert passes or not ordinary, value
        outcomes.append((passes, ordinary))
    assert {(True, True), (False, False)} <= set(outcomes)


def test_an_entry_that_is_no_mapping_is_not_ordinary():
    assert not are_ordinary([[]], {1}, {7})


def test_marks_are_found_as_one_by_one():
    entries = [{}, {"iscrowd": 1}, {"ignore": 1}, {"attributes": {"difficult": True}}, {"ignore": 0}]
    assert marked_as_ignored(entries).tolist() == [is_marked_anywhere(entry) for entry in entries]
    assert not marked_as_ignored(entries[:2]).any()
