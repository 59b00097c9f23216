"""The only way into network pixels: uint8 RGB [H, W, 3] to uint8 network pixels, and the `Resize` that leads back."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mnet_det.structures import Image, Resize

INTERPOLATION = cv2.INTER_LINEAR
"""One interpolation for training, scoring and live; what a network saw in training is what it gets."""

PADDING_VALUE = 127
"""Letterbox padding: the middle grey, which normalises to nearly zero."""

ResizeMode = Literal["stretch", "letterbox"]


def plan_resize(source_hw: tuple[int, int], network_hw: tuple[int, int], mode: ResizeMode) -> Resize:
    """Where an image of `source_hw` lies inside the network's input."""
    if mode == "stretch":
        return Resize(source_hw, network_hw, network_hw)
    scale = min(network / source for network, source in zip(network_hw, source_hw, strict=True))
    valid_h, valid_w = (
        min(network, max(1, round(source * scale))) for source, network in zip(source_hw, network_hw, strict=True)
    )
    return Resize(source_hw, (valid_h, valid_w), network_hw)


class Preprocessor:
    """Original pixels to network pixels."""

    def __init__(self, network_hw: tuple[int, int], *, mode: ResizeMode) -> None:
        self.network_hw = network_hw
        self.mode = mode

    def __call__(self, image: Image) -> tuple[NDArray[np.uint8], Resize]:
        """Resize one image.

        Args:
            image: RGB uint8 [H, W, 3].

        Returns:
            uint8 [3, H', W'] in the network's size, and the `Resize` that undoes it.
        """
        resize = plan_resize((image.shape[0], image.shape[1]), self.network_hw, self.mode)
        return np.ascontiguousarray(resize_pixels(image, resize).transpose(2, 0, 1)), resize


def resize_pixels(image: Image, resize: Resize) -> Image:
    """RGB uint8 [H, W, 3] to the network's size, padded below and right where letterboxed."""
    valid_h, valid_w = resize.valid_hw
    resized: Image = cv2.resize(image, (valid_w, valid_h), interpolation=INTERPOLATION)
    network_h, network_w = resize.network_hw
    if resize.valid_hw == resize.network_hw:
        return resized
    padded: Image = cv2.copyMakeBorder(
        resized,
        0,
        network_h - valid_h,
        0,
        network_w - valid_w,
        cv2.BORDER_CONSTANT,
        value=(PADDING_VALUE,) * 3,
    )
    return padded
