"""What every head asks of a network that gives it feature maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from mnet_det.errors import ConfigError

Need = Literal["ssd", "fpn", "c4"]
"""Which maps a head starts from: SSD's two taps, the last maps for a feature pyramid, or the one map at stride 16 that
the paper's Faster R-CNN looks at (detectron's name for it)."""


class Backbone(nn.Module, ABC):
    """Feature maps at declared places, and the layers after the last of them as a second stage.

    Attributes:
        alpha: width multiplier; heads scale their own layers by it. 1 where the family has none.
        channels: of each tapped map.
        strides: of each tapped map, in input pixels. Networks without padding give maps a little smaller than the
            input over the stride; heads take sizes from the maps themselves.
        roi_side: height and width of the regions that `second_stage` takes; 0 where there is none.
        second_stage_channels: of the vectors that it gives.
        least_side: the smallest input, in pixels a side, that leaves something on every tapped map.
    """

    alpha: float
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    roi_side: int = 0
    second_stage_channels: int = 0
    least_side: int = 32

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images [B, 3, H, W] to one map [B, channels, ~H/stride, ~W/stride] per tap."""

    @property
    @abstractmethod
    def blocks_in_order(self) -> tuple[nn.Module, ...]:
        """The stem, then every block that learns, as they run; those of the second stage, if it was built, are last."""

    def second_stage(self, regions: Tensor) -> Tensor:
        """Regions [N, channels, roi_side, roi_side] of the last map to vectors [N, second_stage_channels]."""
        raise NotImplementedError(f"{type(self).__name__} was built without its second stage")


def pick_taps(
    places: Mapping[str, int], taps: Sequence[int | str] | None, *, default: Sequence[str], backbone: str
) -> tuple[str, ...]:
    """The names of the places that a head taps.

    Args:
        places: stride after each place that can be tapped, by name, in the order of the network.
        taps: the user's choice (`model.taps`), or None for `default`.
        default: what the head needs.
        backbone: named in errors.

    Raises:
        ConfigError: a tap that this network does not have, or taps that are not in its order.
    """
    if taps is None:
        return tuple(default)
    names = tuple(map(str, taps))
    order = list(places)
    known = ", ".join(f"{name} (stride {stride})" for name, stride in places.items())
    unknown = [name for name in names if name not in places]
    if unknown:
        raise ConfigError(f"model.taps: {backbone} has no {', '.join(unknown)}; it has {known}")
    if not names or [order.index(name) for name in names] != sorted({order.index(name) for name in names}):
        raise ConfigError(f"model.taps: got {list(names)}, expected places in the order of {backbone}: {known}")
    return names
