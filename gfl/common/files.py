"""Write files completely or not at all, with one line for every reason why that fails; and hash them."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import socket
import unicodedata
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError
from gfl.common.text import one_line

MAX_NAME = 150  # bytes; systems allow 255, and suffixes follow
ZIP_START = b"PK\x03\x04"  # of a zip archive, as torch.save has written since PyTorch 1.6
TEMPORARY_NAME = re.compile(r"(?P<name>.+)\.(?P<pid>\d+)-[0-9a-f]{8}@(?P<host>.+)\.tmp")
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EROFS: "mount its file system writable, or choose another folder",
    errno.EACCES: "change the permissions, or choose another folder",
    errno.EPERM: "change the permissions, or choose another folder",
    errno.ENOENT: "its folder is missing: put it back if it was moved or deleted",
    errno.ENOTDIR: "choose another folder",
    errno.EEXIST: "choose another folder",
    errno.EISDIR: "choose another name",
    errno.ELOOP: "replace the link by what it leads to",
}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` within into a `UserError`: what cannot be written, why, and what to do."""
    try:
        yield
    except OSError as error:
        advice = ADVICE.get(error.errno, "check the disk")
        raise UserError(
            f"cannot write {path}: {error.strerror or one_line(error)}; {advice}", code="unwritable"
        ) from None


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which replaces `path` in the end; after an error it is removed.

    Raises `UserError` if it cannot be written.
    """
    unfinished = temporary(path)
    try:
        with writing(path):
            yield unfinished
            os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def temporary(path: Path) -> Path:
    """A name beside `path` that no other writer has; `remove_leftovers` knows it after this process was killed."""
    # Processes of containers may share host name and process id. Cut, since a name may have 255 bytes at most.
    unique = f"{os.getpid()}-{uuid.uuid4().hex[:8]}@{socket.gethostname()}"
    return path.with_name(f"{os.fsencode(path.name)[:60].decode(errors='ignore')}.{unique}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes; call it with the lock held under which checkpoints are saved."""
    for path in folder.glob("*.tmp"):
        if not (parts := TEMPORARY_NAME.fullmatch(path.name)):
            continue
        # Whether a process of another machine runs is unknown, but only the holder of the lock writes checkpoints.
        here = parts["host"] == socket.gethostname()
        if not _is_running(int(parts["pid"])) if here else ".pt" in parts["name"]:
            with contextlib.suppress(OSError):
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass  # it belongs to another user, or is no process id
    return True


def safe_file_name(name: str) -> str:
    """`name` as one part of a path: without slashes and what cannot be printed, not hidden, of at most 150 bytes."""
    text = "".join(c if c.isprintable() and c not in "/\\" else "_" for c in name)
    text = f"_{text[1:]}" if text[:1] in ("", ".") else text
    return text.encode()[:MAX_NAME].decode(errors="ignore")


def distinct_file_names(names: Sequence[str]) -> list[str]:
    """`safe_file_name` of each name; those that a file system might take for equal get a number in front."""

    def key(name: str) -> str:  # some file systems ignore letter case and Unicode form
        return unicodedata.normalize("NFC", name).casefold()

    safe = [safe_file_name(name) for name in names]
    counts = Counter(map(key, safe))
    taken = {name for name, count in counts.items() if count == 1}
    for index, name in enumerate(safe):
        if counts[key(name)] > 1:
            safe[index] = next(n for number in itertools.count(index) if key(n := f"{number}_{name}") not in taken)
            taken.add(key(safe[index]))
    return safe


def output_folder(path: str | Path) -> Path:
    """The argument of ``--out``; raises `UserError` where it is a file."""
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"--out {path} is a file; choose a folder")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file, so that an interruption leaves the old file or the new one.

    Raises `UserError` if it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as json like `write_text`; NaN, which json does not have, raises `ValueError`."""
    write_text(path, json.dumps(value, allow_nan=False))


def append(path: Path, data: bytes) -> None:
    """Add `data` to the end of a file, or nothing where the disk is full.

    Raises `UserError` if it cannot be written.
    """
    with writing(path), open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(size)
            raise


def file_digest(path: Path, algorithm: str, *, on_bytes: Callable[[int], object] = lambda done: None) -> str:
    """The hash of a file as hexadecimal text; `on_bytes` is called with the bytes read so far. Raises `OSError`."""
    digest, done = hashlib.new(algorithm, usedforsecurity=False), 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    return digest.hexdigest()
