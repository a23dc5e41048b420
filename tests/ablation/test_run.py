"""The runs of a study in processes of their own: tiny scripts stand in for train.py."""

import json

import pytest
from locked_folder import locked_by_another_process

from gfl.ablation.run import LOCK_FILE, StudyOptions, run_study, train_command
from gfl.ablation.study import plan

# Records AP 0.2 + 0.1 * seed, or fails as the row's name says.
TRAIN = """
import json, os, sys
from pathlib import Path
options = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = Path(options["run_dir"])
if options.get("optim.batch") == "3":
    Path(os.environ["GFL_ERROR_FILE"]).write_text("no such data")
    sys.exit(2)
if options.get("optim.batch") == "5":
    print("Traceback")
    sys.exit(1)
record = {"epoch": 1, "val/AP": 0.2 + 0.1 * int(options["seed"])}
if options.get("optim.batch") != "7":
    (folder / "metrics.jsonl").write_text(json.dumps(record))
"""


@pytest.fixture
def study(tmp_path):
    """Options for a study of three rows, and the script that trains them."""
    rows = [
        {"name": "plain", "paper": {"AP": 39.0}},
        {"name": "new", "overrides": {"optim.batch": 4}, "paper": {"AP": 40.0}},
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
    assert {path.name for path in (tmp_path / "out" / "table").iterdir()} == {"report.md", "report.csv", "report.png"}
    script.write_text("raise SystemExit(1)")  # nothing is trained again
    run_study(options, script)
    assert "2 runs, 2 of them finished" in capsys.readouterr().out


def test_failures_are_reported_and_the_other_rows_are_trained(study, tmp_path, refusal):
    options, script = study
    refusal(run_study, options, script)
    report = (tmp_path / "out" / "table" / "report.md").read_text(encoding="utf-8")
    failed = dict(line[2:].split(", seed 0: ") for line in report.splitlines() if ", seed 0: " in line)
    assert failed["refused"] == "no such data"  # the message of its `UserError`
    assert "train.log" in failed["crashed"]
    assert "AP" in failed["silent"]
    assert len(list((tmp_path / "out" / "runs").glob("*/seed0/metrics.jsonl"))) == 2


def test_seeds_of_earlier_commands_stay_in_the_report(study, tmp_path):
    options, script = study
    options = options._replace(rows=("plain", "new"))
    table = json.loads((tmp_path / "table.yaml").read_text())
    (tmp_path / "table.yaml").write_text(json.dumps(table | {"rows": table["rows"][:2]}))
    run_study(options._replace(seeds=2), script)
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


def test_rows_that_cannot_be_built_and_missing_weights_are_refused_before_anything_runs(study, tmp_path, refusal):
    options, script = study
    (tmp_path / "scale.yaml").write_text("model: {backbone: {weights: nowhere.pt}}")
    message = refusal(run_study, options._replace(scale=str(tmp_path / "scale.yaml")), script)
    assert "nowhere.pt" in message
    assert str(tmp_path / "scale.yaml") in message
    table = json.loads((tmp_path / "table.yaml").read_text())
    table["rows"][1]["overrides"] = {"model.head.box": "dirac", "model.head.quality": "dgqp"}
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    message = refusal(run_study, options, script)
    assert "row 'new'" in message
    assert "model.head.quality" in message
    table["rows"][1]["overrides"] = {"loss.distill.teacher": "nowhere/best.pt"}
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    message = refusal(run_study, options, script)
    assert message.code == "no_teacher"
    assert "nowhere/best.pt" in message
    (tmp_path / "scale.yaml").write_text("eval: {patience: 2}")
    assert refusal(run_study, options._replace(scale=str(tmp_path / "scale.yaml")), script).code == "unequal_training"
    assert not (tmp_path / "out").exists()


def test_several_processes_are_started_by_torchrun(study):
    options, script = study
    run = options.plan(1, ["plain"])[0]
    assert train_command(run, script, 1)[-1] == train_command(run, script, 2)[-1] == "--resume"
    assert train_command(run, script, 2)[1:5] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
    ]
