"""A camera is opened with its settings, again after it was away, and names the others when it cannot be."""

from __future__ import annotations

import os
import threading
import time

import cv2
import numpy as np
import pytest

from mnet_det.errors import SourceError
from mnet_det.live import camera, device
from mnet_det.live.camera import camera_index, open_camera

WAIT_S = 5.0


class FakeCameras:
    """A machine with cameras 2 and 5, whose pictures can be cut off; stands in for `cv2.VideoCapture`."""

    def __init__(self) -> None:
        self.opened: list[FakeCamera] = []
        self.plugged = threading.Event()
        self.plugged.set()

    def __call__(self, index: int, backend: int) -> FakeCamera:
        self.opened.append(FakeCamera(index, self.plugged))
        return self.opened[-1]


class FakeCamera:
    def __init__(self, index: int, plugged: threading.Event) -> None:
        self.set_calls: list[tuple[int, float]] = []
        self.released = False
        self._index = index
        self._plugged = plugged

    def isOpened(self):  # noqa: N802 (OpenCV's name)
        return self._index in (2, 5) and self._plugged.is_set()

    def get(self, key):
        return {
            cv2.CAP_PROP_FPS: 30.0,
            cv2.CAP_PROP_FRAME_WIDTH: 640.0,
            cv2.CAP_PROP_FRAME_HEIGHT: 480.0,
            cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"YUYV")),
        }.get(key, 0.0)

    def set(self, key, value):
        self.set_calls.append((key, value))
        return True

    def grab(self):
        time.sleep(0.001)
        return self._plugged.is_set()

    def retrieve(self):
        return True, np.zeros((4, 4, 3), np.uint8)

    def release(self):
        self.released = True


@pytest.fixture
def cameras(monkeypatch) -> FakeCameras:
    cameras = FakeCameras()
    monkeypatch.setattr(cv2, "VideoCapture", cameras)
    return cameras


def test_missing_camera_names_those_that_answer(cameras):
    said: list[str] = []
    with pytest.raises(SourceError, match="camera 0: cannot be opened, those that can: 2, 5; is it plugged in"):
        open_camera("0", say=said.append)
    assert said == ["opening camera 0"]
    assert all(camera.released for camera in cameras.opened)


def test_machine_without_cameras_says_so(cameras):
    cameras.plugged.clear()
    with pytest.raises(SourceError, match="camera 2: cannot be opened, nor can any other from 0 to 9"):
        open_camera("2", say=lambda line: None)


def test_settings_are_made_format_first_and_refusals_told(cameras):
    said: list[str] = []
    source = open_camera("2", width=640, height=720, fourcc="MJPG", say=said.append)
    source.close()
    keys = [key for key, _ in cameras.opened[0].set_calls]
    assert keys == [
        cv2.CAP_PROP_FOURCC,
        cv2.CAP_PROP_FRAME_WIDTH,
        cv2.CAP_PROP_FRAME_HEIGHT,
        cv2.CAP_PROP_BUFFERSIZE,
    ]
    assert said == [
        "opening camera 2",
        "camera 2: asked for fourcc MJPG, got YUYV",
        "camera 2: asked for height 720, got 480",
    ]
    assert cameras.opened[0].released


def test_unplugged_camera_comes_back_with_its_settings(cameras, monkeypatch):
    monkeypatch.setattr(camera, "SILENCE_S", 0.05)
    monkeypatch.setattr(device, "BACK_OFF_S", 0.01)
    said: list[str] = []
    source = open_camera("2", height=720, say=said.append)
    assert source.read(timeout_s=WAIT_S) is not None
    cameras.plugged.clear()
    while len(cameras.opened) < 3:  # tried in vain
        source.read(timeout_s=0.01)
        assert source.waiting is None  # not yet worth a line to the viewer
    cameras.plugged.set()
    assert source.read(timeout_s=WAIT_S) is not None
    source.close()
    assert said == ["opening camera 2", "camera 2: asked for height 720, got 480"]
    assert cameras.opened[-1].set_calls == cameras.opened[0].set_calls
    assert all(camera.released for camera in cameras.opened)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"api": "x11"}, "api: got 'x11', this OpenCV knows "), ({"fourcc": "MJPEG"}, "fourcc: got 'MJPEG'")],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(SourceError, match=message):
        open_camera("0", **settings)


@pytest.mark.parametrize(
    ("word", "index"),
    [
        ("0", 0),
        ("12", 12),
        ("/dev/video3", 3),
        ("video3", None),
        ("clip.mp4", None),
        ("-1", None),
        ("\u0663", None),
        ("99999", None),
    ],
)
def test_words_for_cameras(word, index):
    assert camera_index(word) == index


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such links")
def test_link_to_a_camera_is_followed(tmp_path):
    link = tmp_path / "usb-Maker_Camera-index0"
    link.symlink_to("/dev/video7")
    assert camera_index(str(link)) == 7
    link.unlink()
    assert camera_index(str(link)) is None
