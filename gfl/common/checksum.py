"""The size and SHA-256 of a file in a json beside it, so that truncation and changes are detected.

Both can be replaced while they are read: a file is replaced first, its checksum a moment later, and in between there is
none, so that a checksum never stands beside a file that it does not describe. A file without one is accepted.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError
from gfl.common.files import file_digest, new_file, write_text, writing
from gfl.common.text import short_repr

SETTLE_S = 0.1  # before damage is reported: of two savers without locks one may be about to remove a wrong checksum


@contextlib.contextmanager
def new_file_with_checksum(path: Path, *, backup_to: Path | None = None) -> Iterator[Path]:
    """As `new_file`, with a checksum beside the file.

    Args:
        backup_to: where to keep the file that is replaced, with its checksum.
    """
    with new_file(path) as unfinished:
        yield unfinished
        text = json.dumps(_checksum(unfinished))
        # Between two names of one file os.replace does nothing, and the temporary one would stay.
        if backup_to and path.is_file() and not (backup_to.exists() and path.samefile(backup_to)):
            _back_up(path, backup_to)
        _json(path).unlink(missing_ok=True)
        described = unfinished.stat()
    _put_checksum(path, text, described)


def _back_up(path: Path, target: Path) -> None:
    """Make `target` the file at `path`, with its checksum; `path` stays, so that its readers always find it."""
    with new_file(target) as kept:
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links; on such there is no file at `path` for a moment
            os.replace(path, kept)
        described, text = kept.stat(), _read(path)
        if path.exists() and not os.path.samestat(described, path.stat()):
            text = ""  # of a file that has replaced it, see below
        _json(target).unlink(missing_ok=True)
    if text:
        _put_checksum(target, text, described)


def _put_checksum(path: Path, text: str, described: os.stat_result) -> None:
    """Put `text` beside the file it describes, unless another process, where there are no locks, has replaced that."""
    with writing(path):
        if os.path.samestat(described, path.stat()):
            write_text(_json(path), text)
        if not os.path.samestat(described, path.stat()):  # meanwhile
            _json(path).unlink(missing_ok=True)


def verify_checksum(path: Path, opened: Path) -> None:
    """Raise `UserError` unless a file is what was written at `path`.

    Args:
        opened: a path that leads to the same file even if `path` is replaced.
    """
    try:
        text = _read(path)
        written = json.loads(text)
        size, digest = written["bytes"], written["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    found = opened.stat().st_size
    if found == size and _checksum(opened)["sha256"] == digest:
        return
    time.sleep(SETTLE_S)
    if _read(path) != text or not (path.exists() and os.path.samefile(path, opened)):
        return  # replaced meanwhile, by a whole file
    if found != size:
        problem = f"{path} has {found} bytes, but {short_repr(size)} were written: it is truncated or altered"
    else:
        problem = f"{path} was altered after it was written: its SHA-256 differs from that in {_json(path).name}"
    raise UserError(problem, code="checksum")


def is_missing(path: Path) -> bool:
    """Whether a file was written at `path` and is gone: its checksum is still there."""
    return _json(path).is_file() and not path.exists()


def _json(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _checksum(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path, "sha256")}


def _read(path: Path) -> str:
    """The text of the json beside `path`; empty if there is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(_json(path), encoding="utf-8") as file:
        return file.read(1000)  # ours have 100 characters
    return ""
