"""What an annotation is, and fields that contradict its box."""

import math

import pytest

from gfl.data.annotation_marks import (
    area_findings,
    ignored_because,
    looks_like_region,
    partial_label_findings,
    rotation_findings,
)


def entry(**changes):
    return {"id": 5, "category_id": 7, "bbox": [10, 10, 20, 30], "area": 600} | changes


def areas(*values, **changes):
    return area_findings(enumerate(entry(area=value, **changes) for value in values))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"iscrowd": 1}, "crowd"),
        ({"iscrowd": 0, "ignore": 0, "isgroupof": False}, ""),
        ({"ignore": 1}, "ignore"),
        ({"ignore": True}, "ignore"),
        ({"ignore": "1"}, "ignore"),
        ({"ignore": "0"}, ""),
        ({"ignore": None}, ""),
        ({"isgroupof": 1}, "ignore"),
        ({"IsGroupOf": 1}, "ignore"),
        ({"is_crowd": "yes"}, "ignore"),
        ({"difficult": 1}, "ignore"),
        ({"difficult": "Unspecified"}, ""),
        ({"attributes": {"isCrowd": True}}, "ignore"),
        ({"extra": {"ignore": 1}}, "ignore"),
        ({"attributes": {"difficult": "false"}, "extra": None}, ""),
        ({"category_id": 9}, "class"),
    ],
)
def test_marks_make_a_box_a_region_to_ignore(changes, reason):
    assert ignored_because(entry(**changes), {9}) == reason


def test_names_of_regions_are_recognised():
    names = [
        "ignored regions",
        "Ignore",
        "don't care",
        "DontCare",
        "Do not care",
        "Others",
        "IgnoredRegion",
        "ignore_area",
    ]
    assert all(map(looks_like_region, names))
    assert not any(map(looks_like_region, ["car", "other", "brothers", "day care"]))


@pytest.mark.parametrize("area", [0, -1, math.inf, math.nan, "600", True])
def test_an_area_that_is_no_size_is_counted(area):
    (found,) = areas(600, area, 300)
    assert (found.count, found.items) == (1, (5,))
    assert "width x height" in found.advice


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([1.0, 1.0, 1.0], 3),
        ([64 * 48, 64 * 48], 2),  # the image's
        ([150, 150.0001], 2),  # half the scale
        ([2400, 2400], 2),
        ([600, 600, 600], 0),
        ([20, 300, 580], 0),  # masks
        ([600, 300, 1], 0),  # only one of them
        ([600 * math.pi / 4] * 3, 0),  # discs
        ([651, 651], 0),  # inclusive sides
    ],
)
def test_areas_far_from_the_box_are_a_finding_if_most_are(values, count):
    assert [found.count for found in areas(*values)] == [count] * bool(count)


def test_equal_areas_of_different_boxes_are_a_finding():
    entries = [entry(area=400, bbox=[0, 0, side, 30]) for side in (20, 40, 60)]
    assert [found.count for found in area_findings(enumerate(entries))] == [3]


def test_classes_that_lvis_did_not_annotate_in_full_are_counted_by_image():
    images = [{"id": 1, "neg_category_ids": [3]}, {"id": 2, "not_exhaustive_category_ids": [4]}]
    (found,) = partial_label_findings([*images, {"id": 3, "neg_category_ids": []}])
    assert found.items == (1, 2)
    assert "LVIS" in found.advice


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"attributes": {"rotation": 37.5}}, 1),
        ({"attributes": {"rotation": "12"}}, 1),
        ({"rotation": 90}, 1),
        ({"attributes": {"rotation": 0.0}}, 0),
        ({"attributes": {"rotation": 360}}, 0),
        ({"attributes": {"occluded": True}}, 0),
        ({"attributes": None, "rotation": None}, 0),
    ],
)
def test_rotated_boxes_are_counted(changes, count):
    assert len(rotation_findings([(0, entry(**changes))])) == count
