"""What README.md and docs/ say about the code is true: links, paths, config keys, and the Python examples."""

import dataclasses
import functools
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gfl.build import build_detector
from gfl.checkpoint import detector_content, write_torch_file
from gfl.config import Config
from gfl.config_file import load_config

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = [README, ROOT / "data" / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
SECTIONS = "|".join(field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(field.type))
EXAMPLE_PATHS = ("configs/mine.yaml",)  # files that a user writes

over_docs = pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", read(page), flags=re.MULTILINE | re.DOTALL)


def code_spans(page: Path) -> list[str]:
    """What stands in backticks, and all code blocks but those of Python, which run below."""
    fenced = re.findall(r"^```(?!python)\w*\n(.*?)^```", without_blocks(page, "python"), flags=re.MULTILINE | re.DOTALL)
    return fenced + re.findall(r"`([^`]+)`", without_blocks(page))


def without_blocks(page: Path, language: str = "") -> str:
    return re.sub(rf"^```{language}.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)


@functools.cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", without_blocks(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_has_at_most_10_kb():
    assert len(README.read_bytes()) <= 10_000


@over_docs
def test_links_lead_to_a_file_and_a_heading(page):
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", read(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index_of_the_documentation():
    index = set(re.findall(r"\]\(([^)]+)\)", read(ROOT / "docs" / "README.md")))
    assert {page.name for page in ROOT.glob("docs/*.md")} - {"README.md"} <= index


@over_docs
def test_paths_exist(page):
    """Of the folders of the repository, and the scripts that a command runs; `*` stands for any name."""
    known = (
        r"(?<![\w./-])(?:(?:gfl|scripts|configs|docs|tests)/[\w./*-]*|(?:train|eval)\.py\b)|(?<=\bpython )[\w./-]+\.py"
    )
    found = {path.rstrip(".") for text in code_spans(page) for path in re.findall(known, text)}
    assert [path for path in sorted(found - set(EXAMPLE_PATHS)) if not any(ROOT.glob(path))] == []


@over_docs
def test_config_keys_exist(page):
    found = {
        key
        for text in code_spans(page)
        for key in re.findall(rf"(?<![\w./-])((?:{SECTIONS})(?:\.[a-z]\w*)+)(?!\.?[\w/(])", text)
        if not key.endswith((".py", ".yaml", ".json"))
    }
    assert [key for key in sorted(found) if key not in config_keys()] == []


@functools.cache
def config_keys() -> set[str]:
    def walk(kind: type, prefix: str) -> Iterator[str]:
        for field in dataclasses.fields(kind):
            yield prefix + field.name
            if dataclasses.is_dataclass(field.type):
                yield from walk(field.type, f"{prefix}{field.name}.")

    return set(walk(Config, ""))


def test_configs_of_the_results_exist():
    names = re.findall(r"^\| \[`(\w+)`\]\(([^)]+)\) \|", read(README), flags=re.MULTILINE)
    assert names
    assert all(path == f"configs/{name}.yaml" for name, path in names)  # links are checked above


def test_every_study_is_in_the_table_of_ablations():
    cells = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", read(ROOT / "docs" / "ablations.md"), flags=re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(names) == sorted(path.stem for path in ROOT.glob("configs/studies/*.yaml"))


def test_every_config_is_in_the_tables_of_models():
    of_users = {"finetune", "own_data", "mine"}  # the second as data/README.md calls a config of one's own
    names = {path.stem for path in ROOT.glob("configs/*.yaml")} - of_users
    assert names == set(re.findall(r"^\| `(\w+)` \|", read(ROOT / "docs" / "models.md"), flags=re.MULTILINE))


def test_every_module_is_on_the_map_of_the_code_once():
    on_map = re.findall(r"^\| `([\w/]+\.py)` \|", read(ROOT / "docs" / "code.md"), flags=re.MULTILINE)
    modules = [path for pattern in ("gfl/**/*.py", "*.py", "scripts/*.py") for path in ROOT.glob(pattern)]
    names = [str(path.relative_to(ROOT)) for path in modules if path.name != "__init__.py"]
    assert sorted(on_map) == sorted(names)


def test_the_tree_of_the_readme_is_that_of_the_repository():
    (tree,) = blocks(README, "text")
    parents = {-2: ROOT}  # by their indentation
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        path = parents[len(indent)] = parents[len(indent) - 2] / name
        assert path.is_dir() if name.endswith("/") else path.is_file(), path


@pytest.fixture
def run_example(tmp_path, monkeypatch) -> Callable[[str], dict[str, Any]]:
    """Runs a source with a tiny detector and a small image in place of what it loads; returns its variables."""
    config = load_config(
        ROOT / "configs" / "gfl_r18_shapes.yaml",
        ["model.head.num_convs=1", "data.short_side=64", "data.long_side=64"],
    )
    torch.manual_seed(0)
    model = build_detector(config, num_classes=2)
    torch.nn.init.constant_(model.head.cls_out.bias, 2.0)  # scores near 0.9, without training
    write_torch_file(tmp_path / "best.pt", detector_content(model.state_dict(), config, ["cat", "dog"]))
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "photo.png"), pixels)
    monkeypatch.chdir(ROOT)  # configs are named relative to it

    def run(source: str) -> dict[str, Any]:
        source = source.replace('"runs/demo"', repr(str(tmp_path)))
        source = source.replace('"photo.jpg"', repr(str(tmp_path / "photo.png")))
        (tmp_path / "example.py").write_text(source)
        return runpy.run_path(str(tmp_path / "example.py"))

    return run


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "docs" / "api.md", "python"))))
def test_examples_of_the_api_run(number, run_example):
    run_example(blocks(ROOT / "docs" / "api.md", "python")[number])


def test_the_example_of_the_readme_shows_what_it_says(run_example):
    (source,) = blocks(README, "python")
    found = run_example(source)["found"]
    count = len(found.scores)
    assert count > 0
    assert set(found.class_names) <= {"cat", "dog"}
    assert (found.scores >= 0.5).all()
    assert found.boxes_xyxy.shape == found.sides.expectation.shape == found.sides.std.shape == (count, 4)
    assert found.sides.quantiles.shape == (count, 4, 3)
    assert (np.diff(found.sides.quantiles) >= 0).all()  # 5, 50, 95 %
    # A box is the expectations of its sides, in the order left, top, right, bottom, clipped to 64 x 48 pixels.
    np.testing.assert_allclose(found.boxes_xyxy, np.clip(found.sides.expectation, 0, [64, 48, 64, 48]), atol=1e-3)
