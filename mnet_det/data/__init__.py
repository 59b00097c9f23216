"""COCO data: reading, augmenting, batching, and a drawn data set. Here a config becomes data, and nowhere else."""

from __future__ import annotations

from mnet_det.config import DataConfig, Split
from mnet_det.data.coco import CocoData, read_coco


def open_data(config: DataConfig, split: Split) -> CocoData:
    """The images and boxes of a split, all image files being there.

    Raises:
        ConfigError: the config names no such split.
        DataError: files are missing or are not COCO.
    """
    data = read_coco(config.annotations(split), config.images(split), classes=config.classes)
    data.require_files()
    return data
