"""MobileNetV2 and V3, VGG16, GoogLeNet, Inception V3 and SqueezeNet, built from torchvision's layers.

The layers keep torchvision's names, so its ImageNet weights fit as they are: `features.X` of a classifier is `layers.X`
here, and where a network has no `features`, so is `X`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise, takewhile
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import mobilenetv2, mobilenetv3, vgg

from mnet_det.errors import ConfigError
from mnet_det.models.backbone import Backbone, Need, pick_taps
from mnet_det.models.layers import PixelNormalization
from mnet_det.models.mobilenet_v1 import ROI_SIDE
from mnet_det.models.separable_stage import SeparableStage

EXPANSION = ".expansion"
"""Follows the name of an inverted residual: the map inside it, after the expansion and before the depthwise."""
VGG16_ROI_SIDE = 7
VGG16_HIDDEN = 4096
"""Units of each of VGG16's fully connected layers, which see regions of 7×7 in Fast R-CNN (Girshick 2015)."""
SSD_NORM_SCALE = 20.0
"""Liu et al. 2016, SSD, section 3.1: conv4_3 is of another scale than the later maps."""


@dataclass(frozen=True)
class _Network:
    """What the heads need to know of one of torchvision's networks.

    Attributes:
        build: torchvision's classifier.
        halving: layers with stride 2; strides follow from them.
        taps: places that each need starts from.
        channels: of the layers that do not state theirs as `out_channels`. Pools and ReLUs keep those they get.
        settings: more arguments of `build`.
        has_alpha: it comes in widths.
        has_reduced_tail: its last layers come with half the channels (Howard et al. 2019, section 6.3).
        least_sides: of the smallest square input, by the stride of the last tap, where it is above 32.
    """

    build: Callable[..., nn.Module]
    halving: tuple[str, ...]
    taps: Mapping[Need, tuple[str, ...]]
    channels: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    has_alpha: bool = False
    has_reduced_tail: bool = False
    least_sides: Mapping[int, int] = field(default_factory=dict)


_INCEPTION_SETTINGS = {"aux_logits": False, "transform_input": False, "init_weights": False}
"""Without the classifiers on the way, and with torch's own start: theirs takes seconds and batch norm undoes it."""

_NETWORKS = {
    "mobilenet_v2": _Network(
        torchvision.models.mobilenet_v2,
        halving=("0", "2", "4", "7", "14"),
        # Sandler et al. 2018, section 6.2: the expansion of the block that goes to stride 32, and the last layer.
        taps={"ssd": ("14.expansion", "18"), "fpn": ("13", "18"), "c4": ("13",)},
        has_alpha=True,
    ),
    "mobilenet_v3_large": _Network(
        torchvision.models.mobilenet_v3_large,
        halving=("0", "2", "4", "7", "13"),
        taps={"ssd": ("13.expansion", "16"), "fpn": ("12", "16"), "c4": ("12",)},
        has_alpha=True,
        has_reduced_tail=True,
    ),
    "mobilenet_v3_small": _Network(
        torchvision.models.mobilenet_v3_small,
        halving=("0", "1", "2", "4", "9"),
        taps={"ssd": ("9.expansion", "12"), "fpn": ("8", "12"), "c4": ("8",)},
        has_alpha=True,
        has_reduced_tail=True,
    ),
    "vgg16": _Network(
        torchvision.models.vgg16,
        halving=("4", "9", "16", "23", "30"),
        taps={"ssd": ("22", "fc7"), "fpn": ("22", "29"), "c4": ("29",)},
        channels={"fc6": 1024, "fc7": 1024},
    ),
    "googlenet": _Network(
        torchvision.models.googlenet,
        halving=("conv1", "maxpool1", "maxpool2", "maxpool3", "maxpool4"),
        taps={
            "ssd": ("inception4e", "inception5b"),
            "fpn": ("inception4e", "inception5b"),
            "c4": ("inception4e",),
        },
        channels={
            "conv1": 64,
            "conv2": 64,
            "conv3": 192,
            "inception3a": 256,
            "inception3b": 480,
            "inception4a": 512,
            "inception4b": 512,
            "inception4c": 512,
            "inception4d": 528,
            "inception4e": 832,
            "inception5a": 832,
            "inception5b": 1024,
        },
        settings=_INCEPTION_SETTINGS,
    ),
    "inception_v3": _Network(
        torchvision.models.inception_v3,
        halving=("Conv2d_1a_3x3", "maxpool1", "maxpool2", "Mixed_6a", "Mixed_7a"),
        taps={"ssd": ("Mixed_6e", "Mixed_7c"), "fpn": ("Mixed_6e", "Mixed_7c"), "c4": ("Mixed_6e",)},
        channels={
            "Conv2d_1a_3x3": 32,
            "Conv2d_2a_3x3": 32,
            "Conv2d_2b_3x3": 64,
            "Conv2d_3b_1x1": 80,
            "Conv2d_4a_3x3": 192,
            "Mixed_5b": 256,
            "Mixed_5c": 288,
            "Mixed_5d": 288,
            "Mixed_6a": 768,
            "Mixed_6b": 768,
            "Mixed_6c": 768,
            "Mixed_6d": 768,
            "Mixed_6e": 768,
            "Mixed_7a": 1280,
            "Mixed_7b": 2048,
            "Mixed_7c": 2048,
        },
        settings=_INCEPTION_SETTINGS,
        least_sides={16: 43, 32: 75},
    ),
    "squeezenet": _Network(
        torchvision.models.squeezenet1_1,
        halving=("0", "2", "5", "8"),
        taps={"ssd": ("7", "12"), "fpn": ("7", "12"), "c4": ("12",)},  # it ends at stride 16
        channels={"3": 128, "4": 128, "6": 256, "7": 256, "9": 384, "10": 384, "11": 512, "12": 512},
    ),
}

TORCHVISION_BACKBONES = tuple(_NETWORKS)


class _Place(NamedTuple):
    """Channels and stride of the map at one place."""

    channels: int
    stride: int


class L2Norm(nn.Module):
    """The vector at each place of the map scaled to length 1, then each channel by a learned factor."""

    def __init__(self, channels: int, *, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), scale))

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return F.normalize(features, dim=1) * self.scale.view(1, -1, 1, 1)


class LayeredBackbone(Backbone):
    """Layers run one after the other, some of their maps kept on the way.

    Attributes:
        layers: in the order in which they run. Those after the last tap are the second stage, if it was asked for.
        norms: of the tapped maps that get one, by tap.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        taps: Sequence[str],
        places: Mapping[str, _Place],
        norms: Mapping[str, nn.Module],
        alpha: float,
        least_side: int,
        roi_side: int = 0,
        second_stage_channels: int = 0,
    ) -> None:
        """Hold the layers; with `roi_side` above 0, the last of them must give vectors."""
        super().__init__()
        self.layers = nn.ModuleDict(dict(layers))
        self.norms = nn.ModuleDict(dict(norms))
        self.alpha = alpha
        self.channels = tuple(places[tap].channels for tap in taps)
        self.strides = tuple(places[tap].stride for tap in taps)
        self.least_side = least_side
        self.roi_side = roi_side
        self.second_stage_channels = second_stage_channels
        self._taps = tuple(taps)
        self._num_first = list(self.layers).index(taps[-1]) + 1

    @property
    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """See `Backbone.blocks_in_order`: the layers by torchvision's name, without pools and activations."""
        return tuple(layer for layer in self.layers.values() if list(layer.parameters()))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to one map [B, channels, ~H/stride, ~W/stride] per tap."""
        maps = {}
        features = images
        for name, layer in islice(self.layers.items(), self._num_first):
            if name + EXPANSION in self._taps:
                maps[name + EXPANSION], features = _run_expanded(layer, features)
            else:
                features = layer(features)
            if name in self._taps:
                maps[name] = features
        return [self.norms[tap](maps[tap]) if tap in self.norms else maps[tap] for tap in self._taps]

    def second_stage(self, regions: Tensor) -> Tensor:
        """Regions [N, channels, roi_side, roi_side] of the last map to vectors [N, second_stage_channels]."""
        if not self.roi_side:
            return super().second_stage(regions)
        for layer in islice(self.layers.values(), self._num_first, None):
            regions = layer(regions)
        return regions


def torchvision_backbone(
    name: str,
    *,
    alpha: float = 1.0,
    need: Need = "ssd",
    taps: Sequence[int | str] | None = None,
    reduced_tail: bool = False,
) -> LayeredBackbone:
    """One of `TORCHVISION_BACKBONES` with random weights, and without the layers that nobody needs.

    Args:
        name: of the network.
        alpha: width multiplier of MobileNetV2 and V3, 1 for the others.
        need: what the head starts from. `c4` brings a second stage along: the network's layers after the tap, or two
            separable blocks where it has none, or VGG16's two fully connected layers.
        taps: layers by torchvision's name, ascending, in place of the need's own; `14.expansion` is the map inside an
            inverted residual.
        reduced_tail: half the channels in the last layers of MobileNetV3, as for detection in its paper.

    Raises:
        ConfigError: a name, width, tail or tap that does not exist.
    """
    network = _network(name, alpha=alpha, reduced_tail=reduced_tail)
    layers = _vgg16_layers(need) if name == "vgg16" else _layers_of(_build(network, alpha, reduced_tail))
    places = _places_of(layers, network)
    names = pick_taps(
        {place: found.stride for place, found in places.items()}, taps, default=network.taps[need], backbone=name
    )
    last = names[-1]
    if last.endswith(EXPANSION):
        raise ConfigError(
            f"model.taps: {name} cannot end inside a block, at {last}; "
            f"let the last tap be {last.removesuffix(EXPANSION)} or a later one"
        )
    end = list(layers).index(last) + 1
    kept, rest = dict(islice(layers.items(), end)), dict(islice(layers.items(), end, None))
    channels = places[last].channels
    roi_side = stage_channels = 0
    if need == "c4" and name == "vgg16":
        roi_side, stage_channels = VGG16_ROI_SIDE, VGG16_HIDDEN
        kept["classifier"] = _vgg16_classifier(channels)
    elif need == "c4" and rest:
        roi_side, stage_channels = ROI_SIDE, list(places.values())[-1].channels
        kept |= rest | {"avgpool": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())}
    elif need == "c4":
        stage = SeparableStage(channels, alpha=alpha)
        roi_side, stage_channels = ROI_SIDE, stage.channels
        kept["stage"] = stage
    return LayeredBackbone(
        kept,
        taps=names,
        places=places,
        norms={"22": L2Norm(512, scale=SSD_NORM_SCALE)} if name == "vgg16" and need == "ssd" and "22" in names else {},
        alpha=alpha,
        least_side=network.least_sides.get(places[last].stride, Backbone.least_side),
        roi_side=roi_side,
        second_stage_channels=stage_channels,
    )


def default_taps(name: str, need: Need) -> tuple[str, ...]:
    """The layers that each need starts from, of one of `TORCHVISION_BACKBONES`."""
    return _NETWORKS[name].taps[need]


def torchvision_classifier(
    name: str,
    *,
    alpha: float = 1.0,
    num_classes: int = 1000,
    reduced_tail: bool = False,
    normalize: PixelNormalization | None = None,
) -> nn.Module:
    """The ImageNet network as torchvision has it, with random weights: uint8 [B, 3, H, W] to logits [B, num_classes].

    Raises:
        ConfigError: a name, width or tail that does not exist.
    """
    network = _network(name, alpha=alpha, reduced_tail=reduced_tail)
    classifier = nn.Sequential()
    classifier.add_module("normalize", normalize or PixelNormalization())
    classifier.add_module("network", _build(network, alpha, reduced_tail, num_classes=num_classes))
    return classifier


def _network(name: str, *, alpha: float, reduced_tail: bool) -> _Network:
    if name not in _NETWORKS:
        raise ConfigError(f"model.backbone: no {name!r}; expected one of {', '.join(_NETWORKS)}")
    network = _NETWORKS[name]
    if alpha != 1 and not network.has_alpha:
        raise ConfigError(f"model.alpha: {name} comes in one width, set 1")
    if reduced_tail and not network.has_reduced_tail:
        raise ConfigError(f"model.reduced_tail: {name} comes with one tail, set false")
    return network


def _build(network: _Network, alpha: float, reduced_tail: bool, *, num_classes: int = 1000) -> nn.Module:
    """The classifier as torchvision has it, its depthwise convolutions started as ours are."""
    settings = dict(network.settings)
    if network.has_alpha:
        settings["width_mult"] = alpha
    if network.has_reduced_tail:
        settings["reduced_tail"] = reduced_tail
    built = network.build(weights=None, num_classes=num_classes, **settings)
    for module in built.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")  # `ConvBNAct` says why
    return built


def _layers_of(network: nn.Module) -> dict[str, nn.Module]:
    """All layers before the classifier, in the order in which they run."""
    features = getattr(network, "features", None)
    if features is not None:
        return dict(features.named_children())
    return dict(takewhile(lambda child: child[0] != "avgpool", network.named_children()))


def _vgg16_layers(need: Need) -> dict[str, nn.Module]:
    """VGG16's convolutions and pools; for SSD its fully connected layers too, as convolutions (SSD, section 3).

    Pools round up, which gives the 38×38 and 19×19 maps of the SSD paper at 300×300, and changes nothing at 224×224.
    torchvision's builder would allocate the 124 million parameters of the classifier along.
    """
    layers = dict(vgg.make_layers(vgg.cfgs["D"]).named_children())
    for layer in layers.values():
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    if need == "ssd":
        layers.pop("30")
        layers["pool5"] = nn.MaxPool2d(3, stride=1, padding=1)
        layers["fc6"] = nn.Sequential(nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU(inplace=True))
        layers["fc7"] = nn.Sequential(nn.Conv2d(1024, 1024, 1), nn.ReLU(inplace=True))
        for name in ("fc6", "fc7"):
            nn.init.xavier_uniform_(layers[name][0].weight)
            nn.init.zeros_(layers[name][0].bias)
    return layers


def _vgg16_classifier(in_channels: int) -> nn.Module:
    """Regions [N, C, 7, 7] to vectors [N, 4096]: VGG16's classifier under its own names, without the last layer."""
    hidden = VGG16_HIDDEN
    classifier = nn.Sequential()
    classifier.add_module("flatten", nn.Flatten())
    for number, layer in enumerate(
        (
            nn.Linear(in_channels * VGG16_ROI_SIDE**2, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
        )
    ):
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        classifier.add_module(str(number), layer)
    return classifier


def _places_of(layers: Mapping[str, nn.Module], network: _Network) -> dict[str, _Place]:
    """Every place that can be tapped, in order."""
    places = {}
    channels, stride = 3, 1
    overwritten = {name for (name, _), (_, following) in pairwise(layers.items()) if isinstance(following, nn.ReLU)}
    for name, layer in layers.items():
        parts = _parts(layer)
        if parts and parts[0][0].groups == 1:  # else it begins with the depthwise
            places[name + EXPANSION] = _Place(parts[0].out_channels, stride)
        channels = getattr(layer, "out_channels", network.channels.get(name, channels))
        stride *= 2 if name in network.halving else 1
        if name not in overwritten:  # torchvision's ReLUs work in place
            places[name] = _Place(channels, stride)
    return places


def _parts(layer: nn.Module) -> list[Any]:
    """What an inverted residual runs in order; none for other layers."""
    if isinstance(layer, mobilenetv2.InvertedResidual):
        return list(layer.conv)
    return list(layer.block) if isinstance(layer, mobilenetv3.InvertedResidual) else []


def _run_expanded(block: nn.Module, features: Tensor) -> tuple[Tensor, Tensor]:
    """The map after the block's expansion, and after the block."""
    expand, *others = _parts(block)
    expanded = result = expand(features)
    for part in others:
        result = part(result)
    return expanded, result + features if block.use_res_connect else result
