"""Mutated inputs: each must load and be usable, or be refused in one clear line.

`python tests/robustness/fuzz.py KIND` runs any number of cases, test_fuzz.py beside it a few of each. A case is a pure
function of its kind, seed and number.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

EXAMPLE = "example: python tests/robustness/fuzz.py annotations --count 2000 --seed 0"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["annotations", "odd_annotations", "configs", "checkpoints"])
    parser.add_argument("--count", type=int, default=200, help="number of cases (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default %(default)s)")
    parser.add_argument("--keep", default="runs/fuzz", help="folder for inputs of failed cases (default %(default)s)")
    parser.add_argument("--messages", action="store_true", help="print the message of each refused case")
    return parser.parse_args()


ARGS = parse_args() if __name__ == "__main__" else None  # before the heavy imports, so that --help answers at once

import faulthandler
import multiprocessing
import random
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from typing import NamedTuple

import fuzz_cases
import torch
from pickles import peak_mebibytes, restart_peak

from gfl.common.errors import UserError

torch.set_num_threads(1)  # cases run in forked processes, which do not have the threads of this one
LIMIT_S = 5  # of a case, of the processor's time
WAIT_S = 60  # for a case that does nothing
LEAST_MEBIBYTES = 64  # that a case may take, since the use of small inputs varies
MAX_MESSAGE = 400  # characters of a message, without the folder's name


class Outcome(NamedTuple):
    """The result of one case."""

    result: str  # "loaded", "refused" or "failed"
    message: str  # of the refusal, or the traceback
    mebibytes: float = 0.0  # of memory that it took
    mutation: str = ""


def run_case(kind: str, seed: int, number: int, folder: Path) -> Outcome:
    """Write one mutated input into `folder` and use it as the commands do, in a process of its own."""
    rng = random.Random(f"{kind} {seed} {number}")
    mutation = getattr(fuzz_cases, f"write_{kind}")(folder, rng)
    outcome = _in_child(kind, folder)._replace(mutation=mutation)
    limit = max(LEAST_MEBIBYTES, 2 * honest_need(kind))
    if outcome.mebibytes > limit and outcome.result != "failed":
        return outcome._replace(result="failed", message=f"took {outcome.mebibytes:.0f} of {limit:.0f} MiB")
    return outcome


@cache
def honest_need(kind: str) -> float:
    """The MiB of memory that a good input of this kind takes."""
    with tempfile.TemporaryDirectory() as folder:
        fuzz_cases.write_unchanged(kind, Path(folder))
        outcome = _in_child(kind, Path(folder))
    assert outcome.result != "failed", outcome
    return outcome.mebibytes


def _in_child(kind: str, folder: Path) -> Outcome:
    """Use the input in `folder` in a forked process, which a crash ends alone."""
    processes = multiprocessing.get_context("fork")
    ours, theirs = processes.Pipe(duplex=False)
    child = processes.Process(target=_use, args=(kind, folder, theirs))
    child.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(WAIT_S) else Outcome("failed", f"did nothing for {WAIT_S} s")
    except EOFError:  # it ended without a result
        child.join()
        slow = child.exitcode == -signal.SIGXCPU
        return Outcome("failed", f"more than {LIMIT_S} s" if slow else f"ended by signal {-child.exitcode}")
    finally:
        child.kill()
        child.join()


def _use(kind: str, folder: Path, results: Connection) -> None:
    """Use an input as the commands do, and send its `Outcome`."""
    refusals: list[str] = []

    def attempt(function: Callable, *args, **kwargs):
        """Call `function` as a command would; None if it refuses its input."""
        try:
            return function(*args, **kwargs)
        except UserError as error:
            refusals.append(str(error))

    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S + 1))
    before = restart_peak()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            getattr(fuzz_cases, f"check_{kind}")(folder, attempt)
        outcome = _judge(refusals, [str(warning.message) for warning in warned], folder)
    except Exception:
        outcome = Outcome("failed", traceback.format_exc())
    results.send(outcome._replace(mebibytes=peak_mebibytes() - before))


def _judge(refusals: list[str], warned: list[str], folder: Path) -> Outcome:
    noise = [message for message in warned if "will create" not in message]  # of workers
    if refusals and noise:  # it would be printed above the one line
        return Outcome("failed", f"a warning: {noise[0]}")
    for message in refusals:
        if problem := _find_problem(message, folder):
            return Outcome("failed", f"{problem}: {message[:2000]!r}")
    return Outcome("refused", refusals[0]) if refusals else Outcome("loaded", "")


def _find_problem(message: str, folder: Path) -> str | None:
    """What is wrong with a message, or None."""
    if "\n" in message or not message.isprintable():
        return "the message is not one printable line"
    if len(message.replace(str(folder), "")) > MAX_MESSAGE:
        return "the message is too long"
    sections = tuple(f"{name}." for name in ("model", "data", "optim", "assign", "eval", "loss"))
    if str(folder) not in message and not message.startswith(sections):
        return "the message names neither file nor key"
    return None


def main(args: argparse.Namespace) -> None:
    counts: Counter[str] = Counter()
    most = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.first, args.first + args.count):
            folder = Path(scratch) / "case"
            folder.mkdir()
            outcome = run_case(args.kind, args.seed, number, folder)
            counts[outcome.result] += 1
            most = max(most, outcome.mebibytes)
            if args.messages and outcome.result == "refused":
                print(f"{number:>5} {outcome.mutation}: {outcome.message.replace(str(folder), '.')}")
            if outcome.result == "failed":
                kept = Path(args.keep) / f"{args.kind}-{args.seed}-{number}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                print(f"failed: case {number} of seed {args.seed}, {outcome.mutation}; input in {kept}")
                print(outcome.message, flush=True)
            shutil.rmtree(folder)
    print(f"{'kind':<12}  {'seed':>4}  {'cases':>5}  {'loaded':>6}  {'refused':>7}  {'failed':>6}  {'MiB':>5}")
    loaded, refused, failed = counts["loaded"], counts["refused"], counts["failed"]
    print(f"{args.kind:<12}  {args.seed:>4}  {args.count:>5}  {loaded:>6}  {refused:>7}  {failed:>6}  {most:>5.0f}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(ARGS)
