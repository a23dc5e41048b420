"""Write files completely or not at all, and hash them."""

import contextlib
import hashlib
import itertools
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gfl.common.errors import UserError

MAX_NAME = 150  # bytes; systems allow 255, and suffixes follow
ZIP_START = b"PK\x03\x04"  # of a zip archive, as torch.save has written since PyTorch 1.6


def temporary(path: Path) -> Path:
    """The name under which `path` is written, before it is renamed to its own."""
    return path.with_name(path.name + ".tmp")


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
    unfinished = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}", code="unwritable") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as json like `write_text`; NaN, which json does not have, raises `ValueError`."""
    write_text(path, json.dumps(value, allow_nan=False))


def file_digest(path: Path, algorithm: str, *, on_bytes: Callable[[int], object] = lambda done: None) -> str:
    """The hash of a file as hexadecimal text; `on_bytes` is called with the bytes read so far. Raises `OSError`."""
    digest, done = hashlib.new(algorithm, usedforsecurity=False), 0
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    return digest.hexdigest()
