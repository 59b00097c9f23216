"""SSD's anchors: how many, where, of what shape and in which order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from mnet_det.models.anchors import AnchorGenerator

MAPS_300 = [(side, side) for side in (19, 10, 5, 3, 2, 1)]


def wh(anchors: np.ndarray) -> np.ndarray:
    return anchors[:, 2:] - anchors[:, :2]


def centres(anchors: np.ndarray) -> np.ndarray:
    return (anchors[:, 2:] + anchors[:, :2]) / 2


def test_300_pixels_have_1917_anchors() -> None:
    anchors = AnchorGenerator()(MAPS_300, (300, 300))
    # 19² × 3 + (10² + 5² + 3² + 2² + 1²) × 6 = 1083 + 139 × 6 = 1917
    assert anchors.shape == (1917, 4)
    assert anchors.dtype == np.float32


def test_first_cells_anchors_by_hand() -> None:
    anchors = AnchorGenerator()(MAPS_300, (300, 300))[:3]
    middle = 300 / 19 / 2  # 7.895
    # A square of 0.1 × 300 = 30; 0.2 × 300 = 60 times √2 = 84.853 by 60 / √2 = 42.426, wide, then high.
    expected = [
        [middle - 15, middle - 15, middle + 15, middle + 15],
        [middle - 42.4264, middle - 21.2132, middle + 42.4264, middle + 21.2132],
        [middle - 21.2132, middle - 42.4264, middle + 21.2132, middle + 42.4264],
    ]
    assert np.allclose(anchors, expected, atol=1e-3)


def test_last_maps_anchors_by_hand() -> None:
    anchors = AnchorGenerator()(MAPS_300, (300, 300))[-6:]
    assert np.allclose(centres(anchors), 150)
    # Scale 0.95 is 285; √2 = 1.4142, √3 = 1.7321; the last is √(0.95 × 1) × 300 = 292.4038.
    expected_wh = [
        (285, 285),
        (403.0509, 201.5254),
        (201.5254, 403.0509),
        (493.6345, 164.5448),
        (164.5448, 493.6345),
        (292.4038, 292.4038),
    ]
    assert np.allclose(wh(anchors), expected_wh, atol=1e-3)


def test_scales_rise_evenly_from_map_to_map() -> None:
    anchors = AnchorGenerator()(MAPS_300, (300, 300))
    starts = 1083 + 6 * np.cumsum([0, 100, 25, 9, 4])  # the first anchor of each map after the first is its square
    assert wh(anchors[starts])[:, 0] / 300 == pytest.approx([0.35, 0.5, 0.65, 0.8, 0.95], abs=1e-6)


def test_aspect_ratio_is_width_over_height() -> None:
    sizes = wh(AnchorGenerator()(MAPS_300, (300, 300)))[1083:1089]
    assert sizes[:, 0] / sizes[:, 1] == pytest.approx([1, 2, 1 / 2, 3, 1 / 3, 1], rel=1e-5)


def test_order_is_row_major_with_the_anchor_fastest() -> None:
    generator = AnchorGenerator(num_maps=2)
    first = AnchorGenerator(num_maps=2)([(2, 3), (1, 1)], (200, 300))[: 2 * 3 * generator.num_per_cell[0]]
    cells = centres(first).reshape(2, 3, 3, 2)  # [row, column, anchor, xy]
    for row in range(2):
        for column in range(3):
            assert np.allclose(cells[row, column], [50 + 100 * column, 50 + 100 * row], atol=1e-4)


def test_scales_are_parts_of_the_shorter_side() -> None:
    anchors = AnchorGenerator()([(10, 20), (5, 10), (3, 5), (2, 3), (1, 2), (1, 1)], (160, 320))
    assert wh(anchors)[0].tolist() == pytest.approx([16, 16])  # 0.1 × 160


@pytest.mark.parametrize("input_hw", [(96, 96), (320, 320), (192, 288)], ids=str)
def test_cells_share_any_input_evenly(input_hw: tuple[int, int]) -> None:
    height, width = input_hw
    map_hws = [(-(-height // stride), -(-width // stride)) for stride in (16, 32, 64, 128, 256, 512)]
    generator = AnchorGenerator()
    anchors = generator(map_hws, input_hw)
    assert len(anchors) == sum(h * w * n for (h, w), n in zip(map_hws, generator.num_per_cell, strict=True))
    (rows, columns), per_cell = map_hws[0], generator.num_per_cell[0]
    first = centres(anchors[: rows * columns * per_cell])
    assert np.allclose(first.mean(axis=0), [width / 2, height / 2], rtol=1e-5)
    assert first[-1].tolist() == pytest.approx([width - width / columns / 2, height - height / rows / 2])


def test_maps_of_another_number_than_announced_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        AnchorGenerator(num_maps=6)([(2, 2)], (64, 64))


def test_generator_can_be_pickled() -> None:
    """A cache held by the instance could not be pickled, so no detector could go to a spawned process."""
    generator = AnchorGenerator(scales=(0.1, 0.9))
    same = pickle.loads(pickle.dumps(generator))
    assert np.array_equal(same(MAPS_300, (300, 300)), generator(MAPS_300, (300, 300)))
