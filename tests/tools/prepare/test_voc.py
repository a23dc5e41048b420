"""Pascal VOC's layout against boxes worked out by hand, and files that cannot be used."""

import pytest
from layouts import bboxes, read_voc_split, voc_object, voc_tree, voc_xml, write, write_image, write_voc

from gfl.data.coco import load_coco
from gfl.data.image_files import read_image
from gfl.tools.prepare.to_coco import coco_tree, write_jsons
from gfl.tools.prepare.voc import class_names


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path / "VOC")


def test_corners_count_pixels_from_one(voc):
    tree = voc_tree(voc)
    assert tree["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert tree["images"] == [
        {"id": 1, "file_name": "a.png", "width": 20, "height": 10},
        {"id": 2, "file_name": "b.png", "width": 20, "height": 10},
    ]
    # Pixels 3 to 7 and 4 to 9 are 5 x 6, with 2 and 3 before them; 1 to 20 and 1 to 10 are all.
    assert bboxes(tree) == [[2, 3, 5, 6], [0, 0, 20, 10]]
    assert [(entry["image_id"], entry["category_id"]) for entry in tree["annotations"]] == [(1, 1), (2, 2)]
    assert [entry["area"] for entry in tree["annotations"]] == [30, 200]


def test_zero_based_corners_are_edges(voc):
    path = write(voc / "Annotations" / "b.xml", voc_xml(20, 10, voc_object("dog", 0, 0, 20, 10)))
    assert bboxes(voc_tree(voc, zero_based=True)) == [[3, 4, 4, 5], [0, 0, 20, 10]]
    clipped, advice = read_voc_split(voc).notes
    assert f"{path}: object 1 (dog)" in clipped
    assert "--zero-based" in advice


def test_difficult_objects_become_crowd_boxes(voc, tmp_path):
    tree = voc_tree(voc)
    assert [entry["iscrowd"] for entry in tree["annotations"]] == [1, 0]
    write_jsons({tmp_path / "out.json": tree})
    assert load_coco(str(tmp_path / "out.json"), str(voc / "JPEGImages")).boxes_xyxy.tolist() == [[0, 0, 20, 10]]


@pytest.mark.parametrize(
    ("extra", "crowd"),
    [
        ("<difficult>True</difficult>", 1),
        ("<difficult>Unspecified</difficult>", 0),
        ("<difficult>no</difficult><truncated>1</truncated>", 0),
        ("<ignore>1</ignore>", 1),
        ("<iscrowd>1</iscrowd>", 1),
        ("<attributes><attribute><name>difficult</name><value>true</value></attribute></attributes>", 1),
    ],
)
def test_marks_are_read_as_those_of_a_json(voc, extra, crowd):
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10, voc_object("cat", 3, 4, 7, 9, extra=extra)))
    assert [entry["iscrowd"] for entry in voc_tree(voc)["annotations"]] == [crowd, 0]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>", "<size><width/></size>"])
def test_a_size_that_is_missing_is_the_upright_image_s(voc, size):
    (voc / "JPEGImages" / "a.png").unlink()
    write_image(voc / "JPEGImages" / "a.jpg", 10, 20, orientation=6)
    path = write(voc / "Annotations" / "a.xml", f"<annotation>{size}{voc_object('cat', 3, 4, 7, 9)}</annotation>")
    split = read_voc_split(voc)
    assert (split.images[0].width, split.images[0].height) == (20, 10)
    (note,) = split.notes
    assert note.startswith("1 xml")
    assert str(path) in note


def test_images_without_objects_fractions_parts_and_other_suffixes_are_accepted(voc):
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10))
    part = f"<part>{voc_object('head', 4, 4, 5, 5)}<name>head</name><bndbox><xmin>4</xmin></bndbox></part>"
    write(voc / "Annotations" / "b.xml", voc_xml(20, 10, voc_object("dog", 2.5, 1, 10, 9.25, extra=part)))
    (voc / "JPEGImages" / "a.png").rename(voc / "JPEGImages" / "a.PNG")
    tree = voc_tree(voc)
    assert [image["file_name"] for image in tree["images"]] == ["a.PNG", "b.png"]
    assert bboxes(tree) == [[1.5, 0, 8.5, 9.25]]


def test_classes_are_those_that_occur_or_the_given_ones(voc, refusal):
    split = read_voc_split(voc)
    assert list(class_names([split], ["dog", "bird", "cat"])) == ["dog", "bird", "cat"]
    assert "'cat'" in refusal(class_names, [split], ["dog"])
    for name in "ab":
        write(voc / "Annotations" / f"{name}.xml", voc_xml(20, 10))
    assert "--classes" in refusal(class_names, [read_voc_split(voc)])
    write(voc / "Annotations" / "b.xml", voc_xml(20, 10, voc_object("dog", 9, 9, 3, 3)))
    assert "b.xml: object 1 (dog)" in refusal(class_names, [read_voc_split(voc)])  # why there is none


@pytest.mark.parametrize("size", [(20, 10), (10, 20)])
def test_the_size_decides_which_orientation_was_annotated(voc, size):
    """An image stored as 20 x 10 that EXIF turns to 10 x 20; `read_image` can return both."""
    image = write_image(voc / "JPEGImages" / "a.jpg", 20, 10, orientation=6)
    (voc / "JPEGImages" / "a.png").unlink()
    write(voc / "Annotations" / "a.xml", voc_xml(*size, voc_object("cat", 1, 1, *size)))
    tree = voc_tree(voc)
    assert (tree["images"][0]["width"], tree["images"][0]["height"]) == size
    assert bboxes(tree)[0] == [0, 0, *size]
    assert read_image(image, size[::-1]).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("corners", [(8, 1, 7, 5), (9, 1, 3, 5), (1, 6, 5, 5), (30, 1, 40, 5), (1, -9, 5, 0)])
def test_a_box_of_which_nothing_is_left_is_dropped_with_a_note(voc, corners):
    objects = voc_object("cat", 3, 4, 7, 9), voc_object("cat", *corners)
    path = write(voc / "Annotations" / "a.xml", voc_xml(20, 10, *objects))
    split = read_voc_split(voc)
    assert bboxes(coco_tree(split, class_names([split]))) == [[2, 3, 5, 6], [0, 0, 20, 10]]
    (note,) = split.notes
    assert note.startswith("1 boxes")
    assert note.endswith(f"{path}: object 2 (cat)")


EXPANSIONS = "".join(f"<!ENTITY e{n + 1} '{f'&e{n};' * 10}'>" for n in range(40))
BILLION_LAUGHS = f"<!DOCTYPE a [<!ENTITY e0 'ha'>{EXPANSIONS}]><annotation>&e40;</annotation>"
EXTERNAL = '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/hostname">]><annotation>&e;</annotation>'


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "xml"),
        ("a,b,c", "xml"),
        ("<annotation><object></annotation>", "xml"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "xml"),
        ("<html></html>", "<html>"),
        (BILLION_LAUGHS, "amplification"),
        (EXTERNAL, "entity"),
        (voc_xml("wide", 10), "'wide'"),
        (voc_xml(0, 10), "0 x 10"),
        ("<annotations><image/></annotations>", "CVAT"),
        ("<!DOCTYPE html><html><br></html>", "HTML"),
        (voc_xml(21, 10), "20 x 10"),
        (voc_xml(20, 10, "<object/>"), "object 1: <name>"),
        (voc_xml(20, 10, voc_object("a\ncat", 1, 1, 5, 5)), "<name>"),
        (voc_xml(20, 10, "<object><name>cat</name></object>"), "object 1 (cat): there is no <bndbox>"),
        (voc_xml(20, 10, "<object><name>cat</name><polygon/></object>"), "<polygon>"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, 5, 5), voc_object("cat", 1, 1, 5, "x")), "object 2 (cat): <ymax>"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, "NaN", 5)), "'NaN'"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, "inf", 5)), "'inf'"),
        (voc_xml(20, 10, voc_object("cat", 1, 1, 5, 5, extra="<difficult>?</difficult>")), "<difficult>"),
    ],
)
def test_an_unusable_xml_is_named(voc, refusal, content, named):
    path = write(voc / "Annotations" / "a.xml", content)
    message = refusal(read_voc_split, voc)
    assert str(path) in message
    assert named in message


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("", "train.txt"),
        ("a\nb\n\na\n", "train.txt line 4: 'a' is also in line 1"),
        ("a\n../b\n", "train.txt line 2: file name '../b'"),
        ("/a\n", "train.txt line 1: file name '/a'"),
        ("a  1\nb -1\n", "a  1.xml"),  # the lists of one class have a second column
    ],
)
def test_an_unusable_split_file_is_named(voc, refusal, lines, named):
    write(voc / "ImageSets" / "Main" / "train.txt", lines)
    assert named in refusal(read_voc_split, voc)
    assert "test.txt" in refusal(read_voc_split, voc, "test")


def test_each_name_needs_one_readable_image_and_an_xml(voc, refusal):
    image = voc / "JPEGImages" / "a.png"
    write_image(voc / "JPEGImages" / "a.jpg", 20, 10)
    assert "a.jpg and a.png" in refusal(read_voc_split, voc)
    (voc / "JPEGImages" / "a.jpg").unlink()
    image.write_bytes(image.read_bytes()[:10])
    message = refusal(read_voc_split, voc)
    assert str(image) in message
    assert message.code == "truncated"
    image.unlink()
    assert "a.xml" in refusal(read_voc_split, voc)
    (voc / "Annotations" / "a.xml").unlink()
    assert "a.xml" in refusal(read_voc_split, voc)


def test_all_faults_of_one_kind_are_reported_at_once(voc, refusal):
    bad = [voc_object("cat", 1, 1, "x", 5), voc_object("dog", "y", 1, 5, 5)]
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10, *bad, voc_object("", 1, 1, 5, 5)))
    write(voc / "Annotations" / "b.xml", voc_xml(21, 10))
    message = refusal(read_voc_split, voc)
    for part in ("object 1 (cat)", "2 like this", "a.xml: object 2", "object 3", "21 x 10"):
        assert part in message


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [
        ("utf-8-sig", ""),
        ("utf-16", "UTF-16"),
        ("gbk", "GBK"),
        ("shift_jis", "Shift_JIS"),
        ("latin-1", "ISO-8859-1"),
        ("utf-8", "utf-16"),
    ],
)
def test_an_xml_is_read_in_the_encoding_that_it_declares(voc, encoding, declared):
    name = "caf\u00e9" if encoding == "latin-1" else "\u732b"
    declaration = f'<?xml version="1.0" encoding="{declared}"?>\n' if declared else ""
    text = declaration + voc_xml(20, 10, voc_object(name, 3, 4, 7, 9))
    (voc / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    assert [category["name"] for category in voc_tree(voc)["categories"]] == sorted(["dog", name])


def test_an_xml_in_another_encoding_than_declared_is_refused(voc, refusal):
    path = voc / "Annotations" / "a.xml"
    path.write_bytes(voc_xml(20, 10, voc_object("caf\u00e9", 3, 4, 7, 9)).encode("latin-1"))
    message = refusal(read_voc_split, voc)
    assert message.code == "encoding"
    assert str(path) in message


def test_names_are_found_under_another_spelling(voc):
    (voc / "Annotations" / "a.xml").rename(voc / "Annotations" / "A.XML")
    (voc / "JPEGImages" / "b.png").rename(voc / "JPEGImages" / "B.PNG")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("a.png\r\nb", encoding="utf-16")
    assert [image["file_name"] for image in voc_tree(voc)["images"]] == ["B.PNG", "a.png"]


@pytest.mark.parametrize(
    "extra",
    [
        "<attributes><attribute><name>rotation</name><value>37.5</value></attribute></attributes>",
        "<angle>0.5</angle>",
    ],
)
def test_a_rotated_box_gives_a_note(voc, extra):
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10, voc_object("cat", 3, 4, 7, 9, extra=extra)))
    (note,) = read_voc_split(voc).notes
    assert "a.xml: object 1 (cat)" in note


def test_a_box_of_centre_and_angle_is_refused_by_name(voc, refusal):
    rotated = (
        "<object><name>cat</name><robndbox><cx>5</cx><cy>5</cy><w>4</w><h>2</h><angle>1</angle></robndbox></object>"
    )
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10, rotated))
    assert refusal(read_voc_split, voc).code == "rotated"


def test_an_object_of_several_boxes_is_refused(voc, refusal):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax></bndbox>"
    write(voc / "Annotations" / "a.xml", voc_xml(20, 10, voc_object("cat", 3, 4, 7, 9, extra=box)))
    assert refusal(read_voc_split, voc).code == "several_boxes"
