"""scripts/check_gpu.py where there is no GPU: every section runs on the CPU, at tiny sizes."""

import json

import pytest
import torch
from command_line import refuse, succeed

pytestmark = pytest.mark.robustness


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    assert "--device cpu --quick" in refuse("scripts/check_gpu.py", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_section_runs_on_a_cpu(tmp_path):
    succeed("scripts/check_gpu.py", "--device", "cpu", "--quick", "-o", tmp_path)
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert list(sections) == ["golden", "same_as_cpu", "resume", "throughput", "processes", "compiled", "shapes"]
    checks = [check for checks in sections.values() for check in checks]
    assert {check["outcome"] for check in checks} == {"ok"}
    report = (tmp_path / "report.md").read_text()
    assert all(f"| {check['name']} | ok |" in report for check in checks)
