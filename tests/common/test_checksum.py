"""A checksum stands beside the file that it describes, whoever replaces it in the meantime."""

import json
import os
from pathlib import Path

import pytest

from gfl.common.checksum import new_file_with_checksum, verify_checksum


def write(path, text, **options):
    with new_file_with_checksum(path, **options) as unfinished:
        unfinished.write_text(text)


def test_a_file_that_is_replaced_while_it_is_verified_is_no_damage(tmp_path, refusal):
    path = tmp_path / "a"
    write(path, "old")
    with open(path) as file:
        write(path, "new!")
        verify_checksum(path, Path(f"/dev/fd/{file.fileno()}"))
    path.write_text("odd!")
    assert refusal(verify_checksum, path, path).code == "checksum"


@pytest.mark.parametrize("moment", ["link", "unlink", "replace"])
def test_of_two_writers_at_once_neither_leaves_a_checksum_of_the_others_file(moment, tmp_path, monkeypatch):
    """The second writes all of its file in the middle of the first's saving."""
    path = tmp_path / "a"
    write(path, "before")
    owner = type(path) if moment == "unlink" else os
    original = getattr(owner, moment)

    def interfere(*args, **kwargs):
        original(*args, **kwargs)
        if moment != "replace" or str(args[-1]) == str(path):
            monkeypatch.undo()
            write(path, "second", backup_to=tmp_path / "backup")

    monkeypatch.setattr(owner, moment, interfere)
    write(path, "the first", backup_to=tmp_path / "backup")
    for name in ("a", "backup"):
        verify_checksum(tmp_path / name, tmp_path / name)
        found = tmp_path / f"{name}.json"
        assert not found.exists() or json.loads(found.read_text())["bytes"] == (tmp_path / name).stat().st_size
