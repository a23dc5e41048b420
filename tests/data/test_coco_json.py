"""COCO json as other tools write it: encodings, numbers, other formats, all faults of a kind."""

import json

import pytest

from gfl.data.coco_json import category_names, match_classes, read_coco_json


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_json_is_read(tmp_path, encoding):
    tree = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "\u00e9"}]}
    (tmp_path / "a.json").write_text(json.dumps(tree, ensure_ascii=False), encoding=encoding)
    assert read_coco_json(str(tmp_path / "a.json")) == tree


def test_whole_floats_are_whole_numbers_and_texts_of_iscrowd_are_numbers(coco_set):
    made = coco_set(boxes=[(0, 7, [1, 1, 5, 5])] * 4)
    expected = made.load()
    made.tree["images"][0] |= {"id": 900.0, "width": 60.0, "height": 40.0}
    made.tree["categories"][0]["id"] = 7.0
    for entry, crowd in zip(made.tree["annotations"], ["0", False, 0.0, "false"], strict=True):
        entry |= {"image_id": 900.0, "category_id": 7.0, "id": float(entry["id"]), "iscrowd": crowd}
    data = made.save().load()
    assert data.boxes_xyxy.tolist() == expected.boxes_xyxy.tolist()
    assert (data.image_ids.tolist(), data.category_ids, data.sizes.tolist()) == ([900], (7,), [[40, 60]])
    made.tree["images"][0] |= {"id": "0900", "width": "60"}
    for entry in made.tree["annotations"]:
        entry |= {"image_id": "900", "category_id": "7"}
    assert made.save().load().image_ids.tolist() == [900]
    for entry, crowd in zip(made.tree["annotations"], ["1", True, 1.0, "true"], strict=True):
        entry["iscrowd"] = crowd
    assert len(made.save().load().labels) == 0


@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "detections"),
        ([{"id": 1, "data": {}, "annotations": []}], "Label Studio"),
        ({"images": [{"id": 1}], "annotations": [{"caption": "a dog"}]}, "captions"),
        ([{"name": "a.jpg", "labels": []}], "name, labels"),
        ({"shapes": [], "imagePath": "a.png"}, "labelme"),
        ({"a.jpg99": {"filename": "a.jpg", "regions": []}}, "VGG"),
        ({"size": {}, "objects": []}, "Supervisely"),
        ({"categories": {}, "items": []}, "Datumaro"),
        ({"version": 0, "tracks": []}, "version, tracks"),
        ({"type": "FeatureCollection", "features": []}, "GeoJSON"),
    ],
)
def test_the_json_of_another_tool_is_named(tmp_path, refusal, tree, named):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(tree))
    assert named in refusal(read_coco_json, str(path))


@pytest.mark.parametrize(
    ("change", "code", "named"),
    [
        ({"bbox": [1, 2, 3, 4, 30.0]}, "rotated", "rotated"),
        ({"bbox": [1, 2, 3, 4, 5, 6, 7, 8]}, "rotated", "rotated"),
        ({"bbox": None, "segments_info": []}, "other_task", "panoptic"),
        ({"bbox": None, "keypoints": []}, "other_task", "keypoints"),
        ({"bbox": None, "segmentation": []}, "other_task", "masks"),
    ],
)
def test_annotations_of_another_task_are_named(coco_set, refusal, change, code, named):
    made = coco_set()
    made.tree["annotations"][0] |= change
    message = refusal(made.save().load)
    assert message.code == code
    assert named in message


def test_all_entries_with_one_fault_are_counted(coco_set, refusal):
    made = coco_set([(20, 20)] * 4, [(0, 7, [1, 1, 5, 5])] * 5)
    for number in (1, 2, 4):
        made.tree["annotations"][number]["image_id"] = 1
    made.tree["annotations"][3]["bbox"] = "text"
    message = refusal(made.save().load)
    assert "annotation 2:" in message
    assert "3 entries have this fault: 2, 3, 5; 1 have others" in message
    for number in (0, 3):
        made.tree["images"][number]["width"] = None
    assert "2 entries" in refusal(made.save().load)
    categories = [{"id": 1, "name": "a"}, {"id": "x", "name": "b"}, {"id": 3}]
    assert "2 entries" in refusal(category_names, categories, "some.json")


@pytest.mark.parametrize("name", ["cat\u200b", "\ufeffcat", "cat\u00a0", "cat ", "Cat"])
def test_names_that_look_alike_are_quoted(refusal, name):
    message = refusal(match_classes, {1: name}, ("cat",), "some.json")
    assert f"'cat' and {name!a}" in message


@pytest.mark.parametrize(
    ("names", "option"),
    [(["cat", "ignore"], True), (["cat", *"abcd"], False), (["ignore"], False)],
)
def test_a_few_categories_more_can_be_left_out(refusal, names, option):
    message = refusal(match_classes, dict(enumerate(names)), ("cat",), "some.json")
    assert ('"data.ignore_classes=[ignore]"' in message) == option
    assert ("ignore_classes" in message) == option


def test_an_accent_as_a_character_of_its_own_is_quoted(refusal):
    assert "'caf\\xe9' and 'cafe\\u0301'" in refusal(match_classes, {1: "cafe\u0301"}, ("caf\u00e9",), "some.json")
