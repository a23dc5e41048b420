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


def test_a_writer_killed_between_backup_and_file_leaves_nothing_that_stays(tmp_path):
    path, backup = tmp_path / "a", tmp_path / "backup"
    write(path, "old")
    os.link(path, backup)
    write(path, "new", backup_to=backup)
    assert (path.read_text(), backup.read_text()) == ("new", "old")
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("owner", "function", "argument"),
    [
        (os, "link", "a"),
        (Path, "unlink", "backup.json"),
        (os, "replace", "backup"),
        (Path, "write_text", "backup.json."),  # its temporary file
        (Path, "unlink", "a.json"),
        (os, "replace", "a"),
        (Path, "write_text", "a.json."),
    ],
)
def test_of_two_writers_at_once_neither_leaves_a_checksum_of_the_others_file(
    owner, function, argument, tmp_path, monkeypatch
):
    """The second writes all of its file after one call of the first."""
    path, backup, original, calls = tmp_path / "a", tmp_path / "backup", getattr(owner, function), []
    write(path, "at first")

    def interfere(*args, **kwargs):
        result = original(*args, **kwargs)
        names = [Path(arg).name for arg in args[:2]]
        if any(name.startswith(argument) if argument.endswith(".") else name == argument for name in names):
            monkeypatch.undo()
            calls.append(names)
            write(path, "of the second", backup_to=backup)
        return result

    monkeypatch.setattr(owner, function, interfere)
    write(path, "of the first one", backup_to=backup)
    assert calls
    for file in (path, backup):
        verify_checksum(file, file)
        found = tmp_path / f"{file.name}.json"
        assert not found.exists() or json.loads(found.read_text())["bytes"] == file.stat().st_size
