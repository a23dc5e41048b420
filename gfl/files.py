"""Files written whole or not at all."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from gfl.errors import UserError


def temporary(path: Path) -> Path:
    """Where `path` is written before it takes its place."""
    return path.with_name(path.name + ".tmp")


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
