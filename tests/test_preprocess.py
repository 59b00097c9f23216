"""Into network pixels: stretched and letterboxed sizes by hand, pixels where the boxes say they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnet_det.preprocess import PADDING_VALUE, Preprocessor, plan_resize, resize_pixels
from mnet_det.structures import Detections

SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@pytest.mark.parametrize(
    ("source_hw", "network_hw", "valid_hw"),
    [
        ((480, 640), (300, 300), (225, 300)),  # scale 300 / 640; 480 × 0.46875 = 225
        ((640, 480), (300, 300), (300, 225)),
        ((500, 500), (300, 300), (300, 300)),  # nothing to pad
        ((100, 100), (300, 600), (300, 300)),  # small ones grow: scale 3
        ((1, 1000), (300, 300), (1, 300)),  # 1 × 0.3 rounds to 0; one row is kept
        ((427, 640), (320, 320), (214, 320)),  # 427 × 0.5 = 213.5 rounds to even
    ],
    ids=["landscape", "portrait", "square", "enlarged", "sliver", "half"],
)
def test_letterbox_keeps_the_aspect(
    source_hw: tuple[int, int], network_hw: tuple[int, int], valid_hw: tuple[int, int]
) -> None:
    resize = plan_resize(source_hw, network_hw, "letterbox")
    assert (resize.source_hw, resize.valid_hw, resize.network_hw) == (source_hw, valid_hw, network_hw)


def test_stretch_fills_the_network() -> None:
    assert plan_resize((480, 640), (300, 320), "stretch").valid_hw == (300, 320)


@given(source_hw=SIZES, network_hw=SIZES)
def test_letterbox_fits_and_touches_a_side(source_hw: tuple[int, int], network_hw: tuple[int, int]) -> None:
    valid_h, valid_w = plan_resize(source_hw, network_hw, "letterbox").valid_hw
    assert 1 <= valid_h <= network_hw[0]
    assert 1 <= valid_w <= network_hw[1]
    assert valid_h == network_hw[0] or valid_w == network_hw[1]


def test_the_network_gets_channels_first_red_first() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[...] = (200, 100, 50)
    pixels, _ = Preprocessor((32, 48), mode="stretch")(image)
    assert pixels.shape == (3, 32, 48)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert [np.unique(channel).tolist() for channel in pixels] == [[200], [100], [50]]


def test_padding_is_grey_and_lies_below_and_right() -> None:
    wide, _ = Preprocessor((32, 32), mode="letterbox")(np.full((10, 20, 3), 255, np.uint8))
    assert (wide[:, :16] == 255).all()  # 10 × 32 / 20 = 16 rows of image
    assert (wide[:, 16:] == PADDING_VALUE).all()
    tall, _ = Preprocessor((32, 32), mode="letterbox")(np.full((20, 10, 3), 255, np.uint8))
    assert (tall[:, :, :16] == 255).all()
    assert (tall[:, :, 16:] == PADDING_VALUE).all()


def test_pixels_land_where_apply_sends_their_box() -> None:
    """A white block with even edges, halved: every edge falls between two pixels, so no value is mixed."""
    image = np.zeros((80, 120, 3), np.uint8)
    image[20:60, 40:100] = 255
    resize = plan_resize((80, 120), (60, 60), "letterbox")
    assert resize.valid_hw == (40, 60)
    left, top, right, bottom = resize.apply(np.array([[40, 20, 100, 60]], np.float32))[0].astype(int)
    expected = np.full((60, 60, 3), PADDING_VALUE, np.uint8)
    expected[:40] = 0
    expected[top:bottom, left:right] = 255
    np.testing.assert_array_equal(resize_pixels(image, resize), expected)


def test_an_image_of_the_network_s_size_passes_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    before = image.copy()
    pixels, resize = Preprocessor((32, 48), mode="stretch")(image)
    np.testing.assert_array_equal(pixels, image.transpose(2, 0, 1))
    assert resize.scale_xyxy.tolist() == [1, 1, 1, 1]
    pixels[:] = 0
    np.testing.assert_array_equal(image, before)


@given(source_hw=SIZES, network_hw=st.tuples(st.integers(32, 1333), st.integers(32, 1333)))
def test_a_letterboxed_whole_image_box_comes_back_whole(
    source_hw: tuple[int, int], network_hw: tuple[int, int]
) -> None:
    resize = plan_resize(source_hw, network_hw, "letterbox")
    whole = np.array([[0, 0, source_hw[1], source_hw[0]]], np.float32)
    there = Detections(resize.apply(whole), np.ones(1, np.float32), np.zeros(1, np.int64))
    np.testing.assert_allclose(resize.undo(there).boxes_xyxy, whole, rtol=1e-5)
