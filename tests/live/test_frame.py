"""What cameras and files say of themselves is made fit for use."""

from __future__ import annotations

import numpy as np
import pytest

from mnet_det.errors import SourceError
from mnet_det.live.frame import sane_fps, to_rgb


@pytest.mark.parametrize(("said", "taken"), [(29.97, 29.97), (0.0, 30.0), (float("nan"), 30.0), (90000.0, 30.0)])
def test_absurd_frame_rates_are_replaced(said, taken):
    assert sane_fps(said) == taken


def test_pictures_of_another_form_are_refused():
    """A camera that was asked for grey or raw pictures was opened again and again, as if it were unplugged."""
    with pytest.raises(SourceError, match=r"got pictures of \[4, 4\], expected BGR"):
        to_rgb(np.zeros((4, 4), np.uint8))


def test_bgr_blue_is_rgb_blue_in_a_copy():
    bgr = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    rgb = to_rgb(bgr)
    np.testing.assert_array_equal(rgb, np.full((4, 4, 3), (0, 0, 255), np.uint8))
    assert not np.shares_memory(rgb, bgr)
