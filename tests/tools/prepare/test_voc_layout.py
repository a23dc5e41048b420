"""Folders as they are found: which image an xml belongs to, which split each is in, and what is refused."""

import re
import shlex

import pytest
from layouts import voc_object, voc_xml, write, write_image, write_voc

from gfl.tools.prepare.voc import read_voc
from gfl.tools.prepare.voc_folders import VocFolders
from gfl.tools.prepare.voc_layout import find_splits, paired_part, whole_set

EXAMPLES = ("00", "01", "02")


def put(root, image_folder, xml_folder, names=EXAMPLES, suffix=".jpg"):
    """Images of 20 x 10, whose xml calls them otherwise, on another machine; the class is the image's path."""
    for name in names:
        path = f"{image_folder}/{name}"
        write_image(root / f"{path}{suffix}", 20, 10)
        text = voc_xml(20, 10, voc_object(path, 1, 1, 5, 5)).replace("stale.jpg", "C:\\pictures\\old")
        write(root / f"{xml_folder}/{name}.xml", text)


def found(root, images=None, annotations=None, wanted=None):
    """Split -> path of each image below `root`, each of which must have the boxes of its own xml."""
    parts, divided = find_splits(root, images, annotations, wanted)
    splits = read_voc(parts)
    for split in splits:
        for image in split.images:
            path = (split.folder / image.file_name).relative_to(root).with_suffix("").as_posix()
            assert [box.category.removeprefix("./") for box in image.boxes] == [path]
    result = {
        split.name: sorted((split.folder / image.file_name).relative_to(root).as_posix() for image in split.images)
        for split in splits
    }
    return result if divided else result[parts[0].name]


def paths(*folders, suffix=".jpg"):
    return sorted(f"{folder}/{name}{suffix}".removeprefix("./") for folder in folders for name in EXAMPLES)


@pytest.mark.parametrize(
    ("image_folder", "xml_folder"),
    [("images", "annotations"), ("set", "set"), ("photos/day", "notes/day"), ("data/jpg", "labels"), (".", "xml")],
)
def test_the_folders_of_images_and_xml_files_are_found(tmp_path, image_folder, xml_folder):
    put(tmp_path, image_folder, xml_folder, suffix=".JPG")
    assert found(tmp_path) == paths(image_folder, suffix=".JPG")
    assert found(tmp_path, images=image_folder) == found(tmp_path, annotations=xml_folder) == found(tmp_path)


def test_all_in_one_folder(tmp_path):
    for name in EXAMPLES:
        write_image(tmp_path / f"{name}.png", 20, 10)
        write(tmp_path / f"{name}.xml", voc_xml(20, 10, voc_object(name, 1, 1, 5, 5)))
    assert found(tmp_path) == found(tmp_path, ".", ".") == [f"{name}.png" for name in EXAMPLES]


@pytest.mark.parametrize("xml_folder", ["annotations", "images"])
def test_the_same_names_in_two_sub_folders_are_not_mixed_up(tmp_path, xml_folder):
    for part in ("a", "b"):
        put(tmp_path, f"images/{part}", f"{xml_folder}/{part}")
    (tmp_path / "images" / "a" / "00.jpg").unlink()
    (tmp_path / xml_folder / "b" / "01.xml").unlink()
    parts, _ = find_splits(tmp_path, None, None, None)
    assert all(any(f"{alone}" in note for note in parts[0].notes) for alone in ("a/00.xml", "b/01.jpg"))
    assert found(tmp_path) == [path for path in paths("images/a", "images/b") if path[7:11] not in ("a/00", "b/01")]


@pytest.mark.parametrize(
    ("train", "val", "name"),
    [
        (("train", "train"), ("valid", "valid"), "valid"),
        (("train/images", "train/xml"), ("validation/images", "validation/xml"), "validation"),
        (("images/train", "annotations/train"), ("images/val", "annotations/val"), "val"),
        (("train", "annotations/train"), ("test", "annotations/test"), "test"),
        (("Train", "Train"), ("Valid", "Valid"), "valid"),
        (("images/Train", "annotations/Train"), ("images/TEST", "annotations/TEST"), "test"),
    ],
)
def test_folders_that_are_named_like_splits_are_splits(tmp_path, refusal, train, val, name):
    put(tmp_path, *train)
    put(tmp_path, *val)
    assert found(tmp_path) == {"train": paths(train[0]), name: paths(val[0])}
    assert found(tmp_path, wanted=["train"]) == {"train": paths(train[0])}
    assert refusal(find_splits, tmp_path, None, None, ["holdout"]).code == "no_splits"


def test_what_is_in_no_folder_of_a_split_is_reported(tmp_path):
    put(tmp_path, "train", "train")
    put(tmp_path, "test", "test")
    put(tmp_path, "more", "more")
    write_image(tmp_path / "val" / "00.jpg", 20, 10)  # without xml it is no split
    parts, divided = find_splits(tmp_path, None, None, None)
    assert divided
    assert [part.name for part in parts] == ["train", "test"]
    assert any("more/00.xml" in note for note in parts[0].notes)


def command_words(message):
    return shlex.split(re.search(r"python (scripts/to_coco\.py voc .*)$", message)[1])[2:]


def test_splits_in_folders_of_their_own_are_not_divided_anew(tmp_path, refusal):
    for split in ("train", "valid"):
        put(tmp_path, f"{split}/images", f"{split}/xml")
    message = refusal(whole_set, tmp_path, None, None)
    assert message.code == "has_val"
    assert command_words(message) == [str(tmp_path)]
    assert whole_set(tmp_path / "train", None, None).name == "all"


def test_what_can_be_read_in_two_ways_is_refused_with_a_command(tmp_path, refusal):
    """Pictures and their masks, which have the same names; and two sets, neither of which is a split."""
    put(tmp_path / "masks", "images", "xml")
    for name in EXAMPLES:
        write_image(tmp_path / "masks" / "masks" / f"{name}.png", 20, 10)
    put(tmp_path / "two", "first/images", "first/xml")
    put(tmp_path / "two", "second/images", "second/xml", names=("03",))
    for name, images, xml in (("masks", "images", "xml"), ("two", "first/images", "first/xml")):
        message = refusal(find_splits, tmp_path / name, None, None, None)
        assert message.code == "several_folders"
        assert command_words(message) == [str(tmp_path / name), "--images", images, "--annotations", xml]
        assert found(tmp_path / name, images, xml) == paths(images)
    put(tmp_path / "mixed", "more", "more")
    put(tmp_path / "mixed", "images", "xml", names=("03", "04"))
    assert "images with xml (2 pairs)" in refusal(find_splits, tmp_path / "mixed", None, None, None)
    default = tmp_path / "default"
    put(default, "JPEGImages", "Annotations")
    put(default, "SegmentationClass", "elsewhere")
    assert found(default) == paths("JPEGImages")  # these names are the devkit's


def test_links_to_a_folder_around_them_are_left_out_and_others_are_followed(tmp_path):
    put(tmp_path / "elsewhere", "linked", "linked")
    root = tmp_path / "set"
    put(root, "own", "own")
    (root / "linked").symlink_to(tmp_path / "elsewhere" / "linked")
    for name in ("again", "own/again"):  # with two of them, each folder would be there 2^40 times
        (root / name).symlink_to(root)
    assert found(root) == paths("linked", "own")


def test_an_error_says_what_the_folder_has(tmp_path, refusal):
    write_voc(tmp_path / "kit" / "VOC2007")
    message = refusal(find_splits, tmp_path / "kit", None, None, None)
    assert command_words(message) == [str(tmp_path / "kit" / "VOC2007")]
    put(tmp_path / "set", "jpg", "xml")
    assert "jpg (0 xml, 3 images)" in refusal(find_splits, tmp_path / "set", "images", "xml", None)
    assert refusal(find_splits, tmp_path / "set", "images", None, None).code == "no_folder"
    for path in (tmp_path / "set" / "xml").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    assert refusal(find_splits, tmp_path / "set", None, None, None).code == "no_pairs"
    assert refusal(find_splits, tmp_path / "none", None, None, None).code == "no_folder"


def test_lists_are_splits_unless_there_is_only_one(tmp_path, refusal):
    put(tmp_path, "JPEGImages", "Annotations")
    lists = tmp_path / "ImageSets" / "Main"
    write(lists / "default.txt", "01\n00\n")
    write(lists / "cat_train.txt", "01 1\n")
    assert found(tmp_path) == ["JPEGImages/00.jpg", "JPEGImages/01.jpg"]
    write(lists / "trainval.txt", "02\n")
    message = refusal(find_splits, tmp_path, None, None, None)
    assert message.code == "no_splits"
    assert command_words(message) == [str(tmp_path), "--splits", "trainval", "default"]
    both = found(tmp_path, wanted=["trainval", "default"])
    assert both == {"trainval": ["JPEGImages/02.jpg"], "default": ["JPEGImages/00.jpg", "JPEGImages/01.jpg"]}


def test_lists_that_are_named_like_those_of_one_class_are_splits_when_they_are_wanted(tmp_path, refusal):
    put(tmp_path, "JPEGImages", "Annotations")
    for name, line in (("fold1_train", "00\n"), ("fold1_val", "01\n")):
        write(tmp_path / "ImageSets" / "Main" / f"{name}.txt", line)
    folds = {"fold1_train": ["JPEGImages/00.jpg"], "fold1_val": ["JPEGImages/01.jpg"]}
    assert found(tmp_path, wanted=["fold1_train", "fold1_val"]) == folds
    words = command_words(refusal(find_splits, tmp_path, None, None, None))  # rather than not used
    assert words == [str(tmp_path), "--splits", *folds]
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "02\n")
    assert found(tmp_path, wanted=["fold1_train", "fold1_val"]) == folds
    assert found(tmp_path) == ["JPEGImages/02.jpg"]


def test_an_image_is_not_paired_with_the_xml_of_another_letter_case(tmp_path):
    write_voc(tmp_path)
    write_image(tmp_path / "JPEGImages" / "A.png", 20, 10)
    part = paired_part("all", VocFolders(tmp_path))
    assert part.names == ["a", "b"]
    (note,) = part.notes
    assert "A.png" in note


def test_folders_like_splits_that_are_not_at_one_level_are_named(tmp_path):
    for folder in ("train_zip/train", "test_zip/Testing"):
        put(tmp_path, folder, folder)
    (part,), divided = find_splits(tmp_path, None, None, None)
    assert not divided
    assert any("test_zip/Testing" in note and "train_zip/train" in note for note in part.notes)
    put(tmp_path / "other", "images", "xml")
    assert find_splits(tmp_path / "other", None, None, None)[0][0].notes == ()
