"""Names that do not exist, and the files they mean."""

import json
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from gfl.data.coco import load_coco
from gfl.data.file_names import FileSpellings, find_spellings, fix_names_command, write_clean_command, write_fixed_names

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def files(tmp_path):
    for name in ("sub/a b.png", "sub/\u00e9.png", "sub/Upper.JPG", "x/same.png", "y/same.png", "100%25.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sub\\a b.png", "sub/a b.png"),
        ("sub/a%20b.png", "sub/a b.png"),
        (unicodedata.normalize("NFD", "sub/\u00e9.png"), "sub/\u00e9.png"),
        ("SUB/upper.jpg", "sub/Upper.JPG"),
        ("a b.png", "sub/a b.png"),
        ("C:\\data\\images\\a b.png", "sub/a b.png"),
        ("/mnt/../data/a%20b.png", "sub/a b.png"),
        ("100%.png", "100%25.png"),
        ("y\\same.png", "y/same.png"),
        ("https://bucket.example.org/p/a%20b.png?X-Amz=1&s=2#top", "sub/a b.png"),
        ("/data/local-files/?d=images/a%20b.png", "sub/a b.png"),  # of Label Studio
        ("same.png", None),  # two of them
        ("none.png", None),
        ("", None),
    ],
)
def test_a_file_is_found_by_other_spellings_if_it_is_the_only_one(files, name, file):
    assert FileSpellings(str(files)).find(name) == file


def test_letter_case_tells_files_apart(files):
    (files / "sub" / "upper.jpg").touch()
    spellings = FileSpellings(str(files))
    assert spellings.find("sub\\upper.jpg") == "sub/upper.jpg"
    assert spellings.find("sub/UPPER.jpg") is None


def test_a_link_to_nothing_is_no_file(coco_set, refusal):
    made = coco_set()
    made.file(0).unlink()
    made.file(0).symlink_to("/nowhere/000.png")
    assert FileSpellings(made.images).find("000.png") is None
    assert "links" in refusal(made.load)


def test_addresses_without_a_file_are_to_be_downloaded(coco_set, refusal):
    made = coco_set()
    made.tree["images"][0]["file_name"] = "https://example.org/none.png"
    assert "download" in refusal(made.save().load)


def test_links_in_a_circle_end(files):
    (files / "sub" / "loop").symlink_to(files, target_is_directory=True)
    assert FileSpellings(str(files)).find("a b.png") == "sub/a b.png"


def test_one_file_does_not_stand_for_two_names(files):
    assert find_spellings(str(files), ["cam1/a b.png", "cam2/a b.png"]) == {}
    assert find_spellings(str(files), ["cam1/a b.png"], ["sub/a b.png"]) == {}
    assert find_spellings(str(files), ["cam1/a b.png"], ["x/same.png"]) == {"cam1/a b.png": "sub/a b.png"}


@pytest.mark.parametrize("name", ["/home/someone/images/000.png", "../images/000.png"])
def test_names_that_lead_out_of_the_folder_are_fixed_too(coco_set, refusal, tmp_path, name):
    made = coco_set()
    made.tree["images"][0]["file_name"] = name
    assert "--fix-names" in refusal(made.save().load)
    assert write_fixed_names(made.annotations, made.images, str(tmp_path / "out.json")) == ({name: "000.png"}, [])


@pytest.fixture
def misspelt(coco_set):
    """Three images: one is found under another spelling, one nowhere, one is right."""
    made = coco_set([(60, 40)] * 3)
    made.tree["images"][0]["file_name"] = "elsewhere\\000.PNG"
    made.tree["images"][1]["file_name"] = "gone.png"
    return made.save()


def test_the_error_names_the_file_and_the_command(misspelt, refusal):
    message = refusal(misspelt.load)
    assert "000.png for elsewhere\\000.PNG" in message
    assert fix_names_command(misspelt.annotations, misspelt.images) in message


def test_the_folder_that_has_all_files_is_named(coco_set, refusal):
    """The one that was given is a level too high or too low."""
    made = coco_set([(60, 40)] * 3)
    right = Path(made.images)
    (right / "deeper").mkdir()
    for given in (right.parent, right / "deeper"):
        message = refusal(load_coco, made.annotations, str(given))
        assert message.code == "missing_files"
        assert f" {right}:" in message
        assert "--" not in message  # no option is needed


@pytest.mark.parametrize("where", ["..", "deeper"])
def test_another_folder_is_not_advised_where_some_files_are_in_the_given_one(where, coco_set, refusal):
    made = coco_set([(60, 40)] * 3)
    given = Path(made.images)
    other = given / where
    other.mkdir(exist_ok=True)
    moved = sorted(given.glob("*.*"))[0]
    moved.rename(other / moved.name)
    message = refusal(load_coco, made.annotations, str(given))
    assert message.code == "missing_files"
    assert "--" in message  # an option of the doctor, as for any file that is missing or elsewhere


def test_the_command_writes_a_json_that_loads(misspelt):
    misspelt.tree["images"].pop(1)
    misspelt.save()
    command = shlex.split(fix_names_command(misspelt.annotations, misspelt.images))
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_coco(command[-1], misspelt.images).file_names.tolist() == ["000.png", "002.png"]
    again = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2  # it does not write over a file


def test_missing_files_can_be_left_out_with_the_command_named(misspelt, refusal):
    misspelt.tree["images"].pop(0)
    assert write_clean_command(misspelt.annotations, misspelt.images) in refusal(misspelt.save().load)


def test_what_has_no_file_stays_and_is_named(misspelt, tmp_path):
    replaced, unknown = write_fixed_names(misspelt.annotations, misspelt.images, str(tmp_path / "out.json"))
    assert replaced == {"elsewhere\\000.PNG": "000.png"}
    assert unknown == ["gone.png"]
    names = [entry["file_name"] for entry in json.loads((tmp_path / "out.json").read_text())["images"]]
    assert names == ["000.png", "gone.png", "002.png"]


def test_names_of_lvis_are_taken_from_their_urls(coco_set, refusal, tmp_path):
    made = coco_set()
    made.tree["images"][0]["coco_url"] = (
        f"http://images.cocodataset.org/val2017/{made.tree['images'][0].pop('file_name')}"
    )
    assert "--fix-names" in refusal(made.save().load)
    write_fixed_names(made.annotations, made.images, str(tmp_path / "out.json"))
    assert load_coco(str(tmp_path / "out.json"), made.images).file_names.tolist() == ["000.png"]
