"""Pictures of what training sees and what the detector finds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mnet_det.config import Config
from mnet_det.data import open_data
from mnet_det.data.augment import Augment
from mnet_det.data.coco import CocoData
from mnet_det.data.loader import TrainingSamples, collate, make_batch
from mnet_det.data.mix import plan_mix
from mnet_det.draw import draw_boxes, draw_detections, draw_ignored, make_grid
from mnet_det.preprocess import plan_resize, resize_pixels
from mnet_det.runtime.predictor import Predictor
from mnet_det.structures import Batch, Image

MAX_PICTURES = 16
CELL_HW = (320, 400)
SHOWN_SCORE = 0.3
MIN_SHOWN_PX = 240
"""Shorter side below which samples are shown enlarged."""


def picture_batch(batch: Batch, class_names: Sequence[str]) -> Image:
    """A grid of a training batch as the network gets it, with its boxes; ignored regions (crowds) are hatched."""
    cells = []
    for image, target in list(zip(batch.images, batch.targets, strict=True))[:MAX_PICTURES]:
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        # By whole pixels, so that each one that the network gets can be seen; small, there is no room for letters.
        times = math.ceil(MIN_SHOWN_PX / min(pixels.shape[:2]))
        pixels = pixels.repeat(times, axis=0).repeat(times, axis=1)
        pixels = draw_ignored(pixels, target.ignored_xyxy.numpy() * times)
        names = [class_names[label] for label in target.labels]
        cells.append(draw_boxes(pixels, target.boxes_xyxy.numpy() * times, names, target.labels.tolist()))
    return make_grid(cells, columns=_columns(len(cells)))


def picture_predictions(predictor: Predictor, data: CocoData, *, count: int = MAX_PICTURES) -> Image:
    """A grid of the first images of a data set with what the detector finds above 0.3."""
    cells = []
    for index in range(min(count, len(data))):
        image = data.image(index)
        picture = draw_detections(image, predictor(image, score=SHOWN_SCORE), predictor.class_names)
        resize = plan_resize((picture.shape[0], picture.shape[1]), CELL_HW, "letterbox")
        cells.append(resize_pixels(picture, resize))
    return make_grid(cells, columns=_columns(len(cells)))


def browse_samples(config: Config) -> Image:
    """A grid of training samples as the first two epochs see them, each image twice to show what changes.

    Raises:
        ConfigError: see `open_data`.
        DataError: see there and `TrainingSamples`; in the place of a single image of no use stands the next.
    """
    data = open_data(config.data, "train")
    augment = Augment(config.data.augment, network_hw=config.model.input_hw, mode=config.model.resize)
    mix = plan_mix(config.data, epochs=config.train.epochs)
    samples = TrainingSamples(data, augment, seed=config.train.seed, mix=mix)
    draws = [samples[epoch, index] for index in _worth_showing(data) for epoch in range(2)]
    return picture_batch(make_batch(*collate(draws)), data.class_names)


def _worth_showing(data: CocoData) -> list[int]:
    """Images from all over a data set, always the same: those with boxes if there are any, and one with a crowd."""
    truths = [data.truth(index) for index in range(len(data))]
    marked = [index for index, truth in enumerate(truths) if len(truth.labels)] or list(range(len(data)))
    count = min(MAX_PICTURES // 2, len(marked))
    chosen = [marked[place * len(marked) // count] for place in range(count)]
    crowded = [index for index, truth in enumerate(truths) if truth.crowd.any()]
    if crowded and not set(chosen) & set(crowded):
        chosen[-1] = crowded[0]
    return sorted(chosen)


def _columns(cells: int) -> int:
    return math.ceil(math.sqrt(cells))
