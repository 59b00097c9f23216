"""The boxes that SSD starts from (Liu et al. 2016, SSD, section 2.2, in TensorFlow's variant)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mnet_det.structures import FloatArray

ASPECT_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)  # width / height
FIRST_MAP_ASPECT_RATIOS = (1.0, 2.0, 1 / 2)


class AnchorGenerator:
    """Anchors of every map, from the maps' own sizes.

    The scales rise evenly from the first map to the last. On the first map stand 3 anchors a cell: a square of half
    the smallest scale and two oblong ones (TensorFlow's `reduce_boxes_in_lowest_layer`). On each other map stand 6:
    five aspect ratios at the map's scale, and a square between this scale and the next (the last one's next is 1).

    Attributes:
        num_per_cell: anchors a cell, one number per map.
    """

    def __init__(self, *, num_maps: int = 6, scales: tuple[float, float] = (0.2, 0.95)) -> None:
        smallest, largest = scales
        steps = np.linspace(smallest, largest, num_maps).tolist()
        shapes_wh = [_shapes([smallest / 2, smallest, smallest], FIRST_MAP_ASPECT_RATIOS)]
        for scale, next_scale in zip(steps[1:], [*steps[2:], 1.0], strict=True):
            between = math.sqrt(scale * next_scale)
            shapes_wh.append(_shapes([scale] * len(ASPECT_RATIOS) + [between], (*ASPECT_RATIOS, 1.0)))
        self._shapes_wh = tuple(shapes_wh)
        self.num_per_cell = tuple(map(len, shapes_wh))

    def __call__(self, map_hws: Sequence[tuple[int, int]], network_hw: tuple[int, int]) -> FloatArray:
        """All anchors, map after map, row-major, anchor fastest.

        Args:
            map_hws: height and width of each map, in cells.
            network_hw: the input's size. Cells share it evenly, and scales are parts of its shorter side.

        Returns:
            float32 [A, 4] xyxy pixels; they may reach over the edge. Shared between calls: not to be changed.
        """
        return _tile(self._shapes_wh, tuple(map_hws), network_hw)


Shapes = tuple[tuple[float, float], ...]
"""Width and height of a map's anchors, as parts of the input's shorter side."""


def _shapes(scales: Sequence[float], ratios: Sequence[float]) -> Shapes:
    """One shape for each scale and ratio: its area is scale², its aspect ratio as given."""
    return tuple(
        (scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for scale, ratio in zip(scales, ratios, strict=True)
    )


@lru_cache(maxsize=16)  # of a function: a cache in the generator could not be pickled, nor the detector with it
def _tile(
    shapes_wh: tuple[Shapes, ...], map_hws: tuple[tuple[int, int], ...], network_hw: tuple[int, int]
) -> FloatArray:
    """Anchors [A, 4] of every map."""
    anchors = []
    for (rows, columns), shapes in zip(map_hws, shapes_wh, strict=True):
        height, width = network_hw
        half_wh = np.array(shapes) * min(network_hw) / 2  # [S, 2]
        y, x = np.meshgrid(
            (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns, indexing="ij"
        )
        centres_xy = np.stack([x, y], axis=-1)[:, :, None]  # [rows, columns, 1, 2]
        boxes = np.concatenate([centres_xy - half_wh, centres_xy + half_wh], axis=-1)  # [rows, columns, S, 4]
        anchors.append(boxes.reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)
