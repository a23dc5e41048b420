"""COCO json to flat arrays, and the one-line errors of a json that cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest

from gfl.data.coco import category_names, image_path, load_coco, read_coco_json

PETS = {90: "dog", 5: "cat", 17: "bird"}


# Classes


def test_classes_are_the_categories_by_rising_id(coco_set):
    boxes = [(0, 90, [1, 1, 5, 5]), (0, 5, [2, 2, 6, 6]), (0, 17, [3, 3, 7, 7])]
    data = coco_set(boxes=boxes, categories=PETS).load()
    assert data.class_names == ("cat", "bird", "dog")
    assert data.category_ids == (5, 17, 90)
    assert data.labels.tolist() == [2, 0, 1]
    assert data.labels.dtype == np.int64


def test_classes_of_a_model_are_found_by_name_under_other_ids(coco_set):
    boxes = [(0, 90, [1, 1, 5, 5]), (0, 5, [2, 2, 6, 6])]
    data = coco_set(boxes=boxes, categories=PETS).load(["dog", "bird", "cat"])
    assert data.class_names == ("dog", "bird", "cat")
    assert data.category_ids == (90, 17, 5)
    assert data.labels.tolist() == [0, 2]


def test_a_name_that_occurs_twice_gives_two_classes(coco_set):
    data = coco_set(categories={7: "disc", 3: "disc", 4: "ring"}).load()
    assert data.class_names == ("disc (id 3)", "ring", "disc (id 7)")
    assert data.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("class_names", "fragments"),
    [
        (["cat", "bird"], ["3 categories", "2 classes", "with unknown dog"]),
        (["cat", "bird", "dog", "horse"], ["3 categories", "4 classes", "without horse"]),
        (["cat", "bird", "hound"], ["without hound", "with unknown dog"]),
        ([f"c{i}" for i in range(80)], ["without c0, c1, c2 and 77 more"]),
    ],
)
def test_other_classes_than_the_models_are_refused(coco_set, refusal, class_names, fragments):
    made = coco_set(boxes=[], categories=PETS)
    message = refusal(made.load, class_names)
    assert message.startswith(made.annotations)
    assert all(fragment in message for fragment in fragments)


# Boxes


def test_boxes_lie_with_their_image_in_the_order_of_the_json(coco_set):
    boxes = [(2, 7, [1, 2, 10, 11]), (0, 7, [3, 4, 5, 6]), (2, 7, [7, 8, 9, 10])]
    data = coco_set([(60, 40), (50, 30), (40, 40)], boxes).load()
    assert len(data) == 3
    assert data.image_ids.tolist() == [900, 893, 886]
    assert data.sizes.tolist() == [[40, 60], [30, 50], [40, 40]]  # height, width
    assert [data.boxes_of(i)[0].tolist() for i in range(3)] == [
        [[3, 4, 8, 10]],
        [],
        [[1, 2, 11, 13], [7, 8, 16, 18]],
    ]
    assert data.boxes_of(1)[0].shape == (0, 4)
    assert data.boxes_xyxy.dtype == np.float32
    assert data.offsets.tolist() == [0, 1, 1, 3]
    assert data.notes == ()


def test_paths_are_relative_to_the_image_folder(coco_set):
    made = coco_set([(60, 40), (20, 20)])
    assert image_path(made.load(), 1) == made.file(1)


def test_crowd_boxes_are_kept_from_training(coco_set):
    box = (0, 7, [5, 5, 10, 10])
    data = coco_set(boxes=[box], crowds=[(0, 7, [0, 0, 30, 30])]).load()
    assert data.boxes_xyxy.tolist() == [[5, 5, 15, 15]]
    assert data.notes == ("1 crowd boxes left out of training",)


@pytest.mark.parametrize(
    "bbox",
    [
        [10, 10, 0, 5],
        [10, 10, 5, 0],
        [10, 10, 0.9, 5],
        [10, 10, -5, 5],
        [60, 10, 5, 5],
        [10, 40, 5, 5],
        [-10, 10, 10, 5],
        [10, -20, 5, 10],
        [float("nan"), 10, 5, 5],
        [10, 10, float("inf"), 5],
    ],
)
def test_a_degenerate_box_is_skipped_and_named(coco_set, bbox):
    good = (0, 7, [1, 1, 5, 5])
    data = coco_set(boxes=[good, (0, 7, bbox), good]).load()
    assert data.boxes_xyxy.tolist() == [[1, 1, 6, 6]] * 2
    assert len(data.notes) == 1
    assert "1 degenerate box skipped" in data.notes[0]
    assert data.notes[0].endswith("annotation 2")


def test_many_degenerate_boxes_are_counted(coco_set):
    data = coco_set(boxes=[(0, 7, [1, 1, 0, 0])] * 5).load()
    assert data.offsets.tolist() == [0, 0]
    assert data.notes[0].startswith("5 degenerate boxes skipped")
    assert data.notes[0].endswith("annotation 1, 2, 3 and 2 more")


@pytest.mark.parametrize(
    ("bbox", "corners"),
    [
        ([-5, -4, 20, 20], [0, 0, 15, 16]),
        ([50, 30, 20, 20], [50, 30, 60, 40]),
        ([-5, -5, 100, 100], [0, 0, 60, 40]),
        ([2.5, 3.25, 1.0, 1.5], [2.5, 3.25, 3.5, 4.75]),
    ],
)
def test_boxes_are_cut_to_the_image(coco_set, bbox, corners):
    data = coco_set(boxes=[(0, 7, bbox)]).load()
    assert data.boxes_xyxy.tolist() == [corners]
    assert data.notes == ()


def test_a_json_of_images_only_has_no_boxes(coco_set):
    made = coco_set([(60, 40), (50, 30)])
    assert made.load().has_annotations
    del made.tree["annotations"]
    data = made.save().load()
    assert not data.has_annotations
    assert len(data) == 2
    assert data.class_names == ("disc",)
    assert [len(data.boxes_of(i)[1]) for i in range(2)] == [0, 0]


def test_fields_that_coco_makes_optional_may_lack(coco_set):
    made = coco_set()
    made.tree["annotations"] = [{"image_id": 900, "category_id": 7, "bbox": [1, 2, 3, 4]}]
    assert made.save().load().boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    made.tree["annotations"][0]["bbox"][2] = 0
    assert made.save().load().notes[0].endswith("annotation number 0")


# What cannot be used


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"images": [', "not valid json"),
        (b"", "not valid json"),
        (b"\xff\xd8\xff\xe0 a picture", "not valid json"),
        (b"[]", "non-empty list 'images'"),
        (b"null", "non-empty list 'images'"),
        (b'{"categories": [{"id": 1, "name": "a"}]}', "non-empty list 'images'"),
        (b'{"images": {}, "categories": []}', "non-empty list 'images'"),
        (b'{"images": [], "categories": [1]}', "non-empty list 'images'"),
        (b'{"images": [1]}', "non-empty list 'categories'"),
        (b'{"images": [1], "categories": []}', "non-empty list 'categories'"),
        (b'{"images": [1], "categories": [1], "annotations": {}}', "'annotations' must be a list"),
        (b'{"images": [1], "categories": [1], "annotations": null}', "'annotations' must be a list"),
    ],
)
def test_a_file_that_is_no_coco_json_is_named(tmp_path, refusal, content, reason):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    message = refusal(read_coco_json, str(path))
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_a_missing_json_is_named(tmp_path, refusal):
    path = str(tmp_path / "none.json")
    message = refusal(load_coco, path, str(tmp_path))
    assert path in message
    assert "data/README.md" in message
    assert "data.train.annotations" in refusal(load_coco, "", "")


@pytest.mark.parametrize(
    ("change", "who"),
    [
        ({"id": 900}, "image id 900 occurs twice"),
        ({"id": "893"}, "image {'id': '893'"),
        ({"id": None}, "image {'id': None"),
        ({"width": 50.0}, "needs whole numbers"),
        ({"height": 0}, "image id 893 needs a 'file_name' and a size"),
        ({"file_name": 3}, "image id 893 needs a 'file_name'"),
    ],
)
def test_a_wrong_image_entry_is_named(coco_set, refusal, change, who):
    made = coco_set([(60, 40), (50, 30)])
    made.tree["images"][1] |= change
    message = refusal(made.save().load)
    assert message.startswith(made.annotations)
    assert who in message


@pytest.mark.parametrize(
    ("categories", "who"),
    [
        ([{"id": 7, "name": "a"}, {"id": 7, "name": "b"}], "category id 7 occurs twice"),
        ([{"id": "7", "name": "a"}], "category {'id': '7'"),
        ([{"id": 7}], "category {'id': 7}"),
        (["disc"], "category 'disc'"),
    ],
)
def test_a_wrong_category_is_named(refusal, categories, who):
    message = refusal(category_names, categories, "some.json")
    assert message.startswith("some.json: ")
    assert who in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image_id": 12345}, "image_id 12345 is not among the json's images"),
        ({"image_id": None}, "image_id None is not among"),
        ({"image_id": [900]}, "image_id [900] is not among"),
        ({"category_id": 8}, "category_id 8 is not among the json's categories"),
        ({"category_id": {}}, "category_id {} is not among"),
        ({"bbox": [1, 2, 3]}, "bbox must be four numbers"),
        ({"bbox": ["1", "2", "3", "4"]}, "bbox must be four numbers"),
        ({"bbox": [1, 2, 3, True]}, "bbox must be four numbers"),
        ({"bbox": [1, 2, 3, None]}, "bbox must be four numbers"),
        ({"bbox": "1 2 3 4"}, "bbox must be four numbers"),
        ({"bbox": {"x": 1}}, "bbox must be four numbers"),
    ],
)
@pytest.mark.parametrize("crowd", [0, 1])
def test_a_wrong_annotation_is_named(coco_set, refusal, change, reason, crowd):
    made = coco_set(boxes=[(0, 7, [1, 1, 5, 5])] * 2)
    made.tree["annotations"][1] |= {"id": 4711, "iscrowd": crowd} | change
    message = refusal(made.save().load)
    assert message.startswith(f"{made.annotations}: annotation 4711: ")
    assert reason in message


def test_an_annotation_without_id_is_named_by_its_place(coco_set, refusal):
    made = coco_set()
    made.tree["annotations"] += [{"image_id": 900, "category_id": 7}]
    assert "annotation number 1: bbox" in refusal(made.save().load)
    made.tree["annotations"][1] = "text"
    assert "annotation number 1 is not a mapping" in refusal(made.save().load)


def test_missing_images_are_counted_and_named(coco_set, refusal):
    made = coco_set([(20, 20)] * 6)
    for number in (1, 2, 3, 5):
        made.file(number).unlink()
    message = refusal(made.load)
    assert message.startswith(f"{made.annotations}: 4 of its 6 images are not in {made.images}")
    assert "001.png, 002.png, 003.png and 1 more" in message


def test_a_missing_image_folder_is_named(coco_set, refusal):
    made = coco_set()
    message = refusal(load_coco, made.annotations, made.images + "_gone")
    assert made.images + "_gone" in message
    assert made.annotations in message


def test_the_tree_of_a_good_json_is_returned_as_it_is(coco_set):
    made = coco_set()
    assert read_coco_json(made.annotations) == made.tree == json.loads(Path(made.annotations).read_text())


# File names stay in the image folder


@pytest.mark.parametrize(
    "name",
    [
        "/etc/hostname",
        "//etc/hostname",
        "../outside.png",
        "..",
        "a/../../outside.png",
        "a/../000.png",  # harmless only as long as a is no link
        "./../outside.png",
        "000.png\0",  # numpy would take it for 000.png
        "\0",
        "000.png\0.jpg",
    ],
)
def test_a_file_name_that_leads_out_of_the_image_folder_is_refused(coco_set, refusal, name):
    made = coco_set([(60, 40), (50, 30)])
    (Path(made.images) / "a").mkdir()
    (Path(made.images).parent / "outside.png").write_bytes(made.file(0).read_bytes())
    made.tree["images"][1]["file_name"] = name
    message = refusal(made.save().load)
    assert message.startswith(f"{made.annotations}: image id 893: ")
    assert "leads out of the image folder" in message


@pytest.mark.parametrize("name", ["a/b.png", "./a//b.png", "...png", "a/..b.png", "b..", " \u00e9 .png", "C:\\b.png"])
def test_odd_names_within_the_folder_are_read(coco_set, name):
    made = coco_set()
    (Path(made.images) / "a").mkdir()
    made.file(0).rename(Path(made.images) / name)
    made.tree["images"][0]["file_name"] = name
    assert image_path(made.save().load(), 0).is_file()


def test_links_are_the_users_own_doing_and_followed(coco_set, tmp_path):
    made = coco_set([(60, 40), (50, 30)])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    made.file(0).rename(elsewhere / "photo.png")
    made.file(0).symlink_to(elsewhere / "photo.png")  # a file
    made.file(1).rename(elsewhere / "001.png")
    (Path(made.images) / "linked").symlink_to(elsewhere)  # a folder
    made.tree["images"][1]["file_name"] = "linked/001.png"
    assert len(made.save().load()) == 2
    (tmp_path / "images").symlink_to(made.images)  # the image folder itself
    assert len(load_coco(made.annotations, str(tmp_path / "images"))) == 2


def test_a_file_name_that_no_disk_can_hold_is_a_missing_image(coco_set, refusal):
    made = coco_set()
    for name in ("\ud800.png", "x" * 4000, ""):
        made.tree["images"][0]["file_name"] = name
        assert "1 of its 1 images are not in" in refusal(made.save().load)
    made.tree["images"][0]["file_name"] = "x" * 5000  # a table of names would take that much for each
    assert "image id 900: file name 'xxx" in refusal(made.save().load)


def test_two_categories_never_share_a_name(coco_set, refusal):
    made = coco_set(categories={1: "x", 2: "x", 3: "x (id 1)"}, boxes=[])
    assert "'x (id 1)' stands for two" in refusal(made.load)
