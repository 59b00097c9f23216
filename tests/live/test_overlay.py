"""The panel is readable, stays in its corner and leaves the rest alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mnet_det.live.controls import Settings
from mnet_det.live.lineup import ModelCard
from mnet_det.live.overlay import draw_panel, panel_lines
from mnet_det.live.screen import Status
from mnet_det.live.stats import Readings

CARD = ModelCard("ssd", 0.5, (224, 300), "float32", "openvino", 2, nms=0.6, class_names=("cat",))
READINGS = Readings(fps=24.04, latency_ms=41.26, network_ms=9.96, dropped=3, frames=70)
STATUS = Status("camera 0", [CARD], 0, Settings(score=0.55), READINGS)


def test_lines_say_speed_settings_and_model():
    assert panel_lines(STATUS) == [
        "24.0 fps   latency 41.3 ms   network 10.0 ms",
        "dropped 3   score 0.55   nms 0.60",
        "ssd   alpha 0.5   300x224   openvino, 2 threads",
    ]


def test_lines_say_which_of_several_models_and_the_viewer_s_own_nms():
    int8 = replace(CARD, precision="int8", threads=1)
    lines = panel_lines(replace(STATUS, models=[CARD, int8], model=1, settings=Settings(nms=0.4)))
    assert lines[1:] == [
        "dropped 3   score 0.50   nms 0.40   model 2 of 2",
        "ssd   alpha 0.5   300x224   int8   openvino, 1 thread",
    ]


@pytest.mark.parametrize(
    ("score", "class_scores", "text"),
    [(None, (0.3,), "best F1"), (None, None, "0.50"), (0.2, (0.3,), "0.20"), (0.2, None, "0.20")],
)
def test_line_says_whose_score_it_is(score, class_scores, text):
    card = replace(CARD, class_scores=class_scores)
    lines = panel_lines(replace(STATUS, models=[card], settings=Settings(score=score)))
    assert lines[1] == f"dropped 3   score {text}   nms 0.60"


def test_numbers_that_are_not_known_yet_are_dashes():
    lines = panel_lines(replace(STATUS, readings=Readings(None, None, None, 0, 0)))
    assert lines[0] == "- fps   latency - ms   network - ms"


def test_second_column_begins_at_one_place():
    picture = np.full((200, 300, 3), 120, np.uint8)
    draw_panel(picture, ["q Esc\tlll", "h\tlll"])
    letters = [np.argwhere((rows > 150).any((0, 2)))[:, 0] for rows in np.split(picture[:40], 2)]
    # Where the widest gap ends.
    starts = [places[1:][np.argmax(np.diff(places))] for places in letters]
    assert starts[0] == starts[1]


@pytest.mark.parametrize("bottom", [False, True])
@pytest.mark.parametrize("hw", [(96, 128), (120, 160), (360, 640), (1080, 1920), (640, 360)])
def test_panel_fits_into_its_corner(hw, bottom):
    picture = np.full((*hw, 3), 120, np.uint8)
    draw_panel(picture, ["24.0 fps   latency 41.3 ms   network 10.0 ms"] * 3, bottom=bottom)
    if bottom:
        picture = picture[::-1]
    changed = np.argwhere((picture != 120).any(-1))
    assert changed.min() == 0  # left, and at the edge
    lowest, right = changed.max(0)
    assert lowest < hw[0] / 2
    assert (picture[: lowest + 1, right - 1] == 40).all()  # 120 // 3: no letter reaches the panel's right edge
    assert picture.max() > 150  # letters
