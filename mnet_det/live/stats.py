"""What a live run measures."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnet_det.files import write_json
from mnet_det.live.overlay import Readings
from mnet_det.live.source import Frame
from mnet_det.structures import Detections

RECENT = 30
"""Frames that the panel's numbers are taken over."""


@dataclass(frozen=True)
class Spread:
    """Median and 95th percentile of a measurement; None where nothing was measured."""

    p50: float | None
    p95: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of so many values."""
        if not values:
            return cls(None, None)
        p50, p95 = np.percentile(values, (50, 95))
        return cls(float(p50), float(p95))


@dataclass(frozen=True)
class Stats:
    """What a run measured; times in the names' units, None where nothing was measured.

    Attributes:
        frames: how many were shown.
        read: how many the source gave; shown or dropped.
        dropped: how many nobody had time for.
        fps: frames shown in a second, first to last, pauses left out.
        network_ms: the network alone.
        end_to_end_ms: from a frame in memory to that frame shown.
        lag_ms: from the moment a frame was due (`Frame.due_s`) to that frame shown.
        first_frame_s: from the program's start to the first frame shown.
        detections: class name to how often it was drawn, the most frequent first.
    """

    frames: int
    read: int
    dropped: int
    fps: float | None
    network_ms: Spread
    end_to_end_ms: Spread
    lag_ms: Spread
    first_frame_s: float | None
    detections: dict[str, int]

    def write(self, path: Path) -> None:
        """Write JSON.

        Raises:
            MnetDetError: the file cannot be written.
        """
        write_json(path, asdict(self))


class Tally:
    """Adds up a run, frame by frame."""

    def __init__(self, *, started_s: float) -> None:
        self.frames = 0
        self._started_s = started_s
        self._first_frame_s: float | None = None
        self._paused_s = 0.0
        self._shown_s = array("d")
        self._network_ms = array("d")
        self._end_to_end_ms = array("d")
        self._lag_ms = array("d")
        self._labels: Counter[int] = Counter()

    def add(self, frame: Frame, detections: Detections, *, shown_s: float, network_ms: float) -> None:
        """Count a frame that was shown at a stamp of the clock that stamped it."""
        if self._first_frame_s is None:
            self._first_frame_s = shown_s - self._started_s
        self.frames += 1
        self._shown_s.append(shown_s - self._paused_s)
        self._network_ms.append(network_ms)
        self._end_to_end_ms.append((shown_s - frame.read_s) * 1000)
        self._lag_ms.append((shown_s - frame.due_s) * 1000)
        self._labels.update(detections.labels.tolist())

    def leave_out(self, pause_s: float) -> None:
        """Leave a pause of so many seconds out of the frame rate."""
        self._paused_s += pause_s

    def readings(self, *, dropped: int) -> Readings:
        """What the panel says: the latest frames only."""
        return Readings(
            fps=rate(self._shown_s[-RECENT:]),
            end_to_end_ms=Spread.of(self._end_to_end_ms[-RECENT:]).p50,
            network_ms=Spread.of(self._network_ms[-RECENT:]).p50,
            dropped=dropped,
        )

    def stats(self, class_names: Sequence[str], *, dropped: int) -> Stats:
        """The whole run."""
        return Stats(
            frames=self.frames,
            read=self.frames + dropped,
            dropped=dropped,
            fps=rate(self._shown_s),
            network_ms=Spread.of(self._network_ms),
            end_to_end_ms=Spread.of(self._end_to_end_ms),
            lag_ms=Spread.of(self._lag_ms),
            first_frame_s=self._first_frame_s,
            detections={class_names[label]: count for label, count in self._labels.most_common()},
        )


def rate(stamps_s: Sequence[float]) -> float | None:
    """Events per second; n stamps span n - 1 intervals, so that one alone has no rate."""
    if len(stamps_s) < 2 or stamps_s[-1] <= stamps_s[0]:
        return None
    return (len(stamps_s) - 1) / (stamps_s[-1] - stamps_s[0])
