"""The command line, end to end, in real processes; tests/robustness/test_cli_*.py has the rest."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from command_line import ROOT, TWO_PROCESSES, Project, call, records, refuse, succeed, train_and_signal, weights

COMMANDS = ["train.py", "eval.py", *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("*.py")))]
HELP = """
import contextlib, io, json, runpy, sys
printed = {}
for command in sys.argv[1:]:
    sys.argv, text = [command, "--help"], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        runpy.run_path(command, run_name="__main__")
    printed[command] = text.getvalue()
print(json.dumps({"printed": printed, "modules": list(sys.modules)}))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"), train=24, val=4, epochs=1)


@pytest.fixture(scope="module")
def runs(project):
    """The run folders of a study's two rows, six steps each: the config itself, and a detector with a branch."""
    rows = [
        {"name": "plain", "paper": {"AP": 39.2}},
        {"name": "branch", "overrides": {"model.head.box": "dirac", "model.head.quality": "iou_branch"}},
    ]
    tree = {"title": "A table", "base": str(project.config), "baseline": "plain", "rows": rows}
    (project.folder / "table.yaml").write_text(json.dumps(tree))
    out = project.folder / "studies"
    succeed("scripts/study.py", project.folder / "table.yaml", "--out", out)
    report = (out / "table" / "report.md").read_text(encoding="utf-8")
    assert all(f"\n| {row['name']} " in report for row in rows)
    return {row["name"]: next((out / "runs").glob(f"{row['name']}-*/seed0")) for row in rows}


def test_every_help_ends_with_an_example_and_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert [command for command in COMMANDS if "example:" not in result["printed"][command]] == []
    assert not {"torch", "numpy", "cv2"} & set(result["modules"])


def test_no_command_fails_where_its_output_cannot_be_written():
    with open("/dev/full", "w") as full:
        pipes = {"stdout": full, "stderr": subprocess.PIPE}
        running = [subprocess.Popen([sys.executable, ROOT / path, "--help"], cwd=ROOT, **pipes) for path in COMMANDS]
        ended = {
            path: (process.communicate()[1], process.returncode)
            for path, process in zip(COMMANDS, running, strict=True)
        }
    assert ended == dict.fromkeys(COMMANDS, (b"", 0))


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file" / "shapes") in refuse("scripts/make_shapes.py", "--out", tmp_path / "file" / "shapes")


def test_a_run_folder_is_complete(runs):
    run, expected = runs["plain"], {"config.yaml", "last.pt", "best.pt", "metrics.jsonl", "tensorboard"}
    assert expected <= {path.name for path in run.iterdir()}
    printed = (run / "train.log").read_text(encoding="utf-8")  # the summary first, the next command last
    assert all(fragment in printed for fragment in ("24 of 24 images", "4 = 1 process", f"python eval.py {run}"))
    assert [record["step"] for record in records(run, "loss/cls")] == list(range(1, 7))
    assert [record["epoch"] for record in records(run, "val/AP")] == [1]


def test_a_run_stopped_by_sigterm_is_resumed_by_two_processes_and_ends_like_an_uninterrupted_one(runs, project):
    run = project.folder / "stopped"
    command = ["train.py", project.config, f"run_dir={run}"]
    assert train_and_signal(signal.SIGTERM, *command, after="epoch   1  step      1/") == 128 + signal.SIGTERM
    assert 1 <= torch.load(run / "last.pt", weights_only=True)["progress"]["step"] < 6
    assert "processes: 1 -> 2" in succeed(*command, "--resume", launcher=TWO_PROCESSES)
    assert [record["step"] for record in records(run, "loss/cls")] == list(range(1, 7))
    for one, two in zip(records(runs["plain"], "loss/cls"), records(run, "loss/cls"), strict=True):
        assert two["loss/cls"] == pytest.approx(one["loss/cls"], rel=1e-5)
    ours, theirs = weights(run / "last.pt"), weights(runs["plain"] / "last.pt")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


def test_evaluation_repeats_the_metrics_of_training(runs, tmp_path):
    succeed("eval.py", runs["plain"], "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    (recorded,) = records(runs["plain"], "val/AP")
    assert {f"val/{name}": metrics[name] for name in ("AP", "AP50", "AR100")}.items() <= recorded.items()
    assert set(metrics["per_class"]) == {"rectangle", "ellipse", "ring", "cross"}
    assert json.loads((tmp_path / "detections.json").read_text())


def test_prediction_writes_boxes_sides_and_json(runs, project, tmp_path):
    succeed("scripts/predict.py", runs["plain"], project.shapes / "val", "-o", tmp_path, "--score", 0, "--limit", 2)
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    images = sorted((project.shapes / "val").iterdir())[:2]
    assert list(predictions) == [str(image) for image in images]
    for image in images:
        assert (tmp_path / f"{image.stem}.boxes.png").is_file()
        assert (tmp_path / f"{image.stem}.sides.png").is_file()
        assert all(len(entry["side_std"]) == len(entry["bbox"]) == 4 for entry in predictions[str(image)])


def test_analysis_compares_checkpoints(runs, tmp_path):
    named = [runs["plain"] / "best.pt", runs["branch"] / "last.pt"]
    succeed("scripts/analyze.py", *named, "-o", tmp_path, "--score", 0, "--examples", 1)
    analysis = json.loads((tmp_path / "analysis.json").read_text())
    assert list(analysis) == ["best", "last"]
    assert ("shapes" in analysis["best"], "shapes" in analysis["last"]) == (True, False)
    assert {"scores.png", "shapes.png", "best.targets.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_doctor_checks_the_data_and_its_exit_code_says_whether_training_would_refuse_them(project, tmp_path):
    tree = project.annotations("train")
    tree["annotations"][0]["category_id"] = 99
    (tmp_path / "wrong.json").write_text(json.dumps(tree))
    done = call("scripts/doctor.py", tmp_path / "wrong.json", project.shapes / "train", "--json", tmp_path / "out.json")
    assert done.returncode == 2, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["exit_code"] == 2


def test_a_checkpoint_comes_back_from_mmdetection_as_it_was(runs, tmp_path):
    succeed("scripts/convert_checkpoint.py", "--to", "mmdet", runs["plain"], tmp_path / "mmdet.pth")
    succeed("scripts/convert_checkpoint.py", tmp_path / "mmdet.pth", tmp_path / "back.pt")
    ours, back = weights(runs["plain"] / "best.pt"), weights(tmp_path / "back.pt")
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_the_benchmark_times_a_step(project):
    printed = succeed("scripts/benchmark.py", project.config, "--batch", 1, "--size", 64, 64, "--steps", 1)
    assert "images/s" in printed
    assert "peak memory" in printed


@pytest.mark.parametrize("task", ["train", "inference"])
def test_the_benchmark_takes_turns_with_peers(project, task):
    size = ["--batch", 1, "--size", 64, 64, "--classes", 3, "--steps", 1]
    printed = succeed("scripts/benchmark.py", project.config, *size, "--against", "fcos,retinanet", "--task", task)
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == ["ours", "fcos", "retinanet"]
    assert all(f"ours/{name}" in printed for name in ("fcos", "retinanet"))


def test_the_data_benchmark_compares_images_and_a_json(project):
    printed = succeed("scripts/benchmark_data.py", "images", project.config, "--count", 2, "--repeats", 1)
    assert "collated and normalised / albumentations: " in printed
    printed = succeed("scripts/benchmark_data.py", "json", "--images", 20, "--repeats", 1)
    assert "load_coco / pycocotools: " in printed


def test_peers_that_are_not_there_are_refused_in_one_line(project):
    benchmark = ["scripts/benchmark.py", project.config, "--batch", 1, "--size", 64, 64]
    assert "fcos, retinanet, mmdetection" in refuse(*benchmark, "--against", "yolo")
    assert "none/python for mmdetection" in refuse(*benchmark, "--against", "mmdetection=none/python")
    assert "mmdetection stopped: ModuleNotFoundError" in refuse(*benchmark, "--against", "mmdetection")
