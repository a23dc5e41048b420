"""The dense head: layout of its outputs, the shared towers, initial scores."""

import oracles
import pytest
import torch
from torch import nn

from gfl.method.points import make_point_grid
from gfl.model.head import GFLHead


def pyramid(height, width, channels=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, channels, *size, generator=generator) for size in oracles.feature_sizes(height, width)]


def make_head(num_classes=3, num_outputs=17, **options):
    torch.manual_seed(0)
    options = {"strides": oracles.STRIDES, "in_channels": 32, "channels": 32, "num_convs": 1} | options
    return GFLHead(num_classes, num_outputs, **options)


@pytest.mark.parametrize("size", [(96, 160), (224, 352), (64, 64)])
def test_shapes_and_grid(size):
    output = make_head()(pyramid(*size))
    grid = make_point_grid(oracles.feature_sizes(*size), oracles.STRIDES)
    assert output.cls_logits.shape == (2, len(grid.points), 3)
    assert output.reg_pred.shape == (2, len(grid.points), 4, 17)
    assert output.quality_logits is None
    assert output.grid.points.equal(grid.points)
    assert output.grid.strides.equal(grid.strides)
    assert output.grid.level_sizes == grid.level_sizes


def test_the_grid_has_the_offset():
    grid = make_head(offset=0.5)(pyramid(64, 64)).grid
    assert grid.points[0].tolist() == [4, 4]
    assert grid.points[-1].tolist() == [64, 64]


def test_the_grid_has_each_level_s_offset():
    offset = tuple((stride - 1) / (2 * stride) for stride in oracles.STRIDES)
    grid = make_head(offset=offset)(pyramid(64, 96)).grid
    starts = [grid.points[grid.strides == stride][0].tolist() for stride in oracles.STRIDES]
    assert starts == [[3.5, 3.5], [7.5, 7.5], [15.5, 15.5], [31.5, 31.5], [63.5, 63.5]]
    assert grid.points[95].tolist() == [11.5 * 8 - 0.5, 7.5 * 8 - 0.5]


def test_an_offset_moves_points_and_no_output():
    features = pyramid(64, 64)
    plain, moved = make_head()(features), make_head(offset=(0.5, 0.25, 0.0, 0.25, 0.5))(features)
    assert moved.cls_logits.equal(plain.cls_logits)
    assert moved.reg_pred.equal(plain.reg_pred)
    by_stride = {8: 4, 16: 4, 32: 0, 64: 16, 128: 64}
    shift = torch.tensor([by_stride[int(stride)] for stride in plain.grid.strides])
    assert moved.grid.points.equal(plain.grid.points + shift[:, None])


def test_outputs_stand_at_their_points_and_sides():
    """Output convolutions that copy channels show which position and channel lands where."""
    head = make_head(num_convs=0, num_outputs=5)
    for conv in (head.cls_out, head.reg_out):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    features = pyramid(64, 96)
    output = head(features)
    expected = torch.cat([feature.flatten(2).mT for feature in features], dim=1)  # row-major, fine to coarse
    torch.testing.assert_close(output.cls_logits, expected[..., :3])
    torch.testing.assert_close(output.reg_pred.flatten(2), expected[..., :20])


def test_each_level_has_its_own_scale_on_the_regression_only():
    head, features = make_head(), pyramid(64, 64)
    plain = head(features)
    head.scales.data = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    scaled = head(features)
    factor = plain.grid.strides.log2() - 2  # 1 at stride 8 to 5 at stride 128
    torch.testing.assert_close(scaled.reg_pred, plain.reg_pred * factor[:, None, None])
    assert scaled.cls_logits.equal(plain.cls_logits)


def test_towers_are_shared_over_the_levels():
    """A map gives the same logits at whichever level it stands."""
    feature = pyramid(64, 64)[0]
    output = make_head()([feature] * 5)
    for logits in output.cls_logits.chunk(5, dim=1):
        assert logits.equal(output.cls_logits[:, :64])


@pytest.mark.parametrize("num_convs", [0, 1, 4])
def test_towers_are_convolutions_without_bias_groupnorm_and_relu(num_convs):
    head = make_head(num_convs=num_convs, in_channels=16 if num_convs else 32)
    for tower in (head.cls_tower, head.reg_tower):
        assert [type(layer) for layer in tower] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * num_convs
        assert all(layer.bias is None for layer in tower if isinstance(layer, nn.Conv2d))
        assert all(layer.num_groups == 32 for layer in tower if isinstance(layer, nn.GroupNorm))


@pytest.mark.parametrize("conv_bias", [False, True])
def test_conv_bias_gives_the_towers_biases_that_start_at_0(conv_bias):
    head = make_head(num_convs=2, conv_bias=conv_bias)
    towers = [layer for tower in (head.cls_tower, head.reg_tower) for layer in tower if isinstance(layer, nn.Conv2d)]
    assert len(towers) == 4
    assert all((layer.bias is not None) == conv_bias for layer in towers)
    assert all((layer.bias == 0).all() for layer in towers if conv_bias)
    assert head.cls_out.bias is not None


def test_the_quality_branch_is_absent_unless_asked_for():
    plain, branched = make_head(), make_head(quality_branch=True)
    assert plain.quality_out is None
    output = branched(pyramid(64, 96))
    assert output.quality_logits.shape == (2, len(output.grid.points))
    assert branched.quality_out.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert set(branched.state_dict()) - set(plain.state_dict()) == {"quality_out.weight", "quality_out.bias"}


def test_the_quality_branch_stands_at_its_points_and_reads_the_regression_tower():
    """Without the level's scale, and with towers whose channels show which of them was read."""
    head = make_head(quality_branch=True)
    nn.init.dirac_(head.quality_out.weight)
    head.scales.data = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    features = pyramid(64, 96)
    expected = torch.cat([head.reg_tower(feature)[:, 0].flatten(1) for feature in features], dim=1)
    torch.testing.assert_close(head(features).quality_logits, expected)


def test_a_quality_branch_changes_no_other_output():
    plain, branched = make_head(), make_head(quality_branch=True)
    branched.load_state_dict(plain.state_dict(), strict=False)
    features = pyramid(64, 64)
    before, after = plain(features), branched(features)
    assert after.cls_logits.equal(before.cls_logits)
    assert after.reg_pred.equal(before.reg_pred)


def test_every_class_starts_near_the_prior():
    scores = make_head(num_classes=80)(pyramid(128, 128)).cls_logits.sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.1)
    assert scores.max() < 0.05


def test_initial_weights_have_deviation_001():
    head = make_head(in_channels=256, channels=256)
    for conv in (head.cls_tower[0], head.reg_tower[0], head.reg_out):
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (head.reg_out.bias == 0).all()
    assert (head.scales == 1).all()


def test_regression_is_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        output = make_head()(pyramid(64, 64))
    assert output.reg_pred.dtype == torch.float32


def test_as_many_levels_as_strides():
    with pytest.raises(ValueError, match="zip"):
        make_head()(pyramid(64, 64)[:4])
