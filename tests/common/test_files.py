"""Files are written completely or not at all."""

import hashlib
import json
import os
import resource
import socket
import subprocess
import unicodedata
from pathlib import Path

import pytest

from gfl.common.files import (
    append,
    distinct_file_names,
    file_digest,
    remove_leftovers,
    safe_file_name,
    temporary,
    write_json,
)


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


def test_what_killed_processes_left_is_removed_and_files_of_others_stay(tmp_path, monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: ended.pid)
        left = [temporary(tmp_path / name) for name in ("last.pt", "metrics.json")]
        patched.setattr(socket, "gethostname", lambda: "another.machine")
        left.append(temporary(tmp_path / "last.pt.json"))
        others = [temporary(tmp_path / "metrics.json"), tmp_path / "notes.tmp", tmp_path / "last.pt"]
    others += [temporary(tmp_path / "last.pt"), temporary(tmp_path / "last.pt")]
    for path in left + others:
        path.touch()
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(set(others))
    assert len(set(others)) == 5  # no two writers share a name


def test_a_long_name_has_a_temporary_one(tmp_path):
    path = tmp_path / ("ä" * 120)
    write_json(path, 1)
    assert path.read_text() == "1"


def test_a_full_disk_takes_a_whole_record_or_none(tmp_path, refusal):
    path = tmp_path / "metrics.jsonl"
    append(path, b"first\n")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        refused = refusal(append, path, b"second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(path) in refused
    assert refused.code == "unwritable"
    assert path.read_bytes() == b"first\n"


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


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../x", "/etc/passwd", "a\\b", "a\nb", "\x1b[2J", "\udcff", "x" * 5000, "é" * 300, "\0"]
)
def test_any_name_is_made_one_part_of_a_path(name, tmp_path):
    safe = safe_file_name(name)
    path = tmp_path / f"{safe}.boxes.png"
    path.touch()
    assert (path.parent, os.listdir(tmp_path)) == (tmp_path, [path.name])
    assert safe.isprintable()
    assert not safe.startswith(".")


def test_a_harmless_name_stays_as_it_is():
    for name in ("photo 1", "a..b", "-x", "\u5199\u771f", "a.b=c"):
        assert safe_file_name(name) == name


def test_names_that_a_file_system_may_take_for_one_are_told_apart():
    assert distinct_file_names(["a", "b"]) == ["a", "b"]
    names = ["a", "A", "1_A", "\u00e9", "e\u0301", "x" * 200, "x" * 201, "a/b", "a_b", "..", ".", "a", "0_a"]
    distinct = distinct_file_names(names)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in distinct}) == len(names)
    assert not any("/" in name or name.startswith(".") or len(name.encode()) > 200 for name in distinct)
    assert distinct[2] == "1_A"  # only what is ambiguous gets another name
