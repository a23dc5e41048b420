"""Faults of processes, injected into real trainings: `python tests/robustness/faults.py kill --count 20`.

Each kind interrupts a small training many times at random moments and compares the result with an undisturbed run.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
model:
  backbone: {name: resnet18, weights: none, frozen_stages: -1, norm_eval: NORM_EVAL}
  fpn: {channels: 64}
  head: {channels: 64, num_convs: 1}
data:
  train: {annotations: DATA/annotations/instances_train.json, images: DATA/train}
  val: {annotations: DATA/annotations/instances_val.json, images: DATA/val}
  short_side: [64, 96]
  long_side: 96
  augment: [{name: RandomBrightnessContrast, p: 0.5}]
  workers: WORKERS
  on_bad_image: skip
optim: {lr: 0.01, base_batch: 4, batch: 4, epochs: 2, warmup_steps: 2, steps: [1], ema: 0.9}
eval: {score_thresh: 0.0, max_detections: 20, batch: 2}
log: {interval: 1, images: 1}
save_interval: 2
"""
ONE_PROCESS = [sys.executable, "-u"]
LAUNCHER = [sys.executable, "-u", "-m", "torch.distributed.run"]
TWO_PROCESSES = [*LAUNCHER, "--standalone", "--nproc_per_node=2"]
LAUNCHERS = {1: ONE_PROCESS, 2: TWO_PROCESSES}


def write_config(folder: Path, *, workers: int = 1, norm_eval: bool = False) -> Path:
    """Write a config of two epochs of five steps, on soft shapes of which three are damaged; norms are trained."""
    data = folder / "shapes"
    if not data.exists():
        command = ["scripts/make_shapes.py", "--out", data, "--train", "20", "--val", "7"]
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
        for path in sorted((data / "train").iterdir())[::7]:
            path.write_bytes(b"damaged")
    path = folder / f"tiny_{workers}_{norm_eval}.yaml"
    text = CONFIG.replace("DATA", str(data)).replace("WORKERS", str(workers))
    path.write_text(text.replace("NORM_EVAL", str(norm_eval).lower()))
    return path


class Training:
    """A running train.py, alone or under a launcher; what it prints goes to a file."""

    def __init__(
        self, *words: object, launcher: list[str] = ONE_PROCESS, program: str = "train.py", **environment: str
    ) -> None:
        self.output = tempfile.TemporaryFile("w+")  # noqa: SIM115 (it lives as long as the process)
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen(
            [*launcher, program, *map(str, words)],
            cwd=ROOT,
            env=environment,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @property
    def text(self) -> str:
        self.output.seek(0)
        return self.output.read()

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Until it has printed `text`, or has ended."""
        deadline = time.monotonic() + timeout
        while text not in self.text and self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def end(self, timeout: float = 300) -> int:
        """Its exit code, once it has ended by itself."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.text}") from None
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to it and all of its descendants."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            send(pid, signal.SIGKILL)
        self.process.wait()


def send(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


def descendants(pid: int) -> list[int]:
    """The running processes that `pid` and its children have started."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except (OSError, ValueError):
        return []
    return children + [grandchild for child in children for grandchild in descendants(child)]


def ranks(pid: int) -> list[int]:
    """The training processes under a launcher, by rank."""
    found = {}
    for child in descendants(pid):
        try:
            environment = dict(
                line.split("=", 1) for line in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in line
            )
            parent = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid and "RANK" in environment:
            found[int(environment["RANK"])] = child
    return [found[rank] for rank in sorted(found)]


def result(run: Path) -> dict[str, torch.Tensor]:
    """Everything a finished run leaves: weights, optimizer state, progress, recorded losses, replaced images."""
    state = torch.load(run / "last.pt", weights_only=True)
    tensors = {f"average.{name}": tensor for name, tensor in state["model"].items()}
    tensors |= {f"model.{name}": tensor for name, tensor in state["ema"]["trained"].items()}
    tensors["average.updates"] = torch.tensor(state["ema"]["updates"])
    for number, entry in state["optimizer"]["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in entry.items()}
    tensors |= {f"progress.{name}": torch.tensor(value) for name, value in state["progress"].items()}
    tensors |= {f"loss.{name}": torch.tensor(value) for name, value in state["running_loss"].items()}
    tensors |= {f"replaced {name}": torch.tensor(1) for name in json.loads((run / "bad_images.json").read_text())}
    for number, line in enumerate((run / "metrics.jsonl").read_text().splitlines()):
        values = {name: value for name, value in json.loads(line).items() if name != "images_per_s"}
        tensors |= {f"{name} in line {number}": torch.tensor(value) for name, value in values.items()}
    return tensors


def differences(one: Path, other: Path) -> list[str]:
    """The names of values in which two finished runs differ."""
    ours, theirs = result(one), result(other)
    return [name for name in ours.keys() | theirs.keys() if not same(ours.get(name), theirs.get(name))]


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


def undisturbed_run(folder: Path, config: Path, processes: int) -> tuple[Path, float]:
    """A run without faults, made once, and its duration in seconds."""
    run, started = folder / f"undisturbed_{processes}", time.monotonic()
    seconds = run / "seconds"
    if not seconds.exists():
        training = Training(config, f"run_dir={run}", launcher=LAUNCHERS[processes])
        assert training.end() == 0, training.text
        seconds.write_text(str(time.monotonic() - started))
    return run, float(seconds.read_text())


def verdict(expected: Path, run: Path) -> str:
    return f"{run.name}: {differences(expected, run) or 'equal to the bit'}"


def lasted_until(training: Training, seconds: float) -> bool:
    """Whether it has ended within so many seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        training.process.wait(seconds)
        return True
    return False


def kill(folder: Path, rng: random.Random, count: int, processes: int, workers: int) -> Iterator[str]:
    """SIGKILL everything at random moments and resume, until the run is done; new runs until killed `count` times."""
    config, launcher = write_config(folder, workers=workers), LAUNCHERS[processes]
    expected, seconds = undisturbed_run(folder, config, processes)
    kills = runs = 0
    while kills < count:
        run, runs = folder / f"killed_{processes}_{runs}", runs + 1
        while True:
            training = Training(config, f"run_dir={run}", "--resume", launcher=launcher)
            if lasted_until(training, rng.uniform(0.2, 1.0) * seconds if kills < count else 300):
                break
            training.kill()
            kills += 1
            where = [line[:27] for line in training.text.splitlines() if line.startswith("epoch")]
            yield f"killed, number {kills}, after {where[-1] if where else 'nothing'}"
        assert training.end() == 0, training.text
        yield verdict(expected, run)


def interrupt(folder: Path, rng: random.Random, count: int, processes: int, workers: int) -> Iterator[str]:
    """A signal at a random moment, to all ranks or to one; then resume."""
    config, launcher = write_config(folder, workers=workers), LAUNCHERS[processes]
    expected, seconds = undisturbed_run(folder, config, processes)
    for number in range(count):
        run, signum = (
            folder / f"interrupted_{processes}_{number}",
            rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]),
        )
        training = Training(config, f"run_dir={run}", launcher=launcher)
        lasted_until(training, rng.uniform(0.05, 1.0) * seconds)
        pids = ranks(training.process.pid) or [training.process.pid]
        target = rng.choice(["all", *range(len(pids))])
        for pid in pids if target == "all" else [pids[target]]:
            send(pid, signum)
        sent = time.monotonic()
        code, took = training.end(), time.monotonic() - sent
        where = [line[:32] for line in training.text.splitlines() if line.startswith(("stopped", "done"))]
        outcome = where[0] if where else training.text[-300:]
        yield f"{signum.name} to {target}: exit {code} after {took:.1f} s, {outcome}"
        resumed = Training(config, f"run_dir={run}", "--resume", launcher=launcher)
        assert resumed.end() == 0, resumed.text
        yield verdict(expected, run)


def elastic(folder: Path, rng: random.Random, count: int, processes: int, workers: int) -> Iterator[str]:
    """SIGKILL one rank of two at a random step; torchrun restarts both, which resume without --resume."""
    config = write_config(folder, workers=workers)
    expected, _ = undisturbed_run(folder, config, 2)
    for number in range(count):
        run, step, victim = folder / f"elastic_{number}", rng.randint(1, 9), rng.randint(0, 1)
        training = Training(config, f"run_dir={run}", launcher=[*TWO_PROCESSES, "--max-restarts=3"])
        training.wait_for(f"step {step:>6}/")
        send(ranks(training.process.pid)[victim], signal.SIGKILL)
        code = training.end()
        yield f"rank {victim} killed after step {step}: exit {code}, {training.text.count('resume   ')} resumed"
        yield verdict(expected, run)


def nodes(folder: Path, rng: random.Random, count: int, processes: int, workers: int) -> Iterator[str]:
    """SIGKILL one rank at a random step, with two launchers of one rank each in place of two nodes."""
    config = write_config(folder, workers=workers)
    expected, _ = undisturbed_run(folder, config, 2)
    for number in range(count):
        run, step, victim = folder / f"nodes_{number}", rng.randint(1, 9), rng.randint(0, 1)
        rendezvous = f"--rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:{free_port()} --rdzv_id=run{number}".split()
        launcher = [*LAUNCHER, "--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", *rendezvous]
        own_stores = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # see gfl/common/distributed.py
        trainings = [Training(config, f"run_dir={run}", "--resume", launcher=launcher, **own_stores) for _ in range(2)]
        main = next_to_print(trainings, f"step {step:>6}/")
        send(ranks(trainings[victim].process.pid)[0], signal.SIGKILL)
        codes = [training.end() for training in trainings]
        resumed = trainings[main].text.count("resume   ")
        yield f"rank of node {victim} killed after step {step}: exits {codes}, {resumed} resumed"
        yield verdict(expected, run)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def next_to_print(trainings: list[Training], text: str, timeout: float = 120) -> int:
    """The index of the first training that has printed `text`."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for number, training in enumerate(trainings):
            if text in training.text:
                return number
        time.sleep(0.02)
    raise AssertionError("\n".join(training.text for training in trainings))


KINDS = {"kill": kill, "interrupt": interrupt, "elastic": elastic, "nodes": nodes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, choices=LAUNCHERS, default=1, help="of kill and interrupt")
    parser.add_argument("--workers", type=int, default=1, help="loader processes of each")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        for line in KINDS[args.kind](folder, random.Random(args.seed), args.count, args.processes, args.workers):
            print(line, flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
