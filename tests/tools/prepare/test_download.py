"""Downloads from a real server on loopback that breaks off, lies and serves other files; archives that want out."""

import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gfl.tools.prepare.download import COCO, check_space, fetch, unpack

ROOT = Path(__file__).resolve().parent.parent
CONTENT = bytes(range(256)) * 20_000  # 5 MB
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` at every path, badly in the way that `manner` says; `asked` has every request's range."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.manner, self.asked = CONTENT, "well", []

    def handle_error(self, request, client_address):
        """Clients that hang up are part of the test."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/zips/file.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        manner, content = self.server.manner, self.server.content
        self.server.asked.append(self.headers.get("Range"))
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        if manner == "whole files only":
            start = 0
        if manner == "missing":
            return self.send_error(404)
        if manner == "busy":
            return self.send_error(503)
        if start and start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {0 if manner == 'wrong range' else start}-{len(content) - 1}/*")
        length = len(content) - start
        length += {"too long": 1000, "too short": -1000}.get(manner, 0)
        if manner != "no length":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if manner == "silent":
            return None
        body = content[start:]
        if manner == "breaks off" and len(self.server.asked) < 4:
            body = body[: 10**6]
        if manner == "stays away" and start == 0:
            body = body[: 10**6]
        elif manner == "stays away":
            body = b""
        self.wfile.write(body[:length])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def get(server, path, **changes):
    fetch(server.url, path, **{"md5": MD5, "pause": 0.0, "timeout": 10.0} | changes)


@pytest.mark.parametrize("manner", ["well", "no length", "breaks off", "whole files only", "too long"])
def test_a_file_arrives_whole_however_the_server_behaves(server, manner, tmp_path):
    server.manner = manner
    get(server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["file.zip"]


def test_a_download_goes_on_where_the_server_broke_off(server, tmp_path):
    server.manner = "breaks off"
    get(server, tmp_path / "file.zip")
    assert server.asked == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


def test_a_later_run_goes_on_and_the_one_after_that_asks_for_nothing(server, tmp_path, refusal):
    server.manner = "stays away"
    message = refusal(get, server, tmp_path / "file.zip", attempts=2)
    assert "the same command goes on" in message
    assert (tmp_path / "file.zip.part").stat().st_size == 10**6
    server.manner, server.asked = "well", []
    get(server, tmp_path / "file.zip")
    get(server, tmp_path / "file.zip")
    assert server.asked == ["bytes=1000000-"]


@pytest.mark.parametrize("manner", ["well", "too short"])
def test_a_wrong_or_shortened_file_is_deleted_and_named(server, manner, tmp_path, refusal):
    server.manner = manner
    if manner == "well":
        server.content = CONTENT[::-1]
    message = refusal(get, server, tmp_path / "file.zip")
    assert MD5 in message
    assert server.url in message
    assert not os.listdir(tmp_path)


def test_a_part_of_another_file_does_not_end_in_a_wrong_file(server, tmp_path, refusal):
    (tmp_path / "file.zip.part").write_bytes(b"another file")
    assert MD5 in refusal(get, server, tmp_path / "file.zip")
    get(server, tmp_path / "file.zip")


def test_a_wrong_file_in_its_place_is_not_touched(server, tmp_path, refusal):
    (tmp_path / "file.zip").write_bytes(b"mine")
    assert "delete or move it" in refusal(get, server, tmp_path / "file.zip")
    assert (tmp_path / "file.zip").read_bytes() == b"mine"
    assert not server.asked


@pytest.mark.parametrize(("manner", "told", "asked"), [("missing", "404", 1), ("busy", "503", 3)])
def test_what_the_server_answers_is_told_and_only_its_own_trouble_is_waited_for(
    server, manner, told, asked, tmp_path, refusal
):
    server.manner = manner
    assert told in refusal(get, server, tmp_path / "file.zip", attempts=3)
    assert len(server.asked) == asked


def test_a_wrong_range_is_never_appended(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:100])
    server.manner = "wrong range"
    get(server, tmp_path / "file.zip")  # from the beginning, where no range is asked for
    assert server.asked == ["bytes=100-", None]


def test_a_server_that_is_not_there_is_one_line(tmp_path, refusal):
    with Server() as gone:
        url = gone.url
    assert "refused" in refusal(fetch, url, tmp_path / "file.zip", md5=MD5, attempts=2, pause=0.0)
    assert "not an address" in refusal(fetch, "nowhere", tmp_path / "file.zip", md5=MD5, attempts=2, pause=0.0)


def test_a_disk_without_room_is_told_before_anything_is_written(server, tmp_path, refusal, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=len(CONTENT) + 2**28)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "make room" in refusal(get, server, tmp_path / "file.zip", growth=1.0)
    assert not os.listdir(tmp_path)
    get(server, tmp_path / "file.zip")
    check_space(tmp_path / "not" / "yet" / "there", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_one_line(server, tmp_path, refusal):
    (tmp_path / "file.zip.part").symlink_to("/dev/full")
    assert "No space left" in refusal(get, server, tmp_path / "file.zip")


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
    archive = zipped(tmp_path / "a.zip", {"val/1.jpg": b"one", "val/2.jpg": b"two", "val/": b""})
    assert unpack(archive, tmp_path / "out") == 2
    (tmp_path / "out" / "val" / "1.jpg").write_bytes(b"cut")
    (tmp_path / "out" / "val" / "2.jpg").write_bytes(b"t")
    assert unpack(archive, tmp_path / "out") == 1
    assert sorted(path.name for path in (tmp_path / "out" / "val").iterdir()) == ["1.jpg", "2.jpg"]
    assert (tmp_path / "out" / "val" / "2.jpg").read_bytes() == b"two"


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
    ],
)
def test_an_archive_that_wants_out_writes_nothing_at_all(members, tmp_path, refusal):
    archive = zipped(tmp_path / "a.zip", {"good": b"x"} | members)
    assert "nothing was unpacked" in refusal(unpack, archive, tmp_path / "out")
    assert os.listdir(tmp_path) == ["a.zip"]


def test_a_damaged_archive_is_one_line_and_leaves_no_half_file(tmp_path, refusal):
    archive = zipped(tmp_path / "a.zip", {"a": b"good", "b": b"precious"}, damage=True)
    assert "cannot be unpacked" in refusal(unpack, archive, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["a"]
    (tmp_path / "b.zip").write_bytes(b"no zip")
    assert "cannot be unpacked" in refusal(unpack, tmp_path / "b.zip", tmp_path / "out")


def test_the_program_says_what_is_wrong_and_exits_with_2(server, tmp_path):
    words = ["scripts/download_coco.py", "--what", "val", tmp_path, "--server", server.url.rsplit("/", 2)[0]]
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert COCO["val"].md5 in done.stderr
    assert done.stderr.count("\n") == 1
