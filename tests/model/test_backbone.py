"""The backbone is torchvision's, frozen and deformable as the config says."""

import copy

import oracles
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from gfl.model.backbone import ARCHITECTURES, Backbone, DeformConv

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


def stage_of(name):
    return name.split(".")[0] if name.startswith("layer") else "stem"


def norms(backbone):
    return {name: module for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}


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


def test_features_are_torchvision_s():
    torch.manual_seed(0)
    backbone, theirs = Backbone("resnet18").eval(), torchvision.models.resnet18().eval()
    for norm in norms(theirs).values():  # away from their initial 0 and 1
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.add_(0.2 * torch.rand_like(tensor))
    backbone.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    expected = {}
    for stage in ("layer2", "layer3", "layer4"):
        theirs.get_submodule(stage).register_forward_hook(
            lambda _module, _inputs, output, stage=stage: expected.update({stage: output})
        )
    with torch.no_grad():
        theirs(images)
        features = backbone(images)
    for ours, reference in zip(features, expected.values(), strict=True):
        # By their scale: which convolution kernels a processor has decides the last bits.
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-5 * reference.abs().max().item())


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_features_and_gradients_are_those_of_convolutions_and_norms_apart(name, monkeypatch):
    torch.manual_seed(0)
    joined = Backbone(name, frozen_stages=1).train().double()
    for norm in norms(joined).values():
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.add_(0.2 * torch.rand_like(tensor))
    apart = copy.deepcopy(joined)
    images = random_maps(2, 3, 64, 96).double()
    found = joined(images)
    monkeypatch.setattr("gfl.model.backbone.conv_norm", lambda x, conv, norm: norm(conv(x)))
    expected = apart(images)
    torch.testing.assert_close(found, expected)
    for features in (found, expected):
        sum(feature.square().mean() for feature in features).backward()
    for (parameter, ours), theirs in zip(joined.named_parameters(), apart.parameters(), strict=True):
        assert (ours.grad is None) == (stage_of(parameter) in ("stem", "layer1")), parameter
        torch.testing.assert_close(ours.grad, theirs.grad)


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


def random_maps(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dcn", ["v1", "v2"])
def test_before_training_the_samples_are_those_of_the_plain_network(dcn):
    """Offsets start at 0; v2 weighs every sample by 1/2."""
    torch.manual_seed(0)
    plain = Backbone("resnet50").eval()
    backbone = Backbone("resnet50", dcn=dcn, dcn_stages=["c3", "c4", "c5"]).eval()
    backbone.load_state_dict(plain.state_dict(), strict=False)
    for name in deformable(backbone):
        plain.get_submodule(name).weight.data.div_(2 if dcn == "v2" else 1)
    images = random_maps(2, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(backbone(images), plain(images), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def random_deform_conv(*, modulated, stride=1, groups=1, channels=4):
    """Samples at up to a few pixels from their place, many of them outside."""
    torch.manual_seed(0)
    conv = DeformConv(
        nn.Conv2d(channels, 2 * channels, 3, stride=stride, padding=1, groups=groups, bias=False), modulated=modulated
    )
    nn.init.normal_(conv.conv_offset.weight, std=0.3)
    nn.init.normal_(conv.conv_offset.bias, std=0.5)
    return conv


@pytest.mark.parametrize(("modulated", "groups", "stride"), [(False, 1, 2), (False, 4, 1), (True, 1, 1), (True, 4, 2)])
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


def test_a_backbone_with_deformable_convolutions_trains_under_autocast():
    backbone = Backbone("resnet50", dcn="v2", dcn_stages=["c5"]).train()
    with torch.autocast("cpu", torch.bfloat16):
        features = backbone(random_maps(1, 3, 64, 64))
    assert [feature.dtype for feature in features] == [torch.bfloat16] * 3
    sum(feature.float().mean() for feature in features).backward()
    for conv in deformable(backbone).values():
        assert conv.weight.grad.isfinite().all()
        assert conv.conv_offset.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("dcn", "channels", "stages"), [("v1", 18, ["c3", "c4", "c5"]), ("v1", 18, ["c2"]), ("v2", 27, ["c4", "c5"])]
)
def test_the_given_stages_are_deformable_with_mmcv_s_names(dcn, channels, stages):
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


@pytest.mark.parametrize(
    ("name", "dcn", "stages", "key"),
    [
        ("resnet18", "v2", ["c5"], "model.backbone.dcn: resnet18"),  # it has no bottlenecks
        ("resnet34", "v1", ["c5"], "model.backbone.dcn: resnet34"),
        ("resnet50", "v1", [], "model.backbone: "),
        ("resnet50", "v2", [], "model.backbone: "),
        ("resnet50", "none", ["c5"], "model.backbone: "),
    ],
)
def test_deformable_convolutions_that_make_no_sense_are_refused(refusal, name, dcn, stages, key):
    assert refusal(Backbone, name, dcn=dcn, dcn_stages=stages).startswith(key)


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
    assert not any(norm.training for norm in norms(backbone.eval()).values())


def test_only_unfrozen_statistics_move_in_training():
    backbone = Backbone("resnet18", frozen_stages=1, norm_eval=False).train()
    before = {name: norm.running_mean.clone() for name, norm in norms(backbone).items()}
    backbone(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    moved = {stage_of(name) for name, norm in norms(backbone).items() if not norm.running_mean.equal(before[name])}
    assert moved == {"layer2", "layer3", "layer4"}
