"""Commands in real processes on a tiny set of soft shapes."""

import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
ONE_PROCESS = [sys.executable]
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# The commands run the package of this checkout, whichever is installed.
SEARCH_PATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": SEARCH_PATH}

CONFIG = """
model:
  backbone: {name: resnet18, weights: none, frozen_stages: -1, norm_eval: true}
  fpn: {channels: 64}
  head: {channels: 64, num_convs: 1}
data:
  train: {annotations: DATA/annotations/instances_train.json, images: DATA/train}
  val: {annotations: DATA/annotations/instances_val.json, images: DATA/val}
  short_side: 96
  long_side: 96
  workers: 1
optim: {name: sgd, lr: 0.01, base_batch: 4, batch: 4, epochs: EPOCHS, warmup_steps: 2, steps: [1]}
eval: {score_thresh: 0.0, max_detections: 20}
log: {interval: 1, images: 1}
"""


def call(*words: object, launcher: list[str] = ONE_PROCESS) -> subprocess.CompletedProcess:
    command = [*launcher, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


def succeed(*words: object, launcher: list[str] = ONE_PROCESS) -> str:
    """What the command prints."""
    done = call(*words, launcher=launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refuse(*words: object) -> str:
    """The one line on stderr of a command that must exit with 2."""
    done = call(*words)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def train_and_signal(signum: int, *words: object, after: str) -> int:
    """The exit code of a command that gets a signal when it has printed a line that starts with `after`."""
    command = [sys.executable, *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(after):
                process.send_signal(signum)
        return process.wait(timeout=120)


def records(run: Path, key: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl that have `key`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


class Project:
    """A folder with a tiny data set, a config and trained runs, each made when it is first used."""

    def __init__(self, folder: Path, *, train: int = 20, val: int = 7, epochs: int = 2) -> None:
        self.folder, self.train, self.val, self.epochs = folder, train, val, epochs

    @cached_property
    def shapes(self) -> Path:
        path = self.folder / "shapes"
        succeed("scripts/make_shapes.py", "--out", path, "--train", self.train, "--val", self.val)
        return path

    @cached_property
    def config(self) -> Path:
        path = self.folder / "tiny.yaml"
        path.write_text(CONFIG.replace("DATA", str(self.shapes)).replace("EPOCHS", str(self.epochs)))
        return path

    @cached_property
    def trained(self) -> Path:
        """The run folder of an uninterrupted run with the config's settings; `printed` is its output."""
        run = self.folder / "runs" / "trained"
        self.printed = succeed("train.py", self.config, f"run_dir={run}")
        return run

    @cached_property
    def branch(self) -> Path:
        """The run folder of a detector whose sides are numbers and whose quality is a branch."""
        run = self.folder / "runs" / "branch"
        choice = ["model.head.box=dirac", "model.head.quality=iou_branch", "optim.epochs=1"]
        succeed("train.py", self.config, f"run_dir={run}", *choice)
        return run

    def annotations(self, split: str) -> dict[str, Any]:
        return json.loads((self.shapes / "annotations" / f"instances_{split}.json").read_text())
