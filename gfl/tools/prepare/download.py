"""Archives from the network: resumable downloads, checked by md5, and unpacked into one folder only."""

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
SPARE = 2**28  # bytes to leave free on the disk


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

OnProgress = Callable[[int, int | None], object]  # bytes done, and their total if it is known


def fetch(
    url: str,
    path: Path,
    *,
    md5: str,
    growth: float = 0.0,
    attempts: int = 5,
    timeout: float = 30.0,
    pause: float = 1.0,
    on_progress: OnProgress = lambda done, total: None,
) -> None:
    """Download `url` to `path` unless it exists, through `path`.part, from which an interrupted download resumes.

    Args:
        growth: additional space that unpacking will need, in bytes per byte.
        attempts: number of failures in a row without new bytes before it gives up.
        timeout, pause: seconds to wait for the server, and between two attempts.

    Raises `UserError` if the download fails, the md5 differs, or the disk has no room for it.
    """
    if path.is_file():
        if _md5(path, on_progress) != md5:
            raise UserError(f"{path} has another md5 than {md5}; delete or move it", code="other_file")
        return
    part = path.with_name(path.name + ".part")
    failures = 0
    while failures < attempts:
        before = _size(part)
        try:
            complete, problem = _receive(url, part, growth, timeout, on_progress), "the connection was closed early"
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
            f"{url}: the downloaded file has md5 {found}, not {md5}: another file, or a damaged one. It was deleted; "
            "try again",
            code="md5",
        )
    kept = f"{_size(part)} bytes are kept in {part}; " if found else ""
    raise UserError(f"{url}: {problem}; {kept}run the same command again to resume", code="interrupted")


def _receive(url: str, part: Path, growth: float, timeout: float, on_progress: OnProgress) -> bool:
    """Append the missing bytes to `part`; returns whether it is complete. Network failures are `OSError`."""
    start = _size(part)
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {}), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return True  # there are no more bytes
        if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            raise UserError(f"{url}: the server answers {error.code} {error.reason}", code="server") from None
        raise
    except ValueError as error:
        raise UserError(f"{url!r} is not an address: {error}", code="address") from None
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0  # this server only sends complete files
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.unlink(missing_ok=True)
            raise OSError("the server sent another part of the file than requested")
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        if total is not None:
            check_space(part.parent, total - start + int(growth * total))
        done = start
        with _open(part, "ab" if start else "wb") as file:
            on_progress(done, total)
            while chunk := response.read(CHUNK):
                _write(file, chunk)
                done += len(chunk)
                on_progress(done, total)
    return total is None or done >= total


def unpack(archive: Path, folder: Path, *, on_progress: OnProgress = lambda done, total: None) -> int:
    """Extract a zip file below `folder`, except files that exist with the right size; returns the number of files.

    A file gets its name once it is complete. Raises `UserError` for a damaged archive and, before anything is written,
    for one with a member that would leave the folder or is not a regular file.
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
                on_progress(done, total)
            return len(members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:  # the last three: odd members
        raise UserError(f"{archive} cannot be unpacked: {error}", code="damaged_archive") from None


def _target(member: zipfile.ZipInfo, folder: Path) -> Path:
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in name.parts[0]:
        raise UserError(
            f"the archive has a file {member.filename!r} outside its folder; nothing was unpacked", code="unsafe"
        )
    if kind not in (0, stat.S_IFREG):
        raise UserError(
            f"the archive has {member.filename!r}, which is no regular file; nothing was unpacked", code="unsafe"
        )
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


def check_space(folder: Path, needed: int) -> None:
    """Raises `UserError` if the disk of `folder` has less than `needed` bytes free and `SPARE` more."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free
    if needed and free < needed + SPARE:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, and {(needed + SPARE) / 1e9:.1f} GB are needed to download and "
            "unpack; choose another folder or make room",
            code="disk_full",
        )


def _md5(path: Path, on_progress: OnProgress = lambda done, total: None) -> str:
    try:
        return file_digest(path, "md5", on_bytes=lambda done: on_progress(done, _size(path)))
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
    """Write, with a `UserError` for a full disk, so that it is not taken for a network failure."""
    try:
        file.write(chunk)
    except OSError as error:
        hint = "; make room, then run the same command again to resume" if error.errno == errno.ENOSPC else ""
        raise UserError(f"cannot write {file.name}: {error.strerror}{hint}", code="disk_full" if hint else "") from None
