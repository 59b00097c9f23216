"""Pictures of what training sees and what the detector finds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mnet_det.config import Config
from mnet_det.data import open_data
from mnet_det.data.augment import Augment
from mnet_det.data.coco import CocoData
from mnet_det.data.loader import TrainingSamples, collate
from mnet_det.draw import draw_boxes, draw_detections, make_grid
from mnet_det.preprocess import plan_resize, resize_pixels
from mnet_det.runtime.predictor import Predictor
from mnet_det.structures import Batch, Image

MAX_PICTURES = 16
CELL_HW = (320, 400)
SHOWN_SCORE = 0.3


def picture_batch(batch: Batch, class_names: Sequence[str]) -> Image:
    """A grid of a training batch as the network gets it, with its boxes; crowd regions are marked."""
    cells = []
    for image, target in list(zip(batch.images, batch.targets, strict=True))[:MAX_PICTURES]:
        boxes_xyxy = np.concatenate([target.boxes_xyxy.numpy(), target.ignored_xyxy.numpy()])
        names = [class_names[label] for label in target.labels] + ["crowd"] * len(target.ignored_xyxy)
        labels = target.labels.tolist() + [len(class_names)] * len(target.ignored_xyxy)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        cells.append(draw_boxes(pixels, boxes_xyxy, names, labels))
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
    """A grid of training samples as `data.augment` makes them, each image twice to show what changes."""
    data = open_data(config.data, "train")
    augment = Augment(config.data.augment, network_hw=config.model.input_hw, mode=config.model.resize)
    samples = TrainingSamples(data, augment, seed=config.train.seed)
    shown = min(MAX_PICTURES // 2, len(data))
    return picture_batch(
        collate([samples[epoch, index] for index in range(shown) for epoch in range(2)]), data.class_names
    )


def _columns(cells: int) -> int:
    return math.ceil(math.sqrt(cells))
