"""Races, lost outputs and lost disks, each once; `python tests/robustness/disturbances.py` does it more often."""

import random
import subprocess
import sys

import disturbances
import pytest
from command_line import ENVIRONMENT, ROOT, TWO_PROCESSES
from locked_folder import locked_by_another_process

from gfl.training.run_lock import LOCK_FILE

pytestmark = pytest.mark.robustness


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("disturbances")


def lines(kind, folder, count=1):
    found = list(disturbances.KINDS[kind](folder, random.Random(0), count))
    assert not [line for line in found if "TRACEBACK" in line], found
    verdicts = [line for line in found if line[:1].islower() and "_" in line.split(":")[0]]
    assert all("equal to the bit" in line for line in verdicts), found
    return found


def test_of_two_trainings_in_one_folder_one_is_refused_or_waits(folder):
    found = lines("races", folder, 2)
    assert found[0].startswith(("exits [0, 2], 1 refused naming the other", "exits [2, 0], 1 refused naming the other"))
    assert found[2].startswith("exits [0, 0], 0 refused")
    assert all("both checkpoints readable, 0 temporary files" in line for line in found[1::2])


def test_savers_without_a_lock_damage_nothing_and_disturb_no_reader(folder):
    saves, reads = lines("saves", folder)
    assert ", 0 failed" in saves
    assert ", 0 failed" in reads
    assert reads.endswith("both checkpoints readable")


def test_ctrl_c_before_a_tee_saves(folder):
    assert lines("tee", folder)[0].startswith("exit 130, saved after step")


def test_a_training_whose_output_is_lost_saves_and_resumes(folder):
    assert "exits [143, 0]" in lines("outputs", folder)[0]


def test_a_training_whose_terminal_is_closed_saves(folder):
    assert lines("terminals", folder)[0] == "exit 129, 1 saved"


def test_a_lost_disk_is_one_line_and_a_lost_log_no_reason_to_stop(folder):
    try:
        found = lines("disks", folder, 4)
    except subprocess.CalledProcessError:
        pytest.skip("needs the right to mount")
    reasons = [line for line in found if line.startswith("    error: ")]
    codes = [line.split("exit ")[1][0] for line in found if ": exit " in line]
    assert codes == ["2", "2", "2", "0"], found
    assert len(reasons) == 3, found
    # Of the log's two files; the training may end before it has met the second one.
    assert sum(line.startswith("    warning ") for line in found) in (1, 2, 3), found


def test_all_processes_of_a_refused_training_end(folder):
    config = disturbances.faults.write_config(folder)
    with locked_by_another_process(folder / "run", LOCK_FILE) as other:
        command = [*TWO_PROCESSES, "train.py", str(config), f"run_dir={folder / 'run'}"]
        done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1  # of torchrun
    assert done.stderr.count(f"in use by process {other.pid} on ") == 2


@pytest.mark.parametrize("command", ["eval.py", "scripts/predict.py", "scripts/doctor.py"])
def test_a_command_whose_reader_leaves_writes_its_files(command, folder):
    expected, _ = disturbances.faults.undisturbed_run(folder, disturbances.faults.write_config(folder), 1)
    shapes, out = folder / "shapes", folder / command.replace("/", "_")
    words, file = {
        "eval.py": ([expected, "--out", out], "metrics.json"),
        "scripts/predict.py": ([expected, shapes / "val", "-o", out, "--limit", 2], "predictions.json"),
        "scripts/doctor.py": (
            [shapes / "annotations" / "instances_train.json", shapes / "train", "--json", out / "result.json"],
            "result.json",
        ),
    }[command]
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        pipes = {"stdout": reader.stdin, "stderr": subprocess.PIPE}
        done = subprocess.run([sys.executable, command, *map(str, words)], cwd=ROOT, env=ENVIRONMENT, **pipes)
    found = 2 if command == "scripts/doctor.py" else 0  # some training images are damaged
    assert (done.returncode, done.stderr) == (found, b"")
    assert (out / file).is_file()
