"""Cameras, video files and folders give RGB frames with the right numbers, times and drops."""

from __future__ import annotations

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from mnet_det.errors import SourceError
from mnet_det.images import write_image
from mnet_det.live import source
from mnet_det.live.source import Camera, ImageFolder, Paced, Recorded, VideoFile, open_source

WAIT_S = 5.0


class FlipBook(Recorded):
    """Frames at 10 a second; the picture of frame i is filled with i."""

    def __init__(self, frames: int) -> None:
        super().__init__(fps=10.0)
        self.frames = frames

    def next_s(self):
        return self._index / 10 if self._index < self.frames else None

    def _take(self):
        return np.full((2, 2, 3), self._index, np.uint8)

    def close(self):
        pass


class FakeDevice:
    """A `cv2.VideoCapture` that gives a picture for each `release_frame`, blue in BGR, and tells when it starves."""

    def __init__(self, index: int = 0, backend: int = 0) -> None:
        self.index = index
        self.set_calls: list[tuple[int, float]] = []
        self.released = False
        self._frames = threading.Semaphore(0)
        self._starving = threading.Event()

    def isOpened(self):  # noqa: N802 (OpenCV's name)
        return self.index in (2, 5)

    def get(self, key):
        return {cv2.CAP_PROP_FPS: 30.0, cv2.CAP_PROP_FRAME_WIDTH: 640.0, cv2.CAP_PROP_FRAME_HEIGHT: 480.0}.get(key, 0)

    def set(self, key, value):
        self.set_calls.append((key, value))
        return True

    def grab(self):
        if self._frames.acquire(blocking=False):
            return True
        self._starving.set()
        return self._frames.acquire(timeout=0.01)

    def retrieve(self):
        return True, np.full((4, 4, 3), (255, 0, 0), np.uint8)

    def release(self):
        self.released = True

    def give(self, frames: int) -> None:
        """Hand out frames and wait until the camera's thread has taken all of them."""
        self._frames.release(frames)
        self._starving.clear()
        assert self._starving.wait(WAIT_S)


def read_all(frames_of) -> list:
    frames = []
    while not frames_of.ended:
        frame = frames_of.read(timeout_s=0.0)
        if frame is not None:
            frames.append(frame)
    return frames


def test_video_gives_every_frame_as_rgb_with_its_time(make_clip):
    clip = VideoFile(make_clip(6, fps=20.0))
    frames = read_all(clip)
    assert clip.fps == 20.0
    assert [frame.index for frame in frames] == list(range(6))
    np.testing.assert_allclose([frame.time_s for frame in frames], [0, 0.05, 0.10, 0.15, 0.20, 0.25], atol=1e-6)
    assert all(frame.due_s == frame.read_s for frame in frames)
    # The clip's frame 5 is RGB (50, 0, 200); JPEG is off by a few.
    np.testing.assert_allclose(frames[5].image.mean((0, 1)), (50, 0, 200), atol=6)
    assert clip.dropped == 0


def test_skipped_video_frames_are_counted_but_not_given(make_clip):
    clip = VideoFile(make_clip(5))
    clip.skip()
    clip.skip()
    frame = clip.read()
    assert frame.index == 2
    np.testing.assert_allclose(frame.image.mean((0, 1)), (20, 0, 200), atol=6)


def test_folder_gives_its_pictures_by_name(tmp_path):
    for name, value in (("b.png", 2), ("a.png", 1)):
        write_image(tmp_path / name, np.full((8, 8, 3), value, np.uint8))
    folder = open_source(str(tmp_path))
    assert isinstance(folder, ImageFolder)
    assert [(int(frame.image[0, 0, 0]), frame.index, frame.time_s) for frame in read_all(folder)] == [
        (1, 0, 0.0),
        (2, 1, 1.0),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.mp4", None, "no such file; expected a camera's number"),
        ("empty.mp4", b"", "not a video"),
        ("noise.mp4", b"hello " * 100, "not a video"),
        ("notes.txt", b"hello " * 100, "not a video"),  # FFmpeg would film it
        ("photo.jpg", b"any", "a picture, not a video"),
    ],
)
def test_what_is_no_video_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_video_without_frames_is_refused(make_clip):
    with pytest.raises(SourceError, match=r"clip0\.avi: "):
        open_source(str(make_clip(0)))


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(SourceError, match="no image in it"):
        open_source(str(tmp_path))


def test_paced_file_gives_each_frame_at_its_turn(clock):
    paced = Paced(FlipBook(3), clock=clock, sleep=clock.sleep)
    given = []
    while not paced.ended:
        frame = paced.read(timeout_s=0.02)
        if frame is not None:
            given.append((frame.index, round(clock.now_s, 6), round(frame.due_s, 6)))
    assert given == [(0, 100.0, 100.0), (1, 100.1, 100.1), (2, 100.2, 100.2)]
    assert clock.now_s == pytest.approx(100.3)  # the last picture stays for its interval too
    assert paced.dropped == 0


def test_paced_file_never_waits_longer_than_asked(clock):
    paced = Paced(FlipBook(2), clock=clock, sleep=clock.sleep)
    assert paced.read(timeout_s=0.02) is not None
    assert paced.read(timeout_s=0.02) is None
    assert clock.now_s == pytest.approx(100.02)


def test_paced_file_drops_the_frames_whose_turn_is_over(clock):
    paced = Paced(FlipBook(10), clock=clock, sleep=clock.sleep)
    paced.read(timeout_s=0.0)
    clock.now_s = 100.35  # frames 1 and 2 were to be seen until 100.2 and 100.3; frame 3 is on until 100.4
    frame = paced.read(timeout_s=0.0)
    assert (frame.index, frame.due_s, paced.dropped) == (3, pytest.approx(100.3), 2)


def test_frames_dropped_at_the_end_are_counted(clock):
    paced = Paced(FlipBook(10), clock=clock, sleep=clock.sleep)
    paced.read(timeout_s=0.0)
    clock.now_s = 200.0
    assert paced.read(timeout_s=0.0) is None
    assert paced.ended
    assert paced.dropped == 9


def test_pause_moves_the_schedule_of_a_paced_file(clock):
    paced = Paced(FlipBook(3), clock=clock, sleep=clock.sleep)
    paced.read(timeout_s=0.0)
    clock.now_s += 60.0
    paced.leave_out(60.0)
    frame = paced.read(timeout_s=0.2)
    assert (frame.index, paced.dropped) == (1, 0)
    assert clock.now_s == pytest.approx(160.1)


def test_camera_gives_the_newest_frame_and_counts_the_others_as_dropped():
    device = FakeDevice()
    camera = Camera(device, name="camera 0")
    device.give(5)
    frame = camera.read(timeout_s=WAIT_S)
    assert (frame.index, camera.dropped) == (4, 4)
    np.testing.assert_array_equal(frame.image[0, 0], (0, 0, 255))  # BGR blue is RGB blue
    assert camera.read(timeout_s=0.0) is None  # no frame twice
    device.give(1)
    assert camera.read(timeout_s=WAIT_S).index == 5
    camera.close()
    assert device.released


def test_camera_frames_are_due_when_captured_and_timed_without_pauses(clock):
    device = FakeDevice()
    camera = Camera(device, name="camera 0", clock=clock)
    device.give(1)
    clock.now_s = 107.0  # handled late
    first = camera.read(timeout_s=WAIT_S)
    assert (first.due_s, first.time_s) == (100.0, 0.0)
    camera.leave_out(4.0)
    device.give(1)
    second = camera.read(timeout_s=WAIT_S)
    assert (second.due_s, second.time_s) == (107.0, 3.0)  # 107 - 100, less the pause of 4
    camera.close()


def test_silent_camera_is_an_error(clock):
    camera = Camera(FakeDevice(), name="camera 3", clock=clock)
    assert camera.read(timeout_s=0.0) is None
    clock.now_s += source.SILENCE_S + 1
    with pytest.raises(SourceError, match="camera 3: no picture for 10 s"):
        camera.read(timeout_s=0.0)
    camera.close()


def test_missing_camera_names_those_that_answer(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeDevice)
    with pytest.raises(SourceError, match="camera 0: cannot be opened, those that can: 2, 5; is it plugged in"):
        open_source("0")


def test_camera_settings_are_made_format_first_and_refusals_told(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", FakeDevice)
    said: list[str] = []
    camera = open_source("2", width=640, height=720, fourcc="MJPG", say=said.append)
    camera.close()
    keys = [key for key, _ in camera._device.set_calls]
    assert keys == [
        cv2.CAP_PROP_FOURCC,
        cv2.CAP_PROP_FRAME_WIDTH,
        cv2.CAP_PROP_FRAME_HEIGHT,
        cv2.CAP_PROP_BUFFERSIZE,
    ]
    assert "camera 2: asked for height 720, got 480" in said


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"api": "x11"}, "api: got 'x11', this OpenCV knows "), ({"fourcc": "MJPEG"}, "fourcc: got 'MJPEG'")],
)
def test_impossible_camera_settings_are_refused(settings, message):
    with pytest.raises(SourceError, match=message):
        open_source("0", **settings)


@pytest.mark.parametrize(
    ("word", "index"), [("0", 0), ("12", 12), ("/dev/video3", 3), ("video3", None), ("clip.mp4", None), ("-1", None)]
)
def test_words_for_cameras(word, index):
    assert source._camera_index(word) == index


@pytest.mark.parametrize(("said", "taken"), [(29.97, 29.97), (0.0, 30.0), (float("nan"), 30.0), (90000.0, 30.0)])
def test_absurd_frame_rates_are_replaced(said, taken):
    assert source._sane_fps(said) == taken


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "fps", "shape"),
    [("bottle-detection.mp4", 29.833, (360, 640, 3)), ("one-by-one-person-detection.mp4", 10.0, (432, 768, 3))],
)
def test_real_clips_keep_their_speed(shared: Path, name, fps, shape):
    clip = VideoFile(shared / "video" / name)
    frames = [clip.read() for _ in range(10)]
    clip.close()
    assert clip.fps == pytest.approx(fps, abs=1e-3)
    assert frames[0].image.shape == shape
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(10) / clip.fps, atol=1e-3)
