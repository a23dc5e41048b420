"""What a run says at its start and its end."""

import json
import shlex

import pytest

from gfl.checkpoint import Progress
from gfl.config_file import config_from_dict
from gfl.training.metrics_file import METRICS_FILE
from gfl.training.summary import end_summary, limit_notes


def config_of(folder, epochs=12):
    return config_from_dict({"run_dir": str(folder), "optim": {"epochs": epochs}}, "test")


def end_of_run(folder, losses, best, epochs=12):
    records = [{"step": step, "epoch": 1, "loss/cls": loss, "loss/box": 0.5} for step, loss in enumerate(losses)]
    text = "".join(json.dumps(record) + "\n" for record in [*records, {"step": 9, "epoch": 1, "val/AP": best}])
    (folder / METRICS_FILE).write_text(text)
    lines = end_summary(config_of(folder, epochs), Progress(epochs, best=best, steps_per_epoch=22))
    assert lines[0].startswith("done: best AP ")
    assert lines[-1] == f"next: python eval.py {folder}"
    return lines[1:-1]


FALLING, RISING = [3.0, 2.0, 1.0], [1.0, 2.0, 3.0]


def test_a_run_that_learned_ends_without_a_warning(tmp_path):
    assert end_of_run(tmp_path, FALLING, 0.4) == []


@pytest.mark.parametrize(
    ("losses", "best", "words"),
    [
        (FALLING, 0.0, ["optim.epochs", "3.500", "1.500"]),
        (RISING, 0.0, ["optim.lr", "1.500", "3.500"]),
        (RISING, 0.4, ["optim.lr"]),
        ([1.0], 0.0, ["optim.epochs"]),
        (FALLING, -1.0, ["data.val"]),
    ],
    ids=["AP 0", "nothing learned", "loss not fallen", "one record", "no AP"],
)
def test_a_run_that_failed_to_learn_says_so_and_what_to_try(tmp_path, losses, best, words):
    (line,) = end_of_run(tmp_path, losses, best)
    assert line.startswith("warning")
    assert all(word in line for word in words)


def test_a_low_ap_after_few_steps_names_the_epochs_that_are_enough(tmp_path):
    (line,) = end_of_run(tmp_path, FALLING, 0.068)
    assert all(word in line for word in ("0.068", "264 steps", "optim.min_steps=1500", "69 epochs"))
    assert end_of_run(tmp_path, FALLING, 0.068, epochs=69) == []


def test_a_run_without_records_has_an_end(tmp_path):
    assert len(end_summary(config_of(tmp_path), Progress(12, best=0.5, steps_per_epoch=22))) == 2


def test_of_many_notes_the_first_are_shown_and_the_doctor_reports_the_others():
    splits = {name: {"annotations": f"{name}.json", "images": f"my {name}"} for name in ("train", "val")}
    config = config_from_dict({"data": splits, "run_dir": "runs/mine"}, "test")
    notes = [f"number {number}" for number in range(20)]
    assert limit_notes(notes[:12], config) == notes[:12]
    *shown, last = limit_notes(notes, config)
    assert shown == notes[:11]
    count, command = last.split(" more: ")
    assert count == "and 9"
    expected = ["python", "scripts/doctor.py", "train.json", "my train", "--val", "val.json", "my val", "--config"]
    assert shlex.split(command) == [*expected, "runs/mine/config.yaml"]


def test_a_run_that_was_stopped_early_is_not_called_too_short(tmp_path):
    config = config_from_dict({"run_dir": str(tmp_path), "eval": {"patience": 2}}, "test")
    (note,) = end_summary(config, Progress(4, best=0.1, steps_per_epoch=22, since_best=2))[1:-1]
    assert "eval.patience" in note
