"""A json without what training refuses."""

import json

import cv2
import numpy as np
import pytest

from gfl.config import Config, DataConfig
from gfl.data.coco import load_coco
from gfl.tools.doctor.report import check_dataset
from gfl.tools.doctor.write_clean import write_clean


@pytest.fixture
def spoilt(coco_set):
    """Five images, of which one is missing, one damaged and one of another size, and three unusable entries."""
    made = coco_set([(60, 40)] * 5, [(number, 7, [5, 5, 20, 20]) for number in range(5)])
    made.file(1).unlink()
    made.file(2).write_bytes(made.file(2).read_bytes()[:60])
    made.tree["images"][3]["width"] = 61
    made.tree["annotations"] += [{"id": 90, "image_id": 1}, "text"]
    made.tree["categories"].append({"id": "x", "name": "y"})
    made.tree["info"] = {"year": 2026}
    return made.save()


def test_the_rest_is_a_json_that_training_accepts(spoilt, tmp_path, refusal):
    out = str(tmp_path / "out.json")
    refusal(spoilt.load)
    counts = write_clean((spoilt.annotations, spoilt.images), out, DataConfig())
    assert counts == {"categories": (1, 2), "images": (2, 5), "annotations": (2, 7)}
    data = load_coco(out, spoilt.images)
    assert data.image_ids.tolist() == [900, 872]
    assert len(data.labels) == 2
    assert json.loads((tmp_path / "out.json").read_text())["info"] == {"year": 2026}
    assert out in refusal(write_clean, (spoilt.annotations, spoilt.images), out, DataConfig())  # which exists


def test_a_json_without_a_usable_image_is_refused(spoilt, tmp_path, refusal):
    for number in (0, 3, 4):
        spoilt.file(number).unlink()
    message = refusal(write_clean, (spoilt.annotations, spoilt.images), str(tmp_path / "out.json"), DataConfig())
    assert message.code == "nothing_left"
    assert not (tmp_path / "out.json").exists()


def test_images_that_the_config_makes_readable_stay(coco_set, tmp_path):
    made = coco_set([(60, 40)] * 2, [(number, 7, [5, 5, 20, 20]) for number in range(2)])
    made.file(0).write_bytes(cv2.imencode(".tif", np.eye(40, 60, dtype=np.float32))[1].tobytes())
    for bit_depth, left in ((0, 1), ((0.0, 1.0), 2)):
        out = str(tmp_path / f"{left}.json")
        config = DataConfig(bit_depth=bit_depth)
        assert write_clean((made.annotations, made.images), out, config)["images"] == (left, 2)


def test_a_json_without_a_box_is_refused_unless_it_never_had_any(coco_set, tmp_path, refusal):
    made, out = coco_set([(60, 40)] * 2), tmp_path / "out.json"
    made.file(0).unlink()  # which has the only box
    words = (made.annotations, made.images), str(out), DataConfig()
    assert refusal(write_clean, *words).code == "nothing_left"
    del made.tree["annotations"]
    made.save()
    assert write_clean(*words)["images"] == (1, 2)
    assert load_coco(str(out), made.images).file_names.tolist() == ["001.png"]


def test_of_entries_with_one_file_those_of_another_size_are_left_out(coco_set, tmp_path):
    """Training reads the file of each with the size of each."""
    made = coco_set()
    made.tree["images"].append(made.tree["images"][0] | {"id": 5, "width": 61})
    made.save()
    split, out = (made.annotations, made.images), str(tmp_path / "out.json")
    found = check_dataset(split, None, Config())
    assert found["exit_code"] == 2
    assert (found["splits"]["train"]["images"], found["splits"]["train"]["boxes"]) == (1, 1)
    write_clean(split, out, DataConfig())
    assert load_coco(out, made.images).image_ids.tolist() == [900]
