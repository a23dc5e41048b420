"""Files are written whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from gfl.common.files import output_folder, write_json


def test_json_is_written_over_the_old_file(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    write_json(path, {"AP": None})
    write_json(path, {"AP": 0.5})
    assert json.loads(path.read_text()) == {"AP": 0.5}
    assert os.listdir(path.parent) == ["metrics.json"]


@pytest.mark.parametrize(("owner", "function"), [(os, "replace"), (Path, "write_text")])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, refusal, owner, function):
    path = tmp_path / "metrics.json"
    write_json(path, {"AP": 0.5})

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(owner, function, fail)
        message = refusal(write_json, path, {"AP": 0.6})
    assert str(path) in message
    assert "No space left on device" in message
    assert json.loads(path.read_text()) == {"AP": 0.5}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, refusal):
    (tmp_path / "run").write_text("")
    assert str(tmp_path / "run" / "metrics.json") in refusal(write_json, tmp_path / "run" / "metrics.json", [])
    assert str(tmp_path / "run") in refusal(output_folder, str(tmp_path / "run"))
    assert output_folder(str(tmp_path / "other")) == tmp_path / "other"
