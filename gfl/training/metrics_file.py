"""metrics.jsonl, one record per line: read whatever is in it, cut at the step from which a run is resumed."""

import json
import math
from pathlib import Path
from typing import Any

from gfl.common.files import write_text

METRICS_FILE = "metrics.jsonl"
Record = dict[str, Any]  # name -> number, always with "step" and "epoch"


def read_records(path: Path) -> tuple[list[Record], int]:
    """The records of a file, none if it does not exist, and the number of lines that are damaged."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    records = [_parse(line) for line in lines if line]
    intact = [record for record in records if record is not None]
    return intact, len(records) - len(intact)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):  # bytes that are no text, text that is no json, json that is too deep
        return None
    if not isinstance(record, dict) or not all(map(_is_number, record.values())):
        return None
    return record if all(type(record.get(key)) is int and record[key] >= 0 for key in ("step", "epoch")) else None


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**63)


def drop_after(path: Path, step: int, *, evaluated: bool) -> int:
    """Keep the records up to `step`, with the evaluation at that step if `evaluated`.

    Returns how many damaged lines were dropped besides. Raises `UserError` or `OSError` if it cannot be written.
    """
    records, damaged = read_records(path)
    kept = [record for record in records if (record["step"], _is_evaluation(record)) <= (step, evaluated)]
    text = "".join(json.dumps(record) + "\n" for record in kept)
    if path.is_file() and path.read_bytes() != text.encode():  # it may also lack the last line's end
        write_text(path, text)
    return damaged


def _is_evaluation(record: Record) -> bool:
    return any(name.startswith("val") for name in record)


def loss_trend(path: Path) -> tuple[float, float] | None:
    """Mean total loss over the first and the last tenth of the records in `path`; None for fewer than two records."""
    losses = []
    for record in read_records(path)[0]:
        terms = [value for name, value in record.items() if name.startswith("loss/")]
        losses += [sum(terms)] if terms else []
    if len(losses) < 2:
        return None
    count = max(len(losses) // 10, 1)
    return sum(losses[:count]) / count, sum(losses[-count:]) / count
