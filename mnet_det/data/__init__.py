"""COCO data: reading, augmenting, batching, and a drawn data set. Here a config becomes data, and nowhere else."""

from __future__ import annotations

from mnet_det.config import DataConfig, Split
from mnet_det.data.coco import CocoData, read_coco


def open_data(config: DataConfig, split: Split, *, joined_to: CocoData | None = None) -> CocoData:
    """The images and boxes of a split, all image files being there.

    Args:
        config: says where they are, and which classes are wanted.
        split: which of them.
        joined_to: the training data, whose classes and labels a validation takes over, joined by name.

    Raises:
        ConfigError: the config names no such split.
        DataError: files are missing, the annotations have a fatal fault, or classes that the training data lack.
    """
    names = None if joined_to is None else joined_to.class_names
    data = read_coco(config.annotations(split), config.images(split), classes=config.classes, joined_to=names)
    data.require_files()
    return data
