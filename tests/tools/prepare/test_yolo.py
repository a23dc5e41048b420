"""YOLO's layout against boxes worked out by hand, and files that cannot be used."""

import subprocess

import pytest
from layouts import bboxes, write, write_image, write_yolo, yolo_tree

from gfl.data.image_files import read_image
from gfl.tools.prepare.to_coco import coco_tree
from gfl.tools.prepare.yolo import read_yolo


@pytest.fixture
def yolo(tmp_path):
    return write_yolo(tmp_path / "YOLO")


@pytest.fixture
def labels(yolo):
    return yolo.parent / "labels" / "train" / "a.txt"


def test_fractions_become_pixels(yolo):
    tree = yolo_tree(yolo)
    assert tree["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert [(image["id"], image["file_name"]) for image in tree["images"]] == [(1, "a.png"), (2, "b.png")]
    # a centre of (10, 5) and sides of 10 and 4
    assert tree["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [5, 3, 10, 4], "area": 40, "iscrowd": 0}
    ]


@pytest.mark.parametrize(
    ("line", "bbox"),
    [
        ("0 0.1 0.2 0.4 0.9 0.3 0.5", [2, 2, 6, 7]),  # a triangle
        ("0 0.1 0.2 0.4 0.2 0.4 0.5 0.1 0.5", [2, 2, 6, 3]),  # four corners
        ("0.0 0.5 0.5 1 1", [0, 0, 20, 10]),
        ("0 0.9 0.5 0.4 0.5", [14, 2.5, 6, 5]),  # to 22, clipped to 20
        ("0\t0.5  0.5 0.25 5e-1 ", [7.5, 2.5, 5, 5]),
    ],
)
def test_the_count_of_numbers_tells_boxes_from_polygons(yolo, labels, line, bbox):
    write(labels, f"1 0.5 0.5 0.5 0.4\r\n\n{line}")
    assert bboxes(yolo_tree(yolo)) == [[5, 3, 10, 4], pytest.approx(bbox)]


@pytest.mark.parametrize(
    ("line", "num_boxes"),
    [
        ("0 0.9 0.5 0.4 0.5", 2),  # clipped
        ("0 0.5 0.5 0 0.5", 1),
        ("0 0.5 0.5 0.5 0", 1),
        ("0 1.01 0.5 0.001 0.5", 1),
    ],
)
def test_a_box_that_is_clipped_or_dropped_gives_a_note(yolo, labels, line, num_boxes):
    write(labels, f"0 0.9 0.5 0.201 0.5\n{line}\n")  # the first one is outside by a rounding error
    (split,), names = read_yolo(yolo, ["train"])
    assert len(bboxes(coco_tree(split, names))) == num_boxes
    note, _ = split.notes  # the other is on b, which has no label file
    assert note.startswith("1 boxes")
    assert note.endswith(f"{labels} line 2")


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_an_empty_label_file_is_an_image_without_objects(yolo, text):
    (yolo.parent / "labels" / "train" / "b.txt").write_text(text, encoding="utf-8")
    tree = yolo_tree(yolo)
    assert (len(tree["images"]), len(tree["annotations"])) == (2, 1)


@pytest.mark.parametrize(
    "text",
    [
        "names: {0: cat, 1: dog}\ntrain: images/train",
        "names: {1: dog, 0: cat}\nnc: 2\ntrain: [images/train]",
        "names: [cat, dog]\ntrain: ../images/train",  # as some services export it
        "names: [cat, dog]\npath: images\ntrain: train",
        "names: [cat, dog]\npath: ABSOLUTE\ntrain: images",
        "names: [cat, dog]\ntrain: list.txt",
        "names: [cat, dog]\npath: images\ntrain: ../list.txt",
        "names: [cat, dog]\ntrain: [images/train/a.txt, images/train/b.txt]",
    ],
)
def test_a_data_yaml_may_be_written_in_many_ways(yolo, text):
    root = yolo.parent
    write(root / "list.txt", "images/train/b.png\n./images/train/a.png\n")
    write(root / "images" / "train" / "a.txt", f"{root}/images/train/a.png\n")
    write(root / "images" / "train" / "b.txt", "b.png\n")
    write(yolo, text.replace("ABSOLUTE", str(root)))
    tree = yolo_tree(yolo)
    assert [image["file_name"] for image in tree["images"]] == ["a.png", "b.png"]
    assert [category["name"] for category in tree["categories"]] == ["cat", "dog"]
    assert bboxes(tree) == [[5, 3, 10, 4]]


def test_images_of_several_folders_keep_different_names(yolo):
    write_image(yolo.parent / "images" / "more" / "deep" / "a.png", 20, 10)
    write_image(yolo.parent / "images" / "more" / ".hidden.png", 20, 10)
    write(yolo, "names: [cat, dog]\ntrain: [images/train, images/more]")
    (split,), _ = read_yolo(yolo, ["train"])
    assert [image.file_name for image in split.images] == ["more/deep/a.png", "train/a.png", "train/b.png"]
    assert split.folder == yolo.parent / "images"


def test_labels_are_beside_images_in_folders_of_another_name(yolo, labels):
    (yolo.parent / "images").rename(yolo.parent / "photos")
    labels.rename(yolo.parent / "photos" / "train" / "a.txt")
    write(yolo, "names: [cat, dog]\ntrain: photos/train")
    assert bboxes(yolo_tree(yolo)) == [[5, 3, 10, 4]]


def test_only_the_last_folder_called_images_is_replaced(yolo):
    moved = yolo.parent.parent / "images" / "set"
    moved.parent.mkdir()
    yolo.parent.rename(moved)
    assert bboxes(yolo_tree(moved / "data.yaml")) == [[5, 3, 10, 4]]


def test_the_root_may_be_given(yolo, refusal):
    elsewhere = write(yolo.parent.parent / "data.yaml", "names: [cat, dog]\npath: /nowhere\ntrain: images/train")
    assert "--root" in refusal(read_yolo, elsewhere, ["train"])
    assert bboxes(yolo_tree(elsewhere, root=yolo.parent)) == [[5, 3, 10, 4]]


def test_boxes_are_fractions_of_the_upright_image(yolo):
    image = write_image(yolo.parent / "images" / "train" / "a.jpg", 20, 10, orientation=8)
    (image.parent / "a.png").unlink()
    tree = yolo_tree(yolo)
    assert (tree["images"][0]["width"], tree["images"][0]["height"]) == (10, 20)
    assert bboxes(tree) == [[2.5, 6, 5, 8]]
    assert read_image(image, (20, 10)).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("2 0.5 0.5 0.5 0.5", "class 2"),
        ("-1 0.5 0.5 0.5 0.5", "class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5"),
        ("cat 0.5 0.5 0.5 0.5", "'cat'"),
        ("0 nan 0.5 0.5 0.5", "'nan'"),
        ("0 0.5 0.5 0.5 1e999", "'1e999'"),
        ("0,0.5,0.5,0.5,0.5", "1 numbers"),
        ("0 0.5 0.5 0.5", "4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 numbers"),
        ("0 120 80 40 30", "120 is not"),
        ("0 0.5 -0.02 0.5 0.5", "-0.02 is not"),
    ],
)
def test_an_unusable_line_is_named(yolo, labels, refusal, line, named):
    write(labels, f"1 0.5 0.5 0.5 0.5\n\n{line}\n")
    message = refusal(read_yolo, yolo, ["train"])
    assert message.startswith(f"{labels} line 3: ")
    assert named in message


def test_a_label_file_that_cannot_be_read_is_named(yolo, labels, refusal):
    labels.write_bytes(b"\xff\xfe\x00")
    assert str(labels) in refusal(read_yolo, yolo, ["train"])
    path = labels.with_name("b.txt")
    write(labels, "")
    path.symlink_to("nowhere")
    assert str(path) in refusal(read_yolo, yolo, ["train"])
    path.unlink()
    path.mkdir()
    assert str(path) in refusal(read_yolo, yolo, ["train"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("names: [cat", "YAML"),
        ("[cat, dog]", "mapping"),
        ("train: images/train", "names"),
        ("names: []\ntrain: images/train", "names"),
        ("names: {1: cat, 2: dog}\ntrain: images/train", "names"),
        ("names: {cat: 0, dog: 1}\ntrain: images/train", "names"),
        ("names: [yes, dog]\ntrain: images/train", "class 0 must be a text, not True"),
        ("names: [cat, null]\ntrain: images/train", "class 1 must be a text"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc is 3"),
        ("names: [cat, dog]", "no train"),
        ("names: [cat, dog]\ntrain: 7", "train"),
        ("names: [cat, dog]\ntrain: images/test", "images/test"),
        ("names: [cat, dog]\npath: none\ntrain: images", "path: no folder"),
        ("names: [cat, dog]\npath: [none]\ntrain: images", "path must be a folder"),
        ("names: [cat, dog]\ntrain: labels", "no images in labels"),
        ("names: [cat, dog]\ntrain: /home/me/x/images/train", "write images/train there"),
        ("names: [cat, dog]\ntrain: https://example.org/a.zip", "https://example.org/a.zip is an address"),
        ("names: [cat, dog]\ntrain: [images, images/train]", "a.png is listed"),
        ("names: [cat, dog]\ntrain: list.txt", "list.txt line 2: there is no image 'images/none.png'"),
        ("names: [cat, dog]\nkpt_shape: 17\ntrain: images", "kpt_shape"),
    ],
)
def test_an_unusable_data_yaml_is_named(yolo, refusal, text, named):
    write(yolo, text)
    write(yolo.parent / "list.txt", "images/train/a.png\nimages/none.png\n")
    message = refusal(read_yolo, yolo, ["train"])
    assert str(yolo.parent) in message or "https" in text
    assert named in message


def test_a_split_without_any_label_file_is_refused(yolo, labels, refusal):
    (yolo.parent / "labels").rename(yolo.parent / "Labels")
    assert str(labels) in refusal(read_yolo, yolo, ["train"])


def test_all_faults_of_one_kind_are_reported_at_once(yolo, labels, refusal):
    write(labels, "7 .5 .5 .2 .4\n0 .5 .5 .2 .4 .9\n8 .5 .5 .2 .4\n9 .5 .5 .2 .4\n")
    (yolo.parent / "images" / "train" / "b.png").write_bytes(b"no image")
    message = refusal(read_yolo, yolo, ["train"])
    for part in ("line 1: class 7", "3 like this", "a.txt line 3, train/a.txt line 4", "line 2: 6 numbers", "b.png"):
        assert part in message


# Files without a counterpart, and other spellings


def test_files_without_a_counterpart_give_notes(yolo, labels):
    for name in ("orphan.txt", "ORPHAN.TXT", "sub/orphan.txt"):
        write(labels.parent / name, "0 .5 .5 .2 .4\n")
    for name in ("classes.txt", "README.roboflow.txt"):
        write(labels.parent / name, "cat\n")
    write(yolo.parent / "images" / "train" / "clip.mp4", "")
    (split,), _ = read_yolo(yolo, ["train"])
    without, orphans, unknown = split.notes
    assert without.startswith("1 images")
    assert without.endswith("b.png")
    assert orphans.startswith("3 label files")
    assert unknown.endswith("clip.mp4")


def test_labels_of_images_in_no_list_are_no_orphans(yolo, labels):
    write(labels.with_name("b.txt"), "0 .5 .5 .2 .4\n")
    write(labels.with_name("orphan.txt"), "0 .5 .5 .2 .4\n")
    write(yolo.parent / "list.txt", "images/train/a.png\n")
    write(yolo, "names: [cat, dog]\ntrain: list.txt")
    (split,), _ = read_yolo(yolo, ["train"])
    (note,) = split.notes
    assert note.endswith("orphan.txt")


@pytest.mark.parametrize("name", ["a.TXT", "A.txt"])
def test_labels_are_found_under_another_spelling(yolo, labels, name):
    labels.rename(labels.with_name(name))
    (split,), names = read_yolo(yolo, ["train"])
    assert bboxes(coco_tree(split, names)) == [[5, 3, 10, 4]]
    assert any(note.endswith(name) for note in split.notes)


def test_labels_of_an_image_are_not_taken_for_one_of_another_letter_case(yolo):
    write_image(yolo.parent / "images" / "train" / "A.png", 20, 10)
    assert len(yolo_tree(yolo)["annotations"]) == 1


@pytest.mark.parametrize("line", ["images\\train\\a.png", "images/train/%61.png", "Images/Train/A.PNG"])
def test_listed_images_are_found_under_another_spelling(yolo, line):
    write(yolo.parent / "list.txt", f"{line}\n")
    write(yolo, "names: [cat, dog]\ntrain: list.txt")
    assert bboxes(yolo_tree(yolo)) == [[5, 3, 10, 4]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_text_files_may_begin_with_a_byte_order_mark(yolo, labels, encoding):
    for path in (yolo, labels):
        path.write_text(path.read_text(), encoding=encoding)
    assert bboxes(yolo_tree(yolo)) == [[5, 3, 10, 4]]


@pytest.mark.parametrize("before", ["/content/darknet (1)+2/", "C:\\data\\"])
def test_the_command_that_repairs_a_list_made_elsewhere_works(yolo, refusal, before):
    path = write(yolo.parent / "list.txt", f"{before}images/train/a.png\n{before}images/train/b.png\n")
    write(yolo, "names: [cat, dog]\ntrain: list.txt")
    message = refusal(read_yolo, yolo, ["train"])
    command = message[message.index("sed -i") : message.index(" (2 like this")]
    subprocess.run(command, shell=True, check=True)
    assert path.read_text() == "images/train/a.png\nimages/train/b.png\n"
    assert bboxes(yolo_tree(yolo)) == [[5, 3, 10, 4]]


def test_a_folder_is_refused_with_the_file_to_give(yolo, refusal):
    message = refusal(read_yolo, yolo.parent, ["train"])
    assert message.code == "folder"
    assert str(yolo) in message
