"""Mutated inputs, some of each kind; `python tests/fuzz.py KIND --count N` tries any number."""

import json

import fuzz
import pytest
import torch
from fuzz_cases import coco_tree, good_state, shallow, step, trained, write_images
from mutators import LAUGHS, RAW

from gfl.checkpoint import LAST, load_detector, newest_checkpoint, read_checkpoint, write_torch_file
from gfl.common.errors import UserError, run
from gfl.config import load_config
from gfl.data.coco import load_coco
from gfl.evaluation.coco_eval import coco_metrics
from gfl.training.optim import build_optimizer
from gfl.training.resume import restore


@pytest.mark.parametrize(("kind", "count"), [("annotations", 60), ("configs", 30), ("checkpoints", 6)])
def test_mutated_inputs_load_or_end_in_one_clear_line(kind, count, tmp_path):
    results = set()
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = fuzz.run_case(kind, 0, number, folder)
        assert outcome.result != "failed", f"case {number}, {outcome.mutation}: {outcome.message}"
        results.add(outcome.result)
    assert results == {"loaded", "refused"}


def test_the_fuzzer_sees_a_crash_a_hang_and_an_unclear_message(tmp_path, monkeypatch):
    def outcome(check):
        monkeypatch.setattr(fuzz.fuzz_cases, "check_annotations", check)
        (tmp_path / check.__name__).mkdir()
        return fuzz.run_case("annotations", 0, 0, tmp_path / check.__name__)

    def crash(folder, attempt):
        raise RecursionError

    def hang(folder, attempt):
        while True:
            pass

    def mumble(folder, attempt):
        def refuse():
            raise UserError("wrong")

        attempt(refuse)

    def silent(folder, attempt):
        pass

    monkeypatch.setattr(fuzz, "LIMIT_S", 1)
    assert "RecursionError" in outcome(crash).message
    assert "TooSlow" in outcome(hang).message
    assert "neither file nor key" in outcome(mumble).message
    assert outcome(silent).result == "loaded"


def test_an_unprintable_message_is_printed(capsys):
    def fail():
        raise UserError("a\ud800b\x1b[31m\nc")

    with pytest.raises(SystemExit):
        run(fail)
    assert capsys.readouterr().err == "error: a?b?[31m?c\n"


# Annotations


@pytest.fixture
def coco(tmp_path):
    """Write the json with `change` made to it, and load it."""
    write_images(tmp_path / "images")

    def load(change=lambda tree: None, replace=("", "")):
        tree = coco_tree()
        change(tree)
        text = json.dumps(tree).replace(*replace) if replace[0] else json.dumps(tree)
        (tmp_path / "a.json").write_text(text)
        return load_coco(str(tmp_path / "a.json"), str(tmp_path / "images"))

    return load


@pytest.mark.parametrize(
    ("raw", "reason"),
    [(RAW["@deep list@"], "nested too deeply"), (RAW["@digits@"], "thousands of digits")],
    ids=["deep", "digits"],
)
def test_a_json_that_python_cannot_read_is_named(coco, refusal, raw, reason):
    assert reason in refusal(coco, replace=("2024", raw))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_box_that_is_no_number_is_found_by_nothing(coco, value):
    """The figures are those of a box without size, which nobody can find either."""

    def figures(bbox):
        data = coco(lambda tree: tree["annotations"][0].update(bbox=bbox, area=300))
        found = {"image_id": 900, "category_id": 7, "bbox": [10, 10, 20, 15], "score": 0.9}
        return coco_metrics(data, [found])

    assert figures([10, value, 20, 15]) == figures([0, 0, 0, 0])


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("annotations", {"bbox": [10**400, 0, 5, 5]}, "bbox must be four numbers"),
        ("annotations", {"area": 10**400}, "area a number"),
        ("annotations", {"id": "x" * 5000, "category_id": "y" * 5000}, "category_id"),
        ("categories", {"id": 2**62}, "63 bits"),
        ("categories", {"name": "a\ud800"}, "control characters"),
        ("categories", {"name": "\x1b[31m"}, "control characters"),
        ("images", {"file_name": "x" * 5000}, "too long"),
    ],
)
def test_a_hostile_value_ends_in_one_short_printable_line(coco, refusal, part, change, reason):
    message = refusal(coco, lambda tree: tree[part][0].update(change))
    assert reason in message
    assert message.isprintable()
    assert len(message) < 500


def test_fields_that_nobody_reads_may_hold_anything(coco):
    def nest(tree):
        value = []
        for _ in range(400):
            value = [value]
        for part in ("images", "categories"):
            tree[part][0]["more"] = value

    assert coco_metrics(coco(nest), [])["AP"] == 0


# Configs


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "more than 100000 values"),
        ("data: {augment: [&a {name: Blur, p: *a}]}", "or endless"),
        ("data: {augment: [{name: Blur, p: 2001-01-01}]}", "which no key takes"),
        ("optim: {lr: 2001-99-99}", "is not of the type timestamp"),
        ("seed: !!int forty", "is not of the type int"),
        ("seed: !!int ''", "is not of the type int"),
        ("data: {keep_empty: !!bool maybe}", "is not of the type bool"),
        ("run_dir: !!timestamp soon", "is not of the type timestamp"),
        ("seed: " + "9" * 5000, "is not of the type int"),
        ("seed: 0x" + "f" * 6000, "63 bits"),
        ("optim: {lr: " + "9" * 400 + "}", "must be finite"),
        ("seed: " + "[" * 1000, "nested too deeply"),
        ("a: &a {seed: 1}\nmodel: {<<: *a}", "merge keys"),
        ('base: "a\\0b"', "base must be the path"),
        ('run_dir: "\\ud800"', "without control characters"),
        ("run_dir: " + "x" * 300, "255 bytes"),
        ("x" * 900 + ": 1", "unknown key"),
        ("data: {augment: [{1: 2}]}", "must have text as its keys"),
        ("model: {fpn: {channels: 1000000000000}}", "at most 8192"),
        ("model: {head: {reg_max: 1000000000000}}", "at most 1000"),
        ("optim: {batch: 1000000000000}", "at most 1000000"),
        ("data: {short_side: 1000000000000}", "must be a size"),
    ],
)
def test_a_hostile_config_ends_in_one_short_printable_line(tmp_path, refusal, text, reason):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    message = refusal(load_config, path)
    assert message.startswith(f"{path}: ")
    assert reason in message
    assert message.isprintable()
    assert len(message) < 500


def test_bases_that_many_files_share_are_read_once(tmp_path):
    """Twice each would be 2 ** 40 files."""
    (tmp_path / "0.yaml").write_text("seed: 7")
    for number in range(40):
        (tmp_path / f"{number + 1}.yaml").write_text(f"base: [{number}.yaml, ./{number}.yaml]")
    assert load_config(tmp_path / "40.yaml").seed == 7


# Checkpoints


@pytest.fixture
def written(tmp_path):
    """Write a good checkpoint with `change` made to it."""

    def write(change=lambda state: None):
        state = shallow(good_state())
        change(state)
        write_torch_file(tmp_path / LAST, state)
        return tmp_path / LAST

    return write


def resume(path):
    config, model, _, _ = trained()
    optimizer, scaler = build_optimizer(model, config.optim), torch.amp.GradScaler("cpu")
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler, "config": config}
    progress = restore(read_checkpoint(path), path, **parts, class_names=("disc", "ring"), steps_per_epoch=5)
    return progress, optimizer, scaler


def test_a_whole_checkpoint_is_restored(written):
    progress, optimizer, scaler = resume(written())
    assert progress == (1, 2, 0.25, 5)
    state = good_state()
    assert scaler.state_dict() == state["scaler"]
    kept = optimizer.state_dict()["state"]
    assert kept.keys() == state["optimizer"]["state"].keys()
    for number, entry in state["optimizer"]["state"].items():
        assert all(torch.equal(kept[number][key], value) for key, value in entry.items())
    step(optimizer, scaler)


ENDLESS = {}
ENDLESS["model"] = ENDLESS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": None}, "model is not named tensors"),
        ({"model": {"a": 3}}, "model is not named tensors"),
        ({"model": {"a": torch.zeros(2).to_sparse()}}, "model is not named tensors"),
        ({"model": {"a": torch.zeros(2, device="meta")}}, "model is not named tensors"),
        ({"config": 3}, "config is 3"),
        ({"config": ENDLESS}, "endless"),
        ({"class_names": None}, "class_names are nothing"),
        ({"class_names": "ab"}, "class_names are"),
        ({"class_names": []}, "class_names are"),
        ({"class_names": ["a", "a"]}, "class_names are"),
        ({"class_names": ["a", "\ud800"]}, "class_names are"),
    ],
)
def test_a_checkpoint_with_parts_of_other_types_is_not_taken(written, refusal, change, reason):
    path = written(lambda state: state.update(change))
    for read in (read_checkpoint, load_detector, resume):
        message = refusal(read, path)
        assert str(path) in message
        assert reason in message
    assert reason in refusal(newest_checkpoint, path.parent)


def test_weights_that_are_not_finite_are_refused(written, refusal):
    def change(state):
        state["model"]["head.scales"] = torch.full((5,), float("nan"))

    for read in (load_detector, resume):
        assert "not finite in 1 tensors, first head.scales" in refusal(read, written(change))


def test_the_config_of_a_checkpoint_is_named_where_it_builds_no_detector(written, refusal):
    path = written(lambda state: state["config"]["model"]["head"].update(quality="best"))
    assert refusal(load_detector, path).startswith(f"config in {path}: model.head.quality")


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("progress", {"epoch": -1}, "progress in"),
        ("progress", {"epoch": 1.5}, "epoch must be a whole number"),
        ("progress", {"best": float("nan")}, "best must be finite"),
        ("progress", {"step": 6}, "beyond the epoch"),
        ("progress", {"more": 1}, "unknown key more"),
        ("optimizer", {"state": []}, "optimizer is not what"),
        ("optimizer", {"param_groups": None}, "optimizer is not what"),
        ("optimizer", {"state": {999: {}}}, "does not fit"),
        ("optimizer", {"state": {0: {"step": torch.tensor(1.0)}}}, "does not fit"),
        ("scaler", {"scale": float("nan")}, "scaler is not what"),
        ("scaler", {"scale": 0}, "scaler is not what"),
        ("scaler", {"growth_interval": "often"}, "scaler is not what"),
    ],
)
def test_a_part_that_resume_cannot_use_is_named(written, refusal, part, change, reason):
    message = refusal(resume, written(lambda state: state[part].update(change)))
    assert str(written()) in message
    assert reason in message


@pytest.mark.parametrize("part", ["progress", "optimizer", "scaler"])
def test_a_part_of_which_something_lacks_is_named(written, refusal, part):
    for key in good_state()[part]:
        assert part in refusal(resume, written(lambda state, key=key: state[part].pop(key)))


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
@pytest.mark.parametrize("value", [torch.zeros(3, 3), torch.tensor(float("nan")), None, 1.0])
def test_what_the_optimizer_keeps_must_fit_its_parameter(written, refusal, key, value):
    path = written(lambda state: state["optimizer"]["state"][0].update({key: value}))
    assert "does not fit the model's parameters" in refusal(resume, path)


@pytest.mark.parametrize("proof", ["[" * 5000 + "]" * 5000, '{"bytes": "' + "9" * 5000 + '", "sha256": 1}'])
def test_a_damaged_proof_costs_one_line_at_most(written, proof):
    path = written()
    path.with_name(path.name + ".json").write_text(proof)
    try:
        assert read_checkpoint(path)["class_names"] == ["disc", "ring"]
    except UserError as error:
        assert len(str(error)) < 500  # noqa: PT017 (either will do)
