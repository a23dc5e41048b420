"""The backbone is torchvision's, frozen as asked, and refuses weights that do not fit."""

import pytest
import torch
import torchvision
from torch import nn

from gfl.model.backbone import ARCHITECTURES, Backbone, load_pretrained

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def stage_of(name):
    return name.split(".")[0] if name.startswith("layer") else "stem"


def norms(backbone):
    return {name: module for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}


@pytest.fixture(scope="module")
def torchvision_resnet18():
    """With running statistics and affine parameters away from their initial 0 and 1."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.add_(0.2 * torch.rand_like(tensor))
    return model


@pytest.fixture(scope="module")
def weights_file(torchvision_resnet18, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(torchvision_resnet18.state_dict(), path)
    return path


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_dict_is_torchvision_s_without_the_classifier(name):
    with torch.device("meta"):  # no memory, no initialisation: names and shapes only
        ours, theirs = Backbone(name), torchvision.models.get_model(name)
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


def test_features_are_torchvision_s(torchvision_resnet18, weights_file):
    backbone = Backbone("resnet18").eval()
    load_pretrained(backbone, "resnet18", str(weights_file))
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    expected = {}
    for stage in ("layer2", "layer3", "layer4"):
        torchvision_resnet18.get_submodule(stage).register_forward_hook(
            lambda _module, _inputs, output, stage=stage: expected.update({stage: output})
        )
    with torch.no_grad():
        torchvision_resnet18(images)
        features = backbone(images)
    assert all(map(torch.equal, features, expected.values()))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_have_strides_8_16_32_and_the_promised_widths(name):
    backbone = Backbone(name).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 96, 160))
    assert [tuple(feature.shape[-2:]) for feature in features] == [(12, 20), (6, 10), (3, 5)]
    assert tuple(feature.shape[1] for feature in features) == backbone.out_channels


# --- frozen -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("norm_eval", [True, False])
def test_frozen_stages_learn_nothing_and_keep_their_statistics(frozen_stages, norm_eval):
    with torch.device("meta"):
        backbone = Backbone("resnet18", frozen_stages=frozen_stages, norm_eval=norm_eval).train()
    frozen = STAGES[: frozen_stages + 1]
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad == (stage_of(name) not in frozen), name
    for name, norm in norms(backbone).items():
        assert norm.training == (not norm_eval and stage_of(name) not in frozen), name
    assert backbone.training


def test_eval_mode_stops_every_norm():
    with torch.device("meta"):
        backbone = Backbone("resnet18", frozen_stages=-1, norm_eval=False).train().eval()
    assert not any(norm.training for norm in norms(backbone).values())


def test_only_unfrozen_statistics_move_in_training():
    backbone = Backbone("resnet18", frozen_stages=1, norm_eval=False).train()
    before = {name: norm.running_mean.clone() for name, norm in norms(backbone).items()}
    backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    moved = {stage_of(name) for name, norm in norms(backbone).items() if not norm.running_mean.equal(before[name])}
    assert moved == {"layer2", "layer3", "layer4"}


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_file_fills_every_tensor(torchvision_resnet18, weights_file):
    backbone = Backbone("resnet18")
    load_pretrained(backbone, "resnet18", str(weights_file))
    theirs = torchvision_resnet18.state_dict()
    assert all(value.equal(theirs[key]) for key, value in backbone.state_dict().items())


def test_none_leaves_the_initial_weights():
    backbone = Backbone("resnet18")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    load_pretrained(backbone, "resnet18", "none")
    assert all(value.equal(before[key]) for key, value in backbone.state_dict().items())


def test_torchvision_s_own_weights_are_loaded(monkeypatch, torchvision_resnet18):
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_args, **_options: torchvision_resnet18.state_dict()
    )
    backbone = Backbone("resnet18")
    load_pretrained(backbone, "resnet18", "torchvision")
    assert backbone.conv1.weight.equal(torchvision_resnet18.conv1.weight)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_without_a_network_the_way_out_is_told(monkeypatch, refusal, name):
    urls = []

    def download(url, *_args, **_options):
        urls.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    with torch.device("meta"):
        message = refusal(load_pretrained, Backbone(name), name, "torchvision")
    assert f"could not download {name} (Name or service not known)" in message
    assert "model.backbone.weights=none" in message
    assert urls == [torchvision.models.get_model_weights(name).IMAGENET1K_V1.url]  # the recipe's, not the newest


def test_a_missing_file_is_named(tmp_path, refusal):
    path = tmp_path / "absent.pth"
    message = refusal(load_pretrained, Backbone("resnet18"), "resnet18", str(path))
    assert message.startswith("model.backbone.weights: ")
    assert f"no file {path}" in message


def test_weights_of_another_architecture_are_refused_whole(weights_file, refusal):
    backbone = Backbone("resnet34")
    before = backbone.conv1.weight.clone()
    message = refusal(load_pretrained, backbone, "resnet34", str(weights_file))
    assert message.startswith("model.backbone.weights: ")
    assert f"{weights_file} does not fit resnet34" in message
    assert "layer1.2.bn1.bias" in message
    assert backbone.conv1.weight.equal(before)


def test_a_tensor_of_another_shape_is_named(torchvision_resnet18, tmp_path, refusal):
    path = tmp_path / "narrow.pth"
    torch.save(torchvision_resnet18.state_dict() | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, path)
    message = refusal(load_pretrained, Backbone("resnet18"), "resnet18", str(path))
    assert "1 tensors missing, left over or of another shape (conv1.weight)" in message


@pytest.mark.parametrize("content", ["empty", "text", "cut off"])
def test_a_file_that_torch_cannot_read_is_named(weights_file, tmp_path, refusal, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(
        {"empty": b"", "text": b"not a checkpoint", "cut off": weights_file.read_bytes()[:50_000]}[content]
    )
    message = refusal(load_pretrained, Backbone("resnet18"), "resnet18", str(path))
    assert message.startswith("model.backbone.weights: ")
    assert str(path) in message


class Payload:
    """A pickle that would run code when it is loaded."""

    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


def test_a_file_that_would_execute_code_is_refused(tmp_path, refusal):
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": Payload()}, path)
    assert f"cannot read {path}" in refusal(load_pretrained, Backbone("resnet18"), "resnet18", str(path))


@pytest.mark.parametrize("content", [[torch.zeros(3)], {"state_dict": {"conv1.weight": torch.zeros(3)}}, 7])
def test_something_other_than_a_state_dict_is_refused(tmp_path, refusal, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    message = refusal(load_pretrained, Backbone("resnet18"), "resnet18", str(path))
    assert f"{path} is not a state dict of tensors" in message
