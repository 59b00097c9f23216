"""The boxes that detectors start from: a few shapes around every cell of every map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mnet_det.structures import FloatArray

ASPECT_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)  # width / height
FIRST_MAP_ASPECT_RATIOS = (1.0, 2.0, 1 / 2)
REGION_ASPECT_RATIOS = (1 / 2, 1.0, 2.0)


class AnchorGenerator:
    """SSD's anchors (Liu et al. 2016, section 2.2, in TensorFlow's variant), from the maps' own sizes.

    The scales rise evenly from the first map to the last. On each map stand 6 anchors a cell: five aspect ratios at
    the map's scale, and a square between this scale and the next (the last one's next is 1). On the first map there
    are 3 instead: a square of half the smallest scale and two oblong ones.

    Attributes:
        num_per_cell: anchors a cell, one number per map.
    """

    def __init__(
        self,
        *,
        num_maps: int = 6,
        scales: tuple[float, float] = (0.2, 0.95),
        reduce_boxes_in_lowest_layer: bool = True,
    ) -> None:
        """Set the shapes.

        Args:
            num_maps: how many maps there are.
            scales: of the first and the last map, as parts of the input's shorter side.
            reduce_boxes_in_lowest_layer: 3 anchors a cell on the first map, not 6 (TensorFlow's setting).
        """
        smallest, largest = scales
        steps = np.linspace(smallest, largest, num_maps).tolist()
        shapes_wh = []
        for scale, next_scale in itertools.pairwise([*steps, 1.0]):
            between = math.sqrt(scale * next_scale)
            shapes_wh.append(_shapes([scale] * len(ASPECT_RATIOS) + [between], (*ASPECT_RATIOS, 1.0)))
        if reduce_boxes_in_lowest_layer:
            shapes_wh[0] = _shapes([smallest / 2, smallest, smallest], FIRST_MAP_ASPECT_RATIOS)
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
        side = min(network_hw)
        shapes_wh = tuple(tuple((side * w, side * h) for w, h in shapes) for shapes in self._shapes_wh)
        return _tile(shapes_wh, tuple(map_hws), network_hw)


class RegionAnchors:
    """Anchors of region proposals (Ren et al. 2015, section 3.1.1): the same sizes and aspect ratios on every map.

    Sizes are pixels and do not grow with the input: a network's features see so many pixels, whatever the rest is.

    Attributes:
        num_per_cell: anchors a cell, on any map.
    """

    def __init__(self, sizes_px: Sequence[float]) -> None:
        """Set the shapes: one for each pair of a size, whose square is the area, and an aspect ratio."""
        self._shapes_wh = _shapes(
            [size for size in sizes_px for _ in REGION_ASPECT_RATIOS], REGION_ASPECT_RATIOS * len(sizes_px)
        )
        self.num_per_cell = len(self._shapes_wh)

    def __call__(self, map_hws: Sequence[tuple[int, int]], network_hw: tuple[int, int]) -> FloatArray:
        """All anchors [A, 4], ordered and shared as those of `AnchorGenerator`."""
        return _tile((self._shapes_wh,) * len(map_hws), tuple(map_hws), network_hw)


Shapes = tuple[tuple[float, float], ...]
"""Width and height of a map's anchors."""


def _shapes(scales: Sequence[float], ratios: Sequence[float]) -> Shapes:
    """One shape for each scale and ratio: its area is scale², its aspect ratio as given."""
    return tuple(
        (scale * math.sqrt(ratio), scale / math.sqrt(ratio)) for scale, ratio in zip(scales, ratios, strict=True)
    )


@lru_cache(maxsize=16)  # of a function: a cache in the generator could not be pickled, nor the detector with it
def _tile(
    shapes_wh: tuple[Shapes, ...], map_hws: tuple[tuple[int, int], ...], network_hw: tuple[int, int]
) -> FloatArray:
    """Anchors [A, 4] of every map; shapes are pixels."""
    anchors = []
    for (rows, columns), shapes in zip(map_hws, shapes_wh, strict=True):
        height, width = network_hw
        half_wh = np.array(shapes) / 2  # [S, 2]
        y, x = np.meshgrid(
            (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns, indexing="ij"
        )
        centres_xy = np.stack([x, y], axis=-1)[:, :, None]  # [rows, columns, 1, 2]
        boxes = np.concatenate([centres_xy - half_wh, centres_xy + half_wh], axis=-1)  # [rows, columns, S, 4]
        anchors.append(boxes.reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)
