"""The command scripts/convert_checkpoint.py: what it writes, prints and refuses."""

import argparse
import json
import os
import shlex
import subprocess
import sys

import pytest
import torch
import yaml
from external_models import CONFIGS, NAMES, ROOT, TEXTS, assert_same_state, make_config, mmdet2, mmdet3, small_detector
from torchvision import models

from gfl.checkpoint import FORMAT, detector_content, load_detector, read_checkpoint, write_torch_file
from gfl.common.errors import UserError
from gfl.config_file import config_to_dict, load_config
from gfl.model.backbone import Backbone
from gfl.tools.convert.architecture import parse_external
from gfl.tools.convert.state_dict import convert_detector, to_mmdet
from gfl.training.initial_weights import load_backbone_weights

SCRIPT = ROOT / "scripts" / "convert_checkpoint.py"


@pytest.fixture
def convert(script, capsys):
    """Call the command's main function; returns what it prints."""
    command = script("convert_checkpoint")

    def call(source, out, *, to="gfl", **options):
        capsys.readouterr()
        options = {"config": None, "classes": None, "weights": None} | options
        command.main(argparse.Namespace(input=str(source), output=str(out), to=to, **options))
        return capsys.readouterr().out

    return call


def folder_content(folder):
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns if p.is_file() else None for p in folder.rglob("*")}


@pytest.fixture
def refuse(convert, tmp_path):
    """The message and code of a refusal, which must leave all files as they were."""

    def call(*args, **kwargs):
        before = folder_content(tmp_path)
        with pytest.raises(UserError) as error:
            convert(*args, **kwargs)
        assert folder_content(tmp_path) == before
        return str(error.value), error.value.code

    return call


@pytest.fixture
def source(tmp_path):
    """A small GFL of mmdetection 2.x."""
    torch.save(mmdet2(small_detector("gfl")), tmp_path / "in.pth")
    return tmp_path / "in.pth"


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A run folder with a GFLv2 in best.pt."""
    folder = tmp_path_factory.mktemp("run")
    state = convert_detector(parse_external(small_detector("gflv2")), CONFIGS["gflv2"], NAMES).state
    write_torch_file(folder / "best.pt", detector_content(state, CONFIGS["gflv2"], NAMES))
    return folder


def run_command(folder, *words):
    return subprocess.run([sys.executable, SCRIPT, *words], cwd=folder, capture_output=True, text=True, timeout=120)


def test_the_command_refuses_a_truncated_file_in_one_line(source, tmp_path):
    os.truncate(source, source.stat().st_size // 2)
    done = run_command(tmp_path, "in.pth", "out.pt")
    assert done.returncode == 2
    assert done.stderr.startswith("error: in.pth ")
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["in.pth"]


def test_a_detector_converted_to_mmdetection_and_back_predicts_the_same(own_run, convert, tmp_path):
    theirs, back = tmp_path / "new" / "mmdet.pth", tmp_path / "back.pt"
    assert "load_from = " in convert(own_run, theirs, to="mmdet")
    meta = torch.load(theirs, weights_only=True)["meta"]
    assert list(meta["CLASSES"]) == list(meta["dataset_meta"]["classes"]) == list(NAMES)
    assert "implus/GFocalV2" in convert(theirs, back)
    assert sorted(os.listdir(tmp_path)) == ["back.pt", "new"]
    assert os.listdir(theirs.parent) == ["mmdet.pth"]
    before, after = load_detector(own_run), load_detector(back)
    assert (after.config.model.head, after.class_names) == (before.config.model.head, NAMES)
    assert_same_state(after.model.state_dict(), before.model.state_dict())
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = (detector.model.decode(detector.model(images)) for detector in (before, after))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize("kind", ["atss", "fcos"])
def test_atss_and_fcos_come_with_their_assigner_and_loss_weights(kind, convert, tmp_path):
    content = {"state_dict": small_detector(kind), "meta": {"CLASSES": NAMES, "config": TEXTS[kind]}}
    torch.save(content, tmp_path / "in.pth")
    assert "note" not in convert(tmp_path / "in.pth", tmp_path / "ours.pt")
    convert(tmp_path / "ours.pt", tmp_path / "back.pth", to="mmdet")
    assert_same_state(torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"], small_detector(kind))
    config = load_detector(tmp_path / "ours.pt").config
    assert config.assign.kind == kind
    assert config.loss.box_weight == (1.0 if kind == "fcos" else 2.0)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("atss", "bbox_head=ATSSHead, octave_base_scale=8"), ("fcos", "norm_on_bbox=True, centerness_on_reg=True")],
)
def test_settings_that_could_not_be_checked_are_listed(kind, settings, convert, tmp_path):
    torch.save({"state_dict": small_detector(kind), "meta": {"CLASSES": NAMES}}, tmp_path / "in.pth")
    (note,) = [line for line in convert(tmp_path / "in.pth", tmp_path / "out.pt").splitlines() if "note" in line]
    assert "style=pytorch" in note
    assert settings in note


def test_the_output_holds_only_plain_tensors_config_and_classes(convert, tmp_path):
    torch.save(mmdet3(small_detector("gfl")), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.pt")
    content = torch.load(tmp_path / "out.pt", weights_only=True)
    assert content.keys() == {"format", "model", "config", "class_names"}
    assert content["format"] == FORMAT


def test_classes_come_from_a_json_in_the_order_of_their_ids(convert, refuse, tmp_path):
    torch.save(small_detector("gfl"), tmp_path / "in.pth")
    categories = [{"id": number, "name": name} for number, name in ((9, "cross"), (2, "disc"), (5, "ring"))]
    images = [{"id": 1, "file_name": "1.png", "width": 3, "height": 4}]
    tree, classes = {"images": images, "annotations": [], "categories": categories}, tmp_path / "classes.json"
    classes.write_text(json.dumps(tree))
    convert(tmp_path / "in.pth", tmp_path / "out.pt", classes=str(classes))
    assert read_checkpoint(tmp_path / "out.pt")["class_names"] == list(NAMES)
    classes.write_text(json.dumps(tree | {"categories": categories[:2]}))
    message, code = refuse(tmp_path / "in.pth", tmp_path / "out2.pt", classes=str(classes))
    assert code == "background"
    assert "--classes" in message
    assert "no.json" in refuse(tmp_path / "in.pth", tmp_path / "out2.pt", classes=str(tmp_path / "no.json"))[0]


def write_config(path, **model):
    tree = config_to_dict(make_config(**model))["model"]
    path.write_text(yaml.safe_dump({"model": tree, "data": {"val": {"annotations": "my.json"}}}))
    return str(path)


def test_a_config_that_fits_goes_into_the_file_and_another_is_refused(source, convert, refuse, tmp_path):
    config = write_config(tmp_path / "config.yaml")
    assert convert(source, tmp_path / "out.pt", config=config).strip().endswith(f"eval.py {tmp_path / 'out.pt'}")
    assert load_detector(tmp_path / "out.pt").config == load_config(config)
    other = write_config(tmp_path / "other.yaml", head={"reg_max": 8})
    message, code = refuse(source, tmp_path / "out2.pt", config=other)
    assert code == "config"
    assert str(source) in message
    assert "model.head.reg_max" in message


def test_averaged_weights_are_converted_unless_others_are_chosen(convert, refuse, source, tmp_path):
    last, path = small_detector("gfl"), tmp_path / "ema.pth"
    averaged = {name: tensor / 2 if "conv" in name else tensor for name, tensor in last.items()}
    swapped = {"steps": torch.tensor(3)} | {f"module.{name}": tensor for name, tensor in last.items()}
    torch.save(mmdet3(averaged) | {"ema_state_dict": swapped}, path)  # as mmengine saves them
    for choice, expected in ((None, averaged), ("ema", averaged), ("model", last)):
        printed = convert(path, tmp_path / "out.pt", weights=choice)
        assert "\nweights  " in printed
        assert ("--weights model" if expected is averaged else "--weights ema") in printed
        model = load_detector(tmp_path / "out.pt").model
        assert_same_state(to_mmdet(model.state_dict(), CONFIGS["gfl"]), expected)
    assert "\nweights  " not in convert(source, tmp_path / "out.pt")
    assert refuse(source, tmp_path / "out2.pt", weights="ema")[1] == "weights"


def test_a_backbone_of_a_training_script_is_converted(convert, tmp_path):
    """torchvision's reference scripts save the arguments, the optimizer and an averaged model."""
    theirs = models.resnet18().state_dict()
    averaged = {f"module._orig_mod.{name}": t + 1 if t.is_floating_point() else t for name, t in theirs.items()}
    content = {"model": theirs, "model_ema": averaged | {"n_averaged": torch.tensor(3)}, "optimizer": {}, "epoch": 1}
    torch.save(content | {"args": argparse.Namespace(lr=0.1)}, tmp_path / "in.pth")
    assert "model_ema" in convert(tmp_path / "in.pth", tmp_path / "out.pt")
    expected = {name: averaged[f"module._orig_mod.{name}"] for name in theirs if not name.startswith("fc.")}
    assert_same_state(torch.load(tmp_path / "out.pt", weights_only=True), expected)


def next_line(printed):
    return printed.strip().splitlines()[-1].removeprefix("next").strip()


def test_the_setting_printed_for_a_backbone_and_for_mmdetection_can_be_used(convert, own_run, refusal, tmp_path):
    out = tmp_path / "with a space.pt"
    torch.save(models.resnet18().state_dict(), tmp_path / "in.pth")
    (override,) = shlex.split(next_line(convert(tmp_path / "in.pth", out)).partition(": ")[2])
    weights = load_config(write_config(tmp_path / "config.yaml"), [override]).model.backbone.weights
    load_backbone_weights(Backbone("resnet18"), "resnet18", weights)
    assert "model.backbone.weights=" in refusal(load_detector, out)  # which evaluates detectors only
    line, settings = next_line(convert(own_run, out, to="mmdet")), {}
    exec(line.partition(": ")[2], settings)
    assert settings["load_from"] == str(out)


def test_an_output_that_cannot_be_written_is_named(source, refuse, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link.pt").symlink_to("in.pth")
    for out in ("folder", "in.pth", "folder/../in.pth", "link.pt", "file/out.pt", "file/more/out.pt"):
        assert str(tmp_path / out) in refuse(source, tmp_path / out)[0]


@pytest.mark.parametrize("as_folder", [True, False])
def test_our_checkpoint_is_not_replaced_by_its_own_conversion(as_folder, own_run, refuse, tmp_path):
    path = tmp_path / "run" / "best.pt"
    path.parent.mkdir()
    path.write_bytes((own_run / "best.pt").read_bytes())
    assert refuse(path.parent if as_folder else path, path, to="mmdet")[1] == "output"


def test_a_checkpoint_given_for_the_wrong_direction_is_refused(own_run, source, refuse, tmp_path):
    out = tmp_path / "out.pt"
    assert refuse(own_run / "best.pt", out)[1] == "already_ours"
    assert refuse(source, out, to="mmdet")[1] == "other_format"
    assert refuse(tmp_path, out, to="mmdet")[1] == "missing"
    for option in ("classes", "config", "weights"):
        assert refuse(own_run, out, to="mmdet", **{option: "ema"})[1] == "options"


def test_a_model_that_mmdetection_cannot_express_is_refused_with_its_file(refuse, tmp_path):
    config = make_config(head={"quality": "none"})
    write_torch_file(tmp_path / "in.pt", detector_content({}, config, NAMES))
    message, code = refuse(tmp_path / "in.pt", tmp_path / "out.pth", to="mmdet")
    assert code == "not_expressible"
    assert str(tmp_path / "in.pt") in message


@pytest.mark.parametrize("name", ["resnet18", "resnext101_32x4d"])
def test_imagenet_weights_become_a_file_for_training(name, convert, tmp_path):
    if name == "resnet18":  # of torchvision
        content = theirs = models.resnet18().state_dict()
    else:  # of open-mmlab
        with torch.device("meta"):
            names = Backbone(name).state_dict()
        theirs = {key: torch.full_like(like, 3, device="cpu") for key, like in names.items()}
        content = {"meta": {"CLASSES": ["tench"]}, "state_dict": {f"backbone.{k}": t for k, t in theirs.items()}}
    torch.save(content, tmp_path / "in.pth", _use_new_zipfile_serialization=False)
    printed = convert(tmp_path / "in.pth", tmp_path / "out.pt")
    assert printed.strip().endswith(f"model.backbone.weights={tmp_path / 'out.pt'}")
    with torch.device("meta"):
        backbone = Backbone(name)
    backbone.to_empty(device="cpu")
    load_backbone_weights(backbone, name, str(tmp_path / "out.pt"))
    assert_same_state(backbone.state_dict(), {key: t for key, t in theirs.items() if not key.startswith("fc.")})


def test_a_backbone_other_than_the_config_s_is_refused(refuse, tmp_path):
    torch.save(models.resnet18().state_dict(), tmp_path / "in.pth")
    config = write_config(tmp_path / "config.yaml", backbone={"name": "resnet50"})
    message, code = refuse(tmp_path / "in.pth", tmp_path / "out.pt", config=config)
    assert code == "config"
    assert "model.backbone.name" in message
