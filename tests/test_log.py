"""What a run records, and what a resumed run keeps of it."""

import json
import os

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gfl.training.log import RunLog

METRICS = {"AP": 0.5, "AP50": 0.75, "APS": None, "per_class": {"disc": {"AP": 0.5}, "ring": {"AP": None}}}


def open_log(run_dir, **changes):
    settings = {
        "first_step": 0,
        "total_steps": 100,
        "images_per_step": 4,
        "interval": 2,
        "evaluated": True,
        "enabled": True,
    }
    return RunLog(run_dir, **settings | changes)


def losses(value):
    return {"cls": torch.tensor(float(value)), "box": torch.tensor(10.0 * value)}


def train(log, steps):
    last = log.total_steps
    for step in steps:
        log.train_step(step, 1 + step // 10, losses(step), rate=0.01 * step, last=step == last)


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_averages_are_recorded_every_interval_and_at_the_end(tmp_path):
    log = open_log(tmp_path, total_steps=5)
    train(log, range(1, 6))
    log.close()
    lines = records(tmp_path)
    assert [(line["step"], line["loss/cls"], line["loss/box"]) for line in lines] == [
        (2, 1.5, 15.0),
        (4, 3.5, 35.0),
        (5, 5.0, 50.0),
    ]
    assert [line["lr"] for line in lines] == [0.02, 0.04, 0.05]
    assert all(line["epoch"] == 1 and line["images_per_s"] > 0 for line in lines)


def test_plain_lines_tell_losses_rate_speed_and_what_remains(tmp_path, capsys):
    log = open_log(tmp_path)
    train(log, [1, 2])
    log.close()
    (line,) = capsys.readouterr().out.splitlines()
    for fragment in ("epoch   1", "step      2/100", "cls 1.500", "box 15.000", "lr 2.0e-02", "images/s", "ETA 0:"):
        assert fragment in line


def test_an_evaluation_is_recorded_without_the_figures_that_are_not_there(tmp_path, capsys):
    log = open_log(tmp_path)
    train(log, range(1, 21))
    log.evaluation(3, METRICS, [])
    log.close()
    assert records(tmp_path)[-1] == {"step": 20, "epoch": 3, "val/AP": 0.5, "val/AP50": 0.75, "val_class/disc": 0.5}
    assert capsys.readouterr().out.splitlines()[-1] == "epoch   3  val  AP 0.500  AP50 0.750  APS -"


def test_tensorboard_gets_the_same_scalars_and_the_pictures(tmp_path):
    log = open_log(tmp_path)
    train(log, range(1, 5))
    log.evaluation(3, METRICS, [np.full((8, 6, 3), number, np.uint8) for number in range(2)])
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/cls")] == [(2, 1.5), (4, 3.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/AP")] == [(4, 0.5)]
    assert events.Tags()["images"] == ["val/0", "val/1"]
    picture = events.Images("val/1")[0]
    assert (picture.step, picture.height, picture.width) == (4, 8, 6)


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path):
    log = open_log(tmp_path)
    train(log, range(1, 7))
    log.close()
    log = open_log(tmp_path, first_step=4)
    assert [line["step"] for line in records(tmp_path)] == [2, 4]
    train(log, [5, 6])
    log.close()
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[-1]["loss/cls"] == 5.5


@pytest.mark.parametrize("evaluated", [True, False])
def test_an_evaluation_that_is_made_again_is_recorded_once(tmp_path, evaluated):
    log = open_log(tmp_path)
    train(log, range(1, 5))
    log.evaluation(1, METRICS, [])
    log.close()
    open_log(tmp_path, first_step=4, evaluated=evaluated).close()
    assert ["val/AP" in line for line in records(tmp_path)] == [False, False] + [True] * evaluated


def test_a_half_written_last_line_is_dropped(tmp_path):
    log = open_log(tmp_path)
    train(log, range(1, 5))
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "epo')
    open_log(tmp_path, first_step=100).close()
    assert [line["step"] for line in records(tmp_path)] == [2, 4]


def test_a_new_run_starts_empty(tmp_path):
    log = open_log(tmp_path)
    train(log, [1, 2])
    log.close()
    open_log(tmp_path).close()
    assert records(tmp_path) == []


def test_a_process_that_is_not_the_main_one_writes_and_prints_nothing(tmp_path, capsys):
    log = open_log(tmp_path, enabled=False)
    train(log, range(1, 5))
    log.close()
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr() == ("", "")


def test_a_record_that_cannot_be_written_is_told(tmp_path, refusal):
    log = open_log(tmp_path)
    (tmp_path / "metrics.jsonl").mkdir()
    assert f"cannot write {tmp_path / 'metrics.jsonl'}" in refusal(train, log, [1, 2])
    log.close()
