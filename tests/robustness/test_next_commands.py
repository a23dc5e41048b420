"""Every `next:` command runs as it is printed, also for folders with spaces and images in sub-folders."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from command_line import ENVIRONMENT, ROOT, Project, call, refuse, succeed
from PIL import Image

pytestmark = pytest.mark.robustness
SMALL = (
    "optim.epochs=1 optim.min_steps=0 optim.batch=4 optim.amp=none data.workers=0 data.short_side=64 data.long_side=64"
)


def next_commands(printed):
    return re.findall(r"^next: (.+)$", printed, flags=re.MULTILINE)


def run_printed(command, *, accepted=(0,)):
    """Run a printed command, split as a shell does; `python` is the interpreter of the tests."""
    python, *words = shlex.split(command)
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode in accepted, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("a project"), train=4, val=2, epochs=1)


def test_from_the_data_to_pictures(project, tmp_path):
    """make_shapes names train, train names eval, eval names predict."""
    printed = succeed("scripts/make_shapes.py", "--out", project.shapes, "--train", 4, "--val", 2)
    (train,) = next_commands(printed)
    run = tmp_path / "a run"
    (evaluate,) = next_commands(run_printed(f"{train} {SMALL} 'run_dir={run}'"))
    (predict,) = next_commands(run_printed(evaluate))
    run_printed(predict)
    assert len(json.loads((run / "pictures" / "predictions.json").read_text())) == 2

    images = tmp_path / "more images"
    tree = project.annotations("val")
    for entry in tree["images"]:
        (images / "sub").mkdir(parents=True, exist_ok=True)
        shutil.copy(project.shapes / "val" / entry["file_name"], images / "sub")
        entry["file_name"] = f"sub/{entry['file_name']}"
    (tmp_path / "more.json").write_text(json.dumps(tree))
    printed = succeed("eval.py", run, "--data", tmp_path / "more.json", images, "--out", images / "results")
    (predict,) = next_commands(printed)
    for _ in range(2):  # the second time without the pictures of the first
        run_printed(predict)
        written = json.loads((images / "results" / "pictures" / "predictions.json").read_text())
        assert len(written) == 2

    video = tmp_path / "a.mp4"
    video.write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64))
    picture = images / tree["images"][0]["file_name"]
    assert "video" in refuse("scripts/predict.py", run, video, "-o", tmp_path / "out")
    assert picture.name in succeed("scripts/predict.py", run, picture, images / "sub", "-o", tmp_path / "out")


def test_the_scale_that_prediction_asks_for_can_be_given(project, tmp_path):
    run = project.trained
    picture = tmp_path / "a.tif"
    Image.fromarray(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)).save(picture)
    words = ["scripts/predict.py", run, picture, "-o", tmp_path / "out"]
    option = re.search(r"data\.bit_depth=\S+", refuse(*words))[0]
    assert picture.name in succeed(*words, "--override", option)


def test_converted_annotations_are_checked(project, tmp_path):
    folder = tmp_path / "a set"
    for split in ("train", "val"):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / "labels" / split).mkdir(parents=True)
        shutil.copytree(project.shapes / split, folder / "images" / split)
        for image in (folder / "images" / split).iterdir():
            (folder / "labels" / split / f"{image.stem}.txt").write_text("0 .5 .5 .2 .4\n")
    (folder / "data.yaml").write_text("path: .\ntrain: images/train\nval: images/val\nnames: [thing]\n")
    for splits in (["train", "val"], ["train"]):
        printed = succeed(
            "scripts/to_coco.py", "yolo", folder / "data.yaml", "--out", folder / "coco", "--splits", *splits
        )
        (check,) = next_commands(printed)
        commands = next_commands(run_printed(check, accepted=(0, 1)))
        assert len(commands) == len(splits) - 1  # training needs both
        for train in commands:
            untrained = "model.weights=none model.backbone={name: resnet18, weights: none}"
            words = shlex.join([*SMALL.split(), *untrained.split(" ", 1), f"run_dir={tmp_path / 'a run'}"])
            run_printed(f"{train} {words}")


def test_a_json_without_splits_is_divided_and_checked(project, tmp_path):
    """Six images of which two are a copy of another: divided at random they leak, and the doctor says how to repair."""
    folder = tmp_path / "a set"
    shutil.copytree(project.shapes / "train", folder / "images")
    tree = project.annotations("train")
    for number, entry in enumerate(tree["images"][:2]):
        name = f"copy{number}.jpg"
        with Image.open(folder / "images" / entry["file_name"]) as image:
            image.convert("RGB").save(folder / "images" / name, quality=60)
        boxes = [box for box in tree["annotations"] if box["image_id"] == entry["id"]]
        tree["images"].append(entry | {"id": 100 + number, "file_name": name})
        tree["annotations"] += [box | {"id": 1000 + box["id"], "image_id": 100 + number} for box in boxes]
    (folder / "all.json").write_text(json.dumps(tree))
    words = ["scripts/split.py", folder / "all.json", folder / "images", "--val-share", "0.5"]
    for seed in range(9):
        out = folder / str(seed)
        (check,) = next_commands(succeed(*words, "--seed", seed, "--out", out))
        repair, *_ = next_commands(run_printed(f"{check} --near-duplicates", accepted=(0, 1)))
        if "split.py" in repair:
            break
    (check,) = next_commands(run_printed(repair))
    (train,) = next_commands(run_printed(f"{check} --near-duplicates", accepted=(0, 1)))  # and nothing to repair
    untrained = "model.weights=none model.backbone={name: resnet18, weights: none}"
    words = shlex.join([*SMALL.split(), *untrained.split(" ", 1), f"run_dir={tmp_path / 'a run'}"])
    run_printed(f"{train} {words}")


def test_a_cleaned_json_is_checked(project, tmp_path):
    """The doctor names the command, whose next command is the doctor, which then has no error."""
    images = tmp_path / "the images"
    shutil.copytree(project.shapes / "train", images)
    tree = project.annotations("train")
    (images / tree["images"][0]["file_name"]).write_bytes(b"")
    tree["annotations"][0]["category_id"] = 77
    (tmp_path / "all.json").write_text(json.dumps(tree))
    done = call("scripts/doctor.py", tmp_path / "all.json", images)
    assert done.returncode == 2
    (clean,) = next_commands(done.stdout)
    (check,) = next_commands(run_printed(clean))
    assert "--write-clean" in clean
    run_printed(check, accepted=(0, 1))
