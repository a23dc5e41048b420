"""The backbone is torchvision's, frozen as asked, and refuses weights that do not fit."""

import oracles
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from gfl.model.backbone import ARCHITECTURES, Backbone, DeformConv, load_pretrained

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


def torchvision_model(name):
    if name == "resnext101_32x4d":  # torchvision builds only wider ones by name
        return ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    return torchvision.models.get_model(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_state_dict_is_torchvision_s_without_the_classifier(name):
    with torch.device("meta"):  # no memory, no initialisation: names and shapes only
        ours, theirs = Backbone(name), torchvision_model(name)
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


def test_resnext_has_32_groups_and_its_published_size():
    with torch.device("meta"):
        backbone = Backbone("resnext101_32x4d")
    groups = {module.groups for name, module in backbone.named_modules() if name.endswith("conv2")}
    assert groups == {32}
    assert backbone.layer1[0].conv2.weight.shape == (128, 4, 3, 3)
    assert backbone.out_channels == (512, 1024, 2048)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 42_128_704  # 44.2 M with the classifier


# --- deformable convolutions ------------------------------------------------------------------------------------------


def deformable(backbone):
    return {name: module for name, module in backbone.named_modules() if isinstance(module, DeformConv)}


def random_maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def plain_resnet50():
    torch.manual_seed(0)
    return Backbone("resnet50").eval()


@pytest.mark.parametrize("dcn", ["v1", "v2"])
def test_before_training_the_samples_are_those_of_the_plain_network(plain_resnet50, monkeypatch, dcn):
    """Offsets start at 0; v2 weighs every sample by 1/2."""
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: plain_resnet50.state_dict()
    )
    backbone = Backbone("resnet50", dcn=dcn, dcn_stages=["c3", "c4", "c5"]).eval()
    load_pretrained(backbone, "resnet50", "torchvision")
    hooks = [
        plain_resnet50.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output: output / 2 if dcn == "v2" else output
        )
        for name in deformable(backbone)
    ]
    images = random_maps(2, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(backbone(images), plain_resnet50(images), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    for hook in hooks:
        hook.remove()


def random_deform_conv(*, modulated, stride=1, groups=1, channels=4):
    """Samples at up to a few pixels from their place, many of them outside."""
    torch.manual_seed(0)
    conv = DeformConv(
        nn.Conv2d(channels, 2 * channels, 3, stride=stride, padding=1, groups=groups, bias=False), modulated=modulated
    )
    nn.init.normal_(conv.conv_offset.weight, std=0.3)
    nn.init.normal_(conv.conv_offset.bias, std=0.5)
    return conv


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_deformable_convolution_equals_the_slow_oracle(modulated, groups, stride):
    conv = random_deform_conv(modulated=modulated, groups=groups, stride=stride)
    maps = random_maps(2, 4, 7, 6)
    with torch.no_grad():
        found, numbers = conv(maps), conv.conv_offset(maps)
    assert numbers[:, :18].abs().max() > 2
    for image in range(2):
        expected = oracles.deform_conv(
            maps[image].tolist(),
            conv.weight.tolist(),
            numbers[image, :18].tolist(),
            numbers[image, 18:].sigmoid().tolist() if modulated else None,
            stride=stride,
            groups=groups,
        )
        torch.testing.assert_close(found[image], torch.tensor(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
def test_weights_offsets_and_inputs_learn(modulated):
    conv, maps = random_deform_conv(modulated=modulated), random_maps(1, 4, 6, 6).requires_grad_()
    conv(maps).square().sum().backward()
    for tensor in (maps, *conv.parameters()):
        assert (tensor.grad != 0).any()
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("modulated", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_only_what_goes_in_and_out_is_rounded(modulated, dtype):
    conv, maps = random_deform_conv(modulated=modulated), random_maps(2, 4, 7, 6).to(dtype)
    offsets = []
    conv.conv_offset.register_forward_hook(lambda _module, _inputs, output: offsets.append(output))
    with torch.no_grad():
        expected = conv(maps.float())
        with torch.autocast("cpu", dtype):
            found, found_float32 = conv(maps), conv(maps.float())
    assert found.equal(expected.to(dtype))
    assert found_float32.equal(expected)
    assert [offset.dtype for offset in offsets] == [torch.float32] * 3
    assert offsets[1].equal(offsets[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backbone_with_deformable_convolutions_trains_under_autocast(dtype):
    backbone = Backbone("resnet50", dcn="v2", dcn_stages=["c5"]).train()
    with torch.autocast("cpu", dtype):
        features = backbone(random_maps(1, 3, 64, 64))
    assert [feature.dtype for feature in features] == [dtype] * 3
    sum(feature.float().mean() for feature in features).backward()
    for conv in deformable(backbone).values():
        assert conv.weight.grad.isfinite().all()
        assert conv.conv_offset.weight.grad.isfinite().all()


@pytest.mark.parametrize("stages", [["c3", "c4", "c5"], ["c4", "c5"], ["c2"], ["c5"]], ids="-".join)
@pytest.mark.parametrize(("dcn", "channels"), [("v1", 18), ("v2", 27)])
def test_the_asked_stages_have_them_with_mmcv_s_names(stages, dcn, channels):
    with torch.device("meta"):
        backbone, plain = Backbone("resnet50", dcn=dcn, dcn_stages=stages), Backbone("resnet50")
    layers = [f"layer{int(stage[1]) - 1}" for stage in stages]
    expected = {
        f"{name}.conv_offset.{last}": (channels, *([module.in_channels, 3, 3] if last == "weight" else []))
        for name, module in plain.named_modules()
        if name.endswith("conv2") and name.startswith(tuple(layers))
        for last in ("weight", "bias")
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if "conv_offset" in name} == expected
    assert shapes.keys() - expected.keys() == plain.state_dict().keys()
    assert set(deformable(backbone)) == {name.partition(".conv_offset")[0] for name in expected}


def test_deformable_resnext_keeps_its_groups_but_not_for_the_offsets():
    with torch.device("meta"):
        backbone = Backbone("resnext101_32x4d", dcn="v2", dcn_stages=["c4"])
    assert {(conv.groups, conv.conv_offset.groups) for conv in deformable(backbone).values()} == {(32, 1)}
    assert len(deformable(backbone)) == 23


def test_frozen_stages_freeze_their_offsets():
    with torch.device("meta"):
        backbone = Backbone("resnet50", dcn="v1", dcn_stages=["c2", "c3"], frozen_stages=1)
    assert not any(p.requires_grad for p in backbone.layer1.parameters())
    assert all(p.requires_grad for p in backbone.layer2.parameters())


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_networks_without_bottlenecks_have_no_deformable_convolutions(refusal, name):
    message = refusal(Backbone, name, dcn="v2", dcn_stages=["c5"])
    assert message == f"model.backbone.dcn: {name} has no bottlenecks for them; resnet50 and deeper have"


@pytest.mark.parametrize(("dcn", "stages"), [("v1", []), ("v2", []), ("none", ["c5"])])
def test_a_kind_without_stages_and_stages_without_a_kind_are_refused(refusal, dcn, stages):
    message = refusal(Backbone, "resnet50", dcn=dcn, dcn_stages=stages)
    assert message == f"model.backbone: dcn {dcn} with dcn_stages {stages}; give both, or neither"


@pytest.mark.parametrize("dcn", ["v1", "v2"])
def test_imagenet_weights_fill_all_but_the_offsets(plain_resnet50, monkeypatch, dcn):
    theirs = plain_resnet50.state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_options: theirs)
    backbone = Backbone("resnet50", dcn=dcn, dcn_stages=["c4"])
    load_pretrained(backbone, "resnet50", "torchvision")
    for name, tensor in backbone.state_dict().items():
        assert (tensor == 0).all() if "conv_offset" in name else tensor.equal(theirs[name]), name


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


def test_of_a_checkpoint_of_this_program_the_backbone_is_taken(torchvision_resnet18, tmp_path, refusal):
    theirs = torchvision_resnet18.state_dict()
    tensors = {f"backbone.{name}": tensor for name, tensor in theirs.items() if not name.startswith("fc.")}
    path = tmp_path / "best.pt"
    torch.save({"model": tensors | {"head.scales": torch.ones(5)}, "format": "gfl-1"}, path)
    backbone = Backbone("resnet18")
    load_pretrained(backbone, "resnet18", str(path))
    assert all(value.equal(theirs[key]) for key, value in backbone.state_dict().items())
    torch.save({"model": {"head.scales": torch.ones(5), 3: None}, "format": "gfl-1"}, path)
    assert "does not fit resnet18" in refusal(load_pretrained, Backbone("resnet18"), "resnet18", str(path))


def test_a_file_from_before_the_norms_counted_batches_is_loaded(torchvision_resnet18, tmp_path):
    theirs = torchvision_resnet18.state_dict()
    path = tmp_path / "old.pth"
    torch.save({name: tensor for name, tensor in theirs.items() if "num_batches_tracked" not in name}, path)
    backbone = Backbone("resnet18")
    load_pretrained(backbone, "resnet18", str(path))
    for name, tensor in backbone.state_dict().items():
        assert (tensor == 0).all() if "num_batches_tracked" in name else tensor.equal(theirs[name]), name


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


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "resnext101_32x4d"])
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


def test_where_torchvision_has_no_weights_the_way_out_is_told(refusal):
    with torch.device("meta"):
        message = refusal(load_pretrained, Backbone("resnext101_32x4d"), "resnext101_32x4d", "torchvision")
    assert message.startswith("model.backbone.weights: torchvision has none for resnext101_32x4d")
    assert "scripts/convert_checkpoint.py" in message


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


@pytest.mark.parametrize(
    "content", [[torch.zeros(3)], {"state_dict": {"conv1.weight": torch.zeros(3)}}, {"model": {}}, 7]
)
def test_something_other_than_a_state_dict_is_refused(tmp_path, refusal, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    message = refusal(load_pretrained, Backbone("resnet18"), "resnet18", str(path))
    assert f"{path} is not the state dict of a backbone" in message
