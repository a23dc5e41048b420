"""Every row of every committed study trains a step on tiny data and is evaluated."""

import argparse
import json
from pathlib import Path

import pytest

import train
from gfl.ablation.study import load_study, plan
from gfl.build import build_detector
from gfl.checkpoint import BEST, detector_content, write_torch_file
from gfl.config_file import load_config
from gfl.training.signals import StopRequest

pytestmark = pytest.mark.robustness

STUDIES = sorted((Path(__file__).resolve().parents[2] / "configs" / "studies").glob("*.yaml"))
ROWS = [(study, row.name) for study in STUDIES for row in load_study(study).rows]
TINY = [
    "model.backbone.weights=none",
    "model.fpn.channels=64",
    "model.head.channels=64",
    "model.head.num_convs=1",
    "data.short_side=64",
    "data.long_side=96",
    "data.workers=0",
    "optim.epochs=1",
    "optim.batch=2",
    "optim.warmup_steps=0",
    "log.images=0",
]


def write_teacher(folder, overrides, config):
    """An untrained detector of the same config."""
    folder.mkdir()
    config = load_config(config, overrides)
    write_torch_file(folder / BEST, detector_content(build_detector(config, 1).state_dict(), config, ["disc"]))
    return folder


@pytest.mark.parametrize(("study", "row"), ROWS, ids=[f"{study.stem}-{row}" for study, row in ROWS])
def test_the_row_trains_a_step_and_is_evaluated(study, row, tmp_path, coco_set):
    data = coco_set([(96, 64), (96, 64)], [(0, 7, [10, 10, 60, 40]), (1, 7, [30, 5, 30, 50])])
    (run,) = plan(study, root=tmp_path, only=[row])
    own = [
        f"data.{split}.{key}={getattr(data, key)}" for split in ("train", "val") for key in ("annotations", "images")
    ]
    overrides = [*run.arguments[1:], *TINY, *own]
    if run.config.loss.distill.teacher != "none":
        overrides.append(f"loss.distill.teacher={write_teacher(tmp_path / 'teacher', overrides, run.arguments[0])}")
    train.main(argparse.Namespace(config=run.arguments[0], overrides=overrides, resume=""), StopRequest([]))
    records = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    losses = next(record for record in records if "loss/cls" in record)
    assert 0 < losses["loss/box"] < 10
    assert ("loss/ld" in losses) == (run.config.loss.distill.teacher != "none")
    assert "val/AP" in records[-1]
