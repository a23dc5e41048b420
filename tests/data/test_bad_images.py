"""The list of replaced images in the run folder."""

import json

from gfl.data import bad_images
from gfl.data.bad_images import FILE, gather_bad_images, report_bad_images


def test_the_list_is_saved_and_its_reasons_are_printed(tmp_path, capsys):
    report_bad_images({}, tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
    replaced = {"a.png": "reason a", "b.png": "reason b"}
    report_bad_images(replaced, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [str(tmp_path / "bad_images.json"), "a", "b"]
    assert json.loads((tmp_path / "bad_images.json").read_text()) == replaced


def test_the_images_of_all_processes_are_gathered_on_the_main_one(monkeypatch):
    monkeypatch.setattr(bad_images, "gather_to_main", lambda own: [own, {"b.png": "reason b"}])
    assert gather_bad_images({"a.png": "reason a"}) == {"a.png": "reason a", "b.png": "reason b"}
    monkeypatch.setattr(bad_images, "gather_to_main", lambda own: None)
    assert gather_bad_images({"a.png": "reason a"}) == {}


def test_a_list_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / FILE).mkdir()
    report_bad_images({"a.png": "a.png is no image"}, tmp_path)
    out = capsys.readouterr().out
    assert "a.png is no image" in out
    assert any(line.startswith("warning ") and str(tmp_path / FILE) in line for line in out.splitlines())
