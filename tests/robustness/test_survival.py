"""Trainings that are killed, interrupted and restarted; `python tests/robustness/faults.py` does it more often."""

import os
import random
import signal
import time

import faults
import pytest

pytestmark = pytest.mark.robustness


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def check(lines):
    """Every run with faults must end like the undisturbed one."""
    lines = list(lines)
    verdicts = [line for line in lines if line.startswith(("killed_", "interrupted_", "elastic_", "nodes_"))]
    assert verdicts
    assert all(line.endswith("equal to the bit") for line in verdicts), lines


def test_a_run_killed_at_three_moments_resumes_to_the_same_result(folder):
    check(faults.kill(folder, random.Random(0), 3, processes=1, workers=2))


def test_images_that_were_replaced_before_a_kill_are_listed(folder, tmp_path):
    """They are not seen again: it is killed in its last epoch."""
    config = faults.write_config(folder)
    training = faults.Training(config, f"run_dir={tmp_path / 'run'}")
    training.wait_for("step     10/")
    training.kill()
    assert not (tmp_path / "run" / "bad_images.json").exists()
    resumed = faults.Training(config, f"run_dir={tmp_path / 'run'}", "--resume")
    assert resumed.end() == 0, resumed.text
    assert faults.differences(faults.undisturbed_run(folder, config, 1)[0], tmp_path / "run") == []


def test_torchrun_restarts_all_ranks_when_one_is_killed(folder):
    check(faults.elastic(folder, random.Random(0), 1, processes=2, workers=1))


def test_torchrun_restarts_all_nodes_when_a_rank_of_one_is_killed(folder):
    check(faults.nodes(folder, random.Random(0), 1, processes=2, workers=1))


def tasks(folder, run, *words):
    """Two processes started without torchrun, as a scheduler does it."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(faults.free_port())}
    config = faults.write_config(folder)
    return [
        faults.Training(config, f"run_dir={run}", *words, **common, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]


def test_all_processes_stop_when_one_receives_a_signal(folder, tmp_path):
    expected, _ = faults.undisturbed_run(folder, faults.write_config(folder), 2)
    main, other = tasks(folder, tmp_path / "run", "save_interval=100")
    main.wait_for("step      2/")
    faults.send(other.process.pid, signal.SIGUSR1)
    assert [main.end(), other.end()] == [128 + signal.SIGUSR1] * 2, main.text
    assert "stopped after step" in main.text
    assert main.text.strip().endswith("interrupted by SIGUSR1")
    resumed = tasks(folder, tmp_path / "run", "save_interval=100", "--resume")
    assert [training.end() for training in resumed] == [0, 0], resumed[0].text
    assert faults.differences(expected, tmp_path / "run") == []


def test_a_signal_during_start_up_is_recorded_and_a_second_one_ends_at_once(folder, tmp_path):
    training = faults.Training(faults.write_config(folder), f"run_dir={tmp_path / 'run'}")
    while not handles(training.process.pid, signal.SIGUSR1):  # SIGINT has a handler of Python's own from the start
        time.sleep(0.01)
    faults.send(training.process.pid, signal.SIGINT)
    training.wait_for("SIGINT: stopping")
    faults.send(training.process.pid, signal.SIGINT)
    assert training.end(10) == -signal.SIGINT
    assert not (tmp_path / "run").exists()


def handles(pid, signum):
    """Whether a process has a handler for a signal."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(caught >> (signum - 1) & 1)


def test_loader_processes_end_when_their_training_is_killed(folder, tmp_path):
    training = faults.Training(faults.write_config(folder, workers=2), f"run_dir={tmp_path / 'run'}")
    training.wait_for("step      2/")
    children = faults.descendants(training.process.pid)
    assert children
    faults.send(training.process.pid, signal.SIGKILL)
    training.process.wait()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
