"""Any network of timm (PyTorch Image Models) that gives feature maps, as `timm:NAME`."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mnet_det.doctor import install_line
from mnet_det.errors import ConfigError, MissingPackageError
from mnet_det.models.backbone import Backbone, Need, pick_taps
from mnet_det.models.mobilenet_v1 import ROI_SIDE
from mnet_det.models.separable_stage import SeparableStage

STRIDES: dict[Need, tuple[int, ...]] = {"ssd": (16, 32), "fpn": (16, 32), "c4": (16,)}
REHEARSAL_SIDES = (32, 64, 96, 128)
"""Inputs to try a network on; 96 is the first that the whole of an Inception takes."""


class TimmBackbone(Backbone):
    """The maps of a timm network, and two separable blocks as the second stage where one is needed.

    Attributes:
        network: timm's feature extractor.
        least_side: of the smallest square input that was tried and works.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        channels_last: bool,
        least_side: int,
        has_second_stage: bool,
    ) -> None:
        """Hold the network, which gives one map per entry of `channels`, as [B, H, W, C] if `channels_last`."""
        super().__init__()
        self.network = network
        self.alpha = 1.0
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.channels_last = channels_last
        self.least_side = least_side
        self.stage: SeparableStage | None = None
        if has_second_stage:
            self.stage = SeparableStage(self.channels[-1])
            self.roi_side = ROI_SIDE
            self.second_stage_channels = self.stage.channels

    @property
    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """See `Backbone.blocks_in_order`: the stages as timm has them, a norm together with the layer before it."""
        parts: list[nn.Module] = []
        for name, child in self.network.named_children():
            parts += child.children() if name == "blocks" else [child]
        blocks: list[nn.Module] = []
        for part in parts:
            dimensions = [parameter.ndim for parameter in part.parameters()]
            if blocks and dimensions and max(dimensions) < 2:
                blocks[-1] = nn.Sequential(blocks[-1], part)
            elif dimensions:
                blocks.append(part)
        return (*blocks, self.stage) if self.stage is not None else tuple(blocks)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to one map [B, channels, ~H/stride, ~W/stride] per tap."""
        maps = list(self.network(images))
        return [features.permute(0, 3, 1, 2).contiguous() for features in maps] if self.channels_last else maps

    def second_stage(self, regions: Tensor) -> Tensor:
        """Regions [N, channels, 14, 14] of the last map to vectors [N, second_stage_channels]."""
        if self.stage is None:
            return super().second_stage(regions)
        vectors: Tensor = self.stage(regions)
        return vectors


def timm_backbone(
    name: str,
    *,
    alpha: float = 1.0,
    need: Need = "ssd",
    taps: Sequence[int | str] | None = None,
    pretrained: bool = False,
) -> TimmBackbone:
    """A network of timm, with random weights unless `pretrained`, which fetches them.

    timm cuts most networks after the last tap. Of those that it leaves whole, parameters that no map depends on are
    frozen, for they will never get a gradient.

    Args:
        name: timm's, without `timm:`.
        alpha: 1; timm's networks have their width in their name.
        need: what the head starts from; `c4` brings two separable blocks along as the second stage.
        taps: indices into timm's `feature_info`, ascending, in place of the need's own.
        pretrained: start from timm's ImageNet weights.

    Raises:
        ConfigError: no such network, or one without maps, without maps at the strides that are needed, or for images
            of one size only.
        MissingPackageError: timm is not installed.
    """
    timm = _import_timm(name)
    if alpha != 1:
        raise ConfigError(f"model.alpha: timm:{name} has its width in its name, set 1")
    info = _feature_info(_dry_network(timm, name))
    places = {str(index): entry["reduction"] for index, entry in enumerate(info)}
    picked = pick_taps(
        places, taps, default=() if taps is not None else _default_taps(name, places, need), backbone=f"timm:{name}"
    )
    indices = [int(tap) for tap in picked]
    channels, last_module = [info[index]["num_chs"] for index in indices], info[indices[-1]]["module"]
    network = _cut(timm.create_model(name, features_only=True, pretrained=pretrained, out_indices=indices), last_module)
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    least_side, unused = _rehearse(network, name, channels, channel_axis=3 if channels_last else 1)
    for parameter in unused:
        parameter.requires_grad_(False)
    return TimmBackbone(
        network,
        channels=channels,
        strides=[places[tap] for tap in picked],
        channels_last=channels_last,
        least_side=least_side,
        has_second_stage=need == "c4",
    )


def _import_timm(name: str) -> ModuleType:
    try:
        import timm
    except ImportError:
        raise MissingPackageError(f"model.backbone=timm:{name} needs timm: {install_line('timm')}") from None
    return timm


def _dry_network(timm: ModuleType, name: str) -> nn.Module:
    """The feature extractor without memory for its weights, to read off what it gives."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"model.backbone: timm has no {name!r}{hint}")
    try:
        about = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part after the dot
        raise ConfigError(f"model.backbone: timm has no {name!r}: {error}") from None
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again when the network is built in earnest
            network: nn.Module = timm.create_model(name, features_only=True)
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        raise ConfigError(f"timm:{name} gives no feature maps: {error}") from None
    if about is not None and about.fixed_input_size:
        raise ConfigError(
            f"timm:{name} takes images of {about.input_size[2]}×{about.input_size[1]} and no others; "
            "choose a network that takes any size"
        )
    return network


def _feature_info(network: Any) -> list[dict[str, Any]]:
    """Channels, stride (`reduction`) and module of every map, in timm's words."""
    return list(network.feature_info.info)


def _default_taps(name: str, places: dict[str, int], need: Need) -> list[str]:
    """The last map at each of the strides that the need asks for."""
    last = {stride: tap for tap, stride in places.items()}
    if not set(STRIDES[need]) <= set(last):
        head = "Faster R-CNN" if need == "c4" else "a feature pyramid" if need == "fpn" else "SSD"
        by_index = ", ".join(f"{tap} (stride {stride})" for stride, tap in last.items())
        raise ConfigError(
            f"timm:{name} gives maps at strides {', '.join(map(str, last))}; "
            f"{head} needs {' and '.join(map(str, STRIDES[need]))} (model.taps chooses others by index: {by_index})"
        )
    return [last[stride] for stride in STRIDES[need]]


def _cut(network: nn.Module, module: str) -> nn.Module:
    """The network without the blocks after `module`: timm's own classes for the MobileNets keep and run them all."""
    parent, _, index = module.rpartition(".")
    blocks = getattr(network, "blocks", None)
    if parent == "blocks" and isinstance(blocks, nn.Sequential):
        network.blocks = blocks[: int(index) + 1]
    return network


def _rehearse(
    network: nn.Module, name: str, channels: Sequence[int], *, channel_axis: int
) -> tuple[int, list[nn.Parameter]]:
    """Run the network on nothing: the smallest side that it takes, and the parameters that no map depends on."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    failure: Exception | None = None
    network.eval()  # or batch norm would remember it
    for side in REHEARSAL_SIDES:
        try:
            maps = network(torch.zeros(1, 3, side, side, device=parameters[0].device))
        except (RuntimeError, ValueError, AssertionError) as error:
            failure = error
            continue
        shapes = [tuple(features.shape) for features in maps]
        if any(len(shape) != 4 for shape in shapes) or [shape[channel_axis] for shape in shapes] != list(channels):
            raise ConfigError(f"timm:{name} gives {shapes} for images of {side}×{side}, expected {channels} channels")
        total = torch.stack([features.sum() for features in maps]).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        network.train()
        return side, [parameter for parameter, grad in zip(parameters, gradients, strict=True) if grad is None]
    raise ConfigError(f"timm:{name} takes no images of {side}×{side} or less: {failure}")
