"""Files are written completely or not at all."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from gfl.common.files import file_digest, write_json


def test_json_replaces_the_old_file_and_creates_its_folder(tmp_path):
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
        assert str(path) in refusal(write_json, path, {"AP": 0.6})
    assert json.loads(path.read_text()) == {"AP": 0.5}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, refusal):
    (tmp_path / "run").touch()
    assert str(tmp_path / "run" / "metrics.json") in refusal(write_json, tmp_path / "run" / "metrics.json", [])


def test_a_number_that_json_does_not_have_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))


def test_a_digest_is_that_of_the_whole_file_and_reports_its_progress(tmp_path):
    content, done = bytes(range(256)) * 5000, []
    (tmp_path / "a").write_bytes(content)
    assert file_digest(tmp_path / "a", "sha256", on_bytes=done.append) == hashlib.sha256(content).hexdigest()
    assert done == [2**20, len(content)]
