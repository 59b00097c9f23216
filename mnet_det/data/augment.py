"""Augmentation presets on albumentations; the last step brings pixels and boxes to the network's size."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

# albumentations asks the network for its newest version at import, unless told not to. This is the only place that
# imports it.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2

from mnet_det.data.coco import Truth
from mnet_det.preprocess import PADDING_VALUE, ResizeMode, plan_resize, resize_pixels
from mnet_det.structures import FloatArray, Image, IntArray

Preset = Literal["none", "flip", "ssd", "ssdlite"]

MIN_VISIBLE = 0.3
"""A box of which a crop leaves less than this share of its area is dropped."""
MIN_SIDE_PX = 1.0
"""A box narrower than this in network pixels is dropped: its logarithm in the box coder would run off."""


@dataclass(frozen=True)
class Sample:
    """One training image in network pixels.

    Attributes:
        image: RGB uint8 [3, H, W].
        boxes_xyxy: float32 [M, 4], with labels int64 [M].
        ignored_xyxy: float32 [I, 4], crowd regions.
        valid_hw: what is image and not padding.
    """

    image: NDArray[np.uint8]
    boxes_xyxy: FloatArray
    labels: IntArray
    ignored_xyxy: FloatArray
    valid_hw: tuple[int, int]


class Augment:
    """A named preset, then the resize that `preprocess` does in scoring and live."""

    def __init__(self, preset: Preset, *, network_hw: tuple[int, int], mode: ResizeMode) -> None:
        self.preset = preset
        self.network_hw = network_hw
        self.mode = mode
        self._pipeline = _pipeline(preset, _PRESETS[preset]())
        # A mosaic has shrunk its objects already.
        self._mosaic_pipeline = _pipeline(
            preset, [step for step in _PRESETS[preset]() if not isinstance(step, A.CropAndPad)]
        )

    def __call__(self, image: Image, truth: Truth, *, seed: int) -> Sample:
        """Augment RGB uint8 [H, W, 3] and its boxes; the same seed gives the same sample."""
        return self._augment(self._pipeline, image, truth, areas(truth.boxes_xyxy), seed)

    def mosaic(self, image: Image, truth: Truth, whole_areas: FloatArray, *, seed: int) -> Sample:
        """Augment a mosaic: all but zooming out. `whole_areas` [M] are those of its boxes before it cut them."""
        return self._augment(self._mosaic_pipeline, image, truth, whole_areas, seed)

    def _augment(self, pipeline: A.Compose, image: Image, truth: Truth, whole_areas: FloatArray, seed: int) -> Sample:
        # One stream for all steps: `set_random_seed` would give each its own copy, and so the same coin to every step.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        changed: dict[str, Any] = pipeline(image=image, bboxes=truth.boxes_xyxy, rows=np.arange(len(truth.labels)))
        image = changed["image"]
        resize = plan_resize((image.shape[0], image.shape[1]), self.network_hw, self.mode)
        left_xyxy = np.asarray(changed["bboxes"], np.float32).reshape(-1, 4)
        boxes_xyxy = resize.apply(left_xyxy)
        rows = np.asarray(changed["rows"]).astype(np.int64)  # of `truth`, for each box that is left
        # Albumentations' own threshold would drop crowds too, and what is left of a crowd is still not background.
        visible = areas(left_xyxy) >= MIN_VISIBLE * whole_areas[rows]
        large = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2] >= MIN_SIDE_PX).all(axis=1)
        crowd = truth.crowd[rows]
        kept = visible & large & ~crowd
        return Sample(
            image=_channels_first(resize_pixels(image, resize)),
            boxes_xyxy=boxes_xyxy[kept],
            labels=truth.labels[rows[kept]],
            ignored_xyxy=boxes_xyxy[crowd],
            valid_hw=resize.valid_hw,
        )


def areas(boxes_xyxy: FloatArray) -> FloatArray:
    """Areas [N] of boxes [N, 4]; no preset scales pixels, so they compare before and after."""
    products: FloatArray = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    return products


def _pipeline(preset: Preset, steps: list[Any]) -> A.Compose:
    return A.Compose(
        steps or [A.NoOp()],
        bbox_params=A.BboxParams(
            format="pascal_voc",
            label_fields=["rows"],
            clip=True,
            filter_invalid_bboxes=True,
            check_each_transform=preset in ("ssd", "ssdlite"),  # a crop refuses boxes that an earlier one cut
        ),
    )


def _channels_first(image: Image) -> NDArray[np.uint8]:
    """[H, W, 3] to [3, H, W], four times as fast as a copy of the transposed array."""
    planes = np.empty((image.shape[2], *image.shape[:2]), np.uint8)
    cv2.split(image, list(planes))  # writes into them
    return planes


def _flip() -> list[Any]:
    return [A.HorizontalFlip(p=0.5)]


def _crop() -> list[Any]:
    """Crops that never lose what they keep: all boxes whole, or the middle of their union, or any large part."""
    return [
        A.OneOf(
            [
                A.BBoxSafeRandomCrop(erosion_rate=0.0),
                A.BBoxSafeRandomCrop(erosion_rate=0.4),
                A.RandomCropFromBorders(crop_left=0.4, crop_right=0.4, crop_top=0.4, crop_bottom=0.4),
            ],
            p=0.8,
        )
    ]


def _ssdlite() -> list[Any]:
    return [*_crop(), *_flip()]


def _ssd() -> list[Any]:
    zoom_out = A.CropAndPad(percent=(0.0, 1.0), sample_independently=True, keep_size=False, fill=PADDING_VALUE, p=0.4)
    photometric = A.ColorJitter(
        brightness=(0.8, 1.2), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.6
    )
    return [photometric, zoom_out, *_crop(), *_flip()]


_PRESETS = {"none": list, "flip": _flip, "ssd": _ssd, "ssdlite": _ssdlite}
