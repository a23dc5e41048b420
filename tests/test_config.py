"""Strictness of the config, inheritance, overrides, and the committed files."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
import yaml

from gfl.build import build_detector
from gfl.common.text import format_differences
from gfl.config import (
    Config,
    config_differences,
    config_from_dict,
    config_to_dict,
    load_config,
    save_config,
)

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text, name="config.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_an_empty_file_gives_the_defaults(write):
    assert load_config(write("")) == Config()


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("optm: {lr: 0.1}", "optm", "did you mean optim?"),
        ("optim: {warmup_step: 5}", "optim.warmup_step", "did you mean optim.warmup_steps?"),
        ("model: {backbone: {frozen_stage: 1}}", "model.backbone.frozen_stage", "model.backbone.frozen_stages?"),
        ("model: {head: {dgqp: {top_k: 5}}}", "model.head.dgqp.top_k", "did you mean model.head.dgqp.topk?"),
        ("model: {backbone: {dcn_stage: [c3]}}", "model.backbone.dcn_stage", "did you mean model.backbone.dcn_stages?"),
        ("loss: {zzz: 1}", "loss.zzz", "known here: qfl_beta, cls_weight, box_weight, dfl_weight"),
        ("1: 2", "1", "known here"),
    ],
)
def test_an_unknown_key_is_named_with_a_hint(write, refusal, text, key, hint):
    path = write(text)
    message = refusal(load_config, path)
    assert message.startswith(f"{path}: unknown key {key};")
    assert hint in message


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("optim.batch", "many", "a whole number"),
        ("optim.batch", "true", "a whole number"),
        ("optim.batch", "16.0", "a whole number"),
        ("optim.batch", "", "a whole number, not nothing"),
        ("optim.lr", "true", "a number"),
        ("optim.lr", "[0.1]", "a number"),
        ("optim.channels_last", "1", "true or false"),
        ("run_dir", "3", "text"),
        ("run_dir", "on", "text, not True"),
        ("optim.name", "adam", "one of sgd, adamw"),
        ("model.backbone.frozen_stages", "true", "one of -1, 0, 1, 2, 3, 4"),
        ("optim.steps", "8", "a list"),
        ("optim.steps", "[8, x]", "a whole number"),
        ("data.short_side", "big", "a whole number"),
        ("data.short_side", "[480, 800.5]", "a whole number"),
        ("data.augment", "[ToGray]", "a mapping"),
        ("data.augment", "{name: ToGray}", "a list"),
        ("data.eval_short_side", "[800]", "a whole number"),
        ("model.backbone.dcn", "v3", "one of none, v1, v2"),
        ("model.backbone.dcn", "2", "one of none, v1, v2"),
        ("model.backbone.dcn", "", "one of none, v1, v2, not nothing"),
        ("model.backbone.dcn_stages", "c3", "a list"),
        ("model.backbone.dcn_stages", "[c3, c6]", "one of c2, c3, c4, c5"),
        ("model.backbone.dcn_stages", "[3]", "one of c2, c3, c4, c5"),
        ("model.head.dgqp", "4", "a section"),
        ("model.head.dgqp.topk", "4.0", "a whole number"),
        ("model.head.dgqp.add_mean", "1", "true or false"),
        ("model.points.offset", "half", "a number"),
        ("model.points.offset", "[0.5, half]", "a number"),
        ("model.points.offset", "[[0.5]]", "a number"),
        ("optim.bias_lr_factor", "[2]", "a number"),
        ("optim.bias_decay_factor", "false", "a number"),
        ("data", "5", "a section"),
        ("model.head", "[1]", "a section"),
    ],
)
def test_a_wrong_type_is_refused_in_file_and_override(write, refusal, key, value, wanted):
    tree = value
    for part in reversed(key.split(".")):
        tree = f"{{{part}: {tree}}}"
    path = write(tree)
    for source, message in [
        (f"{path}: ", refusal(load_config, path)),
        ("command line: ", refusal(load_config, write("", "empty.yaml"), [f"{key}={value}"])),
    ]:
        assert message.startswith(f"{source}{key}")
        assert f"must be {wanted}" in message


def test_a_whole_number_serves_as_a_number(write):
    rate = load_config(write("optim: {lr: 1}")).optim.lr
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize("text", ["1e-4", "2E-3", "1e5", "1.0e5"])
def test_a_number_that_yaml_reads_as_text_is_refused_with_a_spelling_that_works(write, refusal, text):
    path = write(f"optim: {{weight_decay: {text}}}")
    message = refusal(load_config, path)
    assert f"{path}: optim.weight_decay must be a number" in message
    assert "YAML reads this as text" in message
    spelling = re.search(r"write (\S+)$", message)[1]
    assert load_config(write(f"optim: {{weight_decay: {spelling}}}")).optim.weight_decay == float(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- 1\n- 2\n", "a config is a mapping of sections"),
        ("hello", "a config is a mapping of sections"),
        ("optim: {lr: 0.1", "not valid YAML"),
        ("optim:\n\tlr: 0.1\n", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("base: 3", "base must be the path of a config or a list of them, not 3 (int)"),
        ("base: {a: b.yaml}", "base must be the path of a config or a list of them"),
        ("base: [1]", "base must be the path of a config or a list of them, not [1] (list)"),
        ("base: [gone.yaml, [other.yaml]]", "base must be the path of a config or a list of them"),
        ("base: [gone.yaml, null]", "base must be the path of a config or a list of them"),
    ],
)
def test_a_file_that_is_no_config_is_named(write, refusal, text, reason):
    path = write(text)
    message = refusal(load_config, path)
    assert message.startswith(f"{path}: ")
    assert reason in message


def test_bytes_that_are_no_text_are_refused(tmp_path, refusal):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00optim")
    assert f"{path}: not valid YAML" in refusal(load_config, path)


def test_a_missing_file_or_base_is_named(tmp_path, write, refusal):
    assert f"cannot read config {tmp_path / 'none.yaml'}" in refusal(load_config, tmp_path / "none.yaml")
    assert f"cannot read config {tmp_path / 'gone.yaml'}" in refusal(load_config, write("base: gone.yaml"))
    assert f"cannot read config {tmp_path}" in refusal(load_config, tmp_path)


def test_values_are_inherited_over_two_levels_relative_to_each_file(write):
    write("optim: {lr: 0.3, epochs: 3, steps: [1, 2]}\nseed: 3", "base/root.yaml")
    write("base: root.yaml\noptim: {lr: 0.2, steps: [2]}", "base/middle.yaml")
    config = load_config(write("base: base/middle.yaml\noptim: {lr: 0.1}"))
    assert (config.optim.lr, config.optim.epochs, config.optim.steps, config.seed) == (0.1, 3, (2,), 3)


def test_of_several_bases_a_later_one_overrides_an_earlier_and_the_file_all_of_them(write):
    write("optim: {lr: 0.1, epochs: 1, batch: 1, steps: [1, 2]}", "first.yaml")
    write("optim: {lr: 0.2, epochs: 2, steps: [3]}", "second.yaml")
    optim = load_config(write("base: [first.yaml, second.yaml]\noptim: {lr: 0.3}")).optim
    assert (optim.lr, optim.epochs, optim.batch, optim.steps) == (0.3, 2, 1, (3,))
    optim = load_config(write("base: [second.yaml, first.yaml]\noptim: {lr: 0.3}")).optim
    assert (optim.lr, optim.epochs, optim.batch, optim.steps) == (0.3, 1, 1, (1, 2))


def test_a_list_of_bases_is_relative_to_its_file_and_may_be_inherited(write):
    write("optim: {lr: 0.1}\nseed: 1", "base/first.yaml")
    write("optim: {lr: 0.2}", "base/deep/second.yaml")
    write("base: [first.yaml, deep/second.yaml]", "base/both.yaml")
    config = load_config(write("base: [base/both.yaml]"))
    assert (config.optim.lr, config.seed) == (0.2, 1)


@pytest.mark.parametrize("base", ["[]", "null", ""])
def test_no_base_at_all_inherits_nothing(write, base):
    assert load_config(write(f"base: {base}\nseed: 3")) == Config(seed=3)


def test_two_bases_may_share_one_and_bring_its_values_along(write):
    write("optim: {lr: 0.1, epochs: 1}", "root.yaml")
    write("base: root.yaml\noptim: {lr: 0.2}", "first.yaml")
    write("base: root.yaml\noptim: {epochs: 2}", "second.yaml")
    optim = load_config(write("base: [first.yaml, second.yaml]")).optim
    assert (optim.lr, optim.epochs) == (0.1, 2)


def test_a_missing_one_of_several_bases_is_named(write, refusal):
    write("seed: 1", "there.yaml")
    missing = write("base: [there.yaml, gone.yaml]").parent / "gone.yaml"
    assert f"cannot read config {missing}" in refusal(load_config, missing.parent / "config.yaml")


def test_an_error_in_one_of_several_bases_names_that_file(write, refusal):
    write("seed: 1", "right.yaml")
    wrong, child = write("optim: {lr: x}", "wrong.yaml"), write("base: [right.yaml, wrong.yaml]")
    assert refusal(load_config, child).startswith(f"{wrong}: optim.lr must be a number")


@pytest.mark.parametrize("target", ["config.yaml", "other.yaml", "[config.yaml]", "[fine.yaml, other.yaml]"])
def test_a_circle_of_bases_is_refused(write, refusal, target):
    write("seed: 1", "fine.yaml")
    write("base: [fine.yaml, sub/../config.yaml]", "other.yaml").parent.joinpath("sub").mkdir()
    assert "config.yaml: inherits from itself" in refusal(load_config, write(f"base: {target}"))


@pytest.mark.parametrize("wrong", ["optim: {lrr: 0.1}", "optim: {lr: x}"])
def test_an_error_names_the_file_in_which_the_key_stands(write, refusal, wrong):
    base, child = write(wrong, "base.yaml"), write("base: base.yaml\nseed: 1")
    message = refusal(load_config, child)
    assert str(base) in message
    assert str(child) not in message


def test_overrides_set_nested_keys_lists_and_mappings(write):
    path = write("optim: {lr: 0.3, steps: [1, 2, 3]}\nmodel: {head: {num_convs: 2}}")
    config = load_config(
        path,
        [
            "optim.lr=0.005",
            "optim.steps=[7]",
            "model.head.reg_max=8",
            "data.augment=[{name: ToGray, p: 0.5}]",
            "run_dir=runs/a=b",
            "seed=1",
            "seed=2",
        ],
    )
    assert (config.optim.lr, config.optim.steps) == (0.005, (7,))
    assert (config.model.head.num_convs, config.model.head.reg_max) == (2, 8)
    assert config.data.augment == ({"name": "ToGray", "p": 0.5},)
    assert config.run_dir == "runs/a=b"
    assert config.seed == 2


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optim.lr", "'optim.lr' is not of the form section.key=value"),
        ("--lr 0.1", "is not of the form section.key=value"),
        ("optim.steps=[1", "not valid YAML"),
        ("optim.lrr=0.1", "did you mean optim.lr?"),
        ("optim..lr=0.1", "unknown key optim."),
        ("base=other.yaml", "unknown key base"),
        ("=1", "unknown key"),
    ],
)
def test_a_wrong_override_is_named_as_such(write, refusal, override, reason):
    message = refusal(load_config, write(""), [override])
    assert message.startswith("command line: ")
    assert reason in message


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr=0.0",
        "optim.lr=.nan",
        "optim.batch=0",
        "optim.accumulate=0",
        "optim.epochs=0",
        "optim.steps=[11, 8]",
        "optim.warmup_steps=-1",
        "optim.weight_decay=-0.1",
        "optim.clip_norm=-1.0",
        "data.short_side=0",
        "data.short_side=[800, 480]",
        "data.short_side=[]",
        "data.long_side=0",
        "data.flip=1.5",
        "data.workers=-1",
        "eval.interval=0",
        "eval.score_thresh=-0.1",
        "eval.nms_iou=2",
        "eval.max_detections=0",
        "log.interval=0",
        "model.head.reg_max=0",
        "model.head.delta=0.0",
        "model.head.channels=48",
        "model.points.strides=[8, 16]",
        "model.points.strides=[4, 8, 16]",
        "model.points.offset=1.0",
        "model.points.offset=-0.1",
        "model.points.offset=[0.5, 0.5, 0.5, 0.5, 1.0]",
        "model.points.offset=[-0.1, 0.5, 0.5, 0.5, 0.5]",
        "model.points.offset=[]",
        "model.points.offset=[0.5, .nan]",
        "model.head.dgqp.topk=0",
        "model.head.dgqp.hidden=0",
        "optim.bias_lr_factor=0.0",
        "optim.bias_lr_factor=-1.0",
        "optim.bias_decay_factor=-1.0",
        "data.eval_short_side=-1",
        "assign.topk=0",
        "seed=-1",
    ],
)
def test_a_value_out_of_range_names_its_key(write, refusal, override):
    assert override.partition("=")[0] in refusal(load_config, write(""), [override])


def test_short_sides_are_the_ends_of_the_range():
    assert Config().data.short_sides == (800, 800)
    assert config_from_dict({"data": {"short_side": [480, 800]}}, "test").data.short_sides == (480, 800)


@pytest.mark.parametrize(
    ("data", "side"),
    [({}, 800), ({"short_side": [480, 960]}, 960), ({"short_side": [480, 960], "eval_short_side": 800}, 800)],
)
def test_evaluation_has_the_highest_short_side_unless_it_has_its_own(data, side):
    assert config_from_dict({"data": data}, "test").data.short_side_in_eval == side


@pytest.mark.parametrize("text", ["0", "0.5", "[0.4375]", "[0, 0.5, 0.25]"])
def test_an_offset_is_one_number_or_one_per_level(write, text):
    offset = load_config(write(f"model: {{points: {{offset: {text}}}}}")).model.points.offset
    wanted = yaml.safe_load(text)
    assert offset == (tuple(wanted) if isinstance(wanted, list) else wanted)
    assert all(type(value) is float for value in (offset if isinstance(offset, tuple) else [offset]))


def test_a_number_replaces_an_inherited_list_of_offsets_and_the_other_way_round(write):
    write("model: {points: {offset: [0.5, 0.5, 0.5, 0.5, 0.5]}}", "base.yaml")
    path = write("base: base.yaml\nmodel: {points: {offset: 0.25}}")
    assert load_config(path).model.points.offset == 0.25
    assert load_config(path, ["model.points.offset=[0, 0, 0]"]).model.points.offset == (0, 0, 0)


def build_tiny(tree):
    config = config_from_dict(tree, "test")
    with torch.device("meta"):
        return build_detector(config, 3)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_offsets_for_another_number_of_levels_are_refused(refusal, count):
    tree = {"model": {"backbone": {"name": "resnet18"}, "points": {"offset": [0.5] * count}}}
    assert refusal(build_tiny, tree) == f"model.points.offset: {count} values for 5 levels"
    tree["model"]["points"]["strides"] = [8 * 2**level for level in range(max(count, 3))]
    if count > 1:
        assert build_tiny(tree).head.offset == (0.5,) * count


@pytest.mark.parametrize("backbone", [{"dcn": "v2"}, {"dcn_stages": ["c3"]}, {"dcn": "v1", "dcn_stages": []}])
def test_deformable_convolutions_need_a_kind_and_stages(refusal, backbone):
    assert refusal(build_tiny, {"model": {"backbone": backbone}}).startswith("model.backbone: dcn ")


@pytest.mark.parametrize("dcn", ["v1", "v2"])
def test_every_stage_may_be_deformable(write, dcn):
    for stages in (["c2"], ["c3", "c4", "c5"], ["c2", "c3", "c4", "c5"]):
        backbone = load_config(write(f"model: {{backbone: {{dcn: {dcn}, dcn_stages: {stages}}}}}")).model.backbone
        assert (backbone.dcn, backbone.dcn_stages) == (dcn, tuple(stages))


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


@pytest.fixture
def unusual():
    """Every kind of value away from its default."""
    tree = {
        "model": {
            "backbone": {
                "name": "resnet50",
                "frozen_stages": -1,
                "norm_eval": False,
                "dcn": "v1",
                "dcn_stages": ["c5"],
            },
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


def test_a_saved_config_loads_as_the_same(unusual, tmp_path):
    for number, config in enumerate([unusual, Config()]):
        save_config(config, tmp_path / "new" / f"{number}.yaml")
        assert load_config(tmp_path / "new" / f"{number}.yaml") == config


def test_a_config_that_cannot_be_written_is_told(tmp_path, refusal):
    (tmp_path / "file").write_text("")
    assert f"cannot write {tmp_path / 'file' / 'c.yaml'}" in refusal(save_config, Config(), tmp_path / "file/c.yaml")


def test_differences_name_every_changed_key_and_no_other():
    changed = config_from_dict({"optim": {"lr": 0.02, "steps": [9]}, "run_dir": "elsewhere"}, "test")
    assert format_differences(config_differences(config_to_dict(Config()), Config())) == []
    assert format_differences(config_differences(config_to_dict(Config()), changed)) == [
        "optim.lr: 0.01 -> 0.02",
        "optim.steps: [8, 11] -> [9]",
        "run_dir: runs/gfl -> elsewhere",
    ]


def test_a_key_that_an_older_run_did_not_have_is_a_difference():
    before = config_to_dict(Config())
    del before["optim"]["clip_norm"]
    assert format_differences(config_differences(before, Config())) == ["optim.clip_norm: None -> 0.0"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_each_committed_config_loads_and_its_head_names_its_command_and_figure(path):
    config = load_config(path)
    assert config.run_dir == f"runs/{path.stem}"
    head = path.read_text().partition("\nbase:")[0].splitlines()
    assert all(line.startswith("#") for line in head)
    assert f"train.py configs/{path.name}" in head[0]
    assert re.search(r"^# expected: \S", "\n".join(head), re.MULTILINE)


@pytest.mark.parametrize(("backbone", "name"), [("resnet50", "r50"), ("resnet101", "r101")])
def test_the_ms2x_configs_differ_from_1x_in_scale_schedule_and_backbone_only(backbone, name):
    once = load_config(ROOT / "configs" / "gfl_r50_fpn_1x_coco.yaml")
    twice = load_config(ROOT / "configs" / f"gfl_{name}_fpn_ms2x_coco.yaml")
    changed = dict(line.split(": ", 1) for line in format_differences(config_differences(config_to_dict(once), twice)))
    assert changed.pop("run_dir").endswith(f"gfl_{name}_fpn_ms2x_coco")
    assert changed.pop("model.backbone.name", "-> resnet50").endswith(f"-> {backbone}")
    assert changed == {
        "data.short_side": "800 -> [480, 800]",
        "optim.epochs": "12 -> 24",
        "optim.steps": "[8, 11] -> [16, 22]",
    }
