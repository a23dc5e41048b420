"""Archives from the network: downloads that go on where they broke off, checked, and unpacked into one folder only."""

import contextlib
import errno
import http.client
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gfl.common.errors import UserError
from gfl.common.files import file_digest, temporary

CHUNK = 2**20
SPARE = 2**28  # bytes that stay free on the disk


class Archive(NamedTuple):
    """A published zip file."""

    path: str  # below the server's address
    md5: str
    growth: float  # bytes of its files per byte of the archive

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


COCO_SERVER = "http://images.cocodataset.org"
COCO = {
    "train": Archive("zips/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", 1.01),
    "val": Archive("zips/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", 1.01),
    "test": Archive("zips/test2017.zip", "77ad2c53ac5d0aea611d422c0938fb35", 1.01),
    "annotations": Archive("annotations/annotations_trainval2017.zip", "f4bbac642086de4f52a3fdda2de5fa2c", 3.5),
}

Report = Callable[[int, int | None], object]  # bytes that are there, and of how many if that is known


def fetch(
    url: str,
    path: Path,
    *,
    md5: str,
    growth: float = 0.0,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
    report: Report = lambda done, total: None,
) -> None:
    """Download `url` to `path`, through `path`.part, from where an earlier attempt stopped; nothing if it is there.

    Args:
        growth: what unpacking will need besides, in bytes per byte.
        attempts: how often in a row nothing may come before it gives up.
        timeout, pause: seconds to wait for the server, and between two attempts.

    Raises `UserError` if the file cannot be had, does not have that md5, or the disk has no room for it.
    """
    if path.is_file():
        if _md5(path, report) != md5:
            raise UserError(f"{path} is not the published file (its md5 is not {md5}); delete or move it")
        return
    part = path.with_name(path.name + ".part")
    failures = 0
    while failures < attempts:
        before = _size(part)
        try:
            complete, problem = _receive(url, part, growth, timeout, report), "the server broke off"
        except (OSError, http.client.HTTPException) as error:
            complete, problem = False, str(error).removeprefix("<urlopen error ").removesuffix(">") or repr(error)
        if complete:
            break
        failures = 0 if _size(part) > before else failures + 1
        time.sleep(pause)
    found = _md5(part) if part.is_file() else None
    if found == md5:
        os.replace(part, path)
        return
    if failures < attempts:
        part.unlink()
        raise UserError(
            f"{url}: what came has md5 {found}, not {md5}: another file, or damaged on the way. It was deleted; "
            "try again"
        )
    kept = f"{_size(part)} bytes are kept in {part}, and " if found else ""
    raise UserError(f"{url}: {problem}; {kept}the same command goes on from there")


def _receive(url: str, part: Path, growth: float, timeout: float, report: Report) -> bool:
    """Append to `part` what the server has beyond it; whether that is all. Network failures are `OSError`."""
    start = _size(part)
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return True  # it has no more than we do
        if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
        raise
    except ValueError as error:
        raise UserError(f"{url!r} is not an address: {error}") from None
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # a server that only sends whole files
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise OSError("the server sent another part of the file than asked for")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if total is not None:
            check_space(part.parent, total - start + int(growth * total))
        done = start
        with _open(part, "ab" if start else "wb") as file:
            report(done, total)
            while chunk := response.read(CHUNK):
                _write(file, chunk)
                done += len(chunk)
                report(done, total)
    return total is None or done >= total


def unpack(archive: Path, folder: Path, *, report: Report = lambda done, total: None) -> int:
    """Extract a zip file below `folder`; files that are there with their size are left. Returns how many were written.

    A file appears under its name when it is whole. Raises `UserError`, before anything is written, for an archive
    with a member that would leave the folder or is not a plain file, and for one that is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [(member, _target(member, folder)) for member in content.infolist() if not member.is_dir()]
            members = [(member, path) for member, path in members if _size(path) != member.file_size]
            total = sum(member.file_size for member, _ in members)
            check_space(folder, total)
            done = 0
            for member, path in members:
                _extract(content, member, path)
                done += member.file_size
                report(done, total)
            return len(members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # the last three: odd members
        raise UserError(f"{archive} cannot be unpacked: {error}") from None


def _target(member: zipfile.ZipInfo, folder: Path) -> Path:
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in name.parts[0]:
        raise UserError(f"the archive has a file {member.filename!r} outside its folder; nothing was unpacked")
    if kind not in (0, stat.S_IFREG):
        raise UserError(f"the archive has {member.filename!r}, which is no plain file; nothing was unpacked")
    return folder / name


def _extract(content: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    unfinished = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with content.open(member) as source, _open(unfinished, "wb") as file:
            while chunk := source.read(CHUNK):
                _write(file, chunk)
        os.replace(unfinished, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def check_space(folder: Path, wanted: int) -> None:
    """Raises `UserError` if the disk of `folder` has less than `wanted` bytes free, and some to spare."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free
    if wanted and free < wanted + SPARE:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, and {(wanted + SPARE) / 1e9:.1f} GB are needed to download and "
            "unpack; choose another folder or make room"
        )


def _md5(path: Path, report: Report = lambda done, total: None) -> str:
    try:
        return file_digest(path, "md5", on_bytes=lambda done: report(done, _size(path)))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _open(path: Path, mode: str):
    try:
        return open(path, mode)
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from None


def _write(file, chunk: bytes) -> None:
    """Keeps a full disk apart from a network that fails."""
    try:
        file.write(chunk)
    except OSError as error:
        hint = "; make room, the same command goes on from there" if error.errno == errno.ENOSPC else ""
        raise UserError(f"cannot write {file.name}: {error.strerror}{hint}") from None
