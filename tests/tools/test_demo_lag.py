"""The tool that measures lag: stamps survive, and a network slower than the camera keeps no queue."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from mnet_det.live.screen import NoScreen
from mnet_det.runtime import load_predictor
from tools.demo_lag import StampedCamera, main, run, stamp_of, stamped


@pytest.mark.parametrize("now_s", [0.0, 1.000001, 123456.789012])
def test_stamps_are_read_back_to_the_microsecond(now_s):
    picture = np.full((480, 640, 3), 90, np.uint8)
    assert stamp_of(stamped(picture, now_s)) == pytest.approx(now_s, abs=2e-6)
    assert (picture == 90).all()


def test_camera_keeps_its_times_whoever_reads():
    camera = StampedCamera(fps=50, width=400, height=64)
    stamps = []
    for late_s in (0.0, 0.0, 0.045, 0.0):
        time.sleep(late_s)  # in the third turn at least two of 20 ms go by
        camera.grab()
        stamps.append(stamp_of(camera.retrieve()[1]))
    steps = np.diff(stamps) / 0.02
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)  # each at its place of the 20 ms grid
    assert steps.min() > 0.9  # none twice
    assert steps[1] > 1.9


def test_picture_is_one_inference_and_one_frame_old_and_no_older_at_the_end(toy_model: Path):
    """Generous, for a busy machine: a queue would add 80 ms with each picture, 0.8 s at the end."""
    predictor = load_predictor(toy_model, runtime="openvino", threads=1)
    seen, inference_ms = run(predictor, NoScreen(), seconds=1, fps=60, network_ms=100)
    assert len(seen.lags_ms) == 10
    assert inference_ms >= 100
    assert min(seen.lags_ms) >= 100
    assert np.median(seen.lags_ms[-5:]) < 300


def test_a_mistake_is_one_line(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"error: .*gone\.onnx: no such model file"):
        main([str(tmp_path / "gone.onnx")])
