"""The threads that read, so that capture overlaps with inference: the newest frame only, or every frame."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from mnet_det.live.frame import Frame, Source
from mnet_det.live.recorded import Recorded
from mnet_det.structures import Image

THREAD_NAME = "capture"

SILENCE_S = 2.0
"""A device without a picture for so long is waited for, and the viewer is told."""

CLOSING_S = 2.0
"""How long a blocked device may take to let go."""

CATCH_UP_S = 0.2
"""A file that decodes slower than it plays gives a frame so often, however late it is."""

TURN_S = 0.02
"""Longest sleep before a pause or the end is noticed."""


class Timeline:
    """Media time: a clock with the pauses left out. One thread reads it, another pauses it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._state: tuple[float, float | None] = (0.0, None)  # seconds left out, start of a pause; changed at once

    @property
    def paused(self) -> bool:
        """Whether it stands still."""
        return self._state[1] is not None

    def now_s(self) -> float:
        """The time without the pauses so far."""
        left_out_s, paused_s = self._state
        return (self.clock() if paused_s is None else paused_s) - left_out_s

    def on_clock_s(self, time_s: float) -> float:
        """What the clock would have shown then, had all pauses so far come before."""
        left_out_s, paused_s = self._state
        return time_s + left_out_s + (0.0 if paused_s is None else self.clock() - paused_s)

    def pause(self) -> None:
        """Stand still from now on."""
        left_out_s, paused_s = self._state
        if paused_s is None:
            self._state = (left_out_s, self.clock())

    def resume(self) -> None:
        """Go on from there."""
        left_out_s, paused_s = self._state
        if paused_s is not None:
            self._state = (left_out_s + self.clock() - paused_s, None)


class Feed(ABC):
    """Where the thread of `Newest` gets its frames.

    Attributes:
        name: as of a `Source`, like the next two.
        live: a device.
        fps: its own speed.
        timeline: what its frames are stamped with.
        index: how many frames it has come to, those passed over included.
        silence: what a viewer is told while no frame comes; None: nothing.
    """

    live = False
    silence: str | None = None

    def __init__(self, *, name: str, fps: float, timeline: Timeline) -> None:
        self.name = name
        self.fps = fps
        self.timeline = timeline
        self.index = 0

    @abstractmethod
    def take(self, stop: threading.Event) -> Frame | None:
        """Wait for the next frame; None at the end, and as soon as possible after `stop` is set."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the device or file."""


class Newest:
    """A source that runs a feed in a thread and keeps its newest frame only: a slow reader never lags behind.

    Time starts with the first `read`; before that and in pauses nothing is due nor dropped.
    """

    def __init__(self, feed: Feed) -> None:
        self.name = feed.name
        self.live = feed.live
        self.fps = feed.fps
        self.dropped = 0
        self.ended = False
        self.waiting: str | None = None
        self._feed = feed
        self._timeline = feed.timeline
        self._timeline.pause()
        self._heard_s: float | None = None
        self._given = 0
        self._newest: Frame | None = None
        self._finished = False
        self._error: Exception | None = None
        self._arrival = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_NAME} of {feed.name}", daemon=True)
        self._thread.start()

    def read(self, *, timeout_s: float) -> Frame | None:
        """The newest frame that was not given yet, or None if none came within `timeout_s`.

        Raises:
            MnetDetError: whatever the feed has raised.
        """
        if self._heard_s is None:
            self._timeline.resume()
            self._heard_s = self._timeline.now_s()
        with self._arrival:
            self._arrival.wait_for(lambda: self._newest is not None or self._finished, timeout_s)
            frame, self._newest = self._newest, None
            self._given += frame is not None
            finished = self._finished
        if frame is None:
            if self._error is not None:
                raise self._error
            self.ended = finished
            # Told by the time alone: a device that was unplugged may block its thread.
            silent = not finished and self._timeline.now_s() - self._heard_s > SILENCE_S
            self.waiting = self._feed.silence if silent else None
            return None
        self._heard_s = self._timeline.now_s()
        self.waiting = None
        on_clock_s = self._timeline.on_clock_s
        return replace(frame, read_s=on_clock_s(frame.read_s), due_s=on_clock_s(frame.due_s))

    def pause(self) -> None:
        """Stop media time."""
        self._timeline.pause()

    def resume(self) -> None:
        """Let media time go on; of a device, with a picture of now and not the last one before the pause."""
        if self.live:
            with self._arrival:
                self._newest = None
        self._timeline.resume()

    def close(self) -> None:
        """Stop reading. A device that hangs is left to the end of the process: releasing it mid-read can crash."""
        self._stop.set()
        self._thread.join(CLOSING_S)

    def _run(self) -> None:
        try:
            while (frame := self._feed.take(self._stop)) is not None:
                self._publish(frame)
        except Exception as error:  # noqa: BLE001 (the reader gets it)
            self._error = error
        self._publish(None)
        self._feed.close()

    def _publish(self, frame: Frame | None) -> None:
        with self._arrival:
            if frame is None:
                self._finished = True
            else:
                self._newest = frame
            self.dropped = self._feed.index - self._given - (self._newest is not None)
            self._arrival.notify()


class Player(Feed):
    """Files at their own speed: each frame at its turn; those that decode too late for it are passed over."""

    def __init__(self, recorded: Recorded, *, timeline: Timeline, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(name=recorded.name, fps=recorded.fps, timeline=timeline)
        self._recorded = recorded
        self._sleep = sleep
        self._start_s: float | None = None
        self._end_s = 0.0

    def take(self, stop: threading.Event) -> Frame | None:
        """Decode the next frame and wait for its turn; after the last, until its time is over."""
        time_s = self._recorded.next_s() if self._start_s is None else self._catch_up(self._start_s)
        image = self._recorded.take()
        if self._start_s is None:
            self._start_s = self.timeline.now_s()
        due_s = self._end_s if time_s is None or image is None else self._start_s + time_s
        while not stop.is_set() and (left_s := due_s - self.timeline.now_s()) > 0:
            self._sleep(TURN_S if self.timeline.paused else min(left_s, TURN_S))
        if stop.is_set():
            return None
        self.index = self._recorded.index
        if time_s is None or image is None:
            return None
        self._end_s = due_s + 1 / self.fps
        return Frame(image, self.index - 1, time_s, self.timeline.now_s(), due_s)

    def close(self) -> None:
        """Close the file."""
        self._recorded.close()

    def _catch_up(self, start_s: float) -> float | None:
        """Pass over the frames whose turn is over, but for the last; media time of the next one, None at the end."""
        began_s = now_s = self.timeline.now_s()
        while (time_s := self._recorded.next_s()) is not None:
            in_time = start_s + time_s + 1 / self.fps > now_s
            if in_time or now_s - began_s > CATCH_UP_S or self._recorded.index + 1 == self._recorded.frames:
                break
            self._recorded.skip()
            now_s = self.timeline.now_s()
        return time_s


class ReadAhead:
    """Every frame of a file, as fast as the reader goes; the next one is decoded meanwhile."""

    live = False
    dropped = 0
    waiting: str | None = None

    def __init__(self, recorded: Recorded) -> None:
        self.name = recorded.name
        self.fps = recorded.fps
        self.ended = False
        self._recorded = recorded
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._next: Future[tuple[Image, int, float] | None] = self._decoder.submit(self._decode)

    def read(self, *, timeout_s: float) -> Frame | None:
        """The next frame, or None if it is not decoded within `timeout_s` or the last one was given.

        Raises:
            DataError: an image of a folder cannot be read.
        """
        if not wait([self._next], timeout_s).done:
            return None
        decoded = self._next.result()
        if decoded is None:
            self.ended = True
            return None
        self._next = self._decoder.submit(self._decode)
        image, index, time_s = decoded
        now_s = time.perf_counter()
        return Frame(image, index, time_s, now_s, now_s)

    def pause(self) -> None:
        """Nothing to do: it waits for its reader anyway."""

    def resume(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the file, once the frame that is being decoded is done."""
        self._decoder.shutdown(cancel_futures=True)
        self._recorded.close()

    def _decode(self) -> tuple[Image, int, float] | None:
        index, time_s = self._recorded.index, self._recorded.next_s()
        image = self._recorded.take()
        return None if time_s is None or image is None else (image, index, time_s)


def play(recorded: Recorded) -> Source:
    """Play a file at its own speed from the first `read` on; what the reader has no time for is dropped."""
    return Newest(Player(recorded, timeline=Timeline()))
