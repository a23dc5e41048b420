"""What to_coco.py prints to run next checks and trains, as it is printed; so does the command that ends its errors."""

import re
import shlex
import shutil

import pytest
from printed_commands import FOLDER, WORDS, printed_commands, run_as_printed, write_checkout

pytestmark = pytest.mark.robustness


def check_and_train(printed, folder):
    check, train = printed_commands(printed)
    for text, codes in ((check, (0, 1)), (train, (0,))):  # the doctor may warn
        done = run_as_printed(text, folder)
        assert done.returncode in codes, done.stdout + done.stderr
    assert (folder / "run" / "last.pt").is_file()


@pytest.mark.parametrize("words", [WORDS, ("voc", FOLDER)], ids=["options", "folders found"])
def test_the_printed_commands_check_and_train(tmp_path, words):
    write_checkout(tmp_path)
    done = run_as_printed(f"python scripts/to_coco.py {shlex.join(words)}", tmp_path)
    check_and_train(done.stdout, tmp_path)


def test_the_command_of_an_error_converts(tmp_path):
    write_checkout(tmp_path)
    shutil.copytree(tmp_path / FOLDER / "images", tmp_path / FOLDER / "masks")
    done = run_as_printed(f"python scripts/to_coco.py {shlex.join(('voc', FOLDER))}", tmp_path)
    assert done.returncode == 2
    command = re.search(r": (python scripts/to_coco\.py .*)$", done.stderr.strip())[1]
    check_and_train(run_as_printed(command, tmp_path).stdout, tmp_path)
