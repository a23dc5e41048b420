"""The list of replaced images in the run folder."""

import json

from gfl.data.bad_images import report_bad_images


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
