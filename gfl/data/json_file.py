"""A json file read: in its encodings, and with what it is instead where it is none."""

import contextlib
import gc
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from gfl.common.errors import UserError
from gfl.common.file_kinds import recognise_content

LONG_NUMBER = b"0" * 20  # whatever its digits are; it may not fit 64 bits
ALL_DIGITS_0 = bytes.maketrans(b"123456789", b"0" * 9)
# A list of numbers, or of lists of them: it ends with its last bracket before another character.
OUTLINE = re.compile(rb'"segmentation"\s*:\s*\[[\]\[\d.,eE+\-\s]*\]')


@contextmanager
def without_cycle_search() -> Iterator[None]:
    """Stop Python's search for cycles, of which a json has none: it visits all objects again and again as they grow."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_json(path: str, *, outlines: bool = True) -> Any:
    """What the json file holds; raises `UserError` if it cannot be read. `outlines` as in `read_coco_json`."""
    if not path:
        raise UserError("no annotations given: set data.train.annotations and data.val.annotations")
    try:
        with without_cycle_search():
            if not outlines and (short := _without_outlines(path)):
                with contextlib.suppress(orjson.JSONDecodeError):
                    return orjson.loads(short)
            data = Path(path).read_bytes()
            return _parse(data)
    except IsADirectoryError:
        raise UserError(f"cannot read annotations {path}: it is a folder; give a json file, then its images") from None
    except OSError as error:
        raise UserError(
            f"cannot read annotations {path}: {error.strerror}; see data/README.md for where they go"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid json: {_why_invalid(data, error)}", code="json") from None
    except ValueError:  # Python converts at most 4300 digits
        raise UserError(f"{path}: not valid json: a number has thousands of digits") from None
    except RecursionError:
        raise UserError(f"{path}: not valid json: nested too deeply") from None


def _without_outlines(path: str) -> bytes:
    """The bytes of a json with outlines emptied; none where orjson would round what is left."""
    data = OUTLINE.sub(b'"segmentation":[]', Path(path).read_bytes())
    return data if _is_exact(data) else b""


def _is_exact(data: bytes) -> bool:
    """Whether no number of a json is so long that orjson would round it."""
    return LONG_NUMBER not in data.translate(ALL_DIGITS_0)


def _parse(data: bytes) -> Any:
    """The content of a json. What orjson refuses, or would round, is read by the standard library, which takes longer.

    That is: NaN and numbers beyond floats, UTF-16, byte order marks, single surrogates, whole numbers beyond 64 bits.
    """
    if _is_exact(data):
        with contextlib.suppress(orjson.JSONDecodeError):
            return orjson.loads(data)
    return json.loads(data)


def _why_invalid(data: bytes, error: json.JSONDecodeError | UnicodeDecodeError) -> str:
    """What a file that is no json is instead, where that is known, else what the parser says."""
    if not data.strip():
        return "the file is empty"
    starts_like_json = data.lstrip()[:1] in b"[{"
    if not starts_like_json and (kind := recognise_content(data)):
        return f"it is {kind}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
    if error.msg == "Extra data":
        return f"{error}; several jsons in one file, perhaps one a line; export as COCO"
    if starts_like_json and data.rstrip()[-1:] not in b"]}":
        return f"{error}; its end is missing: copy or download it again"
    return str(error)
