"""Damaged images and killed loader processes end a command in one line, and --resume loses nothing."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, ONE_PROCESS, ROOT, TWO_PROCESSES, Project, records, refuse, succeed, weights

pytestmark = pytest.mark.robustness


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"))


# Images


def test_a_damaged_validation_image_is_named_and_the_epoch_is_kept_and_evaluated_later(project, tmp_path):
    tree = project.annotations("val")
    for image in tree["images"]:
        (tmp_path / image["file_name"]).write_bytes(b"no image")
    (tmp_path / "val.json").write_text(json.dumps(tree))
    data = [f"data.val.annotations={tmp_path / 'val.json'}", f"data.val.images={tmp_path}"]
    run = tmp_path / "run"
    command = ["train.py", project.config, f"run_dir={run}", "optim.epochs=1", *data]
    assert tree["images"][0]["file_name"] in refuse(*command)
    assert (run / "last.pt").is_file()
    for image in tree["images"]:
        shutil.copy(project.shapes / "val" / image["file_name"], tmp_path)
    succeed(*command, "--resume", "log.images=0")
    assert len(records(run, "loss/cls")) == 5  # nothing was trained twice
    assert [record["epoch"] for record in records(run, "val/AP")] == [1]


def test_a_damaged_training_image_stops_a_run_by_default(project, tmp_path):
    folder = shutil.copytree(project.shapes / "train", tmp_path / "train")
    path = sorted(folder.iterdir())[0]
    path.write_bytes(b"no image")
    words = ["train.py", project.config, f"run_dir={tmp_path / 'run'}", f"data.train.images={folder}"]
    assert str(path) in refuse(*words)


@pytest.mark.parametrize("launcher", [ONE_PROCESS, TWO_PROCESSES], ids=["one", "two"])
def test_damaged_training_images_are_replaced_and_listed_and_a_split_without_boxes_has_no_metrics(
    launcher, project, tmp_path
):
    folder, run = shutil.copytree(project.shapes / "train", tmp_path / "train"), tmp_path / "run"
    bad = sorted(folder.iterdir())[::3]
    for path in bad:
        path.write_bytes(b"no image")
    (tmp_path / "val.json").write_text(json.dumps(project.annotations("val") | {"annotations": []}))
    words = [f"run_dir={run}", "data.on_bad_image=skip", f"data.train.images={folder}"]
    words += [f"data.val.annotations={tmp_path / 'val.json'}"]
    printed = succeed("train.py", project.config, *words, launcher=launcher)
    assert set(json.loads((run / "bad_images.json").read_text())) == {path.name for path in bad}
    listed = [line for line in printed.splitlines() if line.startswith("bad ")]
    assert all(any(str(path) in line for line in listed) for path in bad)
    assert "warning  image " in printed
    assert "epoch   2  val  AP -  AP50 -" in printed
    assert not (run / "best.pt").exists()
    assert any((run / "tensorboard").iterdir())
    assert "last.pt on" in succeed("eval.py", run)


# Loader processes


def find_loader(pid: int) -> int:
    """The first loader process of a command; it leads a process group of its own."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(child) == child:
                    return child
        time.sleep(0.01)
    raise AssertionError("no loader process")


def kill_a_loader(*words: object, after: str = "") -> str:
    """Start a command, kill its loader process once a line begins with `after`; the one line on stderr."""
    command = [sys.executable, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        while after and not process.stdout.readline().startswith(after):
            assert process.poll() is None
        os.kill(find_loader(process.pid), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
    (line,) = errors.splitlines()
    return line


def test_a_killed_loader_process_ends_training_in_one_line_and_resume_loses_nothing(project, tmp_path):
    command = ["train.py", project.config, f"run_dir={tmp_path}"]
    line = kill_a_loader(*command, after="epoch   1  step      1/")
    assert line.startswith("error: ")
    assert "data.workers" in line
    assert "--resume" in line
    succeed(*command, "--resume")
    ours, theirs = weights(tmp_path / "last.pt"), weights(project.trained / "last.pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_loader_process_ends_evaluation_in_one_line(project, tmp_path):
    split = [project.shapes / "annotations" / "instances_train.json", project.shapes / "train"]
    line = kill_a_loader("eval.py", project.trained, "--data", *split, "--out", tmp_path)
    assert line.startswith("error: ")
    assert "data.workers" in line
    assert not (tmp_path / "metrics.json").exists()
