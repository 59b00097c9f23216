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


def test_camera_keeps_its_rate_whoever_reads():
    camera = StampedCamera(fps=50, width=400, height=64)
    stamps = []
    for _ in range(4):
        camera.grab()
        stamps.append(stamp_of(camera.retrieve()[1]))
        time.sleep(0.045)  # two of 20 ms go by
    assert np.diff(stamps).min() >= 0.04


def test_picture_is_one_inference_and_one_frame_old_and_no_older_at_the_end(toy_model: Path):
    """Generous, for a busy machine: a queue would add 80 ms with each picture, 0.8 s at the end."""
    predictor = load_predictor(toy_model, runtime="openvino", threads=1)
    seen = run(predictor, NoScreen(), seconds=1, fps=60, network_ms=100)
    assert len(seen.lags_ms) == 10
    assert min(seen.lags_ms) >= 100
    assert np.median(seen.lags_ms[-5:]) < 300


def test_a_mistake_is_one_line(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"error: .*gone\.onnx: no such model file"):
        main([str(tmp_path / "gone.onnx")])
