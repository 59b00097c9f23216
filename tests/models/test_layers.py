"""Padding, the order of convolution, batch norm and ReLU6, and the pixels' normalisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mnet_det.models.layers import Conv2dSame, ConvBNAct, ConvStyle, MaxPool2dSame, PixelNormalization


def sum_of_window(*, kernel: int, stride: int) -> Conv2dSame:
    """A SAME convolution whose output is the sum of what its window covers."""
    conv = Conv2dSame(1, 1, kernel, stride=stride, bias=False)
    nn.init.ones_(conv.weight)
    return conv


def test_same_padding_of_an_even_size_at_stride_2_lies_below_and_right() -> None:
    pixels = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    # Rows 1-4, 5-8, 9-12, 13-16. One row and column of zeros at the end, none before: the first window is
    # 1+2+3 + 5+6+7 + 9+10+11 = 54; right of it 3+4 + 7+8 + 11+12 = 45; below 9+10+11 + 13+14+15 = 72; 11+12+15+16 = 54.
    assert sum_of_window(kernel=3, stride=2)(pixels)[0, 0].tolist() == [[54, 45], [72, 54]]


def test_same_padding_of_an_odd_size_at_stride_2_is_symmetric() -> None:
    pixels = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    # Zeros all around: 1+2 + 4+5 = 12, 2+3 + 5+6 = 16, 4+5 + 7+8 = 24, 5+6 + 8+9 = 28.
    assert sum_of_window(kernel=3, stride=2)(pixels)[0, 0].tolist() == [[12, 16], [24, 28]]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size_hw", [(6, 6), (7, 7), (6, 7), (1, 2)], ids=str)
def test_same_padding_differs_from_symmetric_only_at_stride_2_on_even_sizes(
    kernel: int, stride: int, size_hw: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    same = Conv2dSame(2, 3, kernel, stride=stride)
    symmetric = nn.Conv2d(2, 3, kernel, stride=stride, padding=kernel // 2)
    symmetric.load_state_dict(same.state_dict())
    features = torch.randn(1, 2, *size_hw)
    came, other = same(features), symmetric(features)
    assert came.shape[2:] == tuple(-(-size // stride) for size in size_hw)  # TensorFlow: ceil(size / stride)
    even = any(size % 2 == 0 for size in size_hw)
    assert torch.allclose(came, other, atol=1e-6) == (not (kernel == 3 and stride == 2 and even))


def test_same_padding_of_a_max_pool_lies_below_and_right_too_and_never_wins() -> None:
    even = -torch.arange(1.0, 17.0).view(1, 1, 4, 4)  # windows begin at rows and columns 1 and 3
    assert MaxPool2dSame(3, stride=2)(even)[0, 0].tolist() == [[-1, -3], [-9, -11]]
    odd = -torch.arange(1.0, 10.0).view(1, 1, 3, 3)  # padding all around: windows begin outside, and at 2
    assert MaxPool2dSame(3, stride=2)(odd)[0, 0].tolist() == [[-1, -2], [-4, -5]]


def test_activation_follows_batch_norm_and_is_cut_at_6() -> None:
    layer = ConvBNAct(1, 1, kernel=1, style=ConvStyle(bn_eps=1e-12, bn_momentum=0.5)).eval()
    nn.init.constant_(layer.conv.weight, 2.0)
    layer.bn.running_mean.fill_(1.0)
    layer.bn.running_var.fill_(4.0)
    layer.bn.bias.data.fill_(0.5)
    # (2x - 1) / 2 + 0.5 = x, then cut to 0…6.
    came = layer(torch.tensor([-3.0, 0.25, 5.0, 8.0]).view(1, 1, 1, 4))
    assert came.flatten().tolist() == pytest.approx([0, 0.25, 5, 6])


def test_depthwise_filters_start_large_enough_for_batch_norms_epsilon() -> None:
    """He's fan-out counts every channel of a depthwise layer, though each filter sees one.

    With it the output of 512 channels had a variance near 0.002, and an epsilon of 0.001 took a third of it.
    """
    torch.manual_seed(0)
    layer = ConvBNAct(512, 512, kernel=3, groups=512)
    out = layer.conv(torch.randn(2, 512, 8, 8))
    assert out.var() > 1.0  # 2 in the middle, less where the padding is seen


def test_pixels_are_normalised_to_minus_one_to_one() -> None:
    normalised = PixelNormalization()(torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1))
    assert normalised.dtype == torch.float32
    assert normalised.flatten().tolist() == pytest.approx([-1, -0.6, 1])  # 51 / 127.5 - 1 = -0.6


def test_each_colour_has_its_own_mean_and_std() -> None:
    layer = PixelNormalization((10.0, 20.0, 30.0), (1.0, 2.0, 5.0))
    normalised = layer(torch.full((1, 3, 1, 1), 40, dtype=torch.uint8))
    assert normalised.flatten().tolist() == [30.0, 10.0, 2.0]
    assert layer.state_dict() == {}  # they belong to the config


def test_the_activation_is_the_styles() -> None:
    six, none = (
        ConvBNAct(1, 1, kernel=1, style=ConvStyle(activation=name)).act(torch.tensor([-1.0, 7.0]))
        for name in ("relu6", "relu")
    )
    assert (six.tolist(), none.tolist()) == ([0.0, 6.0], [0.0, 7.0])
