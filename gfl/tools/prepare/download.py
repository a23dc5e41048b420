"""Files from the network: resumable downloads, checked by their hash, and archives unpacked into one folder only."""

import contextlib
import errno
import http.client
import os
import shutil
import stat
import time
import unicodedata
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gfl.common.errors import UserError
from gfl.common.files import file_digest, temporary
from gfl.common.text import one_line, short_repr

CHUNK = 2**20
SPARE = 2**28  # bytes to leave free on the disk
MAX_GROWTH = 20  # bytes of the files per byte of an archive; annotations have 3.5
MAX_NAME = 255  # bytes of a file's name, on all file systems


class Hash(NamedTuple):
    """A file's published hash."""

    algorithm: str  # as in hashlib
    start: str  # its first hexadecimal digits: all, or as many as are published

    def __str__(self) -> str:
        return f"{self.algorithm} {self.start}"


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
    expected: Hash,
    *,
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

    Raises `UserError` if the download fails, the hash differs, or the disk has no room for it.
    """
    if os.path.isfile(path):
        if not _digest(path, expected, on_progress).startswith(expected.start):
            raise UserError(f"{path} has another hash than {expected}; delete or move it", code="other_file")
        return
    part = path.with_name(path.name + ".part")
    failures, most = 0, _size(part)
    while failures < attempts:
        problem = _try_to_receive(url, part, growth, timeout, on_progress)
        if not problem:
            break
        # A server without ranges starts anew each time: only bytes beyond all that it ever sent are progress.
        failures, most = (0, _size(part)) if _size(part) > most else (failures + 1, most)
        time.sleep(pause)
    found = _digest(part, expected) if os.path.isfile(part) else ""
    if found.startswith(expected.start):
        _rename(part, path)
        return
    if failures < attempts:
        part.unlink()
        raise UserError(
            f"{url}: the downloaded file has {expected._replace(start=found)}, not {expected.start}: another file, or "
            "a damaged one. It was deleted; try again",
            code="hash",
        )
    kept = f"{_size(part)} bytes are kept in {part}; " if found else ""
    raise UserError(
        f"{url}: {problem}; {kept}with internet the same command resumes it; a file fetched elsewhere is taken as "
        f"{path}",
        code="interrupted",
    )


def _rename(part: Path, path: Path) -> None:
    try:
        os.replace(part, path)
    except OSError as error:  # such as a folder of that name
        raise UserError(f"cannot write {path}: {error.strerror}; the file is in {part}") from None


def _try_to_receive(url: str, part: Path, growth: float, timeout: float, on_progress: OnProgress) -> str:
    """Append the missing bytes to `part`; returns why that failed, "" if it is complete."""
    try:
        complete = _receive(url, part, growth, timeout, on_progress)
    except (OSError, http.client.HTTPException) as error:
        return str(error).removeprefix("<urlopen error ").removesuffix(">") or repr(error)
    return "" if complete else "the connection was closed early"


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
        total = start + int(length) if length.isdecimal() and len(length) < 16 else None
        if total is not None:
            check_space(part.parent, total - start + int(growth * total))
        done = start
        with _open(part, "ab" if start else "wb") as file:
            on_progress(done, total)
            while chunk := response.read(CHUNK):
                if total is None:  # it may never end
                    check_space(part.parent, CHUNK)
                _write(file, chunk)
                done += len(chunk)
                on_progress(done, total)
    return total is None or done >= total


def unpack(archive: Path, folder: Path, *, on_progress: OnProgress = lambda done, total: None) -> int:
    """Extract a zip file below `folder`, except files that exist with the right size; returns the number of files.

    A file gets its name once it is complete. Raises `UserError` for a damaged archive and, before anything is written,
    for one with a member that would leave the folder, is no regular file or has the name of another, and for one that
    unpacks to more than `MAX_GROWTH` times its size.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = _check_members(content.infolist(), folder, archive.stat().st_size)
            missing = {path: member for path, member in members.items() if _size(path) != member.file_size}
            total = sum(member.file_size for member in missing.values())
            check_space(folder, total)
            done = 0
            for path, member in missing.items():
                _extract(content, member, path)
                done += member.file_size
                on_progress(done, total)
            return len(missing)
    except OSError as error:
        raise UserError(f"cannot unpack {archive}: {one_line(error)}", code="unreadable") from None
    except UserError:
        raise
    except Exception as error:  # the modules behind zipfile report damage by exceptions of a dozen types
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{archive} cannot be unpacked: {reason}", code="damaged_archive") from None


def _check_members(members: list[zipfile.ZipInfo], folder: Path, size: int) -> dict[Path, zipfile.ZipInfo]:
    """Destination -> member; `size` is the archive's."""
    if sum(member.file_size for member in members) > MAX_GROWTH * size:
        raise UserError(
            f"the archive unpacks to more than {MAX_GROWTH} times its size; nothing was unpacked", code="bomb"
        )
    paths: dict[str, Path] = {}
    targets: dict[Path, zipfile.ZipInfo] = {}
    for member in members:
        if member.filename.endswith("/"):  # a folder
            continue
        path = _target(member, folder)
        # As file systems that ignore letter case and Unicode form compare them; a file is no folder of another.
        key = unicodedata.normalize("NFC", str(path)).casefold()
        if key in paths:
            raise _unsafe(member, "twice")
        paths[key], targets[path] = path, member
    for path in targets:
        if any(unicodedata.normalize("NFC", str(parent)).casefold() in paths for parent in path.parents):
            raise _unsafe(targets[path], "below another file")
    return targets


def _target(member: zipfile.ZipInfo, folder: Path) -> Path:
    name = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if not name.parts or name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in name.parts[0]:
        raise _unsafe(member, "outside its folder")
    if not member.filename.isprintable() or any(len(part.encode()) > MAX_NAME for part in name.parts):
        raise _unsafe(member, "whose name no system shows or stores")
    if kind not in (0, stat.S_IFREG):
        raise _unsafe(member, "which is no regular file")
    return folder / name


def _unsafe(member: zipfile.ZipInfo, why: str) -> UserError:
    return UserError(f"the archive has {short_repr(member.filename)} {why}; nothing was unpacked", code="unsafe")


def _extract(content: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    unfinished = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with content.open(member) as source, _open(unfinished, "wb") as file:
            while chunk := source.read(CHUNK):
                _write(file, chunk)
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def check_space(folder: Path, needed: int) -> None:
    """Raises `UserError` if the disk of `folder` has less than `needed` bytes free and `SPARE` more."""
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if os.path.isdir(path))).free
    if needed and free < needed + SPARE:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, and {(needed + SPARE) / 1e9:.1f} GB are needed to download and "
            "unpack; choose another folder or make room",
            code="disk_full",
        )


def _digest(path: Path, expected: Hash, on_progress: OnProgress = lambda done, total: None) -> str:
    try:
        return file_digest(path, expected.algorithm, on_bytes=lambda done: on_progress(done, _size(path)))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _size(path: Path) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


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
