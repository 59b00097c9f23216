"""The panel is readable, stays in its corner and leaves the frame alone."""

from __future__ import annotations

import numpy as np
import pytest

from mnet_det.live.overlay import Readings, draw_overlay, panel_lines
from mnet_det.structures import Detections


def test_lines_say_speed_model_and_score():
    readings = Readings(fps=24.04, end_to_end_ms=41.26, network_ms=9.96, dropped=3)
    assert panel_lines("ssd   alpha 0.5", readings, score=0.55) == [
        "24.0 fps   latency 41.3 ms   network 10.0 ms",
        "dropped 3   score 0.55",
        "ssd   alpha 0.5",
    ]


def test_numbers_that_are_not_known_yet_are_dashes():
    lines = panel_lines("ssd", Readings(fps=None, end_to_end_ms=None, network_ms=None, dropped=0), score=0.5)
    assert lines[0] == "- fps   latency - ms   network - ms"


@pytest.mark.parametrize("hw", [(96, 128), (120, 160), (360, 640), (1080, 1920), (640, 360)])
def test_panel_fits_and_leaves_the_rest_and_the_frame_alone(hw):
    frame = np.full((*hw, 3), 120, np.uint8)
    drawn = draw_overlay(frame, Detections.empty(), (), ["24.0 fps   latency 41.3 ms   network 10.0 ms"] * 3)
    assert (frame == 120).all()
    changed = np.argwhere((drawn != 120).any(-1))
    assert changed.min() == 0  # top left
    bottom, right = changed.max(0)
    assert bottom < hw[0] / 2
    assert (drawn[: bottom + 1, right - 1] == 40).all()  # 120 // 3: no letter reaches the panel's right edge
    assert drawn.max() > 150  # letters
