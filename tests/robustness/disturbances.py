"""What people and machines do to a training: `python tests/robustness/disturbances.py races --count 20`.

Each kind repeats one disturbance and compares what is left with an undisturbed run, or reads what must be readable.
"""

import argparse
import os
import pty
import random
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for tiny_run

import faults
from tiny_run import Progress, save

from gfl.checkpoint import LAST, PREVIOUS, read_checkpoint
from gfl.common.errors import UserError

VARIABLES = os.environ | {"OMP_NUM_THREADS": "1"}  # as the undisturbed run: other threads change the last bits
OUTPUTS = [  # redirections of a shell that nobody can read
    ">/dev/full 2>&1",
    ">&- 2>&-",
    ">&- 2>&- <&-",
    "2>&1 | true",
    "2>/dev/full | head -n 1",
]
READABLE = "both checkpoints readable"
ENVIRONMENTS = ["", "PYTHONIOENCODING=ascii", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "env -i OMP_NUM_THREADS=1"]


def readable(run: Path) -> str:
    """Which of the run's two checkpoints are not readable."""
    problems = []
    for name in (LAST, PREVIOUS):
        try:
            read_checkpoint(run / name)
        except UserError as error:
            problems.append(str(error))
    return "; ".join(problems) or READABLE


def traceback_in(text: str) -> str:
    return ", TRACEBACK" if "Traceback" in text or "Exception" in text else ""


def wait_for(condition: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def records(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def races(folder: Path, rng: random.Random, count: int) -> Iterator[str]:
    """Two trainings start in one new folder, at most 4 s apart; half of the second ones with --resume."""
    config = faults.write_config(folder)
    expected, _ = faults.undisturbed_run(folder, config, 1)
    for number in range(count):
        run = folder / f"race_{number}"
        words = [[], ["--resume"] if number % 2 else []]
        trainings = []
        for extra in words:
            trainings.append(faults.Training(config, f"run_dir={run}", *extra))
            time.sleep(rng.choice([0, rng.uniform(0, 4)]))
        codes = [training.end() for training in trainings]
        refused = [one for one, training in enumerate(trainings) if "error: " in training.text]
        named = all(f"process {trainings[1 - one].process.pid} on" in trainings[one].text for one in refused)
        broken = "".join(traceback_in(training.text) for training in trainings)
        yield f"exits {codes}, {len(refused)} refused{' naming the other' if refused and named else ''}{broken}"
        yield f"{faults.verdict(expected, run)}, {readable(run)}, {leftovers(run)} temporary files"
        shutil.rmtree(run)


def leftovers(run: Path) -> int:
    return len(list(run.glob("*.tmp")))


def saves(folder: Path, rng: random.Random, count: int) -> Iterator[str]:
    """Two processes save into one folder without any lock while a third one reads in a loop."""
    for number in range(count):
        run = folder / f"saves_{number}"
        run.mkdir()
        for _ in range(2):
            save(run / LAST, backup_to=run / PREVIOUS)
        command = [sys.executable, __file__, "save-forever", str(run)]
        logs = [run / "first.log", run / "second.log"]
        writers = []
        for log in logs:
            with open(log, "w") as file:
                writers.append(subprocess.Popen(command, cwd=faults.ROOT, stdout=file))
        wait_for(lambda logs=logs: all("saved" in log.read_text() for log in logs))
        deadline, reads, problems = time.monotonic() + 3, 0, []
        while time.monotonic() < deadline:
            reads += 1
            if (found := readable(run)) != READABLE:
                problems.append(found)
        for writer in writers:
            writer.kill()  # at any moment
            writer.wait()
        lines = [line for log in logs for line in log.read_text().splitlines()]
        errors = [line for line in lines if line != "saved"]
        yield f"{len(lines)} saves, {len(errors)} failed {errors[:1]}"
        yield f"{reads} reads of both, {len(problems)} failed {problems[:1]}; then {readable(run)}"


def save_forever(run: Path) -> None:
    number = 0
    while True:
        number += 1
        try:
            save(run / LAST, 1 + number % 2, Progress(number, 0), backup_to=run / PREVIOUS)
            print("saved", flush=True)
        except UserError as error:
            print(error, flush=True)


def tee(folder: Path, rng: random.Random, count: int) -> Iterator[str]:
    """``train.py 2>&1 | tee log`` and Ctrl-C, which ends tee first."""
    config = faults.write_config(folder)
    expected, _ = faults.undisturbed_run(folder, config, 1)
    for number in range(count):
        run = folder / f"tee_{number}"
        command = [sys.executable, "train.py", str(config), f"run_dir={run}", "save_interval=100"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        training = subprocess.Popen(command, cwd=faults.ROOT, env=VARIABLES, **pipes)
        reader = subprocess.Popen(["tee", folder / "log"], stdin=training.stdout, stdout=subprocess.DEVNULL)
        training.stdout.close()
        wait_for(lambda run=run: records(run) >= rng.randint(1, 4))
        for process in (reader, training):
            process.send_signal(signal.SIGINT)
        reader.wait()
        code = training.wait(120)
        saved = read_checkpoint(run / LAST)["progress"]
        resumed = faults.Training(config, f"run_dir={run}", "save_interval=100", "--resume")
        assert resumed.end() == 0, resumed.text
        yield f"exit {code}, saved after step {saved['step']} of epoch {saved['epoch'] + 1}"
        yield faults.verdict(expected, run)
        shutil.rmtree(run)


def outputs(folder: Path, rng: random.Random, count: int) -> Iterator[str]:
    """A training whose output goes nowhere gets SIGTERM, and is resumed with the same output."""
    config = faults.write_config(folder)
    expected, _ = faults.undisturbed_run(folder, config, 1)
    cases = [("", output) for output in OUTPUTS] + [(environment, ">&- 2>&-") for environment in ENVIRONMENTS[1:]]
    for number, (environment, output) in enumerate(cases[:count]):
        run = folder / f"output_{number}"
        python = [sys.executable, "train.py", str(config), f"run_dir={run}"]
        shell = f"{environment} {shlex.join(python)} --resume {output}; exit ${{PIPESTATUS[0]}}"
        first = subprocess.Popen(["bash", "-c", shell], cwd=faults.ROOT, env=VARIABLES)
        wait_for(lambda run=run: records(run) >= 3)
        for pid in faults.descendants(first.pid):
            if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                faults.send(pid, signal.SIGTERM)
        codes = [first.wait(120), subprocess.run(["bash", "-c", shell], cwd=faults.ROOT, env=VARIABLES).returncode]
        yield f"{environment} {output}: exits {codes}".strip()
        yield faults.verdict(expected, run)
        shutil.rmtree(run)


def terminals(folder: Path, rng: random.Random, count: int) -> Iterator[str]:
    """The terminal of a training is closed."""
    config = faults.write_config(folder)
    expected, _ = faults.undisturbed_run(folder, config, 1)
    for number in range(count):
        run = folder / f"terminal_{number}"
        pid, terminal = pty.fork()
        if not pid:
            os.chdir(faults.ROOT)
            command = [sys.executable, "train.py", str(config), f"run_dir={run}", "save_interval=100"]
            os.execve(sys.executable, command, VARIABLES)
        threading.Thread(target=drain, args=(terminal,), daemon=True).start()
        wait_for(lambda run=run: records(run) >= 3)
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        resumed = faults.Training(config, f"run_dir={run}", "save_interval=100", "--resume")
        assert resumed.end() == 0, resumed.text
        yield f"exit {code}, {len(list(run.glob('last.pt')))} saved"
        yield faults.verdict(expected, run)
        shutil.rmtree(run)


def drain(terminal: int) -> None:
    """Read until it is closed. A thread that waits in a read would keep it open."""
    try:
        while True:
            if select.select([terminal], [], [], 0.02)[0]:
                os.read(terminal, 4096)
    except OSError:
        pass


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(2**20)):
                pass
        except OSError:
            pass


def make_read_only(disk: Path) -> None:
    # Over itself: the lock is open for writing, and an administrator could not remount it, but a failing disk is.
    for options in (["--bind", disk / "run", disk / "run"], ["-o", "remount,bind,ro", disk / "run"]):
        subprocess.run(["mount", *options], check=True)


def remove(disk: Path) -> None:
    shutil.rmtree(disk / "run")


def break_log(disk: Path) -> None:
    for path in [disk / "run" / "metrics.jsonl", *(disk / "run" / "tensorboard").iterdir()]:
        path.rename(disk / path.name)
        path.mkdir()


DISK_FAULTS = {"full": fill, "read-only": make_read_only, "run folder deleted": remove, "log not writable": break_log}


def disks(folder: Path, rng: random.Random, count: int) -> Iterator[str]:
    """A disk fills, turns read-only or loses the folder during a training; needs the right to mount (root)."""
    config = faults.write_config(folder)
    for number in range(count):
        name, fault = list(DISK_FAULTS.items())[number % len(DISK_FAULTS)]
        interval = rng.choice([1, 100])  # the fault is met first by a checkpoint, or by the log
        disk = folder / f"disk_{number}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", disk], check=True)
        try:
            training = faults.Training(config, f"run_dir={disk / 'run'}", f"save_interval={interval}")
            wait_for(lambda disk=disk: records(disk / "run") >= rng.randint(1, 8))
            fault(disk)
            code = training.end()
            said = [line for line in training.text.splitlines() if line.startswith(("error: ", "warning  cannot"))]
            left = [path for path in (disk / "run").glob("*.pt") if read_checkpoint(path)]
            yield f"{name}, saving every {interval}: exit {code}, {len(left)} checkpoints{traceback_in(training.text)}"
            yield from (f"    {line}" for line in said)
        finally:
            subprocess.run(["umount", "--recursive", disk], check=True)


KINDS = {"races": races, "saves": saves, "tee": tee, "outputs": outputs, "terminals": terminals, "disks": disks}


def main() -> None:
    if sys.argv[1:2] == ["save-forever"]:
        save_forever(Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        for line in KINDS[args.kind](folder, random.Random(args.seed), args.count):
            print(line, flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
