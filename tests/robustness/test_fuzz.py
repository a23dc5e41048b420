"""A few mutated inputs of each kind; `python tests/robustness/fuzz.py KIND --count N` tries any number."""

import json
import os

import fuzz
import pytest
from annotation_cases import coco_tree, write_images
from mutators import LAUGHS, RAW

from gfl.common.errors import UserError
from gfl.config_file import load_config
from gfl.data.coco import load_coco
from gfl.evaluation.coco_eval import coco_metrics

pytestmark = pytest.mark.robustness


@pytest.mark.parametrize(
    ("kind", "count"), [("annotations", 60), ("odd_annotations", 60), ("configs", 30), ("checkpoints", 6)]
)
def test_mutated_inputs_load_or_are_refused_in_one_clear_line(kind, count, tmp_path):
    results = set()
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = fuzz.run_case(kind, 0, number, folder)
        assert outcome.result != "failed", f"case {number}, {outcome.mutation}: {outcome.message}"
        results.add(outcome.result)
    assert results == {"loaded", "refused"}


def test_the_fuzzer_detects_crashes_hangs_waste_and_unclear_messages(tmp_path, monkeypatch):
    def outcome(check):
        monkeypatch.setattr(fuzz.annotation_cases, "check_annotations", check)
        (tmp_path / check.__name__).mkdir()
        return fuzz.run_case("annotations", 0, 0, tmp_path / check.__name__)

    def crash(folder, attempt):
        raise RecursionError

    def hang(folder, attempt):
        while True:
            pass

    def die(folder, attempt):
        os.abort()

    def waste(folder, attempt):
        bytearray(b"x") * (fuzz.LEAST_MEBIBYTES * 2**21)

    def mumble(folder, attempt):
        def refuse():
            raise UserError("wrong")

        attempt(refuse)

    def accept(folder, attempt):
        pass

    monkeypatch.setattr(fuzz, "LIMIT_S", 1)
    assert "RecursionError" in outcome(crash).message
    assert outcome(hang).message == "more than 1 s"
    assert outcome(die).message == "ended by signal 6"
    assert outcome(waste).result == "failed"
    assert outcome(mumble).result == "failed"
    assert outcome(accept).result == "loaded"


@pytest.fixture
def coco(tmp_path):
    """Write the json, modified by `change` and by text replacement, and load it."""
    write_images(tmp_path / "images")

    def load(change=lambda tree: None, replace=("", "")):
        tree = coco_tree()
        change(tree)
        text = json.dumps(tree).replace(*replace) if replace[0] else json.dumps(tree)
        (tmp_path / "a.json").write_text(text)
        return load_coco(str(tmp_path / "a.json"), str(tmp_path / "images"))

    return load


def assert_clear(message, path):
    assert str(path) in message
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("raw", ["@deep list@", "@digits@"])
def test_a_json_that_python_cannot_parse_is_named(coco, refusal, raw, tmp_path):
    assert_clear(refusal(coco, replace=("2024", RAW[raw])), tmp_path / "a.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_box_that_is_not_finite_counts_like_a_box_without_size(coco, value):
    def metrics(bbox):
        data = coco(lambda tree: tree["annotations"][0].update(bbox=bbox, area=300))
        result = {"image_id": 900, "category_id": 7, "bbox": [10, 10, 20, 15], "score": 0.9}
        return coco_metrics(data, [result])

    assert metrics([10, value, 20, 15]) == metrics([0, 0, 0, 0])


@pytest.mark.parametrize(
    ("part", "change", "key"),
    [
        ("annotations", {"bbox": [10**400, 0, 5, 5]}, "bbox"),
        ("annotations", {"iscrowd": 10**400}, "iscrowd"),
        ("annotations", {"id": "x" * 5000, "category_id": "y" * 5000}, "category_id"),
        ("categories", {"id": 2**62}, "id"),
        ("categories", {"name": "a\ud800"}, "name"),
        ("categories", {"name": "\x1b[31m"}, "name"),
        ("images", {"file_name": "x" * 5000}, "xxx"),
    ],
)
def test_a_hostile_annotation_is_refused_in_one_short_printable_line(coco, refusal, part, change, key, tmp_path):
    message = refusal(coco, lambda tree: tree[part][0].update(change))
    assert_clear(message, tmp_path / "a.json")
    assert key in message


def test_unused_fields_may_hold_anything(coco):
    def nest(tree):
        value = []
        for _ in range(400):
            value = [value]
        for part in ("images", "categories"):
            tree[part][0]["more"] = value

    assert coco_metrics(coco(nest), [])["AP"] == 0


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        "data: {augment: [&a {name: Blur, p: *a}]}",
        "data: {augment: [{name: Blur, p: 2001-01-01}]}",
        "optim: {lr: 2001-99-99}",
        "seed: !!int forty",
        "seed: !!int ''",
        "data: {keep_empty: !!bool maybe}",
        "run_dir: !!timestamp soon",
        "seed: " + "9" * 5000,
        "seed: 0x" + "f" * 6000,
        "optim: {lr: " + "9" * 400 + "}",
        "seed: " + "[" * 1000,
        "a: &a {seed: 1}\nmodel: {<<: *a}",
        'base: "a\\0b"',
        'run_dir: "\\ud800"',
        "run_dir: " + "x" * 300,
        "x" * 900 + ": 1",
        "data: {augment: [{1: 2}]}",
        "model: {fpn: {channels: 1000000000000}}",
        "model: {head: {reg_max: 1000000000000}}",
        "optim: {batch: 1000000000000}",
        "data: {short_side: 1000000000000}",
    ],
    ids=lambda text: text[:40],
)
def test_a_hostile_config_is_refused_in_one_short_printable_line(tmp_path, refusal, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    message = refusal(load_config, path)
    assert message.startswith(f"{path}: ")
    assert_clear(message, path)


def test_bases_that_many_files_share_are_read_once(tmp_path):
    """Reading each twice would mean 2 ** 40 files."""
    (tmp_path / "0.yaml").write_text("seed: 7")
    for number in range(40):
        (tmp_path / f"{number + 1}.yaml").write_text(f"base: [{number}.yaml, ./{number}.yaml]")
    assert load_config(tmp_path / "40.yaml").seed == 7
