"""What a live run measures."""

from __future__ import annotations

import random
import statistics
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
    """Adds up a run, frame by frame, in bounded memory."""

    def __init__(self, *, started_s: float) -> None:
        self.frames = 0
        self._started_s = started_s
        self._first_frame_s: float | None = None
        self._left_out_s = 0.0
        self._first_shown_s = self._last_shown_s = 0.0
        self._network_ms, self._end_to_end_ms, self._lag_ms = Reservoir(), Reservoir(), Reservoir()
        self._models: dict[int, _ModelTally] = {}
        self._model: int | None = None
        self._recent: deque[tuple[float, float, float]] = deque(maxlen=RECENT)  # shown s, lag ms, network ms
        self._detections: Counter[str] = Counter()

    def add(self, frame: Frame, classes: Sequence[str], *, shown_s: float, network_ms: float, model: int = 0) -> None:
        """Count a frame with objects of these classes, shown at a stamp of the clock that stamped it."""
        at_s = shown_s - self._left_out_s
        lag_ms = (shown_s - frame.due_s) * 1000
        if self._first_frame_s is None:
            self._first_frame_s = shown_s - self._started_s
            self._first_shown_s = at_s
        its = self._models.setdefault(model, _ModelTally())
        if self._model == model:
            its.steps += 1
            its.steps_s += at_s - self._last_shown_s
        else:
            self._recent.clear()
        self.frames += 1
        its.frames += 1
        self._model, self._last_shown_s = model, at_s
        self._recent.append((at_s, lag_ms, network_ms))
        for sample, value in (
            *((self._network_ms, network_ms), (self._lag_ms, lag_ms)),
            *((its.network_ms, network_ms), (its.lag_ms, lag_ms)),
            (self._end_to_end_ms, (shown_s - frame.read_s) * 1000),
        ):
            sample.add(value)
        self._detections.update(classes)

    def leave_out(self, pause_s: float) -> None:
        """Leave a pause of so many seconds out of the frame rate."""
        self._left_out_s += pause_s

    def readings(self, *, dropped: int, model: int = 0) -> Readings:
        """The meters: the latest frames, of a model whose frame was the last one."""
        recent = self._recent if model == self._model else ()
        return Readings(
            fps=rate([shown_s for shown_s, _, _ in recent]),
            latency_ms=_median([lag_ms for _, lag_ms, _ in recent]),
            network_ms=_median([network_ms for _, _, network_ms in recent]),
            dropped=dropped,
            frames=self.frames,
        )

    def stats(self, cards: Sequence[ModelCard], *, dropped: int) -> Stats:
        """The whole run; `cards` of the models by their numbers."""
        return Stats(
            frames=self.frames,
            read=self.frames + dropped,
            dropped=dropped,
            fps=_fps(self.frames - 1, self._last_shown_s - self._first_shown_s),
            network_ms=Spread.of(self._network_ms.values),
            end_to_end_ms=Spread.of(self._end_to_end_ms.values),
            lag_ms=Spread.of(self._lag_ms.values),
            first_frame_s=self._first_frame_s,
            detections=dict(self._detections.most_common()),
            models=[_model_stats(cards[model], self._models[model]) for model in sorted(self._models)],
        )


class Reservoir:
    """Values of which percentiles are asked: all of them at first, an even sample later (Vitter 1985, algorithm R)."""

    def __init__(self, most: int = 50_000) -> None:
        self.values = array("d")
        self._most = most
        self._seen = 0
        self._random = random.Random(0)

    def add(self, value: float) -> None:
        """Take a value into account."""
        self._seen += 1
        if len(self.values) < self._most:
            self.values.append(value)
        elif (place := self._random.randrange(self._seen)) < self._most:
            self.values[place] = value


@dataclass
class _ModelTally:
    frames: int = 0
    steps: int = 0
    steps_s: float = 0.0
    network_ms: Reservoir = field(default_factory=Reservoir)
    lag_ms: Reservoir = field(default_factory=Reservoir)


def _model_stats(card: ModelCard, tally: _ModelTally) -> ModelStats:
    return ModelStats(
        model=card.name,
        alpha=card.alpha,
        input_hw=card.input_hw,
        precision=card.precision,
        runtime=card.runtime,
        threads=card.threads,
        frames=tally.frames,
        fps=_fps(tally.steps, tally.steps_s),
        network_ms=Spread.of(tally.network_ms.values),
        lag_ms=Spread.of(tally.lag_ms.values),
    )


def _median(values: Sequence[float]) -> float | None:
    """Without numpy, whose percentiles would take part of each frame's time for so few values."""
    return statistics.median(values) if values else None


def rate(stamps_s: Sequence[float]) -> float | None:
    """Events per second; n stamps span n - 1 intervals, so that one alone has no rate."""
    return _fps(len(stamps_s) - 1, stamps_s[-1] - stamps_s[0]) if stamps_s else None


def _fps(intervals: int, seconds: float) -> float | None:
    return intervals / seconds if intervals > 0 and seconds > 0 else None
