"""Mosaic and mixup: several training images in one, in the early epochs.

A mosaic takes the place of an image as it was read: it is as large as the preset wants to see one, and then goes
through the preset, but is not zoomed out. Mixup comes last, and lays one finished sample over another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from mnet_det.config import DataConfig
from mnet_det.data.augment import MIN_VISIBLE, Sample, areas
from mnet_det.data.coco import Truth
from mnet_det.preprocess import INTERPOLATION, PADDING_VALUE, ResizeMode, plan_resize
from mnet_det.structures import FloatArray, Image

MEETING_POINT = (0.25, 0.75)
"""Where the four images of a mosaic meet, as a share of its sides: as in YOLOv5 and YOLOX."""
SMALLEST_SCALE = 0.5
"""An image in a mosaic has this share of its usual size, or more, but never more than all of it."""
BETA = 32.0
"""Mixup's shares are drawn from Beta(32, 32), as in YOLOv5: nine in ten lie within 0.4…0.6. Zhang et al. 2019 (Bag of
Freebies, section 3.1) draw from Beta(1.5, 1.5) and weigh each box by its image's share; ours all count in full, as in
YOLOX, so none of the images may fade away."""


@dataclass(frozen=True)
class Mix:
    """How often training images are combined.

    Attributes:
        mosaic: probability that four images make one.
        mixup: probability that another image shines through.
        until_epoch: only epochs before this one are mixed; those that follow show images as they are.
    """

    mosaic: float
    mixup: float
    until_epoch: int


def plan_mix(config: DataConfig, *, epochs: int) -> Mix:
    """What a config says of a run of so many epochs."""
    return Mix(config.mosaic, config.mixup, until_epoch=epochs - config.plain_epochs)


class Mosaic(NamedTuple):
    """Four images in one.

    Attributes:
        image: RGB uint8 [H, W, 3].
        truth: what is marked in it.
        whole_areas: float32 [M], of the boxes before they were cut, in the same pixels.
    """

    image: Image
    truth: Truth
    whole_areas: FloatArray


def make_mosaic(
    pictures: Sequence[tuple[Image, Truth]], *, hw: tuple[int, int], mode: ResizeMode, rng: np.random.Generator
) -> Mosaic:
    """Lay four images around a point (Bochkovskiy et al. 2020, YOLOv4, figure 3).

    Each lies with a corner at the point and is cut only where the mosaic ends. Its scale is random, from half to all of
    what `mode` would make of the image alone, but large enough to fill its quarter; letterboxed, one side of it.

    `Mosaic` of albumentations 2.0.8 builds four pipelines each time, which takes ten times as long as this, and forgets
    how large a box was before it was cut, which `MIN_VISIBLE` is about.

    Args:
        pictures: top left, top right, bottom left and bottom right, with what is marked in them.
        hw: size of the mosaic.
        mode: whether an image alone would be stretched.
        rng: gives the point and the scales.
    """
    top, left = (round(side * rng.uniform(*MEETING_POINT)) for side in hw)
    mosaic = np.full((*hw, 3), PADDING_VALUE, np.uint8)
    tiles = []
    for number, (image, truth) in enumerate(pictures):
        below, right = divmod(number, 2)
        quarter_hw = (hw[0] - top if below else top, hw[1] - left if right else left)
        smallest = max(SMALLEST_SCALE, quarter_hw[0] / hw[0], quarter_hw[1] / hw[1])
        scale = rng.uniform(smallest, 1)
        usual_hw = plan_resize((image.shape[0], image.shape[1]), hw, mode).valid_hw
        rows = _Span.fit(image.shape[0], round(usual_hw[0] * scale), quarter_hw[0], meets_at=top, after=bool(below))
        columns = _Span.fit(image.shape[1], round(usual_hw[1] * scale), quarter_hw[1], meets_at=left, after=bool(right))
        mosaic[rows.there, columns.there] = cv2.resize(
            image[rows.here, columns.here], (columns.length, rows.length), interpolation=INTERPOLATION
        )
        tiles.append(_move(truth, rows, columns))
    truths, whole_areas = zip(*tiles, strict=True)
    boxes_xyxy, labels, crowd = (
        np.concatenate([getattr(truth, name) for truth in truths]) for name in ("boxes_xyxy", "labels", "crowd")
    )
    return Mosaic(mosaic, Truth(boxes_xyxy, labels, crowd), np.concatenate(whole_areas))


def mix_up(one: Sample, other: Sample, *, rng: np.random.Generator) -> Sample:
    """Two samples of one size, each shining through the other, with the boxes of both."""
    share = rng.beta(BETA, BETA)
    return Sample(
        image=cv2.addWeighted(one.image, share, other.image, 1 - share, 0),
        boxes_xyxy=np.concatenate([one.boxes_xyxy, other.boxes_xyxy]),
        labels=np.concatenate([one.labels, other.labels]),
        ignored_xyxy=np.concatenate([one.ignored_xyxy, other.ignored_xyxy]),
        valid_hw=(max(one.valid_hw[0], other.valid_hw[0]), max(one.valid_hw[1], other.valid_hw[1])),
    )


@dataclass(frozen=True)
class _Span:
    """Which rows (or columns) of an image are seen in a mosaic, and where.

    Attributes:
        start: the first of them in the image.
        count: how many of the image's.
        first: where they begin in the mosaic.
        length: how many they are there.
    """

    start: int
    count: int
    first: int
    length: int

    @classmethod
    def fit(cls, source: int, scaled: int, room: int, *, meets_at: int, after: bool) -> _Span:
        """The span of an image of `source` pixels, `scaled` in the mosaic, which has `room` after (or before) a line.

        What does not fit is cut at the end that is away from the line.
        """
        count = min(source, max(1, round(source * room / max(1, scaled))))
        length = min(room, max(1, scaled)) if count == source else room
        return cls(0 if after else source - count, count, meets_at if after else meets_at - length, length)

    @property
    def here(self) -> slice:
        """In the image."""
        return slice(self.start, self.start + self.count)

    @property
    def there(self) -> slice:
        """In the mosaic."""
        return slice(self.first, self.first + self.length)

    def move(self, positions: FloatArray) -> FloatArray:
        """From the image to the mosaic; what is not seen falls outside of the span."""
        moved: FloatArray = (positions - self.start) * np.float32(self.length / self.count) + self.first
        return moved


def _move(truth: Truth, rows: _Span, columns: _Span) -> tuple[Truth, FloatArray]:
    """What of an image's truth is seen in a mosaic, and how large its boxes would be uncut."""
    whole_xyxy = np.empty_like(truth.boxes_xyxy)
    whole_xyxy[:, 0::2] = columns.move(truth.boxes_xyxy[:, 0::2])
    whole_xyxy[:, 1::2] = rows.move(truth.boxes_xyxy[:, 1::2])
    first = np.array([columns.first, rows.first] * 2, np.float32)
    last = first + np.array([columns.length, rows.length] * 2, np.float32)
    seen_xyxy = whole_xyxy.clip(first, last)
    seen, whole = areas(seen_xyxy), areas(whole_xyxy)
    kept = (seen > 0) & (truth.crowd | (seen >= MIN_VISIBLE * whole))
    return Truth(seen_xyxy[kept], truth.labels[kept], truth.crowd[kept]), whole[kept]
