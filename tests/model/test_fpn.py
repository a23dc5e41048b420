"""The pyramid: sizes at odd inputs, where each level comes from, initial weights."""

import oracles
import pytest
import torch
from torch import nn

from gfl.model.fpn import FPN

WIDTHS = (6, 10, 14)


def features(height, width):
    generator = torch.Generator().manual_seed(0)
    sizes = oracles.feature_sizes(height, width)[:3]
    return [torch.randn(2, c, *size, generator=generator) for c, size in zip(WIDTHS, sizes, strict=True)]


def pass_through(fpn):
    """Let every convolution copy the centre of each channel to the same channel."""
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)


@pytest.mark.parametrize("size", [(96, 160), (32, 32), (75, 101)])
def test_levels_are_the_input_over_their_stride_rounded_up(size):
    pyramid = FPN(WIDTHS, 8)(features(*size))
    assert [tuple(level.shape) for level in pyramid] == [(2, 8, *s) for s in oracles.feature_sizes(*size)]


def test_number_of_extra_levels():
    assert [len(FPN(WIDTHS, 8, num_extra)(features(96, 160))) for num_extra in (0, 1, 3)] == [3, 4, 6]


def test_coarse_levels_are_added_to_finer_ones_by_nearest_neighbour():
    fpn = FPN((4, 4, 4), 4)
    pass_through(fpn)
    c3, c4, c5 = (torch.rand(1, 4, size, size) for size in (8, 4, 2))

    def enlarge(x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    p3, p4, p5, *_ = fpn([c3, c4, c5])
    torch.testing.assert_close(p5, c5)
    torch.testing.assert_close(p4, c4 + enlarge(c5))
    torch.testing.assert_close(p3, c3 + enlarge(c4 + enlarge(c5)))


def test_p6_and_p7_are_strided_from_the_output_p5_without_relu():
    fpn = FPN((4, 4, 4), 4)
    pass_through(fpn)
    fpn.output[2].weight.data *= -3  # the output P5 now differs from the merged one, and is negative
    pyramid = fpn([torch.rand(1, 4, size, size) for size in (32, 16, 8)])
    p5, p6, p7 = pyramid[2:]
    assert (p5 < 0).all()
    torch.testing.assert_close(p6, p5[..., ::2, ::2])
    torch.testing.assert_close(p7, p6[..., ::2, ::2])


def test_extra_relu_stands_before_every_extra_level_but_the_first():
    """P6 still comes from P5 with its negative values, as in FCOS."""
    fpn = FPN((4, 4, 4), 4, num_extra=3, extra_relu=True)
    pass_through(fpn)
    fpn.extra[1].weight.data *= -1  # P7 is negative where P6 is positive
    maps = [torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(size)) for size in (64, 32, 16)]
    p5, p6, p7, p8 = fpn(maps)[2:]
    assert (p6 < 0).any()
    assert (p7 < 0).any()
    torch.testing.assert_close(p6, p5[..., ::2, ::2])
    torch.testing.assert_close(p7, -p6[..., ::2, ::2].clamp(min=0))
    torch.testing.assert_close(p8, p7[..., ::2, ::2].clamp(min=0))


def test_there_are_as_many_features_as_widths():
    with pytest.raises(ValueError, match="zip"):
        FPN(WIDTHS, 8)(features(64, 64)[:2])


def test_initial_weights_are_xavier_uniform():
    torch.manual_seed(0)
    for conv in FPN((64, 128, 256), 64).modules():
        if isinstance(conv, nn.Conv2d):
            receptive = conv.kernel_size[0] ** 2
            bound = (6 / (receptive * (conv.in_channels + conv.out_channels))) ** 0.5
            assert 0.99 * bound < conv.weight.abs().max() <= bound
            assert (conv.bias == 0).all()


def test_gradients_in_bf16_of_a_pyramid_one_column_wide():
    """oneDNN left a part of them unset; whatever the memory held before was in them."""
    fpn, inputs = FPN((64, 64, 64), 64), [torch.randn(4, 64, 4 // n, 4 // n) for n in (1, 2, 4)]
    sum(level.sum() for level in fpn(inputs)).backward()
    expected = {name: parameter.grad.clone() for name, parameter in fpn.named_parameters()}
    for _ in range(5):
        torch.full((2**20,), float("nan"), dtype=torch.bfloat16)  # freed memory that is likely to be used again
        fpn.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            pyramid = fpn(inputs)
        sum(level.float().sum() for level in pyramid).backward()
        for name, parameter in fpn.named_parameters():
            scale = expected[name].abs().max()
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=0.05 * scale.item(), msg=name)
