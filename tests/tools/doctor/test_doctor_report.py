"""The complete check of a data set, its report and the command."""

import json
import shlex
import sys
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from gfl.config import AssignConfig, Config, DataConfig, HeadConfig, ModelConfig
from gfl.tools.doctor.report import check_dataset, format_report

CONFIG = Config(data=DataConfig(short_side=128, long_side=256))


@pytest.fixture
def clean(coco_set):
    """Two images and two classes without findings."""

    def build(name="train", width=128):
        boxes = [(0, 1, [10, 10, 40, 40]), (1, 2, [60, 30, 45, 50])]
        return coco_set([(width, 100), (120, width)], boxes, categories={1: "cat", 2: "dog"}, name=name)

    return build


def check(train, val=None, config=CONFIG):
    return check_dataset((train.annotations, train.images), (val.annotations, val.images) if val else None, config)


def test_a_clean_set_has_no_findings(clean):
    result = check(clean(), clean("val", width=130))
    assert result["findings"] == {"train": [], "val": [], "fit": []}
    assert result["exit_code"] == 0
    assert json.loads(json.dumps(result, allow_nan=False))["splits"]["train"]["classes"] == {"cat": 1, "dog": 1}


def test_findings_of_all_parts_are_collected(clean):
    train, val = clean(), clean("val", width=130)
    train.tree["categories"].append({"id": 3, "name": "emu"})
    train.tree["images"].append(train.tree["images"][0] | {"id": 5, "file_name": "copy.png"})
    train.file(2).write_bytes(val.file(0).read_bytes())
    train.tree["images"][2]["width"] = 130
    result = check(train.save(), val)
    items = {part: [list(entry["items"]) for entry in entries] for part, entries in result["findings"].items()}
    assert items == {"train": [[5], ["emu"]], "val": [["without emu"], ["000.png = copy.png"]], "fit": []}
    assert result["exit_code"] == 2


def test_damaged_images_and_their_boxes_are_not_usable(clean):
    made = clean()
    made.file(0).write_bytes(made.file(0).read_bytes()[:200])
    result = check(made)
    train = result["splits"]["train"]
    assert (train["images_in_json"], train["images"], train["boxes"]) == (2, 1, 1)
    assert train["classes"] == {"cat": 0, "dog": 1}
    assert "1 of 2 images" in format_report(result)


@pytest.mark.parametrize("width", [80, 100])
def test_the_report_fits_the_width_and_says_what_it_omits(width, clean):
    made = clean()
    names = ["e\x1b[2Jmu.png", *(f"a rather long name of an image {n:04}.jpg" for n in range(12))]
    made.tree["images"] += [made.tree["images"][0] | {"id": 50 + n, "file_name": name} for n, name in enumerate(names)]
    result = check(made.save())
    *lines, command = format_report(result, width=width).splitlines()
    assert max(map(len, lines[2:])) <= width
    assert command.startswith("next: ")  # is not broken, to be pasted
    assert all(line.isprintable() for line in lines)
    first = next(at for at, line in enumerate(lines) if line.startswith("      e?[2Jmu.png"))
    listed = " ".join(line.strip() for line in lines[first : first + 2])
    shown = listed.split(" and ")[0].split(", ")
    assert shown[1:] == names[1 : len(shown)]
    assert listed.endswith(f" and {13 - len(shown)} more")
    assert "--json" in lines[-1]
    assert "--json" not in format_report(result, width=width, hint=False)
    made.tree["images"] = made.tree["images"][:3]
    assert "--json" not in format_report(check(made.save()), width=width)  # one name is never omitted


def test_the_commands_it_names_leave_no_error(clean, script, monkeypatch):
    """Names first, since what is left out next are the images that then have no file."""
    made = clean()
    made.tree["images"][1]["file_name"] = "a folder\\001.PNG"
    made.tree["images"].append(made.tree["images"][0] | {"id": 50, "file_name": "gone.png"})
    made.save()
    doctor, options = script("doctor"), []
    while (result := check(made))["exit_code"] == 2:
        (command,) = (line for line in format_report(result, width=80).splitlines() if line.startswith("next: "))
        _, *words = shlex.split(command.removeprefix("next: "))
        monkeypatch.setattr(sys, "argv", words)
        with suppress(SystemExit):
            doctor.main(doctor.parse_args())
        options.append(words[-2])
        made.annotations = words[-1]
    assert options == ["--fix-names", "--write-clean"]
    assert result["splits"]["train"]["images"] == 2


def test_a_split_without_usable_images_is_reported(clean):
    train, val = clean(), clean("val", width=130)
    for number in range(2):
        train.file(number).unlink()
    result = check(train, val)
    assert result["splits"]["train"] | {"annotations": "", "folder": ""} == {
        "annotations": "",
        "folder": "",
        "images_in_json": 2,
        "images": 0,
        "boxes": 0,
        "classes": {},
    }
    assert result["fit"] is None
    assert "none of 2 images" in format_report(result)


def test_a_missing_folder_is_refused_as_in_training(clean, refusal):
    made = clean()
    for folder in (made.annotations, str(Path(made.images) / "no")):
        made.images = folder
        assert refusal(check, made) == refusal(made.load)


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        ({}, "16: enough"),
        ({"reg_max": 1}, "1: raise model.head.reg_max"),
        ({"box": "dirac"}, "not used by model.head.box=dirac"),
    ],
)
def test_the_report_has_a_verdict_on_reg_max(head, verdict, clean):
    result = check(clean(), config=replace(CONFIG, model=ModelConfig(head=HeadConfig(**head))))
    assert verdict in format_report(result, width=140)


def test_the_report_goes_without_what_is_not_known_before_training(clean):
    result = check(clean(), config=replace(CONFIG, assign=AssignConfig(kind="tal")))
    text = format_report(result, width=140)
    assert result["exit_code"] == 0
    assert "tal chooses" in text
    assert "points per object:" not in text


def test_the_command_exits_with_the_code_of_the_worst_finding(clean, script, tmp_path, capsys):
    made = clean()
    args = Namespace(
        fix_names=None,
        write_clean=None,
        no_copies=None,
        near_duplicates=False,
        annotations=made.annotations,
        images=made.images,
        val=None,
        config=None,
        json=tmp_path / "out.json",
    )
    args.overrides = ["data.short_side=128", "model.head.reg_max=1"]
    with pytest.raises(SystemExit) as end:
        script("doctor").main(args)
    assert end.value.code == 1
    assert json.loads(args.json.read_text())["exit_code"] == 1
    assert "exit code 1" in capsys.readouterr().out
