"""The list of replaced images in the run folder."""

import json

from gfl.data.bad_images import FILE, report_bad_images


def test_the_list_of_bad_images_is_kept_between_runs(tmp_path, capsys):
    first, second = {"a.png": "reason a"}, {"a.png": "reason a", "b.png": "reason b"}
    report_bad_images({}, tmp_path)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""
    for replaced, num_lines in ((first, 2), (second, 3), ({}, 3)):
        report_bad_images(replaced, tmp_path)
        printed = capsys.readouterr().out
        assert len(printed.splitlines()) == num_lines
        assert all(reason in printed for reason in replaced.values())
    path = tmp_path / "bad_images.json"
    assert json.loads(path.read_text()) == second
    path.write_text("[1]")
    report_bad_images(first, tmp_path)
    assert json.loads(path.read_text()) == first


def test_a_list_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    (tmp_path / FILE).mkdir()
    report_bad_images({"a.png": "a.png is no image"}, tmp_path)
    out = capsys.readouterr().out
    assert "a.png is no image" in out
    assert any(line.startswith("warning ") and str(tmp_path / FILE) in line for line in out.splitlines())
