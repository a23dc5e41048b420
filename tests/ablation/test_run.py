"""The runs of a study in processes of their own: tiny scripts stand in for train.py."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
import torch
import torchvision
from locked_folder import locked_by_another_process

from gfl.ablation import missing
from gfl.ablation.jobs import LOCK_FILE, Share, train_command
from gfl.ablation.run import run_study
from gfl.ablation.study import StudyOptions, plan

# Records AP 0.2 + 0.1 * seed, or fails as the row's name says.
TRAIN = """
import json, os, sys, time
from pathlib import Path
options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = Path(options["run_dir"])
if options.get("optim.batch") == "3":
    Path(os.environ["GFL_ERROR_FILE"]).write_text("no such data")
    sys.exit(2)
if options.get("optim.batch") == "5":
    print("Traceback")
    sys.exit(1)
if wanted := os.environ.get("TEST_TOGETHER"):  # ends only if as many runs as that are there at a time
    (folder / "started").touch()
    while len(list(folder.parents[1].glob("*/*/started"))) < int(wanted):
        time.sleep(0.01)
record = {"epoch": 1, "val/AP": 0.2 + 0.1 * int(options["seed"]), "val/AR1": float(os.environ["OMP_NUM_THREADS"])}
if options.get("optim.batch") != "7":
    (folder / "metrics.jsonl").write_text(json.dumps(record))
"""


@pytest.fixture
def study(tmp_path):
    """Options for a study of three rows, and the script that trains them."""
    rows = [
        {"name": "plain", "paper": {"AP": 39.0}},
        {"name": "new", "overrides": {"optim.batch": 4}, "paper": {"AP": 40.0}, "expect": "better"},
        {"name": "refused", "overrides": {"optim.batch": 3}},
        {"name": "crashed", "overrides": {"optim.batch": 5}},
        {"name": "silent", "overrides": {"optim.batch": 7}},
    ]
    tree = {"title": "A table", "base": "base.yaml", "baseline": "plain", "rows": rows}
    (tmp_path / "table.yaml").write_text(json.dumps(tree))
    (tmp_path / "base.yaml").write_text("optim: {epochs: 1}\nmodel: {backbone: {name: resnet18, weights: none}}")
    (tmp_path / "train.py").write_text(TRAIN)
    return StudyOptions(str(tmp_path / "table.yaml"), out=tmp_path / "out"), tmp_path / "train.py"


def test_finished_runs_are_reported_and_skipped_by_the_next_command(study, tmp_path, capsys):
    options, script = study
    options = options._replace(rows=("plain", "new"))
    run_study(options, script)
    report = (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")
    assert "20.0" in next(line for line in report.splitlines() if line.startswith("| plain"))
    assert {path.name for path in (tmp_path / "out" / "table").iterdir()} == {
        *("report.md", "report.csv", "report.png", "runs.csv")
    }
    script.write_text("raise SystemExit(1)")  # nothing is trained again
    run_study(options, script)
    assert "2 runs, 2 of them finished" in capsys.readouterr().out
    run_study(options._replace(rows=("plain",)), script)
    assert "--rows plain new`" in (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")


def test_failures_are_reported_and_the_other_rows_are_trained(study, tmp_path, refusal):
    options, script = study
    refusal(run_study, options, script)
    report = (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")
    failed = dict(line[2:].split(", seed 0: ") for line in report.splitlines() if ", seed 0: " in line)
    assert "--rows" not in report
    assert failed["refused"] == "no such data"  # the message of its `UserError`
    assert "train.log" in failed["crashed"]
    assert "AP" in failed["silent"]
    assert len(list((tmp_path / "out" / "runs").glob("*/seed0/metrics.jsonl"))) == 2


def test_seeds_of_earlier_commands_stay_in_the_report(study, tmp_path):
    options, script = study
    options = options._replace(rows=("plain", "new"))
    table = json.loads((tmp_path / "table.yaml").read_text())
    (tmp_path / "table.yaml").write_text(json.dumps(table | {"rows": table["rows"][:2]}))
    run_study(options._replace(seeds=range(2)), script)
    run_study(options._replace(seeds=range(3), rows=("plain",)), script)
    run_study(options, script)
    report = (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")
    assert "25.0 ± 7.1" in report  # of 20 and 30
    assert "--seeds 2" in report


def test_a_run_that_another_study_trains_is_left_alone(study, tmp_path, refusal):
    options, script = study
    options = options._replace(rows=("plain",))
    (run,) = plan(options.study, root=options.out / "runs", only=["plain"])
    with locked_by_another_process(run.folder, LOCK_FILE) as other:
        refusal(run_study, options, script)
    assert not (run.folder / "metrics.jsonl").exists()
    assert f"process {other.pid} " in (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")
    run_study(options, script)
    assert (run.folder / "metrics.jsonl").exists()


def test_runs_train_at_a_time_with_their_share_of_the_cores_and_every_result_is_kept(study, tmp_path, monkeypatch):
    options, script = study
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setenv("TEST_TOGETHER", "2")
    run_study(options._replace(rows=("plain", "new"), jobs=2, seeds=range(2)), script)
    with open(tmp_path / "out" / "table" / "runs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], row["seed"], row["AP"], row["AR1"], row["threads"]) for row in rows] == [
        ("plain", "0", "20.0", "300.0", "3"),
        ("new", "0", "20.0", "300.0", "3"),
        ("plain", "1", "30.0", "300.0", "3"),
        ("new", "1", "30.0", "300.0", "3"),
    ]
    assert all(float(row["seconds"]) > 0 and row["torch"] == torch.__version__ for row in rows)
    report = (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")
    assert "threads per process: 3" in report
    assert "--jobs 2" in report


def test_an_interrupted_run_adds_its_time_and_conditions(study, tmp_path):
    options, script = study
    (run,) = options.plan([0], ["plain"])
    run.folder.mkdir(parents=True)
    session = {"seconds": 100.0, "threads": 64, "torch": "1.0", "machine": "another"}
    (run.folder / "sessions.jsonl").write_text(json.dumps(session) + "\n")
    run_study(options._replace(rows=("plain",)), script)
    with open(tmp_path / "out" / "table" / "runs.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert 100 < float(row["seconds"]) < 160
    assert row["threads"].startswith("64 + ")


def test_the_start_weights_of_a_run_are_on_record(study, tmp_path):
    options, script = study
    options = options._replace(rows=("plain",))
    start = tmp_path / "start.pt"
    start.write_bytes(b"weights")
    (tmp_path / "base.yaml").write_text(f"optim: {{epochs: 1}}\nmodel: {{backbone: {{weights: {start}}}}}")
    run_study(options, script)
    with open(tmp_path / "out" / "table" / "runs.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["start"] == hashlib.sha256(b"weights").hexdigest()[:12]
    assert row["start"] in (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")


def test_equal_rows_share_one_run_also_at_a_time(study, tmp_path):
    options, script = study
    table = json.loads((tmp_path / "table.yaml").read_text())
    table["rows"] = [{"name": "plain"}, {"name": "same"}, {"name": "other", "overrides": {"optim.batch": 4}}]
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    run_study(options._replace(jobs=3), script)
    assert len(list((tmp_path / "out" / "runs").glob("*/*/sessions.jsonl"))) == 2
    for path in (tmp_path / "out" / "runs").glob("*/*/sessions.jsonl"):
        assert len(path.read_text().splitlines()) == 1


def test_jobs_get_gpus_of_their_own_where_there_are_several(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def gpus(share):
        return [share.environment(place).get("CUDA_VISIBLE_DEVICES") for place in range(share.jobs)]

    assert gpus(Share(jobs=4)) == ["0", "1", "2", "3"]
    assert gpus(Share(jobs=2, nproc=2)) == ["0,1", "2,3"]
    assert gpus(Share(jobs=5))[4] == "0"
    assert gpus(Share(jobs=1)) == [None]  # as it is
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert gpus(Share(jobs=2)) == ["3", "GPU-5"]


def test_what_is_missing_is_named_with_its_rows_and_the_command_that_makes_it(study, tmp_path, monkeypatch):
    options, _ = study
    monkeypatch.chdir(tmp_path)
    table = json.loads((tmp_path / "table.yaml").read_text())
    table["rows"][1]["overrides"] = {"data.train.annotations": "data/shapes/a.json", "model.weights": "runs/unknown"}
    table["rows"][2]["overrides"] = {"data.val.images": "data/shapes/val"}
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    assert missing.find_missing(options.plan([0])) == [
        (("data/shapes/a.json", "data/shapes/val"), ("new", "refused"), missing.COMMANDS["data/shapes"]),
        (("runs/unknown",), ("new",), missing.UNKNOWN),
    ]


def test_imagenet_weights_are_named_unless_they_are_in_the_cache_of_torch(study, tmp_path, monkeypatch):
    options, _ = study
    (tmp_path / "scale.yaml").write_text("model: {backbone: {weights: torchvision}}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    runs = options._replace(scale=str(tmp_path / "scale.yaml")).plan([0])
    file = tmp_path / "hub" / "checkpoints" / Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    rows = ("plain", "new", "refused", "crashed", "silent")
    assert missing.find_downloads(runs) == [((str(file),), rows, missing.DOWNLOADED)]
    assert missing.find_missing(runs) == []
    file.parent.mkdir(parents=True)
    file.touch()
    assert missing.find_downloads(runs) == []


def test_quick_starts_from_the_demo_where_the_start_of_its_scale_is_missing(tmp_path, monkeypatch):
    scales = Path(__file__).resolve().parents[2] / "configs" / "scales"
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("model: {backbone: {weights: mine.pt}}")
    assert missing.start_of_demo(str(scales / "quick.yaml")) == ""
    for path in reversed(missing.DEMOS):
        Path(path).parent.mkdir(parents=True)
        Path(path).touch()
        assert missing.start_of_demo(str(scales / "quick.yaml")) == path
        assert missing.start_of_demo("own.yaml") == ""
    Path(missing.START).parent.mkdir()
    Path(missing.START).touch()
    assert missing.start_of_demo(str(scales / "quick.yaml")) == ""


def test_a_quick_report_has_two_rows_and_says_what_it_starts_from(study, tmp_path, monkeypatch):
    options, script = study
    monkeypatch.chdir(tmp_path)
    Path("demo.pt").touch()
    table = json.loads((tmp_path / "table.yaml").read_text())
    (tmp_path / "table.yaml").write_text(json.dumps(table | {"headline": "new"}))
    run_study(options._replace(quick=True, start="demo.pt", scale=None), script)
    report = (tmp_path / "out" / "table-quick" / "report.md").read_text(encoding="utf-8")
    lines = [line.split("|")[1].strip() for line in report.splitlines() if line.startswith("|")]
    assert lines[2:] == ["plain", "new"]
    assert "--quick" in report
    assert "demo.pt" in report


def test_quick_decides_nothing_even_where_the_whole_study_has_more_seeds(study, tmp_path):
    options, script = study
    table = json.loads((tmp_path / "table.yaml").read_text())
    (tmp_path / "table.yaml").write_text(json.dumps(table | {"headline": "new"}))
    run_study(options._replace(rows=("plain", "new"), seeds=range(2)), script)
    run_study(options._replace(quick=True), script)
    with open(tmp_path / "out" / "table-quick" / "report.csv", newline="", encoding="utf-8") as file:
        found = {row["row"]: (row["seeds"], row["verdict"]) for row in csv.DictReader(file)}
    assert found == {"plain": ("1", ""), "new": ("1", "open")}


def test_rows_that_cannot_be_built_and_missing_weights_are_refused_before_anything_runs(study, tmp_path, refusal):
    options, script = study
    (tmp_path / "scale.yaml").write_text("model: {backbone: {weights: nowhere.pt}}")
    message = refusal(run_study, options._replace(scale=str(tmp_path / "scale.yaml")), script)
    assert message.code == "missing"
    assert "nowhere.pt" in message
    table = json.loads((tmp_path / "table.yaml").read_text())
    table["rows"][1]["overrides"] = {"model.head.box": "dirac", "model.head.quality": "dgqp"}
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    message = refusal(run_study, options, script)
    assert "row 'new'" in message
    assert "model.head.quality" in message
    table["rows"][1]["overrides"] = {"loss.distill.teacher": "nowhere/best.pt"}
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    message = refusal(run_study, options, script)
    assert message.code == "missing"
    assert "nowhere/best.pt" in message
    (tmp_path / "scale.yaml").write_text("eval: {patience: 2}")
    assert refusal(run_study, options._replace(scale=str(tmp_path / "scale.yaml")), script).code == "unequal_training"
    assert not (tmp_path / "out").exists()


def test_several_processes_are_started_by_torchrun(study):
    options, script = study
    run = options.plan([0], ["plain"])[0]
    assert train_command(run, script, 1)[-1] == train_command(run, script, 2)[-1] == "--resume"
    assert train_command(run, script, 2)[1:5] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
    ]
