"""The command line, end to end, in real processes on a tiny set of soft shapes."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ["train.py", "eval.py", *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("*.py")))]
ONE_PROCESS = [sys.executable]
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

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
optim: {name: sgd, lr: 0.01, base_batch: 4, batch: 4, epochs: 2, warmup_steps: 2, steps: [1]}
eval: {score_thresh: 0.0, max_detections: 20}
log: {interval: 1, images: 1}
"""


def call(*words: object, launcher: list[str] = ONE_PROCESS) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def succeed(*words: object, launcher: list[str] = ONE_PROCESS) -> str:
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


def records(run: Path, key: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    succeed("scripts/make_shapes.py", "--out", folder, "--train", 20, "--val", 7)
    return folder


@pytest.fixture(scope="module")
def config(shapes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(CONFIG.replace("DATA", str(shapes)))
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> Path:
    """A run of two epochs, five steps each, and beside it what it printed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    (run.parent / "stdout").write_text(succeed("train.py", config, f"run_dir={run}"))
    return run


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_ends_with_an_example_and_imports_nothing_heavy(program):
    done = call("-X", "importtime", program, "--help")
    assert done.returncode == 0
    assert "example:" in done.stdout
    assert not any(heavy in done.stderr for heavy in ("torch", "numpy", "cv2"))


def test_training_says_what_it_will_do_and_what_is_next(trained):
    printed = (trained.parent / "stdout").read_text()
    for expected in ("20 of 20 images", "4: 0 rectangle (id 1)", "parameters", "4 = 1 process", "2 epochs x 5 = 10"):
        assert expected in printed
    assert printed.strip().endswith(f"next: python eval.py {trained}")


def test_training_leaves_a_complete_run_folder(trained):
    for name in ("config.yaml", "last.pt", "best.pt"):
        assert (trained / name).is_file()
    assert any((trained / "tensorboard").iterdir())
    assert [record["step"] for record in records(trained, "loss/cls")] == list(range(1, 11))
    assert [record["epoch"] for record in records(trained, "val/AP")] == [1, 2]


def test_a_run_is_never_overwritten(trained, config):
    before = (trained / "last.pt").read_bytes()
    assert "--resume" in refuse("train.py", config, f"run_dir={trained}")
    assert (trained / "last.pt").read_bytes() == before


def test_evaluation_repeats_the_figures_of_training(trained, tmp_path):
    printed = succeed("eval.py", trained / "last.pt", "--out", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    last = records(trained, "val/AP")[-1]
    assert {name: metrics[name] for name in ("AP", "AP50", "AR100")} == {
        name: last[f"val/{name}"] for name in ("AP", "AP50", "AR100")
    }
    assert set(metrics["per_class"]) == {"rectangle", "ellipse", "ring", "cross"}
    assert "rectangle" in printed


def test_evaluation_is_the_same_with_two_processes(trained, tmp_path):
    succeed("eval.py", trained, "--out", tmp_path / "one")
    succeed("eval.py", trained, "--out", tmp_path / "two", launcher=TWO_PROCESSES)
    for name in ("metrics.json", "detections.json"):
        assert json.loads((tmp_path / "one" / name).read_text()) == json.loads((tmp_path / "two" / name).read_text())


def test_other_settings_leave_the_figures_of_the_run(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    printed = succeed("eval.py", run, "eval.decode=peak")
    assert sorted(path.name for path in (run / "eval.decode=peak").iterdir()) == ["detections.json", "metrics.json"]
    assert str(run / "eval.decode=peak" / "metrics.json") in printed
    assert not (run / "metrics.json").exists()


def test_json_without_annotations_gives_results_without_figures(trained, shapes, tmp_path):
    tree = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    del tree["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(tree))
    succeed("eval.py", trained, "--data", tmp_path / "test.json", shapes / "val", "--out", tmp_path)
    assert {result["image_id"] for result in json.loads((tmp_path / "detections.json").read_text())}
    assert not (tmp_path / "metrics.json").exists()


def test_prediction_writes_two_pictures_and_the_sides(trained, shapes, tmp_path):
    image = sorted((shapes / "val").iterdir())[0]
    succeed("scripts/predict.py", trained, image, "-o", tmp_path, "--score", 0.0)
    assert (tmp_path / f"{image.stem}.boxes.png").is_file()
    assert (tmp_path / f"{image.stem}.sides.png").is_file()
    objects = json.loads((tmp_path / "predictions.json").read_text())[str(image)]
    assert objects
    assert len(objects[0]["side_std"]) == 4


@pytest.fixture(scope="module")
def branch(config, tmp_path_factory) -> Path:
    """A run of a model whose sides are numbers and whose scores are multiplied by a branch."""
    run = tmp_path_factory.mktemp("runs") / "branch"
    choice = ["model.head.box=dirac", "model.head.quality=iou_branch", "optim.epochs=1"]
    succeed("train.py", config, f"run_dir={run}", *choice)
    return run


def test_prediction_of_sides_without_distributions_is_one_picture(branch, shapes, tmp_path):
    image = sorted((shapes / "val").iterdir())[0]
    succeed("scripts/predict.py", branch, image, "-o", tmp_path, "--score", 0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{image.stem}.boxes.png", "predictions.json"]
    objects = json.loads((tmp_path / "predictions.json").read_text())[str(image)]
    assert set(objects[0]) == {"label", "score", "bbox"}


def test_analysis_compares_checkpoints_and_leaves_out_what_they_lack(trained, branch, tmp_path):
    printed = succeed("scripts/analyze.py", trained, branch, "-o", tmp_path, "--score", 0.0, "--examples", 1)
    told = json.loads((tmp_path / "analysis.json").read_text())
    assert set(told) == {"run", "branch"}
    assert (tmp_path / "scores.png").is_file()
    assert {"run.targets.png", "branch.targets.png"} <= {path.name for path in tmp_path.iterdir()}
    assert sum(told["run"]["shapes"].values()) == pytest.approx(1)
    assert any(tmp_path.glob("run.*.0.png"))
    assert "shapes" not in told["branch"]
    assert str(tmp_path / "analysis.json") in printed


def test_analysis_names_checkpoints_by_as_much_of_their_path_as_differs(trained, shapes, tmp_path):
    for name in ("lr0.01", "lr0.02"):
        (tmp_path / name).mkdir()
        shutil.copy(trained / "best.pt", tmp_path / name)
    tree = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    tree["annotations"] = [entry | {"bbox": [0, 0, 1.5, 1.5]} for entry in tree["annotations"]]  # under every stride
    (tmp_path / "small.json").write_text(json.dumps(tree))
    words = [tmp_path / "lr0.01", tmp_path / "lr0.02", "--data", tmp_path / "small.json", shapes / "val"]
    printed = succeed("scripts/analyze.py", *words, "-o", tmp_path / "out", "--examples", 0)
    assert set(json.loads((tmp_path / "out" / "analysis.json").read_text())) == {"lr0.01", "lr0.02"}
    assert "no point learns any box" in printed


def test_analysis_refuses_what_it_cannot_look_at(trained, shapes, tmp_path):
    assert "twice" in refuse("scripts/analyze.py", trained, trained, "-o", tmp_path)
    tree = json.loads((shapes / "annotations" / "instances_val.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(tree))
    words = ["--data", tmp_path / "empty.json", shapes / "val", "-o", tmp_path]
    assert "no boxes" in refuse("scripts/analyze.py", trained, *words)
    assert "is a file" in refuse("scripts/analyze.py", trained, "-o", tmp_path / "empty.json")


@pytest.fixture
def study(config, tmp_path) -> list[object]:
    """The command of a study with a row that cannot run, and one that is the baseline again."""
    rows = [
        {"name": "plain", "paper": {"AP": 39.2}},
        {"name": "broken", "overrides": {"data.train.annotations": "nowhere.json"}},
        {"name": "peak", "overrides": {"eval.decode": "peak"}, "paper": {"AP": 40.1}},
    ]
    tree = {"title": "A table", "base": str(config), "baseline": "plain", "rows": rows}
    (tmp_path / "tiny.yaml").write_text(json.dumps(tree))
    (tmp_path / "scale.yaml").write_text("optim: {epochs: 1}\nlog: {images: 0}")
    return ["scripts/study.py", tmp_path / "tiny.yaml", "--scale", tmp_path / "scale.yaml", "--out", tmp_path / "out"]


def test_a_study_goes_past_a_failure_reports_it_and_skips_what_is_finished(study, tmp_path):
    done = call(*study)
    assert done.returncode == 2
    assert "1 of 3 runs failed" in done.stderr
    assert "[2/3] broken, seed 0: error: cannot read annotations nowhere.json" in done.stdout
    folder = tmp_path / "out" / "tiny-scale"
    text = (folder / "report.md").read_text()
    assert all(expected in text for expected in ("| plain", "| +0.9", "nowhere.json"))
    assert (folder / "report.csv").is_file()
    assert (folder / "report.png").is_file()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/seed0/last.pt")}
    assert len(finished) == 2
    assert "1 runs, 1 of them finished" in succeed(*study, "--rows", "peak")
    assert (folder / "report.md").read_text().strip() == text.split("Failed")[0].strip()  # also the other rows
    assert "3 runs, 2 of them finished" in call(*study).stdout
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())


def test_the_dry_run_of_a_study_prints_commands_that_run_and_runs_nothing(study, tmp_path):
    printed = succeed(*study, "--dry-run", "--rows", "plain", "--seeds", 2, "--nproc", 2)
    launchers = [line.split()[1:5] for line in printed.splitlines() if not line.startswith("#")]
    assert launchers == [["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]] * 2
    assert not (tmp_path / "out").exists()
    _, command = succeed(*study, "--dry-run", "--rows", "plain").splitlines()
    succeed(*shlex.split(command)[1:])
    assert "1 runs, 1 of them finished" in succeed(*study, "--rows", "plain")


def test_a_row_that_is_no_detector_is_told_before_anything_runs(study, tmp_path):
    text = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(
        text.replace('"eval.decode": "peak"', '"model.head.box": "dirac", "model.head.quality": "dgqp"')
    )
    assert "row 'peak': model.head.quality: dgqp" in refuse(*study, "--dry-run")
    (tmp_path / "tiny.yaml").write_text(text.replace("eval.decode", "eval.decoded"))
    assert "row 'peak': unknown key eval.decoded" in refuse(*study, "--dry-run")


def test_what_a_row_of_several_processes_failed_of_is_told(study):
    done = call(*study, "--rows", "broken", "--nproc", 2)
    assert done.returncode == 2
    assert "broken, seed 0: error: cannot read annotations nowhere.json" in done.stdout


def test_a_start_that_is_not_there_is_told_before_anything_runs(study, tmp_path):
    (tmp_path / "scale.yaml").write_text("model: {backbone: {weights: nowhere.pt}}")
    message = refuse(*study)
    assert "nowhere.pt" in message
    assert str(tmp_path / "scale.yaml") in message
    assert not (tmp_path / "out").exists()


def test_an_interrupted_study_goes_on_where_it_stopped(study, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, study), "--rows", "plain"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while not (records_yet := list((tmp_path / "out").glob("runs/*/seed0/metrics.jsonl"))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        assert run.wait(timeout=120) == 130
    assert not records(records_yet[0].parent, "val/AP")
    succeed(*study, "--rows", "plain")
    assert [record["step"] for record in records(records_yet[0].parent, "loss/cls")] == list(range(1, 6))


def test_a_reader_that_has_seen_enough_is_no_error(study):
    words = [sys.executable, *map(str, study), "--dry-run"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(words, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_interrupted_and_resumed_run_equals_an_uninterrupted_one(config, trained, tmp_path):
    command = ["train.py", config, f"run_dir={tmp_path}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as run:
        for line in run.stdout:
            if line.startswith("epoch   1  step      2/"):
                run.send_signal(signal.SIGINT)
        assert run.wait(timeout=120) == 130
    stopped = torch.load(tmp_path / "last.pt", weights_only=True)["progress"]
    assert (stopped["epoch"], 2 <= stopped["step"] < 5) == (0, True)
    succeed(*command, "--resume")
    ours, theirs = weights(tmp_path / "last.pt"), weights(trained / "last.pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [record["step"] for record in records(tmp_path, "loss/cls")] == list(range(1, 11))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_like_one(accumulate, config, tmp_path):
    common = ["train.py", config, "optim.epochs=1", f"optim.accumulate={accumulate}"]
    succeed(*common, f"run_dir={tmp_path / 'one'}")
    succeed(*common, f"run_dir={tmp_path / 'two'}", launcher=TWO_PROCESSES)
    for one, two in zip(*(records(tmp_path / name, "loss/cls") for name in ("one", "two")), strict=True):
        for name in ("loss/cls", "loss/box", "loss/dfl"):
            assert two[name] == pytest.approx(one[name], rel=1e-5)
    ours, theirs = weights(tmp_path / "one" / "last.pt"), weights(tmp_path / "two" / "last.pt")
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optim.learning_rate=0.1"], "optim.learning_rate"),
        (["optim.lr=1e-4"], "1.0e-4"),
        (["data.train.annotations=nowhere.json"], "nowhere.json"),
        (["model.head.quality=centerness"], "joint"),
        (["model.backbone.weights=nowhere.pth"], "nowhere.pth"),
        (["assign.kind=simota"], "fcos"),
        (["model.head.quality=dgqp", "model.head.box=dirac"], "distributions"),
    ],
)
def test_bad_configuration_is_one_line_and_exit_code_2(words, expected, config, tmp_path):
    assert expected in refuse("train.py", config, f"run_dir={tmp_path / 'run'}", *words)
    assert not (tmp_path / "run").exists()


def test_damaged_image_is_named_and_the_epoch_is_kept_and_evaluated_later(config, shapes, tmp_path):
    tree = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    for image in tree["images"]:
        (tmp_path / image["file_name"]).write_bytes(b"not a picture")
    (tmp_path / "val.json").write_text(json.dumps(tree))
    data = [f"data.val.annotations={tmp_path / 'val.json'}", f"data.val.images={tmp_path}"]
    run = tmp_path / "run"
    command = ["train.py", config, f"run_dir={run}", "optim.epochs=1", *data]
    assert tree["images"][0]["file_name"] in refuse(*command)
    assert (run / "last.pt").is_file()
    for image in tree["images"]:
        shutil.copy(shapes / "val" / image["file_name"], tmp_path)
    succeed(*command, "--resume", "log.images=0")
    assert len(records(run, "loss/cls")) == 5  # nothing was trained twice
    assert [record["epoch"] for record in records(run, "val/AP")] == [1]


@pytest.mark.parametrize(
    ("change", "expected"), [("optim.name=adamw", "optim.name"), ("optim.batch=2", "steps per epoch"), ("seed=1", "")]
)
def test_resuming_with_another_config_is_refused_or_told(change, expected, trained, config, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    command = ["train.py", config, f"run_dir={run}", "--resume", change]
    if expected:
        assert expected in refuse(*command)
        return
    assert "changed  seed: 0 -> 1" in succeed(*command)


def test_evaluation_refuses_what_is_no_checkpoint(tmp_path, config):
    assert "no checkpoint" in refuse("eval.py", tmp_path)
    assert "tiny.yaml" in refuse("eval.py", config)


def test_evaluation_refuses_other_classes(trained, shapes, tmp_path):
    tree = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    tree["categories"] = tree["categories"][:-1]
    tree["annotations"] = []
    (tmp_path / "three.json").write_text(json.dumps(tree))
    assert "cross" in refuse("eval.py", trained, "--data", tmp_path / "three.json", shapes / "val")


# Starting from a checkpoint


def renamed(shapes: Path, path: Path, split: str, names: dict[str, str]) -> Path:
    """The json of a split with other class names, and ids in reverse so that labels are others too."""
    tree = json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
    for entry in tree["categories"]:
        entry["name"], entry["id"] = names.get(entry["name"], entry["name"]), 100 - entry["id"]
    for entry in tree["annotations"]:
        entry["category_id"] = 100 - entry["category_id"]
    path.write_text(json.dumps(tree))
    return path


def test_fine_tuning_keeps_classes_by_name_and_resumes_without_its_start(trained, config, shapes, tmp_path):
    shutil.copy(trained / "last.pt", tmp_path / "start.pt")
    words = [
        f"data.{split}.annotations={renamed(shapes, tmp_path / f'{split}.json', split, {'ring': 'donut'})}"
        for split in ("train", "val")
    ]
    common = ["train.py", "configs/finetune.yaml", config, *words, f"model.weights={tmp_path / 'start.pt'}"]
    # With a rate of next to nothing, what was taken over is still there afterwards.
    common += ["optim.lr=1.0e-12", "optim.weight_decay=0.0", "model.backbone.weights=torchvision"]
    common += [f"run_dir={tmp_path / 'run'}"]
    printed = succeed(*common, "optim.epochs=1")
    start = tmp_path / "start.pt"
    assert f"weights  {start}: 3 of 4 classes kept (cross, ellipse, rectangle), fresh: donut" in printed
    before, after = weights(start), weights(tmp_path / "run" / "last.pt")
    torch.testing.assert_close(after["head.cls_out.weight"][[0, 2, 3]], before["head.cls_out.weight"][[3, 1, 0]])
    torch.testing.assert_close(after["head.reg_out.weight"], before["head.reg_out.weight"])
    start.unlink()
    printed = succeed(*common, "optim.epochs=2", "--resume")
    assert "weights  " not in printed
    assert [record["epoch"] for record in records(tmp_path / "run", "val/AP")] == [1, 2]


def test_a_start_that_does_not_fit_is_one_line(trained, config, tmp_path):
    common = ["train.py", config, f"run_dir={tmp_path / 'run'}"]
    message = refuse(*common, f"model.weights={trained}", "model.head.num_convs=2")
    assert message.endswith("add to the command: model.head.num_convs=1")
    assert not (tmp_path / "run").exists()
    assert "data.train.annotations" in refuse("train.py", "configs/finetune.yaml", f"run_dir={tmp_path / 'run'}")


# Loaders and shards


def loader_of(pid: int) -> int:
    """The first loader process of a program; it leads a process group of its own."""
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
    """Run a program, kill its loader process once a line begins with `after`, and return what stands on stderr."""
    command, environment = [sys.executable, *map(str, words)], os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as run:
        while after and not run.stdout.readline().startswith(after):
            assert run.poll() is None
        os.kill(loader_of(run.pid), signal.SIGKILL)
        _, told = run.communicate(timeout=120)
        assert run.returncode == 2, told
        return told


def test_a_killed_loader_process_ends_training_in_one_line_and_resume_loses_nothing(config, trained, tmp_path):
    command = ["train.py", config, f"run_dir={tmp_path}"]
    told = kill_a_loader(*command, after="epoch   1  step      1/")
    assert told.startswith("error: a loader process died")
    assert len(told.splitlines()) == 1
    assert "data.workers" in told
    assert "--resume" in told
    succeed(*command, "--resume")
    ours, theirs = weights(tmp_path / "last.pt"), weights(trained / "last.pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_killed_loader_process_ends_evaluation_in_one_line(trained, shapes, tmp_path):
    data = [shapes / "annotations" / "instances_train.json", shapes / "train"]
    told = kill_a_loader("eval.py", trained, "--data", *data, "--out", tmp_path)
    assert told.startswith("error: a loader process died")
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "metrics.json").exists()


def cut(shapes: Path, path: Path, split: str, *, images: int = 100, annotations: int = 10_000) -> list[str]:
    """Overrides for a split of its first images, and of the first annotations of those."""
    tree = json.loads((shapes / "annotations" / f"instances_{split}.json").read_text())
    tree["images"] = tree["images"][:images]
    kept = {image["id"] for image in tree["images"]}
    tree["annotations"] = [entry for entry in tree["annotations"] if entry["image_id"] in kept][:annotations]
    path.write_text(json.dumps(tree))
    return [f"data.{split}.annotations={path}", f"data.{split}.images={shapes / split}"]


def test_two_processes_share_one_image_to_train_on_and_one_box_to_find(config, shapes, tmp_path):
    """A class without examples has no figure; the second process has nothing to evaluate."""
    words = cut(shapes, tmp_path / "train.json", "train", images=1)
    words += cut(shapes, tmp_path / "val.json", "val", images=1, annotations=1)
    run = tmp_path / "run"
    printed = succeed("train.py", config, *words, f"run_dir={run}", launcher=TWO_PROCESSES)
    assert "2 epochs x 1 = 2" in printed
    figures = records(run, "val/AP")[-1]
    assert len([key for key in figures if key.startswith("val_class/")]) == 1
    assert (run / "best.pt").is_file()
    table = succeed("eval.py", run, launcher=TWO_PROCESSES).splitlines()
    assert sum(line.split()[1:] == ["-", "-"] for line in table) == 3


@pytest.mark.parametrize("launcher", [ONE_PROCESS, TWO_PROCESSES], ids=["one", "two"])
def test_bad_training_images_are_replaced_and_listed_and_a_split_without_boxes_has_no_figures(
    launcher, config, shapes, tmp_path
):
    folder, run = shutil.copytree(shapes / "train", tmp_path / "train"), tmp_path / "run"
    bad = sorted(folder.iterdir())[::3]
    for path in bad:
        path.write_bytes(b"not a picture")
    words = [f"run_dir={run}", "data.on_bad_image=skip", f"data.train.images={folder}"]
    words += cut(shapes, tmp_path / "val.json", "val", annotations=0)
    printed = succeed("train.py", config, *words, launcher=launcher)
    listed = json.loads((run / "bad_images.json").read_text())
    assert set(listed) == {path.name for path in bad}
    assert f"bad      {len(bad)} training images were replaced" in printed
    assert all(f"bad      image {path} is damaged" in printed for path in bad)
    assert "warning  image " in printed
    assert "epoch   2  val  AP -  AP50 -" in printed
    assert "done: best AP -" in printed
    assert not (run / "best.pt").exists()
    assert any((run / "tensorboard").iterdir())
    assert "last.pt on" in succeed("eval.py", run)


def test_a_bad_training_image_stops_a_run_that_was_not_told_to_go_on(config, shapes, tmp_path):
    folder = shutil.copytree(shapes / "train", tmp_path / "train")
    path = sorted(folder.iterdir())[0]
    path.write_bytes(b"not a picture")
    words = ["train.py", config, f"run_dir={tmp_path / 'run'}", f"data.train.images={folder}"]
    assert f"image {path} is damaged" in refuse(*words)
