"""What the lines of YOLO labels are: decided by all lines of the set, by kpt_shape or by the option."""

import pytest
from layouts import bboxes, write, write_image, write_yolo, yolo_tree

from gfl.tools.prepare.to_coco import coco_tree
from gfl.tools.prepare.yolo import read_yolo

POSE = "0 .5 .5 .2 .4 .45 .4 2 .5 .5 2 .55 .6 1"
POSE_FLAT = "0 .5 .5 .2 .4 .45 .4 .5 .5 .55 .6"
POLYGON = "0 0.1 0.2 0.4 0.2 0.4 0.5 0.25 0.35 0.1 0.5"
CORNERS = "0 0.1 0.2 0.4 0.2 0.4 0.5 0.1 0.5"


@pytest.fixture
def yolo(tmp_path):
    return write_yolo(tmp_path / "YOLO")


@pytest.fixture
def labels(yolo):
    return yolo.parent / "labels" / "train" / "a.txt"


@pytest.mark.parametrize(
    ("lines", "code", "named"),
    [
        (["0 .5 .5 .2 .4 .98"], "prediction", "confidence"),
        (["0 .5 .5 1 1 17"], "prediction", "track id"),
        (["0 .5 .5 .2 .4 -1.2"], "prediction", "angle"),
        (["0 .5 .5 .2 .4 .98 1"], "prediction", "--labels"),
        (["0 .5 .5 .2 .4 .98 17", "0 .2 .2 .1 .1 .5 3"], "prediction", "--labels"),
        (["0 .5 .5 .2 .4 3 .98"], "prediction", "--labels"),
        (["0 .5 .5 .2 .4 .98 .87"], "prediction", "--labels"),
        ([f"{CORNERS} .98 1", f"{CORNERS} .9 2"], "prediction", "--labels"),
        ([f"{POLYGON} .98"], "prediction", "confidence"),
        ([POSE], "keypoints", "--labels boxes"),
        ([POSE, "0 .5 .5 .2 .4"], "keypoints", "kpt_shape"),
        ([POSE_FLAT], "keypoints", "kpt_shape"),
        (["0 10 20 40 20 40 50"], "not_fraction", "10"),
        (["10 20 40 20 40 50 10 50 plane 0"], "not_yolo", "DOTA"),
    ],
)
def test_a_line_that_may_be_something_else_is_refused(yolo, labels, refusal, lines, code, named):
    write(labels, "\n".join(lines))
    message = refusal(read_yolo, yolo, ["train"])
    assert message.startswith(f"{labels} line 1: ")
    assert message.code == code
    assert named in message


@pytest.mark.parametrize(
    ("lines", "labels_option", "bbox", "num_notes"),
    [
        (["0 .5 .5 .2 .4 .98 1"], "boxes", [8, 3, 4, 4], 1),
        (["0 .5 .5 .2 .4 .98"], "boxes", [8, 3, 4, 4], 1),
        ([POSE], "boxes", [8, 3, 4, 4], 1),
        (["0 .1 .2 .4 .9 .3 1"], "polygons", [2, 2, 6, 8], 0),
        ([POSE_FLAT], "polygons", [4, 4, 7, 2], 0),
        ([CORNERS], "obb", [2, 2, 6, 3], 1),
        ([CORNERS], "auto", [2, 2, 6, 3], 1),  # may be oriented
        (["0 .5 .5 .6 .5 .6 .6 .5 .6"], "auto", [10, 5, 2, 1], 1),  # although its corners lie in a box .5 .5 .6 .5
        (["0 0 0 1 0 1 1 0 1", "0 0 0 1 0 1 1 0 1"], "auto", [0, 0, 20, 10], 1),  # corners of the image, no track id
        ([CORNERS, POLYGON], "auto", [2, 2, 6, 3], 0),  # is a polygon
        (["0 .1 .2 .4 .9 .3 1", POLYGON], "auto", [2, 2, 6, 8], 1),  # a triangle
        (["0 0.1 0.2 0.4 0.9 0.3 0.5"], "auto", [2, 2, 6, 7], 1),
        ([POLYGON, "0 .5 .5 .2 .4"], "auto", [2, 2, 6, 3], 0),
    ],
)
def test_an_option_or_the_other_lines_decide(yolo, labels, lines, labels_option, bbox, num_notes):
    write(labels, "\n".join(lines))
    (split,), names = read_yolo(yolo, ["train"], labels=labels_option)
    assert bboxes(coco_tree(split, names))[0] == pytest.approx(bbox)
    notes = [note for note in split.notes if f"{labels} line 1" in note]
    assert len(notes) == num_notes


@pytest.mark.parametrize(("labels_option", "line"), [("obb", "0 .5 .5 .2 .4"), ("polygons", "0 .5 .5 .2 .4 .9")])
def test_the_option_holds_for_every_line(yolo, labels, refusal, labels_option, line):
    write(labels, f"{CORNERS}\n{line}\n")
    assert refusal(read_yolo, yolo, ["train"], labels=labels_option).startswith(f"{labels} line 2: ")


def test_kpt_shape_makes_boxes_of_keypoints(yolo, labels, refusal):
    write(yolo, "names: [cat]\nkpt_shape: [3, 3]\ntrain: images/train")
    write(labels, f"{POSE}\n0 .5 .5 .2 .2\n")
    assert bboxes(yolo_tree(yolo)) == [pytest.approx([8, 3, 4, 4]), pytest.approx([8, 4, 4, 2])]
    write(labels, POSE_FLAT)
    assert "14" in refusal(read_yolo, yolo, ["train"])


def test_lines_of_all_splits_decide(yolo, labels):
    write_image(yolo.parent / "images" / "val" / "c.png", 20, 10)
    write(yolo.parent / "labels" / "val" / "c.txt", POLYGON)
    write(labels, CORNERS)
    write(yolo, "names: [cat, dog]\ntrain: images/train\nval: images/val")
    (train, _), _ = read_yolo(yolo, ["train", "val"])
    assert not any("line 1" in note for note in train.notes)
