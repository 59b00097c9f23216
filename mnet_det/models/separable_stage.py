"""A second stage for networks that have no layers after the map that Faster R-CNN looks at."""

from __future__ import annotations

from torch import nn

from mnet_det.models.mobilenet_v1 import BLOCKS, SeparableBlock, scale_channels


class SeparableStage(nn.Sequential):
    """Two blocks shaped like MobileNetV1's 12 and 13, then the average: [N, C, 14, 14] to [N, channels].

    Attributes:
        channels: of the vectors, 1024 at alpha 1.
    """

    def __init__(self, in_channels: int, *, alpha: float = 1.0) -> None:
        (first, first_stride), (second, second_stride) = BLOCKS[12], BLOCKS[13]
        inner, channels = scale_channels(first, alpha), scale_channels(second, alpha)
        super().__init__(
            SeparableBlock(in_channels, inner, stride=first_stride),
            SeparableBlock(inner, channels, stride=second_stride),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.channels = channels
