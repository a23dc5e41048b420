"""Darknet's layout as CVAT writes it."""

import pytest
from layouts import bboxes, write, write_image

from gfl.tools.prepare.to_coco import coco_tree
from gfl.tools.prepare.yolo import read_yolo


@pytest.fixture
def darknet(tmp_path):
    """Two images, one in each split, with labels beside them; returns the obj.data."""
    write(tmp_path / "obj.names", "cat\ndog\n")
    for split, name in (("train", "a"), ("valid", "b")):
        write_image(tmp_path / f"obj_{split}_data" / f"{name}.png", 20, 10)
        write(tmp_path / f"obj_{split}_data" / f"{name}.txt", "1 0.5 0.5 0.5 0.4\n")
        write(tmp_path / f"{split}.txt", f"data/obj_{split}_data/{name}.png\n")
    lines = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    return write(tmp_path / "obj.data", lines)


@pytest.mark.parametrize("val", ["val", "valid"])
def test_the_lists_of_obj_data_are_splits(darknet, val):
    splits, names = read_yolo(darknet, ["train", val])
    assert names == {0: "cat", 1: "dog"}
    assert [image.file_name for split in splits for image in split.images] == ["a.png", "b.png"]
    assert [bboxes(coco_tree(split, names)) for split in splits] == [[[5, 3, 10, 4]]] * 2


def test_a_folder_is_refused_with_the_file_to_give(darknet, refusal):
    error = refusal(read_yolo, darknet.parent, ["train"])
    assert error.code == "folder"
    assert str(darknet) in error


@pytest.mark.parametrize("text", ["names: [cat]\ntrain: images\n", "train = train.txt\n"])
def test_another_file_of_that_name_is_refused(darknet, refusal, text):
    assert refusal(read_yolo, write(darknet, text), ["train"]).code == "not_darknet"
