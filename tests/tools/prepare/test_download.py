"""Downloads from a local server that misbehaves in many ways, and archives that must not leave their folder."""

import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from file_server import Server

from gfl.common.errors import UserError
from gfl.tools.prepare.download import COCO, Hash, check_space, fetch, unpack

ROOT = Path(__file__).resolve().parents[3]
CONTENT = bytes(range(256)) * 20_000  # 5 MB
MD5 = Hash("md5", hashlib.md5(CONTENT).hexdigest())


@pytest.fixture
def server():
    with Server(CONTENT) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def path(tmp_path):
    """Where the file goes, in an empty folder."""
    return tmp_path / "file.zip"


def get(server, path, **changes):
    fetch(server.url, path, **{"expected": MD5, "pause": 0.0, "timeout": 10.0} | changes)


@pytest.mark.parametrize("fault", ["", "no length", "breaks off", "no ranges", "too long", "absurd length"])
def test_a_file_arrives_complete_despite_the_server(server, fault, path):
    server.fault = fault
    get(server, path)
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["file.zip"]
    if fault == "breaks off":
        assert server.ranges == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


def test_a_later_run_resumes_and_a_complete_file_is_not_requested(server, path, refusal):
    server.fault = "breaks off forever"
    assert refusal(get, server, path, attempts=2).code == "interrupted"
    assert path.with_suffix(".zip.part").stat().st_size == 10**6
    server.fault, server.ranges = "", []
    get(server, path)
    get(server, path)
    assert server.ranges == ["bytes=1000000-"]


@pytest.mark.parametrize("fault", ["", "too short"])
def test_a_wrong_or_shortened_file_is_deleted(server, fault, path, refusal):
    server.fault, server.content = fault, CONTENT if fault else CONTENT[::-1]
    message = refusal(get, server, path)
    assert message.code == "hash"
    assert all(part in message for part in (MD5.start, server.url))
    assert not os.listdir(path.parent)


def test_a_part_of_another_file_is_never_completed(server, path, refusal):
    path.with_suffix(".zip.part").write_bytes(b"another file")
    assert refusal(get, server, path).code == "hash"
    get(server, path)


def test_another_file_of_that_name_is_kept(server, path, refusal):
    path.write_bytes(b"mine")
    message = refusal(get, server, path)
    assert message.startswith(str(path))
    assert message.code == "other_file"
    assert path.read_bytes() == b"mine"
    assert not server.ranges


@pytest.mark.parametrize(
    ("fault", "code", "requests"),
    [("404", "server", 1), ("503", "interrupted", 3), ("no ranges, breaks off here and there", "interrupted", 5)],
)
def test_only_faults_of_the_server_are_retried_and_not_for_ever(server, fault, code, requests, path, refusal):
    server.fault = fault
    assert refusal(get, server, path, attempts=3).code == code
    assert len(server.ranges) == requests


def test_a_wrong_range_is_never_appended(server, path):
    path.with_suffix(".zip.part").write_bytes(CONTENT[:100])
    server.fault = "wrong range"
    get(server, path)  # from the beginning, where no range is requested
    assert server.ranges == ["bytes=100-", None]


def test_a_server_that_does_not_exist_is_one_line(path, refusal):
    with Server() as gone:
        url = gone.url
    assert refusal(fetch, url, path, expected=MD5, attempts=2, pause=0.0).code == "interrupted"
    assert refusal(fetch, "nowhere", path, expected=MD5, attempts=2, pause=0.0).code == "address"


def test_a_disk_without_room_is_refused_before_anything_is_written(server, path, refusal, monkeypatch):
    usage = shutil.disk_usage(path.parent)._replace(free=len(CONTENT) + 2**28)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert refusal(get, server, path, growth=1.0).code == "disk_full"
    assert not os.listdir(path.parent)
    get(server, path)
    check_space(path.parent / "not" / "yet" / "there", 0)


def test_a_stream_without_end_leaves_room_on_the_disk(server, path, refusal, monkeypatch):
    server.fault = "no length"
    usage = shutil.disk_usage(path.parent)._replace(free=2**28)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert refusal(get, server, path).code == "disk_full"


def test_a_folder_in_the_place_of_the_file_is_one_line(server, path, refusal):
    path.mkdir()
    assert str(path) in refusal(get, server, path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_one_line(server, path, refusal):
    path.with_suffix(".zip.part").symlink_to("/dev/full")
    assert refusal(get, server, path).code == "disk_full"


# Unpacking


def zipped(path, members, *, damage=False):
    """A zip file of name -> bytes, or name -> (bytes, mode)."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, value in members.items():
            data, mode = value if isinstance(value, tuple) else (value, stat.S_IFREG | 0o644)
            member = zipfile.ZipInfo(name)
            member.external_attr = mode << 16
            archive.writestr(member, data)
    content = memory.getvalue()
    path.write_bytes(content.replace(b"precious", b"damaged!") if damage else content)
    return path


def test_unpacking_again_writes_only_what_is_missing(tmp_path):
    archive, folder = (
        zipped(tmp_path / "a.zip", {"val/1.jpg": b"one", "val/2.jpg": b"two", "val/": b""}),
        tmp_path / "out",
    )
    assert unpack(archive, folder) == 2
    (folder / "val" / "1.jpg").write_bytes(b"cut")
    (folder / "val" / "2.jpg").write_bytes(b"t")
    assert unpack(archive, folder) == 1
    assert {path.name: path.read_bytes() for path in (folder / "val").iterdir()} == {"1.jpg": b"cut", "2.jpg": b"two"}


@pytest.mark.parametrize(
    "members",
    [
        {"../evil": b"x"},
        {"a/../../evil": b"x"},
        {"/evil": b"x"},
        {"..\\evil": b"x"},
        {"C:/evil": b"x"},
        {"link": (b"/etc", stat.S_IFLNK | 0o777), "link/evil": b"x"},
        {"pipe": (b"", stat.S_IFIFO | 0o644)},
        {"device": (b"", stat.S_IFBLK | 0o644)},
        {".": b"x"},
        {"": b"x"},
        {"x" * 300: b"x"},
        {"a\x1b[2Jb": b"x"},
        {"GOOD": b"x"},
        {"good/below": b"x"},
    ],
)
def test_an_archive_that_would_leave_its_folder_is_not_unpacked(members, tmp_path, refusal):
    archive = zipped(tmp_path / "a.zip", {"good": b"x"} | members)
    assert refusal(unpack, archive, tmp_path / "out").code == "unsafe"
    assert os.listdir(tmp_path) == ["a.zip"]


def test_two_members_of_one_name_are_refused(tmp_path, refusal):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a", b"2")
    assert refusal(unpack, tmp_path / "a.zip", tmp_path / "out").code == "unsafe"


def test_a_bomb_is_not_unpacked(tmp_path, refusal):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(10**6))
    assert refusal(unpack, tmp_path / "a.zip", tmp_path / "out").code == "bomb"
    assert os.listdir(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_mutated_archive_is_unpacked_or_refused(method, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for name in ("a/b", "c"):
            archive.writestr(name, random.Random(name).randbytes(300))
    content, rng, refused = (tmp_path / "a.zip").read_bytes(), random.Random(0), 0
    for number in range(150):
        mutated = bytearray(content)
        for _ in range(rng.choice([1, 2, 8])):
            mutated[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "a.zip").write_bytes(mutated[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            unpack(tmp_path / "a.zip", tmp_path / "out" / str(number))
        except UserError:
            refused += 1
    assert 0 < refused < 150


def test_an_archive_that_cannot_be_read_is_one_line(tmp_path, refusal):
    for path in (tmp_path / "none.zip", tmp_path):
        assert refusal(unpack, path, tmp_path / "out").code == "unreadable"


def test_a_damaged_archive_leaves_no_incomplete_file(tmp_path, refusal):
    archive = zipped(tmp_path / "a.zip", {"a": b"good", "b": b"precious"}, damage=True)
    assert refusal(unpack, archive, tmp_path / "out").code == "damaged_archive"
    assert os.listdir(tmp_path / "out") == ["a"]
    (tmp_path / "b.zip").write_bytes(b"no zip")
    message = refusal(unpack, tmp_path / "b.zip", tmp_path / "out")
    assert message.startswith(str(tmp_path / "b.zip"))
    assert message.code == "damaged_archive"


def test_the_command_ends_with_one_line_and_exit_code_2(server, tmp_path):
    words = ["scripts/download_coco.py", "--what", "val", tmp_path, "--server", server.url.rsplit("/", 2)[0]]
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert COCO["val"].md5 in done.stderr
    assert done.stderr.count("\n") == 1
