"""metrics.jsonl is read whatever is in it."""

import json

import pytest

from gfl.training.metrics_file import drop_after, loss_trend, read_records

RECORDS = [{"step": step, "epoch": 1, "loss/cls": 4.0 / step, "lr": 0.01} for step in (2, 4, 6)]
DAMAGED = {
    "half a line": b'{"step": 3, "epo',
    "half a line and a whole one": b'{"step": 3, "epo{"step": 4, "epoch": 1}',
    "no text": b"\xff\xfe\x00",
    "zeros of a lost block": b"\x00" * 512,
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "no object": b"[3]",
    "no step": b'{"epoch": 1}',
    "text as step": b'{"step": "3", "epoch": 1}',
    "fraction as step": b'{"step": 3.5, "epoch": 1}',
    "step below 0": b'{"step": -5, "epoch": 1}',
    "true as step": b'{"step": true, "epoch": 1}',
    "no epoch": b'{"step": 3}',
    "text as loss": b'{"step": 3, "epoch": 1, "loss/cls": "1"}',
    "nothing as loss": b'{"step": 3, "epoch": 1, "loss/cls": null}',
    "list as loss": b'{"step": 3, "epoch": 1, "loss/cls": [1]}',
    "NaN": b'{"step": 3, "epoch": 1, "loss/cls": NaN}',
    "infinity": b'{"step": 3, "epoch": 1, "loss/cls": 1e400}',
    "whole number beyond floats": b'{"step": 3, "epoch": 1, "loss/cls": 1' + b"0" * 400 + b"}",
    "whole number beyond Python's limit": b'{"step": 3, "epoch": 1, "loss/cls": 1' + b"0" * 5000 + b"}",
}


@pytest.fixture
def damaged_file(tmp_path):
    """Write the records with `line` after the second of them."""

    def write(line):
        lines = [json.dumps(record).encode() for record in RECORDS]
        (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines[:2], line, *lines[2:], b""]))
        return tmp_path / "metrics.jsonl"

    return write


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_dropped_and_counted(line, damaged_file):
    path = damaged_file(line)
    assert read_records(path) == (RECORDS, 1)
    assert loss_trend(path) == (2.0, pytest.approx(4 / 6))
    assert drop_after(path, 4, evaluated=True) == 1
    assert read_records(path) == (RECORDS[:2], 0)


def test_records_after_a_step_are_no_damage(damaged_file):
    path = damaged_file(json.dumps({"step": 6, "epoch": 1, "val/AP": 0.5}).encode())
    assert drop_after(path, 6, evaluated=False) == 0
    assert read_records(path) == (RECORDS, 0)


def test_a_missing_end_of_the_last_line_is_added(damaged_file):
    path = damaged_file(b"")
    path.write_bytes(path.read_bytes().strip())
    assert drop_after(path, 6, evaluated=True) == 0
    with open(path, "a") as file:
        file.write(json.dumps(RECORDS[0]) + "\n")
    assert read_records(path) == ([*RECORDS, RECORDS[0]], 0)
