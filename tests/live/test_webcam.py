"""The page people copy: importable, honest about a missing display, right about colours."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "demo" / "webcam.py"


@pytest.fixture
def webcam() -> ModuleType:
    spec = importlib.util.spec_from_file_location("webcam", PAGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_display_it_points_to_the_demo(webcam, monkeypatch):
    monkeypatch.setattr(webcam, "why_no_window", lambda: "there is no display")
    with pytest.raises(SystemExit, match=r"there is no display; .*mnet-det demo --screen browser"):
        webcam.main("m.onnx")


@pytest.mark.parametrize(
    ("keys", "visible", "pictures"),
    [([], [], 4), ([ord("q")], [], 2), ([27], [], 2), ([], [0.0], 2)],
    ids=["end", "q", "Escape", "closed"],
)
def test_it_detects_and_shows_until_the_end_or_a_wish(
    webcam, monkeypatch, make_clip, make_predictor, keys, visible, pictures
):
    seen, shown = [], []
    predictor = make_predictor()

    def detect(image):
        seen.append(image)
        return predictor.timed(image)[0]

    detect.class_names = predictor.class_names
    monkeypatch.setattr(webcam, "why_no_window", lambda: None)
    monkeypatch.setattr(webcam, "load_predictor", lambda model, *, score: detect)
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture))
    # The viewer acts after the second picture, if at all.
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "waitKey", lambda delay: keys.pop(0) if keys and len(shown) == 2 else -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *args: visible[0] if visible and len(shown) == 2 else 1.0)
    webcam.main("m.onnx", str(make_clip(4)))
    assert len(seen) == len(shown) == pictures
    # Frame i is RGB (10 i, 0, 200): the network sees that, the window gets BGR.
    np.testing.assert_allclose(seen[1].mean((0, 1)), (10, 0, 200), atol=6)
    np.testing.assert_allclose(shown[1][40:, 40:].mean((0, 1)), (200, 0, 10), atol=6)
