"""Errors about files of other codebases name the command that converts them, and what is printed runs as it is."""

import shlex
import subprocess
import sys

import pytest
import torch
from external_models import CONFIGS, ROOT, assert_same_state, mmdet2, mmdet3, small_detector

from gfl.checkpoint import load_detector, read_checkpoint
from gfl.model.backbone import Backbone
from gfl.tools.convert.state_dict import to_mmdet
from gfl.training.initial_weights import load_backbone_weights


@pytest.mark.parametrize("write", [mmdet2, mmdet3])
def test_every_reader_of_checkpoints_names_the_command_that_converts(write, refusal, tmp_path):
    path = tmp_path / "in.pth"
    torch.save(write(small_detector("gfl")), path)
    command = shlex.join(["python", "scripts/convert_checkpoint.py", str(path), str(tmp_path / "in_gfl.pt")])
    for read in (load_detector, read_checkpoint, lambda p: load_backbone_weights(Backbone("resnet18"), "resnet18", p)):
        assert command in refusal(read, path)


def run_printed(command):
    """What a printed command prints."""
    assert command.startswith("python ")
    command = shlex.quote(sys.executable) + command.removeprefix("python")
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_printed_commands_convert_an_old_file_and_evaluate_it(refusal, coco_set, tmp_path):
    path, out = tmp_path / "with a space.pth", tmp_path / "with a space_gfl.pt"
    torch.save(mmdet2(small_detector("gfl")), path, _use_new_zipfile_serialization=False)
    data = coco_set(categories={1: "disc", 2: "ring", 3: "cross"}, boxes=[(0, 1, [10, 10, 20, 15])])
    printed = run_printed(refusal(load_detector, path).partition("convert it: ")[2])
    for part in ("mmdetection 2.25.0", "resnet18", "reg_max 16", "3: disc, ring, cross"):
        assert part in printed
    assert_same_state(to_mmdet(load_detector(out).model.state_dict(), CONFIGS["gfl"]), small_detector("gfl"))
    command = printed.strip().splitlines()[-1].removeprefix("next").strip()
    assert "AP" in run_printed(command.replace("ANNOTATIONS.json IMAGES/", shlex.join([data.annotations, data.images])))
