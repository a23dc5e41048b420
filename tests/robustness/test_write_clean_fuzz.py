"""A json that `--write-clean` writes passes the doctor and trains, whatever was wrong with the one before."""

import os
import random

import annotation_cases
import annotation_mutators
import pytest

from gfl.common.errors import UserError
from gfl.config import Config, DataConfig
from gfl.data.coco import load_coco
from gfl.data.dataset import CocoDataset
from gfl.tools.doctor.report import check_dataset
from gfl.tools.doctor.write_clean import write_clean

pytestmark = pytest.mark.robustness

CONFIG = Config(data=DataConfig(short_side=64, long_side=64))


def write_spoilt(folder, seed):
    """A mutated json and, for most seeds, an image that is missing, cut off or of another size; what was done."""
    rng = random.Random(seed)
    if seed % 2:
        annotation_cases.write_images(folder / "images")
        content, done = annotation_mutators.mutate(annotation_cases.coco_tree(), rng)
        (folder / "instances.json").write_bytes(content)
    else:
        done = annotation_cases.write_annotations(folder, rng)
    path, other = rng.sample([folder / "images" / f"{number}.png" for number in range(3)], 2)
    fault = rng.choice(["none", "missing", "cut off", "another size"])
    if fault == "missing":
        path.unlink()
    elif fault == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    elif fault == "another size":
        path.write_bytes(other.read_bytes())
    return f"{done}; {fault}"


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_the_doctor_and_training_accept_what_was_cleaned(first, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set())  # images are read in this process
    cleaned = 0
    for seed in range(first, first + 50):
        folder = tmp_path / str(seed)
        folder.mkdir()
        done = write_spoilt(folder, seed)
        split, out = (str(folder / "instances.json"), str(folder / "images")), str(folder / "clean.json")
        try:
            counts = write_clean(split, out, CONFIG.data)
        except UserError:
            continue
        if "annotations" not in counts:  # a split for detection only
            continue
        assert check_dataset((out, split[1]), None, CONFIG)["exit_code"] < 2, (seed, done)
        data = load_coco(out, split[1])
        dataset = CocoDataset(data, CONFIG.data, training=True)
        assert len([dataset[0, index] for index in range(len(data))]) == counts["images"][0], (seed, done)
        cleaned += 1
    assert cleaned > 10
