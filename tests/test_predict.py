"""scripts/predict.py: which images it takes, and how it names the pictures it writes."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    for name in ("a.JPG", "sub/a.jpg", "sub/deep/b.jfif", "sub/.hidden.png", "notes.txt", "out/a.boxes.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, "JPEG") if path.suffix != ".txt" else path.touch()
    return tmp_path / "images"


def test_folders_are_searched_with_their_sub_folders_but_without_the_output(script, folder):
    found = script("predict").list_images([str(folder)], folder / "out")
    assert [str(path.relative_to(folder)) for path in found] == ["a.JPG", "sub/a.jpg", "sub/deep/b.jfif"]


def test_files_that_are_not_recognised_are_counted(script, refusal, tmp_path, capsys):
    for name in ("a.jpg", "b.HEIC", "c.mp4", "notes.txt"):
        (tmp_path / name).touch()
    assert len(script("predict").list_images([str(tmp_path)], tmp_path / "out")) == 1
    assert "2 files" in capsys.readouterr().out
    (tmp_path / "a.jpg").unlink()
    assert "b.HEIC" in refusal(script("predict").list_images, [str(tmp_path)], tmp_path / "out")


def test_several_paths_are_taken_in_their_order_and_once_each(script, folder):
    arguments = [folder / "sub", folder / "a.JPG", folder / "sub" / "a.jpg"]
    found = script("predict").list_images(list(map(str, arguments)), folder.parent)
    assert [str(path.relative_to(folder)) for path in found] == ["sub/a.jpg", "sub/deep/b.jfif", "a.JPG"]


@pytest.mark.parametrize(
    "name", ["https://example.org//a/b.jpg", "s3://bucket/a.png", "rtsp://camera/1", "file:///tmp/a.png"]
)
def test_an_address_is_refused_as_it_was_given(script, refusal, tmp_path, name):
    error = refusal(script("predict").list_images, [name], tmp_path)
    assert error.code == "url"
    assert name in error


def test_a_folder_without_images_and_a_missing_path_are_named(script, refusal, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        assert str(tmp_path / name) in refusal(script("predict").list_images, [str(tmp_path / name)], tmp_path)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.jpg", "x/b.jpg"], ["a", "b"]),
        (["x/a.jpg", "x/a.png"], ["a.jpg", "a.png"]),
        (["x/a.jpg", "y/a.jpg", "y/b.jpg"], ["x_a.jpg", "y_a.jpg", "b"]),
        (["x/a.jpg", "a.jpg"], ["x_a.jpg", "a.jpg"]),
        (["x_y/a.jpg", "x/y_a.jpg", "z/a.jpg", "z/y_a.jpg"], None),
        (["a_b/c.png", "a/b_c.png", "c.png", "b_c.png"], None),
        (["..png"], ["_"]),
        (["x/..png", "y/..png", "a\nb.png", "a_b.png", "A_B.PNG"], None),
    ],
)
def test_every_image_has_its_own_name(script, paths, names):
    found = script("predict").output_names([Path(path) for path in paths])
    assert len({name.casefold() for name in found}) == len(paths)
    assert all((Path("out") / f"{name}.boxes.png").name == f"{name}.boxes.png" for name in found)
    assert names is None or found == names


def test_no_picture_takes_the_place_of_an_image(script, refusal, tmp_path):
    predict, paths = script("predict"), [tmp_path / "a.png", tmp_path / "a.boxes.png"]
    names = predict.output_names(paths)
    assert refusal(predict.check_inputs_stay, paths, tmp_path, names).code == "output"
    predict.check_inputs_stay(paths, tmp_path / "out", names)
