"""Sections of a GPU's check that end early, and its report; tests/robustness/test_check_gpu.py runs it on a CPU."""

import sys
import time
from pathlib import Path

import pytest

from gfl.common.errors import UserError
from gfl.tools.gpu_check.report import Check, attempt, judge, markdown, run_section, worst

WRITE = """
import json, sys, time
print(json.dumps({"name": "first", "outcome": "ok", "detail": "1 of 1"}), file=open(LOG, "a"), flush=True)
"""


@pytest.mark.parametrize(
    ("end", "outcome", "detail"),
    [
        ("time.sleep(60)", "not run", "stopped after its 2 s"),
        ("sys.exit('an illegal memory access')", "failed", "exit code 1: an illegal memory access"),
    ],
)
def test_what_a_section_finished_counts_however_it_ends(end, outcome, detail, tmp_path):
    log, seen = tmp_path / "section.jsonl", []
    code = f"LOG = {str(log)!r}\n{WRITE}\n{end}"
    checks = run_section([sys.executable, "-c", code], log, 2, seen.append)
    assert checks == seen == [Check("first", "ok", "1 of 1"), Check("the rest of the section", outcome, detail)]


def test_a_section_that_is_late_leaves_no_process(tmp_path):
    pid = tmp_path / "pid"
    child = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run_section([sys.executable, "-c", code], tmp_path / "section.jsonl", 2, lambda check: None)
    deadline = time.monotonic() + 10
    while is_running(pid.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"  # its new parent may still have to collect it
    except OSError:
        return False


def test_an_error_that_is_no_number_is_the_worst():
    assert not worst([0.001, float("nan")]) < 1
    assert worst([0.001, 0.5, 0.2]) == 0.5


def test_what_a_check_raises_is_its_detail():
    def fail(error):
        raise error

    assert attempt("a", lambda: judge("a", True, "b", c=1)) == Check("a", "ok", "b", {"c": 1})
    assert attempt("a", lambda: fail(UserError("no data"))).detail == "no data"
    assert attempt("a", lambda: fail(ValueError("\nwrong\nmore"))) == Check("a", "failed", "ValueError: wrong")


def test_the_report_has_a_line_per_check():
    text = markdown({"torch": "2"}, {"golden": [Check("a", "ok", "x | y"), Check("b", "failed", "z")]}, "command")
    assert "\n## golden\n" in text
    assert text.endswith("| a | ok | x / y |\n| b | failed | z |\n")
