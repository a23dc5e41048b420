"""ImageNet weights of the backbone: what is loaded from where, and what is refused."""

import pytest
import torch
import torchvision
from torch import nn

from gfl.common.errors import UserError
from gfl.model.backbone import ARCHITECTURES, Backbone
from gfl.training.initial_weights import load_backbone_weights

DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


@pytest.fixture(scope="module")
def resnet18_state():
    """torchvision's, with running statistics and affine parameters away from their initial 0 and 1."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.add_(0.2 * torch.rand_like(tensor))
    return model.state_dict()


@pytest.fixture
def save(tmp_path):
    """Write something with torch.save and return its path as text."""

    def write(content):
        torch.save(content, tmp_path / "weights.pth")
        return str(tmp_path / "weights.pth")

    return write


def without_classifier(state):
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def without_counters(state):
    """As files older than PyTorch 0.4.1 are."""
    return {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}


def own_checkpoint(state):
    tensors = {f"backbone.{name}": tensor for name, tensor in without_classifier(state).items()}
    return {"model": tensors | {"head.scales": torch.ones(5)}, "format": "gfl-1"}


@pytest.mark.parametrize("convert", [dict, without_classifier, without_counters, own_checkpoint])
def test_a_file_fills_every_tensor(resnet18_state, save, convert):
    backbone = Backbone("resnet18")
    load_backbone_weights(backbone, "resnet18", save(convert(resnet18_state)))
    for name, tensor in backbone.state_dict().items():
        assert tensor.equal(resnet18_state[name]), name


def test_none_leaves_the_initial_weights():
    backbone = Backbone("resnet18")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    load_backbone_weights(backbone, "resnet18", "none")
    assert all(value.equal(before[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("dcn", ["none", "v1", "v2"])
def test_torchvision_s_own_weights_fill_all_but_the_offsets(monkeypatch, dcn):
    theirs = torchvision.models.resnet50().state_dict()
    monkeypatch.setattr(DOWNLOAD, lambda *_args, **_options: theirs)
    backbone = Backbone("resnet50", dcn=dcn, dcn_stages=[] if dcn == "none" else ["c4"])
    load_backbone_weights(backbone, "resnet50", "torchvision")
    for name, tensor in backbone.state_dict().items():
        assert (tensor == 0).all() if "conv_offset" in name else tensor.equal(theirs[name]), name


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "resnext101_32x4d"])
def test_without_a_network_the_error_names_the_ways_out(monkeypatch, refusal, name):
    urls = []

    def download(url, *_args, **_options):
        urls.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr(DOWNLOAD, download)
    with torch.device("meta"):
        message = refusal(load_backbone_weights, Backbone(name), name, "torchvision")
    assert message.startswith("model.backbone.weights: ")
    assert "Name or service not known" in message
    assert "model.backbone.weights=none" in message
    assert urls == [torchvision.models.get_model_weights(name).IMAGENET1K_V1.url]  # the recipe's, not the newest


def test_where_torchvision_has_no_weights_the_error_names_the_converter(refusal):
    with torch.device("meta"):
        message = refusal(load_backbone_weights, Backbone("resnext101_32x4d"), "resnext101_32x4d", "torchvision")
    assert message.startswith("model.backbone.weights: ")
    assert "scripts/convert_checkpoint.py" in message


@pytest.mark.parametrize(
    ("name", "change", "wrong"),
    [
        ("resnet34", dict, "layer1.2.bn1.bias"),
        ("resnet18", lambda state: state | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, "conv1.weight"),
        ("resnet18", lambda state: {"model": {"head.scales": torch.ones(5), 3: None}, "format": "gfl-1"}, "bn1.bias"),
    ],
    ids=["another network", "another shape", "a checkpoint without a backbone"],
)
def test_weights_of_another_architecture_leave_the_backbone_unchanged(resnet18_state, save, name, change, wrong):
    backbone, path = Backbone(name), save(change(resnet18_state))
    before = backbone.conv1.weight.clone()
    with pytest.raises(UserError) as error:
        load_backbone_weights(backbone, name, path)
    assert error.value.code == "architecture"
    assert all(part in str(error.value) for part in ("model.backbone.weights: ", path, name, wrong))
    assert backbone.conv1.weight.equal(before)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone."])
def test_names_of_another_codebase_come_with_the_command_that_converts_them(resnet18_state, save, refusal, prefix):
    path = save({prefix + name: tensor for name, tensor in resnet18_state.items()})
    message = refusal(load_backbone_weights, Backbone("resnet18"), "resnet18", path)
    assert f"python scripts/convert_checkpoint.py {path} " in message
    assert len(message) < 600


def test_weights_that_are_not_finite_are_refused_by_name(resnet18_state, save, refusal):
    broken = {"layer4.1.bn2.bias": torch.full((512,), torch.nan), "bn1.running_var": torch.full((64,), torch.inf)}
    backbone = Backbone("resnet18")
    message = refusal(load_backbone_weights, backbone, "resnet18", save(resnet18_state | broken))
    assert message.code == "not_finite"
    assert all(name in message for name in broken)
    assert backbone.bn1.running_var.isfinite().all()


class Payload:
    """A pickle that would run code when it is loaded."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"not a checkpoint",
        b"cut off",
        {"conv1.weight": Payload()},
        [torch.zeros(3)],
        {"state_dict": {"conv1.weight": torch.zeros(3)}},
        {"model": {}},
        7,
    ],
    ids=["missing", "empty", "text", "cut off", "code", "a list", "nested", "a foreign model", "a number"],
)
def test_a_file_that_holds_no_state_dict_is_named(resnet18_state, tmp_path, refusal, content):
    path = tmp_path / "weights.pth"
    if content == b"cut off":
        torch.save(resnet18_state, path)
        path.write_bytes(path.read_bytes()[:50_000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    message = refusal(load_backbone_weights, Backbone("resnet18"), "resnet18", str(path))
    assert message.startswith("model.backbone.weights: ")
    assert str(path) in message
