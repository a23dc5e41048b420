"""eval.py and predict.py in real processes: other splits, settings and models, and what is refused."""

import json
import shutil

import pytest
from command_line import TWO_PROCESSES, Project, call, refuse, succeed

pytestmark = pytest.mark.robustness


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"), epochs=1)


def test_evaluation_is_the_same_with_two_processes(project, tmp_path):
    succeed("eval.py", project.trained, "--out", tmp_path / "one")
    succeed("eval.py", project.trained, "--out", tmp_path / "two", launcher=TWO_PROCESSES)
    for name in ("metrics.json", "detections.json"):
        assert json.loads((tmp_path / "one" / name).read_text()) == json.loads((tmp_path / "two" / name).read_text())


def test_other_settings_and_splits_leave_the_metrics_of_the_run(project, tmp_path):
    run = shutil.copytree(project.trained, tmp_path / "run")
    split = project.shapes / "annotations" / "instances_train.json", project.shapes / "train"
    succeed("eval.py", run, "eval.decode=peak", "--data", *split)
    out = run / "instances_train" / "eval.decode=peak"
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "metrics.json"]
    assert not (run / "metrics.json").exists()


def test_a_json_without_annotations_gives_detections_without_metrics(project, tmp_path):
    tree = project.annotations("val")
    del tree["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(tree))
    succeed("eval.py", project.trained, "--data", tmp_path / "test.json", project.shapes / "val", "--out", tmp_path)
    assert json.loads((tmp_path / "detections.json").read_text())
    assert not (tmp_path / "metrics.json").exists()


def test_evaluation_refuses_other_classes(project, tmp_path):
    tree = project.annotations("val") | {"annotations": []}
    tree["categories"] = tree["categories"][:-1]
    (tmp_path / "three.json").write_text(json.dumps(tree))
    assert "cross" in refuse("eval.py", project.trained, "--data", tmp_path / "three.json", project.shapes / "val")


def test_prediction_goes_past_a_damaged_image_and_draws_no_sides_that_are_numbers(project, tmp_path):
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    image = shutil.copy(sorted((project.shapes / "val").iterdir())[0], images / "good.png")
    (images / "damaged.png").write_bytes(b"no image")
    done = call("scripts/predict.py", project.branch, images, "-o", out, "--score", 0)
    assert done.returncode == 2, done.stderr
    assert str(images / "damaged.png") in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["good.boxes.png", "predictions.json"]
    predictions = json.loads((out / "predictions.json").read_text())
    assert list(predictions) == [str(image)]
    assert all(set(entry) == {"label", "score", "bbox"} for entry in predictions[str(image)])
