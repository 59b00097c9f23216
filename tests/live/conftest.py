"""What the live tests share: a model that needs no network, clips, a clock that only moves when told."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from mnet_det.live.controls import Command
from mnet_det.live.screen import Status
from mnet_det.structures import Detections, Image


class FakePredictor:
    """Finds one object of class "b" with score 0.7 in every picture; `act` may sleep or raise on a call's number."""

    class_names = ("a", "b")
    runtime = "fake"
    threads = 2
    thresholds = SimpleNamespace(nms=0.6)

    def __init__(
        self,
        act: Callable[[int], None] = lambda call: None,
        *,
        name: str = "ssd",
        alpha: float = 0.5,
        side: int = 300,
        class_scores: tuple[float, ...] | None = None,
    ) -> None:
        self.metadata = SimpleNamespace(
            name=name, alpha=alpha, input_hw=(side, side), precision="float32", class_scores=class_scores
        )
        self.viewing_score = class_scores or 0.5
        self.calls = 0
        self.images: list[Image] = []
        self.scores: list[float | tuple[float, ...] | None] = []
        self.nms: list[float | None] = []
        self._act = act

    def timed(
        self, image: Image, *, score: float | tuple[float, ...] | None = None, nms: float | None = None
    ) -> tuple[Detections, SimpleNamespace]:
        assert image.dtype == np.uint8
        self.calls += 1
        self.images.append(image)
        self.scores.append(score)
        self.nms.append(nms)
        self._act(self.calls)
        found = Detections(np.array([[4, 4, 20, 20]], np.float32), np.array([0.7], np.float32), np.array([1], np.int64))
        times = SimpleNamespace(preprocess_ms=1.0, network_ms=5.0, postprocess_ms=1.0, total_ms=7.0)
        least = score[1] if isinstance(score, tuple) else score
        return found[found.scores >= (least or 0.0)], times


class FakeScreen:
    """A viewer with the given wishes, one after each picture or turn of a pause, who closes it after `pictures`."""

    watched = True
    panel = True
    wants_pictures = True

    def __init__(self, *wishes: str | Command | None, pictures: int | None = None) -> None:
        self.wishes = list(wishes)
        self.shown: list[Image] = []
        self.statuses: list[Status] = []
        self.closes = 0
        self._seen = 0
        self._pictures = pictures

    @property
    def closed(self) -> bool:
        return len(self.shown) == self._pictures

    def show(self, picture: Image, status: Status) -> None:
        self.shown.append(picture)
        self.statuses.append(status)

    def poll(self, status: Status) -> list[Command]:
        self.last = status
        if not self.wishes or (self._seen == len(self.shown) and not status.paused):
            return []
        self._seen = len(self.shown)
        wish = self.wishes.pop(0)
        return [wish if isinstance(wish, Command) else Command(wish)] if wish else []

    def close(self) -> None:
        self.closes += 1


class FakeClock:
    """Stands still, but for `sleep`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def make_predictor() -> type[FakePredictor]:
    return FakePredictor


@pytest.fixture
def make_screen() -> type[FakeScreen]:
    return FakeScreen


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def slow() -> Callable[[float], Callable[[int], None]]:
    """Makes an `act` that takes so many seconds."""
    return lambda seconds: lambda call: time.sleep(seconds)


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes a clip of 96×64 whose frame i is RGB (10 i, 0, 200)."""

    def make(frames: int, *, fps: float = 20.0) -> Path:
        path = tmp_path / f"clip{frames}.avi"
        video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (96, 64))
        assert video.isOpened()
        for index in range(frames):
            video.write(np.full((64, 96, 3), (200, 0, 10 * index), np.uint8))  # BGR
        video.release()
        return path

    return make


@pytest.fixture
def read_clip() -> Callable[[Path], tuple[float, list[Image]]]:
    """Reads a clip back with OpenCV: frames per second, RGB frames."""

    def read(path: Path) -> tuple[float, list[Image]]:
        video = cv2.VideoCapture(str(path))
        frames = []
        while (answer := video.read())[0]:
            frames.append(np.ascontiguousarray(answer[1][..., ::-1]))
        return video.get(cv2.CAP_PROP_FPS), frames

    return read
