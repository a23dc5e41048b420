"""COCO json to flat arrays, and the errors of a json that cannot be used."""

import numpy as np
import pytest

from gfl.data.coco import check_ignore_classes, image_path, load_coco
from gfl.data.coco_json import category_names, read_coco_json
from gfl.data.file_names import write_clean_command

PETS = {90: "dog", 5: "cat", 17: "bird"}


@pytest.mark.parametrize(
    ("class_names", "category_ids", "labels"),
    [(None, (5, 17, 90), [2, 0, 1]), (("dog", "bird", "cat"), (90, 17, 5), [0, 2, 1])],
)
def test_classes_are_the_categories_by_rising_id_or_those_of_a_model(coco_set, class_names, category_ids, labels):
    boxes = [(0, 90, [1, 1, 5, 5]), (0, 5, [2, 2, 6, 6]), (0, 17, [3, 3, 7, 7])]
    data = coco_set(boxes=boxes, categories=PETS).load(class_names)
    assert data.class_names == (class_names or ("cat", "bird", "dog"))
    assert data.category_ids == category_ids
    assert data.labels.tolist() == labels
    assert data.labels.dtype == np.int64


def test_a_name_that_occurs_twice_gives_two_classes(coco_set, refusal):
    data = coco_set(categories={7: "disc", 3: "disc", 4: "ring"}).load()
    assert data.class_names == ("disc (id 3)", "ring", "disc (id 7)")
    assert data.labels.tolist() == [2]
    still_equal = coco_set(categories={1: "x", 2: "x", 3: "x (id 1)"}, boxes=[], name="equal")
    assert "'x (id 1)'" in refusal(still_equal.load)


@pytest.mark.parametrize(
    ("class_names", "named"),
    [
        (["cat", "bird"], ["dog"]),
        (["cat", "bird", "dog", "horse"], ["horse"]),
        (["cat", "bird", "hound"], ["hound", "dog"]),
        ([f"c{i}" for i in range(80)], ["c0, c1, c2 and 77 more"]),
    ],
)
def test_other_classes_than_the_models_are_refused(coco_set, refusal, class_names, named):
    made = coco_set(boxes=[], categories=PETS)
    message = refusal(made.load, class_names)
    assert message.startswith(made.annotations)
    assert all(name in message for name in named)


def test_boxes_are_grouped_by_image_in_the_order_of_the_json(coco_set):
    boxes = [(2, 7, [1, 2, 10, 11]), (0, 7, [3, 4, 5, 6]), (2, 7, [7, 8, 9, 10])]
    made = coco_set([(60, 40), (50, 30), (40, 40)], boxes)
    data = made.load()
    assert data.image_ids.tolist() == [900, 893, 886]
    assert data.sizes.tolist() == [[40, 60], [30, 50], [40, 40]]  # height, width
    expected = [[[3, 4, 8, 10]], [], [[1, 2, 11, 13], [7, 8, 16, 18]]]
    assert [data.boxes_of(i)[0].tolist() for i in range(3)] == expected
    assert data.boxes_of(1)[0].shape == (0, 4)
    assert data.boxes_xyxy.dtype == np.float32
    assert image_path(data, 1) == made.file(1)
    assert data.notes == ()


def test_crowd_boxes_are_left_out_of_training(coco_set):
    data = coco_set(boxes=[(0, 7, [5, 5, 10, 10])], crowds=[(0, 7, [0, 0, 30, 30])]).load()
    assert data.boxes_xyxy.tolist() == [[5, 5, 15, 15]]
    (note,) = data.notes
    assert note.startswith("1 crowd")


@pytest.fixture
def regions(coco_set):
    """A disc, a disc that is marked as ignored, a crowd and a region of a class of its own."""
    boxes = [(0, 7, [5, 5, 10, 10]), (0, 7, [20, 5, 10, 10]), (0, 9, [-5, 20, 20, 10]), (0, 9, [0, 0, 0, 0])]
    made = coco_set(boxes=boxes, crowds=[(0, 7, [0, 0, 30, 30])], categories={7: "disc", 9: "others"})
    made.tree["annotations"][1]["ignore"] = 1
    return made.save()


def test_regions_to_ignore_are_kept_apart(regions):
    data = load_coco(regions.annotations, regions.images, ignore_classes=["others"])
    assert (data.class_names, data.ignored_classes, data.ignored_categories) == (("disc",), ("others",), (9,))
    assert data.boxes_xyxy.tolist() == [[5, 5, 15, 15]]
    assert data.ignored_of(0).tolist() == [[20, 5, 30, 15], [0, 20, 15, 30], [0, 0, 30, 30]]
    (note,) = data.notes
    assert all(part in note for part in ("1 crowd", "1 boxes marked", "2 boxes of data.ignore_classes"))
    assert len(regions.load().labels) == 2  # without the option they are a class


def test_ignored_classes_that_do_not_exist_are_refused(regions, refusal):
    data = load_coco(regions.annotations, regions.images, ignore_classes=["others", "car"])
    assert "'car'" in refusal(check_ignore_classes, data, ["others", "car"])
    check_ignore_classes(data, ["others"])
    everything = {"ignore_classes": ["disc", "others"]}
    assert "no class" in refusal(load_coco, regions.annotations, regions.images, **everything)


NAN, INFINITY = float("nan"), float("inf")
EMPTY = [[10, 10, 0, 5], [10, 10, 5, 0], [10, 10, 0.9, 5], [10, 10, -5, 5]]
OUTSIDE = [[60, 10, 5, 5], [10, 40, 5, 5], [-10, 10, 10, 5], [10, -20, 5, 10]]


@pytest.mark.parametrize("bbox", [*EMPTY, *OUTSIDE, [NAN, 10, 5, 5], [10, 10, INFINITY, 5]])
def test_a_degenerate_box_is_skipped_and_named(coco_set, bbox):
    good = (0, 7, [1, 1, 5, 5])
    data = coco_set(boxes=[good, (0, 7, bbox), good]).load()
    assert data.boxes_xyxy.tolist() == [[1, 1, 6, 6]] * 2
    (note,) = data.notes
    assert note.startswith("1 degenerate")
    assert note.endswith("annotation 2")


def test_boxes_are_clipped_to_the_image(coco_set):
    boxes = [[-5, -4, 20, 20], [50, 30, 20, 20], [-5, -5, 100, 100], [2.5, 3.25, 1.0, 1.5]]
    data = coco_set(boxes=[(0, 7, bbox) for bbox in boxes]).load()
    assert data.boxes_xyxy.tolist() == [[0, 0, 15, 16], [50, 30, 60, 40], [0, 0, 60, 40], [2.5, 3.25, 3.5, 4.75]]
    assert data.notes == ()


def test_a_json_of_images_only_has_no_boxes(coco_set):
    made = coco_set([(60, 40), (50, 30)])
    assert made.load().has_annotations
    del made.tree["annotations"]
    data = made.save().load()
    assert not data.has_annotations
    assert data.class_names == ("disc",)
    assert [len(data.boxes_of(i)[1]) for i in range(2)] == [0, 0]


def test_optional_fields_may_be_missing(coco_set):
    made = coco_set()
    made.tree["annotations"] = [{"image_id": 900, "category_id": 7, "bbox": [1, 2, 3, 4]}]
    assert made.save().load().boxes_xyxy.tolist() == [[1, 2, 4, 6]]
    made.tree["annotations"] = [{"image_id": 900, "category_id": 7, "bbox": [1, 2, 0, 4]}] * 5
    (note,) = made.save().load().notes
    assert note.startswith("5 degenerate")
    assert note.endswith("annotation number 0, number 1, number 2 and 2 more")


# Refused input


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"images": [', "json"),
        (b"\xff\xd8\xff\xe0 an image", "json"),
        (b"[" * 100_000, "nested"),
        (b'{"images": [1' + b"0" * 5000, "digits"),
        (b"[]", "'images'"),
        (b'{"categories": [{"id": 1, "name": "a"}]}', "'images'"),
        (b'{"images": [], "categories": [1]}', "'images'"),
        (b'{"images": [1], "categories": []}', "'categories'"),
        (b'{"images": [1], "categories": [1], "annotations": null}', "'annotations'"),
    ],
)
def test_a_file_that_is_not_coco_json_is_refused(tmp_path, refusal, content, named):
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    message = refusal(read_coco_json, str(path))
    assert message.startswith(f"{path}: ")
    assert named in message


def test_a_missing_json_or_image_folder_is_named(coco_set, tmp_path, refusal):
    path = str(tmp_path / "none.json")
    assert path in refusal(load_coco, path, str(tmp_path))
    assert "data.train.annotations" in refusal(load_coco, "", "")
    made = coco_set()
    message = refusal(load_coco, made.annotations, made.images + "_gone")
    assert made.images + "_gone" in message
    assert made.annotations in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id": 900}, "image id 900"),
        ({"id": "v893"}, "'v893'"),
        ({"id": 2**70}, "image id 1180591620717411303424"),
        ({"width": 50.5}, "'width': 50.5"),
        ({"height": 0}, "image id 893"),
        ({"height": 2**40}, "image id 893"),
        ({"file_name": 3}, "image id 893"),
        ({"file_name": "x" * 5000}, "image id 893"),  # an array of names would take that much for each
        ({"file_name": "none.png"}, "none.png"),
        ({"file_name": "\ud800.png"}, "'\\ud800.png'"),
        ({"file_name": "x" * 4000}, "1 of its 2 images"),
        ({"file_name": ""}, "1 of its 2 images"),
    ],
)
def test_an_unusable_image_entry_is_named(coco_set, refusal, change, named):
    made = coco_set([(60, 40), (50, 30)])
    made.tree["images"][1] |= change
    message = refusal(made.save().load)
    assert message.startswith(made.annotations)
    assert named in message
    sentence = message.replace(write_clean_command(made.annotations, made.images), "")  # as long as its paths
    assert len(sentence) < len(made.annotations) + len(made.images) + 300


@pytest.mark.parametrize(
    ("categories", "named"),
    [
        ([{"id": 7, "name": "a"}, {"id": 7, "name": "b"}], "category id 7"),
        ([{"id": "7", "name": "a"}], "category {'id': '7'"),
        ([{"id": 2**70, "name": "a"}], "category id 1180591620717411303424"),
        ([{"id": 7, "name": "a\nb"}], "category id 7"),
        ([{"id": 7}], "category {'id': 7}"),
        (["disc"], "category 'disc'"),
    ],
)
def test_an_unusable_category_is_named(refusal, categories, named):
    message = refusal(category_names, categories, "some.json")
    assert message.startswith("some.json: ")
    assert named in message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"image_id": 12345}, "image_id"),
        ({"image_id": None}, "image_id"),
        ({"category_id": 8}, "category_id"),
        ({"category_id": {}}, "category_id"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": ["1", "2", "3", "4"]}, "bbox"),
        ({"bbox": [1, 2, 3, True]}, "bbox"),
        ({"bbox": {"x": 1}}, "bbox"),
        ({"bbox": [1, 2, 3], "iscrowd": 1}, "bbox"),  # crowd boxes are checked too
        ({"iscrowd": 2}, "iscrowd"),
    ],
)
def test_an_unusable_annotation_is_named(coco_set, refusal, change, code):
    made = coco_set(boxes=[(0, 7, [1, 1, 5, 5])] * 2)
    made.tree["annotations"][1] |= {"id": 4711} | change
    message = refusal(made.save().load)
    assert message.startswith(f"{made.annotations}: annotation 4711: ")
    assert message.code == code


@pytest.mark.parametrize(
    ("entry", "code"),
    [({"image_id": 900, "category_id": 7}, "bbox"), ({"id": "a"}, "image_id"), ("text", "not_a_mapping")],
)
def test_an_annotation_without_usable_id_is_named_by_its_position(coco_set, refusal, entry, code):
    made = coco_set()
    made.tree["annotations"].append(entry)
    message = refusal(made.save().load)
    assert "annotation number 1" in message
    assert message.code == code


def test_missing_images_are_counted_and_named(coco_set, refusal):
    made = coco_set([(20, 20)] * 6)
    for number in (1, 2, 3, 5):
        made.file(number).unlink()
    message = refusal(made.load)
    assert message.startswith(f"{made.annotations}: 4 of its 6 images")
    assert "001.png, 002.png, 003.png and 1 more" in message


def test_the_digest_is_that_of_what_is_trained(coco_set):
    data = coco_set([(40, 30), (40, 30)], [(0, 7, [2, 3, 10, 12]), (1, 8, [4, 4, 9, 9])], categories={7: "a", 8: "b"})
    digest = data.load().digest
    data.tree["info"] = {"year": 2026}
    assert data.save().load().digest == digest
    changes = [
        lambda tree: tree["annotations"][0]["bbox"].__setitem__(0, 3),
        lambda tree: tree["annotations"][1].update(category_id=7),
        lambda tree: tree["annotations"][1].update(iscrowd=1),
        lambda tree: tree["images"][0].update(id=5000) or tree["annotations"][0].update(image_id=5000),
        lambda tree: tree["categories"][0].update(name="c"),
        lambda tree: tree["images"].reverse(),
    ]
    digests = {digest}
    for change in changes:
        change(data.tree)
        digests.add(data.save().load().digest)
    assert len(digests) == 1 + len(changes)
