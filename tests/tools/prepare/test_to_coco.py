"""VOC's and YOLO's layouts against boxes worked out by hand, there and back again, and what is wrong in one line."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gfl.data.coco import image_path, load_coco
from gfl.data.transforms import read_image
from gfl.tools.prepare.to_coco import coco_tree, image_sizes, write_split
from gfl.tools.prepare.voc import class_names, read_voc
from gfl.tools.prepare.yolo import read_yolo

ROOT = Path(__file__).resolve().parent.parent


def picture(path, width, height, orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height), (90, 60, 30)).save(path, exif=exif)
    return path


def voc_object(name, *corners, extra=""):
    tags = "".join(f"<{tag}>{x}</{tag}>" for tag, x in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def voc_xml(width, height, *objects):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>stale.jpg</filename>{size}{''.join(objects)}</annotation>"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def voc(tmp_path):
    """Two images of 20 x 10 with a box each, in split train; the second's is difficult."""
    root = tmp_path / "VOC"
    whole = voc_object("dog", 1, 1, 20, 10)
    inner = voc_object("cat", 3, 4, 7, 9, extra="<difficult>1</difficult>")
    for name, entry in (("b", whole), ("a", inner)):
        picture(root / "JPEGImages" / f"{name}.png", 20, 10)
        write(root / "Annotations" / f"{name}.xml", voc_xml(20, 10, entry))
    write(root / "ImageSets" / "Main" / "train.txt", "b\na\n")
    return root


@pytest.fixture
def yolo(tmp_path):
    """Two images of 20 x 10 in split train, the first with labels."""
    root = tmp_path / "YOLO"
    for name in ("a", "b"):
        picture(root / "images" / "train" / f"{name}.png", 20, 10)
    write(root / "labels" / "train" / "a.txt", "1 0.5 0.5 0.5 0.4\n")
    return write(root / "data.yaml", "names: [cat, dog]\ntrain: images/train\nval: images/train\n")


def voc_tree(root, **settings):
    split = read_voc(root, "train", **settings)
    return coco_tree(split, class_names([split]))


def yolo_tree(path, name="train", **settings):
    (split,), names = read_yolo(path, [name], **settings)
    return coco_tree(split, names)


def bboxes(tree):
    return [entry["bbox"] for entry in tree["annotations"]]


# Pascal VOC


def test_voc_corners_count_pixels_from_one(voc):
    tree = voc_tree(voc)
    assert tree["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert tree["images"] == [
        {"id": 1, "file_name": "a.png", "width": 20, "height": 10},
        {"id": 2, "file_name": "b.png", "width": 20, "height": 10},
    ]
    # Pixels 3 to 7 and 4 to 9 are 5 x 6 of them, with 2 and 3 before; 1 to 20 and 1 to 10 are all.
    assert bboxes(tree) == [[2, 3, 5, 6], [0, 0, 20, 10]]
    assert [(entry["image_id"], entry["category_id"]) for entry in tree["annotations"]] == [(1, 1), (2, 2)]
    assert [entry["area"] for entry in tree["annotations"]] == [30, 200]


def test_voc_boxes_cover_the_pixels_they_name(voc):
    """The box drawn pixel by pixel as the devkit counts, against the edges that come out."""
    drawn = np.zeros((10, 20), bool)
    for y in range(1, 11):
        for x in range(1, 21):
            drawn[y - 1, x - 1] = 3 <= x <= 7 and 4 <= y <= 9
    x, y, width, height = map(int, bboxes(voc_tree(voc))[0])
    covered = np.zeros_like(drawn)
    covered[y : y + height, x : x + width] = True
    np.testing.assert_array_equal(covered, drawn)


def test_edges_from_zero_are_taken_as_they_are(voc):
    write(voc / "Annotations" / "b.xml", voc_xml(20, 10, voc_object("dog", 0, 0, 20, 10)))
    assert bboxes(voc_tree(voc, zero_based=True)) == [[3, 4, 4, 5], [0, 0, 20, 10]]
    notes = read_voc(voc, "train").notes
    assert "b.xml: object 1 (dog)" in notes[0]
    assert "--zero-based" in notes[1]


def test_difficult_objects_become_crowd_which_training_leaves_out(voc, tmp_path):
    tree = voc_tree(voc)
    assert [entry["iscrowd"] for entry in tree["annotations"]] == [1, 0]
    write_split(tmp_path / "out.json", tree)
    data = load_coco(str(tmp_path / "out.json"), str(voc / "JPEGImages"))
    assert data.notes == ("1 crowd boxes left out of training",)
    assert data.boxes_xyxy.tolist() == [[0, 0, 20, 10]]


def test_parts_of_an_object_are_no_objects(voc):
    part = f"<part>{voc_object('head', 4, 4, 5, 5)}<name>head</name><bndbox><xmin>4</xmin></bndbox></part>"
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10, voc_object("cat", 3, 4, 7, 9, extra=part)))
    assert bboxes(voc_tree(voc))[0] == [2, 3, 5, 6]


def test_voc_accepts_images_without_objects_fractions_and_other_suffixes(voc):
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10))
    write(voc / "Annotations" / "b.xml", voc_xml(20, 10, voc_object("dog", 2.5, 1, 10, 9.25)))
    (voc / "JPEGImages" / "a.png").rename(voc / "JPEGImages" / "a.PNG")
    tree = voc_tree(voc)
    assert [image["file_name"] for image in tree["images"]] == ["a.PNG", "b.png"]
    assert bboxes(tree) == [[1.5, 0, 8.5, 9.25]]


def test_classes_are_those_of_all_splits_or_as_told(voc, refusal):
    split = read_voc(voc, "train")
    assert list(class_names([split], ["dog", "bird", "cat"])) == ["dog", "bird", "cat"]
    message = refusal(class_names, [split], ["dog"])
    assert "'cat' is not among" in message
    for name in "ab":
        write(voc / "Annotations" / f"{name}.xml", voc_xml(20, 10))
    assert "--classes" in refusal(class_names, [read_voc(voc, "train")])


@pytest.mark.parametrize("told", [(20, 10), (10, 20)])
def test_the_size_in_voc_tells_which_way_up_was_annotated(voc, told):
    """An image stored as 20 x 10 that EXIF turns to 10 x 20; both are what `read_image` can return."""
    image = picture(voc / "JPEGImages" / "a.jpg", 20, 10, orientation=6)
    (voc / "JPEGImages" / "a.png").unlink()
    write(voc / "Annotations" / "a.xml", voc_xml(*told, voc_object("cat", 1, 1, *told)))
    tree = voc_tree(voc)
    assert (tree["images"][0]["width"], tree["images"][0]["height"]) == told
    assert bboxes(tree)[0] == [0, 0, *told]
    assert read_image(image, told[::-1]).shape == (told[1], told[0], 3)


LAUGHS = "<!DOCTYPE a [<!ENTITY e0 'ha'>{}]><annotation>&e40;</annotation>".format(
    "".join(f"<!ENTITY e{n + 1} '{f'&e{n};' * 10}'>" for n in range(40))
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot read"),
        ("", "not xml"),
        ("a,b,c", "not xml"),
        ("<annotation><object></annotation>", "not xml"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "not xml"),
        ("<html></html>", "<html>"),
        (LAUGHS, "amplification"),
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>&e;</annotation>', "not xml"),
        ("<annotation></annotation>", "<size> <width> must be a number"),
        (voc_xml("wide", 10), "'wide'"),
        (voc_xml(0, 0), "<size> says 0 x 0"),
        (voc_xml(21, 10), "is 20 x 10"),
        (voc_xml(20, 10, "<object/>"), "object 1: <name> must be a class name"),
        (voc_xml(20, 10, voc_object("a\ncat", 1, 1, 5, 5)), "<name> must be a class name"),
        (voc_xml(20, 10, "<object><name>cat</name></object>"), "object 1 (cat): <xmin> must be a number"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, 5, 5), voc_object("cat", 1, 1, 5, "x")), "object 2 (cat): <ymax>"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, "NaN", 5)), "<xmax> must be a number, not 'NaN'"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, "inf", 5)), "<xmax> must be a number"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, 5, 5, extra="<difficult>?</difficult>")), "<difficult>"),
    ],
)
def test_a_damaged_xml_is_named(voc, refusal, content, expected):
    path = voc / "Annotations" / "a.xml"
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    message = refusal(read_voc, voc, "train")
    assert str(path) in message
    assert expected in message


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "lists no images"),
        ("a\nb\n\na\n", "train.txt line 4: 'a' stands in line 1 already"),
        ("a\n../b\n", "train.txt line 2: file name '../b' leads out"),
        ("/a\n", "line 1: file name '/a' leads out"),
        ("a  1\nb -1\n", "a  1.xml"),  # the lists of one class have a second column
    ],
)
def test_a_wrong_split_file_is_named(voc, refusal, lines, expected):
    write(voc / "ImageSets" / "Main" / "train.txt", lines)
    assert expected in refusal(read_voc, voc, "train")
    assert "test.txt" in refusal(read_voc, voc, "test")


def test_voc_names_an_image_that_lacks_or_is_not_the_only_one(voc, refusal):
    image = voc / "JPEGImages" / "a.png"
    picture(voc / "JPEGImages" / "a.jpg", 20, 10)
    assert "both a.jpg and a.png" in refusal(read_voc, voc, "train")
    (voc / "JPEGImages" / "a.jpg").unlink()
    image.write_bytes(image.read_bytes()[:10])
    assert f"image {image} is damaged" in refusal(read_voc, voc, "train")
    image.unlink()
    assert "a.xml: there is no a.jpg, or with another suffix" in refusal(read_voc, voc, "train")


# YOLO


def test_yolo_fractions_become_pixels(yolo):
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
        ("0 0.9 0.5 0.4 0.5", [14, 2.5, 6, 5]),  # to 22, cut to 20
        ("0\t0.5  0.5 0.25 5e-1 ", [7.5, 2.5, 5, 5]),
    ],
)
def test_a_yolo_line_is_a_box_or_a_polygon_by_its_own_length(yolo, line, bbox):
    write(yolo.parent / "labels" / "train" / "a.txt", f"1 0.5 0.5 0.5 0.4\r\n\n{line}")
    assert bboxes(yolo_tree(yolo)) == [[5, 3, 10, 4], pytest.approx(bbox)]


def test_a_box_that_is_cut_is_told_but_rounding_is_not(yolo):
    labels = yolo.parent / "labels" / "train" / "a.txt"
    write(labels, "0 0.9 0.5 0.201 0.5\n0 0.9 0.5 0.4 0.5\n")
    (split,), _ = read_yolo(yolo, ["train"])
    (note,) = split.notes
    assert note.startswith("1 boxes")
    assert note.endswith(f"{labels} line 2")


@pytest.mark.parametrize("line", ["0 0.5 0.5 0 0.5", "0 0.5 0.5 0.5 0", "0 1.01 0.5 0.001 0.5", "0 0.5 0.5 0 0"])
def test_a_yolo_box_of_which_nothing_is_left_is_left_out_and_told(yolo, line):
    labels = write(yolo.parent / "labels" / "train" / "a.txt", f"1 0.5 0.5 0.5 0.4\n{line}\n")
    (split,), names = read_yolo(yolo, ["train"])
    assert bboxes(coco_tree(split, names)) == [[5, 3, 10, 4]]
    assert split.notes == (f"1 boxes are empty or outside their image and were left out, the first: {labels} line 2",)


@pytest.mark.parametrize("corners", [(8, 1, 7, 5), (9, 1, 3, 5), (1, 6, 5, 5), (30, 1, 40, 5), (1, -9, 5, 0)])
def test_a_voc_box_of_which_nothing_is_left_is_left_out_and_told(voc, corners):
    objects = voc_object("cat", 3, 4, 7, 9), voc_object("cat", *corners)
    path = write(voc / "Annotations" / "a.xml", voc_xml(20, 10, *objects))
    split = read_voc(voc, "train")
    assert bboxes(coco_tree(split, class_names([split]))) == [[2, 3, 5, 6], [0, 0, 20, 10]]
    (note,) = split.notes
    assert note.startswith("1 boxes are empty or outside")
    assert note.endswith(f"{path}: object 2 (cat)")


@pytest.mark.parametrize("labels", ["", "\n \n", "\ufeff"])
def test_an_empty_label_file_is_an_image_without_objects(yolo, labels):
    (yolo.parent / "labels" / "train" / "b.txt").write_text(labels, encoding="utf-8")
    tree = yolo_tree(yolo)
    assert len(tree["images"]) == 2
    assert len(tree["annotations"]) == 1


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


def test_images_of_several_folders_keep_their_names_apart(yolo):
    picture(yolo.parent / "images" / "more" / "deep" / "a.png", 20, 10)
    picture(yolo.parent / "images" / "more" / ".hidden.png", 20, 10)
    write(yolo, "names: [cat, dog]\ntrain: [images/train, images/more]")
    (split,), _ = read_yolo(yolo, ["train"])
    assert [picture.file_name for picture in split.pictures] == ["more/deep/a.png", "train/a.png", "train/b.png"]
    assert split.folder == yolo.parent / "images"


def test_labels_lie_beside_images_that_are_in_no_folder_images(yolo):
    (yolo.parent / "images").rename(yolo.parent / "photos")
    (yolo.parent / "labels" / "train" / "a.txt").rename(yolo.parent / "photos" / "train" / "a.txt")
    write(yolo, "names: [cat, dog]\ntrain: photos/train")
    assert bboxes(yolo_tree(yolo)) == [[5, 3, 10, 4]]


def test_only_the_last_folder_called_images_is_exchanged(yolo):
    moved = yolo.parent.parent / "images" / "set"
    moved.parent.mkdir()
    yolo.parent.rename(moved)
    assert bboxes(yolo_tree(moved / "data.yaml")) == [[5, 3, 10, 4]]


def test_the_root_may_be_told(yolo, refusal):
    elsewhere = write(yolo.parent.parent / "data.yaml", "names: [cat, dog]\npath: /nowhere\ntrain: images/train")
    assert "--root" in refusal(read_yolo, elsewhere, ["train"])
    assert bboxes(yolo_tree(elsewhere, root=yolo.parent)) == [[5, 3, 10, 4]]


def test_yolo_boxes_are_fractions_of_the_upright_image(yolo):
    image = picture(yolo.parent / "images" / "train" / "a.jpg", 20, 10, orientation=8)
    (image.parent / "a.png").unlink()
    tree = yolo_tree(yolo)
    assert (tree["images"][0]["width"], tree["images"][0]["height"]) == (10, 20)
    assert bboxes(tree) == [[2.5, 6, 5, 8]]
    assert read_image(image, (20, 10)).shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2 0.5 0.5 0.5 0.5", "class 2 is not one of the 2"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 is not"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5 is not"),
        ("cat 0.5 0.5 0.5 0.5", "must be a number, not 'cat'"),
        ("0 nan 0.5 0.5 0.5", "must be a number, not 'nan'"),
        ("0 0.5 0.5 0.5 1e999", "must be a number"),
        ("0,0.5,0.5,0.5,0.5", "1 numbers"),
        ("0 0.5 0.5 0.5", "4 numbers"),
        ("0 0.5 0.5 0.5 0.5 0.9", "6 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "8 numbers"),
        ("0 120 80 40 30", "120 is not in [0, 1]"),
        ("0 0.5 -0.02 0.5 0.5", "-0.02 is not in [0, 1]"),
    ],
)
def test_a_damaged_line_is_named(yolo, refusal, line, expected):
    path = yolo.parent / "labels" / "train" / "a.txt"
    write(path, f"1 0.5 0.5 0.5 0.5\n\n{line}\n")
    message = refusal(read_yolo, yolo, ["train"])
    assert message.startswith(f"{path} line 3: ")
    assert expected in message


def test_a_label_file_that_is_no_text_is_named(yolo, refusal):
    path = yolo.parent / "labels" / "train" / "b.txt"
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path}: not a text file" in refusal(read_yolo, yolo, ["train"])
    path.unlink()
    path.symlink_to("nowhere")
    assert f"cannot read {path}" in refusal(read_yolo, yolo, ["train"])
    path.unlink()
    path.mkdir()
    assert f"cannot read {path}" in refusal(read_yolo, yolo, ["train"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [cat", "not valid YAML"),
        ("[cat, dog]", "mapping"),
        ("train: images/train", "names must be"),
        ("names: []\ntrain: images/train", "names must be"),
        ("names: {1: cat, 2: dog}\ntrain: images/train", "names must be"),
        ("names: {cat: 0, dog: 1}\ntrain: images/train", "names must be"),
        ("names: [yes, dog]\ntrain: images/train", "class 0 must be a text, not True; put it in quotes"),
        ("names: [cat, null]\ntrain: images/train", "class 1 must be a text"),
        ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc is 3, but there are 2"),
        ("names: [cat, dog]", "it has no train"),
        ("names: [cat, dog]\ntrain: 7", "train must be a folder"),
        ("names: [cat, dog]\ntrain: images/test", "there is no "),
        ("names: [cat, dog]\npath: none\ntrain: images", "path: no folder"),
        ("names: [cat, dog]\npath: [none]\ntrain: images", "path must be a folder"),
        ("names: [cat, dog]\ntrain: labels", "train: no images in labels"),
        ("names: [cat, dog]\ntrain: [images, images/train]", "a.png is listed 2 times"),
        ("names: [cat, dog]\ntrain: list.txt", "list.txt line 2: there is no image 'images/none.png'"),
        ("names: [cat]\nkpt_shape: [17, 3]\ntrain: images", "kpt_shape"),
    ],
)
def test_a_wrong_data_yaml_is_named(yolo, refusal, text, expected):
    write(yolo, text)
    write(yolo.parent / "list.txt", "images/train/a.png\nimages/none.png\n")
    message = refusal(read_yolo, yolo, ["train"])
    assert str(yolo.parent) in message
    assert expected in message


def test_labels_in_the_wrong_place_are_no_images_without_objects(yolo, refusal):
    (yolo.parent / "labels").rename(yolo.parent / "Labels")
    message = refusal(read_yolo, yolo, ["train"])
    assert "none of its 2 images has labels" in message
    assert str(yolo.parent / "labels" / "train" / "a.txt") in message


# Images


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_from_headers_are_those_of_decoded_images(tmp_path, suffix, orientation):
    path = picture(tmp_path / f"a.{suffix}", 20, 10, orientation)
    upright, stored = image_sizes(path)
    assert stored == (20, 10)
    assert upright == ((20, 10) if orientation < 5 else (10, 20))
    assert read_image(path, upright[::-1]).shape == (upright[1], upright[0], 3)


def test_pixels_are_not_decoded(tmp_path):
    path = picture(tmp_path / "a.png", 20, 10)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"IDAT") + 4])
    assert image_sizes(path) == ((20, 10), (20, 10))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_an_unreadable_image_is_named(tmp_path, refusal, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    assert f"image {path} is damaged" in refusal(image_sizes, path)
    assert "no image" in refusal(image_sizes, tmp_path / "b.jpg")
    assert "damaged" in refusal(image_sizes, tmp_path)


# There and back


@pytest.fixture
def original(tmp_path):
    """A COCO-format json of random boxes on whole pixels, sizes all different, and its tree."""
    rng = np.random.default_rng(5)
    categories = [{"id": number, "name": name} for number, name in enumerate(("ant", "bee", "cow"), 1)]
    images, annotations = [], []
    for number in range(1, 9):
        width, height = (int(value) for value in rng.integers(30, 300, 2))
        name = f"{number:03}.jpg"
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        path = tmp_path / "set" / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
        for _ in range(number % 4):
            x, y = int(rng.integers(0, width - 2)), int(rng.integers(0, height - 2))
            box = [x, y, int(rng.integers(2, width - x + 1)), int(rng.integers(2, height - y + 1))]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "bbox": box, "area": box[2] * box[3]})
            annotations[-1] |= {"category_id": int(rng.integers(1, 4)), "iscrowd": 0}
    assert len({entry["category_id"] for entry in annotations}) == 3
    return {"images": images, "annotations": annotations, "categories": categories}


def assert_comes_back(tree, original, folder, path):
    assert tree["images"] == original["images"]
    assert tree["categories"] == original["categories"]
    for ours, theirs in zip(tree["annotations"], original["annotations"], strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=2e-3)
        assert ours["area"] == pytest.approx(theirs["area"], rel=1e-3)
        assert {**ours, "bbox": 0, "area": 0} == {**theirs, "bbox": 0, "area": 0}
    write_split(path, tree)
    data = load_coco(str(path), str(folder))
    assert len(data.labels) == len(original["annotations"])
    assert data.notes == ()
    for index in range(len(data)):
        assert read_image(image_path(data, index)).shape[:2] == tuple(data.sizes[index])


def test_coco_to_voc_and_back(original, tmp_path):
    root = tmp_path / "set"
    (root / "images").rename(root / "JPEGImages")
    for image in original["images"]:
        objects = []
        for entry in original["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = entry["bbox"]
                name = original["categories"][entry["category_id"] - 1]["name"]
                objects.append(voc_object(name, x + 1, y + 1, x + width, y + height))
        text = voc_xml(image["width"], image["height"], *objects)
        write(root / "Annotations" / f"{image['id']:03}.xml", text)
    write(root / "ImageSets" / "Main" / "train.txt", "\n".join(f"{number:03}" for number in (3, 1, 2, 8, 6, 5, 4, 7)))
    assert_comes_back(voc_tree(root), original, root / "JPEGImages", tmp_path / "out.json")


def test_coco_to_yolo_and_back(original, tmp_path):
    root = tmp_path / "set"
    for image in original["images"]:
        lines = []
        for entry in original["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = entry["bbox"]
                fractions = np.array([x + width / 2, y + height / 2, width, height])
                fractions /= [image["width"], image["height"]] * 2
                lines.append(f"{entry['category_id'] - 1} " + " ".join(f"{value:.6f}" for value in fractions))
        if lines:
            write(root / "labels" / f"{image['id']:03}.txt", "\n".join(lines))
    write(root / "data.yaml", "names: [ant, bee, cow]\ntrain: images")
    assert_comes_back(yolo_tree(root / "data.yaml"), original, root / "images", tmp_path / "out.json")


# The command


@pytest.fixture
def command(monkeypatch, capsys):
    """Call the script's main as the command line would, in this process; what it prints."""
    spec = importlib.util.spec_from_file_location("to_coco", ROOT / "scripts" / "to_coco.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["to_coco.py", *map(str, words)])
        script.main(script.parse_args())
        return capsys.readouterr().out

    return call


def test_the_command_writes_says_what_and_leads_on(command, refusal, yolo, tmp_path):
    out = tmp_path / "out"
    printed = command("yolo", yolo, "--out", out)
    for expected in (
        f"{out}/instances_train.json: 2 images (1 without objects), 1 boxes",
        "2: 1 cat, 2 dog",
        f"python scripts/doctor.py {out}/instances_train.json {yolo.parent}/images/train",
        f"configs/finetune.yaml data.train.annotations={out}/instances_train.json",
        f"data.val.images={yolo.parent}/images/train",
    ):
        assert expected in printed
    assert load_coco(f"{out}/instances_val.json", f"{yolo.parent}/images/train").class_names == ("cat", "dog")
    assert command("yolo", yolo, "--out", out) == printed  # the same again is no error
    (out / "instances_val.json").write_text("{}")
    assert "instances_val.json is there and says something else" in refusal(command, "yolo", yolo, "--out", out)


def test_the_command_converts_voc_and_says_what_became_of_difficult_objects(command, voc, tmp_path):
    words = ["--splits", "train", "--classes", "dog", "cat", "cow", "--out", tmp_path]
    printed = command("voc", voc, *words)
    assert "2 boxes (1 difficult, as crowd)" in printed
    assert "1 dog, 2 cat, 3 cow" in printed
    tree = json.loads((tmp_path / "instances_train.json").read_text())
    assert [entry["category_id"] for entry in tree["annotations"]] == [2, 1]


def test_the_command_writes_all_or_nothing(command, refusal, voc, yolo, tmp_path):
    taken = write(tmp_path / "taken", "a file")
    out = tmp_path / "out"
    assert f"cannot write {taken}" in refusal(command, "yolo", yolo, "--out", taken)
    assert "val.txt" in refusal(command, "voc", voc, "--out", out)  # although train can be read
    assert "cannot read config" in refusal(command, "yolo", tmp_path / "none.yaml", "--out", out)
    assert not out.exists()


def test_a_mistake_is_one_line_and_exit_code_2(voc, tmp_path):
    words = [sys.executable, "scripts/to_coco.py", "voc", str(voc), "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
