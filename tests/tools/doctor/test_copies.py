"""Images that are there twice, and the json without them."""

import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import succeed

from gfl.config import DataConfig
from gfl.data.coco import load_coco
from gfl.tools.doctor.copies import copy_findings, near_duplicate_findings, shared_image_findings
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


def test_the_command_that_is_advised_puts_near_duplicates_on_one_side(coco_set, script, monkeypatch):
    """Val has a copy of a train image, compressed, smaller and darker, and an exact one, which is not near."""
    rng = np.random.default_rng(1)
    scenes = [cv2.resize(rng.integers(20, 255, (12, 16, 3), np.uint8), (160, 120)) for _ in range(8)]
    boxes = [(number, 7, [5, 5, 20, 20]) for number in range(4)]
    train, val = (coco_set([(160, 120)] * 4, boxes, name=name) for name in ("train", "val"))
    for number in range(4):
        cv2.imwrite(str(train.file(number)), scenes[number])
        cv2.imwrite(str(val.file(number)), scenes[4 + number])
    val.file(0).write_bytes(train.file(3).read_bytes())
    val.tree["images"][1] |= {"file_name": "near.jpg", "width": 80, "height": 60}
    darker = cv2.resize(cv2.subtract(scenes[2], np.full_like(scenes[2], 15)), (80, 60))
    cv2.imwrite(str(val.save().file(1)), darker, [cv2.IMWRITE_JPEG_QUALITY, 40])
    sets = [made.load() for made in (train, val)]
    args = [argument for data in sets for argument in (data, inspect_images(data, with_hashes=True))]
    (found,) = near_duplicate_findings(*args)
    assert (found.level, found.items) == ("warning", ("near.jpg = 002.png",))
    without = [argument for data in sets for argument in (data, inspect_images(data))]
    assert [(found.level, found.count) for found in near_duplicate_findings(*without)] == [("ok", 0)]  # says so
    monkeypatch.setattr(sys, "argv", shlex.split(found.command)[1:])
    split = script("split")
    split.main(split.parse_args())
    folder = Path(train.annotations).parent
    divided = [load_coco(str(folder / f"instances_{name}.json"), str(folder.parent)) for name in ("train", "val")]
    assert sum(map(len, divided)) == 8
    args = [argument for data in divided for argument in (data, inspect_images(data, with_hashes=True))]
    assert [found.count for found in near_duplicate_findings(*args)] == [0]
    assert shared_image_findings(*args) == []
