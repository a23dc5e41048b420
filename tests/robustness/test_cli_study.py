"""scripts/study.py in real processes: failures, dry runs and interruptions."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from command_line import ENVIRONMENT, ROOT, Project, call, records, refuse, succeed

pytestmark = pytest.mark.robustness


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def study(project, tmp_path):
    """The command of a study with a row that cannot run, and one that differs from the baseline in decoding."""
    rows = [
        {"name": "plain", "paper": {"AP": 39.2}},
        {"name": "broken", "overrides": {"data.train.annotations": str(tmp_path / "broken.json")}},
        {"name": "peak", "overrides": {"eval.decode": "peak"}, "paper": {"AP": 40.1}, "expect": "better"},
    ]
    tree = {"title": "A table", "base": str(project.config), "baseline": "plain", "rows": rows}
    (tmp_path / "tiny.yaml").write_text(json.dumps(tree))
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "scale.yaml").write_text("optim: {epochs: 1}\nlog: {images: 0}")
    return ["scripts/study.py", tmp_path / "tiny.yaml", "--scale", tmp_path / "scale.yaml", "--out", tmp_path / "out"]


def test_a_study_goes_past_a_failure_reports_it_and_skips_finished_runs(study, tmp_path):
    done = call(*study)
    assert done.returncode == 2
    assert "broken.json" in next(line for line in done.stdout.splitlines() if line.startswith("[2/3] broken"))
    folder = tmp_path / "out" / "tiny-scale"
    report = (folder / "report.md").read_text(encoding="utf-8")
    assert all(fragment in report for fragment in ("| plain", "| +0.9", "better", "open", "broken.json"))
    assert {"report.csv", "report.png", "runs.csv"} <= {path.name for path in folder.iterdir()}
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("runs/*/seed0/last.pt")}
    assert len(finished) == 2
    succeed(*study, "--rows", "peak")
    again = (folder / "report.md").read_text(encoding="utf-8")
    chosen = " --rows plain peak"  # also has the other rows
    assert again.replace(chosen, "").strip() == report.split("Failed")[0].strip()
    assert chosen in again
    assert call(*study).returncode == 2
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())


def test_the_message_of_a_row_that_several_processes_failed_on_is_reported(study):
    done = call(*study, "--rows", "broken", "--nproc", 2)
    assert done.returncode == 2
    assert "broken.json" in next(line for line in done.stdout.splitlines() if line.startswith("[1/1] broken"))


def test_a_dry_run_prints_commands_that_run_and_runs_nothing(study, tmp_path):
    printed = succeed(*study, "--dry-run", "--rows", "plain", "--seeds", 2, "--nproc", 2)
    launchers = [line.split()[1:5] for line in printed.splitlines() if not line.startswith("#")]
    assert launchers == [["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]] * 2
    assert not (tmp_path / "out").exists()
    _, command = succeed(*study, "--dry-run", "--rows", "plain").splitlines()
    succeed(*shlex.split(command)[1:])
    assert "1 runs, 1 of them finished" in succeed(*study, "--rows", "plain")
    assert "finished, AP" in succeed(*study, "--dry-run", "--rows", "plain").splitlines()[0]
    (tmp_path / "broken.json").unlink()
    (line,) = [line for line in succeed(*study, "--dry-run").splitlines() if line.startswith("# missing")]
    assert "broken.json (rows broken)" in line
    assert "broken.json" in refuse(*study)


def test_quick_is_two_rows_at_a_time_and_takes_no_choice_of_its_own(study):
    rows = [line for line in succeed(*study, "--dry-run", "--quick").splitlines() if line.startswith("#")]
    assert rows == ["# plain, seed 0", "# peak, seed 0"]
    assert call(*study, "--quick", "--seeds", 2).returncode == call(*study, "--quick", "--rows", "peak").returncode == 2
    dry = succeed("scripts/study.py", "configs/studies/table3.yaml", "--dry-run", "--quick")
    assert "configs/scales/quick.yaml" in dry


def test_an_interrupted_study_continues_with_the_next_command(study, tmp_path):
    command = [sys.executable, *map(str, study), "--rows", "plain"]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, start_new_session=True, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while not (found := list((tmp_path / "out").glob("runs/*/seed0/metrics.jsonl"))):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        assert run.wait(timeout=120) == 130
    assert not records(found[0].parent, "val/AP")
    succeed(*study, "--rows", "plain")
    assert [record["step"] for record in records(found[0].parent, "loss/cls")] == list(range(1, 6))


def test_the_end_of_a_study_stops_all_its_runs_and_each_continues(study, tmp_path):
    command = [sys.executable, *map(str, study), "--rows", "plain", "--seeds", "2", "--jobs", "2"]
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while len(found := list((tmp_path / "out").glob("runs/*/seed*/metrics.jsonl"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        run.terminate()  # the study alone, as a scheduler may
        assert run.wait(timeout=120) == 130
    assert any(not records(path.parent, "val/AP") for path in found)
    assert all((path.parent / "last.pt").is_file() for path in found)
    succeed(*command[1:])
    for path in found:
        assert [record["step"] for record in records(path.parent, "loss/cls")] == list(range(1, 6))


def test_a_study_that_is_repeated_has_the_same_results_to_the_digit(study, tmp_path):
    def results(out, *options):
        succeed(*study[:-1], tmp_path / out, "--rows", "plain", "--seeds", 2, *options)
        with open(tmp_path / out / "tiny-scale" / "runs.csv", newline="", encoding="utf-8") as file:
            metrics = [row | {"seconds": ""} for row in csv.DictReader(file)]
        (group,) = (tmp_path / out / "runs").iterdir()  # losses too: so short a training finds nothing
        losses = [[record["loss/cls"] for record in records(group / name, "loss/cls")] for name in ("seed0", "seed1")]
        return metrics, losses

    first = results("once")
    assert first[1][0] != first[1][1]
    assert results("at_a_time", "--jobs", 2) == first  # one thread each, see ENVIRONMENT


def test_a_closed_pipe_is_no_traceback(study):
    command = [sys.executable, *map(str, study), "--dry-run"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writing)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
