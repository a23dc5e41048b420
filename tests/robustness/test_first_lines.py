"""Commands that import for a while say so first: on a busy machine nothing else appears for minutes."""

import pytest
from command_line import call

pytestmark = pytest.mark.robustness


@pytest.mark.parametrize(
    "words",
    [
        ["train.py", "none.yaml"],
        ["eval.py", "none.pt"],
        ["scripts/analyze.py", "none.pt", "-o", "OUT"],
        ["scripts/benchmark.py", "none.yaml"],
        ["scripts/convert_checkpoint.py", "none.pth", "OUT/a.pt"],
        ["scripts/doctor.py", "none.json", "none"],
        ["scripts/predict.py", "none.pt", "none.jpg", "-o", "OUT"],
        ["scripts/study.py", "none.yaml"],
    ],
    ids=lambda words: words[0],
)
def test_the_first_line_names_the_subject(words, tmp_path):
    done = call(*(word.replace("OUT", str(tmp_path)) for word in words))
    first = done.stdout.splitlines()[0]
    assert "loading libraries" in first
    assert words[1] in first
    assert done.returncode == 2
