"""Mutated inputs: each must load and be usable, or be refused in one clear line.

`python tests/robustness/fuzz.py KIND` runs any number of cases, test_fuzz.py beside it a few of each. A case is a pure
function of its kind, seed and number.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

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

import random
import shutil
import signal
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import fuzz_cases

from gfl.common.errors import UserError

LIMIT_S = 20  # of one case
MAX_MESSAGE = 400  # characters of a message, without the folder's name


class Outcome(NamedTuple):
    """The result of one case."""

    result: str  # "loaded", "refused" or "failed"
    mutation: str
    message: str  # of the refusal, or the traceback


class TooSlow(BaseException):
    """Not an `Exception`, which the code under test might handle as damage."""


def run_case(kind: str, seed: int, number: int, folder: Path) -> Outcome:
    """Write one mutated input into `folder` and use it as the commands do."""
    rng = random.Random(f"{kind} {seed} {number}")
    write, check = getattr(fuzz_cases, f"write_{kind}"), getattr(fuzz_cases, f"check_{kind}")
    mutation = write(folder, rng)
    refusals: list[str] = []

    def attempt(function: Callable, *args, **kwargs):
        """Call `function` as a command would; None if it refuses its input."""
        try:
            return function(*args, **kwargs)
        except UserError as error:
            refusals.append(str(error))

    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(LIMIT_S)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            check(folder, attempt)
    except (Exception, TooSlow):
        return Outcome("failed", mutation, traceback.format_exc())
    finally:
        signal.alarm(0)
    noise = [str(warning.message) for warning in warned if "will create" not in str(warning.message)]  # of workers
    if refusals and noise:  # it would be printed above the one line
        return Outcome("failed", mutation, f"a warning: {noise[0]}")
    for message in refusals:
        if problem := _find_problem(message, folder):
            return Outcome("failed", mutation, f"{problem}: {message[:2000]!r}")
    return Outcome("refused" if refusals else "loaded", mutation, refusals[0] if refusals else "")


def _too_slow(*_) -> None:
    raise TooSlow


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
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(args.first, args.first + args.count):
            folder = Path(scratch) / "case"
            folder.mkdir()
            outcome = run_case(args.kind, args.seed, number, folder)
            counts[outcome.result] += 1
            if args.messages and outcome.result == "refused":
                print(f"{number:>5} {outcome.mutation}: {outcome.message.replace(str(folder), '.')}")
            if outcome.result == "failed":
                kept = Path(args.keep) / f"{args.kind}-{args.seed}-{number}"
                shutil.copytree(folder, kept, dirs_exist_ok=True)
                print(f"failed: case {number} of seed {args.seed}, {outcome.mutation}; input in {kept}")
                print(outcome.message, flush=True)
            shutil.rmtree(folder)
    print(f"{'kind':<12}  {'seed':>4}  {'cases':>5}  {'loaded':>6}  {'refused':>7}  {'failed':>6}")
    loaded, refused, failed = counts["loaded"], counts["refused"], counts["failed"]
    print(f"{args.kind:<12}  {args.seed:>4}  {args.count:>5}  {loaded:>6}  {refused:>7}  {failed:>6}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(ARGS)
