"""Cameras and streams as the capture thread sees them: they fall silent, and come back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cv2

from mnet_det.live.capture import Feed, Timeline
from mnet_det.live.frame import Frame, sane_fps, to_rgb

RETRY_S = 0.01
"""Between two failed grabs."""

BACK_OFF_S = 0.5
"""Before the first attempt to open a silent device again; doubled after each that brings no picture."""


class Device(Feed):
    """An opened `cv2.VideoCapture`, opened again for as long as it takes when it falls silent."""

    live = True

    def __init__(
        self,
        device: Any,
        *,
        name: str,
        silence: str,
        connect: Callable[[], Any | None],
        patience_s: float,
        longest_back_off_s: float,
        timeline: Timeline | None = None,
    ) -> None:
        """Take over a device.

        Args:
            device: opened already.
            name: what messages call it.
            silence: what a viewer is told while no picture comes.
            connect: opens it again; None if that is impossible for now.
            patience_s: how long it may fail to give a picture before it is opened again.
            longest_back_off_s: where the doubling of `BACK_OFF_S` ends.
            timeline: what its frames are stamped with.
        """
        super().__init__(name=name, fps=sane_fps(device.get(cv2.CAP_PROP_FPS)), timeline=timeline or Timeline())
        self.silence = silence
        self._device: Any | None = device
        self._connect = connect
        self._patience_s = patience_s
        self._longest_back_off_s = longest_back_off_s
        self._clock = self.timeline.clock
        self._heard_s = self._clock()
        self._back_off_s = BACK_OFF_S
        self._start_s: float | None = None

    def take(self, stop: threading.Event) -> Frame | None:
        """Wait for the next picture, however long; those of a pause are passed over."""
        while not stop.is_set():
            if self._device is None:
                self._open_again(stop)
                continue
            frame, found = self._grab(self._device)
            if frame is not None:
                return frame
            if not found and self._clock() - self._heard_s >= self._patience_s:
                self.close()
            elif not found:
                stop.wait(RETRY_S)
        return None

    def close(self) -> None:
        """Release the device."""
        if self._device is not None:
            self._device.release()
            self._device = None

    def _grab(self, device: Any) -> tuple[Frame | None, bool]:
        """The next frame, None in a pause, and whether there was a picture."""
        try:
            grabbed = device.grab()
            captured_s, paused = self.timeline.now_s(), self.timeline.paused
            found, bgr = device.retrieve() if grabbed and not paused else (grabbed, None)
        except cv2.error:
            self.close()
            return None, True  # it is let go of already
        if found:
            self._heard_s = self._clock()
            self._back_off_s = BACK_OFF_S
        if not found or bgr is None:
            return None, found
        image = to_rgb(bgr)
        if self._start_s is None:
            self._start_s = captured_s
        self.index += 1
        return Frame(image, self.index - 1, captured_s - self._start_s, self.timeline.now_s(), captured_s), True

    def _open_again(self, stop: threading.Event) -> None:
        stop.wait(self._back_off_s)
        self._back_off_s = min(2 * self._back_off_s, self._longest_back_off_s)
        if not stop.is_set():
            with suppress(cv2.error):
                self._device = self._connect()
            self._heard_s = self._clock()
