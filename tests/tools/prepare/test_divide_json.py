"""A json divided into two: nothing is lost, ids and extra fields stay, and two splits are divided as one."""

import json
from functools import partial
from pathlib import Path

import pytest

from gfl.data.coco import image_path, load_coco
from gfl.tools.prepare.divide import divide
from gfl.tools.prepare.divide_json import divide_json

HALVES = partial(divide, share=0.5, seed=0)


def written_trees(written):
    return [json.loads(file.read_text()) for file, _ in written.values()]


@pytest.fixture
def whole(coco_set):
    """Six images of different sizes, each with a disc, a crowd and a degenerate box; and fields of other tools."""
    sizes = [(60 + number, 40) for number in range(6)]
    made = coco_set(sizes, [(n, 7, [5, 5, 20, 20]) for n in range(6)], crowds=[(0, 7, [1, 1, 9, 9])], name="whole")
    made.tree["annotations"].append({"id": 99, "image_id": 900, "category_id": 7, "bbox": [1, 1, 0, float("nan")]})
    made.tree["annotations"][1]["attributes"] = {"by": "me"}
    made.tree["images"][2]["license"] = 4
    made.tree |= {"info": {"year": 2026}, "licenses": [{"id": 4}], "mine": [1, 2]}
    return made.save()


def test_both_jsons_have_all_fields_and_together_all_entries(whole, tmp_path):
    source = (whole.annotations, whole.images)
    written, division = divide_json(source, None, None, HALVES)
    files = [Path(whole.annotations).with_name(f"instances_{name}.json") for name in ("train", "val")]
    assert [file for file, _ in written.values()] == files
    trees = written_trees(written)
    for tree, rows in zip(trees, division.sides, strict=True):
        assert tree.keys() == whole.tree.keys()
        assert all(tree[key] == whole.tree[key] for key in ("categories", "info", "licenses", "mine"))
        assert tree["images"] == [whole.tree["images"][row] for row in rows]
        ids = {image["id"] for image in tree["images"]}
        expected = [entry for entry in whole.tree["annotations"] if entry["image_id"] in ids]
        assert repr(tree["annotations"]) == repr(expected)  # NaN equals nothing
    assert sum(len(tree["annotations"]) for tree in trees) == 8
    assert [len(load_coco(str(file), whole.images)) for file in files] == [3, 3]
    divide_json(source, None, None, HALVES)  # the same again is no error
    divide_json(source, None, tmp_path / "new" / "folder", HALVES)
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2


def test_no_file_is_replaced_and_then_none_is_written(whole, refusal):
    train, val = (Path(whole.annotations).with_name(f"instances_{name}.json") for name in ("train", "val"))
    val.write_text("{}")
    message = refusal(divide_json, (whole.annotations, whole.images), None, None, HALVES)
    assert message.code == "file_exists"
    assert str(val) in message
    assert (train.exists(), val.read_text()) == (False, "{}")


def test_two_splits_are_divided_as_one(whole, coco_set, tmp_path, refusal):
    """They have the same ids for other images, other ids for the same classes, and folders of their own."""
    boxes = [(number, 2, [3, 3, 9, 9]) for number in range(4)]
    val = coco_set([(70, 50 + number) for number in range(4)], boxes, categories={2: "disc"}, name="val")
    splits = (whole.annotations, whole.images), (val.annotations, val.images)
    written, _ = divide_json(*splits, tmp_path / "out", HALVES)
    trees = written_trees(written)
    for kind, count in (("images", 10), ("annotations", 12)):
        assert len({entry["id"] for tree in trees for entry in tree[kind]}) == count
    sizes = {}
    for file, folder in written.values():
        data = load_coco(str(file), str(folder))
        assert data.class_names == ("disc",)
        for row in range(len(data)):
            sizes[image_path(data, row)] = tuple(data.boxes_of(row)[0][0].tolist())
    expected = {whole.file(number): (5, 5, 25, 25) for number in range(6)}
    assert sizes == expected | {val.file(number): (3, 3, 12, 12) for number in range(4)}
    val.tree["categories"][0]["name"] = "cat"
    val.save()
    assert "cat" in refusal(divide_json, *splits, tmp_path / "other", HALVES)


def test_a_json_that_training_refuses_or_without_annotations_is_refused(whole, refusal):
    source = (whole.annotations, whole.images)
    whole.file(0).unlink()
    assert refusal(divide_json, source, None, None, HALVES) == refusal(whole.load)
    whole.tree["annotations"] = []
    whole.save()
    assert refusal(divide_json, source, None, None, HALVES).code == "no_annotations"
