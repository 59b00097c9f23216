"""Inception V2 (Ioffe and Szegedy 2015, arXiv 1502.03167), layer for layer as TensorFlow-Slim's `inception_v2` has it.

That is the network of the MobileNets paper's Table 13. Batch norm has a scale and stands in the stem too, as in
TensorFlow's detectors; Slim's classifier has a bias in the stem, and no scale. Neither torchvision nor timm has the
network, so there are no weights to start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mnet_det.models.backbone import Backbone, Need
from mnet_det.models.layers import ConvBNAct, ConvStyle, MaxPool2dSame, PixelNormalization, convolution
from mnet_det.models.mobilenet_v1 import ROI_SIDE, scale_channels

MIN_CHANNELS = 16  # of every convolution, at any alpha
STEM_CHANNELS = (64, 192)
STEM_MULTIPLIER = 8
"""Depthwise filters for each colour, fewer where there would be more of them than the layer gives channels."""


@dataclass(frozen=True)
class Mix:
    """A block: branches side by side, one of which begins with a pool.

    Attributes:
        branches: output channels of each branch's convolutions; the first is 1×1, the others are 3×3.
        pool: of the last branch.
        pooled: channels of the 1×1 convolution behind it, or None: the pool is all of that branch, and the block halves
            the map.
    """

    branches: tuple[tuple[int, ...], ...]
    pool: Literal["average", "max"]
    pooled: int | None


BLOCKS = {
    "Mixed_3b": Mix(((64,), (64, 64), (64, 96, 96)), "average", 32),
    "Mixed_3c": Mix(((64,), (64, 96), (64, 96, 96)), "average", 64),
    "Mixed_4a": Mix(((128, 160), (64, 96, 96)), "max", None),
    "Mixed_4b": Mix(((224,), (64, 96), (96, 128, 128)), "average", 128),
    "Mixed_4c": Mix(((192,), (96, 128), (96, 128, 128)), "average", 128),
    "Mixed_4d": Mix(((160,), (128, 160), (128, 160, 160)), "average", 96),
    "Mixed_4e": Mix(((96,), (128, 192), (160, 192, 192)), "average", 96),
    "Mixed_5a": Mix(((128, 192), (192, 256, 256)), "max", None),
    "Mixed_5b": Mix(((352,), (192, 320), (160, 224, 224)), "average", 128),
    "Mixed_5c": Mix(((352,), (192, 320), (192, 224, 224)), "max", 128),
}
STRIDES = {
    "Conv2d_1a_7x7": 2,
    "MaxPool_2a_3x3": 4,
    "Conv2d_2b_1x1": 4,
    "Conv2d_2c_3x3": 4,
    "MaxPool_3a_3x3": 8,
    "Mixed_3b": 8,
    "Mixed_3c": 8,
    "Mixed_4a": 16,
    "Mixed_4b": 16,
    "Mixed_4c": 16,
    "Mixed_4d": 16,
    "Mixed_4e": 16,
    "Mixed_5a": 32,
    "Mixed_5b": 32,
    "Mixed_5c": 32,
}
"""Input pixels between two cells of the map after each layer."""
LAST = "Mixed_5c"
DEFAULT_TAPS: dict[Need, tuple[str, ...]] = {
    "ssd": ("Mixed_4c", LAST),
    "fpn": ("Mixed_4e", LAST),
    "c4": ("Mixed_4e",),
}
"""For SSD and the paper's Faster R-CNN those of TensorFlow's detectors."""


class SeparableStem(nn.Sequential):
    """Depthwise 7×7 with several filters for each colour, then pointwise 1×1, with nothing between them."""

    def __init__(self, out_channels: int, *, style: ConvStyle) -> None:
        super().__init__()
        channels = 3 * min(out_channels // 3, STEM_MULTIPLIER)
        self.depthwise = convolution(3, channels, kernel=7, stride=2, groups=3, style=style)
        self.pointwise = ConvBNAct(channels, out_channels, kernel=1, style=style)


class InceptionBlock(nn.Module):
    """The branches of a `Mix`, their channels one after the other."""

    def __init__(self, in_channels: int, mix: Mix, *, alpha: float, style: ConvStyle) -> None:
        super().__init__()
        stride = 2 if mix.pooled is None else 1
        self.branches = nn.ModuleList()
        self.out_channels = 0
        for widths in mix.branches:
            branch = nn.Sequential()
            channels = in_channels
            for number, width in enumerate(widths, start=1):
                scaled = _scale(width, alpha)
                kernel, step = 1 if number == 1 else 3, stride if number == len(widths) else 1
                branch.append(ConvBNAct(channels, scaled, kernel=kernel, stride=step, style=style))
                channels = scaled
            self.branches.append(branch)
            self.out_channels += channels
        # As in TensorFlow, an average is one over what lies inside the map.
        average = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        branch = nn.Sequential(average if mix.pool == "average" else _max_pool(stride=stride, style=style))
        channels = in_channels
        if mix.pooled is not None:
            channels = _scale(mix.pooled, alpha)
            branch.append(ConvBNAct(in_channels, channels, kernel=1, style=style))
        self.branches.append(branch)
        self.out_channels += channels

    def forward(self, features: Tensor) -> Tensor:
        """[B, in_channels, H, W] to [B, out_channels, ceil(H / stride), ceil(W / stride)]."""
        return torch.cat([branch(features) for branch in self.branches], dim=1)


class InceptionV2(Backbone):
    """Stem and ten blocks, giving the maps after the layers named in `taps`."""

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        taps: Sequence[str] = DEFAULT_TAPS["ssd"],
        second_stage: bool = False,
        style: ConvStyle = ConvStyle(),
    ) -> None:
        """Build the network.

        Args:
            alpha: width multiplier, any number above 0: TensorFlow-Slim's `depth_multiplier`.
            taps: layers by TensorFlow-Slim's name, in the order of `STRIDES`.
            second_stage: build the layers after the last tap too, for `second_stage` to run; else they are left out.
            style: padding, activation and batch norm.

        Raises:
            ValueError: alpha is not positive, a tap is not a layer, or no layer is left for a second stage.
        """
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        if not taps or [name for name in STRIDES if name in taps] != list(taps):
            raise ValueError(f"taps must be of {', '.join(STRIDES)}, in this order, got {list(taps)}")
        if second_stage and taps[-1] == LAST:
            raise ValueError(f"{LAST} is the last: tap an earlier layer, so that a second stage is left")
        self.alpha = alpha
        self.layers = nn.ModuleDict()
        channels = {}
        for name, layer, width in _layers(alpha, style=style):
            self.layers[name] = layer
            channels[name] = width
            if name == taps[-1] and not second_stage:
                break
        self._taps = tuple(taps)
        self._second = list(self.layers)[list(self.layers).index(taps[-1]) + 1 :]
        self.channels = tuple(channels[tap] for tap in taps)
        self.strides = tuple(STRIDES[tap] for tap in taps)
        if second_stage:
            self.roi_side = ROI_SIDE
            self.second_stage_channels = channels[LAST]

    @property
    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """See `Backbone.blocks_in_order`; pools are none."""
        return tuple(layer for layer in self.layers.values() if list(layer.parameters()))

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        maps = {}
        features = images
        for name, layer in self.layers.items():
            if name in self._second:
                break
            maps[name] = features = layer(features)
        return [maps[tap] for tap in self._taps]

    def second_stage(self, regions: Tensor) -> Tensor:
        """The layers after the last tap, then an average over each region: see `Backbone.second_stage`."""
        if not self.roi_side:
            return super().second_stage(regions)
        for name in self._second:
            regions = self.layers[name](regions)
        return regions.mean(dim=(2, 3))


class InceptionV2Classifier(nn.Module):
    """The ImageNet network: backbone, average pool, dropout, fully connected layer."""

    def __init__(
        self, backbone: InceptionV2, *, num_classes: int = 1000, normalize: PixelNormalization | None = None
    ) -> None:
        """Put the classifier on `backbone`'s last tap; `normalize` is the first layer, -1…1 unless given."""
        super().__init__()
        self.normalize = normalize or PixelNormalization()
        self.backbone = backbone
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(backbone.channels[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] to logits [B, num_classes]."""
        features = self.backbone(self.normalize(images))[-1]
        logits: Tensor = self.classifier(self.dropout(features.mean(dim=(2, 3))))
        return logits


def _layers(alpha: float, *, style: ConvStyle) -> Iterator[tuple[str, nn.Module, int]]:
    """Every layer by TensorFlow-Slim's name, in the order in which they run, and the channels that it gives."""
    first, channels = (_scale(width, alpha) for width in STEM_CHANNELS)
    yield "Conv2d_1a_7x7", SeparableStem(first, style=style), first
    yield "MaxPool_2a_3x3", _max_pool(stride=2, style=style), first
    yield "Conv2d_2b_1x1", ConvBNAct(first, first, kernel=1, style=style), first
    yield "Conv2d_2c_3x3", ConvBNAct(first, channels, kernel=3, style=style), channels
    yield "MaxPool_3a_3x3", _max_pool(stride=2, style=style), channels
    for name, mix in BLOCKS.items():
        block = InceptionBlock(channels, mix, alpha=alpha, style=style)
        channels = block.out_channels
        yield name, block, channels


def _scale(channels: int, alpha: float) -> int:
    return scale_channels(channels, alpha, minimum=MIN_CHANNELS)


def _max_pool(*, stride: int, style: ConvStyle) -> nn.Module:
    if style.padding == "symmetric":
        return nn.MaxPool2d(3, stride=stride, padding=1)
    return MaxPool2dSame(3, stride=stride)
