"""Images that are there twice, and the json without them."""

import shlex

import cv2
import pytest
from command_line import succeed

from gfl.config import DataConfig
from gfl.data.coco import load_coco
from gfl.tools.doctor.copies import copy_findings, shared_image_findings
from gfl.tools.doctor.images import inspect_images
from gfl.tools.doctor.write_clean import write_clean


@pytest.fixture
def splits(coco_set):
    """Train with an image twice, and val, which has it as well, each time in another format."""
    train, val = coco_set([(60, 40), (50, 30)]), coco_set([(70, 40)], name="val")
    pixels = cv2.imread(str(train.file(0)))
    for made, name in ((train, "copy.bmp"), (val, "leak.bmp")):
        made.tree["images"].append(train.tree["images"][0] | {"id": 5, "file_name": name})
        cv2.imwrite(str(made.file(-1)), pixels)
    return train.save(), val.save()


def test_copies_are_found_within_a_split_and_in_both(splits):
    train, val = (made.load() for made in splits)
    in_train, in_val = inspect_images(train), inspect_images(val)
    assert [found.items for found in copy_findings(train, in_train)] == [("000.png = copy.bmp",)]
    assert copy_findings(val, in_val) == []
    (found,) = shared_image_findings(train, in_train, val, in_val)
    assert (found.level, found.items) == ("warning", ("leak.bmp = 000.png",))
    assert shared_image_findings(train, in_train, train, in_train)[0].command == ""  # nothing would be left


def test_the_first_of_several_copies_stays(splits, tmp_path):
    made, out = splits[0], str(tmp_path / "out.json")
    write_clean((made.annotations, made.images), out, DataConfig(), no_copies=True)
    assert load_coco(out, made.images).file_names.tolist() == ["000.png", "001.png"]


def test_the_command_that_is_advised_leaves_images_of_train_out_of_val(splits):
    train, val = (made.load() for made in splits)
    (found,) = shared_image_findings(train, inspect_images(train), val, inspect_images(val))
    command = shlex.split(found.command)
    succeed(*command[1:])
    out = command[command.index("--write-clean") + 1]
    assert load_coco(out, val.root).file_names.tolist() == ["000.png"]
