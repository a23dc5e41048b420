"""Every finding on a json is provoked once, and training refuses a json exactly if one of them is an error."""

import pytest

from gfl.common.errors import UserError
from gfl.common.findings import exit_code
from gfl.data.coco_json import read_coco_json
from gfl.tools.doctor.annotations import check_annotations, compare_categories

BOXES = [(0, 1, [10, 10, 40, 40]), (1, 2, [60, 30, 45, 50])]


@pytest.fixture
def clean(coco_set):
    """Two images and two classes without findings."""
    return coco_set([(128, 100), (120, 128)], BOXES, categories={1: "cat", 2: "dog"})


def check(made, split="train"):
    return check_annotations(read_coco_json(made.save().annotations), made.annotations, made.images, split)


def findings_of(made, split="train"):
    """What was found -> level and items."""
    return {found.what: (found.level, list(found.items)) for found in check(made, split)[0]}


def test_a_clean_json_has_no_findings(clean):
    findings, data = check(clean)
    assert findings == []
    assert len(data.labels) == 2


def add(kind, **changes):
    """Append a copy of the first entry with other fields, under a new id."""
    return lambda tree: tree[kind].append(tree[kind][0] | {"id": 5} | changes)


def change(**changes):
    """Set fields of the first annotation."""
    return lambda tree: tree["annotations"][0].update(changes)


def rename(name):
    """Set the file name of the first image."""
    return lambda tree: tree["images"][0].update(file_name=name)


def add_group(tree):
    tree["categories"] += [{"id": 0, "name": "pet"}, {"id": 4, "name": "cow", "supercategory": "pet"}]


def add_ambiguous_names(tree):
    tree["categories"] += [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat (id 1)"}]


@pytest.mark.parametrize(
    ("spoil", "level", "word", "items"),
    [
        (add("images", id="x"), "error", "file_name", ["number 2"]),
        (add("images", id=900), "error", "image ids", [900]),
        (add("images"), "warning", "files listed twice", ["000.png"]),
        (add("images", file_name="no"), "error", "in the folder", ["no"]),
        (add("images", file_name="a\0"), "error", "file_name", [5]),
        (add("images", file_name="../x"), "error", "out of the folder", [5]),
        (add("categories", name=3), "error", "categories", [5]),
        (add("categories", id=1, name="emu"), "error", "category ids", [1]),
        (add("categories"), "warning", "class names", ["cat"]),
        (add("categories", name="Background"), "warning", "no class", ["Background"]),
        (add_ambiguous_names, "error", "reason", None),
        (add_group, "warning", "group", ["pet"]),
        (change(image_id=4), "error", "image_id", [1]),
        (change(category_id=40), "error", "category_id", [1]),
        (change(bbox=[1, 2, 3]), "error", "whose bbox", [1]),
        (change(iscrowd=3), "error", "iscrowd", [1]),
        (lambda tree: tree["annotations"].append(7), "error", "mapping", ["number 2"]),
        (change(id=None), "warning", "integer id", ["number 0"]),
        (change(id=2), "warning", "annotation ids", [2]),
        (add("annotations"), "warning", "repeat", [5]),
        (add("annotations", bbox=[1, 1, 0.5, 9]), "warning", "1 px", [5]),
        (add("annotations", bbox=[1, 1, float("nan"), 9]), "warning", "1 px", [5]),
        (change(bbox=[-2, 10, 40, 40]), "warning", "reach outside", [1]),
        (add("annotations", iscrowd=1, bbox=[1, 1, 99, 99]), "ok", "crowd", [5]),
        (add("annotations", ignore=1, bbox=[1, 1, 99, 99]), "ok", "marked as ignored", [5]),
        (change(area=-1), "warning", "areas that are no number above 0", [1]),
        (change(attributes={"rotation": 3}), "warning", "rotated", [1]),
        (change(bbox=[1, 2, 3, 4, 5]), "error", "rotated boxes", [1]),
        (rename("x\\000.PNG"), "error", "another spelling", ["x\\000.PNG -> 000.png"]),
        (lambda tree: tree["categories"][0].update(name="cat\u200b"), "warning", "do not show", ["'cat\\u200b'"]),
        (add("images", file_name="./000.png"), "ok", "without boxes", [5]),
        (lambda tree: tree.update(annotations=[]), "error", "boxes to train", []),
        (lambda tree: tree.pop("annotations"), "error", "annotations", []),
    ],
)
def test_a_fault_is_found_and_is_an_error_if_training_refuses_it(spoil, level, word, items, clean):
    spoil(clean.tree)
    findings, _ = check(clean)
    (match,) = [found for found in findings if word in found.what]
    assert match.level == level
    assert items is None or list(match.items) == items
    try:
        data = clean.load()
        refused = not data.has_annotations or not len(data.labels)
    except UserError:
        refused = True
    assert refused == (exit_code(findings) == 2)


def test_all_faults_of_a_kind_are_listed_and_the_rest_is_still_checked(clean):
    first = clean.tree["annotations"][0]
    clean.tree["annotations"] += [first | {"id": 10 + n, "category_id": 50} for n in range(7)]
    clean.tree["annotations"] += ["text", first | {"id": None}, first | {"id": 30, "bbox": [0, 0, 0, 0]}]
    found = list(findings_of(clean).values())
    assert ("error", list(range(10, 17))) in found
    assert ("warning", [30]) in found
    assert ("warning", ["number 10"]) in found  # without an id, counted among all entries


@pytest.mark.parametrize(("shift", "direction"), [(-1, "low"), (1, "high")])
def test_category_ids_that_are_off_by_one_are_recognised(shift, direction, clean):
    for entry in clean.tree["annotations"]:
        entry["category_id"] += shift
    (error,) = [found for found in check(clean)[0] if found.level == "error"]
    assert direction in error.advice


@pytest.mark.parametrize("wrong", [900, "x", None])
def test_annotations_of_a_discarded_image_entry_are_not_unknown(wrong, clean):
    clean.tree["images"][1]["id"] = wrong
    found = findings_of(clean)
    assert not any("unknown image_id" in what for what in found)
    assert ("ok", [2]) in found.values()
    clean.tree["annotations"][0]["image_id"] = 12345  # now there are more unknown ids than discarded entries
    assert any("unknown image_id" in what for what in findings_of(clean))


def test_files_that_are_all_missing_are_one_finding_with_the_path(clean, tmp_path):
    (tmp_path / "empty").mkdir()
    clean.images = str(tmp_path / "empty")
    (found,), data = check(clean)
    assert data is None
    assert str(tmp_path / "empty" / "000.png") in found.advice
    assert all(
        str(tmp_path / "empty" / name) in text for name, text in zip(("000.png", "001.png"), found.reasons, strict=True)
    )


def test_val_may_have_no_boxes_but_needs_annotations(clean):
    clean.tree["annotations"] = []
    assert exit_code(check(clean, "val")[0]) == 1
    del clean.tree["annotations"]
    assert exit_code(check(clean, "val")[0]) == 2


def test_classes_that_differ_between_the_splits_are_found(clean, coco_set):
    def compare(categories):
        val = coco_set([(128, 100)], [], categories=categories, name=f"val{categories[1]}").load()
        (found,) = compare_categories(clean.load(), val)
        return found.level, found.items

    assert compare({1: "cat", 2: "emu"}) == ("error", ("without dog", "with emu"))
    assert compare({1: "dog", 2: "cat"}) == ("warning", ("cat 1 -> 2", "dog 2 -> 1"))
