"""Every finding of the check is provoked by a made set and absent in a clean one."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from gfl.common.errors import UserError
from gfl.common.findings import name_lines
from gfl.config import Config, DataConfig, HeadConfig, ModelConfig
from gfl.data.coco import read_coco_json
from gfl.tools.doctor import images as pictures
from gfl.tools.doctor.annotations import examine
from gfl.tools.doctor.images import look_at, look_at_all
from gfl.tools.doctor.report import check_up, report

ROOT = Path(__file__).resolve().parent.parent
CONFIG = Config(data=DataConfig(short_side=128, long_side=256))
NAMES = {1: "cat", 2: "dog"}


@pytest.fixture
def clean(coco_set):
    """Two images and two classes, without anything to remark."""

    def build(name="train", width=128):
        boxes = [(0, 1, [10, 10, 40, 40]), (1, 2, [60, 30, 45, 50])]
        return coco_set([(width, 100), (120, width)], boxes, categories=NAMES, name=name)

    return build


def check(train, val=None):
    return check_up((train.annotations, train.images), (val.annotations, val.images) if val else None, CONFIG)


def found(checked, part="train"):
    return {entry["what"]: (entry["level"], list(entry["items"])) for entry in checked["findings"][part]}


def test_a_clean_set_has_no_findings(clean):
    checked = check(clean(), clean("val", width=130))
    assert checked["findings"] == {"train": [], "val": [], "fit": []}
    assert checked["exit_code"] == 0
    assert "nothing to remark" in report(checked)
    assert json.loads(json.dumps(checked, allow_nan=False)) == json.loads(json.dumps(checked))


def add(kind, **changes):
    """Append a copy of the first entry with other fields, under a new id."""
    return lambda tree: tree[kind].append(tree[kind][0] | {"id": 5} | changes)


def change(**changes):
    """Set fields of the first annotation."""
    return lambda tree: tree["annotations"][0].update(changes)


def add_group(tree):
    tree["categories"] += [{"id": 0, "name": "pet"}, {"id": 4, "name": "cow", "supercategory": "pet"}]


BOX = "annotations"
DEGENERATE = "boxes under 1 px or outside the image"
ABSENT = "images that are not in the folder"
JSON_CASES = [
    (add("images", id="x"), "error", "image entries of unusable id, file_name or size", ["number 2"]),
    (add("images", id=900), "error", "image ids that occur twice", [900]),
    (add("images"), "warning", "files listed twice", ["000.png"]),
    (add("images", file_name="no"), "error", ABSENT, ["no"]),
    (add("images", file_name="a\0"), "error", "image entries of unusable id, file_name or size", [5]),
    (add("images", file_name="../x"), "error", "image entries of unusable id, file_name or size", [5]),
    (add("categories", name=3), "error", "categories of unusable id or name", [5]),
    (add("categories", id=1, name="emu"), "error", "category ids that occur twice", [1]),
    (add("categories"), "warning", "class names that occur twice", ["cat"]),
    (add("categories", name="Background"), "warning", "names that are no class", ["Background"]),
    (add("categories", name="emu"), "warning", "classes without train boxes", ["emu"]),
    (add_group, "warning", "classes that only name a group", ["pet"]),
    (change(image_id=4), "error", "annotations with unknown image_id", [1]),
    (change(category_id=40), "error", "annotations with unknown category_id", [1]),
    (change(bbox=[1, 2, 3]), "error", "annotations whose bbox is not four numbers", [1]),
    (change(iscrowd=3), "error", "annotations with a wrong iscrowd or area", [1]),
    (lambda tree: tree[BOX].append(7), "error", "unusable annotations", ["number 2"]),
    (change(id=None), "warning", "annotations without a whole id", ["number 0"]),
    (change(id=2), "warning", "annotation ids that occur twice", [2]),
    (add(BOX), "warning", "annotations that repeat another", [5]),
    (add(BOX, bbox=[1, 1, 0.5, 9]), "warning", DEGENERATE, [5]),
    (add(BOX, bbox=[1, 1, float("nan"), 9]), "warning", DEGENERATE, [5]),
    (change(bbox=[-2, 10, 40, 40]), "warning", "boxes that reach outside the image", [1]),
    (add(BOX, iscrowd=1, bbox=[1, 1, 99, 99]), "ok", "crowd boxes", [5]),
    (lambda tree: tree.update(annotations=[]), "error", "boxes to learn or to find", []),
    (lambda tree: tree.pop(BOX), "error", "annotations", []),
]


@pytest.mark.parametrize(("spoil", "level", "what", "items"), JSON_CASES)
def test_a_fault_of_the_json_is_found_and_judged_as_load_coco_does(spoil, level, what, items, clean):
    made = clean()
    spoil(made.tree)
    checked = check(made.save())
    assert found(checked)[what] == (level, items)
    assert checked["exit_code"] == max(
        ["ok", "warning", "error"].index(e["level"]) for e in checked["findings"]["train"]
    )
    try:
        data = made.load()
    except UserError:
        assert checked["exit_code"] == 2
    else:
        assert (checked["exit_code"] == 2) == (not data.has_annotations or not len(data.labels))


@pytest.mark.parametrize("seed", range(120))
def test_what_load_coco_refuses_is_an_error_and_nothing_else(seed, clean):
    rng = np.random.default_rng(seed)
    made = clean()
    values = [
        None,
        -1,
        0,
        1,
        2,
        900,
        2**70,
        1.5,
        float("nan"),
        "",
        "cat",
        "000.png",
        "\ud800",
        "../x",
        [],
        [1],
        {},
        True,
    ]
    for _ in range(rng.integers(1, 4)):
        entries = made.tree[("images", "categories", "annotations")[rng.integers(3)]]
        place, value = int(rng.integers(len(entries))), values[rng.integers(len(values))]
        if rng.random() < 0.1:
            entries[place] = value
        elif isinstance(entries[place], dict):
            keys = sorted(entries[place])
            entries[place] = entries[place] | {keys[rng.integers(len(keys))]: value}
    tree = read_coco_json(made.save().annotations)
    findings, _ = examine(tree, made.annotations, made.images, "val")
    try:
        made.load()
        refused = False
    except UserError:
        refused = True
    assert refused == any(entry.level == "error" for entry in findings), findings


def test_all_faults_of_a_kind_are_listed_and_the_rest_is_still_checked(clean):
    made = clean()
    made.tree["annotations"] += [made.tree["annotations"][0] | {"id": 10 + n, "category_id": 50} for n in range(7)]
    made.tree["annotations"] += [made.tree["annotations"][0] | {"id": 30, "bbox": [0, 0, 0, 0]}]
    told = found(check(made.save()))
    assert told["annotations with unknown category_id"] == ("error", list(range(10, 17)))
    assert told["boxes under 1 px or outside the image"][1] == [30]


@pytest.mark.parametrize(("shift", "advice"), [(-1, "all ids seem one too low"), (1, "all ids seem one too high")])
def test_category_ids_that_are_off_by_one_are_recognised(shift, advice, clean):
    made = clean()
    for entry in made.tree["annotations"]:
        entry["category_id"] += shift
    (entry,) = [e for e in check(made.save())["findings"]["train"] if e["level"] == "error"]
    assert entry["advice"] == advice


def test_differing_categories_of_the_splits_are_told(clean):
    train, val = clean(), clean("val", width=130)
    val.tree["categories"][1]["name"] = "emu"
    told = found(check(train, val.save()), "val")
    assert told["classes that only one split has"] == ("error", ["without dog", "with emu"])
    val.tree["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    told = found(check(train, val.save()), "val")
    assert told["classes with another id in val"] == ("warning", ["cat 1 -> 2", "dog 2 -> 1"])


def test_a_val_split_without_boxes_is_a_warning_and_without_annotations_an_error(clean):
    train, val = clean(), clean("val", width=130)
    val.tree["annotations"] = []
    assert check(train, val.save())["exit_code"] == 1
    del val.tree["annotations"]
    assert check(train, val.save())["exit_code"] == 2


# Files


def photograph(path, *, quality=95, orientation=None, size=(100, 128)):
    """A JPEG of random blocks, perhaps with an EXIF orientation; `size` is the stored height and width."""
    blocks = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(cv2.resize(blocks, size[::-1], interpolation=cv2.INTER_CUBIC))
    exif = Image.Exif()
    if orientation:
        exif[pictures.EXIF_ORIENTATION] = orientation
    image.save(path, "JPEG", quality=quality, exif=exif)


@pytest.mark.parametrize(
    ("orientation", "json_size", "expected"),
    [
        (None, (100, 128), ""),
        (1, (100, 128), ""),
        (6, (128, 100), ""),  # the json has the upright size
        (6, (100, 128), "unrotated"),
        (8, (100, 128), "unrotated"),
        (3, (100, 128), "ambiguous"),
        (2, (100, 128), "ambiguous"),
    ],
)
def test_rotation_by_exif_is_told_where_the_boxes_may_not_fit(orientation, json_size, expected, tmp_path):
    photograph(tmp_path / "a.jpg", orientation=orientation)
    assert look_at(tmp_path / "a.jpg", json_size).rotation == expected


def test_a_square_image_that_is_rotated_is_ambiguous(tmp_path):
    photograph(tmp_path / "a.jpg", orientation=6, size=(90, 90))
    assert look_at(tmp_path / "a.jpg", (90, 90)).rotation == "ambiguous"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_a_truncated_image_is_noticed(share, kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    photograph(tmp_path / "a.jpg")
    cv2.imwrite(str(path), cv2.imread(str(tmp_path / "a.jpg")))
    content = path.read_bytes()
    assert look_at(path, (100, 128))[:2] == ("", "")
    path.write_bytes(content[: int(len(content) * share)])
    picture = look_at(path, (100, 128))
    assert picture.problem == "damaged" or picture.complaint  # older OpenCV reads it, and says so


def test_corrupt_data_that_the_decoder_reads_over_is_told(tmp_path, capfd):
    photograph(tmp_path / "a.jpg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    middle = len(content) * 2 // 3
    content[middle : middle + 40] = b"\xff\xd0" * 20  # restart markers where none belong
    (tmp_path / "a.jpg").write_bytes(content)
    picture = look_at(tmp_path / "a.jpg", (100, 128))
    assert picture.problem == ""
    assert "JPEG" in picture.complaint
    assert capfd.readouterr().err == ""


def test_faults_of_the_files_are_findings(clean):
    made = clean()
    made.file(0).write_bytes(made.file(0).read_bytes()[:200])
    made.tree["images"][1]["width"] += 1
    checked = check(made.save())
    assert found(checked)["damaged or unreadable images"] == ("error", ["000.png"])
    assert found(checked)["images of another size than the json's"] == ("error", ["001.png"])
    assert checked["exit_code"] == 2
    assert "damaged" in checked["findings"]["train"][0]["reasons"][0]


def test_rotated_and_corrupt_files_are_findings(clean):
    data = clean().load()
    rotated = {
        0: pictures.Picture(rotation="unrotated"),
        1: pictures.Picture(rotation="ambiguous", complaint="Corrupt"),
    }
    told = {e.what: (e.level, *e.items) for e in pictures.picture_findings(data, rotated)}
    assert told == {
        "images with corrupt parts": ("warning", "001.png"),
        "EXIF-rotated images, json's size unrotated": ("warning", "000.png"),
        "EXIF-rotated images, same size both ways": ("warning", "001.png"),
    }


def test_the_same_picture_is_found_in_both_splits_and_within_one(clean):
    train, val = clean(), clean("val", width=130)
    first = cv2.imread(str(train.file(0)))
    for made, name in ((train, "copy.bmp"), (val, "leak.bmp")):  # the same pixels in another format
        cv2.imwrite(str(Path(made.images) / name), first)
        made.tree["images"].append(train.tree["images"][0] | {"id": 5, "file_name": name})
        made.save()
    checked = check(train, val)
    assert found(checked)["images under several names"] == ("warning", ["000.png = copy.bmp"])
    assert found(checked, "val")["val images that are also in train"] == ("warning", ["leak.bmp = 000.png"])
    assert found(checked)["images without boxes"] == ("ok", [5])


def test_a_process_that_dies_is_one_line(clean, monkeypatch, refusal):
    monkeypatch.setattr(pictures, "look_at", lambda path, size: os.kill(os.getpid(), signal.SIGKILL))
    assert "000.png" in refusal(look_at_all, clean().load())


def test_the_report_fits_the_terminal_and_shows_no_control_characters(clean):
    made = clean()
    made.tree["images"][0]["file_name"] = "e\x1b[2Jmu.png"
    checked = check(made.save())
    lines = report(checked, width=100).splitlines()
    assert max(map(len, lines[1:])) <= 100
    assert all(line.isprintable() for line in lines)
    assert "      e?[2Jmu.png" in lines
    assert lines[-1].endswith("(exit code 2)")


@pytest.mark.parametrize(
    ("items", "width", "lines"),
    [
        ([7, 8, 9], 20, ["7, 8, 9"]),
        (["a b c", "d e f"], 10, ["a b c,", "d e f"]),  # no break within a name
        (["aaaa", "bbbb", "cccc", "dddd"], 12, ["aaaa, bbbb,", "cccc, dddd"]),
        (["aaaa", "bbbb", "cccc", "dddd", "eeee"], 12, ["aaaa, bbbb", "and 3 more"]),
        (["a" * 15 + "z" * 15, "b"], 12, ["aaaa...zzzz,", "b"]),
        (["a" * 15 + "z" * 15, "b" * 10, "c"], 12, ["aaaa...zzzz", "and 2 more"]),
        ([], 9, []),
    ],
)
def test_names_stay_whole_on_two_lines(items, width, lines):
    assert name_lines(items, width) == lines


@pytest.mark.parametrize("width", [80, 100])
def test_names_stand_below_their_finding_and_what_is_left_out_is_said(width, clean):
    made = clean()
    names = [f"a rather long name of an image {n:04}.jpg" for n in range(12)]
    made.tree["images"] += [made.tree["images"][0] | {"id": 50 + n, "file_name": name} for n, name in enumerate(names)]
    checked = check(made.save())
    lines = report(checked, width=width).splitlines()
    assert max(map(len, lines[2:])) <= width
    below = next(at for at, line in enumerate(lines) if "not in the folder" in line) + 1
    told = " ".join(line.strip() for line in lines[below : below + 2])
    shown = told.removesuffix(" more").split(" and ")[0].split(", ")
    assert shown == names[: len(shown)]
    assert told.endswith(f" and {12 - len(shown)} more")
    assert lines[-1] == "all names: add --json FILE"
    assert "--json" not in report(checked, width=width, hint=False)
    made.tree["images"] = made.tree["images"][:3]
    assert "--json" not in report(check(made.save()), width=width)


def test_a_folder_that_is_none_is_the_line_of_training(clean, refusal):
    made = clean()
    for folder in (made.annotations, Path(made.images) / "no"):
        line = refusal(check_up, (made.annotations, str(folder)), None, CONFIG)
        made.images = str(folder)
        assert line == refusal(made.load)


def test_a_folder_without_any_of_the_files_is_one_finding(clean, tmp_path):
    made = clean()
    (tmp_path / "empty").mkdir()
    checked = check_up((made.annotations, str(tmp_path / "empty")), None, CONFIG)
    (entry,) = checked["findings"]["train"]
    assert entry["advice"] == f"wrong folder? looked for {tmp_path / 'empty' / '000.png'}"
    assert entry["reasons"] == tuple(f"no file {tmp_path / 'empty' / name}" for name in ("000.png", "001.png"))
    assert "none of 2 images is usable" in report(checked)


def test_damaged_images_and_their_boxes_are_not_called_usable(clean):
    made = clean()
    made.file(0).write_bytes(made.file(0).read_bytes()[:200])
    checked = check(made)
    assert "usable: 1 of 2 images, with 1 boxes, 2 classes" in report(checked)
    assert checked["splits"]["train"]["classes"] == {"cat": 0, "dog": 1}


@pytest.mark.parametrize("wrong", [1, "x", None])
def test_annotations_of_a_discarded_image_entry_are_not_blamed(wrong, clean):
    made = clean()
    first, second = made.tree["images"]
    second["id"] = first["id"] if wrong == 1 else wrong
    told = found(check(made.save()))
    assert "annotations with unknown image_id" not in told
    assert told["annotations whose image entry has a wrong id"] == ("ok", [2])
    made.tree["annotations"][0]["image_id"] = 12345  # one more unknown id than entries without their own
    assert found(check(made.save()))["annotations with unknown image_id"][0] == "error"


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        ({}, "the config has 16: enough"),
        ({"reg_max": 1}, "the config has 1: raise model.head.reg_max"),
        ({"box": "dirac"}, "the config has 16: not used by model.head.box=dirac"),
    ],
)
def test_the_fit_ends_with_a_verdict_on_reg_max(head, verdict, clean):
    made = clean()
    config = replace(CONFIG, model=ModelConfig(head=HeadConfig(**head)))
    assert verdict in report(check_up((made.annotations, made.images), None, config), width=140)


def test_the_command_ends_with_the_code_of_the_worst_finding(clean, tmp_path):
    made = clean()

    def doctor(*words):
        command = [sys.executable, ROOT / "scripts/doctor.py", made.annotations, made.images, *words]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)

    warned = doctor("data.short_side=128", "model.head.reg_max=1", "--json", tmp_path / "out.json")
    assert (warned.returncode, warned.stderr) == (1, "")
    assert json.loads((tmp_path / "out.json").read_text())["exit_code"] == 1
    Path(made.annotations).write_text("{")
    unreadable = doctor()
    assert unreadable.returncode == 2
    assert unreadable.stderr.startswith(f"error: {made.annotations}: not valid json")
    assert unreadable.stderr.count("\n") == 1
