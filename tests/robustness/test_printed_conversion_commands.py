"""What to_coco.py prints to run next checks and trains, as it is printed."""

import shlex

import pytest
from printed_commands import WORDS, printed_commands, run_as_printed, write_checkout

pytestmark = pytest.mark.robustness


def test_the_printed_commands_check_and_train(tmp_path):
    write_checkout(tmp_path)
    done = run_as_printed(f"python scripts/to_coco.py {shlex.join(WORDS)}", tmp_path)
    check, train = printed_commands(done.stdout)
    for text, codes in ((check, (0, 1)), (train, (0,))):  # the doctor may warn
        done = run_as_printed(text, tmp_path)
        assert done.returncode in codes, done.stdout + done.stderr
    assert (tmp_path / "run" / "last.pt").is_file()
