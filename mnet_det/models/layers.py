"""The convolution with batch norm and activation that every figure of the MobileNet papers is drawn with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["symmetric", "same"]
Activation = Literal["relu6", "relu"]

RGB = tuple[float, float, float]


@dataclass(frozen=True)
class ConvStyle:
    """What all convolutions of a network share.

    Attributes:
        padding: symmetric, or TensorFlow's SAME.
        activation: ReLU6 in every published MobileNetV1, or ReLU.
        bn_eps: batch norm's epsilon.
        bn_momentum: weight of the newest batch in batch norm's running statistics.
    """

    padding: Padding = "symmetric"
    activation: Activation = "relu6"
    bn_eps: float = 1e-3
    bn_momentum: float = 0.03


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: more at the bottom and right where the size asks for it.

    It differs from symmetric padding only at stride 2 on even sizes, so it depends on the input's size.
    """

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', ceil(H / stride), ceil(W / stride)]."""
        return super().forward(F.pad(features, _same_padding(features, self.kernel_size, self.stride)))


class MaxPool2dSame(nn.Module):
    """A max pool with the same padding, which never wins."""

    def __init__(self, kernel: int, *, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, ceil(H / stride), ceil(W / stride)]."""
        padding = _same_padding(features, (self.kernel, self.kernel), (self.stride, self.stride))
        return F.max_pool2d(F.pad(features, padding, value=-math.inf), self.kernel, self.stride)


def _same_padding(features: Tensor, kernel_hw: tuple[int, ...], stride_hw: tuple[int, ...]) -> list[int]:
    """Left, right, top and bottom."""
    sides: list[int] = []
    for size, kernel, stride in zip(features.shape[-2:], kernel_hw, stride_hw, strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides = [total // 2, total - total // 2, *sides]
    return sides


def convolution(
    in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1, style: ConvStyle
) -> nn.Conv2d:
    """A convolution without bias, padded as the style says. `groups == in_channels` makes it depthwise."""
    symmetric = style.padding == "symmetric"
    conv = (nn.Conv2d if symmetric else Conv2dSame)(
        in_channels,
        out_channels,
        kernel,
        stride=stride,
        padding=kernel // 2 if symmetric else 0,
        groups=groups,
        bias=False,
    )
    # He's initialisation over fan-in. Fan-out would count all channels of a depthwise convolution, though each filter
    # sees one, and leave its output so small that batch norm's epsilon of 1e-3 swallows it.
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    return conv


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm, activation. `conv.groups == channels` makes it depthwise."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        style: ConvStyle = ConvStyle(),
    ) -> None:
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel=kernel, stride=stride, groups=groups, style=style)
        self.bn = nn.BatchNorm2d(out_channels, eps=style.bn_eps, momentum=style.bn_momentum)
        self.act = nn.ReLU6() if style.activation == "relu6" else nn.ReLU()


class PixelNormalization(nn.Module):
    """uint8 pixels to floats, (x - mean) / std: the detector's first layer, so no one can scale its pixels wrongly.

    Mean and std belong to the config, not to the weights: they are no part of the state.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean_rgb: RGB = (127.5, 127.5, 127.5), std_rgb: RGB = (127.5, 127.5, 127.5)) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean_rgb).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std_rgb).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to float32 of the same shape, -1…1 with the default mean and std."""
        return (images.float() - self.mean) / self.std
