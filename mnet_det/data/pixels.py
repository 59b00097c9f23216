"""Where training takes an image's pixels from: the file, or (`image_cache`) what was kept of it."""

from __future__ import annotations

from typing import Protocol

from mnet_det.data.augment import Preset
from mnet_det.data.coco import CocoData
from mnet_det.images import read_image
from mnet_det.preprocess import ResizeMode, plan_resize
from mnet_det.structures import Image

MARGINS: dict[Preset, float] = {"none": 1.0, "flip": 1.0, "ssd": 4 / 3, "ssdlite": 4 / 3}
"""How many times the network's size a preset wants to see. Without crops that size is all there is to see. The crops of
`ssd` and `ssdlite` leave three quarters of a side in the median (on COCO; nine of ten leave half or more), so this
much more fills the network from the median crop, and what is left of a smaller one is enlarged. Zooming out only
shrinks."""


class Pixels(Protocol):
    """What training takes its images from.

    Attributes:
        data: whose images they are; an index means the same in both.
    """

    data: CocoData

    def __call__(self, index: int) -> Image:
        """RGB uint8 [H, W, 3] of one image, which may be smaller than annotated.

        Raises:
            ImageError: the file cannot be used.
        """


def wanted_hw(network_hw: tuple[int, int], *, preset: Preset) -> tuple[int, int]:
    """The network's size with the preset's margin."""
    height, width = (round(side * MARGINS[preset]) for side in network_hw)
    return height, width


def needed_hw(
    source_hw: tuple[int, int], *, preset: Preset, network_hw: tuple[int, int], mode: ResizeMode
) -> tuple[int, int]:
    """How large a training image must be so that the network sees no less than it would of the original.

    Without crops it is what the last resize makes, which then has nothing left to do. With crops it is larger by the
    preset's margin, but never larger than the original. A stretched image loses its aspect here and not later: no
    preset looks at it, each of them moves by shares of a side.
    """
    valid_hw = plan_resize(source_hw, network_hw, mode).valid_hw
    margin = MARGINS[preset]
    if margin == 1:
        return valid_hw
    height, width = (min(source, round(valid * margin)) for source, valid in zip(source_hw, valid_hw, strict=True))
    return height, width


class DecodedPixels:
    """The image files themselves, decoded at reduced size where that is enough for the preset."""

    def __init__(self, data: CocoData, *, preset: Preset, network_hw: tuple[int, int], mode: ResizeMode) -> None:
        self.data = data
        self.preset = preset
        self.network_hw = network_hw
        self.mode = mode

    @property
    def margin(self) -> float:
        """How many times the network's size the preset wants to see."""
        return MARGINS[self.preset]

    def needed_hw(self, index: int) -> tuple[int, int]:
        """How large one image must be."""
        height, width = map(int, self.data.image_hws[index])
        return needed_hw((height, width), preset=self.preset, network_hw=self.network_hw, mode=self.mode)

    def __call__(self, index: int) -> Image:
        """RGB uint8 [H, W, 3], of the annotated size or a half, quarter or eighth of it.

        Raises:
            ImageError: the file is missing, unreadable, or of another size than annotated.
        """
        height, width = map(int, self.data.image_hws[index])
        return read_image(self.data.path(index), size_hw=(height, width), at_least_hw=self.needed_hw(index))
