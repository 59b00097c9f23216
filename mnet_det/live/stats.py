"""What a live run measures."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnet_det.files import write_json
from mnet_det.live.frame import Frame
from mnet_det.live.lineup import ModelCard

RECENT = 30
"""Frames that the meters are taken over."""


@dataclass(frozen=True)
class Readings:
    """The meters: the latest frames; None before it can be known.

    Attributes:
        fps: frames shown in a second, of the model that runs.
        latency_ms: from the moment a frame was due (`Frame.due_s`; for a camera, its capture) to that frame shown.
        network_ms: the network alone.
        dropped: frames of the source that were not shown, since the start.
        frames: those that were.
    """

    fps: float | None
    latency_ms: float | None
    network_ms: float | None
    dropped: int
    frames: int


@dataclass(frozen=True)
class Spread:
    """Median and 95th percentile of a measurement; None where nothing was measured."""

    p50: float | None
    p95: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of so many values."""
        if not len(values):
            return cls(None, None)
        p50, p95 = np.percentile(values, (50, 95))
        return cls(float(p50), float(p95))


@dataclass(frozen=True)
class ModelStats:
    """What one of the models that were switched between did; `fps` from frame to frame of its own."""

    model: str
    alpha: float
    input_hw: tuple[int, int]
    precision: str
    runtime: str
    threads: int
    frames: int
    fps: float | None
    network_ms: Spread
    lag_ms: Spread


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
        models: those that ran, in the order of the line-up.
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
    models: list[ModelStats]

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
        self._left_out_s = 0.0
        self._shown_s = array("d")
        self._network_ms = array("d")
        self._end_to_end_ms = array("d")
        self._lag_ms = array("d")
        self._model = array("i")
        self._since_switch = 0
        self._detections: Counter[str] = Counter()

    def add(self, frame: Frame, classes: Sequence[str], *, shown_s: float, network_ms: float, model: int = 0) -> None:
        """Count a frame with objects of these classes, shown at a stamp of the clock that stamped it."""
        if self._first_frame_s is None:
            self._first_frame_s = shown_s - self._started_s
        if self._model and self._model[-1] != model:
            self._since_switch = 0
        self.frames += 1
        self._since_switch += 1
        self._shown_s.append(shown_s - self._left_out_s)
        self._network_ms.append(network_ms)
        self._end_to_end_ms.append((shown_s - frame.read_s) * 1000)
        self._lag_ms.append((shown_s - frame.due_s) * 1000)
        self._model.append(model)
        self._detections.update(classes)

    def leave_out(self, pause_s: float) -> None:
        """Leave a pause of so many seconds out of the frame rate."""
        self._left_out_s += pause_s

    def readings(self, *, dropped: int) -> Readings:
        """The meters: the latest frames, of the latest model alone."""
        recent = slice(self.frames - min(RECENT, self._since_switch), None)
        return Readings(
            fps=rate(self._shown_s[recent]),
            latency_ms=_median(self._lag_ms[recent]),
            network_ms=_median(self._network_ms[recent]),
            dropped=dropped,
            frames=self.frames,
        )

    def stats(self, cards: Sequence[ModelCard], *, dropped: int) -> Stats:
        """The whole run; `cards` of the models by their numbers."""
        return Stats(
            frames=self.frames,
            read=self.frames + dropped,
            dropped=dropped,
            fps=rate(self._shown_s),
            network_ms=Spread.of(self._network_ms),
            end_to_end_ms=Spread.of(self._end_to_end_ms),
            lag_ms=Spread.of(self._lag_ms),
            first_frame_s=self._first_frame_s,
            detections=dict(self._detections.most_common()),
            models=[self._stats_of(model, card) for model, card in enumerate(cards) if model in self._model],
        )

    def _stats_of(self, model: int, card: ModelCard) -> ModelStats:
        its = np.array(self._model) == model
        steps_s = np.diff(self._shown_s)[its[1:] & its[:-1]]
        total_s = float(steps_s.sum())
        return ModelStats(
            model=card.name,
            alpha=card.alpha,
            input_hw=card.input_hw,
            precision=card.precision,
            runtime=card.runtime,
            threads=card.threads,
            frames=int(its.sum()),
            fps=len(steps_s) / total_s if total_s > 0 else None,
            network_ms=Spread.of(np.array(self._network_ms)[its]),
            lag_ms=Spread.of(np.array(self._lag_ms)[its]),
        )


def _median(values: Sequence[float]) -> float | None:
    """Twenty times as fast as numpy's for a few values, and asked for at each frame."""
    return statistics.median(values) if values else None


def rate(stamps_s: Sequence[float]) -> float | None:
    """Events per second; n stamps span n - 1 intervals, so that one alone has no rate."""
    if len(stamps_s) < 2 or stamps_s[-1] <= stamps_s[0]:
        return None
    return (len(stamps_s) - 1) / (stamps_s[-1] - stamps_s[0])
