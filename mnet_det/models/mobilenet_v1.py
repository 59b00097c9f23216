"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861): the paper's Table 1 at any width alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from mnet_det.models.backbone import Backbone, Need
from mnet_det.models.layers import ConvBNAct, ConvStyle, PixelNormalization

STEM_CHANNELS = 32
BLOCKS = {
    1: (64, 1),
    2: (128, 2),
    3: (128, 1),
    4: (256, 2),
    5: (256, 1),
    6: (512, 2),
    7: (512, 1),
    8: (512, 1),
    9: (512, 1),
    10: (512, 1),
    11: (512, 1),
    12: (1024, 2),
    13: (1024, 1),
}
"""Block number in Table 1: output channels at alpha 1, stride.

The table prints stride 2 for block 13, whose map would then be 4×4; the 7×7 it prints beside it, and every published
network, need stride 1.
"""
STRIDES = {number: 2 * math.prod(stride for _, stride in list(BLOCKS.values())[:number]) for number in BLOCKS}
"""Input pixels between two cells of the map after each block; the stem halves first."""
SHALLOW_SKIPS = frozenset(range(7, 12))
"""The five blocks at 14×14×512 that the shallow network of Table 5 leaves out."""
MIN_CHANNELS = 8
ROI_SIDE = 14
"""Of the regions that the second stage takes: 14×14, halved by block 12, as on whole images of 224×224."""
DEFAULT_TAPS: dict[Need, tuple[int, ...]] = {"ssd": (11, 13), "fpn": (11, 13), "c4": (11,)}
"""The last block at stride 16 and the last at stride 32, as in the paper."""


def scale_channels(channels: int, alpha: float, *, minimum: int = MIN_CHANNELS) -> int:
    """Channels at width alpha: the product rounded down, and never below `minimum`.

    This is TensorFlow's rule, so published weights fit at any alpha. At 0.25, 0.5 and 0.75 nothing is rounded.
    """
    return max(minimum, int(channels * alpha))


class SeparableBlock(nn.Module):
    """Depthwise 3×3 then pointwise 1×1, each with batch norm and activation (the paper's Figure 3, right).

    It costs 1/N + 1/9 of the full 3×3 convolution to N channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        style: ConvStyle = ConvStyle(),
    ) -> None:
        super().__init__()
        self.depthwise = ConvBNAct(in_channels, in_channels, kernel=3, stride=stride, groups=in_channels, style=style)
        self.pointwise = ConvBNAct(in_channels, out_channels, kernel=1, style=style)

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to [B, N, ceil(H / stride), ceil(W / stride)]."""
        pointwise: Tensor = self.pointwise(self.depthwise(features))
        return pointwise


class MobileNetV1(Backbone):
    """Stem and 13 depthwise-separable blocks, giving the maps after the blocks named in `taps`."""

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        taps: Sequence[int] = (11, 13),
        second_stage: bool = False,
        separable: bool = True,
        shallow: bool = False,
        style: ConvStyle = ConvStyle(),
    ) -> None:
        """Build the network.

        Args:
            alpha: width multiplier, any number above 0; `scale_channels` states the rounding.
            taps: block numbers of Table 1, ascending. Where the shallow network lacks one, its last block before it
                stands in, which has the same stride (6 for 11).
            second_stage: build the blocks after the last tap too, for `second_stage` to run; else they are left out.
            separable: False puts one full 3×3 convolution in each block's place (Table 4).
            shallow: leave out the five blocks at 14×14×512 (Table 5).
            style: padding and batch norm.

        Raises:
            ValueError: alpha is not positive, a tap is not a block, or no block is left for a second stage.
        """
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        if not taps or list(taps) != sorted(set(taps)) or not set(taps) <= set(BLOCKS):
            raise ValueError(f"taps must be ascending block numbers from 1 to 13, got {list(taps)}")
        if second_stage and taps[-1] == 13:
            raise ValueError("block 13 is the last: tap an earlier one, so that a second stage is left")
        self.alpha = alpha
        channels = scale_channels(STEM_CHANNELS, alpha)
        self.stem = ConvBNAct(3, channels, kernel=3, stride=2, style=style)
        self.blocks = nn.ModuleDict()
        after: dict[int, tuple[str, int]] = {}  # of each number: the block that stands for it, and its channels
        for number, (base_channels, stride) in BLOCKS.items():
            if number > taps[-1] and not second_stage:
                break
            if not (shallow and number in SHALLOW_SKIPS):
                out_channels = scale_channels(base_channels, alpha)
                self.blocks[str(number)] = (
                    SeparableBlock(channels, out_channels, stride=stride, style=style)
                    if separable
                    else ConvBNAct(channels, out_channels, kernel=3, stride=stride, style=style)
                )
                channels = out_channels
            after[number] = (list(self.blocks)[-1], channels)
        self._tapped = [after[tap][0] for tap in taps]
        self._second = list(self.blocks)[list(self.blocks).index(self._tapped[-1]) + 1 :]
        self.channels = tuple(after[tap][1] for tap in taps)
        self.strides = tuple(STRIDES[tap] for tap in taps)
        if second_stage:
            self.roi_side = ROI_SIDE
            self.second_stage_channels = channels

    @property
    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """See `Backbone.blocks_in_order`."""
        return self.stem, *self.blocks.values()

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        maps = {}
        features = self.stem(images)
        for name, block in self.blocks.items():
            if name in self._second:
                break
            maps[name] = features = block(features)
        return [maps[name] for name in self._tapped]

    def second_stage(self, regions: Tensor) -> Tensor:
        """The blocks after the last tap, then an average over each region: see `Backbone.second_stage`."""
        if not self.roi_side:
            return super().second_stage(regions)
        for name in self._second:
            regions = self.blocks[name](regions)
        return regions.mean(dim=(2, 3))


class MobileNetV1Classifier(nn.Module):
    """The ImageNet network of Table 1: backbone, average pool, fully connected layer."""

    def __init__(
        self,
        backbone: MobileNetV1,
        *,
        num_classes: int = 1000,
        head_channels: int | None = None,
        style: ConvStyle = ConvStyle(),
        normalize: PixelNormalization | None = None,
    ) -> None:
        """Build the network.

        Args:
            backbone: with one tap.
            num_classes: of the logits.
            head_channels: of one 1×1 convolution more before the pool, as timm's `mobilenetv1_100h` has it.
            style: of that convolution.
            normalize: the first layer; -1…1 unless given.
        """
        super().__init__()
        channels = backbone.channels[-1]
        self.normalize = normalize or PixelNormalization()
        self.backbone = backbone
        self.head = ConvBNAct(channels, head_channels, kernel=1, style=style) if head_channels else nn.Identity()
        self.classifier = nn.Linear(head_channels or channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to logits [B, num_classes]."""
        features = self.head(self.backbone(self.normalize(images))[-1])
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits
