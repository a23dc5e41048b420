"""The keys and their limits, overrides, and the committed files."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from gfl.config import Config
from gfl.config_file import config_differences, config_from_dict, config_to_dict, load_config, save_config

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_an_empty_file_gives_the_defaults(write):
    assert load_config(write("")) == Config()


def test_an_error_names_the_file_that_has_the_key(write, refusal):
    base, right = write("optim: {lr: x}", "base.yaml"), write("seed: 1", "right.yaml")
    child = write(f"base: [{right.name}, {base.name}]")
    assert refusal(load_config, child).startswith(f"{base}: optim.lr ")


def test_overrides_set_nested_keys_lists_and_mappings(write):
    path = write("optim: {lr: 0.3, steps: [1, 2, 3]}\nmodel: {head: {num_convs: 2}}")
    overrides = ["optim.lr=0.005", "optim.steps=[7]", "model.head.reg_max=8", "run_dir=runs/a=b", "seed=1", "seed=2"]
    config = load_config(path, [*overrides, "data.augment=[{name: ToGray, p: 0.5}]"])
    assert (config.optim.lr, config.optim.steps) == (0.005, (7,))
    assert (config.model.head.num_convs, config.model.head.reg_max) == (2, 8)
    assert config.data.augment == ({"name": "ToGray", "p": 0.5},)
    assert (config.run_dir, config.seed) == ("runs/a=b", 2)


def test_a_config_among_the_overrides_is_laid_over_those_before_it(write):
    write("seed: 7\noptim: {epochs: 3}", "inherited.yaml")
    scale = write("base: inherited.yaml\noptim: {lr: 0.2}", "scale.yaml")
    config = load_config(write("optim: {batch: 2}"), ["optim.lr=0.1", "seed=1", str(scale), "seed=2"])
    assert (config.optim.batch, config.optim.lr, config.optim.epochs, config.seed) == (2, 0.2, 3, 2)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.lr", "'optim.lr'"),
        ("--lr 0.1", "'--lr 0.1'"),
        ("optim.steps=[1", "'optim.steps=[1'"),
        ("optim.lrr=0.1", "optim.lrr"),
        ("optim..lr=0.1", "optim."),
        ("base=other.yaml", "base"),
        ("=1", "key"),
        ("optim.batch=many", "optim.batch"),
    ],
)
def test_a_wrong_override_is_named_as_such(write, refusal, override, named):
    message = refusal(load_config, write(""), [override])
    assert message.startswith("command line: ")
    assert named in message


@pytest.mark.parametrize(
    "override",
    [
        "model.backbone.name=resnet20",
        "model.backbone.weights=" + "x" * 300,
        "model.backbone.dcn=v3",
        "model.backbone.dcn_stages=c3",
        "model.backbone.dcn_stages=[c4, c3]",
        "model.head.quality=centerness",
        "model.head.box=generic",
        "model.head.reg_max=0",
        "model.head.delta=0.0",
        "model.head.channels=48",
        "model.head.dgqp.topk=0",
        "model.points.strides=[8, 16]",
        "model.points.strides=[4, 8, 16]",
        "model.points.offset=1.0",
        "model.points.offset=[-0.1, 0.5, 0.5, 0.5, 0.5]",
        "model.points.offset=[]",
        "assign.kind=simota",
        "assign.topk=0",
        "loss.qfl_beta=0.5",
        "loss.box_weight=-1.0",
        "data.short_side=0",
        "data.short_side=[800, 480]",
        "data.short_side=[]",
        "data.long_side=0",
        "data.eval_short_side=-1",
        "eval.tta_scales=[]",
        "eval.tta_scales=[1, 1.0]",
        "eval.tta_scales=[640, 800]",
        "data.flip=1.5",
        "data.workers=-1",
        "data.on_bad_image=ignore",
        "optim.name=adam",
        "optim.lr=0.0",
        "optim.batch=0",
        "optim.accumulate=0",
        "optim.steps=[11, 8]",
        "optim.warmup_steps=-1",
        "optim.weight_decay=-0.1",
        "optim.clip_norm=-1.0",
        "optim.bias_lr_factor=0.0",
        "optim.bias_decay_factor=-1.0",
        "optim.amp=fp8",
        "eval.interval=0",
        "eval.score_thresh=-0.1",
        "eval.nms_iou=2",
        "eval.max_detections=0",
        "eval.decode=mean",
        "log.interval=0",
        "seed=-1",
    ],
)
def test_a_value_out_of_range_names_its_key(write, refusal, override):
    assert f" {override.partition('=')[0]} must be " in refusal(load_config, write(""), [override])


@pytest.mark.parametrize(
    ("data", "short_sides", "in_eval"),
    [
        ({}, (800, 800), 800),
        ({"short_side": [480, 960]}, (480, 960), 960),
        ({"short_side": [480, 960], "eval_short_side": 800}, (480, 960), 800),
    ],
)
def test_evaluation_has_the_highest_short_side_unless_it_has_its_own(data, short_sides, in_eval):
    made = config_from_dict({"data": data}, "test").data
    assert (made.short_sides, made.short_side_in_eval) == (short_sides, in_eval)


def test_a_number_replaces_an_inherited_list_of_offsets_and_the_other_way_round(write):
    write("model: {points: {offset: [0.5, 0.5, 0.5, 0.5, 0.5]}}", "base.yaml")
    path = write("base: base.yaml\nmodel: {points: {offset: 0.25}}")
    assert load_config(path).model.points.offset == 0.25
    assert load_config(path, ["model.points.offset=[0, 0, 0]"]).model.points.offset == (0, 0, 0)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


@pytest.fixture
def unusual():
    """Every kind of value away from its default."""
    backbone = {"name": "resnet50", "frozen_stages": -1, "norm_eval": False, "dcn": "v1", "dcn_stages": ["c5"]}
    tree = {
        "model": {
            "backbone": backbone,
            "head": {"quality": "dgqp", "dgqp": {"topk": 3, "add_mean": False}},
            "points": {"offset": [0.4375, 0.46875, 0.0, 0, 0.5]},
        },
        "data": {"short_side": [100, 200], "augment": [{"name": "Affine", "scale": [0.8, 1.2], "p": 0.5}]},
        "optim": {"lr": 1e-5, "steps": [], "weight_decay": 1e-20},
        "run_dir": "runs/with: colon, 'quote' and ünicode",
    }
    return config_from_dict(tree, "test")


def test_plain_data_and_back(unusual):
    plain = config_to_dict(unusual)
    assert plain["data"]["short_side"] == [100, 200]
    assert plain["model"]["points"]["offset"] == [0.4375, 0.46875, 0, 0, 0.5]
    assert config_from_dict(plain, "test") == unusual
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_a_saved_config_loads_as_the_same(unusual, tmp_path, refusal):
    for number, config in enumerate([unusual, Config()]):
        save_config(config, tmp_path / "new" / f"{number}.yaml")
        assert load_config(tmp_path / "new" / f"{number}.yaml") == config
    impossible = tmp_path / "new" / "0.yaml" / "config.yaml"
    assert str(impossible) in refusal(save_config, Config(), impossible)


def test_a_saved_config_of_any_keys_can_be_compared():
    assert config_differences({None: 1, "loss": {7: 1}}, Config()) == {}


def test_differences_name_every_changed_key_and_no_other():
    before = config_to_dict(Config())
    assert config_differences(before, Config()) == {}
    changed = config_from_dict({"optim": {"lr": 0.02, "steps": [9]}, "run_dir": "elsewhere"}, "test")
    del before["optim"]["clip_norm"]  # a key that an older run did not have: it was trained as with the default
    assert config_differences(before, changed) == {
        "optim.lr": (0.01, 0.02),
        "optim.steps": ([8, 11], [9]),
        "run_dir": ("runs/gfl", "elsewhere"),
    }


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_each_committed_config_loads_and_its_comment_has_its_command_and_expected_result(path):
    assert load_config(path).run_dir == f"runs/{path.stem}"
    comment = path.read_text(encoding="utf-8").partition("\nbase:")[0].splitlines()
    assert all(line.startswith("#") for line in comment)
    assert f"train.py configs/{path.name}" in comment[0]
    assert re.search(r"^# expected: \S", "\n".join(comment), re.MULTILINE)


@pytest.mark.parametrize(("backbone", "name"), [("resnet50", "r50"), ("resnet101", "r101")])
def test_the_ms2x_configs_differ_from_1x_in_scale_schedule_and_backbone_only(backbone, name):
    once = load_config(ROOT / "configs" / "gfl_r50_fpn_1x_coco.yaml")
    twice = load_config(ROOT / "configs" / f"gfl_{name}_fpn_ms2x_coco.yaml")
    changed = config_differences(config_to_dict(once), twice)
    assert twice.model.backbone.name == backbone
    assert {key: new for key, (_, new) in changed.items() if key not in ("run_dir", "model.backbone.name")} == {
        "data.short_side": [480, 800],
        "optim.epochs": 24,
        "optim.steps": [16, 22],
    }
