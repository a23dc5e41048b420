"""From COCO-format json to other layouts and back, and the command."""

import json
import shlex
import sys

import cv2
import numpy as np
import pytest
import torch
from layouts import (
    voc_object,
    voc_tree,
    voc_xml,
    write,
    write_image,
    write_voc,
    write_yolo,
    yolo_tree,
)
from printed_commands import WORDS, printed_commands, run_as_printed, write_checkout

from gfl.config_file import load_config
from gfl.data.coco import image_path, load_coco
from gfl.data.image_files import read_image
from gfl.data.loader import load_training_data
from gfl.tools.prepare.to_coco import write_jsons


@pytest.fixture
def original(tmp_path):
    """A COCO-format json of random boxes on whole pixels; its images are in set/images."""
    rng = np.random.default_rng(5)
    categories = [{"id": number, "name": name} for number, name in enumerate(("ant", "bee", "cow"), 1)]
    images, annotations = [], []
    for number in range(1, 9):
        width, height = (int(value) for value in rng.integers(30, 300, 2))
        images.append({"id": number, "file_name": f"{number:03}.jpg", "width": width, "height": height})
        write_image(tmp_path / "set" / "images" / f"{number:03}.jpg", width, height)
        for _ in range(number % 4):
            x, y = int(rng.integers(0, width - 2)), int(rng.integers(0, height - 2))
            box = [x, y, int(rng.integers(2, width - x + 1)), int(rng.integers(2, height - y + 1))]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "bbox": box, "area": box[2] * box[3]})
            annotations[-1] |= {"category_id": int(rng.integers(1, 4)), "iscrowd": 0}
    assert len({entry["category_id"] for entry in annotations}) == 3
    return {"images": images, "annotations": annotations, "categories": categories}


def boxes_by_image(tree):
    """Each image with the (category id, x, y, width, height) of its boxes."""
    boxes = {image["id"]: [] for image in tree["images"]}
    for entry in tree["annotations"]:
        boxes[entry["image_id"]].append((entry["category_id"], *entry["bbox"]))
    return [(image, boxes[image["id"]]) for image in tree["images"]]


def assert_equal(tree, original, folder, path):
    assert tree["images"] == original["images"]
    assert tree["categories"] == original["categories"]
    for ours, theirs in zip(tree["annotations"], original["annotations"], strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=2e-3)
        assert ours["area"] == pytest.approx(theirs["area"], rel=1e-3)
        assert {**ours, "bbox": 0, "area": 0} == {**theirs, "bbox": 0, "area": 0}
    write_jsons({path: tree})
    data = load_coco(str(path), str(folder))
    assert len(data.labels) == len(original["annotations"])
    assert data.notes == ()
    for index in range(len(data)):
        assert read_image(image_path(data, index)).shape[:2] == tuple(data.sizes[index])


def test_coco_to_voc_and_back(original, tmp_path):
    root, names = tmp_path / "set", ("ant", "bee", "cow")
    (root / "images").rename(root / "JPEGImages")
    for image, boxes in boxes_by_image(original):
        objects = [voc_object(names[c - 1], x + 1, y + 1, x + width, y + height) for c, x, y, width, height in boxes]
        text = voc_xml(image["width"], image["height"], *objects)
        write(root / "Annotations" / f"{image['id']:03}.xml", text)
    write(root / "ImageSets" / "Main" / "train.txt", "\n".join(f"{number:03}" for number in (3, 1, 2, 8, 6, 5, 4, 7)))
    assert_equal(voc_tree(root), original, root / "JPEGImages", tmp_path / "out.json")


def test_coco_to_yolo_and_back(original, tmp_path):
    root = tmp_path / "set"
    for image, boxes in boxes_by_image(original):
        size = np.array([image["width"], image["height"]] * 2)
        lines = [
            " ".join([str(c - 1), *(f"{v:.6f}" for v in np.array([x + w / 2, y + h / 2, w, h]) / size)])
            for c, x, y, w, h in boxes
        ]
        if lines:
            write(root / "labels" / f"{image['id']:03}.txt", "\n".join(lines))
    write(root / "data.yaml", "names: [ant, bee, cow]\ntrain: images")
    assert_equal(yolo_tree(root / "data.yaml"), original, root / "images", tmp_path / "out.json")


# The command


@pytest.fixture
def command(monkeypatch, capsys, script):
    """Call the script with these words on its command line, in this process; returns what it prints."""
    to_coco = script("to_coco")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["to_coco.py", *map(str, words)])
        to_coco.main(to_coco.parse_args())
        return capsys.readouterr().out

    return call


def test_the_command_writes_the_splits_and_prints_the_next_commands(command, refusal, tmp_path):
    yolo, out = write_yolo(tmp_path / "YOLO"), tmp_path / "out"
    images = yolo.parent / "images" / "train"
    printed = command("yolo", yolo, "--out", out)
    assert f"python scripts/doctor.py {out}/instances_train.json {images}" in printed
    assert f"configs/own_data.yaml data.train.annotations={out}/instances_train.json" in printed
    assert f"data.val.images={images}" in printed
    assert load_coco(f"{out}/instances_val.json", str(images)).class_names == ("cat", "dog")
    assert command("yolo", yolo, "--out", out) == printed  # the same again is no error
    (out / "instances_val.json").write_text("{}")
    message = refusal(command, "yolo", yolo, "--out", out)
    assert str(out / "instances_val.json") in message
    assert message.code == "file_exists"


def test_the_command_converts_voc_with_the_given_classes(command, tmp_path):
    words = ["--splits", "train", "--classes", "dog", "cat", "cow", "--out", tmp_path]
    printed = command("voc", write_voc(tmp_path / "VOC"), *words)
    assert "1 difficult" in printed
    tree = json.loads((tmp_path / "instances_train.json").read_text())
    assert [entry["name"] for entry in tree["categories"]] == ["dog", "cat", "cow"]
    assert [entry["category_id"] for entry in tree["annotations"]] == [2, 1]


def test_the_command_writes_all_splits_or_none(command, refusal, tmp_path):
    voc, yolo = write_voc(tmp_path / "VOC"), write_yolo(tmp_path / "YOLO")
    file, out = write(tmp_path / "taken", "a file"), tmp_path / "out"
    assert str(file) in refusal(command, "yolo", yolo, "--out", file)
    lists = ("--splits", "train", "val")
    assert "val.txt" in refusal(command, "voc", voc, *lists, "--out", out)  # although train can be read
    assert "none.yaml" in refusal(command, "yolo", tmp_path / "none.yaml", "--out", out)
    assert not out.exists()


def test_the_printed_commands_run_as_they_are_printed(command, tmp_path, monkeypatch):
    """The check does; tests/robustness/test_printed_commands.py also trains."""
    write_checkout(tmp_path)
    monkeypatch.chdir(tmp_path)
    check, train = printed_commands(command(*WORDS))
    assert run_as_printed(check, tmp_path).returncode in (0, 1)  # it may warn
    _, _, path, *overrides = shlex.split(train)
    data = load_training_data(load_config(path, overrides), torch.device("cpu"))
    assert (len(data.train), len(data.val)) == (2, 1)


def write_photographs(root):
    """Ten pairs in photos/day and notes/day, whose suffixes differ in case, and one file of each kind alone."""
    for number in range(10):
        write_image(root / "photos" / "day" / f"{number:02}a.jpg", 20, 10)
        write(root / "notes" / "day" / f"{number:02}A.XML", voc_xml(20, 10, voc_object("cat", 1, 1, 5, 5)))
    write_image(root / "photos" / "alone.jpg", 20, 10)
    write(root / "notes" / "orphan.xml", voc_xml(20, 10))
    return root


def names_of(folder, splits=("train", "val")):
    trees = [json.loads((folder / f"instances_{split}.json").read_text()) for split in splits]
    return [[image["file_name"] for image in tree["images"]] for tree in trees]


def test_the_command_divides_a_set_without_splits(command, refusal, tmp_path):
    root = write_photographs(tmp_path / "wild")
    printed = command("voc", root)
    assert all(str(root / name) in printed for name in ("photos/alone.jpg", "notes/orphan.xml"))
    names = names_of(root / "coco")
    assert [len(files) for files in names] == [8, 2]
    assert sorted(names[0] + names[1]) == [f"day/{number:02}a.jpg" for number in range(10)]
    words = ["voc", root, "--images", "photos", "--annotations", "notes", "--val-share"]
    command(*words, "0.2")  # writes the same
    assert refusal(command, *words, "0.2", "--seed", "4").code == "file_exists"
    command(*words, "0.4", "--out", root / "other", "--splits", "a", "b")
    assert [len(files) for files in names_of(root / "other", ("a", "b"))] == [6, 4]
    assert "10 images" in command(*words, "0", "--splits", "all")
    assert refusal(command, *words, "0.2", "--splits", "all").code == "names"
    assert refusal(command, *words, "0.01", "--out", root / "none").code == "empty_split"
    assert not (root / "none").exists()


def test_the_command_divides_a_yolo_set_that_has_only_train(command, refusal, tmp_path):
    source = write_yolo(tmp_path)
    for number in range(8):
        write_image(tmp_path / "images" / "train" / f"{number}.png", 20, 10)
        write(tmp_path / "labels" / "train" / f"{number}.txt", f"{number % 2} 0.5 0.5 0.5 0.4\n")
    source.write_text("names: [cat, dog]\ntrain: images/train\n")
    command("yolo", source)
    assert [len(files) for files in names_of(tmp_path / "coco")] == [8, 2]
    source.write_text("names: [cat, dog]\ntrain: images/train\nval: images\n")
    words = ["yolo", source, "--val-share", "0.3", "--out", tmp_path / "b"]
    assert refusal(command, *words).code == "has_val"
    command(*words, "--splits", "train", "holdout")
    assert [len(files) for files in names_of(tmp_path / "b", ("train", "holdout"))] == [7, 3]


def test_near_duplicates_stay_in_one_split(command, refusal, tmp_path):
    """Five scenes with three copies each; to divide splits that exist is refused."""
    for scene in range(5):
        pixels = cv2.resize(np.random.default_rng(scene).integers(0, 255, (12, 16, 3), np.uint8), (160, 120))
        for copy in range(3):
            size = (160 // (copy + 1), 120)
            cv2.imwrite(str(tmp_path / f"{scene}{copy}.png"), cv2.resize(pixels, size))
            write(tmp_path / f"{scene}{copy}.xml", voc_xml(*size, voc_object("cat", 1, 1, 5, 5)))
    command("voc", tmp_path, "--near-duplicates", "--val-share", "0.4")
    train, val = ({name[0] for name in files} for files in names_of(tmp_path / "coco"))
    assert (len(train), len(val)) == (3, 2)
    assert not train & val
    assert refusal(command, "voc", write_voc(tmp_path / "VOC"), "--splits", "train", "--near-duplicates").code == (
        "not_divided"
    )
