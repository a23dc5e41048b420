"""Trainings that are killed, interrupted and started again; `python tests/faults.py` does the same more often."""

import os
import random
import signal
import time

import faults
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


def check(lines):
    """Every run that was disturbed ended like the whole one."""
    lines = list(lines)
    verdicts = [line for line in lines if line.startswith(("killed_", "asked_", "elastic_", "nodes_"))]
    assert verdicts
    assert all(line.endswith("equal to the bit") for line in verdicts), lines


def test_killed_at_three_moments_and_resumed(folder):
    check(faults.kill(folder, random.Random(0), 3, processes=1, workers=2))


def test_a_killed_rank_is_started_again_with_the_others(folder):
    check(faults.elastic(folder, random.Random(0), 1, processes=2, workers=1))


def test_a_rank_of_another_node_is_started_again_with_the_others(folder):
    check(faults.nodes(folder, random.Random(0), 1, processes=2, workers=1))


def tasks(folder, run, *words):
    """Two processes that a scheduler starts by itself, without torchrun."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(faults.free_port())}
    config = faults.write_config(folder)
    return [
        faults.Training(config, f"run_dir={run}", *words, **common, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]


def test_one_process_that_is_asked_to_stop_takes_the_others_along(folder, tmp_path):
    whole, _ = faults.whole_run(folder, faults.write_config(folder), 2)
    main, other = tasks(folder, tmp_path / "run", "save_interval=100")
    main.wait_for("step      2/")
    faults.send(other.process.pid, signal.SIGUSR1)
    assert [main.end(), other.end()] == [128 + signal.SIGUSR1] * 2, main.text
    assert "stopped after step" in main.text
    assert main.text.strip().endswith("interrupted by SIGUSR1")
    resumed = tasks(folder, tmp_path / "run", "save_interval=100", "--resume")
    assert [training.end() for training in resumed] == [0, 0], resumed[0].text
    assert faults.differences(whole, tmp_path / "run") == []


def test_a_signal_at_the_very_beginning_is_heard_and_a_second_one_ends_at_once(folder, tmp_path):
    training = faults.Training(faults.write_config(folder), f"run_dir={tmp_path / 'run'}")
    while not hears(training.process.pid, signal.SIGUSR1):  # Python itself hears SIGINT, and dies of it
        time.sleep(0.01)
    faults.send(training.process.pid, signal.SIGINT)
    training.wait_for("SIGINT: saving")
    faults.send(training.process.pid, signal.SIGINT)
    assert training.end(10) == -signal.SIGINT
    assert not (tmp_path / "run").exists()


def hears(pid, signum):
    """Whether a process has a handler for a signal."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(int(line.split()[1], 16) for line in file if line.startswith("SigCgt"))
    return bool(caught >> (signum - 1) & 1)


def test_what_is_left_of_a_kill_is_nothing(folder, tmp_path):
    """Loader processes whose training is gone end by themselves."""
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
