"""What a run records, and what a resumed run keeps of it."""

import io
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gfl.checkpoint import Progress
from gfl.config_file import config_from_dict
from gfl.evaluation.coco_eval import METRIC_NAMES
from gfl.training.log import RunLog, fit_parts

METRICS = {"AP": 0.5, "AP50": 0.75, "APS": None, "per_class": {"disc": {"AP": 0.5}, "ring": {"AP": None}}}
STEPS_PER_EPOCH = 10


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_log(run_dir, *, epochs=10, done=0, enabled=True):
    """The log of a run that resumes after `done` steps; a checkpoint after an epoch's last step is before its end."""
    config = config_from_dict({"optim": {"epochs": epochs, "batch": 4}, "log": {"interval": 2}}, "test")
    progress = Progress(epoch=done // STEPS_PER_EPOCH, step=done % STEPS_PER_EPOCH, steps_per_epoch=STEPS_PER_EPOCH)
    return RunLog(run_dir, config, progress, STEPS_PER_EPOCH, enabled=enabled)


def train(log, steps, last=None):
    for step in steps:
        losses = {"cls": torch.tensor(float(step)), "box": torch.tensor(10.0 * step)}
        epoch = 1 + (step - 1) // STEPS_PER_EPOCH
        log.train_step(step, epoch, losses, rate=0.01 * step, last=step == last)


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_means_are_recorded_every_interval_and_after_an_epochs_last_step(tmp_path):
    log = open_log(tmp_path)
    train(log, range(1, 6), last=5)
    log.close()
    lines = records(tmp_path)
    assert [(line["step"], line["loss/cls"], line["loss/box"], line["lr"]) for line in lines] == [
        (2, 1.5, 15.0, 0.02),
        (4, 3.5, 35.0, 0.04),
        (5, 5.0, 50.0, 0.05),
    ]
    assert all(line["epoch"] == 1 and line["images_per_s"] > 0 for line in lines)


def test_a_plain_line_has_losses_rate_speed_and_remaining_time(tmp_path, capsys):
    log = open_log(tmp_path)
    train(log, [1, 2])
    log.close()
    (line,) = capsys.readouterr().out.splitlines()
    for fragment in ("epoch   1", "2/100", "cls 1.500", "box 15.000", "lr 2.0e-02", "images/s", "ETA 0:"):
        assert fragment in line


def test_an_evaluation_is_recorded_without_undefined_metrics(tmp_path, capsys):
    log = open_log(tmp_path)
    train(log, range(1, 21))
    log.evaluation(METRICS, [])
    log.close()
    assert records(tmp_path)[-1] == {"step": 20, "epoch": 2, "val/AP": 0.5, "val/AP50": 0.75, "val_class/disc": 0.5}
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "epoch",
        "2",
        "val",
        "AP",
        "0.500",
        "AP50",
        "0.750",
        "APS",
        "-",
    ]


@pytest.mark.parametrize("width", [20, 30, 80])
def test_parts_fit_a_terminal_and_none_is_lost(width):
    parts = ["epoch   7  val", *(f"AP{n} 0.{n}00" for n in range(1, 8))]
    lines = fit_parts(parts, width)
    assert " ".join(lines).split() == " ".join(parts).split()
    assert all(len(line) <= max(width, len(parts[0]) + 10) for line in lines)
    assert all(line.startswith(" " * len(parts[0])) for line in lines[1:])


def terminal_lines(log, terminal, step):
    """What a terminal of 80 columns shows after `step`, and its evaluation: the lines, and the bar below them."""
    train(log, range(1, step + 1))
    log.evaluation(dict.fromkeys(METRIC_NAMES, 0.1234) | {"per_class": {}}, [])
    shown = terminal.getvalue().replace("\x1b[A", "")
    parts = [part for part in re.split("[\r\n]", shown) if part.strip()]
    return [part for part in parts if "|" not in part], [part for part in parts if "|" in part][-1]


def test_80_columns_show_the_epoch_a_bar_and_the_history_of_losses(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (80, 24))
    log = open_log(tmp_path)
    lines, bar = terminal_lines(log, terminal, 20)
    log.close()
    assert bar.startswith("epoch 2/10 |")
    assert len(bar.split("|")[1]) > 15
    assert "20/100" in bar
    assert all(len(line) <= 80 for line in [*lines, bar])
    assert [line.split()[3] for line in lines if "cls" in line] == [str(step) for step in range(2, 21, 2)]
    assert lines[-2].split()[:4] == ["epoch", "2", "val", "AP"]
    assert lines[-1].split()[::2] == [name for name in METRIC_NAMES if name.startswith("AR")]


def test_tensorboard_gets_the_same_scalars_and_the_images(tmp_path):
    log = open_log(tmp_path)
    train(log, range(1, 5))
    log.evaluation(METRICS, [np.full((8, 6, 3), number, np.uint8) for number in range(2)])
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/cls")] == [(2, 1.5), (4, 3.5)]
    assert [(event.step, event.value) for event in events.Scalars("val/AP")] == [(4, 0.5)]
    assert events.Tags()["images"] == ["val/0", "val/1"]
    image = events.Images("val/1")[0]
    assert (image.step, image.height, image.width) == (4, 8, 6)


def test_a_resumed_run_drops_the_records_after_its_checkpoint(tmp_path):
    log = open_log(tmp_path)
    train(log, range(1, 7))
    log.close()
    log = open_log(tmp_path, done=4)
    assert [line["step"] for line in records(tmp_path)] == [2, 4]
    train(log, [5, 6])
    log.close()
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[-1]["loss/cls"] == 5.5


@pytest.mark.parametrize("evaluated", [True, False])
def test_an_evaluation_that_is_repeated_after_resuming_is_recorded_once(tmp_path, evaluated):
    log = open_log(tmp_path)
    train(log, range(1, 11))
    log.evaluation(METRICS, [])
    log.close()
    config = config_from_dict({"log": {"interval": 2}}, "test")
    progress = Progress(epoch=1, step=0) if evaluated else Progress(epoch=0, step=STEPS_PER_EPOCH)
    RunLog(tmp_path, config, progress, STEPS_PER_EPOCH, enabled=True).close()
    assert ["val/AP" in line for line in records(tmp_path)] == [False] * 5 + [True] * evaluated


def test_a_last_line_that_was_cut_off_is_dropped_and_reported(tmp_path, capsys):
    log = open_log(tmp_path)
    train(log, range(1, 5))
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "epo')
    capsys.readouterr()
    open_log(tmp_path, done=99).close()
    assert [line["step"] for line in records(tmp_path)] == [2, 4]
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning  1 ")
    open_log(tmp_path, done=99).close()
    assert capsys.readouterr().out == ""


def test_a_new_run_starts_without_records(tmp_path):
    log = open_log(tmp_path)
    train(log, [1, 2])
    log.close()
    open_log(tmp_path).close()
    assert records(tmp_path) == []


def test_processes_but_the_main_one_write_and_print_nothing(tmp_path, capsys):
    log = open_log(tmp_path, enabled=False)
    train(log, range(1, 5))
    log.close()
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr() == ("", "")


def make_unwritable(folder):
    (folder / "metrics.jsonl").mkdir()


def break_events(folder):
    for path in (folder / "tensorboard").iterdir():
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    ("fault", "named"),
    [(make_unwritable, "metrics.jsonl"), (break_events, "tensorboard"), (shutil.rmtree, "metrics.jsonl")],
)
def test_training_goes_on_without_a_log_that_cannot_be_written_and_says_so_once(tmp_path, capfd, fault, named):
    log = open_log(tmp_path / "run")
    fault(tmp_path / "run")
    train(log, range(1, 7))
    log.evaluation(METRICS, [])
    log.close()
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("warning ")]
    assert str(tmp_path / "run" / named) in line


def test_what_can_be_written_is_recorded_even_if_the_rest_cannot(tmp_path):
    log = open_log(tmp_path)
    break_events(tmp_path)
    train(log, [1, 2])
    (tmp_path / "metrics.jsonl").rename(tmp_path / "moved")
    train(log, [3, 4])
    assert [line["step"] for line in records(tmp_path)] == [4]


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path, refusal):
    (tmp_path / "tensorboard").touch()
    assert refusal(open_log, tmp_path).code == "unwritable"
