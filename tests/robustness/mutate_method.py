"""Do the quick tests notice a slip in the method? Run `python tests/robustness/mutate_method.py [MODULE ...]`.

Applies one mutation at a time to a temporary copy of the repository, runs the quick tests there, and prints whether the
mutant was killed. The exit code is 1 if any survived. It takes fifteen minutes or more.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("gfl", "tests", "configs", "pyproject.toml")
TESTS = ("tests/method", "tests/model", "tests/test_build.py", "tests/training/test_accumulation.py")
TIMEOUT = 600  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="of gfl/method, without .py; all by default")
    modules = parser.parse_args().modules
    mutants = [mutant for mutant in MUTANTS if not modules or mutant.module in modules]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in NEEDED:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        check(mutants, copy)
        if not passes(copy):
            sys.exit("the quick tests fail without a mutation; fix them first")
        survivors = [mutant for number, mutant in enumerate(mutants, 1) if survives(mutant, copy, number)]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants killed")
    return 1 if survivors else 0


def check(mutants: list[Mutant], copy: Path) -> None:
    """Leave with a message unless the old text of every mutant occurs exactly once and the new one is Python."""
    for mutant in mutants:
        source = mutant.path(copy).read_text()
        if source.count(mutant.old) != 1:
            sys.exit(f"{mutant}: the old text occurs {source.count(mutant.old)} times instead of once")
        ast.parse(source.replace(mutant.old, mutant.new))


def survives(mutant: Mutant, copy: Path, number: int) -> bool:
    """Whether the tests pass with the mutation; prints the result."""
    path, start = mutant.path(copy), time.perf_counter()
    source = path.read_text()
    path.write_text(source.replace(mutant.old, mutant.new))
    try:
        survived = passes(copy, mutant.module)
    finally:
        path.write_text(source)
    result = "SURVIVED" if survived else "killed"
    print(f"{number:3} {result:8} {time.perf_counter() - start:4.0f} s  {mutant}", flush=True)
    return survived


def passes(copy: Path, module: str = "") -> bool:
    """Run the quick tests in the copy, those of `module` first."""
    first = sorted(map(str, copy.glob(f"tests/method/test_{module}*.py"))) if module else []
    # No bytecode: a source of the same size and second as the last one would otherwise be taken for it.
    env = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    options = ["-x", "-q", "-m", "not robustness", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *first, *TESTS, *options]
    try:
        result = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return False
    if result.returncode not in (0, 1):
        sys.exit(f"pytest ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
