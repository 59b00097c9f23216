"""Anchors of SSD and of region proposals: how many, where, of what shape and in which order."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionsGenerator

from mnet_det.models.anchors import AnchorGenerator, RegionAnchors

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


def test_the_lowest_layer_can_have_six_anchors_too() -> None:
    generator = AnchorGenerator(reduce_boxes_in_lowest_layer=False)
    anchors = generator(MAPS_300, (300, 300))
    assert generator.num_per_cell == (6,) * 6
    # (19² + 10² + 5² + 3² + 2² + 1²) × 6 = 500 × 6
    assert anchors.shape == (3000, 4)
    # Scale 0.2 is 60; √2 = 1.4142, √3 = 1.7321; the last is √(0.2 × 0.35) × 300 = 79.3725.
    first = [(60, 60), (84.8528, 42.4264), (42.4264, 84.8528), (103.9230, 34.6410), (34.6410, 103.9230)]
    assert np.allclose(wh(anchors)[:6], [*first, (79.3725, 79.3725)], atol=1e-3)
    assert np.array_equal(anchors[19 * 19 * 6 :], AnchorGenerator()(MAPS_300, (300, 300))[1083:])  # the others stay


def test_region_anchors_by_hand() -> None:
    generator = RegionAnchors((32, 64))
    anchors = generator([(2, 3)], (32, 60))
    assert generator.num_per_cell == 6
    assert anchors.shape == (2 * 3 * 6, 4)
    assert anchors.dtype == np.float32
    # The first cell's middle is (10, 8). Areas 32² and 64²; high (1 : 2), square and wide (2 : 1).
    # 32 / √2 = 22.6274 by 45.2548; twice that for 64.
    low, high = 22.6274, 45.2548
    first = [(low, high), (32, 32), (high, low), (2 * low, 2 * high), (64, 64), (2 * high, 2 * low)]
    assert np.allclose(wh(anchors)[:6], first, atol=1e-3)
    assert np.allclose(centres(anchors)[:6], (10, 8), atol=1e-4)
    # Then the next column, 20 pixels on, and after the third the next row, 16 below.
    assert np.allclose(centres(anchors)[6:12], (30, 8), atol=1e-4)
    assert np.allclose(centres(anchors)[18:24], (10, 24), atol=1e-4)


def test_region_anchors_are_the_same_on_every_map_and_at_every_input_size() -> None:
    generator = RegionAnchors((32, 64, 128, 256))
    small, large = generator([(19, 19), (10, 10)], (300, 300)), generator([(38, 38)], (600, 600))
    assert len(small) == (19 * 19 + 10 * 10) * 12
    assert len(large) == 38 * 38 * 12
    for anchors in (small, large):
        shapes = wh(anchors).reshape(-1, 12, 2)
        assert np.allclose(shapes, shapes[0], atol=1e-3)
    assert np.allclose(wh(small)[:12], wh(large)[:12], atol=1e-3)


def test_region_anchors_have_torchvisions_shapes() -> None:
    """Torchvision takes height / width for the ratio, changes the size fastest, and rounds to half pixels."""
    theirs = TorchvisionsGenerator(((32, 64, 128),), ((2.0, 1.0, 0.5),)).cell_anchors[0].numpy()
    ours = wh(RegionAnchors((32, 64, 128))([(1, 1)], (16, 16))).reshape(3, 3, 2)
    assert np.abs(ours.swapaxes(0, 1).reshape(-1, 2) - wh(theirs)).max() <= 1


def test_region_anchors_can_be_pickled() -> None:
    generator = RegionAnchors((32, 64))
    same = pickle.loads(pickle.dumps(generator))
    assert np.array_equal(same([(4, 4)], (64, 64)), generator([(4, 4)], (64, 64)))
