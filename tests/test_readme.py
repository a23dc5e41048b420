"""What the README says about the code must be true."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", README, flags=re.MULTILINE)


def test_every_module_is_on_the_map():
    modules = {str(path.relative_to(ROOT)) for path in [*ROOT.glob("gfl/**/*.py"), *ROOT.glob("*.py")]}
    assert {path for path, _ in MAP} == {path for path in modules if not path.endswith("__init__.py")}


@pytest.mark.parametrize(("path", "lines"), MAP)
def test_line_counts_on_the_map_are_right_to_a_tenth(path, lines):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) == pytest.approx(int(lines), rel=0.1, abs=5)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("config", re.findall(r"^\| `(gfl_\w+)` \|", README, flags=re.MULTILINE))
def test_configs_of_the_results_exist(config):
    assert (ROOT / "configs" / f"{config}.yaml").is_file()
