"""Files written whole or not at all."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError


def temporary(path: Path) -> Path:
    """Where `path` is written before it takes its place."""
    return path.with_name(path.name + ".tmp")


def output_folder(path: str | Path) -> Path:
    """The argument of ``--out``; raises `UserError` where it is a file."""
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"--out {path} is a file; choose a folder")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write through a temporary file, so that an interrupted run leaves the old file or the new one.

    Raises `UserError` if it cannot be written.
    """
    unfinished = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """`write_text` of json; NaN, which json has not, is a bug and a `ValueError`."""
    write_text(path, json.dumps(value, allow_nan=False))


def file_digest(path: Path, algorithm: str, *, on_bytes: Callable[[int], object] = lambda done: None) -> str:
    """The hash of a file as hexadecimal text; `on_bytes` hears how many bytes are done. Raises `OSError`."""
    digest, done = hashlib.new(algorithm, usedforsecurity=False), 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    return digest.hexdigest()
