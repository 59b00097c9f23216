"""A device's frames are stamped when captured, and a silent device is opened again, ever less often."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest

from mnet_det.live.capture import Timeline
from mnet_det.live.device import RETRY_S, Device


class FakeCapture:
    """A `cv2.VideoCapture` that follows a script, a letter a grab, on a clock that a grab moves by 10 ms.

    p: a picture, blue in BGR. d: damaged, grabbed but not to be retrieved. -: no grab. !: OpenCV raises. Then pictures.
    """

    def __init__(self, script: str, clock) -> None:
        self.released = False
        self.retrieved = 0
        self._script = list(script)
        self._now = ""
        self._clock = clock

    def get(self, key):
        return 25.0 if key == cv2.CAP_PROP_FPS else 0.0

    def grab(self):
        assert not self.released
        self._clock.sleep(0.01)
        self._now = self._script.pop(0) if self._script else "p"
        if self._now == "!":
            raise cv2.error("the cable is out")
        return self._now in "pd"

    def retrieve(self):
        self.retrieved += 1
        self._clock.sleep(0.004)
        return self._now == "p", np.full((4, 4, 3), (255, 0, 0), np.uint8) if self._now == "p" else None

    def release(self):
        self.released = True


class Stop(threading.Event):
    """Waits on a clock that only moves when told."""

    def __init__(self, clock) -> None:
        super().__init__()
        self.waits_s: list[float] = []
        self._clock = clock

    def wait(self, timeout=None):
        self.waits_s.append(timeout)
        self._clock.sleep(timeout)
        return self.is_set()


class Bench:
    """A device of some scripts, one for each time that it is opened; None: it cannot be."""

    def __init__(self, clock, *scripts: str | None, patience_s: float = 2.0) -> None:
        first, *self._later = [None if script is None else FakeCapture(script, clock) for script in scripts]
        self.captures = [first]
        self.stop = Stop(clock)
        self.device = Device(
            first,
            name="camera 0",
            silence="camera 0: no picture",
            connect=self._connect,
            patience_s=patience_s,
            longest_back_off_s=5.0,
            timeline=Timeline(clock),
        )

    def _connect(self):
        self.captures.append(self._later.pop(0))
        return self.captures[-1]

    def take(self):
        return self.device.take(self.stop)

    @property
    def back_offs_s(self) -> list[float]:
        return [wait_s for wait_s in self.stop.waits_s if wait_s != RETRY_S]


def test_frames_are_rgb_due_when_captured_and_timed_from_the_first(clock):
    bench = Bench(clock, "pp")
    first, second = bench.take(), bench.take()
    np.testing.assert_array_equal(first.image[0, 0], (0, 0, 255))  # BGR blue is RGB blue
    # Grabbed after 10 ms, in memory 4 ms later; the next grab takes 10 ms again.
    assert (first.index, first.time_s) == (0, 0.0)
    assert (first.due_s, first.read_s) == pytest.approx((100.010, 100.014))
    assert (second.index, second.time_s) == (1, pytest.approx(0.014))
    assert (second.due_s, second.read_s) == pytest.approx((100.024, 100.028))
    assert bench.device.fps == 25.0


def test_pictures_of_a_pause_are_passed_over_and_take_no_time(clock):
    bench = Bench(clock, "ppppp")
    bench.take()
    bench.device.timeline.pause()
    clock.sleep(60.0)
    # The pause ends while the device is asked for its fourth picture.
    grab = bench.captures[0].grab
    calls = iter((lambda: None, lambda: None, bench.device.timeline.resume))
    bench.captures[0].grab = lambda: (next(calls, lambda: None)(), grab())[1]
    frame = bench.take()
    assert (frame.index, frame.time_s) == (1, pytest.approx(0.014))  # 4 ms to the pause, 10 ms for the grab after it
    assert bench.captures[0].retrieved == 2


def test_a_damaged_picture_is_no_reason_to_stop(clock):
    bench = Bench(clock, "pd-p")
    assert [bench.take().index for _ in range(2)] == [0, 1]
    assert len(bench.captures) == 1


def test_silent_device_is_opened_again(clock):
    bench = Bench(clock, "p" + "-" * 200, "ppp")
    bench.take()
    assert bench.take().index == 1
    assert bench.take().index == 2
    assert [capture.released for capture in bench.captures] == [True, False]
    # 2 s of patience from the first picture on (10 ms a grab, 10 ms between), half a second before it is opened.
    assert clock.now_s == pytest.approx(100.0 + 2.0 + 0.5, abs=0.1)


def test_device_that_raises_is_opened_again_at_once(clock):
    bench = Bench(clock, "p!", "p")
    assert [bench.take().index for _ in range(2)] == [0, 1]
    assert bench.stop.waits_s == [0.5]


def test_back_off_doubles_until_a_picture_comes(clock):
    """A device that opens but stays silent counts as a failure too."""
    bench = Bench(clock, "p!", None, None, "-" * 200, None, None, None, "p!", "p")
    assert [bench.take().index for _ in range(3)] == [0, 1, 2]
    assert bench.back_offs_s == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 0.5]


def test_without_patience_one_failed_grab_ends_the_connection(clock):
    bench = Bench(clock, "p-", "p", patience_s=0.0)
    assert [bench.take().index for _ in range(2)] == [0, 1]
    assert bench.stop.waits_s == [0.5]


def test_stopping_ends_the_wait_without_opening(clock):
    bench = Bench(clock, "!")
    bench.stop.wait = lambda timeout: bench.stop.set()
    assert bench.take() is None
    assert len(bench.captures) == 1
    bench.device.close()
    assert bench.captures[0].released
