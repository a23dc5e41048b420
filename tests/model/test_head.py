"""The dense head: layout of its outputs, the shared towers, initial scores."""

import oracles
import pytest
import torch
from torch import nn

from gfl.method.points import PointLayout
from gfl.model.head import GFLHead


def pyramid(height, width, channels=32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=generator) for size in oracles.feature_sizes(height, width)]


def make_head(num_classes=3, num_outputs=17, offset=0.0, **options):
    torch.manual_seed(0)
    options = {"in_channels": 32, "channels": 32, "num_convs": 1} | options
    return GFLHead(num_classes, [0.0] * num_outputs, PointLayout(oracles.STRIDES, offset), **options)


@pytest.mark.parametrize("size", [(96, 160), (64, 64)])
def test_shapes_and_grid(size):
    offset = (0.5, 0.25, 0.0, 0.25, 0.5)
    output, grid = make_head(offset=offset)(pyramid(*size)), oracles.grid_of(*size, offset)
    assert output.cls_logits.shape == (2, len(grid.points), 3)
    assert output.reg_pred.shape == (2, len(grid.points), 4, 17)
    assert output.quality_logits is None
    assert output.grid.points.equal(grid.points)
    assert output.grid.strides.equal(grid.strides)
    assert output.grid.level_sizes == grid.level_sizes


def test_an_offset_moves_points_and_no_output():
    features = pyramid(64, 64)
    plain, moved = make_head()(features), make_head(offset=0.5)(features)
    assert moved.cls_logits.equal(plain.cls_logits)
    assert moved.reg_pred.equal(plain.reg_pred)
    assert moved.grid.points.equal(plain.grid.points + plain.grid.strides[:, None] / 2)


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
    output = make_head()([pyramid(64, 64)[0]] * 5)
    for logits in output.cls_logits.chunk(5, dim=1):
        assert logits.equal(output.cls_logits[:, :64])


@pytest.mark.parametrize(("num_convs", "conv_bias"), [(0, False), (1, False), (4, False), (2, True)])
def test_towers_are_convolutions_groupnorm_and_relu(num_convs, conv_bias):
    head = make_head(num_convs=num_convs, in_channels=16 if num_convs else 32, conv_bias=conv_bias)
    for tower in (head.cls_tower, head.reg_tower):
        assert [type(layer) for layer in tower] == [nn.Conv2d, nn.GroupNorm, nn.ReLU] * num_convs
        assert all(layer.num_groups == 32 for layer in tower[1::3])
        assert all((layer.bias is not None) == conv_bias for layer in tower[::3])
        assert all((layer.bias == 0).all() for layer in tower[::3] if conv_bias)
    assert head.cls_out.bias is not None


def test_the_quality_branch_reads_the_regression_tower_and_changes_no_other_output():
    """Without the level's scale, and with towers whose channels show which of them was read."""
    plain, branched = make_head(), make_head(quality_prior=0.5)
    assert plain.quality_out is None
    assert set(branched.state_dict()) - set(plain.state_dict()) == {"quality_out.weight", "quality_out.bias"}
    assert branched.quality_out.weight.std().item() == pytest.approx(0.01, rel=0.2)
    plain.scales.data = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    branched.load_state_dict(plain.state_dict(), strict=False)
    nn.init.dirac_(branched.quality_out.weight)
    features = pyramid(64, 96)
    before, after = plain(features), branched(features)
    expected = torch.cat([branched.reg_tower(feature)[:, 0].flatten(1) for feature in features], dim=1)
    torch.testing.assert_close(after.quality_logits, expected)
    assert after.cls_logits.equal(before.cls_logits)
    assert after.reg_pred.equal(before.reg_pred)


def test_every_class_and_the_quality_branch_start_near_their_priors():
    output = make_head(num_classes=80, quality_prior=0.3)(pyramid(128, 128))
    scores = output.cls_logits.sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, rel=0.1)
    assert scores.max() < 0.05
    assert output.quality_logits.sigmoid().mean().item() == pytest.approx(0.3, rel=0.1)


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


def test_there_are_as_many_levels_as_strides():
    with pytest.raises(ValueError, match="zip"):
        make_head()(pyramid(64, 64)[:4])
